"""The files of a trimmed model: its word embeddings cut by rows, its vocabulary rewritten, all else copied."""

import json
import os
import shutil
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from data_prep.cli import UserError
from pipeline.artifacts.card import without_scores
from pipeline.models.portable import SETTINGS, loads_in, older_keys, portable_settings
from pipeline.models.vocabulary import VOCABULARY
from pipeline.models.weights import opened, weight_files
from pipeline.trim_vocab import pieces as vocabulary

TRIMMING = "trimming.json"

# Tensors with a row for each piece: the word embeddings, and those of the heads of masked language models. A name counts by
# its end.
_WORD_EMBEDDINGS = ("embeddings.word_embeddings.weight", "embeddings.tok_embeddings.weight", "embed_tokens.weight")
_ROWS = (
    *_WORD_EMBEDDINGS, "decoder.weight", "decoder.bias", "cls.predictions.bias", "lm_head.bias", "lm_head.weight",
    "generator_lm_head.weight", "generator_lm_head.bias", "vocab_projector.weight", "vocab_projector.bias",
)  # fmt: skip

# Files that may hold the whole vocabulary again, in a form that is not read here.
_OTHER_WEIGHTS = (
    ".safetensors", ".bin", ".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".pt", ".pth", ".ckpt", ".pkl", ".gguf",
)  # fmt: skip

_INDEX = "model.safetensors.index.json"
_LISTS = ("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json")
_REWRITTEN = {TRIMMING, VOCABULARY, _INDEX, *_LISTS, "tokenizer.json", SETTINGS}


def write_trimmed(
    model: Path,
    out: Path,
    new: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    spec: dict,
    config: PreTrainedConfig,
    report: dict,
) -> dict:
    """Fill the folder ``out`` with all files of ``model``, trimmed to the ids whose ``new`` one (int32 [rows]) is not -1.

    ``tokenizer``: the model's; ``spec``: the trimmed one. trimming.json gets ``report`` and the figures that are returned:
    bytes of the files in both folders, parameters, the tensors that were cut, the vocabulary's files other than
    tokenizer.json, and the files that were left out. Raises UserError for a model that is not whole or weights that cannot
    be written, OSError for other files.
    """
    kept = np.flatnonzero(new >= 0)
    parameters, cut = _write_weights(model, out, torch.from_numpy(kept), len(new))
    _write_settings(model / SETTINGS, out / SETTINGS, new, tokenizer, config)
    rewritten = _write_tokenizer(model, out, spec)
    _write_config(model / "config.json", out / "config.json", config, new, len(kept))
    if (generation := model / "generation_config.json").is_file():
        _write_generation(generation, out / generation.name, new)
    np.save(out / VOCABULARY, new)
    left_out = _copy_the_rest(model, out)

    names = [path.relative_to(out) for path in _files(out)]
    sizes = {side: sum(_size(root / name) for name in names) for side, root in (("before", model), ("after", out))}
    figures = {"bytes": sizes, "parameters": parameters, "cut": cut, "rewritten": rewritten, "left_out": left_out}
    if (earlier := model / TRIMMING).is_file():
        figures["earlier"] = _read_json(earlier)
    if (card := out / "README.md").is_file():
        languages = ", ".join(report["languages"])
        summary = f"Cut from {len(new):,} to {len(kept):,} pieces, for {languages}; see {TRIMMING}."
        summary += f"\nLoads in {loads_in(config)}."
        text = without_scores(card.read_bytes().decode(errors="surrogateescape"))  # other encodings' bytes stay
        card.write_bytes(f"{text}\n## Vocabulary\n\n{summary}\n".encode(errors="surrogateescape"))
    _write_json(out / TRIMMING, report | figures)
    return figures


def _write_weights(model: Path, out: Path, kept: torch.Tensor, rows: int) -> tuple[dict, list[str]]:
    """Write the safetensors files, one in memory at a time.

    Returns the numbers of parameters before and after, and the tensors that were cut.
    """
    before = after = size = 0
    cut = []
    for path in weight_files(model):
        with opened(path) as file:
            tensors, metadata = {}, file.metadata()
            for name in file.keys():  # noqa: SIM118  (it is no dict)
                tensor = file.get_tensor(name)
                before += tensor.numel()
                if f".{name}".endswith(tuple(f".{known}" for known in _ROWS)):
                    if len(tensor) != rows:
                        raise UserError(
                            f"{path}: {name} has {len(tensor)} rows, config.json says vocab_size = {rows}; "
                            "get the whole model"
                        )
                    tensor = tensor[kept]
                    cut.append(name)
                tensors[name] = tensor
                after += tensor.numel()
                size += tensor.nbytes
        _save(tensors, out / path.name, metadata)
        _align(out / path.name, path)
    if not any(name.endswith(_WORD_EMBEDDINGS) for name in cut):
        raise UserError(f"{model}: the weights have none of {', '.join(_WORD_EMBEDDINGS)}; get the whole model")
    if (index := model / _INDEX).is_file():
        content = _read_json(index)
        _write_json(out / _INDEX, content | {"metadata": content.get("metadata", {}) | {"total_size": size}})
    return {"before": before, "after": after}, cut


def _save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None) -> None:
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise UserError(
            f"{path.name}: cannot be written ({error}); free some space and run the same command again"
        ) from None


