"""Work units: one unit becomes one shard (and one held-out shard).

A unit is a run of pieces of one large input file, or several small files. Units follow from the input files and the unit
size alone, so any number of workers or nodes, and any interruption, gives the same bytes. A unit is finished when its
receipts are there and its arrays are whole.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.cli import UserError, some
from data_prep.counts import Counts
from data_prep.encode import Encoder
from data_prep.files import read_json, sealed
from data_prep.formats.by_name import CLEANUPS, open_format
from data_prep.formats.readers import PIECE, Document, Format
from data_prep.guard import NOTHING, SECONDS, Guard, LeftOut
from data_prep.inputs import InputFile
from data_prep.npy import array_problem
from data_prep.shards import ENDS_DTYPE, VERSION, ShardWriter, receipt_path, shard_folder, token_dtype

_BATCH = 1 << 18  # characters encoded at once
_FILES = 1024  # small files in one unit, at most


@dataclass(frozen=True)
class Part:
    """Pieces [begin, end) of a file; its documents that begin there."""

    file: InputFile
    begin: int
    end: int

    @property
    def span(self) -> tuple[int, int]:
        """The bytes [begin, end) of the file as it lies on disk."""
        return self.begin * PIECE, min(self.end * PIECE, self.file.bytes)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.span[1] - self.span[0]

    def __str__(self) -> str:
        return f"{self.file.path} bytes {self.span[0]} to {self.span[1]}"


@dataclass(frozen=True)
class Unit:
    """One part of a large file, or the whole of several small ones; ``stem`` names its shard.

    ``templates``: a table of the words of templates, for its format.
    """

    source: str
    format: str
    field: str | None
    stem: str
    parts: tuple[Part, ...]
    templates: InputFile | None = None

    def open(self) -> Format:
        """Its format. Raises UserError if the table of templates was written to since it was read."""
        table = self.templates.local() if self.templates else None
        return open_format(self.format, self.field, table)

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(part.size for part in self.parts)

    def __str__(self) -> str:
        return f"{some(self.parts, 1, others='more files')} (shard {self.source}/{self.stem})"


@dataclass(frozen=True)
class Job:
    """Settings common to all units of a corpus. ``tokenizer``: the fingerprint; ``heldout``: share of documents.

    ``cleanups``: by format the version of its clean-up, 1 if not named; ``seconds`` of CPU time may a document take.
    """

    data: Path
    tokenizer_path: Path
    tokenizer: dict[str, Any]
    heldout: float
    cleanups: Mapping[str, int] = field(default_factory=lambda: CLEANUPS)
    seconds: float = SECONDS

    @property
    def sides(self) -> tuple[str, ...]:
        """In the order of writing: a unit is finished with its train receipt."""
        return ("heldout", "train") if self.heldout else ("train",)


def cut(
    source: str,
    form: str,
    field: str | None,
    files: Sequence[InputFile],
    unit_pieces: int,
    templates: InputFile | None = None,
) -> list[Unit]:
    """The units of a source, in the order of its files.

    A file of more than ``unit_pieces`` pieces is cut into runs of that many; smaller ones that follow each other share
    units of at most that size.
    """
    units: list[Unit] = []
    small: list[Part] = []
    first = 0  # number of the first file in ``small``

    def close() -> None:
        if small:
            units.append(Unit(source, form, field, f"{first:05d}-00000", tuple(small), templates))
            small.clear()

    for number, file in enumerate(files):
        pieces = -(-file.bytes // PIECE)
        if pieces > unit_pieces:
            close()
            for index, begin in enumerate(range(0, pieces, unit_pieces)):
                part = Part(file, begin, min(begin + unit_pieces, pieces))
                units.append(Unit(source, form, field, f"{number:05d}-{index:05d}", (part,), templates))
            continue
        if len(small) == _FILES or sum(part.size for part in small) + file.bytes > unit_pieces * PIECE:
            close()
        first = first if small else number
        small.append(Part(file, 0, pieces))
    close()
    return units


class UnitReader:
    """Reads units one after another. The last file stays open: its next unit continues where this one ended.

    A worker's has a ``guard``, which cleans the documents of those formats that need one.
    """

    def __init__(self, guard: Guard | None = None) -> None:
        self._guard = guard
        self._open: FileReader | None = None
        self._before = 0  # bytes of the parts that are done

    @property
    def done(self) -> int:
        """Bytes of the unit's files that have been read."""
        return self._before + (self._open.done if self._open else 0)

    def documents(self, unit: Unit, left_out: LeftOut = NOTHING) -> Iterator[tuple[int, Document]]:
        """Yield (number of the part, cleaned document) for all of a unit. Raises UserError for a fault of its files.

        Those ``left_out`` are dropped without a look at them.
        """
        self._before = 0
        for number, part in enumerate(unit.parts):
            if self._open is None or not self._open.reaches(part):
                self._open = FileReader(unit.open(), part, self._guard)
            yield from ((number, document) for document in self._open.documents(part, number, left_out))
            self._before, self._open.done = self._before + part.size, 0


