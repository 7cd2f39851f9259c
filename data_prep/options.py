"""The options of the command's verbs, and the types of their values."""

import argparse
from pathlib import Path

from data_prep.cli import UserError, number, whole_number
from data_prep.description import shipped
from data_prep.formats.by_name import FORMATS
from data_prep.machine import cores
from data_prep.prepare import Share
from data_prep.remote import is_url


def add_prepare(to: argparse.ArgumentParser) -> None:
    """Add prepare's options."""
    add_corpus(to)
    _add_out(to)
    add_workers(to)
    to.add_argument(
        "--node", type=_share, metavar="I/N", help="do part I (0 to N-1) of N; each node that sees DIR does another"
    )
    to.add_argument(
        "--refresh",
        action="store_true",
        help="accept files that have changed as they are now, and make their units again",
    )


def add_extend(to: argparse.ArgumentParser) -> None:
    """Add extend's options."""
    to.add_argument("data", nargs="?", metavar="DIR", help="the corpus folder")
    add_corpus(to)
    to.add_argument("--out", type=local_only, metavar="DIR", help="the same, where it is not the first word")
    add_workers(to)


def add_pack(to: argparse.ArgumentParser) -> None:
    """Add pack's options."""
    to.add_argument("data", type=local_only, metavar="DIR")
    to.add_argument(
        "--length", type=whole_number(1), required=True, metavar="N", help="positions of a row, as the recipe's length"
    )
    to.add_argument("--pairs", action="store_true", help="for pieces that are read as pairs of segments")


def add_verify(to: argparse.ArgumentParser) -> None:
    """Add verify's options."""
    to.add_argument("data", type=local_only, metavar="DIR")
    to.add_argument("--deep", action="store_true", help="read every byte: hashes, ids, document ends, receipts")
    to.add_argument(
        "--roundtrip",
        type=whole_number(0),
        default=0,
        metavar="K",
        help="read K documents again from their source and compare",
    )


def add_templates(to: argparse.ArgumentParser) -> None:
    """Add templates' options."""
    to.add_argument("dumps", nargs="+", metavar="DUMP", help="a MediaWiki dump that holds the namespace Template")
    to.add_argument("--out", type=Path, metavar="FILE", help="the table to write (default: print it)")


def add_bench(to: argparse.ArgumentParser) -> None:
    """Add bench's options."""
    to.add_argument("case", nargs="?", default="all", choices=("tokenizer", "workers", "memory", "all"))
    to.add_argument("--text", metavar="GLOB", help="text files, compressed or not; needed except for memory")
    to.add_argument("--tokenizer", type=Path, action="append", metavar="PATH", help="tokenizer to measure; repeatable")
    to.add_argument("--mib", type=number, default=16, metavar="M", help="MiB of text (default: %(default)s)")
    count = whole_number(1)
    to.add_argument(
        "--workers", type=count, default=2, metavar="N", help="workers to compare with one (default: %(default)s)"
    )
    to.add_argument("--repeats", type=count, default=5, metavar="R", help="repetitions (default: %(default)s)")
    to.add_argument(
        "--memory-mib", type=count, default=1024, metavar="M", help="size of the worst-case file (default: %(default)s)"
    )
    to.add_argument("--json", action="store_true", help="print JSON, one object per row")


def add_corpus(to: argparse.ArgumentParser) -> None:
    """Add the options that describe a corpus."""
    to.add_argument(
        "corpus", nargs="?", metavar="CORPUS", help=f"a .toml file, or a shipped one: {', '.join(shipped())}"
    )
    to.add_argument("--root", type=Path, metavar="DIR", help="the folder of CORPUS's files (default: .)")
    to.add_argument("--languages", metavar="A,B,…", help="take only these sources of CORPUS")
    to.add_argument(
        "--source",
        action="append",
        metavar="NAME=FORMAT[.FIELD]:GLOB",
        help=f"name a source without CORPUS, may be repeated; FORMAT is one of {', '.join(FORMATS)}",
    )
    to.add_argument(
        "--templates",
        metavar="FILE",
        help="a table of the words of templates, such as `templates` makes, for sources of format wikipedia",
    )
    to.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="a Hugging Face folder, a tokenizer.json, a vocab.txt, an XLM-R SentencePiece .model, or a model id of the hub",
    )
    to.add_argument(
        "--heldout",
        type=number,
        metavar="SHARE",
        help="share of documents to set aside (default: that of CORPUS, else 0.01)",
    )
    to.add_argument(
        "--unit-mib",
        type=number,
        metavar="M",
        help="MiB of input files in one shard, from 0.0625 (default: that of CORPUS, else 64)",
    )
    to.add_argument(
        "--budget-tokens",
        type=number,
        metavar="N",
        help="tokens that a training run will read (steps x batch x length; 2e9, 20G): prepare only what it needs",
    )
    to.add_argument(
        "--alpha",
        type=exponent,
        metavar="A",
        help="sources are read in proportion to their tokens ** A (default: that of CORPUS, else 1)",
    )


def _add_out(to: argparse.ArgumentParser) -> None:
    to.add_argument("--out", type=local_only, required=True, metavar="DIR", help="the corpus folder")


def add_workers(to: argparse.ArgumentParser) -> None:
    """Add --workers."""
    to.add_argument(
        "--workers",
        type=whole_number(1),
        default=cores().number,
        metavar="N",
        help="processes (default: one per core that this process may use)",
    )


def exponent(text: str) -> float:
    """An option's type: an exponent α from 0 to 1."""
    if not 0 <= (value := number(text)) <= 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not from 0 (all sources alike) to 1 (in proportion to their tokens)"
        )
    return value


def _share(text: str) -> Share:
    """Read a node's part of the work: "2/8" is node 2 of 8."""
    node, slash, nodes = text.partition("/")
    if not (slash and node.isdecimal() and nodes.isdecimal() and int(node) < int(nodes)):
        raise argparse.ArgumentTypeError(f"{text!r} must be I/N with I from 0 to N-1, such as 0/4")
    return Share(int(node), int(nodes))


def local_only(text: str) -> Path:
    """An option's type: a folder of this machine. Raises UserError for a URL."""
    if is_url(text):
        raise UserError(
            f"{text}: is a URL, and this works on a folder; only stats and training read a corpus from a URL"
        )
    return Path(text)


def folder_or_url(text: str) -> Path | str:
    """An option's type: a folder, or a URL."""
    return text if is_url(text) else Path(text)
