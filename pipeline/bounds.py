"""Which positions of a batch are one sequence, for the loss. Without any model."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Bounds(NamedTuple):
    """Of each query of a batch [B, T] its range of keys ``first`` … ``stop`` − 1, int32; padding has an empty one.

    All positions of a sequence have its range, and several sequences may lie in one row. A loss is the sum over sequences of
    the mean over each one's queries, divided by the number of ``sequences`` (MiniLM, equation 3).
    """

    first: Tensor
    stop: Tensor
    sequences: float

    def to(self, device: torch.device) -> "Bounds":
        """The same on ``device``."""
        return Bounds(self.first.to(device), self.stop.to(device), self.sequences)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """What each query counts for in a loss, [B, T]: 1 / (sequences · queries of its sequence), 0 if it is padding."""
        size = self.stop - self.first
        return (size > 0) / (self.sequences * size.clamp(min=1).to(dtype))

    def counts(self) -> Tensor:
        """The number of sequences of each row, int64 [B]."""
        place = torch.arange(self.first.shape[1], device=self.first.device)
        return ((self.first == place) & (self.stop > self.first)).sum(1)

    def rows(self, picked: slice) -> "Bounds":
        """Those of some rows, for a loss in proportion: the mean over all rows of a batch is the batch's."""
        first, stop = self.first[picked], self.stop[picked]
        return Bounds(first, stop, self.sequences * len(first) / len(self.first))

    def repeated(self, times: int) -> "Bounds":
        """Each row ``times`` times, as of so many layers: the mean over them."""
        if times == 1:
            return self
        first, stop = (x.repeat_interleave(times, 0) for x in (self.first, self.stop))
        return Bounds(first, stop, self.sequences * times)


def bounds_in_a_row(lengths: Sequence[int], padding: int = 0) -> Bounds:
    """Sequences of these ``lengths`` one after the other in a single row, and ``padding`` positions behind them."""
    size = torch.tensor([*lengths, padding])
    stop = size.cumsum(0)
    first = stop - size
    first[-1] = stop[-1] = 0
    first, stop = (x.repeat_interleave(size)[None].int() for x in (first, stop))
    return Bounds(first, stop, len(lengths))


def bounds_of_lengths(lengths: Tensor, length: int) -> Bounds:
    """Right-padded sequences with ``lengths`` [B] real positions of ``length``; one of none has no weight."""
    lengths = lengths.clamp(max=length)[:, None]
    real = torch.arange(length, device=lengths.device) < lengths
    stop = torch.where(real, lengths, 0).int()
    return Bounds(torch.zeros_like(stop), stop, len(lengths))
