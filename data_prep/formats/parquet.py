"""The ``parquet`` and ``bookcorpus`` formats: a column of text whose rows are documents, or sentences.

The column may be a field of a struct, named with dots: ``article_body.plain``. A column whose own name has the dots comes
first.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.cli import UserError
from data_prep.formats.columns import column_of, one_line, values_of
from data_prep.formats.kinds import HEAD, refuse_other_kinds
from data_prep.formats.readers import BLANK, PIECE, Document, Raw

SENTENCES = 1 << 15  # bytes of joined sentences that make a document

_READ = 1 << 20  # bytes of the file read at once
_BATCH = 1 << 21  # bytes of values decoded at once, if all were of average length
_DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)


def split_parquet(path: Path, begin: int = 0, field: str = "text") -> Iterator[tuple[int, Raw]]:
    """Yield (piece, (bytes, repairs)) for every value of a column; for null and values above 16 MiB dropped documents.

    A row group belongs to the piece that holds its first byte. Raises UserError, naming file and row group, if the
    file is damaged, has no such column of text, or is one of Hugging Face's partial conversions.
    """
    for piece, values in _row_groups(path, begin, field):
        yield from ((piece, value if isinstance(value, Document) else (value, {})) for value in values)


def split_sentences(path: Path, begin: int = 0, field: str = "text") -> Iterator[tuple[int, Raw]]:
    """As ``split_parquet``, with a row group's values joined by spaces into documents of 32 KiB or more but the last."""
    for piece, values in _row_groups(path, begin, field):
        yield from ((piece, raw) for raw in _joined(values))


def _joined(sentences: Iterable[bytes | Document]) -> Iterator[Raw]:
    """Join sentences up to SENTENCES bytes; dropped ones are passed through."""
    waiting, size = [], -1
    for sentence in sentences:
        if isinstance(sentence, Document):
            yield sentence
        elif sentence.strip(BLANK):
            waiting.append(sentence)
            size += len(sentence) + 1
        if size >= SENTENCES:
            yield b" ".join(waiting), {}
            waiting, size = [], -1
    if waiting:
        yield b" ".join(waiting), {}


def _row_groups(path: Path, begin: int, field: str) -> Iterator[tuple[int, Iterator[bytes | Document]]]:
    """Yield (piece, values of the column) for every row group from piece ``begin`` on, in the order of the file."""
    file, names = _open(path, field)
    groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
    starts = [_first_byte(group) for group in groups]
    rows = sum(group.num_rows for group in groups)
    if rows != file.metadata.num_rows or not all(0 < start < path.stat().st_size for start in starts):
        raise UserError(
            f"{path}: its footer is damaged (what it says about its row groups is impossible); fetch the file again"
        )
    for start, group in sorted(zip(starts, range(len(groups)), strict=True)):
        if start // PIECE >= begin:
            yield start // PIECE, _values(path, file, group, names)


def _open(path: Path, field: str) -> tuple[pq.ParquetFile, list[str]]:
    """The file, and the names of the column and of the structs around it, outermost first."""
    if partial := next((part for part in path.absolute().parts if part.startswith("partial-")), None):
        raise UserError(
            f"{path}: {partial} is what Hugging Face converts of a data set's first 5 GB, the rest is missing: "
            "fetch the data set's own files"
        )
    _check_head(path)
    try:
        parquet = pq.ParquetFile(path, pre_buffer=False, buffer_size=_READ, page_checksum_verification=True)
        names = column_of(path, parquet.schema_arrow, field)
    except _DAMAGE as error:
        raise UserError(f"{path}: its footer is damaged or cut off ({one_line(error)}); fetch the file again") from None
    return parquet, names


def _check_head(path: Path) -> None:
    """Raise UserError if the file does not begin like parquet."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if head.startswith(b"PAR1"):
        return
    if head.startswith(b"PARE"):
        raise UserError(f"{path}: encrypted parquet, which is not read: decrypt it first")
    refuse_other_kinds(path, head, "parquet")
    raise UserError(
        f"{path}: not parquet data at byte 0 but {head[:4]!r}; text has format text, JSON lines jsonl; unpack packed files"
    )


def _first_byte(group: pq.RowGroupMetaData) -> int:
    """The row group's first byte in the file: its own field for that is often wrong, its column chunks' are not."""
    chunks = [group.column(column) for column in range(group.num_columns)]
    offsets = [offset for chunk in chunks for offset in (chunk.dictionary_page_offset, chunk.data_page_offset)]
    return min(filter(None, offsets), default=0)


def _values(path: Path, file: pq.ParquetFile, group: int, names: list[str]) -> Iterator[bytes | Document]:
    """The values of one row group, read and decoded in batches."""
    rows = file.metadata.row_group(group)
    size = max(1, min(rows.num_rows, _BATCH * rows.num_rows // max(rows.total_byte_size, 1)))
    try:
        for batch in file.iter_batches(size, [group], [".".join(names)], use_threads=False):
            yield from values_of(batch, names)
    except _DAMAGE as error:
        raise UserError(f"{path}: row group {group} is damaged ({one_line(error)}); fetch the file again") from None
