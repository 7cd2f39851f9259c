"""Files that are written whole or not at all, their hashes, and JSON whose bytes depend on its value alone.

Whatever has to survive a crash is written here: a file beside its place, synced, and renamed (``write_atomic``,
``GrowingFile``); a folder the same way (``new_folder``).
"""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_prep.cli import UserError

REMEDY = (
    "delete that file if it is there, and run the same `python -m data_prep prepare` again: it makes what is missing"
)


class GrowingFile:
    """A file that is written in parts under another name, and takes its own, whole and synced, in ``finish``.

    An OSError names ``path``, whatever the file was called while it grew.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._aside = path, aside(path)
        with _naming(path):
            self._file = self._aside.open("w+b")

    def write(self, content: bytes | memoryview) -> None:
        """Append ``content``."""
        with _naming(self._path):
            self._file.write(content)

    def finish(self, head: bytes = b"") -> str:
        """Replace the first bytes by ``head``, sync and rename. Returns the sha256 of the whole file."""
        with _naming(self._path):
            self._file.seek(0)
            self._file.write(head)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.seek(0)
            digest = hashlib.file_digest(self._file, "sha256").hexdigest()
            self._file.close()
            self._aside.replace(self._path)
            sync(self._path.parent)
        return digest

    def discard(self) -> None:
        """Remove what was not finished; to be called at the end in any case."""
        with suppress(OSError):  # a full disk is reported by whoever met it first
            self._file.close()
        self._aside.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content``: the whole of it, or the previous file stays."""
    file = GrowingFile(path)
    try:
        file.write(content)
        file.finish()
    finally:
        file.discard()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8: the whole of it, or the previous file stays."""
    write_atomic(path, text.encode())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` atomically, in a form whose bytes depend on the value alone."""
    write_atomic(path, encode_json(value))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises UserError if the file holds anything else, FileNotFoundError if there is none."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); {REMEDY}") from None
    except NotADirectoryError as error:
        raise FileNotFoundError(*error.args) from None
    except (PermissionError, IsADirectoryError) as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; {REMEDY}")
    return value


def encode_json(value: Mapping[str, Any]) -> bytes:
    """The bytes of ``value``: keys sorted, UTF-8, a newline at the end."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its "id", the sha256 of all the rest."""
    rest = {key: value for key, value in content.items() if key != "id"}
    return rest | {"id": hashlib.sha256(encode_json(rest)).hexdigest()}


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def aside(path: Path) -> Path:
    """Where this process writes what will be ``path``. A killed process leaves it behind."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def remove_asides(folder: Path) -> None:
    """Remove from ``folder``, which this process alone writes to, what killed ones have left behind."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``final`` when the block ends: whole and synced, replacing the previous one.

    A block that fails leaves no new folder, and the previous one as it was. A process killed between the two renames leaves
    the previous one under another name, from which the next call takes it back.
    """
    written, previous = (final.with_name(f".{final.name}.{state}") for state in ("writing", "former"))
    shutil.rmtree(written, ignore_errors=True)  # of a process that was killed
    if previous.exists() and not final.exists():
        previous.rename(final)
    written.mkdir(parents=True)
    try:
        yield written
        readable = written.stat().st_mode & 0o666  # by the umask; safetensors writes files for their owner alone
        for path in written.rglob("*"):
            if path.is_file():
                path.chmod(readable)
            sync(path)
        sync(written)
        if final.exists():
            shutil.rmtree(previous, ignore_errors=True)
            final.rename(previous)
        try:
            written.rename(final)
        except OSError:
            if previous.exists():
                previous.rename(final)
            raise
        sync(final.parent)
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(written, ignore_errors=True)


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or the names that a folder has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Make an OSError name ``path``."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
