"""``python -m pipeline.bench kernel``: the fused relation loss on this device, compared with the papers' formula in fp64.

Inputs are random and the same for both. A gradient's error is compared with what rounding the exact gradient to its dtype
leaves: no kernel can be better than 1. In fp32 that is less than the sums' own rounding, and the error is relative to the
gradient's norm.
"""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from data_prep.cli import UserError
from pipeline.bench.tools import Row, Setting
from pipeline.bounds import bounds_of_lengths
from pipeline.fused.choice import literal
from pipeline.fused.limits import interpreted
from pipeline.fused.loss import PairLoss, rows_of
from pipeline.measuring import device_here
from pipeline.relations import QKV

SEED = 42
LOSS_BOUND = 2.0  # 1e-6 nats
ROUNDING_BOUND = 1.25  # of the rounding of the exact gradient
FP32_BOUND = 20.0  # 1e-6 of the gradient's norm
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
V1, V2 = Setting(("qk", "vv"), 12), Setting(("qq", "kk", "vv"), 48)
LARGE = Setting(V2.pairs, 64)


@dataclass(frozen=True)
class Case:
    """One comparison: as many sequences as ``lengths``, padded to the longest; ``widths`` of teacher and student."""

    name: str
    setting: Setting
    widths: tuple[int, int]
    lengths: tuple[int, ...]
    dtype: str = "bf16"

    @property
    def names(self) -> dict:
        return self.setting.case | {"name": self.name, "widths": list(self.widths), "dtype": self.dtype}


BASE = (768, 384)
FULL = (
    Case("MiniLMv2", V2, BASE, (512,) * 4),
    Case("MiniLM", V1, BASE, (512,) * 4),
    Case("large teacher", LARGE, (1024, 384), (512,) * 4),
    Case("ragged", V2, BASE, (512, 300, 129, 17, 0)),
    Case("one token", V1, BASE, (1, 512, 1)),
    Case("only one token", V1, BASE, (1, 1)),
    Case("fp16", V2, BASE, (512, 200), "fp16"),
    Case("fp32", V2, BASE, (512, 200), "fp32"),
    Case("long", V1, BASE, (8192,)),
)
TOY_V1, TOY_V2 = Setting(V1.pairs, 2), Setting(V2.pairs, 2)
TOY = (
    Case("MiniLMv2", TOY_V2, (32, 16), (70, 70)),
    Case("MiniLM", TOY_V1, (128, 64), (70,)),
    Case("large teacher", TOY_V2, (32, 12), (40,)),
    Case("ragged", TOY_V2, (32, 16), (66, 17, 0)),
    Case("one token", TOY_V1, (32, 16), (1, 20)),
    Case("fp16", TOY_V2, (32, 16), (40, 7), "fp16"),
    Case("fp32", TOY_V2, (32, 16), (40, 7), "fp32"),
)


def kernel(options: Namespace) -> Iterator[Row]:
    """Rows of each case; SystemExit after the last if one is out of bounds. Raises UserError where nothing runs the kernel."""
    device, missed = device_here(), []
    if device.type == "cpu" and not interpreted():
        raise UserError("kernel: there is no GPU; TRITON_INTERPRET=1 runs the kernel in Triton's interpreter")
    size = options.size or ("toy" if device.type == "cpu" else "full")
    for case in {"full": FULL, "toy": TOY}[size]:
        for row, bound in compare(case, device):
            yield row
            if not row.value <= bound:
                missed.append(f"{case.name}: {row.measure} {row.value:.2g}")
    if missed:
        raise SystemExit(f"error: out of bounds: {', '.join(missed)}")


