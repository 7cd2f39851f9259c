"""Pages out of a MediaWiki export (XML), plain or packed, from its start or from any place of it.

A page is found by its tags alone, in the unpacked bytes, so that a bad place costs no page but its own; its XML is parsed
by the worker that keeps it (``page``).
"""

import codecs
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from html import unescape
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

from data_prep.cli import UserError
from data_prep.formats.readers import PIECE, BreaksOff, Pieces, unpack
from data_prep.formats.streams import BEGINS_PAGE, page_stream
from data_prep.formats.wiki_names import CANONICAL_NAMES, MEDIA_NAMES, WIKIPEDIA_NAMES

LONGEST_PAGE = 1 << 21  # bytes of wikitext

_MEDIA_NAMESPACES = (-2, 6, 14)  # Media, File, Category
_HEAD = 1 << 16  # bytes within which a dump shows its root; also what is kept of the start of a page that is too long
_LONGEST_INFO = 1 << 20  # bytes of a <siteinfo>
_LOOK_AHEAD = 256  # bytes after a tag by which it is known what it is
_TAG = re.compile(
    rb"<(?:(?P<page_end>/page\s{0,9}>)|(?P<page>page(?=[\s>]))|(?P<revision>revision(?=[\s>]))|(?P<end>/mediawiki\s{0,9}>)|"
    rb"(?P<mediawiki>mediawiki(?=[\s>]))|(?P<siteinfo>siteinfo(?=[\s>]))|(?P<doctype>!DOCTYPE)|(?P<declaration>\?xml(?=\s)))"
)
_ROOT = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml\s[^<>]*>\s*)?<mediawiki(?:\s[^<>]*)?>")
_TAG_END = re.compile(rb">")
_INFO_END = re.compile(rb"</siteinfo\s{0,9}>|(?=<(?:page|siteinfo|mediawiki)[\s>])")
_TITLE = re.compile(rb"<title>([^<]*)")
_ENCODING = re.compile(rb"<\?xml\s[^<>]{0,99}?encoding\s{0,9}=\s{0,9}[\"']([\w.:-]+)[\"']")
_WIDE = (  # the first bytes of encodings of which a character takes two bytes or four
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"<\0\0\0", "utf-32-le"),
    (b"<\0", "utf-16-le"),
    (b"\0<", "utf-16-be"),
)
_WIDE_NAME = re.compile("utf[-_]?(?:16|32)|(?:iso-10646-)?ucs", re.I)
_WIKIPEDIA_FILE = re.compile(r"(?!simple)([a-z]{2,}(?:_[a-z]+)*)wiki[-.]")  # "simple" is English
_ASCII = bytes(range(128)) + b"\x1b$B00\x1b(B"  # and what would change to another character set


@dataclass(frozen=True)
class Site:
    """What a dump says about its wiki: the ``language`` code, and the name of each of its ``namespaces`` by number.

    ``media_names``: the lower-case names of the Media, File and Category namespaces, its own and those built in.
    """

    language: str = ""
    namespaces: Mapping[int, str] = field(default_factory=dict, hash=False)
    media_names: frozenset[str] = MEDIA_NAMES

    @cached_property
    def prefixes(self) -> frozenset[str]:
        """The lower-case names of all namespaces but that of the articles."""
        own = {name.lower().replace("_", " ") for name in self.namespaces.values()} - {""}
        return CANONICAL_NAMES | self.media_names | (own or WIKIPEDIA_NAMES)

    @cached_property
    def template_names(self) -> frozenset[str]:
        """The lower-case names of the Template namespace."""
        return frozenset({"template", self.namespaces.get(10, "template").lower()})


class RawPage(NamedTuple):
    """The ``data`` of a page from its <page> to its </page>: its head and its last revision, in this ``encoding``.

    ``fault``: "torn" or "broken_xml" if its end is missing, "too_long" if the revision was not kept; else empty.
    """

    data: bytes
    site: Site = Site()
    encoding: str = "utf-8"
    fault: str = ""

    @property
    def title(self) -> str:
        """The title, for messages."""
        found = _TITLE.search(self.data, 0, 999)
        return unescape(found[1].decode(self.encoding, "replace")) if found else ""


