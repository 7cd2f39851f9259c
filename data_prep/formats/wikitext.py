"""Wikitext -> prose."""

import re

import mwparserfromhell
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Node, Tag, Text, Wikilink
from mwparserfromhell.wikicode import Wikicode

from data_prep.formats.dump import MEDIA_NAMES

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


def plain_text(wikitext: str, media_names: frozenset[str] = frozenset(MEDIA_NAMES)) -> str:
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
