"""The same model with the vocabulary of the languages you need: word embeddings and tokenizer, nothing else, are cut.

    python -m pipeline.trim_vocab MODEL --corpus DATA [--keep-languages de,en,…] [--coverage 0.9999] --out OUT

MODEL is a Hugging Face folder of a supported family, with or without a task's head; DATA a corpus prepared with its
tokenizer, a source for each language. Kept are control tokens, bytes, single characters, and of each language the most
frequent pieces that make up COVERAGE of its tokens. OUT gets everything that belongs to MODEL, and

    trimming.json     what was kept and dropped, sizes, and what became of held-out text, by language
    vocabulary.npy    the new id of each old one, -1 for what was dropped: int32 [old vocabulary]; see trimmed.load_trimmed
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders
from transformers import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from data_prep.errors import Parser, UserError, run_command, some
from data_prep.shards import Corpus, Source, open_corpus
from pipeline import batches, encoders, trimmed, vocabulary

_COVERAGE = 0.9999
_SHOWN = 20  # most frequent dropped pieces in the report
# Of held-out text, for each language.
_TEXTS, _TEXT_TOKENS = 2000, 512


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
    tokenizer, spec = load_tokenizer(model)
    rows = config.vocab_size
    if (last := max(tokenizer.get_vocab().values())) >= rows:
        raise UserError(
            f"{model}: its tokenizer has ids up to {last}, config.json says vocab_size = {rows}; get the whole model"
        )
    corpus = open_corpus(data)
    batches.check_tokenizer(corpus, tokenizer, str(model), corpus.tokenizer["special"])
    sources = chosen(corpus, languages)

    counts = {name: vocabulary.count_pieces(source, rows) for name, source in sources.items()}
    for of_language in counts.values():
        of_language[_added_ids(spec, tokenizer)] = 0  # separators, unknown
    needed = {name: vocabulary.covering(of_language, coverage) for name, of_language in counts.items()}
    control = vocabulary.fallbacks(spec) | control_ids(config, tokenizer, spec)
    kept = vocabulary.closed(spec, control.union(*(ids.tolist() for ids in needed.values())))
    new = vocabulary.new_ids(kept, rows)
    new_spec = vocabulary.trimmed(spec, new)
    cutters = _cutter(spec), _cutter(new_spec)

    report = {
        "version": 1,
        "model_type": config.model_type,
        "tokenizer": spec["model"]["type"],
        "corpus": corpus.id,
        "coverage": coverage,
        "vocabulary": {"before": rows, "after": len(kept)},
        "languages": {
            name: _language(counts[name], needed[name], new) | {"heldout": heldout(corpus, name, *cutters, new)}
            for name in sources
        },
        "dropped": dropped(counts, vocabulary.pieces_of(spec), new),
    }
    aside = out.with_name(f".{out.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        report |= trimmed.write_trimmed(model, aside, new, new_spec, config, report)
        check_trimmed(model, aside, new, _probes(sources, new), corpus.tokenizer["special"])
        aside.rename(out)
    except OSError as error:
        if error.filename is None or error.errno is None:
            raise
        raise UserError(f"{error.filename}: {error.strerror}; nothing was written to {out}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return report


def _check_coverage(coverage: float) -> None:
    if not 0 < coverage <= 1:
        raise UserError(
            f"--coverage {coverage:g}: is no share of a language's tokens; give one above 0 and up to 1, as 0.9999"
        )


def _check_out(out: Path, model: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists and is not an empty folder; choose a new one")
    if model in out.parents:
        raise UserError(f"--out {out}: lies in the model's own folder; choose one elsewhere")


def load_tokenizer(model: Path):
    """The folder's tokenizer and its spec. Raises UserError for one that cannot be loaded or trimmed."""
    try:
        tokenizer = encoders.load_tokenizer(str(model))
        return tokenizer, read_spec(model, tokenizer)
    except UserError:
        raise
    except Exception as error:  # the Rust loader raises bare Exception
        raise UserError(f"{model}: its tokenizer cannot be loaded ({error}); get the whole model") from None


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


