"""Encoded rows of a task, kept for all its cells: made by the first process that needs them, read by all from one file.

    RESULTS/.encoded/KEY/SET/        the rows as the model's inputs, mapped into the memory of each process that reads them

The key is a hash of all that they follow from. The folder may be deleted when nobody is at work.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import transformers

from data_prep.files import new_folder
from pipeline.evaluate import finetune, qa
from pipeline.evaluate.cells import Job
from pipeline.evaluate.tasks import TASKS

FOLDER = ".encoded"


def encode(job: Job) -> finetune.Encoded:
    """The task's rows as the model's inputs, from the results folder if they are there."""
    task = TASKS[job.task]
    folder = job.cells[0].path.parents[2] / FOLDER / _key(job)
    sets = {"train": job.data.train}
    for kind, own in (("dev", job.data.dev), ("test", job.data.test)):
        sets |= {f"{kind}-{key}": rows for key, rows in own.items()}
    with _alone(folder):
        if not folder.exists():
            with new_folder(folder) as written:
                for number, (name, rows) in enumerate(sets.items()):
                    _encoded(job, rows, name != "train").save_to_disk(written / str(number))
        read = {name: datasets.load_from_disk(folder / str(number)) for number, name in enumerate(sets)}

    def scored_set(kind: str, key: str, rows: datasets.Dataset) -> finetune.ScoredSet:
        features = read[f"{kind}-{key}"]
        if task.answers:
            language = key if job.task == "mlqa" else None
            score = qa.scorer(rows, features, language, task.unanswerable)
            return finetune.ScoredSet(features.remove_columns(["start_positions", "end_positions"]), score)
        return finetune.labelled_set(features, task, job.order)

    dev = {key: scored_set("dev", key, rows) for key, rows in job.data.dev.items()}
    test = {key: scored_set("test", key, rows) for key, rows in job.data.test.items()}
    return finetune.Encoded(read["train"], test or dev, dev)


def _encoded(job: Job, rows: datasets.Dataset, is_scored: bool) -> datasets.Dataset:
    task, length = TASKS[job.task], job.cells[0].settings["length"]
    if task.answers:
        made = qa.encode_questions(rows, job.model.tokenizer, length, task.stride, finetune.IN_MEMORY)
    else:
        made = finetune.encode_labelled(rows, task, job.model.tokenizer, length, job.order)
    return made.sort("length", keep_in_memory=True) if is_scored else made  # so that batches are padded little


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process makes the folder, and keep others from it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _key(job: Job) -> str:
    """A hash of the data, the tokenizer and the settings."""
    task, tokenizer = TASKS[job.task], job.model.tokenizer
    own = {"vocabulary": sorted(tokenizer.get_vocab().items())}
    if tokenizer.is_fast:
        own = json.loads(tokenizer.backend_tokenizer.to_str()) | {
            "truncation": None,
            "padding": None,
        }  # of its last call
    parts = [
        *(job.facts["fingerprint"], job.task, job.order, task.labels, task.stride, job.cells[0].settings["length"]),
        *(
            type(tokenizer).__name__,
            tokenizer.model_input_names,
            tokenizer.padding_side,
            tokenizer.truncation_side,
            own,
        ),
        *(transformers.__version__, datasets.__version__),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
