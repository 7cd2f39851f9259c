"""Runs several distillations in one launch: `deepspeed --num_gpus N --module tests.jobs JOBS.json`. Starting costs seconds.

JOBS.json is a list of {"recipe", "overrides", "stop_at"}. What goes wrong in a job is written to JOBS.json.RANK.errors,
a list of messages or null, and so is whether torch.nn.functional.linear is still torch's own.
"""

import json
import sys
from pathlib import Path

import torch

from data_prep.errors import UserError
from pipeline import encoders, engines
from pipeline.distill import distill
from pipeline.recipe import load_recipe

LINEAR = torch.nn.functional.linear


def main() -> None:
    path = Path(next(argument for argument in sys.argv[1:] if not argument.startswith("--")))
    rank = engines.start_ranks().rank
    errors = []
    for job in json.loads(path.read_text()):
        build_student = encoders.build_student
        if job.get("ranks_differ"):
            encoders.build_student = lambda config, seed, build=build_student: build(config, seed + rank)
        try:
            distill(load_recipe(job["recipe"], job.get("overrides", [])), job.get("stop_at"))
            errors.append(None)
        except (UserError, RuntimeError) as error:
            errors.append(str(error))
        finally:
            encoders.build_student = build_student
    errors.append(torch.nn.functional.linear is LINEAR)
    Path(f"{path}.{rank}.errors").write_text(json.dumps(errors))


if __name__ == "__main__":
    main()
