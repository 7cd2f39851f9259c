"""Teacher and student, cut down to what the loss reads: the queries, keys and values of one layer's attention.

Both models are cut structurally: embeddings, layers 1…L−1 and, of layer L, the three projections (after its pre-norm in
pre-norm families; queries and keys rotated by position where the model rotates them). Nothing above ever runs, no attention
map is ever kept, and ``forward`` returns q, k and v, which is safe under ZeRO-3 where hooks that steal them are not.

Another family of encoders is one more line in ``FAMILIES``.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask

from data_prep.errors import UserError
from pipeline.relations import QKV, VALUE_PROJECTION
from pipeline.weights import Weights

Rotation = tuple[Tensor, Tensor]  # cosines and sines of the positions' angles, each [1, T, width of a head]


@dataclass(frozen=True)
class Family:
    """Where a family of encoders keeps its parts, and what its config calls them.

    ``projections`` are three linear layers, or one that gives q, k and v side by side. ``rotation``, of a family that has
    no position embeddings, asks its ``rotary_emb`` for the angles of hidden states [B, T, width] at positions [1, T] in a
    layer of some kind of attention.
    """

    embeddings: Callable[[nn.Module], nn.Module] = lambda model: model.embeddings
    layers: Callable[[nn.Module], nn.ModuleList] = lambda model: model.encoder.layer
    projections: Callable[[nn.Module], tuple[nn.Linear, ...]] = lambda layer: (
        layer.attention.self.query,
        layer.attention.self.key,
        layer.attention.self.value,
    )
    pre_norm: Callable[[nn.Module], nn.Module] = lambda layer: nn.Identity()
    rotation: Callable[[nn.Module, Tensor, Tensor, str], Rotation] | None = None
    ffn: str = "intermediate_size"
    gated: bool = False  # the FFN has three matrices
    dropouts: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    first_position: Callable[[PreTrainedConfig], int] = lambda config: 0


def _after_padding(config: PreTrainedConfig) -> int:
    """RoBERTa's positions start behind the padding id, so pad + 1 rows of its table are never used."""
    return config.pad_token_id + 1


_ROBERTA = Family(first_position=_after_padding)

FAMILIES = {
    "bert": Family(),
    "roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "xlm-roberta-xl": Family(
        pre_norm=lambda layer: layer.attention.self_attn_layer_norm,
        first_position=_after_padding,
    ),
    "electra": Family(),
    "distilbert": Family(
        layers=lambda model: model.transformer.layer,
        projections=lambda layer: (
            layer.attention.q_lin,
            layer.attention.k_lin,
            layer.attention.v_lin,
        ),
        ffn="hidden_dim",
        dropouts=("dropout", "attention_dropout"),
    ),
    "modernbert": Family(  # and mmBERT
        layers=lambda model: model.layers,
        projections=lambda layer: (layer.attn.Wqkv,),
        pre_norm=lambda layer: layer.attn_norm,
        rotation=lambda rotary, hidden, positions, kind: rotary(hidden, positions, kind),
        gated=True,
        dropouts=("embedding_dropout", "attention_dropout", "mlp_dropout"),
    ),
    "eurobert": Family(
        embeddings=lambda model: model.embed_tokens,
        layers=lambda model: model.layers,
        projections=lambda layer: (
            layer.self_attn.q_proj,
            layer.self_attn.k_proj,
            layer.self_attn.v_proj,
        ),
        pre_norm=lambda layer: layer.input_layernorm,
        rotation=lambda rotary, hidden, positions, kind: rotary(hidden, positions),
        gated=True,
        dropouts=("attention_dropout",),
    ),
}

# What a position attends to, by transformers' name for it: everything, or a window around it.
_GLOBAL = "full_attention"
_MASKS = {_GLOBAL: create_bidirectional_mask, "sliding_attention": create_bidirectional_sliding_window_mask}

