"""The units of this machine: whether its GPU computes in bf16, which DeepSpeed takes, how many threads. Needs torch alone."""

import os

import torch

from data_prep.machine import threads


def settle_accelerator() -> None:
    """Have DeepSpeed, whoever imports it (transformers does, to save a model), take the CPU in silence where no GPU is."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def settle_threads() -> None:
    """Have torch compute with no more threads than this process may use: of a container's CPU quota it knows nothing.

    Ranks divide them, see engines.ranks.start_ranks.
    """
    allowed = threads().number
    if allowed < torch.get_num_threads():
        torch.set_num_threads(allowed)


def has_bf16_gpu() -> bool:
    """Whether there is a GPU that computes in bf16. torch also calls it supported where it is emulated, which is slow."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
