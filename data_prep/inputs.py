"""Input files: on this machine, or in a dataset repository of the Hugging Face hub at one pinned commit.

A file is known by its name, size and sha256 (``InputFile.entry``); its place is no part of a corpus.
"""

import fnmatch
import functools
import glob
import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.cli import UserError, some
from data_prep.files import file_sha256

if TYPE_CHECKING:
    from huggingface_hub.hf_api import DatasetInfo

_SAMPLES, _SAMPLE = 64, 1 << 20  # a local file above 64 MiB is known by its size and 64 blocks of 1 MiB
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class InputFile:
    """A file of text. ``path``: of a local file, or inside the repository ``hub`` = (dataset id, commit)."""

    name: str
    bytes: int
    sha256: str
    path: Path
    hub: tuple[str, str] | None = None
    modified: int | None = field(default=None, compare=False)  # of a local file in ns, when its sha256 was taken

    @property
    def entry(self) -> dict[str, Any]:
        """The file as plan, receipts and manifest describe it."""
        return {"name": self.name, "bytes": self.bytes, "sha256": self.sha256}

    def local(self) -> Path:
        """The path to read from; a file of the hub is fetched into the hub's cache, once, and its sha256 compared.

        Raises UserError if it cannot be fetched or read, or was written to since it was described.
        """
        if self.hub:
            return _fetch(self, *self.hub)
        try:
            now = self.path.stat()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); put it back") from None
        if now.st_size != self.bytes or self.modified not in (None, now.st_mtime_ns):
            raise UserError(f"{self.path}: was written to since this run began; start it again when that has ended")
        return self.path


def local_files(pattern: str, what: str) -> list[InputFile]:
    """The files that a glob matches, in sorted order. Raises UserError, beginning with ``what``, if there are none."""
    found = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))  # noqa: PTH111, PTH207
    paths = [Path(path) for path in found if not Path(path).is_dir()]
    if not paths:
        folder = f"; {found[0]} is a folder, so name the files in it, as {found[0].rstrip('/')}/*" if found else ""
        raise UserError(f"{what}: no file matches {pattern} (from {Path.cwd()}){folder}")
    with ThreadPoolExecutor() as threads:
        return list(threads.map(describe_file, paths))


def describe_file(path: Path) -> InputFile:
    """A file with its size and sha256; above 64 MiB the hash is over 64 evenly spaced blocks of 1 MiB.

    Raises UserError if the file cannot be read, or has a name that cannot be written down.
    """
    digest = hashlib.sha256()
    if any("\ud800" <= character <= "\udfff" for character in str(path)):  # Python's signs for bytes that are not UTF-8
        raise UserError(f"{str(path)!r}: this name is not UTF-8; rename the file")
    try:
        size, modified = path.stat().st_size, path.stat().st_mtime_ns
        with path.open("rb") as file:
            if size <= _SAMPLES * _SAMPLE:
                digest.update(file.read())
            else:
                for step in range(_SAMPLES):
                    file.seek((size - _SAMPLE) * step // (_SAMPLES - 1))
                    digest.update(file.read(_SAMPLE))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return InputFile(path.name, size, digest.hexdigest(), path.absolute(), modified=modified)


def hub_files(dataset: str, commit: str | None, pattern: str, what: str) -> list[InputFile]:
    """The files of a dataset repository that a glob matches, in sorted order, from the hub's listing of that commit.

    Raises UserError, beginning with ``what``, if the commit is not pinned, a partial conversion is named, the hub does
    not answer, or nothing matches.
    """
    if commit is None or not _COMMIT.fullmatch(commit):
        raise UserError(f"{what}: revision {commit!r} can move; {_pin_remedy(dataset, commit or 'main')}")
    listing = {item.rfilename: item for item in _listing(dataset, commit, what).siblings or []}
    names = sorted(fnmatch.filter(listing, pattern))
    if partial := [name for name in names if "partial-" in name]:
        raise UserError(f"{what}: {partial[0]} of {dataset} is a conversion that was cut off; name the whole files")
    if not names:
        there = some(sorted(listing)) or "no file"
        raise UserError(f"{what}: no file of {dataset} at {commit[:12]} matches {pattern}; it has {there}")
    files = []
    for name in names:
        size, lfs = listing[name].size, listing[name].lfs
        if size is None or lfs is None:
            raise UserError(
                f"{what}: the hub keeps no sha256 of {name} of {dataset}; download it and name it as a file"
            )
        files.append(InputFile(name, size, lfs.sha256, Path(name), (dataset, commit)))
    return files


def _listing(dataset: str, revision: str, what: str) -> "DatasetInfo":
    """The hub's description of a dataset at a revision. Raises UserError if it cannot be listed."""
    from huggingface_hub import HfApi  # here and below: takes half a second, which most commands need not pay

    try:
        return HfApi().dataset_info(dataset, revision=revision, files_metadata=True)
    except Exception as error:  # the client raises those of its HTTP library too
        raise UserError(f"{what}: the hub does not list {dataset} at {revision} ({_reason(error)})") from None


def _pin_remedy(dataset: str, revision: str) -> str:
    """The advice to pin, with the commit that the revision is today if the hub answers."""
    try:
        commit = _listing(dataset, revision, "").sha
    except UserError:
        return f"pin a commit: revision = the 40 digits shown at huggingface.co/datasets/{dataset}/commits/main"
    return f'pin a commit; today {revision} of {dataset} is revision = "{commit}"'


def _reason(error: Exception) -> str:
    """The first line of the hub client's long messages."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@functools.lru_cache(maxsize=256)
def _fetch(file: InputFile, dataset: str, commit: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(dataset, str(file.path), repo_type="dataset", revision=commit))
    except Exception as error:  # the client raises those of its HTTP library too
        raise UserError(f"{file.name} of {dataset} at {commit[:12]}: cannot be fetched ({_reason(error)})") from None
    if (found := file_sha256(path)) != file.sha256:
        raise UserError(
            f"{path}: sha256 {found[:12]} is not the {file.sha256[:12]} that the hub lists; delete it and run again"
        )
    return path


def tokenizer_path(name: str) -> Path:
    """A tokenizer's local path: ``name`` if that is there, else fetched from the hub as a model id.

    Raises UserError if there is neither.
    """
    local = Path(os.path.expanduser(name))  # noqa: PTH111  never raises for an unknown user
    if local.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return local
    from huggingface_hub import snapshot_download

    wanted = ["tokenizer.json", "tokenizer_config.json", "*.model", "vocab.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # the client raises those of its HTTP library too
        raise UserError(
            f"--tokenizer {name}: no such file or folder, nor a model of the hub ({_reason(error)})"
        ) from None
