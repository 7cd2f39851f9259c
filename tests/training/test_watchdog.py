"""pipeline.watchdog: a rank that is lost is named by all the others, in time; and stopping early is agreed by all."""

import json
import os
import signal
import socket
import sys
import time

import pytest
import torch

from data_prep.cli import UserError
from pipeline.artifacts.run_folder import ENDED
from pipeline.distill import distill
from pipeline.engines.ranks import Ranks, start_ranks
from pipeline.settings.reading import load_recipe
from pipeline.training.watchdog import EarlyStop
from tests.parts import launching
from tests.parts.tiny import make_recipe

TIMEOUT = 8


class Group:
    """Processes of one module that are ranks of each other, without a launcher that would end them."""

    def __init__(self, world: int, module: str, *arguments: str):
        self.processes = launching.start_ranks(world, module, *arguments)

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *reason) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def wait_for(self, text: str) -> None:
        for line in self.processes[0].stdout:
            if text in line:
                return
        raise AssertionError(self.processes[0].stderr.read())

    def ends(self, *ranks: int) -> tuple[float, list[str]]:
        """Seconds until all these have ended, and the `error:` line of each; their code is 1."""
        begin, lines = time.monotonic(), []
        for rank in ranks:
            _, error = self.processes[rank].communicate(timeout=launching.PATIENCE)
            told = [line for line in error.splitlines() if line.startswith("error: ")]
            assert len(told) == 1, error
            lines += told
        return time.monotonic() - begin, lines


# Rank 0 keeps the store in which all beat.
@pytest.mark.slow
@pytest.mark.parametrize("lost, how", [(0, signal.SIGKILL), (0, signal.SIGSTOP), (2, signal.SIGKILL)])
def test_a_rank_that_dies_or_stalls_is_named_by_all_others_in_time(lost, how):
    with Group(3, "tests.parts.watched", str(TIMEOUT), "for ever") as group:
        group.wait_for("running")
        process = group.processes[lost]
        process.send_signal(how)
        others = [rank for rank in range(3) if rank != lost]
        seconds, lines = group.ends(*others)
        assert seconds < TIMEOUT + 10
        for rank, line in zip(others, lines, strict=True):
            assert group.processes[rank].returncode == 1
            assert f"rank {lost} (host {socket.gethostname()}, process {process.pid}) has not been heard of for" in line
            assert "the same command resumes from the newest checkpoint" in line


@pytest.mark.slow
def test_a_mistake_that_one_rank_meets_ends_the_others_with_its_reason():
    with Group(3, "tests.parts.watched", "60", "error") as group:
        group.wait_for("running")
        seconds, lines = group.ends(0, 1)
        assert seconds < 60 and all(
            "rank 2 (host" in line and "has ended: shard 5 is damaged" in line for line in lines
        )
        _, error = group.processes[2].communicate()
        assert group.processes[2].returncode == 2 and "error: shard 5 is damaged" in error


@pytest.mark.slow
def test_a_rank_whose_program_fails_is_named_too():
    with Group(2, "tests.parts.watched", "60", "crash") as group:
        group.wait_for("running")
        seconds, (line,) = group.ends(0)
        assert seconds < 45 and "rank 1 (host" in line
        assert "ZeroDivisionError" in group.processes[1].communicate()[1]


@pytest.mark.slow
def test_when_all_is_well_nobody_is_missed():
    with Group(2, "tests.parts.watched", "5", "none") as group:
        for process in group.processes:
            output, error = process.communicate(timeout=launching.PATIENCE)
            assert process.returncode == 0 and "is done" in output and "error" not in error


# --- stopping early ---------------------------------------------------------------------------------------------------


@pytest.fixture
def alone():

    start_ranks()
    return Ranks(0, 1, 1, torch.device("cpu"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_followed_one_step_later(alone, tmp_path, number):
    before = signal.getsignal(number)
    with EarlyStop(alone, tmp_path) as early:
        assert not early.agreed()
        os.kill(os.getpid(), number)
        assert not early.agreed()
        assert early.agreed()
        assert early.reason == f"{signal.Signals(number).name} was received"
    assert signal.getsignal(number) == before


def test_the_stop_file_is_followed_and_removed(alone, tmp_path):
    with EarlyStop(alone, tmp_path) as early:
        (tmp_path / "STOP").touch()
        early.agreed()
        assert early.agreed() and "STOP was found" in early.reason
        early.forget()
        assert not (tmp_path / "STOP").exists()


def test_after_max_hours_it_stops(alone, tmp_path):
    with EarlyStop(alone, tmp_path, hours=1e-9) as early:
        early.agreed()
        assert early.agreed() and early.reason == "--max-hours 1e-09 are over"


@pytest.mark.slow
def test_a_run_that_stops_early_leaves_a_checkpoint_and_code_75_and_goes_on_to_the_same_student(tmp_path):
    path = make_recipe(tmp_path)
    for out in ("whole", "stopped"):
        early = 1e-9 if out == "stopped" else None
        assert distill([load_recipe(path, [f"out={tmp_path / out}"])], max_hours=early) == (75 if early else 0)
    stopped = tmp_path / "stopped"
    assert [folder.name for folder in (stopped / "checkpoints").iterdir()] == ["step-00000002"]
    assert not (stopped / "COMPLETE").exists()
    assert (
        "Stopped after step 2 (--max-hours 1e-09 are over); the same command resumes it."
        in (stopped / "log.txt").read_text()
    )
    (stopped / "STOP").touch()  # left over from an earlier launch
    assert distill([load_recipe(path, [f"out={stopped}"])]) == 0
    states = [tmp_path / out / "checkpoints" / "step-00000006" / "state.safetensors" for out in ("whole", "stopped")]
    assert states[0].read_bytes() == states[1].read_bytes()


@pytest.mark.slow
def test_how_a_launch_ended_is_on_record(tmp_path):
    path, run = make_recipe(tmp_path), tmp_path / "run"

    def record() -> dict:
        return json.loads((run / ENDED).read_text())

    for token, hours, code in (("a", 1e-9, 75), ("b", None, 0)):
        assert distill([load_recipe(path)], max_hours=hours, launch=token) == code
        assert record() == {"launch": token, "code": code}
    with pytest.raises(UserError, match=r"learning_rate = 1\.0"):
        distill([load_recipe(path, ["learning_rate=1.0"])], launch="c")
    assert record() == {"launch": "c", "code": 2}


@pytest.mark.parametrize(
    "options, message",
    [
        (["--max-hours", "0"], "--max-hours 0.0: must be above 0"),
        (["--timeout", "1"], "--timeout 1.0: must be at least 5 seconds"),
    ],
)
def test_options_out_of_range_are_refused(monkeypatch, options, message):
    from pipeline.distill import main

    monkeypatch.setattr(sys, "argv", ["distill", "demo", *options])
    with pytest.raises(UserError, match=message):
        main()