def _align(path: Path, like: Path) -> None:
    """Move the tensors of a safetensors file by spaces after its header, which the format allows.

    They then begin at the same place of a cache line (64 bytes) as those of ``like``. Files are mapped into memory, and
    torch's products on CPUs round by where a matrix lies: without this, outputs would differ in their last bits.
    """
    aside = path.with_suffix(".aligned")
    with path.open("rb") as file, aside.open("wb") as aligned:
        size = _header_size(file)
        with like.open("rb") as other:
            spaces = (_header_size(other) - size) % 64
        aligned.write((size + spaces).to_bytes(8, "little") + file.read(size) + b" " * spaces)
        shutil.copyfileobj(file, aligned, 2**20)
    aside.replace(path)


def _header_size(file: BinaryIO) -> int:
    return int.from_bytes(file.read(8), "little")


def config_ids(values: dict) -> dict[str, list[int]]:
    """The ids of tokens in a config, by key."""
    named = {key: value for key, value in values.items() if key.endswith(("_token_id", "_token_ids"))}
    found = {key: value if isinstance(value, list) else [value] for key, value in named.items()}
    return {key: ids for key, ids in found.items() if all(isinstance(i, int) and i >= 0 for i in ids)}


def _write_config(path: Path, to: Path, config: PreTrainedConfig, new: np.ndarray, size: int) -> None:
    """Write config.json with the new size and ids, also of the ids that it leaves to its family's defaults."""
    content = _read_json(path)
    known = config_ids(config.to_dict())
    ids = {key: _new_value(content.get(key, getattr(config, key)), new) for key in known}
    changed = {key: value for key, value in ids.items() if key in content or value != getattr(config, key)}
    _write_json(to, content | changed | older_keys(config) | {"vocab_size": size})


def _write_generation(path: Path, to: Path, new: np.ndarray) -> None:
    content = _read_json(path)
    _write_json(to, content | {key: _new_value(content[key], new) for key in config_ids(content)})


def _new_value(value: int | list[int], new: np.ndarray) -> int | list[int] | None:
    """The new id, or ids without dropped ones; None for a dropped id."""
    if isinstance(value, list):
        ids = (_new_id(number, new) for number in value)
        return [number for number in ids if number is not None]
    return _new_id(value, new)


def _new_id(number: int, new: np.ndarray) -> int | None:
    return int(new[number]) if number < len(new) and new[number] >= 0 else None


def _write_settings(
    path: Path, to: Path, new: np.ndarray, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig
) -> None:
    """Write tokenizer_config.json with the new ids, readable by transformers 4.57 and 5 (see models/portable.py)."""
    content = _read_json(path) if path.is_file() else {}
    if "added_tokens_decoder" in content:
        added = content["added_tokens_decoder"].items()
        content["added_tokens_decoder"] = {str(_new_id(int(i), new)): token for i, token in added}
    _write_json(to, portable_settings(content, tokenizer, config))


def _write_tokenizer(model: Path, out: Path, spec: dict) -> list[str]:
    """Write tokenizer.json and the folder's other files of a vocabulary. Returns the names of these."""
    _write_json(out / "tokenizer.json", spec, indent=None)
    tokens, merges = spec["model"]["vocab"], spec["model"].get("merges", [])
    contents = {
        "vocab.txt": lambda: "".join(f"{token}\n" for token in tokens),
        "vocab.json": lambda: json.dumps(tokens, ensure_ascii=False),
        "merges.txt": lambda: "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges),
        "added_tokens.json": lambda: json.dumps({token["content"]: token["id"] for token in spec["added_tokens"]}),
    }
    there = [name for name in _LISTS if (model / name).is_file()]
    for name in there:
        (out / name).write_text(contents[name](), encoding="utf-8")

    pieces = set(vocabulary.pieces_of(spec).values())
    models = sorted(path for path in model.glob("*.model") if path.is_file())
    for path in models:
        (out / path.name).write_bytes(_sentencepiece(path, pieces))
    return there + [path.name for path in models]


def _sentencepiece(path: Path, pieces: set[str]) -> bytes:
    """A SentencePiece model with only these pieces and its control pieces, so that offsets of ids stay."""
    proto = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]  # protobuf makes it at run time
    model = proto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's own
        raise UserError(f"{path}: not a SentencePiece model ({error}); get it again, or remove it") from None
    normal = proto.SentencePiece.NORMAL
    kept = [piece for piece in model.pieces if piece.type != normal or piece.piece in pieces]
    shorter = proto(pieces=kept, trainer_spec=model.trainer_spec, normalizer_spec=model.normalizer_spec)
    shorter.trainer_spec.vocab_size = len(kept)
    content = shorter.SerializeToString()
    SentencePieceProcessor(model_proto=content)  # raises for one that it would not load
    return content


def _copy_the_rest(model: Path, out: Path) -> list[str]:
    """Copy all other files of the model. Returns those that are not copied: its weights in other forms."""
    left_out = []
    for path in _files(model):
        name = path.relative_to(model)
        if (out / name).exists() or str(name) in _REWRITTEN:
            continue
        if path.suffix in _OTHER_WEIGHTS and not (path.suffix == ".safetensors" and len(name.parts) > 1):
            left_out.append(str(name))
            continue
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, out / name)
    return left_out


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _files(folder: Path) -> list[Path]:
    """All files below a folder except hidden ones, sorted."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(root) / name for name in sorted(names) if not name.startswith(".")]
    return found


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); get the whole model") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; get the whole model")
    return content


def _write_json(path: Path, content: dict, indent: int | None = 2) -> None:
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
