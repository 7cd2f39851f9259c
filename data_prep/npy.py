"""One-dimensional .npy files: written while they grow, checked by their header, mapped. Nothing pickled is ever read."""

import io
import os
from pathlib import Path

import numpy as np

from data_prep.files import GrowingFile


def array_problem(path: Path, dtype: np.dtype, length: int) -> str | None:
    """The reason why a .npy file is not a whole one-dimensional array of that dtype and length; None if it is."""
    wanted = header(dtype, length)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            found = file.read(len(wanted))
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    expected = len(wanted) + length * dtype.itemsize
    if size != expected:
        return f"has {size} bytes instead of {expected}"
    return None if found == wanted else f"has another .npy header than that of {dtype}[{length}]"


def mapped_array(path: Path) -> np.ndarray:
    """The array of a .npy file, read-only and memory-mapped."""
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def header(dtype: np.dtype, length: int) -> bytes:
    """The header of a .npy file. NumPy leaves room in it for a length of 21 digits, so it can be rewritten in place."""
    content = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(written, content)
    return written.getvalue()


class GrowingArray:
    """A one-dimensional .npy file that grows aside. Its header has a fixed length and is rewritten at the end."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._file, self._dtype = GrowingFile(path), dtype
        self._file.write(header(dtype, 0))
        self.length = 0

    def extend(self, values: np.ndarray) -> None:
        """Append ``values`` [n]."""
        self._file.write(np.ascontiguousarray(values, self._dtype).data)  # ndarray.tofile loses a full disk's errno
        self.length += len(values)

    def finish(self) -> str:
        """Give the file its name. Returns its sha256."""
        return self._file.finish(header(self._dtype, self.length))

    def discard(self) -> None:
        self._file.discard()
