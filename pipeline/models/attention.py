"""Attention within the pieces of packed rows, without a mask [T, T].

On a GPU the rows are laid one after the other and torch's flash attention is told where pieces begin (its variable-length
form, which takes dropout and windows as well). Elsewhere, and where that is not to be had, one piece is attended to after the
other: of short pieces that is far less than a whole row's attention.
"""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.inputs import Pieces

Attend = Callable[..., tuple[Tensor, Tensor | None]]  # one of transformers' AttentionInterface


def by_pieces(attend: Attend) -> Attend:
    """``attend``, which is given the ``pieces`` of packed rows where there are some: attention within each."""

    @functools.wraps(attend)
    def attention(module, query, key, value, attention_mask, pieces=None, **options):
        if pieces is None:
            return attend(module, query, key, value, attention_mask, **options)
        return _within(attend, module, query, key, value, pieces, **options), None

    return attention


@torch.compiler.disable
def _within(
    attend: Attend,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pieces: Pieces,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> Tensor:
    """Attention of [B, heads, T, width] operands within ``pieces``: [B, T, heads, width].

    ``sliding_window``: as transformers passes it, one more than the greatest distance of a key.
    """
    rows = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]  # [B · T, heads, width] each
    reach = None if sliding_window is None else sliding_window - 1
    if _has_flash(query.device, query.dtype, query.shape[-1]):
        output = flash(rows, pieces.offsets, query.shape[2], dropout, scaling, reach)
    else:
        outputs = []
        for q, k, v in zip(*(x.split(pieces.sizes) for x in rows), strict=True):
            own = (x.transpose(0, 1)[None] for x in (q, k, v))
            mask = _window(len(q), reach, q.device)
            outputs.append(attend(module, *own, mask, dropout=dropout, scaling=scaling, **options)[0][0])
        output = torch.cat(outputs)
    return output.unflatten(0, (query.shape[0], query.shape[2]))


def _window(size: int, reach: int | None, device: torch.device) -> Tensor | None:
    """Which keys a query sees, bool [1, 1, size, size]; None: all."""
    if reach is None or size <= reach + 1:
        return None
    place = torch.arange(size, device=device)
    return ((place[:, None] - place).abs() <= reach)[None, None]


def flash(
    operands: Sequence[Tensor],
    offsets: Tensor,
    longest: int,
    dropout: float,
    scaling: float | None,
    reach: int | None,
) -> Tensor:
    """torch's flash attention of q, k and v [positions, heads, width] within pieces that begin at ``offsets``, int32.

    torch.nn.attention.varlen calls the same operator, but takes no dropout.
    """
    window = {} if reach is None else {"window_size_left": reach, "window_size_right": reach}
    arguments = *operands, offsets, offsets, longest, longest, dropout, False, False
    output: Tensor = torch.ops.aten._flash_attention_forward(*arguments, scale=scaling, **window)[0]  # noqa: SLF001
    return output


@functools.cache
def _has_flash(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether the flash attention of ``device`` takes such operands; the first time it is compared with each piece alone."""
    if device.type != "cuda":
        return False
    reason = _refusal(device, dtype, width)
    if reason and os.environ.get("LOCAL_RANK", "0") == "0":
        note = f"note: packed rows are attended to piece by piece, not by flash attention, more slowly: {reason}"
        print(note, file=sys.stderr, flush=True)
    return not reason


def _refusal(device: torch.device, dtype: torch.dtype, width: int) -> str:
    """Why flash attention does not run on ``device``, or ""."""
    if dtype not in (torch.bfloat16, torch.float16):
        return "it takes bf16 and fp16 (precision = 'bf16')"
    if width % 8 or width > 256:
        return f"it takes heads of a multiple of 8 up to 256, and these are {width} wide"
    if not torch.version.hip and torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs compute capability 8.0"
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            difference = flash_error(device, dtype, width)
    except Exception as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return "" if difference < _ERROR else f"it differs by {difference:.1e} of a norm from each piece alone"


_ERROR = 1 / 32  # of a norm: a few times what rounding to bf16 makes of it
_SIZES = 40, 0, 1, 87


def flash_error(device: torch.device, dtype: torch.dtype, width: int) -> float:
    """The greatest difference of flash attention and its gradients from torch's SDPA of each piece, relative to a norm.

    Two heads share keys and values. With dropout, which has no other to compare with, it must be finite.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(_SIZES), heads, width) for heads in (2, 1, 1)]
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes)
    offsets = torch.tensor([0, *torch.tensor(_SIZES).cumsum(0)], dtype=torch.int32, device=device)
    worst = 0.0
    for reach in (None, 5):
        parts = []
        for own in zip(*(x.split(_SIZES) for x in (q, k, v)), strict=True):
            if size := len(own[0]):
                one_q, one_k, one_v = (x.transpose(0, 1)[None] for x in own)
                alone = F.scaled_dot_product_attention(
                    one_q, one_k, one_v, _window(size, reach, device), enable_gqa=True
                )
                parts.append(alone[0].transpose(0, 1))
        both = flash((q, k, v), offsets, max(_SIZES), 0.0, None, reach), torch.cat(parts)
        gradients = [torch.autograd.grad(output.float().square().sum(), (q, k, v)) for output in both]
        for one, other in zip((both[0], *gradients[0]), (both[1], *gradients[1]), strict=True):
            worst = max(worst, float((one.float() - other.float()).norm() / other.float().norm()))
    dropped = flash((q, k, v), offsets, max(_SIZES), 0.1, None, None)
    finite = all(bool(x.isfinite().all()) for x in (dropped, *torch.autograd.grad(dropped.float().sum(), (q, k, v))))
    return worst if finite else float("inf")
