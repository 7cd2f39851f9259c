"""The two passes of kernels.py in plain torch: what the kernels compute, tile by tile, to be read and to be compared with.

For one pair of one head of one sequence. With logits S = a bᵀ / √D of a model, in powers of two::

    pass 1, for each row, over tiles of its keys:   Z_T = Σ 2^S_T   Z_S = Σ 2^S_S   M = Σ 2^S_T (S_T − S_S)
            KL(R_T ‖ R_S) = M / Z_T + log2 Z_S − log2 Z_T            [powers of two: · ln 2 for nats]
    pass 2, over the same tiles:                    d = w (2^(S_S − log2 Z_S) − 2^(S_T − log2 Z_T))
            ∂loss/∂a = d b / √D     ∂loss/∂b = dᵀ a / √D             [∂KL/∂S in nats is R_S − R_T]

Between the passes the logarithms of both sums are kept for each row. Sums are taken relative to the greatest logit so far, as
the kernels do only where sums without it would leave fp32's range.
"""

import math

import torch
from torch import Tensor


def passes(
    t_a: Tensor, t_b: Tensor, s_a: Tensor, s_b: Tensor, weight: Tensor, first: Tensor, stop: Tensor, tile: int = 64
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss in nats, ∂loss/∂s_a, ∂loss/∂s_b) of [T, D] operands: Σ weight · KL over rows, a row's keys being first … stop − 1.

    ``weight``, ``first``, ``stop``: [T].
    """
    length = len(s_a)
    c_t, c_s = (math.log2(math.e) / math.sqrt(x.shape[1]) for x in (t_a, s_a))
    tiles = [torch.arange(start, min(start + tile, length)) for start in range(0, length, tile)]

    def logits(keys: Tensor) -> tuple[Tensor, Tensor]:
        seen = (keys >= first[:, None]) & (keys < stop[:, None])
        t, s = t_a @ t_b[keys].T * c_t, s_a @ s_b[keys].T * c_s
        return t.masked_fill(~seen, -1e30), s.masked_fill(~seen, -1e30)

    max_t, max_s = (torch.full((length,), -1e30, dtype=s_a.dtype) for _ in "ts")
    sum_t, sum_s, mixed = (torch.zeros(length, dtype=s_a.dtype) for _ in range(3))
    for keys in tiles:
        t, s = logits(keys)
        moved_t, moved_s = (torch.clamp(x.amax(1) - highest, min=0) for x, highest in ((t, max_t), (s, max_s)))
        max_t, max_s = max_t + moved_t, max_s + moved_s
        t, s = t - max_t[:, None], s - max_s[:, None]
        mixed = torch.exp2(-moved_t) * (mixed + sum_t * (moved_s - moved_t)) + (torch.exp2(t) * (t - s)).sum(1)
        sum_t = torch.exp2(-moved_t) * sum_t + torch.exp2(t).sum(1)
        sum_s = torch.exp2(-moved_s) * sum_s + torch.exp2(s).sum(1)
    log_t, log_s = max_t + sum_t.log2(), max_s + sum_s.log2()
    divergence = mixed / sum_t + sum_s.log2() - sum_t.log2()
    real = stop > first
    loss = torch.where(real, weight * divergence, 0).sum() * math.log(2)

    grad_a, grad_b = torch.zeros_like(s_a), torch.zeros_like(s_b)
    for keys in tiles:
        t, s = logits(keys)
        d = torch.exp2(s - log_s[:, None]) - torch.exp2(t - log_t[:, None])
        d = torch.where(real, weight, 0)[:, None] * d / math.sqrt(s_a.shape[1])
        grad_a += d @ s_b[keys]
        grad_b[keys] += d.T @ s_a
    return loss, grad_a, grad_b
