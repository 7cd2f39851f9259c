"""Arithmetic that suits the machine: bf16 on CPUs that are faster in fp32, and dropout on CPUs.

What a bf16 unit does is: multiply exactly, add up in fp32, round the result to bf16. The same comes out of widening the
operands to fp32, an fp32 product, and rounding; so where that is the faster way (arithmetic.py) the linear layers and the
attention of an encoder are run that way. Weights, activations, gradients and traffic stay bf16.
"""

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from pipeline.models.arithmetic import Way, widened_product, widens
from pipeline.models.attention import by_pieces
from pipeline.models.dropout import BulkDropout, dropped_attention

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_WIDENED = ", products widened to fp32"


def arithmetic_of(precision: str, device: torch.device, arithmetic: str) -> str:
    """A name of what a model is computed with on ``device``, given its recipe's keys: elsewhere its last bits are others."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    widened = _WIDENED if widens(arithmetic, precision, device) else ""
    return f"{precision} on {name}{widened}"


def way_of(name: object) -> Way | None:
    """How bf16 products were taken on a CPU, of what ``arithmetic_of`` has given; None where there was no choice."""
    if not isinstance(name, str) or not name.startswith("bf16 on cpu"):
        return None
    return "widened" if name.endswith(_WIDENED) else "native"


def fit_arithmetic(encoder: nn.Module, precision: str, device: torch.device, arithmetic: str = "auto") -> None:
    """Give ``encoder``, whose weights are ``precision``, the arithmetic that is fast on ``device``, where it stays.

    ``arithmetic``: a recipe's.
    """
    if device.type == "cpu":
        for module in encoder.modules():
            if type(module) is nn.Dropout:
                module.__class__ = BulkDropout
            attend_by("cpu_sdpa", module)
    if widens(arithmetic, precision, device):
        widen_products(encoder)


def use_torchs_own(encoder: nn.Module) -> None:
    """Undo ``fit_arithmetic`` with native products: ``encoder`` has torch's own dropout and attention, as on a GPU."""
    for module in encoder.modules():
        module.__class__ = nn.Dropout if type(module) is BulkDropout else type(module)
        attend_by("plain_sdpa", module)


def widen_products(encoder: nn.Module) -> None:
    """Make every linear layer and attention inside ``encoder`` multiply in fp32 and round to the input's dtype."""
    for module in encoder.modules():
        if type(module) is nn.Linear:
            module.__class__ = WideLinear
        attend_by("wide_sdpa", module)


def attend_by_pieces(encoder: nn.Module) -> None:
    """Have ``encoder`` take packed rows. An attention that ``fit_arithmetic`` gave to it or another of its config stays."""
    for module in encoder.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig) and config._attn_implementation == "sdpa":  # noqa: SLF001
            attend_by("plain_sdpa", module)


def attend_by(attention: str, module: nn.Module) -> None:
    """Have a transformers module attend by this function of the AttentionInterface; its setter would check the name again."""
    if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
        config._attn_implementation = attention  # noqa: SLF001


def keep_widened(encoder: nn.Module) -> None:
    """Keep the weights of ``encoder``'s widened layers in fp32: the same numbers, which nothing then casts in a forward."""
    for module in encoder.modules():
        if isinstance(module, WideLinear):
            module.float()


class WideLinear(nn.Linear):
    """A linear layer whose product is taken in fp32, its weights bf16 or kept widened. Names are nn.Linear's."""

    def forward(self, x):
        return widened_product(x, self.weight, self.bias)


def cpu_sdpa(module, query, key, value, attention_mask, dropout=0.0, **options):
    """transformers' SDPA attention, but wide_sdpa with dropout, for which torch has no CPU kernel in any dtype."""
    attend = wide_sdpa if dropout else sdpa_attention_forward
    return attend(module, query, key, value, attention_mask, dropout=dropout, **options)


def wide_sdpa(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **options):
    """transformers' SDPA attention with its operands widened to fp32; shapes as there."""
    dtype = query.dtype
    query, key, value = query.float(), key.float(), value.float()
    mask = _float_mask(attention_mask)
    if dropout and not module.is_causal:
        sharing = query.shape[1] // key.shape[1]
        if sharing > 1:  # heads have keys and values in common
            key, value = (x.repeat_interleave(sharing, 1) for x in (key, value))
        return dropped_attention(query, key, value, mask, dropout, scaling).to(dtype), None
    output, weights = sdpa_attention_forward(
        module, query, key, value, mask, dropout=dropout, scaling=scaling, **options
    )
    return output.to(dtype), weights


def _float_mask(mask):
    return mask if mask is None or mask.dtype == torch.bool else mask.float()


for _name, _attend in {"plain_sdpa": sdpa_attention_forward, "cpu_sdpa": cpu_sdpa, "wide_sdpa": wide_sdpa}.items():
    AttentionInterface.register(_name, by_pieces(_attend))
    AttentionMaskInterface.register(_name, sdpa_mask)
