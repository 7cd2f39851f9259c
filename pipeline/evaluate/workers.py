"""Workers: several processes of one command on this machine, each with a GPU, or a share of the cores, of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO

import torch

from data_prep import machine
from data_prep.cli import UserError
from data_prep.processes import die_with
from pipeline.evaluate import WORKER
from pipeline.models.arithmetic import Rates, adopt, rates

MEMORY = 4 * 2**30  # bytes that one on a CPU is given, where their number is found here


def begin() -> None:
    """In a worker: end with the parent, and take products as it does, whatever is measured here."""
    told = json.loads(os.environ[WORKER])
    die_with(told["parent"])
    if told["rates"]:
        adopt(Rates(*told["rates"]))


def count(asked: str, cells: int) -> int:
    """How many workers ``--workers`` means for so many cells. Raises UserError for more than there are cores."""
    gpus = torch.cuda.device_count()
    cores = machine.cores().number
    if asked == "auto":
        most = gpus or min(cores, machine.memory()["free"] // MEMORY)
        return max(1, min(most, cells))
    if not gpus and int(asked) > cores:
        raise UserError(f"--workers {asked}: {cores} cores here; give {cores} at most")
    return min(int(asked), max(1, cells))


def run(number: int, say: Callable[..., object]) -> list[str]:
    """Run this command in ``number`` processes to their end, and print what they print, by line.

    Returns a line for each that did not come to its end.
    """
    places = _places(number)
    say(f"{number} workers, {places[0][1]} each")
    told = {"parent": os.getpid(), "rates": None if torch.cuda.is_available() else rates()}
    command = [sys.executable, "-m", "pipeline.evaluate", *sys.argv[1:], "--workers", "1"]
    with contextlib.ExitStack() as stack:
        processes, readers = [], []
        for variables, _, cores in places:
            more = {WORKER: json.dumps(told), "PYTHONUNBUFFERED": "1"} | variables
            process = subprocess.Popen(
                command, env=os.environ | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            stack.callback(_end, process)
            if cores:
                os.sched_setaffinity(process.pid, cores)
            processes.append(process)
            readers.append(threading.Thread(target=_forward, args=(process.stdout, say), daemon=True))
            readers[-1].start()
        codes = [process.wait() for process in processes]
        for reader in readers:
            reader.join()
    return [f"worker {place}: {_ending(code)}" for place, code in enumerate(codes, 1) if code]


def _places(number: int) -> list[tuple[dict[str, str], str, set[int]]]:
    """For each worker its variables, what it has in words, and its cores (none: all)."""
    threads = max(1, machine.threads().number // number)
    if gpus := torch.cuda.device_count():
        names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = names[:gpus] if names != [""] else [str(gpu) for gpu in range(gpus)]
        devices = [names[place % gpus] for place in range(number)]
        return [
            ({"CUDA_VISIBLE_DEVICES": device, "OMP_NUM_THREADS": str(threads)}, "a GPU", set()) for device in devices
        ]
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // number
    variables = {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    words = f"{threads} threads" if threads > 1 else "a thread"
    return [(variables, words, set(cores[place * share : (place + 1) * share])) for place in range(number)]


def _forward(output: IO[str], say: Callable[..., object]) -> None:
    for line in output:
        say(line, end="", flush=True)


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    process.wait()


def _ending(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with code {code}"
