import dataclasses
import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from transformers import AutoConfig

from data_prep.errors import UserError
from pipeline import encoders, engines, plan, plan_check, plan_memory, plan_time, precision
from pipeline.hardware import GPUS, gpu_with
from pipeline.plan_memory import GIB, MIB, Device
from pipeline.ranks import Ranks
from pipeline.recipe import load_recipe, load_recipes

XXL = "facebook/xlm-roberta-xxl"
# 250,880 ids, 514 positions and one token type × 4096; XL and XXL have no norm behind their embeddings.
XXL_EMBEDDINGS = (250880 + 514 + 1) * 4096
# 4 × (4096² + 4096) of attention, FFN 4096 × 16384 both ways with biases, two norms.
XXL_LAYER = 4 * (4096**2 + 4096) + 2 * 4096 * 16384 + 16384 + 4096 + 2 * 2 * 4096
# Of layer 48: three projections and the norm before them.
XXL_LAST = 3 * (4096**2 + 4096) + 2 * 4096
XXL_OVERRIDES = [f"teacher.model={XXL}", "teacher.layer=48", "relation_heads=64", "micro_batch=8"]


def config_of(kind: str, layers: int = 4, width: int = 48, dropout: float = 0.0):
    names = {"hidden_dim": 4 * width} if kind == "distilbert" else {"intermediate_size": 4 * width}
    config = AutoConfig.for_model(
        kind, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, vocab_size=100, pad_token_id=0,
        max_position_embeddings=64, **names,
    )  # fmt: skip
    for name in encoders.family_of(config).dropouts:
        setattr(config, name, dropout)
    if kind == "electra":
        config.embedding_size = width
    return config


def cluster(nodes: int = 1, gpus: int = 8, gpu: str = "A100-80", memory: float | None = None, **more) -> plan.Cluster:
    kind = GPUS[gpu]
    values = {"nic": 12.5, "share": 0.4} | more
    return plan.Cluster(nodes, gpus, kind, (memory or kind.memory) * GIB, **values)


def planned(where: plan.Cluster, recipe: str = "minilm_6x384", *overrides: str) -> plan.Plan:
    recipes = load_recipes(recipe, overrides)
    return plan.plan_run(recipes, plan.models_of(recipes), where)


