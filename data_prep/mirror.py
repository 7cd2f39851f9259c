"""A corpus at a URL, mirrored into a bounded cache that all processes of a host share.

    CACHE/ID/manifest.json          ID: the first 16 digits of the corpus id
    CACHE/ID/SOURCE/…               its shards, as in a corpus folder; those that are there are whole
    CACHE/ID/SOURCE/.NAME.part      a file on its way
    CACHE/.locks                    a byte for each shard that is in use, and one for each that is being fetched

A file takes its name when its sha256 is the manifest's. Tokens are bounded: the shards that were not used for the longest
time make room, unless some process holds them. Document ends, 8 bytes each, come on top.
"""

import errno
import fcntl
import functools
import hashlib
import os
import struct
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from data_prep.cli import UserError
from data_prep.files import sync, write_atomic
from data_prep.remote import Incomplete, Remote

AT_ONCE = 4  # files fetched by a process at the same time
CACHE_GB = 100.0

_TOKENS = ".tokens.npy"
_ROOM_PATIENCE = 60.0  # seconds to wait for shards that others use


class Cache(NamedTuple):
    """Where shards are kept, and how many bytes of them."""

    folder: Path
    size: int

    @classmethod
    def of(cls, folder: str = "", gigabytes: float = CACHE_GB) -> "Cache":
        """``folder``: "" for minilm-distil in the user's cache."""
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return cls(Path(folder or Path(home, "minilm-distil")).absolute(), int(gigabytes * 1e9))


class File(NamedTuple):
    """What the manifest says of a file: its size in bytes, its first bytes, and its sha256."""

    size: int
    head: bytes
    sha256: str


