"""``bench loss --static``: the fused loss's time on GPUs that need not be here, from its compiled kernels.

Each pass is compiled for the chip and disassembled, and the instructions of its loop over whole tiles are counted. Several
units of a multiprocessor work at once; each gives a bound, in cycles an entry of a map, and the largest is the prediction:

* issue: four schedulers issue an instruction of a warp in a clock;
* fp32: sums and products; integer operations are too few to bind;
* exponentials: 16 in a clock, with logarithms and conversions, which the same unit does;
* tensor: products of padded heads at the dense rate;
* memory: operands, two numbers a row, and gradients, each read or written once, at the data sheet's bandwidth.

Left out are what comes before and after the loop, masked tiles, waiting (latencies, the cache's bandwidth, barriers) and
launches. It is a bound, not a measurement: no GPU has confirmed it.
"""

import functools
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import triton

from data_prep.cli import UserError
from pipeline.bench.tools import Row, Setting, settings_of
from pipeline.fused.compiled import compiled, inspected
from pipeline.fused.limits import WIDEST, interpreted
from pipeline.fused.loss import constants
from pipeline.plan.fused import NUMBER, passes_of, tensor_cycles, traffic
from pipeline.plan.hardware import EXPONENTIALS, GPUS, LANES, RATES, SCHEDULERS, Gpu, find_gpu

# Opcodes begin with one of these. FFMA2 and the like are two operations in one instruction.
UNITS = {
    "fp32": ("FFMA", "FMUL", "FADD"),
    "exponentials": ("MUFU", "F2F.", "F2I.", "I2F."),
    "tensor": ("HMMA", "HGMMA", "UTCHMMA"),
    "memory": ("LD", "ST", "SHFL", "UTMA", "UBLKCP", "RED.", "ATOM"),
    "integer": (
        *("IADD", "VIADD", "IMAD", "LEA", "LOP3", "SHF.", "PRMT", "F2FP"),
        *("FMNMX", "FSEL", "SEL", "ISETP", "FSETP"),
    ),
}
PASS_NAMES = {"statistics": "first pass", "rows": "rows", "columns": "columns", "both": "rows and columns"}
LARGE = (1024, 384)  # the third of the shapes that are counted unless others are named, with 64 heads
TARGETS = {  # µs a sequence on sm_90
    (("qq", "kk", "vv"), 48, 512, (768, 384)): 45,
    (("qk", "vv"), 12, 512, (768, 384)): 9,
    (("qq", "kk", "vv"), 64, 512, LARGE): 60,
}


@dataclass(frozen=True)
class CountedRow(Row):
    """A row, with the numbers of its note by name."""

    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Counts:
    """Of a pass: ``instructions`` an entry by unit, and cycles an entry and multiprocessor that units take."""

    instructions: dict[str, float]
    cycles: dict[str, float]


def static(options: Namespace) -> Iterator[Row]:
    """The rows of every GPU, or the one that is named, for every shape. Raises UserError for what cannot be counted."""
    if interpreted():
        raise UserError("--static: TRITON_INTERPRET=1 interprets kernels instead of compiling them: unset it")
    gpus = [find_gpu(options.gpu)] if options.gpu else [gpu for gpu in GPUS.values() if gpu.chip in RATES]
    if gpus[0].chip not in RATES:
        raise UserError(f"--gpu {gpus[0].name}: the fused loss does not run there; it needs bf16 units")
    for gpu in gpus:
        for setting, widths in _shapes(options):
            for length in sorted(set(options.length)):
                yield from _rows(gpu, setting, length, widths)


def _shapes(options: Namespace) -> list[tuple[Setting, tuple[int, int]]]:
    """Settings and the widths of teacher and student."""
    teacher, student = options.widths
    settings = settings_of(options.heads, options.pairs, {"teacher": teacher, "student": student})
    shapes = [(setting, (teacher, student)) for setting in settings]
    if options.pairs is None and options.heads == [12, 48] and (teacher, student) == (768, 384):
        shapes += [(setting, LARGE) for setting in settings_of([64], None, {})]
    for setting, widths in shapes:
        widest = max(widths) // setting.heads
        if widest > WIDEST:
            raise UserError(f"--heads {setting.heads}: heads are {widest} wide, and the kernel takes at most {WIDEST}")
    return shapes


