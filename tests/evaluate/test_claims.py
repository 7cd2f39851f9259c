"""evaluate.claims and running: each cell is run by one process, whoever else works on the results folder."""

import errno
import fcntl
import json
import signal
import subprocess
import sys
import threading
import time

import pytest

from data_prep import locks
from data_prep.cli import UserError
from data_prep.files import write_json
from pipeline.evaluate import claims, running, sharing
from pipeline.evaluate.__main__ import parser
from pipeline.evaluate.claims import claim, holders
from pipeline.evaluate.preparing import prepare
from tests.parts import task_files as files
from tests.parts.launching import ROOT
from tests.parts.tiny import make_teacher

HOLD = "import sys, time, pathlib\nfrom pipeline.evaluate.claims import claim\n"
HOLD += "with claim(pathlib.Path(sys.argv[1])): print(1, flush=True); time.sleep(100)"


@pytest.fixture
def cell(tmp_path):
    return tmp_path / "model" / "rte" / "lr3e-05-epochs1-seed1.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("models") / "small", layers=1, hidden=16, positions=160)


@pytest.fixture
def job(tmp_path, model):
    """One of three cells, before the first is run."""
    files.write_glue(tmp_path / "data", "rte")
    words = ["--model", model, "--data", tmp_path / "data", "--out", tmp_path / "out", "--task", "rte"]
    words += ["--seeds", 1, 2, 3, "--epochs", 1, "--length", 32]
    (made,) = prepare(parser().parse_args(list(map(str, words))), print)
    return made


def test_a_claim_is_held_by_one_and_gone_at_its_end(cell):
    with claim(cell) as first:
        assert not first
        with claim(cell) as second:
            assert second.startswith("process ") and " on " in second
        assert holders(cell.parents[2]) == {second}
    assert not list(cell.parent.iterdir()) and not holders(cell.parents[2])
    with claim(cell) as again:
        assert not again


@pytest.mark.slow
def test_the_claim_of_a_killed_process_is_free_at_once(cell):
    with subprocess.Popen([sys.executable, "-c", HOLD, cell], cwd=ROOT, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with claim(cell) as holder:
            assert f"process {other.pid} on" in holder
        other.send_signal(signal.SIGKILL)
        other.wait()
        with claim(cell) as holder:
            assert not holder


def test_a_claim_that_was_removed_since_it_was_opened_is_none(cell, monkeypatch):
    attempts = []

    def lose_the_first(file, kind):
        attempts.append(kind)
        if len(attempts) == 1:
            (cell.parent / f".{cell.stem}.claim").unlink()
        return locks.try_lock(file, kind)

    monkeypatch.setattr(claims, "try_lock", lose_the_first)
    with claim(cell) as holder:
        assert not holder and len(attempts) == 2 and len(list(cell.parent.iterdir())) == 1


def test_a_file_system_without_locks_is_named(cell, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(UserError, match=r"\.claim: this file system has no locks \(No locks available\); use one"),
        claim(cell),
    ):
        pass


def finish(job, cell, score=50.0):
    """Write a cell as the process would that has run it."""
    record = {"format": 1, "model": job.model.name, "weights": job.model.card["weights"], "task": job.task}
    record |= {"settings": cell.settings, "data": job.facts, "scores": {"accuracy": score}, "primary": "accuracy"}
    write_json(cell.path, record | {"split": "dev", "seconds": 36.0})


@pytest.fixture
def ran(monkeypatch):
    """The seeds that this process has run."""
    seeds = []

    def run(job, cell, encoded):
        seeds.append(cell.settings["seed"])
        finish(job, cell)
        return "accuracy 50.0", True

    monkeypatch.setattr(running, "run_cell", run)
    monkeypatch.setattr(running, "PAUSE", 0.05)
    return seeds


def elsewhere(cell, ending):
    """Another process that has the cell for a second, and what it then does."""
    held = threading.Event()

    def work():
        with claim(cell.path):
            held.set()
            time.sleep(1)
            ending()

    thread = threading.Thread(target=work)
    thread.start()
    held.wait()
    return thread


def run_with(job, ending):
    said = []
    thread = elsewhere(job.cells[0], ending)
    failed = running.run_jobs(running.left_of(job, "rte"), lambda *words, **_: said.append(" ".join(words)))
    thread.join()
    return failed, said


def test_a_cell_that_another_process_runs_is_waited_for_and_not_run_again(job, ran):
    failed, said = run_with(job, lambda: finish(job, job.cells[0]))
    assert not failed and ran == [2, 3]
    (waits,) = [line for line in said if "waiting" in line]
    assert waits.startswith("1 of the cells are run by process ") and waits.endswith("; waiting for them")


def test_the_cell_of_a_process_that_has_died_is_run_here(job, ran):
    failed, _ = run_with(job, lambda: None)
    assert not failed and ran == [2, 3, 1]


def test_a_cell_that_has_failed_elsewhere_is_told_and_not_run_again(job, ran):
    record = {
        "format": 1,
        "model": job.model.name,
        "task": "rte",
        "settings": {"seed": 1},
        "error": "RuntimeError: lost",
    }
    failed, _ = run_with(job, lambda: write_json(job.cells[0].failure, record))
    assert ran == [2, 3]
    assert failed == ["rte lr 3e-05, 1 epochs, seed 1: failed: RuntimeError: lost"]


def test_a_cell_of_other_settings_that_another_process_has_run_is_not_believed(job, ran):
    def finish_otherwise():
        finish(job, job.cells[0])
        record = json.loads(job.cells[0].path.read_text())
        record["settings"]["batch"] = 7
        write_json(job.cells[0].path, record)

    with pytest.raises(UserError, match="was made with batch 7, now batch 32"):
        run_with(job, finish_otherwise)


def test_rows_are_encoded_once_for_all_processes(job, monkeypatch):
    from pipeline.evaluate import cells, finetune

    first = cells.encode(job, job.out)
    monkeypatch.setattr(finetune, "encode_labelled", lambda *_: pytest.fail("encoded again"))
    second = cells.encode(job, job.out)
    assert first.train.to_dict() == second.train.to_dict()
    assert first.dev[""].features.to_dict() == second.dev[""].features.to_dict()
    with claim(job.cells[0].path):
        sharing.remove(job.out)
        assert (job.out / sharing.FOLDER).is_dir()
    sharing.remove(job.out)
    assert not (job.out / sharing.FOLDER).exists()


def test_rows_of_another_tokenizer_length_or_set_are_others(job):
    keys = {sharing.key_of(job.model, "rte", "train", 32), sharing.key_of(job.model, "rte", "train", 64)}
    keys.add(sharing.key_of(job.model, "rte", "dev ", 32))
    job.model.tokenizer.add_tokens(["neu"])
    keys.add(sharing.key_of(job.model, "rte", "train", 32))
    assert len(keys) == 4
