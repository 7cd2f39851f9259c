"""Families of encoders: where each keeps its parts, and what its config calls them. Another family is one more entry."""

from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor, nn
from transformers import PreTrainedConfig

from data_prep.cli import UserError

Rotation = tuple[Tensor, Tensor]  # cosines and sines of the positions' angles, each [1, T, width of a head]


@dataclass(frozen=True)
class Family:
    """Paths of modules as ``get_submodule`` reads them: of a model, or of one of its layers.

    ``projections_at`` are three linear layers, or one that gives q, k and v side by side. ``rotated``, of a family that has
    no position embeddings: what its ``rotary_emb`` is asked with. ``gated``: the FFN has three matrices.

    A layer is called as ``layer(hidden, attention_mask=…)``, rotated ones with ``position_embeddings``, in packed rows with
    ``pieces``, which it passes on to transformers' attention function (attention.py); it returns a tensor.
    """

    embeddings_at: str = "embeddings"
    layers_at: str = "encoder.layer"
    projections_at: tuple[str, ...] = ("attention.self.query", "attention.self.key", "attention.self.value")
    pre_norm_at: str | None = None
    final_norm_at: str | None = None  # of the model, after its last layer
    rotated: Literal["", "by position", "by position and attention"] = ""
    ffn: str = "intermediate_size"
    gated: bool = False
    dropouts: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    layer_dropouts: int = 2  # of hidden states in a layer
    positions_after_padding: bool = False  # RoBERTa's: pad + 1 rows of the table are never used

    def embeddings(self, model: nn.Module) -> nn.Module:
        """The embeddings of a model: ids [B, T] -> [B, T, width]."""
        return model.get_submodule(self.embeddings_at)

    def layers(self, model: nn.Module) -> nn.ModuleList:
        """The layers of a model, first to last."""
        return cast(nn.ModuleList, model.get_submodule(self.layers_at))

    def projections(self, layer: nn.Module) -> tuple[nn.Linear, ...]:
        """The linear layers that give q, k and v."""
        return tuple(cast(nn.Linear, layer.get_submodule(path)) for path in self.projections_at)

    def pre_norm(self, layer: nn.Module) -> nn.Module:
        """The norm before a layer's projections, or nothing."""
        return nn.Identity() if self.pre_norm_at is None else layer.get_submodule(self.pre_norm_at)

    def final_norm(self, model: nn.Module) -> nn.Module:
        """The norm after a model's last layer, or nothing."""
        return nn.Identity() if self.final_norm_at is None else model.get_submodule(self.final_norm_at)

    def rotation(self, rotary: nn.Module, hidden: Tensor, positions: Tensor, attention: str) -> Rotation:
        """The angles of hidden states [B, T, width] at ``positions`` [1, T] in a layer of this kind of ``attention``."""
        if self.rotated == "by position":
            return rotary(hidden, positions)
        return rotary(hidden, positions, attention)

    def first_position(self, config: PreTrainedConfig) -> int:
        """The row of the position table that the first token reads."""
        return config.pad_token_id + 1 if self.positions_after_padding else 0


_ROBERTA = Family(positions_after_padding=True)

FAMILIES = {
    "bert": Family(),
    "roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "xlm-roberta-xl": Family(
        pre_norm_at="attention.self_attn_layer_norm",
        final_norm_at="encoder.LayerNorm",
        layer_dropouts=1,
        positions_after_padding=True,
    ),
    "electra": Family(),
    "distilbert": Family(
        layers_at="transformer.layer",
        projections_at=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        ffn="hidden_dim",
        dropouts=("dropout", "attention_dropout"),
        layer_dropouts=1,
    ),
    "modernbert": Family(  # and mmBERT
        layers_at="layers",
        projections_at=("attn.Wqkv",),
        pre_norm_at="attn_norm",
        final_norm_at="final_norm",
        rotated="by position and attention",
        gated=True,
        dropouts=("embedding_dropout", "attention_dropout", "mlp_dropout"),
    ),
    "eurobert": Family(
        embeddings_at="embed_tokens",
        layers_at="layers",
        projections_at=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        pre_norm_at="input_layernorm",
        final_norm_at="norm",
        rotated="by position",
        gated=True,
        dropouts=("attention_dropout",),
    ),
}

GLOBAL = "full_attention"  # transformers' name for attention to all positions, rather than to a window around each


def family_of(config: PreTrainedConfig) -> Family:
    if config.model_type not in FAMILIES:
        raise UserError(f"model type {config.model_type!r} is not supported; supported are {', '.join(FAMILIES)}")
    return FAMILIES[config.model_type]


def attention_kinds(config: PreTrainedConfig) -> list[str]:
    """The kind of attention of each layer, by transformers' names."""
    return getattr(config, "layer_types", None) or [GLOBAL] * config.num_hidden_layers


def global_layers(config: PreTrainedConfig) -> list[int]:
    """The layers, counted from 1, in which every position attends to all others.

    Of another, whose attention sees a window only, the maps [T, T] are not what it attends to.
    """
    return [number for number, kind in enumerate(attention_kinds(config), 1) if kind == GLOBAL]


def knows_segments(config: PreTrainedConfig) -> bool:
    """Whether the model embeds a second segment (token type 1): BERT and ELECTRA do, RoBERTa has one type for all."""
    return getattr(config, "type_vocab_size", 0) > 1


def longest_input(config: PreTrainedConfig) -> int:
    """How many positions the model has for real tokens."""
    return config.max_position_embeddings - family_of(config).first_position(config)