class Mirror:
    """The local copy of the corpus at ``remote``, which grows as its ``files`` are asked for. Threads may share it."""

    def __init__(self, remote: Remote, cache: Cache, folder: Path, files: dict[str, File]):
        self.remote, self.cache, self.folder, self.files = remote, cache, folder, files
        self._locks = cache.folder / ".locks"
        self._held = self._lock_file()

    def keep(self, name: str, content: bytes) -> None:
        """Have a small file hold ``content``."""
        path = self.folder / name
        with _told(self.cache):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_bytes() != content:
                write_atomic(path, content)

    def bytes_of(self, path: Path) -> int:
        return self.files[self._name(path)].size

    @contextmanager
    def using(self, path: Path) -> Iterator[None]:
        """Have a file be there and stay there until the block ends. Raises UserError as ``fetch``."""
        with self._lock_file() as file:
            _lock(file, fcntl.F_RDLCK, self._place(path))
            self.fetch(path)
            yield

    def hold(self, path: Path) -> None:
        """Keep a file, once it is there, until it is released or this process ends."""
        _lock(self._held, fcntl.F_RDLCK, self._place(path))

    def release(self, path: Path) -> None:
        """Let a file that was held make room for others."""
        _lock(self._held, fcntl.F_UNLCK, self._place(path))

    def fetch_all(self, paths: Iterable[Path]) -> None:
        """Fetch several files at once. Raises UserError as ``fetch``."""
        with ThreadPoolExecutor(AT_ONCE, "fetch") as pool:
            for _ in pool.map(self.fetch, paths):
                pass

    def fetch(self, path: Path) -> None:
        """Have a file be there, whole; whoever asks second waits for the first.

        Raises UserError if it cannot be read, is not the manifest's, or finds no room.
        """
        expected = self.files[self._name(path)]
        if _is_there(path, expected):
            return
        with self._lock_file() as file:
            _lock(file, fcntl.F_WRLCK, self._place(path) + 1)
            if not _is_there(path, expected):
                self._download(path, expected)

    def _download(self, path: Path, expected: File) -> None:
        part = path.with_name(f".{path.name}.part")
        with _told(self.cache):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._reserve(part, expected.size)
                for _ in range(2):  # what has the right length and other bytes may have been changed on the way
                    if self.remote.retried(self._name(path), functools.partial(self._receive, path, part, expected)):
                        part.replace(path)
                        sync(path.parent)
                        return
            finally:
                part.unlink(missing_ok=True)
        raise UserError(self._about_other_bytes(self._name(path)))

    def _receive(self, path: Path, part: Path, expected: File) -> bool:
        """Fill the part by one try; whether it is what was expected."""
        digest, received, head = hashlib.sha256(), 0, b""
        with _told(self.cache):
            file = part.open("r+b")
        with file:
            for block in self.remote.blocks(self._name(path)):
                received += len(block)
                if received > expected.size:
                    break
                head = head or block[: len(expected.head)]
                digest.update(block)
                with _told(self.cache):
                    file.write(block)
            with _told(self.cache):
                file.flush()
                os.fsync(file.fileno())
        if received != expected.size:
            more = "or more " if received > expected.size else ""
            raise Incomplete(f"{received} {more}of {expected.size} bytes came")
        return digest.hexdigest() == expected.sha256 and head == expected.head

    def _about_other_bytes(self, name: str) -> str:
        where, now = f"{self.remote.url}/{name}", self.remote.read("manifest.json")
        if now != (self.folder / "manifest.json").read_bytes():
            return (
                f"{where}: is of another corpus: {self.remote.url}/manifest.json has changed since this run read it; put the "
                "previous corpus back, or start a run with another out"
            )
        return f"{where}: sha256 is not the manifest's: its bytes have changed; copy it again from a whole corpus"

    def _reserve(self, part: Path, size: int) -> None:
        """Make ``part``, of ``size`` bytes, when there is room for it among the tokens. Raises UserError if there is none."""
        bounded = part.name.endswith(f"{_TOKENS}.part")
        deadline = time.monotonic() + _ROOM_PATIENCE
        while True:
            with (self.cache.folder / ".room").open("a") as alone:
                fcntl.flock(alone, fcntl.LOCK_EX)
                part.unlink(missing_ok=True)  # of a process that was killed
                if not bounded or self._make_room(size):
                    with part.open("wb") as file:
                        if size:
                            os.posix_fallocate(file.fileno(), 0, size)
                    return
            if time.monotonic() > deadline:
                raise UserError(
                    f"{self.cache.folder}: no room for {size / 1e6:,.1f} MB: cache_gb = {self.cache.size / 1e9:g} is "
                    "full of shards in use; raise cache_gb, or name another folder by cache"
                )
            time.sleep(0.2)

    def _make_room(self, size: int) -> bool:
        """Remove shards until ``size`` bytes fit into the bound; whether they do."""
        with self._lock_file() as locks:
            found = []
            for part in self.cache.folder.glob(f"**/.*{_TOKENS}.part"):
                final = part.with_name(part.name[1:].removesuffix(".part"))
                if _lock(locks, fcntl.F_WRLCK, self._place(final) + 1, wait=False):
                    part.unlink(missing_ok=True)  # of a process that was killed
                    _lock(locks, fcntl.F_UNLCK, self._place(final) + 1)
                else:
                    size += _status(part)[0]
            for path in self.cache.folder.glob(f"**/*{_TOKENS}"):
                if not path.name.startswith("."):
                    found.append((*_status(path)[::-1], path))
            over = size + sum(bytes_ for _, bytes_, _ in found) - self.cache.size
            for _, bytes_, path in sorted(found):
                if over <= 0:
                    break
                if _lock(locks, fcntl.F_WRLCK, self._place(path), wait=False):
                    path.unlink(missing_ok=True)
                    _lock(locks, fcntl.F_UNLCK, self._place(path))
                    over -= bytes_
            return over <= 0

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _place(self, path: Path) -> int:
        """The byte of the lock file that says that a file is in use; the next one: that it is being fetched."""
        name = path.relative_to(self.cache.folder).as_posix()
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7]) * 2

    def _lock_file(self) -> IO[Any]:
        try:
            self.cache.folder.mkdir(parents=True, exist_ok=True)
            return self._locks.open("a+b")
        except OSError as error:
            raise UserError(f"{self.cache.folder}: cannot be used ({error.strerror}); name another cache") from None


def _is_there(path: Path, expected: File) -> bool:
    """Whether a file is there; it counts as used now."""
    if _status(path)[0] != expected.size:
        return False
    with suppress(OSError):
        os.utime(path)
    return True


def _status(path: Path) -> tuple[int, float]:
    """Size and time of the last use of a file, −1 and 0 if it is not there."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return -1, 0.0
    return status.st_size, status.st_mtime


@contextmanager
def _told(cache: Cache) -> Iterator[None]:
    """Make a failing disk a UserError."""
    try:
        yield
    except OSError as error:
        remedy = "name another folder by cache"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = f"free some space, lower cache_gb ({cache.size / 1e9:g}), or {remedy}"
        raise UserError(f"{cache.folder}: cannot be written ({error.strerror}); {remedy}") from None


def _lock(file: IO[Any], kind: int, place: int, wait: bool = True) -> bool:
    """Lock or unlock one byte for this open file, of whatever process or thread; whether it could be done."""
    command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    try:
        fcntl.fcntl(file, command, struct.pack("hhqqi4x", kind, os.SEEK_SET, place, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise UserError(f"{file.name}: this file system has no locks ({error.strerror}); name another cache") from None
    return True
