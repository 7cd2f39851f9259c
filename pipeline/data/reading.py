"""Input ids of steps, held-out sequences, and what has been read of each source."""

import contextlib
import os
import queue
import threading
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from data_prep.cli import UserError
from data_prep.packing import packing_of
from data_prep.shards import Corpus, Source
from pipeline.data.documents import DocWindows
from pipeline.data.inputs import Inputs
from pipeline.data.order import Order
from pipeline.data.packed import PackedWindows
from pipeline.data.segments import read_pairs
from pipeline.data.windows import Windows

LAYOUTS = ("full", "doc", "packed")


def windows_of(corpus: Corpus, side: str, length: int, layout: str = "full", paired: bool = False) -> Windows:
    """The windows of one side of a corpus, "train" or "heldout", in a layout. An index that it needs is made if need be."""
    sources = corpus.sources if side == "train" else corpus.heldout
    if corpus.mirror and layout != "full":  # where documents end decides how windows are cut
        corpus.mirror.fetch_all(shard.docs_path for source in sources.values() for shard in source.shards)
    windows = _windows_of(corpus, side, sources, length, layout, paired)
    if corpus.mirror:
        windows.keep_open(corpus.mirror.cache.size)
    return windows


def _windows_of(
    corpus: Corpus, side: str, sources: dict[str, Source], length: int, layout: str, paired: bool
) -> Windows:
    if layout == "packed":
        first = os.environ.get("LOCAL_RANK", "0") == "0"  # each rank of a run waits for the index, one says so
        say = partial(print, flush=True) if first else lambda _: None
        packing = partial(packing_of, corpus, side, length, say=say)
        return PackedWindows(sources, corpus.tokenizer, length, paired, packing)
    return {"full": Windows, "doc": DocWindows}[layout](sources, corpus.tokenizer, length, paired)


def sequences_a_row(windows: Windows, order: Order) -> float:
    """How many sequences a row of what ``order`` draws from ``windows`` has in the mean."""
    return 1.0 if windows.a_row is None else float(np.average(windows.a_row, weights=order.quotas))


def filled(windows: Windows, order: Order) -> float:
    """The share of the positions of what ``order`` draws from ``windows`` that is not padding."""
    return float(np.average(windows.filled, weights=order.quotas))


class Reading(NamedTuple):
    """A run's reading of a source: real ``tokens``, their ``share`` of all, the share that it is to have in the long run
    (``planned``, in proportion to the source's tokens ** α), and how often its windows were read (``epochs``); where rows are
    packed, the pieces in one (``a_row``) and the share of its positions that is not padding (``filled``), in the mean."""

    tokens: int
    share: float
    planned: float
    epochs: float
    a_row: float | None = None
    filled: float | None = None


def read_of(windows: Windows, order: Order, samples: int) -> dict[str, Reading]:
    """By the name of each source, what is read of it in the first ``samples``."""
    drawn = order.drawn(samples)
    tokens = drawn * windows.length * np.asarray(windows.filled)
    planned = order.quotas * np.asarray(windows.filled)
    columns = [tokens / max(tokens.sum(), 1), planned / planned.sum(), drawn / np.asarray(windows.counts)]
    if windows.a_row is not None:
        columns += [np.asarray(windows.a_row), np.asarray(windows.filled)]
    found = zip(windows.names, tokens.round(), *columns, strict=True)
    return {name: Reading(int(count), *map(float, others)) for name, count, *others in found}


def training_windows(corpus: Corpus, length: int, layout: str = "full", paired: bool = False) -> Windows:
    """The windows to train on, to be cut in two segments if ``paired``. Raises UserError if there are none."""
    windows = windows_of(corpus, "train", length, layout, paired)
    if not len(windows) and windows.padding is not None:
        raise UserError(f"{corpus.place}: no document to train on holds a token; prepare it from other text")
    if not len(windows):
        raise UserError(
            f"{corpus.place}: no shard holds the {windows.inner} tokens of one window; use a shorter length, or layout = 'doc'"
        )
    return windows