class FileReader:
    """A file, read from some piece to its end, part after part; what is between the parts is skipped.

    A ``guard`` cleans the documents, if the format needs one.
    """

    def __init__(self, form: Format, part: Part, guard: Guard | None = None):
        self._format, self._file = form, part.file
        self._guard = guard if form.guarded else None
        self._raw = form.split(part.file.local(), part.begin)
        self._next = next(self._raw, None)
        self._at = part.begin  # earlier pieces have been read
        self.done = 0  # bytes of the part

    def reaches(self, part: Part) -> bool:
        """Whether ``part`` is in this file, and not yet read."""
        return self._file == part.file and self._at <= part.begin

    @property
    def reached(self) -> int:
        """The byte at which the piece of the next document begins; the file's size if there is none."""
        return self._file.bytes if self._next is None else self._next[0] * PIECE

    def documents(self, part: Part, number: int = 0, left_out: LeftOut = NOTHING) -> Iterator[Document]:
        """The cleaned documents of a part that is not yet read, the part of that ``number``, but for those ``left_out``."""
        clean, guard, index = self._format.clean, self._guard, 0
        while self._next is not None and self._next[0] < part.end:
            piece, raw = self._next
            self.done = max(0, min(self.reached - part.span[0], part.size))
            if piece >= part.begin:
                if left_out and (reason := left_out.get((number, index))):
                    yield Document(dropped=reason)
                elif guard:
                    yield guard.clean(clean, raw, number, index)
                else:
                    yield clean(raw)
                index += 1
            self._next = next(self._raw, None)
        self._at = part.end


class _Side:
    """The documents of a unit that go to train, or to heldout; written batch by batch."""

    def __init__(self, job: Job, unit: Unit, name: str, encoder: Encoder):
        self._dtype = token_dtype(encoder.vocab_size)
        self._sep = np.array([encoder.special["sep"]], self._dtype)
        self._unk = encoder.special["unk"]
        self._writer = ShardWriter(shard_folder(job.data, unit.source, name), unit.stem, self._dtype)
        self.unknown = 0

    def extend(self, documents: list[np.ndarray]) -> None:
        """Append documents, each its ids [tokens]."""
        if documents:
            tokens = np.concatenate([part for ids in documents for part in (ids, self._sep)])
            self.unknown += int(np.count_nonzero(tokens == self._unk))
            self._writer.extend(tokens, np.cumsum([len(ids) + 1 for ids in documents], dtype=ENDS_DTYPE))

    def finish(self, receipt: dict[str, Any]) -> None:
        self._writer.finish(receipt | {"unknown": self.unknown})

    def discard(self) -> None:
        self._writer.discard()


def prepare_unit(
    job: Job,
    unit: Unit,
    reader: UnitReader,
    encoder: Encoder,
    report: Callable[[int], Any],
    left_out: LeftOut = NOTHING,
) -> None:
    """Read, clean, encode and write one unit, but for documents ``left_out``.

    ``report`` is called with each batch's number of tokens.
    """
    sides = {side: _Side(job, unit, side, encoder) for side in job.sides}
    counts = Counts(len(unit.parts))
    try:
        for texts in _batches(reader.documents(unit, left_out), counts):
            parted: dict[str, list[np.ndarray]] = {side: [] for side in sides}
            for text, ids in zip(texts, encoder.encode_batch(texts), strict=True):
                if len(ids):
                    parted[side_of(text, job.heldout)].append(ids)
                else:
                    counts.dropped["no_tokens"] += 1
            for name, documents in parted.items():
                sides[name].extend(documents)
            report(sum(len(ids) for documents in parted.values() for ids in documents))

        for part in unit.parts:
            part.file.local()  # raises if it was written to in the meantime
        for side in sides.values():
            side.finish(identity(job, unit) | counts.receipt(left_out))
    finally:
        for side in sides.values():
            side.discard()


def side_of(text: str, heldout: float) -> str:
    """ "heldout" or "train", by a keyed hash of the text alone, so that copies of a text never part."""
    digest = hashlib.blake2b(text.encode(), key=b"heldout", digest_size=8).digest()
    return "heldout" if int.from_bytes(digest) < heldout * 2**64 else "train"


def identity(job: Job, unit: Unit) -> dict[str, Any]:
    """The part of a receipt by which its shard is this unit's."""
    version = job.cleanups.get(unit.format, 1)
    cleanup = {} if version == 1 else {"cleanup": version}  # so receipts of the first are what they were
    table = {"templates": unit.templates.sha256} if unit.templates else {}
    return (
        cleanup
        | table
        | {
            "version": VERSION,
            "format": unit.format,
            "field": unit.field,
            "input": [part.file.entry | {"span": list(part.span)} for part in unit.parts],
            "heldout_share": job.heldout,
            "tokenizer": job.tokenizer["sha256"],
        }
    )


def finished(job: Job, unit: Unit) -> dict[str, dict[str, Any]] | None:
    """The receipts of a finished unit by side; None if one is missing or another unit's, or an array is not whole."""
    receipts = {}
    wanted = identity(job, unit)
    for side in job.sides:
        folder = shard_folder(job.data, unit.source, side)
        tokens = folder / f"{unit.stem}.tokens.npy"
        docs = folder / f"{unit.stem}.docs.npy"
        try:
            receipt = read_json(receipt_path(tokens))
        except (FileNotFoundError, UserError):
            return None
        if sealed(receipt) != receipt or not wanted.items() <= receipt.items():
            return None
        if any(wanted.get(key) != receipt.get(key) for key in ("cleanup", "templates")):  # not every identity has them
            return None
        row, dtype = receipt["shard"], token_dtype(job.tokenizer["vocab_size"])
        if array_problem(tokens, dtype, row["tokens"]) or array_problem(docs, ENDS_DTYPE, row["documents"]):
            return None
        receipts[side] = receipt
    return receipts


def _batches(documents: Iterable[tuple[int, Document]], counts: Counts) -> Iterator[list[str]]:
    """The texts in order, in batches of about 2^18 characters; every document is counted."""
    texts, characters = [], 0
    for part, document in documents:
        counts.add(part, document)
        if document.dropped:
            continue
        texts.append(document.text)
        characters += len(document.text)
        if characters >= _BATCH:
            yield texts
            texts, characters = [], 0
    if texts:
        yield texts
