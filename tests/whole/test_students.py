"""Several students that share one teacher's pass: each becomes what it becomes alone."""

import numpy as np
import pytest
import torch

from data_prep.cli import UserError
from pipeline.artifacts.metrics import read_metrics
from pipeline.distill import distill
from pipeline.export import export
from pipeline.models.loading import load_model
from pipeline.settings.reading import load_recipes
from tests.parts import launching
from tests.parts.runs import (
    STUDENTS,
    assert_recomputed,
    assert_same_state,
    job,
    losses,
    make_recipe_of_several,
    options_of,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs on two ranks: all students together, each alone, and all together after interruptions."""
    folder = make_recipe_of_several(tmp_path_factory.mktemp("students")).parent
    options = ("teacher.hosting=zero3", "precision=bf16")
    # As after a kill between two checkpoints; and one student is new, as if it had been added to a finished run.
    behind = {"copy_of": str(folder / "several"), "without": ["wide", "plain/checkpoints/step-00000006"]}
    jobs = [
        job(folder, "several", *options, recipe="several.toml"),
        *(job(folder, f"alone/{name}", *options, *options_of(name)) for name in STUDENTS),
        job(folder, "several-halves", *options, recipe="several.toml", stop_at=3),
        job(folder, "several-halves", *options, recipe="several.toml"),
        job(folder, "several-behind", *options, recipe="several.toml", **behind),
    ]
    launching.finish_jobs(folder, 2, jobs)
    return folder


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_of_several_becomes_what_it_becomes_alone(folder, name):
    together, alone = folder / "several" / name, folder / "alone" / name
    for kind in ("train", "heldout"):
        assert np.array_equal(losses(together, kind), losses(alone, kind)) and len(losses(together, kind))
    assert_same_state(together, alone)
    assert (together / "COMPLETE").exists() and not (together.parent / "COMPLETE").exists()
    assert (together / "recipe.json").read_text().replace("/several/", "/alone/") == (alone / "recipe.json").read_text()


@pytest.mark.parametrize("name", STUDENTS)
def test_interrupted_together_they_continue_together(folder, name):
    assert_same_state(folder / "several-halves" / name, folder / "several" / name)


def test_one_that_is_ahead_waits_for_the_others(folder):
    run = folder / "several-behind"
    for name in STUDENTS:
        assert_same_state(run / name, folder / "several" / name)
    ahead, previous = (path / "deep" / "metrics.jsonl" for path in (run, folder / "several"))
    assert ahead.read_bytes() == previous.read_bytes()
    plain, wide = ([row for row in read_metrics(run / name) if row["kind"] == "train"] for name in ("plain", "wide"))
    assert [row["step"] for row in plain] == [1, 2, 3, 4, 5, 6]
    # The time in which it waited is not its own.
    assert plain[3]["tokens_per_second"] > wide[3]["tokens_per_second"] / 2


def test_each_of_several_is_exported_from_its_own_folder(folder, tmp_path):
    export(folder / "several" / "wide", tmp_path / "wide")
    assert load_model(str(tmp_path / "wide"), "main", torch.float32).config.hidden_size == 32
    assert_recomputed(tmp_path / "wide")


def test_several_students_never_go_into_the_folder_of_a_single_one(folder):
    single = folder / "alone" / "plain"
    with pytest.raises(UserError, match=r"alone/plain: holds the run of a single student; name another folder"):
        distill(load_recipes(folder / "several.toml", [f"out={single}"]))
