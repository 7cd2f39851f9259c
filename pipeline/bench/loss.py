"""``python -m pipeline.bench loss``: the relation loss compared with the papers' formula, and with its matrix products.

*literal* is the formula written for whole tensors, with autograd; *ours* is ``relation_loss`` over blocks of maps; *fused* is
it by its kernel, where that runs; *products* is only the indispensable part: those that make the logits and the gradients.
"""

import functools
import math
import statistics
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from pipeline.bench.tools import Row, Setting, settings_of
from pipeline.fused.choice import Shape, reason_against
from pipeline.fused.limits import interpreted
from pipeline.measuring import device_here, extra_memory, free_memory, interleaved_times, median_ratio
from pipeline.relations import QKV, block_bytes, block_shape, relation_loss, slices
from pipeline.settings.recipe import Recipe
from pipeline.training.trainee import divergence_of

SEED = 42
Work = Callable[[], tuple[Tensor, list[Tensor]]]


@dataclass(frozen=True)
class Case:
    """The sizes of one measurement: ``batch`` sequences × ``length``, ``widths`` of teacher and student."""

    setting: Setting
    length: int
    batch: int
    widths: tuple[int, int]
    compiled: bool

    @property
    def names(self) -> dict:
        return self.setting.case | {"length": self.length, "batch": self.batch, "widths": list(self.widths)}


def loss(options: Namespace) -> Iterator[Row]:
    """Measure every number of heads at every length."""
    device = device_here()
    widths = dict(zip(("teacher", "student"), options.widths, strict=True))
    for setting in settings_of(options.heads, options.pairs, widths):
        memory = {}
        for length in sorted(set(options.length)):
            case = Case(setting, length, options.batch, tuple(options.widths), options.compile)
            check_agreement(case)
            if runs_fused(case):
                check_agreement(case, fused)
            for row in measure(case, options.repeats, device):
                if row.measure == "memory of ours":
                    memory[length] = row.value
                yield row
        if len(memory) > 1:
            short, long = min(memory), max(memory)
            note = f"of ours, length {long} against {short}; target: at most 4.5 for 2048 against 512"
            yield Row("growth of memory", memory[long] / memory[short], "×", note, setting.case)


def measure(case: Case, repeats: int, device: torch.device) -> Iterator[Row]:
    """Times and extra memory of one case; without the literal loss if it would not fit the memory."""
    makers: dict[str, Callable[[Case], Callable]] = {"literal": literal, "ours": ours, "products": products}
    needed, free = literal_bytes(case), free_memory(device)
    if needed > free:
        del makers["literal"]
    if case.compiled:
        makers["ours, not compiled"] = ours_not_compiled
    if runs_fused(case):
        makers["fused"] = fused
    times = interleaved_times({name: make(case) for name, make in makers.items()}, repeats, device)
    notes = {
        "literal": "the formula with autograd, forward and backward",
        "ours": "relation_loss over blocks, "
        + ("compiled" if case.compiled else "not compiled")
        + ", forward and backward",
        "ours, not compiled": "the same without a compiler",
        "fused": "relation_loss by its kernel, forward and backward"
        + (", in Triton's interpreter" if interpreted() else ""),
        "products": "the four matrix products of each map alone",
    }
    for name, note in notes.items():
        if name in times:
            yield Row(name, 1e3 * statistics.median(times[name]), "ms", note, case.names)
    if "literal" in times:
        yield Row(
            "literal / ours", median_ratio(times["literal"], times["ours"]), "×", "target: at least 8", case.names
        )
    target = "target: at most 2.5" if case.setting.heads <= 12 else "heads this narrow leave products little to do"
    yield Row("ours / products", median_ratio(times["ours"], times["products"]), "×", target, case.names)
    if "fused" in times:
        yield Row("ours / fused", median_ratio(times["ours"], times["fused"]), "×", "", case.names)
        each = 1e6 * statistics.median(times["fused"]) / case.batch
        yield Row("fused, a sequence", each, "µs", "of all its pairs", case.names)

    measured = ("literal", "ours", "fused") if device.type == "cuda" else ("literal", "ours")
    memory = {name: extra_memory(makers[name], case, device) for name in measured if name in makers}
    for name, size in memory.items():
        yield Row(f"memory of {name}", size / 2**20, "MiB", "at its peak, without the inputs", case.names)
    if "literal" in memory:
        least = 12 if case.setting.heads <= 12 else 20
        share = memory["literal"] / max(1, memory["ours"])
        yield Row("memory ratio", share, "×", f"literal / ours; target: at least {least}", case.names)
    else:
        sizes = f"{needed / 2**30:.1f} GiB of {free / 2**30:.1f} GiB that are free"
        yield Row("literal needs", needed / 2**20, "MiB", f"estimated; not run, because that is {sizes}", case.names)


