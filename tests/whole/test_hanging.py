"""A rank that hangs but lives is named in time, wherever it hangs; and nobody is who is only slow."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.parts import launching
from tests.parts.tiny import make_recipe

pytestmark = pytest.mark.slow

TIMEOUT = 10  # seconds; also the patience with a phase that has been seen twice
EVER = 1e6  # seconds
HOST = socket.gethostname()
# rank, where and at which of its kind it sleeps, and what the line says.
HANGS = {
    "update": (1, "update", 5, "the update of step 5"),
    "evaluation": (0, "evaluation", 4, "the evaluation of step 6"),
    "gather": (1, "save", 3, "the save of step 6"),
    "write": (0, "write", 3, "the save of step 6"),
    "read": (1, "read", 8, "the read of its samples of step 8"),
}


class Ended(NamedTuple):
    """A job: its exit codes, error outputs, and processes, by rank."""

    codes: list[int]
    errors: list[str]
    pids: list[int]


class Jobs:
    """Runs of the tiny recipe with faults in them, all at once, by name."""

    def __init__(self, folder: Path):
        self.folder, self._jobs, self._names = folder, folder / "jobs.json", []
        self._content: list[dict] = []
        self._recipe = make_recipe(folder)

    def add(self, name: str, ranks: int, sleep: list[tuple] | None = None, agent: bool = False, **faults: dict) -> None:
        """A run of ``ranks`` that sleeps at these times (see tests.parts.faulty), or has other faults."""
        options = ["steps=12", "eval_every=2", "checkpoint_every=2", f"out={self.folder / name}"]
        faults["patience"] = {"floor": 1, "unknown": 30}
        if sleep:
            faults["sleep"] = {"times": sleep, "mark": str(self.mark(name))}
        job = {"module": "tests.parts.faulty", "ranks": ranks, "environment": {"FAULTS": json.dumps(faults)}}
        arguments = [str(self._recipe), *options, "--timeout", str(TIMEOUT)]
        self._content.append(job | {"arguments": arguments, "agent": agent})
        self._names.append(name)

    def start(self) -> None:
        self._jobs.write_text(json.dumps(self._content))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.parts.forking", str(self._jobs)],
            env=launching.environment(), cwd=launching.ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def mark(self, name: str) -> Path:
        return self.folder / f"{name}.mark"

    def wait_for(self, path: Path) -> None:
        deadline = time.monotonic() + launching.PATIENCE
        while not path.exists():
            assert time.monotonic() < deadline and self._process.poll() is None, path
            time.sleep(0.05)

    def pids(self, name: str) -> list[int]:
        number = self._names.index(name)
        ranks = range(self._content[number]["ranks"])
        return [int(Path(f"{self._jobs}.{number}.{rank}.pid").read_text()) for rank in ranks]

    def send(self, name: str, number: int, *ranks: int) -> None:
        for rank in ranks:
            os.kill(self.pids(name)[rank], number)

    def end(self) -> None:
        """Kill what still runs: a rank that nobody misses sleeps for days."""
        if self._process.poll() is None:
            for process in [*psutil.Process(self._process.pid).children(), self._process]:
                process.kill()

    def results(self) -> dict[str, Ended]:
        output, _ = self._process.communicate(timeout=launching.PATIENCE)
        found = {}
        for number, (name, codes) in enumerate(zip(self._names, json.loads(output.splitlines()[-1]), strict=True)):
            errors = [Path(f"{self._jobs}.{number}.{rank}.err").read_text() for rank in range(len(codes))]
            found[name] = Ended(codes, errors, self.pids(name))
        return found


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    jobs = Jobs(tmp_path_factory.mktemp("hanging"))
    for name, (rank, where, at, _) in HANGS.items():
        if where == "read":
            jobs.add(name, 2, slow_read={"rank": rank, "read": at, "seconds": EVER, "mark": str(jobs.mark(name))})
        else:
            jobs.add(name, 2, [(rank, where, at, EVER)])
    jobs.add("alone", 1, [(0, "update", 5, EVER)])
    jobs.add("terminated", 2, [(1, "update", 1, EVER)])
    slow = TIMEOUT + 3
    jobs.add(
        "slow",
        2,
        [(0, "evaluation", 1, slow), (1, "update", 1, slow), (0, "write", 1, slow)],
        True,
    )
    jobs.start()
    jobs.wait_for(jobs.mark("slow"))
    jobs.send("slow", signal.SIGSTOP, 0, 1)
    suspended = time.monotonic()
    jobs.wait_for(jobs.mark("terminated"))
    time.sleep(1)  # rank 0 waits in a collective, where it runs no handler in Python
    jobs.send("terminated", signal.SIGTERM, 0)
    time.sleep(max(0, suspended + slow - time.monotonic()))
    jobs.send("slow", signal.SIGCONT, 0, 1)
    yield jobs
    jobs.end()


@pytest.fixture(scope="module")
def ended(jobs):
    return jobs.results()


@pytest.mark.parametrize("name", HANGS)
def test_a_rank_that_hangs_is_named_by_all_in_time(ended, name):
    rank, _, _, where = HANGS[name]
    job = ended[name]
    assert job.codes == [1, 1], job.errors
    for error in job.errors:
        (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
        named = re.escape(f"error: rank {rank} (host {HOST}, process {job.pids[rank]}) hangs in {where}")
        found = re.match(named + r": no progress for (\d+) s, where \d+\.\d s were the longest so far; ", line)
        assert found, line
        assert TIMEOUT <= int(found[1]) <= TIMEOUT + 10
        assert line.endswith("the same command resumes from the newest checkpoint")


def test_a_single_process_that_hangs_says_so(ended):
    job = ended["alone"]
    assert job.codes == [1]
    assert (
        f"error: rank 0 (host {HOST}, process {job.pids[0]}) hangs in the update of step 5: no progress"
        in job.errors[0]
    )


def test_sigterm_that_cannot_be_followed_ends_the_run_with_a_line(ended):
    job = ended["terminated"]
    assert job.codes == [1, 1]
    for error in job.errors:
        found = re.search(
            rf"error: rank 0 \(host {HOST}, process {job.pids[0]}\) received SIGTERM (\d+) s ago and is still in the update of "
            rf"step 1, waiting for rank 1 \(host {HOST}, process {job.pids[1]}\); ",
            error,
        )
        assert found, error
        # The patience, and three times what the phases before have taken (Progress.time_to_leave), on a machine in use too.
        assert TIMEOUT <= int(found[1]) < 5 * TIMEOUT


def test_what_is_slow_or_suspended_is_not_taken_to_hang(jobs, ended):
    """The first update, evaluation and save take longer than later ones may, and all ranks are stopped for longer than that."""
    assert ended["slow"].codes == [0, 0], ended["slow"].errors
    assert (jobs.folder / "slow" / "COMPLETE").exists() and "error" not in "".join(ended["slow"].errors)
