"""``python -m pipeline.bench data``: the cost of the sampling order and of the checks in reading.

A batch through the sampling order and the windows is compared with the bare copying of the same rows from the same memory
maps; and the time is measured that a training loop waits for data.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from transformers import BertConfig

from data_prep.shards import open_corpus, write_manifest, write_shard
from pipeline.bench.tools import VOCABULARY, Row
from pipeline.data.order import BLOCK, Order, Samples
from pipeline.data.reading import ReadAhead, order_of, steps, training_windows
from pipeline.data.windows import Windows
from pipeline.models.cut import split
from pipeline.models.students import build_student

ALPHA = 0.3  # of XLM-R: small sources are read about as often as large ones, from many shards in each batch
SEED = 42
_STEP_BATCH = 16
_STEPS = 20


def data(folder: Path, length: int, batch: int, at: int, repeats: int) -> Iterator[Row]:
    """Measure the reading of the corpus in ``folder`` from sample ``at`` on; times are medians of ``repeats``."""
    begin = time.perf_counter()
    windows = training_windows(open_corpus(folder), length)
    order = order_of(windows, ALPHA, SEED)
    next(steps(windows, order, at // batch, at // batch + 1, batch, 0, 1))
    restored = time.perf_counter() - begin
    times = compare_with_bare(windows, order, batch, at, repeats)
    whole, bare = np.median(times, axis=0).tolist()
    ratio = float(np.median(times[:, 0] / times[:, 1]))
    yield Row("restored", restored, "s", f"from nothing to the first batch, at sample {at}; target: under 1")
    yield Row("batch", 1e3 * whole, "ms", f"{batch} sequences × {length} through order and windows, one thread")
    yield Row("bare gather", 1e3 * bare, "ms", "the same rows from the same memory maps, without order and checks")
    yield Row("ratio", ratio, "×", "batch / bare gather")
    yield Row("reading", batch * length / whole / 1e6, "M tokens/s", "what one thread delivers")
    step, wait = training_wait(windows, order, at)
    work = f"a 2 × 128 encoder, {_STEP_BATCH} sequences × {length}, while the reader runs"
    yield Row("training step", 1e3 * step, "ms", work)
    yield Row("data wait", 100 * wait, "%", "of the training time: no batch was there yet")


def compare_with_bare(windows: Windows, order: Order, batch: int, at: int, repeats: int) -> np.ndarray:
    """Seconds of a batch through order and windows, and by ``BareGather``: [repeats, 2].

    Each timed stretch is at least a whole block of the order, so that its layout is counted in full. A repetition has two
    stretches, other ones each time: in one the order goes first, in the other the bare gather, since the second one finds a
    warm cache.
    """
    gather = BareGather(windows)
    count = -(-BLOCK // batch)
    blocks = -(-count * batch // BLOCK)
    times = np.empty((repeats + 1, 2, 2))
    for number in range(2 * (repeats + 1)):
        start = (at // BLOCK + number * blocks) * BLOCK
        starts = range(start, start + count * batch, batch)
        times[number // 2, number % 2] = _stretch_times(windows, order, gather, starts, bare_first=number % 2 == 1)
    return times[1:].mean(1) / count  # the first repetition is the warm-up


def _stretch_times(
    windows: Windows, order: Order, gather: "BareGather", starts: range, bare_first: bool
) -> list[float]:
    """[through order and windows, bare], in seconds for all the batches that begin at ``starts``."""
    batch = starts.step
    rows = [gather.rows(order(start, start + batch)) for start in starts]
    order.forget()

    def read_all() -> None:
        for start in starts:
            source, _, window = order(start, start + batch)
            windows.read(source, window)

    def gather_all() -> None:
        for shard, first in rows:
            gather(shard, first)

    works: list[Callable[[], None]] = [read_all, gather_all]
    seconds = [0.0, 0.0]
    for which in (1, 0) if bare_first else (0, 1):
        begin = time.perf_counter()
        works[which]()
        seconds[which] = time.perf_counter() - begin
    return seconds


class BareGather:
    """Copies rows from memory maps by (shard, start) into input ids, as fast as plain NumPy can.

    Rows are grouped by shard; a loop of one slice for each row takes almost twice as long.
    """

    def __init__(self, windows: Windows):
        self._windows = windows
        self._views = {
            number: sliding_window_view(windows.tokens(number), windows.inner)
            for number, shard in enumerate(windows.shards)
            if shard.tokens >= windows.inner
        }
        self._dtype = windows.tokens(0).dtype

    def rows(self, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
        """(shard, start) of samples, [n] each."""
        rows, shard, start, _ = self._windows.locate(samples.source, samples.window)
        back = np.argsort(rows)
        return shard[back].astype(np.min_scalar_type(len(self._windows.shards))), start[back]

    def __call__(self, shard: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Input ids [n, length], int64."""
        rows = np.argsort(shard, kind="stable")
        shard, start = shard[rows], start[rows]
        edges = [0, *(np.flatnonzero(shard[1:] != shard[:-1]) + 1).tolist(), len(rows)]
        tokens = np.empty((len(rows), self._windows.inner), self._dtype)
        for first, stop in pairwise(edges):
            tokens[first:stop] = self._views[int(shard[first])][start[first:stop]]
        ids = np.empty((len(rows), self._windows.length), np.int64)
        ids[:, 0], ids[:, -1] = self._windows.special["cls"], self._windows.special["sep"]
        ids[rows, 1:-1] = tokens
        return ids