# --- what is compared -------------------------------------------------------------------------------------------------


def inputs(case: Case) -> tuple[QKV, QKV]:
    """Random bf16 projections of teacher and student, [B, T, width] each; the student's want a gradient."""
    device, generator = device_here(), torch.Generator().manual_seed(SEED)

    def projection(width: int) -> Tensor:
        return torch.randn(case.batch, case.length, width, generator=generator).to(device, torch.bfloat16)

    teacher, student = (QKV(*(projection(width) for _ in "qkv")) for width in case.widths)
    return teacher, QKV(*(x.requires_grad_() for x in student))


def literal(case: Case) -> Work:
    """The papers' formula: every map whole and in fp32, gradients by autograd."""
    teacher, student = inputs(case)
    return lambda: _with_gradients(literal_loss(teacher, student, case.setting), student)


def literal_loss(teacher: QKV, student: QKV, setting: Setting) -> Tensor:
    """Σ over pairs of the mean KL(R_teacher ‖ R_student) over sequences, heads and queries; a scalar, fp32."""
    teacher, student = (QKV(*(x.float() for x in model)) for model in (teacher, student))
    divergences = []
    for pair in setting.pairs:
        a, b = ("qkv".index(letter) for letter in pair)
        log_t, log_s = (log_relation(model[a], model[b], setting.heads) for model in (teacher, student))
        divergences.append((log_t.exp() * (log_t - log_s)).sum(-1).mean())
    return functools.reduce(torch.add, divergences)


def log_relation(a: Tensor, b: Tensor, heads: int) -> Tensor:
    """log softmax(a bᵀ / √D) of [B, T, width] projections: [B, R, T, T]."""
    a, b = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (a, b))
    return (a @ b.transpose(-1, -2) / math.sqrt(a.shape[-1])).log_softmax(-1)


def literal_bytes(case: Case) -> int:
    """Bytes that the literal loss holds at its peak, about: two maps of each pair for backward, and four for a while."""
    a_map = 4 * case.batch * case.setting.heads * case.length**2
    return a_map * (2 * len(case.setting.pairs) + 4)


def ours(case: Case) -> Work:
    """The loss as an update computes it."""
    return _ours(case, "loss" if case.compiled else "none")


def ours_not_compiled(case: Case) -> Work:
    return _ours(case, "none")


def fused(case: Case) -> Work:
    """The loss by its kernel."""
    return _ours(case, "none", fused=True)


def runs_fused(case: Case) -> bool:
    """Whether the kernel can compute this loss here."""
    setting, dtypes = case.setting, (torch.bfloat16, torch.bfloat16)
    return not reason_against(device_here(), Shape(setting.heads, case.widths, dtypes, setting.pairs))


def _ours(case: Case, compile: str, fused: bool = False) -> Work:
    (teacher, student), setting = inputs(case), case.setting
    divergence = divergence_of(cast(Recipe, Namespace(compile=compile)))  # it asks the recipe for nothing else

    def work() -> tuple[Tensor, list[Tensor]]:
        losses = relation_loss(teacher, student, setting.pairs, setting.heads, None, divergence, fused)
        return _with_gradients(losses["loss"], student)

    return work


def _with_gradients(loss: Tensor, student: QKV) -> tuple[Tensor, list[Tensor]]:
    return loss.detach(), list(torch.autograd.grad(loss, student, materialize_grads=True, allow_unused=True))


