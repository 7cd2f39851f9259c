"""The memory model compared with a real run on this machine: ``python -m pipeline.plan RECIPE --measure``.

The run is one of fresh processes (measured.py).
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from data_prep.cli import UserError
from pipeline.processes import free_port
from pipeline.settings.reading import load_recipes

_SECONDS = 900


@dataclass(frozen=True)
class Comparison:
    """One number of the model and of a run: bytes above the framework's own."""

    what: str
    model: float
    run: float

    @property
    def error(self) -> float:
        return self.model / self.run - 1


def compare(recipe: str, overrides: list[str], ranks: int) -> list[Comparison]:
    """Run the recipe in ``ranks`` fresh processes on this machine and return the model's numbers next to theirs."""
    if not Path("/proc/self/clear_refs").exists():
        raise UserError("--measure: needs Linux's /proc to see how much memory a process has held")
    load_recipes(recipe, overrides)
    gpus = torch.cuda.device_count()
    if 0 < gpus < ranks:
        raise UserError(f"--ranks {ranks}: more than the {gpus} GPUs that are visible")
    environment = os.environ | {
        "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "MALLOC_ARENA_MAX": "1",  # one heap: what a thread frees can be given back
    }  # fmt: skip
    if not gpus:
        environment |= {"DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "pipeline.plan.measured", recipe, *overrides]
    processes: list[subprocess.Popen[str]] = []
    try:
        for rank in range(ranks):
            own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            errors = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
            processes.append(subprocess.Popen(command, env=own, text=True, stdout=subprocess.PIPE, stderr=errors))
        output, said = processes[0].communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(f"--measure: not done after {_SECONDS} s; use a smaller micro_batch or length") from None
    finally:
        for process in processes:
            process.kill()
            process.wait()

    if processes[0].returncode:
        cause = (said.strip().splitlines() or ["it was killed"])[-1].removeprefix("error: ")
        raise UserError(f"--measure: the run failed: {cause}")
    return [Comparison(**row) for row in json.loads(output.strip().splitlines()[-1])]
