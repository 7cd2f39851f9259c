"""What is left to do in a results folder, and how long that will take by what was done."""

import statistics
from collections.abc import Sequence

from data_prep.cli import aligned
from pipeline.artifacts import results
from pipeline.evaluate.cells import Job
from pipeline.evaluate.claims import holders
from pipeline.evaluate.running import Left


def outlook(jobs: Sequence[Job], labels: Sequence[str], left: list[Left], workers: int) -> str:
    """A table of the cells of each job, and the hours that those left will take ``workers`` processes."""
    out = jobs[0].out
    done = results.read_results(out).cells if out.is_dir() else []
    rows = [["", "cells", "finished", "failed earlier", "left", "hours"]]
    hours: list[float | None] = []
    for job, label in zip(jobs, labels, strict=True):
        own = [each for each in left if each.job is job]
        hours.append(_hours(job, own, done))
        failed = len([cell for cell in job.failed if cell not in job.finished])
        shown = [str(count) for count in (len(job.cells), len(job.finished), failed, len(own))]
        rows.append([label, *shown, "unknown" if hours[-1] is None else f"{hours[-1]:.2f}"])
    known = [each for each in hours if each is not None]
    share = f" in {workers} workers" if workers > 1 else ""
    unknown = (
        f", {len(hours) - len(known)} rows unknown: none of their cells is done" if len(known) < len(hours) else ""
    )
    lines = [*aligned(rows), f"{len(left)} cells left: {sum(known) / workers:.2f} hours{share}, by those done{unknown}"]
    if others := holders(out):
        lines.append(f"at work now: {', '.join(sorted(others))}")
    return "\n".join(lines)


def _hours(job: Job, left: list[Left], done: list[results.Cell]) -> float | None:
    """By the seconds of an epoch in cells of the same model and task, else of the task; None where there are none."""
    if not left:
        return 0.0
    same = [cell for cell in done if cell.task == job.task and cell.seconds > 0]
    same = [cell for cell in same if cell.model == job.model.name] or same
    if not same:
        return None
    epoch = statistics.fmean(cell.seconds / cell.settings.get("epochs", 1) for cell in same)
    return epoch * sum(each.cell.settings.get("epochs", 1) for each in left) / 3600