def saved_bytes(cut: torch.nn.Module, ids: torch.Tensor) -> int:
    """Bytes of distinct storages that autograd keeps of a forward, with its outputs, without parameters and buffers."""
    storages = {x.untyped_storage().data_ptr() for x in [*cut.parameters(), *cut.buffers()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor too, lest its address be used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = cut(ids)
    kept |= {x.untyped_storage().data_ptr(): (x.untyped_storage().nbytes(), x) for x in output}
    return sum(size for size, _ in kept.values())


def trained_cut(config, dtype: torch.dtype) -> encoders.CutEncoder:
    return encoders.split(encoders.build_student(config, 1))[0].to(dtype).train()


# --- memory: counted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "xlm-roberta-xl", "electra", "distilbert", "modernbert", "eurobert"]
)
def test_a_cut_is_counted_to_the_parameter(kind):
    config = config_of(kind)
    model = encoders.build_student(config, 1)
    cut = encoders.cut_encoder(model, 3)
    sizes = plan_memory.cut_of(config, 3)
    assert sizes.layers == len(cut.body.layers) == 2
    assert sizes.parameters == sum(p.numel() for p in cut.parameters())
    assert sizes.embeddings == sum(p.numel() for p in cut.embeddings.parameters())
    assert sizes.layer == sum(p.numel() for p in cut.body.layers[1].parameters())
    assert sizes.parameters + sizes.tail == sum(p.numel() for p in model.parameters())
    assert sizes.largest == max(p.numel() for p in cut.parameters())


def test_the_largest_public_teacher_is_counted_by_hand_and_without_its_weights():
    sizes = plan_memory.cut_of(encoders.load_config(XXL), 48)
    assert sizes.embeddings == XXL_EMBEDDINGS
    assert sizes.layer == XXL_LAYER
    assert sizes.body == 47 * XXL_LAYER + XXL_LAST


MODERN = {"modernbert": 0.05, "eurobert": 0.1}  # how much less is counted than there is: norms in eager torch keep more


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "xlm-roberta-xl", "electra", "distilbert", *MODERN])
def test_activations_are_what_autograd_keeps_with_fused_attention(kind, dtype, dropout):
    config = config_of(kind, dropout=dropout)
    for name in [name for name in encoders.family_of(config).dropouts if name.startswith("attention_")]:
        setattr(config, name, 0.0)  # a CPU has no fused attention with dropout; on a GPU it keeps no more with it
    cut = trained_cut(config, dtype)
    for module in cut.modules():
        if type(module) is torch.nn.Dropout:
            module.__class__ = precision.BulkDropout  # which keeps a byte for each number, as a GPU's does
    formula = plan_memory.activations(plan_memory.cut_of(config, 4), 3, 32, dropout, Device(dtype.itemsize))
    assert formula == pytest.approx(saved_bytes(cut, torch.randint(3, 90, (3, 32))), rel=MODERN.get(kind, 0.01))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_activations_are_what_autograd_keeps_on_this_cpu(name, dropout, monkeypatch):
    monkeypatch.setattr(precision, "lacks_bf16_units", lambda device: True)
    config = config_of("bert", dropout=dropout)
    cut = trained_cut(config, precision.DTYPES[name])
    precision.fit_arithmetic(cut, name, torch.device("cpu"))
    device = Device(plan_memory.NUMBER[name], cpu=True, widens=name == "bf16")
    formula = plan_memory.activations(plan_memory.cut_of(config, 4), 3, 32, dropout, device)
    assert formula == pytest.approx(saved_bytes(cut, torch.randint(3, 90, (3, 32))), rel=0.01)


# By DeepSpeed's stages over 8 ranks, bytes of a parameter that are always held: weights, masters, moments, gradients.
@pytest.mark.parametrize(
    ("precision_", "stage", "held"),
    [
        ("bf16", 0, 2 + 4 + 8),
        ("bf16", 1, 2 + 4 + (4 + 8) / 8),  # its fp32 gradients are whole
        ("bf16", 2, 2 + (4 + 8) / 8),
        ("fp32", 0, 4 + 8),
        ("fp32", 1, 4 + (4 + 8) / 8),
        ("fp32", 2, 4 + (4 + 8) / 8),
    ],
)
def test_a_students_state_follows_its_stage(precision_, stage, held):
    recipe = load_recipe("minilm_6x384", [f"precision={precision_}", f"student.ds_config=student_zero{stage}.json"])
    cut = plan_memory.cut_of(recipe.student_config(encoders.load_config(recipe.teacher.model)), 6)
    state = plan_memory.student_state(cut, recipe, 8, Device(plan_memory.NUMBER[precision_]))
    assert state.standing == pytest.approx(held * cut.parameters)


def test_stage_3_shards_all_but_its_bucket():
    recipe = load_recipe("minilm_6x384", ["student.ds_config=student_zero3.json"])
    cut = plan_memory.cut_of(recipe.student_config(encoders.load_config(recipe.teacher.model)), 6)
    state = plan_memory.student_state(cut, recipe, 8, Device(2))
    assert state.standing == pytest.approx((2 + 4 + 8 + 4) / 8 * cut.parameters + 2 * 50_000_000)
    assert state.forward == 2 * cut.parameters  # autograd holds what was gathered


def test_students_add_up_but_their_activations_do_not():
    together, alone = planned(cluster(), "minilm_table3"), planned(cluster(), "minilm_12x384")
    states = together.memory.states
    assert len(states) == 4
    assert together.memory.parts["students' weights"] == sum(state.weights for state in states)
    assert together.memory.parts["student's activations"] == alone.memory.parts["student's activations"]
    extra = sum(state.standing for state in states) - alone.memory.states[0].standing
    assert together.memory.peak == pytest.approx(alone.memory.peak + extra)


