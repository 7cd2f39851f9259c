"""Where the time of an update goes: the shares of its parts, and the seconds in collectives."""

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from data_prep.shards import open_corpus
from pipeline.bench.data import SEED, make_corpus
from pipeline.data.order import Order
from pipeline.data.reading import ReadAhead, order_of, steps, training_windows
from pipeline.data.windows import Windows
from pipeline.engines.ranks import Ranks, communication_backend
from pipeline.engines.teacher import Teach
from pipeline.training.ahead import Ahead
from pipeline.training.step import Clock, update
from pipeline.training.trainee import Trainee

_STEPS = 3
_TOKENS = 1_000_000  # tokens


def shares(trainees: list[Trainee], teach: Teach, ranks: Ranks) -> dict[str, float]:
    """Those of updates that read a random corpus."""
    length = trainees[0].recipe.length
    with tempfile.TemporaryDirectory(prefix="bench-step-") as folder:
        make_corpus(Path(folder), 5, max(_TOKENS, 100 * length))
        windows = training_windows(open_corpus(Path(folder)), length)
        return shares_of(trainees, teach, ranks, windows, order_of(windows, 1.0, SEED))


def shares_of(trainees: list[Trainee], teach: Teach, ranks: Ranks, windows: Windows, order: Order) -> dict[str, float]:
    """Each part's share of the time of consecutive updates that read ``windows``; the wait for data is a part."""
    clock, waited = Clock(ranks.device), 0.0
    clock.running = True
    reading = steps(windows, order, 0, _STEPS + 1, trainees[0].recipe.batch, ranks.rank, ranks.world)
    with contextlib.closing(ReadAhead(reading, ranks.device)) as ready:
        for number in range(_STEPS + 1):
            begin = time.perf_counter()
            samples = next(ready)
            waited += time.perf_counter() - begin
            update(trainees, Ahead(teach), samples, 0, ranks, clock)
            _synchronize(ranks)
            if not number:  # the first is the warm-up
                clock.seconds()
                waited = 0.0
    spent = clock.seconds() | {"data wait": waited}
    return {part: time / sum(spent.values()) for part, time in spent.items()}


_COLLECTIVES = (
    "all_reduce", "all_reduce_coalesced", "reduce", "broadcast", "all_gather", "all_gather_into_tensor",
    "all_gather_coalesced", "reduce_scatter_tensor",
)  # fmt: skip


def communication(work: Callable, ranks: Ranks) -> float:
    """Seconds that ``work`` spends in DeepSpeed's collectives, each waited for."""
    spent = 0.0
    backend = communication_backend()

    def timed(collective: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal spent
            _synchronize(ranks)
            begin = time.perf_counter()
            handle = collective(*arguments, **options)
            if hasattr(handle, "wait"):
                handle.wait()
            _synchronize(ranks)
            spent += time.perf_counter() - begin
            return handle

        return call

    with contextlib.ExitStack() as stack:
        for name in _COLLECTIVES:
            setattr(backend, name, timed(getattr(backend, name)))
            stack.callback(delattr, backend, name)
        work()
    return spent


def _synchronize(ranks: Ranks) -> None:
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)
