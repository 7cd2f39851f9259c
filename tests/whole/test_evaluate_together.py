"""Evaluations that share a results folder: on two hosts, one of which dies; of one command's workers; and killed at random."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.parts import task_files
from tests.parts.killed_cells import records
from tests.parts.launching import PATIENCE, ROOT, environment
from tests.parts.namespaces import TwoHosts, missing
from tests.parts.tiny import make_teacher

pytestmark = pytest.mark.slow

SEEDS = 5


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    make_teacher(folder / "small", layers=1, hidden=16, positions=160)
    task_files.write_glue(folder / "data", "rte", train=96, dev=24)
    return folder


def command(place, name) -> list[str]:
    words = ["--model", place / "small", "--data", place / "data", "--task", "rte", "--epochs", 4, "--length", 32]
    words += ["--batch", 4, "--keep", "predictions", "--out", place / name, "--seeds", *range(SEEDS)]
    return [sys.executable, "-m", "pipeline.evaluate", *map(str, words)]


@pytest.fixture(scope="module")
def alone(place):
    """What one process leaves."""
    done = subprocess.run(command(place, "alone"), env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = records(place / "alone")
    assert len(found) == 2 * SEEDS
    return found


def until(holds) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def holders(place, name) -> list[dict]:
    """Who holds the claims that are there now."""
    found = []
    for path in (place / name).glob("small/rte/.*.claim"):
        try:
            found.append(json.loads(path.read_text()))
        except (OSError, ValueError):  # just being made or removed
            continue
    return found


@pytest.mark.skipif(bool(missing()), reason=f"two hosts need {missing()}")
def test_two_hosts_share_one_folder_and_one_takes_over_what_the_other_one_dies_with(place, alone, tmp_path):
    variables = [f"{key}={value}" for key, value in environment().items()]
    log = (tmp_path / "log").open("w+")
    with TwoHosts(tmp_path / "hosts") as hosts:
        started = {
            host: subprocess.Popen(
                hosts.command(host, "env", *variables, *command(place, "hosts"), folder=ROOT), stdout=log, stderr=log
            )
            for host in ("alpha", "beta")
        }
        until(lambda: {holder["host"] for holder in holders(place, "hosts")} == {"alpha", "beta"})
        hosts.kill("beta")
        assert started["alpha"].wait(PATIENCE) == 0, (tmp_path / "log").read_text()
        started["beta"].wait(PATIENCE)
    assert records(place / "hosts") == alone


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers need two cores")
def test_workers_give_the_table_of_one_process_also_if_one_of_them_is_killed(place, alone, tmp_path):
    with (tmp_path / "log").open("w") as log:
        parent = subprocess.Popen(
            [*command(place, "workers"), "--workers", "2"], env=environment(), cwd=ROOT, stdout=log, stderr=log
        )
        until(lambda: len(holders(place, "workers")) == 2)
        children = {child.pid for child in psutil.Process(parent.pid).children()}
        killed, *_ = [holder["process"] for holder in holders(place, "workers")]
        assert killed in children
        os.kill(killed, signal.SIGKILL)
        code = parent.wait(PATIENCE)
    said = (tmp_path / "log").read_text()
    assert code == 0 and "2 workers, a thread each" in said, said
    assert said.count("majority baseline  ") == 1 and "error" not in said
    assert records(place / "workers") == alone


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers need two cores")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_command(place, tmp_path, number):
    name = f"ended-{number.name}"
    with (tmp_path / "log").open("w") as log:
        words = [*command(place, name), "--workers", "2"]
        heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a background script's is ignored
        parent = subprocess.Popen(words, env=environment(), cwd=ROOT, stdout=log, stderr=log, **heed)
        until(lambda: len(holders(place, name)) == 2)
        children = psutil.Process(parent.pid).children()
        parent.send_signal(number)
        assert parent.wait(PATIENCE) == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert len(children) == 2
    until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))


def test_kills_at_random_moments_lose_no_cell_and_change_none(tmp_path):
    words = [sys.executable, "-m", "tests.parts.killed_cells", tmp_path, "3"]
    done = subprocess.run(list(map(str, words)), env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 killed in 1 folders of 6 cells: none lost, wrong or run twice" in done.stdout