def read(windows: Windows, order: Order, start: int, stop: int, whole: tuple[int, int] | None = None) -> Inputs:
    """Samples ``start`` … ``stop`` − 1 of the order, as a model reads them. Raises UserError for a damaged shard.

    ``whole``: the samples of all ranks over which a loss is the mean, None: these.
    """
    if isinstance(windows, PackedWindows):
        return windows.rows(order, start, stop, whole or (start, stop))
    if windows.paired:
        return read_pairs(windows, order, start, stop)
    source, _, window = order(start, stop)
    ids = windows.read(source, window)
    # No document holds the padding id: a text never becomes a control id.
    return Inputs(ids, lengths=None if windows.padding is None else (ids != windows.padding).sum(1))


class Heldout(NamedTuple):
    """Held-out sequences, and the name of the source of each."""

    inputs: Inputs
    sources: list[str]


def heldout_of(
    corpus: Corpus, length: int, samples: int, alpha: float, seed: int, layout: str = "full", paired: bool = False
) -> Heldout | None:
    """The first ``samples`` held-out sequences of the sampling order, or None if there are none."""
    windows = windows_of(corpus, "heldout", length, layout, paired)
    count = min(samples, len(windows))
    if not count:
        return None
    order = order_of(windows, alpha, seed)
    if corpus.mirror:
        source, _, window = order(0, count)
        shards = np.unique(windows.shard_of(source, window)).tolist()
        corpus.mirror.fetch_all(windows.shards[shard].path for shard in shards)
    return Heldout(read(windows, order, 0, count), [windows.names[number] for number in order(0, count).source])


def order_of(windows: Windows, alpha: float, seed: int, shuffle_shards: int = 0) -> Order:
    """The sampling order over ``windows``: sources in proportion to their tokens ** alpha.

    ``shuffle_shards``: how many shards of a source come at a time; 0: all of them.
    """
    weights = [float(n) ** alpha for n in windows.sizes]
    return Order(windows.counts, weights, seed, windows.by_shard, shuffle_shards)


def steps(
    windows: Windows,
    order: Order,
    start: int,
    stop: int,
    batch: int,
    rank: int,
    ranks: int,
) -> Iterator[Inputs]:
    """What is read by ``rank`` of ``ranks`` in steps ``start`` … ``stop`` − 1: its slice of each step's ``batch`` samples."""
    share = batch // ranks
    for step in range(start, stop):
        first = step * batch + rank * share
        yield read(windows, order, first, first + share, (step * batch, (step + 1) * batch))


class ReadAhead(Iterator[Inputs]):
    """The same batches on ``device``, read by a background thread up to ``depth`` ahead; its errors are raised here, in turn.

    To a GPU each is sent as a whole and from pinned memory, so that nothing waits for the copy.
    """

    def __init__(self, batches: Iterator[Inputs], device: torch.device, depth: int = 4):
        self._device = device
        self._ready: queue.Queue[Inputs | Exception | None] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._held: list[Inputs | Exception | None] = []  # the next one, if it was asked for before its turn
        work = partial(_read_into, self._ready, self._stopped, batches, device)  # which does not know of this object
        threading.Thread(target=work, name="read-ahead", daemon=True).start()

    def __next__(self) -> Inputs:
        item = self._held.pop() if self._held else self._sent(self._ready.get())
        if isinstance(item, Inputs):
            return item
        self._held.append(None)
        if item is None:
            raise StopIteration
        raise item

    def coming(self) -> Inputs | None:
        """The next batch, if it has been read by now."""
        if not self._held:
            with contextlib.suppress(queue.Empty):
                self._held.append(self._sent(self._ready.get_nowait()))
        item = self._held[0] if self._held else None
        return item if isinstance(item, Inputs) else None

    def _sent(self, item: Inputs | Exception | None) -> Inputs | Exception | None:
        return item.to(self._device) if isinstance(item, Inputs) else item

    def close(self) -> None:
        """Read no more."""
        self._stopped.set()

    __del__ = close


def _read_into(
    ready: "queue.Queue[Inputs | Exception | None]",
    stopped: threading.Event,
    batches: Iterator[Inputs],
    device: torch.device,
) -> None:
    """Put the batches, None after the last, or what failed, into ``ready`` until ``stopped``."""

    def put(item: Inputs | Exception | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # a thread of its own starts on device 0
        for batch in batches:
            if not put(batch.pin_memory() if device.type == "cuda" else batch):
                return
        put(None)
    except Exception as error:
        put(error)
