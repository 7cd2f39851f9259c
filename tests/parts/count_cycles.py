"""Count the fused loss's cycles anew: ``python -m tests.parts.count_cycles > pipeline/plan/cycles.py``. Takes minutes."""

from pipeline.bench.static import count
from pipeline.fused.limits import WIDEST, padded_width
from pipeline.plan.fused import PASSES
from pipeline.plan.hardware import RATES

HEAD = '''"""Cycles an entry and multiprocessor of the fused relation loss, as ``bench loss --static`` counts them for bf16.

The most of issue, fp32 and exponentials, of the passes "statistics", "rows", "columns" and "both", by chip and by the padded
widths of teacher's and student's heads. Written by ``python -m tests.parts.count_cycles`` (Triton {version}).
"""

CYCLES = {{'''


def classes() -> list[tuple[int, int]]:
    """Padded head widths of teacher and student that the table has."""
    widths = [padded_width(1)]
    while widths[-1] < WIDEST:
        widths.append(2 * widths[-1])
    return [(teacher, student) for teacher in widths for student in widths if student <= teacher]


def fresh(widths: tuple[int, int], chip: str) -> tuple[float, ...]:
    """A row of the table."""
    return tuple(round(max(count(name, widths, chip).cycles.values()), 4) for name in PASSES)


def main() -> None:
    import triton

    lines = [HEAD.format(version=triton.__version__)]
    for chip in RATES:
        lines.append(f'    "{chip}": {{')
        lines += [f"        {widths}: {fresh(widths, chip)}," for widths in classes()]
        lines.append("    },")
    print("\n".join([*lines, "}"]))


if __name__ == "__main__":
    main()
