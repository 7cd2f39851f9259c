"""The loop of one process over the cells: it claims the next that nobody runs, runs it, and waits for those of others."""

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from accelerate.utils import broadcast_object_list

from data_prep.cli import shows_bars
from pipeline.artifacts import results
from pipeline.evaluate import claims, finetune
from pipeline.evaluate.cells import Cell, Job, inode, is_finished, is_first, run_cell
from pipeline.evaluate.sharing import encode

LOOK = 0.5  # seconds between two looks at what others run


@dataclass
class Turn:
    """A cell that was not finished when this process began."""

    label: str  # of its job
    job: Job
    number: int  # of the cell in its job, from 1
    cell: Cell
    failure: int | None  # the inode of what an earlier call recorded

    @property
    def failed(self) -> bool:
        """Whether it has failed since this process began, here or elsewhere."""
        return inode(self.cell.failure) not in (None, self.failure)

    @property
    def ended(self) -> bool:
        return is_finished(self.job, self.cell) or self.failed

    def __str__(self) -> str:
        return f"{self.label} {self.number}/{len(self.job.cells)}: {self.cell}"


def turns_of(jobs: Sequence[Job]) -> list[Turn]:
    """The cells that are not finished, by job.

    A job's cells that failed before come last: under torchrun a failure ends the run, and others must not wait for it.
    """
    found = []
    for job in jobs:
        label = _label(job, jobs)
        done, failed_before = ({cell.path for cell in cells} for cells in (job.finished, job.failed))
        left = [
            Turn(label, job, number, cell, inode(cell.failure))
            for number, cell in enumerate(job.cells, 1)
            if cell.path not in done
        ]
        found += sorted(left, key=lambda turn: turn.cell.path in failed_before)
    return found


def _label(job: Job, jobs: Sequence[Job]) -> str:
    several = len({each.model.name for each in jobs}) > 1
    return f"{job.model.name} {job.task}" if several else job.task


def introduce(jobs: Sequence[Job], say: Callable[..., object]) -> None:
    """Say for each job what is finished, and what is run once more."""
    for job in jobs:
        label = _label(job, jobs)
        again = sum(cell.path.exists() for cell in job.cells) - len(job.finished)
        if again > 0:
            kept = " and ".join(job.keep)
            say(f"{label}: {again} of {len(job.cells)} cells are trained again: their {kept} were not kept")
        if job.finished:
            say(f"{label}: {len(job.finished)} of {len(job.cells)} cells were finished earlier")


def run(turns: Sequence[Turn], say: Callable[..., object]) -> None:
    """Run the cells that no other process runs, and wait until those of others have ended."""
    job, encoded = None, None
    on_bars = shows_bars()  # progress bars come between a line's beginning and its end
    with contextlib.closing(_claimed(turns, say)) as claimed:  # the claim is released, however this ends
        for turn in claimed:
            if turn.job is not job:
                job, encoded = turn.job, functools.cache(functools.partial(encode, turn.job))
            assert encoded is not None
            say(f"{turn} …", end="\n" if on_bars else "", flush=True)
            ending, _ = run_cell(turn.job, turn.cell, encoded)
            say(f"{turn} … {ending}" if on_bars else f" {ending}", flush=True)


def failures(turns: Sequence[Turn]) -> list[str]:
    """A line for each cell that has failed since this process began."""
    return [
        f"{turn.label} {turn.cell}: failed: {results.read_failure(turn.cell.failure).error}"
        for turn in turns
        if turn.failed
    ]


def _claimed(turns: Sequence[Turn], say: Callable[..., object]) -> Generator[Turn]:
    """The cells that this process is to run, each claimed until the next is asked for.

    Under torchrun the first process chooses for all, and does not wait for other calls.
    """
    left, claim = list(range(len(turns))), None
    try:
        while True:
            number = None
            if is_first():
                number, claim = _next(turns, left, say)
            if finetune.distributed():
                (number,) = broadcast_object_list([number])
            if number is None:
                return
            yield turns[number]
            if claim:
                claim.release()
            claim = None
    finally:
        if claim:
            claim.release()


def _next(turns: Sequence[Turn], left: list[int], say: Callable[..., object]) -> tuple[int | None, claims.Claim | None]:
    """Claim the first of the cells ``left`` that nobody runs, and remove from them those that have ended."""
    waits = False
    while True:
        for number in list(left):
            turn = turns[number]
            claim = None if turn.ended else claims.take(turn.cell.claim)
            if turn.ended:  # also if somebody has ended it just before it was claimed
                left.remove(number)
            elif claim:
                left.remove(number)
                return number, claim
            if claim:
                claim.release()
        if not left or finetune.distributed():
            return None, None
        if not waits:
            say(f"waiting for {len(left)} cells that other processes run")
        waits = True
        time.sleep(LOOK)
