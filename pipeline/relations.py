"""The relation loss of MiniLM (arXiv 2002.10957, section 3) and MiniLMv2 (arXiv 2012.15828, section 3.1).

One formula carries both papers. For a pair (a, b) of {q, k, v} and relation heads of width D::

    R_model = softmax(a bᵀ / √D)                                      [B, R, T, T]
    loss    = 1/B Σ_b  1/(R · T_b) Σ_heads Σ_queries KL(R_teacher ‖ R_student)

MiniLM is the pairs (qk, vv) with the models' own heads; MiniLMv2 is (qq, kk, vv) with a chosen number of relation heads,
a re-split of the concatenated heads. T_b is the real length of sequence b: padded keys get no mass, padded queries no
weight. Where several sequences are packed into a row, each is a sequence b of this formula: its keys are its own, and B is
the number of sequences, not of rows. Everything is computed in fp32 (fp64 for fp64 input), whatever the autocast state.

Shapes: B batch, T positions, R relation heads, D relation head width (teacher's and student's may differ), N = B · R.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.bounds import Bounds, bounds_of_lengths
from pipeline.fused.choice import Shape, reason_against
from pipeline.pairs import PAIRS


class QKV(NamedTuple):
    """The query, key and value projections of one layer, all heads concatenated: each [B, T, width]."""

    q: Tensor
    k: Tensor
    v: Tensor


def divergence_and_gradient(
    teacher: Tensor, student: Tensor, weight: Tensor, keys: tuple[Tensor, Tensor] | None, gradient: Tensor
) -> Tensor:
    """Σ w KL(R_teacher ‖ R_student) over rows of maps; writes its gradient by the student's logits.

    A row is a query of a head: logits ``teacher`` and ``student`` [rows, T]; ``weight`` w, and the first and one past the last
    of its ``keys`` [rows, 1] (None: all); ``gradient`` [rows, T] is overwritten. This is all that is ever done to a map besides
    products, in one function of rows, so that a compiler can make one pass of it: `torch.compile(dynamic=True)`.
    """
    if keys is not None:  # not -inf: in the sum another key is 0 · (S_T − S_S), which must be 0
        first, stop = keys
        place = torch.arange(teacher.shape[-1], dtype=first.dtype, device=first.device)
        other = (place < first) | (place >= stop)
        teacher, student = teacher.masked_fill(other, _NEVER), student.masked_fill(other, _NEVER)
    t, s = teacher - teacher.amax(-1, keepdim=True), student - student.amax(-1, keepdim=True)
    exp_t, exp_s = t.exp(), s.exp()
    sum_t, sum_s = exp_t.sum(-1, keepdim=True), exp_s.sum(-1, keepdim=True)
    divergence = (exp_t * (t - s)).sum(-1, keepdim=True) / sum_t + sum_s.log() - sum_t.log()
    gradient.copy_(exp_s * (weight / sum_s) - exp_t * (weight / sum_t))
    return (divergence * weight).sum()


_NEVER = -1e30  # a logit whose exponential is 0


Divergence = Callable[[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None, Tensor], Tensor]


def relation_loss(
    teacher: QKV,
    student: QKV,
    pairs: tuple[str, ...] = ("qk", "vv"),
    heads: int = 12,
    lengths: Tensor | None = None,
    divergence: Divergence = divergence_and_gradient,
    fused: bool | None = None,
    bounds: Bounds | None = None,
) -> dict[str, Tensor]:
    """The distillation loss and its part for each relation; gradients reach the student only.

    ``teacher`` and ``student`` hold [B, T, width] projections, of different widths if need be; ``heads`` relation heads
    divide both widths; ``lengths`` [B] counts the real positions of right-padded sequences (None: all real), ``bounds`` say the
    same, in place of it, of rows that hold any number of sequences;
    ``fused``: by the kernel of pipeline.fused, which holds no maps; None: where it can, on GPUs. Elsewhere the loss goes over
    blocks of maps, by ``divergence``, which may be a compiled ``divergence_and_gradient``.

    Returns scalars: one for each pair, in nats, and ``"loss"``, their sum. Raises ValueError for heads that do not
    divide a width, a pair that is not made of q, k and v, shapes that do not fit together, and what ``fused`` cannot do.
    """
    teacher, student = QKV(*teacher), QKV(*student)
    _check(teacher, student, pairs, heads)
    bounds = _bounds(student.q, lengths, bounds)
    operands = {pair: _operands(teacher, student, pair) for pair in pairs}
    if _takes_kernel(fused, teacher, student, pairs, heads):
        losses = _fused(operands, heads, bounds)
    else:
        wanted = torch.is_grad_enabled()
        losses = {
            pair: _PairLoss.apply(*of_pair, heads, bounds, divergence, wanted)  # type: ignore[no-untyped-call]
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
    operands: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]], heads: int, bounds: Bounds | None
) -> dict[str, Tensor]:
    """The loss of each pair by the kernel."""
    from pipeline.fused.loss import PairLoss, rows_of

    rows, losses = bounds and rows_of(bounds, heads), {}
    for pair, of_pair in operands.items():
        losses[pair] = PairLoss.apply(*of_pair, heads, rows)  # type: ignore[no-untyped-call]
    return losses


def value_mse(teacher: Tensor, student: Tensor, lengths: Tensor | None = None, bounds: Bounds | None = None) -> Tensor:
    """Mean squared difference of the values themselves, which MiniLM compares its value relation with (section 4.3).

    ``teacher`` [B, T, width] values; ``student`` its values behind a trained linear map to the same width; ``lengths`` and
    ``bounds`` as in relation_loss. The mean over width and real positions of each sequence, then over sequences; fp32 or
    better. Raises ValueError for shapes that differ.
    """
    if teacher.shape != student.shape:
        raise ValueError(f"the teacher's values are {tuple(teacher.shape)}, the student's {tuple(student.shape)}")
    bounds, dtype = _bounds(student, lengths, bounds), torch.promote_types(student.dtype, torch.float32)
    with torch.autocast(student.device.type, enabled=False):
        squares = (teacher.detach().to(dtype) - student.to(dtype)).square().mean(-1)
        return squares.mean() if bounds is None else (squares * bounds.weight(dtype)).sum()


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
        bounds: Bounds | None,
        divergence: Divergence,
        wanted: bool,
    ) -> Tensor:
        with torch.no_grad(), torch.autocast(s_a.device.type, enabled=False):
            loss, grad_a, grad_b = _loss_and_gradients(t_a, t_b, s_a, s_b, heads, bounds, divergence, wanted)
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
    bounds: Bounds | None,
    divergence: Divergence,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(loss, ∂loss/∂s_a, ∂loss/∂s_b): a scalar and two [B, T, width] in the student's dtype.

    If s_a is s_b the first gradient is by both places, and the second None. Gradients not ``wanted`` are not filled.
    """
    dtype, device = torch.promote_types(s_a.dtype, torch.float32), s_a.device
    loss = torch.zeros((), dtype=dtype, device=device)
    grad_a, grad_b = torch.zeros_like(s_a), None if s_a is s_b else torch.zeros_like(s_b)
    regions = list(_regions(s_a, heads, bounds, dtype))
    # Three tensors, not parts of one: a compiler copies what may overlap with what is written.
    most = max((math.prod(region.block) * region.length for region in regions), default=0)
    room = [torch.empty(most, dtype=dtype, device=device) for _ in range(3)]
    for region in regions:
        teacher, student = (region.of(a, b, dtype) for a, b in ((t_a, t_b), (s_a, s_b)))
        part, of_a, of_b = _of_region(region, teacher, student, heads, room, divergence, wanted)
        loss += part
        if grad_b is None:
            of_a += of_b
        else:
            grad_b[region.where].copy_(of_b.flatten(1, 2).mT)
        grad_a[region.where].copy_(of_a.flatten(1, 2).mT)
    return loss, grad_a, grad_b


