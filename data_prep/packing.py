"""Whole documents packed into rows of a fixed length: the index of the ``packed`` layout, made once beside a corpus.

    DATA/.packed/ID-LENGTH-FRAME/       ID: the first 12 digits of the corpus id
        index.json                      what is here: the rows and pieces of each shard, and the arrays' hashes
        SIDE.first.npy                  first piece of each row, and the number of pieces [rows + 1], uint64
        SIDE.start.npy                  first token of each piece in its shard [pieces], uint32 if that is enough
        SIDE.size.npy                   tokens of each piece [pieces], without the special tokens of its frame

A piece is a document without its separator, or a part of one that is too long for a row. A row's pieces are in the order
of the file, and lie near each other: rows are filled from the pieces of about 2**20 tokens at a time.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from shutil import rmtree
from typing import Any, NamedTuple

import numpy as np

from data_prep.cli import UserError
from data_prep.files import file_sha256, new_folder, sealed, write_json
from data_prep.locks import sole_process
from data_prep.npy import GrowingArray, array_problem
from data_prep.shards import SIDES, Corpus, Shard

VERSION = 1  # of the index on disk, and of how pieces are packed
FOLDER = ".packed"
INDEX = "index.json"
STRETCH = 2**20  # tokens packed at a time
LONGEST = 2**16  # positions of a row: of longer ones a stretch has too few

_PATIENCE = 12 * 3600.0  # seconds to wait for another process that makes the index
_REHASHED = 2**30  # bytes; a larger index is not read whole each time it is opened
_NEWS = 60.0  # seconds between two lines on the progress
_CHECKED = 2**16  # rows checked at a time


class Packing(NamedTuple):
    """One side of a corpus, packed: for each of its shards in order ``rows`` and ``pieces`` (int64 [shards]), and the arrays.

    Rows and pieces are numbered through all shards. Row r has the pieces ``first[r]`` to ``first[r + 1]`` (uint64
    [rows + 1]); piece p is ``size[p]`` tokens of its shard from ``start[p]`` on. The arrays are mapped from ``paths``.
    """

    rows: np.ndarray
    pieces: np.ndarray
    first: np.ndarray
    start: np.ndarray
    size: np.ndarray
    paths: tuple[Path, Path, Path]


def pack(sizes: np.ndarray, length: int) -> np.ndarray:
    """The row of each piece, int64 [n], by best-fit decreasing: longest first, each into the fullest row with room for it.

    ``sizes`` [n]: positions that the pieces take. Rows are numbered by their first piece. Pieces of the same size are
    placed together, and so are rows with the same room. Raises ValueError if a size is not from 1 to ``length``.
    """
    if len(sizes) and not 1 <= sizes.min() <= sizes.max() <= length:
        raise ValueError(f"sizes from {sizes.min()} to {sizes.max()} are not all from 1 to {length}")
    open_rows, rows = _OpenRows(), 0
    found: list[int] = []  # rows of the pieces, longest first
    counts = np.bincount(sizes.astype(np.int64))
    for size in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[size])
        while left:
            room, taken = open_rows.take(size, left)
            if not taken:
                room, taken = length, list(range(rows, rows - (-left // (length // size))))
                rows += len(taken)
            each = room // size  # a row that has taken a piece is now the fullest with room, and takes the next as well
            now = min(left, len(taken) * each)
            found += [row for row in taken for _ in range(each)][:now]
            full, more = divmod(now, each)
            open_rows.keep(taken[:full], room - each * size)
            open_rows.keep(taken[full:], room - more * size)
            left -= now

    row = np.empty(len(sizes), np.int64)
    row[np.argsort((length - sizes).astype(np.min_scalar_type(length)), kind="stable")] = found
    first = np.empty(rows, np.int64)
    first[row[::-1]] = np.arange(len(row))[::-1]  # of several values for one place the last stays
    number = np.empty(rows, np.int64)
    number[np.argsort(first)] = np.arange(rows)
    return number[row]


class _OpenRows:
    """Rows by the room that is left in them."""

    def __init__(self) -> None:
        self._by_room: dict[int, list[int]] = {}
        self._rooms = 0  # bit r is set if there are rows with room r

    def take(self, size: int, pieces: int) -> tuple[int, list[int]]:
        """The fullest rows that have room for ``size``, no more than ``pieces`` of that size need; and their room."""
        enough = self._rooms >> size
        if not enough:
            return 0, []
        room = size + (enough & -enough).bit_length() - 1  # the lowest bit
        same = self._by_room[room]
        rest = max(0, len(same) - -(-pieces // (room // size)))
        taken = same[rest:]
        del same[rest:]
        if not same:
            self._rooms ^= 1 << room
        return room, taken

    def keep(self, rows: list[int], room: int) -> None:
        """Put rows back, with the room that they have now."""
        if rows:
            self._by_room.setdefault(room, []).extend(rows)
            self._rooms |= 1 << room


def packing_of(corpus: Corpus, side: str, length: int, frame: int, say: Callable[[str], object] = print) -> Packing:
    """Open the index of one side of a corpus, "train" or "heldout", for rows of ``length`` positions; make it if need be.

    ``frame``: special tokens with which each piece is read. Any number of processes may open it at once: one makes it,
    the others wait. Raises UserError if it is damaged or another corpus's, or cannot be written, or if ``length`` has no
    room for two tokens.
    """
    if length > LONGEST:
        raise UserError(f"length {length}: rows have at most {LONGEST} positions")
    if length < frame + 2:
        raise UserError(
            f"length {length}: a row needs room for {frame} special tokens and at least two others; "
            f"use {frame + 2} or more"
        )
    folder = index_folder(corpus, length, frame)
    if not os.path.exists(folder):  # noqa: PTH110  Path.exists raises where the folder above may not be read
        _make(corpus, folder, length, frame, say)
    index, problem = _read_index(corpus, folder, length, frame)
    for each in (problem,) if problem else _array_problems(corpus, folder, index, side, hashes=None):
        raise UserError(f"{each}; {_remedy(folder)}")
    rows, pieces = _per_shard(index, side)
    paths = _paths(folder, side)
    first, start, size = map(_mapped, paths)
    return Packing(rows, pieces, first, start, size, paths)


def index_folder(corpus: Corpus, length: int, frame: int) -> Path:
    """The folder of the index of rows of ``length`` positions."""
    return corpus.path / FOLDER / f"{corpus.id[:12]}-{length}-{frame}"


def packing_findings(corpus: Corpus, deep: bool) -> list[str]:
    """What is wrong with the indexes of a whole corpus, one line each; those of earlier corpus ids are passed over.

    ``deep`` reads every byte: hashes, that each piece of each document is there once, and that no row is too long.
    """
    findings = []
    for folder in sorted((corpus.path / FOLDER).glob(f"{corpus.id[:12]}-*-*")):
        _, length, frame = folder.name.split("-", 2)
        if not (length.isdecimal() and frame.isdecimal()):
            continue
        index, problem = _read_index(corpus, folder, int(length), int(frame))
        if problem:
            findings.append(f"{problem}; {_remedy(folder)}")
            continue
        for side in SIDES:
            found = list(_array_problems(corpus, folder, index, side, deep))
            if deep and not found:
                found = list(_content_problems(corpus, folder, index, side))
            findings += [f"{each}; {_remedy(folder)}" for each in found]
    return findings


def _make(corpus: Corpus, folder: Path, length: int, frame: int, say: Callable[[str], object]) -> None:
    """Make the index, or wait for the process that is making it. Raises UserError if it cannot be written."""
    place = folder.parent
    try:
        place.mkdir(exist_ok=True)
        (place / ".lock").open("a").close()
    except OSError as error:
        if place.exists() and not place.is_dir():
            raise UserError(f"{place}: not a folder, but indexes of packed rows are to be there; remove it") from None
        pairs = " --pairs" if frame == 3 else ""
        raise UserError(
            f"{place}: the index for length {length} is not there and cannot be written ({error.strerror}); make it where "
            f"{corpus.path} can be written: `python -m data_prep pack {corpus.path} --length {length}{pairs}`"
        ) from None
    with sole_process(place, say, _PATIENCE):
        names = {path.name for path in place.iterdir()}  # read anew: another node may have just made it
        if folder.name in names:
            return
        for name in names:
            if name.startswith(".") and name.endswith(".writing"):  # of a process that was killed
                rmtree(place / name, ignore_errors=True)
        begun = time.monotonic()
        say(f"{folder}: packing the documents of {corpus.path} into rows of {length} positions")
        with new_folder(folder) as written:
            content: dict[str, Any] = {"version": VERSION, "corpus": corpus.id, "length": length, "frame": frame}
            content |= {side: _write_side(corpus, written, side, length, frame, say) for side in SIDES}
            write_json(written / INDEX, sealed(content))
        say(f"{folder}: made in {time.monotonic() - begun:.1f} s")


def _write_side(
    corpus: Corpus, folder: Path, side: str, length: int, frame: int, say: Callable[[str], object]
) -> dict[str, Any]:
    """Write one side's arrays, in bounded memory. Returns its part of the index."""
    shards, entries, news = _shards(corpus, side), [], time.monotonic() + _NEWS
    with ExitStack() as stack:
        arrays = {}
        for path, (name, dtype) in zip(_paths(folder, side), _dtypes(corpus, length).items(), strict=True):
            arrays[name] = GrowingArray(path, dtype)
            stack.callback(arrays[name].discard)
        arrays["first"].extend(np.zeros(1, np.uint64))
        for number, shard in enumerate(shards):
            rows, pieces = arrays["first"].length, arrays["size"].length
            for start, size in _stretches(shard, length - frame):
                row = pack(size + frame, length)
                order = np.argsort(row, kind="stable")
                arrays["first"].extend(np.cumsum(np.bincount(row)) + arrays["size"].length)
                arrays["start"].extend(start[order])
                arrays["size"].extend(size[order])
                if time.monotonic() > news:
                    news = time.monotonic() + _NEWS
                    say(f"{corpus.path}: packing shard {number + 1:,} of {len(shards):,}, {side}")
            rows, pieces = arrays["first"].length - rows, arrays["size"].length - pieces
            entries.append({"file": _name(corpus, shard), "rows": rows, "pieces": pieces})
        return {"shards": entries, "sha256": {name: array.finish() for name, array in arrays.items()}}


