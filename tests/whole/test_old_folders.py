"""Folders written by version 0.1.0, before the code moved into rooms: a corpus, a run at step 3 of 6, its export, results."""

import shutil
from pathlib import Path

import pytest
import torch

from data_prep.cli import UserError
from data_prep.shards import open_corpus, verify
from pipeline.artifacts import checkpoints
from pipeline.artifacts.metrics import read_metrics
from pipeline.artifacts.results import read_results
from pipeline.distill import distill
from pipeline.export import export
from pipeline.models.loading import load_model
from pipeline.report.__main__ import make
from pipeline.settings.reading import load_recipes
from pipeline.settings.values import recipe_of
from tests.parts.runs import assert_recomputed

OLD = Path(__file__).parents[1] / "old"


@pytest.fixture
def old(tmp_path):
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def test_an_old_corpus_is_whole(old):
    assert list(verify(old / "data", deep=True)) == []
    assert open_corpus(old / "data").sources["a"].tokens == 6000


def test_an_old_checkpoint_and_its_recipe_are_read_and_exported(old, tmp_path, monkeypatch):
    monkeypatch.chdir(old)  # where its recipe's data and teacher are
    checkpoint = checkpoints.newest_of(old / "run")
    assert checkpoint.step == 3 and recipe_of(checkpoint.info["recipe"], "old").steps == 6
    export(old / "run", tmp_path / "student")
    new, before = (load_model(str(folder), "main", torch.float32) for folder in (tmp_path / "student", old / "student"))
    for name, tensor in before.state_dict().items():
        assert torch.equal(new.state_dict()[name], tensor), name
    assert_recomputed(tmp_path / "student")


def test_an_old_export_is_replaced_by_a_new_one_of_the_same_run(old):
    export(old / "run", old / "student")
    assert sorted(path.name for path in (OLD / "student").iterdir()) == sorted(
        p.name for p in (old / "student").iterdir()
    )


@pytest.mark.slow
def test_an_old_run_is_resumed_to_its_end(old, capsys):
    paths = [f"data={old / 'data'}", f"out={old / 'run'}", f"teacher.model={old / 'teacher'}", "precision=fp32"]
    with pytest.raises(
        UserError, match=r"segments = 'pairs', but .* was made with 'single'; use another out, or the previous value"
    ):
        distill(load_recipes(old / "tiny.toml", paths))  # its teacher is a BERT, and it was trained on single texts
    assert distill(load_recipes(old / "tiny.toml", [*paths, "segments=single"])) == 0
    assert "Resuming from" in capsys.readouterr().out
    rows = read_metrics(old / "run")
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    heldout = [row["loss"] for row in rows if row["kind"] == "heldout"]
    assert len(heldout) == 3 and heldout[2] < heldout[1]


def test_old_results_are_read_and_reported(old):
    results = read_results(old / "results")
    assert sorted(results.models) == ["student", "teacher"] and len(results.cells) == 2
    make(old / "results", [])
    assert "student" in (old / "results" / "report.md").read_text()
