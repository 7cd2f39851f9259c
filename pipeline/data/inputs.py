"""Sequences as a model reads them: input ids, token types of pairs, and real lengths where they are padded."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """``n`` sequences on the CPU, or on a device.

    ``ids``: int64 [n, length]. ``second``: bool [n, length], the tokens of the second of two segments (token type 1), or None
    where sequences are single. ``lengths``: int64 [n], positions that are not padding; None if nothing is padded.
    """

    ids: Tensor
    second: Tensor | None = None
    lengths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def split(self, size: int) -> list["Inputs"]:
        """Consecutive parts of ``size`` sequences, each without the columns in which all of its own are padding."""
        return [self._part(slice(first, first + size)) for first in range(0, len(self), size)]

    def pin_memory(self) -> "Inputs":
        """The same in pinned memory, from which a GPU copies while the CPU goes on."""
        second = None if self.second is None else self.second.pin_memory()
        return Inputs(self.ids.pin_memory(), second, self.lengths)

    def to(self, device: torch.device) -> "Inputs":
        """The same with ids and segments on ``device``, sent without waiting; lengths stay, since they decide shapes."""
        second = None if self.second is None else self.second.to(device, non_blocking=True)
        return Inputs(self.ids.to(device, non_blocking=True), second, self.lengths)

    def _part(self, rows: slice) -> "Inputs":
        lengths = None if self.lengths is None else self.lengths[rows]
        columns = slice(None if lengths is None else int(lengths.max()))
        second = None if self.second is None else self.second[rows, columns]
        return Inputs(self.ids[rows, columns], second, lengths)
