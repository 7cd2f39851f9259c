"""Which sample is number g: a pure function of the seed and the corpus, O(1) in time and memory at any g.

The global sample number g only counts up; (source, epoch, window) follows from it and nothing else decides what a step
reads, so a checkpoint stores one integer and any number of ranks reads the same sequence.

* A block of ``BLOCK`` samples holds a fixed integer quota of each source, by largest remainder of the sampling weights.
* Inside a block the places are dealt to the sources by sorting a keyed hash.
* Inside each (source, epoch) the windows follow a keyed permutation: a Feistel network over a grid that hardly exceeds
  their number, walked until it falls inside (Black & Rogaway, "Ciphers with arbitrary finite domains", 2002). A source's
  windows are all read once before any is read again, in a new order each epoch.

``shuffle_shards`` goes between: a source's shards come some at a time, and the permutation is of the windows of these
(in_turn.py).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.feistel import Grid, Numbers, mix, permute
from pipeline.data.in_turn import InTurn

BLOCK = 8192


class Samples(NamedTuple):
    """Consecutive samples: the source of each, how often that source was read whole before, and the window; all [n]."""

    source: np.ndarray
    epoch: np.ndarray
    window: np.ndarray


class Order:
    """The sampling order over sources of ``windows[i]`` windows each, drawn in proportion to ``weights[i]``."""

    def __init__(
        self,
        windows: Sequence[int],
        weights: Sequence[float],
        seed: int,
        shards: Sequence[np.ndarray] | None = None,
        at_a_time: int = 0,
    ):
        """``shards``: the windows of each shard of each source, int64, of which so many are taken ``at_a_time``; 0: all.

        Raises ValueError if a source that has a quota has no window.
        """
        self.quotas = quotas(weights, BLOCK)
        counts = np.asarray(windows, np.uint64)
        if (counts[self.quotas > 0] == 0).any():
            raise ValueError("a source with a sampling weight has no window")
        # A block's samples sorted by source: what is the same in every block, [BLOCK] each.
        source = np.repeat(np.arange(len(counts)), self.quotas.astype(int))
        self._source = source.astype(np.min_scalar_type(len(counts)))  # 8 or 16 bits are sorted by radix
        self._rank = np.concatenate([np.arange(quota, dtype=np.uint64) for quota in self.quotas])
        self._quota, self._grid = self.quotas[source], Grid.over(counts[source])
        root = mix(np.asarray([seed], np.uint64))
        self._layout_key, self._key = mix(root), mix(root + np.uint64(1) + source.astype(np.uint64))
        self._bits_key = mix(~root)
        self._in_turn = None
        if shards is not None and at_a_time:
            numbers: Numbers = np.arange(len(counts), dtype=np.uint64)
            self._in_turn = InTurn(shards, at_a_time, mix(root + np.uint64(1) + numbers))
        self._block = functools.lru_cache(maxsize=4)(self._samples)

    def __call__(self, start: int, stop: int) -> Samples:
        """The samples ``start`` … ``stop`` − 1, wherever blocks begin."""
        parts = []
        for number in range(start // BLOCK, -(-stop // BLOCK)):
            first = number * BLOCK
            parts.append([x[max(start - first, 0) : stop - first] for x in self._block(number)])
        return Samples(*(np.concatenate(x) for x in zip(*parts, strict=True)))

    def drawn(self, samples: int) -> np.ndarray:
        """How many of the first ``samples`` are of each source, int64 [sources]; O(1) at any number."""
        blocks, rest = divmod(samples, BLOCK)
        quotas = self.quotas.astype(np.int64)
        return blocks * quotas + np.bincount(self._shuffled(blocks)[:rest], minlength=len(quotas))

    def bits(self, start: int, stop: int) -> Numbers:
        """64 bits of each of the samples ``start`` … ``stop`` − 1, for whatever else is to follow from a sample's number."""
        numbers: Numbers = np.arange(start, stop, dtype=np.uint64)
        return mix(self._bits_key + numbers)

    @property
    def in_turn(self) -> bool:
        """Whether shards come some at a time: then nothing else that a sample needs may lie in another shard."""
        return self._in_turn is not None

    def forget(self) -> None:
        """Drop the blocks that are kept, so that the next call takes as long as a first one."""
        self._block.cache_clear()

    def _samples(self, number: int) -> Samples:
        """All the samples of block ``number``."""
        drawn = np.uint64(number) * self._quota + self._rank  # how many samples of this source came before this one
        epoch, rest = np.divmod(drawn, self._grid.size)
        if self._in_turn:
            window = self._in_turn(self._source, epoch, rest)
        else:
            window = permute(rest, self._grid, mix(self._key + epoch))
        source = self._shuffled(number)
        by_source = np.argsort(source, kind="stable")  # a source's samples come in the order in which they are drawn
        samples = Samples(source.astype(np.int64), *np.empty((2, BLOCK), np.int64))
        samples.epoch[by_source], samples.window[by_source] = epoch.view(np.int64), window.view(np.int64)
        return samples

    def _shuffled(self, number: int) -> np.ndarray:
        """The source of each sample of block ``number``."""
        key = mix(self._layout_key + np.uint64(number))
        numbers: Numbers = np.arange(BLOCK, dtype=np.uint64)
        hashes = mix(key + numbers).astype(np.uint16)
        return self._source[np.argsort(hashes, kind="stable")]


def quotas(weights: Sequence[float], block: int) -> Numbers:
    """Integers [sources] that sum to ``block``, in proportion to ``weights`` by largest remainder."""
    exact = np.asarray(weights, float) / np.sum(weights) * block
    whole: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    rest = np.argsort(-(exact - whole), kind="stable")[: block - whole.sum()]
    whole[rest] += 1
    return whole.astype(np.uint64)
