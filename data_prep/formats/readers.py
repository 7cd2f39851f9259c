"""Files -> raw documents, always in file order: unpacking, and the ``text`` format.

A format splits a file into raw documents and cleans one of them. Splitting is cheap and says in which piece of the file
a document begins; cleaning is expensive, and only the worker that keeps the document does it. A piece is 64 KiB of the
file as it is on disk, so the units of work (runs of pieces) follow from the file's size alone, compressed or not.
"""

import bz2
import lzma
import re
import sys
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.cli import UserError
from data_prep.formats.encodings import conversion
from data_prep.formats.kinds import HEAD, refuse_other_kinds

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE = 1 << 16  # bytes of the file on disk
LONGEST_DOCUMENT = 1 << 22  # bytes; a longer stretch of text is cut
BLANK = b" \t\r\n\0"

_BYTE_ORDER_MARKS = {  # longer ones first
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_SHIFTS = re.compile(rb"\x1b\$[@AB()]")  # into the characters of ISO-2022
_BLOCK = 1 << 19  # bytes unpacked at once
_SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
_MAGIC = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "bzip2": re.compile(rb"BZh"),
    "xz": re.compile(rb"\xfd7zXZ\0"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),  # a frame, or one to be skipped
    "zip": re.compile(rb"PK\x03\x04"),
    "7z": re.compile(rb"7z\xbc\xaf\x27\x1c"),
    "parquet": re.compile(rb"PAR1"),
}
# Two line ends with only blanks between them, and all blanks after those. The first form is ten times faster, because
# it begins with one fixed byte; it finds the same wherever every CR is part of a CRLF.
_BLANK_LINES = re.compile(rb"\n[ \t\0\r]*+\n[ \t\0\r\n]*+")
_BLANK_LINES_OF_ANY_KIND = re.compile(rb"(?:\n|\r(?!\n))[ \t\0]*+(?:\r\n?|\n)[ \t\0\r\n]*+")
_LONE_CR = re.compile(rb"\r(?!\n)")
_CUT: Mapping[str, int] = {"cut_at_4_mib": 1}
_UNCUT: Mapping[str, int] = {}


@dataclass(frozen=True)
class Document:
    """A cleaned document, or the reason why it was dropped; ``repairs`` counts by kind what was mended in it.

    Of wikis alone: the ``words`` of the text, and by name how many templates without a text stood next to them (``beside``).
    """

    text: str = ""
    dropped: str = ""
    repairs: Counter[str] = field(default_factory=Counter)
    words: int = 0
    beside: Counter[str] = field(default_factory=Counter)


Raw = tuple[bytes, Mapping[str, int]] | Document  # what a format splits a file into: bytes, and what was mended in them


@dataclass(frozen=True)
class Format:
    """How to read one kind of file.

    ``split(path, begin=0)`` yields (piece, raw document). ``begin`` is the first piece that is wanted: a format that can
    seek may skip documents of earlier pieces. ``clean`` takes a raw document; it is ``guarded`` by workers if it does more
    than decode, so might never end, or crash.
    """

    split: Callable[..., Iterator[tuple[int, Any]]]
    clean: Callable[[Any], Document]
    guarded: bool = False


class BreaksOff(UserError):
    """Packed data that end before their stream does; what came before has been unpacked."""


class Pieces:
    """The unpacked bytes of a file, and from which piece of the file each of them came."""

    def __init__(self, blocks: Iterable[tuple[int, bytes]]):
        """``blocks``: (piece, bytes), as ``unpack`` gives them."""
        self._blocks = blocks
        self._ends: deque[tuple[int, int]] = deque()  # (unpacked bytes up to the end of this block, its piece)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes in blocks of half a MiB to one MiB, but for the last."""
        unpacked, waiting, size = 0, [], 0
        for piece, block in self._blocks:
            unpacked += len(block)
            self._ends.append((unpacked, piece))
            waiting.append(block)
            size += len(block)
            if size >= _BLOCK:
                yield b"".join(waiting)
                waiting, size = [], 0
        if waiting:
            yield b"".join(waiting)

    def piece_of(self, offset: int) -> int:
        """The piece that unpacked byte ``offset`` came from; offsets must be asked for in ascending order."""
        while self._ends[0][0] <= offset:
            self._ends.popleft()
        return self._ends[0][1]


