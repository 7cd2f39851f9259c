"""What the kernel takes, in numbers. Needs no Triton."""

import os

import torch

WIDEST = 128  # a head
WIDEST_FP32 = 96  # teacher's and student's heads together, each padded to what tensor cores take
OLDEST_TRITON = (3, 5)
OLDEST_NVIDIA = (8, 0)  # the first with bf16
LOW = (torch.bfloat16, torch.float16)


def padded_width(width: int) -> int:
    """A head's width as tensor cores take it: a power of two, at least 16."""
    return max(16, 1 << (width - 1).bit_length())


def interpreted() -> bool:
    """Whether Triton was asked to interpret its kernels, on CPUs too."""
    return os.environ.get("TRITON_INTERPRET") == "1"
