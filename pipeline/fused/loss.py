"""The fused relation loss of one pair: the first pass in forward, the second in backward (kernels.py)."""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.bounds import Bounds
from pipeline.fused import kernels
from pipeline.fused.limits import LOW, interpreted, padded_width

LOG2_E, LN_2 = math.log2(math.e), math.log(2)
LARGEST = 2**15  # a number that fp16 holds: a sequence of two tokens has entries of half of it in its gradient's map
HOPPER, BLACKWELL = "sm_90", "sm_10"


class Rows(NamedTuple):
    """Of each row of a batch [B, T] its range of keys ``first`` … ``stop`` − 1, int32, and its ``weight`` in a head, fp32.

    Sequences in one row have ranges of their own, and all positions in a range have that range. Padding has an empty one.
    """

    first: Tensor
    stop: Tensor
    weight: Tensor


def rows_of(bounds: Bounds, heads: int) -> Rows:
    """The rows of maps of sequences with these ``bounds``."""
    first, stop = (x.contiguous() for x in (bounds.first, bounds.stop))
    return Rows(first, stop, (bounds.weight(torch.float32) / heads).contiguous())


class Tile(NamedTuple):
    """How large the tiles are, and how a program runs: rows, columns, warps, tiles in flight."""

    rows: int
    columns: int
    warps: int
    stages: int


def tile_of(padded: int, low_precision: bool, chip: str) -> Tile:
    """The tile for heads that are ``padded`` wide, teacher's and student's together: what registers hold without spilling."""
    if not low_precision:
        return Tile(32, 16, 2, 1) if chip.startswith(BLACKWELL) else Tile(64, 16, 4, 1)
    if chip.startswith(BLACKWELL):  # its tensor cores leave a row to a thread, if there are as many rows as threads
        return Tile(128, 32, 4, 2)
    return Tile(64, 64 if padded <= 96 else 32, 4, 2)


def polynomials(side: str | None, padded: int, chip: str) -> int:
    """One in how many columns has the teacher's exponentials computed as polynomials, 0: none; what balances both units.

    From the counts of ``bench loss --static``. On AMD's chips one unit does both.
    """
    if chip.startswith("gfx") or (side == "both" and padded > 32):
        return 0
    return 8 if side in ("columns", "both") and chip == HOPPER else 4


def precision_of(low_precision: bool, chip: str) -> str:
    """How products are taken. Of fp32 in three of NVIDIA's tf32, which is as exact, and on AMD's units for it."""
    if interpreted():
        return "widened"
    return "ieee" if low_precision or chip.startswith("gfx") else "tf32x3"


def constants(widths: tuple[int, int], low_precision: bool, whole: bool, side: str | None, chip: str) -> dict[str, Any]:
    """What a kernel is compiled for: head ``widths`` of teacher and student; the ``side`` of the second pass, None: the first.

    ``chip``: as of ``chip_of``; ``whole``: there is no padding.
    """
    padded = [padded_width(width) for width in widths]
    tile = tile_of(sum(padded), low_precision, chip)
    found: dict[str, Any] = {
        **{"D_T": widths[0], "P_T": padded[0], "D_S": widths[1], "P_S": padded[1], "WHOLE": whole},
        **{"BM": tile.rows, "BN": tile.columns, "STAGES": tile.stages, "PRECISION": precision_of(low_precision, chip)},
        **{"SHARED": polynomials(side, sum(padded), chip) if low_precision else 0},
        **{"num_warps": tile.warps, "enable_fp_fusion": True},
    }
    return found if side is None else found | {"SIDE": side}


@functools.cache
def chip_of(device: torch.device) -> str:
    """The compiler's name of a GPU's chip: sm_90, gfx942. A CPU, on which Triton interprets, passes for sm_90."""
    if device.type == "cpu":
        return HOPPER
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


