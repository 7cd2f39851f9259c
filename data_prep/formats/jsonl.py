"""The ``jsonl`` format: one JSON object per line, with the text in one of its fields.

A field of an object inside it is named with dots: ``article_body.plain``. A field whose own name has the dots comes first.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_prep.cli import UserError
from data_prep.formats.readers import BLANK, Document, Pieces, decode, mend, only_text, unpack

LONGEST_LINE = 1 << 24  # bytes; a longer line is dropped

_ONE_A_LINE = {  # by the first character of what is not so
    b"[": "write each of the list on a line of its own (jq -c '.[]')",
    b"{": "write each object on a line of its own (jq -c .)",
}
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # json.loads has joined those that make a pair
_MAY_BE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def split_jsonl(path: Path, begin: int = 0, field: str = "text") -> Iterator[tuple[int, bytes | Document]]:
    """Yield (piece, line) for every line that is not blank; for a line above 16 MiB a dropped document.

    Raises UserError if the file is anything but text, or if its first line is not an object with that field.
    """
    pieces = Pieces(unpack(path))
    first = True
    for offset, line in lines_of(only_text(path, pieces, json=True)):
        if line is None:
            yield pieces.piece_of(offset), Document(dropped="line_over_16_mib")
        elif line.strip(BLANK):
            if first:
                _check_first_line(path, line, field)
            yield pieces.piece_of(offset), line
        else:
            continue
        first = False


def clean_line(raw: bytes | Document, field: str = "text") -> Document:
    """The mended text of the line's field, or why it was dropped: not_json, no_field, not_text or empty."""
    if isinstance(raw, Document):
        return raw
    line, invalid = decode(raw)
    try:
        record = _parse(line)
    except (ValueError, RecursionError):
        return Document(dropped="not_json")
    try:
        text = _value(record, field)
    except KeyError:
        return Document(dropped="no_field")
    if not isinstance(text, str):
        return Document(dropped="not_text")
    repairs = {"invalid_utf8": invalid} if invalid else {}
    if _MAY_BE_SURROGATE.search(line):
        text, lone = _LONE_SURROGATE.subn("\ufffd", text)
        repairs |= {"lone_surrogate": lone} if lone else {}
    return mend(text, repairs)


def _parse(line: str) -> object:
    return json.loads(line.removeprefix("\ufeff"))


def _check_first_line(path: Path, line: bytes, field: str) -> None:
    """Raise UserError for a wrong file or a mistyped field, which would otherwise drop every line."""
    try:
        record = _parse(decode(line)[0])
    except (ValueError, RecursionError) as error:
        way_out = _ONE_A_LINE.get(line.strip(BLANK + b"\xef\xbb\xbf")[:1], "is it format text?")
        raise UserError(
            f"{path}: line 1 is not JSON ({error}); format jsonl reads one object a line: {way_out}"
        ) from None
    if not isinstance(record, dict):
        kind = type(record).__name__
        way_out = f": {_ONE_A_LINE[b'[']}" if kind == "list" else ""
        raise UserError(f"{path}: line 1 is a JSON {kind}, but format jsonl reads one object a line{way_out}")
    try:
        _value(record, field)
    except KeyError:
        fields = ", ".join(map(repr, _names(record, field.count(".")))) or "none"
        raise UserError(f"{path}: line 1 has no field {field!r}; it has {fields}") from None


def _value(record: object, field: str) -> object:
    """The value of a field, or of one inside objects, longest names first; null inside of null. Raises KeyError."""
    if not isinstance(record, dict):
        raise KeyError(field)
    if field in record:
        return record[field]
    end = field.rfind(".")
    while end > 0:
        inner = record.get(field[:end])
        if inner is None and field[:end] in record:
            return None
        try:
            return _value(inner, field[end + 1 :])
        except KeyError:
            end = field.rfind(".", 0, end)
    raise KeyError(field)


def _names(record: dict[str, object], depth: int) -> Iterator[str]:
    """The names of an object's fields, and to that depth those of the objects inside it."""
    for name, value in record.items():
        if depth and isinstance(value, dict) and value:
            yield from (f"{name}.{inner}" for inner in _names(value, depth - 1))
        else:
            yield name


def lines_of(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Yield (offset, line), with None in place of a line above LONGEST_LINE, which is never held."""
    begun: list[bytes] = []  # the parts of the current line
    size = offset = 0  # its bytes so far, and where it begins
    for block in blocks:
        *ends, rest = block.split(b"\n")
        for end in ends:
            size += len(end)
            yield offset, b"".join([*begun, end]) if size <= LONGEST_LINE else None
            offset += size + 1
            begun, size = [], 0
        size += len(rest)
        begun = [*begun, rest] if size <= LONGEST_LINE else []
    if size:
        yield offset, b"".join(begun) if size <= LONGEST_LINE else None
