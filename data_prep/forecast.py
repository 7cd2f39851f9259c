"""Forecast of a corpus from a small measured sample: tokens, shares, epochs, disk and time; units under a budget."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.cli import aligned
from data_prep.description import ResolvedSource
from data_prep.encode import Encoder
from data_prep.plan import Plan, shares_of
from data_prep.sampling import Sample, measure_all
from data_prep.shards import ENDS_DTYPE, token_dtype
from data_prep.units import Unit

_MARGIN = 1.03  # tokens to prepare for each that is needed, as the sample is not exact


@dataclass(frozen=True)
class Forecast:
    """The forecast of one source.

    ``tokens`` in the whole of it for training, its ``share`` of what a run reads, tokens ``read`` of it under the budget.
    The first ``units`` of ``cut`` are to be prepared: ``bytes`` of files, ``prepared`` tokens for training, ``disk`` bytes
    of shards, ``seconds`` of one process.
    """

    source: ResolvedSource
    tokens: float
    share: float
    read: float | None
    units: int
    cut: int
    bytes: int
    prepared: float
    disk: float
    seconds: float


def forecast(plan: Plan, samples: dict[str, Sample], alpha: float) -> list[Forecast]:
    """The forecast of each source of a plan, in order. A run reads source l in proportion to tokens_l ** ``alpha``."""
    train = 1 - plan.heldout
    tokens = {
        name: source.bytes * samples[name].tokens / max(samples[name].bytes, 1) * train
        for name, source in plan.sources.items()
    }
    shares = shares_of(tokens, alpha)
    itemsize = token_dtype(plan.tokenizer["vocab_size"]).itemsize

    found = []
    for name, source in plan.sources.items():
        sample, units = samples[name], plan.cut(source)
        read, count = None, len(units)
        if plan.budget:
            read = shares[name] * plan.budget.tokens
            count = _enough(units, read * source.bytes / max(tokens[name], 1))
        size = sum(unit.size for unit in units[:count])
        times = size / max(sample.bytes, 1)
        disk = times * (sample.tokens * itemsize + sample.documents * ENDS_DTYPE.itemsize)
        found.append(
            Forecast(
                source=source,
                tokens=tokens[name],
                share=shares[name],
                read=read,
                units=count,
                cut=len(units),
                bytes=size,
                prepared=times * sample.tokens * train,
                disk=disk,
                seconds=times * sample.seconds,
            )
        )
    return found


def _enough(units: list[Unit], size: float) -> int:
    """The number of first units that hold ``size`` bytes of files, with a margin; at least one, at most all."""
    total = 0.0
    for count, unit in enumerate(units, 1):
        total += unit.size
        if total >= size * _MARGIN:
            return count
    return len(units)


def with_units(plan: Plan, encoder: Encoder, say: Callable[[str], object], at_least: dict[str, int]) -> Plan:
    """The plan with its units: all, or under a budget those that a run will read; never fewer than ``at_least``."""
    if plan.budget is None:
        return replace(plan, units={name: len(plan.cut(source)) for name, source in plan.sources.items()})
    entries = forecast(plan, measure_all(plan, encoder, say), plan.budget.alpha)
    units = {
        entry.source.name: min(max(entry.units, at_least.get(entry.source.name, 0)), entry.cut) for entry in entries
    }
    return replace(plan, units=units)


def table(entries: list[Forecast], workers: int) -> list[str]:
    """The forecast as a table for people."""
    rows = [["source", "files", "size", "tokens", "share", "to read", "epochs", "units", "disk", "time"]]
    rows += [_row(entry.source.name, [entry], workers) for entry in entries]
    if len(entries) > 1:
        rows.append(_row("all", entries, workers))
    return aligned(rows)


def _row(name: str, entries: list[Forecast], workers: int) -> list[str]:
    def total(key: str) -> float:
        numbers: list[float] = [getattr(entry, key) for entry in entries]
        return sum(numbers)

    files, size = sum(len(entry.source.files) for entry in entries), sum(entry.source.bytes for entry in entries)
    read = epochs = "-"
    if entries[0].read is not None:
        read, epochs = amount(total("read")), f"{total('read') / max(total('tokens'), 1):.2f}"
    return [
        name,
        f"{files:,}",
        amount(size, "B"),
        amount(total("tokens")),
        f"{total('share'):.2%}",
        read,
        epochs,
        f"{total('units'):,} of {total('cut'):,}",
        amount(total("disk"), "B"),
        duration(total("seconds") / workers),
    ]


def free_bytes(folder: Path) -> int:
    """The free space where ``folder`` is, or will be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def amount(number: float, unit: str = "") -> str:
    """1234567 -> "1.23 M"."""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 0.99999 * 10**power:
            return f"{number / 10**power:.2f} {prefix}{unit}"
    return f"{number:.0f} {unit}".rstrip()


def duration(seconds: float) -> str:
    """Seconds in the unit that people would use."""
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} s"
