"""The rows of the tasks, from files in their original layouts and from the hub, and what is rejected."""

import json

import datasets
import pytest

from data_prep.cli import UserError
from pipeline.evaluate import hub as hub_module
from pipeline.evaluate import task_data
from pipeline.evaluate.task_data import read_task
from tests.parts import task_files as files


def folder_for(path):
    path.unlink()
    path.mkdir()


def replace(path, old, new, count=1):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, count), encoding="utf-8")


@pytest.mark.parametrize("task", files.GLUE)
@pytest.mark.parametrize("inside", [False, True])
def test_each_glue_task_is_read_from_its_original_files(tmp_path, task, inside):
    own = files.write_glue(tmp_path, task)
    data = read_task(task, str(own if inside else tmp_path))
    first, second, _ = files.labelled(task, 24, 0)[1]
    expected = {"first": first, "label": 2.5 if task == "stsb" else 1}
    assert data.train[1] == expected | ({} if task in ("sst2", "cola") else {"second": second})
    assert [len(rows) for rows in data.scored.values()] == [12, 12] if task == "mnli" else [12]
    assert data.split == "dev"


def test_quotes_and_unicode_line_separators_are_text(tmp_path):
    own = files.write_glue(tmp_path, "rte")
    replace(own / "train.tsv", "\tw0 ", '\t"w0\u2028 ')
    assert read_task("rte", str(own)).train[0]["first"].startswith('"w0\u2028 ')


def test_the_order_of_columns_is_the_headers(tmp_path):
    own = files.write_glue(tmp_path, "rte")
    files.write_lines(own / "dev.tsv", [["neutral", "entailment", "w2", "w1"]], "x\tlabel\tsentence2\tsentence1")
    assert read_task("rte", str(own)).dev[""][0] == {"first": "w1", "second": "w2", "label": 0}


def test_qqps_torn_rows_are_skipped_and_counted(tmp_path):
    own = files.write_glue(tmp_path, "qqp", train=200)
    with (own / "train.tsv").open("a") as file:
        file.write("1\t2\t3\tw1\n")
    data = read_task("qqp", str(own))
    assert len(data.train) == 200 and "1 rows without 6 columns are skipped" in data.notes[0]


def test_xnli_is_read_in_both_layouts_and_by_language(tmp_path):
    data = read_task("xnli", str(files.write_xtreme(tmp_path / "x", ["de", "en"])))
    assert list(data.dev) == ["de", "en"] and data.split == "dev" and data.train[2]["label"] == 2
    data = read_task("xnli", str(files.write_xtreme(tmp_path / "y", ["de", "en"], test=True)), ["en"])
    assert list(data.test) == ["en"] and list(data.dev) == ["en"] and data.split == "test"
    data = read_task("xnli", str(files.write_xnli(tmp_path / "z", ["ar", "de"])))
    assert {key: len(rows) for key, rows in data.dev.items()} == {"ar": 6, "de": 6}
    assert {key: len(rows) for key, rows in data.test.items()} == {"ar": 12, "de": 12}
    assert data.train[2]["label"] == 2  # "contradictory"


def squad(folder, task="squad1", version="1.1"):
    name = "v2.0" if task == "squad2" else "v1.1"
    second = task == "squad2"
    files.write_squad(folder / f"train-{name}.json", files.questions(12, 0, second), version)
    files.write_squad(folder / f"dev-{name}.json", files.questions(6, 1, second), version)
    return folder


def test_squad_is_read_in_both_versions(tmp_path):
    data = read_task("squad1", str(squad(tmp_path / "a")))
    answer = data.train[0]["answers"]
    assert data.train[0]["context"][answer["answer_start"][0] :].startswith(answer["text"][0])
    data = read_task("squad2", str(squad(tmp_path / "b", "squad2", "v2.0")))
    assert [bool(row["answers"]["text"]) for row in data.dev[""]] == [False, True, True] * 2


