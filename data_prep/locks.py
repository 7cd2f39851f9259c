"""Locks on a folder that is written to, by one process alone or by several nodes that each do their own part.

A lock is an ``flock`` on a file that names its holder. Over a network it needs a file system that supports locks (NFS 4,
Lustre with ``flock``, GPFS, CephFS).
"""

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from data_prep.cli import UserError

PATIENCE = 20.0  # seconds that the processes of a killed run may take to die

_LOCK = ".lock"


@contextmanager
def sole_process(folder: Path, say: Callable[[str], object], patience: float | None = None) -> Iterator[None]:
    """Hold ``folder``/.lock, which names this process; wait ``patience`` s (PATIENCE) for another that is dying.

    Makes the folder. Raises UserError naming the process that holds the lock.
    """
    with ExitStack() as stack:
        _hold(stack, folder, _LOCK, fcntl.LOCK_EX, say, patience)
        yield


@contextmanager
def one_of_nodes(folder: Path, node: int, nodes: int, say: Callable[[str], object]) -> Iterator[None]:
    """Hold the place of ``node`` of ``nodes`` in ``folder``, next to other nodes and against ``sole_process``.

    Raises UserError naming the process that holds this place, all places, or one of another number of nodes.
    """
    with ExitStack() as stack:
        _hold(stack, folder, _LOCK, fcntl.LOCK_SH, say, None)
        _hold(stack, folder, f"{_LOCK}-{node}-of-{nodes}", fcntl.LOCK_EX, say, None)
        for name, holder, _ in holders(folder):
            if (place := node_of(name)) and not place.endswith(f"/{nodes}"):
                raise UserError(f"{folder}: {holder} is at work here as node {place}; give all nodes the same number")
        yield


@contextmanager
def finishing(folder: Path) -> Iterator[None]:
    """Hold ``folder``/.finish, so that nodes that are done at the same time write what concerns all one by one."""
    with (folder / ".finish").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def holders(folder: Path) -> list[tuple[str, str, float]]:
    """The locks in ``folder`` that are held now: (name of the lock, who holds it, since when in s)."""
    found = []
    for path in sorted(folder.glob(f"{_LOCK}*")):
        since = path.stat().st_mtime  # when its holder wrote its name
        if not os.access(path, os.R_OK):
            found.append((path.name, "perhaps another user", since))
            continue
        with path.open("a+" if os.access(path, os.W_OK) else "r") as file:
            if not try_lock(file, fcntl.LOCK_SH) or (path.name == _LOCK and not try_lock(file, fcntl.LOCK_EX)):
                file.seek(0)
                found.append((path.name, file.read().strip() or "an unknown process", since))
    return found


def node_of(lock: str) -> str:
    """``.lock-0-of-2`` -> ``0/2``; "" for the lock that all nodes hold."""
    return lock.partition("-")[2].replace("-of-", "/")


def _hold(
    stack: ExitStack, folder: Path, name: str, kind: int, say: Callable[[str], object], patience: float | None
) -> None:
    """Lock a file until the stack is closed."""
    patience = PATIENCE if patience is None else patience
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context((folder / name).open("a+"))
    except OSError as error:
        raise UserError(f"{folder}: cannot be used as a folder to write to ({error.strerror}); name another") from None
    deadline = time.monotonic() + patience
    waiting = False
    while not try_lock(file, kind):
        file.seek(0)
        holder = file.read().strip() or "an unknown process"
        if time.monotonic() > deadline:
            raise UserError(f"{folder}: in use by {holder}; wait until it has ended, or stop it")
        if not waiting:
            say(f"{folder}: {holder} is at work here; waiting up to {patience:.0f} s for it to end")
        waiting = True
        time.sleep(0.2)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()


def try_lock(file: TextIO, kind: int = fcntl.LOCK_EX) -> bool:
    """Lock the file if nobody else holds it now. Raises UserError where the file system has no locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(f"{file.name}: this file system has no locks ({error.strerror}); use one that has") from None
    return True