def split_text(path: Path, begin: int = 0) -> Iterator[tuple[int, tuple[bytes, Mapping[str, int]]]]:
    """Yield (piece, (bytes, repairs)) for every stretch of a UTF-8 text file between blank lines.

    A stretch above 4 MiB is cut, at a line end if it has one. Raises UserError if the file is anything but text.
    """
    pieces = Pieces(unpack(path))
    buffer, start = b"", 0  # the bytes not yet yielded, and the offset of the first of them
    for block in only_text(path, pieces, json=False):
        scanned = len(buffer.rstrip(BLANK))
        buffer += block
        done = 0
        for first, end, repairs in _stretches(buffer, scanned):
            done = end
            if raw := buffer[first:end].lstrip(BLANK):
                yield pieces.piece_of(start + end - len(raw)), (raw.rstrip(BLANK), repairs)
        buffer, start = buffer[done:], start + done
    if raw := buffer.lstrip(BLANK):
        yield pieces.piece_of(start + len(buffer) - len(raw)), (raw.rstrip(BLANK), _UNCUT)


def clean_text(raw: tuple[bytes, Mapping[str, int]] | Document) -> Document:
    """Decode UTF-8, in which invalid bytes become U+FFFD, and mend it. Documents that ``split`` dropped stay dropped."""
    if isinstance(raw, Document):
        return raw
    data, repairs = raw
    text, invalid = decode(data)
    return mend(text, {"invalid_utf8": invalid, **repairs} if invalid else repairs)


def decode(data: bytes) -> tuple[str, int]:
    """The text, and the number of replacement characters in it for invalid bytes."""
    try:
        return data.decode(), 0
    except UnicodeDecodeError:
        text = data.decode(errors="replace")
        return text, text.count("\ufffd") - data.count("\ufffd".encode())


def mend(text: str, repairs: Mapping[str, int]) -> Document:
    """A document without CR, byte-order marks and NUL, whose repairs count these on top of earlier ``repairs``.

    It is dropped as empty if nothing is left.
    """
    found = Counter(repairs) if repairs else Counter()
    if "\r" in text:
        text = _mend_line_ends(text, found)
    for name, character in (("byte_order_mark", "\ufeff"), ("nul", "\0")):
        if character in text:
            found[name] = text.count(character)
            text = text.replace(character, "")
    text = text.strip()
    return Document(text, "" if text else "empty", found)


def _mend_line_ends(text: str, found: Counter[str]) -> str:
    crlf = text.count("\r\n")
    if crlf:
        found["crlf"] = crlf
    if lone := text.count("\r") - crlf:
        found["lone_cr"] = lone
        return text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\r", "")  # much faster than a search for two characters


TEXT = Format(split_text, clean_text)


def only_text(path: Path, blocks: Iterable[bytes], json: bool) -> Iterator[bytes]:
    """Yield the same blocks. Raises UserError if they begin like anything but UTF-8 text, or JSON if ``json``."""
    blocks = iter(blocks)
    head = next(blocks, b"")
    first = head[:PIECE].removeprefix(b"\xef\xbb\xbf").strip(BLANK)
    if mark := next((mark for mark in _BYTE_ORDER_MARKS if head.startswith(mark)), None):
        name = _BYTE_ORDER_MARKS[mark]
        raise UserError(
            f"{path}: {name} at byte 0, but only UTF-8 is read: convert it with iconv first (iconv -f {name} -t UTF-8)"
        )
    if _SHIFTS.search(head, 0, PIECE) and (command := conversion(head[:PIECE])):
        raise UserError(
            f"{path}: text with escape sequences of another encoding: convert it with iconv first ({command})"
        )
    if first.startswith((b"<?xml", b"<mediawiki")):
        raise UserError(f"{path}: XML at byte 0, not plain text: if this is a dump of a wiki, use format wikipedia")
    if not json and first.startswith(b"{") and {".json", ".jsonl", ".ndjson"} & set(path.suffixes):
        raise UserError(f"{path}: JSON at byte 0, not plain text: use format jsonl")
    if not json and {".csv", ".tsv"} & set(path.suffixes):
        raise UserError(
            f"{path}: rows of values by its name, not plain text: use format csv.COLUMN, or rename the file if it is text"
        )
    if not json and first.startswith(b"[") and {".json", ".ipynb", ".geojson"} & set(path.suffixes):
        raise UserError(
            f"{path}: JSON at byte 0, not plain text: write one object a line (jq -c '.[]'), and use format jsonl"
        )
    if (junk := _junk(first)) > 0.1:
        counted = f"{path}: of the first {len(first)} bytes {junk:.0%} are NUL or not UTF-8, so this is not text"
        command = conversion(head[:PIECE])
        if command is None:
            raise UserError(f"{counted} in any known encoding; fetch the file again, or name files of text only")
        raise UserError(f"{counted}, or in another encoding: convert it with iconv first ({command})")
    yield from chain([head], blocks)


def _junk(data: bytes) -> float:
    """The share of NUL and of invalid UTF-8 in the data."""
    return (decode(data)[1] + data.count(b"\0")) / max(len(data), 1)


