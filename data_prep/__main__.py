"""The command ``python -m data_prep``: plan | prepare | status | verify | stats | extend | bench."""

import argparse
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from data_prep.description import Description, parse_source, read_description, select, shipped
from data_prep.errors import Parser, UserError, run_command
from data_prep.forecast import amount, forecast, free_bytes, measure_all, table
from data_prep.formats import FORMATS
from data_prep.prepare import Share, asked_plan, budget, extend, planned_again, prepare, say
from data_prep.roundtrip import roundtrip
from data_prep.shards import REMEDY, verify
from data_prep.stats import stats_lines
from data_prep.status import status_lines

_EXAMPLE = """examples:
  python -m data_prep plan    wikipedia_bookcorpus --tokenizer google-bert/bert-base-uncased --workers 32
  python -m data_prep prepare cc100 --root /corpora/cc100 --languages en,de,sw --tokenizer xlm-roberta-base/ \\
      --budget-tokens 20e9 --out data/cc100 --workers 32 --node $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT
  python -m data_prep prepare --source wiki=wikipedia:'dumps/enwiki-*.bz2' --source web=jsonl.content:'crawl/*.jsonl.gz' \\
      --tokenizer bert-base-uncased/ --out data/mine
"""


_CORPUS_OPTIONS = ("tokenizer", "languages", "root", "heldout", "unit_mib", "budget_tokens", "alpha")


def main() -> int:
    """Run one verb; returns the exit code."""
    arguments = _parser().parse_args()
    return arguments.run(arguments)


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
            raise UserError(f"--{given[0].replace('_', '-')}: is for CORPUS or --source, and none is named")
        plan, encoder = planned_again(arguments.out)
    prepare(arguments.out, plan, encoder, arguments.workers, arguments.node, arguments.refresh)
    return 0


def _extend(arguments: argparse.Namespace) -> int:
    before, encoder = planned_again(arguments.out)
    more, alpha = None, arguments.alpha
    if arguments.corpus or arguments.source:
        settings = {"tokenizer": str(before.tokenizer_path), "heldout": before.heldout, "unit_mib": before.unit_mib}
        said = {key: value for key in settings if (value := getattr(arguments, key)) is not None}
        described = replace(_description(arguments), **settings | said)
        more, _ = asked_plan(described)
        alpha = described.alpha
    if before.budget is None and (arguments.budget_tokens is not None or arguments.alpha is not None):
        raise UserError(f"{arguments.out}: was prepared without a budget, so its sources are there to the end already")
    larger = None
    if before.budget:
        alpha = before.budget.alpha if alpha is None else alpha
        larger = budget(arguments.budget_tokens or before.budget.tokens, alpha)
    extend(arguments.out, before, more, encoder, larger, arguments.workers)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    findings = verify(arguments.data, arguments.deep)
    compared, remedy = "", REMEDY
    if arguments.roundtrip and not findings:
        count, findings = roundtrip(arguments.data, arguments.roundtrip)
        compared = f"; {count:,} documents compared with their source"
        remedy = "where a source has changed, prepare with --refresh takes it as it is now"
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


