"""One process at a time in a folder."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from data_prep.errors import UserError

PATIENCE = 20.0  # seconds; the processes of a killed run may take that long to die


@contextmanager
def sole_process(folder: Path, say: Callable[[str], object], patience: float | None = None) -> Iterator[None]:
    """Hold ``folder``/.lock, which names this process; wait ``patience`` s (PATIENCE) for one that is dying.

    Makes the folder. Raises UserError naming the process that holds it.
    """
    patience = PATIENCE if patience is None else patience
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"{folder}: cannot be used as a folder to write to ({error.strerror}); name another") from None
    with lock as file:
        deadline = time.monotonic() + patience
        waiting = False
        while not _try_lock(file):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            if time.monotonic() > deadline:
                raise UserError(f"{folder}: in use by process {holder}; wait until it has ended, or stop it")
            if not waiting:
                say(f"{folder}: process {holder} is at work here; waiting up to {patience:.0f} s for it to end")
            waiting = True
            time.sleep(0.2)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
