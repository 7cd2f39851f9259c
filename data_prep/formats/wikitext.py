"""Wikitext -> prose."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

import mwparserfromhell
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Node, Tag, Template, Text, Wikilink
from mwparserfromhell.wikicode import Wikicode

from data_prep.formats.apostrophes import without_emphasis
from data_prep.formats.aside import SET_ASIDE, literal, put_back, unescaped, verbatim
from data_prep.formats.dump import Site
from data_prep.formats.templates import rule_of
from data_prep.formats.tidy import BREAK, HEADING, ITEM, TAG_NAMES, hole, tidied
from data_prep.formats.unparsed import without_unparsed

_MEDIA_FILE = re.compile(r":.*\.(?:jpe?g|png|svg|gif|tiff?|webp|og[agv]|webm|mp[34]|wav|flac|pdf|djvu)\s*$", re.I)
_INTERLANGUAGE = re.compile(r"\s*(?:[a-z]{2,3}|simple)(?:-[a-z]+)*\s*:")
_SILENT_TAG = re.compile("table|style|script|references|gallery|rp|rtc?")
_HIDDEN = re.compile(r"style\s*=.*?(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.I | re.S)
_LINE_TAG = re.compile("br|hr|li|dd|dt|p|div|blockquote|center|poem|tr|h[1-6]")
_KNOWN_TAG = re.compile(TAG_NAMES)
_CODE_TAG = re.compile("code|tt|kbd|samp")
_NO_TEXT = re.compile(f"[\x00-\x08\x0b\x0c\x0e-\x1f{SET_ASIDE}]")  # characters that have a meaning of their own here
# In texts written without blanks two of these characters count as a word.
_WITHOUT_BLANKS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
_CASES: dict[str, Callable[[str], str]] = {
    "formatnum": str,
    "#formatdate": str,
    "#dateformat": str,
    "lc": str.lower,
    "uc": str.upper,
    "lcfirst": lambda text: text[:1].lower() + text[1:],
    "ucfirst": lambda text: text[:1].upper() + text[1:],
}
_CHOICES = ("#if", "#ifeq")
_TITLES = re.compile("(?:full|base|root|sub|subject|article)?pagename")
# Parser functions without a text of their own, and others, which are counted without their arguments.
_SILENT_FUNCTION = re.compile(
    "#tag|displaytitle|default(?:category)?sort(?:key)?|cle(?:f)?detri|clédetri|sortierung|sorteren|ordenar|ordina|"
    "domyślniesortuj|сортировка по умолчанию|сортуваннязаумовчанням|デフォルトソート|기본정렬"
)
_FUNCTION = re.compile(
    "#(?!invoke)[^|]*|ns|nse|int|plural|grammar|gender|fullurl|localurl|urlencode|anchorencode|padleft|padright"
)
_ENTITY = re.compile(r"&[a-zA-Z]{2,32};")  # that the parser does not know
_LONGEST_NAME = 80  # characters
_MOST_NAMES = 60_000  # that are told apart in a page; a hole can carry 65,534


@dataclass(frozen=True)
class Prose:
    """An article's ``text``, its number of ``words``, and by name the templates without a text that stood beside words."""

    text: str
    words: int = 0
    beside: Counter[str] = field(default_factory=Counter)