def test_accumulated_gradients_stay_beside_activations():
    one, two = (planned(cluster(gpus=g), "minilm_6x384", "micro_batch=16") for g in (16, 8))
    count = one.models.students[0].parameters
    assert (one.recipes[0].accumulation(16), two.recipes[0].accumulation(8)) == (1, 2)
    shards = (4 + 8) * count * (1 / 8 - 1 / 16)
    assert two.memory.phases["student's pass"] - one.memory.phases["student's pass"] == pytest.approx(
        shards + 2 * count
    )


# --- memory: measured -------------------------------------------------------------------------------------------------


def measuring_recipe(folder: Path) -> Path:
    """Models of some tens of MiB, so that a few of Python's own do not matter."""
    tiny.make_teacher(folder / "teacher", hidden=768, layers=6)
    path = tiny.make_recipe(folder)
    text = path.read_text().replace("hidden = 16", "hidden = 640\ndropout = 0.1").replace("layers = 2", "layers = 5")
    text = text.replace("length = 16", "length = 64").replace("layer = 3", "layer = 6")
    path.write_text(text.replace("batch = 8\nmicro_batch = 2", "batch = 32\nmicro_batch = 16"))
    return path


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (1, ["student.ds_config=student_zero1.json"]),
        (2, ["precision=bf16", "teacher.hosting=zero3", "student.ds_config=student_zero2.json"]),
    ],
)
def test_the_memory_model_is_within_a_tenth_of_a_real_run(tmp_path, ranks, overrides):
    rows = plan_check.compare(str(measuring_recipe(tmp_path)), overrides, ranks)
    errors = {row.what: round(row.error, 3) for row in rows}
    assert set(errors) >= {"teacher hosted", "students' engines made", "between steps", "backward", "update", "peak"}
    assert all(row.run > 15 * MIB for row in rows), rows  # of which a process of Python gains and loses a few by itself
    assert all(abs(error) < 0.1 for error in errors.values()), errors


def test_what_a_measuring_run_says_when_it_fails_is_told(tmp_path, monkeypatch):
    path = tiny.make_recipe(tmp_path)
    with pytest.raises(UserError, match=r"--measure: the run failed: .*relation_heads = 3: the teacher's width 32"):
        plan_check.compare(str(path), ["relation_heads=3", "student.hidden=24"], 1)
    monkeypatch.setattr(plan_check, "_SECONDS", 0.1)
    with pytest.raises(UserError, match=r"--measure: not done after 0\.1 s; use a smaller micro_batch"):
        plan_check.compare(str(path), [], 1)


def test_measuring_needs_proc(monkeypatch):
    monkeypatch.setattr(plan_check, "Path", lambda name: SimpleNamespace(exists=lambda: False))
    with pytest.raises(UserError, match="needs Linux's /proc"):
        plan_check.compare("minilm_6x384", [], 1)


# --- hosting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hosting", ["auto", "replicate", "zero3"])
@pytest.mark.parametrize("group", ["world", "node"])
@pytest.mark.parametrize(("world", "local"), [(1, 1), (8, 4), (4, 4)])
@pytest.mark.parametrize("memory", [0.5, 1.5])
def test_the_plan_hosts_the_teacher_as_the_run_does(hosting, group, world, local, memory, monkeypatch):
    """On both sides of a quarter of the memory, where a run by itself would decide the other way."""
    recipe = load_recipe("minilm_6x384", [f"teacher.hosting={hosting}", f"teacher.shard_group={group}"])
    config = encoders.load_config(recipe.teacher.model)
    sizes = plan_memory.cut_of(config, 12)
    bytes_ = memory * 4 * 2 * sizes.parameters
    monkeypatch.setattr(engines, "_memory_per_rank", lambda ranks: bytes_)
    ranks = Ranks(0, world, local, torch.device("cpu"))
    real = engines.choose_hosting(recipe, ranks, encoders.empty_encoder(config, 12)[0])
    ours = plan_memory.hosting_of(recipe, sizes.parameters, sizes.embeddings, bytes_, world, local)
    assert dataclasses.asdict(ours) == dataclasses.asdict(real)


