"""A task of the package mteb on files of this machine; skipped where the extra is not installed."""

import json
import sys

import pytest

from data_prep.cli import UserError
from pipeline.artifacts import results
from pipeline.evaluate import text_pairs
from pipeline.evaluate.__main__ import main
from pipeline.evaluate.embedding import Embedder, settings
from pipeline.evaluate.scored_model import open_model
from tests.parts import task_files as files
from tests.parts.tiny import make_teacher

mteb = pytest.importorskip("mteb")


@pytest.fixture
def task(tmp_path, monkeypatch):
    """The name of a task of similarities whose rows are in a folder here."""
    rows = [{"sentence1": a, "sentence2": b, "score": float(label)} for a, b, label in files.labelled("stsb", 12, 1)]
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = mteb.get_task("STSBenchmark")
    metadata = whole.metadata.model_copy(update={"name": "Here", "dataset": {"path": str(folder), "revision": "1"}})
    registry = sys.modules["mteb.get_tasks"]._TASKS_REGISTRY
    monkeypatch.setitem(registry, "Here", type("Here", (type(whole),), {"metadata": metadata}))
    return "mteb-Here"


def test_a_task_of_mteb_is_scored_by_the_models_own_vectors(task, tmp_path, monkeypatch, capsys):
    model = make_teacher(tmp_path / "small", layers=1, hidden=16)
    monkeypatch.setattr(
        sys, "argv", ["evaluate", "--model", str(model), "--task", task, "--out", str(tmp_path / "out")]
    )
    assert main() == 0
    assert "mteb-Here 1/1: mean; at most 64 tokens … main_score " in capsys.readouterr().out
    (cell,) = results.read_results(tmp_path / "out").cells
    assert set(cell.scores) == {"main_score", "main_score/test"} and cell.rows is None and cell.majority is None

    from scipy.stats import spearmanr

    opened = open_model(str(model))
    rows = files.labelled("stsb", 12, 1)
    embed = Embedder(opened, settings(opened, None, None), 32)
    import torch

    cosines = torch.cosine_similarity(embed([a for a, _, _ in rows]), embed([b for _, b, _ in rows]))
    expected = spearmanr(cosines.numpy(), [float(label) for *_, label in rows]).statistic
    assert cell.score == pytest.approx(100 * expected, abs=1e-6)


def test_an_unknown_task_of_mteb_is_one_line():
    with pytest.raises(
        UserError, match=r"--task mteb-STSBenchmrk: .*Did you mean: 'STSBenchmark'\? mteb's own documentation"
    ):
        text_pairs.read("mteb-STSBenchmrk", None, ())
    with pytest.raises(UserError, match="--data x: mteb reads the data of mteb-STSBenchmark itself"):
        text_pairs.read("mteb-STSBenchmark", "x", ())
