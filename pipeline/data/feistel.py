"""Keyed permutations of 0 … size − 1 without a list: a Feistel network over a grid (see order.py), and the hash they use."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]
_ROUNDS = 6


class Grid(NamedTuple):
    """The smallest grid with ``size`` cells whose number of rows is a power of two near the square root; uint64 [n] each."""

    size: Numbers
    rows: Numbers
    columns: Numbers

    @classmethod
    def over(cls, size: Numbers) -> "Grid":
        rows = np.uint64(1) << (np.log2(size).astype(np.uint64) >> np.uint64(1))
        return cls(size, rows, (size - np.uint64(1)) // rows + np.uint64(1))


def permute(x: Numbers, grid: Grid, key: Numbers) -> Numbers:
    """A bijection of 0 … size−1 for each key, elementwise; all uint64 [n]."""
    result = _feistel(x, grid, key)
    outside = np.flatnonzero(result >= grid.size)
    while len(outside):
        some = Grid(*(values[outside] for values in grid))
        result[outside] = _feistel(result[outside], some, key[outside])
        outside = outside[result[outside] >= some.size]
    return result


def _feistel(x: Numbers, grid: Grid, key: Numbers) -> Numbers:
    """A bijection of the grid's cells: row and column in turn are moved by a hash of the other."""
    row, column = np.divmod(x, grid.columns)
    for number in range(0, _ROUNDS, 2):
        row = _moved(row, grid.rows, column + key, _SPREAD[number])
        column = _moved(column, grid.columns, row + key, _SPREAD[number + 1])
    return row * grid.columns + column


def _moved(x: Numbers, size: Numbers, seed: Numbers, spread: np.uint64) -> Numbers:
    """``x`` + a hash of ``seed``, modulo ``size``."""
    half = np.uint64(32)
    hashed = seed * spread
    hashed = (hashed ^ hashed >> half) * spread >> half
    moved = x + (hashed * size >> half)  # 32 bits as a fraction of size: cheaper than a remainder
    return np.minimum(moved, moved - size)  # below size, the difference wraps around to a huge number


def mix(x: Numbers) -> Numbers:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): a bijection that spreads every bit over all."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


_SPREAD = mix(np.arange(_ROUNDS, dtype=np.uint64)) | np.uint64(1)  # an odd multiplier for each round
