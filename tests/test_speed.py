"""pipeline.speed: what is timed and how, what is written, and what it says to mistakes."""

import json
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch

from data_prep.cli import UserError
from pipeline import speed
from pipeline.artifacts import results
from pipeline.evaluate.scored_model import describe_model
from pipeline.measuring import device_here, device_name, forward_seconds, made_up_batches, usual_dtype
from pipeline.models import arithmetic
from pipeline.models.arithmetic import Rates
from pipeline.models.loading import load_model, load_tokenizer
from pipeline.speed import compare, describe, main, qnli_batches, table, with_forms
from tests.parts.launching import run_main
from tests.parts.tiny import make_teacher

CPU = torch.device("cpu")
SHAPE = (2, 3, 8)  # batches, sequences, tokens


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speed")
    return {
        "teacher": str(make_teacher(folder / "teacher")),
        "student": str(make_teacher(folder / "student", layers=2, hidden=16)),
        "other": str(make_teacher(folder / "other", layers=1)),
    }


@pytest.fixture
def qnli(tmp_path):
    path = tmp_path / "QNLI" / "dev.tsv"
    path.parent.mkdir()
    rows = [f'{n}\tw{n} "w2 ?\tw3 w4 w5{" w6" * n}\tentailment' for n in range(7)]
    path.write_text("index\tquestion\tsentence\tlabel\n" + "\n".join(rows) + "\n")
    return path


def clock(monkeypatch, seconds):
    """Time goes by only where the models say so: ``seconds`` is filled by them."""
    monkeypatch.setattr(time, "perf_counter", lambda: sum(seconds))


