"""Settings and arithmetic that the teacher's and the students' engines have in common."""

import gc

from deepspeed.accelerator import get_accelerator

from pipeline.engines.compiling import Compiled
from pipeline.engines.ranks import Ranks
from pipeline.models.cut import CutEncoder
from pipeline.models.precision import fit_arithmetic, keep_widened
from pipeline.settings.recipe import Recipe

made: list = []  # the engines of this process


def precision_config(recipe: Recipe, stage: int) -> dict:
    if recipe.precision == "fp32":
        return {"data_types": {"grad_accum_dtype": "fp32"}}
    # Stage 0 under bf16 keeps fp32 master weights but refuses to accumulate gradients in anything but bf16.
    return {
        "bf16": {"enabled": True},
        "data_types": {"grad_accum_dtype": "bf16" if stage == 0 else "fp32"},
    }


# The throughput timer would synchronise the device every step; progress is ours to print.
QUIET = {"steps_per_print": 2**31, "wall_clock_breakdown": False, "timers": {"throughput": {"enabled": False}}}


def fit(
    encoder: CutEncoder, recipe: Recipe, ranks: Ranks, name: str, sharded: bool = False, keeps_widened: bool = False
) -> None:
    """Give ``encoder`` the arithmetic that suits the device, and compile its parts if ``recipe`` says so.

    Each layer is a program, the same for all of them. Of a ``sharded`` encoder the last projections are left out, whose
    weights are gathered one by one; of one that is trained the embeddings: their gradient would be atomic sums of a whole
    batch in a few rows, and a second table in fp32. One that is frozen ``keeps_widened`` weights where products are widened.
    """
    fit_arithmetic(encoder, recipe.precision, ranks.device, recipe.arithmetic)
    if keeps_widened:
        keep_widened(encoder)
    if recipe.compile != "all":
        return
    parts = {"layers": list(encoder.body.layers)}
    if not sharded:
        parts["last projections"] = [encoder.body.last]
    if not any(parameter.requires_grad for parameter in encoder.embeddings.parameters()):
        parts["embeddings"] = list(encoder.embeddings)
    for what, modules in parts.items():
        for module in modules:
            module.forward = Compiled(module.forward, f"the {name}'s {what}")


def release() -> None:
    """Free the engines of this process, which no one uses any more, as far as DeepSpeed lets go of them.

    Without this hooks hold all of them for ever. Of ZeRO-3's some part stays.
    """
    while made:
        made.pop().destroy()
    gc.collect()
    get_accelerator().empty_cache()
