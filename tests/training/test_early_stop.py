"""pipeline.training.early_stop: a run that is asked to stop leaves after the same update on all ranks, with a checkpoint."""

import json
import os
import signal
import sys

import pytest
import torch

from data_prep.cli import UserError
from pipeline.artifacts.run_folder import ENDED
from pipeline.distill import distill, main
from pipeline.engines.ranks import Ranks
from pipeline.settings.reading import load_recipe
from pipeline.training.early_stop import EarlyStop
from tests.parts import launching
from tests.parts.tiny import make_recipe

ALONE = Ranks(0, 1, 1, torch.device("cpu"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_followed_in_the_next_step_of_a_single_process(tmp_path, number):
    before = signal.getsignal(number)
    with EarlyStop(ALONE, tmp_path) as early:
        assert not early.agreed(0)
        os.kill(os.getpid(), number)
        assert early.agreed(1)
        assert early.reason == f"{signal.Signals(number).name} was received"
    assert signal.getsignal(number) == before


def test_the_stop_file_is_followed_and_removed(tmp_path):
    with EarlyStop(ALONE, tmp_path) as early:
        (tmp_path / "STOP").touch()
        assert early.agreed(0) and "STOP was found" in early.reason
        early.forget()
        assert not (tmp_path / "STOP").exists()


def test_a_launch_says_in_the_stop_file_why(tmp_path):
    with EarlyStop(ALONE, tmp_path) as early:
        (tmp_path / "STOP").write_text("Ctrl-C\n")
        assert early.agreed(0) and early.reason == "Ctrl-C"


def test_after_max_hours_it_stops(tmp_path):
    with EarlyStop(ALONE, tmp_path, hours=1e-9) as early:
        assert early.agreed(0) and early.reason == "--max-hours 1e-09 are over"


@pytest.mark.slow
def test_a_run_that_stops_early_leaves_a_checkpoint_and_code_75_and_goes_on_to_the_same_student(tmp_path):
    path = make_recipe(tmp_path)
    for out in ("whole", "stopped"):
        early = 1e-9 if out == "stopped" else None
        assert distill([load_recipe(path, [f"out={tmp_path / out}"])], max_hours=early) == (75 if early else 0)
    stopped = tmp_path / "stopped"
    assert [folder.name for folder in (stopped / "checkpoints").iterdir()] == ["step-00000001"]
    assert not (stopped / "COMPLETE").exists()
    assert (
        "Stopped after step 1 (--max-hours 1e-09 are over); the same command resumes it."
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
        (["--timeout", "nan"], "--timeout nan: must be at least 5 seconds"),
        (["--timeout", "inf"], r"--timeout inf: must be at least 5 seconds and at most 1e\+06"),
        (["--timeout", "1e300"], r"--timeout 1e\+300: must be at least 5 seconds and at most 1e\+06"),
    ],
)
def test_options_out_of_range_are_refused(monkeypatch, options, message):
    monkeypatch.setattr(sys, "argv", ["distill", "demo", *options])
    with pytest.raises(UserError, match=message):
        main()


@pytest.mark.slow
def test_all_ranks_leave_after_the_same_update_however_far_one_is_ahead():
    """On a GPU a rank may begin updates before another has; nothing but the grants keeps these ranks together."""
    processes = launching.start_ranks(3, "tests.parts.leaving", "60")
    outputs = [process.communicate(timeout=launching.PATIENCE) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    found = json.loads(outputs[0][0].splitlines()[-1])
    assert all(len(set(steps)) == 1 for steps in found["left"]), found
    assert len({steps[0] for steps in found["left"]}) > 5  # at many moments
    assert found["lead"] >= 2  # they were apart