def test_models_take_turns_batch_by_batch_after_one_to_warm_up():
    order = []
    models = {name: lambda name=name, **batch: order.append((name, int(batch["x"]))) for name in "ab"}
    batches = [{"x": torch.tensor(number)} for number in range(3)]
    forward_seconds(models, {"a": batches, "b": batches}, CPU)
    assert order == [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_the_median_counts_and_the_warm_up_does_not(monkeypatch):
    elapsed, calls = [], iter([99.0, 5.0, 1.0, 2.0])  # warm-up, then three batches
    clock(monkeypatch, elapsed)
    found = forward_seconds({"a": lambda **_: elapsed.append(next(calls))}, {"a": [{}] * 3}, CPU)
    assert found == {"a": 2.0}


def test_forwards_run_in_inference_mode(monkeypatch):
    seen = []
    forward_seconds({"a": lambda **_: seen.append(torch.is_inference_mode_enabled())}, {"a": [{}]}, CPU)
    assert seen == [True, True]


def test_made_up_ids_are_the_same_full_length_ids_for_all_models(models):
    loaded = {name: load_model(path, "main", torch.float32) for name, path in models.items()}
    made = made_up_batches(loaded, *SHAPE)
    assert made["teacher"] is made["student"] and len(made["teacher"]) == 2
    for batch in made["teacher"]:
        assert batch["input_ids"].shape == (3, 8) and batch["attention_mask"].all()
        assert batch["input_ids"].max() < 50
    assert not torch.equal(*(batch["input_ids"] for batch in made["teacher"]))


def test_qnli_pairs_are_read_as_they_are_and_padded_to_the_longest_of_a_batch(models, qnli):
    made = qnli_batches(qnli, {"teacher": models["teacher"]}, 2, 3, 64)["teacher"]
    assert [batch["input_ids"].shape for batch in made] == [(3, 12), (3, 15)]
    tokenizer = load_tokenizer(models["teacher"])
    assert tokenizer.decode(made[0]["input_ids"][1]) == "[CLS] w1 [UNK] w2 [UNK] [SEP] w3 w4 w5 w6 [SEP] [PAD]"
    assert made[0]["attention_mask"].sum(1).tolist() == [10, 11, 12]


def test_pairs_are_cut_to_the_length(models, qnli):
    [batch] = qnli_batches(qnli, {"teacher": models["teacher"]}, 1, 7, 6)["teacher"]
    assert batch["input_ids"].shape == (7, 6)


def test_forms_of_a_folder_take_their_turn_after_it_and_none_on_a_gpu(models, capsys):
    folder = Path(models["student"])
    names = ["onnx/model.onnx", "onnx/model_quantized.onnx", "openvino/openvino_model.xml"]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    try:
        forms = [str(folder / name) for name in names]
        assert with_forms(["org/name", str(folder)], CPU) == ["org/name", str(folder), *forms]
        assert with_forms([str(folder), forms[1]], CPU) == [str(folder), *forms]
        assert with_forms([str(folder)], torch.device("cuda")) == [str(folder)]
        assert (
            capsys.readouterr().out
            == f"note: not measured, as this is a GPU and forms run on CPUs: {', '.join(forms)}\n"
        )
    finally:
        for name in ("onnx", "openvino"):
            shutil.rmtree(folder / name)


@pytest.mark.parametrize("here, precision", [(Rates(1.0, 2.0), "fp32"), (Rates(2.0, 1.0), "bf16")])
def test_every_student_is_measured_against_the_reference_in_the_faster_precision(models, monkeypatch, here, precision):
    monkeypatch.setattr(arithmetic, "rates", lambda *_: here)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(speed, "forward_seconds", lambda *_: {"teacher": 0.6, "student": 0.2, "other": 0.1})
    abouts = describe(list(models.values()), None)
    records = compare(abouts, None, SHAPE)
    assert [(record["model"], record["reference"]) for record in records] == [
        ("student", "teacher"),
        ("other", "teacher"),
    ]
    assert [record["speedup"] for record in records] == pytest.approx([3.0, 6.0])
    assert records[0]["reference_seconds"] == 0.6 and records[0]["text"] == "made-up ids"
    assert records[0]["device"].startswith("cpu (") and records[0]["device"].endswith(precision)


def test_the_command_measures_writes_and_shows_the_paper(models, qnli, tmp_path, monkeypatch, capsys):
    out = tmp_path / "results"
    shape = ("--batches", 2, "--batch", 3, "--length", 32)
    pair = models["teacher"], models["student"]
    code, shown, _ = run_main(monkeypatch, capsys, main, *pair, "--data", qnli, *shape, "--out", out)
    device = device_here()
    assert code == 0
    assert f"2 batches of 3 × at most 32 tokens (QNLI/dev.tsv) on {device_name(device, usual_dtype(device))}:" in shown
    assert "arXiv 2002.10957" in shown and "times as fast" in shown
    found = results.read_results(out)
    assert found.models["student"] == describe_model(models["student"], "student")
    assert list(found.models) == ["student", "teacher"] and list(found.speeds) == ["student"]
    record = found.speeds["student"]
    assert record["speedup"] == pytest.approx(record["reference_seconds"] / record["seconds"])
    assert (record["batches"], record["batch"], record["length"], record["text"]) == (2, 3, 32, "QNLI/dev.tsv")


def test_sizes_and_the_papers_quotient_stand_in_the_table():
    def about(name, layers):
        return {
            "name": name,
            "layers": layers,
            "hidden": 384,
            "parameters": {"embeddings": 11720448, "transformer": layers * 1774464},
            "bytes": 69_600_000,
        }

    record = {"model": "s", "reference": "t", "reference_seconds": 0.5, "seconds": 0.25, "speedup": 2.0}
    form = about("s@onnx-int8", 3) | {"form": {"of": "s", "runtime": "ONNX Runtime", "precision": "int8"}}
    abouts = [about("t", 6), about("s", 3), form, about("u", 5)]
    lines = table(abouts, [record, record | {"model": form["name"]}, record | {"model": "u"}])
    assert " ".join(lines[1].split()) == "t 6x384 PyTorch 11.7 M 10.6 M 69.6 MB 500.0 ms"
    assert " ".join(lines[2].split()) == "s 3x384 PyTorch 11.7 M 5.3 M 69.6 MB 250.0 ms 2.00 1.91"
    assert " ".join(lines[3].split()) == "s@onnx-int8 3x384 ONNX Runtime, int8 11.7 M 5.3 M 69.6 MB 250.0 ms 2.00 -"
    assert lines[4].split()[-1] == "-"


def test_results_know_a_model_by_its_weights_under_whatever_name(models, tmp_path):
    about = describe_model(models["student"], "best student")
    (tmp_path / "best student").mkdir()
    (tmp_path / "best student" / "model.json").write_text(json.dumps(about))
    assert [each["name"] for each in describe([models["teacher"], models["student"]], tmp_path)] == [
        "teacher",
        "best student",
    ]


def test_a_name_that_results_have_for_other_weights_is_rejected(models, tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "model.json").write_text(json.dumps(describe_model(models["other"], "student")))
    with pytest.raises(
        UserError, match=r"student: of the weights [0-9a-f]{16}, .*student has [0-9a-f]{16}; use another --out"
    ):
        describe([models["teacher"], models["student"]], tmp_path)


def test_two_models_of_one_name_are_rejected(models):
    with pytest.raises(UserError, match="two are named teacher; rename a folder"):
        describe([models["teacher"], models["student"], models["teacher"]], None)


def test_a_length_beyond_a_models_positions_is_rejected(models):
    abouts = describe([models["teacher"], models["student"]], None)
    with pytest.raises(UserError, match=r"--length 65: teacher has 64 positions; use at most that"):
        compare(abouts, None, (1, 1, 65))


@pytest.mark.parametrize(
    "content, message",
    [
        ("index\tsentence\tlabel\n", "no column 'question', only index, sentence, label; is this a file of this task"),
        ("", "no column 'question'"),
        (
            "index\tquestion\tsentence\tlabel\n0\tw1\tw2\tentailment\n",
            "1 rows, 2 are needed; lower --batches or --batch",
        ),
        ("index\tquestion\tsentence\tlabel\n0\tw1 w2\n", "dev.tsv:2: 2 columns, qnli's files have 4 here"),
        (b"question\tsentence\n\xff\t\n", "not UTF-8 at byte 18"),
        (None, "dev.tsv: no such file"),
    ],
)
def test_a_file_that_is_not_qnlis_is_rejected(tmp_path, content, message):
    path = tmp_path / "dev.tsv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        qnli_batches(path, {}, 1, 2, 8)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["a"], "the following arguments are required: STUDENT; see python -m pipeline.speed --help"),
        (["a", "b", "--batches", "0"], "argument --batches: '0' is not a whole number of at least 1"),
        (["a", "b", "--lenght", "9"], "unrecognized arguments: --lenght 9; did you mean --length?"),
        (["./none", "b"], "./none: no such folder"),
    ],
)
def test_a_mistake_of_the_command_is_named(monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["speed", *arguments])
    with pytest.raises(UserError, match=re.escape(message)):
        main()


def test_a_mistake_is_one_line_and_code_2(models, monkeypatch, capsys):
    arguments = models["teacher"], models["student"], "--data", "none.tsv", "--length", 8
    code, _, line = run_main(monkeypatch, capsys, main, *arguments)
    assert code == 2
    assert line.startswith("error: none.tsv: no such file") and line.count("\n") == 1


def test_a_file_is_no_folder_for_results(models, qnli):
    with pytest.raises(UserError, match=re.escape(f"{qnli}: is not a folder; results are kept in one")):
        describe(list(models.values()), qnli)