def _stretches(buffer: bytes, scanned: int) -> Iterator[tuple[int, int, Mapping[str, int]]]:
    """Yield (begin, end, repairs) of what is whole in the buffer, in which no blank line begins before ``scanned``."""
    blank_lines = _BLANK_LINES_OF_ANY_KIND if _LONE_CR.search(buffer, scanned) else _BLANK_LINES
    begin = 0
    for blank in chain(blank_lines.finditer(buffer, scanned), [None]):
        end, following = blank.span() if blank else (len(buffer), 0)
        while end - begin > LONGEST_DOCUMENT:
            middle = cut_point(buffer, begin)
            yield begin, middle, _CUT
            begin = middle
        if blank:
            yield begin, end, _UNCUT
            begin = following


def cut_point(buffer: bytes, begin: int) -> int:
    """The end for a document that begins at ``begin`` and is too long: a line end, else a space, else anywhere."""
    limit = begin + LONGEST_DOCUMENT
    middle = max(buffer.rfind(mark, begin + 1, limit) for mark in (b"\n", b"\r"))
    if middle < 0:
        middle = buffer.rfind(b" ", begin + 1, limit)
    return limit if middle < 0 else middle


def unpack(path: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield (piece, block): the blocks, each at most half a MiB, that result from that piece of the file.

    ``start``: the byte of the file to begin at, the head of a packed stream if it is packed. Raises UserError with the
    file's offset if packed data is damaged or cut short, or if the file is of a kind that is not read.
    """
    packing = _packing(path)
    with path.open("rb") as file:
        raw = _read_pieces(file, start)
        blocks = _inflate(path, raw, packing) if packing else raw
        first = next(blocks, None)
        if first is None:
            return
        if packing and not start:
            _check_unpacked(path, first[1], packing)
        yield from chain([first], blocks)


def _read_pieces(file: BinaryIO, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield (piece, its bytes), the first of them from byte ``start`` of the file on."""
    file.seek(start)
    piece, first = divmod(start, PIECE)
    while data := file.read(PIECE - first):
        yield piece, data
        piece, first = piece + 1, 0


def _packing(path: Path) -> str | None:
    """The packing, by the file's first bytes. Raises UserError if it is not read here, or not that of the file's name."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    refuse_other_kinds(path, head)
    found = next((name for name, magic in _MAGIC.items() if magic.match(head)), None)
    named = _SUFFIXES.get(path.suffix)
    if found == "parquet":
        raise UserError(f"{path}: a parquet file: use format parquet")
    if found not in (None, *_OPENERS):
        raise UserError(f"{path}: a {found} file; only plain files and {', '.join(_OPENERS)} are read: unpack it first")
    if named and head and found != named:
        raise UserError(f"{path}: not {named} data at byte 0, whatever its name says; fetch it again or rename it")
    return found


def _check_unpacked(path: Path, head: bytes, packing: str) -> None:
    """Raise UserError if what was unpacked is packed again, or known not to be text."""
    refuse_other_kinds(path, head)
    if inner := next((name for name, magic in _MAGIC.items() if magic.match(head)), None):
        raise UserError(f"{path}: packed twice, by {packing} and within it by {inner}: unpack it once")


def _inflate(path: Path, raw: Iterable[tuple[int, bytes]], packing: str) -> Iterator[tuple[int, bytes]]:
    """Unpack one or more streams that follow each other, possibly padded with zero bytes."""
    stream = None
    for piece, data in raw:
        while stream or (data := data.lstrip(b"\0")):
            stream = stream or _OPENERS[packing]()
            try:
                block = stream.decompress(data, _BLOCK)
            except (OSError, zlib.error, lzma.LZMAError, zstd.ZstdError) as error:
                where = f"within {PIECE} bytes from byte {piece * PIECE}"
                raise UserError(
                    f"{path}: damaged {packing} data {where} ({error}); fetch it again or repack it"
                ) from None
            if block:
                yield piece, block
            hungry = stream.needs_input and not stream.eof
            data, stream = (stream.unused_data, None) if stream.eof else (b"", stream)
            if hungry:
                break
    if stream:
        size = path.stat().st_size
        raise BreaksOff(f"{path}: the {packing} data breaks off at byte {size}, the file's end; fetch the file again")


class _Gunzip:
    """zlib behind the interface of ``bz2.BZ2Decompressor`` and ``lzma.LZMADecompressor``."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)  # 31: with a gzip header

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data


_OPENERS: dict[str, Callable[[], Any]] = {
    "gzip": _Gunzip,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
    "zstd": zstd.ZstdDecompressor,
}
