"""Fine-tune and score a model on the papers' tasks.

    python -m pipeline.evaluate --model student --model teacher --task rte,mrpc --data glue/ --out results/
    python -m pipeline.evaluate --model student --task mnli --grid --out results/       # data from the hub
    torchrun --nproc-per-node 8 -m pipeline.evaluate --model student --task squad2 --out results/

A cell is one model on one task at one learning rate, number of epochs and seed. Everything is checked before the first is
trained. Each that is finished is written to OUT at once and not run again, by whatever command; one that fails is recorded
with its reason, the others go on, and the command ends with code 1.
"""

import argparse
import functools
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import accelerate
import datasets
import torch
import transformers
from accelerate.utils import broadcast_object_list

from data_prep.errors import Parser, UserError, run_command, whole_number
from data_prep.shards import write_json
from pipeline import finetune, qa, results
from pipeline.scored_model import ScoredModel, check_fit, label_order, open_model
from pipeline.task_data import TaskData, read_task
from pipeline.tasks import TASKS, check_task, named_scores, settings

SEEDS = (1, 2, 3, 4)  # the papers give means of four runs


@dataclass(frozen=True)
class Cell:
    """One fine-tuning to be done: its settings, and the file that will hold its scores."""

    path: Path
    settings: dict

    @property
    def failure(self) -> Path:
        return self.path.with_name(self.path.stem + results.FAILED)

    def __str__(self) -> str:
        return "lr {learning_rate}, {epochs} epochs, seed {seed}".format(**self.settings)


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


# --- before anything is trained ---------------------------------------------------------------------------------------


def make_job(options: argparse.Namespace, model: ScoredModel, task: str, data: TaskData, facts: dict) -> Job:
    """Check that the model fits the task, and find which of its cells are finished.

    Raises UserError if it does not fit, or if a finished cell was made from other weights, data or settings.
    """
    length = options.length or TASKS[task].length
    check_fit(
        model, task, length, {"training": data.train} | {f"dev {key}".strip(): v for key, v in data.scored.items()}
    )
    (qa if TASKS[task].answers else finetune).check_length(model.tokenizer, length)
    if TASKS[task].answers and type(model.config) not in transformers.MODEL_FOR_QUESTION_ANSWERING_MAPPING:
        raise UserError(
            f"{model.path}: transformers has no head for questions of a {model.config.model_type}; leave {task} out"
        )
    folder = options.out / model.name / task
    cells = [
        Cell(folder / f"lr{rate}-epochs{epochs}-seed{seed}.json", _settings(options, task, rate, epochs, seed))
        for rate, epochs in settings(TASKS[task], options.grid, options.learning_rate, options.epochs)
        for seed in options.seeds
    ]
    finished = [cell for cell in cells if cell.path.exists()]
    for cell in finished:
        _check_same(cell, model, facts)
    failed = [cell for cell in cells if cell.failure.exists()]
    return Job(model, task, data, facts, list(label_order(model, task)), cells, finished, failed)


def _settings(options: argparse.Namespace, task: str, rate: float, epochs: int, seed: int) -> dict:
    found = {
        "learning_rate": rate,
        "epochs": epochs,
        "batch": options.batch or TASKS[task].batch,
        "length": options.length or TASKS[task].length,
        "seed": seed,
    }
    return found | ({"stride": TASKS[task].stride} if TASKS[task].answers else {})


def _check_same(cell: Cell, model: ScoredModel, facts: dict) -> None:
    """A finished cell must be this one: one of another model, data or settings is neither believed nor overwritten."""
    found = results.read_cell(cell.path)
    pairs = {
        "weights": (found.weights, model.card["weights"]),
        "data": (found.data.get("fingerprint"), facts["fingerprint"]),
        **{key: (found.settings.get(key), value) for key, value in cell.settings.items()},
    }
    for what, (then, now) in pairs.items():
        if then != now:
            raise UserError(
                f"{cell.path}: was made with {what} {then}, now {what} {now}; give the new results another --out or --name, "
                "or delete the old"
            )


def check_card(model: ScoredModel, out: Path) -> None:
    """The results of a name are of one model: another model's are not mixed in."""
    path = out / model.name / results.MODEL
    if path.exists() and (then := results.read_record(path, "model")["weights"]) != model.card["weights"]:
        raise UserError(
            f"{path.parent}: holds results of other weights ({then}) than {model.path} has now ({model.card['weights']}); "
            "give another --name, or delete that folder"
        )


# --- cells ------------------------------------------------------------------------------------------------------------


