"""The relation loss of MiniLM (arXiv 2002.10957, section 3) and MiniLMv2 (arXiv 2012.15828, section 3.1).

One formula carries both papers. For a pair (a, b) of {q, k, v} and relation heads of width D::

    R_model = softmax(a bᵀ / √D)                                      [B, R, T, T]
    loss    = 1/B Σ_b  1/(R · T_b) Σ_heads Σ_queries KL(R_teacher ‖ R_student)

MiniLM is the pairs (qk, vv) with the models' own heads; MiniLMv2 is (qq, kk, vv) with a chosen number of relation heads,
a re-split of the concatenated heads. T_b is the real length of sequence b: padded keys get no mass, padded queries no
weight. Everything is computed in fp32 (fp64 for fp64 input), whatever the autocast state.

Shapes: B batch, T positions, R relation heads, D relation head width (teacher's and student's may differ), N = B · R.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PAIRS = tuple(a + b for a in "qkv" for b in "qkv")


class QKV(NamedTuple):
    """The query, key and value projections of one layer, all heads concatenated: each [B, T, width]."""

    q: Tensor
    k: Tensor
    v: Tensor


def relation_loss(
    teacher: QKV,
    student: QKV,
    pairs: tuple[str, ...] = ("qk", "vv"),
    heads: int = 12,
    lengths: Tensor | None = None,
) -> dict[str, Tensor]:
    """The distillation loss and its part for each relation; gradients reach the student only.

    ``teacher`` and ``student`` hold [B, T, width] projections, of different widths if need be; ``heads`` relation heads
    divide both widths; ``lengths`` [B] counts the real positions of right-padded sequences (None: all real).

    Returns scalars: one for each pair, in nats, and ``"loss"``, their sum. Raises ValueError for heads that do not
    divide a width, a pair that is not made of q, k and v, and shapes that do not fit together.
    """
    teacher, student = QKV(*teacher), QKV(*student)
    lengths = None if lengths is None else torch.as_tensor(lengths)
    _check(teacher, student, pairs, heads, lengths)
    weights = _query_weights(student.q, heads, lengths)
    losses = {}
    for pair in pairs:
        a, b = ("qkv".index(letter) for letter in pair)
        losses[pair] = _PairLoss.apply(teacher[a], teacher[b], student[a], student[b], heads, weights)
    return {"loss": torch.stack(list(losses.values())).sum(), **losses}


def relation(a: Tensor, b: Tensor, heads: int) -> Tensor:
    """The whole map softmax(a bᵀ / √D) of unpadded [B, T, width] projections: [B, R, T, T], fp32. For looking at."""
    a, b = (x.unflatten(-1, (heads, -1)).transpose(1, 2).float() for x in (a, b))
    return (a @ b.transpose(-1, -2) * a.shape[-1] ** -0.5).softmax(-1)


class _PairLoss(torch.autograd.Function):
    """One relation's loss in one pass over blocks of (sequence × head), never holding T × T for all of them.

    The gradient is closed-form: with logits S = a bᵀ / √D and w the weight of a query's row, ∂loss/∂S = w (R_S − R_T),
    so each block gives its loss and its share of ∂loss/∂a = ∂S b/√D and ∂loss/∂b = ∂Sᵀ a/√D, and is forgotten. What is
    kept for backward is O(T · width).
    """

    @staticmethod
    def forward(ctx, t_a, t_b, s_a, s_b, heads, weights):
        wants_gradient = any(ctx.needs_input_grad)
        with torch.no_grad(), torch.autocast(s_a.device.type, enabled=False):
            loss, grad_a, grad_b = _loss_and_gradients(t_a, t_b, s_a, s_b, heads, weights, wants_gradient)
        if wants_gradient:
            ctx.save_for_backward(grad_a, grad_b)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        grad_a, grad_b = ctx.saved_tensors
        return (
            None,
            None,
            grad_a * grad_loss.to(grad_a.dtype),
            grad_b * grad_loss.to(grad_b.dtype),
            None,
            None,
        )


def _loss_and_gradients(t_a, t_b, s_a, s_b, heads, weights, wants_gradient):
    """(loss, ∂loss/∂s_a, ∂loss/∂s_b): a scalar and two [B, T, width] in the student's dtype (None if not wanted)."""
    dtype = torch.promote_types(s_a.dtype, torch.float32)
    batch, length, _ = s_a.shape
    loss = torch.zeros((), dtype=dtype, device=s_a.device)
    grad_a, grad_b = (torch.empty_like(s_a), torch.empty_like(s_b)) if wants_gradient else (None, None)
    rows = max(1, _block_bytes(s_a.device) // (length * length * dtype.itemsize))
    sequences, block_heads = max(1, rows // heads), min(rows, heads)
    for b0 in range(0, batch, sequences):
        seq = slice(b0, b0 + sequences)
        weight, padded = weights[0][seq], weights[1][seq]
        for h0 in range(0, heads, block_heads):
            pick = slice(h0, h0 + block_heads)
            log_t, _, _ = _log_relation(t_a[seq], t_b[seq], heads, pick, padded, dtype)
            log_s, a, b = _log_relation(s_a[seq], s_b[seq], heads, pick, padded, dtype)
            prob_t = log_t.exp()
            # A padded key has probability 0 and log-probability -inf in both: its 0 · (-inf + inf) is meant as 0.
            divergence = (log_t - log_s).masked_fill_(padded, 0.0).mul_(prob_t).sum(-1, keepdim=True)
            loss += (divergence * weight).sum()
            if wants_gradient:
                grad_logits = log_s.exp_().sub_(prob_t).mul_(weight * a.shape[-1] ** -0.5)
                _head_view(grad_a[seq], heads, pick).copy_(grad_logits @ b)
                _head_view(grad_b[seq], heads, pick).copy_(grad_logits.transpose(-1, -2) @ a)
    return loss, grad_a, grad_b


def _log_relation(a, b, heads, pick, padded, dtype):
    """log softmax(a bᵀ / √D) over real keys for some heads, [b, r, T, T], with the heads' a and b, [b, r, T, D]."""
    a, b = (_head_view(x, heads, pick).to(dtype) for x in (a, b))
    logits = (a * a.shape[-1] ** -0.5) @ b.transpose(-1, -2)
    return logits.masked_fill_(padded, -torch.inf).log_softmax(-1), a, b


def _head_view(x: Tensor, heads: int, pick: slice) -> Tensor:
    """[B, T, R·D] -> the picked heads as a view [B, r, T, D]. The re-split is of the concatenation, as in MiniLMv2."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)[:, pick]


def _query_weights(x: Tensor, heads: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """The weight of each query's divergence, 1/(B · R · T_b) or 0 if padded, and the mask of padded keys.

    Shapes [B, 1, T, 1] and [B, 1, 1, T].
    """
    batch, length, _ = x.shape
    if lengths is None:
        lengths = torch.full((batch,), length, device=x.device)
    lengths = lengths.to(x.device).clamp(max=length)
    positions = torch.arange(length, device=x.device)
    at_least_one = lengths.clamp(min=1)[:, None]  # an empty sequence has weight 0; its softmax must still have a key
    real = positions < lengths[:, None]
    weight = real / (batch * heads * at_least_one.to(torch.promote_types(x.dtype, torch.float32)))
    return weight[:, None, :, None], (positions >= at_least_one)[:, None, None, :]


def _block_bytes(device: torch.device) -> int:
    """How large one [b, r, T, T] block may be: near the cache on a CPU, enough to fill the machine on a GPU."""
    return 2**22 if device.type == "cpu" else 2**28


def _check(teacher: QKV, student: QKV, pairs, heads: int, lengths) -> None:
    if not pairs or len(set(pairs)) != len(pairs) or not set(pairs) <= set(PAIRS):
        raise ValueError(f"pairs = {tuple(pairs)!r}: use different pairs from {', '.join(PAIRS)}")
    for name, qkv in (("teacher", teacher), ("student", student)):
        for letter, x in zip("qkv", qkv, strict=True):
            if x.dim() != 3 or x.shape[:2] != teacher[0].shape[:2]:
                raise ValueError(f"{name}.{letter} is {tuple(x.shape)}; need [B, T, width] with the teacher's B and T")
            if heads < 1 or x.shape[2] % heads:
                raise ValueError(f"heads = {heads} does not divide the {name}'s width {x.shape[2]}")
    for name, qkv in (("teacher", teacher), ("student", student)):
        for a, b in pairs:
            if getattr(qkv, a).shape != getattr(qkv, b).shape:
                raise ValueError(f"{name}.{a} and {name}.{b} differ in width")
    if lengths is None:
        return
    if lengths.shape != teacher[0].shape[:1]:
        raise ValueError(f"lengths is {tuple(lengths.shape)}; need one for each of the {teacher[0].shape[0]} sequences")
    longest = teacher[0].shape[1]
    if lengths.device.type == "cpu" and not all(0 <= n <= longest for n in lengths):  # on a GPU this would synchronise
        raise ValueError(f"lengths = {lengths.tolist()}: each must be 0 to T = {longest}")
