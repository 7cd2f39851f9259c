"""bf16 on machines that have no bf16 arithmetic.

torch runs a bf16 matrix product on a CPU without such units (AVX2, older AVX-512) in a plain loop, many times slower than
the fp32 one. What a bf16 unit does is: multiply exactly, add up in fp32, round the result to bf16. The same comes out of
widening the operands to fp32, an fp32 product, and rounding; so on these machines the linear layers and the attention of
an encoder are run that way. Weights, activations, gradients and traffic stay bf16.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def lacks_bf16_units(device: torch.device) -> bool:
    """Whether bf16 products on this device are slower than fp32 ones: true for CPUs without AVX-512 bf16 or AMX."""
    return device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def widen_products(encoder: nn.Module) -> None:
    """Make every linear layer and attention inside ``encoder`` multiply in fp32 and round to the input's dtype."""
    for module in encoder.modules():
        if type(module) is nn.Linear:
            module.__class__ = WideLinear
        if hasattr(module, "config"):
            module.config._attn_implementation = "wide_sdpa"


class WideLinear(nn.Linear):
    """A linear layer of bf16 weights whose product is taken in fp32. Parameters and names are nn.Linear's."""

    def forward(self, x):
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x.float(), self.weight.float(), bias).to(x.dtype)


def wide_sdpa(module, query, key, value, attention_mask, **options):
    """transformers' SDPA attention with its products in fp32; shapes as there."""
    output, weights = sdpa_attention_forward(
        module,
        query.float(),
        key.float(),
        value.float(),
        _float_mask(attention_mask),
        **options,
    )
    return output.to(query.dtype), weights


def _float_mask(mask):
    return mask if mask is None or mask.dtype == torch.bool else mask.float()


AttentionInterface.register("wide_sdpa", wide_sdpa)
AttentionMaskInterface.register("wide_sdpa", sdpa_mask)