def chosen(corpus: Corpus, languages: Sequence[str] | None) -> dict[str, Source]:
    """The sources of these languages; of all without any named."""
    names = list(dict.fromkeys(corpus.sources if languages is None else languages))
    lacking = [name for name in names if name not in corpus.sources]
    if lacking or not names:
        named = ", ".join(lacking) or "''"
        has = ", ".join(corpus.sources) or "none"
        raise UserError(f"--keep-languages {named}: not in {corpus.path}; name some of those it has: {has}")
    empty = [name for name in names if not corpus.sources[name].tokens]
    if len(empty) == len(names):
        raise UserError(f"{corpus.path}: holds no tokens of {some(names)}; prepare it with text of these languages")
    if empty:
        raise UserError(f"{corpus.path}: holds no tokens of {some(empty)}; prepare some, or name the other languages")
    return {name: corpus.sources[name] for name in names}


def control_ids(config: PreTrainedConfig, tokenizer, spec: dict) -> set[int]:
    """The ids that config.json and the tokenizer's settings name, and what must stay before them.

    RoBERTa's positions begin behind its padding id, so there everything up to it stays where it is.
    """
    ids = {i for value in trimmed.config_ids(config.to_dict()).values() for i in value} | set(tokenizer.all_special_ids)
    if encoders.family_of(config).first_position(config):
        ids |= set(range(config.pad_token_id + 1))
    return ids & vocabulary.pieces_of(spec).keys()


def _added_ids(spec: dict, tokenizer) -> list[int]:
    return sorted({token["id"] for token in spec["added_tokens"]} | set(tokenizer.all_special_ids))


# --- what is told -----------------------------------------------------------------------------------------------------


def _language(counts: np.ndarray, needed: np.ndarray, new: np.ndarray) -> dict:
    """Its tokens, the pieces that it needs by its coverage, and the share of tokens that all kept pieces cover."""
    total = int(counts.sum())
    return {"tokens": total, "pieces": len(needed), "covered": int(counts[new >= 0].sum()) / max(total, 1)}


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


def heldout(corpus: Corpus, name: str, before: Tokenizer, after: Tokenizer, new: np.ndarray) -> dict | None:
    """Held-out text of a language, decoded and cut once more by the tokenizers before and after; None if there is none.

    ``unknown``: the share of tokens that are unknown. ``cut_otherwise``: the share of tokens before that are not tokens
    after. The first _TEXTS documents, of each the first _TEXT_TOKENS tokens.
    """
    source = corpus.heldout.get(name)
    if source is None or not source.tokens:
        return None
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


def _cutter(spec: dict) -> Tokenizer:
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
        lines.append(f"left behind    {some(report['left_out'], 6)} (weights in a form that is not read here)")
    if report["rewritten"]:
        lines.append(f"rewritten too  {', '.join(report['rewritten'])}")
    head = f"{'language':16} {'tokens':>13} {'needs':>8} {'kept':>9} {'held-out texts':>15} {'unknown':>18}"
    lines += ["", f"{head} {'cut otherwise':>14} {'tokens a text':>16}"]
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
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # of a mapped file, some lie otherwise than in the other: see _align
    with torch.inference_mode():
        return [model(torch.from_numpy(ids.astype(np.int64))[None]).last_hidden_state for ids in rows]


def main() -> None:
    parser = Parser(
        prog="python -m pipeline.trim_vocab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a model folder: teacher or student")
    parser.add_argument(
        "--corpus", type=Path, required=True, metavar="DATA", help="prepared with the model's tokenizer"
    )
    parser.add_argument("--keep-languages", metavar="de,en,…", help="sources of DATA (default: all)")
    share = f"share of each language's tokens whose pieces are kept (default {_COVERAGE})"
    parser.add_argument("--coverage", type=float, default=_COVERAGE, help=share)
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="the trimmed model's new folder")
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    names = options.keep_languages
    languages = None if names is None else [name.strip() for name in names.split(",") if name.strip()]
    report = trim(options.model, options.corpus, options.out, languages, options.coverage)
    print("\n".join(lines_of(report)))
    print(
        f"\n{options.out}: reloaded; the same outputs on kept pieces, bit for bit. {trimmed.TRIMMING} there has these figures"
    )


if __name__ == "__main__":
    run_command(main)
