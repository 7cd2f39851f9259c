"""Teacher and student, cut down to what the loss reads: the queries, keys and values of one layer's attention.

Both models are cut structurally: embeddings, layers 1…L−1 and, of layer L, the three projections (after its pre-norm in
pre-norm families; queries and keys rotated by position where the model rotates them). Nothing above ever runs, no attention
map is ever kept, and ``forward`` returns q, k and v, which is safe under ZeRO-3 where hooks that steal them are not.

Where a student learns vectors of texts (pipeline/vectors.py) nothing is cut off but the pooler: ``forward`` returns what the
pooling makes of the last layer's hidden states.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask

from data_prep.cli import UserError
from pipeline.data.inputs import Pieces
from pipeline.models.families import GLOBAL, Family, Rotation, attention_kinds, family_of, knows_segments
from pipeline.models.pooling import Pooling
from pipeline.models.precision import attend_by_pieces
from pipeline.relations import QKV

Taught = tuple[Tensor, ...]  # what an encoder here returns: QKV, with projected values perhaps, or (vectors,)
_MASKS = {GLOBAL: create_bidirectional_mask, "sliding_attention": create_bidirectional_sliding_window_mask}


class CutEncoder(nn.Module):
    """Embeddings, layers 1…L−1 and the q, k, v of layer L of a transformers encoder, sharing its weights.

    The embeddings stand apart from the ``body`` so that a sharded teacher can keep them whole: gathering a table of
    250,000 rows to read a few hundred of them would be most of its traffic.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layer: int,
        padding: int | None = None,
        earlier: tuple[int, ...] = (),
        pooling: Pooling | None = None,
    ):
        """Cut ``model`` at ``layer`` (counted from 1); ``earlier`` layers return their q, k and v as well.

        ``padding``: the id that right-pads its input, if any does. With a ``pooling`` all layers are taken, and their pooled
        output is returned.
        """
        super().__init__()
        self.config = model.config
        self.padding = padding
        family = family_of(model.config)
        self.embeddings = nn.Sequential(family.embeddings(model))  # the first reads ids, another one hidden states
        self.has_segments = knows_segments(model.config)
        if isinstance(projected := getattr(model, "embeddings_project", None), nn.Module):  # ELECTRA's small embeddings
            self.embeddings.append(projected)
        self._family = family
        self.rotary = model.get_submodule("rotary_emb") if family.rotated else None
        self.pooling = pooling
        self.body = WholeBody(model) if pooling else CutBody(model, layer, earlier)
        self.value_projection: nn.Linear | None = None  # of a student that is compared by value_mse
        self.vector_map: nn.Linear | None = None  # of a student whose vectors are not as wide as the teacher's
        self.own_ids: Tensor | None  # [the teacher's vocabulary], of a student that has another
        self.register_buffer("own_ids", None, persistent=False)
        attend_by_pieces(self)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        second: Tensor | None = None,
        padded: bool | None = None,
        pieces: Pieces | None = None,
    ) -> Taught:
        """[B, T] ids -> QKV of [B, T, width]. The mask [B, T] of real positions follows from ``padding``.

        ``padded``: whether any position is padding. None: look at the ids, which waits for a GPU.

        ``pieces`` of packed rows: attention stays within each, and positions are counted from its begin. There is no mask.

        ``second``, bool [B, T]: the tokens of a second segment (token type 1), which a model without segments ignores.

        With n − 1 earlier layers QKV of [B · n, T, width]: of each sequence one row for each layer, the last layer's last.
        With a value projection, (q, k, v, projected v). With a pooling (vectors [B, S, width],), fp32: of the S texts of a row,
        which is one if it has no pieces.
        """
        body = self.body(*self.embed(input_ids, attention_mask, second, padded, pieces))
        return self.finished(body, input_ids, attention_mask, padded, pieces)

    def finished(
        self,
        body: Any,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        padded: bool | None = None,
        pieces: Pieces | None = None,
    ) -> Taught:
        """What ``forward`` returns, of what the ``body`` has."""
        if self.pooling is None:
            return body if self.value_projection is None else (*body, self.value_projection(body.v))
        if pieces is not None:
            texts = pieces.texts()
        else:
            mask = self._real(input_ids, attention_mask, padded)
            texts = (torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool())[:, None]
        vectors = self.pooling.of_texts(body.float(), texts)
        if self.vector_map is not None:
            vectors = self.vector_map(vectors.to(self.vector_map.weight.dtype)).float()
        return (vectors,)

    def _real(self, input_ids: Tensor, attention_mask: Tensor | None, padded: bool | None) -> Tensor | None:
        """The mask of real positions, or None if all of them are."""
        if attention_mask is None and self.padding is not None and padded is not False:
            attention_mask = input_ids != self.padding
            attention_mask[:, 0] = True  # that is [CLS]; a query without a single key would have no attention
        return attention_mask

    def embed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        second: Tensor | None = None,
        padded: bool | None = None,
        pieces: Pieces | None = None,
    ) -> tuple[Tensor, dict[str, dict]]:
        """Embedded ids [B, T, width], and a layer's other inputs by its kind of attention.

        These are the mask in the form this model's attention wants, or the pieces, and the rotation if there is one.
        """
        if pieces is None:
            attention_mask = self._real(input_ids, attention_mask, padded)
        own = input_ids if self.own_ids is None else self.own_ids[input_ids]
        embed, *project = self.embeddings
        asked: dict[str, Tensor] = {}
        if second is not None and self.has_segments:
            asked["token_type_ids"] = second.long()
        if pieces is not None and self.rotary is None:
            asked["position_ids"] = pieces.positions + self._family.first_position(self.config)
        hidden = embed(own, **asked)
        for projection in project:
            hidden = projection(hidden)
        layer_inputs: dict[str, dict] = {}
        for kind in sorted(set(attention_kinds(self.config))):
            layer_inputs[kind] = {"attention_mask": None, "pieces": pieces}
            if pieces is None:
                layer_inputs[kind] = {"attention_mask": self._mask(kind, hidden, attention_mask, padded)}
            if self.rotary is not None:
                positions = pieces.positions if pieces else torch.arange(own.shape[1], device=own.device)[None]
                rotation = self._family.rotation(self.rotary, hidden, positions, kind)
                layer_inputs[kind]["position_embeddings"] = rotation
        return hidden, layer_inputs

    def _mask(self, kind: str, hidden: Tensor, attention_mask: Tensor | None, padded: bool | None) -> Tensor | None:
        """The mask of a ``kind`` of attention. transformers leaves out one that hides nothing: it looks, unless it is told."""
        return _MASKS[kind](
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            allow_is_bidirectional_skip=not padded,
        )


