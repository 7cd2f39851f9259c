"""pipeline.training.progress: how patient a watchdog is with a phase, and which rank is behind."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline import distill
from pipeline.engines.hosting import Hosting
from pipeline.engines.ranks import Ranks
from pipeline.export import export
from pipeline.training import progress, recomputing, start
from pipeline.training.progress import DOWNLOAD, EVALUATION, EXPORT, LOAD, SAVE, UPDATE, Place, Progress, behind

ALONE = Ranks(0, 1, 1, torch.device("cpu"), ((0,),))


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pipeline.training.progress.time.monotonic", lambda: now[0])
    return now


def take(made: Progress, clock: list[float], phase: str, seconds: float) -> None:
    made.at(phase, 1)
    clock[0] += seconds


def test_patience_follows_the_longest_of_a_phase_but_for_its_first(clock):
    made = Progress(timeout=120)
    take(made, clock, UPDATE, 900)  # compiles
    assert made.place(0).patience == progress.UNKNOWN * 120 == 3600
    take(made, clock, EVALUATION, 40)
    take(made, clock, UPDATE, 5)
    assert made.place(0).patience == 3600  # the second one is still running
    take(made, clock, UPDATE, 100)
    assert made.place(0).patience == progress.FLOOR * 120 == 600
    take(made, clock, UPDATE, 1)
    assert made.place(0).patience == 10 * 100
    take(made, clock, EVALUATION, 1)
    assert made.place(0).patience == 3600  # each kind has its own
    assert made.place(7) == Place(6, 7, 0, EVALUATION, 1, 3600, 40)


def test_outside_of_the_loop_one_phase_says_nothing_of_the_next(clock):
    made = Progress(timeout=120)
    for seconds in (1, 1, 1, 2000):  # students that are exported already, and one that is not
        take(made, clock, EXPORT, seconds)
        assert made.place(0).patience == 3600
    take(made, clock, DOWNLOAD, 9000)
    assert made.place(0).patience == math.inf


def test_time_to_leave_covers_an_update_an_evaluation_and_a_save(clock):
    made = Progress(timeout=120)
    assert made.time_to_leave == 600
    for phase, seconds in ((UPDATE, 3), (EVALUATION, 300), (SAVE, 500), (UPDATE, 1)):
        take(made, clock, phase, seconds)
    assert made.time_to_leave == 600 + 3 * (3 + 300 + 500)


def test_time_in_which_the_machine_slept_is_no_phase_s(clock):
    made = Progress(timeout=120)
    for _ in range(3):
        take(made, clock, UPDATE, 2)
    clock[0] += 30_000
    made.suspended(30_000)
    made.at(SAVE, 1)
    made.at(UPDATE, 2)
    assert made.place(0).patience == 600 and made.place(0).longest == 2


def test_the_rank_that_has_not_arrived_is_behind_those_that_wait_for_it():
    def place(number: int, arrivals: int, moves: int = 0) -> Place:
        return Place(number, arrivals, moves, UPDATE, 3, 600, 1)

    assert behind({0: place(8, 41), 1: place(8, 40), 2: place(8, 41)}) == [1]
    assert behind({0: place(7, 40), 1: place(8, 39)}) == [0]  # an earlier phase
    assert behind({0: place(8, 41), 1: place(8, 41)}) == [0, 1]
    assert behind({}) == []
    # It works for all, as in an export: what it has begun by itself puts no other rank behind.
    assert behind({0: place(8, 40, moves=9), 1: place(8, 41), 2: place(8, 41)}) == [0]


def test_each_student_is_finished_in_a_phase_of_its_own_and_its_export_moves(tmp_path, monkeypatch):
    made, seen = Progress(), []
    recipes = [SimpleNamespace(out=tmp_path / name, stage="s", exported=tmp_path, steps=3) for name in ("one", "two")]
    monkeypatch.setattr(distill, "is_export_of", lambda *_: False)
    monkeypatch.setattr(distill.checkpoints, "newest_of", lambda run: None)
    monkeypatch.setattr(distill, "export", lambda run, out, progress: seen.append((run.name, progress.place(0)[:4])))
    for recipe in recipes:
        recipe.out.mkdir()
    distill.finish(ALONE, recipes, made)
    assert seen == [("one", (1, 0, 0, EXPORT)), ("two", (2, 0, 0, EXPORT))]
    assert all((recipe.out / "COMPLETE").read_text() == "3 steps\n" for recipe in recipes)


@pytest.mark.slow
def test_an_export_moves_with_each_tensor_of_the_teacher_and_each_batch_of_its_evaluation(run, tmp_path, monkeypatch):
    made, tensors, host_teacher = Progress(), [], recomputing.host_teacher

    def host(recipe, ranks, teacher, *others):
        tensors.extend(teacher.parameters())
        hosted = host_teacher(recipe, ranks, teacher, *others)
        assert made.place(0).moves == len(tensors) + 1  # the first is asked for once more
        return hosted

    monkeypatch.setattr(recomputing, "host_teacher", host)
    export(run, tmp_path / "student", progress=made)
    assert made.place(0).moves > len(tensors) + 1


@pytest.mark.parametrize("shared", ["world", "node"])
@pytest.mark.parametrize("model", ["name/on-the-hub", "folder"])
def test_each_tensor_read_is_a_move_and_only_a_fetch_is_a_download(monkeypatch, tmp_path, model, shared):
    made, seen = Progress(), []
    model = str(tmp_path) if model == "folder" else model
    recipe = SimpleNamespace(teacher=SimpleNamespace(model=model, shard_group=shared))
    run = SimpleNamespace(recipe=recipe, ranks=ALONE, progress=made)
    weights = SimpleNamespace(tensor=str, names=lambda: seen.append(made.place(0).phase))
    student, teacher = SimpleNamespace(recipe=recipe, model=None), SimpleNamespace(config=None)
    models = start.Models(teacher, (), weights, {"a": "A", "b": "B"}, [], [student])

    def host_teacher(recipe, ranks, teacher, hosting, read):
        for name in "ab":
            assert read(name) == name.upper()
            seen.append(made.place(0).phase)
        return None, "digest"

    monkeypatch.setattr(start, "choose_hosting", lambda *_: Hosting("zero3", "asked", 1, 1))
    monkeypatch.setattr(start, "check_memory", lambda recipes, ranks, hosting, students: hosting)
    monkeypatch.setattr(start, "host_teacher", host_teacher)
    assert start.host(run, models).digests == "digest"
    fetches = [DOWNLOAD] if shared == "node" and not Path(model).is_dir() else []
    assert seen == [*fetches, LOAD, LOAD] and made.place(0).moves == 2
