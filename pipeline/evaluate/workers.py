"""Several processes that each run cells alone: one on each GPU, or on a CPU with a share of its threads."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import torch

from data_prep.cli import UserError
from data_prep.machine import cores, threads
from data_prep.processes import die_with
from pipeline.artifacts import results
from pipeline.evaluate import finetune
from pipeline.evaluate.cells import inode, is_finished
from pipeline.evaluate.running import Left
from pipeline.models.arithmetic import Rates, adopt, rates

WORKER = "DISTILL_EVALUATE_WORKER"  # the variable that makes a process one of them: [its parent, the parent's rates]


def count(asked: str | None, left: int) -> int:
    """The number of processes for ``left`` cells: as asked for, or with "auto" one for each GPU, or core without one."""
    if asked and finetune.distributed():
        raise UserError(
            f"--workers {asked}: under torchrun all processes share each batch; start the command without it"
        )
    most = (torch.cuda.device_count() or cores().number) if asked == "auto" else int(asked or 1)
    return max(1, min(most, left))


def become() -> bool:
    """Whether this process is a worker: if so it ends with its parent, and takes the parent's choice of arithmetic."""
    if WORKER not in os.environ:
        return False
    parent, found = json.loads(os.environ[WORKER])
    die_with(parent)
    if found:
        adopt(Rates(*found))
    return True


def run(number: int, left: list[Left], say: Callable[..., object]) -> list[str]:
    """Run the cells in ``number`` processes of this same command. Returns a line for each that failed or is left."""
    share = max(1, threads().number // number)
    gpus = torch.cuda.device_count()
    say(f"{number} workers, {'a GPU' if gpus else f'{share} thread' + 's' * (share > 1)} each", flush=True)
    mine = json.dumps([os.getpid(), None if gpus else tuple(rates())])
    started = []
    try:
        for worker in range(number):
            variables = {WORKER: mine, "OMP_NUM_THREADS": str(share)}
            if gpus:
                variables["CUDA_VISIBLE_DEVICES"] = _gpu(worker % gpus)
            command = [sys.executable, "-m", "pipeline.evaluate", *_arguments(sys.argv[1:])]
            started.append(subprocess.Popen(command, env=os.environ | variables))
        for process in started:
            if process.wait() < 0:
                say(f"a worker was ended by {signal.Signals(-process.returncode).name}; the others run its cell")
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()
    return [each.failed(reason) for each in left if (reason := _reason(each))]


def _gpu(number: int) -> str:
    """What CUDA_VISIBLE_DEVICES calls this GPU of those that are visible here."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[number].strip() if visible else str(number)


def _arguments(words: list[str]) -> list[str]:
    """The command's ``words`` without --workers."""
    kept = [word for word in words if not word.startswith("--workers=")]
    if "--workers" in kept:
        place = kept.index("--workers")
        del kept[place : place + 2]
    return kept


def _reason(left: Left) -> str:
    """Why a cell has no scores; "" if it has."""
    if is_finished(left.job, left.cell):
        return ""
    if inode(left.cell.failure) not in (None, left.failure):
        return f"failed: {results.read_failure(left.cell.failure).error}"
    return "not run: its worker ended; the same command runs it"
