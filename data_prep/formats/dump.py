"""Pages out of a MediaWiki export (XML), plain or packed, from its start or from any place of it."""

import bz2
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO
from xml.parsers import expat

from data_prep.cli import UserError
from data_prep.formats.readers import PIECE, Pieces, unpack

LONGEST_PAGE = 1 << 21  # bytes of wikitext

_MEDIA_NAMESPACES = {"-2", "6", "14"}  # Media, File, Category
MEDIA_NAMES = {"media", "file", "image", "category"}  # understood by every wiki next to its own names
_STREAM_HEAD = re.compile(rb"BZh[1-9]1AY&SY")
_LOOK_BACK = 1 << 24  # bytes searched for the head of a bz2 stream; the streams of real dumps have about 1 MB


@dataclass(frozen=True)
class Page:
    """A page of a dump. ``media_names``: the lower-case names of the Media, File and Category namespaces.

    ``too_long``: its wikitext was above the 2 MiB of UTF-8 that MediaWiki allows, and is not kept.
    """

    namespace: str
    redirect: bool
    wikitext: str
    too_long: bool
    media_names: frozenset[str]


def split_dump(path: Path, begin: int = 0) -> Iterator[tuple[int, Page]]:
    """Yield (piece, page) for the pages of a dump; pages before piece ``begin`` may be skipped.

    Raises UserError, with the offset in the unpacked file, if it is not well-formed XML, is not a MediaWiki export, or
    declares a document type (entities are never expanded).
    """
    start = _page_stream(path, begin * PIECE) if begin else 0
    head = _site_info(path) if start else b""
    pieces, dump = Pieces(chain([(0, head)], unpack(path, start))), _Dump(path, start, len(head))
    for block in pieces:
        yield from ((pieces.piece_of(offset), page) for offset, page in dump.feed(block))
    yield from ((pieces.piece_of(offset), page) for offset, page in dump.feed(b"", last=True))


def _page_stream(path: Path, before: int) -> int:
    """The last byte up to ``before`` at which a bz2 stream begins whose text begins with a page, or 0.

    Pages that begin in the pieces from ``before`` on are all in this stream and those that follow: an earlier stream is
    unpacked to its end when its last byte is read.
    """
    low = max(0, before - _LOOK_BACK)
    with path.open("rb") as file:
        file.seek(low)
        window = file.read(before - low + 9)  # 9: a head of 10 bytes may begin at ``before``
        heads = [low + found.start() for found in _STREAM_HEAD.finditer(window)]
        # Streams that were cut without regard to pages rarely begin with one: a few are tried, not all.
        return next((head for head in heads[:-9:-1] if _begins_with_page(file, head)), 0)


def _begins_with_page(file: BinaryIO, start: int) -> bool:
    """Whether a bz2 stream at ``start`` unpacks to text that begins with a page."""
    stream, text = bz2.BZ2Decompressor(), b""
    file.seek(start)
    try:
        while not text and not stream.eof and (data := file.read(PIECE)):
            text = stream.decompress(data, PIECE)
    except OSError:  # not the head of a stream after all
        return False
    return text.lstrip().startswith(b"<page>")


def _site_info(path: Path) -> bytes:
    """The unpacked bytes before the first page."""
    head = b""
    for _, block in unpack(path):
        head += block
        if (end := head.find(b"<page>")) >= 0:
            return head[:end]
    return head


class _Dump:
    """An expat parser that returns pages as they end. Holds one page and those that one block of bytes completes."""

    def __init__(self, path: Path, start: int, head: int):
        """``start``: the byte from which the file is unpacked, after a head of ``head`` bytes was fed; mostly both 0."""
        self._path = path
        self._start, self._head = start, head
        self._pages: list[tuple[int, Page]] = []
        self._media_names = set(MEDIA_NAMES)
        self._root = ""
        self._begin = 0  # offset of the current page
        self._key = ""  # of the current <namespace>
        self._fields: dict[str, str] = {}  # of the current page
        self._text: list[str] | None = None  # of the current element, if it is wanted
        self._size = 0  # bytes of that text as UTF-8
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start_element
        self._parser.EndElementHandler = self._end_element
        self._parser.CharacterDataHandler = self._characters
        self._parser.StartDoctypeDeclHandler = self._reject_doctype

    def feed(self, block: bytes, last: bool = False) -> list[tuple[int, Page]]:
        """The pages that end in this block, each after its offset in all bytes that were fed."""
        try:
            self._parser.Parse(block, last)
        except expat.ExpatError as error:
            place = self._place(max(self._parser.ErrorByteIndex, 0))
            if self._root:
                raise UserError(f"{self._path}: not well-formed XML {place} ({error}); fetch the file again") from None
            form = "jsonl" if block.lstrip().startswith(b"{") else "text"
            what = f"not XML, so not a MediaWiki dump {place} ({error})"
            raise UserError(f"{self._path}: {what}; if it should not be one, use format {form}") from None
        pages, self._pages = self._pages, []
        return pages

    def _place(self, offset: int) -> str:
        if self._start:
            return f"at byte {offset - self._head} of what unpacks from byte {self._start} of the file on"
        return f"at byte {offset} of the unpacked file"

    def _start_element(self, name: str, attributes: dict[str, str]) -> None:
        if not self._root and name != "mediawiki":
            raise UserError(f"{self._path}: XML with root <{name}>, but a MediaWiki dump has <mediawiki>")
        self._root = "mediawiki"
        if name == "page":
            self._begin, self._fields = self._parser.CurrentByteIndex, {}
        elif name == "redirect":
            self._fields[name] = ""
        elif name in ("ns", "text", "namespace"):
            self._text, self._size, self._key = [], 0, attributes.get("key", "")

    def _characters(self, data: str) -> None:
        if self._text is None:
            return
        self._size += len(data.encode())
        if self._size <= LONGEST_PAGE:
            self._text.append(data)
        else:
            self._text.clear()

    def _end_element(self, name: str) -> None:
        if name == "page":
            self._pages.append((self._begin, self._page()))
        elif self._text is not None:
            value, self._text = "".join(self._text), None
            if name == "namespace" and self._key in _MEDIA_NAMESPACES:
                self._media_names.add(value.lower())
            self._fields[name] = value
            if name == "text":  # of several revisions the last
                self._fields["too_long"] = "yes" if self._size > LONGEST_PAGE else ""

    def _page(self) -> Page:
        fields = self._fields
        return Page(
            namespace=fields.get("ns", "0"),
            redirect="redirect" in fields,
            wikitext=fields.get("text", ""),
            too_long=bool(fields.get("too_long")),
            media_names=frozenset(self._media_names),
        )

    def _reject_doctype(self, *_: object) -> None:
        raise UserError(
            f"{self._path}: a document type is declared at byte {self._parser.CurrentByteIndex}; "
            "MediaWiki dumps have none, and entities are not expanded here"
        )
