"""Fine-tune and score a model on the papers' tasks, or compare its vectors of texts without training.

    python -m pipeline.evaluate --model student --model teacher --task rte,mrpc --data glue/ --out results/
    python -m pipeline.evaluate --model student --model teacher --task lee --out results/
    python -m pipeline.evaluate --model student --model student/onnx/model.onnx --task lee --out results/
    python -m pipeline.evaluate --model student --task mnli --grid --out results/       # data from the hub
    python -m pipeline.evaluate --model student --task mnli,qnli --grid --out results/ --workers auto
    torchrun --nproc-per-node 8 -m pipeline.evaluate --model student --task squad2 --out results/

A cell is one model on one task at one learning rate, number of epochs and seed; sts, lee and bitext train nothing and have one
cell. Everything is checked before the first is trained. A finished cell is written to OUT at once and not run again, by any
command; one that fails is recorded with its reason, the others are run, and the command ends with code 1. Any number of
commands, on any number of hosts, may work on one OUT at the same time: each cell is run once.
"""

import argparse
import math
import os
import re
import sys
from pathlib import Path

from data_prep.cli import Parser, aligned, run_command, sign_of_life, whole_number
from pipeline.artifacts import results
from pipeline.evaluate import WORKER
from pipeline.evaluate.tasks import TASKS, check_task, is_own, names_in
from pipeline.forms.files import is_form
from pipeline.models.folders import check_folder

SEEDS = (1, 2, 3, 4)  # the papers give means of four runs


def table(found: results.Results, models: list[str], tasks: list[str]) -> str:
    """Models × tasks: mean ± sample standard deviation over the seeds of the best setting; what one answer for all scores."""
    rows = [["", *(f"{task} ({TASKS[task].primary})" for task in tasks)]]
    for model in models:
        rows.append([model, *(_figure(found.of(model, task)) for task in tasks)])
    scored = {task: [cell for cell in found.cells if cell.task == task and cell.model in models] for task in tasks}
    rows.append(["majority baseline", *(results.shown_majority(scored[task]) for task in tasks)])
    return "\n".join(aligned(rows, left=1 + len(tasks)))


def _figure(cells: list[results.Cell]) -> str:
    if not cells:
        return "–"
    setting, mean, spread, count = results.best(cells)
    if "seed" not in cells[0].settings:
        return f"{mean:.1f}"
    rate, epochs = setting["learning_rate"], setting["epochs"]
    return f"{results.shown_mean(mean, spread)} (n = {count}, lr {rate:g}, {epochs} epochs)"


def parser() -> Parser:
    made = Parser(
        prog="python -m pipeline.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add(
        "--model",
        action="append",
        required=True,
        help="a Hugging Face folder or hub id, or a form in it like DIR/onnx/model.onnx; may be given several times",
    )
    add("--task", required=True, help=f"one or several, separated by commas: {', '.join(TASKS)}; your own as FILE.toml")
    add("--data", help="a folder with the original files, or a hub id (default: the task's own on the hub)")
    add("--out", type=Path, required=True, help="the folder for results")
    add("--name", help="the model's name there (default: its folder's)")
    add("--seeds", type=whole_number(0, 2**32), nargs="+", default=SEEDS, help="default: 1 2 3 4")
    add("--grid", action="store_true", help="the paper's learning rates × epochs (default: one of them, in the middle)")
    add("--learning-rate", type=_rate, nargs="+", default=(), help="override the paper's learning rates")
    add("--epochs", type=whole_number(1), nargs="+", default=(), help="override the paper's epochs")
    add("--batch", type=whole_number(1), help="rows per update (default: the paper's)")
    add("--length", type=whole_number(1), help="tokens (default: the paper's)")
    add(
        "--keep",
        nargs="+",
        default=(),
        choices=("models", "predictions"),
        help="also keep each cell's fine-tuned model, its predictions, or both, next to its scores",
    )
    add("--languages", help="of XNLI, MLQA, XQuAD and bitext, separated by commas (default: all that are there)")
    add(
        "--prefix", help="before each text in sts, lee and bitext, like 'query: ' (default: as the model's folder says)"
    )
    add(
        "--workers",
        type=_workers,
        default="1",
        metavar="N",
        help="processes that run cells at the same time; auto: one on each GPU, without GPUs one on each core (default: 1)",
    )
    add("--dry-run", action="store_true", help="print the cells, those left, and the hours by those done; run nothing")
    return made


def _workers(text: str) -> str:
    if not re.fullmatch("auto|[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto or a whole number of at least 1")
    return text


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number above 0")
    return value


def main() -> int:
    options = parser().parse_args()
    for name in names_in(options.task):
        if not is_own(name):
            check_task(name)
    for model in options.model:
        if not is_form(model):
            check_folder(model)
    worker = WORKER in os.environ
    if not worker:
        sign_of_life("Loading torch, transformers and datasets, then tasks and models")
    from pipeline.evaluate import cells, outlook, preparing, running, workers  # torch and others take seconds

    if worker:
        workers.begin()
    preparing.quieten_libraries()
    say = print if cells.is_first() else _say_nothing
    note = _say_nothing if worker else say
    jobs = preparing.prepare(options, note)
    turns = running.turns_of(jobs)
    if options.dry_run:
        number = workers.count(options.workers, len(turns))
        done = results.read_results(options.out).cells if options.out.exists() else []
        say(outlook.outlook(jobs, turns, done, number))
        return 0

    results.make_folder(options.out)
    preparing.agree(jobs)
    turns = running.turns_of(jobs)
    for model in {job.model.name: job.model for job in jobs}.values():
        cells.make_model_folder(options.out, model)
    running.introduce(jobs, note)
    ended = []
    if options.workers != "1" and turns:
        ended = workers.run(workers.count(options.workers, len(turns)), say)
    else:
        running.run(turns, say)
    return 0 if worker else _conclude(options.out, jobs, turns, ended)


def _conclude(out: Path, jobs: list, turns: list, ended: list[str]) -> int:
    """Print the table, update model cards, report what failed. ``ended``: workers that did not come to their end."""
    from pipeline.evaluate import cells, model_index, running

    if not cells.is_first():
        return 0
    found = results.read_results(out)
    models, tasks = (list(dict.fromkeys(names)) for names in zip(*((j.model.name, j.task) for j in jobs), strict=True))
    print("\n" + table(found, models, tasks))
    for model in {job.model.name: job.model for job in jobs if not job.model.form}.values():
        if line := model_index.record_scores(Path(model.path), model.name, model.card["weights"], found):
            print(line)
    failed = running.failures(turns)
    if missing := sum(not turn.ended for turn in turns):
        failed += [*ended, f"{missing} cells are not finished; run the same command again"]
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


def _say_nothing(*_: object, **__: object) -> None:
    """Print for every process but the first."""


if __name__ == "__main__":
    run_command(main)
