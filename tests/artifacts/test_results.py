"""Results on disk: what is read back, what is rejected, and the figures of seeds and settings."""

import json
import subprocess
import sys

import pytest

from data_prep.cli import UserError
from pipeline.artifacts import results

MODEL = {
    "format": 1,
    "name": "s",
    "path": "s",
    "weights": "ab",
    "model_type": "bert",
    "layers": 3,
    "hidden": 384,
    "parameters": {"total": 1},
    "distillation": None,
}


def write(folder, file, **changes):
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(changes))
    return path


def cell(folder, lr=3e-05, epochs=3, seed=1, score=60.0, model="s", task="rte", **changes):
    content = {
        "format": 1,
        "model": model,
        "weights": "ab",
        "task": task,
        "settings": {"learning_rate": lr, "epochs": epochs, "batch": 32, "length": 128, "seed": seed},
        "data": {"source": "d", "train": 4, "dev": 2, "fingerprint": "f"},
        "scores": {"accuracy": score, "f1": 1.0},
        "primary": "accuracy",
        "split": "dev",
        "seconds": 1.5,
        "versions": {"torch": "2"},
    }
    return write(folder, f"{model}/{task}/lr{lr}-epochs{epochs}-seed{seed}.json", **(content | changes))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, "s/model.json", **MODEL)
    return tmp_path


def test_cells_failures_models_and_speeds_are_read_back(folder):
    cell(folder)
    settings = {"learning_rate": 1.0, "epochs": 3, "seed": 2}
    write(folder, "s/rte/lr1-epochs3-seed2.failed.json", format=1, model="s", task="rte", settings=settings, error="no")
    write(folder, "s/speed.json", format=1, model="s", reference="t", device="cpu", speedup=2.0)
    found = results.read_results(folder)
    assert found.models == {"s": MODEL}
    assert [(c.score, c.seconds, c.settings["seed"]) for c in found.of("s", "rte")] == [(60.0, 1.5, 1)]
    assert [(f.error, f.settings) for f in found.failures] == [("no", settings)]
    assert found.speeds["s"]["speedup"] == 2.0 and found.tasks == ["rte"]


def test_the_figure_is_the_best_settings_mean_and_sample_deviation_over_seeds(folder):
    for lr, scores in ((2e-05, (60.0, 64.0)), (3e-05, (61.0, 64.0))):
        for seed, score in enumerate(scores):
            cell(folder, lr=lr, seed=seed, score=score)
    cells = results.read_results(folder).cells
    best = results.best(cells)
    assert best == ({"learning_rate": 3e-05, "epochs": 3, "batch": 32, "length": 128}, 62.5, pytest.approx(4.5**0.5), 2)
    assert [c.score for c in results.at(cells, best.setting)] == [61.0, 64.0]


def test_one_lucky_seed_does_not_beat_a_mean_over_more(folder):
    cell(folder, lr=2e-05, score=90.0)
    for seed, score in enumerate((61.0, 64.0)):
        cell(folder, lr=3e-05, seed=seed, score=score)
    assert results.best(results.read_results(folder).cells).mean == 62.5


def test_a_single_seed_has_no_spread(folder):
    cell(folder)
    assert results.best(results.read_results(folder).cells)[1:] == (60.0, None, 1)


def test_loose_and_hidden_files_next_to_models_are_not_read(folder):
    write(folder, "report.json")
    write(folder, ".x/y.json")
    write(folder, "s/rte/.lr1.json.host.1.tmp")
    assert results.read_results(folder).cells == []


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda folder: (cell(folder)).write_text('{"format": 1'), "seed1.json: not a whole JSON object"),
        (lambda folder: (cell(folder)).write_text("[]"), "seed1.json: not a whole JSON object"),
        (lambda folder: cell(folder, format=2), "format = 2, this program reads 1"),
        (lambda folder: cell(folder, scores=None), "scores = None is not a cell's"),
        (lambda folder: cell(folder, primary="f2"), "lack 'f2'"),
        (lambda folder: cell(folder, scores={"accuracy": float("nan")}), "scores are not numbers"),
        (lambda folder: cell(folder, scores={"accuracy": True}), "scores are not numbers"),
        (lambda folder: cell(folder, scores={"accuracy": 1.0, "<b>": 1.0}), "'<b>' is not a score's name"),
        (lambda folder: cell(folder, scores={"accuracy": 1.0, "f1/de/x": 1.0}), "'f1/de/x' is not a score's name"),
        (lambda folder: cell(folder, task="r|e"), r"task = 'r\|e' is not a cell's"),
        (lambda folder: cell(folder, seed="a"), "seed = 'a' is not a cell's"),
        (lambda folder: cell(folder, seed=True), "seed = True is not a cell's"),
        (lambda folder: cell(folder, dev="x"), "dev = 'x' is not a cell's"),
        (lambda folder: cell(folder, dev=float("nan")), "dev = nan is not a cell's"),
        (lambda folder: cell(folder, seconds="x"), "seconds = 'x' is not a cell's"),
        (lambda folder: cell(folder, versions=[1]), r"versions = \[1\] is not a cell's"),
        (lambda folder: cell(folder).rename(folder / "s/x.json"), "x.json: not a file of results"),
        (lambda folder: cell(folder).rename(folder / "s/rte/x.txt"), "x.txt: not a cell's file"),
        (
            lambda folder: (folder / "s/rte").rename(cell(folder).parent.with_name("mrpc")),
            "is of the model 's' and the",
        ),
        (lambda folder: (folder / "s/model.json").unlink(), "no model.json"),
    ],
)
def test_a_torn_or_foreign_file_is_rejected_by_name(folder, make, named):
    make(folder)
    with pytest.raises(UserError, match=named):
        results.read_results(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="none: no such folder"):
        results.read_results(tmp_path / "none")


def test_a_mean_is_shown_with_its_spread_if_it_has_one():
    assert [results.shown_mean(72.04, 2.0), results.shown_mean(72.04, None)] == ["72.0 ± 2.0", "72.0"]


def test_reading_loads_no_model_code():
    code = "import sys, pipeline.artifacts.results; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
