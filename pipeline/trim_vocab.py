"""The same model with the vocabulary of the languages you need: word embeddings and tokenizer, nothing else, are cut.

    python -m pipeline.trim_vocab MODEL --corpus DATA [--keep-languages de,en,…] [--coverage 0.9999] --out OUT

MODEL is a Hugging Face folder of a supported family, with or without a task's head; DATA a corpus prepared with its
tokenizer, a source for each language. Kept are control tokens, bytes, single characters, and of each language the most
frequent pieces that make up COVERAGE of its tokens. OUT gets everything that belongs to MODEL, and

    trimming.json     what was kept and dropped, sizes, and what became of held-out text, by language
    vocabulary.npy    the new id of each old one, -1 for what was dropped: int32 [old vocabulary]; see load_trimmed
"""

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Tokenizer, decoders
from transformers import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from data_prep.errors import Parser, UserError, run_command, some
from data_prep.shards import Corpus, Source, open_corpus, vocabulary_hash
from pipeline import encoders, vocabulary
from pipeline.weights import opened, weight_files

TRIMMING, VOCABULARY = "trimming.json", "vocabulary.npy"
_COVERAGE = 0.9999
_SHOWN = 20  # most frequent dropped pieces in the report
# Of held-out text, for each language.
_TEXTS, _TEXT_TOKENS = 5000, 2048

# Tensors with a row for each piece: the word embeddings, and what the heads of masked language models have.
_WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"
_ROWS = (
    _WORD_EMBEDDINGS, "cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "cls.predictions.bias",
    "lm_head.decoder.weight", "lm_head.decoder.bias", "lm_head.bias", "lm_head.weight", "generator_lm_head.weight",
    "generator_lm_head.bias", "vocab_projector.weight", "vocab_projector.bias",
)  # fmt: skip
# Files that hold the whole vocabulary once more, in a form that is not read here.
_OTHER_WEIGHTS = (".safetensors", ".bin", ".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".pt", ".pth", ".ckpt", ".pkl", ".gguf")  # fmt: skip
_INDEX = "model.safetensors.index.json"
_MODEL_LISTS = ("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json")


# --- what others read -------------------------------------------------------------------------------------------------


def load_trimmed(folder: str | Path) -> np.ndarray:
    """The new id of each old one in a folder that this command wrote: int32 [old vocabulary], -1 for what was dropped.

    New ids are 0 to the new vocabulary's size − 1, in the order of the old ones. Raises UserError if the folder lacks it
    or it is not that of the folder's model.
    """
    path = Path(folder) / VOCABULARY
    try:
        new = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; need a folder that python -m pipeline.trim_vocab wrote") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); trim the model again") from None
    size = encoders.load_folder_config(folder).vocab_size
    if new.dtype != np.int32 or new.ndim != 1 or not np.array_equal(new[new >= 0], np.arange(size)):
        raise UserError(f"{path}: not the ids of the {size} pieces that config.json tells of; trim the model again")
    return new


# --- the way from MODEL to OUT ----------------------------------------------------------------------------------------


