"""How a user's mistake is told: one line on stderr, exit code 2, no traceback."""

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something the user can mend. The message names the file, key or offset, the value and the way out.

    Of several ranks all meet it, and one of them tells it, unless it is ``lone``: then the rank that met it does.
    """

    def __init__(self, message: str, lone: bool = False):
        super().__init__(message)
        self.lone = lone


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's ``main`` and exit with its code; a ``UserError`` or a full disk becomes one line and code 2."""
    try:
        code = main() or 0
    except UserError as error:
        code = _tell(str(error), error.lone)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        code = _tell(
            f"{error.filename or 'disk'}: {error.strerror}; free some space and run the same command again", True
        )
    except KeyboardInterrupt:
        code = 130
    sys.stdout.flush()
    sys.exit(code)


def _tell(message: str, lone: bool) -> int:
    if lone or os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return 2
