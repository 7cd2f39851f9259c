"""ONNX and OpenVINO of small models: they compute what the folder computes, and what does not is refused."""

import dataclasses
import json
import shutil
import sys
import types

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from data_prep.cli import UserError
from pipeline.artifacts import results
from pipeline.evaluate import __main__ as evaluate
from pipeline.evaluate.scored_model import open_model
from pipeline.export import export, main
from pipeline.forms import making
from pipeline.forms.files import FILES, folder_of, form_hash, form_name, forms_of, is_form, precision_of, size_of
from pipeline.forms.making import COSINE, TOLERANCE, Form, Wanted, check_libraries, make_forms
from pipeline.forms.running import FormEncoder
from pipeline.forms.texts import COUNT, sample_texts
from pipeline.models.families import longest_input
from pipeline.models.portable import write_tokenizer
from pipeline.speed import main as speed
from tests.forms.conftest import TEXTS
from tests.parts import task_files as files
from tests.parts.launching import run_main
from tests.parts.tiny import make_corpus, make_teacher

NAMES = ["small@onnx", "small@onnx-int8", "small@openvino", "small@openvino-int8"]


def hidden(encoder, texts, folder):
    """The last layer's output at each token of the texts, which are padded in one batch."""
    encoded = AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, truncation=True, max_length=64, return_tensors="pt"
    )
    with torch.inference_mode():
        return encoder(**encoded).last_hidden_state[encoded["attention_mask"].bool()]


def cosine(a, b):
    return float(torch.cosine_similarity(a.mean(0), b.mean(0), dim=0))


# --- made, compared, run ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_forms_lie_where_others_look_for_them_and_compute_what_the_folder_does(with_forms):
    folder, made = with_forms
    assert forms_of(folder) == [folder / name for name in FILES.values()]
    assert [form.file for form in made] == list(FILES.values())
    expected = hidden(AutoModel.from_pretrained(folder).eval(), TEXTS, folder)
    for form, path in zip(made, forms_of(folder), strict=True):
        found = hidden(FormEncoder(path), TEXTS, folder)
        difference = float((found - expected).abs().max() / expected.abs().max())
        assert difference == pytest.approx(form.difference, rel=0.2, abs=1e-6)
        assert form.bytes == size_of(path) and form.cosine >= COSINE
        assert difference <= TOLERANCE if form.precision == "fp32" else 1e-3 < difference < 0.2
    sizes = {form.file: form.bytes for form in made}
    assert sizes[FILES["onnx", "int8"]] < sizes[FILES["onnx", "fp32"]]


