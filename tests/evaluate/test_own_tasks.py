"""A user's own task: described by a file, learned and scored as any other; its models and predictions kept on request."""

import csv
import json
import random
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.metrics import f1_score, roc_auc_score
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoTokenizer

from data_prep.cli import UserError
from pipeline.artifacts import results
from pipeline.evaluate import finetune, own_tasks, preparing
from pipeline.evaluate.__main__ import main, parser
from pipeline.evaluate.baseline import baseline
from pipeline.evaluate.scores import label_scores
from pipeline.evaluate.task_data import read_task
from pipeline.evaluate.tasks import TASKS
from pipeline.report.__main__ import make
from tests.parts import task_files
from tests.parts.tiny import make_teacher

TOPICS = ("politics", "sport, and play", "weather")
DESCRIPTION = 'train = "train.csv"\ndev = "dev.csv"\ntext = "body"\nlabel = "topic"\n'
CELL = "lr3e-05-epochs1-seed1"
FAST = ("--seeds", 1, "--epochs", 1, "--length", 32, "--batch", 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("models") / "small", layers=1, hidden=16, positions=160)


@pytest.fixture(autouse=True)
def forget():
    known = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(known)


@pytest.fixture
def run(monkeypatch, tmp_path, model, capsys):
    def run_(*options, seeds=FAST):
        words = ["--model", model, "--out", tmp_path / "out", *seeds, *options]
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, words)])
        return main(), capsys.readouterr().out

    return run_


def rows(count, seed, labels=TOPICS):
    """[text, label], the first word of the text giving the label."""
    rng = random.Random(seed)
    return [[f"w{n % len(labels)} {task_files.words(rng, 6 - n % 4)}", labels[n % len(labels)]] for n in range(count)]


def write(folder, description=DESCRIPTION, labels=TOPICS, name="topics.toml", separator=","):
    for file, count, seed in (("train.csv", 24, 1), ("dev.csv", 9, 2)):
        with (folder / file).open("w", newline="") as out:
            writer = csv.writer(out, delimiter=separator)
            writer.writerows([["id", "body", "topic"], *([n, *row] for n, row in enumerate(rows(count, seed, labels)))])
    path = folder / name
    path.write_text(description)
    return path


def read(path):
    return read_task(own_tasks.register(str(path)), None)


@pytest.mark.slow
def test_an_own_task_is_learned_scored_reported_and_kept(run, tmp_path, model):
    path = write(tmp_path, DESCRIPTION + 'metrics = ["accuracy", "f1_macro", "roc_auc_ovr"]\n')
    options = ("--task", path, "--keep", "models", "predictions")
    learn = ("--seeds", 1, "--epochs", 12, "--learning-rate", 1e-2, "--batch", 8, "--length", 32)
    code, said = run(*options, seeds=learn)
    assert code == 0 and "topics (accuracy)" in said
    cell = results.read_results(tmp_path / "out").cells[0]
    assert (cell.task, cell.rows, cell.split) == ("topics", 9, "dev") and set(cell.scores) == {
        "accuracy",
        "f1_macro",
        "roc_auc_ovr",
    }
    assert cell.score > 80 and cell.baseline["accuracy"] == pytest.approx(100 / 3) and cell.data["source"] == str(path)

    stem = cell.path.with_suffix("")
    predictions = [
        json.loads(line) for line in stem.with_name(stem.name + ".predictions.jsonl").read_text().splitlines()
    ]
    dev = list(csv.DictReader((tmp_path / "dev.csv").open()))
    assert [each["row"] for each in predictions] == list(range(9))
    assert [each["label"] for each in predictions] == [row["topic"] for row in dev]
    hits = np.mean([each["label"] == each["prediction"] for each in predictions])
    assert 100 * hits == pytest.approx(cell.score)
    kept = stem.with_name(stem.name + ".model")
    loaded = AutoModelForSequenceClassification.from_pretrained(kept).eval()
    assert loaded.config.id2label == dict(enumerate(TOPICS)) and loaded.config.label2id["weather"] == 2
    with torch.no_grad():
        logits = loaded(
            **AutoTokenizer.from_pretrained(kept)([row["body"] for row in dev], return_tensors="pt", padding=True)
        )
    ours = torch.tensor([[each["logits"][label] for label in TOPICS] for each in predictions])
    torch.testing.assert_close(logits.logits, ours, atol=0.05, rtol=0.05)  # bf16, if this CPU is faster in it

    text, _ = make(tmp_path / "out", [])
    assert "topics" in text and f"--task {path} --seeds 1" in text and "--data" not in text.split("--task")[1]