def run_job(job: Job, say: Callable[..., object], label: str) -> list[str]:
    """Run the cells that are not finished. Returns a line for each that failed."""
    if job.finished:
        say(f"{label}: {len(job.finished)} of {len(job.cells)} cells were finished earlier")
    done, failed_before = ({cell.path for cell in cells} for cells in (job.finished, job.failed))
    left = [(number, cell) for number, cell in enumerate(job.cells, 1) if cell.path not in done]
    # Those that failed before come last: under several processes a failure ends the run, and others must not wait for it.
    left.sort(key=lambda numbered: numbered[1].path in failed_before)
    encoded = functools.cache(lambda: encode(job))
    on_bars = sys.stderr.isatty()  # progress bars come between a line's beginning and its end
    failed = []
    for number, cell in left:
        line = f"{label} {number}/{len(job.cells)}: {cell} …"
        say(line, end="\n" if on_bars else "", flush=True)
        ending, well = run_cell(job, cell, encoded)
        say(f"{line} {ending}" if on_bars else f" {ending}")
        if not well:
            failed.append(f"{label} {cell}: {ending}")
    return failed


def run_cell(job: Job, cell: Cell, encoded: Callable[[], finetune.Encoded]) -> tuple[str, bool]:
    """Train, score and write one cell, or what made it fail. Returns how it ended, and whether well."""
    start, before = time.monotonic(), _inode(cell.failure)
    try:
        scores, dev = finetune.finetune(job.model, job.task, job.order, encoded(), cell.settings)
    except Exception as error:  # whatever it was, the other cells are worth having
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        if _inode(cell.failure) == before:  # else another process failed first, and this one because that has gone
            _write_failure(cell.failure, _record(job, cell) | {"error": reason})
        if finetune.distributed():
            raise  # the other processes wait for this one in a collective
        return f"failed: {reason}", False
    seconds = round(time.monotonic() - start, 1)
    record = _record(job, cell) | scored(job, scores, dev) | {"seconds": seconds}
    _write(cell.path, record | {"precision": finetune.precision(), "versions": versions()})
    if is_first():
        cell.failure.unlink(missing_ok=True)
    return f"{record['primary']} {record['scores'][record['primary']]:.1f} ({seconds:.0f} s)", True


def encode(job: Job) -> finetune.Encoded:
    """The task's rows as the model's inputs."""
    task, length = TASKS[job.task], job.cells[0].settings["length"]

    def encoded(rows: datasets.Dataset) -> datasets.Dataset:
        if task.answers:
            return qa.encode_questions(rows, job.model.tokenizer, length, task.stride, finetune.IN_MEMORY)
        return finetune.encode_labelled(rows, task, job.model.tokenizer, length, job.order)

    def scored_set(key: str, rows: datasets.Dataset) -> finetune.ScoredSet:
        features = encoded(rows).sort("length", keep_in_memory=True)  # so that batches are padded little
        if task.answers:
            score = qa.scorer(rows, features, key if job.task == "mlqa" else None, task.unanswerable)
            return finetune.ScoredSet(features.remove_columns(["start_positions", "end_positions"]), score)
        return finetune.labelled_set(features, task, job.order)

    dev = {key: scored_set(key, rows) for key, rows in job.data.dev.items()}
    test = {key: scored_set(key, rows) for key, rows in job.data.test.items()}
    return finetune.Encoded(encoded(job.data.train), test or dev, dev)


def scored(job: Job, scores: dict[str, dict[str, float]], dev: dict[str, dict[str, float]]) -> dict:
    """The part of a cell's file that says how well it did."""
    task = TASKS[job.task]
    record = {"scores": named_scores(task, scores), "primary": task.primary, "split": job.data.split}
    return record | ({"dev": named_scores(task, dev)[task.primary]} if dev else {})


def _record(job: Job, cell: Cell) -> dict:
    return {
        "format": results.FORMAT,
        "model": job.model.name,
        "weights": job.model.card["weights"],
        "task": job.task,
        "settings": cell.settings,
        "data": job.facts,
    }


def _write(path: Path, record: dict) -> None:
    if is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)


def _write_failure(path: Path, record: dict) -> None:
    """By whichever process failed, each with a file of its own until it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f".{path.name}.{os.environ.get('RANK', '0')}")
    write_json(own, record)
    own.replace(path)


def _inode(path: Path) -> int | None:
    """The file's number, which one that is put in its place has not; None if it is not there."""
    return path.stat().st_ino if path.exists() else None


def versions() -> dict[str, str]:
    return {module.__name__: module.__version__ for module in (torch, transformers, datasets, accelerate)}


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


# --- the table --------------------------------------------------------------------------------------------------------


