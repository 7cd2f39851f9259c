"""pipeline.evaluate: several processes share the cells of one folder; each is run once, and a dead one's are taken over."""

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time

import pytest
import torch

from data_prep.cli import UserError
from pipeline.artifacts import results
from pipeline.evaluate import cells, claims, finetune, running, sharing, workers
from pipeline.evaluate.__main__ import main, parser
from pipeline.evaluate.preparing import prepare
from pipeline.evaluate.sharing import encode
from pipeline.evaluate.tasks import TASKS
from tests.parts import task_files as files
from tests.parts.tiny import make_teacher

FAST = ("--epochs", "1", "--length", "32")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("models") / "small", layers=1, hidden=16, positions=160)


@pytest.fixture
def words(tmp_path, model):
    """The command line of three cells."""
    files.write_glue(tmp_path / "data", "rte")
    paths = ["--model", model, "--data", tmp_path / "data", "--out", tmp_path / "out"]
    return list(map(str, [*paths, "--task", "rte", "--seeds", 1, 2, 3, *FAST]))


@pytest.fixture
def jobs(words):
    def jobs_(*more):
        return prepare(parser().parse_args([*words, *more]), print)

    return jobs_


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model/task/.cell.claim"


def hold(path, taken):
    """Claim it in another process, until that is killed."""
    claims.take(path)
    taken.set()
    time.sleep(600)


@pytest.fixture
def holder(path):
    context = multiprocessing.get_context("fork")
    taken = context.Event()
    process = context.Process(target=hold, args=(path, taken))
    process.start()
    assert taken.wait(60)
    yield process
    process.kill()
    process.join()


# --- claims -----------------------------------------------------------------------------------------------------------


def test_a_claim_is_held_by_one_and_free_once_it_is_released_or_its_holder_is_dead(path, holder):
    assert claims.take(path) is None and claims.is_held(path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert path.exists() and not claims.is_held(path)
    begin = time.monotonic()
    claim = claims.take(path)
    assert claim is not None and time.monotonic() - begin < claims.LEASE / 2  # at once: a lock of this kernel is proof
    assert claims.take(path) is None
    claim.release()
    assert not path.exists()
    claims.take(path).release()


def left_by_another_host(path):
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"process": 1, "host": "gamma", "kernel": "another"}))


def test_the_claim_of_another_host_that_died_is_free_after_its_lease(path, monkeypatch):
    monkeypatch.setattr(claims, "LEASE", 0.5)
    left_by_another_host(path)
    os.utime(path, (2e9, 2e9))  # whatever its clock says
    begin = time.monotonic()
    assert claims.take(path) is not None and time.monotonic() - begin >= 0.5


def test_locks_that_another_host_does_not_see_are_noticed_by_its_touches(path, monkeypatch):
    monkeypatch.setattr(claims, "LEASE", 20.0)
    left_by_another_host(path)
    ended = threading.Event()
    touching = threading.Thread(target=lambda: [os.utime(path) for _ in range(400) if not ended.wait(0.05)])
    touching.start()
    try:
        with pytest.raises(
            UserError, match=r"gamma is at work on this cell, and locks .* give each host an --out of its"
        ):
            claims.take(path)
    finally:
        ended.set()
        touching.join()


def test_a_holder_touches_its_claim(path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.02)
    claim = claims.take(path)
    os.utime(path, (1, 1))
    deadline = time.monotonic() + 60
    while path.stat().st_mtime == 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    claim.release()


