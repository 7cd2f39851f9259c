"""The cells of an evaluation: one model on one task at one setting and seed. Each is trained, scored and written alone.

A task that trains nothing has one cell.
"""

import argparse
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import accelerate
import datasets
import torch
import transformers

from data_prep.cli import UserError, some
from data_prep.files import aside, write_json
from pipeline.artifacts import results
from pipeline.evaluate import embedding, finetune, keeping, qa
from pipeline.evaluate.baseline import baseline
from pipeline.evaluate.rows import TaskData
from pipeline.evaluate.scored_model import ScoredModel, check_fit, label_order
from pipeline.evaluate.scores import named_scores
from pipeline.evaluate.tasks import TASKS, settings

EMBEDDED = "embedded.json"  # the cell of a task that trains nothing
SetScores = dict[str, dict[str, float]]


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Cell:
    """One fine-tuning to be done: its settings, and the file that will hold its scores."""

    path: Path
    settings: dict

    @property
    def failure(self) -> Path:
        return self.path.with_name(self.path.stem + results.FAILED)

    @property
    def claim(self) -> Path:
        """The file by which a process says that it runs the cell."""
        return self.path.with_name(f".{self.path.stem}.claim")

    def __str__(self) -> str:
        if "seed" in self.settings:
            return "lr {learning_rate}, {epochs} epochs, seed {seed}".format(**self.settings)
        prompt = f", prompt {self.settings['prompt']!r}" if self.settings["prompt"] else ""
        return f"{self.settings['pooling']}; at most {self.settings['length']} tokens{prompt}"


@dataclass(frozen=True)
class Job:
    """A model on a task: its data, label order, and cells, some of them finished or failed by an earlier call."""

    model: ScoredModel
    task: str
    data: TaskData
    facts: dict
    order: list[str]
    cells: list[Cell]
    finished: list[Cell]
    failed: list[Cell]
    keep: tuple[str, ...] = ()  # of keeping.CHOICES


def make_job(options: argparse.Namespace, model: ScoredModel, task: str, data: TaskData, facts: dict) -> Job:
    """Check that the model fits the task, and find which of its cells are finished.

    Raises UserError if it does not fit, or if a finished cell was made from other weights, data or settings.
    """
    folder = options.out / model.name / task
    scored_sets = {f"dev {key}".strip(): rows for key, rows in data.scored.items()}
    if TASKS[task].embeds:
        cell = Cell(folder / EMBEDDED, embedding.settings(model, options.prefix, options.length))
        check_fit(model, task, cell.settings["length"], scored_sets)
        return _job(model, task, data, facts, [cell])

    if model.form:
        scored = ", ".join(name for name, each in TASKS.items() if each.embeds)
        raise UserError(
            f"{model.form}: a form is not trained, so it is scored on {scored} only; fine-tune its folder {model.path}"
        )
    length = options.length or TASKS[task].length
    assert data.train is not None
    check_fit(model, task, length, {"training": data.train} | scored_sets)
    if TASKS[task].answers:
        qa.check_length(model.tokenizer, length)
        if type(model.config) not in transformers.MODEL_FOR_QUESTION_ANSWERING_MAPPING:
            raise UserError(
                f"{model.path}: transformers has no head for questions of a {model.config.model_type}; leave {task} out"
            )
    else:
        finetune.check_length(model.tokenizer, length)
    cells = [
        Cell(folder / f"lr{rate}-epochs{epochs}-seed{seed}.json", _settings(options, task, rate, epochs, seed))
        for rate, epochs in settings(TASKS[task], options.grid, options.learning_rate, options.epochs)
        for seed in options.seeds
    ]
    return _job(model, task, data, facts, cells, tuple(options.keep))


def _job(
    model: ScoredModel, task: str, data: TaskData, facts: dict, cells: list[Cell], keep: tuple[str, ...] = ()
) -> Job:
    """Find which of the cells are finished, with all that is to be kept of them.

    Raises UserError for one of other weights, data or settings.
    """
    job = Job(model, task, data, facts, list(label_order(model, task)), cells, [], [], keep)
    job.finished.extend(cell for cell in cells if is_finished(job, cell))
    job.failed.extend(cell for cell in cells if cell.failure.exists())
    return job


def is_finished(job: Job, cell: Cell) -> bool:
    """Whether the cell has its scores, and all that is to be kept. Raises UserError if they are of another evaluation."""
    if not cell.path.exists():
        return False
    _check_same(cell, job.model, job.facts)
    return all(path.exists() for path in keeping.paths(cell.path, job.keep, job.data.scored))


def _settings(options: argparse.Namespace, task: str, rate: float, epochs: int, seed: int) -> dict:
    found = {
        "learning_rate": rate,
        "epochs": epochs,
        "batch": options.batch or TASKS[task].batch,
        "length": options.length or TASKS[task].length,
        "seed": seed,
    }
    if TASKS[task].answers:
        found["stride"] = TASKS[task].stride
    return found


def _check_same(cell: Cell, model: ScoredModel, facts: dict) -> None:
    """Raise UserError if a finished cell has other weights, data or settings: it is neither trusted nor overwritten."""
    found = results.read_cell(cell.path)
    pairs = {
        "weights": (found.weights, model.card["weights"]),
        "data": (found.data.get("fingerprint"), facts["fingerprint"]),
        **{key: (found.settings.get(key), value) for key, value in cell.settings.items()},
    }
    for key, (then, now) in pairs.items():
        if then != now:
            raise UserError(
                f"{cell.path}: was made with {key} {then}, now {key} {now}; give the new results another --out or --name, "
                "or delete the old"
            )


