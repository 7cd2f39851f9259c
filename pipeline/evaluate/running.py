"""The loop over cells: each that nobody else has claimed is run, and those of others are waited for."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from accelerate.utils import broadcast_object_list

from data_prep.cli import shows_bars, some
from pipeline.artifacts import results
from pipeline.evaluate import finetune
from pipeline.evaluate.cells import Cell, Job, encode, inode, is_finished, is_first, run_cell
from pipeline.evaluate.claims import claim

PAUSE = 1.0  # seconds between two looks at cells that others run
RUN, DONE, TAKEN, FAILED = "run", "done", "taken", "failed"


@dataclass(frozen=True)
class Left:
    """A cell that was not finished when this process looked first."""

    job: Job
    label: str
    number: int  # from 1
    cell: Cell
    failure: int | None  # the file of its failure then
    encoded: Callable[[], finetune.Encoded]

    @property
    def line(self) -> str:
        """The beginning of what is said of it."""
        return f"{self.label} {self.number}/{len(self.job.cells)}: {self.cell} …"

    def failed(self, ending: str) -> str:
        """What is said of it at the end if it failed."""
        return f"{self.label} {self.cell}: {ending}"


def labels(jobs: Sequence[Job]) -> list[str]:
    """What the lines of each job begin with."""
    several = len({job.model.name for job in jobs}) > 1
    return [f"{job.model.name} {job.task}" if several else job.task for job in jobs]


def left_of(job: Job, label: str) -> list[Left]:
    """The cells that are not finished. Those that failed before come last: a failure ends a run of several processes."""
    done, failed_before = ({cell.path for cell in cells} for cells in (job.finished, job.failed))
    encoded = functools.cache(lambda: encode(job, job.out))
    found = [
        Left(job, label, number, cell, inode(cell.failure), encoded)
        for number, cell in enumerate(job.cells, 1)
        if cell.path not in done
    ]
    return sorted(found, key=lambda left: left.cell.path in failed_before)


def say_what_is_there(job: Job, label: str, say: Callable[..., object]) -> None:
    """Say which cells are not run, or are run again."""
    again = sum(cell.path.exists() for cell in job.cells) - len(job.finished)
    if again:
        say(
            f"{label}: {again} of {len(job.cells)} cells are trained again: their {' and '.join(job.keep)} were not kept"
        )
    if job.finished:
        say(f"{label}: {len(job.finished)} of {len(job.cells)} cells were finished earlier")


def run_jobs(left: Iterable[Left], say: Callable[..., object], whole_lines: bool = False) -> list[str]:
    """Run the cells that nobody else runs, and wait for the others. Returns a line for each that failed, whoever ran it.

    The cell of a process that dies is run here. ``whole_lines``: say nothing of a cell before its end.
    """
    failed, left, waits = [], list(left), False
    while left:
        taken, others = [], set()
        for each in left:
            with claim(each.cell.path) if is_first() else contextlib.nullcontext("") as holder:
                state, reason = _agreed(_state(each, holder))
                if state == RUN:
                    ending, well = _run(each, say, whole_lines)
                    failed += [] if well else [each.failed(ending)]
                elif state == TAKEN:
                    taken.append(each)
                    others.add(reason)
                elif state == FAILED:
                    failed.append(each.failed(f"failed: {reason}"))
        if taken and len(taken) == len(left):
            if not waits and not whole_lines:
                say(f"{len(taken)} of the cells are run by {some(sorted(others))}; waiting for them", flush=True)
            waits = True
            time.sleep(PAUSE)
        left = taken
    return failed


def _state(left: Left, holder: str) -> tuple[str, str]:
    """What is to be done with a cell whose claim ``holder`` has, or this process; and who has it, or why it failed."""
    if holder:
        return TAKEN, holder
    if is_finished(left.job, left.cell):
        return DONE, ""
    if inode(left.cell.failure) not in (None, left.failure):
        return FAILED, results.read_failure(left.cell.failure).error
    return RUN, ""


def _agreed(found: tuple[str, str]) -> tuple[str, str]:
    """What the first of several processes that share a batch has found."""
    if not finetune.distributed():
        return found
    agreed: list[tuple[str, str]] = broadcast_object_list([found])
    return agreed[0]


def _run(left: Left, say: Callable[..., object], whole_lines: bool) -> tuple[str, bool]:
    on_bars = whole_lines or shows_bars()  # progress bars come between a line's beginning and its end
    if not whole_lines:
        say(left.line, end="\n" if on_bars else "", flush=True)
    ending, well = run_cell(left.job, left.cell, left.encoded)
    say(f"{left.line} {ending}" if on_bars else f" {ending}", flush=True)
    return ending, well
