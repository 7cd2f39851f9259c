"""``status``: the progress of a corpus, from its files alone, so from any terminal or node that sees the folder."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.cli import UserError
from data_prep.forecast import amount, duration
from data_prep.locks import holders, node_of
from data_prep.plan import read_plan
from data_prep.shards import PLAN, open_corpus, shard_folder
from data_prep.units import Job, Unit, finished

_RECENT = 600.0  # seconds over which the speed is measured


@dataclass
class _Progress:
    """Sums over units."""

    units: int = 0
    done: int = 0
    bytes: int = 0
    done_bytes: int = 0
    documents: int = 0
    tokens: int = 0


def status_lines(data: Path) -> Iterator[str]:
    """Yield units, bytes and tokens by source, who is at work, the speed of the last ten minutes and the time left.

    Raises UserError if no corpus was begun at ``data``.
    """
    plan = read_plan(data)
    if plan is None:
        if data.is_dir() and (names := _names(holders(data))) != "nobody":
            yield f"{data}: {names} has begun, and is looking at the files; no plan is written yet"
            return
        begin = f"`python -m data_prep prepare --out {data} ...` begins one"
        raise UserError(f"{data}: no {PLAN}, so no corpus was begun here; {begin}")

    at_work, now = holders(data), time.time()
    since = max(now - _RECENT, min((begun for _, _, begun in at_work), default=now))
    job = plan.job(data)
    total, recent = _Progress(), 0
    sources: dict[str, _Progress] = {}
    for unit in plan.all_units():
        receipt = _receipt(job, unit)
        for progress in (sources.setdefault(unit.source, _Progress()), total):
            _count(progress, unit, receipt)
        if receipt and receipt["written"] > since:
            recent += unit.size

    yield f"{data}: {_words(total)}"
    yield from (f"  {name:16} {_words(progress)}" for name, progress in sources.items())
    yield f"at work: {_names(at_work)}"
    if total.done == total.units and not at_work:
        yield _verdict(data)
    elif recent:
        speed = recent / (now - since)
        left = duration((total.bytes - total.done_bytes) / speed)
        yield f"speed: {amount(speed, 'B')}/s of input over the last {duration(now - since)}; about {left} left at this speed"
    elif at_work:
        yield f"no unit was finished in the last {duration(now - since)}"


def _verdict(data: Path) -> str:
    """The line for a corpus whose units are all done."""
    try:
        return f"complete, id {open_corpus(data).id[:12]}"
    except UserError:
        return f"all units are done; `python -m data_prep prepare --out {data}` completes the corpus"


def _receipt(job: Job, unit: Unit) -> dict[str, Any] | None:
    """Documents, tokens and time of a finished unit; `verify`, not this, checks its bytes."""
    if not (receipts := finished(job, unit)):
        return None
    train = shard_folder(job.data, unit.source, "train") / f"{unit.stem}.json"
    return {
        "written": train.stat().st_mtime,
        "documents": sum(receipt["shard"]["documents"] for receipt in receipts.values()),
        "tokens": sum(receipt["shard"]["tokens"] for receipt in receipts.values()),
    }


def _count(progress: _Progress, unit: Unit, receipt: dict[str, Any] | None) -> None:
    progress.units += 1
    progress.bytes += unit.size
    if receipt:
        progress.done += 1
        progress.done_bytes += unit.size
        progress.documents += receipt["documents"]
        progress.tokens += receipt["tokens"]


def _words(progress: _Progress) -> str:
    share = progress.done_bytes / max(progress.bytes, 1)
    return (
        f"{progress.done:,} of {progress.units:,} units, {amount(progress.done_bytes, 'B')} of {amount(progress.bytes, 'B')} "
        f"({share:.1%}), {progress.documents:,} documents, {amount(progress.tokens)} tokens"
    )


def _names(at_work: list[tuple[str, str, float]]) -> str:
    nodes = [f"node {node} ({holder})" for name, holder, _ in at_work if (node := node_of(name))]
    return ", ".join(nodes or [holder for _, holder, _ in at_work]) or "nobody"