class PairLoss(torch.autograd.Function):
    """Σ over rows of weight · KL(R_teacher ‖ R_student), a scalar in nats, of operands [B, T, heads · D].

    ``rows`` None: all keys are real, and each row of each head weighs the same. Gradients reach s_a and s_b; if these are one
    tensor, s_a's is by both places.
    """

    @staticmethod
    def forward(ctx: Any, t_a: Tensor, t_b: Tensor, s_a: Tensor, s_b: Tensor, heads: int, rows: Rows | None) -> Tensor:
        ctx.heads, ctx.symmetric = heads, s_a is s_b and t_a is t_b
        t_a, t_b, s_a, s_b = (_readable(x) for x in (t_a, t_b, s_a, s_b))
        loss, logs = _Maps(t_a, t_b, s_a, s_b, heads, rows).statistics()
        ctx.save_for_backward(logs, t_a, t_b, s_a, s_b, *(rows or ()))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logs, t_a, t_b, s_a, s_b, *saved = ctx.saved_tensors
        rows = Rows(*saved) if saved else None
        grad_a = grad_b = None
        if ctx.symmetric:
            grad_a = _Maps(t_a, t_b, s_a, s_b, ctx.heads, rows).gradient("both", logs, upstream)
        else:
            if ctx.needs_input_grad[2]:
                grad_a = _Maps(t_a, t_b, s_a, s_b, ctx.heads, rows).gradient("rows", logs, upstream)
            if ctx.needs_input_grad[3]:
                grad_b = _Maps(t_b, t_a, s_b, s_a, ctx.heads, rows).gradient("columns", logs, upstream)
        return None, None, grad_a, grad_b, None, None


def _readable(x: Tensor) -> Tensor:
    """x with a last stride of 1, and sequences that 32 bits number."""
    return x if x.stride(-1) == 1 and x.shape[1] * x.stride(1) < 2**31 else x.contiguous()


@dataclass(frozen=True)
class _Maps:
    """The maps of all heads of a batch, by their operands; launches the kernels. Arguments as of PairLoss."""

    t_a: Tensor
    t_b: Tensor
    s_a: Tensor
    s_b: Tensor
    heads: int
    rows: Rows | None

    def statistics(self) -> tuple[Tensor, Tensor]:
        """The loss, and logarithms [2, B, heads, T] of the teacher's and the student's rows (kernels.statistics)."""
        batch, length, _ = self.s_a.shape
        logs = torch.empty((2, batch, self.heads, length), dtype=torch.float32, device=self.s_a.device)
        fixed = self._constants(None)
        of_programs = torch.empty(self._programs(fixed["BM"]), dtype=torch.float32, device=self.s_a.device)
        self._launch(kernels.statistics, fixed, logs, of_programs)
        return of_programs.sum() * LN_2, logs

    def gradient(self, side: str, logs: Tensor, upstream: Tensor) -> Tensor:
        """The gradient by a, in its dtype, times the scalar ``upstream``; ``side`` as in kernels.gradient."""
        grad = torch.empty(self.s_a.shape, dtype=self.s_a.dtype, device=self.s_a.device)
        shares = (logs[..., :1] - logs).exp2_() if side == "both" else logs
        self._launch(kernels.gradient, self._constants(side), logs, *shares, upstream.float(), grad)
        return grad

    def _launch(self, kernel: Any, fixed: dict[str, Any], logs: Tensor, *rest: Tensor) -> None:
        """Run ``kernel``; ``rest``: its arguments between ``log_s`` and the strides."""
        teacher, student = self.t_a, self.s_a
        widths = fixed["D_T"], fixed["D_S"]
        scales = [LOG2_E / math.sqrt(width) for width in widths]
        strides = [teacher.stride(0), teacher.stride(1), student.stride(0), student.stride(1)]
        batch, length, _ = student.shape
        every_head = 1 / (batch * self.heads)
        unit = every_head / (LARGEST if student.dtype == torch.float16 else length)
        scalars = [every_head / length, unit, *scales]
        if kernel is kernels.gradient:
            strides += [rest[-1].stride(0), rest[-1].stride(1)]
            scalars = [every_head / length, *scales, unit / math.sqrt(widths[1])]
        operands = self.t_a, self.t_b, self.s_a, self.s_b
        rows = self.rows or Rows(logs, logs, logs)  # which are not read
        grid = (self._programs(fixed["BM"]),)
        with torch.cuda.device_of(student):
            kernel[grid](*operands, *rows, *logs, *rest, *strides, length, self.heads, *scalars, **fixed)

    def _programs(self, rows: int) -> int:
        batch, length, _ = self.s_a.shape
        return batch * self.heads * -(-length // rows)

    def _constants(self, side: str | None) -> dict[str, Any]:
        widths = self.t_a.shape[2] // self.heads, self.s_a.shape[2] // self.heads
        low_precision = self.t_a.dtype in LOW and self.s_a.dtype in LOW
        return constants(widths, low_precision, self.rows is None, side, chip_of(self.s_a.device))
