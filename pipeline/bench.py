"""Measurements of this machine: ``python -m pipeline.bench loss``, ``step``, ``data``, ``teacher``, ``finetune`` or ``all``.

``loss`` compares the relation loss with the papers' formula and with its matrix products alone, ``step`` a whole update with
what it cannot do without, ``data`` the reading of a corpus with the bare copying of the same rows; every number is a median,
of repetitions that each run everything that is compared. ``teacher`` shards a large teacher over processes of this machine
and looks at their memory and traffic. ``finetune`` compares ``evaluate`` with a plain Trainer.
"""

import argparse
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from data_prep.errors import Parser, run_command
from pipeline import bench_data
from pipeline.bench_tools import Row, machine
from pipeline.relations import PAIRS


def _whole_number(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(float(text)) if "e" in text.lower() else int(text.replace("_", ""))
        except (ValueError, OverflowError):
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return value

    return parse


def _size(text: str) -> tuple[int, int]:
    """(layers, width) of 12x768."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not LAYERSxWIDTH, as in 12x768")
    layers, width = text.split("x")
    return int(layers), int(width)


def _pairs(text: str) -> tuple[str, ...]:
    pairs = tuple(text.split(","))
    if not set(pairs) <= set(PAIRS) or len(set(pairs)) < len(pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not different pairs of q, k and v, as in qk,vv")
    return pairs


def _dropout(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "python -m pipeline.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the DeepSpeed launcher passes it
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="WHAT")
    _add_loss(kinds.add_parser("loss", help="time and memory of the relation loss"))
    _add_step(kinds.add_parser("step", help="time of a whole update, and where it goes"))
    _add_data(kinds.add_parser("data", help="the cost of reading, and how long training waits for data"))
    _add_teacher(kinds.add_parser("teacher", help="memory and traffic of a teacher that is sharded over processes"))
    _add_finetune(kinds.add_parser("finetune", help="evaluate's fine-tuning beside a plain Trainer's"))
    kinds.add_parser("all", help="loss, step and data, each with its defaults")
    for kind in kinds.choices.values():
        kind.add_argument("--json", action="store_true", help="one JSON object a line, for machines")
    return parser


def _add_loss(kind: argparse.ArgumentParser) -> None:
    _add_number(kind, "length", 512, 1, "tokens of a sequence, several allowed", nargs="+")
    _add_number(kind, "batch", 8, 1, "sequences of a batch")
    _add_setting(kind)
    _add_number(kind, "widths", (768, 384), 1, "widths of teacher and student", nargs=2)
    _add_number(kind, "repeats", 5, 1, "repetitions, of which medians are taken")
    kind.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile the loss (default: yes)"
    )


def _add_step(kind: argparse.ArgumentParser) -> None:
    size = {"type": _size, "metavar": "LAYERSxWIDTH"}
    kind.add_argument("--teacher", default=(12, 768), help="default: 12x768", **size)
    kind.add_argument("--student", nargs="+", default=[(6, 384)], help="several allowed (default: 6x384)", **size)
    kind.add_argument(
        "--layer",
        type=_whole_number(1),
        metavar="N",
        help="the teacher's layer that is learned from (default: its last)",
    )
    _add_number(kind, "batch", 4, 1, "sequences of a step on each rank, one micro-batch")
    _add_number(kind, "length", 512, 3, "tokens of a sequence")
    _add_number(
        kind,
        "vocabulary",
        bench_data.VOCABULARY,
        bench_data.VOCABULARY,
        "entries of the vocabulary; XLM-R's has 250002",
    )
    kind.add_argument(
        "--embeddings",
        action="store_true",
        help="also what gradient and optimizer of the word embeddings cost, beside students whose own stay as they are",
    )
    _add_setting(kind)
    kind.add_argument("--dropout", type=_dropout, default=0.1, metavar="P", help="the student's (default: %(default)s)")
    kind.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="default: %(default)s")
    kind.add_argument(
        "--compile", choices=("loss", "none", "all"), default="loss", help="as in a recipe (default: %(default)s)"
    )
    _add_number(kind, "repeats", 5, 1, "repetitions, of which medians are taken")


def _add_data(kind: argparse.ArgumentParser) -> None:
    kind.add_argument(
        "--data", type=Path, metavar="DIR", help="a prepared corpus (default: random tokens, 240 MB, thrown away)"
    )
    for name, default, least, text in (
        ("sources", 100, 1, "sources of the random corpus"),
        ("length", 512, 3, "tokens of a sequence"),
        ("batch", 2048, 1, "sequences of a batch"),
        ("at", 10**9, 0, "number of the first sample"),
        ("repeats", 20, 1, "repetitions, of which medians are taken"),
    ):
        _add_number(kind, name, default, least, text)


def _add_teacher(kind: argparse.ArgumentParser) -> None:
    _add_number(kind, "ranks", 4, 1, "processes on this machine")
    _add_number(kind, "layers", 13, 2, "layers of the teacher")
    _add_number(kind, "width", 2560, 80, "its width, a multiple of 80")
    _add_number(kind, "vocabulary", 8192, 8, "its vocabulary")
    _add_number(kind, "length", 128, 3, "tokens of a sequence")
    kind.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="default: %(default)s")
    kind.add_argument("--ds-config", default="teacher_zero3.json", metavar="FILE", help="default: %(default)s")
    kind.add_argument("--folder", help=argparse.SUPPRESS)  # where the ranks find the model that was made for them


def _add_finetune(kind: argparse.ArgumentParser) -> None:
    for name, text in (
        ("model", "a Hugging Face folder or hub id"),
        ("task", "one of evaluate's tasks"),
        ("data", "as evaluate's"),
        ("learning-rate", "instead of the paper's"),
        ("epochs", "instead of the paper's"),
        ("batch", "instead of the paper's"),
        ("length", "instead of the paper's"),
        ("languages", "of XNLI, MLQA and XQuAD"),
    ):
        kind.add_argument(f"--{name}", required=name in ("model", "task"), metavar="…", help=text)
    _add_number(kind, "steps", 8, 1, "updates of a repetition")
    _add_number(kind, "repeats", 3, 1, "repetitions, of which medians are taken")
    _add_number(kind, "seeds", (), 0, "also scores of the plain Trainer, trained to the end", nargs="+")


def _add_setting(kind: argparse.ArgumentParser) -> None:
    _add_number(kind, "heads", (12, 48), 1, "relation heads, several allowed", nargs="+")
    kind.add_argument(
        "--pairs",
        type=_pairs,
        metavar="LIST",
        help="of relations (default: qk,vv for 12 heads, qq,kk,vv for other numbers)",
    )


def _add_number(
    kind: argparse.ArgumentParser,
    name: str,
    default: int | tuple,
    least: int,
    text: str,
    nargs: str | int | None = None,
) -> None:
    shown = default
    if nargs == "+":
        default = list(default) if isinstance(default, tuple) else [default]
    if nargs:
        shown = " ".join(map(str, default)) or "none"
    kind.add_argument(
        f"--{name}",
        type=_whole_number(least),
        default=default,
        metavar="N",
        nargs=nargs,
        help=f"{text} (default: {shown})",
    )


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    json_too = ["--json"] if options.json else []
    kinds = ["loss", "step", "data"] if options.kind == "all" else []
    starts_ranks = options.kind == "teacher" and "RANK" not in os.environ
    first = os.environ.get("RANK", "0") == "0" and not starts_ranks  # only this rank prints
    case: dict = {}
    if first and options.kind != "data":
        print(_about_machine(_precision(options), options.json), flush=True)
    for each in [parser.parse_args([kind, *json_too]) for kind in kinds] or [options]:
        for row in _MEASUREMENTS[each.kind](each):
            if not first:
                continue
            if options.json:
                values = asdict(row)
                print(json.dumps({"bench": each.kind, **values.pop("case"), **values}), flush=True)
                continue
            if row.case != case:
                case = row.case
                print("\n" + _heading(each.kind, case), flush=True)
            print(_line(row), flush=True)


def _loss(options: argparse.Namespace) -> Iterator[Row]:
    from pipeline.bench_loss import loss  # importing DeepSpeed takes seconds

    yield from loss(options)


def _step(options: argparse.Namespace) -> Iterator[Row]:
    from pipeline.bench_step import step

    yield from step(options)


def _teacher(options: argparse.Namespace) -> Iterator[Row]:
    from pipeline.bench_teacher import teacher

    yield from teacher(options)


def _finetune(options: argparse.Namespace) -> Iterator[Row]:
    from pipeline.bench_finetune import finetune

    yield from finetune(options)


def _data(options: argparse.Namespace) -> Iterator[Row]:
    with ExitStack() as stack:
        folder = options.data
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-data-")))
            bench_data.make_corpus(folder, options.sources, bench_data.TOKENS)
        yield from bench_data.data(folder, options.length, options.batch, options.at, options.repeats)


_MEASUREMENTS = {"loss": _loss, "step": _step, "data": _data, "teacher": _teacher, "finetune": _finetune}


def _precision(options: argparse.Namespace) -> str:
    if options.kind == "finetune":
        from pipeline.finetune import precision

        return precision()
    return getattr(options, "precision", "bf16")


def _about_machine(precision: str, as_json: bool) -> str:
    about = machine(precision)
    if as_json:
        return json.dumps({"bench": "machine", **about})
    units = "has" if about["bf16_units"] else "lacks"
    return (
        f"{about['name']} ({about['device']}), {about['threads']} threads, torch {about['torch']}, "
        f"{about['precision']}; {units} bf16 units"
    )


def _heading(kind: str, case: dict) -> str:
    """One line for what the following rows were measured for."""
    parts = [f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}" for key, value in case.items()]
    return f"{kind}: {', '.join(parts)}" if parts else f"{kind}:"


def _line(row: Row) -> str:
    wide = 20 if row.case else 14
    return f"{row.measure:{wide}} {row.value:10.3f} {row.unit:11} {row.note}"


if __name__ == "__main__":
    run_command(main)
