"""Claims on cells, by which any number of processes on any number of hosts share one results folder.

A claim is an ``flock`` on a file beside the cell's, which names its holder. The kernel frees it the moment the holder ends, and
a file server once it has missed a dead host for its lease; no clock is read. Some file systems lock within each host alone.
So a holder touches its file, and whoever gets the lock of a claim of another host first looks whether somebody still does.
"""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from data_prep.cli import UserError
from data_prep.locks import try_lock

BEAT = 5.0  # seconds between two touches
LEASE = 30.0  # seconds without one, after which the holder on another host is dead
_WRITING = 2.0  # seconds between making a claim and writing into it, at most
_BOOT = Path("/proc/sys/kernel/random/boot_id")  # the same for all processes of one kernel: its locks are theirs


class Claim:
    """One cell's claim, held until ``release``."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file, self._ended = path, file, threading.Event()
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "kernel": _kernel()}))
        file.flush()
        os.fsync(file.fileno())
        threading.Thread(target=self._beat, daemon=True).start()

    def release(self) -> None:
        """Remove the claim. Whoever waits for its lock sees that the file is gone, and asks for a new one."""
        self._ended.set()
        self._path.unlink(missing_ok=True)
        self._file.close()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with suppress(OSError):  # just released
                os.utime(self._path)


def take(path: Path) -> Claim | None:
    """Claim the cell of this file; None if another process holds it.

    Raises UserError where the file system has no locks, or none that other hosts see, or the file cannot be made.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file, is_new = _opened(path)
        except FileNotFoundError:  # released just now
            continue
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None
        if not try_lock(file):
            file.close()
            return None
        if not _is(path, file):  # released between our opening and locking
            file.close()
            continue
        if not is_new:
            _check_dead(path, file)
        return Claim(path, file)


def _opened(path: Path) -> tuple[TextIO, bool]:
    """The file, and whether this process has made it."""
    try:
        return path.open("x+"), True
    except FileExistsError:
        return path.open("r+"), False


def is_held(path: Path) -> bool:
    """Whether a process of this kernel, or of a host whose locks are seen here, holds the claim."""
    try:
        with path.open("r+") as file:
            return not try_lock(file)
    except FileNotFoundError:
        return False


def _check_dead(path: Path, file: TextIO) -> None:
    """Look for ``LEASE`` s at a claim of another host, or one without a holder's name.

    Raises UserError if it is touched though its lock was to be had.
    """
    before = _touched(path)
    try:
        holder = json.loads(file.read())
    except ValueError:  # it is between making and writing it, or died there
        holder = {}
    file.seek(0)
    if holder.get("kernel") == _kernel():
        return
    seconds = LEASE if holder else min(_WRITING, LEASE)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(seconds / 20)
        if _touched(path) != before:
            file.close()
            raise UserError(
                f"{path}: {holder.get('host', 'another host')} is at work on this cell, and locks of this file system are not "
                "seen by other hosts; mount it with locks (NFS 4, Lustre with flock), or give each host an --out of its own"
            )


def _touched(path: Path) -> int:
    """When the file was last touched or written; it is opened, lest a network file system answers from memory."""
    with path.open() as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _is(path: Path, file: TextIO) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _kernel() -> str:
    return _BOOT.read_text().strip() if _BOOT.exists() else socket.gethostname()
