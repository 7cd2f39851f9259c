"""Check a recipe and print it resolved, with what follows from it, its data and this machine; or write a new one.

    python -m pipeline.recipe RECIPE [key=value …]
    python -m pipeline.recipe --new FILE --teacher DIR_OR_ID --data DATA [--layers 6] [--hidden 384]

RECIPE is a TOML file or the name of a shipped recipe. Nothing is trained; a teacher of the papers needs no network. A new
recipe's numbers fit the teacher, the data and this machine, and a comment says why for each.
"""

import argparse
import sys
from pathlib import Path

from data_prep.cli import Parser, UserError, run_command, whole_number


def parser() -> Parser:
    """The command line of ``python -m pipeline.recipe``."""
    made = Parser(
        prog="python -m pipeline.recipe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("recipe", nargs="?", help="a TOML file, or the name of a shipped recipe")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="as in steps=100 or student.layers=4")
    new = made.add_argument_group("a new recipe").add_argument
    new("--new", type=Path, metavar="FILE", help="write a recipe to this file")
    new("--teacher", metavar="DIR_OR_ID", help="a model's folder or hub id")
    new("--data", metavar="DATA", help="text that was prepared with the teacher's tokenizer")
    new("--layers", type=whole_number(1), metavar="N", help="of the student (default: half the teacher's)")
    new(
        "--hidden",
        type=whole_number(1),
        metavar="N",
        help="the student's width (default: 384, or the teacher's if less)",
    )
    return made


def main() -> None:
    options = parser().parse_intermixed_args()
    wanted = {name: getattr(options, name) for name in ("teacher", "data", "layers", "hidden")}
    if options.new:
        if options.recipe:
            raise UserError(f"{options.recipe}: --new writes a recipe of its own; edit the file afterwards")
        for name in ("teacher", "data"):
            if not wanted[name]:
                raise UserError(f"--new {options.new}: needs --{name}; see python -m pipeline.recipe --help")
    elif not options.recipe:
        raise UserError("name a recipe, or write one with --new FILE --teacher DIR_OR_ID --data DATA")
    elif given := [f"--{name}" for name, value in wanted.items() if value]:
        raise UserError(f"{' and '.join(given)}: goes with --new FILE; a recipe's keys are overridden by key=value")

    # Loads torch and transformers, which takes seconds: not for --help or a mistake in the options.
    from pipeline.recipe import describe, new

    if options.new:
        lines = new.write(options.new, options.teacher, options.data, options.layers, options.hidden)
    else:
        lines = describe.described(options.recipe, options.overrides)
    for line in lines:
        print(line)
    sys.stdout.flush()


if __name__ == "__main__":
    run_command(main)
