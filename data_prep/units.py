"""Work units: one unit is a run of pieces of one input file, and becomes one shard (and one held-out shard).

Units follow from the input files and the unit size alone, so any number of workers, and any interruption, gives the
same bytes. A unit is finished when its receipts are there and its arrays are whole.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.encode import Encoder
from data_prep.errors import UserError
from data_prep.readers import PIECE, TEXT, Document, Format
from data_prep.shards import (
    ENDS_DTYPE,
    VERSION,
    array_problem,
    read_json,
    receipt_path,
    shard_folder,
    token_dtype,
    write_shard,
)
from data_prep.wikipedia import WIKIPEDIA

FORMATS: dict[str, Format] = {"text": TEXT, "wikipedia": WIKIPEDIA}

_BATCH = 1 << 18  # characters encoded at once
_SAMPLES, _SAMPLE = 64, 1 << 20  # a file above 64 MiB is known by its size and 64 blocks of 1 MiB


@dataclass(frozen=True)
class Unit:
    """Pieces [index * unit_pieces, (index + 1) * unit_pieces) of a file; ``number`` is that of its shard."""

    source: str
    format: str
    path: Path
    file: dict  # name, bytes, sha256
    index: int
    unit_pieces: int
    number: int

    @property
    def span(self) -> tuple[int, int]:
        """The bytes [begin, end) of the file as it lies on disk."""
        begin = self.index * self.unit_pieces * PIECE
        return begin, min(begin + self.unit_pieces * PIECE, self.file["bytes"])

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.span[1] - self.span[0]

    def __str__(self) -> str:
        return f"{self.path} bytes {self.span[0]} to {self.span[1]} (shard {self.source}/{self.number:05d})"


@dataclass(frozen=True)
class Job:
    """What all units of one corpus have in common. ``tokenizer``: the fingerprint; ``heldout``: share of documents."""

    data: Path
    tokenizer_path: Path
    tokenizer: dict
    heldout: float

    @property
    def sides(self) -> tuple[str, ...]:
        """In the order of writing: a unit is finished with its train receipt."""
        return ("heldout", "train") if self.heldout else ("train",)


class UnitReader:
    """One file, read from start to end, unit after unit; what lies between the units asked for is skipped."""

    def __init__(self, unit: Unit):
        self._format = FORMATS[unit.format]
        self._unit_pieces = unit.unit_pieces
        self._raw = self._format.split(unit.path)
        self._next = next(self._raw, None)
        self.path = unit.path
        self.piece = 0  # where reading stands
        self.index = -1  # the last unit that was asked for

    def documents(self, index: int) -> Iterator[Document]:
        """The cleaned documents that begin in unit ``index``, which must be above the last one asked for."""
        self.index = index
        while self._next is not None and self._next[0] // self._unit_pieces <= index:
            (self.piece, raw), self._next = self._next, next(self._raw, None)
            if self.piece // self._unit_pieces == index:
                yield self._format.clean(raw)


class _Side:
    """The documents of one unit that go to train, or to heldout."""

    def __init__(self, encoder: Encoder):
        self._dtype = token_dtype(encoder.vocab_size)
        self._special = encoder.special
        self._documents: list[np.ndarray] = []
        self.unknown = 0

    def add(self, ids: list[int]) -> None:
        self.unknown += ids.count(self._special["unk"])
        self._documents.append(np.array([*ids, self._special["sep"]], self._dtype))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [tokens] and document ends [documents]."""
        tokens = np.concatenate([np.empty(0, self._dtype), *self._documents])
        return tokens, np.cumsum([len(document) for document in self._documents], dtype=ENDS_DTYPE)


def prepare_unit(job: Job, unit: Unit, reader: UnitReader, encoder: Encoder, report: Callable[[int], Any]) -> None:
    """Read, clean, encode and write one unit. ``report`` is called with each batch's number of tokens."""
    sides = {side: _Side(encoder) for side in job.sides}
    counts = {"read": 0, "dropped": Counter(), "repairs": Counter()}
    for texts in _batches(reader.documents(unit.index), counts):
        batch = encoder.encode_batch(texts)
        for text, ids in zip(texts, batch, strict=True):
            if ids:
                sides[side_of(text, job.heldout)].add(ids)
            else:
                counts["dropped"]["no_tokens"] += 1
        report(sum(map(len, batch)))
    for name, side in sides.items():
        receipt = identity(job, unit) | counts | {"unknown": side.unknown}
        write_shard(shard_folder(job.data, unit.source, name), unit.number, *side.arrays(), receipt)


def side_of(text: str, heldout: float) -> str:
    """ "heldout" or "train", by a keyed hash of the text alone, so that copies of a text never part."""
    digest = hashlib.blake2b(text.encode(), key=b"heldout", digest_size=8).digest()
    return "heldout" if int.from_bytes(digest) < heldout * 2**64 else "train"


def identity(job: Job, unit: Unit) -> dict:
    """What a receipt must say for its shard to be this unit's."""
    return {
        "version": VERSION,
        "input": unit.file | {"format": unit.format, "span": list(unit.span)},
        "heldout_share": job.heldout,
        "tokenizer": job.tokenizer["sha256"],
    }


def finished(job: Job, unit: Unit) -> dict[str, dict] | None:
    """The receipts of a finished unit by side; None if one is missing, another's, or an array is not whole."""
    receipts = {}
    wanted = identity(job, unit)
    for side in job.sides:
        folder = shard_folder(job.data, unit.source, side)
        tokens = folder / f"{unit.number:05d}.tokens.npy"
        docs = folder / f"{unit.number:05d}.docs.npy"
        try:
            receipt = read_json(receipt_path(tokens))
        except (FileNotFoundError, UserError):
            return None
        if "shard" not in receipt or any(receipt.get(key) != value for key, value in wanted.items()):
            return None
        row, dtype = receipt["shard"], token_dtype(job.tokenizer["vocab_size"])
        if array_problem(tokens, dtype, row["tokens"]) or array_problem(docs, ENDS_DTYPE, row["documents"]):
            return None
        receipts[side] = receipt
    return receipts


def describe_file(path: Path) -> dict:
    """Name, bytes and sha256 of an input file; above 64 MiB the hash is over 64 evenly spaced blocks of 1 MiB.

    Raises UserError if the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size <= _SAMPLES * _SAMPLE:
                digest.update(file.read())
            else:
                for step in range(_SAMPLES):
                    file.seek((size - _SAMPLE) * step // (_SAMPLES - 1))
                    digest.update(file.read(_SAMPLE))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return {"name": path.name, "bytes": size, "sha256": digest.hexdigest()}


def _batches(documents: Iterable[Document], counts: dict) -> Iterator[list[str]]:
    """Texts in order, in batches of about 2^18 characters; counts what is read, dropped and repaired on the way."""
    texts, characters = [], 0
    for document in documents:
        counts["read"] += 1
        counts["repairs"].update(document.repairs)
        if document.dropped:
            counts["dropped"][document.dropped] += 1
            continue
        texts.append(document.text)
        characters += len(document.text)
        if characters >= _BATCH:
            yield texts
            texts, characters = [], 0
    if texts:
        yield texts
