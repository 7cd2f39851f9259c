"""The relation loss of MiniLM (arXiv 2002.10957, section 3) and MiniLMv2 (arXiv 2012.15828, section 3.1).

One formula carries both papers. For a pair (a, b) of {q, k, v} and relation heads of width D::

    R_model = softmax(a bᵀ / √D)                                      [B, R, T, T]
    loss    = 1/B Σ_b  1/(R · T_b) Σ_heads Σ_queries KL(R_teacher ‖ R_student)

MiniLM is the pairs (qk, vv) with the models' own heads; MiniLMv2 is (qq, kk, vv) with a chosen number of relation heads,
a re-split of the concatenated heads. T_b is the real length of sequence b: padded keys get no mass, padded queries no
weight. Everything is computed in fp32 (fp64 for fp64 input), whatever the autocast state.

Shapes: B batch, T positions, R relation heads, D relation head width (teacher's and student's may differ), N = B · R.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.fused.choice import Shape, reason_against
from pipeline.pairs import PAIRS


class QKV(NamedTuple):
    """The query, key and value projections of one layer, all heads concatenated: each [B, T, width]."""

    q: Tensor
    k: Tensor
    v: Tensor


def divergence_and_gradient(
    teacher: Tensor, student: Tensor, weight: Tensor, keys: Tensor | None, gradient: Tensor
) -> Tensor:
    """Σ w KL(R_teacher ‖ R_student) over rows of maps; writes its gradient by the student's logits.

    A row is a query of a head: logits ``teacher`` and ``student`` [rows, T]; ``weight`` w and the number of real ``keys``
    [rows, 1] (None: all); ``gradient`` [rows, T] is overwritten. This is all that is ever done to a map besides products,
    in one function of rows, so that a compiler can make one pass of it: `torch.compile(dynamic=True)`.
    """
    if keys is not None:  # not -inf: in the sum a padded key is 0 · (S_T − S_S), which must be 0
        padded = torch.arange(teacher.shape[-1], dtype=keys.dtype, device=keys.device) >= keys
        teacher, student = teacher.masked_fill(padded, _NEVER), student.masked_fill(padded, _NEVER)
    t, s = teacher - teacher.amax(-1, keepdim=True), student - student.amax(-1, keepdim=True)
    exp_t, exp_s = t.exp(), s.exp()
    sum_t, sum_s = exp_t.sum(-1, keepdim=True), exp_s.sum(-1, keepdim=True)
    divergence = (exp_t * (t - s)).sum(-1, keepdim=True) / sum_t + sum_s.log() - sum_t.log()
    gradient.copy_(exp_s * (weight / sum_s) - exp_t * (weight / sum_t))
    return (divergence * weight).sum()


_NEVER = -1e30  # a logit whose exponential is 0


Divergence = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor], Tensor]


def relation_loss(
    teacher: QKV,
    student: QKV,
    pairs: tuple[str, ...] = ("qk", "vv"),
    heads: int = 12,
    lengths: Tensor | None = None,
    divergence: Divergence = divergence_and_gradient,
    fused: bool | None = None,
) -> dict[str, Tensor]:
    """The distillation loss and its part for each relation; gradients reach the student only.

    ``teacher`` and ``student`` hold [B, T, width] projections, of different widths if need be; ``heads`` relation heads
    divide both widths; ``lengths`` [B] counts the real positions of right-padded sequences (None: all real);
    ``fused``: by the kernel of pipeline.fused, which holds no maps; None: where it can, on GPUs. Elsewhere the loss goes over
    blocks of maps, by ``divergence``, which may be a compiled ``divergence_and_gradient``.

    Returns scalars: one for each pair, in nats, and ``"loss"``, their sum. Raises ValueError for heads that do not
    divide a width, a pair that is not made of q, k and v, shapes that do not fit together, and what ``fused`` cannot do.
    """
    teacher, student = QKV(*teacher), QKV(*student)
    lengths = None if lengths is None else torch.as_tensor(lengths)
    _check(teacher, student, pairs, heads, lengths)
    operands = {pair: _operands(teacher, student, pair) for pair in pairs}
    if _takes_kernel(fused, teacher, student, pairs, heads):
        losses = _fused(operands, heads, lengths)
    else:
        queries, wanted = _queries(student.q, heads, lengths), torch.is_grad_enabled()
        losses = {
            pair: _PairLoss.apply(*of_pair, heads, queries, divergence, wanted)  # type: ignore[no-untyped-call]
            for pair, of_pair in operands.items()
        }
    return {"loss": torch.stack(list(losses.values())).sum(), **losses}


def _operands(teacher: QKV, student: QKV, pair: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a and b of the teacher, and of the student."""
    a, b = ("qkv".index(letter) for letter in pair)
    return teacher[a], teacher[b], student[a], student[b]