# The shapes of the papers' teachers, so that a recipe can be checked and planned without a network.
_XLMR = {
    "model_type": "xlm-roberta",
    "vocab_size": 250002,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
}
_XLMR_XL = dict(_XLMR, model_type="xlm-roberta-xl", vocab_size=250880)
_ROBERTA_EN = dict(_XLMR, model_type="roberta", vocab_size=50265)
_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
_PUBLIC_SHAPES = {
    "google-bert/bert-base-uncased": {"model_type": "bert"},
    "google-bert/bert-large-uncased": dict(model_type="bert", **_LARGE),
    "FacebookAI/roberta-base": _ROBERTA_EN,
    "FacebookAI/roberta-large": _ROBERTA_EN | _LARGE,
    "FacebookAI/xlm-roberta-base": _XLMR,
    "FacebookAI/xlm-roberta-large": _XLMR | _LARGE,
    "facebook/xlm-roberta-xl": dict(
        _XLMR_XL, hidden_size=2560, num_hidden_layers=36, num_attention_heads=32, intermediate_size=10240
    ),
    "facebook/xlm-roberta-xxl": dict(
        _XLMR_XL, hidden_size=4096, num_hidden_layers=48, num_attention_heads=32, intermediate_size=16384
    ),
}


class CutEncoder(nn.Module):
    """Embeddings, layers 1…L−1 and the q, k, v of layer L of a transformers encoder, sharing its weights.

    The embeddings stand apart from the ``body`` so that a sharded teacher can keep them whole: gathering a table of
    250,000 rows to read a few hundred of them would be most of its traffic.
    """

    def __init__(self, model: PreTrainedModel, layer: int, padding: int | None = None, earlier: tuple[int, ...] = ()):
        """Cut ``model`` at ``layer`` (counted from 1); ``earlier`` layers tell their q, k and v as well.

        ``padding``: the id that right-pads its input, if any does.
        """
        super().__init__()
        self.config = model.config
        self.padding = padding
        family = family_of(model.config)
        self.embeddings = nn.Sequential(family.embeddings(model))
        if hasattr(model, "embeddings_project"):  # ELECTRA's small embeddings
            self.embeddings.append(model.embeddings_project)
        self._rotation, self.rotary = family.rotation, model.rotary_emb if family.rotation else None
        self.body = CutBody(model, layer, earlier)
        self.value_projection: nn.Linear | None = None  # of a student that is compared by value_mse
        # [the teacher's vocabulary], of a student that has another.
        self.register_buffer("own_ids", None, persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """[B, T] ids -> QKV of [B, T, width]. The [B, T] mask of real positions follows from ``padding``.

        With n − 1 earlier layers QKV of [B · n, T, width]: of each sequence one row for each layer, the last layer's last.
        With a value projection, (q, k, v, projected v).
        """
        qkv = self.body(*self.embed(input_ids, attention_mask))
        return qkv if self.value_projection is None else (*qkv, self.value_projection(qkv.v))

    def embed(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, dict[str, dict]]:
        """What the body reads: embedded ids [B, T, width], and what a layer is given beside them by its kind of attention.

        That is the mask in the form this model's attention wants, and the rotation if there is one.
        """
        if attention_mask is None and self.padding is not None:
            attention_mask = input_ids != self.padding
            attention_mask[:, 0] = True  # that is [CLS]; a query without a single key would have no attention
        hidden = self.embeddings(input_ids if self.own_ids is None else self.own_ids[input_ids])
        beside: dict[str, dict] = {}
        for kind in sorted(set(_attention(self.config))):
            mask = _MASKS[kind](config=self.config, inputs_embeds=hidden, attention_mask=attention_mask)
            beside[kind] = {"attention_mask": mask}
            if self._rotation:
                positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
                beside[kind]["position_embeddings"] = self._rotation(self.rotary, hidden, positions, kind)
        return hidden, beside


class CutBody(nn.Module):
    """Layers 1…L−1 and the q, k, v of layer L; of ``earlier`` layers theirs as well."""

    def __init__(self, model: PreTrainedModel, layer: int, earlier: tuple[int, ...] = ()):
        super().__init__()
        family = family_of(model.config)
        layers = family.layers(model)
        below = enumerate(layers[: layer - 1], 1)
        self.layers = nn.ModuleList(LayerWithQKV(one, family) if i in earlier else one for i, one in below)
        self.last = Projections(layers[layer - 1], family)
        self._attention = _attention(model.config)[:layer]

    def forward(self, hidden: Tensor, beside: dict[str, dict]) -> QKV:
        told = []
        for layer, kind in zip(self.layers, self._attention, strict=False):
            if isinstance(layer, LayerWithQKV):
                hidden, *qkv = layer(hidden, **beside[kind])
                told.append(qkv)
            else:
                hidden = layer(hidden, **beside[kind])
        last = self.last(hidden, beside[self._attention[-1]].get("position_embeddings"))
        if not told:
            return last
        return QKV(*(torch.stack(of_layers, 1).flatten(0, 1) for of_layers in zip(*told, last, strict=True)))


class LayerWithQKV(nn.Module):
    """A whole layer that returns (hidden, q, k, v). It projects twice, which no hook could do safely under ZeRO-3."""

    def __init__(self, layer: nn.Module, family: Family):
        super().__init__()
        self.layer, self._family = layer, family

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None = None, position_embeddings: Rotation | None = None
    ) -> tuple[Tensor, ...]:
        rotated = {} if position_embeddings is None else {"position_embeddings": position_embeddings}
        normed = self._family.pre_norm(self.layer)(hidden)
        qkv = _projected(normed, self._family.projections(self.layer), position_embeddings)
        return self.layer(hidden, attention_mask=attention_mask, **rotated), *qkv