def _stretches(shard: Shard, inner: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the first token and the number of tokens of the pieces, int64, that begin in about ``STRETCH`` tokens at a time.

    Raises UserError if the document ends are not ascending up to the last token.
    """
    ends, parts = shard.ends(), max(1, round(shard.tokens / STRETCH))
    if not len(ends) or ends[-1] != shard.tokens:
        raise UserError(_bad_ends(shard))
    for part in range(parts):
        low, high = (shard.tokens * each // parts for each in (part, part + 1))
        begin, last = np.searchsorted(ends, np.uint64(low), "right"), np.searchsorted(ends, np.uint64(high), "left")
        bounds = ends[max(begin - 1, 0) : last + 1].astype(np.int64)
        bounds = bounds if begin else np.append(0, bounds)
        if bounds[0] > low or bounds[-1] < high or (np.diff(bounds) <= 0).any():
            raise UserError(_bad_ends(shard))
        opening, tokens = bounds[:-1], np.diff(bounds) - 1  # of each document, its separator left out
        pieces = -(-tokens // inner)
        skipped = np.clip(-((opening - low) // inner), 0, pieces)  # begin before this stretch
        taken = np.clip(-((opening - high) // inner), 0, pieces) - skipped
        before = np.cumsum(taken) - taken
        number = np.arange(taken.sum()) - np.repeat(before - skipped, taken)  # of the piece in its document
        start, rest = number * inner + np.repeat(opening, taken), np.repeat(tokens, taken) - number * inner
        yield start, np.minimum(rest, inner)


def _read_index(corpus: Corpus, folder: Path, length: int, frame: int) -> tuple[dict[str, Any], str | None]:
    """The content of index.json, and what is wrong with it: it must be whole, and this corpus's."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}, f"{path}: is missing"
    except OSError as error:
        return {}, f"{path}: cannot be read ({error.strerror})"
    except ValueError as error:
        return {}, f"{path}: not valid JSON ({error})"
    if not isinstance(index, dict):
        return {}, f"{path}: not a JSON object"
    if index.get("version") != VERSION:
        return {}, f"{path}: format version {index.get('version')!r}, but this program reads {VERSION}"
    if index != sealed(index):
        return {}, f"{path}: its id is not that of its content: it was altered"
    for key, wanted in (("corpus", corpus.id), ("length", length), ("frame", frame)):
        if index.get(key) != wanted:
            return {}, f"{path}: made for {key} {index.get(key)}, not {wanted}"
    try:
        return index, _shard_problem(corpus, path, index)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return {}, f"{path}: not an index ({error!r})"


def _shard_problem(corpus: Corpus, path: Path, index: dict[str, Any]) -> str | None:
    """What is wrong with the shards that an index lists. Raises KeyError and the like if it does not list any so."""
    for side in SIDES:
        listed = [entry["file"] for entry in index[side]["shards"]]
        if listed != [_name(corpus, shard) for shard in _shards(corpus, side)]:
            return f"{path}: lists other {side} shards than the corpus has"
        if {"first", "start", "size"} - index[side]["sha256"].keys() or _per_shard(index, side)[0].min(initial=0) < 0:
            raise ValueError(f"what it says of {side} is not whole")
    return None


def _array_problems(
    corpus: Corpus, folder: Path, index: dict[str, Any], side: str, hashes: bool | None
) -> Iterator[str]:
    """Yield what is wrong with the arrays of one side; ``hashes``: read them whole (None: if the index is not large)."""
    rows, pieces = (int(each.sum()) for each in _per_shard(index, side))
    lengths = {"first": rows + 1, "start": pieces, "size": pieces}
    dtypes, paths = _dtypes(corpus, index["length"]), _paths(folder, side)
    if hashes is None:
        hashes = sum(path.stat().st_size for path in folder.glob("*.npy")) <= _REHASHED
    problems = 0
    for path, (name, dtype) in zip(paths, dtypes.items(), strict=True):
        problem = array_problem(path, dtype, lengths[name])
        if not problem and hashes and file_sha256(path) != index[side]["sha256"][name]:
            problem = f"sha256 is not that of {INDEX}: its bytes have changed"
        if problem:
            problems += 1
            yield f"{path}: {problem}"
    if not problems:
        first = _mapped(paths[0])
        before_row, before_piece = (np.append(0, np.cumsum(each)) for each in _per_shard(index, side))
        if (first[before_row] != before_piece.astype(np.uint64)).any():
            yield f"{paths[0]}: does not give each shard the pieces that {INDEX} says"


def _content_problems(corpus: Corpus, folder: Path, index: dict[str, Any], side: str) -> Iterator[str]:
    """Yield what is wrong with the content of arrays whose hashes and lengths are right."""
    length, frame = index["length"], index["frame"]
    paths = _paths(folder, side)
    first, start, size = map(_mapped, paths)
    for row in range(0, len(first) - 1, _CHECKED):
        bounds = first[row : row + _CHECKED + 1].astype(np.int64)
        if (np.diff(bounds) <= 0).any():
            yield f"{paths[0]}: the rows from {row:,} on are not ascending"
            return
        positions = np.add.reduceat(size[bounds[0] : bounds[-1]].astype(np.int64) + frame, bounds[:-1] - bounds[0])
        if positions.max() > length:
            yield f"{paths[2]}: row {row + int(np.argmax(positions)):,} takes {positions.max()} positions of {length}"
            return
    piece = 0
    for shard, pieces in zip(_shards(corpus, side), _per_shard(index, side)[1].tolist(), strict=True):
        stop = piece + pieces
        for wanted_start, wanted_size in _stretches(shard, length - frame):
            here = slice(piece, min(piece + len(wanted_start), stop))
            order = np.argsort(start[here], kind="stable")
            same = np.array_equal(start[here][order], wanted_start) and np.array_equal(size[here][order], wanted_size)
            if not same:
                yield f"{paths[1]}: does not hold each piece of {_name(corpus, shard)} once"
                return
            piece += len(wanted_start)
        if piece != stop:
            yield f"{paths[1]}: has {stop - piece:,} pieces more than {_name(corpus, shard)}"
            return


def _shards(corpus: Corpus, side: str) -> list[Shard]:
    sources = corpus.sources if side == "train" else corpus.heldout
    return [shard for source in sources.values() for shard in source.shards]


def _name(corpus: Corpus, shard: Shard) -> str:
    return str(shard.path).removeprefix(f"{corpus.path}/")  # relative_to takes seconds for a million shards


def _paths(folder: Path, side: str) -> tuple[Path, Path, Path]:
    """The files of first, start and size."""
    return folder / f"{side}.first.npy", folder / f"{side}.start.npy", folder / f"{side}.size.npy"


def _mapped(path: Path) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _dtypes(corpus: Corpus, length: int) -> dict[str, np.dtype]:
    most = max((shard.tokens for side in SIDES for shard in _shards(corpus, side)), default=0)
    start = "uint32" if most < 2**32 else "uint64"
    return {"first": np.dtype("uint64"), "start": np.dtype(start), "size": np.min_scalar_type(length)}


def _per_shard(index: dict[str, Any], side: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and pieces of each shard, int64 [shards]."""
    rows, pieces = (np.array([entry[key] for entry in index[side]["shards"]], np.int64) for key in ("rows", "pieces"))
    return rows, pieces


def _remedy(folder: Path) -> str:
    return f"delete the folder {folder}: the index is made again at the next run"


def _bad_ends(shard: Shard) -> str:
    return (
        f"{shard.docs_path}: document ends are not ascending up to {shard.tokens}, the number of tokens; "
        "the file is damaged: run `python -m data_prep verify --deep` on its folder"
    )
