"""pipeline.report on results made here: figures, notes on gaps, the papers' tables, and a page that needs nothing."""

import base64
import dataclasses
import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from data_prep.cli import UserError
from pipeline.artifacts import results
from pipeline.artifacts.results import read_results
from pipeline.paper import HUB_LANGUAGES
from pipeline.report import origin
from pipeline.report.__main__ import main, make
from pipeline.report.distilled import runs_section
from pipeline.report.origin import origin_section
from pipeline.report.scores import Scores, find_teacher
from pipeline.report.sections import language_section, retention_section, scores_section
from tests.parts import launching

WEIGHTS = "00112233aabbccdd"


def put(path, /, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def stage(teacher="models/teacher", layers=3, hidden=384, pairs=("qk", "vv"), layer=6, heads=12, **others):
    recipe = {
        "teacher": {"model": teacher, "layer": layer},
        "student": {"layers": layers, "hidden": hidden, "init": "random"},
        "pairs": list(pairs),
        "relation_heads": heads,
        "steps": 1000,
        "batch": 32,
        "length": 128,
        "learning_rate": 1e-3,
    }
    return {"recipe": recipe | others}


def put_model(folder, name, layers=3, hidden=384, path=None, distillation=None, **changes):
    count = {"embeddings": 11720448, "transformer": layers * 1774464, "other": 345984}
    content = {
        "format": 1,
        "name": name,
        "path": path or f"models/{name}",
        "weights": WEIGHTS,
        "model_type": "bert",
        "layers": layers,
        "hidden": hidden,
        "parameters": count | {"total": sum(count.values())},
        "distillation": distillation,
    }
    return put(folder / name / "model.json", **(content | changes))


def put_cell(folder, model, score, task="rte", seed=1, lr=3e-05, epochs=3, metric="accuracy", others=None, **changes):
    content = {
        "format": 1,
        "model": model,
        "weights": WEIGHTS,
        "task": task,
        "settings": {"learning_rate": lr, "epochs": epochs, "batch": 32, "length": 128, "seed": seed},
        "data": {"source": f"glue/{task}", "train": 2490, "dev": 277, "fingerprint": "f00d"},
        "scores": {metric: score} | (others or {}),
        "primary": metric,
        "split": "dev",
        "seconds": 90.0,
        "versions": {"torch": "2.13.0"},
    }
    return put(folder / model / task / f"lr{lr:g}-epochs{epochs}-seed{seed}.json", **(content | changes))


def put_failure(folder, model, error, task="rte", seed=4):
    settings = {"learning_rate": 3e-05, "epochs": 3, "batch": 32, "length": 128, "seed": seed}
    name = f"lr3e-05-epochs3-seed{seed}.failed.json"
    put(folder / model / task / name, format=1, model=model, task=task, settings=settings, error=error)


@pytest.fixture
def folder(tmp_path):
    """A teacher and its student on RTE by three seeds; MRPC for the teacher alone."""
    out = tmp_path / "results"
    put_model(out, "teacher", 6)
    put_model(out, "student", distillation=[stage()])
    for seed, (theirs, own) in enumerate(((70, 60), (72, 62), (74, 64)), 1):
        put_cell(out, "teacher", theirs, seed=seed)
        put_cell(out, "student", own, seed=seed)
    put_cell(out, "teacher", 80.0, "mrpc", others={"f1": 86.0})
    return out


def made(folder, *runs, **options):
    return make(folder, list(runs), **options)[0]


def row(text, first, number=0):
    """The cells of the ``number``-th table row that begins with ``first``."""
    rows = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith(f"| {first} |")]
    return rows[number][1:]


def section(text, title):
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


# --- figures ----------------------------------------------------------------------------------------------------------


def test_a_figure_is_mean_and_sample_deviation_over_seeds(folder):
    text = made(folder)
    assert row(text, "**teacher** (teacher)") == ["6x384", "72.0 ± 2.0 (3)", "80.0 (1)"]
    assert row(text, "student") == ["3x384", "62.0 ± 2.0 (3)", "–"]