class Projections(nn.Module):
    """Of a layer what gives its q, k and v, and no more."""

    def __init__(self, layer: nn.Module, family: Family):
        super().__init__()
        self.pre_norm = family.pre_norm(layer)
        self.projections = nn.ModuleList(family.projections(layer))

    def forward(self, hidden: Tensor, rotation: Rotation | None = None) -> QKV:
        return _projected(self.pre_norm(hidden), self.projections, rotation)


def _projected(hidden: Tensor, projections: Iterable[nn.Linear], rotation: Rotation | None) -> QKV:
    """q, k and v [B, T, width] as the layer's attention reads them.

    Relations are made of *rotated* queries and keys. What the papers transfer is what a position attends to, and a rotated
    model attends by softmax(rotated q · rotated k); before the rotation the same vectors do not tell positions apart. A
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
    names = _names_in(model, cut)
    trained = set(names.values())
    if value_width:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            cut.value_projection = nn.Linear(model.config.hidden_size, value_width, bias=False)
        names[VALUE_PROJECTION] = VALUE_PROJECTION
    cut.own_ids = own_ids
    return (
        cut,
        names,
        {name: p.detach() for name, p in model.named_parameters() if name not in trained},
    )


def empty_encoder(
    config: PreTrainedConfig, layer: int, padding: int | None = None, earlier: tuple[int, ...] = ()
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
            model._init_weights(module)  # transformers' own way to fill what no file holds
    cut = CutEncoder(model, layer, padding, earlier)
    return cut, _names_in(model, cut)


def _names_in(model: PreTrainedModel, cut: CutEncoder) -> dict[str, str]:
    """The model's own name for each parameter of its cut."""
    own_names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: own_names[id(parameter)] for name, parameter in cut.named_parameters()}


def weights_of(model: str, revision: str, config: PreTrainedConfig) -> Weights:
    """The tensors of a model folder or hub id, unread."""
    check_folder(model)
    with torch.device("meta"):
        prefix = AutoModel.from_config(config).base_model_prefix
    return Weights(model, revision, prefix)


