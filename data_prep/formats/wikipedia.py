"""The ``wikipedia`` format: a MediaWiki export dump (XML) -> the plain text of its articles."""

import bz2
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO
from xml.parsers import expat

import mwparserfromhell
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Node, Tag, Text, Wikilink
from mwparserfromhell.parser import ParserError
from mwparserfromhell.wikicode import Wikicode

from data_prep.cli import UserError
from data_prep.formats.readers import PIECE, Document, Format, Pieces, unpack

LONGEST_PAGE = 1 << 21  # bytes of wikitext

_MEDIA_NAMESPACES = {"-2", "6", "14"}  # Media, File, Category
_MEDIA_NAMES = {"media", "file", "image", "category"}  # understood by every wiki next to its own names
_MEDIA_FILE = re.compile(r":.*\.(?:jpe?g|png|svg|gif|tiff?|webp|og[agv]|webm|mp[34]|wav|flac|pdf|djvu)\s*$", re.I)
_INTERLANGUAGE = re.compile(r"\s*(?:[a-z]{2,3}|simple)(?:-[a-z]+)*\s*:")
_HEADING = "\x02"  # marks a heading's line until bare ones are dropped; no XML file can hold it
_SILENT_TAG = re.compile(
    "ref|references|table|gallery|math|chem|ce|timeline|imagemap|score|syntaxhighlight|source|graph|mapframe|maplink|"
    "hiero|templatestyles|templatedata|categorytree|inputbox|section|indicator|style|script"
)
_LINE_TAG = re.compile("br|hr|li|dd|dt|p|div|blockquote|center|poem|tr")
_STREAM_HEAD = re.compile(rb"BZh[1-9]1AY&SY")
_LOOK_BACK = 1 << 24  # bytes searched for the head of a bz2 stream; the streams of real dumps have about 1 MB

# Taken out before parsing, which is what costs time: about a third of an article is references.
_BEFORE_PARSING = re.compile(
    r"<!--.*?(?:-->|\Z)|<ref\b[^<>]*/>|<ref\b[^<>]*>.*?</ref\s*>|<(math|gallery|timeline)\b[^<>]*>.*?</\1\s*>",
    re.S | re.I,
)
_TIDY = [
    (re.compile(pattern, re.M), replacement)
    for pattern, replacement in (
        (r"__[^\W\d_]{3,}__", ""),  # magic words, in any language
        (r"'{2,}", ""),  # bold and italics
        (r"-\{(?:[^{}|]*\|)?(?:[a-z-]+:)?([^{};]*)(?:;[^{}]*)?\}-", r"\1"),  # of language variants the first
        (r"\[\[|\]\]|\{\{+|\}\}+", ""),  # what the parser could not pair
        (r"^[ \t]*(?:\{\||\|).*$", ""),  # lines of tables the parser could not close
        (r"</?[a-zA-Z][^<>\n]*>", ""),  # tags the parser could not pair
        (r"[^\S\n]+", " "),
        (r" \( ?(?:[,;:،；，、] ?)*\)|（[，；、 ]*）", ""),  # parentheses that held only templates
        (r"(?<=[(（]) ?(?:[,;،；，、] ?)+", ""),
        (r"(?:[,;] ?)+(?=\))", ""),
        (r"(?<=[(（]) ", ""),
        (r", ?(?:, ?)+", ", "),
        (r" +(?=[,.)])(?!\.\d)", ""),
        (r"^(?:[^\w\n]|_)+$", ""),  # lines without a letter or digit
        (r"^ | $", ""),
        (r"\n{3,}", "\n\n"),
    )
]


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


def clean_article(page: Page) -> Document:
    """The article's prose, or why the page was dropped: not_an_article, redirect, over_2_mib, empty or unparsable."""
    if page.namespace != "0":
        return Document(dropped="not_an_article")
    if page.redirect:
        return Document(dropped="redirect")
    if page.too_long:
        return Document(dropped="over_2_mib")
    try:
        text = plain_text(page.wikitext, page.media_names)
    except (ParserError, RecursionError):
        return Document(dropped="unparsable")
    return Document(text, "" if text else "empty")


WIKIPEDIA = Format(split_dump, clean_article)


def plain_text(wikitext: str, media_names: frozenset[str] = frozenset(_MEDIA_NAMES)) -> str:
    """Wikitext -> prose with headings, paragraphs apart by a blank line.

    Templates, tables, references, formulas, comments, files and categories are removed, and headings with nothing under
    them; the text of links stays. Raises mwparserfromhell's ParserError.
    """
    wikitext = _BEFORE_PARSING.sub("", wikitext)
    text = _render(mwparserfromhell.parse(wikitext, skip_style_tags=True), media_names)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # &#xD800; is no character
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    return _without_bare_headings(text).strip()


def _render(code: Wikicode, media_names: frozenset[str]) -> str:
    return "".join(_render_node(node, media_names) for node in code.nodes)


def _render_node(node: Node, media_names: frozenset[str]) -> str:
    """The text of one node; templates, arguments and comments have none."""
    match node:
        case Text():
            return node.value
        case HTMLEntity():
            return node.normalize().replace(_HEADING, "")
        case Wikilink():
            return _render_link(node, media_names)
        case ExternalLink() if node.brackets and node.title:
            return _render(node.title, media_names)
        case Heading():
            return f"\n\n{_HEADING}{node.level}{_render(node.title, media_names).strip()}\n\n"
        case Tag():
            return _render_tag(node, media_names)
    return ""


def _render_link(link: Wikilink, media_names: frozenset[str]) -> str:
    """The label or the title; nothing for files, categories and links to the same article in another language."""
    title = str(link.title).strip()
    prefix, colon, _ = title.partition(":")
    if prefix and colon and (prefix.strip().lower() in media_names or _MEDIA_FILE.search(title)):
        return ""
    if link.text is None:
        return "" if _INTERLANGUAGE.match(title) else _render(link.title, media_names).strip().removeprefix(":")
    return _render(link.text, media_names)


def _render_tag(tag: Tag, media_names: frozenset[str]) -> str:
    """The text of a tag's content, on a line of its own if the tag makes one; nothing for tags that hold no prose."""
    name = str(tag.tag).strip().lower()
    if _SILENT_TAG.fullmatch(name):
        return ""
    inner = _render(tag.contents, media_names) if tag.contents else ""
    if tag.wiki_markup or not _LINE_TAG.fullmatch(name):
        return inner
    return f"\n{inner}\n" if inner else "\n"


def _without_bare_headings(text: str) -> str:
    """Drop headings under which there is neither text nor a filled heading of a deeper level."""
    kept, open_level = [], 0  # headings of a level below open_level have something under them
    for line in reversed(text.split("\n")):
        if line.startswith(_HEADING):
            level, line = int(line[1]), line[2:]
            if level >= open_level or not line:
                continue
            open_level = level
        elif line:
            open_level = 7
        kept.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(reversed(kept)))


class _Dump:
    """An expat parser that returns pages as they end. Holds one page and those that one block of bytes completes."""

    def __init__(self, path: Path, start: int, head: int):
        """``start``: the byte from which the file is unpacked, after a head of ``head`` bytes was fed; mostly both 0."""
        self._path = path
        self._start, self._head = start, head
        self._pages: list[tuple[int, Page]] = []
        self._media_names = set(_MEDIA_NAMES)
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
