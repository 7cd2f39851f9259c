"""How a user's mistake is told: one line on stderr, exit code 2, no traceback."""

import argparse
import difflib
import errno
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn


class UserError(Exception):
    """Something the user can mend. The message names the file, key or offset, the value and the way out."""


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, with the option that was meant or where to look."""

    def error(self, message: str) -> NoReturn:
        message = message.removesuffix(", key=value")  # argparse names it too, needlessly
        known = set(re.findall(r"--[a-z][a-z-]*", self.format_usage()))
        unknown = [word.partition("=")[0].replace("_", "-") for word in message.split() if word.startswith("-")]
        near = [hint for word in unknown for hint in difflib.get_close_matches(word, known, 1)]
        hint = f"did you mean {near[0]}?" if "unrecognized" in message and near else f"see {self.prog} --help"
        raise UserError(f"{message}; {hint}")


def whole_number(least: int, below: float = math.inf) -> Callable[[str], int]:
    """An option's type: a whole number of at least ``least`` (not negative) and below ``below``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) < below:
            limit = "" if below == math.inf else f" and below {below}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}{limit}")
        return int(text)

    return parse


def some(items: Sequence[object], count: int = 3, apart: str = ", ", others: str = "others") -> str:
    """The first ``count`` of the items, and how many others there are."""
    more = f" and {len(items) - count} {others}" if len(items) > count else ""
    return apart.join(map(str, items[:count])) + more


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's ``main`` and exit with its code; a ``UserError`` or a full disk becomes one line and code 2."""
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        code = _tell(str(error))
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        code = _tell(f"{error.filename or 'disk'}: {error.strerror}; free some space and run the same command again")
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _tell(message: str) -> int:
    """Print the line. Ranks usually all meet the same mistake, and the launcher ends the others once one has left.

    So the first rank tells it at once, and another only if it lives on because it alone has met it.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(15)  # a busy machine's launcher takes some of them
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return 2