def _takes_kernel(fused: bool | None, teacher: QKV, student: QKV, pairs: tuple[str, ...], heads: int) -> bool:
    """Whether the kernel computes this loss. Raises ValueError if it has to and cannot."""
    if fused is False or (fused is None and student.q.device.type != "cuda"):
        return False
    widths, dtypes = (teacher.q.shape[2], student.q.shape[2]), (teacher.q.dtype, student.q.dtype)
    if any(len({x.dtype for x in model}) > 1 for model in (teacher, student)):
        reason = "it takes q, k and v of one dtype"
    else:
        reason = reason_against(student.q.device, Shape(heads, widths, dtypes, tuple(pairs)))
    if fused and reason:
        raise ValueError(f"fused = True: {reason}")
    if reason:
        warnings.warn(f"the relation loss goes over blocks of maps, not by its kernel: {reason}", stacklevel=3)
    return not reason


def _fused(
    operands: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]], heads: int, lengths: Tensor | None
) -> dict[str, Tensor]:
    """The loss of each pair by the kernel."""
    from pipeline.fused.loss import PairLoss, rows_of

    rows = None
    if lengths is not None:
        student = next(iter(operands.values()))[2]
        length = student.shape[1]
        rows = rows_of(lengths.to(student.device).clamp(max=length), length, heads)
    losses = {}
    for pair, of_pair in operands.items():
        losses[pair] = PairLoss.apply(*of_pair, heads, rows)  # type: ignore[no-untyped-call]
    return losses


def value_mse(teacher: Tensor, student: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Mean squared difference of the values themselves, which MiniLM compares its value relation with (section 4.3).

    ``teacher`` [B, T, width] values; ``student`` its values behind a trained linear map to the same width; ``lengths`` as in
    relation_loss. The mean over width and real positions of each sequence, then over sequences; fp32 or better.
    Raises ValueError for shapes that differ.
    """
    if teacher.shape != student.shape:
        raise ValueError(f"the teacher's values are {tuple(teacher.shape)}, the student's {tuple(student.shape)}")
    weight = _queries(student, 1, None if lengths is None else torch.as_tensor(lengths)).weight
    with torch.autocast(student.device.type, enabled=False):
        squares = (teacher.detach().to(weight.dtype) - student.to(weight.dtype)).square().mean(-1)
        return (squares * weight).sum()


def relation(a: Tensor, b: Tensor, heads: int) -> Tensor:
    """The whole map softmax(a bᵀ / √D) of unpadded [B, T, width] projections: [B, R, T, T], fp32. For looking at."""
    a, b = (x.unflatten(-1, (heads, -1)).transpose(1, 2).float() for x in (a, b))
    logits: Tensor = a @ b.transpose(-1, -2) * a.shape[-1] ** -0.5
    return logits.softmax(-1)


class _PairLoss(torch.autograd.Function):
    """One relation's loss in one pass over blocks of the maps, never holding T × T for all heads.

    The gradient is closed-form: with logits S = a bᵀ / √D and w the weight of a query's row, ∂loss/∂S = w (R_S − R_T),
    so each block gives its loss and its share of ∂loss/∂a = ∂S b/√D and ∂loss/∂b = ∂Sᵀ a/√D, and is forgotten. What is
    kept for backward is O(T · width). Where a is b (qq, kk, vv) the two shares are kept as one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        t_a: Tensor,
        t_b: Tensor,
        s_a: Tensor,
        s_b: Tensor,
        heads: int,
        queries: "_Queries",
        divergence: Divergence,
        wanted: bool,
    ) -> Tensor:
        with torch.no_grad(), torch.autocast(s_a.device.type, enabled=False):
            loss, grad_a, grad_b = _loss_and_gradients(t_a, t_b, s_a, s_b, heads, queries, divergence, wanted)
        ctx.save_for_backward(grad_a, grad_b)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_a, grad_b = (grad if grad is None else grad * grad_loss.to(grad.dtype) for grad in ctx.saved_tensors)
        return None, None, grad_a, grad_b, None, None, None, None