def test_the_best_setting_by_its_mean_counts_and_all_are_listed(folder):
    for seed, score in enumerate((50, 50, 89), 1):
        put_cell(folder, "student", score, seed=seed, lr=5e-05)
    text = made(folder)
    assert row(text, "student")[1] == "63.0 ± 22.5 (3)"
    assert "RTE, all 2 settings: lr 5e-05, 3 epochs, batch 32, length 128: 63.0 ± 22.5 (3); lr 3e-05" in text
    assert "--learning-rate 5e-05 --epochs 3" in section(text, "How each figure was made")


def test_retention_is_percent_of_the_teacher_and_its_average_over_common_tasks(folder):
    put_cell(folder, "student", 60.0, "mrpc")
    text = made(folder)
    kept = section(text, "Retention")
    assert row(kept, "student") == ["86.1 (3)", "75.0 (1)", "**80.6**", "2 tasks"]
    assert "student keeps 80.6 % of its teacher teacher, on average over 2 tasks: " in text


def test_a_task_that_one_of_both_lacks_is_not_averaged(folder):
    assert row(section(made(folder), "Retention"), "student") == ["86.1 (3)", "–", "**86.1**", "1 task"]


def low(baseline):
    """What put_cell takes to have a majority baseline on record."""
    return {"baseline": {"accuracy": baseline}}


def test_rows_seeds_and_the_majority_baseline_stand_beside_a_claim(folder):
    for seed in (1, 2, 3):
        put_cell(folder, "student", 62.0, seed=seed, **low(52.7))
    text = made(folder)
    basis = "RTE (277 rows, 3 seeds, majority baseline 52.7)"
    assert f"* student keeps 86.1 % of its teacher teacher, on average over 1 task: {basis}." in text
    assert row(text, "majority baseline") == ["", "52.7 (277 rows)", "not recorded"]
    assert row(section(text, "Retention"), "majority baseline")[0] == "52.7 (277 rows)"


@pytest.mark.parametrize(
    "theirs, own", [((72.0, 50.0), (52.7, 52.7)), ((72.0, 80.0), (62.0, 52.7)), ((52.7, 52.7),) * 2]
)
def test_nothing_is_claimed_where_one_class_scores_as_much(folder, theirs, own):
    """Of the teacher or of the student: (score, majority baseline)."""
    for seed in (1, 2, 3):
        put_cell(folder, "teacher", theirs[0], seed=seed, **low(theirs[1]))
        put_cell(folder, "student", own[0], seed=seed, **low(own[1]))
    text = made(folder)
    assert " keeps " not in text and row(section(text, "Retention"), "student") == ["low", "–", "–", "–"]
    line = "student, nothing claimed where it or teacher is not above the majority baseline: RTE (277 rows, 3 seeds, majority"
    assert f"* {line} baseline 52.7)." in text


def test_a_claim_on_results_without_a_baseline_says_so(folder):
    assert "1 task: RTE (277 rows, 3 seeds, majority baseline not recorded)." in made(folder)


def test_nothing_is_kept_of_a_teacher_at_zero(folder):
    put_cell(folder, "teacher", 0.0, "cola", metric="matthews")
    put_cell(folder, "student", 12.0, "cola", metric="matthews")
    assert row(section(made(folder), "Retention"), "student")[0] == "–"


def test_other_metrics_of_the_same_runs_are_shown(folder):
    text = made(folder)
    assert "| other metrics of the same runs | MRPC, F1 |" in text
    assert row(text, "teacher") == ["86.0 (1)"]


def test_languages_have_a_table_with_the_mean_first(folder):
    for model, shift in (("teacher", 0), ("student", -10)):
        scores = {"accuracy/sw": 50.0 + shift, "accuracy/en": 70.0 + shift, "accuracy/xx": 60.0 + shift}
        put_cell(folder, model, 60.0 + shift, "xnli", others=scores)
    text = section(made(folder), "By language")
    assert "| XNLI, accuracy | average | en | sw | xx |" in text
    assert row(text, "student") == ["50.0", "60.0", "40.0", "50.0"]


def test_a_single_language_needs_no_table(folder):
    put_cell(folder, "teacher", 60.0, "xnli", others={"accuracy/en": 60.0})
    assert "## By language" not in made(folder)


# --- what is not there ------------------------------------------------------------------------------------------------


