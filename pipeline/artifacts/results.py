"""Scores on disk: what `python -m pipeline.evaluate` writes, read back and grouped. No torch, so reading is quick.

    RESULTS/MODEL/model.json                                what the model is
    RESULTS/MODEL/TASK/lr3e-05-epochs3-seed1.json           a cell: one fine-tuning, scored; written last, atomically
    RESULTS/MODEL/TASK/lr3e-05-epochs3-seed1.failed.json    a cell that failed, and why; gone once it succeeds
    RESULTS/MODEL/TASK/lr3e-05-epochs3-seed1.model/         the fine-tuned model, if it was kept
    RESULTS/MODEL/TASK/lr3e-05-epochs3-seed1.predictions.jsonl    its predictions, if they were
    RESULTS/MODEL/speed.json                                measured speed compared with a reference model

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

from data_prep.cli import UserError

FORMAT = 1
MODEL, SPEED, FAILED = "model.json", "speed.json", ".failed.json"
KEPT_MODEL, PREDICTIONS = ".model", ".predictions"
MADE_UP = "made-up ids"  # a speed's text where no file was given

_EVALUATE_AGAIN = "delete it and evaluate again"
_NAME = re.compile(r"[\w.-]+(/[\w-]+)?")  # of a task or a score: f1, accuracy/de

# The keys that a file must have, and their types.
_NEEDED: dict[str, dict[str, Any]] = {
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
    # What one answer for all rows scores; unknown of old cells.
    baseline: dict[str, float] = field(default_factory=dict)
    rows: int | None = None  # that the score is of
    seconds: float = math.nan
    precision: str = "fp32"  # of products
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The score that the papers' tables show."""
        return self.scores[self.primary]

    @property
    def majority(self) -> float | None:
        """The majority baseline of the score, if it is on record."""
        return self.baseline.get(self.primary)

    @property
    def dev_score(self) -> float:
        """The score that chooses among settings: a test set must not."""
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
    """Everything that a results folder holds, in a fixed order."""

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

    found = Results(folder, {}, [], [], {})
    for place in _visible(folder):
        if not place.is_dir():
            continue
        if not (place / MODEL).is_file():
            raise UserError(f"{place}: no {MODEL}, so not a model's results; move this folder elsewhere")
        found.models[place.name] = read_record(place / MODEL, "model")
        for path in _visible(place):
            if path.is_dir():
                _read_task(path, place.name, found)
            elif path.name == SPEED:
                found.speeds[place.name] = read_record(path, "speed")
            elif path.name != MODEL:
                raise UserError(f"{path}: not a file of results; move it elsewhere")
    return found


def make_folder(folder: Path) -> None:
    """Make a results folder, or check that it can be written to. Raises UserError if not: before hours are spent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written to ({(error.strerror or str(error)).lower()}); choose another folder"
        ) from None


def inner_runs(folder: Path) -> list[str]:
    """The run folders inside the folder of a run of several students or stages, or of several runs."""
    return sorted(str(path.parent) for depth in ("*", "*/*") for path in folder.glob(f"{depth}/checkpoints"))


def measured_on(record: dict) -> str:
    """The batches, text and device of a measured speed, by the content of its file."""
    batches, batch, length = (record.get(key, "?") for key in ("batches", "batch", "length"))
    most = "" if record.get("text") == MADE_UP else "at most "
    text = record.get("text", "unknown text")
    return f"{batches} batches of {batch} × {most}{length} tokens ({text}) on {record['device']}"


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _read_task(folder: Path, model: str, found: Results) -> None:
    """Add the cells and failures in a task's folder to ``found``."""
    for path in _visible(folder):
        if path.name.endswith(KEPT_MODEL) or (PREDICTIONS in path.name and path.suffix == ".jsonl"):
            continue
        if path.is_dir() or path.suffix != ".json":
            raise UserError(f"{path}: not a cell's file; move it elsewhere")
        failed = path.name.endswith(FAILED)
        try:
            record: Cell | Failure = read_failure(path) if failed else read_cell(path)
        except FileNotFoundError:  # another process has removed it since: the cell has succeeded
            continue
        if (record.model, record.task) != (model, folder.name):
            raise UserError(
                f"{path}: is of the model {record.model!r} and the task {record.task!r}; move it to their folder"
            )
        if isinstance(record, Cell):
            found.cells.append(record)
        else:
            found.failures.append(record)


def read_cell(path: Path) -> Cell:
    """A cell's file. Raises UserError if it is torn, of another kind, or has a value of a wrong type."""
    record = read_record(path, "cell")
    if wrong := _wrong(record) or _wrong_scores(record):
        raise UserError(f"{path}: {wrong}; {_EVALUATE_AGAIN}")
    rows = record.get("rows", record["data"].get(record["split"]))  # of old cells those of all sets
    record["rows"] = rows if isinstance(rows, int) else None
    return Cell(path, **{name: record[name] for name in Cell.__annotations__ if name in record})


def read_failure(path: Path) -> Failure:
    """The file of a cell that failed. Raises UserError as ``read_cell`` does."""
    record = read_record(path, "failure")
    if wrong := _wrong(record):
        raise UserError(f"{path}: {wrong}; {_EVALUATE_AGAIN}")
    return Failure(path, **{name: record[name] for name in Failure.__annotations__ if name in record})


def _wrong(record: dict) -> str:
    """A complaint about the task's name, the seed, or a value that may be left out; empty if there is none."""
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
    if primary not in scores or not all(map(_is_number, scores.values())):
        return f"scores are not numbers, or lack {primary!r}"
    baseline = record.get("baseline", {})
    whole = isinstance(baseline, dict) and all(map(_is_number, baseline.values()))
    return "" if whole else f"baseline = {baseline!r} is not a cell's"


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
    """Cells grouped with those that differ in their seed alone: (setting without the seed, its cells by seed)."""
    groups: dict[str, tuple[dict[str, Any], list[Cell]]] = {}
    for cell in sorted(cells, key=lambda cell: cell.settings.get("seed", 0)):
        setting = {key: value for key, value in cell.settings.items() if key != "seed"}
        groups.setdefault(repr(sorted(setting.items())), (setting, []))[1].append(cell)
    return list(groups.values())


def mean_and_spread(values: list[float]) -> tuple[float, float | None]:
    """The mean and the sample standard deviation, which is None of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def shown_mean(mean: float, spread: float | None) -> str:
    """`72.0 ± 2.0`; without a spread the mean alone."""
    return f"{mean:.1f}" + ("" if spread is None else f" ± {spread:.1f}")


def shown_majority(cells: Iterable[Cell]) -> str:
    """`52.7 (277 rows)`: the majority baselines of a task's cells, which differ where their data do."""
    known = {(cell.majority, cell.rows) for cell in cells if cell.majority is not None}
    parts = (
        f"{majority:.1f} ({'?' if rows is None else f'{rows:,}'} rows)" for majority, rows in sorted(known, key=str)
    )
    return ", ".join(parts) or "not recorded"


def best(cells: Iterable[Cell]) -> Best:
    """The setting with the best mean over seeds on the dev set, among the cells of one model and task.

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
    """The cells of this setting, by seed: for their scores other than the primary one."""
    return next((group for own, group in by_setting(cells) if own == setting), [])
