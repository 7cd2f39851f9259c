"""Columns of Arrow's tables: the one that holds the text, and its values.

The column may be a field of a struct, named with dots: ``article_body.plain``. A column whose own name has the dots comes
first.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.cli import UserError
from data_prep.formats.readers import Document

LONGEST_VALUE = 1 << 24  # bytes; a longer one is dropped


def column_of(path: Path, schema: pa.Schema, field: str) -> list[str]:
    """The names that lead to the column of text. Raises UserError if it is not there, not the only one, or not text."""
    columns = list(schema)
    found = next(_paths(columns, field), None)
    if found is None:
        raise UserError(f"{path}: no column {field!r}; it has {', '.join(map(repr, _leaves(columns))) or 'none'}")
    for depth, name in enumerate(found, 1):
        same = [column.type for column in columns if column.name == name]
        if len(same) > 1:
            kinds = ", ".join(map(str, same))
            raise UserError(
                f"{path}: {len(same)} columns are named {'.'.join(found[:depth])!r} ({kinds}); rename or drop all but one"
            )
        kind = same[0]
        columns = _fields(kind)

    if not _is_text(kind):
        texts = ", ".join(repr(name) for name, each in _leaves(list(schema)).items() if _is_text(each))
        others = f"the columns of text are {texts}" if texts else "there are no columns of text"
        raise UserError(f"{path}: column {field!r} is of type {kind}, not text; {others}")
    return found


def _paths(columns: list[pa.Field], field: str) -> Iterator[list[str]]:
    """The ways to read ``field`` as names of a column and its fields, the longest names first."""
    end = len(field)
    while end > 0:
        for column in columns:
            if column.name == field[:end]:
                rest = field[end + 1 :]
                inner = _paths(_fields(column.type), rest) if end < len(field) else iter([[]])
                yield from ([column.name, *names] for names in inner)
        end = field.rfind(".", 0, end)


def _leaves(columns: list[pa.Field]) -> dict[str, pa.DataType]:
    """The columns, and in the place of structs their fields, by name."""
    found: dict[str, pa.DataType] = {}
    for column in columns:
        inner = _leaves(_fields(column.type))
        found |= {f"{column.name}.{name}": kind for name, kind in inner.items()} or {column.name: column.type}
    return found


def _fields(kind: pa.DataType) -> list[pa.Field]:
    return [kind.field(number) for number in range(kind.num_fields)] if pa.types.is_struct(kind) else []


def _is_text(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):  # JSON
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    types = pa.types  # null: a column in which a file has no values
    tests = (types.is_string, types.is_large_string, types.is_string_view)
    return any(
        test(kind) for test in (*tests, types.is_null, types.is_binary, types.is_large_binary, types.is_binary_view)
    )


def values_of(batch: pa.RecordBatch, names: list[str]) -> Iterator[bytes | Document]:
    """The values of a column of text; for null and values above 16 MiB dropped documents."""
    return map(_value, _bytes(batch, names))


def _bytes(batch: pa.RecordBatch, names: list[str]) -> pa.Array:
    """The column of these names. A batch may have others: parquet finds the columns ``a`` and ``a.b`` by the name ``a``."""
    column = batch.column(batch.schema.names.index(names[0]))
    if len(names) > 1:
        column = pc.struct_field(column, names[1:])
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    return column.cast(pa.large_binary())


def _value(scalar: pa.Scalar) -> bytes | Document:
    value = scalar.as_py()
    if value is None:
        return Document(dropped="null")
    return value if len(value) <= LONGEST_VALUE else Document(dropped="value_over_16_mib")


def one_line(error: Exception) -> str:
    """The message in one line; Arrow's have several."""
    return " ".join(str(error).split())