def test_a_score_that_is_not_there_is_named(folder):
    text = made(folder)
    assert "* not there yet (–): student in MRPC" in text
    assert "* 1 score not there; see below." in text


def test_a_failed_cell_is_named_with_its_reason_and_leaves_the_others(folder):
    put_failure(folder, "student", "the loss is not finite")
    text = made(folder)
    reason = "lr 3e-05, 3 epochs, batch 32, length 128, seed 4: the loss is not finite"
    assert f"* **failed:** student, RTE, {reason}" in text
    assert row(text, "student")[1] == "62.0 ± 2.0 (3)"


def test_a_task_of_which_every_cell_failed_is_a_gap_with_a_reason(folder):
    put_failure(folder, "student", "no memory", task="qnli")
    text = made(folder)
    assert "* not there yet (–): student in QNLI, MRPC" in text and "QNLI, lr 3e-05" in text
    assert not (folder / "report-scores-qnli.svg").exists()


def test_differences_between_models_are_noted(folder):
    put_cell(folder, "student", 61.0, seed=4)
    put_cell(folder, "student", 60.0, "mrpc", data={"source": "other", "fingerprint": "beef"}, split="test")
    put_cell(folder, "student", 63.0, seed=5, precision="bf16")
    text = made(folder)
    assert "* RTE, seeds differ: teacher 1 2 3; student 1 2 3 4 5" in text
    assert "* RTE, precision differ: teacher fp32; student bf16, fp32" in text
    assert "* MRPC, data differ: teacher glue/mrpc (f00d); student other (beef)" in text
    assert "* MRPC, scored split differ: teacher dev; student test" in text


def test_as_many_other_seeds_are_noted_too(folder):
    for name, seed in (("teacher", 1), ("student", 7)):
        put_cell(folder, name, 61.0, "qnli", seed=seed)
    assert "* QNLI, seeds differ: teacher 1; student 7" in made(folder)


def test_a_setting_with_fewer_seeds_is_left_out_and_named(folder):
    put_cell(folder, "student", 99.0, lr=1e-04)
    text = made(folder)
    assert row(text, "student")[1] == "62.0 ± 2.0 (3)"
    assert "* student, RTE: not compared, with fewer than 3 seeds: lr 0.0001, 3 epochs, batch 32, length 128" in text
    assert "* RTE, settings tried differ: teacher 1; student 2" in text


def test_scores_of_other_weights_than_the_models_are_rejected(folder):
    path = put_cell(folder, "student", 60.0, weights="beef")
    with pytest.raises(
        UserError, match=rf"{path}: scored with the weights beef, but student is {WEIGHTS} by its model.json"
    ):
        made(folder)


# --- the teacher ------------------------------------------------------------------------------------------------------


def teacher_of(folder, name=None):
    return find_teacher(read_results(folder), name)


def test_the_teacher_is_whom_the_students_chain_begins_with(folder):
    put_model(folder, "assistant", 6, distillation=[stage(layers=6)])
    put_model(folder, "student", distillation=[stage(layers=6), stage("models/assistant")])
    assert teacher_of(folder) == "teacher"


@pytest.mark.parametrize("distilled_from", ["models/teacher", "elsewhere/teacher"])
def test_the_teacher_is_found_by_path_or_name(folder, distilled_from):
    put_model(folder, "student", distillation=[stage(distilled_from)])
    assert teacher_of(folder) == "teacher"


def test_without_a_distillation_the_speeds_reference_is_the_teacher(folder):
    put_model(folder, "student")
    speed = {"model": "student", "reference": "teacher", "device": "cpu", "speedup": 2.0}
    put(folder / "student" / "speed.json", format=1, **speed)
    assert teacher_of(folder) == "teacher"


def test_a_teacher_by_name_goes_before_all(folder):
    assert teacher_of(folder, "student") == "student"
    assert "| percent of student |" in made(folder, teacher="student")


