"""training.deciding: how bf16 products are taken is measured once, recorded, and kept by a run that resumes."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.artifacts import checkpoints
from pipeline.distill import distill
from pipeline.engines import agreeing
from pipeline.engines.ranks import Ranks
from pipeline.export import export
from pipeline.models import arithmetic
from pipeline.models.arithmetic import Product, Rates
from pipeline.models.fit import teacher_config_of
from pipeline.settings.reading import load_recipe, load_recipes
from pipeline.training.deciding import products_of, with_arithmetic
from pipeline.training.introduction import about_products
from tests.parts.runs import assert_recomputed, assert_same_state, losses
from tests.parts.tiny import make_recipe

NATIVE, WIDENED = Rates(2e11, 1e11), Rates(1e11, 2e11)
BF16 = ("precision=bf16", "arithmetic=auto")


@pytest.fixture
def cpu(monkeypatch):
    """A function that makes this CPU one of these rates."""

    def be(found):
        monkeypatch.setattr(arithmetic, "_known", {})
        monkeypatch.setattr(arithmetic, "measure", lambda products: found)

    return be


def train(folder, out, *overrides, stop_at=None):
    assert distill(load_recipes(make_recipe(folder), [f"out={folder / out}", *overrides]), stop_at) == 0
    return folder / out


def recorded(run):
    """What run folder and newest checkpoint say."""
    info = checkpoints.newest_of(run).info
    recipe = json.loads((run / "recipe.json").read_text())
    return recipe["arithmetic"], info["recipe"]["arithmetic"], info["arithmetic"]


def test_a_run_takes_the_faster_way_says_so_and_records_it(tmp_path, cpu):
    for here, way, name, words in (
        (NATIVE, "native", "bf16 on cpu", "as they are"),
        (WIDENED, "widened", "bf16 on cpu, products widened to fp32", "widened to fp32 and rounded"),
    ):
        cpu(here)
        run, forced = (
            train(tmp_path, way, *BF16),
            train(tmp_path, f"{way} forced", "precision=bf16", f"arithmetic={way}"),
        )
        log = (run / "log.txt").read_text()
        assert recorded(run) == (way, way, name) == recorded(forced)
        assert f"Arithmetic: bf16 products {words}, by measurement: {here}.\n" in log
        assert ("kept in fp32 for widened products" in log) == (way == "widened")
        assert f"Arithmetic: bf16 products {words}, as the recipe says.\n" in (forced / "log.txt").read_text()
        assert_same_state(run, forced)
    one, other = (losses(tmp_path / way) for way in ("native", "widened"))
    assert np.abs(one / other - 1).max() < 0.02 and (one != other).any()


def test_a_resumed_run_goes_on_as_it_began_and_notes_what_would_be_faster(tmp_path, cpu):
    cpu(WIDENED)
    whole = train(tmp_path, "whole", *BF16)
    run = train(tmp_path, "run", *BF16, stop_at=3)
    older = shutil.copytree(run, tmp_path / "older")
    cpu(NATIVE)
    assert train(tmp_path, "run", *BF16) == run and recorded(run)[:2] == ("widened", "widened")
    log = (run / "log.txt").read_text()
    assert f"widened to fp32 and rounded, as {run}/checkpoints/step-00000003 was made; here {NATIVE}.\n" in log
    note = (
        "note: bf16 products as they are would be faster on this machine, in other last bits; arithmetic=native takes"
    )
    assert note in log and "cannot be repeated" not in log
    assert_same_state(run, whole)
    train(tmp_path, "older", "precision=bf16", "arithmetic=native")
    said = (
        "note: arithmetic = 'native', but " + f"{older}/checkpoints/step-00000003 was made with 'widened': the run as"
    )
    assert said in (older / "log.txt").read_text() and recorded(older)[:2] == ("native", "native")


def test_the_way_of_a_checkpoint_of_before_there_was_the_key_is_known_by_its_description(cpu):
    cpu(NATIVE)
    older = {"arithmetic": "bf16 on cpu, products widened to fp32", "recipe": {}}
    for info, way, told in ((older, "native", True), (older, "widened", False), ({}, "native", False)):
        recipe, checkpoint = load_recipe("demo", [f"arithmetic={way}"]), SimpleNamespace(info=info, path="step-1")
        notes = about_products(SimpleNamespace(recipe=recipe, checkpoint=checkpoint))
        assert ["step-1 was made with 'widened'" in note for note in notes] == [True] * told


def test_a_teacher_whose_weights_are_kept_widened_gives_what_a_sharded_one_does(tmp_path):
    wide = ("precision=bf16", "arithmetic=widened")
    kept, gathered = (train(tmp_path, kind, *wide, f"teacher.hosting={kind}") for kind in ("replicate", "zero3"))
    said = ["kept in fp32" in (run / "log.txt").read_text() for run in (kept, gathered)]
    assert said == [True, False]
    assert_same_state(kept, gathered)


def test_an_exports_loss_is_computed_in_the_way_of_the_run(tmp_path, cpu, monkeypatch):
    run = train(tmp_path, "run", "precision=bf16", "arithmetic=widened")
    cpu(NATIVE)
    monkeypatch.setattr("pipeline.training.recomputing.TOLERANCE", {"bf16": (0, 1e-9)})
    monkeypatch.setattr("pipeline.training.recomputing.OTHER_ROUNDING", 0)
    export(run, tmp_path / "student")
    assert_recomputed(tmp_path / "student")


def test_without_a_choice_nothing_is_measured(monkeypatch):
    monkeypatch.setattr("pipeline.training.deciding.first_ranks_rates", lambda *_: 1 / 0)
    for device, precision in (("cpu", "fp32"), ("cuda", "bf16")):
        recipe = load_recipe("demo", [f"precision={precision}"])
        run = SimpleNamespace(recipe=recipe, ranks=Ranks(0, 1, 1, torch.device(device)))
        assert with_arithmetic(run, ["pending"]) == (run, ["pending"])
        assert agreeing.decided(recipe, run.ranks) is recipe


def test_every_rank_takes_what_the_first_has_measured(monkeypatch):
    """Its numbers travel as JSON, a list."""
    monkeypatch.setattr(arithmetic, "_known", {arithmetic.USUAL: NATIVE})
    monkeypatch.setattr(agreeing, "on_first_rank", lambda ranks, work, *arguments: list(WIDENED))
    ranks = Ranks(1, 2, 2, torch.device("cpu"))
    assert agreeing.first_ranks_rates(ranks) == WIDENED
    assert agreeing.decided(load_recipe("demo"), ranks).arithmetic == "widened"


def test_what_is_timed_are_the_runs_own_products(tmp_path):
    make_recipe(tmp_path)
    recipe = load_recipe(tmp_path / "tiny.toml", ["teacher.micro_batch=4"])
    assert products_of([recipe], teacher_config_of(recipe)) == (
        Product(4 * 16, 32, 128, 3),
        Product(2 * 16, 16, 64, 3 * 2),
    )
