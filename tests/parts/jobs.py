"""Runs several distillations in one start: `python -m tests.parts.jobs JOBS.json`, as a rank. Starting costs seconds.

JOBS.json is a list of {"recipe", "overrides", "stop_at"}; with "copy_of" the run's folder is first made a copy of another,
"without" some of its folders. JOBS.json.RANK.errors receives a list: for each job its error's message or null, and last
whether torch.nn.functional.linear is still torch's own.
"""

import gc
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TextIO

import torch

from data_prep.cli import UserError
from pipeline.distill import distill
from pipeline.engines import ds_config, state
from pipeline.engines.ranks import start_ranks
from pipeline.settings.reading import load_recipes
from pipeline.training import start, trainee
from pipeline.training.monitor import Monitor

LINEAR = torch.nn.functional.linear


def steep(losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same finite losses, with a gradient that is infinite."""
    return losses | {"loss": losses["loss"] + torch.sqrt(losses["loss"] - losses["loss"].detach())}


def fill(file: TextIO) -> None:
    """Let no write to an open file be accepted, as the kernel does it of a full disk."""
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file.fileno())
    os.close(full)


def run(jobs: list[dict]) -> list:
    """Run ``jobs`` as this rank; returns what JOBS.json.RANK.errors receives."""
    rank = start_ranks().rank
    errors = []
    gc.freeze()  # DeepSpeed collects garbage whenever it makes an engine, and would look through every import
    for job in jobs:
        if "copy_of" in job and rank == 0:
            (out,) = (value.removeprefix("out=") for value in job["overrides"] if value.startswith("out="))
            shutil.copytree(job["copy_of"], out)
            for name in job["without"]:
                shutil.rmtree(Path(out, name))
        build_student, relation_loss = start.build_student, trainee.relation_loss
        if job.get("ranks_differ"):
            start.build_student = lambda config, seed, build=build_student: build(config, seed + rank)
        if job.get("infinite_gradient"):
            trainee.relation_loss = lambda *arguments, loss=relation_loss, **how: steep(loss(*arguments, **how))
        is_trained = state._is_trained
        if job.get("unchecked"):
            state._is_trained = lambda parameter, weight: True
        log = Monitor.log
        if name := job.get("full_disk"):
            Monitor.log = lambda monitor, *a, log=log, name=name, **k: (
                fill(getattr(monitor, name)),
                log(monitor, *a, **k),
            )
        rejected = dict(ds_config._ZERO_REFUSED)
        ds_config._ZERO_REFUSED.pop(job.get("let_through"), None)
        try:
            distill(load_recipes(job["recipe"], job.get("overrides", [])), job.get("stop_at"))
            errors.append(None)
        except (UserError, RuntimeError) as error:
            errors.append(str(error))
        finally:
            start.build_student, trainee.relation_loss = build_student, relation_loss
            state._is_trained, Monitor.log = is_trained, log
            ds_config._ZERO_REFUSED.update(rejected)
    return [*errors, torch.nn.functional.linear is LINEAR]


if __name__ == "__main__":
    path = Path(sys.argv[1])
    Path(f"{path}.{os.environ['RANK']}.errors").write_text(json.dumps(run(json.loads(path.read_text()))))