def test_a_student_is_compared_with_its_own_teacher_alone(folder):
    put_model(folder, "large", 12)
    put_model(folder, "of-large", distillation=[stage("models/large")])
    put_model(folder, "of-nobody-here", distillation=[stage("models/elsewhere")])
    put_model(folder, "plain")
    for model, score in (("large", 80.0), ("of-large", 75.0), ("of-nobody-here", 70.0), ("plain", 60.0)):
        put_cell(folder, model, score)
    text, summary = make(folder, [])
    kept = {line.split(" keeps ")[0]: line for line in summary if " keeps " in line}
    assert kept.keys() == {"student", "of-large"}
    assert (
        "keeps 93.8 % of its teacher large," in kept["of-large"] and "86.1 % of its teacher teacher," in kept["student"]
    )
    assert "Not compared, since no teacher of theirs is here: of-nobody-here, plain." in summary
    assert text.startswith("# Scores compared with large and teacher\n")
    tables = section(text, "Retention").split("| percent of ")[1:]
    assert [table.split(" |")[0] for table in tables] == ["large", "teacher"]
    assert (
        "| student |" not in tables[0] and "| of-large |" not in tables[1] and "of-nobody-here" not in "".join(tables)
    )
    named, _ = make(folder, [], "teacher")
    assert row(section(named, "Retention"), "plain")[0] == "83.3 (1)" and "| of-nobody-here |" not in section(
        named, "Retention"
    )


def test_a_teacher_by_another_name_is_the_one_that_is_given(folder):
    """Distilled from a hub id, scored from a folder."""
    put_model(folder, "student", distillation=[stage("some/hub-id")])
    assert row(section(made(folder, teacher="teacher"), "Retention"), "student")[0] == "86.1 (3)"


def test_a_teacher_that_is_not_clear_is_asked_for(folder):
    put_model(folder, "student")
    with pytest.raises(
        UserError, match=r"which model is the teacher\? --teacher NAME says it; there are student, teacher"
    ):
        made(folder)


def test_several_references_of_speeds_are_asked_to_be_one(folder):
    put_model(folder, "student")
    put_model(folder, "third")
    for model, reference in (("student", "teacher"), ("third", "student")):
        speed = {"model": model, "reference": reference, "device": "cpu", "speedup": 2.0}
        put(folder / model / "speed.json", format=1, **speed)
    with pytest.raises(UserError, match=r"several teachers \(student, teacher\); name one with --teacher NAME"):
        made(folder)


@pytest.mark.parametrize("name, hint", [("techer", "did you mean teacher?"), ("nobody", "there are student, teacher")])
def test_an_unknown_teacher_is_named_with_the_choices(folder, name, hint):
    with pytest.raises(UserError, match=re.escape(f"--teacher {name}: no results of it in {folder}; {hint}")):
        made(folder, teacher=name)


def test_a_single_model_needs_no_teacher(tmp_path):
    put_model(tmp_path, "alone")
    put_cell(tmp_path, "alone", 60.0)
    text = made(tmp_path)
    assert text.startswith("# Scores of alone\n") and "## Retention" not in text


# --- compared with the papers -----------------------------------------------------------------------------------------


BERT = "google-bert/bert-base-uncased"


@pytest.fixture
def papers(tmp_path):
    """BERT-base and the papers' 3x384 with and without value relation, on SQuAD 2.0."""
    put_model(tmp_path, "bert-base-uncased", 12, 768, path=BERT)
    put_model(tmp_path, "both", distillation=[stage(BERT, layer=12)])
    put_model(tmp_path, "no-values", distillation=[stage(BERT, layer=12, pairs=("qk",))])
    for model, score in (("bert-base-uncased", 76.0), ("both", 66.0), ("no-values", 64.0)):
        put_cell(tmp_path, model, score, "squad2", metric="f1", others={"exact_match": 1.0})
    return tmp_path


def paper_table(text, title):
    return text.partition(f"\n### {title}\n")[2].partition("\n### ")[0].partition("\n## ")[0]


def test_our_cells_stand_below_the_papers_rows(papers):
    table = paper_table(made(papers), "What the value relation brings")
    lines = [line for line in table.splitlines() if line.startswith("|")]
    at = lines.index("| 3x384, MiniLM | 66.2 | 78.8 | 89.3 |")
    assert lines[at + 1] == "| **here: both** | 66.0 (1) |  |  |"
    assert lines[at + 3] == "| **here: no-values** | 64.0 (1) |  |  |"
    assert "* both had 1,000 steps of 32 × 128 tokens from google-bert/bert-base-uncased" in table
    assert "* none here of: 6x384, MiniLM; 6x384, without value relation; 4x384" in table
    assert row(paper_table(made(papers), "Six layers of width 768"), "**here: bert-base-uncased**")[0] == "76.0 (1)"


