"""Sequences as a model reads them: input ids, token types of pairs, and what says where a sequence begins and ends."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pipeline.bounds import Bounds, bounds_of_lengths


@dataclass(frozen=True)
class Pieces:
    """Which positions of ``n`` packed rows of ``length`` are one sequence, on the CPU or on a device.

    ``first``, ``stop``: int32 [n, length], for each position where its piece begins in its row and where it ends; 0 and 0 if
    the position is padding. ``cuts``: int32 [n, most + 1], where a row's pieces begin, then ``length`` to the end; its padding
    counts as a piece. ``a_row``: how many pieces a row has in the mean over the step that these rows are a part of.

    ``known_cuts`` are the same on the CPU (see Inputs).
    """

    first: Tensor
    stop: Tensor
    cuts: Tensor
    a_row: float
    known_cuts: Tensor

    @classmethod
    def of(cls, cuts: Tensor, ends: Tensor, length: int, a_row: float) -> "Pieces":
        """Rows whose pieces, padding among them, begin at ``cuts`` [n, most + 1]; ``ends`` int64 [n]: where padding begins."""
        place = torch.arange(length)
        piece = torch.searchsorted(cuts, place.int().expand(len(cuts), -1).contiguous(), right=True)
        real = place < ends[:, None]
        first, stop = (torch.where(real, cuts.gather(1, number), 0) for number in (piece - 1, piece))
        return cls(first, stop, cuts, a_row, cuts)

    @property
    def positions(self) -> Tensor:
        """Of each position its place in its own piece, int64 [n, length]; of padding, in its row."""
        return torch.arange(self.first.shape[1], device=self.first.device) - self.first

    def texts(self) -> Tensor:
        """Which positions are of the first, the second, … piece of a row: bool [n, most, length]; padding is of none."""
        place = torch.arange(self.first.shape[1], device=self.first.device)
        begin, end = self.cuts[:, :-1, None], self.cuts[:, 1:, None]
        return (begin <= place) & (place < end) & (self.stop > 0)[:, None]

    @cached_property
    def sizes(self) -> list[int]:
        """The positions of each piece, row after row, padding included. Waits for no device."""
        return [size for row in self.known_cuts.diff().tolist() for size in row if size]

    @cached_property
    def offsets(self) -> Tensor:
        """Where pieces begin in the rows laid one after the other, and where the last one ends: int32 [n · (most + 1)].

        Between rows there are pieces of no positions.
        """
        rows = torch.arange(len(self.cuts), dtype=torch.int32, device=self.cuts.device)
        return (self.cuts + rows[:, None] * self.first.shape[1]).flatten()

    def shares(self) -> Tensor:
        """The number of pieces of each row in proportion to the mean of the step: float64 [n], on the CPU."""
        length = self.known_cuts[:, -1:]
        begun = (self.known_cuts < length).sum(1)
        padded = self.stop[:, -1].cpu() == 0
        return (begun - padded.long()).double() / self.a_row

    def each(self, moved: Callable[[Tensor], Tensor]) -> "Pieces":
        """The same of ``moved`` tensors; what is known on the CPU stays."""
        return Pieces(moved(self.first), moved(self.stop), moved(self.cuts), self.a_row, self.known_cuts)

    def rows(self, picked: slice) -> "Pieces":
        """Those of some rows: views."""
        first, stop, cuts = self.first[picked], self.stop[picked], self.cuts[picked]
        return Pieces(first, stop, cuts, self.a_row, self.known_cuts[picked])


@dataclass(frozen=True)
class Inputs:
    """``n`` rows on the CPU, or on a device: a sequence each, or several ``pieces``.

    ``ids``: int64 [n, length]. ``second``: bool [n, length], the tokens of the second of two segments (token type 1), or None
    where sequences are single. ``lengths``: int64 [n], positions that are not padding; None if nothing is padded, or rows are
    packed.

    Bounds also decide shapes and whether there is a mask, for which nobody asks a device: that would wait for all that is
    queued there. So ``known_lengths`` are the same on the CPU; they are ``lengths`` until those are sent away.
    """

    ids: Tensor
    second: Tensor | None = None
    lengths: Tensor | None = None
    known_lengths: Tensor | None = None
    pieces: Pieces | None = None

    def __post_init__(self) -> None:
        if self.known_lengths is None:
            object.__setattr__(self, "known_lengths", self.lengths)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def padded(self) -> bool:
        """Whether a row that is one sequence has padding. Waits for no device."""
        return self.known_lengths is not None and int(self.known_lengths.min()) < self.ids.shape[1]

    @property
    def told(self) -> dict[str, Any]:
        """What an encoder is told beside the ids."""
        return {"second": self.second, "padded": self.padded, "pieces": self.pieces}

    def bounds(self) -> Bounds | None:
        """Which positions are one sequence to the loss; None if each row is one, unpadded."""
        if self.pieces:
            return Bounds(self.pieces.first, self.pieces.stop, self.pieces.a_row * len(self))
        return None if self.lengths is None else bounds_of_lengths(self.lengths, self.ids.shape[1])

    def shares(self) -> list[float]:
        """What the loss of each row counts for, in the mean over the rows of a step: 1 where a row is one sequence."""
        return self.pieces.shares().tolist() if self.pieces else [1.0] * len(self)

    def split(self, size: int) -> list["Inputs"]:
        """Consecutive parts of ``size`` rows: views. Of sequences, without the columns in which all of a part are padding."""
        return [self._part(slice(first, first + size)) for first in range(0, len(self), size)]

    def pin_memory(self) -> "Inputs":
        """The same in pinned memory, from which a GPU copies while the CPU goes on."""
        return self._each(lambda x: x.contiguous().pin_memory())

    def to(self, device: torch.device) -> "Inputs":
        """The same on ``device``; sent without waiting if they are whole and pinned."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def _each(self, moved: Callable[[Tensor], Tensor]) -> "Inputs":
        second, lengths = (x if x is None else moved(x) for x in (self.second, self.lengths))
        pieces = self.pieces and self.pieces.each(moved)
        return Inputs(moved(self.ids), second, lengths, self.known_lengths, pieces)

    def _part(self, rows: slice) -> "Inputs":
        lengths = None if self.lengths is None else self.lengths[rows]
        known = None if self.known_lengths is None else self.known_lengths[rows]
        columns = slice(None if known is None else int(known.max()))
        second = None if self.second is None else self.second[rows, columns]
        pieces = self.pieces and self.pieces.rows(rows)
        return Inputs(self.ids[rows, columns], second, lengths, known, pieces)