def test_mlqa_and_xquad_train_on_squad_and_score_pairs_of_one_language(tmp_path):
    squad(tmp_path / "SQuAD")
    for seed, (split, context, question) in enumerate(
        [("dev", "de", "de"), ("test", "de", "de"), ("test", "de", "en"), ("dev", "zh", "zh"), ("test", "zh", "zh")], 5
    ):
        path = tmp_path / f"MLQA_V1/{split}/{split}-context-{context}-question-{question}.json"
        files.write_squad(path, files.questions(3, seed), "1.0")
    files.write_squad(tmp_path / "xquad/xquad.el.json", files.questions(3, 9))
    data = read_task("mlqa", str(tmp_path))
    assert list(data.dev) == list(data.test) == ["de", "zh"] and len(data.train) == 12 and data.split == "test"
    data = read_task("xquad", str(tmp_path))
    assert list(data.dev) == ["el"] and data.split == "dev"


def test_the_fingerprint_is_of_the_rows_and_not_of_their_place(tmp_path):
    prints = []
    for number in range(3):
        own = files.write_glue(tmp_path / str(number), "rte")
        if number == 2:
            replace(own / "dev.tsv", "not_entailment", "entailment")
        prints.append(read_task("rte", str(own)).facts()["fingerprint"])
    assert prints[0] == prints[1] != prints[2]


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "spoil", "named"),
    [
        ("rte", lambda p: replace(p / "dev.tsv", "\tlabel\n", "\tgold\n"), "no column 'label': a set without labels"),
        (
            "rte",
            lambda p: replace(p / "train.tsv", "\tlabel\n", "\tgold\n"),
            "no column 'label', only index, sentence1",
        ),
        (
            "rte",
            lambda p: replace(p / "dev.tsv", "sentence1", "question"),
            "no column 'sentence1', only index, question",
        ),
        (
            "rte",
            lambda p: replace(p / "train.tsv", "\tnot_entail", "\tcontradict"),
            "train.tsv:3: the label 'contradict",
        ),
        ("sst2", lambda p: replace(p / "dev.tsv", "\t1\n", "\t2\n"), "dev.tsv:3: the label '2' is not one of '0', '1'"),
        (
            "stsb",
            lambda p: replace(p / "dev.tsv", "\t2.5\n", "\thigh\n"),
            "dev.tsv:3: the label 'high' is not a number from 0 to 5",
        ),
        ("cola", lambda p: replace(p / "dev.tsv", "gj04\t", ""), "dev.tsv:1: 3 columns, cola's files have 4"),
        ("rte", lambda p: (p / "dev.tsv").unlink(), "dev.tsv: no such file"),
        ("rte", lambda p: folder_for(p / "train.tsv"), "train.tsv: is a directory"),
        ("rte", lambda p: (p / "train.tsv").unlink(), "no train.tsv for rte there or in RTE"),
        (
            "rte",
            lambda p: (p / "dev.tsv").write_bytes(b"index\tsentence1\tsentence2\tlabel\n\xff"),
            "not UTF-8 at byte 32",
        ),
        ("rte", lambda p: files.write_lines(p / "dev.tsv", [], files.GLUE["rte"][1]), "the dev set of rte is empty"),
        (
            "rte",
            lambda p: (p / "dev.tsv").write_bytes((p / "train.tsv").read_bytes()),
            "24 of the 24 rows of the dev set",
        ),
        ("qqp", lambda p: replace(p / "dev.tsv", "\tw0", "\n", 3), "6 rows have not 6 columns"),
    ],
)
def test_files_that_do_not_fit_are_rejected_by_name_and_line(tmp_path, task, spoil, named):
    own = files.write_glue(tmp_path, task)
    spoil(own)
    with pytest.raises(UserError, match=named):
        read_task(task, str(own))