def test_numbers_and_pairs_are_tasks_too(run, tmp_path):
    lines = [json.dumps({"a": f"w{n % 5} w7", "b": f"w{n % 3} w9", "score": n % 5 - 2.5}) for n in range(12)]
    (tmp_path / "pairs.jsonl").write_text("\n".join([*lines[:8], "", *lines[8:]]))
    (tmp_path / "others.jsonl").write_text(lines[1].replace("w7", "w11") + "\n" + lines[3].replace("w7", "w12"))
    columns = 'text = "a"\ntext2 = "b"\nlabel = "score"\n'
    (tmp_path / "alike.toml").write_text(f'kind = "similarity"\ndev = "pairs.jsonl"\n{columns}')
    sets = 'train = "pairs.jsonl"\ndev = "others.jsonl"\ntest = "others.jsonl"\n'
    (tmp_path / "amount.toml").write_text(f'kind = "regression"\n{sets}{columns}metrics = ["r2", "spearman"]\n')
    names = ",".join(str(tmp_path / name) for name in ("alike.toml", "amount.toml"))
    code, said = run("--task", names, "--keep", "predictions")
    assert code == 0, said
    alike, amount = results.read_results(tmp_path / "out").cells
    assert set(alike.scores) == {"spearman", "pearson"} and alike.rows == 12 and alike.split == "all"
    assert set(amount.scores) == {"r2", "spearman"} and amount.primary == "r2" and amount.split == "test"
    kept = (tmp_path / "out/small/amount" / f"{CELL}.predictions.jsonl").read_text().splitlines()
    first = json.loads(kept[0])
    assert (
        (first["row"], first["label"]) == (0, -1.5) and isinstance(first["prediction"], float) and "logits" not in first
    )


def test_a_finished_cell_is_trained_again_only_if_what_it_is_to_leave_is_not_there(run, tmp_path, monkeypatch):
    path = write(tmp_path)
    calls = []

    def trained(*arguments, keep=None):
        calls.append(keep)
        if keep:
            scored = arguments[3].scored
            keep(None, {key: np.zeros((len(each.features), 3), np.float32) for key, each in scored.items()})
        return {"": {"accuracy": 50.0}}, {}

    monkeypatch.setattr(finetune, "finetune", trained)
    run("--task", path)
    _, said = run("--task", path, "--keep", "predictions")
    assert "topics: 1 of 1 cells are trained again: their predictions were not kept" in said
    _, said = run("--task", path, "--keep", "predictions")
    assert "1 of 1 cells were finished earlier" in said and [bool(keep) for keep in calls] == [False, True]


def test_scores_are_scikit_learns_whatever_the_order_of_a_heads_labels(tmp_path):
    name = own_tasks.register(
        str(write(tmp_path, DESCRIPTION + 'metrics = ["f1", "roc_auc"]\nlabels = ["no", "yes"]\n'))
    )
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(40, 2)), rng.integers(0, 2, 40)
    found = label_scores(TASKS[name], outputs.argmax(-1), labels, outputs)
    wanted = {
        "f1": f1_score(labels, outputs.argmax(-1)),
        "roc_auc": roc_auc_score(labels, outputs[:, 1] - outputs[:, 0]),
    }
    assert found == pytest.approx({key: 100 * value for key, value in wanted.items()})
    turned = Dataset.from_dict({"label": (1 - labels).tolist()})
    assert finetune.labelled_set(turned, TASKS[name], ("yes", "no")).score(outputs[:, ::-1]) == pytest.approx(found)
    with pytest.raises(ValueError, match="roc_auc is not defined for these rows: does the set have all labels"):
        label_scores(TASKS[name], outputs.argmax(-1), np.ones(40, int), outputs)


