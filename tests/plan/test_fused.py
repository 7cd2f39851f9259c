"""The fused relation loss in a plan: when it is taken, its seconds and memory by hand, and the table of its cycles."""

import json
import subprocess
import sys

import pytest

from pipeline.fused.limits import WIDEST, padded_width
from pipeline.models.precision import DTYPES
from pipeline.plan.cycles import CYCLES
from pipeline.plan.fused import counted, passes_of, tensor_cycles
from pipeline.plan.hardware import GPUS, RATES
from pipeline.plan.planning import Plan, models_of, plan_run
from pipeline.plan.text import as_json, report
from pipeline.settings.reading import SHIPPED, load_stages
from tests.parts.count_cycles import classes
from tests.parts.launching import ROOT, environment
from tests.parts.plans import cluster, planned, squeezed

UNFUSED = ["loss_kernel=torch"]
COUNTED = "the relation loss's by instructions of its compiled kernel at full rate, not measured; at 0.4 of it 1 ms"
PRODUCTS = "the relation loss's by products in fp32 at 0.4 of the peak rate, and 28 bytes of traffic for each entry"


def test_seconds_of_the_fused_loss_by_hand():
    made = planned(cluster(gpu="H100"), "minilm_6x384", "relation_heads=48", "pairs=qq,kk,vv")
    statistics, _, _, both = CYCLES["sm_90"][16, 16]
    entries = 48 * 512**2
    cycles = 3 * entries * (statistics + both) / (132 * 1.6e9)
    # q, k or v of both models, twice two numbers a row and head, and a gradient
    moved = 3 * (2 * (2 * 512 * (768 + 384) + 8 * 48 * 512) + 2 * 512 * 384) / 3350e9
    assert made.fused and made.times.loss == pytest.approx(32 * (cycles + moved))


def test_two_operands_have_two_second_passes_and_wide_heads_their_products():
    assert passes_of("vv") == ("statistics", "both") and passes_of("qk") == ("statistics", "rows", "columns")
    # 64 and 48, padded to 64; two logits, and the gradient in two parts
    assert tensor_cycles("statistics", (64, 48), "sm_80") == 2 * (64 + 64) / 2048
    assert tensor_cycles("rows", (64, 48), "sm_80") == 2 * (64 + 64 + 2 * 64) / 2048
    # 128: A100's tensor cores are slower than everything else
    made = planned(cluster(), "minilm_6x768", "relation_heads=6", "pairs=vv")
    cycles = 2 * (128 + 128) / 2048 + 2 * (128 + 3 * 128) / 2048
    moved = 2 * (2 * 512 * (768 + 768) + 8 * 6 * 512) + 2 * 512 * 768
    assert made.times.loss == pytest.approx(128 * (6 * 512**2 * cycles / (108 * 1.41e9) + moved / 2039e9))


@pytest.mark.parametrize(
    ("gpu", "overrides"),
    [
        ("V100", []),
        ("H100", UNFUSED),
        ("H100", ["compile=none"]),
        ("H100", ["precision=fp32"]),
        ("H100", ["relation_heads=4"]),  # 192 wide
    ],
)
def test_what_the_kernel_does_not_take_is_planned_with_products_in_fp32(gpu, overrides):
    made = planned(cluster(gpu=gpu), "minilm_6x384", *overrides)
    heads = made.recipes[0].relation_heads
    rate, bandwidth = 0.4e9 * GPUS[gpu].fp32, 1e9 * GPUS[gpu].bandwidth
    assert made.times.loss == pytest.approx(2 * 32 * 512**2 * (2 * (768 + 3 * 384) / rate + 28 * heads / bandwidth))
    assert not made.fused and PRODUCTS in squeezed(report(made, [], [], []))
    assert made.memory.parts["relation loss"] > 3 * 2**25


def test_the_kernel_is_taken_without_a_compiler_if_it_is_asked_for():
    assert planned(cluster(gpu="H100"), "minilm_6x384", "compile=none", "loss_kernel=triton").fused


def test_a_plan_says_on_what_the_losss_time_rests():
    made = planned(cluster(gpu="H100"))
    assert COUNTED in squeezed(report(made, [], [], [])) and PRODUCTS not in squeezed(report(made, [], [], []))
    assert json.loads(as_json(made, [], [], []))["fused_loss"] is True


def test_the_fused_loss_keeps_numbers_of_rows_and_gradients():
    made = planned(cluster(), "minilm_6x384")
    rows, two = 32 * 512, DTYPES["bf16"].itemsize
    # gradients by q, k and by v; two fp32 numbers a row and head of two pairs, and two more in backward
    assert made.memory.parts["relation loss"] == rows * (3 * two * 384 + 3 * 8 * 12)
    layers = planned(cluster(), "minilm_layer_to_layer")
    of_layers = len(layers.recipes[0].layers) * rows
    kept = of_layers * (3 * two * 384 + 3 * 8 * 12 + 3 * two * 768)
    assert layers.memory.parts["relation loss"] == kept


def planned_stage(recipe: str, stage: int) -> Plan:
    recipes = load_stages(recipe, [])[stage]
    return plan_run(recipes, models_of(recipes), cluster(gpu="H100"))


@pytest.mark.parametrize("recipe", sorted(path.stem for path in SHIPPED.glob("minilm*.toml")))
def test_the_loss_is_a_small_part_of_every_shipped_recipe(recipe):
    for stage in range(len(load_stages(recipe, []))):
        times = planned_stage(recipe, stage).times
        assert times.loss / times.step <= (0.2 if recipe.startswith("minilmv2") else 0.25), (recipe, stage)


def test_the_table_has_every_chip_and_width():
    assert CYCLES.keys() == RATES.keys() and {gpu.chip for gpu in GPUS.values()} - CYCLES.keys() == {"sm_70"}
    for table in CYCLES.values():
        assert list(table) == classes()
        assert all(0.05 < cycles < 1 for row in table.values() for cycles in row)
    assert counted("rows", (6, 17), "sm_90") == CYCLES["sm_90"][32, 32][1]  # as wide as the student's
    assert classes()[0][0] == padded_width(1) and classes()[-1][0] == WIDEST


FRESH = {"sm_90": [(16, 8), (16, 6), (64, 32)], "sm_80": [(16, 8)], "sm_89": [(16, 8)], "sm_100": [(16, 8)]}


@pytest.mark.slow
def test_the_table_is_what_is_counted_anew():
    """If it is not: python -m tests.parts.count_cycles."""
    pytest.importorskip("triton", reason="the fused loss needs Triton: pip install triton")
    code = "import json, sys; from tests.parts.count_cycles import fresh\n"
    code += "asked = json.loads(sys.argv[1])\n"
    code += "print(json.dumps([fresh(tuple(w), chip) for chip, all in asked.items() for w in all]))"
    variables = environment()
    variables.pop("TRITON_INTERPRET", None)
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(FRESH)], capture_output=True, text=True, env=variables, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    cases = [(chip, widths) for chip, each in FRESH.items() for widths in each]
    for (chip, widths), fresh in zip(cases, json.loads(result.stdout), strict=True):
        table = [counted(name, widths, chip) for name in ("statistics", "rows", "columns", "both")]
        assert table == pytest.approx(fresh, rel=0.1), (chip, widths)