def test_a_node_of_one_gpu_cannot_shard_inside():
    with pytest.raises(UserError, match=r"teacher\.shard_group = 'node': there is one rank on each node"):
        planned(cluster(4, 1), "minilm_6x384", "teacher.hosting=zero3", "teacher.shard_group=node")


def test_a_sharded_teacher_keeps_its_embeddings_whole_and_gathers_layer_by_layer():
    for group, shards in (("world", 32), ("node", 8)):
        where = cluster(4, gpu="H100")
        parts = planned(
            where, "minilm_12x384", *XXL_OVERRIDES, "teacher.hosting=zero3", f"teacher.shard_group={group}"
        ).memory.parts
        assert parts["teacher's weights"] == pytest.approx(2 * (XXL_EMBEDDINGS + (47 * XXL_LAYER + XXL_LAST) / shards))
        assert 2 * XXL_LAYER <= parts["teacher's gathered layers"] <= 2 * 2 * (XXL_LAYER + 4096 * 16384)


def test_offloaded_shards_lie_on_the_host(tmp_path):
    config = {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}
    (tmp_path / "offload.json").write_text(json.dumps(config))
    overrides = [*XXL_OVERRIDES, "teacher.hosting=zero3", f"teacher.ds_config={tmp_path}/offload.json"]
    made = planned(cluster(gpu="A100-40"), "minilm_12x384", *overrides)
    assert made.memory.parts["teacher's weights"] == 2 * XXL_EMBEDDINGS
    held = 2 * (47 * XXL_LAYER + XXL_LAST) / GIB
    assert f"shards in the host's memory, {held:.1f} GiB a node" in squeezed(plan.report(made, [made], []))


# --- batch ------------------------------------------------------------------------------------------------------------


def test_the_largest_micro_batch_that_fits_is_named():
    made = planned(cluster(gpus=2, memory=6), "minilm_6x384", "micro_batch=128")
    assert not made.fits
    sizes = [1, 2, 4, 8, 16, 32, 64, 128]
    fitting = [m for m in sizes if planned(cluster(gpus=2, memory=6), "minilm_6x384", f"micro_batch={m}").fits]
    assert fitting == sizes[: len(fitting)] and made.largest == fitting[-1] < 128
    assert f"micro_batch={made.largest}" in plan.ways_out(made)


def test_a_micro_batch_that_does_not_come_out_is_replaced_and_named():
    made = planned(cluster(8), "minilm_6x384")
    assert (made.asked, made.recipes[0].micro_batch, made.largest) == (32, 4, 4)
    assert "micro_batch = 32 of the recipe does not come out: run it with micro_batch=4" in squeezed(
        plan.report(made, [], [])
    )
    assert made.recipes[0].accumulation(64) == 1


def test_the_teachers_window_is_kept_where_it_comes_out():
    recipe = load_recipe("minilm_6x384", ["micro_batch=4", "teacher.micro_batch=16"])
    assert plan.with_micro_batch(recipe, 8).teacher_batch == 16
    assert plan.with_micro_batch(recipe, 32).teacher_batch == 32


@pytest.mark.parametrize(
    ("nodes", "gpus", "message"),
    [
        (3, 8, r"batch = 256: not a multiple of the 24 GPUs \(3 × 8\); use batch=240 or batch=264, or 16 or 32 GPUs"),
        (50, 8, r"not a multiple of the 400 GPUs \(50 × 8\); use batch=400, or 256 GPUs"),
    ],
)
def test_a_batch_that_the_gpus_cannot_share_is_refused_with_the_nearest_numbers(nodes, gpus, message):
    with pytest.raises(UserError, match=rf"^minilm_6x384\.toml: .*{message}$"):
        planned(cluster(nodes, gpus))


# --- what does not fit ------------------------------------------------------------------------------------------------


