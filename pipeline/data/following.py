"""Shards fetched ahead of the order in which samples are read, by one process of a host."""

import itertools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from data_prep.cli import UserError
from data_prep.mirror import AT_ONCE, Mirror
from data_prep.shards import Corpus
from pipeline.data.order import Order
from pipeline.data.windows import Windows

_PAUSE = 0.05  # seconds between two looks at how far reading is

Item = TypeVar("Item")


def bytes_at_once(windows: Windows, at_a_time: int) -> int:
    """Bytes of the shards that reading needs at the same time, fetched ahead in part: two turns of each source's largest."""
    sizes = np.array([shard.path_bytes for shard in windows.shards], np.int64)
    bounds = np.cumsum([0, *map(len, windows.by_shard)])
    needed = 0
    for start, stop in itertools.pairwise(bounds.tolist()):
        largest = np.sort(sizes[start:stop])[::-1]
        needed += int(largest[: 2 * at_a_time].sum() if at_a_time else largest.sum())
    return needed


def followed(
    batches: Iterator[Item], corpus: Corpus, windows: Windows, order: Order, batch: int, start: int, stop: int
) -> Iterator[Item]:
    """The same batches of steps ``start`` … ``stop`` − 1, with their shards fetched ahead by a host's first rank.

    ``order`` is this function's own: another thread reads it.
    """
    if corpus.mirror is None or os.environ.get("LOCAL_RANK", "0") != "0":
        return batches
    return _paced(batches, _Following(corpus.mirror, windows, order, batch, start, stop), start)


def _paced(batches: Iterator[Item], following: "_Following", start: int) -> Iterator[Item]:
    try:
        for step, item in enumerate(batches, start):
            yield item
            following.read_to = step + 1
    finally:
        following.stop()


class _Following:
    """A thread that fetches and holds the shards of steps ``start`` … ``stop`` − 1, as many as the cache has room for."""

    def __init__(self, mirror: Mirror, windows: Windows, order: Order, batch: int, start: int, stop: int):
        self._mirror, self._windows, self._order = mirror, windows, order
        self._batch = batch
        self.read_to = start  # the step that is read next
        self._last_use: dict[int, int] = {}  # held shards: the step after the last one that is known to need each
        self._bytes = [shard.path_bytes for shard in windows.shards]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(start, stop), name="following", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Fetch no more, and hold nothing."""
        self._stopped.set()

    def _run(self, start: int, stop: int) -> None:
        try:
            with ThreadPoolExecutor(AT_ONCE, "fetch") as pool:
                for step in range(start, stop):
                    needed = self._shards_of(step)
                    if not self._has_room(needed):
                        return
                    new = [shard for shard in needed if shard not in self._last_use]
                    self._last_use |= dict.fromkeys(needed, step + 1)
                    list(pool.map(self._fetch, new))
                    if len(self._last_use) == len(self._bytes):
                        break  # all are there, and stay
            self._stopped.wait()
        except UserError:
            pass  # whoever reads that shard meets the same, and reports it in its turn
        finally:
            for shard in self._last_use:
                self._mirror.release(self._windows.shards[shard].path)

    def _shards_of(self, step: int) -> list[int]:
        """The shards of a step, in the order of their first use."""
        source, _, window = self._order(step * self._batch, (step + 1) * self._batch)
        shards, first = np.unique(self._windows.shard_of(source, window), return_index=True)
        return [int(shard) for shard in shards[np.argsort(first)]]

    def _has_room(self, needed: list[int]) -> bool:
        """Wait until there is room for more than is held; False if the reading has ended, or a step needs more than fits."""
        while not self._stopped.is_set():
            wanted = {*needed, *self._last_use}
            if sum(self._bytes[shard] for shard in wanted) <= self._mirror.cache.size:
                return True
            done = [shard for shard in self._last_use if self._last_use[shard] <= self.read_to and shard not in needed]
            for shard in done:
                del self._last_use[shard]
                self._mirror.release(self._windows.shards[shard].path)
            if not done and self.read_to >= max(self._last_use.values(), default=0):
                return False  # it is fetched as it is read
            if not done:
                self._stopped.wait(_PAUSE)
        return False

    def _fetch(self, shard: int) -> None:
        if not self._stopped.is_set():
            path = self._windows.shards[shard].path
            self._mirror.hold(path)
            self._mirror.fetch(path)