def compare(case: Case, device: torch.device) -> Iterator[tuple[Row, float]]:
    """The rows of a case with their bounds."""
    teacher, student = inputs(case, device)
    loss, own = by_kernel(case, teacher, student)
    wanted, exact = by_formula(case, teacher, student)
    where = "in Triton's interpreter; " if interpreted() else ""

    error = 1e6 * abs(float(loss) - float(wanted))
    note = f"{where}against the formula in fp64; at most {LOSS_BOUND:g}"
    yield Row("loss error", error, "1e-6 nats", note, case.names), LOSS_BOUND
    errors = [(one.double() - other).norm() for one, other in zip(own, exact, strict=True)]
    if case.dtype == "fp32":
        worst = max(1e6 * float(e / g.norm().clamp(min=1e-30)) for e, g in zip(errors, exact, strict=True))
        note = f"of its norm, the worst of q, k, v; at most {FP32_BOUND:g}"
        yield Row("gradient error", worst, "1e-6", note, case.names), FP32_BOUND
    else:
        rounding = [(g.to(DTYPES[case.dtype]).double() - g).norm() for g in exact]
        worst = max(float(e / r.clamp(min=1e-30)) for e, r in zip(errors, rounding, strict=True))
        note = f"of the exact gradient's rounding to {case.dtype}, the worst of q, k, v; at most {ROUNDING_BOUND}"
        yield Row("gradient error", worst, "×", note, case.names), ROUNDING_BOUND
    again = by_kernel(case, teacher, student)
    changed = sum(not torch.equal(a, b) for a, b in zip((loss, *own), (again[0], *again[1]), strict=True))
    yield Row("changed bits", changed, "", "of the loss and three gradients when it is computed again", case.names), 0


def inputs(case: Case, device: torch.device) -> tuple[QKV, QKV]:
    """Random projections of teacher and student, [B, T, width] each; the student's want a gradient."""
    generator = torch.Generator().manual_seed(SEED)
    shape = len(case.lengths), max(case.lengths)

    def projection(width: int) -> Tensor:
        return torch.randn(*shape, width, generator=generator).to(device, DTYPES[case.dtype])

    teacher, student = (QKV(*(projection(width) for _ in "qkv")) for width in case.widths)
    return teacher, QKV(*(x.requires_grad_() for x in student))


def by_kernel(case: Case, teacher: QKV, student: QKV) -> tuple[Tensor, list[Tensor]]:
    """The fused loss, and its gradients by q, k and v."""
    heads, lengths = case.setting.heads, torch.tensor(case.lengths, device=student.q.device)
    rows = rows_of(bounds_of_lengths(lengths, max(case.lengths)), heads) if len(set(case.lengths)) > 1 else None
    losses = []
    for pair in case.setting.pairs:
        a, b = ("qkv".index(letter) for letter in pair)
        operands = teacher[a], teacher[b], student[a], student[b]
        losses.append(PairLoss.apply(*operands, heads, rows))
    loss = torch.stack(losses).sum()
    return loss.detach(), list(torch.autograd.grad(loss, student, materialize_grads=True, allow_unused=True))


def by_formula(case: Case, teacher: QKV, student: QKV) -> tuple[Tensor, list[Tensor]]:
    """The same by the formula in fp64, a head of a sequence at a time, so that its maps fit."""
    heads, batch = case.setting.heads, len(case.lengths)
    loss = torch.zeros((), dtype=torch.float64, device=student.q.device)
    gradients = [torch.zeros_like(x, dtype=torch.float64) for x in student]
    widths = [width // heads for width in case.widths]
    for row, length in enumerate(case.lengths):
        for head in range(heads if length else 0):
            places = [(row, slice(length), slice(head * width, (head + 1) * width)) for width in widths]
            of_teacher = [x[places[0]][None].double() for x in teacher]
            of_student = [x.detach()[places[1]][None].double().requires_grad_() for x in student]
            for pair in case.setting.pairs:
                a, b = ("qkv".index(letter) for letter in pair)
                of_pair = (of_teacher[a], of_teacher[b]), (of_student[a], of_student[b])
                part = literal(*of_pair, 1, None) / (batch * heads)
                part.backward()
                loss += part.detach()
            for gradient, x in zip(gradients, of_student, strict=True):
                if x.grad is not None:
                    gradient[places[1]] = x.grad[0]
    return loss, gradients