REPLICAS = [*XXL_OVERRIDES[:3], "teacher.hosting=replicate"]
SHARDED = [*XXL_OVERRIDES[:3], "teacher.hosting=zero3", "micro_batch=1"]
WAYS = [  # nodes, GPUs of a node, GB of one, recipe, overrides; the ways out
    (
        1,
        1,
        32,
        "minilm_table3",
        [*REPLICAS, "batch=32", "steps=8000"],
        ["one student at a time", "--nodes 2", "GPUs of 35 GB"],
    ),
    (2, 8, 16, "minilm_12x384", REPLICAS, ["teacher.hosting=zero3", "GPUs of 26 GB"]),
    (1, 8, 8, "minilm_12x384", SHARDED, ["student.ds_config=student_zero2.json", "--nodes 2", "GPUs of 9 GB"]),
    (4, 2, 10, "minilm_12x384", [*SHARDED, "teacher.shard_group=node"], ["teacher.shard_group=world", "GPUs of 16 GB"]),
    (1, 8, 5, "minilm_table3", [], ["micro_batch=16", "one student at a time", "--nodes 2", "GPUs of 6 GB"]),
]


@pytest.mark.parametrize(("nodes", "gpus", "memory", "recipe", "overrides", "ways"), WAYS)
def test_each_way_out_of_what_does_not_fit_makes_it_fit(tmp_path, nodes, gpus, memory, recipe, overrides, ways):
    config = {"stage": 3, "stage3_prefetch_bucket_size": 50_000_000, "stage3_max_live_parameters": 300_000_000}
    (tmp_path / "own.json").write_text(json.dumps({"zero_optimization": config}))
    overrides = [*overrides, f"teacher.ds_config={tmp_path}/own.json"]

    def fits(*more: str, nodes: int = nodes, memory: float = memory, recipe: str = recipe) -> bool:
        return planned(cluster(nodes, gpus, "V100", memory), recipe, *overrides, *more).fits

    made = planned(cluster(nodes, gpus, "V100", memory), recipe, *overrides)
    assert not fits() and made.missing == pytest.approx(made.memory.peak - 0.9 * memory * GIB)
    assert plan.ways_out(made) == ways
    for way in ways:
        if way.startswith("--nodes"):
            assert fits(nodes=int(way.split()[1])) and not fits(nodes=int(way.split()[1]) - 1)
        elif way.startswith("GPUs of"):
            assert fits(memory=int(way.split()[2])) and not fits(memory=int(way.split()[2]) - 1)
        elif way == "one student at a time":
            assert all(fits(recipe=f"minilm_{size}x384") for size in (12, 6, 4, 3))
        else:
            assert fits(way), way


# --- time and traffic -------------------------------------------------------------------------------------------------


def test_gathers_of_the_largest_teacher_by_hand():
    made = planned(cluster(4, gpu="H100"), "minilm_12x384", *XXL_OVERRIDES, "teacher.hosting=zero3")
    body = 47 * XXL_LAYER + XXL_LAST
    gathers = made.gathers
    assert gathers.over_nodes and gathers.forwards == 1
    assert gathers.received == pytest.approx(2 * body * 31 / 32)
    assert gathers.seconds == pytest.approx(2 * body * 31 / 32 / 12.5e9)
    # tokens a GPU and forward ≥ FLOP/s ÷ gather bytes/s: two bytes and two operations for each weight
    assert gathers.needed == pytest.approx(0.4 * 989e12 / 12.5e9, rel=0.1)
    assert gathers.tokens == 8 * 512
    hidden = min(gathers.ahead * gathers.seconds, made.times.teacher)
    assert gathers.exposed == pytest.approx(gathers.seconds - hidden)


def test_gathers_inside_a_node_go_over_nvlink_and_hide(tmp_path):
    config = {"zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": XXL_LAYER}}
    (tmp_path / "whole.json").write_text(json.dumps(config))
    overrides = [
        *XXL_OVERRIDES,
        "teacher.hosting=zero3",
        "teacher.shard_group=node",
        f"teacher.ds_config={tmp_path}/whole.json",
    ]
    gathers = planned(cluster(4, gpu="H100"), "minilm_12x384", *overrides).gathers
    assert not gathers.over_nodes
    assert gathers.seconds == pytest.approx(2 * (47 * XXL_LAYER + XXL_LAST) * 7 / 8 / 450e9)
    assert (gathers.ahead, gathers.exposed) == (1.0, 0.0)
    assert gathers.needed < gathers.tokens


