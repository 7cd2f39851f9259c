"""Measurements of this machine: ``python -m pipeline.bench`` with ``loss``, ``step``, ``data``, ``teacher``, ``finetune``,
``kernel``, ``gpu`` or ``all``.

``loss`` compares the relation loss with the papers' formula and with its matrix products alone; with --static it counts the
instructions of the fused one, for GPUs that need not be here. ``step`` compares a whole update with its indispensable parts,
or, with --layout, updates that read a corpus in different layouts; ``data`` compares the reading of a corpus with the bare
copying of the same rows; every number is a median of repetitions; each repetition runs every variant. ``teacher`` shards a
large teacher over processes of this machine and measures their memory and traffic. ``finetune`` compares ``evaluate`` with a
plain Trainer, ``kernel`` the fused loss with the formula in fp64.

``gpu`` runs all that only a GPU can show, in at most eight minutes on one, and writes a page of it.
"""

import argparse
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from data_prep.cli import Parser, UserError, run_command
from pipeline.bench.gpu import gpu
from pipeline.bench.options import options_parser
from pipeline.bench.tools import Row


def parser() -> Parser:
    return options_parser(__doc__)


def main() -> int:
    options = parser().parse_args()
    if options.kind == "gpu":
        return gpu(options)
    starts_ranks = options.kind == "teacher" and "RANK" not in os.environ
    first = os.environ.get("RANK", "0") == "0" and not starts_ranks  # only this rank prints
    if first and options.kind != "data" and not getattr(options, "static", False):
        print(_about_machine(_precision(options), options.json), flush=True)
    case: dict = {}
    for each in _requested(options):
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
    return 0


def _requested(options: argparse.Namespace) -> list[argparse.Namespace]:
    """The options of each measurement to run: of ``all``, the defaults of each."""
    if options.kind != "all":
        return [options]
    json_too = ["--json"] if options.json else []
    return [parser().parse_args([kind, *json_too]) for kind in ("loss", "step", "data")]


def _loss(options: argparse.Namespace) -> Iterator[Row]:
    if options.static:
        return _static(options)
    if options.gpu:
        raise UserError(f"--gpu {options.gpu}: goes with --static; what is measured is this machine")
    return _measured_loss(options)


def _static(options: argparse.Namespace) -> Iterator[Row]:
    if not importlib.util.find_spec("triton"):
        raise UserError("--static: Triton is not installed, whose compiler it asks: pip install triton")
    from pipeline.bench.static import static

    yield from static(options)


def _measured_loss(options: argparse.Namespace) -> Iterator[Row]:
    from pipeline.bench.loss import loss  # importing torch and DeepSpeed takes seconds: here and below

    yield from loss(options)


def _step(options: argparse.Namespace) -> Iterator[Row]:
    if options.layout or options.data:
        from pipeline.bench.layouts import layouts

        yield from layouts(options)
        return
    from pipeline.bench.step import step

    yield from step(options)


def _teacher(options: argparse.Namespace) -> Iterator[Row]:
    from pipeline.bench.teacher import teacher

    yield from teacher(options)


def _finetune(options: argparse.Namespace) -> Iterator[Row]:
    from pipeline.bench.finetune import finetune

    yield from finetune(options)


def _data(options: argparse.Namespace) -> Iterator[Row]:
    from pipeline.bench import data

    with ExitStack() as stack:
        folder = options.data
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-data-")))
            data.make_corpus(folder, options.sources, data.TOKENS)
        yield from data.data(folder, options.length, options.batch, options.at, options.repeats)


def _kernel(options: argparse.Namespace) -> Iterator[Row]:
    if not importlib.util.find_spec("triton"):
        raise UserError("kernel: Triton is not installed, which it is written in: pip install triton")
    from pipeline.bench.kernel import kernel

    yield from kernel(options)


_MEASUREMENTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "loss": _loss,
    "step": _step,
    "data": _data,
    "teacher": _teacher,
    "finetune": _finetune,
    "kernel": _kernel,
}


def _precision(options: argparse.Namespace) -> str:
    if options.kind == "finetune":
        from pipeline.evaluate.finetune import precision

        return precision()
    return getattr(options, "precision", "bf16")


def _about_machine(precision: str, as_json: bool) -> str:
    from pipeline.bench.machine import machine
    from pipeline.models.arithmetic import Rates

    about = machine(precision)
    if as_json:
        return json.dumps({"bench": "machine", **about})
    found = about["bf16_products"]
    products = f"; bf16 products: {Rates(**found)}" if found else ""
    return (
        f"{about['name']} ({about['device']}), {about['threads']} threads, torch {about['torch']}, "
        f"{about['precision']}{products}"
    )


def _heading(kind: str, case: dict) -> str:
    """One line with the case of the following rows."""
    values = {key: " ".join(map(str, value)) if isinstance(value, list) else value for key, value in case.items()}
    parts = [f"{key} {value}" for key, value in values.items()]
    return f"{kind}: {', '.join(parts)}" if parts else f"{kind}:"


def _line(row: Row) -> str:
    wide = 20 if row.case else 14
    return f"{row.measure:{wide}} {row.value:10.3f} {row.unit:11} {row.note}"


if __name__ == "__main__":
    run_command(main)
