"""Every hosting × stage × precision under the real DeepSpeed: the same losses, and what DeepSpeed must not change."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.artifacts import checkpoints
from pipeline.engines.traffic import dense_bytes
from pipeline.export import export_untrained
from pipeline.models.cut import split
from pipeline.models.fit import student_config_of
from pipeline.models.loading import load_config
from pipeline.models.students import build_student
from pipeline.plan.sizes import cut_of
from pipeline.plan.times import gradient_bytes
from pipeline.settings.reading import load_recipe
from tests.parts import launching, traffic
from tests.parts.runs import STAGES, TOLERANCE, engine_options, final_state, job, losses
from tests.parts.tiny import make_recipe

pytestmark = pytest.mark.slow

HOSTINGS = ("replicate", "zero3")
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_recipe(tmp_path_factory.mktemp("engines")).parent


@pytest.fixture(scope="module")
def two_ranks(folder):
    """Every hosting × stage × precision on two ranks, and runs that are refused there; what jobs.py returns."""
    jobs = []
    for hosting, stage, precision in ENGINES:
        options = [*engine_options(hosting, stage, precision), "student.dropout=0.0"]
        jobs.append(job(folder, f"w2-{hosting}-{stage}-{precision}", *options))
    for name, option in SHARDED.items():
        options = [*engine_options("zero3", 1, "bf16"), "student.dropout=0.0", option]
        jobs.append(job(folder, f"w2-{name}-1-bf16", *options))
    for stage in STAGES:  # a rate at which an update moves no weight, and zeros by less than fp32 has
        options = [*engine_options("replicate", stage, "bf16"), "learning_rate=1e-38"]
        jobs.append(job(folder, f"start-{stage}", *options, stop_at=1))
    jobs.append(job(folder, "differ", ranks_differ=True))
    jobs.append(job(folder, "projected", "student.init=pca", ranks_differ=True, stop_at=1))
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
    for stage in STAGES:
        jobs.append(job(folder, f"first-{stage}", *engine_options("replicate", stage, "bf16"), stop_at=1))
    return launching.run_jobs(folder, 1, jobs)


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
    student = build_student(student_config_of(recipe, load_config(recipe.teacher.model)), recipe.seed)
    _, names, tail = split(student)
    (run,) = (f"w2-{h}-{s}-{p}" for h, s, p in ENGINES[: 2 * len(STAGES)] if (s, p) == (stage, "fp32"))
    state = final_state(folder / run)
    for name, tensor in tail.items():
        assert torch.equal(state[name], tensor), name
    moved = [name for name in names.values() if not torch.equal(state[name], student.state_dict()[name])]
    assert sorted(moved) == sorted(names.values())


@pytest.fixture(scope="module")
def untrained(folder):
    """The fp32 weights that `export --untrained` writes."""
    export_untrained(load_recipe(folder / "tiny.toml"), folder / "untrained")
    return load_file(folder / "untrained" / "model.safetensors")


def trained_part(state: dict[str, torch.Tensor]) -> list[str]:
    return [key.removeprefix("exp_avg/") for key in state if key.startswith("exp_avg/")]


@pytest.mark.parametrize("stage", STAGES)
def test_a_bf16_run_starts_from_the_fp32_weights_that_export_untrained_writes(folder, two_ranks, untrained, stage):
    state = final_state(folder / f"start-{stage}", step=1)
    for name in trained_part(state):
        assert torch.equal(torch.where(state[name].abs() < 1e-30, 0.0, state[name]), untrained[name]), name


@pytest.mark.parametrize("stage", STAGES)
def test_the_first_update_of_a_bf16_run_is_adams_by_hand(folder, one_rank, untrained, stage):
    recipe, state = load_recipe(folder / "tiny.toml"), final_state(folder / f"first-{stage}", step=1)
    rate, (beta1, beta2) = recipe.learning_rate_at(0), recipe.adam_betas
    for name in trained_part(state):
        start, gradient = untrained[name].double(), state[f"exp_avg/{name}"].double() / (1 - beta1)
        square = state[f"exp_avg_sq/{name}"].double() / (1 - beta2)
        decay = recipe.weight_decay if start.dim() > 1 else 0.0
        expected = start * (1 - rate * decay) - rate * gradient / (square.sqrt() + recipe.adam_eps)
        torch.testing.assert_close(square, gradient**2, rtol=1e-4, atol=1e-12)
        torch.testing.assert_close(state[name].double(), expected, rtol=1e-6, atol=2e-7, msg=name)


def test_functional_linear_is_not_replaced(two_ranks, one_rank):
    assert two_ranks[-1] is True and one_rank[-1] is True


def test_ranks_that_hold_different_students_are_found_out(two_ranks):
    assert any("ranks hold different students" in (error or "") for error in two_ranks[:-1])
    assert sum(error is not None for error in two_ranks[:-1]) == 2


def test_a_start_from_the_teacher_is_the_first_ranks_on_all(folder, two_ranks):
    assert checkpoints.latest(folder / "projected").step == 1


def test_what_deepspeed_refuses_in_a_config_is_reported_in_one_line(folder, two_ranks):
    (message,) = (error for error in two_ranks[:-1] if "misspelt.json" in (error or ""))
    assert (
        f"{folder / 'misspelt.json'}: zero_optimization: DeepSpeed refuses reduce_buket_size = 5" in message
        and "\n" not in message
    )


def test_a_run_leaves_nothing_in_shared_memory(folder, two_ranks):
    assert not list(Path("/dev/shm").glob("deepspeed*"))


def test_plan_counts_the_bytes_that_deepspeed_sends_at_each_stage(folder):
    ranks = 4
    processes = launching.start_ranks(ranks, "tests.parts.traffic", str(folder / "tiny.toml"))
    output = [process.communicate(timeout=launching.PATIENCE) for process in processes]
    for process, (_, error) in zip(processes, output, strict=True):
        assert process.returncode == 0, error[-2000:]
    counted = json.loads(output[0][0].splitlines()[-1])
    assert len(counted) == len(traffic.CASES)
    for stage, sent, vocabulary, received in counted:
        recipe = traffic.recipe_of_case(folder / "tiny.toml", stage, sent, ranks)
        cut = cut_of(traffic.shape_of_case(recipe, vocabulary), 2)
        planned = gradient_bytes(recipe, cut, ranks)
        assert received == pytest.approx(planned, rel=0.02), (stage, sent, vocabulary)
        assert (planned < 0.8 * dense_bytes(recipe, cut.parameters, ranks)) == (vocabulary > 50 and stage < 3)


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
