"""Files -> raw documents, always in file order: unpacking, and the ``text`` format.

A format splits a file into raw documents and cleans one of them. Splitting is cheap and says in which piece of the file
a document begins; cleaning is dear, and only the worker that keeps the document does it. A piece is 64 KiB of the file
as it lies on disk, so the units of work (runs of pieces) follow from the file's size alone, compressed or not.
"""

import bz2
import lzma
import re
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.errors import UserError

PIECE = 1 << 16  # bytes of the file on disk
LONGEST_DOCUMENT = 1 << 22  # bytes; a longer stretch of text is cut

_BLOCK = 1 << 20  # bytes unpacked at once
_SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz"}
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PAR1": "parquet",
}
# A line end, then whitespace that contains at least one more. The atomic group keeps CRLF one line end.
_BLANK_LINES = re.compile(rb"(?>\r\n?|\n)(?:[ \t\0]*+(?>\r\n?|\n))+")
_BLANK = b" \t\r\n\0"


@dataclass(frozen=True)
class Document:
    """One cleaned document, or the reason why it was dropped; ``repairs`` counts by kind what was mended in it."""

    text: str = ""
    dropped: str = ""
    repairs: Counter = field(default_factory=Counter)


@dataclass(frozen=True)
class Format:
    """How to read one kind of file. ``split`` yields (piece, raw document); ``clean`` takes the raw document."""

    split: Callable[[Path], Iterator[tuple[int, Any]]]
    clean: Callable[[Any], Document]


class Pieces:
    """The unpacked bytes of a file, and from which piece of the file each of them came."""

    def __init__(self, path: Path):
        self.path = path
        self._ends: deque[tuple[int, int]] = deque()  # (unpacked bytes up to the end of this block, its piece)

    def __iter__(self) -> Iterator[bytes]:
        """Blocks of at most 1 MiB. Raises UserError with the file's offset if packed data is damaged or cut short."""
        unpacked = 0
        for piece, block in _unpack(self.path):
            unpacked += len(block)
            self._ends.append((unpacked, piece))
            yield block

    def piece_of(self, offset: int) -> int:
        """The piece that unpacked byte ``offset`` came from; to be asked in ascending order."""
        while self._ends[0][0] <= offset:
            self._ends.popleft()
        return self._ends[0][1]


def split_text(path: Path) -> Iterator[tuple[int, tuple[bytes, bool]]]:
    """(piece, (bytes, whether it was cut off)) for every stretch of a UTF-8 text file between blank lines.

    A stretch above 4 MiB is cut, at a line end if it has one. Raises UserError if the file is UTF-16 or XML.
    """
    pieces = Pieces(path)
    buffer, start = b"", 0  # the bytes not yet given out, and the offset of the first of them
    for block in pieces:
        if not start and not buffer:
            _refuse_other_than_text(path, block)
        scanned = len(buffer.rstrip(_BLANK))
        buffer += block
        done = 0
        for begin, end, cut in _stretches(buffer, scanned):
            done = end
            if raw := buffer[begin:end].strip(_BLANK):
                yield pieces.piece_of(start + begin), (raw, cut)
        buffer, start = buffer[done:], start + done
    if raw := buffer.strip(_BLANK):
        yield pieces.piece_of(start), (raw, False)


def clean_text(raw: tuple[bytes, bool]) -> Document:
    """Decode UTF-8 and mend it: byte-order mark, CRLF, lone CR, NUL, and invalid bytes, which become U+FFFD."""
    data, cut = raw
    text = data.decode("utf-8", errors="replace")
    crlf = data.count(b"\r\n")
    repairs = Counter(
        invalid_utf8=text.count("\ufffd") - data.count("\ufffd".encode()),
        byte_order_mark=text.count("\ufeff"),
        nul=text.count("\0"),
        crlf=crlf,
        lone_cr=data.count(b"\r") - crlf,
        cut_at_4_mib=int(cut),
    )
    text = text.replace("\ufeff", "").replace("\0", "").replace("\r\n", "\n").replace("\r", "\n").strip()
    return Document(text, "" if text else "empty", +repairs)


TEXT = Format(split_text, clean_text)


def _refuse_other_than_text(path: Path, head: bytes) -> None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: UTF-16 at byte 0; format text reads UTF-8: convert it with iconv first")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"<?xml", b"<mediawiki")):
        raise UserError(f"{path}: XML at byte 0; format text reads plain text: is this a dump for format wikipedia?")


def _stretches(buffer: bytes, scanned: int) -> Iterator[tuple[int, int, bool]]:
    """(begin, end, cut off) of what is whole in the buffer, in which no blank line begins before ``scanned``."""
    begin = 0
    for blank in _BLANK_LINES.finditer(buffer, scanned):
        *parts, last = _parts(buffer, begin, blank.start())
        yield from ((*part, True) for part in parts)
        yield *last, False
        begin = blank.end()
    *parts, _ = _parts(buffer, begin, len(buffer))
    yield from ((*part, True) for part in parts)


def _parts(buffer: bytes, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut ``buffer[begin:end]`` into parts of at most LONGEST_DOCUMENT, at the last line end, or space, or anywhere."""
    while end - begin > LONGEST_DOCUMENT:
        limit = begin + LONGEST_DOCUMENT
        middle = max(buffer.rfind(mark, begin + 1, limit) for mark in (b"\n", b"\r"))
        if middle < 0:
            middle = buffer.rfind(b" ", begin + 1, limit)
        middle = limit if middle < 0 else middle
        yield begin, middle
        begin = middle
    yield begin, end


def _unpack(path: Path) -> Iterator[tuple[int, bytes]]:
    """(piece, block): the blocks, each at most 1 MiB, that come out when that piece of the file goes in."""
    packing = _packing(path)
    with path.open("rb") as file:
        raw = enumerate(iter(partial(file.read, PIECE), b""))
        yield from _inflate(path, raw, packing) if packing else raw


def _packing(path: Path) -> str | None:
    """How the file is packed, by its first bytes. Raises UserError if that cannot be read or is not what its name says."""
    with path.open("rb") as file:
        head = file.read(8)
    found = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    named = _SUFFIXES.get(path.suffix)
    if found not in (None, *_OPENERS):
        raise UserError(f"{path}: a {found} file; read are plain files and {', '.join(_OPENERS)}: unpack it first")
    if named and head and found != named:
        raise UserError(f"{path}: not {named} data at byte 0, whatever its name says; fetch it again or rename it")
    return found


def _inflate(path: Path, raw: Iterable[tuple[int, bytes]], packing: str) -> Iterator[tuple[int, bytes]]:
    """Unpack one or more streams that follow each other, possibly padded with zero bytes."""
    stream = None
    for piece, data in raw:
        while stream or (data := data.lstrip(b"\0")):
            stream = stream or _OPENERS[packing]()
            try:
                block = stream.decompress(data, _BLOCK)
            except (OSError, zlib.error, lzma.LZMAError) as error:
                where = f"within {PIECE} bytes from byte {piece * PIECE}"
                raise UserError(f"{path}: damaged {packing} data {where} ({error}); fetch the file again") from None
            if block:
                yield piece, block
            hungry = stream.needs_input and not stream.eof
            data, stream = (stream.unused_data, None) if stream.eof else (b"", stream)
            if hungry:
                break
    if stream:
        size = path.stat().st_size
        raise UserError(f"{path}: the {packing} data breaks off at byte {size}, the file's end; fetch the file again")


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
}
