"""Which sample is number g: a pure function of the seed and the corpus, O(1) in time and memory at any g.

The global sample number g only counts up; (source, epoch, window) follows from it and nothing else decides what a step
reads, so a checkpoint stores one integer and any number of ranks reads the same sequence.

* A block of ``BLOCK`` samples holds a fixed integer quota of each source, by largest remainder of the sampling weights.
* Inside a block the sources, and inside each (source, epoch) the windows, follow a keyed permutation: a Feistel network
  over the next power of four, walked until it falls inside the range (Black & Rogaway, "Ciphers with arbitrary finite
  domains", 2002). A source's windows are all read once before any is read again, in a new order each epoch.
"""

import functools
from collections.abc import Sequence

import numpy as np

BLOCK = 8192
_ROUNDS = 6


class Order:
    """The sampling order over sources of ``windows[i]`` windows each, drawn in proportion to ``weights[i]``."""

    def __init__(self, windows: Sequence[int], weights: Sequence[float], seed: int):
        self.windows = np.asarray(windows, np.uint64)
        self.quotas = quotas(weights, BLOCK)
        self.seed = seed
        self._block = functools.lru_cache(maxsize=4)(self._layout)
        if (self.windows[self.quotas > 0] == 0).any():
            raise ValueError("a source with a sampling weight has no window")

    def __call__(self, g: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sample numbers [n] -> (source, epoch, window), each [n]."""
        g = np.asarray(g, np.uint64)
        block, position = g // BLOCK, (g % BLOCK).astype(np.int64)
        source, rank = np.empty(len(g), np.int64), np.empty(len(g), np.uint64)
        for number in np.unique(block):
            mine = block == number
            sources, ranks = self._block(int(number))
            source[mine], rank[mine] = sources[position[mine]], ranks[position[mine]]
        drawn = block * self.quotas[source] + rank  # how many samples of this source came before this one
        size = self.windows[source]
        epoch = drawn // size
        window = permute(drawn % size, size, _key(self.seed, 1 + source.astype(np.uint64), epoch))
        return source, epoch, window

    def _layout(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each position of a block: its source, and how many earlier ones of the block have the same; [BLOCK] each."""
        slots = np.arange(BLOCK, dtype=np.uint64)
        slots = permute(
            slots,
            np.full(BLOCK, BLOCK, np.uint64),
            _key(self.seed, 0, np.full(BLOCK, number, np.uint64)),
        )
        source = np.searchsorted(np.cumsum(self.quotas), slots, side="right")
        by_source = np.argsort(source, kind="stable")
        rank = np.empty(BLOCK, np.uint64)
        rank[by_source] = np.concatenate([np.arange(quota, dtype=np.uint64) for quota in self.quotas])
        return source, rank


def quotas(weights: Sequence[float], block: int) -> np.ndarray:
    """Integers [sources] that sum to ``block``, in proportion to ``weights`` by largest remainder."""
    exact = np.asarray(weights, float) / np.sum(weights) * block
    whole = np.floor(exact).astype(np.int64)
    rest = np.argsort(-(exact - whole), kind="stable")[: block - whole.sum()]
    whole[rest] += 1
    return whole.astype(np.uint64)


def permute(x: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """A bijection of 0 … size−1 for each key, elementwise; all uint64 [n]."""
    half = np.array([max(1, (int(n) - 1).bit_length() + 1 >> 1) for n in np.unique(size)], np.uint64)
    half = half[np.searchsorted(np.unique(size), size)]
    result = _feistel(x, half, key)
    outside = result >= size
    while outside.any():
        result[outside] = _feistel(result[outside], half[outside], key[outside])
        outside = result >= size
    return result


def _feistel(x, half, key):
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for round_number in range(_ROUNDS):
        left, right = (
            right,
            left ^ (_mix(right + key + np.uint64(round_number << 56)) & mask),
        )
    return left << half | right


def _key(seed: int, stream: np.ndarray | int, number: np.ndarray) -> np.ndarray:
    """A 64-bit key for (seed, stream, number), elementwise."""
    return _mix(_mix(_mix(np.asarray([seed], np.uint64)) + np.asarray(stream, np.uint64)) + number)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): a bijection that spreads every bit over all."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
