"""The command ``python -m data_prep``: plan | prepare | pack | status | verify | stats | push | extend | templates | bench."""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from data_prep import bench
from data_prep.cli import Parser, UserError, aligned, run_command
from data_prep.definitions.extract import lines_of
from data_prep.description import Description, parse_source, read_description, select, shipped, with_templates
from data_prep.files import REMEDY, write_text
from data_prep.forecast import amount, forecast, free_bytes, table
from data_prep.options import (
    add_bench,
    add_corpus,
    add_extend,
    add_pack,
    add_prepare,
    add_templates,
    add_verify,
    add_workers,
    exponent,
    folder_or_url,
    local_only,
)
from data_prep.packing import index_folder, packing_findings, packing_of
from data_prep.prepare import asked_plan, budget, extend, planned_again, prepare, say
from data_prep.push import push
from data_prep.roundtrip import roundtrip
from data_prep.sampling import measure_all
from data_prep.shards import SIDES, open_corpus, verify
from data_prep.stats import stats_lines
from data_prep.status import status_lines

_EXAMPLE = """examples:
  python -m data_prep plan    wikipedia_bookcorpus --tokenizer google-bert/bert-base-uncased --workers 32
  python -m data_prep prepare cc100 --root /corpora/cc100 --languages en,de,sw --tokenizer xlm-roberta-base/ \\
      --budget-tokens 20e9 --out data/cc100 --workers 32 --node $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT
  python -m data_prep prepare --source wiki=wikipedia:'dumps/enwiki-*.bz2' --source web=jsonl.content:'crawl/*.jsonl.gz' \\
      --tokenizer bert-base-uncased/ --out data/mine
"""
_CORPUS_OPTIONS = ("tokenizer", "languages", "root", "templates", "heldout", "unit_mib", "budget_tokens", "alpha")


def main() -> int:
    """Run a verb; returns the exit code."""
    arguments = parser().parse_args()
    code: int = arguments.run(arguments)
    return code


def _plan(arguments: argparse.Namespace) -> int:
    described = _description(arguments)
    plan, encoder = asked_plan(described, arguments.budget_tokens)
    alpha = 1.0 if described.alpha is None else described.alpha
    entries = forecast(plan, measure_all(plan, encoder, say), alpha)
    print("\n".join(table(entries, arguments.workers)))
    needed, free = sum(entry.disk for entry in entries), free_bytes(arguments.out)
    print(f"alpha {alpha:g}, {arguments.workers} workers; {amount(free, 'B')} are free at {arguments.out}")
    if needed > free:
        raise UserError(
            f"--out {arguments.out}: needs about {amount(needed, 'B')}, but {amount(free, 'B')} are free; name another disk"
        )
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    if arguments.corpus or arguments.source:
        plan, encoder = asked_plan(_description(arguments), arguments.budget_tokens)
    else:
        if given := [name for name in _CORPUS_OPTIONS if getattr(arguments, name) is not None]:
            raise UserError(f"--{given[0].replace('_', '-')}: is for CORPUS or --source, and neither is given")
        plan, encoder = planned_again(arguments.out)
    prepare(arguments.out, plan, encoder, arguments.workers, arguments.node, arguments.refresh)
    return 0


def _extend(arguments: argparse.Namespace) -> int:
    _settle_folder(arguments)
    before, encoder = planned_again(arguments.out)

    more, alpha = None, arguments.alpha
    if arguments.corpus or arguments.source:
        described = _description(arguments)
        described = replace(
            described,
            tokenizer=str(before.tokenizer_path) if arguments.tokenizer is None else arguments.tokenizer,
            heldout=before.heldout if arguments.heldout is None else arguments.heldout,
            unit_mib=before.unit_mib if arguments.unit_mib is None else arguments.unit_mib,
        )
        more, _ = asked_plan(described)
        alpha = described.alpha
    if before.budget is None and (arguments.budget_tokens is not None or arguments.alpha is not None):
        raise UserError(f"{arguments.out}: was prepared without a budget, so its sources are there in full already")

    larger = None
    if before.budget:
        alpha = before.budget.alpha if alpha is None else alpha
        larger = budget(arguments.budget_tokens or before.budget.tokens, alpha)
    extend(arguments.out, before, more, encoder, larger, arguments.workers)
    return 0


def _settle_folder(arguments: argparse.Namespace) -> None:
    """The folder to extend is the first word, as of other verbs, or --out. Raises UserError unless it is given once."""
    words = [word for word in (arguments.data, arguments.corpus) if word]
    if arguments.out is None:
        if not words:
            raise UserError(
                "no folder is named; write extend DIR, with what to add: --source, CORPUS or --budget-tokens"
            )
        arguments.out = Path(words.pop(0))
    if len(words) > 1:
        raise UserError(f"--out {arguments.out}: and {words[0]} are two folders to extend; name one")
    arguments.corpus = words[0] if words else None