def products(case: Case) -> Callable[[], None]:
    """The products of relation_loss's own blocks of maps, of fp32 heads that are ready."""
    setting, device = case.setting, device_here()
    heads = [QKV(*(_heads(x.detach(), setting.heads) for x in model)) for model in inputs(case)]
    operands = [[model["qkv".index(letter)] for model in heads for letter in pair] for pair in setting.pairs]
    sequences, some, rows = block_shape(case.batch, setting.heads, case.length, block_bytes(device) // 4)
    room = [torch.empty(sequences * some * rows * case.length, device=device) for _ in range(2)]
    gradients = [torch.zeros_like(heads[1].q.mT.contiguous()) for _ in "ab"]

    def work() -> None:
        for whole in operands:
            for seq in slices(case.batch, sequences):
                for pick in slices(setting.heads, some):
                    block = [x[seq, pick].flatten(0, 1) for x in (*whole, *gradients)]
                    for part in slices(case.length, rows):
                        _products_of_block(block, part, room)

    return work


def _products_of_block(block: list[Tensor], part: slice, room: list[Tensor]) -> None:
    """Both logits [n, rows, T] and the two gradients; the student's logits stand in for the gradient by them.

    ``block``: the teacher's heads a and b, the student's, and the gradients by the latter; ``room`` for both logits.
    """
    t_a, t_b, s_a, s_b, of_a, of_b = block
    shape = len(s_a), part.stop - part.start, s_a.shape[1]
    logits_t, logits_s = (x[: math.prod(shape)].view(shape) for x in room)
    torch.bmm(t_a[:, part], t_b.mT, out=logits_t)
    torch.bmm(s_a[:, part], s_b.mT, out=logits_s)
    of_a[:, :, part].baddbmm_(s_b.mT, logits_s.mT)
    of_b.baddbmm_(s_a[:, part].mT, logits_s)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, width] -> fp32 [B, R, T, D]."""
    return x.float().unflatten(-1, (heads, -1)).transpose(1, 2).contiguous()


# --- that they are comparable -----------------------------------------------------------------------------------------

_TOLERANCE = 1e-3
# Ours rounds the gradient of each pair to bf16, and those of a projection in several pairs are then added. The kernel rounds
# the gradient's map to bf16, and what this moves over the middle between two numbers of bf16 is then rounded the other way.
_OF_ROUNDING = 2**-8


def check_agreement(case: Case, make: Callable[[Case], Work] | None = None) -> None:
    """Raise RuntimeError unless the loss that ``make`` makes (None: ours) and the literal one agree.

    Relatively to 1e-3, in value and in every gradient.
    """
    value, gradients = (make or ours)(case)()
    wanted, by_formula = _literal_by_sequence(case)
    pairs = {"loss": (value, wanted)} | dict(zip("qkv", zip(gradients, by_formula, strict=True), strict=True))
    for name, (own, literally) in pairs.items():
        own, literally = own.double(), literally.double()
        error = float((own - literally).norm() / literally.norm().clamp(min=1e-30))
        rounded = name != "loss" and (make is fused or sum(name in pair for pair in case.setting.pairs) > 1)
        if not error <= (_OF_ROUNDING if rounded else _TOLERANCE):
            differing = name if name == "loss" else f"gradient of {name}"
            raise RuntimeError(
                f"{case.names}: the {differing} differs from the literal one's by {error:.1e} of its size"
            )


def _literal_by_sequence(case: Case) -> tuple[Tensor, list[Tensor]]:
    """The literal loss and gradients, a sequence at a time, so that this fits where the whole batch would not."""
    teacher, student = inputs(case)
    losses, gradients = [], []
    for row in range(case.batch):
        of_teacher, of_student = (QKV(*(x[row : row + 1] for x in model)) for model in (teacher, student))
        loss, own = _with_gradients(literal_loss(of_teacher, of_student, case.setting) / case.batch, of_student)
        losses.append(loss)
        gradients.append(own)
    return torch.stack(losses).sum(), [torch.cat(each) for each in zip(*gradients, strict=True)]
