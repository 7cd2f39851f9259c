"""A folder's tokenizer as JSON of the ``tokenizers`` library ("spec"), and the ids that the model needs."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from data_prep.cli import UserError
from pipeline.models import loading
from pipeline.models.families import family_of
from pipeline.trim_vocab.files import config_ids
from pipeline.trim_vocab.pieces import KINDS, pieces_of

_SUPPORTED = f"only {', '.join(KINDS[:-1])} and {KINDS[-1]} can be trimmed; use the model as it is"


def load_tokenizer(model: Path) -> tuple[PreTrainedTokenizerBase, dict]:
    """The folder's tokenizer and its spec. Raises UserError for one that cannot be loaded or trimmed."""
    try:
        tokenizer = loading.load_tokenizer(str(model))
        return tokenizer, read_spec(model, tokenizer)
    except UserError:
        raise
    except Exception as error:  # the Rust loader raises bare Exception
        raise UserError(f"{model}: its tokenizer cannot be loaded ({error}); get the whole model") from None


def read_spec(model: Path, tokenizer: PreTrainedTokenizerBase) -> dict:
    """The tokenizer of a folder as JSON of the ``tokenizers`` library. Raises UserError if it cannot be trimmed."""
    file = model / "tokenizer.json"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{model}: a {type(tokenizer).__name__}, which has no tokenizer.json; {_SUPPORTED}")
    source = model
    if file.is_file():
        source, backend = file, Tokenizer.from_file(str(file))
    spec = json.loads(backend.to_str())
    if (kind := spec["model"]["type"]) not in KINDS:
        raise UserError(f"{source}: model type {kind!r} of a tokenizer; {_SUPPORTED}")

    known = {token["content"] for token in spec["added_tokens"]}
    others = [(number, token) for number, token in tokenizer.added_tokens_decoder.items() if token.content not in known]
    for number, token in others:  # that tokenizer_config.json adds
        flags = {key: getattr(token, key) for key in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        spec["added_tokens"].append({"id": number, "content": token.content} | flags)
    spec["added_tokens"].sort(key=lambda token: token["id"])
    return spec


def control_ids(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, spec: dict) -> set[int]:
    """The ids that config.json and the tokenizer's settings name, and those that must stay before them.

    RoBERTa's positions begin after its padding id, so there all ids up to it stay where they are.
    """
    ids = {i for value in config_ids(config.to_dict()).values() for i in value} | set(tokenizer.all_special_ids)
    if family_of(config).first_position(config):
        ids |= set(range(config.pad_token_id + 1))
    return ids & pieces_of(spec).keys()


def added_ids(spec: dict, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of added tokens and of control tokens."""
    return sorted({token["id"] for token in spec["added_tokens"]} | set(tokenizer.all_special_ids))


def cutter_of(spec: dict) -> Tokenizer:
    """The tokenizer for whole texts; it decodes to exactly its pieces."""
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if spec["model"]["type"] == "WordPiece":
        tokenizer.decoder = decoders.WordPiece(spec["model"]["continuing_subword_prefix"], cleanup=False)
    return tokenizer
