"""Loading of configs, models and tokenizers from folders and the hub: safetensors only, no code of theirs."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from data_prep.cli import UserError
from pipeline.models.families import family_of
from pipeline.models.folders import check_folder
from pipeline.models.units import settle_accelerator, settle_threads
from pipeline.models.weights import Weights

settle_accelerator()
settle_threads()

_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.txt", "vocab.json")


def weights_of(model: str, revision: str, config: PreTrainedConfig) -> Weights:
    """The tensors of a model folder or hub id, unread."""
    check_folder(model)
    with torch.device("meta"):
        prefix = AutoModel.from_config(config).base_model_prefix
    return Weights(model, revision, prefix)


def load_config(model: str, revision: str = "main") -> PreTrainedConfig:
    """The config.json of a whole model folder or hub id. Raises UserError for a family that is not known."""
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
    with _OneLine(model), _without_report():
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
    return load_folder_tokenizer(model, revision)


def load_folder_tokenizer(folder: str | Path, revision: str = "main"):
    """The tokenizer of a folder or hub id that need not hold a model's weights. Raises UserError for a folder without one."""
    if Path(folder).is_dir() and not any(file for name in _TOKENIZERS for file in Path(folder).glob(name)):
        raise UserError(
            f"{folder}: no tokenizer there (tokenizer.json, a .model, vocab.txt or vocab.json); put the files of the model's "
            "own tokenizer into the folder"
        )
    with _OneLine(str(folder)):
        return AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=False)


@contextlib.contextmanager
def _without_report() -> Iterator[None]:
    """Without transformers' own report of what a file has and lacks: it has escape codes, and what is missing is an error."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


class _OneLine:
    """Turns what transformers raises for a folder, file or download that is not there or not whole into a UserError."""

    def __init__(self, model: str):
        self.model = model

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, StrictDataclassError):  # of a value; the second line says what is wrong with it
            cause = " ".join(str(error).split())
            raise UserError(f"{self.model}: config.json: {cause}; correct it, or get the model again") from error
        if isinstance(error, OSError | ValueError | SafetensorError | KeyError | AttributeError | TypeError):
            cause = str(error).strip().splitlines()[0] if str(error).strip() else kind.__name__
            where = (
                "cannot be loaded" if Path(self.model).is_dir() else "no such folder, and not to be had from the hub"
            )
            raise UserError(f"{self.model}: {where} ({cause})") from error
