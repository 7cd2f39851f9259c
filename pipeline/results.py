"""Scores on disk: what `python -m pipeline.evaluate` writes, read back and grouped. No torch, so reading is quick.

    RESULTS/MODEL/model.json                                what the model is
    RESULTS/MODEL/TASK/lr3e-05-epochs3-seed1.json           a cell: one fine-tuning, scored; written last, atomically
    RESULTS/MODEL/TASK/lr3e-05-epochs3-seed1.failed.json    a cell that failed, and why; gone once it succeeds
    RESULTS/MODEL/speed.json                                measured speed beside a reference model

A task's figure is the papers': the mean over seeds at the learning rate and epochs whose mean on the dev set is best.
Loose files directly below RESULTS belong to others, as do names that begin with a dot.
"""

import json
import math
import re
import statistics
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.errors import UserError

FORMAT = 1
MODEL, SPEED, FAILED = "model.json", "speed.json", ".failed.json"
MADE_UP = "made-up ids"  # a speed's text where no file was given

_NAME = re.compile(r"[\w.-]+(/[\w-]+)?")  # of a task or a score: f1, accuracy/de

_NEEDED = {
    "model": {
        "name": str,
        "path": str,
        "weights": str,
        "model_type": str,
        "layers": int,
        "hidden": int,
        "parameters": dict,
    },
    "cell": {
        "model": str,
        "weights": str,
        "task": str,
        "settings": dict,
        "data": dict,
        "scores": dict,
        "primary": str,
        "split": str,
    },
    "failure": {"model": str, "task": str, "settings": dict, "error": str},
    "speed": {"model": str, "reference": str, "device": str, "speedup": int | float},
}


@dataclass(frozen=True)
class Cell:
    """One fine-tuning and its scores, in percent."""

    path: Path
    model: str
    weights: str
    task: str
    settings: dict[str, Any]
    data: dict[str, Any]
    scores: dict[str, float]
    primary: str
    split: str
    dev: float | None = None  # the primary score on the dev set, where another one is scored
    seconds: float = math.nan
    precision: str = "fp32"  # of products
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The one that the papers' tables show."""
        return self.scores[self.primary]

    @property
    def dev_score(self) -> float:
        """The one that chooses among settings: a test set must not."""
        return self.score if self.dev is None else self.dev


@dataclass(frozen=True)
class Failure:
    """A fine-tuning that ended without scores, and why."""

    path: Path
    model: str
    task: str
    settings: dict[str, Any]
    error: str


class Best(NamedTuple):
    """The best setting (all but the seed), and over its ``n`` seeds the mean and the sample standard deviation.

    ``spread`` is None for a single seed.
    """

    setting: dict[str, Any]
    mean: float
    spread: float | None
    n: int


@dataclass(frozen=True)
class Results:
    """All that a results folder holds, in a fixed order."""

    folder: Path
    models: dict[str, dict]  # name: model.json
    cells: list[Cell]
    failures: list[Failure]
    speeds: dict[str, dict]  # name: speed.json

    def of(self, model: str, task: str) -> list[Cell]:
        return [cell for cell in self.cells if (cell.model, cell.task) == (model, task)]

    @property
    def tasks(self) -> list[str]:
        return sorted({cell.task for cell in self.cells})


def read_results(folder: Path) -> Results:
    """Read a results folder whole. Raises UserError naming the first file that is torn, unknown or out of its place."""
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; python -m pipeline.evaluate … --out {folder} makes it")
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; results are kept in one")
    models, speeds, cells, failures = {}, {}, [], []
    for place in _visible(folder):
        if not place.is_dir():
            continue
        if not (place / MODEL).is_file():
            raise UserError(f"{place}: no {MODEL}, so not a model's results; move this folder elsewhere")
        models[place.name] = read_record(place / MODEL, "model")
        for path in _visible(place):
            if path.is_dir():
                _read_task(path, place.name, cells, failures)
            elif path.name == SPEED:
                speeds[place.name] = read_record(path, "speed")
            elif path.name != MODEL:
                raise UserError(f"{path}: not a file of results; move it elsewhere")
    return Results(folder, models, cells, failures, speeds)


