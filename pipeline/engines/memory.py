"""The memory of a rank that teacher and students take, asked before anything is allocated."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import nn

from data_prep.cli import UserError
from data_prep.machine import memory
from pipeline.engines.ds_config import load_ds_config
from pipeline.engines.hosting import Hosting, hosting_of
from pipeline.engines.ranks import Ranks
from pipeline.models.arithmetic import widens
from pipeline.models.cut import CutEncoder
from pipeline.models.precision import DTYPES
from pipeline.settings.recipe import Recipe


def choose_hosting(recipe: Recipe, ranks: Ranks, teacher: CutEncoder) -> Hosting:
    """hosting.hosting_of for this ``teacher`` and these ``ranks``: the same on all. Collective.

    Where products are widened, a replica's linear layers are kept in fp32 if all of it then takes no more than a quarter of
    a rank's memory.
    """
    parameters, embeddings = (sum(p.numel() for p in part.parameters()) for part in (teacher, teacher.embeddings))
    smallest, memory = min(map(len, ranks.nodes), default=ranks.local_world), memory_per_rank(ranks)
    hosting = hosting_of(recipe, parameters, embeddings, memory, ranks.world, smallest)
    if hosting.kind == "zero3" or not widens(recipe.arithmetic, recipe.precision, ranks.device):
        return hosting
    linear = [module for module in teacher.modules() if isinstance(module, nn.Linear)]
    widened = dataclasses.replace(hosting, widened=sum(p.numel() for module in linear for p in module.parameters()))
    return widened if widened.weights(DTYPES[recipe.precision].itemsize) <= memory / 4 else hosting


def check_memory(recipes: list[Recipe], ranks: Ranks, hosting: Hosting, students: list[nn.Module]) -> Hosting:
    """Raise UserError, on every rank, if teacher and students do not fit one's memory, even without a single activation.

    Returns ``hosting``, without its widened weights if these alone are too much. Collective.
    """
    needs = {"teacher": hosting.weights(DTYPES[recipes[0].precision].itemsize)}
    for recipe, student in zip(recipes, students, strict=True):
        zero = load_ds_config(recipe.student.ds_config, recipe).get("zero_optimization", {}).get("stage", 0)
        low = DTYPES[recipe.precision].itemsize
        # Weights, gradients, and fp32 weights (of bf16) and moments: sharded from stage 3, 2 and 1 on. DeepSpeed's optimizer
        # for bf16 at stage 1 keeps fp32 gradients.
        parts = ((low, 3), (4 if zero == 1 else low, 2), (8 if recipe.precision == "fp32" else 12, 1))
        share = sum(size / (ranks.world if zero >= stage else 1) for size, stage in parts)
        needs[Path(recipe.out).name] = sum(p.numel() for p in student.parameters()) * share
    memory = memory_per_rank(ranks)
    if hosting.widened and sum(needs.values()) > memory:
        return check_memory(recipes, ranks, dataclasses.replace(hosting, widened=0), students)
    if sum(needs.values()) > memory:
        table = ", ".join(f"{name} {need / 2**30:.2f} GiB" for name, need in needs.items())
        raise UserError(
            f"{recipes[0].source}: weights, gradients and optimizer take {sum(needs.values()) / 2**30:.2f} GiB of a rank's "
            f"{memory / 2**30:.2f} GiB ({table}); train fewer students at once, use a higher ZeRO stage in student.ds_config, "
            "or more ranks"
        )
    return hosting


def memory_per_rank(ranks: Ranks) -> int:
    """Bytes of the rank that has least: machines differ, and all ranks have to decide the same. Collective."""
    if ranks.device.type == "cpu":
        own = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks.local_world
    else:
        own = get_accelerator().total_memory()
    if len(ranks.nodes) == 0 or ranks.world == 1:
        return own
    least = torch.tensor(own, device=ranks.device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def free_devices() -> Iterator[tuple[torch.device, int]]:
    """Where one process can compute, and the bytes that are free there: a GPU that is asked for becomes the current one.

    In a launch that is this rank's device, whose memory others share; or else each GPU, the freest first, and the CPU.
    """
    accelerator, launched = get_accelerator(), dist.is_initialized()
    if accelerator.device_name() != "cpu":
        if launched:
            accelerator.empty_cache()  # what torch keeps for later counts as used
        numbers = [accelerator.current_device()] if launched else range(accelerator.device_count())
        free = {number: _free_on(number) for number in numbers}
        for number in sorted(free, key=free.__getitem__, reverse=True):
            if free[number]:
                accelerator.set_device(number)
            yield torch.device(accelerator.device_name(number)), free[number]
        if launched:
            return
    yield torch.device("cpu"), memory()["free"]


def _free_on(number: int) -> int:
    """Bytes free on a GPU, whoever uses the rest; 0 if it cannot be asked: it is full, or another process has it alone.

    DeepSpeed's available_memory counts, without pynvml, only what this process uses.
    """
    accelerator = get_accelerator()
    try:
        if accelerator.device_name() == "cuda":
            return torch.cuda.mem_get_info(number)[0]
        return accelerator.available_memory(number)
    except RuntimeError:  # CUDA's
        return 0
