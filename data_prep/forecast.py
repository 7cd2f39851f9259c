"""What a corpus will come to, from a small measured sample: tokens, shares, epochs, disk and time; units under a budget."""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from data_prep.description import ResolvedSource
from data_prep.encode import Encoder
from data_prep.formats import open_format
from data_prep.inputs import InputFile
from data_prep.plan import Plan, shares_of
from data_prep.shards import ENDS_DTYPE, token_dtype
from data_prep.units import FileReader, Part, Unit

_FILES = 4  # sampled of each source, evenly spaced
_PIECES = 16  # sampled of each of these, from its start
_MARGIN = 1.03  # prepared above what the sample says is needed


@dataclass(frozen=True)
class Sample:
    """The starts of a few files of a source: ``bytes`` of them were read, in ``seconds`` by one process."""

    bytes: int
    tokens: int
    documents: int
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """One source. ``tokens`` in the whole of it for training, its ``share`` of what a run reads, tokens ``read`` of it under
    the budget; the first ``units`` of ``cut`` are to be prepared: ``bytes`` of files, ``prepared`` tokens for training,
    ``disk`` bytes of shards, ``seconds`` of one process."""

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


def measure(source: ResolvedSource, encoder: Encoder) -> Sample:
    """Read, clean and encode the start of up to four files of a source, 1 MiB on disk of each."""
    started = time.perf_counter()
    size = tokens = documents = 0
    for number in range(count := min(len(source.files), _FILES)):
        reader, texts = _start(source, source.files[number * len(source.files) // count])
        while batch := encoder.encode_batch(list(islice(texts, 256))):
            tokens += sum(len(ids) + 1 for ids in batch)
            documents += len(batch)
        size += reader.reached  # of a parquet file far more than those pieces: a row group belongs to one
    return Sample(size, tokens, documents, time.perf_counter() - started)


def _start(source: ResolvedSource, file: InputFile) -> tuple[FileReader, Iterator[str]]:
    """A reader of a file, and the documents that begin in its first pieces."""
    start = Part(file, 0, _PIECES)
    reader = FileReader(open_format(source.format, source.field), start)
    return reader, (document.text for document in reader.documents(start) if not document.dropped)


def check_start(source: ResolvedSource) -> None:
    """Raises UserError if the first file of a source that is not empty is none of its format."""
    if file := next((file for file in source.files if file.bytes), None):
        next(_start(source, file)[1], None)


def measure_all(plan: Plan, encoder: Encoder, say: Callable[[str], object]) -> dict[str, Sample]:
    """A sample of each source."""
    say(f"measuring the start of {len(plan.sources)} source{'s' * (len(plan.sources) > 1)}")
    return {name: measure(source, encoder) for name, source in plan.sources.items()}


def forecast(plan: Plan, samples: dict[str, Sample], alpha: float) -> list[Forecast]:
    """What each source of a plan comes to, in order. A run reads source l in proportion to tokens_l ** ``alpha``."""
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
        read = plan.budget and shares[name] * plan.budget.tokens
        count = len(units) if read is None else _enough(units, read * source.bytes / max(tokens[name], 1))
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
    """How many of the first units hold ``size`` bytes of files, with a margin; at least one, at most all."""
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


def table(entries: list[Forecast], workers: int) -> Iterator[str]:
    """The plan as a table for people."""
    yield (
        f"{'source':16} {'files':>6} {'size':>9} {'tokens':>9} {'share':>7} {'to read':>9} {'epochs':>7} "
        f"{'units':>13} {'disk':>9} {'time':>8}"
    )
    for entry in entries:
        yield _row(entry.source.name, len(entry.source.files), [entry], workers)
    if len(entries) > 1:
        yield _row("all", sum(len(entry.source.files) for entry in entries), entries, workers)


def _row(name: str, files: int, entries: list[Forecast], workers: int) -> str:
    def total(key: str) -> float:
        return sum(getattr(entry, key) for entry in entries)

    budgeted = entries[0].read is not None
    read = amount(total("read")) if budgeted else "-"
    epochs = f"{total('read') / max(total('tokens'), 1):.2f}" if budgeted else "-"
    size = sum(entry.source.bytes for entry in entries)
    units = f"{total('units'):,} of {total('cut'):,}"
    return (
        f"{name:16} {files:6,} {amount(size, 'B'):>9} {amount(total('tokens')):>9} {total('share'):7.2%} {read:>9} "
        f"{epochs:>7} {units:>13} {amount(total('disk'), 'B'):>9} {duration(total('seconds') / workers):>8}"
    )


def free_bytes(folder: Path) -> int:
    """Free space where ``folder`` is, or will be made."""
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
    """Seconds in the unit that a person would take."""
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} s"
