"""Files below a URL, read and written through fsspec. A lost connection is retried, and then reported in one line."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from data_prep.cli import UserError

PATIENCE = 120.0  # seconds of trying again before a lost connection is reported
BLOCK = 2**23  # bytes read at a time

_LONGEST_PAUSE = 15.0  # seconds between two tries
_SILENCE = 30  # seconds without a byte after which a connection counts as lost
_LOCAL = re.compile(r"http://(127\.0\.0\.1|localhost)(:\d+)?(/|$)")
# By scheme: what fsspec needs installed, and where credentials come from.
_SCHEMES = {
    "s3": ("s3fs", "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    "gs": ("gcsfs", "run `gcloud auth application-default login`"),
    "hf": ("huggingface_hub", "run `hf auth login`, or set HF_TOKEN"),
    "https": ("aiohttp", "use an address that needs none"),
    "http": ("aiohttp", "use an address that needs none"),
}
_NO_CORPUS = (
    "see that the URL is that of a corpus's folder and the copy was finished (`python -m data_prep push DIR URL`)"
)
_NO_RIGHTS = ("NoCredentialsError", "PartialCredentialsError", "GatedRepoError")
_OF_NETWORKS = (
    "aiohttp",
    "aiobotocore",
    "botocore",
    "gcsfs",
    "google",
    "httpx",
    "huggingface_hub",
    "requests",
    "urllib3",
)

Result = TypeVar("Result")


def is_url(place: str | Path) -> bool:
    """Whether ``place`` is a URL and no folder."""
    return isinstance(place, str) and re.match(r"[A-Za-z][\w+.-]*://", place) is not None


class Incomplete(OSError):
    """A file came with fewer or more bytes than it has."""


class Remote:
    """The files below ``url``: s3://, gs://, hf:// or https://. Names are relative, with slashes."""

    def __init__(self, url: str):
        """Raises UserError for a scheme that is not read here, or whose package is not installed."""
        self.url = url.rstrip("/")
        self._scheme = url.partition("://")[0]
        if self._scheme not in _SCHEMES:
            raise UserError(f"{url}: not read from here; use a folder, or s3://, gs://, hf:// or https://")
        if self._scheme == "http" and not _LOCAL.match(url):
            raise UserError(f"{url}: http:// is not protected on its way; use https://")
        self._files = self._opened()

    def read(self, name: str) -> bytes:
        """The bytes of a small file. Raises UserError as ``retried``."""
        return self.retried(name, lambda: b"".join(self.blocks(name)))

    def blocks(self, name: str) -> Iterator[bytes]:
        """The bytes of a file in turn, by one try."""
        # A stream of one request where ranges may not be known or cost a request each.
        size = BLOCK if self._scheme in ("s3", "gs") else 0
        with self._files.open(f"{self.url}/{name}", "rb", block_size=size) as file:
            while block := file.read(BLOCK):
                yield block

    def size(self, name: str) -> int | None:
        """The size of a file in bytes, None if there is none. Raises UserError as ``retried``."""

        def ask() -> int | None:
            try:
                return int(self._files.info(f"{self.url}/{name}")["size"])
            except FileNotFoundError:
                return None

        return self.retried(name, ask)

    def write(self, name: str, path: Path) -> None:
        """Copy a local file to ``name``. Raises UserError as ``retried``, and where nothing can be written."""
        if self._scheme not in ("s3", "gs"):
            way = "`hf upload`" if self._scheme == "hf" else "its server's own tool"
            raise UserError(f"{self.url}: is written to by {way}, not from here; s3:// and gs:// are")
        absent = f"see that {self.url.split('/')[2]} is there, and make it"
        self.retried(name, lambda: self._files.put_file(str(path), f"{self.url}/{name}"), absent)

    def retried(self, name: str, work: Callable[[], Result], absent: str = _NO_CORPUS) -> Result:
        """What ``work`` on a file returns, tried again for PATIENCE s while the connection fails.

        ``absent``: the way out where nothing is there.

        Raises UserError with the way out where rights or the file are missing, at once, or when trying has not helped.
        """
        begun, pause, tries = time.monotonic(), 0.5, 0
        while True:
            tries += 1
            try:
                return work()
            except UserError:
                raise
            except Exception as raised:  # each of fsspec's libraries has its own
                error = _first(raised) if self._scheme in ("http", "https") else raised
                self._refuse_what_stays(name, error, absent)
                passed = time.monotonic() - begun
                if passed + pause > PATIENCE:
                    raise UserError(
                        f"{self.url}/{name}: the connection fails ({_reason(error)}), {tries} tries in {passed:.0f} s; "
                        "see that the server answers, and run the same command again"
                    ) from None
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _refuse_what_stays(self, name: str, error: Exception, absent: str) -> None:
        """Raise UserError for an error that another try would not mend."""
        where, status = f"{self.url}/{name}", _status(error)
        if isinstance(error, PermissionError) or status in (401, 403) or type(error).__name__ in _NO_RIGHTS:
            raise UserError(f"{where}: no right to it ({_reason(error)}); {_SCHEMES[self._scheme][1]}") from None
        if isinstance(error, FileNotFoundError) or status == 404:
            raise UserError(f"{where}: is not there; {absent}") from None
        if not isinstance(error, OSError | EOFError) and type(error).__module__.split(".")[0] not in _OF_NETWORKS:
            raise UserError(f"{where}: cannot be used ({_reason(error)})") from None

    def _opened(self) -> Any:
        """The file system of the URL, which keeps no listings: another process may be writing."""
        import fsspec  # here and below: takes half a second, which local folders need not pay

        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        try:
            if self._scheme in ("http", "https"):
                import aiohttp

                quiet = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
                options["client_kwargs"] = {"timeout": quiet}
            if self._scheme == "gs":
                logging.getLogger("gcsfs").setLevel(
                    logging.CRITICAL
                )  # it prints what is tried again, and reported, here
            return fsspec.filesystem(self._scheme, **options)
        except ImportError:
            package = _SCHEMES[self._scheme][0]
            raise UserError(f"{self.url}: needs {package}; pip install {package}") from None


def _first(error: Exception) -> Exception:
    """What an error is about: fsspec's for HTTP says of a lost connection, too, that the file is not there."""
    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) else error


def _status(error: Exception) -> int | None:
    """The HTTP status that an error tells of."""
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