def test_students_of_the_same_method_stand_at_the_end(folder):
    put_cell(folder, "student", 50.0, "squad2", metric="f1")
    table = paper_table(made(folder), "What the value relation brings")
    assert "* no model here has the teacher and shape of a row" in table
    rows = [line for line in table.splitlines() if line.startswith("| here")]
    assert rows == [
        "| here: teacher (teacher) |  |  |  |",
        "| here: student (3x384 from teacher by qk, vv) | 50.0 (1) |  |  |",
    ]


def test_a_mean_over_fewer_languages_than_the_papers_says_so(folder):
    put_model(folder, "student", distillation=[stage(pairs=("qq", "kk", "vv"), heads=48)])
    both, all_ = ("en", "de"), HUB_LANGUAGES["xnli"]
    for languages, shown in ((both, "50.0 (1), 2 languages"), (all_, "50.0 (1)")):
        put_cell(folder, "student", 50.0, "xnli", others={f"accuracy/{language}": 50.0 for language in languages})
        table = paper_table(made(folder), "MiniLMv2 from XLM-R-large")
        assert row(table, "here: student (3x384 from teacher by kk, qq, vv)")[0] == shown


@pytest.mark.slow
def test_the_average_of_a_paper_is_ours_only_if_every_task_is(folder):
    put_model(folder, "bert-base-uncased", 12, 768, path=BERT)
    tasks = {"squad2": "f1", "mnli": "accuracy", "sst2": "accuracy", "qnli": "accuracy", "cola": "matthews"}
    for number, (task, metric) in enumerate((tasks | dict.fromkeys(("rte", "mrpc"), "accuracy")).items()):
        put_cell(folder, "bert-base-uncased", 80.0 + number, task, metric=metric)
    ours = "**here: bert-base-uncased**"
    assert row(paper_table(made(folder), "Six layers of width 768"), ours)[-1] == ""
    put_cell(folder, "bert-base-uncased", 87.0, "qqp")
    assert row(paper_table(made(folder), "Six layers of width 768"), ours)[-1] == "83.5"


def test_tables_of_tasks_that_nobody_scored_are_shown_on_demand(papers):
    assert "MiniLMv2 from XLM-R-large" not in made(papers)
    assert "MLQA, trained on SQuAD 1.1" in made(papers, all_tables=True)


@pytest.mark.parametrize("record", [[{}], ["text"], {"a": 1}, [{"recipe": {"pairs": 3}}]])
def test_a_model_with_an_unknown_record_of_its_making_is_still_reported(folder, record):
    put_model(folder, "odd", distillation=record)
    put_cell(folder, "odd", 61.0)
    assert "* distilled: by a record that is not a recipe's" in made(folder, teacher="teacher")


# --- size, speed, runs, origin ----------------------------------------------------------------------------------------


def test_sizes_and_speed_stand_next_to_the_papers_quotient(folder):
    speed = {"model": "student", "reference": "teacher", "device": "cpu (2 threads), fp32", "speedup": 2.031}
    put(folder / "student" / "speed.json", format=1, batches=100, batch=32, length=128, text="QNLI/dev.tsv", **speed)
    text = section(made(folder), "Parameters and speed")
    assert row(text, "student") == ["3x384", "PyTorch", "11.7", "5.3", "17.4", "–", "2.03", "teacher", "1.91"]
    assert row(text, "**teacher** (teacher)")[-3:-1] == ["1", "itself"]
    assert "* measured: 100 batches of 32 × at most 128 tokens (QNLI/dev.tsv) on cpu (2 threads), fp32, medians" in text


def test_speed_that_was_not_measured_is_noted(folder):
    assert "* speed of teacher, student: not measured;" in made(folder)


