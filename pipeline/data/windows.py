"""Token shards to input ids. A window is up to ``length`` − 2 consecutive tokens of one shard in [CLS] … [SEP].

Where two segments are read (segments.py), a window has a token less, for the [SEP] between them. The shards are the same
for all layouts; how they are cut is decided here, at read time:

* ``full``: windows run across documents (their separators are in the shards), so nothing is ever padded: how RoBERTa and
  XLM-R were trained. The tail of a shard that fills no window is left out.
* ``doc`` (documents.py): a window never leaves its document. The last one of a document is shorter, and padded on the right.
* ``packed`` (packed.py): a window is a row of such pieces, as many as fit, each framed for itself.
"""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_prep.cli import UserError
from data_prep.shards import Shard, Source
from pipeline.data.arrays import mapped, mark_of


class Windows:
    """The windows of several sources in the ``full`` layout. Sources without a single window are left out.

    For each source: ``names``; ``counts`` of windows; ``sizes`` in tokens, which sampling weights go by; ``filled``, the share
    of its windows' positions that is not padding; and ``a_row``, how many sequences a window has in the mean, None if one.
    ``padding`` is the id of the other positions, None if there are none.
    """

    padding: int | None = None
    a_row: list[float] | None = None

    def __init__(self, sources: dict[str, Source], tokenizer: dict[str, Any], length: int, paired: bool = False):
        """``tokenizer``: the manifest's fingerprint. ``paired``: windows are cut in two and framed by three tokens, not two."""
        self.length, self.paired = length, paired
        self.frame = 3 if paired else 2  # special tokens
        self.inner = length - self.frame
        self.special, self.vocab_size = tokenizer["special"], tokenizer["vocab_size"]
        cuts = {name: [self._cut(shard) for shard in source.shards] for name, source in sources.items()}
        kept = [source for name, source in sources.items() if any(cut.any() for cut in cuts[name])]
        self.names, self.sizes = [source.name for source in kept], [source.size for source in kept]
        self.counts = [sum(int(cut.sum()) for cut in cuts[source.name]) for source in kept]
        self.filled = [self._filled(source, count) for source, count in zip(kept, self.counts, strict=True)]
        # Windows are numbered through all pieces of all shards of all sources. Before each source, piece and shard:
        self._before_source = np.cumsum([0, *self.counts])
        pieces = [cut for source in kept for cut in cuts[source.name]]
        self._before_piece = np.cumsum(np.concatenate([[0], *pieces], dtype=np.int64))  # windows
        self._before_shard = np.cumsum([0, *map(len, pieces)])  # pieces
        self.shards = [shard for source in kept for shard in source.shards]
        self._shards_of = [len(source.shards) for source in kept]
        own = [shard for shard in self.shards if not shard.mirror]  # fetched files come and go, and are always the same
        self._marks = {path: mark_of(path) for shard in own for path in (shard.path, shard.docs_path)}
        self._before_windows = self._before_piece[self._before_shard]
        self._keep_open(None)

    def keep_open(self, size: int) -> None:
        """Of the shards keep about ``size`` bytes mapped: a removed file takes its room until nobody has it mapped."""
        mean = sum(shard.path_bytes for shard in self.shards) / max(len(self.shards), 1)
        self._keep_open(max(1, int(size / max(mean, 1))))

    def _keep_open(self, shards: int | None) -> None:
        self.tokens = functools.lru_cache(shards)(self._mapped)
        self._grid = functools.lru_cache(shards)(self._as_grid)

    def _mapped(self, number: int) -> np.ndarray:
        shard = self.shards[number]
        with shard.present(shard.path):
            return mapped(shard.open())

    @property
    def by_shard(self) -> list[np.ndarray]:
        """The windows of each shard, int64 [shards], source by source."""
        return np.split(np.diff(self._before_windows), np.cumsum(self._shards_of)[:-1])

    def shard_of(self, sources: np.ndarray, windows: np.ndarray) -> np.ndarray:
        """The number in ``shards`` of the shard that each window lies in, int64 [n]."""
        wanted = self._before_source[sources] + windows
        shard: np.ndarray = np.searchsorted(self._before_windows, wanted, side="right") - 1
        return shard

    def others(self, sources: np.ndarray, windows: np.ndarray, near: bool) -> tuple[np.ndarray, np.ndarray]:
        """Windows from which another may be drawn for each: the first and their number, int64 [n]; all, or its shard's."""
        if not near:
            return np.zeros_like(windows), np.asarray(self.counts)[sources]
        shard = self.shard_of(sources, windows)
        return self._before_windows[shard] - self._before_source[sources], np.diff(self._before_windows)[shard]

    def __len__(self) -> int:
        return sum(self.counts)

    def read(self, sources: np.ndarray, windows: np.ndarray) -> Tensor:
        """Input ids [n, length], int64, of window ``windows[i]`` of source ``sources[i]``. Raises UserError as ``texts``."""
        tokens, rows, size = self._tokens(sources, windows)
        return torch.from_numpy(self._framed(tokens, rows, size))

    def texts(self, sources: np.ndarray, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The bare tokens [n, inner] of windows, of any value behind their end, and how many there are of each, int64 [n].

        Raises UserError naming the shard that holds an id outside the vocabulary.
        """
        tokens, rows, size = self._tokens(sources, windows)
        back = np.argsort(rows)
        return self._rows(tokens, size)[back], size[back]

    def watch(self, paths: Iterable[Path]) -> None:
        """Have ``changed`` look at these files too."""
        self._marks |= {path: mark_of(path) for path in paths}

    def changed(self) -> Path | None:
        """A file that is no longer the one that it was when this was made, by its size and time."""
        return next((path for path, mark in self._marks.items() if mark_of(path) != mark), None)

    def locate(self, sources: np.ndarray, windows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Where windows lie, shard by shard and from front to back; [n] each.

        Row of the batch, number in ``shards``, first token in the shard, and number of tokens.
        """
        wanted = self._before_source[sources] + windows
        rows = np.argsort(wanted)
        wanted = wanted[rows]
        piece = np.searchsorted(self._before_piece, wanted, side="right") - 1
        return rows, *self._stretches(piece, wanted - self._before_piece[piece])

    def _tokens(self, sources: np.ndarray, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The tokens of windows as ``_copy`` gives them, the row of the batch and the size of each."""
        rows, shard, start, size = self.locate(sources, windows)
        tokens = self._copy(shard, start, size)
        if tokens.max() >= self.vocab_size:
            self._refuse(tokens, shard, start, size)
        return tokens, rows, size

    def _cut(self, shard: Shard) -> np.ndarray:
        """Windows in each piece of a shard, int64: here a shard is one piece."""
        return np.array([shard.tokens // self.inner])

    def _filled(self, source: Source, windows: int) -> float:
        return 1.0

    def _stretches(self, piece: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shard, first token and number of tokens of windows of pieces, each [n]."""
        return piece, window * self.inner, np.full(len(piece), self.inner)

    def _copy(self, shard: np.ndarray, start: np.ndarray, size: np.ndarray) -> np.ndarray:
        """The stored tokens of sorted stretches, one after the other."""
        window = start // self.inner  # windows begin at multiples: whole rows of a grid are the fastest copy
        first = np.append(0, np.flatnonzero(shard[1:] != shard[:-1]) + 1)  # row of each shard
        tokens = np.empty((len(shard), self.inner), self._grid(int(shard[0])).dtype)
        for number, begin, end in zip(
            shard[first].tolist(), first.tolist(), [*first[1:].tolist(), len(shard)], strict=True
        ):
            # Every window is there; but only with "clip" does NumPy write to ``out`` without a buffer between.
            np.take(self._grid(number), window[begin:end], axis=0, out=tokens[begin:end], mode="clip")
        return tokens

    def _as_grid(self, shard: int) -> np.ndarray:
        """A shard's windows [windows, inner]."""
        tokens = self.tokens(shard)
        return tokens[: len(tokens) // self.inner * self.inner].reshape(-1, self.inner)

    def _rows(self, tokens: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Copied tokens as [n, inner], a window in each row."""
        return tokens

    def _framed(self, tokens: np.ndarray, rows: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Input ids [n, length]: stretch i, of ``size[i]`` tokens, becomes row ``rows[i]``."""
        ids = np.empty((len(rows), self.length), np.int64)
        ids[:, 0], ids[:, -1] = self.special["cls"], self.special["sep"]
        ids[rows, 1:-1] = tokens
        return ids

    def _refuse(self, tokens: np.ndarray, shard: np.ndarray, start: np.ndarray, size: np.ndarray) -> None:
        place = int(np.argmax(tokens))
        row = int(np.searchsorted(np.cumsum(size), place, side="right"))
        raise UserError(
            f"{self.shards[shard[row]].path}: token id {tokens.max()} near offset {start[row]} is outside the vocabulary of "
            f"{self.vocab_size}; the file is damaged: run `python -m data_prep verify --deep` on its folder"
        )