def test_a_file_system_without_locks_is_one_line_with_the_way_out(words, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(sys, "argv", ["evaluate", *words])
    with pytest.raises(UserError, match=r"this file system has no locks .*; use one that has"):
        main()


# --- cells ------------------------------------------------------------------------------------------------------------


def test_a_cell_that_another_process_runs_is_left_to_it_and_waited_for(jobs, monkeypatch):
    (job,) = jobs()
    first = job.cells[0]
    monkeypatch.setattr(finetune, "finetune", lambda *args: ({"": {"accuracy": 50.0 + args[-1]["seed"]}}, {}))
    claim = claims.take(first.claim)
    said = []

    def say(text, **_):
        said.append(text)
        if text.startswith("waiting for 1 cells"):  # the other process has finished it, and another score
            record = json.loads(job.cells[1].path.read_text()) | {
                "settings": first.settings,
                "scores": {"accuracy": 7.0},
            }
            cells.write_cell(first.path, record)
            claim.release()

    running.run(running.turns_of([job]), say)
    assert [line for line in said if "seed 1" in line] == [] and any("seed 2" in line for line in said)
    assert [results.read_cell(cell.path).score for cell in job.cells] == [7.0, 52.0, 53.0]


def test_a_cell_whose_process_died_is_run_by_the_one_that_waits(jobs, monkeypatch):
    (job,) = jobs()
    monkeypatch.setattr(finetune, "finetune", lambda *args: ({"": {"accuracy": 50.0}}, {}))
    claim = claims.take(job.cells[0].claim)
    running.run(running.turns_of([job]), lambda text, **_: claim.release() if text.startswith("waiting") else None)
    assert all(cell.path.exists() and not cell.claim.exists() for cell in job.cells)


def test_a_cell_that_is_finished_just_before_it_is_claimed_is_not_run_again(jobs, monkeypatch):
    (job,) = jobs()
    ran, take = [], claims.take
    monkeypatch.setattr(
        finetune, "finetune", lambda *args: (ran.append(args[-1]["seed"]), ({"": {"accuracy": 50.0}}, {}))[1]
    )

    def finish_first(path):
        if not job.cells[0].path.exists():
            cells.run_cell(job, job.cells[0], lambda: encode(job))
        return take(path)

    monkeypatch.setattr(claims, "take", finish_first)
    running.run(running.turns_of([job]), lambda *_, **__: None)
    assert ran == [1, 2, 3] and not job.cells[0].claim.exists()


def test_a_cell_that_failed_elsewhere_is_reported_and_not_tried_again(jobs, monkeypatch):
    (job,) = jobs()
    turns = running.turns_of([job])
    ran = []

    def fail(*args):
        ran.append(args[-1]["seed"])
        raise RuntimeError("out of memory")

    monkeypatch.setattr(finetune, "finetune", fail)
    running.run(running.turns_of([job])[:1], lambda *_, **__: None)
    running.run(turns, lambda *_, **__: None)
    assert ran == [1, 2, 3]
    assert running.failures(turns)[0] == "rte lr 3e-05, 1 epochs, seed 1: failed: RuntimeError: out of memory"


def test_a_cell_that_another_command_made_with_other_settings_is_not_believed(jobs, monkeypatch):
    monkeypatch.setattr(finetune, "finetune", lambda *args: ({"": {"accuracy": 50.0}}, {}))
    (job,), (other,) = jobs(), jobs("--batch", "16")
    running.run(running.turns_of([job]), lambda *_, **__: None)
    with pytest.raises(UserError, match="was made with batch 32, now batch 16"):
        running.run(running.turns_of([other]), lambda *_, **__: None)


def test_an_interrupt_releases_the_claim(jobs, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    (job,) = jobs()
    monkeypatch.setattr(finetune, "finetune", interrupt)
    with pytest.raises(KeyboardInterrupt) as kept:
        running.run(running.turns_of([job]), lambda *_, **__: None)
    assert kept and not job.cells[0].claim.exists()


def test_a_models_folder_appears_with_what_the_model_is(jobs, tmp_path):
    (job,) = jobs()
    for _ in range(2):
        cells.make_model_folder(tmp_path / "out", job.model)
        assert [each.name for each in (tmp_path / "out").iterdir()] == ["small"]
        assert results.read_results(tmp_path / "out").models["small"]["layers"] == 1


def test_a_failure_that_another_process_removes_meanwhile_does_no_harm(jobs, tmp_path, monkeypatch):
    (job,) = jobs()
    cells.make_model_folder(tmp_path / "out", job.model)
    job.cells[0].failure.parent.mkdir()
    job.cells[0].failure.write_text("{}")
    read = results.read_failure
    monkeypatch.setattr(results, "read_failure", lambda path: (path.unlink(), read(path))[1])
    assert results.read_results(tmp_path / "out").failures == []


# --- encoded rows -----------------------------------------------------------------------------------------------------


def rows(encoded):
    sets = [encoded.train, *(each.features for each in encoded.scored.values())]
    return [each.to_dict() for each in sets]


def test_rows_are_encoded_once_for_all_processes_and_read_as_they_were(jobs, monkeypatch):
    (job,) = jobs()
    own = finetune.encode_labelled(job.data.train, TASKS["rte"], job.model.tokenizer, 32, job.order)
    first = rows(encode(job))
    assert first[0] == own.to_dict()
    monkeypatch.setattr(finetune, "encode_labelled", None)
    (again,) = jobs()
    assert rows(encode(again)) == first


def test_other_lengths_tokenizers_and_data_are_encoded_apart(jobs, tmp_path, model):
    other = shutil.copytree(model, tmp_path / "other")
    path = other / "tokenizer_config.json"
    changed = json.loads(path.read_text())
    path.write_text(json.dumps(changed | {"do_lower_case": not changed.get("do_lower_case", True)}))
    for more in ((), ("--length", "30"), ("--model", str(other))):
        encode(jobs(*more)[-1])
    files.write_glue(tmp_path / "data", "rte", train=26)
    encode(jobs()[0])
    assert len([each for each in (tmp_path / "out" / sharing.FOLDER).iterdir() if each.is_dir()]) == 4


# --- workers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "gpus", "cells_left", "number"),
    [("auto", 8, 99, 8), ("auto", 8, 3, 3), ("4", 8, 99, 4), ("2", 0, 99, 2), ("2", 0, 1, 1), ("auto", 0, 99, 2)],
)
def test_workers_are_as_many_as_gpus_or_as_asked_and_no_more_than_cells(monkeypatch, asked, gpus, cells_left, number):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5})
    monkeypatch.setattr(workers, "MEMORY", 1)
    assert workers.count(asked, cells_left) == number


