"""One plan: hosting, batch, memory of several students, what would make it fit, and disk."""

import dataclasses
import json

import huggingface_hub
import pytest
import torch

from data_prep.cli import UserError
from pipeline.engines import memory as memory_of_ranks
from pipeline.engines.hosting import hosting_of
from pipeline.engines.memory import choose_hosting
from pipeline.engines.ranks import Ranks
from pipeline.models.configs import planned_config
from pipeline.models.cut import empty_encoder, split
from pipeline.models.fit import student_config_of
from pipeline.models.students import build_student
from pipeline.plan.hardware import GIB
from pipeline.plan.planning import ways_out, with_micro_batch
from pipeline.plan.sizes import cut_of
from pipeline.plan.text import as_json, report
from pipeline.recipe.describe import describe
from pipeline.settings.reading import load_recipe
from tests.parts import tiny
from tests.parts.plans import XXL_EMBEDDINGS, XXL_LAST, XXL_LAYER, XXL_OVERRIDES, cluster, planned, squeezed

# --- memory -----------------------------------------------------------------------------------------------------------


def test_students_add_up_but_their_activations_do_not():
    together, alone = planned(cluster(), "minilm_table3"), planned(cluster(), "minilm_12x384")
    states = together.memory.states
    assert len(states) == 4
    assert together.memory.parts["students' weights"] == sum(state.weights for state in states)
    assert together.memory.parts["student's activations"] == alone.memory.parts["student's activations"]
    extra = sum(state.standing for state in states) - alone.memory.states[0].standing
    assert together.memory.peak == pytest.approx(alone.memory.peak + extra)


def test_students_are_named_where_there_are_several():
    swept = report(planned(cluster(), "minilmv2_ablation"), [], [], [])
    assert "without-qq, 6 layers × 384: 22.7 M" in swept and "12-heads, 6 layers × 384" in swept
    assert "Student   6 layers × 384" in report(planned(cluster(), "minilm_6x384"), [], [], [])


def test_accumulated_gradients_stay_next_to_activations():
    one, two = (planned(cluster(gpus=g), "minilm_6x384", "micro_batch=16") for g in (16, 8))
    count = one.models.students[0].parameters
    assert (one.recipes[0].accumulation(16), two.recipes[0].accumulation(8)) == (1, 2)
    shards = (4 + 8) * count * (1 / 8 - 1 / 16)
    assert two.memory.phases["student's pass"] - one.memory.phases["student's pass"] == pytest.approx(
        shards + 2 * count
    )


def test_packed_rows_are_planned_as_whole_ones_and_that_is_said():
    whole, packed = (planned(cluster(), "minilm_6x384", f"layout={layout}") for layout in ("full", "packed"))
    assert packed.times == whole.times and packed.memory.peak == whole.memory.peak
    said = "planned with the attention and the loss of one sequence in each row"
    assert said in report(packed, [], [], []) and said not in report(whole, [], [], [])


def test_vectors_are_planned_with_both_models_whole_and_without_relations():
    options = ("transfer=embedding", "layout=packed", "teacher.layer=12")
    relations, vectors = planned(cluster(), "minilm_6x384"), planned(cluster(), "minilm_6x384", *options)
    assert (relations.models.teacher.layers, vectors.models.teacher.layers, vectors.models.students[0].layers) == (
        11,
        12,
        6,
    )
    assert vectors.times.teacher > relations.times.teacher and vectors.times.loss < relations.times.loss
    assert {"pooling", "teacher's vectors"} < {*vectors.memory.parts} and "relation loss" not in vectors.memory.parts
    text = report(vectors, [], [], [])
    assert "another micro-batch is another loss" in text and "relation" not in text and vectors.fused is False


# --- hosting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hosting", ["auto", "replicate", "zero3"])
@pytest.mark.parametrize("group", ["world", "node"])
@pytest.mark.parametrize(("world", "local"), [(1, 1), (8, 4), (4, 4)])
@pytest.mark.parametrize("memory", [0.5, 1.5])
def test_the_plan_hosts_the_teacher_as_the_run_does(hosting, group, world, local, memory, monkeypatch):
    """On both sides of a quarter of the memory, where a run by itself would decide the other way."""
    recipe = load_recipe("minilm_6x384", [f"teacher.hosting={hosting}", f"teacher.shard_group={group}"])
    config = planned_config(recipe.teacher.model)
    sizes = cut_of(config, 12)
    bytes_ = memory * 4 * 2 * sizes.parameters
    monkeypatch.setattr(memory_of_ranks, "memory_per_rank", lambda ranks: bytes_)
    ranks = Ranks(0, world, local, torch.device("cpu"))
    real = choose_hosting(recipe, ranks, empty_encoder(config, 12)[0])
    ours = hosting_of(recipe, sizes.parameters, sizes.embeddings, bytes_, world, local)
    assert dataclasses.asdict(ours) == dataclasses.asdict(real)


def test_a_node_of_one_gpu_cannot_shard_inside():
    with pytest.raises(UserError, match=r"teacher\.shard_group = 'node': a node has one rank only"):
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
    assert f"shards in the host's memory, {held:.1f} GiB a node" in squeezed(report(made, [made], [], []))


