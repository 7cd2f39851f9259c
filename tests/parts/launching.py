"""Starting processes from tests, with a clean environment: by the DeepSpeed launcher, or ranks alone."""

import json
import os
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


def start_ranks(world: int, *arguments: str, local: int | None = None) -> list[subprocess.Popen]:
    """`python -m` these ``arguments``, ``world`` times, as ranks of each other: without a launcher, whose start costs seconds.

    The environment says that ``local`` ranks share a node. Their output is piped, as text.
    """
    processes = []
    port, local = free_port(), local or world
    for rank in range(world):
        place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank % local, "LOCAL_WORLD_SIZE": local}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", *arguments],
                env=environment() | {key: str(value) for key, value in place.items()},
                cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    return processes


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
