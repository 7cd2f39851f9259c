"""A task's rows, from local files or from the hub, checked before anything is trained."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from datasets import Dataset

from data_prep.cli import UserError
from pipeline.evaluate import hub, task_files, text_pairs
from pipeline.evaluate.own_rows import read_own
from pipeline.evaluate.rows import TaskData, is_path
from pipeline.evaluate.tasks import TASKS, Task

OVERLAP = 0.1  # share of a scored set's rows that may be in the training set too


def read_task(name: str, data: str | None, languages: Sequence[str] = ()) -> TaskData:
    """The rows of the task ``name`` from a folder or hub id (default: the task's own), in all languages or in these.

    Raises UserError for files that are not there, torn, of another layout, task or split, and for rows without labels.
    """
    task = TASKS[name]
    if languages and not task.languages:
        raise UserError(f"--languages: {name} has one language; leave it out")
    if task.own:
        own = read_own(name)
        return own if task.embeds else _checked(name, own)
    if task.embeds:
        return text_pairs.read(name, data, languages)
    if data is None or not is_path(data):
        return _checked(name, hub.read(name, data or task.hub, languages))
    if not Path(data).is_dir():
        raise UserError(f"--data {data}: no such folder (from {Path.cwd()}); name a folder or a hub id")
    return _checked(name, task_files.read(name, Path(data), languages))


# --- checks -----------------------------------------------------------------------------------------------------------


def _checked(name: str, data: TaskData) -> TaskData:
    """The data with notes on what is odd. Raises UserError for an empty set, and for sets that seem to be of other splits."""
    task = TASKS[name]
    sets = {f"{kind} {key}".strip(): rows for kind in ("dev", "test") for key, rows in getattr(data, kind).items()}
    if data.test and (missing := [key for key in data.dev if key not in data.test]):
        raise UserError(
            f"{data.source}: {name} has a test set of {', '.join(data.test)} and none of {', '.join(missing)}; get the others, "
            f"or give --languages {','.join(data.test)}"
        )
    assert data.train is not None
    for kind, rows in ({"train": data.train} | sets).items():
        if len(rows) == 0:
            raise UserError(f"{data.source}: the {kind} set of {name} is empty")
    _check_sizes(name, task, len(data.train), data.source, sets)

    notes = list(data.notes)
    train = set(_keys(data.train))
    for kind, rows in sets.items():
        both = sum(key in train for key in _keys(rows))
        found = f"{both:,} of the {len(rows):,} rows of the {kind} set are in the training set too"
        if both > OVERLAP * len(rows):
            raise UserError(f"{data.source}: {found}: the same file, or files of another split?")
        if both:
            notes.append(f"{name}: {found}")
    return replace(data, notes=tuple(notes))


def _check_sizes(name: str, task: Task, train: int, source: str, sets: dict[str, Dataset]) -> None:
    """Raise UserError for a set that has as many rows as another one of the published benchmark."""
    if train in task.official[1:]:
        raise UserError(
            f"{source}: the training set has {train:,} rows, the number of {name}'s official dev or test set; "
            "files of another split?"
        )
    if task.official and any(len(rows) == task.official[0] for rows in sets.values()):
        raise UserError(
            f"{source}: a set to be scored has {task.official[0]:,} rows, the number of {name}'s official training set; "
            "files of another split?"
        )


def _keys(rows: Dataset) -> Iterator[tuple[str, ...]]:
    """The texts of each row, by which it is known."""
    columns = [name for name in ("first", "second", "question", "context") if name in rows.column_names]
    for batch in rows.select_columns(columns).iter(1000):
        yield from zip(*(batch[name] for name in columns), strict=True)