def test_labels_are_those_of_the_training_set_numbers_by_size(tmp_path):
    data = read(write(tmp_path, labels=("10", "9", "-1")))
    assert TASKS["topics"].labels == ("-1", "9", "10") and data.train["label"][:3] == [2, 1, 0]
    assert baseline("topics", data) == {"accuracy": pytest.approx(100 / 3)}
    lines = [json.dumps({"body": f"w{n} w3", "topic": n % 2 == 0}) for n in range(8)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:6]))
    (tmp_path / "dev.jsonl").write_text("\n".join(lines[6:]))
    path = tmp_path / "flags.toml"
    path.write_text(DESCRIPTION.replace(".csv", ".jsonl"))
    read(path)
    assert TASKS["flags"].labels == ("false", "true")


def test_the_fingerprint_knows_labels_and_metrics(tmp_path):
    prints = set()
    for more in ("", 'metrics = ["f1_macro"]\n', f"labels = {json.dumps([*reversed(TOPICS)])}\n"):
        prints.add(read(write(tmp_path, DESCRIPTION + more)).facts()["fingerprint"])
    assert len(prints) == 3


@pytest.mark.parametrize("separator", [";", "|", "\t"])
def test_any_separator_of_the_header_is_taken(tmp_path, separator):
    assert len(read(write(tmp_path, separator=separator)).train) == 24


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('label = "topic"', 'label = "topik"', r"train.csv: no column 'topik'; its header has 'id', 'body', 'topic'$"),
        (
            'text = "body"',
            "",
            "topics.toml: text is missing; a task of kind 'classification' needs text, label, train, dev",
        ),
        ('text = "body"', "text = 3", "topics.toml: text = 3: must be a name in quotes"),
        ('text = "body"', 'text = "body"\ntxt2 = "x"', r"topics.toml: txt2: unknown key; did you mean text2\?"),
        (
            'label = "topic"',
            'label = "topic"\nkind = "regresion"',
            "kind = 'regresion': must be one of 'classification'",
        ),
        (
            'label = "topic"',
            'label = "topic"\nkind = "regression"',
            "train.csv: row 1: the label 'politics' is not a number",
        ),
        (
            'label = "topic"',
            'label = "topic"\nkind = "similarity"',
            "text2 is missing; a task of kind 'similarity' needs",
        ),
        (
            'label = "topic"',
            'label = "topic"\nmetrics = ["f1"]',
            r"metrics: 'f1' is of two labels, there are 3; use f1_macro",
        ),
        (
            'label = "topic"',
            'label = "topic"\nmetrics = ["acuracy"]',
            r"metrics: 'acuracy': did you mean accuracy\? of kind",
        ),
        (
            'label = "topic"',
            'label = "topic"\nmetrics = ["neg_log_loss"]',
            "an error, not a score of which more is better",
        ),
        (
            'label = "topic"',
            'label = "topic"\nlabels = ["politics", "weather"]',
            "the label 'sport, and play' is none of politics",
        ),
        (
            'label = "topic"',
            'label = "topic"\nname = "rte"',
            "name = 'rte': is another task's; give the task another name",
        ),
        ('dev = "dev.csv"', 'dev = "nope.csv"', "nope.csv: no such file or directory"),
        (
            'dev = "dev.csv"',
            'dev = "train.csv"',
            "are in the training set too: the same file, or files of another split",
        ),
        ('dev = "dev.csv"', 'dev = "dev.xlsx"', "dev.xlsx: not a file of rows by its name; write .csv or .tsv"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, message):
    assert old in DESCRIPTION
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, DESCRIPTION.replace(old, new)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "dev.csv",
            'id,body,topic\n1,"a b",weather\n2,a,b,weather\n',
            r"dev.csv: row 2: has not the columns of the header",
        ),
        ("dev.csv", 'id,body,topic\n1,a,weather\n2,"a,weather\n', r"dev.csv: row 2: has a quote that is not closed"),
        ("dev.csv", "id,body,topic\n1,a,weather\n2,b,\n", r"dev.csv: row 2: has no topic; a set without labels"),
        ("dev.csv", "id,body,topic\n", r"dev.csv: has no rows"),
        ("dev.csv", b"id,body,topic\n1,the old river ran by the caf\xe9,weather\n", r"dev.csv: row 1: not UTF-8"),
        ("dev.jsonl", '{"body": "a", "topic": "weather"}\n{"body": "b"}', "line 2: no field 'topic'; it has 'body'"),
        ("dev.jsonl", '{"body": null, "topic": "weather"}', "line 1: body = None is not text"),
        ("dev.jsonl", '[{"body": "a"}]', "line 1: not an object but list; write one object a line"),
        ("dev.jsonl", "{", "line 1: not JSON"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, name, content, message):
    path = write(tmp_path, DESCRIPTION.replace("dev.csv", name))
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read(path)


