"""pipeline.export on a small finished run."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoTokenizer, BertTokenizerFast

from data_prep.cli import UserError
from pipeline import export as export_module
from pipeline.artifacts import checkpoints
from pipeline.artifacts.distillation import read_distillation
from pipeline.artifacts.metrics import heldout_rows
from pipeline.export import check_export, export, load_student, main, model_card
from pipeline.forms.making import Form, Wanted
from pipeline.models.cut import cut_encoder
from pipeline.models.fit import student_config_of
from pipeline.models.students import build_student, principal_components
from pipeline.settings.reading import load_recipe
from pipeline.training import recomputing
from tests.parts.launching import run_main
from tests.parts.tiny import WORDS, make_recipe


@pytest.mark.slow
def test_the_student_is_a_plain_hugging_face_folder(run, student):
    model = AutoModel.from_pretrained(student, dtype=torch.float32)
    weights = checkpoints.latest(run).weights()
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert model.config.num_hidden_layers == 2 and model.config.hidden_size == 16
    assert AutoTokenizer.from_pretrained(student)("w1 w7")["input_ids"] == [2, 6, 12, 3]
    assert sorted(path.name for path in student.iterdir()) == [
        "README.md", "config.json", "distillation.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "vocab.txt",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_teachers_tokenizer_files_are_copied_and_only_settings_that_do_not_fit_are_changed(run, student):
    teacher = run.parent / "teacher"
    for folder in (run / "student", student):
        for name in ("tokenizer.json", "vocab.txt"):
            assert (folder / name).read_bytes() == (teacher / name).read_bytes()
        before, after = (json.loads((f / "tokenizer_config.json").read_text()) for f in (teacher, folder))
        assert after == before | {"model_max_length": 64}


def test_the_untrained_student_is_the_one_that_a_run_starts_with(tmp_path, monkeypatch):
    recipe = make_recipe(tmp_path)
    options = ["student.init=teacher", "student.hidden=32", "student.layers=1"]
    for name, more in (("random", []), ("layers", options), ("projected", ["student.init=pca"])):
        monkeypatch.setattr(sys, "argv", ["export", "--untrained", str(recipe), str(tmp_path / name), *more])
        main()
    names = ("random", "layers", "projected")
    random, layers, projected = (AutoModel.from_pretrained(tmp_path / name) for name in names)
    teacher = AutoModel.from_pretrained(tmp_path / "teacher")
    query = "attention.self.query.weight"
    assert torch.equal(layers.encoder.layer[0].get_parameter(query), teacher.encoder.layer[2].get_parameter(query))
    expected = build_student(student_config_of(load_recipe(recipe), teacher.config), 42)
    assert torch.equal(random.embeddings.word_embeddings.weight, expected.embeddings.word_embeddings.weight)
    words = teacher.embeddings.word_embeddings.weight.detach()
    assert torch.equal(projected.embeddings.word_embeddings.weight, words @ principal_components(words, 16))
    own, random_own = (model.encoder.state_dict() for model in (projected, random))
    assert all(torch.equal(own[name], random_own[name]) for name in own)
    assert AutoTokenizer.from_pretrained(tmp_path / "random")("w1")["input_ids"] == [2, 6, 3]
    for arguments, message in (
        (["--untrained", str(recipe), str(tmp_path / "random")], "random: exists; choose a new folder"),
        ([str(tmp_path), str(tmp_path / "new"), "steps=3"], "steps=3: a run has been made with its recipe"),
    ):
        monkeypatch.setattr(sys, "argv", ["export", *arguments])
        with pytest.raises(UserError, match=message):
            main()


@pytest.mark.slow
@pytest.mark.parametrize("offline", [True, False])
def test_offline_the_same_files_are_written(run, student, tmp_path, monkeypatch, offline):
    monkeypatch.setattr("transformers.tokenization_utils_base.is_offline_mode", lambda: offline)
    export(run, tmp_path / "student")
    for path in student.iterdir():
        assert (tmp_path / "student" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_the_exported_student_gives_what_was_trained(run, student):
    """Its own attention and value relations are those of the cut encoder that learnt."""
    ids = torch.randint(5, 50, (2, 10), generator=torch.Generator().manual_seed(0))
    exported = AutoModel.from_pretrained(student, dtype=torch.float32).eval()
    trained = load_student(run, checkpoints.latest(run))
    with torch.no_grad():
        for ours, theirs in zip(cut_encoder(exported, 2)(ids), cut_encoder(trained, 2)(ids), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_the_model_card_names_teacher_data_and_numbers(run, student):
    card = (student / "README.md").read_text()
    info = checkpoints.latest(run).info
    for part in (info["corpus"], info["teacher"]["weights"], info["teacher"]["model"], "6 of 6 steps", "qk, vv"):
        assert part in card
    for folder in (run / "student", student):  # what the run knew at its start, and the card
        metadata = {"library_name": "transformers", "pipeline_tag": "feature-extraction"}
        assert ModelCard.load(folder / "README.md").data.to_dict() == metadata | {"tags": ["minilm", "distillation"]}
    rows = [line for line in card.splitlines() if line.startswith(("| 0 |", "| 3 |", "| 6 |"))]
    assert len(rows) == 3


@pytest.mark.slow
def test_the_model_card_gives_values_by_their_squared_difference_no_nats(run, student):
    checkpoint = checkpoints.latest(run)
    model, chain = AutoModel.from_pretrained(student), read_distillation(student)
    kl = "Held-out relation loss (KL divergence of teacher ‖ student in nats{}) by step:"
    assert kl.format("") in model_card(run, checkpoint, model, chain)
    recipe = checkpoint.info["recipe"] | {"pairs": ["qk", "v_mse"]}
    shutil.copytree(run, run.parent / "values")
    metrics = run.parent / "values" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"vv"', '"v_mse"'))
    checkpoint = dataclasses.replace(checkpoint, info=checkpoint.info | {"recipe": recipe})
    card = model_card(run.parent / "values", checkpoint, model, chain)
    assert kl.format("; v_mse: mean squared difference of values") in card


@pytest.mark.slow
def test_an_earlier_export_is_replaced_and_anything_else_is_not(run, student, tmp_path):
    export(run, student)
    (tmp_path / "README.md").write_text("my project")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="exists and is not an exported student"):
        export(run, tmp_path)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.slow
def test_a_model_folder_that_is_no_export_is_never_replaced(run, tmp_path):
    model = tmp_path / "my-model"
    shutil.copytree(run.parent / "teacher", model)
    (model / "vocab.txt").unlink()
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    (model / "README.md").write_text("---\ntags: [mine]\n---\n")
    with pytest.raises(UserError, match="exists and is not an exported student"):
        export(run, model)
    assert {path.name: path.read_bytes() for path in model.iterdir() if path.name != "README.md"} == before


@pytest.mark.slow
def test_an_export_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "check_export", fail)
    with pytest.raises(OSError):
        export(run, tmp_path / "student")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_student_that_changes_on_its_way_to_disk_is_found_out(run, tmp_path):
    model = load_student(run, checkpoints.latest(run))
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(run / "student").save_pretrained(tmp_path)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[7, 3] += 1e-3
    with pytest.raises(RuntimeError, match=r"embeddings.word_embeddings.weight changed"):
        check_export(tmp_path, model)


def test_a_folder_that_is_no_run_is_named(tmp_path, monkeypatch, capsys):
    code, _, line = run_main(monkeypatch, capsys, main, tmp_path, tmp_path / "out")
    assert code == 2 and line.count("\n") == 1
    assert line.startswith(f"error: {tmp_path}: no whole checkpoint") and not (tmp_path / "out").exists()


def test_a_run_of_several_is_distinguished_from_one(tmp_path):
    (tmp_path / "run/12x384/checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=f"give the folder of one: {tmp_path}/run/12x384$"):
        export(tmp_path / "run", tmp_path / "out")


@pytest.mark.slow
def test_the_student_of_another_run_is_not_replaced(run, student, tmp_path):
    shutil.copytree(run, tmp_path / "other")
    with pytest.raises(UserError, match="is not an exported student of other; choose a new folder"):
        export(tmp_path / "other", student)


@pytest.mark.slow
def test_tensorboard_has_losses_rate_and_maps(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard")).Reload()
    tags = board.Tags()
    for tag in ("train/loss", "train/qk", "train/vv", "train/learning_rate", "train/gradient_norm", "heldout/loss"):
        assert tag in tags["scalars"]
    assert [event.step for event in board.Scalars("heldout/loss")] == [0, 3, 6]
    assert len(tags["images"]) == 1


@pytest.mark.slow
def test_a_run_that_stopped_half_way_can_be_exported(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "step-00000006")
    assert export(copy, tmp_path / "student").step == 3
    assert "3 of 6 steps" in (tmp_path / "student" / "README.md").read_text()


# --- other forms, and the hub -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_forms_that_compute_something_else_leave_the_earlier_export_and_a_plain_one_has_none(
    run, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "student"

    def make_forms(folder, wanted, texts):
        assert wanted == Wanted(("onnx",), int8=True) and len(texts) > 8 and (folder / "model.safetensors").exists()
        (folder / "onnx").mkdir()
        (folder / "onnx" / "model.onnx").write_bytes(b"graph")
        return [Form("onnx/model.onnx", "ONNX Runtime", "fp32", 5, 1e-6, 1.0)]

    def fail(folder, *arguments):
        (folder / "onnx").mkdir()
        raise UserError("onnx/model.onnx computes something else")

    monkeypatch.setattr(export_module, "make_forms", make_forms)
    monkeypatch.setattr(export_module, "check_libraries", lambda *_: None)
    monkeypatch.setattr(export_module, "versions", lambda _: "onnx 1")
    options = ("--no-recompute", "--to", "onnx", "--int8")
    code, said, _ = run_main(monkeypatch, capsys, main, run, out, *options)
    assert code == 0 and "onnx/model.onnx: 0.0 MB, outputs within 1.0e-06 of the largest" in said
    assert "| onnx/model.onnx | ONNX Runtime | fp32 | 0.0 | outputs within 1.0e-06 " in (out / "README.md").read_text()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    monkeypatch.setattr(export_module, "make_forms", fail)
    code, _, line = run_main(monkeypatch, capsys, main, run, out, *options)
    assert (code, line) == (2, "error: onnx/model.onnx computes something else\n")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["student"]

    export(run, out, recomputes=False)
    assert not (out / "onnx").exists() and "Other forms" not in (out / "README.md").read_text()


@pytest.mark.slow
def test_a_folder_is_put_on_the_hub_only_when_asked_and_its_card_names_its_place(run, tmp_path, monkeypatch, capsys):
    calls = []

    def upload(folder, repo, private):
        calls.append((repo, private, (folder / "README.md").read_text()))
        return f"https://hub/{repo}"

    monkeypatch.setattr(export_module, "check_upload", lambda repo: None)
    monkeypatch.setattr(export_module, "upload", upload)
    out = tmp_path / "student"
    assert run_main(monkeypatch, capsys, main, run, out, "--no-recompute")[0] == 0
    assert calls == []
    code, said, _ = run_main(monkeypatch, capsys, main, run, out, "--no-recompute", "--push", "org/name", "--private")
    assert code == 0 and f"{out}: uploaded to https://hub/org/name" in said
    ((repo, private, card),) = calls
    assert (repo, private) == ("org/name", True)
    assert 'AutoModel.from_pretrained("org/name")' in card and "path/to/this/folder" not in card


# --- the held-out loss, computed again --------------------------------------------------------------------------------


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run, which may be changed."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def rewrite(run, change):
    """Write the run's newest checkpoint again, whole, after ``change`` of its info and its tensors."""
    checkpoint = checkpoints.latest(run)
    info = {key: value for key, value in checkpoint.info.items() if key not in ("id", "sha256")}
    tensors = checkpoint.tensors()
    change(info, tensors)
    shutil.rmtree(run / "checkpoints")
    checkpoints.save(run, info, tensors, keep=1)


