"""Whether the fused loss can run on a device, and whether it computes there what it should.

Nothing here imports Triton before it is known to be there: torch's builds for CPUs do not bring it.
"""

import functools
import importlib.util
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.bounds import bounds_in_a_row
from pipeline.fused.limits import LOW, OLDEST_NVIDIA, OLDEST_TRITON, WIDEST, WIDEST_FP32, interpreted, padded_width


class Shape(NamedTuple):
    """What a loss is of: relation ``heads``, ``widths`` of teacher and student, ``dtypes`` of both, ``pairs``."""

    heads: int
    widths: tuple[int, int]
    dtypes: tuple[torch.dtype, torch.dtype]
    pairs: tuple[str, ...]


@functools.cache
def reason_against(device: torch.device, shape: Shape) -> str:
    """Why the fused loss does not run for ``shape`` on ``device``, in words that follow a colon; "" if it does.

    The first time for a shape it is compiled, run and compared with the formula, which takes seconds.
    """
    return _machine(device) or _shape(shape) or _proof(device, shape)


def _machine(device: torch.device) -> str:
    if device.type != "cuda" and not interpreted():
        return f"it is for GPUs, not for {device.type}"
    if not importlib.util.find_spec("triton"):
        return "Triton is not installed: pip install triton"
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < OLDEST_TRITON:
        return f"Triton {triton.__version__} is older than {'.'.join(map(str, OLDEST_TRITON))}: pip install -U triton"
    if device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) < OLDEST_NVIDIA:
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}, and it needs 8.0"
    return ""


def _shape(shape: Shape) -> str:
    widths = [width // shape.heads for width in shape.widths]
    if max(widths) > WIDEST:
        return f"it takes heads of at most {WIDEST}, and these are {max(widths)} wide: use more relation_heads"
    padded = sum(padded_width(width) for width in widths)
    if not set(shape.dtypes) <= set(LOW) and padded > WIDEST_FP32:
        return f"in fp32 it takes heads of at most {WIDEST_FP32} together, these are {padded}: use bf16, or more relation_heads"
    if not set(shape.dtypes) <= {*LOW, torch.float32}:
        return "it takes bf16, fp16 and fp32"
    return ""


# --- the proof --------------------------------------------------------------------------------------------------------

LENGTHS = (300, 137, 1)  # of the sequences of the proof: whole tiles, parts of tiles, and one token
INTERPRETED_LENGTHS = (70, 17, 1)  # a tile takes milliseconds there
LOSS_ERROR = 1e-5  # nats
FAR = 6.0  # times as long as the others
PADDING = 70  # positions behind the row: more than a tile
GRADIENT_ERROR = 1 / 128  # of its norm: twice what bf16 rounds off


def _proof(device: torch.device, shape: Shape) -> str:
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            loss_error, gradient_error = errors(device, shape, INTERPRETED_LENGTHS if interpreted() else LENGTHS)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return f"it failed when it was tried here ({type(error).__name__}: {first[:160]})"
    if not loss_error <= LOSS_ERROR or not gradient_error <= GRADIENT_ERROR:
        return (
            f"it differs from the formula when it is tried here, by {loss_error:.1e} nats and {gradient_error:.1e} of a "
            "gradient's norm; please report this with your GPU's name and Triton's version"
        )
    return ""


def errors(device: torch.device, shape: Shape, lengths: Sequence[int]) -> tuple[float, float]:
    """How far the fused loss is from the formula in fp64, on random input: in nats, and relative to a gradient's norm.

    The largest over pairs, of sequences of one length and of some with ``lengths`` [tokens] packed into a row that ends in
    padding; of two heads: programs are the same for any number of them. One token is far from all others, as some are in
    models; with it the kernel takes its careful ways, and without padding, where it is left out, the quick ones.
    """
    from pipeline.fused.loss import PairLoss, rows_of

    generator, heads = torch.Generator().manual_seed(0), min(2, shape.heads)
    widths = [width // shape.heads * heads for width in shape.widths]
    worst_loss, worst_gradient = 0.0, 0.0
    for pair in shape.pairs:
        for real in (None, torch.tensor(lengths, device=device)):
            operands = [
                torch.randn(len(lengths), max(lengths), width, generator=generator).to(device, dtype)
                for width, dtype in zip(widths, shape.dtypes, strict=True)
                for _ in sorted(set(pair))
            ]
            if real is not None:
                for x in operands:
                    x[0, lengths[0] // 2] *= FAR
            half = len(operands) // 2
            teacher, student = (x * (2 // half) for x in (operands[:half], operands[half:]))
            for x in student:
                x.requires_grad_()
            if real is None:
                loss = PairLoss.apply(*teacher, *student, heads, None)
            else:
                rows = rows_of(bounds_in_a_row(lengths, PADDING).to(device), heads)
                packed = {id(x): in_a_row(x, lengths) for x in (*teacher, *student)}  # where a is b it stays so
                loss = PairLoss.apply(*(packed[id(x)] for x in (*teacher, *student)), heads, rows)
            wanted = literal(teacher, student, heads, real)
            inputs = student[:half]
            own = torch.autograd.grad(loss, inputs)
            exact = torch.autograd.grad(wanted, inputs)
            worst_loss = max(worst_loss, float((loss - wanted).detach().abs()))
            for one, other in zip(own, exact, strict=True):
                error = (one.double() - other.double()).norm() / other.double().norm()
                worst_gradient = max(worst_gradient, float(error))
    return worst_loss, worst_gradient


def in_a_row(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """The first ``lengths[i]`` positions of each x[i], [B, T, width], and padding, in one row: [1, all positions, width]."""
    row = torch.cat([own[:length] for own, length in zip(x, lengths, strict=True)])
    return F.pad(row, (0, 0, 0, PADDING))[None]


def literal(teacher: Sequence[Tensor], student: Sequence[Tensor], heads: int, lengths: Tensor | None) -> Tensor:
    """The loss of one pair by the papers' formula in fp64; operands a and b of each model [B, T, width]."""
    batch, length, _ = student[0].shape
    lengths = torch.full((batch,), length, device=student[0].device) if lengths is None else lengths
    real = torch.arange(length, device=lengths.device) < lengths[:, None]  # [B, T]
    logs = []
    for a, b in (teacher, student):
        a, b = (x.double().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (a, b))
        logits = a @ b.mT / math.sqrt(a.shape[-1])
        logs.append(logits.masked_fill(~real[:, None, None], -1e300).log_softmax(-1))
    divergence = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)  # [B, heads, T]
    weight = real.double() / (batch * heads * lengths.clamp(min=1)[:, None])
    return (divergence * weight[:, None]).sum()
