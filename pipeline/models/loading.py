"""Loading of configs, models and tokenizers from folders and the hub: safetensors only, no code of theirs."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from data_prep.cli import UserError
from pipeline.models.families import family_of
from pipeline.models.units import settle_accelerator
from pipeline.models.weights import Weights

settle_accelerator()

# The shapes of the papers' teachers, so that a recipe can be checked and planned without a network.
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
_PUBLIC_SHAPES: dict[str, dict[str, Any]] = {
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


def weights_of(model: str, revision: str, config: PreTrainedConfig) -> Weights:
    """The tensors of a model folder or hub id, unread."""
    check_folder(model)
    with torch.device("meta"):
        prefix = AutoModel.from_config(config).base_model_prefix
    return Weights(model, revision, prefix)


def load_config(model: str, revision: str = "main") -> PreTrainedConfig:
    """The config of a model folder or hub id; the papers' own teachers are known without a network."""
    if model in _PUBLIC_SHAPES:
        shape = _PUBLIC_SHAPES[model]
        return AutoConfig.for_model(**shape)
    check_folder(model)
    config = load_folder_config(model, revision)
    family_of(config)
    return config


def load_folder_config(folder: str | Path, revision: str = "main") -> PreTrainedConfig:
    """The config.json of a folder or hub id; it may come without weights."""
    with _OneLine(str(folder)):
        return AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=False)


def load_model(model: str, revision: str, dtype: torch.dtype) -> PreTrainedModel:
    """A pretrained encoder from a folder or the hub, safetensors only. Raises UserError if any weight is missing."""
    load_config(model, revision)
    with _OneLine(model):
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
    with _OneLine(model):
        return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)


def load_folder_tokenizer(folder: str | Path):
    """The tokenizer of a folder that need not hold a model."""
    with _OneLine(str(folder)):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


class _OneLine:
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


def save_tokenizer(tokenizer, folder: Path) -> None:
    """Write a tokenizer's files, without what transformers adds on how it was loaded: that is something else offline."""
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(folder)