def exchange(info, tensors):
    """Weights for each other: whole, finite, of the right shapes, and not what was trained."""
    query, key = (f"encoder.layer.1.attention.self.{name}.weight" for name in ("query", "value"))
    tensors[query], tensors[key] = tensors[key], tensors[query]


@pytest.mark.slow
def test_the_held_out_loss_is_computed_again_from_the_exported_folder(run, tmp_path, capsys):
    export(run, tmp_path / "student")
    (row,) = [row for row in heldout_rows(run, 6) if row["step"] == 6]
    card = (tmp_path / "student" / "README.md").read_text()
    assert f"Recomputed from this folder at step 6: loss {row['loss']:.4f}." in card
    assert "Recomputing the held-out loss of up to 10 sequences on cpu" in capsys.readouterr().out


@pytest.mark.slow
def test_a_student_that_is_not_the_trained_one_is_never_exported(copy, tmp_path):
    rewrite(copy, exchange)
    with pytest.raises(
        UserError, match=r"step-00000006: .* held-out .*, the run has recorded .*; nothing was exported"
    ):
        export(copy, tmp_path / "out" / "student")
    assert list((tmp_path / "out").iterdir()) == []
    export(copy, tmp_path / "out" / "student", recomputes=False)


@pytest.mark.slow
def test_a_tokenizer_of_another_order_is_never_exported(copy, tmp_path):
    """The weights are right, and every text would be read as other words."""
    words = copy / "student" / "vocab.txt"
    words.write_text("\n".join([*WORDS[:5], *reversed(WORDS[5:])]) + "\n")
    BertTokenizerFast(vocab=str(words)).save_pretrained(copy / "student")
    with pytest.raises(UserError, match=r"the tokenizer of its student gives other ids than .*teacher's; nothing"):
        export(copy, tmp_path / "student")
    assert not (tmp_path / "student").exists()