def trim(
    model: Path, data: Path, out: Path, languages: Sequence[str] | None = None, coverage: float = _COVERAGE
) -> dict:
    """Write to ``out``, new or empty, the model without the pieces that the languages (default: all) do not need.

    ``coverage``: the share of each language's tokens that keep their pieces, above 0, at most 1. Returns what trimming.json
    holds. Raises UserError for what is not a supported model, tokenizer or its corpus, a language that the corpus lacks,
    and an ``out`` that holds something.
    """
    model, out = model.resolve(), out.resolve()
    _check_coverage(coverage)
    _check_out(out, model)
    if not model.is_dir():
        raise UserError(f"{model}: no such folder; need a model folder")
    config = encoders.load_config(str(model))
    tokenizer = encoders.load_tokenizer(str(model))
    spec = read_spec(model, tokenizer)
    rows = config.vocab_size
    if max(tokenizer.get_vocab().values()) >= rows:
        last = max(tokenizer.get_vocab().values())
        raise UserError(
            f"{model}: its tokenizer has ids up to {last}, config.json says vocab_size = {rows}; get the whole model"
        )
    corpus = open_corpus(data)
    check_vocabulary(corpus, model, tokenizer)
    sources = chosen(corpus, languages)

    counts = {name: vocabulary.count_pieces(source, rows) for name, source in sources.items()}
    control = vocabulary.fallbacks(spec) | control_ids(config, tokenizer, spec)
    for of_language in counts.values():
        of_language[_added_ids(spec, tokenizer)] = 0  # separators, unknown
    needed = {name: vocabulary.covering(of_language, coverage) for name, of_language in counts.items()}
    for name, of_language in needed.items():
        if not len(of_language):
            raise UserError(f"{data}: {name} has no tokens to count; prepare more text of it, or leave it out")
    kept = vocabulary.closed(spec, control.union(*(ids.tolist() for ids in needed.values())))
    new = vocabulary.new_ids(kept, rows)
    new_spec = vocabulary.trimmed(spec, new)

    report = {
        "version": 1,
        "model_type": config.model_type,
        "tokenizer": spec["model"]["type"],
        "corpus": corpus.id,
        "coverage": coverage,
        "vocabulary": {"before": rows, "after": len(kept)},
        "languages": {
            name: _language(counts[name], needed[name], new) | {"heldout": heldout(corpus, name, spec, new_spec, new)}
            for name in sources
        },
        "dropped": dropped(counts, vocabulary.pieces_of(spec), new),
    }
    aside = out.with_name(f".{out.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        report |= _write(model, aside, new, new_spec, config, report)
        check_trimmed(model, aside, new, _probes(sources, new), corpus.tokenizer["special"])
        aside.rename(out)
    except OSError as error:
        if error.filename is None or error.errno is None:
            raise
        raise UserError(f"{error.filename}: {error.strerror}; nothing was written to {out}") from None
    except SafetensorError as error:
        raise UserError(f"{out}: the weights cannot be written ({error}); free some space and try again") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return report


def _check_coverage(coverage: float) -> None:
    if not 0 < coverage <= 1:
        raise UserError(f"--coverage {coverage:g}: a share of each language's tokens, above 0 and at most 1, as 0.9999")


def _check_out(out: Path, model: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists and is not an empty folder; choose a new one")
    if model in out.parents:
        raise UserError(f"--out {out}: lies in the model's own folder; choose one elsewhere")


def read_spec(model: Path, tokenizer) -> dict:
    """The tokenizer of a folder as JSON of the ``tokenizers`` library. Raises UserError if it cannot be trimmed."""
    file = model / "tokenizer.json"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{model}: a {type(tokenizer).__name__}, which has no tokenizer.json; {_SUPPORTED}")
    spec = json.loads((Tokenizer.from_file(str(file)) if file.is_file() else backend).to_str())
    if (kind := spec["model"]["type"]) not in vocabulary.KINDS:
        raise UserError(f"{file if file.is_file() else model}: model type {kind!r} of a tokenizer; {_SUPPORTED}")
    known = {token["content"] for token in spec["added_tokens"]}
    others = [(number, token) for number, token in tokenizer.added_tokens_decoder.items() if token.content not in known]
    for number, token in others:  # that tokenizer_config.json adds
        flags = {key: getattr(token, key) for key in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        spec["added_tokens"].append({"id": number, "content": token.content} | flags)
    spec["added_tokens"].sort(key=lambda token: token["id"])
    return spec


_SUPPORTED = (
    f"only {', '.join(vocabulary.KINDS[:-1])} and {vocabulary.KINDS[-1]} can be trimmed; use the model as it is"
)


def check_vocabulary(corpus: Corpus, model: Path, tokenizer) -> None:
    """The corpus must hold this model's own token ids."""
    remedy = f"prepare the data with --tokenizer {model}"
    if corpus.tokenizer["vocabulary"] != vocabulary_hash(tokenizer.get_vocab()):
        raise UserError(
            f"{corpus.path}: made with another vocabulary ({corpus.tokenizer['vocab_size']} ids) than that of {model} "
            f"({len(tokenizer)}): some ids mean other pieces; {remedy}"
        )
    probe = corpus.tokenizer["probe"]
    ids = tokenizer(probe["text"], add_special_tokens=False)["input_ids"]
    if ids != probe["ids"]:
        raise UserError(
            f"{corpus.path}: made with another tokenizer than that of {model}: a probe text comes out as "
            f"{probe['ids'][:4]}… there and {ids[:4]}… here; {remedy}"
        )
    for role, number in corpus.tokenizer["special"].items():
        if (own := getattr(tokenizer, f"{role}_token_id")) != number:
            raise UserError(f"{corpus.path}: has {role} = {number}, the tokenizer of {model} has {own}; {remedy}")


def chosen(corpus: Corpus, languages: Sequence[str] | None) -> dict[str, Source]:
    """The sources of these languages; of all without any named."""
    names = list(dict.fromkeys(corpus.sources if languages is None else languages))
    lacking = [name for name in names if name not in corpus.sources]
    if lacking or not names:
        named = ", ".join(lacking) or "''"
        raise UserError(
            f"--keep-languages {named}: not in {corpus.path}, which has {', '.join(corpus.sources) or 'none'}"
        )
    empty = [name for name in names if not corpus.sources[name].tokens]
    if len(empty) == len(names):
        raise UserError(f"{corpus.path}: holds no tokens of {some(names)}; prepare it with text of these languages")
    if empty:
        raise UserError(
            f"{corpus.path}: holds no tokens of {', '.join(empty)}; prepare some, or name the other languages"
        )
    return {name: corpus.sources[name] for name in names}


def control_ids(config: PreTrainedConfig, tokenizer, spec: dict) -> set[int]:
    """The ids that config.json and the tokenizer's settings name, and what must stay before them.

    RoBERTa's positions begin behind its padding id, so there everything up to it stays where it is.
    """
    ids = {i for value in _config_ids(config.to_dict()).values() for i in value} | set(tokenizer.all_special_ids)
    if encoders.family_of(config).first_position(config):
        ids |= set(range(config.pad_token_id + 1))
    return {i for i in ids if 0 <= i < config.vocab_size and i in vocabulary.pieces_of(spec)}


def _added_ids(spec: dict, tokenizer) -> list[int]:
    return sorted({token["id"] for token in spec["added_tokens"]} | set(tokenizer.all_special_ids))


def _config_ids(values: dict) -> dict[str, list[int]]:
    """What a config says of ids of tokens, by key."""
    found = {key: value if isinstance(value, list) else [value] for key, value in values.items() if _names_ids(key)}
    return {key: ids for key, ids in found.items() if all(isinstance(i, int) and i >= 0 for i in ids)}


def _names_ids(key: str) -> bool:
    return key.endswith(("_token_id", "_token_ids"))


# --- what is told -----------------------------------------------------------------------------------------------------


def _language(counts: np.ndarray, needed: np.ndarray, new: np.ndarray) -> dict:
    """Its tokens, the pieces that it needs by its coverage, and the share of tokens that all kept pieces cover."""
    total = int(counts.sum())
    return {"tokens": total, "pieces": len(needed), "covered": int(counts[new >= 0].sum()) / total}


def dropped(counts: dict[str, np.ndarray], pieces: dict[int, str], new: np.ndarray) -> dict:
    """How many pieces go, how many tokens of the languages were these, and the most frequent of them."""
    total = np.sum(list(counts.values()), axis=0)
    lost = np.where(new < 0, total, 0)
    most = [int(i) for i in vocabulary.covering(lost, 1.0)[:_SHOWN]]
    return {
        "pieces": int((new < 0).sum()),
        "tokens": int(lost.sum()),
        "share_of_tokens": int(lost.sum()) / max(int(total.sum()), 1),
        "most_frequent": [[pieces.get(i, ""), int(lost[i])] for i in most],
    }


def heldout(corpus: Corpus, name: str, spec: dict, new_spec: dict, new: np.ndarray) -> dict | None:
    """Held-out text of a language, decoded and cut once more by the tokenizer before and after; None if there is none.

    ``unknown``: the share of tokens that are unknown. ``cut_otherwise``: the share of tokens before that are not tokens
    after. The first _TEXTS documents, of each the first _TEXT_TOKENS tokens.
    """
    source = corpus.heldout.get(name)
    if source is None or not source.tokens:
        return None
    before, after = (_ready(one) for one in (spec, new_spec))
    unknown = corpus.tokenizer["special"]["unk"]
    tokens, unknowns, texts, other = [0, 0], [0, 0], 0, 0
    for document in _documents(source):
        text = before.decode(document.tolist(), skip_special_tokens=False)
        old, cut = (one.encode(text, add_special_tokens=False) for one in (before, after))
        texts += 1
        for side, (encoding, number) in enumerate(((old, unknown), (cut, int(new[unknown])))):
            tokens[side] += len(encoding.ids)
            unknowns[side] += encoding.ids.count(number)
        same = set(zip(cut.offsets, cut.ids, strict=True))
        other += sum((place, int(new[i])) not in same for place, i in zip(old.offsets, old.ids, strict=True))
    return {
        "texts": texts,
        "tokens": dict(zip(("before", "after"), tokens, strict=True)),
        "unknown": {side: n / max(of, 1) for side, n, of in zip(("before", "after"), unknowns, tokens, strict=True)},
        "cut_otherwise": other / max(tokens[0], 1),
    }


def _documents(source: Source) -> Iterator[np.ndarray]:
    """The beginnings of a source's first documents, without separators."""
    left = _TEXTS
    for shard in source.shards:
        tokens, begin = shard.open(), 0
        for end in shard.ends()[:left].tolist():
            yield tokens[begin : min(end - 1, begin + _TEXT_TOKENS)]
            begin = end
        left -= min(left, shard.documents)


def _ready(spec: dict) -> Tokenizer:
    """The tokenizer, for whole texts, decoding without embellishments."""
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if spec["model"]["type"] == "WordPiece":
        tokenizer.decoder = decoders.WordPiece(spec["model"]["continuing_subword_prefix"], cleanup=False)
    return tokenizer


def lines_of(report: dict) -> list[str]:
    """What a person reads of trimming.json."""
    size, parameters, words = report["bytes"], report["parameters"], report["vocabulary"]
    lines = [
        f"size on disk   {_change(size, 1e6, ' MB')}",
        f"parameters     {_change(parameters, 1e6, ' M')}",
        f"vocabulary     {words['before']:,} → {words['after']:,} pieces, {report['tokenizer']}",
        f"cut by rows    {', '.join(report['cut'])}",
    ]
    if report["left_out"]:
        lines.append(
            f"left behind    {some(report['left_out'], 6)}: hold the whole vocabulary in a form that is not read here"
        )
    if report["rewritten"]:
        lines.append(f"rewritten too  {', '.join(report['rewritten'])}")
    head = f"{'language':16} {'tokens':>13} {'needs':>8} {'kept':>9} {'held-out texts':>15} {'unknown':>18} {'cut otherwise':>14}"
    lines += ["", f"{head} {'tokens a text':>16}"]
    for name, one in report["languages"].items():
        row = f"{name:16} {one['tokens']:13,} {one['pieces']:8,} {one['covered']:9.4%}"
        if (text := one["heldout"]) is None:
            lines.append(f"{row}   none: prepare the data with --heldout 0.01 to see what becomes of it")
            continue
        unknown = f"{text['unknown']['before']:.4%} → {text['unknown']['after']:.4%}"
        length = " → ".join(f"{text['tokens'][side] / text['texts']:.1f}" for side in ("before", "after"))
        lines.append(f"{row} {text['texts']:15,} {unknown:>18} {text['cut_otherwise']:14.2%} {length:>16}")
    gone = report["dropped"]
    most = " ".join(f"{piece} ({count:,})" for piece, count in gone["most_frequent"])
    lines += ["", f"dropped: {gone['pieces']:,} pieces, {gone['share_of_tokens']:.4%} of the languages' tokens"]
    return [*lines, f"most frequent of them: {most}"] if most else lines


def _change(pair: dict, unit: float, name: str) -> str:
    before, after = pair["before"], pair["after"]
    return f"{before / unit:,.2f} → {after / unit:,.2f}{name} ({after / before - 1:+.1%})"


# --- the files --------------------------------------------------------------------------------------------------------


def _write(model: Path, out: Path, new: np.ndarray, spec: dict, config: PreTrainedConfig, report: dict) -> dict:
    """All files of the trimmed model; returns what the report says of them."""
    out.mkdir(parents=True)
    kept = np.flatnonzero(new >= 0)
    parameters, cut = _write_weights(model, out, torch.from_numpy(kept), len(new))
    rewritten = _write_tokenizer(model, out, new, spec)
    _write_config(model / "config.json", out / "config.json", config, new, len(kept))
    if (generation := model / "generation_config.json").is_file():
        _write_generation(generation, out / generation.name, new)
    np.save(out / VOCABULARY, new)
    own = {TRIMMING, VOCABULARY, _INDEX, *_MODEL_LISTS, "tokenizer.json", "tokenizer_config.json"}
    left_out = _copy_the_rest(model, out, own)
    common = [path.relative_to(out) for path in _files(out)]
    sizes = {
        side: sum((root / file).stat().st_size for file in common if (root / file).is_file())
        for side, root in (("before", model), ("after", out))
    }
    told = {"bytes": sizes, "parameters": parameters, "cut": cut, "rewritten": rewritten, "left_out": left_out}
    if (former := model / TRIMMING).is_file():
        told["earlier"] = _read_json(former)
    card = out / "README.md"
    if card.is_file():
        names = ", ".join(report["languages"])
        with card.open("a", encoding="utf-8") as file:
            file.write(
                f"\n## Vocabulary\n\nCut from {len(new):,} to {len(kept):,} pieces, for {names}; see {TRIMMING}.\n"
            )
    _write_json(out / TRIMMING, report | told)
    return told


def _write_weights(model: Path, out: Path, kept: torch.Tensor, rows: int) -> tuple[dict, list[str]]:
    """The safetensors files, one in memory at a time. Returns numbers before and after, and the tensors that were cut."""
    before = after = size = 0
    cut = []
    for path in weight_files(model):
        with opened(path) as file:
            tensors, metadata = {}, file.metadata()
            for name in file.keys():  # noqa: SIM118  (it is no dict)
                tensors[name] = file.get_tensor(name)
                before += tensors[name].numel()
                if f".{name}".endswith(tuple(f".{known}" for known in _ROWS)):
                    if len(tensors[name]) != rows:
                        raise UserError(
                            f"{path}: {name} has {len(tensors[name])} rows, config.json says vocab_size = {rows}; get the whole model"
                        )
                    tensors[name] = tensors[name][kept]
                    cut.append(name)
                after += tensors[name].numel()
                size += tensors[name].nbytes
            save_file(tensors, out / path.name, metadata)
            (out / path.name).chmod(0o644)
    if not any(name.endswith(_WORD_EMBEDDINGS) for name in cut):
        raise UserError(f"{model}: the weights lack {_WORD_EMBEDDINGS}; get the whole model")
    if (index := model / _INDEX).is_file():
        content = _read_json(index)
        _write_json(out / _INDEX, content | {"metadata": content.get("metadata", {}) | {"total_size": size}})
    return {"before": before, "after": after}, cut


def _write_config(path: Path, to: Path, config: PreTrainedConfig, new: np.ndarray, size: int) -> None:
    """config.json with the new size and ids, also of those ids that it leaves to its family's defaults."""
    content = _read_json(path)
    known = _config_ids(config.to_dict())
    ids = {key: _new_value(content.get(key, getattr(config, key)), new) for key in known}
    changed = {key: value for key, value in ids.items() if key in content or value != getattr(config, key)}
    _write_json(to, content | changed | {"vocab_size": size})


def _write_generation(path: Path, to: Path, new: np.ndarray) -> None:
    content = _read_json(path)
    _write_json(to, content | {key: _new_value(content[key], new) for key in _config_ids(content)})


def _new_value(value: int | list[int], new: np.ndarray) -> int | list[int] | None:
    """The new id, or ids; None for one that no piece has."""
    if isinstance(value, list):
        return [one for one in (_new_value(i, new) for i in value) if one is not None]
    return int(new[value]) if value < len(new) and new[value] >= 0 else None


def _write_tokenizer(model: Path, out: Path, new: np.ndarray, spec: dict) -> list[str]:
    """tokenizer.json and its settings; and what else the folder has of a vocabulary, whose names are returned."""
    _write_json(out / "tokenizer.json", spec, indent=None)
    settings = model / "tokenizer_config.json"
    if settings.is_file():
        content = _read_json(settings)
        if "added_tokens_decoder" in content:
            added = content["added_tokens_decoder"].items()
            content["added_tokens_decoder"] = {str(_new_value(int(i), new)): token for i, token in added}
        _write_json(out / settings.name, content)
    there = [name for name in _MODEL_LISTS if (model / name).is_file()]
    tokens, merges = spec["model"]["vocab"], spec["model"].get("merges", [])
    contents = {
        "vocab.txt": lambda: "".join(f"{token}\n" for token in tokens),
        "vocab.json": lambda: json.dumps(tokens, ensure_ascii=False),
        "merges.txt": lambda: "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges),
        "added_tokens.json": lambda: json.dumps(
            {t["content"]: t["id"] for t in spec["added_tokens"]}, ensure_ascii=False
        ),
    }
    for name in there:
        (out / name).write_text(contents[name](), encoding="utf-8")
    pieces = set(vocabulary.pieces_of(spec).values())
    models = sorted(path for path in model.glob("*.model") if path.is_file())
    for path in models:
        (out / path.name).write_bytes(_sentencepiece(path, pieces))
    return there + [path.name for path in models]


def _sentencepiece(path: Path, pieces: set[str]) -> bytes:
    """A SentencePiece model without the pieces that are not among these. Its control pieces stay, and so do offsets of ids."""
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's own
        raise UserError(f"{path}: not a SentencePiece model ({error}); get it again, or take it away") from None
    normal = sentencepiece_model_pb2.ModelProto.SentencePiece.NORMAL
    kept = [piece for piece in model.pieces if piece.type != normal or piece.piece in pieces]
    shorter = sentencepiece_model_pb2.ModelProto(
        pieces=kept, trainer_spec=model.trainer_spec, normalizer_spec=model.normalizer_spec
    )
    shorter.trainer_spec.vocab_size = len(kept)
    content = shorter.SerializeToString()
    SentencePieceProcessor(model_proto=content)  # raises for one that it would not load
    return content


def _copy_the_rest(model: Path, out: Path, own: set[str]) -> list[str]:
    """Copy what else belongs to the model; returns what does not: its weights in other forms."""
    left_out = []
    for path in _files(model):
        name = path.relative_to(model)
        if (out / name).exists() or str(name) in own:
            continue
        if path.suffix in _OTHER_WEIGHTS and not (path.suffix == ".safetensors" and len(name.parts) > 1):
            left_out.append(str(name))
            continue
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, out / name)
    return left_out


def _files(folder: Path) -> list[Path]:
    """All files below a folder, sorted, but for hidden ones."""
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


# --- before it is called done -----------------------------------------------------------------------------------------


def _probes(sources: dict[str, Source], new: np.ndarray, length: int = 64) -> list[np.ndarray]:
    """Of each language the first tokens whose pieces are kept, at most ``length``, by their old ids."""
    firsts = (source.shards[0].open()[: 4 * length].astype(np.int64) for source in sources.values())
    return [ids[new[ids] >= 0][:length] for ids in firsts]


def check_trimmed(model: Path, out: Path, new: np.ndarray, probes: list[np.ndarray], special: dict[str, int]) -> None:
    """Reload both as a user would: the same ids for the same pieces, and on each probe the same output, bit for bit."""
    before, after = (encoders.load_folder_tokenizer(folder).get_vocab() for folder in (model, out))
    if after != {piece: int(new[i]) for piece, i in before.items() if new[i] >= 0}:
        raise RuntimeError(f"{out}: the reloaded tokenizer has other ids")
    longest = encoders.longest_input(encoders.load_config(str(model))) - 2
    rows = [np.concatenate([[special["cls"]], ids[:longest], [special["sep"]]]) for ids in probes]
    for old, now in zip(_outputs(model, rows), _outputs(out, [new[ids] for ids in rows]), strict=True):
        if not torch.equal(old, now):
            raise RuntimeError(f"{out}: the reloaded model computes something else")


def _outputs(folder: Path, rows: list[np.ndarray]) -> list[torch.Tensor]:
    """The last hidden states [1, T, width] of rows of ids [T]; one model is in memory at a time."""
    model = encoders.load_model(str(folder), "main", torch.float32)
    with torch.inference_mode():
        return [model(torch.from_numpy(ids.astype(np.int64))[None]).last_hidden_state for ids in rows]


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    return share


def main() -> None:
    parser = Parser(
        prog="python -m pipeline.trim_vocab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a model folder: teacher or student")
    parser.add_argument(
        "--corpus", type=Path, required=True, metavar="DATA", help="prepared with the model's tokenizer"
    )
    parser.add_argument("--keep-languages", metavar="de,en,…", help="sources of DATA (default: all)")
    parser.add_argument(
        "--coverage", type=_share, default=_COVERAGE, help=f"share of each language's tokens (default {_COVERAGE})"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="the trimmed model's new folder")
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    names = options.keep_languages
    languages = None if names is None else [name.strip() for name in names.split(",") if name.strip()]
    report = trim(options.model, options.corpus, options.out, languages, options.coverage)
    print("\n".join(lines_of(report)))
    print(
        f"\n{options.out}: reloaded; the same outputs on kept pieces, bit for bit. {TRIMMING} there has these figures"
    )


if __name__ == "__main__":
    run_command(main)
