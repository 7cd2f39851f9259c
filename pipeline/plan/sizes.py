"""Sizes on which memory and time depend: parameters of a cut model, and properties of a device."""

from dataclasses import dataclass

from transformers import PreTrainedConfig

from pipeline.engines.traffic import Table
from pipeline.models.counting import count_parameters
from pipeline.models.cut import empty_encoder, word_table
from pipeline.models.families import family_of
from pipeline.models.pooling import Pooling

NO_TABLE = Table(0, 0)
UNCOMPILED_BLOCKS = 10  # the three that relation_loss has room for, and what divergence_and_gradient makes of them


@dataclass(frozen=True)
class Cut:
    """The sizes of a cut encoder (models/cut.py): ``layers`` whole ones, and three projections of the next, or none.

    ``embeddings``, ``layer`` (one whole), ``last`` (projections and a norm before them, or one after all layers) and ``tail``
    (the model's part beyond the cut) count parameters, ``largest`` those of the largest tensor. ``dropouts`` are those of a
    layer, ``words`` the shape of the word embedding.
    """

    layers: int
    width: int
    ffn: int
    heads: int
    embeddings: int
    layer: int
    last: int
    tail: int
    largest: int
    dropouts: int = 2
    gated: bool = False  # the FFN has three matrices
    words: Table = NO_TABLE

    @property
    def body(self) -> int:
        return self.layers * self.layer + self.last

    @property
    def parameters(self) -> int:
        return self.embeddings + self.body


def cut_of(config: PreTrainedConfig, layer: int, whole: bool = False) -> Cut:
    """The sizes of the cut at ``layer`` of a model of this shape, counted on an encoder without memory.

    ``whole``: of all its layers, as where vectors are learnt.
    """
    encoder, _ = empty_encoder(config, layer, pooling=Pooling() if whole else None)
    body, family = encoder.body, family_of(config)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in encoder.named_children()}
    each = sum(p.numel() for p in body.layers[-1].parameters()) if len(body.layers) else 0
    return Cut(
        layers=len(body.layers),
        width=config.hidden_size,
        ffn=getattr(config, family.ffn),
        heads=config.num_attention_heads,
        embeddings=counts["embeddings"],
        layer=each,
        last=counts["body"] - each * len(body.layers),
        tail=count_parameters(config)["total"] - sum(counts.values()),
        largest=max(p.numel() for p in encoder.parameters()),
        dropouts=family.layer_dropouts,
        gated=family.gated,
        words=Table(*word_table(encoder).weight.shape),
    )


@dataclass(frozen=True)
class Device:
    """The properties of a device on which memory depends.

    ``number``: bytes of a weight or activation. ``block``: bytes of a block of relation maps, of which ``blocks`` live at a
    time. On a ``cpu`` attention with dropout keeps its maps, and memory counts when it is first touched; one that ``widens``
    takes bf16 products in fp32 (models/precision.py). ``chip``: a GPU's, by which the relation loss may be fused.
    """

    number: int
    block: int = 2**25
    blocks: int = 3
    cpu: bool = False
    widens: bool = False
    chip: str = ""