def test_labels_that_are_quantities_or_one_are_refused(tmp_path):
    with pytest.raises(UserError, match="are 24 numbers; is it kind = 'regression'"):
        read(write(tmp_path, labels=[f"{n / 10}" for n in range(24)]))
    with pytest.raises(UserError, match=r"train.csv has 1 labels; 2 to 1000 can be learned"):
        read(write(tmp_path, labels=("same",)))


def test_options_that_do_not_fit_an_own_task_are_refused(tmp_path):
    path = write(tmp_path)
    other = write(tmp_path, DESCRIPTION + 'name = "topics"', name="b.toml")
    for words, message in (
        (["--task", path, "--data", "x"], f"--data x: {path} says where its files are; leave it out"),
        (["--task", f"{path},{path}"], None),
        (
            ["--task", f"{other},{path}"],
            "have the same name",
        ),
        (["--task", "lee", "--keep", "models"], "--keep: nothing is trained for lee; leave it out"),
        (["--task", "topics.tml"], "and mteb's as mteb-NAME; your own as FILE.toml"),
        (["--task", tmp_path / "none.toml"], "none.toml: no such file or directory"),
    ):
        options = parser().parse_args(["--model", "m", "--out", str(tmp_path / "out"), *map(str, words)])
        if message is None:
            assert preparing.check_options(options)[0] == ["topics"]
            continue
        with pytest.raises(UserError, match=message):
            preparing.check_options(options)


@pytest.mark.slow
def test_answers_are_kept_by_question_with_the_model_that_gave_them(run, tmp_path):
    for split, count, seed in (("train", 8, 0), ("dev", 5, 1)):
        task_files.write_squad(tmp_path / "data" / f"{split}-v1.1.json", task_files.questions(count, seed))
    seeds = ("--seeds", 1, "--epochs", 1, "--length", 150, "--batch", 4)
    run("--task", "squad1", "--data", tmp_path / "data", "--keep", "predictions", "models", seeds=seeds)
    folder = tmp_path / "out/small/squad1"
    (kept,) = folder.glob("*.predictions.jsonl")
    records = [json.loads(line) for line in kept.read_text().splitlines()]
    questions = json.loads((tmp_path / "data/dev-v1.1.json").read_text())["data"][0]["paragraphs"]
    asked = {qa["id"]: paragraph["context"] for paragraph in questions for qa in paragraph["qas"]}
    assert [each["row"] for each in records] == list(range(len(records))) and records[0]["answers"]
    assert all(each["prediction"] in asked.get(each["id"], each["prediction"]) for each in records)
    (model,) = folder.glob("*.model")
    assert AutoModelForQuestionAnswering.from_pretrained(model).config.num_hidden_layers == 1
    hits = np.mean([each["prediction"] in each["answers"] for each in records])
    assert results.read_results(tmp_path / "out").cells[0].scores["exact_match"] == pytest.approx(100 * hits)
