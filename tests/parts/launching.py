"""Starting processes from tests, with a clean environment: by the DeepSpeed launcher, or ranks alone."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_prep.cli import run_command
from pipeline.processes import free_port

ROOT = Path(__file__).parents[2]
PATIENCE = 900  # seconds for what must end by itself: no test may fail because others use the machine


def environment() -> dict[str, str]:
    """This process's environment, without what a launcher or an earlier test has set; one thread, so that bits can agree."""
    gone = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DISTILL_PARENT"}
    kept = {key: value for key, value in os.environ.items() if key not in gone}
    return kept | {"DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def command(ranks: int, module: str, *arguments: str) -> list[str]:
    """`deepspeed` for ``ranks`` processes of ``module`` on this machine."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--num_gpus", str(ranks)]
    return [*launcher, "--master_addr", "127.0.0.1", "--master_port", str(free_port()), "--module", module, *arguments]


def run(ranks: int, module: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(ranks, module, *arguments),
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
        timeout=PATIENCE,
    )


def run_main(monkeypatch, capsys, main, *arguments) -> tuple[int, str, str]:
    """Exit code, output and error line of a command that is run in this process, by its ``main``."""
    monkeypatch.setattr(sys, "argv", [main.__module__, *map(str, arguments)])
    try:
        run_command(main)
    except SystemExit as end:
        return end.code, *capsys.readouterr()


def start_ranks(world: int, *arguments: str, slots: tuple[int, ...] = ()) -> list[subprocess.Popen]:
    """`python -m` these ``arguments``, ``world`` times, as ranks of each other: without a launcher, whose start costs seconds.

    With ``slots`` the environment is that of DeepSpeed's launcher on hosts of so many ranks each, and TESTS_HOST names the
    host: see ``be_on_host``. Their output is piped, as text.
    """
    processes = []
    port, hosts = free_port(), [(host, size) for host, size in enumerate(slots or (world,)) for _ in range(size)]
    for rank, (host, size) in enumerate(hosts):
        place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank % size, "LOCAL_WORLD_SIZE": size}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        place |= {"TESTS_HOST": f"host{host}"} if slots else {}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", *arguments],
                env=environment() | {key: str(value) for key, value in place.items()},
                cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    return processes


def be_on_host() -> None:
    """Have this process, a rank that ``start_ranks`` has started, believe that its machine has the name TESTS_HOST."""
    if name := os.environ.get("TESTS_HOST"):
        socket.gethostname = lambda: name


def run_jobs(folder: Path, ranks: int, jobs: list[dict]) -> list:
    """Run ``jobs`` (see jobs.py) with ``ranks`` processes, a single one being this; returns what rank 0 returns."""
    if ranks == 1:
        from tests.parts import jobs as runner  # loads DeepSpeed: seconds that most users of this file do not need

        return runner.run(jobs)
    path = folder / f"jobs{ranks}.json"
    path.write_text(json.dumps(jobs))
    processes = start_ranks(ranks, "tests.parts.jobs", str(path))
    with ThreadPoolExecutor() as pool:  # each pipe has its reader
        try:
            output = list(pool.map(lambda process: "".join(process.communicate(timeout=PATIENCE))[-3000:], processes))
        finally:
            for process in processes:
                process.kill()
    assert not any(process.returncode for process in processes), "\n".join(output)
    return json.loads(Path(f"{path}.0.errors").read_text())


def finish_jobs(folder: Path, ranks: int, jobs: list[dict]) -> None:
    """Run ``jobs``, none of which may fail, nor leave torch's linear replaced."""
    *errors, unharmed = run_jobs(folder, ranks, jobs)
    assert errors == [None] * len(jobs)
    assert unharmed
