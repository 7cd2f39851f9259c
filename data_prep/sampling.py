"""A small measured sample of each source: the start of a few of its files."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

from data_prep.children import Child, start
from data_prep.cli import UserError
from data_prep.deaths import Deaths
from data_prep.description import ResolvedSource
from data_prep.encode import Encoder, load_encoder
from data_prep.formats.by_name import open_format
from data_prep.guard import NOTHING, SECONDS, Guard, LeftOut, Place
from data_prep.plan import Plan
from data_prep.processes import die_with_parent
from data_prep.units import FileReader, Part, Unit

_FILES = 4  # sampled from each source, evenly spaced
_PIECES = 16  # sampled from each of these, from its start


@dataclass(frozen=True)
class Sample:
    """Counts over the starts of a few files of a source: ``bytes`` were read, in ``seconds``, by one process."""

    bytes: int
    tokens: int
    documents: int
    seconds: float


def check_start(source: ResolvedSource) -> None:
    """Raise UserError if the first file of a source that is not empty does not have its format."""
    if file := next((file for file in source.files if file.bytes), None):
        FileReader(open_format(source.format, source.field), Part(file, 0, 1))


def measure_all(plan: Plan, encoder: Encoder, say: Callable[[str], object]) -> dict[str, Sample]:
    """Measure a sample of each source: the start of up to four files, 1 MiB on disk of each."""
    say(f"measuring the start of {len(plan.sources)} source{'s' * (len(plan.sources) > 1)}")
    apart = _Apart(plan.tokenizer_path, say)
    samples = {}
    try:
        for name, source in plan.sources.items():
            guarded = open_format(source.format, source.field).guarded
            samples[name] = apart.measure(source) if guarded else measure(source, encoder)
    finally:
        apart.end()
    return samples


def _sample_of(source: ResolvedSource) -> Unit:
    """What is measured of a source."""
    count = min(len(source.files), _FILES)
    files = [source.files[number * len(source.files) // count] for number in range(count)]
    parts = tuple(Part(file, 0, _PIECES) for file in files)
    return Unit(source.name, source.format, source.field, "sample", parts, source.templates)


def measure(
    source: ResolvedSource, encoder: Encoder, guard: Guard | None = None, left_out: LeftOut = NOTHING
) -> Sample:
    """Read, clean and encode a sample of a source, but for documents ``left_out``."""
    started, unit = time.perf_counter(), _sample_of(source)
    size = tokens = documents = 0
    for number, part in enumerate(unit.parts):
        reader = FileReader(unit.open(), part, guard)
        texts = (document.text for document in reader.documents(part, number, left_out) if not document.dropped)
        while batch := encoder.encode_batch(list(islice(texts, 256))):
            tokens += sum(len(ids) + 1 for ids in batch)
            documents += len(batch)
        size += reader.reached  # of a parquet file far more than those pieces: a row group belongs to one
    return Sample(size, tokens, documents, time.perf_counter() - started)


class _Apart:
    """Measures sources whose documents might end the process: in another one, which is started anew when it dies."""

    def __init__(self, tokenizer: Path, say: Callable[[str], object]):
        self._tokenizer, self._say = tokenizer, say
        self._deaths = Deaths(SECONDS)
        self._child: Child | None = None

    def measure(self, source: ResolvedSource) -> Sample:
        """Measure a source, without the documents that end the process. Raises UserError for a fault of its files."""
        unit = _sample_of(source)
        while True:
            child = self._child or start(_serve, (self._tokenizer,), self._keep)
            try:
                child.connection.send((source, self._deaths.left_out(unit)))
                answer = child.connection.recv()
            except (EOFError, OSError):
                self._child = None
                again, line = self._deaths.judge(unit, child.death())
                self._say(line)
                if not again:
                    raise UserError(f"a process died twice on {unit}; is there 1 GB of memory for it?") from None
                continue
            if isinstance(answer, UserError):
                raise answer
            sample: Sample = answer
            return sample

    def end(self) -> None:
        """End the process, if there is one."""
        if self._child:
            self._child.kill()

    def _keep(self, child: Child) -> None:
        self._child = child


def _serve(connection: Connection, parent: int, place: Place, tokenizer: Path) -> None:
    """Receive sources, with the documents to leave out of them; send what was measured, or the fault."""
    die_with_parent(parent)
    guard, encoder = Guard(place, SECONDS), load_encoder(tokenizer)
    with suppress(EOFError, BrokenPipeError):  # the parent has died
        while True:
            source, left_out = connection.recv()
            try:
                connection.send(measure(source, encoder, guard, left_out))
            except UserError as fault:
                connection.send(fault)