def _loss_and_gradients(
    t_a: Tensor,
    t_b: Tensor,
    s_a: Tensor,
    s_b: Tensor,
    heads: int,
    queries: "_Queries",
    divergence: Divergence,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(loss, ∂loss/∂s_a, ∂loss/∂s_b): a scalar and two [B, T, width] in the student's dtype.

    If s_a is s_b the first gradient is by both places, and the second None. Gradients not ``wanted`` are not filled.
    """
    dtype, device, (batch, length, width) = queries.weight.dtype, s_a.device, s_a.shape
    scale_t, scale_s = ((x.shape[-1] // heads) ** -0.5 for x in (t_a, s_a))
    loss = torch.zeros((), dtype=dtype, device=device)
    grad_a, grad_b = torch.empty_like(s_a), None if s_a is s_b else torch.empty_like(s_b)
    sequences, block_heads, rows = block_shape(batch, heads, length, block_bytes(device) // dtype.itemsize)
    # Three tensors, not parts of one: a compiler copies what may overlap with what is written.
    room = [torch.empty(sequences * block_heads * rows * length, dtype=dtype, device=device) for _ in range(3)]
    for seq in slices(batch, sequences):
        teacher_b, student_b = t_b[seq].to(dtype), s_b[seq].to(dtype)
        teacher_a = (teacher_b if t_a is t_b else t_a[seq].to(dtype)) * scale_t  # scaled here instead of in every map
        student_a = (student_b if s_a is s_b else s_a[seq].to(dtype)) * scale_s
        # Gradients are made as [b, R, D, T]: a product with so few columns takes up to five times as long as with so few rows.
        shape = len(student_a), heads, width // heads, length
        of_a, of_b = (torch.zeros(shape, dtype=dtype, device=device) for _ in "ab")
        for pick in slices(heads, block_heads):
            ta, tb, sa, sb = (_heads(x, heads, pick) for x in (teacher_a, teacher_b, student_a, student_b))
            da, db = of_a[:, pick].flatten(0, 1), of_b[:, pick].flatten(0, 1)
            for part in slices(length, rows):
                maps = len(sa), part.stop - part.start, length
                logits_t, logits_s, gradient = (x[: math.prod(maps)].view(maps) for x in room)
                torch.bmm(ta[:, part], tb.mT, out=logits_t)
                torch.bmm(sa[:, part], sb.mT, out=logits_s)
                picked = pick.stop - pick.start
                weight = queries.rows(queries.weight, seq, part, picked)
                keys = None if queries.keys is None else queries.rows(queries.keys, seq, part, picked)
                loss += divergence(logits_t.flatten(0, 1), logits_s.flatten(0, 1), weight, keys, gradient.flatten(0, 1))
                if wanted:
                    da[:, :, part].baddbmm_(sb.mT, gradient.mT)
                    db.baddbmm_(sa[:, part].mT, gradient)
        of_a *= scale_s
        if grad_b is None:
            of_a += of_b
        else:
            grad_b[seq].copy_(of_b.flatten(1, 2).mT)
        grad_a[seq].copy_(of_a.flatten(1, 2).mT)
    return loss, grad_a, grad_b


def _heads(x: Tensor, heads: int, pick: slice) -> Tensor:
    """[b, T, R·D] -> the picked heads [b·r, T, D]. The re-split is of the concatenation, as in MiniLMv2."""
    by_head: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return by_head[:, pick].flatten(0, 1)


class _Queries(NamedTuple):
    """The weight of each query's divergence, 1/(B · R · T_b) or 0 if padded, and its number of real keys; [B, T] each.

    ``keys`` is None if nothing is padded.
    """

    weight: Tensor
    keys: Tensor | None

    @staticmethod
    def rows(x: Tensor, seq: slice, part: slice, heads: int) -> Tensor:
        """Some of [B, T] for the rows of maps, [b · heads · t, 1]. A copy: a compiled loop wants it row by row."""
        return x[seq, None, part].repeat(1, heads, 1).reshape(-1, 1)


def _queries(x: Tensor, heads: int, lengths: Tensor | None) -> _Queries:
    batch, length, _ = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    if lengths is None:
        return _Queries(torch.full((batch, length), 1 / (batch * heads * length), dtype=dtype, device=x.device), None)
    lengths = lengths.to(x.device).clamp(max=length)[:, None]
    at_least_one = lengths.clamp(min=1)  # an empty sequence has weight 0; its softmax must still have a key
    real = torch.arange(length, device=x.device) < lengths
    return _Queries(real / (batch * heads * at_least_one.to(dtype)), at_least_one.int().expand(batch, length))


def block_shape(batch: int, heads: int, length: int, numbers: int) -> tuple[int, int, int]:
    """(sequences, heads, queries) of blocks of at most ``numbers`` logits, all about equal; at the least one row."""
    maps = numbers // length**2
    fit = maps // heads, maps, length if maps else numbers // length
    return _even(batch, fit[0]), _even(heads, fit[1]), _even(length, fit[2])


def _even(whole: int, most: int) -> int:
    """The size of equal parts of ``whole``, as few as can be of at most ``most`` each."""
    return -(-whole // -(-whole // max(1, min(whole, most))))


def slices(stop: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, stop)) for start in range(0, stop, step))


def block_bytes(device: torch.device) -> int:
    """How large a block of maps may be: three at a time should stay in a CPU's last cache, and fill a GPU.

    On CPUs a constant: the order of sums, and with it the last bits of a loss, must not depend on the cache that a machine
    reports, and what several ranks of a host share is small enough for all of them.
    """
    if device.type == "cuda":
        return max(2**25, torch.cuda.get_device_properties(device).L2_cache_size)
    return 2**21


def _check(teacher: QKV, student: QKV, pairs: tuple[str, ...], heads: int, lengths: Tensor | None) -> None:
    """Raise ValueError for whatever relation_loss does not take."""
    if not pairs or len(set(pairs)) != len(pairs) or not set(pairs) <= set(PAIRS):
        raise ValueError(f"pairs = {tuple(pairs)!r}: use different pairs from {', '.join(PAIRS)}")
    for name, qkv in (("teacher", teacher), ("student", student)):
        for letter, x in zip("qkv", qkv, strict=True):
            if x.dim() != 3 or x.shape[:2] != teacher[0].shape[:2]:
                raise ValueError(f"{name}.{letter} is {tuple(x.shape)}; need [B, T, width] with the teacher's B and T")
            if heads < 1 or x.shape[2] % heads:
                raise ValueError(f"heads = {heads} does not divide the {name}'s width {x.shape[2]}")
    for name, qkv in (("teacher", teacher), ("student", student)):
        for pair in pairs:
            a, b = (letter for letter in pair)
            if getattr(qkv, a).shape != getattr(qkv, b).shape:
                raise ValueError(f"{name}.{a} and {name}.{b} differ in width")
    if lengths is None:
        return
    if lengths.shape != teacher[0].shape[:1]:
        raise ValueError(f"lengths is {tuple(lengths.shape)}; need one for each of the {teacher[0].shape[0]} sequences")
    longest = teacher[0].shape[1]
    if lengths.device.type == "cpu" and not all(0 <= n <= longest for n in lengths):  # on a GPU this would synchronise
        raise ValueError(f"lengths = {lengths.tolist()}: each must be 0 to T = {longest}")