@pytest.mark.parametrize(
    ("bucket", "limit", "ahead"),
    [
        (50_000_000, 10**9, 50e6 / XXL_LAYER),
        (XXL_LAYER, 300_000_000, (300e6 - XXL_LAYER) / XXL_LAYER),
        (XXL_LAYER, 2 * XXL_LAYER, 1.0),
        (10**9, XXL_LAYER, 0.0),
    ],
)
def test_settings_that_gather_too_little_ahead_are_named_with_those_that_do(tmp_path, bucket, limit, ahead):
    zero = {"stage": 3, "stage3_prefetch_bucket_size": bucket, "stage3_max_live_parameters": limit}
    (tmp_path / "own.json").write_text(json.dumps({"zero_optimization": zero}))
    overrides = [
        *XXL_OVERRIDES,
        "teacher.hosting=zero3",
        "teacher.shard_group=node",
        f"teacher.ds_config={tmp_path}/own.json",
    ]
    made = planned(cluster(4, gpu="H100"), "minilm_12x384", *overrides)
    assert made.gathers.ahead == pytest.approx(ahead)
    assert made.gathers.exposed == pytest.approx(made.gathers.seconds * (1 - ahead))
    advice = f"stage3_prefetch_bucket_size = {XXL_LAYER} and stage3_max_live_parameters = {2 * XXL_LAYER}"
    assert (advice in squeezed(plan.report(made, [], []))) == (ahead < 1)


@pytest.mark.parametrize(
    ("bucket", "limit", "layers"),
    [
        (10**9, 10**9, 10),  # the other five start together and are copied out together, beside their buffer
        (500, 10**9, 2),  # half a layer ahead: a layer, and the buffers that it came in
        (1000, 2000, 2),  # one ahead: a layer, and the next one's buffer
        (1500, 10**9, 5),  # half a layer more at each turn: two copied out at the third, beside two buffers of 1.5
        (0, 10**9, 2),
    ],
)
def test_gathered_layers_follow_what_is_started_ahead(tmp_path, bucket, limit, layers):
    zero = {"stage": 3, "stage3_prefetch_bucket_size": bucket, "stage3_max_live_parameters": limit}
    (tmp_path / "own.json").write_text(json.dumps({"zero_optimization": zero}))
    recipe = load_recipe("minilm_6x384", [f"teacher.ds_config={tmp_path}/own.json"])
    cut = plan_memory.Cut(6, 8, 8, 1, 0, 1000, 0, 0, 0)
    assert plan_memory.gathered(cut, 4, recipe, Device(2)) == 2 * 1000 * layers
    assert plan_memory.gathered(cut, 1, recipe, Device(2)) == 0


def test_more_sequences_in_a_teachers_forward_gather_less_often():
    overrides = [*XXL_OVERRIDES, "teacher.hosting=zero3", "micro_batch=2"]
    often, once = (
        planned(cluster(4, gpu="H100"), "minilm_12x384", *overrides, f"teacher.micro_batch={m}").gathers for m in (0, 8)
    )
    assert (often.forwards, once.forwards) == (4, 1)
    assert often.received == pytest.approx(4 * once.received)


