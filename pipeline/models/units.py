"""The units of this machine: whether it computes in bf16, which ones DeepSpeed takes, how many threads. Needs torch alone."""

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


def lacks_bf16_units(device: torch.device) -> bool:
    """Whether bf16 products on this device are slower than fp32 ones: true for x86 CPUs without AVX-512 bf16 or AMX.

    On those torch calls them supported from AVX-512 on, where they are emulated.
    """
    if device.type != "cpu":
        return False
    # torch has no public names for these.
    has_units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001
    emulated = torch.cpu._is_avx512_supported() and not has_units  # noqa: SLF001
    return emulated or not torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001


def has_bf16_gpu() -> bool:
    """Whether there is a GPU that computes in bf16. torch also calls it supported where it is emulated, which is slow."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
