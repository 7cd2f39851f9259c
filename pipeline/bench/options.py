"""The options of the measurements."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from data_prep.cli import Parser
from pipeline.bench.gpu_parts import NAMES
from pipeline.bench.tools import VOCABULARY
from pipeline.pairs import PAIRS


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


def options_parser(description: str) -> Parser:
    """The parser of the command and of each measurement."""
    parser = Parser(
        "python -m pipeline.bench", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the DeepSpeed launcher passes it
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="WHAT")
    _add_loss(kinds.add_parser("loss", help="time and memory of the relation loss"))
    _add_step(kinds.add_parser("step", help="time of a whole update, and of its parts"))
    _add_data(kinds.add_parser("data", help="the cost of reading, and how long training waits for data"))
    _add_teacher(kinds.add_parser("teacher", help="memory and traffic of a teacher that is sharded over processes"))
    _add_finetune(kinds.add_parser("finetune", help="evaluate's fine-tuning compared with a plain Trainer's"))
    _add_size(kinds.add_parser("kernel", help="the fused loss compared with the papers' formula in fp64"))
    _add_gpu(kinds.add_parser("gpu", help="the first hour on a GPU: all that only a GPU can show, in eight minutes"))
    kinds.add_parser("all", help="loss, step and data, each with its defaults")
    for kind in kinds.choices.values():
        kind.add_argument("--json", action="store_true", help="print JSON, one object per line")
    return parser


def _add_loss(kind: argparse.ArgumentParser) -> None:
    _add_number(kind, "length", 512, 1, "tokens of a sequence, several allowed", nargs="+")
    _add_number(kind, "batch", 8, 1, "sequences of a batch")
    _add_setting(kind)
    _add_number(kind, "widths", (768, 384), 1, "widths of teacher and student", nargs=2)
    _add_number(kind, "repeats", 5, 1, "repetitions; the median is reported")
    kind.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile the loss (default: yes)"
    )
    kind.add_argument(
        "--static",
        action="store_true",
        help="predict the fused loss's time on GPUs from its compiled instructions, and measure nothing",
    )
    kind.add_argument(
        "--gpu", metavar="NAME", help="of --static: one of plan's GPUs (default: each that has bf16 units)"
    )


def _add_step(kind: argparse.ArgumentParser) -> None:
    shape = "LAYERSxWIDTH"
    kind.add_argument("--teacher", type=_size, metavar=shape, default=(12, 768), help="default: 12x768")
    students = "several allowed (default: 6x384)"
    kind.add_argument("--student", type=_size, metavar=shape, nargs="+", default=[(6, 384)], help=students)
    layer = "the teacher's layer to learn from (default: its last)"
    kind.add_argument("--layer", type=_whole_number(1), metavar="N", help=layer)
    _add_number(kind, "batch", 4, 1, "sequences of a step on each rank, one micro-batch")
    _add_number(kind, "length", 512, 3, "tokens of a sequence")
    _add_number(kind, "vocabulary", VOCABULARY, VOCABULARY, "entries of the vocabulary; XLM-R's has 250002")
    kind.add_argument(
        "--embeddings",
        action="store_true",
        help="also the cost of the word embeddings' gradient and optimizer, compared with students whose own are not trained",
    )
    _add_setting(kind)
    kind.add_argument(
        "--loss-kernel",
        choices=("auto", "triton", "torch", "literal"),
        nargs="+",
        default=["auto"],
        help="what computes the loss, several allowed: as in a recipe, or the papers' formula (default: auto)",
    )
    kind.add_argument("--dropout", type=_dropout, default=0.1, metavar="P", help="the student's (default: %(default)s)")
    config = "the students' (default: %(default)s)"
    kind.add_argument("--ds-config", default="student_zero1.json", metavar="FILE", help=config)
    kind.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="default: %(default)s")
    ways = "how bf16 products are taken on a CPU, several allowed and compared: as in a recipe (default: auto)"
    kind.add_argument("--arithmetic", choices=("auto", "native", "widened"), nargs="+", default=["auto"], help=ways)
    kind.add_argument(
        "--compile", choices=("loss", "none", "all"), default="loss", help="as in a recipe (default: %(default)s)"
    )
    kind.add_argument(
        "--launches", action="store_true", help="count what a GPU would be sent in an update, and measure nothing"
    )
    layouts = "compare only these layouts, by the tokens of text of --data that an update reads in a second"
    kind.add_argument("--layout", choices=("full", "doc", "packed"), nargs="+", default=[], help=layouts)
    kind.add_argument("--data", type=Path, metavar="DIR", help="of --layout: a prepared corpus")
    _add_number(kind, "repeats", 5, 1, "repetitions; the median is reported")


def _add_data(kind: argparse.ArgumentParser) -> None:
    kind.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="a prepared corpus (default: random tokens, 240 MB, deleted afterwards)",
    )
    for name, default, least, text in (
        ("sources", 100, 1, "sources of the random corpus"),
        ("length", 512, 3, "tokens of a sequence"),
        ("batch", 2048, 1, "sequences of a batch"),
        ("at", 10**9, 0, "number of the first sample"),
        ("repeats", 20, 1, "repetitions; the median is reported"),
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
        ("learning-rate", "overrides the paper's learning rate"),
        ("epochs", "overrides the paper's epochs"),
        ("batch", "overrides the paper's batch"),
        ("length", "overrides the paper's length"),
        ("languages", "of XNLI, MLQA and XQuAD"),
    ):
        kind.add_argument(f"--{name}", required=name in ("model", "task"), metavar="…", help=text)
    _add_number(kind, "steps", 8, 1, "updates of a repetition")
    _add_number(kind, "repeats", 3, 1, "repetitions; the median is reported")
    _add_number(kind, "seeds", (), 0, "also the scores of the plain Trainer, trained to the end", nargs="+")


def _add_size(kind: argparse.ArgumentParser) -> None:
    sizes = "full: what recipes use; toy: what a CPU can do in a minute or two (default: full on a GPU)"
    kind.add_argument("--size", choices=("toy", "full"), help=sizes)


def _add_gpu(kind: argparse.ArgumentParser) -> None:
    _add_size(kind)
    out = "for gpu.md, gpu.json and logs (default: %(default)s)"
    kind.add_argument("--out", type=Path, default=Path("runs/bench-gpu"), metavar="DIR", help=out)
    kind.add_argument("--parts", nargs="+", choices=NAMES, metavar="PART", help=f"only these of {', '.join(NAMES)}")
    minutes = "the longest that it may take (default: 8, or 20 at toy size)"
    kind.add_argument("--minutes", type=_whole_number(1), metavar="N", help=minutes)


def _add_setting(kind: argparse.ArgumentParser) -> None:
    _add_number(kind, "heads", (12, 48), 1, "relation heads, several allowed", nargs="+")
    pairs = "relations (default: qk,vv for 12 heads, qq,kk,vv for other numbers)"
    kind.add_argument("--pairs", type=_pairs, metavar="LIST", help=pairs)


def _add_number(
    kind: argparse.ArgumentParser,
    name: str,
    default: int | tuple,
    least: int,
    text: str,
    nargs: str | int | None = None,
) -> None:
    values = default if isinstance(default, tuple) else (default,)
    shown = " ".join(map(str, values)) or "none"
    kind.add_argument(
        f"--{name}",
        type=_whole_number(least),
        default=list(values) if nargs == "+" else default,
        metavar="N",
        nargs=nargs,
        help=f"{text} (default: {shown})",
    )