def put_metrics(folder, pairs=("qk", "vv")):
    rows = [{"step": 0, "kind": "heldout", "loss": 2.0, **dict.fromkeys(pairs, 1.0)}]
    for step in (10, 20):
        rows.append({"step": step, "kind": "train", "loss": 1.1, **dict.fromkeys(pairs, 0.55), "learning_rate": 1e-3})
    rows.append({"step": 20, "kind": "heldout", "loss": 1.0, **dict.fromkeys(pairs, 0.5)})
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 30, "ki')
    return folder


def test_runs_have_curves_and_their_first_and_last_losses(folder, tmp_path):
    one, two = put_metrics(tmp_path / "one"), put_metrics(tmp_path / "two", ("qq", "kk", "vv"))
    text = section(made(folder, one, two), "Distillation")
    assert "(report-losses-1.svg)" in text and "(report-losses-2.svg)" in text
    assert row(text, "one, step 20") == ["total", "2.0000", "1.0000", "50 %"]
    assert text.count("| kk |") == 1
    made(folder, one)
    assert not (folder / "report-losses-2.svg").exists()


def test_values_by_their_squared_difference_are_not_in_nats(tmp_path):
    values, relations = put_metrics(tmp_path / "values", ("qk", "v_mse")), put_metrics(tmp_path / "relations")
    note = "nats; v_mse: mean squared difference of values"
    lines, charts = runs_section([relations, values])
    assert note in "\n".join(lines) and note not in "\n".join(runs_section([relations])[0])
    assert [b"nats; v_mse: mean squared" in chart for chart in charts.values()] == [False, True]


def test_the_report_names_the_layers_that_students_learnt_from(folder):
    put_model(folder, "student", distillation=[stage(transfer="layer-to-layer")])
    put_model(folder, "last", distillation=[stage()])
    text = "\n".join(origin_section(Scores(read_results(folder), "teacher"))[0])
    assert "by qk, vv in 12 relation heads, layer to layer up to layer 6, 1,000 steps" in text
    assert "by qk, vv in 12 relation heads of layer 6, 1,000 steps" in text


def test_a_run_without_metrics_is_named(folder, tmp_path):
    with pytest.raises(
        UserError, match=r"nothing: no rows in metrics.jsonl; --runs takes folders that pipeline.distill wrote"
    ):
        made(folder, tmp_path / "nothing")


def test_the_folder_of_several_runs_is_taken_neither_for_results_nor_for_one_run(folder, tmp_path, monkeypatch):
    for part in ("assistant", "students/6x384"):
        (tmp_path / "runs" / part / "checkpoints").mkdir(parents=True)
    inner = [str(tmp_path / "runs" / part) for part in ("assistant", "students/6x384")]
    with pytest.raises(UserError, match=f"--runs {' '.join(inner)} are its students or stages"):
        made(folder, tmp_path / "runs")
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "runs")])
    with pytest.raises(UserError, match=f"{inner[0]}/recipe.json: missing, so this run cannot be compared"):
        main()


def test_a_report_that_cannot_be_written_is_one_line(folder, monkeypatch):
    monkeypatch.setattr(results.tempfile, "TemporaryFile", lambda dir: (folder / "no" / "such").open("w"))
    with pytest.raises(UserError, match=r"cannot be written to \(no such file or directory\); choose another folder"):
        made(folder)


def test_each_figure_comes_with_the_command_that_makes_it_again(folder):
    put_model(folder, "my student", path="models/my student", distillation=[stage()])
    put_cell(folder, "my student", 60.0, seed=7)
    text = made(folder)
    command = (
        "    python -m pipeline.evaluate --model 'models/my student' --name 'my student' --task rte --data glue/rte --seeds 7 "
        f"--learning-rate 3e-05 --epochs 3 --batch 32 --length 128 --out {folder}"
    )
    assert command in text.splitlines()
    assert "glue/rte, fingerprint f00d" in text and "torch 2.13.0" in text


def test_the_command_is_one_that_evaluate_understands(folder):
    from pipeline.evaluate.__main__ import parser

    made(folder)
    scores = Scores(read_results(folder), "teacher")
    line = origin.command(scores, scores.results.models["student"], "rte", scores.chosen("student", "rte"))
    options = parser().parse_args(shlex.split(line)[3:])
    assert (options.model, options.name, options.task) == (["models/student"], "student", "rte")
    assert options.seeds == [1, 2, 3] and options.learning_rate == [3e-05] and options.epochs == [3]