def test_seconds_of_a_step_follow_from_its_operations():
    made = planned(cluster())
    recipe, rate = made.recipes[0], 0.4 * 312e12
    config = made.models.config
    teacher = encoders.forward_flops(config, 12, 512) * 32
    student = 3 * encoders.forward_flops(recipe.student_config(config), 6, 512) * 32
    assert made.times.teacher == pytest.approx(teacher / rate)
    assert made.times.students == pytest.approx(student / rate)
    # two pairs: logits of both models and the gradients' two products, in fp32; 28 bytes for each of 12 × 512² entries
    loss = 2 * 32 * 512**2 * (2 * (768 + 3 * 384) / (0.4 * 19.5e12) + 28 * 12 / 2039e9)
    assert made.times.loss == pytest.approx(loss)
    assert made.times.gathers == 0.0
    # stage 1: an all-reduce in fp32 and bf16 weights gathered
    count = plan_memory.cut_of(recipe.student_config(config), 6).parameters
    assert made.times.gradients == pytest.approx((8 + 2) * count * 7 / 8 / 300e9)
    assert made.times.tokens_per_second == pytest.approx(256 * 512 / made.times.step)
    assert made.times.days == pytest.approx(400_000 * made.times.step / 86400)


@pytest.mark.parametrize(("stage", "size"), [(0, 2 * 2), (1, 2 * 4 + 2), (2, 2 * 4 + 2), (3, 3 * 2)])
def test_what_a_stage_sends_of_a_student(stage, size):
    recipe = load_recipe("minilm_6x384", [f"student.ds_config=student_zero{stage}.json"])
    cut = plan_memory.Cut(1, 8, 8, 1, 1000, 0, 0, 0, 0)
    assert plan_time.gradient_bytes(recipe, cut, 4) == pytest.approx(size * 1000 * 3 / 4)
    assert plan_time.gradient_bytes(recipe, cut, 1) == 0


def test_gradients_of_several_nodes_cross_the_nic():
    one, four = (planned(cluster(nodes)).times.gradients for nodes in (1, 4))
    assert four / one == pytest.approx(300 / 12.5 * (31 / 32) / (7 / 8))


def test_fp32_runs_at_the_fp32_rate():
    low, full = (planned(cluster(), "minilm_6x384", f"precision={p}").times.teacher for p in ("bf16", "fp32"))
    assert full / low == pytest.approx(312 / 19.5)


# --- disk -------------------------------------------------------------------------------------------------------------


def test_disk_of_a_prepared_corpus_is_its_own(tmp_path):
    data = tiny.make_corpus(tmp_path / "data", {"a": 6000, "b": 1000})
    disk = planned(cluster(), "minilm_6x384", f"data={data}").disk
    assert (disk.tokens, disk.token_bytes, disk.data, disk.prepared) == (7000, 2, 14000, True)


def test_disk_without_a_corpus_is_at_most_what_the_run_reads():
    english, multilingual = planned(cluster()).disk, planned(cluster(), "minilm_6x384", *XXL_OVERRIDES).disk
    assert english.data == 2 * 400_000 * 256 * 512 and not english.prepared
    assert multilingual.data == 2 * english.data  # 250,880 ids do not fit two bytes


def test_checkpoints_are_counted_as_they_are_written():
    disk = planned(cluster(), "minilm_6x384", "keep_checkpoints=3", "keep_every=50000").disk
    student = load_recipe("minilm_6x384").student_config(encoders.load_config("google-bert/bert-base-uncased"))
    cut, _, tail = encoders.split(encoders.build_student(student, 1))
    one = 12 * sum(p.numel() for p in cut.parameters()) + 4 * sum(p.numel() for p in tail.values())
    assert disk.checkpoint == one
    assert disk.checkpoints == (3 + 8 + 1) * one


# --- the command ------------------------------------------------------------------------------------------------------


def squeezed(text: str) -> str:
    return " ".join(text.split())


def command(capsys, monkeypatch, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["plan", *arguments])
    code = plan.main()
    return code, capsys.readouterr().out


