"""The ``doc`` layout: windows that never leave their document, and are padded."""

import functools
from typing import Any

import numpy as np

from data_prep.cli import UserError
from data_prep.shards import Shard, Source
from pipeline.data.arrays import mapped
from pipeline.data.windows import Windows

_PIECE = 256  # documents
_NOT_PADDING = (
    ("sep", "separator", "an end"),
    ("cls", "[CLS]", "a beginning"),
    ("unk", "unknown piece", "what the vocabulary lacks"),
)


def check_padding(layout: str, special: dict[str, int]) -> None:
    """Raise UserError if the tokenizer of these ``special`` ids pads with one that sequences hold."""
    for role, name, what in _NOT_PADDING:
        if special["pad"] == special.get(role):
            raise UserError(
                f"layout = {layout!r}: the tokenizer pads with its {name} (id {special['pad']}), so {what} would look like "
                "padding; use layout = 'full'"
            )


class DocWindows(Windows):
    """The windows of several sources in the ``doc`` layout: ceil(n / inner) of a document of n tokens.

    A piece is up to 256 documents of a shard. Only their windows are counted at open, which reads every docs.npy once
    and keeps 8 bytes for 256 documents: 31 MB for a billion. Where a window begins is found in its piece's document ends
    when it is read, 2 KB of the mapped file, so nothing grows with use and nothing has to be cached.
    """

    def __init__(self, sources: dict[str, Source], tokenizer: dict[str, Any], length: int, paired: bool = False):
        """As of Windows. Raises UserError for a tokenizer that pads with an id that sequences hold."""
        super().__init__(sources, tokenizer, length, paired)
        check_padding("doc", self.special)
        self.padding = self.special["pad"]
        self._ends = functools.cache(lambda shard: mapped(self.shards[shard].ends()))

    def _cut(self, shard: Shard) -> np.ndarray:
        counts = self._windows_of(np.diff(shard.ends().astype(np.int64), prepend=0))
        return np.add.reduceat(counts, np.arange(0, len(counts), _PIECE))

    def _filled(self, source: Source, windows: int) -> float:
        return (source.tokens - source.documents + self.frame * windows) / (windows * self.length)

    def _windows_of(self, document: np.ndarray) -> np.ndarray:
        """The number of windows of documents by their tokens; the separator counts, but [SEP] is read in its place."""
        return (document + self.inner - 2) // self.inner

    def _stretches(self, piece: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shard = np.searchsorted(self._before_shard, piece, side="right") - 1
        first = (piece - self._before_shard[shard]) * _PIECE  # document
        found = [self._stretch(*where) for where in zip(shard.tolist(), first.tolist(), window.tolist(), strict=True)]
        start, size = np.array(found).T
        return shard, start, size

    def _stretch(self, shard: int, first: int, window: int) -> tuple[int, int]:
        """First token and number of tokens of a window of the piece that begins with document ``first``."""
        ends = self._ends(shard)
        bounds = ends[max(first - 1, 0) : first + _PIECE].astype(np.int64)
        bounds = bounds if first else np.append(0, bounds)
        counts = np.cumsum(self._windows_of(np.diff(bounds)))
        document = int(np.searchsorted(counts, window, side="right"))
        before = int(counts[document - 1]) if document else 0
        start = int(bounds[document]) + (window - before) * self.inner
        return start, min(self.inner, int(bounds[document + 1]) - 1 - start)

    def _copy(self, shard: np.ndarray, start: np.ndarray, size: np.ndarray) -> np.ndarray:
        stretches = zip(shard.tolist(), start.tolist(), (start + size).tolist(), strict=True)
        return np.concatenate([self.tokens(shard)[first:stop] for shard, first, stop in stretches])

    def _rows(self, tokens: np.ndarray, size: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(size), self.inner), tokens.dtype)
        rows[np.arange(self.inner) < size[:, None]] = tokens
        return rows

    def _framed(self, tokens: np.ndarray, rows: np.ndarray, size: np.ndarray) -> np.ndarray:
        ids = np.full((len(rows), self.length), self.padding, np.int64)
        ids[:, 0] = self.special["cls"]
        ids[np.arange(len(rows)), size + 1] = self.special["sep"]
        ids[:, 1:-1][np.arange(self.inner) < size[:, None]] = tokens
        return ids[np.argsort(rows)]
