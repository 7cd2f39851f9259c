"""Token shards + order -> input ids. A window is ``length`` − 2 consecutive tokens of one shard between [CLS] and [SEP].

Windows run across documents (their separators are in the shards), so nothing is ever padded: the ``full`` layout, how
RoBERTa and XLM-R were trained. The tail of a shard that fills no window is left out.
"""

import queue
import threading
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from data_prep.errors import UserError
from data_prep.shards import Corpus, Source, verify
from pipeline.order import BLOCK, Order


class Windows:
    """The windows of several sources, cut at read time. Sources too short for a single window are left out."""

    def __init__(self, sources: dict[str, Source], tokenizer: dict, length: int):
        """``tokenizer`` is the manifest's fingerprint: it says which ids frame a window and how many ids there are."""
        self.length = length
        self.first, self.last = tokenizer["special"]["cls"], tokenizer["special"]["sep"]
        self.vocab_size = tokenizer["vocab_size"]
        inner = length - 2
        kept = {name: source for name, source in sources.items() if any(s.tokens >= inner for s in source.shards)}
        self.names = list(kept)
        self.tokens = [source.tokens for source in kept.values()]
        self._shards = [[shard for shard in source.shards if shard.tokens >= inner] for source in kept.values()]
        # ends[i][j]: windows of source i in its shards 0…j
        self._ends = [np.cumsum([shard.tokens // inner for shard in shards]) for shards in self._shards]
        self.counts = [int(ends[-1]) for ends in self._ends]
        self._open: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return sum(self.counts)

    def read(self, sources: np.ndarray, windows: np.ndarray) -> Tensor:
        """Input ids [n, length], int64, of window ``windows[i]`` of source ``sources[i]``."""
        ids = np.empty((len(sources), self.length), np.int64)
        ids[:, 0], ids[:, -1] = self.first, self.last
        for row, source, window in zip(ids, sources.tolist(), windows.tolist(), strict=True):
            ends = self._ends[source]
            shard = int(np.searchsorted(ends, window, side="right"))
            start = (window - (int(ends[shard - 1]) if shard else 0)) * (self.length - 2)
            row[1:-1] = self._tokens(source, shard)[start : start + self.length - 2]
            if row.max() >= self.vocab_size:
                path = self._shards[source][shard].path
                raise UserError(
                    f"{path}: token id {row.max()} near offset {start} is outside the vocabulary of {self.vocab_size}; "
                    "the file is damaged: run `python -m data_prep verify --deep` on its folder"
                )
        return torch.from_numpy(ids)

    def _tokens(self, source: int, shard: int) -> np.ndarray:
        if (source, shard) not in self._open:
            self._open[source, shard] = self._shards[source][shard].open()
        return self._open[source, shard]


def notes(corpus: Corpus, windows: Windows, order: Order, batch: int) -> Iterator[str]:
    """What a person should know about how this corpus will be read."""
    if len(windows) < batch:
        yield f"{corpus.path} has {len(windows)} windows of {windows.length} tokens, less than a batch: they repeat in a step"
    for name in sorted(corpus.sources.keys() - windows.names):
        yield f"source {name} is left out: no shard of it fills a window of {windows.length} tokens"
    for name, quota in zip(windows.names, order.quotas, strict=True):
        if not quota:
            yield f"source {name} is never read: its share is below 1 in {BLOCK}; raise it with a lower sampling_alpha"
    tokens = sum(source.tokens for source in corpus.sources.values())
    left = tokens - len(windows) * (windows.length - 2)
    yield f"{left:,} of {tokens:,} tokens lie in shard tails that fill no window"


_REHASHED = 2**30  # bytes; a larger corpus is not read whole at each start


def check_bytes(corpus: Corpus) -> None:
    """Re-hash a corpus of up to 1 GiB, so that an altered shard is refused. Larger ones: `data_prep verify --deep`."""
    everything = [*corpus.sources.values(), *corpus.heldout.values()]
    if sum(shard.path.stat().st_size for source in everything for shard in source.shards) <= _REHASHED:
        for finding in verify(corpus.path, deep=True):
            raise UserError(
                f"{finding}; delete that shard's files and run the same `python -m data_prep prepare` again"
            )


def training_windows(corpus: Corpus, length: int) -> Windows:
    windows = Windows(corpus.sources, corpus.tokenizer, length)
    if not len(windows):
        raise UserError(f"{corpus.path}: no shard holds the {length - 2} tokens of one window; use a shorter length")
    return windows


def heldout_ids(corpus: Corpus, length: int, samples: int, alpha: float, seed: int) -> Tensor | None:
    """The first ``samples`` held-out sequences of the sampling order, [n, length], or None if there are none."""
    windows = Windows(corpus.heldout, corpus.tokenizer, length)
    count = min(samples, len(windows))
    if not count:
        return None
    source, _, window = order_of(windows, alpha, seed)(np.arange(count))
    return windows.read(source, window)


def order_of(windows: Windows, alpha: float, seed: int) -> Order:
    """The sampling order over ``windows``: sources in proportion to their tokens ** alpha."""
    return Order(windows.counts, [float(n) ** alpha for n in windows.tokens], seed)


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
        source, _, window = order(np.arange(first, first + share))
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