@pytest.mark.slow
def test_a_graph_takes_any_batch_and_length_up_to_the_models_positions(with_forms):
    folder, _ = with_forms
    model = AutoModel.from_pretrained(folder).eval()
    for path in (folder / FILES["onnx", "fp32"], folder / FILES["openvino", "fp32"]):
        encoder = FormEncoder(path)
        for batch, length in ((1, 1), (1, 64), (7, 13)):
            ids = torch.randint(5, 50, (batch, length), generator=torch.Generator().manual_seed(length))
            mask = torch.ones_like(ids)
            mask[0, (length + 1) // 2 :] = 0
            with torch.inference_mode():  # without token types, which are 0 then
                own = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
                theirs = model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
            assert torch.allclose(own, theirs, atol=1e-5)


@pytest.mark.slow
def test_a_graph_takes_what_the_tokenizer_gives_and_no_more(tmp_path):
    """A BERT that was trained on single texts: its tokenizer gives no token types; and none of 1e30 tokens."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = make_teacher(tmp_path / "model", layers=1, hidden=16)
    tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).config
    assert tokenizer.model_max_length > 1e29 and "token_type_ids" in tokenizer("w1")
    write_tokenizer(tokenizer, (str(tmp_path / "gone"), "main"), config, folder, paired=False)
    (made,) = make_forms(folder, Wanted(("onnx",)), TEXTS)
    session = onnxruntime.InferenceSession(folder / made.file)
    given = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, truncation=True, return_tensors="np")
    assert {each.name for each in session.get_inputs()} == set(given) == {"input_ids", "attention_mask"}
    (output,) = session.run(None, dict(given))
    assert output.shape == (5, longest_input(config), 16)
    assert sorted(path.name for path in (folder / "onnx").iterdir()) == ["model.onnx"]
    assert not (folder / "openvino").exists()


@pytest.mark.slow
def test_only_openvino_leaves_no_onnx(with_forms, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(with_forms[0], folder, ignore=shutil.ignore_patterns("onnx", "openvino"))
    make_forms(folder, Wanted(("openvino",)), TEXTS)
    assert [path.name for path in forms_of(folder)] == ["openvino_model.xml"] and not (folder / "onnx").exists()


def made_form(**changes):
    form = Form("onnx/model.onnx", "ONNX Runtime", "fp32", 1, difference=1e-6, cosine=1.0)
    return dataclasses.replace(form, **changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"difference": 1.1 * TOLERANCE},
            "onnx/model.onnx computes something else: outputs differ by 1.1e-04 of the largest",
        ),
        ({"difference": float("nan")}, "computes something else"),
        ({"precision": "int8", "difference": 0.1, "cosine": 0.94}, "too coarse: .* cosine of 0.940 .* 0.95 is needed"),
        ({"precision": "int8", "cosine": float("nan")}, "too coarse"),
        ({"precision": "int8", "difference": 0.1, "cosine": 0.96}, None),
        ({}, None),
    ],
)
def test_what_is_too_far_from_the_folder_is_refused(tmp_path, monkeypatch, changes, message):
    model = make_teacher(tmp_path / "model", layers=1, hidden=16)
    form = made_form(**changes)
    monkeypatch.setattr(making, "_write", lambda *arguments: arguments[2].write_bytes(b"graph"))
    monkeypatch.setattr(making, "_compared", lambda *_: (form.difference, form.cosine))
    monkeypatch.setattr(making, "size_of", lambda _: 1)
    wanted = Wanted(("onnx",), int8=form.precision == "int8")
    if form.precision == "int8":  # its fp32 form comes first
        monkeypatch.setattr(making, "TOLERANCE", 1.0)
    if message:
        with pytest.raises(UserError, match=f"^model: .*{message}.*nothing was exported"):
            make_forms(model, wanted, TEXTS)
    else:
        make_forms(model, wanted, TEXTS)


@pytest.mark.slow
def test_the_comparison_sees_a_changed_weight_and_a_mask_that_is_not_read(with_forms, tmp_path):
    folder, _ = with_forms
    other = make_teacher(tmp_path / "other", layers=2, hidden=16)
    model = AutoModel.from_pretrained(other).eval()
    with torch.no_grad():
        model.encoder.layer[0].output.dense.bias += 1e-2
    batches = making._batches(model, AutoTokenizer.from_pretrained(other), TEXTS)
    assert {tuple(batch["input_ids"].shape) for batch in batches} == {(4, 64), (1, 4), (1, 5)}
    expected = [making._hidden(model, batch) for batch in batches]
    difference, _ = making._compared(folder / FILES["onnx", "fp32"], batches, expected)
    assert difference > 10 * TOLERANCE
    unmasked = [making._hidden(AutoModel.from_pretrained(folder).eval(), b | {"attention_mask": b["attention_mask"] * 0 + 1})
                for b in batches]  # fmt: skip
    difference, _ = making._compared(folder / FILES["onnx", "fp32"], batches, unmasked)
    assert difference > 10 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("content, message", [(b"", "cannot be loaded"), (b"<html>", "cannot be loaded")])
def test_a_file_that_is_no_form_is_one_line(with_forms, tmp_path, content, message):
    folder = tmp_path / "copy"
    shutil.copytree(with_forms[0], folder)
    for path in forms_of(folder):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            FormEncoder(path)


# --- export -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_export_writes_forms_with_the_folder_or_nothing(run, tmp_path, monkeypatch, capsys, with_forms):
    out = tmp_path / "student"
    code, said, _ = run_main(monkeypatch, capsys, main, run, out, "--no-recompute", "--to", "onnx", "--int8")
    assert code == 0 and "onnx/model_quantized.onnx: " in said and "on texts of the corpus …" in said
    assert [path.name for path in forms_of(out)] == ["model.onnx", "model_quantized.onnx"]
    card = (out / "README.md").read_text()
    assert (
        "| onnx/model.onnx | ONNX Runtime | fp32 |" in card
        and "| onnx/model_quantized.onnx | ONNX Runtime | int8 |" in card
    )
    assert str(tmp_path) not in card.partition("Other forms")[2]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    monkeypatch.setattr(making, "TOLERANCE", 0.0)
    code, _, line = run_main(monkeypatch, capsys, main, run, out, "--no-recompute", "--to", "onnx")
    assert code == 2 and line.count("\n") == 1 and "onnx/model.onnx computes something else" in line
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["student"]

    export(run, out, recomputes=False)  # a later export without forms leaves none of an earlier one
    assert forms_of(out) == []


@pytest.mark.parametrize(
    "options, message",
    [
        (["--to", "onxx"], "argument --to: 'onxx' is no form; forms are onnx, openvino"),
        (["--int8"], "--int8: of which form? --to onnx,openvino --int8"),
        (["--private"], "--private: goes with --push ORG/NAME"),
        (["--push", "name"], "--push name: not a model's place on the hub"),
    ],
)
def test_a_mistake_is_named_before_anything_is_exported(tmp_path, monkeypatch, capsys, options, message):
    code, _, line = run_main(monkeypatch, capsys, main, tmp_path / "run", tmp_path / "out", *options)
    assert code == 2 and line.startswith(f"error: {message}") and line.count("\n") == 1


@pytest.mark.parametrize(
    "kinds, int8, package",
    [(("onnx",), False, "onnxruntime"), (("openvino",), False, "openvino"), (("openvino",), True, "nncf")],
)
def test_without_the_extra_one_line_says_how_to_install_it(monkeypatch, kinds, int8, package):
    for name in ("by_onnx", "by_openvino"):
        monkeypatch.delitem(sys.modules, f"pipeline.forms.{name}", raising=False)
    import pipeline.forms

    for name in ("by_onnx", "by_openvino"):
        monkeypatch.delattr(pipeline.forms, name, raising=False)
    present = {"onnx", "onnxscript", "onnxruntime", "onnxruntime.quantization", "openvino"}
    for name in present:
        module = types.ModuleType(name)
        module.__version__, module.QuantType, module.quantize_dynamic = "1", None, None
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as error:
        check_libraries(kinds, int8)
    assert str(error.value) == (
        f"the package {package} is not there: ONNX and OpenVINO need the extra: pip install --editable '.[forms]'"
    )


def test_a_folder_is_put_on_the_hub_only_when_asked_and_its_card_names_its_place(run, tmp_path, monkeypatch, capsys):
    from pipeline import export as module

    calls = []
    monkeypatch.setattr(module, "check_upload", lambda repo: None)

    def upload(folder, repo, private):
        calls.append((repo, private, (folder / "README.md").read_text()))
        return f"https://hub/{repo}"

    monkeypatch.setattr(module, "upload", upload)
    out = tmp_path / "student"
    assert run_main(monkeypatch, capsys, main, run, out, "--no-recompute")[0] == 0
    assert calls == []
    code, said, _ = run_main(monkeypatch, capsys, main, run, out, "--no-recompute", "--push", "org/name", "--private")
    assert code == 0 and f"{out}: uploaded to https://hub/org/name" in said
    ((repo, private, card),) = calls
    assert (repo, private) == ("org/name", True)
    assert 'AutoModel.from_pretrained("org/name")' in card and "path/to/this/folder" not in card


# --- texts ------------------------------------------------------------------------------------------------------------


def test_texts_are_of_every_source_held_out_ones_first_and_of_several_lengths(tmp_path, capsys):
    model = make_teacher(tmp_path / "model", layers=1, hidden=16)
    data = make_corpus(tmp_path / "data", {"a": 400, "b": 400}, heldout=100)
    texts, what = sample_texts(str(data), str(model), "main")
    assert len(texts) == COUNT and what == "texts of the corpus"
    lengths = {len(text.split()) for text in texts}
    assert min(lengths) <= 3 and max(lengths) > 12 and not any("[SEP]" in text for text in texts)
    texts, what = sample_texts(str(tmp_path / "gone"), str(model), "main")
    assert what == "built-in sentences" and len(texts) > 2
    assert "note: compared on built-in sentences only: " in capsys.readouterr().out


# --- names ------------------------------------------------------------------------------------------------------------


def test_forms_of_others_are_found_and_named_by_their_files(tmp_path):
    folder = make_teacher(tmp_path / "theirs", layers=1, hidden=16)
    for name in ("model.onnx", "model_O3.onnx", "model_qint8_avx512_vnni.onnx", "model.onnx_data", "README.md"):
        (folder / "onnx").mkdir(exist_ok=True)
        (folder / "onnx" / name).write_bytes(name.encode())
    forms = forms_of(folder)
    assert [form_name(path) for path in forms] == [
        "theirs@onnx",
        "theirs@onnx-model_O3",
        "theirs@onnx-model_qint8_avx512_vnni",
    ]
    assert [precision_of(path) for path in forms] == ["fp32", "O3", "int8"]
    assert size_of(forms[0]) == len("model.onnx") + len("model.onnx_data")
    assert len({form_hash(path) for path in forms}) == 3 and folder_of(forms[0]) == folder
    assert not is_form(folder) and not is_form("org/name") and not is_form(folder / "onnx" / "README.md")
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"model.onnx: no config.json in .*; a form is read with the config and tokenizer"
    ):
        open_model(str(tmp_path / "model.onnx"))


# --- scored and measured beside the folder ----------------------------------------------------------------------------


@pytest.mark.slow
def test_forms_are_scored_and_measured_beside_their_folder(with_forms, tmp_path, monkeypatch, capsys):
    folder, _ = with_forms
    data, out = tmp_path / "data", tmp_path / "out"
    files.write_sts_b(data, "test", 60)
    models = [word for path in (folder, *forms_of(folder)) for word in ("--model", path)]
    code, said, _ = run_main(
        monkeypatch, capsys, evaluate.main, *models, "--task", "sts", "--data", data, "--length", 60, "--out", out
    )
    assert code == 0 and said.count("nothing in its folder says how it pools") == 1
    found = results.read_results(out)
    scores = {cell.model: cell.score for cell in found.cells}
    assert list(scores) == ["small", *NAMES]
    for name in ("small@onnx", "small@openvino"):
        assert scores[name] == pytest.approx(scores["small"], abs=0.01)
    for name in ("small@onnx-int8", "small@openvino-int8"):
        assert scores[name] != scores["small"] and scores[name] == pytest.approx(scores["small"], abs=5)
    assert {cell.model: cell.precision for cell in found.cells}["small@onnx-int8"] == "int8"
    about = found.models["small@onnx-int8"]
    assert about["form"] == {"of": "small", "runtime": "ONNX Runtime", "precision": "int8"}
    assert about["bytes"] == (folder / FILES["onnx", "int8"]).stat().st_size != found.models["small"]["bytes"]
    assert len({model["weights"] for model in found.models.values()}) == 5

    teacher = make_teacher(tmp_path / "teacher", layers=3, hidden=16)
    shape = ("--batches", 2, "--batch", 2, "--length", 8)
    code, said, _ = run_main(monkeypatch, capsys, speed, teacher, folder, *shape, "--out", out)
    assert code == 0 and [line.split()[0] for line in said.splitlines()[2:8]] == ["teacher", "small", *NAMES]
    speeds = results.read_results(out).speeds
    assert sorted(speeds) == ["small", *NAMES] and {each["reference"] for each in speeds.values()} == {"teacher"}
    assert speeds["small@openvino-int8"]["device"].endswith("), int8 in OpenVINO")


@pytest.mark.slow
def test_a_form_is_not_fine_tuned(with_forms, tmp_path, monkeypatch, capsys):
    folder, _ = with_forms
    files.write_glue(tmp_path / "data", "rte") if hasattr(files, "write_glue") else None
    path = folder / FILES["onnx", "fp32"]
    opened = open_model(str(path))
    assert opened.form == path and opened.path == str(folder)
    from pipeline.evaluate.cells import make_job

    with pytest.raises(
        UserError, match=r"model.onnx: a form is not trained, so it is scored on sts, lee, bitext only; fine-"
    ):
        make_job(types.SimpleNamespace(out=tmp_path, length=None), opened, "rte", types.SimpleNamespace(scored={}), {})


@pytest.mark.slow
def test_the_scores_of_a_form_are_not_put_into_the_card_of_the_folder(run, with_forms, tmp_path, monkeypatch, capsys):
    folder, _ = with_forms
    (folder / "README.md").write_text("---\nlicense: mit\n---\ncard\n")
    (folder / "distillation.json").write_text(json.dumps([]))
    data = tmp_path / "data"
    files.write_sts_b(data, "test", 9)
    arguments = ("--model", folder / FILES["onnx", "int8"], "--task", "sts", "--data", data, "--length", 60)
    try:
        assert run_main(monkeypatch, capsys, evaluate.main, *arguments, "--out", tmp_path / "out")[0] == 0
        assert (folder / "README.md").read_text() == "---\nlicense: mit\n---\ncard\n"
    finally:
        (folder / "README.md").unlink()
        (folder / "distillation.json").unlink()
