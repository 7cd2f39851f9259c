"""Sizes: parameters as the papers count them, and floating-point operations of a forward."""

import torch
from transformers import (
    AutoModel,
    PreTrainedConfig,
)

from pipeline.models.families import family_of


def count_parameters(config: PreTrainedConfig) -> dict[str, int]:
    """Parameters of a model of this shape, as the papers count them: word embeddings, Transformer layers, the rest."""
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    embeddings = model.get_input_embeddings().weight.numel()
    layers = sum(p.numel() for p in family_of(config).layers(model).parameters())
    total = sum(p.numel() for p in model.parameters())
    return {
        "embeddings": embeddings,
        "transformer": layers,
        "other": total - embeddings - layers,
        "total": total,
    }


def forward_flops(config: PreTrainedConfig, layer: int, length: int, earlier: int = 0, whole: bool = False) -> float:
    """Floating-point operations of the cut's forward of one sequence: its matrix products, 2 for each multiply-add.

    That is ``layer`` − 1 whole layers, and three projections of the last and of each of the ``earlier`` ones (a number) that
    return theirs; or ``layer`` ``whole`` ones. A backward takes twice as many. Local attention counts as global, since it is
    computed whole and masked.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    family = family_of(config)
    projections = width**2 + 2 * width**2 * getattr(config, "num_key_value_heads", heads) // heads
    ffn = (3 if family.gated else 2) * width * getattr(config, family.ffn)
    each = projections + width**2 + ffn + 2 * length * width  # q, k, v, output, FFN, q·k and the sum of values
    if whole:
        return 2.0 * length * layer * each
    return 2.0 * length * ((layer - 1) * each + (1 + earlier) * projections)