def test_the_command_names_the_languages_that_were_scored(folder):
    for seed in (1, 2):
        put_cell(folder, "student", 50.0, "xnli", seed, others={"accuracy/sw": 40.0, "accuracy/de": 60.0})
    scores = Scores(read_results(folder), "teacher")
    model = scores.results.models["student"]
    assert " --languages de,sw --out " in origin.command(scores, model, "xnli", scores.chosen("student", "xnli"))
    assert "--languages" not in origin.command(scores, model, "rte", scores.chosen("student", "rte"))


def commands_of_the_papers_tables():
    """The commands of docs/guides/papers.md, word by word."""
    text = (launching.ROOT / "docs/guides/papers.md").read_text().replace("\\\n", "")
    blocks = [block.partition("```")[0] for block in text.split("```sh\n")[1:]]
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    variables = dict(line.split("=", 1) for line in lines if line and not line.startswith("./"))
    for name, value in variables.items():
        lines = [line.replace(f"${name}", value) for line in lines]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("./")]


@pytest.mark.slow
def test_the_guides_commands_for_the_papers_tables_fit_the_recipes():
    from pipeline.evaluate.__main__ import parser
    from pipeline.evaluate.preparing import check_options
    from pipeline.settings.reading import SHIPPED, load_stages

    recipes = [recipe for path in SHIPPED.glob("*.toml") for stage in load_stages(path) for recipe in stage]
    runs = {recipe.out for recipe in recipes}
    students = {str(recipe.exported) for recipe in recipes if recipe.stage}
    scored = []
    for verb, *words in commands_of_the_papers_tables():
        if verb == "export":
            assert words[0] in runs
            students.add(words[1])
        assert {word for word in words if word.startswith("runs/")} <= runs | students
        if verb == "evaluate":
            options = parser().parse_args(words)
            check_options(options)
            scored.append((options.out, options.name or options.model[0]))
    assert len(scored) > 5 and len(set(scored)) == len(scored)


# --- the page ---------------------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """Whatever a page could load or run."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.handlers = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [
            value for key, value in attributes if key in ("src", "href", "srcset", "action", "data", "poster")
        ]
        self.handlers += [key for key, _ in attributes if key.startswith("on")]


def page(folder):
    return (folder / "report.html").read_text()


def test_the_page_needs_nothing_from_elsewhere(folder, tmp_path):
    made(folder, put_metrics(tmp_path / "run"), all_tables=True)
    links = Links(page(folder))
    assert links.sources and all(source.startswith("data:image/svg+xml;base64,") for source in links.sources)
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(links.tags)
    assert "@import" not in page(folder) and "url(" not in page(folder)
    assert "default-src 'none'" in page(folder)


def test_every_chart_is_on_the_page_and_next_to_the_markdown(folder):
    text = made(folder)
    names = re.findall(r"\]\((report-[^)]*)\)", text)
    assert names == ["report-scores-rte.svg", "report-scores-mrpc.svg"]
    for name in names:
        assert base64.b64encode((folder / name).read_bytes()).decode() in page(folder)


HOSTILE = "<img src=x onerror=alert(1)>|**b** [l](javascript:1) `c` _i_ &amp; $x^$"


def test_names_and_reasons_of_others_are_shown_and_never_obeyed(folder):
    put_model(folder, HOSTILE, distillation=[stage(), stage(f"models/{HOSTILE}")])
    put_cell(folder, HOSTILE, 61.0, data={"source": HOSTILE, "fingerprint": HOSTILE}, versions={HOSTILE: HOSTILE})
    put_failure(folder, HOSTILE, f"</table></body>{HOSTILE}\n\n# {HOSTILE}")
    made(folder, teacher="teacher")
    links = Links(page(folder))
    assert not links.handlers and "script" not in links.tags and "a" not in links.tags
    assert all(source.startswith("data:image/svg") for source in links.sources)
    assert links.tags.count("body") == 1 and links.tags.count("h1") == 1
    shown = re.sub(r"<[^>]*>", "", page(folder))
    escaped = "&lt;img src=x onerror=alert(1)&gt;|**b** [l](javascript:1) `c` _i_ &amp;amp; $x^$"
    assert shown.count(escaped) > 8
    whole_cells = re.findall(
        rf"<td>{re.escape(escaped)}</td>", page(folder).replace("<em>", "").replace("<strong>", "")
    )
    assert len(whole_cells) == 4  # scores, other metrics, retention, sizes