def _rows(gpu: Gpu, setting: Setting, length: int, widths: tuple[int, int]) -> Iterator[Row]:
    """The passes of each pair, and the prediction."""
    heads = setting.heads
    of_head = widths[0] // heads, widths[1] // heads
    case = {"gpu": gpu.name, "chip": gpu.chip, **setting.case, "length": length, "widths": list(widths)}
    case["triton"] = triton.__version__
    entries = heads * length**2
    cycles_a_second = 1e9 * gpu.processors * gpu.clock
    seconds, read = 0.0, 0
    shown: set[tuple[str, int]] = set()
    for pair in setting.pairs:
        for name in passes_of(pair):
            counts = count(name, of_head, gpu.chip)
            memory = traffic(name, pair, of_head, heads, length) / (1e9 * gpu.bandwidth)
            bounds = counts.cycles | {
                "tensor": tensor_cycles(name, of_head, gpu.chip),
                "memory": memory * cycles_a_second / entries,
            }
            slowest = max(bounds, key=lambda unit: bounds[unit])
            seconds += bounds[slowest] * entries / cycles_a_second
            read += _read(name, of_head, gpu.chip, heads, length)
            if (name, len(set(pair))) in shown:  # kk is as qq
                continue
            shown.add((name, len(set(pair))))
            label, parts = f"{PASS_NAMES[name]}, {pair}", counts.instructions
            yield CountedRow(label, sum(parts.values()), "an entry", f"instructions: {_listed(parts)}", case, parts)
            note = f"an entry and SM, by {slowest}: {_listed(bounds)}"
            yield CountedRow(label, bounds[slowest], "cycles", note, case, bounds)

    target = TARGETS.get((setting.pairs, heads, length, widths)) if gpu.chip == "sm_90" else None
    note = f"{gpu.processors} SMs at {gpu.clock:g} GHz, counted, not measured"
    yield Row("predicted", 1e6 * seconds, "µs/sequence", note + (f"; target: at most {target}" if target else ""), case)
    yield Row("reads", read / seconds / 1e12, "TB/s", "what programs would then read, most of it from the cache", case)


def _listed(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in parts.items())


def _read(name: str, widths: tuple[int, int], chip: str, heads: int, length: int) -> int:
    """Bytes that the programs of a pass read for a sequence: each its rows, and all keys."""
    rows = _constants(name, widths, chip)["BM"]
    programs = heads * -(-length // rows)
    return programs * (rows + length) * sum(widths) * NUMBER


# --- counting ---------------------------------------------------------------------------------------------------------


def _side(name: str) -> str | None:
    return None if name == "statistics" else name


def _constants(name: str, widths: tuple[int, int], chip: str) -> dict:
    return constants(widths, True, True, _side(name), chip)


@functools.cache
def count(name: str, widths: tuple[int, int], chip: str) -> Counts:
    """Compile a pass in bf16, for sequences without padding and heads of these ``widths``, and count."""
    opcodes = tile_loop(inspected(compiled(_side(name), widths, "bf16", True, chip), "nvdisasm", "-c"))
    fixed = _constants(name, widths, chip)
    return counts_of(opcodes, fixed["num_warps"], fixed["BM"] * fixed["BN"], chip)


def counts_of(opcodes: list[str], warps: int, entries: int, chip: str) -> Counts:
    """What ``opcodes``, which each of ``warps`` runs for a tile of ``entries``, are an entry."""
    units = Counter(unit_of(opcode) for opcode in opcodes)
    threads = warps * LANES / entries
    twice = sum(opcode.split(".")[0].endswith("2") for opcode in opcodes if unit_of(opcode) == "fp32")
    cycles = {
        "issue": len(opcodes) * warps / SCHEDULERS / entries,
        "fp32": (units["fp32"] + twice) * threads / RATES[chip].fp32,
        "exponentials": units["exponentials"] * threads / EXPONENTIALS,
    }
    return Counts({unit: units[unit] * threads for unit in (*UNITS, "other")}, cycles)


def unit_of(opcode: str) -> str:
    return next((unit for unit, starts in UNITS.items() if opcode.startswith(starts)), "other")


def tile_loop(text: str) -> list[str]:
    """Opcodes of the first loop of a disassembly that has products and exponentials, and no such loop in it: whole tiles.

    Raises RuntimeError if there is none.
    """
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, int]] = []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(opcodes)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\S+)(.*?);", line):
            target = re.search(r"\.L_x_\d+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                jumps.append((labels[target[0]], len(opcodes)))
            opcodes.append(found[1])

    def works(jump: tuple[int, int]) -> bool:
        units = {unit_of(opcode) for opcode in opcodes[jump[0] : jump[1] + 1]}
        return {"tensor", "exponentials"} <= units

    loops = sorted(jump for jump in jumps if works(jump))
    for first, last in loops:
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops):
            return opcodes[first : last + 1]
    raise RuntimeError("the compiled kernel has no loop with products and exponentials")
