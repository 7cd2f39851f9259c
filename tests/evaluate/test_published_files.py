"""Task files as their publishers and XTREME leave them: test sets without labels, rows without one, raw MRPC."""

import dataclasses
import json

import pytest

from data_prep.cli import UserError
from pipeline.evaluate.task_data import read_task
from pipeline.evaluate.tasks import TASKS
from tests.evaluate.test_task_data import change, hub, replace, squad
from tests.parts import task_files as files

HERE = "the dev sets are scored"


# --- test sets without labels -----------------------------------------------------------------------------------------


def unlabel(path, keep=""):
    """Cut the last column, or leave ``keep`` in it."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    files.write_lines(path, [[*row[:-1], keep] if keep else row[:-1] for row in rows])


@pytest.mark.parametrize("keep", ["", "-", " "])
def test_xtremes_test_files_without_labels_are_reported_and_dev_is_scored(tmp_path, keep):
    folder = files.write_xtreme(tmp_path, ["de", "en"], test=True)
    for language in ("de", "en"):
        unlabel(folder / f"test-{language}.tsv", keep)
    data = read_task("xnli", str(folder))
    assert list(data.scored) == ["de", "en"] and data.split == "dev" and not data.test
    assert data.notes == (f"{folder}: the test sets of de, en have no labels; {HERE}",)


def test_a_file_that_lacks_some_labels_is_torn(tmp_path):
    folder = files.write_xtreme(tmp_path, ["en"], test=True)
    path = folder / "test-en.tsv"
    lines = path.read_text().splitlines()
    for number, message in (
        (4, "test-en.tsv:4: 2 columns, xnli's files have 3"),
        (1, "test-en.tsv:1: 2 columns, xnli's files have 3"),
    ):
        path.write_text("\n".join(line.rpartition("\t")[0] if n == number else line for n, line in enumerate(lines, 1)))
        with pytest.raises(UserError, match=message):
            read_task("xnli", str(folder))


def test_a_test_set_without_labels_in_one_language_asks_for_the_others(tmp_path):
    folder = files.write_xtreme(tmp_path, ["de", "en"], test=True)
    unlabel(folder / "test-de.tsv")
    with pytest.raises(
        UserError, match=r"the test set of de has no labels, of en they are there; score either with --lang"
    ):
        read_task("xnli", str(folder))
    assert read_task("xnli", str(folder), ["de"]).split == "dev"


@pytest.mark.parametrize("file", ["train-en", "dev-en"])
def test_training_and_dev_sets_need_labels(tmp_path, file):
    folder = files.write_xtreme(tmp_path, ["en"])
    unlabel(folder / f"{file}.tsv")
    with pytest.raises(UserError, match=rf"{file}\.tsv: a set without labels, which cannot be"):
        read_task("xnli", str(folder))


def test_the_published_test_set_without_its_column_of_labels_is_reported(tmp_path):
    folder = files.write_xnli(tmp_path, ["de", "en"])
    replace(folder / "XNLI-1.0/xnli.test.tsv", "\tgold_label\t", "\tgone\t")
    data = read_task("xnli", str(folder))
    assert data.split == "dev" and data.notes == (f"{folder}: the test sets of de, en have no labels; {HERE}",)


def test_the_hubs_test_set_without_labels_is_reported(monkeypatch):
    rows = {"premise": ["a"], "hypothesis": ["b"], "label": [1]}
    hub(monkeypatch, rows, blank=("test", {"label": [-1]}))
    data = read_task("xnli", None, ["de"])
    assert data.split == "dev" and data.notes == (f"facebook/xnli: the test set of de has no labels; {HERE}",)


# --- answers that were blanked ----------------------------------------------------------------------------------------


def write_mlqa(folder, **test):
    squad(folder / "SQuAD")
    for seed, language in enumerate(("de", "en"), 5):
        for split in ("dev", "test"):
            asked = files.questions(3, 10 * seed + len(split))
            path = folder / f"MLQA_V1/{split}/{split}-context-{language}-question-{language}.json"
            files.write_squad(path, files.blanked(asked) if language in test.get(split, ()) else asked, "1.0")


def test_mlqas_blanked_test_sets_are_reported_and_dev_is_scored(tmp_path):
    write_mlqa(tmp_path, test=["de", "en"])
    data = read_task("mlqa", str(tmp_path))
    assert list(data.scored) == ["de", "en"] and data.split == "dev"
    assert data.notes == (f"{tmp_path}: the test sets of de, en have no labels; {HERE}",)
    assert len(data.scored["en"]) == 3


def test_mlqa_is_found_where_xtreme_unpacks_it(tmp_path):
    write_mlqa(tmp_path)
    (tmp_path / "mlqa").mkdir()
    (tmp_path / "MLQA_V1").rename(tmp_path / "mlqa" / "MLQA_V1")
    data = read_task("mlqa", str(tmp_path))
    assert list(data.scored) == ["de", "en"] and data.split == "test"


def test_blanked_sets_that_would_be_trained_on_or_scored_are_rejected(tmp_path):
    squad(tmp_path)
    path = files.write_squad(tmp_path / "xquad/xquad.de.json", files.blanked(files.questions(3, 9)))
    with pytest.raises(
        UserError, match=r"xquad\.de\.json: a set without labels \(no question has an answer\), which can"
    ):
        read_task("xquad", str(tmp_path))
    for answers in ([], None, [{"answer_start": 0, "text": " "}], [{"answer_start": -1, "text": ""}]):
        change(path, lambda _, all_, answers=answers: [each["qas"][0].update(answers=answers) for each in all_])
        with pytest.raises(UserError, match=r"xquad\.de\.json: a set without labels"):
            read_task("xquad", str(tmp_path))
    for file in ("train", "dev"):
        squad(tmp_path)
        files.write_squad(tmp_path / f"{file}-v1.1.json", files.blanked(files.questions(6, 3)))
        with pytest.raises(UserError, match=rf"{file}-v1\.1\.json: a set without labels"):
            read_task("squad1", str(tmp_path))


def test_a_blanked_set_of_squad_2_is_one_too(tmp_path):
    squad(tmp_path, "squad2", "v2.0")
    path = tmp_path / "dev-v2.0.json"
    change(path, lambda _, all_: [each["qas"][0].pop("is_impossible") for each in all_])
    content = json.loads(path.read_text())
    files.write_squad(path, files.blanked(content["data"][0]["paragraphs"]), "v2.0")
    with pytest.raises(UserError, match=r"dev-v2\.0\.json: a set without labels"):
        read_task("squad2", str(tmp_path))


def test_a_blanked_set_of_squad_2_that_still_says_what_is_impossible_is_one_too(tmp_path):
    squad(tmp_path, "squad2", "v2.0")
    path = tmp_path / "dev-v2.0.json"
    files.write_squad(path, files.blanked(json.loads(path.read_text())["data"][0]["paragraphs"]), "v2.0")
    with pytest.raises(UserError, match=r"dev-v2\.0\.json: a set without labels"):
        read_task("squad2", str(tmp_path))
    change(path, lambda _, all_: [each["qas"][0].update(is_impossible=True) for each in all_])
    assert len(read_task("squad2", str(tmp_path)).scored[""]) == 6


def test_the_hubs_blanked_questions_are_a_set_without_labels(monkeypatch):
    answers = [{"text": [""], "answer_start": [0]}]
    hub(monkeypatch, {"id": ["a"], "question": ["q"], "context": ["w1 w2"], "answers": answers}, mark=False)
    with pytest.raises(UserError, match=r"google/xquad xquad\.el validation: a set without labels"):
        read_task("xquad", None, ["el"])


# --- a few wrong answers ----------------------------------------------------------------------------------------------


def spoil(path, numbers, **changes):
    def edit(_, all_):
        for number in numbers:
            all_[number]["qas"][0]["answers"][0].update(**changes)

    change(path, edit)


@pytest.mark.parametrize("changes", [{"answer_start": 7}, {"text": ""}, {"text": " "}, {"answer_start": -1}])
def test_up_to_a_hundredth_of_wrong_answers_is_left_out_and_counted(tmp_path, changes):
    squad(tmp_path)
    path = files.write_squad(tmp_path / "dev-v1.1.json", files.questions(200, 3))
    spoil(path, [5, 9], **changes)
    data = read_task("squad1", str(tmp_path))
    assert len(data.dev[""]) == 198 and not {"q3-5", "q3-9"} & set(data.dev[""]["id"])
    assert data.notes == (
        f"{path}: 2 of 200 questions are left out: their answers are blank or not in the context (the first: q3-5)",
    )

    spoil(path, [7], **changes)
    message = r"question q3-5: its answer '.*' (is not in the context at \S+|at \d+ is blank); 3 of 200 questions are"
    with pytest.raises(UserError, match=message):
        read_task("squad1", str(tmp_path))


def test_an_answer_found_by_counting_from_the_end_is_wrong(tmp_path):
    squad(tmp_path)
    path = tmp_path / "dev-v1.1.json"
    context = json.loads(path.read_text())["data"][0]["paragraphs"][0]["context"]
    spoil(path, [0], answer_start=-4, text=context[-4:-1])
    with pytest.raises(UserError, match=r"q1-0: its answer .* is not in the context at -4"):
        read_task("squad1", str(tmp_path))


def test_an_official_set_is_whole(tmp_path, monkeypatch):
    squad(tmp_path)
    path = files.write_squad(tmp_path / "dev-v1.1.json", files.questions(200, 3))
    spoil(path, [5], text="w99")
    monkeypatch.setitem(TASKS, "squad1", dataclasses.replace(TASKS["squad1"], official=(999, 200)))
    with pytest.raises(
        UserError, match=r"q3-5: its answer 'w99' is not in the context at .*; get the official file again"
    ):
        read_task("squad1", str(tmp_path))


def test_wrong_answers_are_counted_file_by_file_also_in_other_languages_and_on_the_hub(tmp_path, monkeypatch):
    squad(tmp_path)
    for seed, language in enumerate(("de", "en"), 5):
        path = files.write_squad(tmp_path / f"xquad/xquad.{language}.json", files.questions(100, seed))
        spoil(path, [3], text="w99")
    notes = read_task("xquad", str(tmp_path)).notes
    assert [note.partition(":")[0][-13:] for note in notes] == ["xquad.de.json", "xquad.en.json"]

    count = 100
    rows = {"id": list(map(str, range(count))), "question": ["q"] * count}
    rows["context"] = [f"w1 w2 {number}" for number in range(count)]
    rows["answers"] = [{"text": ["w2" if number else "w3"], "answer_start": [3]} for number in range(count)]
    hub(monkeypatch, rows, mark=False)
    monkeypatch.setattr("pipeline.evaluate.task_data.OVERLAP", 1.0)
    data = read_task("squad1", None)
    assert len(data.train) == 99 and "rajpurkar/squad validation: 1 of 100 questions" in data.notes[1]


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["nan", "NaN", "inf", "-inf", "", " ", "5.1", "-0.5", "1_0"])
@pytest.mark.parametrize("file", ["train", "dev"])
def test_a_number_that_is_no_label_is_rejected_by_file_and_line(tmp_path, label, file):
    own = files.write_glue(tmp_path, "stsb")
    replace(own / f"{file}.tsv", "\t2.5\n", f"\t{label}\n")
    with pytest.raises(UserError, match=rf"{file}\.tsv:3: the label '{label}' is not a number from 0 to 5$"):
        read_task("stsb", str(own))


@pytest.mark.parametrize("label", [float("nan"), float("inf"), 5.5, -0.5, None])
def test_the_hubs_numbers_are_checked_too(monkeypatch, label):
    rows = {"sentence1": ["a", "b", "c"], "sentence2": ["d", "e", "f"], "label": [0.0, 5.0, label]}
    hub(monkeypatch, rows)
    with pytest.raises(UserError, match=r"nyu-mll/glue stsb train: row 3: the label .* is not a number from 0 to 5$"):
        read_task("stsb", None)


def test_multinlis_pairs_without_a_gold_label_are_left_out_and_counted(tmp_path):
    own = files.write_glue(tmp_path, "mnli")
    for file, label in (("train", "entailment"), ("dev_matched", "neutral")):
        replace(own / f"{file}.tsv", f"\t{label}\t{label}\n", f"\t{label}\t-\n")
    data = read_task("mnli", str(own))
    assert len(data.train) == 23 and [len(rows) for rows in data.dev.values()] == [11, 12]
    assert data.notes == tuple(
        f"{own}/{file}.tsv: 1 row with the label '-' (no majority of annotators) left out"
        for file in ("train", "dev_matched")
    )


@pytest.mark.parametrize("inside", [False, True])
def test_multinlis_own_files_are_read_with_rows_that_end_early(tmp_path, inside):
    own = files.write_multinli(tmp_path / "multinli_1.0", undecided=2)
    data = read_task("mnli", str(own if inside else tmp_path))
    first, second, _ = files.labelled("mnli", 24, 0)[1]
    assert data.train[1] == {"first": first, "second": second, "label": 1} and len(data.train) == 24
    assert {key: len(rows) for key, rows in data.scored.items()} == {"": 10, "mm": 10} and data.split == "dev"
    assert data.notes == tuple(
        f"{own}/multinli_1.0_{file}.txt: 2 rows with the label '-' (no majority of annotators) left out"
        for file in ("dev_matched", "dev_mismatched")
    )
    path = own / "multinli_1.0_train.txt"
    path.write_text(path.read_text() + "neutral\t(\tw1\n")
    with pytest.raises(UserError, match=r"multinli_1\.0_train\.txt:26: 3 columns, mnli's files have 11 here"):
        read_task("mnli", str(own))


def test_the_hubs_pairs_without_a_gold_label_are_left_out_and_counted(monkeypatch):
    rows = {"premise": ["a", "b", "c"], "hypothesis": ["d", "e", "f"], "label": [2, -1, 0]}
    hub(monkeypatch, rows)
    data = read_task("mnli", None)
    assert list(data.train["label"]) == [2, 0] and data.train[1]["first"] == "train c"
    assert (
        data.notes[0] == "nyu-mll/glue mnli train: 1 of 3 rows without a label (-1) left out" and len(data.notes) == 3
    )


def test_another_tasks_dash_is_no_label(tmp_path):
    own = files.write_glue(tmp_path, "rte")
    replace(own / "dev.tsv", "\tnot_entailment\n", "\t-\n")
    with pytest.raises(UserError, match=r"dev\.tsv:3: the label '-' is not one of 'entailment', 'not_entailment'"):
        read_task("rte", str(own))


# --- MRPC -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True])
def test_raw_mrpc_is_read_and_its_test_set_scored(tmp_path, inside):
    files.write_raw_mrpc(tmp_path / "MRPC")
    data = read_task("mrpc", str(tmp_path / "MRPC" if inside else tmp_path))
    first, second, _ = files.labelled("mrpc", 24, 0)[1]
    assert data.train[1] == {"first": first, "second": second, "label": 1} and len(data.train) == 24
    assert data.split == "test" and len(data.scored[""]) == 12
    assert list(data.dev[""]) == list(data.test[""])
    assert (
        "msr_paraphrase_test.txt: this test set is scored, and chooses among settings: there is no dev set here; GLUE's"
        in data.notes[0]
    )


def test_glues_files_go_before_raw_ones_and_neither_is_said(tmp_path):
    own = files.write_raw_mrpc(files.write_glue(tmp_path, "mrpc", train=30))
    data = read_task("mrpc", str(tmp_path))
    assert len(data.train) == 30 and data.split == "dev"
    (own / "train.tsv").unlink()
    (own / "msr_paraphrase_train.txt").unlink()
    with pytest.raises(UserError, match=r"no train\.tsv or msr_paraphrase_train\.txt for mrpc there or in MRPC$"):
        read_task("mrpc", str(tmp_path))