def family_of(config: PreTrainedConfig) -> Family:
    if config.model_type not in FAMILIES:
        raise UserError(f"model type {config.model_type!r} is not supported; supported are {', '.join(FAMILIES)}")
    return FAMILIES[config.model_type]


def _attention(config: PreTrainedConfig) -> list[str]:
    """What each layer attends to, by transformers' names."""
    return getattr(config, "layer_types", None) or [_GLOBAL] * config.num_hidden_layers


def global_layers(config: PreTrainedConfig) -> list[int]:
    """The layers, counted from 1, in which every position attends to all others.

    Of another, whose attention sees a window only, the maps [T, T] are not what it attends to.
    """
    return [number for number, kind in enumerate(_attention(config), 1) if kind == _GLOBAL]


def longest_input(config: PreTrainedConfig) -> int:
    """How many positions the model has for real tokens."""
    return config.max_position_embeddings - family_of(config).first_position(config)


# --- loading ----------------------------------------------------------------------------------------------------------


def load_config(model: str, revision: str = "main") -> PreTrainedConfig:
    """The config of a model folder or hub id; the papers' own teachers are known without a network."""
    if model in _PUBLIC_SHAPES:
        shape = dict(_PUBLIC_SHAPES[model])
        return AutoConfig.for_model(shape.pop("model_type"), **shape)
    check_folder(model)
    config = load_folder_config(model, revision)
    family_of(config)
    return config


def load_folder_config(folder: str | Path, revision: str = "main") -> PreTrainedConfig:
    """The config.json of a folder or hub id; it may come without weights."""
    with _one_line(str(folder)):
        return AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=False)


def load_model(model: str, revision: str, dtype: torch.dtype) -> PreTrainedModel:
    """A pretrained encoder from a folder or the hub, safetensors only. Raises UserError if any weight is missing."""
    load_config(model, revision)
    with _one_line(model):
        loaded, report = AutoModel.from_pretrained(
            model,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise UserError(f"{model}: the weights lack {len(missing)} tensors, first {missing[0]}; get the whole model")
    return loaded.eval()


def load_tokenizer(model: str, revision: str = "main"):
    """The tokenizer that belongs to a model folder or hub id."""
    check_folder(model)
    with _one_line(model):
        return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)


def load_folder_tokenizer(folder: str | Path):
    """The tokenizer of a folder that need not hold a model."""
    with _one_line(str(folder)):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


class _one_line:
    """Turns what transformers raises for a folder, file or download that is not there or not whole into a UserError."""

    def __init__(self, model: str):
        self.model = model

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(
            error,
            OSError | ValueError | SafetensorError | KeyError | json.JSONDecodeError,
        ):
            cause = str(error).strip().splitlines()[0] if str(error).strip() else kind.__name__
            where = (
                "cannot be loaded" if Path(self.model).is_dir() else "no such folder, and not to be had from the hub"
            )
            raise UserError(f"{self.model}: {where} ({cause})") from error


def check_folder(model: str) -> None:
    """A path must be a whole model folder; anything else is taken for a hub id."""
    folder = Path(model)
    if not folder.is_dir():
        if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
            raise UserError(
                f"{model}: no such folder (from {Path.cwd()}); need a model folder or a hub id; ./run.sh fetches the demo's"
            )
        return
    if not (folder / "config.json").is_file():
        raise UserError(f"{model}: no config.json; not a Hugging Face model folder")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
        hint = f"only {pickled[0]}, a pickle; save it again as safetensors" if pickled else "no *.safetensors file"
        raise UserError(f"{model}: no weights that are safe to load ({hint})")


# --- the student ------------------------------------------------------------------------------------------------------