def _pack(arguments: argparse.Namespace) -> int:
    begun = time.monotonic()
    corpus, frame = open_corpus(arguments.data), 3 if arguments.pairs else 2
    folder = index_folder(corpus, arguments.length, frame)
    verdict = "was there" if folder.exists() else "made"
    table = [["side", "rows", "pieces", "pieces a row", "filled"]]
    for side, sources in zip(SIDES, (corpus.sources, corpus.heldout), strict=True):
        packing = packing_of(
            corpus, side, arguments.length, frame, lambda line: print(f"pack: {line}", file=sys.stderr)
        )
        rows, pieces = int(packing.rows.sum()), int(packing.pieces.sum())
        tokens = sum(source.tokens - source.documents for source in sources.values())
        filled = (tokens + frame * pieces) / max(rows * arguments.length, 1)
        table.append([side, f"{rows:,}", f"{pieces:,}", f"{pieces / max(rows, 1):.2f}", f"{filled:.2%}"])
    print("\n".join(aligned(table)))
    print(f"{folder}: {verdict}, {time.monotonic() - begun:.1f} s")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    findings = verify(arguments.data, arguments.deep)
    compared, remedy = "", REMEDY
    if not findings:
        findings = packing_findings(open_corpus(arguments.data), arguments.deep)
        remedy = "the corpus itself is whole"
    if arguments.roundtrip and not findings:
        count, findings = roundtrip(arguments.data, arguments.roundtrip)
        compared = f"; {count:,} documents compared with their source"
        remedy = "if a source has changed, prepare with --refresh takes it as it is now"
    findings = list(dict.fromkeys(findings))
    for finding in findings:
        print(finding)
    verdict = f"{len(findings)} finding{'s' * (len(findings) > 1)}; {remedy}" if findings else "whole"
    print(f"{arguments.data}: {verdict}{compared}", file=sys.stderr)
    return 1 if findings else 0


def _stats(arguments: argparse.Namespace) -> int:
    print("\n".join(stats_lines(arguments.data, arguments.alpha)))
    return 0


def _status(arguments: argparse.Namespace) -> int:
    print("\n".join(status_lines(arguments.data)))
    return 0


def _push(arguments: argparse.Namespace) -> int:
    push(arguments.data, arguments.url)
    return 0


def _templates(arguments: argparse.Namespace) -> int:
    if (out := arguments.out) and (out.is_dir() or not out.parent.is_dir()):
        raise UserError(f"--out {out}: cannot be written; name a file in a folder that is there")
    table = lines_of(arguments.dumps, lambda line: print(f"templates: {line}", file=sys.stderr, flush=True))
    if out:
        write_text(out, table)
    else:
        print(table, end="")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    if not arguments.tokenizer:
        raise UserError("--tokenizer: none is named; give a file or a folder, several times if you like")
    cases = bench.CASES if arguments.case == "all" else (arguments.case,)
    settings = bench.Settings(arguments.text, arguments.mib, arguments.workers, arguments.repeats, arguments.memory_mib)
    for row in bench.run(cases, arguments.tokenizer, settings):
        print(bench.as_json(row) if arguments.json else row, flush=True)
    return 0


def _description(arguments: argparse.Namespace) -> Description:
    """The corpus that the command line names, with the options that it sets."""
    if arguments.corpus and arguments.source:
        raise UserError(
            f"both the corpus {arguments.corpus} and --source are given; put the sources into the .toml file"
        )
    if arguments.source and (arguments.languages or arguments.root):
        option = "--languages" if arguments.languages else "--root"
        raise UserError(f"{option}: is for CORPUS, not for --source")
    if not arguments.corpus and not arguments.source:
        raise UserError(f"no corpus: name one of {', '.join(shipped())}, a .toml file, or --source NAME=FORMAT:GLOB")
    if arguments.corpus:
        described = read_description(arguments.corpus, arguments.root or Path())
        described = select(described, arguments.languages) if arguments.languages else described
    else:
        described = Description(tuple(parse_source(text) for text in arguments.source))
    if arguments.templates:
        described = with_templates(described, arguments.templates)
    options = {key: getattr(arguments, key) for key in ("tokenizer", "heldout", "unit_mib", "alpha")}
    return replace(described, **{key: value for key, value in options.items() if value is not None})


def parser() -> Parser:
    """The parser of all verbs."""
    raw = argparse.RawDescriptionHelpFormatter
    top = Parser("python -m data_prep", description="Raw text to token shards.", epilog=_EXAMPLE, formatter_class=raw)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)

    def verb(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text, formatter_class=raw)
        added.set_defaults(run=run)
        return added

    planning = verb("plan", _plan, "forecast tokens, shares, epochs, disk and time of a corpus from a small sample")
    add_corpus(planning)
    planning.add_argument(
        "--out", type=local_only, default=Path(), metavar="DIR", help="folder whose free space is checked (default: .)"
    )
    add_workers(planning)

    add_prepare(
        verb("prepare", _prepare, "read, clean, encode and write a corpus; resumes where an earlier run stopped")
    )

    add_pack(
        verb("pack", _pack, "pack whole documents into rows, for layout = 'packed'; a run does it by itself if need be")
    )

    add_extend(verb("extend", _extend, "add sources or a larger budget to a corpus; existing shards are kept"))

    showing = verb("status", _status, "report the progress of a corpus that is being made, from any terminal or node")
    showing.add_argument("data", type=local_only, metavar="DIR")

    add_verify(
        verb("verify", _verify, "check a corpus: exit code 0 if whole, 1 with findings, 2 if there is no corpus")
    )

    pushing = verb(
        "push", _push, "copy a corpus to a URL (s3://, gs://) and read it back; resumes where an earlier one stopped"
    )
    pushing.add_argument("data", type=local_only, metavar="DIR")
    pushing.add_argument("url", metavar="URL", help="where its manifest.json will be, as s3://bucket/name")

    counting = verb("stats", _stats, "show what a corpus holds, source by source")
    counting.add_argument("data", type=folder_or_url, metavar="DIR", help="a folder, or the URL of one")
    counting.add_argument(
        "--alpha", type=exponent, default=1.0, metavar="A", help="exponent α for the shares (default: %(default)s)"
    )

    add_templates(
        verb("templates", _templates, "write a table of the words of templates, by their definitions in dumps")
    )
    add_bench(
        verb("bench", _bench, "measure the speed compared with the tokenizer alone, speed-up from workers, and memory")
    )
    return top


if __name__ == "__main__":
    run_command(main)
