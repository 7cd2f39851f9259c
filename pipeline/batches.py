"""Token shards + order -> input ids. A window is up to ``length`` − 2 consecutive tokens of one shard in [CLS] … [SEP].

The shards are the same for both layouts; how they are cut is decided here, at read time:

* ``full``: windows run across documents (their separators are in the shards), so nothing is ever padded: how RoBERTa and
  XLM-R were trained. The tail of a shard that fills no window is left out.
* ``doc``: a window never leaves its document. The last one of a document is shorter, and padded on the right.
"""

import functools
import queue
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_prep.errors import UserError
from data_prep.shards import Corpus, Shard, Source, verify, vocabulary_hash
from pipeline.order import BLOCK, Order


class Windows:
    """The windows of several sources in the ``full`` layout. Sources without a single window are left out.

    For each source: ``names``; ``counts`` of windows; ``sizes`` in tokens, which sampling weights go by; and ``filled``,
    the share of its windows' positions that is not padding. ``padding`` is the id of the others, None if there are none.
    """

    padding: int | None = None

    def __init__(self, sources: dict[str, Source], tokenizer: dict, length: int):
        """``tokenizer`` is the manifest's fingerprint: it says which ids frame a window and how many ids there are."""
        self.length, self.inner = length, length - 2
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
        self._marks = {path: _mark(path) for shard in self.shards for path in (shard.path, shard.docs_path)}
        self.tokens = functools.cache(lambda shard: _mapped(self.shards[shard].open()))
        self._grid = functools.cache(self._as_grid)

    def __len__(self) -> int:
        return sum(self.counts)

    def read(self, sources: np.ndarray, windows: np.ndarray) -> Tensor:
        """Input ids [n, length], int64, of window ``windows[i]`` of source ``sources[i]``.

        Raises UserError naming the shard that holds an id outside the vocabulary.
        """
        rows, shard, start, size = self.locate(sources, windows)
        tokens = self._copy(shard, start, size)
        if tokens.max() >= self.vocab_size:
            self._refuse(tokens, shard, start, size)
        return torch.from_numpy(self._framed(tokens, rows, size))

    def changed(self) -> Path | None:
        """A file that is no longer the one that it was when this was made, by its size and time."""
        return next((path for path, mark in self._marks.items() if _mark(path) != mark), None)

    def locate(self, sources: np.ndarray, windows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Where windows lie, shard by shard and from front to back; [n] each.

        Row of the batch, number in ``shards``, first token in the shard, and number of tokens.
        """
        wanted = self._before_source[sources] + windows
        rows = np.argsort(wanted)
        wanted = wanted[rows]
        piece = np.searchsorted(self._before_piece, wanted, side="right") - 1
        return rows, *self._stretches(piece, wanted - self._before_piece[piece])

    def _cut(self, shard: Shard) -> np.ndarray:
        """Windows in each piece of a shard, int64: here a shard is one piece."""
        return np.array([shard.tokens // self.inner])

    def _filled(self, source: Source, windows: int) -> float:
        return 1.0

    def _stretches(self, piece: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of windows of pieces: shard, first token and number of tokens, each [n]."""
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


_PIECE = 256  # documents


class DocWindows(Windows):
    """The windows of several sources in the ``doc`` layout: ceil(n / (length − 2)) of a document of n tokens.

    A piece is up to 256 documents of a shard. Only their windows are counted at open, which reads every docs.npy once
    and keeps 8 bytes for 256 documents: 31 MB for a billion. Where a window begins is found in its piece's document ends
    when it is read, 2 KB of the mapped file, so nothing grows with use and nothing has to be cached.
    """

    def __init__(self, sources: dict[str, Source], tokenizer: dict, length: int):
        """As of Windows. Raises UserError for a tokenizer that pads with the id that ends a sequence."""
        super().__init__(sources, tokenizer, length)
        self.padding = self.special["pad"]
        if self.padding == self.special["sep"]:
            raise UserError(
                f"layout = 'doc': the tokenizer pads with its separator (id {self.padding}), so an end could not be told from "
                "padding; use layout = 'full'"
            )
        self._ends = functools.cache(lambda shard: _mapped(self.shards[shard].ends()))

    def _cut(self, shard: Shard) -> np.ndarray:
        counts = self._windows_of(np.diff(shard.ends().astype(np.int64), prepend=0))
        return np.add.reduceat(counts, np.arange(0, len(counts), _PIECE))

    def _filled(self, source: Source, windows: int) -> float:
        return (source.tokens - source.documents + 2 * windows) / (windows * self.length)

    def _windows_of(self, document: np.ndarray) -> np.ndarray:
        """Windows of documents of so many tokens, the separator included, which is not read: [SEP] takes its place."""
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

    def _framed(self, tokens: np.ndarray, rows: np.ndarray, size: np.ndarray) -> np.ndarray:
        ids = np.full((len(rows), self.length), self.padding, np.int64)
        ids[:, 0] = self.special["cls"]
        ids[np.arange(len(rows)), size + 1] = self.special["sep"]
        ids[:, 1:-1][np.arange(self.inner) < size[:, None]] = tokens
        return ids[np.argsort(rows)]


LAYOUTS: dict[str, type[Windows]] = {"full": Windows, "doc": DocWindows}


def _mark(path: Path) -> tuple[int, int] | None:
    """Size and time of change: whoever writes to a file, or puts another in its place, changes them."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns


def _mapped(array: np.memmap) -> np.ndarray:
    """The same array, mapped without its file being held open: of open files a process may have about a thousand."""
    size = array.offset + array.nbytes
    whole = torch.from_file(str(array.filename), shared=False, size=size, dtype=torch.uint8).numpy()
    return whole[array.offset :].view(array.dtype)


def unpadded(ids: Tensor, padding: int | None) -> tuple[Tensor, Tensor | None]:
    """Right-padded ids [n, length] -> without the columns that all are padding, and the real length of each, [n].

    The lengths are None if nothing is padded. No document holds the padding id: a text never becomes a control id.
    """
    if padding is None:
        return ids, None
    lengths = (ids != padding).sum(1)
    return ids[:, : int(lengths.max())], lengths


def filled(windows: Windows, order: Order) -> float:
    """The share of the positions of what ``order`` draws from ``windows`` that is not padding."""
    return float(np.average(windows.filled, weights=order.quotas))


MANY_EPOCHS = 20


class Reading(NamedTuple):
    """What a run has read of a source: real ``tokens``, their ``share`` of all, the share that it is to have in the long run
    (``planned``, in proportion to the source's tokens ** α), and how often its windows were read (``epochs``)."""

    tokens: int
    share: float
    planned: float
    epochs: float


def read_of(windows: Windows, order: Order, samples: int) -> dict[str, Reading]:
    """By the name of each source, what is read of it in the first ``samples``."""
    drawn = order.drawn(samples)
    tokens = drawn * windows.length * np.asarray(windows.filled)
    planned = order.quotas * np.asarray(windows.filled)
    columns = tokens / max(tokens.sum(), 1), planned / planned.sum(), drawn / np.asarray(windows.counts)
    found = zip(windows.names, tokens.round(), *columns, strict=True)
    return {name: Reading(int(count), *map(float, others)) for name, count, *others in found}


def notes(corpus: Corpus, windows: Windows, order: Order, batch: int, steps: int) -> Iterator[str]:
    """What a person should know about how this corpus will be read in so many steps."""
    if len(windows) < batch:
        yield f"{corpus.path} has {len(windows)} windows of {windows.length} tokens, less than a batch: they repeat in a step"
    for name in sorted(corpus.sources.keys() - windows.names):
        yield f"source {name} is left out: no shard of it fills a window of {windows.length} tokens"
    for name, quota in zip(windows.names, order.quotas, strict=True):
        if not quota:
            yield f"source {name} is never read: its share is below 1 in {BLOCK}; raise it with a lower sampling_alpha"
    often = {name: reading.epochs for name, reading in read_of(windows, order, steps * batch).items()}
    if often := {name: times for name, times in often.items() if times > MANY_EPOCHS}:
        worst = ", ".join(
            f"{name} {often[name]:,.0f}" for name in sorted(often, key=often.__getitem__, reverse=True)[:5]
        )
        yield (
            f"{len(often)} of {len(windows.names)} sources are read more than {MANY_EPOCHS} times (the most: {worst}); "
            "more of their text, a higher sampling_alpha or fewer steps would help"
        )
    if windows.padding is None:
        tokens = sum(source.tokens for source in corpus.sources.values())
        left = tokens - len(windows) * (windows.length - 2)
        yield f"{left:,} of {tokens:,} tokens lie in shard tails that fill no window"
    else:
        yield f"{1 - filled(windows, order):.1%} of the positions that are read are padding"


_REHASHED = 2**30  # bytes; a larger corpus is not read whole at each start


def check_tokenizer(corpus: Corpus, tokenizer, model: str, roles: Iterable[str]) -> None:
    """The corpus must hold the ids of ``model``'s tokenizer: its vocabulary, its ids of a probe text and of these ``roles``.

    ``roles``: special tokens, as "cls". Raises UserError, with the remedy.
    """
    own, remedy = corpus.tokenizer, f"prepare the data with --tokenizer {model}"
    if own["vocabulary"] != vocabulary_hash(tokenizer.get_vocab()):
        raise UserError(
            f"{corpus.path}: made with another vocabulary ({own['vocab_size']} ids) than that of {model} ({len(tokenizer)}): "
            f"some ids mean other pieces; {remedy}"
        )
    probe = own["probe"]
    if (ids := tokenizer(probe["text"], add_special_tokens=False)["input_ids"]) != probe["ids"]:
        raise UserError(
            f"{corpus.path}: made with another tokenizer than that of {model}: a probe text comes out as "
            f"{probe['ids'][:4]}… there and {ids[:4]}… here; {remedy}"
        )
    for role in roles:
        if (number := getattr(tokenizer, f"{role}_token_id")) != own["special"][role]:
            raise UserError(
                f"{corpus.path}: has {role} = {own['special'][role]}, the tokenizer of {model} has {number}; {remedy}"
            )


def check_bytes(corpus: Corpus) -> None:
    """Re-hash a corpus of up to 1 GiB, so that an altered shard is refused. Larger ones: `data_prep verify --deep`."""
    everything = [*corpus.sources.values(), *corpus.heldout.values()]
    if sum(shard.path.stat().st_size for source in everything for shard in source.shards) <= _REHASHED:
        for finding in verify(corpus.path, deep=True):
            raise UserError(
                f"{finding}; delete that shard's files and run the same `python -m data_prep prepare` again"
            )


def training_windows(corpus: Corpus, length: int, layout: str = "full") -> Windows:
    """The windows to train on. Raises UserError if there are none."""
    windows = LAYOUTS[layout](corpus.sources, corpus.tokenizer, length)
    if not len(windows):
        raise UserError(
            f"{corpus.path}: no shard holds the {length - 2} tokens of one window; use a shorter length, or layout = 'doc'"
        )
    return windows


class Heldout(NamedTuple):
    """Held-out sequences, ids [n, length], and the name of the source of each."""

    ids: Tensor
    sources: list[str]


def heldout_of(
    corpus: Corpus, length: int, samples: int, alpha: float, seed: int, layout: str = "full"
) -> Heldout | None:
    """The first ``samples`` held-out sequences of the sampling order, or None if there are none."""
    windows = LAYOUTS[layout](corpus.heldout, corpus.tokenizer, length)
    count = min(samples, len(windows))
    if not count:
        return None
    source, _, window = order_of(windows, alpha, seed)(0, count)
    return Heldout(windows.read(source, window), [windows.names[number] for number in source])


def order_of(windows: Windows, alpha: float, seed: int) -> Order:
    """The sampling order over ``windows``: sources in proportion to their tokens ** alpha."""
    return Order(windows.counts, [float(n) ** alpha for n in windows.sizes], seed)


def steps(
    windows: Windows,
    order: Order,
    start: int,
    stop: int,
    batch: int,
    rank: int,
    ranks: int,
) -> Iterator[Tensor]:
    """What ``rank`` of ``ranks`` reads in steps ``start`` … ``stop`` − 1: its slice of the step's ``batch`` samples."""
    share = batch // ranks
    for step in range(start, stop):
        first = step * batch + rank * share
        source, _, window = order(first, first + share)
        yield windows.read(source, window)


def read_ahead(batches: Iterator[Tensor], device: torch.device, depth: int = 4) -> Iterator[Tensor]:
    """The same batches, read by a background thread up to ``depth`` ahead; its errors are raised here.

    They stay on the CPU, in pinned memory if ``device`` is a GPU.
    """
    ready: queue.Queue = queue.Queue(depth)
    stopped = threading.Event()

    def put(item) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)  # a thread of its own starts on device 0
            for batch in batches:
                if not put(batch.pin_memory() if device.type == "cuda" else batch):
                    return
            put(None)
        except Exception as error:
            put(error)

    threading.Thread(target=work, name="read-ahead", daemon=True).start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        stopped.set()
