"""The ``packed`` layout: whole documents, as many as fit into a row, each framed and read as if it were alone.

Which documents share a row is in the index of data_prep.packing, made once beside the corpus; a sample of the order is a row.
So every piece is read once in an epoch of its source, and a row is the same whoever reads it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from data_prep.packing import Packing
from data_prep.shards import Shard, Source
from pipeline.data.arrays import mapped, ranges
from pipeline.data.documents import check_padding
from pipeline.data.feistel import mix
from pipeline.data.inputs import Inputs, Pieces
from pipeline.data.order import Order
from pipeline.data.segments import another, cut
from pipeline.data.windows import Windows

_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # odd: other bits for each piece of a row
_DRAWS = 4  # of another piece with as many tokens as there is room for
_OF_DRAW = np.arange(_DRAWS, dtype=np.uint64) * _SPREAD
_ELSEWHERE = np.uint64(1 << 63)  # the bit by which segments.another decides


class Texts(NamedTuple):
    """The tokens of pieces one after the other, and how many there are of each [pieces]."""

    tokens: np.ndarray
    size: np.ndarray


class PackedWindows(Windows):
    """The rows of several sources in the ``packed`` layout. As Windows says, with rows for windows."""

    def __init__(
        self,
        sources: dict[str, Source],
        tokenizer: dict[str, Any],
        length: int,
        paired: bool,
        packing: Callable[[int], Packing],
    ):
        """``packing`` gives the index of these sources for a number of special tokens. Raises UserError as DocWindows does."""
        check_padding("packed", tokenizer["special"])
        self.padding = tokenizer["special"]["pad"]
        packed = packing(3 if paired else 2)
        shards = [shard for source in sources.values() for shard in source.shards]
        self._rows_of = {shard.path: int(rows) for shard, rows in zip(shards, packed.rows, strict=True)}
        self._pieces_of = {shard.path: int(pieces) for shard, pieces in zip(shards, packed.pieces, strict=True)}
        self._first, self._start, self._size = map(mapped, (packed.first, packed.start, packed.size))
        super().__init__(sources, tokenizer, length, paired)
        self.watch(packed.paths)
        # The index numbers rows and pieces through all shards, those of sources that have none too.
        kept = [sources[name] for name in self.names]
        own = [self._pieces_of[shard.path] for shard in self.shards]
        pieces = [sum(self._pieces_of[shard.path] for shard in source.shards) for source in kept]
        self._before_pieces = np.cumsum([0, *own])
        self._source_pieces = np.cumsum([0, *pieces])
        self.a_row = [count / rows for count, rows in zip(pieces, self.counts, strict=True)]

    def _cut(self, shard: Shard) -> np.ndarray:
        return np.array([self._rows_of[shard.path]])

    def _filled(self, source: Source, windows: int) -> float:
        pieces = sum(self._pieces_of[shard.path] for shard in source.shards)
        return (source.tokens - source.documents + self.frame * pieces) / (windows * self.length)

    def rows(self, order: Order, start: int, stop: int, whole: tuple[int, int]) -> Inputs:
        """Samples ``start`` … ``stop`` − 1 of the order, which are some of the samples of a ``whole`` step.

        Raises UserError naming the shard that holds an id outside the vocabulary.
        """
        source, _, window = order(start, stop)
        first, last = self._bounds(source, window)
        counts = last - first
        piece = ranges(first, counts)
        texts = self._pairs(order, start, stop, source, piece, counts) if self.paired else [self._texts(piece)]
        every = self._bounds(*np.asarray(order(*whole))[[0, 2]])
        return self._framed_rows(texts, counts, float(np.mean(every[1] - every[0])))

    def _bounds(self, source: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the first piece of rows, and one past their last; int64 [n] each."""
        row = self._before_source[source] + window
        return self._first[row].astype(np.int64), self._first[row + 1].astype(np.int64)

    def _texts(self, piece: np.ndarray, begin: np.ndarray | None = None, size: np.ndarray | None = None) -> Texts:
        """The tokens of pieces, or only ``size`` of them from ``begin`` on."""
        shard = np.searchsorted(self._before_pieces, piece, side="right") - 1
        start = self._start[piece].astype(np.int64) + (0 if begin is None else begin)
        size = self._size[piece].astype(np.int64) if size is None else size
        stretches = zip(shard.tolist(), start.tolist(), (start + size).tolist(), strict=True)
        tokens = np.concatenate([self.tokens(number)[first:stop] for number, first, stop in stretches])
        if len(tokens) and tokens.max() >= self.vocab_size:
            self._refuse(tokens, shard, start, size)
        return Texts(tokens, size)

    def _pairs(
        self, order: Order, start: int, stop: int, source: np.ndarray, piece: np.ndarray, counts: np.ndarray
    ) -> list[Texts]:
        """The first and the second segments of pieces, as segments.py says, each piece with bits of its own.

        A second segment of another piece takes exactly the room of the piece's own, so that rows stay as full as they are.
        Where none of the pieces that are drawn is so long, it is the piece's own.
        """
        source, number = np.repeat(source, counts), ranges(np.zeros_like(counts), counts).astype(np.uint64)
        bits = mix(np.repeat(order.bits(start, stop), counts) + (number + np.uint64(1)) * _SPREAD)
        place, bounds = source, self._source_pieces
        if order.in_turn:
            bounds = self._before_pieces
            place = np.searchsorted(bounds, piece, side="right") - 1
        before, pieces = bounds[place], np.diff(bounds)[place]
        own, other = self._size[piece].astype(np.int64), piece.copy()
        first = cut(own, bits)
        room = own - first
        wanted = np.flatnonzero((bits & _ELSEWHERE != 0) & (pieces > 1))
        for draw in range(_DRAWS):
            drawn_bits = mix(bits[wanted] + _OF_DRAW[draw]) | _ELSEWHERE
            drawn = before[wanted] + another(piece[wanted] - before[wanted], pieces[wanted], drawn_bits)
            fits = self._size[drawn] >= room[wanted]
            other[wanted[fits]] = drawn[fits]
            wanted = wanted[~fits]
        theirs = self._size[other].astype(np.int64)
        return [self._texts(piece, None, first), self._texts(other, np.minimum(cut(theirs, bits), theirs - room), room)]

    def _framed_rows(self, texts: list[Texts], counts: np.ndarray, a_row: float) -> Inputs:
        """[CLS] text [SEP], or [CLS] A [SEP] B [SEP], of ``counts`` [n] pieces in each row, one after the other."""
        taken = 1 + sum(text.size + 1 for text in texts)
        row = np.repeat(np.arange(len(counts)), counts)
        inside = np.cumsum(taken) - taken  # where a piece begins, behind all that came before; then in its row
        inside -= np.repeat(inside[np.cumsum(counts) - counts], counts)
        begin = row * self.length + inside

        ids = np.full(len(counts) * self.length, self.padding, np.int64)
        second = np.zeros(len(ids), bool) if self.paired else None
        ids[begin], place = self.special["cls"], begin + 1
        for number, text in enumerate(texts):
            ids[ranges(place, text.size)] = text.tokens
            if second is not None and number:
                second[ranges(place, text.size + 1)] = True
            place = place + text.size + 1
            ids[place - 1] = self.special["sep"]

        ends = np.bincount(row, taken, len(counts)).astype(np.int64)
        cuts = np.full((len(counts), int(counts.max()) + 2), self.length, np.int32)
        cuts[row, ranges(np.zeros_like(counts), counts)] = inside
        cuts[np.arange(len(counts)), counts] = ends
        pieces = Pieces.of(torch.from_numpy(cuts), torch.from_numpy(ends), self.length, a_row)
        shape = len(counts), self.length
        told = None if second is None else torch.from_numpy(second.reshape(shape))
        return Inputs(torch.from_numpy(ids.reshape(shape)), told, pieces=pieces)
