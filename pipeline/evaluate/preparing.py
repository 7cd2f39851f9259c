"""Everything that is read, checked and agreed on before the first cell is trained."""

import argparse
import logging
import warnings
from collections.abc import Callable

import accelerate
import datasets
import torch
import transformers
from accelerate.utils import broadcast_object_list

from data_prep.cli import UserError
from pipeline.artifacts import results
from pipeline.evaluate import embedding, finetune, own_tasks
from pipeline.evaluate.cells import Job, check_card, make_job
from pipeline.evaluate.scored_model import open_model
from pipeline.evaluate.task_data import read_task
from pipeline.evaluate.tasks import TASKS, check_task, is_own, names_in
from pipeline.models.arithmetic import adopt, rates


def check_options(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """(tasks, languages). Raises UserError for unknown tasks and options that clash."""
    tasks = [own_tasks.register(name) if is_own(name) else check_task(name) for name in names_in(options.task)]
    if len(set(tasks)) < len(tasks):
        raise UserError(f"--task {options.task}: two have the same name; give one of them another name in its file")
    if not tasks:
        raise UserError(f"--task {options.task!r}: no task; tasks are {', '.join(TASKS)}")
    if options.data and all(TASKS[task].own for task in tasks):
        raise UserError(f"--data {options.data}: {options.task} says where its files are; leave it out")
    if options.name and len(options.model) > 1:
        raise UserError(f"--name {options.name}: with {len(options.model)} models; evaluate them one after the other")
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out}: is not a folder")
    if options.workers != "1" and finetune.distributed():
        raise UserError(
            f"--workers {options.workers}: under torchrun all processes share each cell; leave one of them out"
        )
    trained = [task for task in tasks if not TASKS[task].embeds]
    for task in trained if options.workers == "1" else ():  # each worker looks for itself
        finetune.check_batch(options.batch or TASKS[task].batch)
    if not trained and (unused := _unused(options)):
        raise UserError(f"{unused}: nothing is trained for {', '.join(tasks)}; leave it out")
    if options.prefix is not None and len(trained) == len(tasks):
        raise UserError(f"--prefix: is for the tasks that train nothing, not for {', '.join(tasks)}; leave it out")
    options.seeds = list(dict.fromkeys(options.seeds))
    return tasks, names_in(options.languages or "")


def _unused(options: argparse.Namespace) -> str:
    """An option that is given and only for training."""
    given = {"--learning-rate": options.learning_rate, "--epochs": options.epochs, "--grid": options.grid}
    given |= {"--batch": options.batch, "--keep": options.keep}
    return next((name for name, value in given.items() if value), "")


def quieten_libraries() -> None:
    """Silence what the libraries print between our own lines about their inner workings."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    for library in ("accelerate", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def prepare(options: argparse.Namespace, say: Callable[..., object]) -> list[Job]:
    """Read and check all models, tasks and earlier results: the jobs of all models on all tasks."""
    tasks, languages = check_options(options)
    if options.out.is_dir():
        results.read_results(options.out)
    data = {task: read_task(task, options.data, languages) for task in tasks}
    facts = {task: data[task].facts() for task in tasks}
    for each in data.values():
        for note in each.notes:
            say(note)
    models = [open_model(path, options.name) for path in options.model]
    if len({model.name for model in models}) < len(models):
        raise UserError(
            f"--model: {', '.join(options.model)}: two have the same name; evaluate one of them with --name"
        )
    for model in models:
        check_card(model, options.out)

    jobs = [make_job(options, model, task, data[task], facts[task]) for model in models for task in tasks]
    folders = {model.path: model for model in reversed(models)}  # a form has the notes of its folder
    for model in reversed(folders.values()):
        if any(TASKS[task].embeds for task in tasks):
            for note in embedding.notes(model, options.prefix):
                say(note)
    for job in jobs:
        if tuple(job.order) != TASKS[job.task].labels:
            say(f"{job.model.name}: comes with a head for {job.task}; its label order is kept: {', '.join(job.order)}")
    return jobs


def agree(jobs: list[Job]) -> None:
    """Give all processes what the first one has found: which cells are finished or failed, and what the CPU is faster in.

    They must run the same cells, in the same order and precision.
    """
    if not finetune.distributed():
        return
    if torch.cuda.is_available():
        accelerate.PartialState(cpu=False)
    else:
        first = accelerate.PartialState(cpu=True, backend="gloo").is_main_process
        (found,) = broadcast_object_list([rates() if first else None])
        adopt(found)
    for job in jobs:
        job.finished[:], job.failed[:] = broadcast_object_list([job.finished, job.failed])
