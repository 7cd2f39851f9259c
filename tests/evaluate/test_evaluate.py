"""pipeline.evaluate: cells are trained, scored, written and resumed, and mistakes are found before anything is trained."""

import json
import subprocess
import sys
from types import SimpleNamespace

import accelerate
import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from data_prep.cli import UserError
from pipeline.artifacts import results
from pipeline.evaluate import finetune, preparing, running
from pipeline.evaluate.__main__ import main, parser
from pipeline.evaluate.cells import run_cell
from pipeline.evaluate.preparing import agree, prepare
from pipeline.evaluate.scored_model import label_order, open_model, unknown_share
from pipeline.evaluate.task_data import read_task
from pipeline.evaluate.tasks import TASKS
from pipeline.models import arithmetic
from pipeline.models.arithmetic import Rates
from pipeline.models.precision import BulkDropout
from pipeline.settings.reading import load_recipe
from tests.parts import task_files as files
from tests.parts.launching import ROOT
from tests.parts.tiny import make_recipe, make_teacher


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that is small, and wide enough to learn that the first word gives the label."""
    return make_teacher(tmp_path_factory.mktemp("models") / "small", layers=1, hidden=16, positions=160)


@pytest.fixture
def run(monkeypatch, tmp_path, model, capsys):
    """Runs the command in this process: (exit code, what it said)."""

    def run_(task, *options, models=(model,)):
        named = [word for path in models for word in ("--model", str(path))]
        paths = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["evaluate", *named, "--task", task, *paths, *map(str, options)])
        code = main()
        return code, capsys.readouterr().out

    return run_


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


FIRST = "lr3e-05-epochs1-seed1.json"
FAST = ("--seeds", 1, "--epochs", 1, "--length", 32)


@pytest.mark.slow
def test_glue_is_fine_tuned_scored_and_written_as_the_format_says(run, data, tmp_path, model):
    files.write_glue(data, "mnli")
    files.write_glue(data, "stsb")
    code, said = run("mnli,stsb", *FAST)
    assert code == 0
    cell = json.loads((tmp_path / "out/small/mnli/lr3e-05-epochs1-seed1.json").read_text())
    assert set(cell["scores"]) == {"accuracy", "accuracy_mm"} and cell["primary"] == "accuracy"
    assert cell["settings"] == {"learning_rate": 3e-05, "epochs": 1, "batch": 32, "length": 32, "seed": 1}
    assert (cell["data"]["train"], cell["data"]["dev"], cell["split"], cell["task"]) == (24, 24, "dev", "mnli")
    assert (
        set(cell["baseline"]) == set(cell["scores"])
        and results.read_cell(tmp_path / "out/small/mnli" / FIRST).rows == 12
    )
    card = json.loads((tmp_path / "out/small/model.json").read_text())
    assert (card["layers"], card["hidden"], card["weights"]) == (1, 16, cell["weights"])
    assert f"mnli 1/1: lr 3e-05, 1 epochs, seed 1 … accuracy {cell['scores']['accuracy']:.1f}" in said
    (last,) = [line for line in said.splitlines() if line.startswith("majority baseline")]
    assert f"{cell['baseline']['accuracy']:.1f} (12 rows)" in last and "0.0 (12 rows)" in last
    assert {"spearman", "pearson"} == set(results.read_results(tmp_path / "out").of("small", "stsb")[0].scores)


@pytest.mark.slow
def test_a_model_learns_and_the_scores_are_those_of_its_predictions(run, data, tmp_path):
    files.write_glue(data, "rte", train=64, dev=20)
    run("rte", "--seeds", 1, "--epochs", 12, "--learning-rate", 1e-2, "--batch", 8, "--length", 32)
    assert results.read_results(tmp_path / "out").cells[0].score > 90


@pytest.mark.slow
def test_the_same_seed_gives_the_same_score_and_another_one_another_model(run, data, tmp_path, model):
    files.write_glue(data, "stsb")
    run("stsb", *FAST)
    run("stsb", *FAST, "--name", "again")
    run("stsb", "--seeds", 2, *FAST[2:])
    first, again, other = sorted(
        results.read_results(tmp_path / "out").cells, key=lambda c: (c.settings["seed"], c.model)
    )
    assert first.scores == again.scores != other.scores


def test_finished_cells_are_not_run_again_and_a_grid_adds_to_them(run, data, tmp_path, monkeypatch):
    files.write_glue(data, "rte")
    run("rte", *FAST)
    ran = []
    monkeypatch.setattr(finetune, "finetune", lambda *args: (ran.append(args[-1]), ({"": {"accuracy": 50.0}}, {}))[1])
    code, said = run("rte", "--grid", "--seeds", 1, 2, "--epochs", 1, "--length", 32)
    assert code == 0 and "rte: 1 of 8 cells were finished earlier" in said
    assert "accuracy 50.0, not above the majority baseline of 50.0 (" in said
    assert [(s["learning_rate"], s["seed"]) for s in ran] == [
        (2e-5, 1), (2e-5, 2), (3e-5, 2), (4e-5, 1), (4e-5, 2), (5e-5, 1), (5e-5, 2),
    ]  # fmt: skip
    assert "n = 2" in said
    ran.clear()
    run("rte", "--grid", "--seeds", 1, 2, "--epochs", 1, "--length", 32)
    assert ran == []


def test_a_crashed_cell_is_recorded_the_others_go_on_and_it_is_tried_again(run, data, tmp_path, monkeypatch, capsys):
    files.write_glue(data, "rte")

    def crash(*args):
        if args[-1]["seed"] == 1:
            raise RuntimeError("out of memory\nand more")
        return {"": {"accuracy": 50.0}}, {}

    monkeypatch.setattr(finetune, "finetune", crash)
    code, said = run("rte", "--seeds", 1, 2, "--epochs", 1, "--length", 32)
    assert code == 1 and "seed 1 … failed: RuntimeError: out of memory\n" in said
    found = results.read_results(tmp_path / "out")
    assert [c.settings["seed"] for c in found.cells] == [2]
    assert [(f.settings["seed"], f.error) for f in found.failures] == [(1, "RuntimeError: out of memory")]
    monkeypatch.setattr(finetune, "finetune", lambda *args: ({"": {"accuracy": 60.0}}, {}))
    assert run("rte", "--seeds", 1, 2, "--epochs", 1, "--length", 32)[0] == 0
    found = results.read_results(tmp_path / "out")
    assert not found.failures and [c.score for c in found.cells] == [60.0, 50.0]


@pytest.fixture
def job(data, tmp_path, model):
    """One of three cells, before the first is run."""
    files.write_glue(data, "rte")
    paths = ["--model", model, "--data", data, "--out", tmp_path / "out"]
    words = [*paths, "--task", "rte,", "--seeds", 1, 2, 3, *FAST[2:]]  # a comma too many does no harm
    (made,) = prepare(parser().parse_args(list(map(str, words))), print)
    return made


def test_the_process_that_crashes_first_records_why(job, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    def crash(rank, reason):
        monkeypatch.setenv("RANK", rank)
        raise RuntimeError(reason)

    def lose_the_other(*_):
        monkeypatch.setattr(finetune, "finetune", lambda *_: crash("1", "out of memory"))
        with pytest.raises(RuntimeError):
            run_cell(job, job.cells[0], dict)
        crash("0", "connection closed")

    for _ in range(2):  # what an earlier call recorded is replaced
        monkeypatch.setattr(finetune, "finetune", lose_the_other)
        with pytest.raises(RuntimeError, match="connection closed"):
            run_cell(job, job.cells[0], dict)
        failure = json.loads(job.cells[0].failure.read_text())
        assert failure["error"] == "RuntimeError: out of memory"
        job.cells[0].failure.write_text("{}")
    assert [path.name for path in job.cells[0].failure.parent.iterdir()] == [job.cells[0].failure.name]


def test_all_processes_run_the_cells_that_the_first_has_not_finished_in_its_order(job, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    sent = iter([[Rates(1.0, 2.0)], [job.cells[1:2], job.cells[:1]]])
    monkeypatch.setattr(accelerate, "PartialState", lambda **_: SimpleNamespace(is_main_process=False))
    monkeypatch.setattr(preparing, "broadcast_object_list", lambda _: next(sent))
    monkeypatch.setattr(arithmetic, "_known", {})
    monkeypatch.setattr(arithmetic, "measure", lambda _: Rates(2.0, 1.0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ran = []
    monkeypatch.setattr(running, "run_cell", lambda _, cell, __: (ran.append(cell.settings["seed"]), ("", True))[1])
    chosen = iter([[0], [1], [None]])  # of the cells that are left, those that no other call runs
    monkeypatch.setattr(running, "broadcast_object_list", lambda _: next(chosen))
    monkeypatch.setattr(running, "is_first", lambda: False)
    agree([job])
    running.run(running.turns_of([job]), lambda *_, **__: None)
    assert ran == [3, 1]
    assert finetune.precision() == "fp32"  # what suits the first one's CPU


def test_settings_that_differ_anywhere_have_files_of_their_own(run, data, tmp_path, monkeypatch):
    files.write_glue(data, "rte")
    monkeypatch.setattr(finetune, "finetune", lambda *args: ({"": {"accuracy": 50.0}}, {}))
    run("rte", *FAST, "--learning-rate", 3e-5, 3.0000001e-5, 3e-5)
    names = sorted(path.name for path in (tmp_path / "out/small/rte").iterdir())
    assert names == ["lr3.0000001e-05-epochs1-seed1.json", "lr3e-05-epochs1-seed1.json"]


def test_an_interrupt_leaves_what_is_finished(run, data, tmp_path, monkeypatch):
    files.write_glue(data, "rte")

    def interrupt(*args):
        if args[-1]["seed"] == 2:
            raise KeyboardInterrupt
        return {"": {"accuracy": 50.0}}, {}

    monkeypatch.setattr(finetune, "finetune", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("rte", "--seeds", 1, 2, 3, "--epochs", 1, "--length", 32)
    found = results.read_results(tmp_path / "out")
    assert [c.settings["seed"] for c in found.cells] == [1] and not found.failures


def test_a_loss_that_is_not_finite_is_a_failed_cell(run, data, tmp_path):
    files.write_glue(data, "rte")
    assert run("rte", *FAST, "--learning-rate", 1e30, "--batch", 4)[0] == 1
    assert "the training loss is" in results.read_results(tmp_path / "out").failures[0].error


def test_on_a_terminal_there_are_bars_and_no_other_lines(run, data, monkeypatch):
    files.write_glue(data, "rte")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    said = run("rte", *FAST)[1]
    assert "rte 1/1: lr 3e-05" in said and "train_runtime" not in said


def test_models_are_fine_tuned_with_the_arithmetic_that_is_fast_here(run, data, tmp_path, monkeypatch):
    """fp32 weights; products in bf16 where that is the faster way; on CPUs dropout drawn in bulk."""
    files.write_glue(data, "rte")
    seen = []
    forward = torch.nn.Linear.forward

    def watch(self, x):
        seen.append((self.weight.dtype, forward(self, x).dtype))
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", watch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for here, products in ((Rates(1.0, 2.0), torch.float32), (Rates(2.0, 1.0), torch.bfloat16)):
        monkeypatch.setattr(arithmetic, "rates", lambda *_, here=here: here)
        seen.clear()
        run("rte", "--seeds", 1, "--epochs", 1, "--length", 32, "--name", str(products))
        assert set(seen) == {(torch.float32, products)}
    kept = {
        cell.model: json.loads(cell.path.read_text())["precision"]
        for cell in results.read_results(tmp_path / "out").cells
    }
    assert kept == {"torch.float32": "fp32", "torch.bfloat16": "bf16"}


def test_dropout_is_drawn_in_bulk_on_cpus(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    made = finetune.new_model(open_model(str(model), None), TASKS["rte"], TASKS["rte"].labels)
    dropouts = [module for module in made.modules() if isinstance(module, torch.nn.Dropout)]
    assert dropouts and {type(module) for module in dropouts} == {BulkDropout}


# --- XNLI, questions --------------------------------------------------------------------------------------------------


def test_xnli_keeps_the_epoch_that_is_best_on_all_languages_together(run, data, tmp_path, monkeypatch):
    files.write_xtreme(data, ["de", "en"], test=True)
    seen = []
    on_evaluate = finetune.KeepBest.on_evaluate

    def watch(self, args, state, control, **known):
        known["metrics"]["eval_score"] = [30.0, 50.0, 40.0][len(seen)]
        on_evaluate(self, args, state, control, **known)
        seen.append({name: tensor.clone() for name, tensor in known["model"].state_dict().items()})

    scored = []

    def scores(trainer, sets):
        scored.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
        return {key: {"accuracy": 10.0 * len(key + str(number))} for number, key in enumerate(sets)}

    monkeypatch.setattr(finetune.KeepBest, "on_evaluate", watch)
    monkeypatch.setattr(finetune, "scores_of", scores)
    assert run("xnli", "--seeds", 1, "--epochs", 3, "--learning-rate", 1e-2, "--length", 32)[0] == 0
    assert len(seen) == 3
    same = [all(torch.equal(scored[0][name], epoch[name]) for name in epoch) for epoch in seen]
    assert same == [False, True, False]


def test_xnli_scores_each_language_and_their_mean(run, data, tmp_path):
    files.write_xtreme(data, ["de", "en"], test=True)
    run("xnli", *FAST, "--batch", 8)
    cell = results.read_results(tmp_path / "out").cells[0]
    languages = [cell.scores["accuracy/de"], cell.scores["accuracy/en"]]
    assert cell.score == pytest.approx(np.mean(languages)) and cell.split == "test"
    assert cell.dev is not None and cell.data["test"] == 24


def test_the_setting_is_chosen_on_dev_where_test_is_scored(tmp_path, data, run, monkeypatch):
    files.write_xtreme(data, ["en"], test=True)

    def scores(*args):
        high = args[-1]["learning_rate"] > 4e-5
        return {"en": {"accuracy": 90.0 if high else 10.0}}, {"en": {"accuracy": 10.0 if high else 90.0}}

    monkeypatch.setattr(finetune, "finetune", scores)
    run("xnli", "--seeds", 1, "--epochs", 1, "--length", 32, "--learning-rate", 3e-5, 5e-5)
    assert results.best(results.read_results(tmp_path / "out").cells).mean == 10.0


def test_questions_are_answered_in_every_language(run, data, tmp_path):
    files.write_squad(data / "train-v1.1.json", files.questions(12, 0))
    for seed, language in enumerate(("de", "zh"), 1):
        for split in ("dev", "test"):
            path = data / f"{split}/{split}-context-{language}-question-{language}.json"
            files.write_squad(path, files.questions(4, seed + 10 * (split == "test")), "1.0")
    assert run("mlqa", "--seeds", 1, "--epochs", 1, "--length", 128)[0] == 0
    cell = results.read_results(tmp_path / "out").cells[0]
    assert set(cell.scores) == {"f1", "exact_match", "f1/de", "f1/zh", "exact_match/de", "exact_match/zh"}
    assert cell.settings["stride"] == 128 and cell.split == "test"


@pytest.mark.slow
def test_squad_2_is_learned(run, data, tmp_path):
    files.write_squad(data / "train-v2.0.json", files.questions(60, 0, True, length=8), "v2.0")
    files.write_squad(data / "dev-v2.0.json", files.questions(12, 1, True, length=8), "v2.0")
    run("squad2", "--seeds", 1, "--epochs", 12, "--learning-rate", 1e-2, "--batch", 8, "--length", 110)
    cell = results.read_results(tmp_path / "out").cells[0]
    assert set(cell.scores) == {"f1", "exact_match", "best_f1", "best_exact_match"} and cell.primary == "f1"
    assert cell.scores["best_f1"] >= max(cell.score, 100 / 3) and cell.score > 90


# --- label order ------------------------------------------------------------------------------------------------------


def with_head(folder, model, labels):
    names = dict(enumerate(labels))
    made = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=len(labels), id2label=names, label2id={name: number for number, name in names.items()}
    )
    torch.nn.init.normal_(made.classifier.weight)
    made.save_pretrained(folder)
    open_model(str(model)).tokenizer.save_pretrained(folder)
    return folder


def test_a_head_with_the_tasks_labels_in_another_order_is_kept_by_name(tmp_path, model):
    folder = with_head(tmp_path / "head", model, ["CONTRADICTION", "neutral", "Entailment"])
    opened = open_model(str(folder))
    order = label_order(opened, "mnli")
    assert order == ["contradiction", "neutral", "entailment"]
    rows = read_task("mnli", str(files.write_glue(tmp_path, "mnli"))).train
    features = finetune.encode_labelled(rows, TASKS["mnli"], opened.tokenizer, 32, order)
    assert features["label"][:3] == [2, 1, 0]  # entailment, neutral, contradiction
    loaded = finetune.new_model(opened, TASKS["mnli"], order)
    kept = AutoModelForSequenceClassification.from_pretrained(folder)
    assert (
        torch.equal(loaded.classifier.weight, kept.classifier.weight) and loaded.config.id2label[0] == "contradiction"
    )


def test_a_head_with_other_or_nameless_labels_is_rejected(tmp_path, model):
    for labels in (["LABEL_0", "LABEL_1"], ["entailment", "neutral", "contradiction"]):
        opened = open_model(str(with_head(tmp_path / labels[0], model, labels)))
        with pytest.raises(
            UserError, match=f"its head has the labels {', '.join(labels)}, rte has entailment, not_ent"
        ):
            label_order(opened, "rte")


@pytest.mark.parametrize("order", [("not_equivalent", "equivalent"), ("equivalent", "not_equivalent")])
def test_f1_is_of_the_tasks_class_in_whatever_order_the_head_has_the_labels(order):
    task = TASKS["mrpc"]
    said = ["equivalent", "equivalent", "not_equivalent", "equivalent", "not_equivalent"]
    meant = ["equivalent", "not_equivalent", "equivalent", "equivalent", "not_equivalent"]
    rows = datasets.Dataset.from_dict({"label": [order.index(label) for label in meant]})
    outputs = np.eye(2)[[order.index(label) for label in said]]
    scores = finetune.labelled_set(rows, task, order).score(outputs)
    assert scores == pytest.approx({"accuracy": 60, "f1": 100 * 2 / 3})  # 2 hits, 1 miss, 1 false one


def test_a_head_of_several_outputs_is_rejected_where_the_label_is_a_number(tmp_path, model):
    opened = open_model(str(with_head(tmp_path / "two", model, ["no", "yes"])))
    with pytest.raises(UserError, match="two: its head has 2 outputs, stsb wants one number; give the encoder without"):
        label_order(opened, "stsb")
    assert not label_order(open_model(str(with_head(tmp_path / "one", model, ["score"]))), "stsb")


# --- bad input, before anything is trained ----------------------------------------------------------------------------


@pytest.fixture
def untrained(monkeypatch):
    def finetune_(*args):
        raise AssertionError("trained")

    monkeypatch.setattr(finetune, "finetune", finetune_)


@pytest.mark.parametrize(
    ("task", "options", "named"),
    [
        ("rt", (), "unknown task; did you mean rte"),
        ("rte", ("--length", 200), "the model has 160 positions; give --length"),
        ("rte", ("--length", 32, "--languages", "de"), "rte has one language"),
        (",", (), "--task ',': no task; tasks are mnli"),
        ("rte", ("--learning-rate", 0), "'0' is not a finite number above 0"),
        ("rte", ("--learning-rate", "high"), "'high' is not a finite number above 0"),
        ("rte", ("--epochs", 1.5), "'1.5' is not a whole number of at least 1"),
        ("rte", ("--seeds", -1), "'-1' is not a whole number of at least 0 and below 4294967296"),
        ("rte", ("--seeds", 2**32), "'4294967296' is not a whole number"),
        ("rte", ("--length", 4), "--length 4: too short for a pair of texts; 5 at least"),
        ("rte", ("--name", "a/b"), "--name a/b: not a folder's name"),
        ("rte", ("--model", "nowhere/at/all"), "nowhere/at/all: no such folder"),
        ("rte", ("--model", "./nowhere"), "^./nowhere: no such folder"),
        ("squad1", ("--length", 64), "no train-v1.1.json for squad1"),
    ],
)
def test_mistakes_are_reported_before_anything_is_trained(run, data, untrained, task, options, named):
    files.write_glue(data, "rte")
    with pytest.raises(UserError, match=named):
        run(task, *options)


def test_a_model_with_another_models_tokenizer_is_rejected(run, data, tmp_path, untrained):
    files.write_glue(data, "rte")
    small = make_teacher(tmp_path / "small", layers=1, hidden=8)
    config = json.loads((small / "config.json").read_text())
    tensors = load_file(small / "model.safetensors")
    name = next(key for key in tensors if key.endswith("word_embeddings.weight"))
    save_file(tensors | {name: tensors[name][:40].clone()}, small / "model.safetensors", metadata={"format": "pt"})
    (small / "config.json").write_text(json.dumps(config | {"vocab_size": 40}))
    with pytest.raises(UserError, match="the tokenizer has 50 entries, the model's embedding 40 rows"):
        run("rte", *FAST, models=[small])


def test_a_model_without_the_texts_vocabulary_is_rejected(run, data, model, untrained):
    own = files.write_glue(data, "rte")
    path = own / "dev.tsv"
    path.write_text(path.read_text().replace("w0", "ж0").replace("w1", "ж1").replace("w2", "ж2"))
    assert unknown_share(open_model(str(model)).tokenizer, read_task("rte", str(own)).train) == 0
    with pytest.raises(UserError, match="of the tokens of rte's dev text are unknown to its vocabulary"):
        run("rte", *FAST)


def test_cells_of_other_weights_data_or_settings_are_neither_believed_nor_overwritten(run, data, tmp_path, monkeypatch):
    own = files.write_glue(data, "rte")
    monkeypatch.setattr(finetune, "finetune", lambda *args: ({"": {"accuracy": 50.0}}, {}))
    run("rte", *FAST)
    with pytest.raises(UserError, match="was made with batch 32, now batch 16"):
        run("rte", *FAST, "--batch", 16)
    other = make_teacher(tmp_path / "small", layers=1, hidden=8)
    with pytest.raises(UserError, match="holds results of other weights"):
        run("rte", *FAST, models=[other])
    path = own / "dev.tsv"
    path.write_text(path.read_text().replace("not_entailment", "entailment", 1))
    with pytest.raises(UserError, match=r"was made with data .*, now data .*--name"):
        run("rte", *FAST)


def test_a_family_without_a_head_for_questions_is_rejected(run, data, tmp_path, untrained):
    for seed, split in enumerate(("train", "dev")):
        files.write_squad(data / f"{split}-v2.0.json", files.questions(4, seed, True), "v2.0")
    model = make_teacher(tmp_path / "euro", "eurobert", layers=1, hidden=16, positions=160)
    with pytest.raises(UserError, match="euro: transformers has no head for questions of a eurobert; leave squad2 out"):
        run("squad2", "--length", 120, models=[model])


def test_an_out_that_cannot_be_written_is_reported_before_anything_is_trained(run, data, tmp_path, untrained):
    files.write_glue(data, "rte")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/out: cannot be written to \(not a directory\)"):
        run("rte", *FAST, "--out", tmp_path / "file/out")


def test_two_models_need_two_names(run, data, tmp_path, model, untrained):
    files.write_glue(data, "rte")
    other = make_teacher(tmp_path / "small", layers=1, hidden=8)
    with pytest.raises(UserError, match="two have the same name"):
        run("rte", *FAST, models=[model, other])
    with pytest.raises(UserError, match="--name x: with 2 models"):
        run("rte", *FAST, "--name", "x", models=[model, other])


def test_an_unknown_file_among_the_results_is_reported_before_anything_is_trained(run, data, tmp_path, untrained):
    files.write_glue(data, "rte")
    (tmp_path / "out/else").mkdir(parents=True)
    with pytest.raises(UserError, match=r"else: no model.json"):
        run("rte", *FAST)


def test_models_are_distinguished_and_their_distillation_is_kept(run, data, tmp_path, model, monkeypatch):
    files.write_glue(data, "rte")
    student = make_teacher(tmp_path / "student", layers=2, hidden=8)
    way = [{"sha256": "1", "recipe": load_recipe(make_recipe(tmp_path)).to_dict()}]
    (student / "distillation.json").write_text(json.dumps(way))
    for folder in (model, student):
        (folder / "README.md").write_text("---\nlicense: mit\n---\nits card\n")
    monkeypatch.setattr(finetune, "finetune", lambda m, *args: ({"": {"accuracy": 50.0 + m.card["layers"]}}, {}))
    _, said = run("rte", *FAST, models=[model, student])
    assert "small rte 1/1: lr 3e-05" in said and "student rte 1/1: lr 3e-05" in said
    assert "51.0 (n = 1, lr 3e-05, 1 epochs)" in said
    found = results.read_results(tmp_path / "out")
    assert found.models["student"]["distillation"] == way and found.of("student", "rte")[0].score == 52.0
    assert f"{student / 'README.md'}: has the scores of rte\n" in said
    (score,) = ModelCard.load(student / "README.md").data.eval_results
    assert (score.dataset_config, score.metric_type, score.metric_value) == ("rte", "accuracy", 52.0)
    assert (model / "README.md").read_text() == "---\nlicense: mit\n---\nits card\n"  # it was not distilled here
    for text, message in (('[{"pairs": ["qk"]}]', "not what export writes"), ("[", "not JSON")):
        (student / "distillation.json").write_text(text)
        with pytest.raises(UserError, match=f"distillation.json: {message}"):
            open_model(str(student))


@pytest.mark.slow
def test_two_processes_share_a_batch_and_one_writes(data, tmp_path, model):
    files.write_glue(data, "rte", train=64, dev=19)  # an odd number: one process has a row more to predict
    options = ("--seeds", 1, "--epochs", 12, "--learning-rate", 1e-2, "--batch", 8, "--length", 32)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "pipeline.evaluate"]
    command += ["--model", model, "--task", "rte", "--data", data, "--out", tmp_path / "out", *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("rte 1/1: ") == 1
    assert results.read_results(tmp_path / "out").cells[0].score > 90


def test_a_training_without_bars_says_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr(finetune, "NEWS", -1.0)
    trainer = SimpleNamespace(remove_callback=lambda _: None, pop_callback=lambda _: None, added=[])
    trainer.add_callback = trainer.added.append
    finetune.quieten(trainer)
    (callback,) = trainer.added
    callback = callback()
    callback.on_train_begin(None, None, None)
    for step in (50, 100):
        callback.on_step_end(None, SimpleNamespace(is_world_process_zero=True, global_step=step, max_steps=200), None)
    callback.on_step_end(None, SimpleNamespace(is_world_process_zero=False, global_step=3, max_steps=4), None)
    assert capsys.readouterr().out == " 25% 50%"