@pytest.mark.slow
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_runs_out_is_a_note(run, tmp_path, monkeypatch, capsys, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(recomputing, "_losses", fail)
    export(run, tmp_path / "student")
    assert "note: held-out loss not recomputed: " in capsys.readouterr().out
    assert recomputing.NOT_RECOMPUTED in (tmp_path / "student" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "key, value, reason",
    [
        ("eval_samples", 0, "data has no held-out window of 16 tokens"),
        ("data", "/gone", "/gone: no such"),
        ("corpus", "0" * 64, "data: not the corpus of the run"),
        ("teacher.model", "/gone", "/gone: no such folder"),
        (
            "teacher.model",
            "some/where",
            "some/where: no such folder here, nor a teacher in this machine's cache of the hub",
        ),
        ("teacher.weights", "0" * 16, "teacher: not the teacher that"),
        ("steps", 7, "metrics.jsonl has no held-out losses at step 6"),
        ("memory", 2**10, "teacher: teacher and student do not fit the 0.0 GiB that are free"),
    ],
)
def test_where_it_cannot_be_computed_again_one_line_says_so(copy, tmp_path, monkeypatch, capsys, key, value, reason):
    def change(info, tensors):
        table, _, name = key.rpartition(".")
        place = {"corpus": info, "teacher.weights": info["teacher"]}.get(key, info["recipe"])
        place = place[table] if table and place is info["recipe"] else place
        place[name] = value

    if key == "memory":
        monkeypatch.setattr(recomputing, "free_devices", lambda: [(torch.device("cpu"), value)])
    elif key == "steps":
        (copy / "metrics.jsonl").write_text("")
    else:
        rewrite(copy, change)
    export(copy, tmp_path / "student")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not recomputed" in line]
    assert line.startswith("note: held-out loss not recomputed: ") and reason in line
    assert "The held-out loss was not recomputed from this folder." in (tmp_path / "student" / "README.md").read_text()


def test_without_recomputing_nothing_is_computed_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path), str(tmp_path / "out"), "--no-recompute"])
    seen = []
    monkeypatch.setattr(export_module, "export", lambda run, out, recomputes, wanted: seen.append(recomputes) or exit())
    with pytest.raises(SystemExit):
        main()
    assert seen == [False]
