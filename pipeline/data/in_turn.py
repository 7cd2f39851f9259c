"""The windows of a source some shards at a time, for a corpus of which not all shards are at hand at once.

In each epoch a source's shards are put in a new order and taken ``at_a_time``; of these all windows are read, in a keyed
permutation, before the next ones are. So every window is read once in an epoch, and which one follows from its number.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.data.feistel import Grid, Numbers, mix, permute


class _Epoch(NamedTuple):
    """Shards in their order: the first window of each in its source, and before each, and each group, windows read."""

    first: np.ndarray
    before_shard: np.ndarray
    before_group: np.ndarray
    key: Numbers


class InTurn:
    """``windows``: for each source, those of each shard, int64 [shards]. ``key``: uint64 [sources]."""

    def __init__(self, windows: Sequence[np.ndarray], at_a_time: int, key: Numbers):
        self._windows, self._at_a_time, self._keys = windows, at_a_time, key
        self._epoch = functools.lru_cache(maxsize=4 * len(windows) + 64)(self._epoch_of)

    def __call__(self, source: np.ndarray, epoch: Numbers, number: Numbers) -> Numbers:
        """The windows, uint64 [n], that are read as ``number`` of an epoch of their source."""
        window = np.empty_like(number)
        order = np.lexsort((epoch, source))
        changes = np.flatnonzero((np.diff(source[order]) != 0) | (np.diff(epoch[order]) != 0)) + 1
        for rows in np.split(order, changes):
            if len(rows):
                window[rows] = self._of_epoch(self._epoch(int(source[rows[0]]), int(epoch[rows[0]])), number[rows])
        return window

    def _epoch_of(self, source: int, epoch: int) -> _Epoch:
        counts = self._windows[source].astype(np.uint64)
        first = np.cumsum(counts) - counts
        key = mix(self._keys[source : source + 1] + np.uint64(epoch))
        numbers: Numbers = np.flatnonzero(counts).astype(np.uint64)
        shards = numbers[np.argsort(mix(key + numbers), kind="stable")].astype(np.int64)
        before_shard = np.append(np.uint64(0), np.cumsum(counts[shards]))
        before_group = np.append(before_shard[: -1 : self._at_a_time], before_shard[-1])
        return _Epoch(first[shards], before_shard, before_group, mix(~key))

    def _of_epoch(self, of: _Epoch, number: Numbers) -> Numbers:
        group = np.searchsorted(of.before_group, number, side="right") - 1
        start = of.before_group[group]
        grid = Grid.over(of.before_group[group + 1] - start)
        place = start + permute(number - start, grid, mix(of.key + group.astype(np.uint64)))
        shard = np.searchsorted(of.before_shard, place, side="right") - 1
        window: Numbers = of.first[shard] + place - of.before_shard[shard]
        return window
