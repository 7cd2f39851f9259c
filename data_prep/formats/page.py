"""A page of a dump: its XML parsed and, where a bad place is the only fault, mended; and whether it is an article."""

import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from xml.parsers import expat

from data_prep.formats.dump import LONGEST_PAGE, RawPage, Site
from data_prep.formats.wiki_names import REDIRECT_WORDS

_FORBIDDEN = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")  # in XML 1.0
_REFERENCE = re.compile("&#(?:x([0-9a-fA-F]{1,99})|([0-9]{1,99}));")
# The wanted elements and their parents; the <content> of a revision is of other slots.
_PARENTS = {"title": "page", "ns": "page", "model": "revision", "format": "revision", "text": "revision"}
_NO_WIKITEXT = re.compile("json|css|javascript|lua")
# MediaWiki takes the word directly after the number sign, and a colon if there is one.
_REDIRECT = re.compile(r"\s*+[#＃]([^\s\[\]{}|<>#*:：]{2,40}+)\s*+[:：]?\s*+\[\[[^\[\]\n]+\]\]")
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_BESIDE_REDIRECT = re.compile(r"(?:\s|<!--.*?-->|\[\[[^\[\]|]+:[^\[\]]*\]\]|__\w+?__)*+", re.S)
_LONGEST_BESIDE = 5000  # characters


@dataclass
class Page:
    """A page as its XML gives it, as far as that goes. ``repairs`` counts what was mended in it.

    ``fault``: "torn" or "broken_xml"; ``too_long``: its wikitext was above the 2 MiB of UTF-8 that MediaWiki allows.
    Without a <ns> the ``namespace`` is empty, without a <model> so is the ``model``.
    """

    site: Site
    title: str = ""
    namespace: str = ""
    redirect: bool = False
    model: str = ""
    format: str = ""
    wikitext: str = ""
    too_long: bool = False
    fault: str = ""
    repairs: Counter[str] = field(default_factory=Counter)


def parse_page(raw: RawPage) -> Page:
    """Parse a page; if its XML is broken once more, without what is forbidden in XML. Never raises."""
    fault, repairs = raw.fault, Counter[str]()
    fields, sound = _Reader().read(raw.data, raw.encoding)
    if not (sound or fault):
        mended = _mend(raw.data, raw.encoding, repairs).encode()
        fields, sound = _Reader().read(mended, "utf-8")
        fault = "" if sound else "broken_xml"

    wikitext = "" if fault else fields.get("text", "")
    too_long = fault == "too_long" or (
        len(wikitext) * 4 > LONGEST_PAGE and len(wikitext.encode()) > LONGEST_PAGE  # 4: bytes at most
    )
    return Page(
        site=raw.site,
        title=fields.get("title", "").strip(),
        namespace=fields.get("ns", "").strip(),
        redirect="redirect" in fields,
        model=fields.get("model", "").strip(),
        format=fields.get("format", "").strip(),
        wikitext=wikitext,
        too_long=too_long,
        fault="" if too_long else fault,
        repairs=repairs,
    )


def dropped_for(page: Page) -> str:
    """Why a page is no article of wikitext that can be read; empty if it is one."""
    if (namespace := _namespace(page)) != 0:
        return "template" if namespace == 10 else "not_an_article"
    if page.model.lower() not in ("", "wikitext") or (not page.model and _NO_WIKITEXT.search(page.format.lower())):
        return "not_wikitext"
    if page.redirect or _redirects(page.wikitext):
        return "redirect"
    return "over_2_mib" if page.too_long else page.fault


def _namespace(page: Page) -> int:
    """The number that the dump gives, or 0 or 1 by the title's prefix."""
    if re.fullmatch(r"[+-]?\d{1,6}", page.namespace):
        return int(page.namespace)
    prefix, colon, _ = page.title.replace("_", " ").partition(":")
    return int(bool(colon) and " ".join(prefix.lower().split()) in page.site.prefixes)


def _redirects(wikitext: str) -> bool:
    """Whether a text is a redirect: by a known word, or by any word if next to nothing follows the link."""
    found = _REDIRECT.match(wikitext)
    if not found:
        return False
    if found[1].casefold() in REDIRECT_WORDS:
        return True
    rest = wikitext[found.end() :]
    if len(rest) > _LONGEST_BESIDE:
        return False
    while _TEMPLATE.search(rest):
        rest = _TEMPLATE.sub("", rest)
    return _BESIDE_REDIRECT.fullmatch(rest) is not None


def _mend(data: bytes, encoding: str, repairs: Counter[str]) -> str:
    """The text without what XML forbids; invalid bytes become U+FFFD."""
    text = data.decode(encoding, "replace")
    if invalid := text.count("\ufffd") - data.decode(encoding, "ignore").count("\ufffd"):
        repairs["invalid_utf8"] = invalid
    text, characters = _FORBIDDEN.subn("", text)
    kept = _REFERENCE.sub(_allowed, text)
    if forbidden := characters + text.count("&#") - kept.count("&#"):
        repairs["forbidden_character"] = forbidden
    return kept


def _allowed(reference: re.Match[str]) -> str:
    """A character reference as it is; nothing if it refers to a forbidden character."""
    number = int(reference[1], 16) if reference[1] else int(reference[2])
    return "" if number > sys.maxunicode or _FORBIDDEN.match(chr(number)) else reference[0]


class _Reader:
    """An expat parser of one page, and the text of its wanted elements so far."""

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}
        self._path: list[str] = []
        self._texts: list[str] = []
        self._parser = expat.ParserCreate("utf-8")
        self._parser.buffer_text = True

    def read(self, data: bytes, encoding: str) -> tuple[dict[str, str], bool]:
        """The text by element, as far as the XML can be read, and whether it is sound."""
        parser, sound = self._parser, True
        parser.StartElementHandler, parser.EndElementHandler = self._start_element, self._end_element
        try:
            parser.Parse(data if encoding == "utf-8" else data.decode(encoding), True)
        except (expat.ExpatError, UnicodeDecodeError):
            sound = False
        # Else the parser would hold itself, and stay in memory until garbage is collected.
        parser.StartElementHandler = parser.EndElementHandler = parser.CharacterDataHandler = None
        return self._fields, sound

    def _start_element(self, name: str, _: object) -> None:
        parent = self._path[-1] if self._path else ""
        self._path.append(name)
        if _PARENTS.get(name, name) == parent:
            self._parser.CharacterDataHandler = self._texts.append
        elif name == "redirect" and parent == "page":
            self._fields[name] = ""

    def _end_element(self, name: str) -> None:
        self._path.pop()
        if name in _PARENTS:
            self._parser.CharacterDataHandler = None
            if self._texts:
                self._fields[name] = "".join(self._texts)
                self._texts.clear()
