"""One update of every student: the teacher's pass, then for each its pass, the relation loss, backward, and the optimizer.

The students of a run share the teacher's pass, the samples and the number of steps; nothing else. Each has its own engine,
and what becomes of it is what would become of it alone.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.data.inputs import Inputs
from pipeline.engines.averaging import before_averaging
from pipeline.engines.ranks import Ranks
from pipeline.engines.state import set_learning_rate
from pipeline.training.ahead import Ahead
from pipeline.training.trainee import Trainee


def update(
    trainees: list[Trainee],
    ahead: Ahead,
    samples: Inputs,
    step: int,
    ranks: Ranks,
    clock: "Clock",
    following: Callable[[], Inputs | None] | None = None,
) -> list[Tensor]:
    """Update ``step`` (from 0) of each trainee from this rank's ``samples``, which are on the device.

    ``following`` gives those of the next update, if there is one and they are there; the teacher's pass of its first window
    is begun in this one. Returns for each trainee its losses [micro-batches, 1 + pairs], on the device, for which nothing here
    waits.
    """
    recipe = trainees[0].recipe  # where they agree
    losses: list[list[Tensor]] = [[] for _ in trainees]
    for trainee in trainees:
        trainee.engine.train()
        set_learning_rate(trainee.engine, trainee.recipe.learning_rate_at(step))
    windows = samples.split(recipe.teacher_batch)
    for number, window in enumerate(windows):
        coming = partial(_window_after, number, windows, following, recipe.teacher_batch)
        with clock("teacher"):
            teacher = ahead(window)
        parts = [slice(i, i + recipe.micro_batch) for i in range(0, len(window), recipe.micro_batch)]
        batches = window.split(recipe.micro_batch)
        for trainee, rows in zip(trainees, losses, strict=True):
            for part, batch in zip(parts, batches, strict=True):
                seed_dropout(trainee.recipe.student_seed, step, len(rows), ranks.rank)
                with clock("student"):
                    output = trainee.engine(batch.ids, **batch.told)
                with clock("loss"):
                    named = trainee.losses(teacher, output, batch.bounds(), part)
                rows.append(torch.stack([loss.detach() for loss in named.values()]))
                last = trainee is trainees[-1] and batch is batches[-1]
                with clock("student"), before_averaging(trainee.engine, partial(ahead.begin, coming if last else None)):
                    trainee.engine.backward(named["loss"])
                with clock("optimizer"):
                    trainee.engine.step()
    with clock("teacher"):
        ahead.wait()
    return [torch.stack(rows) for rows in losses]


def _window_after(
    number: int, windows: list[Inputs], following: Callable[[], Inputs | None] | None, size: int
) -> Inputs | None:
    """The window after this one: of this update, or the first one of the next, of ``size`` sequences."""
    if number + 1 < len(windows):
        return windows[number + 1]
    samples = following() if following else None
    return None if samples is None else samples.split(size)[0]


def seed_dropout(seed: int, step: int, micro: int, rank: int) -> None:
    """Dropout is a function of (seed, step, micro-batch, rank), so that a resumed run drops the same."""
    digest = hashlib.blake2b(f"{seed} {step} {micro} {rank}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest))


class Clock:
    """Where the time goes: ``with clock("teacher"): …`` adds to that part while ``running``.

    On a GPU the time is the device's own, taken by events, so that nothing waits before ``seconds`` is asked for. Each part
    that begins, timed or not, is ``moved()``.
    """

    def __init__(self, device: torch.device, moved: Callable[[], object] = lambda: None):
        self._events, self._moved = device.type == "cuda", moved
        self._spans: list[tuple[str, Any, Any]] = []
        self.running = False

    @contextlib.contextmanager
    def __call__(self, part: str):
        self._moved()
        if not self.running:
            yield
            return
        begin = self._now()
        yield
        self._spans.append((part, begin, self._now()))

    def _now(self) -> Any:
        if not self._events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> dict[str, float]:
        """Seconds of each part since the last call."""
        if self._events:
            torch.cuda.synchronize()
        total: dict[str, float] = {}
        for part, begin, end in self._spans:
            span = begin.elapsed_time(end) / 1e3 if self._events else end - begin
            total[part] = total.get(part, 0.0) + span
        self._spans.clear()
        return total