def test_more_workers_than_cores_are_rejected(monkeypatch, words):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5})
    with pytest.raises(UserError, match="--workers 3: 2 cores here; give 2 at most"):
        workers.count("3", 9)
    monkeypatch.setattr(sys, "argv", ["evaluate", *words, "--workers", "many"])
    with pytest.raises(UserError, match="'many' is not auto or a whole number of at least 1"):
        main()


def test_under_torchrun_there_are_no_workers(jobs, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--workers auto: under torchrun all processes share each cell"):
        jobs("--workers", "auto")


def test_each_worker_has_a_gpu_or_cores_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5a,7")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert [(place[0]["CUDA_VISIBLE_DEVICES"], place[0]["OMP_NUM_THREADS"]) for place in workers._places(2)] == [
        ("GPU-5a", "4"), ("7", "4"),
    ]  # fmt: skip
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [place[0]["CUDA_VISIBLE_DEVICES"] for place in workers._places(3)] == ["0", "1", "0"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert [(place[0]["OMP_NUM_THREADS"], place[2]) for place in workers._places(2)] == [
        ("4", {0, 1, 2, 3}), ("4", {4, 5, 6, 7}),
    ]  # fmt: skip


# --- before ------------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_is_left_and_how_long_and_runs_nothing(words, tmp_path, monkeypatch, capsys):
    def dry(*more):
        monkeypatch.setattr(sys, "argv", ["evaluate", *words, "--dry-run", *more])
        assert main() == 0
        return capsys.readouterr().out

    said = dry()
    assert "3 cells are left; no estimate for 3, of whose model and task none is done" in said
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(finetune, "finetune", lambda *args: ({"": {"accuracy": 50.0}}, {}))
    monkeypatch.setattr(sys, "argv", ["evaluate", *words, "--seeds", "1"])
    assert main() == 0
    cell = tmp_path / "out/small/rte/lr3e-05-epochs1-seed1.json"
    cell.write_text(json.dumps(json.loads(cell.read_text()) | {"seconds": 3600.0}))
    claim = claims.take(cell.with_name(".lr3e-05-epochs1-seed2.claim"))
    said = dry("--epochs", "1", "2")
    # One of them is finished, one is running; two of the five that are left have one epoch.
    assert ["small", "rte", "6", "1", "1", "0", "5", "8.00"] in [line.split() for line in said.splitlines()]
    assert (
        "left: rte 2/6: lr 3e-05, 1 epochs, seed 2" in said
        and "5 cells are left; 8.00 hours by those that are done\n" in said
    )
    claim.release()