class CutBody(nn.Module):
    """Layers 1…L−1 and the q, k, v of layer L; of ``earlier`` layers theirs as well."""

    def __init__(self, model: PreTrainedModel, layer: int, earlier: tuple[int, ...] = ()):
        super().__init__()
        family = family_of(model.config)
        layers = family.layers(model)
        below = enumerate(layers[: layer - 1], 1)
        self.layers = nn.ModuleList(
            LayerWithQKV(layer, family) if number in earlier else layer for number, layer in below
        )
        self.last = Projections(layers[layer - 1], family)
        self._attention = attention_kinds(model.config)[:layer]

    def forward(self, hidden: Tensor, layer_inputs: dict[str, dict]) -> QKV:
        collected = []
        for layer, kind in zip(self.layers, self._attention, strict=False):
            if isinstance(layer, LayerWithQKV):
                hidden, *qkv = layer(hidden, **layer_inputs[kind])
                collected.append(qkv)
            else:
                hidden = layer(hidden, **layer_inputs[kind])
        last = self.last(hidden, layer_inputs[self._attention[-1]].get("position_embeddings"))
        if not collected:
            return last
        return QKV(*(torch.stack(of_layers, 1).flatten(0, 1) for of_layers in zip(*collected, last, strict=True)))


class WholeBody(nn.Module):
    """All layers, and the norm after them in families that have one: the hidden states [B, T, width]."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        family = family_of(model.config)
        self.layers = nn.ModuleList(family.layers(model))
        self.last = family.final_norm(model)
        self._attention = attention_kinds(model.config)

    def forward(self, hidden: Tensor, layer_inputs: dict[str, dict]) -> Tensor:
        for layer, kind in zip(self.layers, self._attention, strict=True):
            hidden = layer(hidden, **layer_inputs[kind])
        return self.last(hidden)


class LayerWithQKV(nn.Module):
    """A whole layer that returns (hidden, q, k, v). It projects twice, which no hook could do safely under ZeRO-3."""

    def __init__(self, layer: nn.Module, family: Family):
        super().__init__()
        self.layer, self._family = layer, family

    def projections(self) -> "Projections":
        """What a cut at this layer has of it."""
        return Projections(self.layer, self._family)

    def forward(self, hidden: Tensor, **inputs: Any) -> tuple[Tensor, ...]:
        normed = self._family.pre_norm(self.layer)(hidden)
        qkv = _projected(normed, self._family.projections(self.layer), inputs.get("position_embeddings"))
        return self.layer(hidden, **inputs), *qkv


class Projections(nn.Module):
    """The part of a layer that gives its q, k and v, and no more."""

    def __init__(self, layer: nn.Module, family: Family):
        super().__init__()
        self.pre_norm = family.pre_norm(layer)
        self.projections = nn.ModuleList(family.projections(layer))

    def forward(self, hidden: Tensor, rotation: Rotation | None = None) -> QKV:
        return _projected(self.pre_norm(hidden), cast(Iterable[nn.Linear], self.projections), rotation)


def _projected(hidden: Tensor, projections: Iterable[nn.Linear], rotation: Rotation | None) -> QKV:
    """q, k and v [B, T, width] as the layer's attention reads them.

    Relations are made of *rotated* queries and keys. What the papers transfer is what a position attends to, and a rotated
    model attends by softmax(rotated q · rotated k); before the rotation the same vectors do not distinguish positions. A
    student with position embeddings learns from it as well: both come to maps [T, T].

    The rotation turns features i and i + half of a head by one angle, and only whole pairs have products that follow from
    the distance of two positions. So pairs are put side by side, in q, k and v alike: that changes no relation of the
    model's own heads, and with more relation heads (MiniLMv2's re-split) each of even width is made of whole pairs.

    Keys and values that several heads share are repeated for each, as the model itself does: q, k and v are of one width.
    """
    together = [projection(hidden) for projection in projections]
    q, k, v = together if len(together) == 3 else together[0].chunk(3, -1)
    if rotation is None:
        return QKV(q, k, v)
    size, sharing = rotation[0].shape[-1], q.shape[-1] // k.shape[-1]
    cos, sin = (x[..., None, : size // 2].float() for x in rotation)
    read = []
    for x, turns, repeats in ((q, True, 1), (k, True, sharing), (v, False, sharing)):
        a, b = x.unflatten(-1, (-1, 2, size // 2)).unbind(-2)  # [B, T, heads, half] each
        if turns:
            a, b = (a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype)
        pairs = torch.stack((a, b), -1).flatten(-2)
        read.append((pairs.repeat_interleave(repeats, 2) if repeats > 1 else pairs).flatten(2))
    return QKV(*read)


def cut_encoder(
    model: PreTrainedModel, layer: int, padding: int | None = None, earlier: tuple[int, ...] = ()
) -> CutEncoder:
    """The cut of ``model`` at ``layer`` (from 1). Raises UserError for a layer or a shape that cannot be cut."""
    check_layer(model.config, layer)
    return CutEncoder(model, layer, padding, earlier)


def check_layer(config: PreTrainedConfig, layer: int) -> None:
    if not 1 <= layer <= config.num_hidden_layers:
        raise UserError(f"teacher.layer = {layer}: the model has layers 1 to {config.num_hidden_layers}")
    heads, size = config.num_attention_heads, getattr(config, "head_dim", None)
    if size and heads * size != config.hidden_size:
        raise UserError(
            f"head_dim = {size}: {heads} heads of it are not hidden_size = {config.hidden_size} wide together, which is "
            "not supported"
        )


def word_table(encoder: CutEncoder) -> nn.Embedding:
    """Its word embedding."""
    tables = (module for module in encoder.embeddings.modules() if isinstance(module, nn.Embedding))
    return next(table for table in tables if table.num_embeddings == encoder.config.vocab_size)


def split(
    model: PreTrainedModel,
    padding: int | None = None,
    earlier: tuple[int, ...] = (),
    value_width: int = 0,
    seed: int = 0,
    own_ids: Tensor | None = None,
) -> tuple[CutEncoder, dict[str, str], dict[str, Tensor]]:
    """A student's trained part and its untrained tail.

    Returns the cut at the last layer, with a projection of its values to ``value_width`` if that is given, whose numbers
    follow from ``seed``; of a student with another vocabulary ``own_ids`` [teacher's vocabulary] are its ids for those of
    its input; the model's own name for each parameter of the cut (the projection's is its own); and, by the
    model's name, the parameters that get no gradient (last attention output and FFN, pooler): no optimizer may see them,
    since DeepSpeed decays parameters without a gradient, yet they are part of the exported model.
    """
    cut = CutEncoder(model, model.config.num_hidden_layers, padding, earlier)
    if value_width:
        cut.value_projection = _linear(model.config.hidden_size, value_width, seed)
    return _parted(model, cut, own_ids)


def split_pooled(
    model: PreTrainedModel,
    pooling: Pooling,
    vector_width: int,
    padding: int | None = None,
    seed: int = 0,
    own_ids: Tensor | None = None,
) -> tuple[CutEncoder, dict[str, str], dict[str, Tensor]]:
    """The same of a student that learns vectors ``vector_width`` wide, by the modes of its teacher's ``pooling``.

    If its own are not as wide it has a map to them. Its tail is the pooler, if there is one.
    """
    own = dataclasses.replace(pooling, maps=(), normalizes=False)
    cut = CutEncoder(model, model.config.num_hidden_layers, padding, pooling=own)
    width = own.width(model.config.hidden_size)
    if width != vector_width:
        cut.vector_map = _linear(width, vector_width, seed)
    return _parted(model, cut, own_ids)


def _linear(width: int, to: int, seed: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(width, to, bias=False)


def _parted(
    model: PreTrainedModel, cut: CutEncoder, own_ids: Tensor | None
) -> tuple[CutEncoder, dict[str, str], dict[str, Tensor]]:
    """A student's cut, its names and its tail."""
    names = _names_in(model, cut)
    trained = set(names.values())
    cut.own_ids = own_ids
    return cut, names, {name: p.detach() for name, p in model.named_parameters() if name not in trained}


def empty_encoder(
    config: PreTrainedConfig,
    layer: int,
    padding: int | None = None,
    earlier: tuple[int, ...] = (),
    pooling: Pooling | None = None,
) -> tuple[CutEncoder, dict[str, str]]:
    """The cut at ``layer`` of a model of this shape, without memory for its parameters; and their names in the model.

    They are on torch's meta device until something fills them; buffers (positions) are on the CPU and right.
    """
    check_layer(config, layer)
    with torch.device("meta"):
        model = AutoModel.from_config(config).eval()
    for module in model.modules():
        if buffers := dict(module.named_buffers(recurse=False)):
            for name, buffer in buffers.items():
                setattr(module, name, torch.empty_like(buffer, device="cpu"))
            model._init_weights(module)  # noqa: SLF001 - transformers' own way to fill what no file holds
    cut = CutEncoder(model, layer, padding, earlier, pooling)
    return cut, _names_in(model, cut)


def _names_in(model: PreTrainedModel, cut: CutEncoder) -> dict[str, str]:
    """The model's own name for each parameter of its cut; one that the model does not have keeps its name."""
    own_names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: own_names.get(id(parameter), name) for name, parameter in cut.named_parameters()}
