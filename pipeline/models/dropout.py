"""Dropout on CPUs: of activations, and of attention's weights.

torch's dropout on CPUs asks a serial generator for one number per element, 7 ns each (on Intel's it asks MKL). Here one
64-bit draw, 4 ns, decides on four elements.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_BLOCK = 2**22  # bytes of a block of attention's weights: what a core's share of the cache holds


class BulkDropout(nn.Dropout):
    """nn.Dropout for CPUs, its numbers drawn in bulk from torch's default generator."""

    def forward(self, x):
        if not self.training or not self.p:
            return super().forward(x)
        keep, scale = _draw(x.shape, self.p)
        return x * keep * scale


def _draw(shape: torch.Size, p: float) -> tuple[torch.Tensor, float]:
    """Which elements dropout keeps, as bools, and the factor that keeps the expectation: 1 / the chance to be kept.

    An element is decided by 16 bits, so the chance is exact to 2^-17 and the factor is that of the chance as it is.
    """
    drop = min(round(p * 2**16), 2**16 - 1)
    count = math.prod(shape)
    # Plain random_() leaves the sign bit 0.
    numbers = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    keep = numbers.view(torch.int16)[:count].view(shape) >= drop - 2**15
    return keep, 2**16 / (2**16 - drop)


def dropped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float, scaling: float | None
) -> Tensor:
    """dropout(softmax(scaling · Q Kᵀ + mask)) V by its formula: [B, heads, T, size] -> [B, T, heads, size]."""
    masks: Any = [None] * len(query)
    if mask is not None:
        if mask.dtype == torch.bool:
            # Not -inf: a padded query may have no key in its window, and a softmax of nothing would be NaN. Under autocast
            # logits are bf16, which rounds the least fp32 number to -inf.
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.bfloat16).min)
        masks = mask.expand(*query.shape[:-1], key.shape[-2])
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    plain = torch.compiler.is_compiling() or torch.is_autocast_enabled(query.device.type)
    if plain or not goes_in_blocks(query.shape[1], query.shape[2], key.shape[2]):
        return _by_autograd(query, key, value, masks, p)
    output: Tensor = _InBlocks.apply(query, key, value, masks, p)
    return output


def goes_in_blocks(heads: int, length: int, keys: int) -> bool:
    """Whether a sample's weights are more than a block, so that blocks are faster."""
    return 4 * heads * length * keys > _BLOCK


def _by_autograd(query: Tensor, key: Tensor, value: Tensor, masks: Any, p: float) -> Tensor:
    """The formula of a scaled query, sample by sample.

    The weights of a whole batch exceed the 32 MB from which malloc returns memory to the kernel, so every use of them would
    be paid in page faults.
    """
    outputs = []
    for q, k, v, m in zip(query, key, value, masks, strict=True):
        logits = q @ k.transpose(-1, -2)
        if m is not None:
            logits += m
        keep, scale = _draw(logits.shape, p)
        outputs.append(((logits.softmax(-1) * keep) @ (v * scale)).transpose(0, 1))
    return torch.stack(outputs)


class _InBlocks(torch.autograd.Function):
    """``_by_autograd``, bit for bit, with an own backward: in blocks of heads that stay in the cache from product to product.

    Kept are the weights and which of them were dropped, but not their product.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, masks: Any, p: float) -> Tensor:
        batch, heads, length, _ = query.shape
        output = query.new_empty(batch, length, heads, value.shape[-1])
        weights, kept, ctx.scale = [], [], 1.0
        for i in range(batch):
            maps = query.new_empty(heads, length, key.shape[-2])
            keep, ctx.scale = _draw(maps.shape, p)
            for own in _blocks(maps):
                block = maps[own]
                torch.bmm(query[i, own], key[i, own].transpose(-1, -2), out=block)
                if masks[i] is not None:
                    block += masks[i][own]
                torch.softmax(block, -1, out=block)
                output[i, :, own] = ((block * keep[own]) @ (value[i, own] * ctx.scale)).transpose(0, 1)
            weights.append(maps)
            kept.append(keep)
        ctx.save_for_backward(query, key, value, *weights, *kept)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *maps = ctx.saved_tensors
        of_query, of_key, of_value = (torch.empty_like(x) for x in (query, key, value))
        for i, gradient in enumerate(gradients[0].transpose(1, 2)):
            weights, keep = maps[i], maps[len(query) + i]
            for own in _blocks(weights):
                block = weights[own]
                of_dropped = gradient[own] @ (value[i, own] * ctx.scale).transpose(-1, -2)
                of_dropped *= keep[own]
                of_logits = torch._softmax_backward_data(of_dropped, block, -1, block.dtype)  # noqa: SLF001
                of_query[i, own] = of_logits @ key[i, own]
                of_key[i, own] = (query[i, own].transpose(-1, -2) @ of_logits).transpose(-1, -2)
                dropped = (block * keep[own]).transpose(-1, -2)
                of_value[i, own] = (dropped @ gradient[own]) * ctx.scale
        return of_query, of_key, of_value, None, None


def _blocks(maps: Tensor) -> Iterator[slice]:
    """Slices of the heads of ``maps`` [heads, T, keys]."""
    size = max(1, _BLOCK // max(1, maps[0].nbytes))
    return (slice(start, start + size) for start in range(0, len(maps), size))