@pytest.mark.parametrize("line_break", ["\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\r\n"])
def test_a_command_stays_in_its_line_whatever_a_path_holds(folder, line_break):
    scores = Scores(read_results(folder), "teacher")
    hostile = f"models/a{line_break}{line_break}<img src=x onerror=alert(1)>"
    model = scores.results.models["student"] | {"path": hostile}
    assert len(origin.command(scores, model, "rte", scores.chosen("student", "rte")).splitlines()) == 1


def test_names_of_tasks_and_scores_are_shown_as_they_are(folder):
    results, bad = read_results(folder), "<b onclick=x>|y"
    cells = [
        dataclasses.replace(
            cell, task=bad, scores=dict.fromkeys((bad, "f1", f"{bad}/de", f"{bad}/en"), 1.0), primary=bad
        )
        for cell in results.cells
    ]
    twice = [*cells, *(dataclasses.replace(cell, settings=cell.settings | {"epochs": 9}) for cell in cells)]
    scores = Scores(dataclasses.replace(results, cells=[*twice, *results.cells]), "teacher")
    sections = [
        scores_section(dataclasses.replace(scores, results=dataclasses.replace(scores.results, cells=own)))[0]
        for own in (twice, [cell for cell in [*twice, *results.cells] if (cell.model, cell.task) != ("student", bad)])
    ]
    sections += [retention_section(scores)[0], language_section(scores)[0]]
    for lines in (*sections, origin_section(scores)[0]):
        text = "\n".join(line for line in lines if not line.startswith(("    ", "![")))  # code, and files' names
        assert "&lt;b onclick=x&gt;\\|y" in text and "<b onclick" not in text


@pytest.mark.slow
def test_the_same_results_give_the_same_bytes(folder, tmp_path):
    run = put_metrics(tmp_path / "run")

    def contents():
        return {path.name: path.read_bytes() for path in folder.glob("report*")}

    made(folder, run)
    first = contents()
    subprocess.run(
        [sys.executable, "-m", "pipeline.report", str(folder), "--runs", str(run)],
        check=True, capture_output=True, env=launching.environment() | {"PYTHONHASHSEED": "7"}, cwd=launching.ROOT,
    )  # fmt: skip
    assert len(first) == 5 and contents() == first


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_torn_file_is_named(folder):
    path = put_cell(folder, "student", 60.0)
    path.write_text(path.read_text()[:40])
    with pytest.raises(UserError, match=rf"{path}: not a whole JSON object; delete it"):
        made(folder)
    assert not (folder / "report.md").exists()


def test_a_folder_without_scores_is_named(tmp_path):
    put_model(tmp_path, "a")
    with pytest.raises(UserError, match=r"no scores; python -m pipeline.evaluate … --out"):
        made(tmp_path)


def test_the_command_prints_where_the_report_is(folder, monkeypatch, capsys):
    code, out, _ = launching.run_main(monkeypatch, capsys, main, folder)
    assert code == 0
    assert out.splitlines() == [
        "2 models on 2 tasks: RTE, MRPC.",
        "student keeps 86.1 % of its teacher teacher, on average over 1 task: "
        "RTE (277 rows, 3 seeds, majority baseline not recorded).",
        "1 score not there; see below.",
        str(folder / "report.md"),
        str(folder / "report.html"),
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "nowhere: no such folder; python -m pipeline.evaluate"),
        ([], "the following arguments are required: RESULTS_DIR | RUN_DIR"),
        (["x", "--teachr", "y"], "unrecognized arguments: --teachr"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(arguments, message, monkeypatch, capsys):
    code, _, line = launching.run_main(monkeypatch, capsys, main, *arguments)
    assert code == 2
    assert line.startswith(f"error: {message}") and line.count("\n") == 1
