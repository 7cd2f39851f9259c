"""Shared by all commands: the parser, the end of a command, plain tables.

A user's mistake is one line on stderr and exit code 2, without a traceback.
"""

import argparse
import difflib
import errno
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn


class UserError(Exception):
    """A mistake that the user can correct. The message names the file, key or offset, the value and the way out."""


DOOR = "DISTILL_DOOR"  # the variable that has what the user typed before a verb: ./run.sh, minilm-distil, …
_VERBS = "distill|launch|recipe|show|plan|doctor|export|trim[_-]vocab|evaluate|speed|report|rehearse|bench|prep"
_COMMANDS = re.compile(rf"(?:python -m pipeline[. ]|\./run\.sh )({_VERBS})(?![.\w])|python -m (data_prep)(?![.\w])")
_NAMES = {"launch": "distill", "trim_vocab": "trim-vocab", "data_prep": "prep"}


def as_typed(text: str) -> str:
    """``text`` with the commands of this project in it as the user types them, if it is known how: by DISTILL_DOOR."""
    if door := os.environ.get(DOOR):
        return _COMMANDS.sub(lambda found: f"{door} {_NAMES.get(word := found[1] or found[2], word)}", text)
    return text


def from_home(path: str) -> str:
    """``path`` with ``~`` at its start replaced by the home folder; as it is where no such user is known."""
    return os.path.expanduser(path)  # noqa: PTH111  Path.expanduser raises for an unknown user


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, with the option that was meant or where to look."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.prog = as_typed(self.prog)
        self.description = self.description and as_typed(self.description)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's. ``~`` in ``--option=~/folder`` is the home folder: a shell sees to it in a word of its own only."""
        words = sys.argv[1:] if args is None else args
        options = (re.fullmatch(r"(--[a-z][a-z-]*=)(~.*)", word, re.DOTALL) for word in words)
        words = [found[1] + from_home(found[2]) if found else word for found, word in zip(options, words, strict=True)]
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        message = message.removesuffix(", key=value")  # argparse adds it
        known = set(re.findall(r"--[a-z][a-z-]*", self.format_usage()))
        unknown = [word.partition("=")[0].replace("_", "-") for word in message.split() if word.startswith("-")]
        near = [hint for word in unknown for hint in difflib.get_close_matches(word, known, 1)]
        hint = f"did you mean {near[0]}?" if "unrecognized" in message and near else f"see {self.prog} --help"
        raise UserError(f"{message}; {hint}")


def number(text: str) -> float:
    """Read a number: "0.3", "2e9", "20G"."""
    powers = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
    digits, power = (text[:-1], powers[text[-1]]) if text[-1:] in powers else (text, 1)
    try:
        value = float(digits) * power
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def shows_bars() -> bool:
    """Whether progress bars can be seen on stderr: it is a terminal, and one that knows its width (some report 0 columns)."""
    try:
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        return False


def sign_of_life(what: str) -> None:
    """Say on stderr what takes the next seconds, before any of them pass; in a run of several processes the first one does."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{what} …", file=sys.stderr, flush=True)


def whole_number(least: int, below: float = math.inf) -> Callable[[str], int]:
    """An option's type: a whole number of at least ``least`` (not negative) and below ``below``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) < below:
            limit = "" if below == math.inf else f" and below {below}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}{limit}")
        return int(text)

    return parse


def some(items: Sequence[object], count: int = 3, apart: str = ", ", others: str = "others") -> str:
    """The first ``count`` of the items, and the number of others."""
    more = f" and {len(items) - count} {others}" if len(items) > count else ""
    return apart.join(map(str, items[:count])) + more


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A plain table as lines: columns two blanks apart, the first ``left`` of them aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            word.ljust(width) if number < left else word.rjust(width)
            for number, (word, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's ``main`` and exit with its code; a ``UserError`` or a full disk becomes one line and code 2."""
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        code = _report(str(error))
    except BrokenPipeError:  # whoever reads the output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        code = _report(f"{error.filename or 'disk'}: {error.strerror}; free some space and run the same command again")
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _report(message: str) -> int:
    """Print the line and return the exit code.

    Usually all ranks meet the same mistake, and the launcher ends the others once one has left. So the first rank
    reports it at once, and another only if it is still alive later, because it alone has met it.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(15)  # a busy machine's launcher takes some of them
    print(f"error: {as_typed(' '.join(message.split()))}", file=sys.stderr, flush=True)
    return 2
