"""The shape of a new recipe's student, and where it learns from: by the papers, as far as the teacher allows."""

import math
from dataclasses import dataclass, field
from typing import Literal

from transformers import PreTrainedConfig

from data_prep.cli import UserError
from pipeline.models.families import family_of, global_layers
from pipeline.models.students import student_ffn

HIDDEN, HEADS = 384, 12  # the papers' small students
LARGE = 1024  # width of a teacher from which on the paper takes an upper middle layer, and more relation heads
Start = Literal["random", "teacher", "pca"]
_NARROWEST = 4  # numbers in a student's relation head


@dataclass(frozen=True)
class Shape:
    """The student's layers, width, attention heads and start; the teacher's layer; relation heads; ``why``, by key."""

    layers: int
    hidden: int
    heads: int
    init: Start
    layer: int
    relation_heads: int
    why: dict[str, str] = field(default_factory=dict)


def shape_of(config: PreTrainedConfig, layers: int | None, hidden: int | None) -> Shape:
    """The shape for a teacher of this ``config``; None: the papers' usual. Raises UserError for what it cannot teach."""
    depth, width = config.num_hidden_layers, config.hidden_size
    if layers is not None and layers > depth:
        raise UserError(f"--layers {layers}: the teacher has {depth}; give a student at most as many")
    if hidden is not None and hidden > width:
        raise UserError(f"--hidden {hidden}: the teacher is {width} wide; give a student at most that")
    why = {
        "layers": "as asked for" if layers else f"half of the teacher's {depth}, as the papers' students have",
        "hidden": "as asked for" if hidden else "the papers' small student, or the teacher's width where that is less",
    }
    layers, hidden = layers or max(1, depth // 2), hidden or min(HIDDEN, width)
    layer, why["layer"] = _layer(config)
    init, why["init"] = _init(config, layers, hidden, layer)
    heads, why["heads"] = _heads(config, hidden, init)
    most = min(64 if width >= LARGE else 48, max(1, hidden // _NARROWEST))
    common = math.gcd(width, hidden)
    relation_heads = max(count for count in range(1, most + 1) if common % count == 0)
    if 4 * relation_heads < most:
        raise _refused(
            hidden, f"shares no more than {relation_heads} relation heads with the teacher's width {width}", width
        )
    return Shape(layers, hidden, heads, init, layer, relation_heads, why)


def _layer(config: PreTrainedConfig) -> tuple[int, str]:
    """The teacher's layer to learn from, which attends globally."""
    depth, attending = config.num_hidden_layers, global_layers(config)
    if config.hidden_size < LARGE:
        return attending[-1], f"the last of {depth}" + ("" if attending[-1] == depth else " with global attention")
    # Layer 21 of BERT-large, 19 of RoBERTa-large and XLM-R-large: an upper middle one.
    wanted = round(depth * (21 if config.model_type == "bert" else 19) / 24)
    nearest = min(attending, key=lambda layer: abs(layer - wanted))
    return nearest, f"of a large teacher of {depth} layers an upper middle one, as in the paper, instead of the last"


def _init(config: PreTrainedConfig, layers: int, hidden: int, layer: int) -> tuple[Start, str]:
    """What the student starts from."""
    ffn, embedded = getattr(config, family_of(config).ffn), getattr(config, "embedding_size", config.hidden_size)
    same = hidden == config.hidden_size == embedded and student_ffn(config, hidden, None) == ffn
    if same and layers <= layer:
        return (
            "teacher",
            "layers of the teacher, which is as wide; the papers start from random numbers, in far longer runs",
        )
    if hidden <= embedded:
        return "pca", "the teacher's embeddings, on as many principal components; layers are random"
    return "random", "the teacher's embeddings are narrower than the student"


def _heads(config: PreTrainedConfig, hidden: int, init: str) -> tuple[int, str]:
    """Attention heads that divide the width, and have an even width each where they are rotated."""
    if init == "teacher":
        return config.num_attention_heads, "the teacher's, whose layers it starts from"
    rotated = bool(family_of(config).rotated)
    usual = [HEADS, hidden // 64, hidden // 32, config.num_attention_heads]
    fitting = [count for count in usual if count and hidden % count == 0 and not (rotated and hidden // count % 2)]
    if not fitting:
        raise _refused(hidden, "not divisible by a usual number of attention heads", config.hidden_size)
    heads = next((count for count in fitting if hidden // count >= 16), fitting[-1])
    return heads, "the papers' 12" if heads == HEADS else f"{hidden // heads} numbers each; 12 do not suit this width"


def _refused(hidden: int, why: str, width: int) -> UserError:
    near = [size for size in (hidden // 48 * 48, (hidden // 48 + 1) * 48) if 0 < size <= width] or [width]
    return UserError(f"--hidden {hidden}: {why}; use {' or '.join(map(str, near))}")