def student_config(
    teacher: PreTrainedConfig,
    layers: int,
    hidden: int,
    heads: int,
    ffn: int,
    dropout: float,
    layer: int | None = None,
    model_type: str | None = None,
    ids: np.ndarray | None = None,
) -> PreTrainedConfig:
    """A student of ``teacher`` at ``layer`` (None: its last): its vocabulary, padding and positions, and its family.

    Where layers attend globally or locally, each does as the teacher's in its place (of ``layer``, evenly spaced): it may
    start from that one or learn from it, and the last attends as ``layer``, globally. Heads share keys as the teacher's
    if their number allows it. Another ``model_type`` gives a plain model of that family, with position embeddings.
    ``ids`` [vocabulary]: the student's id of each of the teacher's, -1 for none.
    """
    if model_type in (None, teacher.model_type):
        kept = teacher.to_dict()
        for gone in ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "model_type"):
            kept.pop(gone, None)
        own_names, family = teacher.attribute_map, family_of(teacher)
    else:
        kept = {"vocab_size": teacher.vocab_size, "pad_token_id": teacher.pad_token_id}
        kept["max_position_embeddings"] = longest_input(teacher)
        own_names, family = {}, FAMILIES[model_type]
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    values = kept | {own_names.get(key, key): value for key, value in sizes.items()}
    values |= {family.ffn: ffn} | dict.fromkeys(family.dropouts, dropout)
    if "embedding_size" in values:
        values["embedding_size"] = hidden
    if "layer_types" in values:
        places = evenly_spaced(layer or teacher.num_hidden_layers, layers)
        values["layer_types"] = [_attention(teacher)[max(place, 1) - 1] for place in places]
    if "num_key_value_heads" in values:
        sharing = teacher.num_attention_heads // teacher.num_key_value_heads
        values["num_key_value_heads"] = heads // sharing if heads % sharing == 0 else heads
        values["head_dim"] = hidden // heads
    if ids is not None:
        values["vocab_size"] = int(ids.max()) + 1
        for key in [key for key in values if key.endswith("_token_id") and isinstance(values[key], int)]:
            values[key] = int(ids[values[key]]) if ids[values[key]] >= 0 else None
    return AutoConfig.for_model(model_type or teacher.model_type, **values)


def student_ffn(teacher: PreTrainedConfig, hidden: int, model_type: str | None = None) -> int:
    """4 · hidden, as in the papers. A gated FFN, which they do not have, keeps the teacher's proportion."""
    family = FAMILIES[model_type or teacher.model_type]
    return getattr(teacher, family.ffn) * hidden // teacher.hidden_size if family.gated else 4 * hidden


