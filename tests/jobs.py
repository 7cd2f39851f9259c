"""Runs several distillations in one start: `python -m tests.jobs JOBS.json`, as a rank. Starting costs seconds.

JOBS.json is a list of {"recipe", "overrides", "stop_at"}; with "copy_of" the run's folder is first made a copy of another,
"without" some of its folders. What goes wrong in a job is written to JOBS.json.RANK.errors,
a list of messages or null, and so is whether torch.nn.functional.linear is still torch's own.
"""

import gc
import json
import os
import shutil
import sys
from pathlib import Path

import torch

from data_prep.errors import UserError
from pipeline import distill as distill_module
from pipeline import encoders, step
from pipeline.ranks import start_ranks
from pipeline.recipe import load_recipes

LINEAR = torch.nn.functional.linear


def steep(losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same finite losses, with a gradient that is infinite."""
    return losses | {"loss": losses["loss"] + torch.sqrt(losses["loss"] - losses["loss"].detach())}


def run(jobs: list[dict]) -> list:
    """Do ``jobs`` as this rank."""
    rank = start_ranks().rank
    errors = []
    gc.freeze()  # DeepSpeed collects garbage whenever it makes an engine, and would look through every import
    for job in jobs:
        if "copy_of" in job and rank == 0:
            (out,) = (value.removeprefix("out=") for value in job["overrides"] if value.startswith("out="))
            shutil.copytree(job["copy_of"], out)
            for name in job["without"]:
                shutil.rmtree(Path(out, name))
        build_student, relation_loss = encoders.build_student, step.relation_loss
        if job.get("ranks_differ"):
            encoders.build_student = lambda config, seed, build=build_student: build(config, seed + rank)
        if job.get("infinite_gradient"):
            step.relation_loss = lambda *arguments, loss=relation_loss: steep(loss(*arguments))
        try:
            distill_module.distill(load_recipes(job["recipe"], job.get("overrides", [])), job.get("stop_at"))
            errors.append(None)
        except (UserError, RuntimeError) as error:
            errors.append(str(error))
        finally:
            encoders.build_student, step.relation_loss = build_student, relation_loss
    return [*errors, torch.nn.functional.linear is LINEAR]


if __name__ == "__main__":
    path = Path(sys.argv[1])
    Path(f"{path}.{os.environ['RANK']}.errors").write_text(json.dumps(run(json.loads(path.read_text()))))