def table(found: results.Results, models: list[str], tasks: list[str]) -> str:
    """Models × tasks: mean ± sample standard deviation over the seeds of the best setting."""
    rows = [["", *(f"{task} ({TASKS[task].primary})" for task in tasks)]]
    for model in models:
        rows.append([model, *(_figure(found.of(model, task)) for task in tasks)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _figure(cells: list[results.Cell]) -> str:
    if not cells:
        return "–"
    setting, mean, spread, count = results.best(cells)
    return (
        f"{results.shown_mean(mean, spread)} (n = {count}, lr {setting['learning_rate']:g}, {setting['epochs']} epochs)"
    )


# --- the command ------------------------------------------------------------------------------------------------------


def parser() -> Parser:
    made = Parser(
        prog="python -m pipeline.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--model", action="append", required=True, help="a Hugging Face folder or hub id; may be given several times")
    add("--task", required=True, help=f"one or several, apart by commas: {', '.join(TASKS)}")
    add("--data", help="a folder with the original files, or a hub id (default: the task's own on the hub)")
    add("--out", type=Path, required=True, help="where results are kept")
    add("--name", help="the model's name there (default: its folder's)")
    add("--seeds", type=whole_number(0, 2**32), nargs="+", default=SEEDS, help="default: 1 2 3 4")
    add("--grid", action="store_true", help="the paper's learning rates × epochs (default: one of them, in the middle)")
    add("--learning-rate", type=_rate, nargs="+", default=(), help="these instead of the paper's")
    add("--epochs", type=whole_number(1), nargs="+", default=(), help="these instead of the paper's")
    add("--batch", type=whole_number(1), help="rows for each update (default: the paper's)")
    add("--length", type=whole_number(1), help="tokens (default: the paper's)")
    add("--languages", help="of XNLI, MLQA and XQuAD, apart by commas (default: all that are there)")
    return made


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number above 0")
    return value


def _names(text: str) -> list[str]:
    """Names apart by commas, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def check_options(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """(tasks, languages). Raises UserError for what is unknown or clashes."""
    tasks = [check_task(name) for name in _names(options.task)]
    if not tasks:
        raise UserError(f"--task {options.task!r}: no task; tasks are {', '.join(TASKS)}")
    if options.name and len(options.model) > 1:
        raise UserError(f"--name {options.name}: with {len(options.model)} models; evaluate them one after the other")
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out}: is not a folder")
    for task in tasks:
        finetune.check_batch(options.batch or TASKS[task].batch)
    options.seeds = list(dict.fromkeys(options.seeds))
    return tasks, _names(options.languages or "")


def quieten() -> None:
    """What the libraries tell beside our own lines is about their inner ways."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    for library in ("accelerate", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def prepare(options: argparse.Namespace, say: Callable[..., object]) -> list[Job]:
    """Read and check all models, tasks and former results."""
    tasks, languages = check_options(options)
    if options.out.is_dir():
        results.read_results(options.out)
    data = {task: read_task(task, options.data, languages) for task in tasks}
    facts = {task: data[task].facts() for task in tasks}
    for note in (note for each in data.values() for note in each.notes):
        say(note)
    models = [open_model(path, options.name) for path in options.model]
    if len({model.name for model in models}) < len(models):
        raise UserError(
            f"--model: {', '.join(options.model)}: two have the same name; evaluate one of them with --name"
        )
    for model in models:
        check_card(model, options.out)
    jobs = [make_job(options, model, task, data[task], facts[task]) for model in models for task in tasks]
    for job in jobs:
        if tuple(job.order) != TASKS[job.task].labels:
            say(f"{job.model.name}: comes with a head for {job.task}; its label order is kept: {', '.join(job.order)}")
    return jobs


def agree(jobs: list[Job]) -> None:
    """All processes go by what the first found finished and failed: they must run the same cells in the same order."""
    if finetune.distributed():
        cuda = torch.cuda.is_available()
        accelerate.PartialState(cpu=not cuda, **({} if cuda else {"backend": "gloo"}))
        for job in jobs:
            job.finished[:], job.failed[:] = broadcast_object_list([job.finished, job.failed])


def main() -> int:
    options = parser().parse_args()
    quieten()
    say = print if is_first() else (lambda *_, **__: None)
    jobs = prepare(options, say)
    results.make_folder(options.out)
    agree(jobs)
    models, tasks = (list(dict.fromkeys(names)) for names in zip(*((j.model.name, j.task) for j in jobs), strict=True))
    failed = []
    for job in jobs:
        _write(options.out / job.model.name / results.MODEL, job.model.card)
        failed += run_job(job, say, f"{job.model.name} {job.task}" if len(models) > 1 else job.task)
    if is_first():
        say("\n" + table(results.read_results(options.out), models, tasks))
        for line in failed:
            print(line, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
