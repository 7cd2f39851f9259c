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
from pipeline.export import export_untrained, main
from pipeline.forms import making
from pipeline.forms.files import (
    FILES,
    RUNTIMES,
    folder_of,
    form_hash,
    form_name,
    forms_of,
    is_form,
    precision_of,
    size_of,
)
from pipeline.forms.making import TOLERANCE, Form, Wanted, check_libraries, make_forms
from pipeline.forms.running import INPUTS, FormEncoder
from pipeline.forms.texts import COUNT, sample_texts
from pipeline.settings.reading import load_recipe
from pipeline.speed import main as speed
from tests.parts import task_files as files
from tests.parts.launching import run_main
from tests.parts.tiny import make_corpus, make_recipe, make_teacher

NAMES = ["student@onnx", "student@onnx-int8", "student@openvino", "student@openvino-int8"]


TEXTS = ["w1 w7 w44", "w3", " ".join(f"w{number % 45}" for number in range(90)), "w5 w6 w9 w8 w7", "w1 w2"]


@pytest.fixture(scope="module")
def with_forms(tmp_path_factory):
    """An exported student with all four forms."""
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("forms")
    recipe = load_recipe(make_recipe(folder), ["segments=single"])
    export_untrained(recipe, folder / "student", Wanted(("onnx", "openvino"), int8=True))
    return folder / "student"


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
    assert forms_of(with_forms) == [with_forms / name for name in FILES.values()]
    expected = hidden(AutoModel.from_pretrained(with_forms).eval(), TEXTS, with_forms)
    for (kind, precision), path in zip(FILES, forms_of(with_forms), strict=True):
        found = hidden(FormEncoder(path), TEXTS, with_forms)
        difference = float((found - expected).abs().max() / expected.abs().max())
        assert difference <= TOLERANCE if precision == "fp32" else 1e-3 < difference < 0.2, (
            kind,
            precision,
            difference,
        )
    fp32, int8 = (size_of(with_forms / FILES["onnx", precision]) for precision in ("fp32", "int8"))
    assert int8 < fp32


@pytest.mark.slow
def test_the_card_has_the_forms_and_no_path_of_this_machine(with_forms):
    section = (
        (with_forms / "README.md")
        .read_text()
        .partition("Other forms, compared with model.safetensors on texts of the")[2]
    )
    for (kind, precision), file in FILES.items():
        assert (
            f"| {file} | {RUNTIMES[kind]} | {precision} | {size_of(with_forms / file) / 1e6:.1f} | outputs within "
            in section
        )
    assert section.count("cosine of each text's mean vector at least 0.9") == 2 and "onnxruntime 1." in section
    assert str(with_forms.parent) not in section


@pytest.mark.slow
def test_a_graph_takes_any_batch_and_length_up_to_the_models_positions(with_forms):
    folder = with_forms
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
def test_a_graph_takes_what_the_tokenizer_gives_and_no_more(with_forms, tmp_path):
    """A student of single texts has no token types; a BERT whose tokenizer gives some, of any length, has them."""
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = make_teacher(tmp_path / "model", layers=1, hidden=16)
    assert AutoTokenizer.from_pretrained(folder).model_max_length > 1e29
    (made,) = make_forms(folder, Wanted(("onnx",)), TEXTS)
    assert [path.name for path in forms_of(folder)] == ["model.onnx"] and not (folder / "openvino").exists()
    for path, names in ((with_forms, INPUTS[:2]), (folder, INPUTS)):
        session = onnxruntime.InferenceSession(path / made.file)
        given = AutoTokenizer.from_pretrained(path)(
            TEXTS, padding=True, truncation=True, max_length=64, return_tensors="np"
        )
        assert {each.name for each in session.get_inputs()} == set(given) == set(names)
        (output,) = session.run(None, dict(given))
        assert output.shape == (len(TEXTS), 64, 16)
    ids = torch.tensor([[2, 7, 9, 3, 8, 3]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.tensor([[0, 0, 0, 0, 1, 1]]),
    }
    expected = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state
    assert torch.allclose(FormEncoder(folder / made.file)(**inputs).last_hidden_state, expected, atol=1e-5)


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
    folder = with_forms
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        model.encoder.layer[0].output.dense.bias[0] += 0.1
    batches = making._batches(model, AutoTokenizer.from_pretrained(folder), TEXTS)
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
    shutil.copytree(with_forms, folder)
    for path in forms_of(folder):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            FormEncoder(path)


# --- export -----------------------------------------------------------------------------------------------------------


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
    folder = with_forms
    data, out = tmp_path / "data", tmp_path / "out"
    files.write_sts_b(data, "test", 60)
    models = [word for path in (folder, *forms_of(folder)) for word in ("--model", path)]
    code, said, _ = run_main(
        monkeypatch, capsys, evaluate.main, *models, "--task", "sts", "--data", data, "--length", 60, "--out", out
    )
    assert code == 0 and said.count("nothing in its folder says how it pools") == 1
    found = results.read_results(out)
    scores = {cell.model: cell.score for cell in found.cells}
    assert list(scores) == ["student", *NAMES]
    for name in ("student@onnx", "student@openvino"):
        assert scores[name] == pytest.approx(scores["student"], abs=0.01)
    for name in ("student@onnx-int8", "student@openvino-int8"):
        assert scores[name] != scores["student"] and scores[name] == pytest.approx(scores["student"], abs=5)
    assert {cell.model: cell.precision for cell in found.cells}["student@onnx-int8"] == "int8"
    about = found.models["student@onnx-int8"]
    assert about["form"] == {"of": "student", "runtime": "ONNX Runtime", "precision": "int8"}
    assert about["bytes"] == (folder / FILES["onnx", "int8"]).stat().st_size != found.models["student"]["bytes"]
    assert len({model["weights"] for model in found.models.values()}) == 5

    teacher = make_teacher(tmp_path / "teacher", layers=3, hidden=16)
    shape = ("--batches", 2, "--batch", 2, "--length", 8)
    code, said, _ = run_main(monkeypatch, capsys, speed, teacher, folder, *shape, "--out", out)
    assert code == 0 and [line.split()[0] for line in said.splitlines()[2:8]] == ["teacher", "student", *NAMES]
    speeds = results.read_results(out).speeds
    assert sorted(speeds) == ["student", *NAMES] and {each["reference"] for each in speeds.values()} == {"teacher"}
    assert speeds["student@openvino-int8"]["device"].endswith("), int8 in OpenVINO")


@pytest.mark.slow
def test_a_form_is_not_fine_tuned(with_forms, tmp_path, monkeypatch, capsys):
    folder = with_forms
    path = folder / FILES["onnx", "fp32"]
    opened = open_model(str(path))
    assert opened.form == path and opened.path == str(folder)
    from pipeline.evaluate.cells import make_job

    with pytest.raises(
        UserError, match=r"model.onnx: a form is not trained, so it is scored on sts, lee, bitext only; fine-"
    ):
        make_job(types.SimpleNamespace(out=tmp_path, length=None), opened, "rte", types.SimpleNamespace(scored={}), {})


@pytest.mark.slow
def test_the_scores_of_a_form_are_not_put_into_the_card_of_the_folder(with_forms, tmp_path, monkeypatch, capsys):
    folder = with_forms
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
