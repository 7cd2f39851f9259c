"""Whether a run's losses are computed by the kernel: the same on all ranks, which decide together."""

import socket

import torch.distributed as dist

from data_prep.cli import UserError
from pipeline.engines.ranks import Ranks
from pipeline.fused.choice import Shape, reason_against
from pipeline.models.precision import DTYPES
from pipeline.settings.recipe import Recipe


def takes_kernel(recipe: Recipe, teacher_width: int, ranks: Ranks) -> tuple[bool, str]:
    """Whether every rank computes ``recipe``'s loss by the kernel, and a sentence about it, "" if there is nothing to say.

    Each rank tries it on its device. Raises UserError on all if it is asked for and one of them cannot. Collective.
    """
    asked = recipe.loss_kernel == "triton"
    if recipe.loss_kernel == "torch" or not recipe.relations:
        return False, ""
    if not asked and (recipe.compile == "none" or ranks.device.type == "cpu"):
        return False, ""
    dtype = DTYPES[recipe.precision]
    shape = Shape(recipe.relation_heads, (teacher_width, recipe.student.hidden), (dtype, dtype), recipe.relations)
    everyone: list = [None] * ranks.world
    dist.all_gather_object(everyone, (socket.gethostname(), reason_against(ranks.device, shape)))
    refused = [(rank, host, reason) for rank, (host, reason) in enumerate(everyone) if reason]
    if not refused:
        return True, "Relation loss: by the fused kernel, which every rank has compared with the formula."
    rank, host, reason = refused[0]
    if asked:
        raise UserError(
            f"{recipe.source}: loss_kernel = 'triton', but on rank {rank}, host {host}: {reason}; set loss_kernel = 'auto'"
        )
    note = "note: the relation loss is computed by torch on all ranks, not by the fused kernel"
    return False, f"{note}, since on rank {rank}, host {host}: {reason}"