# --- batch ------------------------------------------------------------------------------------------------------------


def test_the_largest_micro_batch_that_fits_is_named():
    made = planned(cluster(gpus=2, memory=6), "minilm_6x384", "micro_batch=128")
    assert not made.fits
    sizes = [1, 2, 4, 8, 16, 32, 64, 128]
    fitting = [m for m in sizes if planned(cluster(gpus=2, memory=6), "minilm_6x384", f"micro_batch={m}").fits]
    assert fitting == sizes[: len(fitting)] and made.largest == fitting[-1] < 128
    assert f"micro_batch={made.largest}" in ways_out(made)


def test_a_micro_batch_that_does_not_come_out_is_replaced_and_named():
    made = planned(cluster(8), "minilm_6x384")
    assert (made.asked, made.recipes[0].micro_batch, made.largest) == (32, 4, 4)
    assert "micro_batch = 32 of the recipe does not come out: run it with micro_batch=4" in squeezed(
        report(made, [], [], [])
    )
    assert made.recipes[0].accumulation(64) == 1


def test_the_teachers_window_is_kept_where_it_comes_out():
    recipe = load_recipe("minilm_6x384", ["micro_batch=4", "teacher.micro_batch=16"])
    assert with_micro_batch(recipe, 8).teacher_batch == 16
    assert with_micro_batch(recipe, 32).teacher_batch == 32


@pytest.mark.parametrize(
    ("nodes", "gpus", "message"),
    [
        (3, 8, r"batch = 256: not a multiple of the 24 GPUs \(3 × 8\); use batch=240 or batch=264, or 16 or 32 GPUs"),
        (50, 8, r"not a multiple of the 400 GPUs \(50 × 8\); use batch=400, or 256 GPUs"),
    ],
)
def test_a_batch_that_the_gpus_cannot_share_is_rejected_with_the_nearest_numbers(nodes, gpus, message):
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
    (2, 8, 16, "minilm_12x384", REPLICAS, ["teacher.hosting=zero3", "GPUs of 25 GB"]),
    (1, 8, 8, "minilm_12x384", SHARDED, ["student.ds_config=student_zero2.json", "--nodes 2", "GPUs of 9 GB"]),
    (4, 2, 10, "minilm_12x384", [*SHARDED, "teacher.shard_group=node"], ["teacher.shard_group=world", "GPUs of 16 GB"]),
    (1, 8, 5, "minilm_table3", [], ["micro_batch=16", "one student at a time", "--nodes 2", "GPUs of 6 GB"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "gpus", "memory", "recipe", "overrides", "ways"), WAYS)
def test_each_way_out_of_what_does_not_fit_makes_it_fit(tmp_path, nodes, gpus, memory, recipe, overrides, ways):
    config = {"stage": 3, "stage3_prefetch_bucket_size": 50_000_000, "stage3_max_live_parameters": 300_000_000}
    (tmp_path / "own.json").write_text(json.dumps({"zero_optimization": config}))
    overrides = [*overrides, f"teacher.ds_config={tmp_path}/own.json"]

    def fits(*more: str, nodes: int = nodes, memory: float = memory, recipe: str = recipe) -> bool:
        return planned(cluster(nodes, gpus, "V100", memory), recipe, *overrides, *more).fits

    made = planned(cluster(nodes, gpus, "V100", memory), recipe, *overrides)
    assert not fits() and made.missing == pytest.approx(made.memory.peak - 0.9 * memory * GIB)
    assert ways_out(made) == ways
    for way in ways:
        if way.startswith("--nodes"):
            assert fits(nodes=int(way.split()[1])) and not fits(nodes=int(way.split()[1]) - 1)
        elif way.startswith("GPUs of"):
            assert fits(memory=int(way.split()[2])) and not fits(memory=int(way.split()[2]) - 1)
        elif way == "one student at a time":
            assert all(fits(recipe=f"minilm_{size}x384") for size in (12, 6, 4, 3))
        else:
            assert fits(way), way


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
    student = student_config_of(load_recipe("minilm_6x384"), planned_config("google-bert/bert-base-uncased"))
    cut, _, tail = split(build_student(student, 1))
    one = 12 * sum(p.numel() for p in cut.parameters()) + 4 * sum(p.numel() for p in tail.values())
    assert disk.checkpoint == one
    assert disk.checkpoints == (3 + 8 + 1) * one


def test_a_plan_and_a_recipe_say_that_they_take_a_published_shape(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    known = planned(cluster())
    told = "its config.json is not on this machine: this is the published shape; a run reads the file"
    assert (
        told in squeezed(report(known, [], [], []))
        and json.loads(as_json(known, [], [], []))["published_shape"] is True
    )
    described = describe(known.recipes[0], known.models.config)
    assert "the teacher's config.json is not on this machine: this is its published shape" in described
    own = planned(cluster(1, 1), str(tiny.make_recipe(tmp_path)))
    assert (
        told not in squeezed(report(own, [], [], []))
        and json.loads(as_json(own, [], [], []))["published_shape"] is False
    )
    assert "published shape" not in describe(own.recipes[0], own.models.config)
