"""The same bits every time on a GPU too, where a recipe asks for it."""

import contextlib
import os
from collections.abc import Iterator

import torch
from deepspeed.accelerator import get_accelerator

from data_prep.cli import UserError
from pipeline.settings.recipe import Recipe


def use_deterministic(recipe: Recipe) -> None:
    """Have torch use deterministic algorithms alone if ``recipe`` says so and this is a GPU. Call before CUDA starts.

    Attention's backward pass then adds in a fixed order, cuBLAS has a workspace of its own for each stream, and cuDNN does
    not choose by timing. Nothing is compiled (see compiling.py): how Inductor divides its sums follows the first shapes that it
    meets, which are others in a run that is resumed. On a CPU nothing changes.
    """
    wanted = recipe.deterministic and get_accelerator().device_name() != "cpu"
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # it finds bugs, slowly
    torch.use_deterministic_algorithms(wanted)


@contextlib.contextmanager
def without_an_algorithm(recipe: Recipe) -> Iterator[None]:
    """Raise UserError where torch meets an operation that it has no deterministic algorithm for."""
    try:
        yield
    except RuntimeError as error:
        if not torch.are_deterministic_algorithms_enabled() or "deterministic" not in str(error):
            raise
        cause = str(error).strip().splitlines()[0]
        raise UserError(
            f"{recipe.source}: deterministic = true: {cause[:200]}; set deterministic = false, with which the run is resumed "
            "from its newest checkpoint"
        ) from error
