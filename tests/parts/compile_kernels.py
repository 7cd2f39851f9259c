"""``python -m tests.parts.compile_kernels CHIP``: compile the kernels, in a process where Triton does not interpret.

Prints a JSON list: [name of the configuration, registers, bytes spilled, bytes of shared memory].
"""

import json
import sys

from pipeline.fused.compiled import compiled, resources

WIDTHS = {"bf16": [(16, 8), (64, 32), (128, 128)], "fp32": [(16, 8), (64, 32)]}  # one pair for each tile


def configurations():
    for dtype, all_widths in WIDTHS.items():
        for widths in all_widths:
            for side in (None, "rows", "columns", "both"):
                yield side, widths, dtype, False
    for side in (None, "both"):  # without padding
        yield side, (16, 8), "bf16", True
        yield side, (64, 32), "bf16", True


if __name__ == "__main__":
    chip = sys.argv[1]
    found = [[str(each), *resources(compiled(*each, chip))] for each in configurations()]
    print(json.dumps(found))