def test_train_and_dev_that_were_swapped_are_known_by_their_official_sizes(tmp_path):
    files.write_glue(tmp_path, "rte", train=277, dev=20)
    with pytest.raises(UserError, match="the training set has 277 rows, the number of rte's official dev"):
        read_task("rte", str(tmp_path))
    files.write_glue(tmp_path, "rte", train=30, dev=2490)
    with pytest.raises(UserError, match="has 2,490 rows, the number of rte's official training set"):
        read_task("rte", str(tmp_path))


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content, content["data"][0]["paragraphs"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("task", "edit", "named"),
    [
        ("squad1", lambda c, p: c.update(version="v2.0"), "SQuAD 2.0 .version 'v2.0'., this task reads 1.1"),
        ("squad1", lambda c, p: p[0]["qas"][0].update(is_impossible=True), "SQuAD 2.0"),
        ("squad1", lambda c, p: p[2]["qas"][0].update(answers=[]), "question q1-2 has no answer"),
        (
            "squad1",
            lambda c, p: p[2]["qas"][0].pop("answers"),
            "question q1-2 has no answers: a test set without labels",
        ),
        (
            "squad1",
            lambda c, p: p[2]["qas"][0]["answers"][0].update(text="w99"),
            "q1-2: its answer 'w99' is not in the",
        ),
        ("squad1", lambda c, p: p[2]["qas"][0].update(id="q1-1"), "two questions have the id q1-1"),
        (
            "squad1",
            lambda c, p: p[2]["qas"][0]["answers"][0].pop("answer_start"),
            "q1-2: its answers are not in SQuAD's layout .KeyError: 'answer_start'.",
        ),
        (
            "squad1",
            lambda c, p: p[2]["qas"][0]["answers"][0].update(answer_start="0"),
            "q1-2: its answers are not in SQuAD's layout .TypeError",
        ),
        ("squad1", lambda c, p: p[2].update(context=7), "q1-2: its question or context is not text"),
        ("squad1", lambda c, p: p[2]["qas"][0].update(question=7), "q1-2: its question or context is not text"),
        ("squad1", lambda c, p: c.pop("data"), "not a file in SQuAD's layout"),
        ("squad2", lambda c, p: [c.update(version="1.1"), [q["qas"][0].pop("is_impossible") for q in p]], "SQuAD 1.1"),
    ],
)
def test_questions_that_do_not_fit_are_rejected_by_name(tmp_path, task, edit, named):
    squad(tmp_path, task, "v2.0" if task == "squad2" else "1.1")
    change(next(tmp_path.glob("dev-*.json")), edit)
    with pytest.raises(UserError, match=named):
        read_task(task, str(tmp_path))


def test_a_folder_in_the_place_of_a_file_of_questions_is_named(tmp_path):
    squad(tmp_path)
    folder_for(tmp_path / "dev-v1.1.json")
    with pytest.raises(UserError, match=r"dev-v1.1.json: is a directory"):
        read_task("squad1", str(tmp_path))


def test_places_and_languages_that_are_not_there_are_named(tmp_path):
    files.write_xtreme(tmp_path, ["de", "en"])
    with pytest.raises(UserError, match=r"--languages sw: .* has de, en"):
        read_task("xnli", str(tmp_path), ["sw"])
    with pytest.raises(UserError, match="rte has one language"):
        read_task("rte", str(tmp_path), ["sw"])
    with pytest.raises(UserError, match="no such folder"):
        read_task("rte", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"no train-v1.1.json for xquad"):
        read_task("xquad", str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no dev-en.tsv .as in XTREME. and no xnli.dev.tsv"):
        read_task("xnli", str(tmp_path / "empty"))


# --- the hub ----------------------------------------------------------------------------------------------------------


def hub(monkeypatch, rows, names=None, asked=None, mark=True, blank=("", {})):
    """The hub's answer to every question, in the types that it gives; texts are marked with their split.

    ``blank``: a split, and its columns that are others.
    """

    def load_dataset(repository, config, split):
        (asked if asked is not None else []).append((repository, config, split))
        own = {
            key: [f"{split} {v}" if mark and isinstance(v, str) else v for v in column]
            for key, column in (rows | blank[1] if split == blank[0] else rows).items()
        }
        made = datasets.Dataset.from_dict(own)
        return made.cast_column("label", datasets.ClassLabel(names=names)) if names else made

    monkeypatch.setattr(hub_module, "load_dataset", load_dataset)


def test_the_hubs_labels_are_put_into_the_tasks_order(monkeypatch):
    asked = []
    rows = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0, 1]}
    hub(monkeypatch, rows, ["not_entailment", "entailment"], asked)
    data = read_task("rte", None)
    assert list(data.train["label"]) == [1, 0]
    assert asked == [("nyu-mll/glue", "rte", "train"), ("nyu-mll/glue", "rte", "validation")]


