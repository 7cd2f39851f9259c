"""pipeline.distill with a fault inside: `python -m tests.parts.faulty RECIPE …` in its place.

The variable FAULTS holds JSON {NAME: {argument: value}}: functions of this module that are called before the run starts.
What can be done from outside (signals, files, full disks) is not done here.
"""

import datetime
import itertools
import json
import os
import resource
import threading
import time
from pathlib import Path

import torch

from data_prep.cli import run_command
from pipeline.artifacts import checkpoints
from pipeline.data import reading
from pipeline.data.windows import Windows
from pipeline.distill import main
from pipeline.training import evaluation, progress, resuming, step, trainee

RANK = int(os.environ.get("RANK", "0"))


def at_step(wanted: int, act) -> None:
    """Call ``act`` once, on this rank, in the first micro-batch of update ``wanted`` (from 1)."""
    seed_dropout, done = step.seed_dropout, []

    def watching(seed: int, number: int, micro: int, rank: int) -> None:
        if number + 1 == wanted and not done:
            done.append(True)
            act()
        seed_dropout(seed, number, micro, rank)

    step.seed_dropout = watching


def slow_read(rank: int, read: int, seconds: float, mark: str) -> None:
    """The reading thread of ``rank`` touches the file ``mark`` and waits, in the midst of its ``read``-th read (from 1)."""
    locate, count = Windows.locate, [0]

    def slow(self, sources, windows):
        if threading.current_thread().name == "read-ahead" and rank == RANK:
            count[0] += 1
            if count[0] == read:
                Path(mark).touch()
                time.sleep(seconds)
        return locate(self, sources, windows)

    Windows.locate = slow


def patience(floor: float, unknown: float) -> None:
    """The watchdog's patience with a phase, in timeouts: at least, and where nothing is known."""
    progress.FLOOR, progress.UNKNOWN = floor, unknown


def sleep(times: list[tuple[int, str, int, float]], mark: str) -> None:
    """For each (rank, where, at, seconds): the rank touches the file ``mark`` and sleeps, and that in update ``at`` (from 1),
    or in the ``at``-th evaluation, save or write. All ranks give their part of the state to a save; rank 0 alone writes it.
    """
    for rank, *others in times:
        if rank == RANK:
            _sleep(*others, mark)


def _sleep(where: str, at: int, seconds: float, mark: str) -> None:

    def act() -> None:
        Path(mark).touch()
        time.sleep(seconds)

    def sleeping(function):
        count = itertools.count(1)

        def work(*arguments, **named):
            if next(count) == at:
                act()
            return function(*arguments, **named)

        return work

    if where == "update":
        at_step(at, act)
    elif where == "evaluation":
        evaluation.Evaluation.losses = sleeping(evaluation.Evaluation.losses)
    elif where == "save":
        resuming.read_state = sleeping(resuming.read_state)
    else:
        checkpoints.save = sleeping(checkpoints.save)


def nan(rank: int, at: int, of_teacher: bool) -> None:
    """One micro-batch of update ``at`` on ``rank`` has a loss that is no number, perhaps because the teacher's q has one."""
    relation_loss, poison = trainee.relation_loss, []

    def poisoned(teacher, student, *others):
        if not poison:
            return relation_loss(teacher, student, *others)
        poison.clear()
        if of_teacher:
            query = teacher[0].clone()
            query[0, 1, 2] = torch.nan
            return relation_loss(teacher._replace(q=query), student, *others)
        losses = relation_loss(teacher, student, *others)
        return losses | {"loss": losses["loss"] * torch.nan}

    trainee.relation_loss = poisoned
    if rank == RANK:
        at_step(at, lambda: poison.append(True))


def clock_jump(at: int, seconds: float) -> None:
    """From update ``at`` on, what Python says is the time of day is ``seconds`` off. Nobody else's clock is touched."""
    now, real = time.time, datetime.datetime

    class Shifted(real):
        @classmethod
        def now(cls, tz=None):
            return real.now(tz) + datetime.timedelta(seconds=seconds)

        @classmethod
        def utcnow(cls):
            return cls.now(datetime.UTC).replace(tzinfo=None)

    def jump() -> None:
        time.time = lambda: now() + seconds
        time.time_ns = lambda: int(time.time() * 1e9)
        datetime.datetime = Shifted

    at_step(at, jump)


def file_limit(at: int, size: int) -> None:
    """From the checkpoint of update ``at`` on, no file of this process may grow above ``size`` bytes."""
    save = checkpoints.save

    def limited(run, info, *others, **named):
        if info["step"] >= at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return save(run, info, *others, **named)

    checkpoints.save = limited


# --- a product that is broken on purpose, to see that it is found out -------------------------------------------------


def trusts_every_checkpoint() -> None:
    """Whatever has a state.json that can be read is taken for a whole checkpoint."""
    torn = checkpoints._torn
    checkpoints._torn = lambda folder, *how: None if (folder / checkpoints.STATE).exists() else torn(folder, *how)


def forgets_the_position() -> None:
    """A run that resumes reads the data from the start again."""
    steps = reading.steps
    reading.steps = lambda windows, order, start, stop, *others: steps(windows, order, 0, stop - start, *others)


BROKEN = {"hash": trusts_every_checkpoint.__name__, "position": forgets_the_position.__name__}


if __name__ == "__main__":
    for name, arguments in json.loads(os.environ["FAULTS"]).items():
        globals()[name](**arguments)
    run_command(main)
