"""Cut a model's vocabulary to the languages you need: its word embeddings and tokenizer, and nothing else.

    python -m pipeline.trim_vocab MODEL --corpus DATA [--keep-languages de,en,…] [--coverage 0.9999] --out OUT

MODEL is a Hugging Face folder of a supported family, with or without a task's head; DATA a corpus prepared with its
tokenizer, a source for each language. Control tokens, bytes and single characters are kept, and of each language the most
frequent pieces that make up COVERAGE of its tokens. OUT gets everything that belongs to MODEL, and

    trimming.json     the pieces that were kept and dropped, sizes, and how held-out text is split now, by language
    vocabulary.npy    the new id of each old one, -1 for a dropped piece: int32 [old vocabulary]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging as transformers_logging

from data_prep.cli import Parser, UserError, run_command, some
from data_prep.files import new_folder
from data_prep.shards import Corpus, Source, open_corpus
from pipeline.data.fits import check_tokenizer
from pipeline.models.loading import load_config
from pipeline.trim_vocab import pieces as vocabulary
from pipeline.trim_vocab.checking import check_trimmed, probes
from pipeline.trim_vocab.figures import dropped, language_figures, lines_of
from pipeline.trim_vocab.files import TRIMMING, write_trimmed
from pipeline.trim_vocab.heldout import heldout
from pipeline.trim_vocab.spec import added_ids, control_ids, cutter_of, load_tokenizer

_COVERAGE = 0.9999


def trim(
    model: Path, data: Path, out: Path, languages: Sequence[str] | None = None, coverage: float = _COVERAGE
) -> dict:
    """Write to ``out``, new or empty, the model without the pieces that the languages (default: all) do not need.

    ``coverage``: the share of each language's tokens that keep their pieces, above 0, at most 1. Returns the content of
    trimming.json. Raises UserError for an unsupported model or tokenizer, a corpus of another one, a language that the
    corpus lacks, and an ``out`` that is not empty.
    """
    model, out = model.resolve(), out.resolve()
    _check_coverage(coverage)
    _check_out(out, model)
    if not model.is_dir():
        raise UserError(f"{model}: no such folder; need a model folder")
    config = load_config(str(model))
    tokenizer, spec = load_tokenizer(model)
    rows = config.vocab_size
    if (last := max(tokenizer.get_vocab().values())) >= rows:
        raise UserError(
            f"{model}: its tokenizer has ids up to {last}, config.json says vocab_size = {rows}; get the whole model"
        )
    corpus = open_corpus(data)
    check_tokenizer(corpus, tokenizer, str(model), corpus.tokenizer["special"])
    sources = chosen(corpus, languages)

    counts = {name: vocabulary.count_pieces(source, rows) for name, source in sources.items()}
    for of_language in counts.values():
        of_language[added_ids(spec, tokenizer)] = 0  # separators, unknown
    needed = {name: vocabulary.covering(of_language, coverage) for name, of_language in counts.items()}
    control = vocabulary.fallbacks(spec) | control_ids(config, tokenizer, spec)
    kept = vocabulary.closed(spec, control.union(*(ids.tolist() for ids in needed.values())))
    new = vocabulary.new_ids(kept, rows)
    new_spec = vocabulary.trimmed(spec, new)

    cutters = cutter_of(spec), cutter_of(new_spec)
    languages_found = {}
    for name in sources:
        languages_found[name] = language_figures(counts[name], needed[name], new)
        languages_found[name]["heldout"] = heldout(corpus, name, *cutters, new)
    report = {
        "version": 1,
        "model_type": config.model_type,
        "tokenizer": spec["model"]["type"],
        "corpus": corpus.id,
        "coverage": coverage,
        "vocabulary": {"before": rows, "after": len(kept)},
        "languages": languages_found,
        "dropped": dropped(counts, vocabulary.pieces_of(spec), new),
    }
    try:
        with new_folder(out) as folder:
            report |= write_trimmed(model, folder, new, tokenizer, new_spec, config, report)
            check_trimmed(model, folder, new, probes(sources, new), corpus.tokenizer["special"])
    except OSError as error:
        if error.filename is None or error.errno is None:
            raise
        raise UserError(f"{error.filename}: {error.strerror}; nothing was written to {out}") from None
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


def chosen(corpus: Corpus, languages: Sequence[str] | None) -> dict[str, Source]:
    """The sources of these languages; of all, if none are named."""
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


def parser() -> Parser:
    made = Parser(
        prog="python -m pipeline.trim_vocab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("model", type=Path, metavar="MODEL", help="a model folder: teacher or student")
    add("--corpus", type=Path, required=True, metavar="DATA", help="prepared with the model's tokenizer")
    add("--keep-languages", metavar="de,en,…", help="sources of DATA (default: all)")
    share = f"share of each language's tokens whose pieces are kept (default {_COVERAGE})"
    add("--coverage", type=float, default=_COVERAGE, help=share)
    add("--out", type=Path, required=True, metavar="OUT", help="the trimmed model's new folder")
    return made


def main() -> None:
    options = parser().parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    languages = None
    if options.keep_languages is not None:
        languages = [name.strip() for name in options.keep_languages.split(",") if name.strip()]
    report = trim(options.model, options.corpus, options.out, languages, options.coverage)
    print("\n".join(lines_of(report)))
    same = "reloaded; its outputs on kept pieces are the same, bit for bit"
    print(f"\n{options.out}: {same}. {TRIMMING} there has these figures")


if __name__ == "__main__":
    run_command(main)
