"""The rows of a user's own task, from .csv, .tsv and .jsonl files."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from data_prep.cli import UserError, some
from data_prep.formats.csv_rows import read_rows
from data_prep.formats.readers import Document
from pipeline.evaluate.own_tasks import check_two
from pipeline.evaluate.rows import TaskData
from pipeline.evaluate.tasks import TASKS, Own, Task

_MANY = 1000  # labels; more are names of rows, or numbers
_VALUES = 20  # different numbers among a training set's labels; more are a quantity

Row = tuple[str, list[Any]]  # where it is, as `dev.csv: row 3`, and its values: texts, then the label


def read_own(name: str) -> TaskData:
    """The rows of the own task ``name``, whose labels are taken from its training set if its file does not name them.

    Raises UserError, naming file and row, for columns, texts or labels that are not there.
    """
    task = TASKS[name]
    own = task.own
    assert own
    sets = {key: _rows(path, task) for key, path in own.files.items()}
    if task.embeds:
        key = "test" if "test" in sets else "dev"
        return TaskData(str(own.source), None, {"": _dataset(sets[key], _number)})

    label_of: Callable[[str, Any], int | float] = _number
    if not own.numbers:
        labels = task.labels or _labels_of(sets["train"], own)
        for metric in task.scores:
            check_two(own.source, metric, labels)
        TASKS[name] = task = dataclasses.replace(task, labels=labels)
        label_of = partial(_id, {label: number for number, label in enumerate(labels)}, own)
    made = {key: _dataset(rows, label_of) for key, rows in sets.items()}
    test = {"": made["test"]} if "test" in made else {}
    pinned = json.dumps([task.labels, task.scores])
    return TaskData(str(own.source), made["train"], {"": made["dev"]}, test, pinned=pinned)


def _rows(path: Path, task: Task) -> list[Row]:
    """The rows of a file. Raises UserError if there are none, or one lacks a text or a label."""
    readers: dict[str, Callable[[Path, Sequence[str]], Iterator[Row]]] = {".csv": _csv, ".tsv": _csv}
    readers |= {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json_lines}
    if path.suffix not in readers:
        raise UserError(f"{path}: not a file of rows by its name; write .csv or .tsv with a header, or .jsonl")
    assert task.layout
    columns = [str(column) for column in (*task.layout.texts, task.layout.label)]
    try:
        rows = list(readers[path.suffix](path, columns))
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    for where, values in rows:
        for column, value in zip(columns[:-1], values, strict=False):
            if not isinstance(value, str):
                raise UserError(f"{where}: {column} = {value!r} is not text")
        if values[-1] in (None, ""):
            raise UserError(f"{where}: has no {columns[-1]}; a set without labels cannot be trained on or scored")
    if not rows:
        raise UserError(f"{path}: has no rows")
    return rows


def _csv(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    for number, (_, values) in enumerate(read_rows(path, [path.read_bytes()], columns), 1):
        where = f"{path}: row {number}"
        if isinstance(values, Document):
            why = {"other_columns": "has not the columns of the header"}.get(
                values.dropped, "has a quote that is not closed"
            )
            raise UserError(f"{where}: {why}; texts with separators, quotes or line ends must be in double quotes")
        try:
            yield where, [value.decode() for value in values]
        except UnicodeDecodeError:
            raise UserError(f"{where}: not UTF-8; convert the file with iconv first") from None


def _json_lines(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start:,}; convert the file with iconv first") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error}); write one object a line (jq -c '.[]')") from None
        if not isinstance(record, dict):
            raise UserError(
                f"{where}: not an object but {type(record).__name__}; write one object a line (jq -c '.[]')"
            )
        for column in columns:
            if column not in record:
                raise UserError(f"{where}: no field {column!r}; it has {', '.join(map(repr, record)) or 'none'}")
        yield where, [record[column] for column in columns]


def _dataset(rows: list[Row], label_of: Callable[[str, Any], int | float]) -> Dataset:
    names = ("first", "second", "label") if len(rows[0][1]) > 2 else ("first", "label")
    columns: dict[str, list] = {name: [] for name in names}
    for where, values in rows:
        for name, value in zip(names, [*values[:-1], label_of(where, values[-1])], strict=True):
            columns[name].append(value)
    return Dataset.from_dict(columns)


def _number(where: str, value: Any) -> float:
    number = math.nan
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise UserError(f"{where}: the label {value!r} is not a number")
    return number


def _name(value: Any) -> str:
    """A label by its name: true is "true", as JSON writes it, and 1 is "1"."""
    return value if isinstance(value, str) else json.dumps(value)


def _id(ids: dict[str, int], own: Own, where: str, value: Any) -> int:
    label = _name(value)
    if label not in ids:
        raise UserError(
            f"{where}: the label {label!r} is none of {some(list(ids), 9)}; correct it, or name all by labels in {own.source}"
        )
    return ids[label]


def _labels_of(rows: list[Row], own: Own) -> tuple[str, ...]:
    """The labels of a training set, whole numbers by size and others by name. Raises UserError if they are no classes."""
    found = {_name(values[-1]) for _, values in rows}
    numbers = [_as_number(label) for label in found]
    if None not in numbers and len(found) > _VALUES and any(number % 1 for number in numbers if number is not None):
        raise UserError(
            f"{own.source}: the labels of {own.files['train']} are {len(found)} numbers; is it kind = 'regression'?"
        )
    if not 2 <= len(found) <= _MANY:
        raise UserError(f"{own.source}: {own.files['train']} has {len(found)} labels; 2 to {_MANY} can be learned")
    return tuple(sorted(found, key=lambda label: (_as_number(label) is None, _as_number(label) or 0.0, label)))


def _as_number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None
