"""Sequences as a model reads them: input ids, token types of pairs, and real lengths where they are padded."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """``n`` sequences on the CPU, or on a device.

    ``ids``: int64 [n, length]. ``second``: bool [n, length], the tokens of the second of two segments (token type 1), or None
    where sequences are single. ``lengths``: int64 [n], positions that are not padding; None if nothing is padded.

    Lengths also decide shapes and whether there is a mask, for which nobody asks a device: that would wait for all that is
    queued there. So ``known_lengths`` are the same on the CPU; they are ``lengths`` until those are sent away.
    """

    ids: Tensor
    second: Tensor | None = None
    lengths: Tensor | None = None
    known_lengths: Tensor | None = None

    def __post_init__(self) -> None:
        if self.known_lengths is None:
            object.__setattr__(self, "known_lengths", self.lengths)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def padded(self) -> bool:
        """Whether any position is padding. Waits for no device."""
        return self.known_lengths is not None and int(self.known_lengths.min()) < self.ids.shape[1]

    def split(self, size: int) -> list["Inputs"]:
        """Consecutive parts of ``size`` sequences, each without the columns in which all of its own are padding: views."""
        return [self._part(slice(first, first + size)) for first in range(0, len(self), size)]

    def pin_memory(self) -> "Inputs":
        """The same in pinned memory, from which a GPU copies while the CPU goes on."""
        return self._each(lambda x: x.contiguous().pin_memory())

    def to(self, device: torch.device) -> "Inputs":
        """The same on ``device``; sent without waiting if they are whole and pinned."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def _each(self, moved: Callable[[Tensor], Tensor]) -> "Inputs":
        second, lengths = (x if x is None else moved(x) for x in (self.second, self.lengths))
        return Inputs(moved(self.ids), second, lengths, self.known_lengths)

    def _part(self, rows: slice) -> "Inputs":
        lengths = None if self.lengths is None else self.lengths[rows]
        known = None if self.known_lengths is None else self.known_lengths[rows]
        columns = slice(None if known is None else int(known.max()))
        second = None if self.second is None else self.second[rows, columns]
        return Inputs(self.ids[rows, columns], second, lengths, known)