def test_xnli_comes_from_the_hub_language_by_language(monkeypatch):
    asked = []
    hub(
        monkeypatch,
        {"premise": ["a"], "hypothesis": ["b"], "label": [1]},
        ["entailment", "neutral", "contradiction"],
        asked,
    )
    assert list(read_task("xnli", None, ["de", "sw"]).test) == ["de", "sw"]
    assert ("facebook/xnli", "sw", "test") in asked and ("facebook/xnli", "en", "train") in asked


def test_questions_come_from_the_hub_and_the_training_set_is_squads(monkeypatch):
    asked = []
    answers = [{"text": ["w1"], "answer_start": [0]}, {"text": [], "answer_start": []}]
    rows = {"id": ["a", "b"], "question": ["q", "q"], "context": ["w1 w2", "w1 w2"], "answers": answers}
    hub(monkeypatch, rows, asked=asked, mark=False)
    with pytest.raises(UserError, match=r"google/xquad xquad.el validation: question b has no answer"):
        read_task("xquad", None, ["el"])
    monkeypatch.setattr(task_data, "_checked", lambda name, data: data)
    assert [bool(row["answers"]["text"]) for row in read_task("squad2", None).dev[""]] == [True, False]
    assert asked[-1] == ("rajpurkar/squad_v2", None, "validation")


@pytest.mark.parametrize(
    ("rows", "names", "named"),
    [
        ({"sentence1": ["a"], "sentence2": ["c"], "label": [-1]}, None, "rte train: a set without labels"),
        (
            {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [1, -1]},
            None,
            "1 of 2 rows without a label .-1.",
        ),
        ({"sentence1": ["a"], "sentence2": ["c"], "label": [2]}, None, "the label 2 is not one of"),
        ({"premise": ["a"], "label": [1]}, None, "no column 'sentence1', only premise, label"),
        ({"sentence1": ["a"], "sentence2": ["c"], "label": [1]}, ["yes", "no"], "its labels are yes, no"),
    ],
)
def test_what_the_hub_gives_is_checked(monkeypatch, rows, names, named):
    hub(monkeypatch, rows, names)
    with pytest.raises(UserError, match=named):
        read_task("rte", "somebody/glue")


def test_a_path_that_is_not_there_is_not_taken_for_one_of_the_hub():
    with pytest.raises(UserError, match="--data glue/: no such folder"):
        read_task("rte", "glue/")


def test_every_scored_language_has_a_test_set_or_none_has(tmp_path):
    files.write_xtreme(tmp_path, ["de", "en"], test=True)
    (tmp_path / "test-de.tsv").unlink()
    with pytest.raises(UserError, match=r"xnli has a test set of en and none of de; .* --languages en$"):
        read_task("xnli", str(tmp_path))
    assert list(read_task("xnli", str(tmp_path), ["en"]).test) == ["en"]


def test_a_hub_that_is_not_reached_is_reported_in_one_line():
    with pytest.raises(
        UserError, match=r"--data nyu-mll/glue: no such folder .from .*., and rte train cannot be loaded from the hub"
    ):
        read_task("rte", None)
