"""Scores without fine-tuning in a report: percent kept, by language or set, and no seeds where nothing was trained."""

import shlex

import pytest

from data_prep.cli import UserError
from pipeline.evaluate.__main__ import parser
from pipeline.report.__main__ import main
from pipeline.report.kept import kept
from tests.parts.launching import run_main
from tests.report.test_report import made, put, put_model, row, section, stage

MODELS = {"teacher": (6, None), "undistilled": (3, None), "student": (3, [stage()])}


def put_embedded(folder, model, task, metric, score, baseline=0.0, source="texts", **others):
    content = {
        "format": 1,
        "model": model,
        "weights": "00112233aabbccdd",
        "task": task,
        "settings": {"pooling": "mean", "prompt": "query: ", "length": 128},
        "data": {"source": source, "dev": 1225, "fingerprint": "f00d"},
        "scores": {metric: score} | others,
        "primary": metric,
        "split": "dev",
        "baseline": {metric: baseline},
        "rows": 1225,
    }
    return put(folder / model / task / "embedded.json", **content)


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "results"
    for model, (layers, distillation) in MODELS.items():
        put_model(out, model, layers, distillation=distillation)
    for model, lee, de, sw in (
        ("teacher", 66.0, 90.0, 60.0),
        ("undistilled", 55.0, 50.0, 10.0),
        ("student", 64.0, 80.0, 40.0),
    ):
        put_embedded(out, model, "lee", "pearson", lee, source="gensim==4.4.0")
        by_language = {"accuracy/de": de, "accuracy/sw": sw}
        put_embedded(out, model, "bitext", "accuracy", (de + sw) / 2, baseline=1.25, **by_language)
    return out


def test_a_run_report_says_what_is_kept_of_the_teacher(folder):
    text = "\n".join(kept(folder))
    assert text.splitlines()[0] == "| score | teacher | undistilled | student |"
    assert row(text, "Lee's documents, Pearson") == ["66.0", "55.0 (83.3 %)", "64.0 (97.0 %)"]
    assert row(text, "Bitext retrieval, accuracy") == ["75.0", "30.0 (40.0 %)", "60.0 (80.0 %)"]
    assert [row(text, language) for language in ("de", "sw")] == [["90.0", "50.0", "80.0"], ["60.0", "10.0", "40.0"]]
    lee, bitext = (
        "Lee's documents (1,225 rows, majority baseline 0.0)",
        "Bitext retrieval (1,225 rows, majority baseline 1.2)",
    )
    assert f"* student keeps 88.5 % of teacher, on average: {lee}; {bitext}" in text


def test_nothing_is_claimed_below_the_baseline(folder):
    put_embedded(folder, "undistilled", "bitext", "accuracy", 1.0, baseline=1.25)
    text = "\n".join(kept(folder))
    assert row(text, "Bitext retrieval, accuracy")[1] == "1.0"
    assert (
        "* undistilled, nothing claimed where it or its teacher is not above the baseline: Bitext retrieval (" in text
    )


def test_the_report_of_results_has_them_without_seeds_and_with_commands_that_make_them_again(folder):
    put_embedded(folder, "student", "sts", "spearman", 80.0, **{"spearman/STS-B-test": 80.0})
    text = made(folder)
    assert row(text, "student")[1:3] == ["80.0", "64.0"]
    assert row(section(text, "Retention"), "student")[1:3] == ["97.0", "80.0"]
    by_set = section(text, "By language or set")
    assert row(by_set, "student") == ["80.0", "80.0"] and "| STS, Spearman | average | STS-B-test |" in by_set
    assert row(by_set, "student", 1) == ["60.0", "80.0", "40.0"]
    lines = [line.strip() for line in text.splitlines() if line.startswith("    python -m pipeline.evaluate")]
    options = [parser().parse_args(shlex.split(line)[3:]) for line in lines]
    of_student = {each.task: each for each in options if each.name == "student"}
    assert (of_student["lee"].data, of_student["bitext"].data, of_student["sts"].data) == (None, "texts", "texts")
    assert of_student["bitext"].languages == "de,sw" and of_student["sts"].languages is None
    assert all((each.prefix, each.length, each.seeds) == ("query: ", 128, (1, 2, 3, 4)) for each in options)


def test_scores_go_with_a_run_and_its_student(folder, monkeypatch, capsys):
    code, _, line = run_main(monkeypatch, capsys, main, folder, "--scores", folder)
    assert (code, line) == (
        2,
        "error: --scores goes with a run and its student; a results folder is reported by itself\n",
    )
    with pytest.raises(UserError, match=r"no such folder; python -m pipeline.evaluate"):
        kept(folder / "not")
