"""``python -m pipeline.bench finetune``: the fine-tuning of ``evaluate`` compared with a plain Trainer.

The plain one is that of example scripts for the same rows and settings: the model as transformers loads it, rows in random
order, bf16 by autocast where the device has units for it, scored after its last epoch (``evaluate`` keeps XNLI's best). For
their speed both train on the same batches, so the gain of ``evaluate`` by grouping rows of similar length is left out.
"""

import statistics
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from transformers import DataCollatorWithPadding, Trainer, set_seed

from data_prep.cli import UserError
from pipeline.bench.tools import Row
from pipeline.evaluate.__main__ import parser
from pipeline.evaluate.cells import Job, scored
from pipeline.evaluate.finetune import Encoded, arguments, make_trainer, quieten, scores_of, train, with_head
from pipeline.evaluate.preparing import prepare, quieten_libraries
from pipeline.evaluate.sharing import encode
from pipeline.evaluate.tasks import TASKS
from pipeline.measuring import device_here, interleaved_times, median_ratio


def finetune(options: Namespace) -> Iterator[Row]:
    """Measure a step of both, and with ``options.seeds`` the scores of the plain one after training to the end.

    Raises UserError for whatever ``evaluate`` rejects.
    """
    quieten_libraries()
    with tempfile.TemporaryDirectory() as folder:
        job = _job(options, folder)
        encoded = encode(job)
        settings = job.cells[0].settings
        kept = {key: value for key, value in settings.items() if key not in ("seed", "stride")}
        case = {"model": job.model.name, "task": job.task, **kept}
        both = {
            "plain Trainer": _plain(job, encoded, settings, folder),
            "evaluate": make_trainer(job.model, job.task, job.order, encoded, settings, folder),
        }
        for trainer in both.values():
            trainer.args.train_sampling_strategy, trainer.args.max_steps = "random", options.steps
            trainer.args.eval_strategy = "no"
        works = {name: trainer.train for name, trainer in both.items()}
        times = interleaved_times(works, options.repeats, device_here())
        for name, each in times.items():
            yield Row(name, statistics.median(each) / options.steps, "s", f"a step, of {options.steps}", case)
        share = median_ratio(times["evaluate"], times["plain Trainer"])
        yield Row("evaluate / plain", share, "×", "target: at most 1.10", case)
        del both, works, trainer

        primary = TASKS[job.task].primary
        for cell in job.cells if options.seeds else []:
            set_seed(cell.settings["seed"])
            trainer = _plain(job, encoded, cell.settings, folder)
            try:
                train(trainer)
            except RuntimeError as error:
                raise UserError(f"seed {cell.settings['seed']}: {error}") from None
            scores = scored(job, scores_of(trainer, encoded.scored), {})["scores"]
            yield Row(f"seed {cell.settings['seed']}", scores[primary], "%", f"{primary}, plain Trainer", case)


def _job(options: Namespace, folder: str) -> Job:
    """The job that ``evaluate`` would run, by its own options and checks."""
    words = ["--model", options.model, "--task", options.task, "--out", str(Path(folder, "results"))]
    for name in ("data", "learning_rate", "epochs", "batch", "length", "languages"):
        if (value := getattr(options, name)) is not None:
            words += ["--" + name.replace("_", "-"), value]
    words += ["--seeds", *map(str, options.seeds or [1])]
    jobs = prepare(parser().parse_args(words), lambda *_: None)
    if len(jobs) > 1:
        raise UserError(f"--task {options.task}: measure one task at a time")
    return jobs[0]


def _plain(job: Job, encoded: Encoded, settings: dict, folder: str) -> Trainer:
    made = arguments(folder, settings, False)
    made.train_sampling_strategy = "random"
    trainer = Trainer(
        model=with_head(job.model, TASKS[job.task], job.order),
        args=made,
        train_dataset=encoded.train,
        data_collator=DataCollatorWithPadding(job.model.tokenizer),
        processing_class=job.model.tokenizer,
    )
    quieten(trainer)
    return trainer
