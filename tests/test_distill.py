"""pipeline.distill under the real DeepSpeed launcher: engines, resume, world size, and every way it refuses to start."""

import gc
import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from safetensors.torch import load_file

from data_prep import shards
from data_prep.errors import UserError
from pipeline import batches, checkpoints, encoders, engines, hosts, runs
from pipeline import distill as distill_module
from pipeline import ranks as ranks_module
from pipeline.distill import distill, distill_stages
from pipeline.export import export
from pipeline.monitor import read_metrics
from pipeline.ranks import Ranks
from pipeline.recipe import load_recipe, load_recipes, load_stages
from tests import launching
from tests.literal_relations import literal_relation_loss
from tests.test_encoders import FAMILIES, MODERN
from tests.tiny import make_corpus, make_recipe, make_teacher

TIMES = ("tokens_per_second", "data_wait", "model_flops")
DOC = ("layout=doc", "precision=fp32", "student.dropout=0.0", "teacher.hosting=zero3")
LAYERS, VALUES = "transfer=layer-to-layer", "pairs=qk,v_mse"
HOSTINGS = ("replicate", "zero3")
STAGES = (0, 1, 2, 3)
PRECISIONS = ("fp32", "bf16")
# Hosting and precision with the stages that are tried with them: each with each, not all three with each.
ENGINES = (
    *(
        (hosting, stage, "bf16" if stage % 2 == (hosting == "zero3") else "fp32")
        for hosting in HOSTINGS
        for stage in STAGES
    ),
    *((hosting, 1, precision) for hosting, precision in (("replicate", "bf16"), ("zero3", "fp32"))),
)
SHARDED = {
    "offloaded": "teacher.ds_config=teacher_zero3_offload.json",
    "ahead": "teacher.ds_config=teacher_zero3_prefetch.json",
    "in-node": "teacher.shard_group=node",
}
RESUMED = (("fp32", 1), *(("bf16", stage) for stage in STAGES))
STAGE_CHANGES = ((2, 1), (4, 3), (5, 0), (6, 2))  # the stage up to each step
# Unequal in everything that a student may have of its own.
STUDENTS = {
    "deep": "layers = 3\nhidden = 16\ndropout = 0.1\nds_config = 'student_zero3.json'",
    "wide": "layers = 1\nhidden = 32\ndropout = 0.2\nds_config = 'student_zero1.json'",
    "plain": "layers = 2\nhidden = 16\ndropout = 0.0\nds_config = 'student_zero0.json'",
}
# Relative differences of the loss that stages, hostings and numbers of ranks may make over six steps. In fp32 only the
# order of sums differs; in bf16 also where a gradient is rounded, and stage 0 adds gradients up in bf16.
TOLERANCE = {"fp32": 3e-6, "bf16": 4e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill")
    text = make_recipe(folder).read_text()
    students = (f'[[student]]\nname = "{name}"\n{keys}\nheads = 4\n' for name, keys in STUDENTS.items())
    (folder / "several.toml").write_text(text.split("[student]")[0] + "".join(students))
    return folder


def job(folder: Path, out: str, *overrides: str, recipe: str = "tiny.toml", **others) -> dict:
    return {"recipe": str(folder / recipe), "overrides": [f"out={folder / out}", *overrides], **others}


def engine_options(hosting: str, stage: int, precision: str) -> list[str]:
    return [f"teacher.hosting={hosting}", f"student.ds_config=student_zero{stage}.json", f"precision={precision}"]


@pytest.fixture(scope="module")
def two_ranks(folder):
    """Every hosting × stage × precision on two ranks, and runs that were interrupted after step 3."""
    jobs = []
    for hosting, stage, precision in ENGINES:
        options = [*engine_options(hosting, stage, precision), "student.dropout=0.0"]
        jobs.append(job(folder, f"w2-{hosting}-{stage}-{precision}", *options))
    for name, option in SHARDED.items():
        options = [*engine_options("zero3", 1, "bf16"), "student.dropout=0.0", option]
        jobs.append(job(folder, f"w2-{name}-1-bf16", *options))
    for precision, stage in RESUMED:
        options = engine_options("zero3", stage, precision)
        jobs.append(job(folder, f"whole-{stage}-{precision}", *options))
        jobs.append(job(folder, f"halves-{stage}-{precision}", *options, stop_at=3))
        jobs.append(job(folder, f"halves-{stage}-{precision}", *options))
    jobs.append(job(folder, "differ", ranks_differ=True))
    jobs.append(job(folder, "projected", "student.init=pca", ranks_differ=True, stop_at=1))
    for stop_at, stage in STAGE_CHANGES:
        options = [*engine_options("replicate", stage, "bf16"), "student.dropout=0.0"]
        jobs.append(job(folder, "stages", *options, stop_at=stop_at))
    jobs.append(job(folder, "doc-w2", *DOC, "student.ds_config=student_zero3.json"))
    options = ["teacher.hosting=zero3", "precision=bf16"]
    jobs.append(job(folder, "several", *options, recipe="several.toml"))
    for name, keys in STUDENTS.items():
        own = [f"student.{key}" for key in keys.replace(" = ", "=").splitlines()]
        jobs.append(job(folder, f"alone/{name}", *options, *own))
    for stop_at in (3, None):
        jobs.append(job(folder, "several-halves", *options, recipe="several.toml", stop_at=stop_at))
    # As after a kill between two checkpoints; and one student is new, as if it had been added to a finished run.
    behind = {"copy_of": str(folder / "several"), "without": ["wide", "plain/checkpoints/step-00000006"]}
    jobs.append(job(folder, "several-behind", *options, recipe="several.toml", **behind))
    jobs.append(job(folder, "layers-w2", *DOC, LAYERS, "student.ds_config=student_zero3.json", "teacher.micro_batch=4"))
    jobs.append(job(folder, "layers-several", *options, LAYERS, recipe="several.toml"))
    own = [f"student.{key}" for key in STUDENTS["deep"].replace(" = ", "=").splitlines()]
    jobs.append(job(folder, "layers-alone", *options, LAYERS, *own))
    jobs.append(job(folder, "values-w2", *DOC, VALUES, "student.ds_config=student_zero3.json"))
    for stop_at in (3, None):
        jobs.append(job(folder, "values-halves", *options, VALUES, stop_at=stop_at))
    jobs.append(job(folder, "values-whole", *options, VALUES))
    jobs.append(job(folder, "window", "student.dropout=0.0", "teacher.micro_batch=4"))
    jobs.append(job(folder, "no-window", "student.dropout=0.0"))
    jobs.append(job(folder, "doc-window", *DOC, "teacher.micro_batch=4"))
    jobs.append(job(folder, "compiled", "student.dropout=0.0", "compile=all"))
    misspelt = folder / "misspelt.json"
    misspelt.write_text('{"zero_optimization": {"stage": 1, "reduce_buket_size": 5}}')
    jobs.append(job(folder, "misspelt", f"student.ds_config={misspelt}"))
    return launching.run_jobs(folder, 2, jobs)


@pytest.fixture(scope="module")
def one_rank(folder):
    """Each stage and precision on one rank."""
    jobs = [
        job(folder, f"w1-{stage}-{precision}", *engine_options("replicate", stage, precision), "student.dropout=0.0")
        for precision in PRECISIONS
        for stage in STAGES
    ]
    jobs += [
        job(folder, "doc-whole", *DOC),
        job(folder, "layers-w1", *DOC, LAYERS),
        job(folder, "values-w1", *DOC, VALUES),
        job(folder, "doc-halves", *DOC, stop_at=3),
        job(folder, "doc-halves", *DOC),
    ]
    jobs.append(job(folder, "burst", "learning_rate=1e30", "checkpoint_every=1"))
    rarely = ("steps=8", "log_every=8", "eval_every=6", "checkpoint_every=4", "student.ds_config=student_zero0.json")
    jobs.append(job(folder, "burst-late", "learning_rate=1e30", *rarely))
    for stage in STAGES:
        jobs.append(
            job(
                folder, f"steep-{stage}", *engine_options("replicate", stage, "fp32"), "steps=1", infinite_gradient=True
            )
        )
    return launching.run_jobs(folder, 1, jobs)


def losses(run: Path, kind: str = "train", names: tuple[str, ...] = ("loss", "qk", "vv")) -> np.ndarray:
    """[rows, names]."""
    return np.array([[row[name] for name in names] for row in read_metrics(run) if row["kind"] == kind])


def assert_same_state(run: Path, other: Path) -> None:
    """Weights and moments of both are the same, bit for bit."""
    one, two = (checkpoints.latest(path).tensors() for path in (run, other))
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def final_state(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "step-00000006" / "state.safetensors")


# --- engines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hosting, stage, precision", ENGINES)
def test_every_hosting_stage_and_world_size_gives_the_same_losses(
    folder, two_ranks, one_rank, hosting, stage, precision
):
    reference = losses(folder / f"w1-1-{precision}")
    assert reference.shape == (6, 3)
    for run in (f"w2-{hosting}-{stage}-{precision}", f"w1-{stage}-{precision}"):
        np.testing.assert_allclose(losses(folder / run), reference, rtol=TOLERANCE[precision], err_msg=run)
        heldout = losses(folder / f"w1-1-{precision}", "heldout")
        assert len(heldout) == 3
        np.testing.assert_allclose(losses(folder / run, "heldout"), heldout, rtol=TOLERANCE[precision], err_msg=run)


def test_a_sharded_teacher_equals_a_replicated_one_bit_for_bit(folder, two_ranks):
    for hosting, precision in (("zero3", "fp32"), *((hosting, "bf16") for hosting in ("zero3", *SHARDED))):
        expected = losses(folder / f"w2-replicate-1-{precision}")
        assert len(expected) == 6 and np.array_equal(losses(folder / f"w2-{hosting}-1-{precision}"), expected)


def test_the_student_learns(folder, one_rank):
    first, *_, last = losses(folder / "w1-1-bf16", "heldout")
    assert (last < 0.85 * first).all()


@pytest.mark.parametrize("stage", STAGES)
def test_the_untrained_tail_is_neither_trained_nor_decayed(folder, two_ranks, stage):
    recipe = load_recipe(folder / "tiny.toml")
    student = encoders.build_student(recipe.student_config(encoders.load_config(recipe.teacher.model)), recipe.seed)
    _, names, tail = encoders.split(student)
    (run,) = (f"w2-{h}-{s}-{p}" for h, s, p in ENGINES[: 2 * len(STAGES)] if (s, p) == (stage, "fp32"))
    state = final_state(folder / run)
    for name, tensor in tail.items():
        assert torch.equal(state[name], tensor), name
    moved = [name for name in names.values() if not torch.equal(state[name], student.state_dict()[name])]
    assert sorted(moved) == sorted(names.values())


def test_functional_linear_is_not_replaced(two_ranks, one_rank):
    assert two_ranks[-1] is True and one_rank[-1] is True


def test_ranks_that_hold_different_students_are_found_out(two_ranks):
    assert any("ranks hold different students" in (error or "") for error in two_ranks[:-1])
    assert sum(error is not None for error in two_ranks[:-1]) == 2


def test_a_start_from_the_teacher_is_the_first_ranks_on_all(folder, two_ranks):
    assert checkpoints.latest(folder / "projected").step == 1


def test_what_deepspeed_refuses_in_a_config_is_told_in_one_line(folder, two_ranks):
    (message,) = (error for error in two_ranks[:-1] if "misspelt.json" in (error or ""))
    assert (
        f"{folder / 'misspelt.json'}: zero_optimization: DeepSpeed refuses reduce_buket_size = 5" in message
        and "\n" not in message
    )


def test_a_run_leaves_nothing_in_shared_memory(folder, two_ranks):
    assert not list(Path("/dev/shm").glob("deepspeed*"))


# --- the doc layout ---------------------------------------------------------------------------------------------------


def models_by_hand(recipe, student_layer: int, teacher_layer: int):
    """Teacher and untrained student, each cut at a layer; a student that needs a projection has it."""
    teacher_model = encoders.load_model(recipe.teacher.model, "main", torch.float32)
    student_model = encoders.build_student(recipe.student_config(teacher_model.config), recipe.seed)
    student = encoders.cut_encoder(student_model, student_layer)
    if "v_mse" in recipe.pairs:
        student = encoders.split(student_model, value_width=teacher_model.config.hidden_size, seed=recipe.seed)[0]
    return encoders.cut_encoder(teacher_model, teacher_layer).eval(), student.eval()


def loss_by_hand(recipe, windows: list[list[int]], student_layer: int = 2, teacher_layer: int = 3) -> list[float]:
    """loss, qk, vv of the untrained student: each window alone and unpadded, by the literal formula, then their mean."""
    teacher, student = models_by_hand(recipe, student_layer, teacher_layer)
    rows = []
    with torch.no_grad():
        for window in windows:
            outputs = [[x.double() for x in model(torch.tensor([window]))] for model in (teacher, student)]
            losses = literal_relation_loss(*outputs, recipe.pairs, recipe.relation_heads, [len(window)])
            rows.append([float(loss) for loss in losses.values()])
    return np.mean(rows, axis=0).tolist()


def doc_windows(corpus: shards.Corpus, side: str, recipe, count: int) -> list[list[int]]:
    """The first windows of the order, cut out of the corpus's documents without the product's reading."""
    order_windows = batches.DocWindows(getattr(corpus, side), corpus.tokenizer, recipe.length)
    drawn = batches.order_of(order_windows, recipe.sampling_alpha, recipe.seed)(0, count).window
    windows = []
    for shard in getattr(corpus, side)["a"].shards:
        for document in np.split(np.array(shard.open()), shard.ends()[:-1].astype(int)):
            text = document[:-1].tolist()
            windows += [[2, *text[i : i + 14], 3] for i in range(0, len(text), 14)]
    return [windows[i] for i in drawn]


def test_in_the_doc_layout_the_loss_is_that_of_the_documents_one_by_one(folder, two_ranks, one_rank):
    recipe, corpus = load_recipe(folder / "tiny.toml", DOC), shards.open_corpus(folder / "data")
    for kind, side, count in (("train", "sources", recipe.batch), ("heldout", "heldout", recipe.eval_samples)):
        windows = doc_windows(corpus, side, recipe, count)
        assert len({len(window) for window in windows}) > 1  # there is padding
        expected = loss_by_hand(recipe, windows)
        for run in ("doc-whole", "doc-w2"):
            np.testing.assert_allclose(losses(folder / run, kind)[0], expected, rtol=1e-5)


def test_in_the_doc_layout_too_ranks_and_interruptions_change_nothing(folder, two_ranks, one_rank):
    np.testing.assert_allclose(losses(folder / "doc-w2"), losses(folder / "doc-whole"), rtol=TOLERANCE["fp32"])
    whole, halves = (final_state(folder / name) for name in ("doc-whole", "doc-halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_the_wait_for_data_is_a_share_of_the_training_time(folder, one_rank):
    shares = [row["data_wait"] for row in read_metrics(folder / "doc-whole") if row["kind"] == "train"]
    assert len(shares) == 6 and all(0 < share < 1 for share in shares)


# --- what the papers compare with -------------------------------------------------------------------------------------


def first_windows(folder, recipe) -> list[list[int]]:
    return doc_windows(shards.open_corpus(folder / "data"), "sources", recipe, recipe.batch)


def test_layer_to_layer_is_the_mean_of_the_loss_over_the_layers(folder, two_ranks, one_rank):
    recipe = load_recipe(folder / "tiny.toml", [*DOC, LAYERS])
    assert recipe.layers == {1: 2, 2: 3}
    windows = first_windows(folder, recipe)
    expected = np.mean([loss_by_hand(recipe, windows, *pair) for pair in recipe.layers.items()], axis=0)
    for run in ("layers-w1", "layers-w2"):
        np.testing.assert_allclose(losses(folder / run)[0], expected, rtol=1e-5)
    np.testing.assert_allclose(losses(folder / "layers-w2"), losses(folder / "layers-w1"), rtol=TOLERANCE["fp32"])
    np.testing.assert_allclose(
        losses(folder / "layers-w2", "heldout"), losses(folder / "layers-w1", "heldout"), rtol=TOLERANCE["fp32"]
    )


def test_each_of_several_learns_from_its_own_layers(folder, two_ranks):
    assert [set(recipe.layers.values()) for recipe in load_recipes(folder / "several.toml", [LAYERS])] == [
        {1, 2, 3}, {3}, {2, 3},
    ]  # fmt: skip
    assert_same_state(folder / "layers-several" / "deep", folder / "layers-alone")


def test_values_are_compared_behind_a_projection(folder, two_ranks, one_rank):
    recipe = load_recipe(folder / "tiny.toml", [*DOC, VALUES])
    teacher, student = models_by_hand(recipe, recipe.student.layers, recipe.teacher.layer)
    rows = []
    with torch.no_grad():
        for window in first_windows(folder, recipe):
            theirs, ours = (model(torch.tensor([window])) for model in (teacher, student))
            rows.append(float((theirs.v.double() - ours[3].double()).square().mean()))
    names = ("loss", "qk", "v_mse")
    for run in ("values-w1", "values-w2"):
        loss, attention, values = losses(folder / run, names=names)[0]
        assert loss == pytest.approx(attention + values, rel=1e-6) and values == pytest.approx(np.mean(rows), rel=1e-5)
    found = [losses(folder / run, names=names) for run in ("values-w1", "values-w2")]
    np.testing.assert_allclose(*found, rtol=TOLERANCE["fp32"])
    assert found[0][-1, 2] < found[0][0, 2]


def test_the_projection_is_trained_and_kept_but_not_exported(folder, two_ranks, tmp_path):
    assert_same_state(folder / "values-halves", folder / "values-whole")
    name = "value_projection.weight"
    start = models_by_hand(load_recipe(folder / "tiny.toml", [VALUES]), 2, 3)[1].value_projection.weight
    assert not torch.equal(final_state(folder / "values-whole")[name], start)
    export(folder / "values-whole", tmp_path / "student")
    assert not [key for key in load_file(tmp_path / "student" / "model.safetensors") if "projection" in key]


def test_a_checkpoint_without_the_projection_is_refused(folder, two_ranks, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder / "values-halves", run)
    checkpoint = checkpoints.latest(run)
    state = checkpoint.tensors()
    del state["exp_avg/value_projection.weight"]
    info = {key: value for key, value in checkpoint.info.items() if key not in ("sha256", "id", "format")}
    shutil.rmtree(checkpoint.path)
    checkpoints.save(run, info, state, 1)
    with pytest.raises(UserError, match=r"not this student's exp_avg/value_projection\.weight"):
        checkpoints.latest(run).tensors(["value_projection.weight"])


# --- several students, one teacher pass -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_of_several_becomes_what_it_becomes_alone(folder, two_ranks, name):
    together, alone = folder / "several" / name, folder / "alone" / name
    for kind in ("train", "heldout"):
        assert np.array_equal(losses(together, kind), losses(alone, kind)) and len(losses(together, kind))
    assert_same_state(together, alone)
    assert (together / "COMPLETE").exists() and not (together.parent / "COMPLETE").exists()
    assert (together / "recipe.json").read_text().replace("/several/", "/alone/") == (alone / "recipe.json").read_text()


@pytest.mark.parametrize("name", STUDENTS)
def test_interrupted_together_they_go_on_together(folder, two_ranks, name):
    assert_same_state(folder / "several-halves" / name, folder / "several" / name)


def test_one_that_is_ahead_waits_for_the_others(folder, two_ranks):
    run = folder / "several-behind"
    for name in STUDENTS:
        assert_same_state(run / name, folder / "several" / name)
    ahead, former = (path / "deep" / "metrics.jsonl" for path in (run, folder / "several"))
    assert ahead.read_bytes() == former.read_bytes()
    plain, wide = ([row for row in read_metrics(run / name) if row["kind"] == "train"] for name in ("plain", "wide"))
    assert [row["step"] for row in plain] == [1, 2, 3, 4, 5, 6]
    assert (
        plain[3]["tokens_per_second"] > wide[3]["tokens_per_second"] / 2
    )  # the time in which it waited is not its own


def test_each_of_several_is_exported_from_its_own_folder(folder, two_ranks, tmp_path):
    export(folder / "several" / "wide", tmp_path / "wide")
    assert encoders.load_model(str(tmp_path / "wide"), "main", torch.float32).config.hidden_size == 32


def test_more_students_than_memory_are_refused_with_their_sizes(folder, monkeypatch):
    recipes = load_recipes(folder / "several.toml")
    models = [encoders.build_student(r.student_config(encoders.load_config(r.teacher.model)), 1) for r in recipes]
    alone, hosting = Ranks(0, 1, 1, torch.device("cpu")), engines.Hosting("replicate", "", 1000, 1000)
    engines.check_memory(recipes, alone, hosting, models)
    need = 1000 * 4 + 16 * sum(p.numel() for model in models for p in model.parameters())
    monkeypatch.setattr(engines, "_memory_per_rank", lambda ranks: need)
    engines.check_memory(recipes, alone, hosting, models)
    monkeypatch.setattr(engines, "_memory_per_rank", lambda ranks: need - 1)
    with pytest.raises(
        UserError, match=r"\(teacher 0.00 GiB, deep .*, wide .*, plain .*\); train fewer students at once"
    ):
        engines.check_memory(recipes, alone, hosting, models)


@pytest.mark.parametrize(("stage", "number"), [(0, 16), (1, 18), (2, 16), (3, 16)])
def test_the_gradients_that_deepspeed_keeps_in_fp32_count(folder, monkeypatch, stage, number):
    """Bytes of a parameter in bf16 on one rank: weight 2, gradient 2 (4 at stage 1), fp32 weight 4, moments 8."""
    (recipe,) = load_recipes(folder / "tiny.toml", engine_options("replicate", stage, "bf16"))
    model = encoders.build_student(recipe.student_config(encoders.load_config(recipe.teacher.model)), 1)
    alone, hosting = Ranks(0, 1, 1, torch.device("cpu")), engines.Hosting("replicate", "", 1000, 1000)
    need = 1000 * 2 + number * sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(engines, "_memory_per_rank", lambda ranks: need)
    engines.check_memory([recipe], alone, hosting, [model])
    monkeypatch.setattr(engines, "_memory_per_rank", lambda ranks: need - 1)
    with pytest.raises(UserError, match="train fewer students at once"):
        engines.check_memory([recipe], alone, hosting, [model])


@pytest.mark.parametrize("rank", ["0", "1"])
def test_ranks_that_never_come_are_told(monkeypatch, rank):
    port = hosts.free_port()
    for key, value in {"RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(ranks_module, "MEETING", timedelta(seconds=2))
    with pytest.raises(
        UserError, match=rf"127\.0\.0\.1:{port}: the 2 processes of this run have not met there within 2 s"
    ):
        ranks_module._meet(2)


# --- the teacher's window, compiling ----------------------------------------------------------------------------------


def test_the_teacher_may_take_more_sequences_at_once(folder, two_ranks):
    np.testing.assert_allclose(losses(folder / "window"), losses(folder / "no-window"), rtol=TOLERANCE["fp32"])
    np.testing.assert_allclose(losses(folder / "doc-window"), losses(folder / "doc-w2"), rtol=TOLERANCE["fp32"])


def test_a_compiled_run_gives_the_same_losses(folder, two_ranks):
    np.testing.assert_allclose(losses(folder / "compiled"), losses(folder / "no-window"), rtol=TOLERANCE["fp32"])


def test_the_shares_of_time_are_told(folder, two_ranks):
    row = read_metrics(folder / "no-window")[1]
    assert sum(row[f"{part}_share"] for part in ("teacher", "student", "loss", "optimizer")) == pytest.approx(1)
    assert row["model_flops"] > 0


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision, stage", RESUMED)
def test_an_interrupted_run_gives_the_same_student_bit_for_bit(folder, two_ranks, stage, precision):
    whole, halves = (final_state(folder / f"{name}-{stage}-{precision}") for name in ("whole", "halves"))
    assert whole.keys() == halves.keys()
    for name in whole:
        assert torch.equal(whole[name], halves[name]), name


def test_an_interrupted_run_has_the_same_metrics(folder, two_ranks):
    rows = [
        [
            {k: v for k, v in row.items() if k not in TIMES and not k.endswith("_share")}
            for row in read_metrics(folder / name)
        ]
        for name in ("whole-1-bf16", "halves-1-bf16")
    ]
    assert rows[0] == rows[1]


def test_a_run_goes_on_at_another_stage(folder, two_ranks):
    run = folder / "stages"
    np.testing.assert_allclose(losses(run), losses(folder / "w2-replicate-1-bf16"), rtol=TOLERANCE["bf16"])
    log = (run / "log.txt").read_text()
    assert [f"Going on from {run}/checkpoints/step-{step:08}" in log for step in (2, 4, 5)] == [True] * 3
    last = json.loads((run / "ds_config.student.json").read_text())
    assert last["zero_optimization"]["stage"] == STAGE_CHANGES[-1][1]


def test_a_finished_run_has_nothing_to_do(folder, two_ranks, capsys):
    before = (folder / "whole-1-fp32" / "metrics.jsonl").read_bytes()
    options = [str(folder / "tiny.toml"), f"out={folder / 'whole-1-fp32'}", "teacher.hosting=zero3"]
    assert distill(load_recipes(options[0], options[1:])) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (folder / "whole-1-fp32" / "metrics.jsonl").read_bytes() == before


def test_torchrun_starts_it_too(folder):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = [str(folder / "tiny.toml"), f"out={folder / 'torchrun'}", "steps=2"]
    result = subprocess.run(
        [*torchrun, "-m", "pipeline.distill", *options],
        env=launching.environment(),
        cwd=launching.ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(losses(folder / "torchrun")) == 2


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(folder, one_rank):
    (message,) = (error for error in one_rank[:-1] if f"{folder / 'burst'}: the loss is not finite" in (error or ""))
    assert "the loss is not finite in step 2 on rank 0, samples 8 to 9" in message
    assert [path.name for path in (folder / "burst" / "checkpoints").iterdir()] == ["step-00000001"]
    assert not (folder / "burst" / "COMPLETE").exists()


def test_losses_that_are_looked_at_rarely_still_tell_the_step_and_are_never_kept(folder, one_rank):
    (message,) = (error for error in one_rank[:-1] if f"{folder / 'burst-late'}: " in (error or ""))
    assert "the loss is not finite in step 2 on rank 0, samples 8 to 9" in message
    assert not list(folder.glob("burst-late/checkpoints/step-*"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_not_finite_is_never_kept(folder, one_rank, stage):
    """The loss is finite, and so are the weights that gave it; only the update is not."""
    message = one_rank[len(one_rank) - 1 - len(STAGES) + stage]
    assert "is not finite" in message and "checkpoints" in message
    assert (
        not list((folder / f"steep-{stage}").glob("checkpoints/step-*"))
        and not (folder / f"steep-{stage}/COMPLETE").exists()
    )


# --- stages -----------------------------------------------------------------------------------------------------------


def test_a_chain_of_stages_is_what_its_parts_make_one_by_one(folder, tmp_path, capsys, monkeypatch):
    text = f'base = "{folder}/tiny.toml"\nout = "{tmp_path}/chain"\n[[stage]]\nname = "assistant"\n'
    (tmp_path / "chain.toml").write_text(text + '[stage.student]\nlayers = 3\n[[stage]]\nname = "student"\n')
    stages = load_stages(tmp_path / "chain.toml")
    told = {"max_hours": None, "timeout": 120, "launch": "mine"}
    record = tmp_path / "chain" / runs.ENDED

    assert distill_stages(stages, Namespace(stop_at=3, **told)) == 0  # in the middle of the first
    assert not (tmp_path / "chain" / "student").exists() and json.loads(record.read_text())["code"] == 0
    assert distill_stages(stages, Namespace(stop_at=None, **told | {"max_hours": 1e-9})) == runs.EARLY
    assert not (tmp_path / "chain" / "assistant-student").exists() and json.loads(record.read_text())["code"] == 75
    record.unlink()
    with pytest.raises(UserError, match="nope"):  # in the second: the first is complete all the same
        distill_stages(
            [stages[0], load_recipes(tmp_path / "chain.toml", ["stage=student", "data=nope"])],
            Namespace(stop_at=None, **told),
        )
    assert (tmp_path / "chain" / "assistant-student" / "config.json").exists() and not record.exists()

    with monkeypatch.context() as patch:  # asked to stop between the stages
        patch.setattr(distill_module, "finish", lambda recipes: (tmp_path / "chain" / runs.STOP).touch())
        assert distill_stages(stages, Namespace(stop_at=None, **told)) == runs.EARLY
    assert json.loads(record.read_text())["code"] == 75 and not (tmp_path / "chain" / "student").exists()
    assert "Stopped after stage assistant" in capsys.readouterr().out
    assert distill_stages(stages, Namespace(stop_at=3, **told)) == 0  # of the second, since the first is complete
    assert checkpoints.latest(tmp_path / "chain" / "student").step == 3
    assert distill_stages(stages, Namespace(stop_at=None, **told)) == 0
    assert f"{tmp_path}/chain/assistant already has its checkpoint of step 6" in capsys.readouterr().out
    assert (tmp_path / "chain" / "student" / "COMPLETE").exists() and json.loads(record.read_text())["code"] == 0

    made = (tmp_path / "chain" / "assistant-student" / "model.safetensors").stat().st_mtime_ns
    assert distill_stages(stages, Namespace(stop_at=None, **told)) == 0  # nothing is made again
    assert (tmp_path / "chain" / "assistant-student" / "model.safetensors").stat().st_mtime_ns == made

    assert distill(load_recipes(folder / "tiny.toml", [f"out={tmp_path}/one", "student.layers=3"])) == 0
    export(tmp_path / "one", tmp_path / "one-student")
    own = [f"teacher.model={tmp_path}/one-student", "teacher.layer=3", f"out={tmp_path}/two"]
    assert distill(load_recipes(folder / "tiny.toml", own)) == 0
    assert_same_state(tmp_path / "chain" / "student", tmp_path / "two")
    (tmp_path / "chain" / "assistant-student").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "chain" / "student-student")
    export(
        tmp_path / "chain" / "student", tmp_path / "chain" / "student-student"
    )  # the run itself knows its teacher's way
    chain = json.loads((tmp_path / "chain" / "student-student" / "distillation.json").read_text())
    assert [one["recipe"]["student"]["layers"] for one in chain] == [3, 2]
    card = (tmp_path / "chain" / "student-student" / "README.md").read_text()
    assert f"| chain | {folder}/teacher → 3 × 16 → 2 × 16 (by a teacher assistant) |" in card


def test_nothing_of_a_finished_stage_stays_in_memory(folder, tmp_path):
    engines.release()
    before = sum(type(thing) is DeepSpeedEngine for thing in gc.get_objects())
    options = engine_options("replicate", 2, "bf16")
    for out in ("one", "two"):
        assert distill(load_recipes(folder / "tiny.toml", [f"out={tmp_path / out}", "steps=2", *options])) == 0
        engines.release()
        assert sum(type(thing) is DeepSpeedEngine for thing in gc.get_objects()) == before
    assert_same_state(tmp_path / "one", tmp_path / "two")


# --- modern teachers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODERN)
def test_a_modern_student_learns_the_same_however_it_and_its_teacher_are_sharded(tmp_path, kind):
    make_teacher(tmp_path / "teacher", kind, **FAMILIES[kind])
    recipe = make_recipe(tmp_path)
    for hosting, stage in (("replicate", 1), ("zero3", 3)):
        options = [*engine_options(hosting, stage, "fp32"), "teacher.layer=4", f"out={tmp_path / hosting}"]
        assert distill(load_recipes(recipe, options)) == 0
    heldout = losses(tmp_path / "zero3", "heldout")
    np.testing.assert_allclose(losses(tmp_path / "replicate", "heldout"), heldout, rtol=TOLERANCE["fp32"])
    assert heldout[-1, 0] < heldout[0, 0]


@pytest.mark.parametrize("kind", MODERN)
def test_a_bert_student_of_a_modern_teacher_is_exported_with_the_teachers_tokenizer(tmp_path, kind):
    make_teacher(tmp_path / "teacher", kind, **FAMILIES[kind])
    options = ["teacher.layer=4", "student.model_type=bert", "layout=doc", "precision=bf16", "steps=3"]
    assert distill(load_recipes(make_recipe(tmp_path), options)) == 0
    export(tmp_path / "run", tmp_path / "student")
    assert encoders.load_model(str(tmp_path / "student"), "main", torch.float32).config.model_type == "bert"
    own, theirs = (encoders.load_tokenizer(str(tmp_path / name))("w1 w7").input_ids for name in ("student", "teacher"))
    assert own == theirs


# --- refusing to start ------------------------------------------------------------------------------------------------


def refusal(recipe_file: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        distill(load_recipes(recipe_file, overrides))
    return str(error.value)


def damaged_corpus(tmp_path: Path, folder: Path) -> tuple[Path, str]:
    shutil.copytree(folder / "data", tmp_path / "data")
    return tmp_path / "data", f"data={tmp_path / 'data'}"


def test_missing_and_unfinished_data_are_named(folder, tmp_path):
    assert "no such folder" in refusal(folder / "tiny.toml", f"data={tmp_path / 'none'}")
    assert "no manifest.json" in refusal(folder / "tiny.toml", f"data={tmp_path}")


def test_a_missing_or_truncated_shard_is_named(folder, tmp_path):
    data, override = damaged_corpus(tmp_path, folder)
    shard = data / "a" / "00000-00001.tokens.npy"
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    assert f"{shard}: has {len(content) - 10} bytes" in refusal(folder / "tiny.toml", override)
    shard.unlink()
    assert f"{shard}: is missing" in refusal(folder / "tiny.toml", override)


def test_an_edited_manifest_is_named(folder, tmp_path):
    data, override = damaged_corpus(tmp_path, folder)
    manifest = data / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"documents":', '"documents": ', 1).replace("6000", "5999"))
    assert "it was edited" in refusal(folder / "tiny.toml", override)


def test_an_altered_shard_is_named(folder, tmp_path):
    data, _ = damaged_corpus(tmp_path, folder)
    shard = data / "a" / "00000-00001.docs.npy"
    content = bytearray(shard.read_bytes())
    content[-8] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=f"{shard}: sha256 is not the manifest's"):
        batches.check_bytes(shards.open_corpus(data))


def test_an_altered_shard_with_ids_outside_the_vocabulary_is_named(folder, tmp_path):
    data, _ = damaged_corpus(tmp_path, folder)
    shard = data / "a" / "00000-00000.tokens.npy"
    tokens = np.lib.format.open_memmap(shard, mode="r+")
    tokens[5] = 60_000
    tokens.flush()
    windows = batches.training_windows(shards.open_corpus(data), 16)
    with pytest.raises(UserError, match=r"00000-00000.tokens.npy: token id 60000 .* outside the vocabulary of 50"):
        windows.read(np.array([0]), np.array([0]))


def test_a_corpus_of_another_tokenizer_is_named(folder, tmp_path):
    from transformers import BertTokenizerFast

    teacher = make_teacher(tmp_path / "teacher")
    words = (teacher / "vocab.txt").read_text().split()
    (teacher / "vocab.txt").write_text("\n".join([*words[:5], *reversed(words[5:])]) + "\n")
    BertTokenizerFast(vocab=str(teacher / "vocab.txt")).save_pretrained(teacher)
    message = refusal(folder / "tiny.toml", f"teacher.model={teacher}")
    assert f"made with another vocabulary (50 ids) than that of {teacher} (50)" in message
    assert f"prepare the data with --tokenizer {teacher}" in message


def test_a_corpus_that_another_tokenizer_cut_with_the_same_vocabulary_is_named(folder, tmp_path):
    from transformers import BertTokenizerFast

    teacher = make_teacher(tmp_path / "teacher")
    words = (teacher / "vocab.txt").read_text().split()
    words = [word.upper() if word == "w44" else word for word in words]  # of the probe, and the tokenizer lowers
    (teacher / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(vocab=str(teacher / "vocab.txt")).save_pretrained(teacher)
    data = shutil.copytree(folder / "data", tmp_path / "data")
    content = json.loads((data / "manifest.json").read_text())
    content["tokenizer"]["vocabulary"] = shards.vocabulary_hash({word: number for number, word in enumerate(words)})
    shards.write_manifest(data, content)
    message = refusal(folder / "tiny.toml", f"teacher.model={teacher}", f"data={data}")
    assert f"made with another tokenizer than that of {teacher}: a probe text comes out as" in message


def test_a_corpus_of_another_vocabulary_is_named_even_if_the_probe_agrees(folder, tmp_path):
    from transformers import BertTokenizerFast

    teacher = make_teacher(tmp_path / "teacher")
    words = (teacher / "vocab.txt").read_text().split()
    words[20], words[21] = words[21], words[20]
    (teacher / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(vocab=str(teacher / "vocab.txt")).save_pretrained(teacher)
    assert "made with another vocabulary (50 ids)" in refusal(folder / "tiny.toml", f"teacher.model={teacher}")


def test_a_run_never_mixes_into_a_folder_of_something_else(folder, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "n0.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes: holds n0\.txt and no recipe.json; name a new or an empty folder"):
        distill(load_recipes(folder / "tiny.toml", [f"out={tmp_path / 'notes'}"]), launch="mine")
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["n0.txt"]


def test_several_students_never_go_into_the_folder_of_a_single_one(folder, two_ranks):
    with pytest.raises(UserError, match=r"whole-1-fp32: holds the run of a single student; name another folder"):
        distill(load_recipes(folder / "several.toml", [f"out={folder / 'whole-1-fp32'}"]))


def test_a_corpus_too_short_for_one_window_is_named(folder, tmp_path):
    data = make_corpus(tmp_path / "short", {"a": 20})
    assert "no shard holds the 30 tokens of one window" in refusal(folder / "tiny.toml", f"data={data}", "length=32")


def test_a_changed_recipe_corpus_or_teacher_is_not_continued(folder, tmp_path, two_ranks):
    run, alone = folder / "whole-1-fp32", Ranks(0, 1, 1, torch.device("cpu"))
    corpus = shards.open_corpus(folder / "data")

    def recipe(*overrides):
        return load_recipe(folder / "tiny.toml", [f"out={run}", *engine_options("zero3", 1, "fp32"), *overrides])

    assert runs.newest_checkpoint(run, recipe("log_every=7", "micro_batch=4", "teacher.hosting=auto"), corpus).step == 6
    with pytest.raises(UserError, match=r"tiny.toml: learning_rate = 0.5, but .*step-00000006 was made with 0.01"):
        runs.newest_checkpoint(run, recipe("learning_rate=0.5"), corpus)
    with pytest.raises(UserError, match=r"student.dropout = 0.2"):
        runs.newest_checkpoint(run, recipe("student.dropout=0.2"), corpus)
    with pytest.raises(UserError, match=r"layout = 'doc', but .* was made with 'full'"):
        runs.newest_checkpoint(run, recipe("layout=doc"), corpus)
    other = shards.open_corpus(make_corpus(tmp_path / "other", seed=9))
    with pytest.raises(UserError, match="not the corpus that"):
        runs.newest_checkpoint(run, recipe(), other)
    checkpoint = checkpoints.latest(run)
    with pytest.raises(UserError, match=r"not the teacher that .* was trained on \(weights 1234"):
        runs.check_same_teacher(checkpoint, "1234", recipe())
    assert alone.first


def test_a_second_run_on_the_same_folder_is_refused_naming_the_first(tmp_path):
    alone = Ranks(0, 1, 1, torch.device("cpu"))
    with (
        runs.sole_writer([tmp_path / "run"], alone),
        pytest.raises(UserError, match=f"in use by process {os.getpid()} on .*; wait until it has ended"),
        runs.sole_writer([tmp_path / "run"], alone, patience=0.2),
    ):
        pass
    with runs.sole_writer([tmp_path / "run"], alone, patience=0.2):
        pass


def test_a_corpus_without_held_out_documents_still_trains(folder, tmp_path, capsys):
    data = make_corpus(tmp_path / "data", heldout=0)
    assert distill(load_recipes(folder / "tiny.toml", [f"data={data}", f"out={tmp_path / 'run'}", "steps=2"])) == 0
    assert "no held-out window" in capsys.readouterr().out
    assert losses(tmp_path / "run", "heldout").size == 0