class _Region(NamedTuple):
    """A part of a batch whose queries have no keys elsewhere: ``where`` are rows and positions, [b, t] of them.

    ``weight`` [b, t] of a query in a head; ``keys``: the first and one past the last of each query's, [b, t] each, counted
    from the region's first position, None if all are; ``block``: how many rows, heads and queries go together.
    """

    where: tuple[slice, slice]
    weight: Tensor
    keys: tuple[Tensor, Tensor] | None
    block: tuple[int, int, int]

    @property
    def length(self) -> int:
        return self.weight.shape[1]

    def of(self, a: Tensor, b: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """This part of a and b [B, T, width] in ``dtype``: [b, t, width] each, one tensor where they are one."""
        own = a[self.where].to(dtype)
        return [own, own if a is b else b[self.where].to(dtype)]

    def of_rows(self, x: Tensor, part: slice, heads: int) -> Tensor:
        """Queries ``part`` of [b, t] for the rows of maps, [b · heads · t, 1]. A copy: a compiled loop wants it row by row."""
        return x[:, None, part].repeat(1, heads, 1).reshape(-1, 1)


def _regions(x: Tensor, heads: int, bounds: Bounds | None, dtype: torch.dtype) -> Iterator[_Region]:
    """The regions of a batch: on CPUs each sequence for itself if there are ``bounds``, elsewhere as many rows as fit."""
    batch, length, _ = x.shape
    numbers = block_bytes(x.device) // dtype.itemsize
    if bounds is None:
        weight = torch.full((batch, length), 1 / (batch * heads * length), dtype=dtype, device=x.device)
    else:
        weight = bounds.weight(dtype) / heads
    if bounds is not None and _readable(bounds.first):
        begins = (bounds.first == torch.arange(length)) & (bounds.stop > bounds.first)
        for (row, first), stop in zip(begins.nonzero().tolist(), bounds.stop[begins].tolist(), strict=True):
            where = slice(row, row + 1), slice(first, stop)
            yield _Region(where, weight[where], None, block_shape(1, heads, stop - first, numbers))
        return
    block = block_shape(batch, heads, length, numbers)
    for rows in slices(batch, block[0]):
        keys = None if bounds is None else (bounds.first[rows], bounds.stop[rows])
        yield _Region((rows, slice(0, length)), weight[rows], keys, block)


def _readable(x: Tensor) -> bool:
    """Whether numbers can be read without waiting for a device."""
    return x.device.type == "cpu"


def _of_region(
    region: _Region,
    teacher: list[Tensor],
    student: list[Tensor],
    heads: int,
    room: list[Tensor],
    divergence: Divergence,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a region and its gradients by a and b, [b, R, D, t] each; ``teacher`` and ``student``: a and b [b, t, width].

    Gradients are made as [b, R, D, t]: a product with so few columns takes up to five times as long as with so few rows.
    """
    rows, length, width = student[0].shape
    scale_t, scale_s = ((x[0].shape[2] // heads) ** -0.5 for x in (teacher, student))
    teacher_a, student_a = teacher[0] * scale_t, student[0] * scale_s  # scaled here instead of in every map
    of_a, of_b = (student_a.new_zeros(rows, heads, width // heads, length) for _ in "ab")
    loss = student_a.new_zeros(())
    for pick in slices(heads, region.block[1]):
        ta, tb, sa, sb = (_heads(x, heads, pick) for x in (teacher_a, teacher[1], student_a, student[1]))
        da, db = of_a[:, pick].flatten(0, 1), of_b[:, pick].flatten(0, 1)
        for part in slices(length, region.block[2]):
            maps = len(sa), part.stop - part.start, length
            logits_t, logits_s, gradient = (x[: math.prod(maps)].view(maps) for x in room)
            torch.bmm(ta[:, part], tb.mT, out=logits_t)
            torch.bmm(sa[:, part], sb.mT, out=logits_s)
            picked = pick.stop - pick.start
            weight, keys = region.of_rows(region.weight, part, picked), None
            if region.keys is not None:
                keys = region.of_rows(region.keys[0], part, picked), region.of_rows(region.keys[1], part, picked)
            loss += divergence(logits_t.flatten(0, 1), logits_s.flatten(0, 1), weight, keys, gradient.flatten(0, 1))
            if wanted:
                da[:, :, part].baddbmm_(sb.mT, gradient.mT)
                db.baddbmm_(sa[:, part].mT, gradient)
    of_a *= scale_s
    return loss, of_a, of_b


def _heads(x: Tensor, heads: int, pick: slice) -> Tensor:
    """[b, T, R·D] -> the picked heads [b·r, T, D]. The re-split is of the concatenation, as in MiniLMv2."""
    by_head: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return by_head[:, pick].flatten(0, 1)


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


def _bounds(x: Tensor, lengths: Tensor | None, bounds: Bounds | None) -> Bounds | None:
    """The bounds of a batch like ``x`` [B, T, width]; raises ValueError for what does not fit it."""
    batch, longest, _ = x.shape
    if lengths is None:
        if bounds is not None and bounds.first.shape != (batch, longest):
            raise ValueError(f"bounds are of {tuple(bounds.first.shape)}, the batch is {(batch, longest)}")
        return bounds
    lengths = torch.as_tensor(lengths)
    if bounds is not None:
        raise ValueError("lengths and bounds: give one of them")
    if lengths.shape != (batch,):
        raise ValueError(f"lengths is {tuple(lengths.shape)}; need one for each of the {batch} sequences")
    if lengths.device.type == "cpu" and not all(0 <= n <= longest for n in lengths):  # on a GPU this would synchronise
        raise ValueError(f"lengths = {lengths.tolist()}: each must be 0 to T = {longest}")
    return bounds_of_lengths(lengths.to(x.device), longest)


def _check(teacher: QKV, student: QKV, pairs: tuple[str, ...], heads: int) -> None:
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