def plain_text(wikitext: str, site: Site | None = None, title: str = "", templates: str = "") -> Prose:
    """Wikitext -> prose with headings, paragraphs apart by a blank line.

    Tables, references, formulas, comments, files and categories are removed, and headings with nothing under them; the
    text of links stays, and that of templates of which the table knows it, or the one in the file ``templates``. Raises
    mwparserfromhell's ParserError.
    """
    wikitext = _NO_TEXT.sub("", wikitext)
    renderer = _Renderer(site or Site(), title, templates)
    code = mwparserfromhell.parse(without_unparsed(wikitext), skip_style_tags=True)
    text, beside = tidied(renderer.text(code), renderer.names)
    text = put_back(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # &#xD800; is no character
    return Prose(text, words_of(text), beside)


def words_of(text: str) -> int:
    """The number of words; in scripts without blanks two characters are one."""
    return len(text.split()) + len(_WITHOUT_BLANKS.findall(text)) // 2


def _character(entity: re.Match[str]) -> str:
    return literal(unescaped(entity[0]))


class _Renderer:
    """Renders the nodes of a page. ``names``: of what had no text, by the number that its hole carries."""

    def __init__(self, site: Site, title: str, templates: str):
        self._site, self._title, self._templates = site, title, templates
        self.names = [""]
        self._numbers: dict[str, int] = {}

    def text(self, code: Wikicode) -> str:
        return "".join(map(self._node, code.nodes))

    def _node(self, node: Node) -> str:
        """The text of one node; arguments and comments have none."""
        match node:
            case Text():
                return _ENTITY.sub(_character, node.value) if "&" in node.value else node.value
            case HTMLEntity():
                return literal(_NO_TEXT.sub("", node.normalize()))
            case Wikilink():
                return self._link(node)
            case Template():
                return self._template(node)
            case ExternalLink():
                return self._external_link(node)
            case Heading():
                return f"{BREAK}{BREAK}{HEADING}{node.level}{self.text(node.title).strip()}{BREAK}{BREAK}"
            case Tag():
                return self._tag(node)
        return ""

    def _link(self, link: Wikilink) -> str:
        """The label or the title; nothing for files, categories and links to the same article in another language."""
        title = str(link.title).strip()
        prefix, colon, _ = title.partition(":")
        if prefix and colon and (prefix.strip().lower() in self._site.media_names or _MEDIA_FILE.search(title)):
            return ""
        if link.text is None:
            if _INTERLANGUAGE.match(title):
                return ""
            shown = unquote(self.text(link.title)).strip().removeprefix(":").strip("/")
            return shown.replace("'", literal("'"))  # no markup in a title
        return self.text(link.text)

    def _external_link(self, link: ExternalLink) -> str:
        """The label; nothing for an address alone. "News: " is a word, though the parser takes it for an address."""
        if link.brackets:
            return self.text(link.title) if link.title else hole(0)
        return hole(0) if "//" in str(link.url) else self.text(link.url)

    def _template(self, template: Template) -> str:
        """The words that a template stands for, or a hole."""
        source = str(template.name).strip().replace("_", " ")
        function, colon, rest = source.partition(":")
        function = function.strip().lower()
        if _TITLES.fullmatch(function):
            return literal(self._title)
        if colon and function in self._site.template_names:
            source = rest.strip()

        values = {str(param.name).strip(): param.value for param in template.params}
        if colon and (function in _CASES or function in _CHOICES):
            first = self.text(template.name).partition(":")[2].strip()
            return self._choice(function, first, values) if function in _CHOICES else _CASES[function](first)
        if colon and _SILENT_FUNCTION.fullmatch(function):
            return hole(0)
        rule = rule_of(source, self._site.language, self._templates)
        text = rule.text(lambda key: self._argument(values, key), literal(source), literal) if rule else None
        if colon and _FUNCTION.fullmatch(function):
            source = f"{function}:"
        return self._hole(template, source) if text is None else text or hole(0)

    def _argument(self, values: dict[str, Wikicode], key: str) -> str:
        """The text of an argument by its name or number."""
        return self.text(values[key]).strip() if key in values else ""

    def _choice(self, function: str, tested: str, values: dict[str, Wikicode]) -> str:
        """What {{#if:tested|then|else}} and {{#ifeq:tested|other|then|else}} show."""
        if function == "#if":
            return self._argument(values, "1" if tested else "2")
        return self._argument(values, "2" if tested == self._argument(values, "1") else "3")

    def _hole(self, template: Template, name: str) -> str:
        """The mark of a template without a text. One of several lines is a box, not a word of a sentence."""
        if "\n" in str(template).strip():
            return ""
        name = name[:1].lower() + name[1:]
        if "{" in name or len(name) > _LONGEST_NAME:
            name = "(a computed name)"
        if len(self.names) > _MOST_NAMES and name not in self._numbers:
            name = "(other names)"
        number = self._numbers.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
        return hole(number)

    def _as_written(self, tag: Tag, inner: str) -> str:
        """A tag that is not of HTML, which MediaWiki shows as it is written."""
        source = str(tag)
        opening = source[: source.find(">") + 1]
        closing = "" if tag.self_closing or tag.implicit else f"</{tag.closing_tag}>"
        return literal(opening) + inner + literal(closing)

    def _tag(self, tag: Tag) -> str:
        """The text of a tag's content, on a line of its own if the tag makes one; nothing for tags that hold no prose."""
        name = str(tag.tag).strip().lower()
        if _SILENT_TAG.fullmatch(name) or any(_HIDDEN.search(str(attribute)) for attribute in tag.attributes):
            return ""
        inner = self.text(tag.contents) if tag.contents else ""
        if tag.wiki_markup:
            return ITEM + inner if name == "dd" else inner
        if not _KNOWN_TAG.fullmatch(name):
            return self._as_written(tag, inner)
        if _CODE_TAG.fullmatch(name):
            return verbatim(without_emphasis(inner))
        if not _LINE_TAG.fullmatch(name):
            return inner
        return f"{BREAK}{inner}{BREAK}" if inner else BREAK
