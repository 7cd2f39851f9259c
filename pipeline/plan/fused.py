"""Seconds of the fused relation loss (pipeline.fused), from the instructions of its compiled kernels and memory traffic.

An entry is one of a T × T map of a relation head. cycles.py has what was counted; ``bench loss --static`` counts anew.
"""

from pipeline.fused.limits import WIDEST, padded_width
from pipeline.plan.cycles import CYCLES
from pipeline.plan.hardware import RATES, Gpu
from pipeline.plan.sizes import Cut
from pipeline.settings.recipe import Recipe

PASSES = ("statistics", "rows", "columns", "both")
NUMBER = 2  # bytes of a bf16 number


def passes_of(pair: str) -> tuple[str, ...]:
    """The passes over the maps of a pair of q, k and v: a symmetric one has a single second pass."""
    return ("statistics", "both") if len(set(pair)) == 1 else ("statistics", "rows", "columns")


def tensor_cycles(name: str, widths: tuple[int, int], chip: str) -> float:
    """Cycles an entry and multiprocessor of the products of a pass: two logits, and a gradient's, which are two."""
    teacher, student = map(padded_width, widths)
    numbers = teacher + student if name == "statistics" else teacher + 3 * student
    return 2 * numbers / RATES[chip].tensor


def traffic(name: str, pair: str, widths: tuple[int, int], heads: int, length: int) -> int:
    """Bytes that a pass has to read or write for a sequence: operands, two fp32 numbers a row, and a gradient.

    ``widths``: of heads. What programs read again is taken to come from the cache.
    """
    bytes_read = NUMBER * len(set(pair)) * length * heads * sum(widths)
    gradient = 0 if name == "statistics" else NUMBER * length * heads * widths[1]
    return bytes_read + 2 * 4 * length * heads + gradient


def head_widths(recipe: Recipe, teacher: Cut, student: Cut) -> tuple[int, int]:
    return teacher.width // recipe.relation_heads, student.width // recipe.relation_heads


def is_fused(recipe: Recipe, chip: str, teacher: Cut, student: Cut) -> bool:
    """Whether the loss runs by the kernel, as training/which_loss.py decides it, and its cycles are known."""
    taken = recipe.loss_kernel == "triton" or (recipe.loss_kernel == "auto" and recipe.compile != "none")
    fits = max(head_widths(recipe, teacher, student)) <= WIDEST
    return taken and fits and bool(recipe.relations) and recipe.precision == "bf16" and chip in CYCLES


def fused_seconds(recipe: Recipe, gpu: Gpu, teacher: Cut, student: Cut) -> float:
    """Seconds of the fused loss of one sequence: counted cycles, and memory traffic. Nothing waits: it is a bound."""
    heads, length = recipe.relation_heads, recipe.length
    widths = head_widths(recipe, teacher, student)
    peak = RATES[gpu.chip].tensor * gpu.processors * gpu.clock
    slower, seconds = max(1, round(peak / gpu.low)), 0.0  # 2 for a GeForce card
    for pair in recipe.relations:
        for name in passes_of(pair):
            cycles = max(counted(name, widths, gpu.chip), slower * tensor_cycles(name, widths, gpu.chip))
            seconds += cycles * heads * length**2 / (1e9 * gpu.processors * gpu.clock)
            seconds += traffic(name, pair, widths, heads, length) / (1e9 * gpu.bandwidth)
    return len(recipe.layers) * seconds


def counted(name: str, widths: tuple[int, int], chip: str) -> float:
    """Cycles an entry and multiprocessor of a pass, by the table. The teacher's heads are taken to be no narrower."""
    teacher, student = map(padded_width, widths)
    return CYCLES[chip][max(teacher, student), student][PASSES.index(name)]
