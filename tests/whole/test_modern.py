"""Modern teachers (of another build than BERT) in whole runs: sharded or not, and with a BERT student."""

import numpy as np
import pytest
import torch

from pipeline.distill import distill
from pipeline.export import export
from pipeline.models.loading import load_model, load_tokenizer
from pipeline.settings.reading import load_recipes
from pipeline.training import recomputing
from tests.models.test_encoders import FAMILIES, MODERN
from tests.parts.runs import TOLERANCE, assert_recomputed, engine_options, losses
from tests.parts.tiny import make_recipe, make_teacher

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", MODERN)
def test_a_modern_student_learns_the_same_however_it_and_its_teacher_are_sharded(tmp_path, kind):
    make_teacher(tmp_path / "teacher", kind, **FAMILIES[kind])
    recipe = make_recipe(tmp_path)
    for hosting, stage in (("replicate", 1), ("zero3", 3)):
        options = [*engine_options(hosting, stage, "fp32"), "teacher.layer=4", f"out={tmp_path / hosting}"]
        assert distill(load_recipes(recipe, options)) == 0
    heldout = losses(tmp_path / "zero3", "heldout")
    np.testing.assert_allclose(losses(tmp_path / "replicate", "heldout"), heldout, rtol=TOLERANCE["fp32"])
    assert heldout[-1, 0] < heldout[0, 0]


@pytest.mark.parametrize("kind", MODERN)
def test_a_rotated_student_of_bf16_is_exported_with_the_very_loss_of_its_run(tmp_path, monkeypatch, kind):
    make_teacher(tmp_path / "teacher", kind, **FAMILIES[kind])
    options = ["teacher.layer=4", "precision=bf16", "length=48", "steps=2", "student.hidden=32", "student.init=teacher"]
    assert distill(load_recipes(make_recipe(tmp_path), options)) == 0
    monkeypatch.setattr(recomputing, "TOLERANCE", {"bf16": (1e-6, 0.0)})
    export(tmp_path / "run", tmp_path / "student")
    assert_recomputed(tmp_path / "student")


@pytest.mark.parametrize("kind", MODERN)
def test_a_bert_student_of_a_modern_teacher_is_exported_with_the_teachers_tokenizer(tmp_path, kind):
    make_teacher(tmp_path / "teacher", kind, **FAMILIES[kind])
    options = ["teacher.layer=4", "student.model_type=bert", "layout=doc", "precision=bf16", "steps=3"]
    assert distill(load_recipes(make_recipe(tmp_path), options)) == 0
    export(tmp_path / "run", tmp_path / "student")
    assert load_model(str(tmp_path / "student"), "main", torch.float32).config.model_type == "bert"
    own, theirs = (load_tokenizer(str(tmp_path / name))("w1 w7").input_ids for name in ("student", "teacher"))
    assert own == theirs
    # It has a second segment, which it has never read: no task is to read it either.
    assert "token_type_ids" not in load_tokenizer(str(tmp_path / "student"))("w1", "w7")
