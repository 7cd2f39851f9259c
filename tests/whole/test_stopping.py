"""What is not finite stops a run, with the step in which it came, and is never kept."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from data_prep.cli import UserError
from pipeline.export import export
from tests.parts import launching
from tests.parts.runs import STAGES, engine_options, job
from tests.parts.tiny import make_recipe

pytestmark = pytest.mark.slow
SCRAMBLED = ((1, "fp32"), (2, "fp32"), (2, "bf16"))  # by round_robin_gradients: stage and precision


class Stopped(NamedTuple):
    """The runs' folder, and the error of each run by its name."""

    folder: Path
    errors: dict[str, str]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = make_recipe(tmp_path_factory.mktemp("stopping")).parent
    rarely = ("steps=8", "log_every=8", "eval_every=6", "checkpoint_every=4", "student.ds_config=student_zero0.json")
    jobs = {
        "burst": job(folder, "burst", "learning_rate=1", "weight_decay=1e30", "checkpoint_every=1"),
        "burst-late": job(folder, "burst-late", "learning_rate=1", "weight_decay=1e30", *rarely),
    }
    for stage in STAGES:
        options = (*engine_options("replicate", stage, "fp32"), "steps=1")
        jobs[f"steep-{stage}"] = job(folder, f"steep-{stage}", *options, infinite_gradient=True)
    *errors, unharmed = launching.run_jobs(folder, 1, list(jobs.values()))
    assert unharmed
    return Stopped(folder, dict(zip(jobs, errors, strict=True)))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(stopped):
    folder, message = stopped.folder, stopped.errors["burst"]
    assert f"{folder / 'burst'}: the loss is not finite in step 2 on rank 0, samples 8 to 9" in message
    assert [path.name for path in (folder / "burst" / "checkpoints").iterdir()] == ["step-00000001"]
    assert not (folder / "burst" / "COMPLETE").exists()


def test_losses_that_are_looked_at_rarely_still_name_the_step_and_are_never_kept(stopped):
    message = stopped.errors["burst-late"]
    assert f"{stopped.folder / 'burst-late'}: the loss is not finite in step 2 on rank 0, samples 8 to 9" in message
    assert not list(stopped.folder.glob("burst-late/checkpoints/step-*"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_not_finite_is_never_kept(stopped, stage):
    """The loss is finite, and so are the weights that gave it; only the update is not."""
    message, run = stopped.errors[f"steep-{stage}"], stopped.folder / f"steep-{stage}"
    assert "is not finite" in message and "checkpoints" in message
    assert not list(run.glob("checkpoints/step-*")) and not (run / "COMPLETE").exists()


@pytest.mark.parametrize(("stage", "precision"), SCRAMBLED)
def test_a_state_that_is_not_the_trained_one_is_never_saved(scrambled, stage, precision):
    """DeepSpeed's round_robin_gradients, which the product rejects, makes its accessors return other weights."""
    name = f"scrambled-{stage}-{precision}"
    assert "DeepSpeed returns another fp32 weight than the one that is trained" in scrambled.errors[name]
    assert not list((scrambled.folder / name / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(("stage", "precision"), SCRAMBLED)
def test_a_checkpoint_that_was_not_trained_is_never_exported(scrambled, tmp_path, stage, precision):
    """Had it been saved, the held-out loss of what is exported would not be the run's."""
    name = f"scrambled-{stage}-{precision}-saved"
    assert not scrambled.errors[name]
    with pytest.raises(UserError, match=r"the run has recorded .*; nothing was exported"):
        export(scrambled.folder / name, tmp_path / "student")
    assert not (tmp_path / "student").exists()


@pytest.fixture(scope="module")
def scrambled(tmp_path_factory):
    folder = make_recipe(tmp_path_factory.mktemp("scrambled")).parent
    jobs = {}
    for stage, precision in SCRAMBLED:
        config = folder / f"stage{stage}.json"
        config.write_text(json.dumps({"zero_optimization": {"stage": stage, "round_robin_gradients": True}}))
        options = (*engine_options("replicate", stage, precision), f"student.ds_config={config}")
        name = f"scrambled-{stage}-{precision}"
        jobs[name] = job(folder, name, *options, let_through="round_robin_gradients")
        jobs[f"{name}-saved"] = job(
            folder, f"{name}-saved", *options, let_through="round_robin_gradients", unchecked=True
        )
    *errors, _ = launching.run_jobs(folder, 2, list(jobs.values()))
    return Stopped(folder, {name: error or "" for name, error in zip(jobs, errors, strict=True)})