def split_dump(path: Path, begin: int = 0) -> Iterator[tuple[int, RawPage]]:
    """Yield (piece, page) for the pages of a dump; pages before piece ``begin`` may be skipped.

    Where a dump or the packed data break off a page is "torn", empty if none had begun. Raises UserError if it is not a
    MediaWiki export, or declares a document type (entities are never expanded).
    """
    start = page_stream(path, begin * PIECE) if begin else 0
    head = _head(path) if start else b""
    unpacked = _Unpacked(path, start)
    pieces, pages = Pieces(chain([(0, head)], unpacked.blocks())), _Pages(path)
    for block in pieces:
        if unpacked.broken and not pages.opened and not _ROOT.match(block):
            break  # too little to tell what it is
        yield from ((pieces.piece_of(offset), page) for offset, page in pages.feed(block))
    if unpacked.broken and not pages.opened:
        raise unpacked.broken
    yield from ((pieces.piece_of(offset), page) for offset, page in pages.finish(torn=bool(unpacked.broken)))


class _Unpacked:
    """The unpacked bytes of a file from byte ``start`` on, up to where it is ``broken`` off."""

    def __init__(self, path: Path, start: int = 0):
        self._path, self._start = path, start
        self.broken: BreaksOff | None = None

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """Yield (piece, block), in UTF-8 instead of UTF-16 and UTF-32."""
        try:
            blocks = unpack(self._path, self._start)
            first = next(blocks, (0, b""))
            wide = next((name for mark, name in _WIDE if first[1].startswith(mark)), None)
            blocks = chain([first], blocks)
            yield from _as_utf8(blocks, wide) if wide else blocks
        except BreaksOff as error:
            self.broken = error


def _as_utf8(blocks: Iterator[tuple[int, bytes]], encoding: str) -> Iterator[tuple[int, bytes]]:
    """Transcode; what is invalid becomes a byte that is invalid in UTF-8 too."""
    decoder = codecs.getincrementaldecoder(encoding)("data_prep.invalid")
    yield 0, codecs.BOM_UTF8  # so that no declaration is believed
    for piece, block in blocks:
        yield piece, decoder.decode(block).encode("utf-8", "surrogateescape")
    yield piece, decoder.decode(b"", final=True).encode("utf-8", "surrogateescape")