def training_wait(windows: Windows, order: Order, at: int) -> tuple[float, float]:
    """Seconds of a training step of a small encoder (median), and the share of the time that it waited for its batch."""
    first = at // _STEP_BATCH
    reading = steps(windows, order, first, first + _STEPS + 1, _STEP_BATCH, 0, 1)
    train = _small_training(windows)
    waits, whole = [], []
    with contextlib.closing(ReadAhead(reading, torch.device("cpu"))) as ready:
        train(next(ready).ids)  # the first is the warm-up
        for _ in range(_STEPS):
            begin = time.perf_counter()
            samples = next(ready)
            waits.append(time.perf_counter() - begin)
            train(samples.ids)
            whole.append(time.perf_counter() - begin)
    return statistics.median(whole), sum(waits) / sum(whole)


def _small_training(windows: Windows) -> Callable[[torch.Tensor], None]:
    """One update of an encoder that is far faster than any student: forward, backward, plain gradient descent."""
    config = BertConfig(
        vocab_size=windows.vocab_size, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512,
        max_position_embeddings=windows.length, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    student, *_ = split(build_student(config, SEED))
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)

    def train(ids: torch.Tensor) -> None:
        optimizer.zero_grad()
        torch.stack([x.square().mean() for x in student(ids)]).sum().backward()
        optimizer.step()

    return train


# --- a corpus to read -------------------------------------------------------------------------------------------------

TOKENS = 120_000_000  # 240 MB
_SHARD = 2**23  # tokens
_SPECIAL = {"pad": 0, "unk": 100, "cls": 101, "sep": 102}


def make_corpus(folder: Path, sources: int, tokens: int) -> None:
    """Random tokens in ``sources`` sources, the largest a thousand times as large as the smallest."""
    sizes = np.geomspace(1, 1000, sources)
    sizes = np.ceil(sizes / sizes.sum() * tokens).astype(int)
    content: dict = {"tokenizer": {"vocab_size": VOCABULARY, "special": _SPECIAL}, "sources": {}, "heldout": {}}
    generator = np.random.default_rng(SEED)
    for number, size in enumerate(sizes.tolist()):
        name = f"source{number:04d}"
        parts = [min(_SHARD, size - begin) for begin in range(0, size, _SHARD)]
        rows = [_write_random(folder / name, part, generator, n) for part, n in enumerate(parts)]
        documents = sum(row["documents"] for row in rows)
        content["sources"][name] = {"documents": documents, "tokens": size, "size": size, "shards": rows}
    write_manifest(folder, content)


def _write_random(folder: Path, number: int, generator: np.random.Generator, size: int) -> dict:
    tokens = generator.integers(1000, VOCABULARY, size, dtype=np.uint16)
    ends = np.append(np.arange(600, size, 600), size)
    tokens[ends - 1] = _SPECIAL["sep"]
    return write_shard(folder, f"00000-{number:05d}", tokens, ends, {})
