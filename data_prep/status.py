"""``status``: how far a corpus is, from its files alone, so from any terminal or node that sees the folder."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import UserError
from data_prep.forecast import amount, duration
from data_prep.locks import holders
from data_prep.plan import Plan, read_plan
from data_prep.shards import MANIFEST, PLAN, read_json, shard_folder
from data_prep.units import Unit

_RECENT = 600.0  # seconds over which the present speed is taken


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
    """Units, bytes and tokens by source, who is at work, the speed of the last ten minutes and the time left.

    Raises UserError if no corpus was begun at ``data``.
    """
    plan = read_plan(data)
    if plan is None:
        raise UserError(
            f"{data}: no {PLAN}, so no corpus was begun here; `python -m data_prep prepare --out {data} ...` begins one"
        )
    now = time.time()
    total, sources, recent = _Progress(), {}, []
    for unit in plan.all_units():
        mine = sources.setdefault(unit.source, _Progress())
        receipt = _receipt(data, plan, unit)
        for progress in (mine, total):
            _count(progress, unit, receipt)
        if receipt and (age := now - receipt["written"]) < _RECENT:
            recent.append((age, unit.size))
    yield f"{data}: {_words(total)}"
    yield from (f"  {name:16} {_words(progress)}" for name, progress in sources.items())
    yield f"at work: {_at_work(data)}"
    if (data / MANIFEST).exists() and total.done == total.units:
        yield "complete"
    elif recent:
        # The first of these units was begun before it was finished: the time they took is not known better than this.
        seconds = max(min(max(age for age, _ in recent), _RECENT), 1.0)
        speed = sum(size for _, size in recent) / seconds
        left = duration((total.bytes - total.done_bytes) / speed)
        yield f"speed: {amount(speed, 'B')}/s of input over the last {duration(seconds)}; about {left} left at that"
    elif total.done < total.units:
        yield f"no unit was finished in the last {duration(_RECENT)}"


def _receipt(data: Path, plan: Plan, unit: Unit) -> dict | None:
    """Documents, tokens and time of a unit that has its last receipt; whether its arrays are whole is for `verify`."""
    path = shard_folder(data, unit.source, "train") / f"{unit.stem}.json"
    try:
        shards = [read_json(path)["shard"]]
        if plan.heldout:
            shards.append(read_json(shard_folder(data, unit.source, "heldout") / path.name)["shard"])
        return {
            "written": path.stat().st_mtime,
            "documents": sum(shard["documents"] for shard in shards),
            "tokens": sum(shard["tokens"] for shard in shards),
        }
    except (FileNotFoundError, KeyError, UserError):
        return None


def _count(progress: _Progress, unit: Unit, receipt: dict | None) -> None:
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


def _at_work(data: Path) -> str:
    held = holders(data)
    nodes = [
        f"node {name.removeprefix('.lock-').replace('-of-', '/')} ({holder})"
        for name, holder in held
        if name != ".lock"
    ]
    return ", ".join(nodes or [holder for _, holder in held]) or "nobody"
