"""Seconds of a step and what crosses the network, by hand."""

import json

import pytest

from pipeline.models.counting import forward_flops
from pipeline.models.fit import student_config_of
from pipeline.plan import times
from pipeline.plan.sizes import Cut, cut_of
from pipeline.plan.text import report
from pipeline.settings.reading import load_recipe
from tests.parts.plans import XXL_LAST, XXL_LAYER, XXL_OVERRIDES, cluster, planned, squeezed


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
    overrides = [*XXL_OVERRIDES, "teacher.hosting=zero3", "teacher.shard_group=node"]
    overrides.append(f"teacher.ds_config={tmp_path}/whole.json")
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
    overrides = [*XXL_OVERRIDES, "teacher.hosting=zero3", "teacher.shard_group=node"]
    overrides.append(f"teacher.ds_config={tmp_path}/own.json")
    made = planned(cluster(4, gpu="H100"), "minilm_12x384", *overrides)
    assert made.gathers.ahead == pytest.approx(ahead)
    assert made.gathers.exposed == pytest.approx(made.gathers.seconds * (1 - ahead))
    advice = f"stage3_prefetch_bucket_size = {XXL_LAYER} and stage3_max_live_parameters = {2 * XXL_LAYER}"
    assert (advice in squeezed(report(made, [], [], []))) == (ahead < 1)


def test_more_sequences_in_a_teachers_forward_gather_less_often():
    overrides = [*XXL_OVERRIDES, "teacher.hosting=zero3", "micro_batch=2"]
    often, once = (
        planned(cluster(4, gpu="H100"), "minilm_12x384", *overrides, f"teacher.micro_batch={m}").gathers for m in (0, 8)
    )
    assert (often.forwards, once.forwards) == (4, 1)
    assert often.received == pytest.approx(4 * once.received)


def test_seconds_of_a_step_follow_from_its_operations():
    made = planned(cluster(), "minilm_6x384", "loss_kernel=torch")
    recipe, rate = made.recipes[0], 0.4 * 312e12
    config = made.models.config
    teacher = forward_flops(config, 12, 512) * 32
    student = 3 * forward_flops(student_config_of(recipe, config), 6, 512) * 32
    assert made.times.teacher == pytest.approx(teacher / rate)
    assert made.times.students == pytest.approx(student / rate)
    # two pairs: logits of both models and the gradients' two products, in fp32; 28 bytes for each of 12 × 512² entries
    loss = 2 * 32 * 512**2 * (2 * (768 + 3 * 384) / (0.4 * 19.5e12) + 28 * 12 / 2039e9)
    assert made.times.loss == pytest.approx(loss)
    assert made.times.gathers == 0.0
    # stage 1: an all-reduce in bf16 and bf16 weights gathered
    count = cut_of(student_config_of(recipe, config), 6).parameters
    assert made.times.gradients == pytest.approx((4 + 2) * count * 7 / 8 / 300e9)
    assert made.times.tokens_per_second == pytest.approx(256 * 512 / made.times.step)
    assert made.times.days == pytest.approx(400_000 * made.times.step / 86400)


@pytest.mark.parametrize(
    ("stage", "sent", "once", "thrice"),
    [
        (0, 2, 2 * 2, 2 * 2),
        (1, 2, 2 * 2 + 2, 2 * 2 + 2),
        (1, 4, 2 * 4 + 2, 2 * 4 + 2),
        (2, 2, 2 * 2 + 2, 3 * 2 * 2 + 2),
        (2, 4, 2 * 4 + 2, 3 * 2 * 4 + 2),
        (3, 2, 2 + 2, 3 * (2 + 2)),
        (3, 4, 4 + 2, 3 * (4 + 2)),
    ],
)
def test_what_a_stage_sends_of_a_student(tmp_path, stage, sent, once, thrice):
    """Bytes of a parameter times rounds of the ring; ``thrice``: in a step of three micro-batches."""
    content = {"zero_optimization": {"stage": stage}, "communication_data_type": {2: "bf16", 4: "fp32"}[sent]}
    (tmp_path / "own.json").write_text(json.dumps(content))
    cut = Cut(1, 8, 8, 1, 1000, 0, 0, 0, 0)
    for batch, size in ((8, once), (24, thrice)):
        overrides = [f"student.ds_config={tmp_path}/own.json", f"batch={batch}", "micro_batch=2"]
        recipe = load_recipe("minilm_6x384", overrides)
        assert times.gradient_bytes(recipe, cut, 4) == pytest.approx(size * 1000 * 3 / 4)
    assert times.gradient_bytes(recipe, cut, 1) == 0


def test_gradients_of_several_nodes_cross_the_nic():
    one, four = (planned(cluster(nodes)).times.gradients for nodes in (1, 4))
    assert four / one == pytest.approx(300 / 12.5 * (31 / 32) / (7 / 8))


def test_fp32_runs_at_the_fp32_rate():
    for gpu, ratio in (("A100-80", 312 / 19.5), ("V100", 1)):  # which has no units for bf16
        where = cluster(gpu=gpu)
        low, full = (planned(where, "minilm_6x384", f"precision={p}").times.teacher for p in ("bf16", "fp32"))
        assert full / low == pytest.approx(ratio)
