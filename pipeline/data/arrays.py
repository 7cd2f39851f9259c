"""Arrays on disk, and ranges of numbers."""

from pathlib import Path

import numpy as np
import torch


def mark_of(path: Path) -> tuple[int, int] | None:
    """Size and time of change: whoever writes to a file, or puts another in its place, changes them."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns


def mapped(array: np.ndarray) -> np.ndarray:
    """The same array, mapped without its file being held open: of open files a process may have about a thousand."""
    assert isinstance(array, np.memmap)
    size = array.offset + array.nbytes
    whole = torch.from_file(str(array.filename), shared=False, size=size, dtype=torch.uint8).numpy()
    return whole[array.offset :].view(array.dtype)


def ranges(start: np.ndarray, size: np.ndarray) -> np.ndarray:
    """start[0] … start[0] + size[0] − 1, then the next: int64 [sum of sizes]."""
    return np.repeat(start - (np.cumsum(size) - size), size) + np.arange(size.sum())