def test_the_plan_is_readable_and_complete(capsys, monkeypatch):
    code, text = command(capsys, monkeypatch, "minilm_6x384", "--gpu-memory", "80")
    assert code == 0
    assert "rates are those of A100-80" in text
    assert "minilm_6x384.toml on 1 node × 8 A100-80 (80 GB): fits" in text
    for label in (
        "Teacher",
        "Student",
        "Hosting",
        "Memory of a GPU, GiB",
        "Largest moments",
        "Batch",
        "Time",
        "Disk",
        "Assumed",
    ):
        assert f"\n{label}" in text
    assert all(f"\n{name} " in text for name in GPUS)
    assert "fp16; it has no bf16 units" in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_shares_of_the_memory_are_those_of_the_table(capsys, monkeypatch):
    _, text = command(capsys, monkeypatch, "minilm_6x384", "--gpu", "a100-80", "--json")
    values, made = json.loads(text), planned(cluster())
    assert values["parts"] == made.memory.parts and values["peak"] == made.memory.peak
    assert values["gpus"]["A100-80"]["days"] == made.times.days == values["times"]["days"]
    assert values["phases"]["student's pass"] == values["peak"]
    assert values["fits"] is True and values["gathers"] is None


def test_a_plan_that_does_not_fit_says_by_how_much_and_what_would_do(capsys, monkeypatch):
    code, text = command(
        capsys, monkeypatch, "minilm_6x384", "--gpu", "A100-40", "--gpu-memory", "3", "--gpus-per-node", "2"
    )
    made = planned(cluster(gpus=2, gpu="A100-40", memory=3))
    assert code == 1
    assert (
        f"does not fit, a GPU lacks {made.missing / GIB:.2f} GiB; each of these would do: micro_batch={made.largest},"
        in text
    )
    code, text = command(capsys, monkeypatch, "minilm_6x384", "--gpu-memory", "1", "--json")
    assert code == 1 and json.loads(text)["ways_out"][-1].startswith("GPUs of ")
    assert "not even micro-batch 1 fits" in command(capsys, monkeypatch, "minilm_6x384", "--gpu-memory", "1")[1]


def test_it_runs_by_its_name_without_importing_deepspeed():
    code = "import sys, pipeline.plan; sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "H1000"], "--gpu H1000: not known; known are V100, A100-40"),
        ([], "name the kind of GPU, as in --gpu H100, or its memory"),
        (["--gpu-memory", "0.5"], "--gpu-memory 0.5: must be at least 1"),
        (["--gpu-memory", "nan"], "--gpu-memory nan: must be at least 1"),
        (["--gpu", "H100", "--nodes", "0"], "--nodes 0: must be at least 1"),
        (["--gpu", "H100", "--gpus-per-node", "0"], "--gpus-per-node 0: must be at least 1"),
        (["--measure", "--ranks", "0"], "--ranks 0: must be at least 1"),
        (["--gpu", "H100", "--nic", "0"], "--nic 0: must be above 0"),
        (["--gpu", "H100", "--share-of-peak", "1.5"], "--share-of-peak 1.5: must be above 0 and at most 1"),
        (
            ["--gpu", "H100", "--nodes", "many"],
            "argument --nodes: invalid int value: 'many'; see python -m pipeline.plan --help",
        ),
        (["--gpu", "H100", "length=600"], "length = 600: must be at most the teacher's 512 positions"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["plan", "minilm_6x384", *arguments])
    with pytest.raises(UserError) as told:
        plan.main()
    assert message in str(told.value) and "\n" not in str(told.value)


def test_a_gpu_is_guessed_by_its_memory_and_carefully():
    assert gpu_with(80).name == "A100-80"  # not the faster one of as much
    assert gpu_with(140).name == "H200" and gpu_with(16).name == "V100"


def test_the_check_is_printed_beside_the_run():
    rows = [plan_check.Comparison("peak", 110 * MIB, 100 * MIB)]
    assert "peak                           110.0     100.0        1.100" in plan.report_check(rows, 1)
    assert math.isclose(rows[0].error, 0.1)


def test_memory_grows_with_the_micro_batch_in_every_family():
    for kind in ("bert", "xlm-roberta-xl"):
        sizes = plan_memory.cut_of(config_of(kind), 4)
        kept = [plan_memory.activations(sizes, batch, 64, 0.1, Device(2)) for batch in (1, 2, 4)]
        assert all(after == 2 * before for before, after in pairwise(kept))