def _bench(arguments: argparse.Namespace) -> int:
    from data_prep import bench  # transformers takes seconds

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
        raise UserError(f"--{'languages' if arguments.languages else 'root'}: is for CORPUS, not for --source")
    if not arguments.corpus and not arguments.source:
        raise UserError(f"no corpus: name one of {', '.join(shipped())}, a .toml file, or --source NAME=FORMAT:GLOB")
    if arguments.corpus:
        described = read_description(arguments.corpus, arguments.root or Path())
        described = select(described, arguments.languages) if arguments.languages else described
    else:
        described = Description(tuple(parse_source(text) for text in arguments.source))
    said = {key: getattr(arguments, key) for key in ("tokenizer", "heldout", "unit_mib", "alpha")}
    return replace(described, **{key: value for key, value in said.items() if value is not None})


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        "python -m data_prep", description="Raw text to token shards.", epilog=_EXAMPLE, formatter_class=raw
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)

    def verb(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text, formatter_class=raw)
        added.set_defaults(run=run)
        return added

    planning = verb(
        "plan", _plan, "what a corpus will come to: tokens, shares, epochs, disk and time, from a small sample"
    )
    _add_corpus(planning)
    planning.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="whose disk must have room (default: here)"
    )
    _add_workers(planning)

    preparing = verb(
        "prepare", _prepare, "read, clean, encode and write a corpus; goes on where an earlier run stopped"
    )
    _add_corpus(preparing)
    _add_out(preparing)
    _add_workers(preparing)
    preparing.add_argument(
        "--node", type=_share, metavar="I/N", help="do part I (0 to N-1) of N; each node that sees DIR does another"
    )
    preparing.add_argument(
        "--refresh",
        action="store_true",
        help="take files that have changed as they are now, and make their units again",
    )

    extending = verb(
        "extend", _extend, "add sources or a larger budget to a corpus; nothing that is there is made again"
    )
    _add_corpus(extending)
    _add_out(extending)
    _add_workers(extending)

    showing = verb("status", _status, "how far a corpus is, while it is being made, from any terminal or node")
    showing.add_argument("data", type=Path, metavar="DIR")

    verifying = verb("verify", _verify, "check a corpus: exit code 0 whole, 1 with findings, 2 no corpus at all")
    verifying.add_argument("data", type=Path, metavar="DIR")
    verifying.add_argument("--deep", action="store_true", help="read every byte: hashes, ids, document ends, receipts")
    verifying.add_argument(
        "--roundtrip", type=_count, default=0, metavar="K", help="read K documents again from their source and compare"
    )

    counting = verb("stats", _stats, "what a corpus holds, source by source")
    counting.add_argument("data", type=Path, metavar="DIR")
    counting.add_argument(
        "--alpha", type=_exponent, default=1.0, metavar="A", help="of the shares (default: %(default)s)"
    )
    measuring = verb("bench", _bench, "speed beside the tokenizer alone, gain of workers, and memory, on this machine")
    measuring.add_argument("case", nargs="?", default="all", choices=("tokenizer", "workers", "memory", "all"))
    measuring.add_argument("--text", metavar="GLOB", help="text files, packed or not; needed but for memory")
    measuring.add_argument("--tokenizer", type=Path, action="append", metavar="PATH", help="may be repeated")
    measuring.add_argument("--mib", type=_number, default=16, metavar="M", help="MiB of text (default: %(default)s)")
    measuring.add_argument("--workers", type=_natural, default=2, metavar="N", help="beside one (default: %(default)s)")
    measuring.add_argument("--repeats", type=_natural, default=5, metavar="R", help="turns (default: %(default)s)")
    measuring.add_argument(
        "--memory-mib", type=_natural, default=1024, metavar="M", help="size of the hardest file (default: %(default)s)"
    )
    measuring.add_argument("--json", action="store_true", help="a JSON object for each row")
    return parser


def _add_corpus(parser: argparse.ArgumentParser) -> None:
    """The options that say what a corpus is made of."""
    parser.add_argument(
        "corpus", nargs="?", metavar="CORPUS", help=f"a .toml file, or one that comes along: {', '.join(shipped())}"
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="where the files of CORPUS lie (default: here)")
    parser.add_argument("--languages", metavar="A,B,…", help="only these sources of CORPUS")
    parser.add_argument(
        "--source",
        action="append",
        metavar="NAME=FORMAT[.FIELD]:GLOB",
        help=f"a source without CORPUS, may be repeated; FORMAT is one of {', '.join(FORMATS)}",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="a Hugging Face folder, a tokenizer.json, a vocab.txt, an XLM-R SentencePiece .model, or a model id of the hub",
    )
    parser.add_argument(
        "--heldout",
        type=_number,
        metavar="SHARE",
        help="share of documents set aside (default: that of CORPUS, else 0.01)",
    )
    parser.add_argument(
        "--unit-mib",
        type=_number,
        metavar="M",
        help="MiB of input files in one shard, from 0.0625 (default: that of CORPUS, else 64)",
    )
    parser.add_argument(
        "--budget-tokens",
        type=_number,
        metavar="N",
        help="tokens that a training run will read (steps x batch x length; 2e9, 20G): prepare only what it needs",
    )
    parser.add_argument(
        "--alpha",
        type=_exponent,
        metavar="A",
        help="sources are read in proportion to their tokens ** A (default: that of CORPUS, else 1)",
    )


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the corpus folder")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=_natural, default=os.cpu_count(), metavar="N", help="processes (default: %(default)s)"
    )


def _number(text: str) -> float:
    """ "0.3", "2e9", "20G"."""
    powers = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
    digits, power = (text[:-1], powers[text[-1]]) if text[-1:] in powers else (text, 1)
    try:
        number = float(digits) * power
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return number


def _exponent(text: str) -> float:
    if not 0 <= (number := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not from 0 (all sources alike) to 1 (in proportion to their tokens)"
        )
    return number


def _natural(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of documents")
    return int(text)


def _share(text: str) -> Share:
    """ "2/8" -> node 2 of 8."""
    node, slash, nodes = text.partition("/")
    if not (slash and node.isdecimal() and nodes.isdecimal() and int(node) < int(nodes)):
        raise argparse.ArgumentTypeError(f"{text!r} must be I/N with I from 0 to N-1, such as 0/4")
    return Share(int(node), int(nodes))


if __name__ == "__main__":
    run_command(main)
