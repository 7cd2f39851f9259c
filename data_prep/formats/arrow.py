"""The ``arrow`` format: a column of text of Arrow's IPC files (Feather) and streams, as ``datasets`` saves them."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from data_prep.cli import UserError
from data_prep.formats.columns import column_of, one_line, values_of
from data_prep.formats.kinds import HEAD, refuse_other_kinds
from data_prep.formats.readers import PIECE, Document, Raw

_FILE, _STREAM = b"ARROW1\0\0", b"\xff\xff\xff\xff"
_BATCH = 1 << 21  # bytes of values taken at once, if all were of average length
_DAMAGE = (pa.ArrowException, OSError)


def split_arrow(path: Path, begin: int = 0, field: str = "text") -> Iterator[tuple[int, Raw]]:
    """Yield (piece, (bytes, repairs)) for every value of a column; for null and values above 16 MiB dropped documents.

    A record batch belongs to the piece that holds its first byte. Raises UserError, naming file and batch, if the file is
    damaged or has no such column of text.
    """
    number = 0
    with pa.memory_map(str(path)) as file:
        file.seek(_begin(path))
        try:
            stream = pa.ipc.open_stream(file)
            names = column_of(path, stream.schema, field)
            while True:
                piece = file.tell() // PIECE
                batch = stream.read_next_batch()
                number += 1
                if piece >= begin:
                    for value in _values(batch, names):
                        yield piece, value if isinstance(value, Document) else (value, {})
        except StopIteration:
            return
        except _DAMAGE as error:
            where = f"record batch {number} is" if number else "its schema or first record batch is"
            raise UserError(f"{path}: {where} damaged or cut off ({one_line(error)}); fetch the file again") from None


def _begin(path: Path) -> int:
    """The byte at which the stream begins: a file is a stream within a frame. Raises UserError if it is neither."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if head.startswith(_FILE):
        return len(_FILE)
    if head.startswith(_STREAM):
        return 0
    if head.startswith(b"FEA1"):
        raise UserError(f"{path}: Feather of version 1, which is not read: write it again by pyarrow.feather")
    if head.startswith(b"PAR1"):
        raise UserError(f"{path}: a parquet file: use format parquet")
    refuse_other_kinds(path, head, "Arrow data")
    raise UserError(
        f"{path}: not Arrow data at byte 0 but {head[:4]!r}; text has format text, JSON lines jsonl; unpack packed files"
    )


def _values(batch: pa.RecordBatch, names: list[str]) -> Iterator[bytes | Document]:
    """The values of one record batch, taken in parts."""
    size = max(1, min(batch.num_rows, _BATCH * batch.num_rows // max(batch.nbytes, 1)))
    for first in range(0, batch.num_rows, size):
        yield from values_of(batch.slice(first, size), names)
