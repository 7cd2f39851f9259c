"""evaluate --workers and --dry-run."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from data_prep.cli import UserError
from pipeline.artifacts import results
from pipeline.evaluate import workers
from pipeline.evaluate.__main__ import main
from tests.parts import killed_cells
from tests.parts import task_files as files
from tests.parts.launching import ROOT, environment
from tests.parts.tiny import make_teacher


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("models") / "small", layers=1, hidden=16, positions=160)


@pytest.fixture
def words(tmp_path, model):
    """The arguments of the command but for its results folder and workers."""
    files.write_glue(tmp_path / "data", "rte", train=64, dev=20)
    found = ["--model", model, "--data", tmp_path / "data", "--task", "rte", "--length", 32, "--epochs", 2]
    return [str(word) for word in [*found, "--seeds", 1, 2, 3, 4]]


def start(words, *options):
    command = [sys.executable, "-m", "pipeline.evaluate", *words, *map(str, options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a background script's is ignored
    return subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes, **heed)


def test_workers_are_as_many_as_asked_for_but_not_more_than_cells(monkeypatch):
    monkeypatch.setattr(workers.torch.cuda, "device_count", lambda: 0)
    assert [workers.count(asked, 3) for asked in (None, "1", "2", "9")] == [1, 1, 2, 3]
    assert workers.count("auto", 10_000) == workers.cores().number
    monkeypatch.setattr(workers.torch.cuda, "device_count", lambda: 8)
    assert workers.count("auto", 100) == 8 and workers.count("auto", 0) == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert workers.count(None, 3) == 1
    with pytest.raises(UserError, match="--workers auto: under torchrun all processes share each batch"):
        workers.count("auto", 3)


def test_a_worker_is_given_a_gpu_as_it_is_called_here(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert workers._gpu(1) == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5, GPU-7")
    assert workers._gpu(1) == "GPU-7"


@pytest.mark.parametrize("given", [["--workers", "2"], ["--workers=auto"]])
def test_a_worker_starts_none_itself(given):
    assert workers._arguments(["--task", "rte", *given, "--grid"]) == ["--task", "rte", "--grid"]


@pytest.mark.parametrize("given", ["0", "-1", "many"])
def test_a_number_of_workers_is_one(given, words, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate", *words, "--out", str(tmp_path / "out"), f"--workers={given}"])
    with pytest.raises(UserError, match=r"--workers: .* is not a whole number of at least 1"):
        main()


@pytest.mark.slow
def test_two_workers_run_each_cell_once_with_the_scores_of_one_process(words, tmp_path):
    alone, together = (
        start(words, "--out", tmp_path / "alone"),
        start(words, "--out", tmp_path / "both", "--workers", 2),
    )
    assert alone.wait() == 0, alone.stderr.read()
    assert together.wait() == 0, together.stderr.read()
    of = {out: results.read_results(tmp_path / out).cells for out in ("alone", "both")}
    assert [cell.scores for cell in of["alone"]] == [cell.scores for cell in of["both"]] and len(of["both"]) == 4
    said = together.stdout.read().splitlines()
    assert said[0] == "2 workers, 1 thread each"
    assert sorted(line.partition(":")[0] for line in said if " … " in line) == [
        f"rte {number}/4" for number in range(1, 5)
    ]
    assert sum(line.startswith("majority baseline") for line in said) == 1
    assert not list((tmp_path / "both").glob("*/*/.*")) and not (tmp_path / "both" / ".encoded").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_command(words, tmp_path, number):
    command = start(words, "--out", tmp_path / "out", "--workers", 2, "--seeds", *range(500))
    assert command.stdout.readline() == "2 workers, 1 thread each\n"
    command.stdout.readline()
    children = psutil.Process(command.pid).children()
    command.send_signal(number)
    assert command.wait(60) == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert len(children) == 2
    deadline = time.monotonic() + 60
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_dry_run_prints_what_is_left_and_the_hours_by_what_is_done(words, tmp_path, monkeypatch, capsys):
    def dry(*options):
        monkeypatch.setattr(sys, "argv", ["evaluate", *words, "--out", str(tmp_path / "out"), "--dry-run", *options])
        assert main() == 0
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    head, row, left = dry()
    assert head == "cells finished failed earlier left hours" and row == "rte 4 0 0 4 unknown"
    assert left == "4 cells left: 0.00 hours, by those done, 1 rows unknown: none of their cells is done"
    assert not (tmp_path / "out").exists()

    monkeypatch.setattr(sys, "argv", ["evaluate", *words, "--out", str(tmp_path / "out"), "--seeds", "1"])
    assert main() == 0
    capsys.readouterr()
    (cell,) = results.read_results(tmp_path / "out").cells
    record = cell.path.read_text().replace(f'"seconds": {cell.seconds}', '"seconds": 3600.0')
    cell.path.write_text(record)
    _, row, left = dry("--workers", "2")
    assert row == "rte 4 1 0 3 3.00" and left == "3 cells left: 1.50 hours in 2 workers, by those done"


@pytest.mark.slow
def test_kills_at_random_moments_lose_no_cell(tmp_path):
    killed_cells.main(tmp_path, 2)
