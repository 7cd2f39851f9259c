"""What is left to be run, and how long it will take by the cells that are done."""

import statistics
from collections.abc import Sequence

from data_prep.cli import aligned
from pipeline.artifacts import results
from pipeline.evaluate import claims
from pipeline.evaluate.cells import Job
from pipeline.evaluate.running import Turn

_HOUR = 3600.0


def outlook(jobs: Sequence[Job], turns: Sequence[Turn], done: Sequence[results.Cell], workers: int) -> str:
    """A table of cells by model and task, the cells that are left, and the hours that they will take.

    ``done``: all cells of the results folder. ``workers``: those that share the work.
    """
    rows = [["", "task", "cells", "finished", "running", "failed", "left", "hours"]]
    total, unknown = 0.0, 0
    for job in jobs:
        left = [turn for turn in turns if turn.job is job]
        running = sum(claims.is_held(turn.cell.claim) for turn in left)
        times = [seconds_of(job, turn.cell.settings, done) for turn in left]
        known = [seconds for seconds in times if seconds is not None]
        total, unknown = total + sum(known), unknown + len(times) - len(known)
        hours = f"{sum(known) / _HOUR:.2f}" if len(known) == len(times) else "?"
        counts = (len(job.cells), len(job.finished), running, len(job.failed), len(left))
        rows.append([job.model.name, job.task, *map(str, counts), hours])
    lines = [*aligned(rows, left=2), "", *(f"left: {turn}" for turn in turns)]
    parts = [f"{len(turns)} cells are left"]
    if unknown < len(turns):
        shared = f", with {workers} workers" if workers > 1 else ""
        parts.append(f"{total / workers / _HOUR:.2f} hours by those that are done{shared}")
    if unknown:
        parts.append(f"no estimate for {unknown}, of whose model and task none is done with this batch and length")
    lines.append("; ".join(parts))
    return "\n".join(lines)


def seconds_of(job: Job, settings: dict, done: Sequence[results.Cell]) -> float | None:
    """The seconds that a cell of these settings takes: the median of those of its model and task, by epochs.

    None if there are none. Cells of other batches and lengths are not compared.
    """
    same = [
        cell.seconds * settings.get("epochs", 1) / cell.settings.get("epochs", 1)
        for cell in done
        if (cell.model, cell.task) == (job.model.name, job.task)
        and cell.seconds > 0
        and all(cell.settings.get(key) == settings.get(key) for key in ("batch", "length"))
    ]
    return statistics.median(same) if same else None
