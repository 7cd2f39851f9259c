"""The ``csv`` format: rows of values below a header, one column of which holds the text.

What separates the names of the header (a comma, a tab, a semicolon or a bar) separates the values. A value in double quotes
may hold separators, line ends, and quotes that are written twice. Between tabs, where few programs write quotes, a row is a
line, and only a value that both begins and ends with one is in quotes.
"""

import csv
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data_prep.cli import UserError
from data_prep.formats.jsonl import lines_of
from data_prep.formats.readers import Document, Pieces, Raw, only_text, unpack

SEPARATORS = (",", "\t", ";", "|")
LONGEST_ROW = 1 << 24  # bytes; in a longer one a quote is not closed

_BYTES = "latin-1"  # UTF-8 as bytes, a character each: what has a meaning in a row is ASCII
csv.field_size_limit(LONGEST_ROW)


def split_csv(path: Path, begin: int = 0, field: str = "text") -> Iterator[tuple[int, Raw]]:
    """Yield (piece, (bytes, repairs)) for the column's value of every row; for what is no row of the header a dropped document.

    Raises UserError if the file is anything but text, has no such column, or if its first row is none of its header.
    """
    pieces = Pieces(unpack(path))
    for offset, row in read_rows(path, pieces, [field]):
        yield pieces.piece_of(offset), row if isinstance(row, Document) else (row[0], {})


def read_rows(
    path: Path, blocks: Iterable[bytes], columns: Sequence[str]
) -> Iterator[tuple[int, list[bytes] | Document]]:
    """Yield (offset, the values of ``columns``) of every row; for what is no row of the header a dropped document.

    ``blocks``: the bytes of the file. Raises UserError as ``split_csv`` does.
    """
    lines = _Lines(lines_of(only_text(path, blocks, json=True)))
    header = next((line for line in lines if line.strip()), "")
    separator, names = _header(path, header, columns)
    places, first = [names.index(column) for column in columns], True
    for offset, row in _rows(lines, separator):
        if isinstance(row, Document):
            yield offset, row
        elif len(row) != len(names):
            if first:
                raise UserError(
                    f"{path}: the header has {len(names)} columns, the first row {len(row)}; a value with a "
                    f"{_NAMES[separator]} in it must be in double quotes"
                )
            yield offset, Document(dropped="other_columns")
        else:
            yield offset, [_value(row[place], separator).encode(_BYTES) for place in places]
        first = False


_NAMES = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}


class _Lines:
    """The lines of a file, for csv's reader, each with its end; ``taken`` are those of the current row, with their offsets."""

    def __init__(self, lines: Iterable[tuple[int, bytes | None]]):
        self._lines = iter(lines)
        self._again: deque[tuple[int, bytes | None]] = deque()
        self._size = 0
        self.taken: list[tuple[int, bytes | None]] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        offset, line = self._again.popleft() if self._again else next(self._lines)
        self.taken.append((offset, line))
        self._size += LONGEST_ROW if line is None else len(line) + 1
        if line is None or self._size > LONGEST_ROW:
            raise csv.Error("too long")
        return line.decode(_BYTES) + "\n"

    def next_row(self) -> None:
        self.taken, self._size = [], 0

    def give_up(self) -> None:
        """The current row is none: its first line is left out, the others are read again."""
        self._again.extendleft(reversed(self.taken[1:]))


def _header(path: Path, line: str, columns: Sequence[str]) -> tuple[str, list[str]]:
    """The separator and the names of the columns. Raises UserError unless all ``columns`` are among them, once."""
    line = line.encode(_BYTES).decode(errors="replace").removeprefix("\ufeff")
    if "\r" in line.rstrip("\r\n"):
        raise UserError(f"{path}: its lines end with a lone CR; convert them first (tr '\\r' '\\n')")
    found = {separator: next(csv.reader([line], delimiter=separator), []) for separator in SEPARATORS}
    separator = max(SEPARATORS, key=lambda each: (len({*columns} & {*found[each]}), len(found[each])))
    names = found[separator]
    for column in columns:
        if names.count(column) > 1:
            raise UserError(f"{path}: {names.count(column)} columns are named {column!r}; rename or drop all but one")
        if column not in names:
            raise UserError(f"{path}: no column {column!r}; its header has {', '.join(map(repr, names)) or 'none'}")
    return separator, names


def _rows(lines: _Lines, separator: str) -> Iterator[tuple[int, list[str] | Document]]:
    """Yield (offset, values) of every row that is not blank; in the place of what cannot be read a dropped document."""

    def reader() -> Iterator[list[str]]:
        if separator == "\t":
            return csv.reader(lines, strict=True, delimiter=separator, quoting=csv.QUOTE_NONE)
        return csv.reader(lines, strict=True, delimiter=separator)

    rows = reader()
    while True:
        lines.next_row()
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:  # a quote that is not closed, or stands where none can
            yield lines.taken[0][0], Document(dropped="not_csv")
            lines.give_up()
            rows = reader()
            continue
        if row:
            yield lines.taken[0][0], row


def _value(value: str, separator: str) -> str:
    quoted = separator == "\t" and len(value) > 1 and value.startswith('"') and value.endswith('"')
    return value[1:-1].replace('""', '"') if quoted else value
