"""The kernels compiled for a chip that need not be here, for tests and counts."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from data_prep.cli import UserError
from pipeline.fused import kernels
from pipeline.fused.loss import constants

_POINTERS = {"first": "*i32", "stop": "*i32"} | dict.fromkeys(
    ("weight", "log_t", "log_s", "share_t", "share_s", "loss", "upstream"), "*fp32"
)
_FLOATS = ("even", "unit", "c_t", "c_s", "factor")


def compiled(side: str | None, widths: tuple[int, int], dtype: str, whole: bool, chip: str) -> Any:
    """A pass (``side`` None: the first) for head ``widths`` and ``dtype`` (bf16, fp16, fp32) of both models; Triton's object.

    Tensors are taken to start at multiples of 16 bytes, and rows to be as far apart, as they are for any usual width.
    """
    fixed = constants(widths, dtype != "fp32", whole, side, chip)
    options = {name: fixed.pop(name) for name in ("num_warps", "enable_fp_fusion")}
    kernel = kernels.statistics if side is None else kernels.gradient
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        aligned = name.startswith("stride")
        if name in fixed:
            signature[name] = "constexpr"
        elif name in _FLOATS:
            signature[name] = "fp32"
        elif aligned or name in ("length", "heads"):
            signature[name] = "i32"
        else:
            aligned, signature[name] = True, _POINTERS.get(name, f"*{dtype}")
        if aligned:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=attributes)
    return triton.compile(source, target=target_of(chip), options=options)


def target_of(chip: str) -> GPUTarget:
    """Triton's name of a chip: sm_90, gfx942."""
    if chip.startswith("gfx"):
        return GPUTarget("hip", chip, 64)
    return GPUTarget("cuda", int(chip.removeprefix("sm_")), 32)


def inspected(kernel: Any, tool: str, option: str) -> str:
    """What NVIDIA's ``tool``, which Triton's wheels bring, prints about a ``compiled`` kernel. Raises UserError without it."""
    path = Path(triton.__file__).parent / "backends/nvidia/bin" / tool
    if not path.is_file():
        raise UserError(f"{path} is missing, which Triton's wheels have: pip install --force-reinstall triton")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([path, option, file.name], capture_output=True, text=True, check=True).stdout


class Resources(NamedTuple):
    """What a program takes: ``registers`` of a thread, bytes of it that ``spilled`` to memory, bytes of ``shared`` memory."""

    registers: int
    spilled: int
    shared: int


def resources(kernel: Any) -> Resources:
    """Resources of a ``compiled`` kernel, as its assembler counts them."""
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        registers = int(_number(r"\.vgpr_count: +(\d+)", text))
        spilled = int(_number(r"\.private_segment_fixed_size: +(\d+)", text))
    else:
        text = inspected(kernel, "cuobjdump", "-res-usage")
        registers, spilled = (int(_number(rf"\b{name}:(\d+)", text)) for name in ("REG", "STACK"))
    return Resources(registers, spilled, kernel.metadata.shared)


def _number(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if not found:
        raise RuntimeError(f"no {pattern} in what the assembler says: {text[:200]}")
    return found[1]
