"""Scores without fine-tuning: next to vectors made text by text, written as cells, and mistakes that are found first."""

import json
import sys

import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from transformers import AutoModel, AutoTokenizer

from data_prep.cli import UserError
from pipeline.artifacts import results
from pipeline.evaluate import embedding
from pipeline.evaluate.__main__ import main, parser
from pipeline.evaluate.baseline import baseline
from pipeline.evaluate.model_index import model_index
from pipeline.evaluate.preparing import prepare
from pipeline.evaluate.scored_model import open_model
from pipeline.evaluate.task_data import read_task
from tests.parts import task_files as files
from tests.parts.tiny import make_teacher


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("models") / "small", layers=2, hidden=16)


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def run(monkeypatch, tmp_path, model, data, capsys):
    """Runs the command in this process: (exit code, what it said)."""

    def run_(task, *options, models=(model,)):
        named = [word for path in models for word in ("--model", str(path))]
        paths = ["--data", str(data), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["evaluate", *named, "--task", task, *paths, *map(str, options)])
        code = main()
        return code, capsys.readouterr().out

    return run_


@torch.no_grad()
def by_hand(folder, texts, prompt=""):
    """The mean of each text's last vectors, of unit length, one text at a time."""
    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    outputs = [encoder(**tokenizer(prompt + text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
    return torch.nn.functional.normalize(torch.stack(outputs), dim=-1).double()


def test_similarities_agree_with_those_of_texts_alone(run, data, tmp_path, model):
    for split, count in (("dev", 9), ("test", 40)):
        files.write_sts_b(data, split, count)
    code, said = run("sts")
    (cell,) = results.read_results(tmp_path / "out").cells
    expected = {}
    for split, count in (("dev", 9), ("test", 40)):
        rows = files.labelled("stsb", count, len(split))
        first, second = (by_hand(model, [row[side] for row in rows]) for side in (0, 1))
        cosines, labels = (first * second).sum(-1).numpy(), [float(row[2]) for row in rows]
        expected[f"spearman/STS-B-{split}"] = 100 * spearmanr(cosines, labels).statistic
        expected[f"pearson/STS-B-{split}"] = 100 * pearsonr(cosines, labels).statistic
    for kind in ("spearman", "pearson"):
        expected[kind] = (expected[f"{kind}/STS-B-dev"] + expected[f"{kind}/STS-B-test"]) / 2
    assert cell.scores == pytest.approx(expected, abs=1e-4)
    assert (cell.primary, cell.split, cell.rows, cell.majority) == ("spearman", "all", 49, 0.0)
    assert cell.settings == {"pooling": "mean", "prompt": "", "length": 64}
    sets = f"STS-B-dev {expected['spearman/STS-B-dev']:.1f}, STS-B-test {expected['spearman/STS-B-test']:.1f}"
    assert (
        code == 0 and f"sts 1/1: mean; at most 64 tokens … spearman {cell.score:.1f}" in said and f": {sets} (" in said
    )
    assert "small: nothing in its folder says how it pools; the mean over a text's tokens is taken" in said


def test_retrieval_is_right_where_the_nearest_line_is_the_translation_in_both_directions(run, data, tmp_path, model):
    english = [f"w{n} w{n + 1} w{n + 2}" for n in range(1, 31)]
    lines = {
        "en": english,
        "de": [f"{text} w40" for text in english],
        "sw": [text[::-1].replace("w", "") for text in english],
    }
    lines["sw"] = [f"w{(7 * n) % 30 + 1} w{(11 * n) % 30 + 1}" for n in range(30)]
    data.mkdir()
    for language, own in lines.items():
        (data / f"{language}.txt").write_text("\n".join(own) + "\n")
    assert run("bitext")[0] == 0
    (cell,) = results.read_results(tmp_path / "out").cells
    vectors = {language: by_hand(model, own) for language, own in lines.items()}
    for language in ("de", "sw"):
        found = {}
        for kind, queries, wanted in (("to", language, "en"), ("from", "en", language)):
            hits = 0
            for number, vector in enumerate(vectors[queries]):
                nearest = int((vectors[wanted] @ vector).argmax())
                hits += lines[wanted][nearest] == lines[wanted][number]
            found[kind] = 100 * hits / 30
            assert cell.scores[f"accuracy_{kind}_pivot/{language}"] == pytest.approx(found[kind]), (language, kind)
        assert cell.scores[f"accuracy/{language}"] == pytest.approx((found["to"] + found["from"]) / 2)
    assert cell.scores["accuracy/de"] > cell.scores["accuracy/sw"]
    assert cell.score == pytest.approx((cell.scores["accuracy/de"] + cell.scores["accuracy/sw"]) / 2)
    assert cell.majority == pytest.approx(100 / 30) and cell.rows == 60


def test_two_lines_that_read_the_same_are_both_right(data, model):
    data.mkdir()
    (data / "en.txt").write_text("w1 w2\nw1 w2\nw9 w8\n")
    (data / "de.txt").write_text("w1 w2\nw1 w2\nw9 w8\n")
    opened = open_model(str(model))
    task = read_task("bitext", str(data))
    found = embedding.scores(opened, "bitext", task, embedding.settings(opened, None, None), 2)
    assert found["de"]["accuracy"] == 100


def test_the_same_scores_come_again_and_finished_ones_are_kept(run, data, tmp_path, model):
    files.write_lee(data)
    run("lee")
    run("lee", "--name", "again")
    first, second = results.read_results(tmp_path / "out").cells
    assert first.scores == second.scores
    assert "lee: 1 of 1 cells were finished earlier" in run("lee")[1]
    with pytest.raises(
        UserError, match=r"embedded.json: was made with prompt , now prompt w1 ; give the new results another"
    ):
        run("lee", "--prefix", "w1 ")


def st_folder(model, folder, **settings):
    """The model with sentence-transformers' files: first token, a default prompt, 12 tokens at most."""
    make_teacher(folder, layers=2, hidden=16)
    pooling = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}
    (folder / "1_Pooling").mkdir()
    for path, content in {
        "modules.json": [{"type": "sentence_transformers.models.Transformer", "path": ""}, pooling],
        "1_Pooling/config.json": {"pooling_mode_cls_token": True},
        "sentence_bert_config.json": {"max_seq_length": 12},
        "config_sentence_transformers.json": {"prompts": {"query": "w3 ", "other": "w4 "}, **settings},
    }.items():
        (folder / path).write_text(json.dumps(content))
    return folder


def test_pooling_length_and_prompt_are_the_folders_own_or_those_given(run, data, tmp_path, model):
    files.write_lee(data)
    folder = st_folder(model, tmp_path / "st", default_prompt_name="query")
    said = run("lee", models=(folder,))[1]
    assert "lee 1/1: cls; at most 12 tokens, prompt 'w3 ' …" in said and "nothing in its folder" not in said
    said = run("lee", "--name", "given", "--prefix", "w5 ", "--length", 20, models=(folder,))[1]
    assert "cls; at most 20 tokens, prompt 'w5 '" in said
    own, given = (results.read_results(tmp_path / "out").of(name, "lee")[0] for name in ("st", "given"))
    assert own.scores != given.scores

    opened = open_model(str(folder))
    embed = embedding.Embedder(opened, {"prompt": "w5 ", "length": 64}, 3)
    texts = ["w1", "w2 w7 w9 w10", "", "w1 w2"]
    vectors = torch.nn.functional.normalize(embed(texts), dim=-1).double()
    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        rows = [encoder(**tokenizer("w5 " + text, return_tensors="pt")).last_hidden_state[0, 0] for text in texts]
    assert torch.allclose(vectors, torch.nn.functional.normalize(torch.stack(rows), dim=-1).double(), atol=1e-5)


def test_prompts_without_a_default_are_noted(run, data, tmp_path, model):
    files.write_lee(data)
    folder = st_folder(model, tmp_path / "st")
    assert (
        "st: its prompts (query, other) have no default: none is put before the texts; --prefix"
        in run("lee", models=(folder,))[1]
    )


def test_texts_that_are_too_long_are_cut_and_padding_changes_nothing(model):
    opened = open_model(str(model))
    embed = embedding.Embedder(opened, {"prompt": "", "length": 6}, 4)
    texts = ["w1 w2 w3 w4 w5 w6 w7", "w1 w2 w3 w4", "w1", "w9 w8"]
    found = embed(texts)
    assert torch.equal(found[0], found[1])
    alone = torch.cat([embed([text]) for text in texts])
    assert torch.allclose(found, alone, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("lee", ["--learning-rate", "1e-4"], r"--learning-rate: nothing is trained for lee; leave it out"),
        ("lee", ["--batch", "8"], r"--batch: nothing is trained for lee; leave it out"),
        ("lee,sts", ["--grid"], r"--grid: nothing is trained for lee, sts; leave it out"),
        ("rte", ["--prefix", "query: "], r"--prefix: is for the tasks that train nothing, not for rte; leave it out"),
        ("lee", ["--languages", "de"], r"--languages: lee has one language; leave it out"),
        ("lee", ["--length", "65"], r"lee needs --length 65, the model has 64 positions; give --length"),
        ("stsbench", [], r"--task stsbench: unknown task; did you mean stsb"),
        ("mteb-", [], r"--task mteb-: unknown task; .*and mteb's as mteb-NAME"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_computed(run, data, monkeypatch, task, options, message):
    monkeypatch.setattr(embedding, "scores", lambda *_: pytest.fail("computed"))
    files.write_lee(data)
    files.write_sts_b(data, "dev")
    with pytest.raises(UserError, match=message) as error:
        run(task, *options)
    assert "\n" not in str(error.value)


def test_mteb_without_the_extra_is_one_line(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    monkeypatch.delitem(sys.modules, "pipeline.evaluate.mteb_tasks", raising=False)
    with pytest.raises(UserError, match=r"the package mteb is not there: .*pip install --editable '\.\[mteb\]'"):
        embedding.mteb()


def test_a_correlation_that_is_not_defined_is_a_failed_cell(run, data, tmp_path):
    files.write_lee(data)
    (data / "lee.cor").write_text("w1 w2\n" * 5)
    assert run("lee")[0] == 1
    (failure,) = results.read_results(tmp_path / "out").failures
    assert "their correlation is not defined" in failure.error


def test_trained_and_untrained_tasks_go_together(data, tmp_path, model):
    files.write_glue(data, "rte")
    files.write_lee(data)
    words = [
        "--model",
        model,
        "--data",
        data,
        "--out",
        tmp_path / "out",
        "--task",
        "rte,lee",
        "--seeds",
        1,
        "--length",
        32,
    ]
    rte, lee = prepare(parser().parse_args(list(map(str, words))), lambda *_: None)
    assert [str(cell) for cell in rte.cells] == ["lr 3e-05, 5 epochs, seed 1"]
    assert [str(cell) for cell in lee.cells] == ["mean; at most 32 tokens"]
    assert baseline("lee", lee.data) == {"pearson": 0.0, "spearman": 0.0}


def test_a_students_card_has_the_scores_as_those_of_no_fine_tuning(run, data, tmp_path):
    files.write_sts_b(data, "test", 20)
    run("sts")
    (cell,) = results.read_results(tmp_path / "out").cells
    found = {(each.dataset_config, each.metric_type): each for each in model_index("sts", [cell])}
    assert set(found) == {(place, kind) for place in (None, "STS-B-test") for kind in ("spearmanr", "pearsonr")}
    one = found["STS-B-test", "spearmanr"]
    assert one.task_type == "sentence-similarity" and "not fine-tuned" in one.metric_name
    assert one.metric_value == round(cell.score, 2)