def make_folder(folder: Path) -> None:
    """Make a results folder, or see that it can be written to. Raises UserError if not: before hours are spent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written to ({(error.strerror or str(error)).lower()}); choose another folder"
        ) from None


def inner_runs(folder: Path) -> list[str]:
    """The run folders in that of a run of several students or stages, or in one of several runs."""
    return sorted(str(path.parent) for depth in ("*", "*/*") for path in folder.glob(f"{depth}/checkpoints"))


def measured_on(record: dict) -> str:
    """What a speed was measured on, of the content of its file."""
    most = "" if record.get("text") == MADE_UP else "at most "
    shape = (
        f"{record.get('batches', '?')} batches of {record.get('batch', '?')} × {most}{record.get('length', '?')} tokens"
    )
    return f"{shape} ({record.get('text', 'unknown text')}) on {record['device']}"


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _read_task(folder: Path, model: str, cells: list[Cell], failures: list[Failure]) -> None:
    for path in _visible(folder):
        if path.is_dir() or path.suffix != ".json":
            raise UserError(f"{path}: not a cell's file; move it elsewhere")
        found = read_cell(path)
        if (found.model, found.task) != (model, folder.name):
            raise UserError(
                f"{path}: is of the model {found.model!r} and the task {found.task!r}; move it to their folder"
            )
        (cells if isinstance(found, Cell) else failures).append(found)


def read_cell(path: Path) -> Cell | Failure:
    """A cell's file, or a failed one's. Raises UserError if it is torn, of another kind, or has a value of a wrong type."""
    failed = path.name.endswith(FAILED)
    record = read_record(path, "failure" if failed else "cell")
    kind = Failure if failed else Cell
    if wrong := _wrong(record) or ("" if failed else _wrong_scores(record)):
        raise UserError(f"{path}: {wrong}; delete it and evaluate again")
    return kind(path, **{name: record[name] for name in kind.__annotations__ if name in record})


def _wrong(record: dict) -> str:
    """What is wrong with the task's name, the seed, or a value that may be left out."""
    task, seed, dev = record["task"], record["settings"].get("seed", 0), record.get("dev")
    seconds, precision, versions = record.get("seconds", 0), record.get("precision", ""), record.get("versions", {})
    for key, value, holds in (
        ("task", task, _NAME.fullmatch(task)),
        ("seed", seed, isinstance(seed, int) and not isinstance(seed, bool)),
        ("dev", dev, dev is None or _is_number(dev)),
        ("seconds", seconds, _is_number(seconds)),
        ("precision", precision, isinstance(precision, str)),
        ("versions", versions, isinstance(versions, dict)),
    ):
        if not holds:
            return f"{key} = {value!r} is not a cell's"
    return ""


def _wrong_scores(record: dict) -> str:
    scores, primary = record["scores"], record["primary"]
    if unnamed := [name for name in scores if not _NAME.fullmatch(name)]:
        return f"{unnamed[0]!r} is not a score's name"
    whole = primary in scores and all(map(_is_number, scores.values()))
    return "" if whole else f"scores are not numbers, or lack {primary!r}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_record(path: Path, kind: str) -> dict:
    """One of the JSON files of a results folder. Raises UserError if it lacks a key or has another format."""
    remedy = "delete it and run the command that wrote it again"
    try:
        record = json.loads(path.read_bytes())
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{path}: not a whole JSON object; {remedy}")
    if record.get("format") != FORMAT:
        raise UserError(f"{path}: format = {record.get('format')!r}, this program reads {FORMAT}; {remedy}")
    for key, type_ in _NEEDED[kind].items():
        if not isinstance(record.get(key), type_):
            raise UserError(f"{path}: {key} = {record.get(key)!r} is not a {kind}'s; {remedy}")
    return record


# --- groups -----------------------------------------------------------------------------------------------------------


def by_setting(cells: Iterable[Cell]) -> list[tuple[dict[str, Any], list[Cell]]]:
    """Cells that differ in their seed alone, together: (setting without the seed, its cells by seed)."""
    groups: dict[str, tuple[dict[str, Any], list[Cell]]] = {}
    for cell in sorted(cells, key=lambda cell: cell.settings.get("seed", 0)):
        setting = {key: value for key, value in cell.settings.items() if key != "seed"}
        groups.setdefault(repr(sorted(setting.items())), (setting, []))[1].append(cell)
    return list(groups.values())


def mean_and_spread(values: list[float]) -> tuple[float, float | None]:
    """The mean and the sample standard deviation, which one value has not."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def shown_mean(mean: float, spread: float | None) -> str:
    """`72.0 ± 2.0`; without a spread the mean alone."""
    return f"{mean:.1f}" + ("" if spread is None else f" ± {spread:.1f}")


def best(cells: Iterable[Cell]) -> Best:
    """The setting with the best mean over seeds on the dev set, of the cells of one model and task.

    Only settings with as many seeds as any has are compared: one lucky seed is no mean. Raises ValueError without cells.
    """
    groups = by_setting(cells)
    most = max((len(group) for _, group in groups), default=0)
    complete = [(setting, group) for setting, group in groups if len(group) == most]
    if not complete:
        raise ValueError("no cells")
    setting, group = max(complete, key=lambda each: statistics.fmean(cell.dev_score for cell in each[1]))
    return Best(setting, *mean_and_spread([cell.score for cell in group]), most)


def at(cells: Iterable[Cell], setting: dict[str, Any]) -> list[Cell]:
    """The cells of this setting, by seed: for their other scores beside the primary one."""
    return next((group for own, group in by_setting(cells) if own == setting), [])
