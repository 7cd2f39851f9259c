"""The ``wikipedia`` format: a MediaWiki export dump (XML) -> the plain text of its articles."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

import mwparserfromhell
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Node, Tag, Text, Wikilink
from mwparserfromhell.parser import ParserError
from mwparserfromhell.wikicode import Wikicode

from data_prep.errors import UserError
from data_prep.readers import Document, Format, Pieces

_MEDIA_NAMESPACES = {"-2", "6", "14"}  # Media, File, Category
_MEDIA_NAMES = {"media", "file", "image", "category"}  # understood by every wiki beside its own names
_MEDIA_FILE = re.compile(r":.*\.(?:jpe?g|png|svg|gif|tiff?|webp|og[agv]|webm|mp[34]|wav|flac|pdf|djvu)\s*$", re.I)
_INTERLANGUAGE = re.compile(r"\s*(?:[a-z]{2,3}|simple)(?:-[a-z]+)*\s*:")
_HEADING = "\x02"  # marks a heading's line until bare ones are dropped; no XML file can hold it
_SILENT_TAG = re.compile(
    "ref|references|table|gallery|math|chem|ce|timeline|imagemap|score|syntaxhighlight|source|graph|mapframe|maplink|"
    "hiero|templatestyles|templatedata|categorytree|inputbox|section|indicator|style|script"
)
_LINE_TAG = re.compile("br|hr|li|dd|dt|p|div|blockquote|center|poem|tr")

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
    """One page of a dump. ``media_names``: the lower-case names of the Media, File and Category namespaces."""

    namespace: str
    redirect: bool
    wikitext: str
    media_names: frozenset[str]


def split_dump(path: Path) -> Iterator[tuple[int, Page]]:
    """(piece, page) for every page of a dump.

    Raises UserError, with the offset in the unpacked file, for what is not well-formed XML, is not a MediaWiki export,
    or declares a document type (entities are never expanded).
    """
    pieces, dump = Pieces(path), _Dump(path)
    for block in pieces:
        yield from ((pieces.piece_of(offset), page) for offset, page in dump.feed(block))
    yield from ((pieces.piece_of(offset), page) for offset, page in dump.feed(b"", last=True))


def clean_article(page: Page) -> Document:
    """The article's prose, or why the page was dropped: not_an_article, redirect, empty or unparsable."""
    if page.namespace != "0":
        return Document(dropped="not_an_article")
    if page.redirect:
        return Document(dropped="redirect")
    try:
        text = plain_text(page.wikitext, page.media_names)
    except (ParserError, RecursionError):
        return Document(dropped="unparsable")
    return Document(text, "" if text else "empty")


WIKIPEDIA = Format(split_dump, clean_article)


def plain_text(wikitext: str, media_names: frozenset[str] = frozenset(_MEDIA_NAMES)) -> str:
    """Wikitext -> prose with headings, paragraphs apart by a blank line.

    Templates, tables, references, formulas, comments, files and categories go; the text of links stays; headings with
    nothing under them go. Raises mwparserfromhell's ParserError.
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
    """An expat parser that gives out pages as they end. Holds one page and what one block of bytes completes."""

    def __init__(self, path: Path):
        self._path = path
        self._pages: list[tuple[int, Page]] = []
        self._media_names = set(_MEDIA_NAMES)
        self._root = ""
        self._begin = 0  # offset of the current page
        self._key = ""  # of the current <namespace>
        self._fields: dict[str, str] = {}  # of the current page
        self._text: list[str] | None = None  # of the current element, if it is wanted
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.StartDoctypeDeclHandler = self._refuse_doctype

    def feed(self, block: bytes, last: bool = False) -> list[tuple[int, Page]]:
        """(offset in the unpacked file, page) for the pages that end in this block."""
        try:
            self._parser.Parse(block, last)
        except expat.ExpatError as error:
            what = "not well-formed XML" if self._root else "not XML, so no MediaWiki dump"
            offset = max(self._parser.ErrorByteIndex, 0)
            raise UserError(f"{self._path}: {what} at byte {offset} of the unpacked file ({error})") from None
        pages, self._pages = self._pages, []
        return pages

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._root and name != "mediawiki":
            raise UserError(f"{self._path}: XML with root <{name}>, but a MediaWiki dump has <mediawiki>")
        self._root = "mediawiki"
        if name == "page":
            self._begin, self._fields = self._parser.CurrentByteIndex, {}
        elif name == "redirect":
            self._fields[name] = ""
        elif name in ("ns", "text", "namespace"):
            self._text, self._key = [], attributes.get("key", "")

    def _characters(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)

    def _end(self, name: str) -> None:
        if name == "page":
            fields = self._fields
            names = frozenset(self._media_names)
            page = Page(fields.get("ns", "0"), "redirect" in fields, fields.get("text", ""), names)
            self._pages.append((self._begin, page))
        elif self._text is not None:
            value, self._text = "".join(self._text), None
            if name == "namespace" and self._key in _MEDIA_NAMESPACES:
                self._media_names.add(value.lower())
            self._fields[name] = value

    def _refuse_doctype(self, *_: object) -> None:
        raise UserError(
            f"{self._path}: a document type is declared at byte {self._parser.CurrentByteIndex}; "
            "MediaWiki dumps have none, and entities are not expanded here"
        )