def build_student(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A randomly initialised fp32 model, the same on every rank: its numbers follow from ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModel.from_config(config, dtype=torch.float32)


def copy_every_kth_layer(
    teacher: Weights, student: PreTrainedModel, last: int, ids: np.ndarray | None = None
) -> list[int]:
    """Initialise ``student`` from evenly spaced layers of ``teacher``, ending with layer ``last``; returns them.

    With 12 layers and ``last`` = 12 a 6-layer student takes layers 2, 4, … 12. Embeddings are copied too, and the pooler
    if the teacher has one. ``ids``: as in student_config; the student gets its pieces' embeddings.
    """
    chosen = evenly_spaced(last, student.config.num_hidden_layers)
    prefix = next(n for n, m in student.named_modules() if m is family_of(student.config).layers(student)) + "."
    origins = {}
    for name, tensor in student.state_dict().items():
        origin = name
        if name.startswith(prefix):
            index, rest = name[len(prefix) :].split(".", 1)
            origin = f"{prefix}{chosen[int(index)] - 1}.{rest}"
        if origin in teacher or not name.startswith("pooler."):
            origins[origin] = tensor
    shapes = {origin: tuple(tensor.shape) for origin, tensor in origins.items()}
    embeddings = student.get_input_embeddings().weight
    (table,) = (name for name, parameter in student.named_parameters() if parameter is embeddings)
    if ids is not None:
        shapes[table] = (len(ids), *embeddings.shape[1:])
    teacher.check(shapes)
    for origin, tensor in origins.items():
        found = teacher.tensor(origin)
        tensor.copy_(found if ids is None or origin != table else found[ids >= 0])
    return chosen


def project_embeddings(
    teacher: Weights, config: PreTrainedConfig, student: PreTrainedModel, ids: np.ndarray | None = None
) -> None:
    """Initialise the embeddings of a ``student`` of any family, at most as wide, by those of ``teacher``; nothing else.

    ``config``: the teacher's. Its embeddings of words, positions and token types are multiplied by the
    ``principal_components`` of the words', so that their sums, which is what the student reads, are projected alike. Where
    one of the two has no such table, or more rows of it, the student's stay random. ``ids``: as in student_config.
    """
    with torch.device("meta"):
        theirs = _embedding_tables(AutoModel.from_config(config))
    own, first_position = _embedding_tables(student), family_of(student.config).first_position(student.config)
    teacher.check({name: tuple(parameter.shape) for name, parameter in theirs.values()})
    tables = {role: teacher.tensor(name) for role, (name, _) in theirs.items() if role in own}
    if ids is not None:
        tables["words"] = tables["words"][ids >= 0]
    components = principal_components(tables["words"], student.config.hidden_size)
    with torch.no_grad():
        for role, table in tables.items():
            into = own[role][1]
            if role == "position_embeddings":  # both from the first one that is used
                table, into = table[family_of(config).first_position(config) :], into[first_position:]
            count = min(len(into), len(table))
            torch.matmul(table[:count].float(), components, out=into[:count])


def _embedding_tables(model: PreTrainedModel) -> dict[str, tuple[str, nn.Parameter]]:
    """The tables whose rows are added up, by what they embed: name in the model, and numbers [rows, width]."""
    words = model.get_input_embeddings().weight
    tables = {}
    for name, parameter in model.named_parameters():
        kind = name.split(".")[-2]
        if parameter is words:
            tables["words"] = name, parameter
        elif kind in ("position_embeddings", "token_type_embeddings"):
            tables[kind] = name, parameter
    return tables


def principal_components(table: Tensor, width: int) -> Tensor:
    """The directions [d, width] in which the rows of ``table`` [n, d] differ most, of length 1, at right angles.

    Eigenvectors of the rows' covariance, largest eigenvalue first; the entry of largest size of each is positive, so that
    their sign is no chance.
    """
    chunks = table.split(8192)
    mean = sum(chunk.double().sum(0) for chunk in chunks) / len(table)
    covariance = sum((centred := chunk.double() - mean).T @ centred for chunk in chunks)
    vectors = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :width]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return (vectors * largest.sign()).float()


def evenly_spaced(last: int, count: int) -> list[int]:
    """``count`` layers up to ``last``, counted from 1: of 12 layers 6 are 2, 4, … 12."""
    return [round((i + 1) * last / count) for i in range(count)]


# --- numbers ----------------------------------------------------------------------------------------------------------


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


def forward_flops(config: PreTrainedConfig, layer: int, length: int, earlier: int = 0) -> float:
    """Floating-point operations of the cut's forward of one sequence: its matrix products, 2 for each multiply-add.

    That is ``layer`` − 1 whole layers, and three projections of the last and of each of so many ``earlier`` ones that
    tell theirs; a backward takes twice as many. Local attention counts as global, since it is computed whole and masked.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    family = family_of(config)
    projections = width**2 + 2 * width**2 * getattr(config, "num_key_value_heads", heads) // heads
    ffn = (3 if family.gated else 2) * width * getattr(config, family.ffn)
    whole = projections + width**2 + ffn + 2 * length * width  # q, k, v, output, FFN, q·k and the sum of values
    return 2.0 * length * ((layer - 1) * whole + (1 + earlier) * projections)


def weights_hash(parameters: Iterable[Tensor]) -> str:
    """A digest of all the parameters' bytes, in order."""
    digest = hashlib.sha256()
    for parameter in parameters:
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