def check_card(model: ScoredModel, out: Path) -> None:
    """Raise UserError if the results under the model's name are of other weights: they are not mixed."""
    path = out / model.name / results.MODEL
    if not path.exists():
        return
    then = results.read_record(path, "model")["weights"]
    if then != model.card["weights"]:
        raise UserError(
            f"{path.parent}: holds results of other weights ({then}) than {model.path} has now ({model.card['weights']}); "
            "give another --name, or delete that folder"
        )


def run_cell(job: Job, cell: Cell, encoded: Callable[[], finetune.Encoded]) -> tuple[str, bool]:
    """Train, score and write one cell, or the reason why it failed. Returns how it ended, and whether well."""
    start, before = time.monotonic(), inode(cell.failure)
    try:
        scores, dev = _scores(job, cell, encoded)
    except Exception as error:  # whatever it is, the other cells are worth having
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        if inode(cell.failure) == before:  # otherwise another process failed first, and this one as a consequence
            _write(cell.failure, _record(job, cell) | {"error": reason})
        if finetune.distributed():
            raise  # the other processes wait for this one in a collective
        return f"failed: {reason}", False

    seconds = round(time.monotonic() - start, 1)
    record = _record(job, cell) | scored(job, scores, dev) | {"seconds": seconds}
    precision = job.model.card["form"]["precision"] if job.model.form else "fp32"
    precision = precision if TASKS[job.task].embeds else finetune.precision()
    write_cell(cell.path, record | {"precision": precision, "versions": versions()})
    if is_first():
        cell.failure.unlink(missing_ok=True)
    score, least = (record[key].get(record["primary"], -math.inf) for key in ("scores", "baseline"))
    low = "" if score > least else f", not above the majority baseline of {least:.1f}"
    return f"{record['primary']} {score:.1f}{low}{_by_set(record)} ({seconds:.0f} s)", True


def _by_set(record: dict) -> str:
    """`: STS-B-test 80.1, STS12-test 72.0`: the scores of the sets of a task that trains nothing."""
    start = f"{record['primary']}/"
    sets = [
        f"{key.removeprefix(start)} {value:.1f}" for key, value in record["scores"].items() if key.startswith(start)
    ]
    return f": {some(sets, 12)}" if sets and TASKS[record["task"]].embeds else ""


def _scores(job: Job, cell: Cell, encoded: Callable[[], finetune.Encoded]) -> tuple[SetScores, SetScores]:
    """The scores of each scored set, and of each dev set where others are scored."""
    if TASKS[job.task].embeds:
        return embedding.scores(job.model, job.task, job.data, cell.settings, TASKS[job.task].batch), {}
    if not job.keep:
        return finetune.finetune(job.model, job.task, job.order, encoded(), cell.settings)

    def keep(model: transformers.PreTrainedModel, outputs: dict) -> None:
        if not is_first():
            return
        if keeping.MODELS in job.keep:
            keeping.keep_model(cell.path, model, job.model)
        for key, own in outputs.items() if keeping.ROWS in job.keep else ():
            rows, features = job.data.scored[key], encoded().scored[key].features
            keeping.keep_predictions(cell.path, key, job.task, job.order, rows, features, own)

    return finetune.finetune(job.model, job.task, job.order, encoded(), cell.settings, keep=keep)


def scored(job: Job, scores: dict[str, dict[str, float]], dev: dict[str, dict[str, float]]) -> dict:
    """The scores in a cell's file."""
    task = TASKS[job.task]
    record: dict = {"scores": named_scores(task, scores), "primary": task.primary, "split": job.data.split}
    record["baseline"] = baseline(job.task, job.data)
    if sets := job.data.scored:  # MNLI's score is of its first set, XNLI's of all
        record["rows"] = sum(len(rows) for key, rows in sets.items() if task.averaged or not key)
    if dev:
        record["dev"] = named_scores(task, dev)[task.primary]
    return record


def _record(job: Job, cell: Cell) -> dict:
    return {
        "format": results.FORMAT,
        "model": job.model.name,
        "weights": job.model.card["weights"],
        "task": job.task,
        "settings": cell.settings,
        "data": job.facts,
    }


def make_model_folder(out: Path, model: ScoredModel) -> None:
    """Make the model's folder among results, whole with its model.json: other processes may read at any moment."""
    folder = out / model.name
    if folder.exists() or not is_first():
        write_cell(folder / results.MODEL, model.card)
        return
    written = aside(folder)
    _write(written / results.MODEL, model.card)
    try:
        written.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(written)


def write_cell(path: Path, record: dict) -> None:
    """Write a file of results, on the first process alone."""
    if is_first():
        _write(path, record)


def _write(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def inode(path: Path) -> int | None:
    """The file's number, which changes when another one takes its place; None if there is no file."""
    return path.stat().st_ino if path.exists() else None


def versions() -> dict[str, str]:
    return {module.__name__: module.__version__ for module in (torch, transformers, datasets, accelerate)}
