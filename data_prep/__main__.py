"""The command ``python -m data_prep``: prepare | verify | stats."""

import argparse
import os
import sys
from pathlib import Path

from data_prep.errors import run_command
from data_prep.prepare import prepare
from data_prep.shards import REMEDY, verify
from data_prep.stats import stats_lines

_EXAMPLE = """example:
  python -m data_prep prepare --out data --tokenizer bert-base-uncased/ \\
      --source wiki=wikipedia:'dumps/enwiki-*.bz2' --source books=text:'books/**/*.txt'
"""


def main() -> int:
    """Run one verb; returns the exit code."""
    arguments = _parser().parse_args()
    if arguments.verb == "prepare":
        prepare(
            arguments.out,
            arguments.tokenizer,
            arguments.source,
            arguments.workers,
            arguments.heldout,
            arguments.unit_mib,
        )
        return 0
    if arguments.verb == "stats":
        print("\n".join(stats_lines(arguments.data)))
        return 0
    findings = verify(arguments.data, arguments.deep)
    for finding in findings:
        print(finding)
    print(f"{arguments.data}: {f'{len(findings)} findings; {REMEDY}' if findings else 'whole'}", file=sys.stderr)
    return 1 if findings else 0


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m data_prep", description="Raw text to token shards.", epilog=_EXAMPLE, formatter_class=raw
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    verb = verbs.add_parser(
        "prepare",
        help="read, clean, encode and write a corpus; goes on where an earlier run stopped",
        description="Read, clean, encode and write a corpus. Interrupted at any moment, the same command goes on where "
        "it stopped; any number of workers writes the same bytes.",
        epilog=_EXAMPLE,
        formatter_class=raw,
    )
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="the corpus folder to make or to complete")
    verb.add_argument(
        "--tokenizer",
        type=Path,
        required=True,
        metavar="PATH",
        help="a Hugging Face folder, a tokenizer.json, a vocab.txt or an XLM-R SentencePiece .model",
    )
    verb.add_argument(
        "--source",
        action="append",
        required=True,
        metavar="NAME=FORMAT:GLOB",
        help="a named source; FORMAT is wikipedia (dump XML, plain or .bz2) or text (UTF-8, blank lines between "
        "documents, plain or .gz .bz2 .xz); may be repeated",
    )
    verb.add_argument(
        "--workers", type=int, default=os.cpu_count(), metavar="N", help="processes (default: %(default)s)"
    )
    verb.add_argument(
        "--heldout",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="share of documents set aside (default: %(default)s)",
    )
    verb.add_argument(
        "--unit-mib",
        type=float,
        default=64,
        metavar="M",
        help="MiB of an input file in one shard (default: %(default)s)",
    )

    verb = verbs.add_parser("verify", help="check a corpus: exit code 0 whole, 1 with findings, 2 no corpus at all")
    verb.add_argument("data", type=Path, metavar="DIR")
    verb.add_argument("--deep", action="store_true", help="read every byte: hashes, ids, document ends, receipts")

    verb = verbs.add_parser("stats", help="what a corpus holds, source by source")
    verb.add_argument("data", type=Path, metavar="DIR")
    return parser


if __name__ == "__main__":
    run_command(main)
