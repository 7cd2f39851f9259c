"""Claims on cells: any number of processes on any number of hosts work on one results folder, each cell is run by one of them.

A claim is an ``flock`` on a file next to the cell's, so that of a process that dies is free at once, on every host.
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.locks import try_lock

CLAIM = ".claim"


@contextmanager
def claim(cell: Path) -> Iterator[str]:
    """Hold the claim on a ``cell``, by its file, until the block ends; give "", or who else holds it.

    Raises UserError on a file system without locks.
    """
    path = cell.with_name(f".{cell.stem}{CLAIM}")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+") as file:
            if not try_lock(file, fcntl.LOCK_EX):
                file.seek(0)
                yield file.read().strip() or "another process"
                return
            if not _is_at(path, file.fileno()):  # its last holder has removed it since it was opened
                continue
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            try:
                yield ""
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def holders(out: Path) -> set[str]:
    """Who is at work in a results folder now."""
    found = set()
    for path in out.glob(f"*/*/.*{CLAIM}"):
        try:
            with path.open("r") as file:
                if not try_lock(file, fcntl.LOCK_SH):
                    found.add(file.read().strip() or "another process")
        except FileNotFoundError:  # that cell is done
            continue
    return found
