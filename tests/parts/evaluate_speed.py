"""Cells an hour of `evaluate` on this machine's first two cores: one worker with one, two with one each, one with both.

    python -m tests.parts.evaluate_speed MODEL DATA OUT [--task rte,mrpc] [--epochs 1] [--cells 4] [--repeats 1]

``cells``: of each task, an even number. The time is from the first cell's begin to the last one's end, as their files say:
what is loaded before is not in it. The cells of one worker and of two with a core each are compared, and must be equal.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

WAYS = {"one worker, one core": (1, 1), "two workers, a core each": (2, 2), "one worker, two cores": (1, 2)}


def cells_of(out: Path) -> dict[str, dict]:
    return {str(path.relative_to(out)): json.loads(path.read_text()) for path in sorted(out.glob("*/*/lr*.json"))}


def cells_an_hour(out: Path) -> float:
    """By the cells' files: their number over the time from the first begin to the last end."""
    found = cells_of(out)
    ends = {name: (out / name).stat().st_mtime for name in found}
    begin = min(end - found[name]["seconds"] for name, end in ends.items())
    return 3600 * len(found) / (max(ends.values()) - begin)


def measure(options: argparse.Namespace, way: str, out: Path) -> float:
    workers, cores = WAYS[way]
    mask = ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores]))
    words = ["--model", options.model, "--data", options.data, "--task", options.task, "--epochs", options.epochs]
    words += ["--out", out, "--workers", workers, "--seeds", *range(1, options.cells + 1)]
    command = ["taskset", "--cpu-list", mask, sys.executable, "-m", "pipeline.evaluate", *words]
    environment = os.environ | {"OMP_NUM_THREADS": str(cores), "RAYON_NUM_THREADS": str(cores)}
    subprocess.run(list(map(str, command)), env=environment, check=True, stdout=subprocess.DEVNULL)
    return cells_an_hour(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "data", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--task", default="rte,mrpc")
    for name, default in (("--epochs", 1), ("--cells", 4), ("--repeats", 1)):
        parser.add_argument(name, type=int, default=default)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for repeat in range(options.repeats):
        for way in WAYS:
            rates[way].append(measure(options, way, options.out / f"{repeat}-{way.replace(' ', '-').replace(',', '')}"))
            print(f"{way}: {rates[way][-1]:.1f} cells an hour", flush=True)
    first, second = (cells_of(options.out / f"0-{name}") for name in ("one-worker-one-core", "two-workers-a-core-each"))
    wrong = [name for name, cell in first.items() if cell["scores"] != second[name]["scores"]]
    one, two, both = (statistics.median(each) for each in rates.values())
    print(
        f"two workers / one with one core: {two / one:.2f}; / one with both: {two / both:.2f}; other scores: {len(wrong)}"
    )


if __name__ == "__main__":
    main()
