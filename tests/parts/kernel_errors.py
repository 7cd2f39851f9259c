"""``TRITON_INTERPRET=1 python -m tests.parts.kernel_errors``: the fused loss at full length against fp64; takes twenty minutes.

A line each: heads, their widths, the pair, lengths; the loss's error in nats, and that of the gradient, of a's and b's the
larger, by what rounding the exact one to bf16 leaves.
"""

import torch

from tests.fused.test_kernels import BF16, compare, operands

SHAPES = ((12, (64, 32), "qk"), (12, (64, 32), "vv"), (48, (16, 8), "qq"), (64, (16, 6), "qq"))

if __name__ == "__main__":
    for heads, widths, pair in SHAPES:
        for lengths in (None, torch.tensor([512, 200])):
            batch = 1 if lengths is None else 2
            error, errors, roundings = compare(*operands(batch, 512, widths, heads, pair, BF16), heads, lengths)
            worst = max(one / other for one, other in zip(errors, roundings, strict=True))
            said = lengths if lengths is None else lengths.tolist()
            print(heads, widths, pair, said, f"{error:.1e} {worst:.3f}", flush=True)