def _invalid(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


codecs.register_error("data_prep.invalid", _invalid)


def _head(path: Path) -> bytes:
    """The unpacked bytes before the first page."""
    head = b""
    for _, block in _Unpacked(path).blocks():
        head += block
        if (end := head.find(b"<page")) >= 0:
            return head[:end]
    return head


class _Pages:
    """Finds pages in blocks of bytes. Holds the page that is not yet whole, and of that its head and one revision."""

    def __init__(self, path: Path):
        self._path = path
        self._buffer, self._offset = b"", 0  # bytes that are not done with, and how many were before them
        self._done = 0  # bytes of the buffer whose tags have been looked at
        self._begin = -1  # offset of the page that has begun; -1 if none has
        self._head = b""  # of that page, what is before its first revision
        self._part = 0  # where in the buffer the page begins, or its last revision
        self._stub, self._cut = b"", 0  # the start of that part, and how many bytes of it are no longer in the buffer
        self._site, self._info = Site(), _Info(path)
        self._encoding = self._declared = "utf-8"
        self._found: list[tuple[int, RawPage]] = []
        self.opened = False
        self._closed = True

    def feed(self, block: bytes, last: bool = False) -> list[tuple[int, RawPage]]:
        """The pages that end in this block, each after its offset in all bytes that were fed."""
        self._buffer += block
        if not self.opened and self._buffer:
            _check_root(self._path, self._buffer)
            self.opened = True
        end = len(self._buffer)
        limit = end if last else max(end - _LOOK_AHEAD, self._done)
        for tag in _TAG.finditer(self._buffer, self._done):
            if tag.start() >= limit:
                break
            if not self._take(tag) and not last and end - tag.start() < _LONGEST_INFO:
                limit = tag.start()  # wait for the rest of it
                break

        self._shorten(limit)
        found, self._found = self._found, []
        return found

    def finish(self, torn: bool) -> list[tuple[int, RawPage]]:
        """The pages after the last block. ``torn``: whether more was to come."""
        if not self.opened:
            _check_root(self._path, b"")
        found = self.feed(b"", last=True)
        end = len(self._buffer)
        if self._begin >= 0:
            self._close_page(end, "torn")
        elif torn or not self._closed:
            self._add_torn(end)
        return found + self._found

    def _take(self, tag: re.Match[bytes]) -> bool:
        """Take a tag into account. False if more bytes are needed for that."""
        match tag.lastgroup:
            case "page_end" if self._begin >= 0:
                self._close_page(tag.end())
            case "page" if self._begin < 0 or BEGINS_PAGE.match(self._buffer, tag.start()):
                if self._begin >= 0:
                    self._close_page(tag.start(), "broken_xml")
                self._begin, self._head, self._part = self._offset + tag.start(), b"", tag.start()
                self._stub, self._cut = b"", 0
            case "revision" if self._begin >= 0:
                self._head = self._head or self._kept(tag.start())
                self._part, self._stub, self._cut = tag.start(), b"", 0
            case "end":
                if self._begin >= 0:
                    self._close_page(tag.start(), "broken_xml")
                self._closed = True
            case "mediawiki":
                return self._open_dump(tag)
            case "siteinfo" if self._begin < 0:
                return self._read_info(tag.start(), _INFO_END)
            case "declaration":
                self._declared = _encoding(self._path, self._buffer, tag.start())
            case "doctype" if self._begin < 0:
                _reject_doctype(self._path, self._offset + tag.start())
        return True

    def _open_dump(self, tag: re.Match[bytes]) -> bool:
        """Begin a dump, and end the one before it, if any."""
        if self._begin >= 0:
            self._close_page(tag.start(), "torn")
        elif not self._closed:
            self._add_torn(tag.start())
        self._closed = True
        self._info = _Info(self._path)
        if not self._read_info(tag.start(), _TAG_END):
            return False
        self._closed, self._encoding, self._declared = False, self._declared, "utf-8"
        return True

    def _read_info(self, begin: int, end: re.Pattern[bytes]) -> bool:
        """Read what is up to ``end`` about the wiki; False if that is not in the buffer."""
        if not (found := end.search(self._buffer, begin + 1)):
            return False
        self._info.feed(self._buffer[begin : found.end()].decode(self._encoding, "replace"))
        self._site = self._info.site()
        return True

    def _too_long(self, end: int) -> bool:
        """Whether the part that ends at ``end`` in the buffer is not kept. XML writes <, > and " in four bytes or more."""
        return self._cut + end - self._part > 2 * LONGEST_PAGE

    def _kept(self, end: int) -> bytes:
        """The part that ends at ``end`` in the buffer; only its start if it is too long."""
        if self._too_long(end):
            return self._stub or self._buffer[self._part : self._part + _HEAD]
        return self._buffer[self._part : end]

    def _close_page(self, end: int, fault: str = "") -> None:
        if not fault and self._too_long(end):
            fault = "too_long"
        page = RawPage(self._head + self._kept(end), self._site, self._encoding, fault)
        self._found.append((self._begin, page))
        self._begin = -1

    def _add_torn(self, end: int) -> None:
        """A page without bytes, for whatever is missing at ``end`` in the buffer."""
        self._found.append((max(self._offset + end - 1, 0), RawPage(b"", self._site, fault="torn")))

    def _shorten(self, done: int) -> None:
        """Drop from the buffer what is ``done`` with and not part of a page, or of one that is too long."""
        kept = done
        if self._begin >= 0:
            if self._too_long(done):
                self._stub = self._kept(done)
                self._cut += done - self._part
                self._part = done
            kept = self._part
        self._buffer, self._offset = self._buffer[kept:], self._offset + kept
        self._done, self._part = done - kept, self._part - kept


class _Info:
    """An expat parser of the start of a dump, up to the end of its <siteinfo>.

    Of a Wikipedia's the file's name, as Wikimedia gives it, says the language: parts are cut and joined with other heads.
    """

    def __init__(self, path: Path) -> None:
        self._named = _WIKIPEDIA_FILE.match(path.name)
        self._language, self._key, self._base = "", "", ""
        self._namespaces: dict[int, str] = {}
        self._parser = expat.ParserCreate("utf-8")
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start_element
        self._parser.EndElementHandler = self._end_element

    def feed(self, text: str) -> None:
        with suppress(expat.ExpatError):  # what was read of it by then counts
            self._parser.Parse(text)

    def site(self) -> Site:
        own = {self._namespaces.get(key, "").lower() for key in _MEDIA_NAMESPACES} - {""}
        if self._named and "wikipedia.org" in self._base:
            self._language = self._named[1].replace("_", "-")
        return Site(self._language, dict(self._namespaces), MEDIA_NAMES | own)

    def _start_element(self, name: str, attributes: dict[str, str]) -> None:
        if name == "mediawiki":
            self._language = attributes.get("xml:lang", "")
        elif name == "namespace" and re.fullmatch(r"-?\d{1,6}", key := attributes.get("key", "")):
            self._key, self._namespaces[int(key)] = key, ""
            self._parser.CharacterDataHandler = self._characters
        elif name == "base":
            self._parser.CharacterDataHandler = self._base_characters

    def _base_characters(self, data: str) -> None:
        self._base += data

    def _characters(self, data: str) -> None:
        self._namespaces[int(self._key)] += data

    def _end_element(self, name: str) -> None:
        self._parser.CharacterDataHandler = None


class _Root(Exception):
    """The root element has been found."""


def _check_root(path: Path, data: bytes) -> None:
    """Raise UserError if the file that begins with ``data`` is not XML with the root <mediawiki>."""

    def start_element(name: str, _: object) -> None:
        if name != "mediawiki":
            raise UserError(f"{path}: XML with root <{name}>, but a MediaWiki dump has <mediawiki>")
        raise _Root

    data = data[:_HEAD]
    text = data.decode(_encoding(path, data, 0), "replace").lstrip("\ufeff \t\r\n")
    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler = start_element
    parser.StartDoctypeDeclHandler = lambda *_: _reject_doctype(path, parser.CurrentByteIndex)
    try:
        parser.Parse(text, True)
    except _Root:
        return
    except expat.ExpatError as error:
        if _ROOT.match(data):  # with something bad in it
            return
        form = "jsonl" if text.startswith("{") else "text"
        place = f"at byte {max(parser.ErrorByteIndex, 0)} of the unpacked file"
        what = f"not XML, so not a MediaWiki dump {place} ({error})"
        raise UserError(f"{path}: {what}; if it should not be one, use format {form}") from None


def _reject_doctype(path: Path, offset: int) -> None:
    raise UserError(
        f"{path}: a document type is declared at byte {offset}; "
        "MediaWiki dumps have none, and entities are not expanded here"
    )


def _encoding(path: Path, data: bytes, begin: int) -> str:
    """The encoding that an XML declaration at ``begin`` names, else UTF-8. Raises UserError if it is none we can read."""
    found = _ENCODING.match(data, begin)
    name = found[1].decode() if found else "utf-8"
    # The bytes have shown that it is another encoding, or they are no longer in it.
    if _WIDE_NAME.match(name) or data.endswith(codecs.BOM_UTF8, 0, begin):
        return "utf-8"
    with suppress(LookupError, ValueError):
        if _ASCII.decode(name) == _ASCII.decode():
            return codecs.lookup(name).name.replace("ascii", "utf-8")
    raise UserError(f"{path}: XML in the encoding {name}, which is not read: convert it to UTF-8, declaration included")
