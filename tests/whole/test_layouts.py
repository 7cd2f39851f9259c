"""How sequences come to the models: the doc layout, the teacher's window, compiled models, a corpus without held-out text."""

import json

import numpy as np
import pytest
import torch

from data_prep.shards import open_corpus
from pipeline.artifacts.metrics import read_metrics
from pipeline.distill import distill
from pipeline.export import export
from pipeline.settings.reading import load_recipe, load_recipes
from tests.parts import launching
from tests.parts.by_hand import doc_pairs, doc_windows, loss_by_hand
from tests.parts.runs import DOC, TOLERANCE, assert_recomputed, final_state, job, losses
from tests.parts.tiny import make_corpus, make_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_recipe(tmp_path_factory.mktemp("layouts")).parent


@pytest.fixture(scope="module")
def two_ranks(folder):
    jobs = [
        job(folder, "doc-w2", *DOC, "student.ds_config=student_zero3.json"),
        job(folder, "doc-window", *DOC, "teacher.micro_batch=4"),
        job(folder, "window", "student.dropout=0.0", "teacher.micro_batch=4"),
        job(folder, "no-window", "student.dropout=0.0"),
        job(folder, "compiled", "student.dropout=0.0", "compile=all"),
    ]
    launching.finish_jobs(folder, 2, jobs)


@pytest.fixture(scope="module")
def one_rank(folder):
    halves = [job(folder, "doc-halves", *DOC, stop_at=3), job(folder, "doc-halves", *DOC)]
    single = job(folder, "doc-single", *DOC, "segments=single", "steps=3")
    launching.finish_jobs(folder, 1, [job(folder, "doc-whole", *DOC), *halves, single])


# --- the doc layout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "segments, cut_out, runs", [("single", doc_windows, ["doc-single"]), ("pairs", doc_pairs, ["doc-whole", "doc-w2"])]
)
def test_in_the_doc_layout_the_loss_is_that_of_the_documents_one_by_one(
    folder, two_ranks, one_rank, segments, cut_out, runs
):
    recipe = load_recipe(folder / "tiny.toml", [*DOC, f"segments={segments}"])
    corpus = open_corpus(folder / "data")
    for kind, side, count in (("train", "sources", recipe.batch), ("heldout", "heldout", recipe.eval_samples)):
        windows = cut_out(corpus, side, recipe, count)
        assert len({len(window) for window in windows}) > 1  # there is padding
        expected = loss_by_hand(recipe, windows)
        for run in runs:
            np.testing.assert_allclose(losses(folder / run, kind)[0], expected, rtol=1e-5)


def test_the_second_segment_is_trained_where_pairs_are_read_and_only_there(folder, two_ranks, one_rank):
    name = "embeddings.token_type_embeddings.weight"
    for run, steps, trained in (("doc-whole", 6, True), ("doc-single", 3, False)):
        moment = final_state(folder / run, steps)[f"exp_avg_sq/{name}"]
        assert moment[0].any() and bool(moment[1].any()) == trained
    assert load_recipe(folder / "tiny.toml").segments == "auto"
    resolved = json.loads((folder / "doc-whole" / "recipe.json").read_text())
    assert resolved["segments"] == "pairs"  # the teacher is a BERT


def test_in_the_doc_layout_too_ranks_and_interruptions_change_nothing(folder, two_ranks, one_rank):
    np.testing.assert_allclose(losses(folder / "doc-w2"), losses(folder / "doc-whole"), rtol=TOLERANCE["fp32"])
    whole, halves = (final_state(folder / name) for name in ("doc-whole", "doc-halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_documents_are_computed_again_when_their_student_is_exported(folder, two_ranks, tmp_path):
    export(folder / "doc-w2", tmp_path / "student")
    assert_recomputed(tmp_path / "student")


def test_the_wait_for_data_is_a_share_of_the_training_time(folder, one_rank):
    shares = [row["data_wait"] for row in read_metrics(folder / "doc-whole") if row["kind"] == "train"]
    assert len(shares) == 6 and all(0 < share < 1 for share in shares)


# --- the teacher's window, compiling ----------------------------------------------------------------------------------


def test_the_teacher_may_take_more_sequences_at_once(folder, two_ranks):
    np.testing.assert_allclose(losses(folder / "window"), losses(folder / "no-window"), rtol=TOLERANCE["fp32"])
    np.testing.assert_allclose(losses(folder / "doc-window"), losses(folder / "doc-w2"), rtol=TOLERANCE["fp32"])


def test_a_compiled_run_gives_the_same_losses(folder, two_ranks):
    np.testing.assert_allclose(losses(folder / "compiled"), losses(folder / "no-window"), rtol=TOLERANCE["fp32"])


def test_the_shares_of_time_are_logged(folder, two_ranks):
    row = read_metrics(folder / "no-window")[1]
    assert sum(row[f"{part}_share"] for part in ("teacher", "student", "loss", "optimizer")) == pytest.approx(1)
    assert row["model_flops"] > 0


# --- the corpus -------------------------------------------------------------------------------------------------------


def test_a_corpus_without_held_out_documents_still_trains(tmp_path, capsys):
    recipe = make_recipe(tmp_path)
    data = make_corpus(tmp_path / "no-heldout", heldout=0)
    assert distill(load_recipes(recipe, [f"data={data}", f"out={tmp_path / 'run'}", "steps=2"])) == 0
    assert "no held-out window" in capsys.readouterr().out
    assert losses(tmp_path / "run", "heldout").size == 0
