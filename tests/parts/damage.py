"""Damage to a run's files, and what its folders hold: for the fuzz."""

import functools
import hashlib
import random
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np

# A shell script for: the size of a disk in bytes, its folder, what lies on it before, where to copy what lies on it after,
# and a command.
SMALL_DISK = [
    "unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
    'mount -t tmpfs -o size="$1" none "$2" && cp -a "$3/." "$2" || exit 99\n'
    'disk=$2 after=$4; shift 4; "$@"; code=$?; cp -a "$disk/." "$after"; exit $code', "sh",
]  # fmt: skip


def checkpoints_of(run: Path) -> dict[int, Path]:
    """Step: folder, of what has a checkpoint's name."""
    return {int(path.name.removeprefix("step-")): path for path in (run / "checkpoints").glob("step-????????")}


def digest(folder: Path) -> str:
    """Of the files in a folder, their names and bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def size_on_disk(folder: Path) -> int:
    """Bytes that a folder's files take on a disk in pages of 4 KiB."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def damage(path: Path, dice: random.Random) -> str:
    """Damage a file of a checkpoint so that it means something else, or nothing; says how."""
    content, how = bytearray(path.read_bytes()), dice.choice(("cut", "flipped", "flipped", "zeroed", "gone"))
    if how == "gone":
        path.unlink()
        return how
    place = dice.randrange(len(content))
    if how == "cut":
        path.write_bytes(content[:place])
    elif how == "zeroed":
        path.write_bytes(content[:place] + bytes(len(content) - place))
    else:
        if path.suffix == ".json":  # mostly numbers: those still look right
            digits = [match.start() for match in re.finditer(rb"[0-9]", content)]
            place = dice.choice(digits) if dice.random() < 0.7 else place
        content[place] ^= 1 << dice.randrange(3)  # a digit mostly stays one; no letter only changes its case
        path.write_bytes(content)
    return f"{how} at byte {place}"


def other_tokens(path: Path, how: str) -> None:
    """Another shard in place of one: valid ids and separators, another content; of the same size unless "resized"."""
    tokens = np.load(path)
    words = tokens >= 5
    other = np.where(words, 5 + (tokens - 4) % 45, tokens).astype(tokens.dtype)
    if how == "overwritten":
        np.load(path, mmap_mode="r+")[:] = other
        return
    aside = path.with_suffix(".new.npy")
    np.save(aside, other[:-20] if how == "resized" else other)
    aside.replace(path)


@functools.cache
def can_mount(folder: Path) -> bool:
    """Whether this user may mount a small disk that nobody else sees."""
    disk = folder / "disk"
    disk.mkdir()
    before, after = folder / "disk-before", folder / "disk-after"
    before.mkdir()
    command = [*SMALL_DISK, "65536", str(disk), str(before), str(after), "true"]
    works = shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0
    for path in (disk, before, after):
        shutil.rmtree(path, ignore_errors=True)
    return works
