"""Teachers' configs: the published shapes to plan with where no network is to be asked, and the values that decide outputs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
from transformers import AutoConfig, PreTrainedConfig

from pipeline.models.families import family_of
from pipeline.models.loading import load_config, load_folder_config

# The papers' teachers, as their config.json on the hub has them.
_XLMR = {
    "model_type": "xlm-roberta",
    "vocab_size": 250002,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "layer_norm_eps": 1e-5,
}
_XLMR_XL = dict(_XLMR, model_type="xlm-roberta-xl", vocab_size=250880)
_ROBERTA_EN = dict(_XLMR, model_type="roberta", vocab_size=50265)
_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
_PUBLISHED: dict[str, dict[str, Any]] = {
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

# The keys of a config that decide the queries, keys and values of an encoder with given weights. All others name things,
# train (dropout, initialisation) or belong to heads.
DECIDING = (
    "model_type", "vocab_size", "type_vocab_size", "max_position_embeddings", "pad_token_id", "sinusoidal_pos_embds",
    "position_embedding_type", "rope_parameters", "hidden_size", "dim", "embedding_size", "intermediate_size", "hidden_dim",
    "num_hidden_layers", "n_layers", "num_attention_heads", "n_heads", "num_key_value_heads", "head_dim", "layer_types",
    "local_attention", "is_decoder", "hidden_act", "hidden_activation", "activation", "layer_norm_eps", "norm_eps",
    "rms_norm_eps", "attention_bias", "mlp_bias", "norm_bias",
)  # fmt: skip


def planned_config(model: str, revision: str = "main") -> PreTrainedConfig:
    """The config to plan with. Of a teacher of the papers no network is asked: its config.json if it was fetched before.

    What trains or loads a model takes ``load_config``, which always reads config.json.
    """
    if takes_published_shape(model, revision):
        return AutoConfig.for_model(**_PUBLISHED[model])
    if not is_published(model):
        return load_config(model, revision)
    config = load_folder_config(Path(str(_fetched(model, revision))).parent)
    family_of(config)
    return config


def takes_published_shape(model: str, revision: str = "main") -> bool:
    """Whether ``planned_config`` has no config.json of ``model`` to read and takes its published shape."""
    return is_published(model) and _fetched(model, revision) is None


def is_published(model: str) -> bool:
    """Whether the shape of ``model``, a hub id, is known without the hub: it is a teacher of the papers."""
    return model in _PUBLISHED and not Path(model).is_dir()


def _fetched(model: str, revision: str) -> str | None:
    """The config.json of a hub id in the hub's cache on this machine, or None."""
    found = huggingface_hub.try_to_load_from_cache(model, "config.json", revision=revision)
    return found if isinstance(found, str) else None


def deciding_values(config: PreTrainedConfig) -> dict[str, Any]:
    """The values of ``config`` that decide a model's outputs, as JSON has them."""
    values = config.to_dict()
    plain: dict[str, Any] = json.loads(json.dumps({key: values[key] for key in DECIDING if key in values}))
    return plain


def changed_values(
    before: dict[str, Any], now: dict[str, Any], layer: int, after_padding: bool
) -> Iterator[tuple[str, Any, Any]]:
    """Key, value before and value now of what differs in two ``deciding_values``; the keys of inner objects with a dot.

    Layers above ``layer`` (from 1) give no outputs here: how many there are, and of what kind, is no difference. Nor is the
    padding's id, unless positions begin ``after_padding``. Nor is a key that one side lacks: a config has all keys that its
    transformers knows, so a key that is new or gone is another version's, and what stands in its place has another name.
    """
    unused = {"num_hidden_layers", "n_layers"} | (set() if after_padding else {"pad_token_id"})
    for key in sorted((before.keys() & now.keys()) - unused):
        old, new = before[key], now[key]
        if isinstance(old, dict) and isinstance(new, dict):
            for inner, *both in changed_values(old, new, layer, after_padding):
                yield f"{key}.{inner}", *both
        elif isinstance(old, list) and isinstance(new, list):  # layer_types
            if old[:layer] != new[:layer]:
                yield key, old[:layer], new[:layer]
        elif old != new:
            yield key, old, new
