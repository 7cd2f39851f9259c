"""The losses that the papers compare with: layer to layer, and the mean squared difference of values."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_prep.cli import UserError
from pipeline.artifacts import checkpoints
from pipeline.export import export
from pipeline.settings.reading import load_recipe, load_recipes
from tests.parts import launching
from tests.parts.by_hand import first_windows, loss_by_hand, models_by_hand
from tests.parts.runs import (
    DOC,
    TOLERANCE,
    assert_recomputed,
    assert_same_state,
    final_state,
    job,
    losses,
    make_recipe_of_several,
    options_of,
)

pytestmark = pytest.mark.slow
SINGLE = (*DOC, "segments=single")

LAYERS, VALUES = "transfer=layer-to-layer", "pairs=qk,v_mse"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_recipe_of_several(tmp_path_factory.mktemp("losses")).parent


@pytest.fixture(scope="module")
def two_ranks(folder):
    sharded = ("student.ds_config=student_zero3.json", *SINGLE)
    options = ("teacher.hosting=zero3", "precision=bf16")
    jobs = [
        job(folder, "layers-w2", *sharded, LAYERS, "teacher.micro_batch=4"),
        job(folder, "layers-several", *options, LAYERS, recipe="several.toml"),
        job(folder, "layers-alone", *options, LAYERS, *options_of("deep")),
        job(folder, "values-w2", *sharded, VALUES),
        job(folder, "values-halves", *options, VALUES, stop_at=3),
        job(folder, "values-halves", *options, VALUES),
        job(folder, "values-whole", *options, VALUES),
    ]
    launching.finish_jobs(folder, 2, jobs)


@pytest.fixture(scope="module")
def one_rank(folder):
    jobs = [job(folder, "layers-w1", *SINGLE, LAYERS), job(folder, "values-w1", *SINGLE, VALUES)]
    launching.finish_jobs(folder, 1, jobs)


def test_layer_to_layer_is_the_mean_of_the_loss_over_the_layers(folder, two_ranks, one_rank):
    recipe = load_recipe(folder / "tiny.toml", [*SINGLE, LAYERS])
    assert recipe.layers == {1: 2, 2: 3}
    windows = first_windows(folder, recipe)
    expected = np.mean([loss_by_hand(recipe, windows, *pair) for pair in recipe.layers.items()], axis=0)
    for run in ("layers-w1", "layers-w2"):
        np.testing.assert_allclose(losses(folder / run)[0], expected, rtol=1e-5)
    np.testing.assert_allclose(losses(folder / "layers-w2"), losses(folder / "layers-w1"), rtol=TOLERANCE["fp32"])
    np.testing.assert_allclose(
        losses(folder / "layers-w2", "heldout"), losses(folder / "layers-w1", "heldout"), rtol=TOLERANCE["fp32"]
    )


def test_each_of_several_learns_from_its_own_layers(folder, two_ranks):
    assert [set(recipe.layers.values()) for recipe in load_recipes(folder / "several.toml", [LAYERS])] == [
        {1, 2, 3}, {3}, {2, 3},
    ]  # fmt: skip
    assert_same_state(folder / "layers-several" / "deep", folder / "layers-alone")


def test_what_learns_layer_by_layer_is_computed_again_when_it_is_exported(folder, two_ranks, tmp_path):
    export(folder / "layers-several" / "deep", tmp_path / "student")
    assert_recomputed(tmp_path / "student")


def test_values_are_compared_behind_a_projection(folder, two_ranks, one_rank):
    recipe = load_recipe(folder / "tiny.toml", [*SINGLE, VALUES])
    teacher, student = models_by_hand(recipe, recipe.student.layers, recipe.teacher.layer)
    rows = []
    with torch.no_grad():
        for window in first_windows(folder, recipe):
            theirs, ours = (model(torch.tensor([window])) for model in (teacher, student))
            rows.append(float((theirs.v.double() - ours[3].double()).square().mean()))
    names = ("loss", "qk", "v_mse")
    for run in ("values-w1", "values-w2"):
        loss, attention, values = losses(folder / run, names=names)[0]
        assert loss == pytest.approx(attention + values, rel=1e-6) and values == pytest.approx(np.mean(rows), rel=1e-5)
    found = [losses(folder / run, names=names) for run in ("values-w1", "values-w2")]
    np.testing.assert_allclose(*found, rtol=TOLERANCE["fp32"])
    assert found[0][-1, 2] < found[0][0, 2]


def test_the_projection_is_trained_and_kept_but_not_exported(folder, two_ranks, tmp_path):
    assert_same_state(folder / "values-halves", folder / "values-whole")
    name = "value_projection.weight"
    start = models_by_hand(load_recipe(folder / "tiny.toml", [VALUES]), 2, 3)[1].value_projection.weight
    assert not torch.equal(final_state(folder / "values-whole")[name], start)
    export(folder / "values-whole", tmp_path / "student")
    assert not [key for key in load_file(tmp_path / "student" / "model.safetensors") if "projection" in key]
    assert_recomputed(tmp_path / "student")


def test_a_checkpoint_without_the_projection_is_refused(folder, two_ranks, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder / "values-halves", run)
    checkpoint = checkpoints.latest(run)
    state = checkpoint.tensors()
    del state["exp_avg/value_projection.weight"]
    info = {key: value for key, value in checkpoint.info.items() if key not in ("sha256", "id", "format")}
    shutil.rmtree(checkpoint.path)
    checkpoints.save(run, info, state, 1)
    with pytest.raises(UserError, match=r"not this student's exp_avg/value_projection\.weight"):
        checkpoints.latest(run).tensors(["value_projection.weight"])
