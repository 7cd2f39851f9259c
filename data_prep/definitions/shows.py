"""The nodes of a definition -> what it shows, case by case. Whatever is not known for sure is unsayable."""

import math
import re
from collections.abc import Callable
from itertools import product

import mwparserfromhell
from mwparserfromhell.nodes import Argument, Comment, ExternalLink, HTMLEntity, Node, Tag, Template, Text, Wikilink
from mwparserfromhell.nodes.extras import Parameter
from mwparserfromhell.parser import ParserError
from mwparserfromhell.wikicode import Wikicode

from data_prep.definitions.cases import (
    BLANK,
    MOST_CASES,
    Case,
    Cases,
    Unsayable,
    agree,
    arguments_in,
    as_read,
    chosen,
    is_sayable_of_any,
    joined,
    keys_of,
    literal,
    shown,
    stripped,
    within_markup,
    without_arguments,
)
from data_prep.formats.aside import put_back, unescaped
from data_prep.formats.dump import Site
from data_prep.formats.templates import Rule
from data_prep.formats.tidy import APART, HOLE, KEPT
from data_prep.formats.unparsed import without_unparsed
from data_prep.formats.wikitext import words_of

_NOTICE = 4  # words, in a sentence of its own; no more than so many ...
_MOST_CHOICES = 1024  # of cases for the arguments of a template that is used
_LONGEST_WORDS = 12  # ... and this many at all may stand in a definition

_INLINE_NAMES = (
    "abbr b bdi bdo big cite code data del dfn em font i ins kbd mark nobr s samp small span strike strong sub"
)
_INLINE = frozenset((_INLINE_NAMES + " sup time tt u var").split())
_BLOCKS = re.compile(
    r"^[ \t]*\{\||\{\{\{!\}\}|<(?:table|div|br|p|[uod]l|li|center|blockquote|gallery|hr|poem|pre)(?![\w-])", re.M | re.I
)
_MODULE = re.compile(r"\{\{\s*#invoke:", re.I)
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)
_MARK = re.compile(r"\s*\[.*\]\s*", re.DOTALL)  # such as [citation needed]
_NO_PRINT = frozenset(("noprint", "reference", "noexcerpt"))
_MEDIA = re.compile(r"\.(?:jpe?g|png|svg|gif|tiff?|webp|og[agv]|webm|mp[34]|wav|flac|pdf|djvu)\s*\Z", re.I)
_INTERLANGUAGE = re.compile(r"(?:[a-z]{2,3}|simple)(?:-[a-z]+)*\s*:")
_MARKUP = frozenset(
    "<>[]{}|_"
)  # what of these is left in a text is markup that could not be read, or would be read again
_SENTENCE_ENDS = tuple(".!?。！？।؟۔")
_SILENT_FUNCTIONS = frozenset(("defaultsort", "displaytitle", "#tag:ref"))
_ENTITY = re.compile(r"&[a-zA-Z]{2,32};")  # that the parser does not know
_LINE_ENDS = re.compile(r"\A[ \t]*\n[ \t\n]*|[ \t]*\n[ \t\n]*\Z")
_FUNCTION = re.compile(r"\s*(#?[^\s:{}|]+)\s*:\s*(.*)", re.DOTALL)


class Definition:
    """What one definition shows. ``known(name)``: the rule for a template in it, if there is one."""

    def __init__(self, site: Site, known: Callable[[str], Rule | None]):
        self._site, self._known = site, known
        self._reason: Unsayable | None = None  # why a branch has no case
        spaces = site.namespaces
        self._categories = {"category", spaces.get(14, "category").lower()}

    def cases(self, wikitext: str) -> Cases:
        """The cases of a transcluded text. Raises Unsayable."""
        if _MODULE.search(wikitext):
            raise Unsayable("a call of a module")
        if _BLOCKS.search(wikitext):
            raise Unsayable("a table, a block or several lines")
        text = without_unparsed(wikitext)
        if APART + "'" in text or "'" + APART in text:
            raise Unsayable("apostrophes kept apart")
        try:
            code = mwparserfromhell.parse(text.replace(APART, ""), skip_style_tags=True)
        except ParserError:
            raise Unsayable("wikitext that cannot be parsed") from None
        found = [Case(_LINE_ENDS.sub("", case.text), case.given) for case in self._of(code)]
        for case in found:
            if "\n" in case.text:
                raise Unsayable("a table, a block or several lines")
            _check(as_read(case.text))
        if not found:
            raise self._reason or Unsayable("an error message")
        return found

    def _of(self, code: Wikicode) -> Cases:
        return joined(map(self._node, code.nodes))

    def _perhaps(self, code: Wikicode) -> Cases:
        """What one branch of a choice shows; no case if that is unsayable, so that nothing is said where it would stand."""
        try:
            return self._of(code)
        except Unsayable as reason:
            self._reason = self._reason or reason
            return []

    def _node(self, node: Node) -> Cases:
        match node:
            case Text():
                return literal(_plain(_ENTITY.sub(lambda entity: unescaped(entity[0]), node.value)))
            case HTMLEntity():
                character = node.normalize()
                return literal(BLANK if character in (" ", "\t") else _plain(character))
            case Comment():
                return literal("")
            case Argument():
                return self._argument(node)
            case Template():
                return self._template(node)
            case Wikilink():
                return self._link(node)
            case ExternalLink():
                if not node.brackets or not node.title:
                    raise Unsayable("a link whose label is not known")
                return within_markup(self._of(node.title))
            case Tag():
                return self._tag(node)
        raise Unsayable("a table, a block or several lines")

    def _argument(self, node: Argument) -> Cases:
        """An argument, or its default where it has no text."""
        key = str(node.name).strip()
        if not key or key in ("0", "-1") or any(sign in key for sign in "{}<>[]=,~+\t\n"):
            raise Unsayable("a computed argument")
        cases = [Case(shown(key), {key: True})]
        if node.default is None:
            return cases  # MediaWiki shows {{{key}}}, a mistake of the page
        return cases + joined(([Case("", {key: False})], self._perhaps(node.default)))

    def _template(self, node: Template) -> Cases:
        """A function, or a template that is known."""
        found = _FUNCTION.match(str(node.name.nodes[0])) if node.name.nodes else None
        function = found[1].lower() if found else ""
        if function == "#if":
            _check_test(node)
            tested = joined([literal(found[2]), *map(self._node, node.name.nodes[1:])])  # type: ignore[index]
            return chosen(tested, self._branch(node, 0), self._branch(node, 1))
        name = str(node.name).strip()
        if name.lower() in _SILENT_FUNCTIONS or function in _SILENT_FUNCTIONS:
            return literal("")
        if function == "formatnum":
            return stripped(joined([literal(found[2]), *map(self._node, node.name.nodes[1:])]))  # type: ignore[index]
        if function in self._site.template_names:
            name = name.partition(":")[2].strip()
        elif name.startswith(("#", ":", "/")) or "{" in name:
            raise Unsayable("a function other than #if")
        rule = self._known(name)
        if rule is None:
            upper = name.isupper() and not node.params
            raise Unsayable("a function other than #if" if found or upper else "another template without a line")
        return self._used(node, rule, name)

    def _branch(self, node: Template, number: int) -> Cases:
        """What a branch of #if shows: its parameters are told apart by place alone."""
        if number >= len(node.params):
            return literal("")
        return stripped(self._perhaps(_whole(node.params[number])))

    def _used(self, node: Template, rule: Rule, name: str) -> Cases:
        """What a template shows with the arguments that are given to it here."""
        keys, numbered = keys_of(rule)
        values = {str(param.name).strip(): param.value for param in node.params}
        wanted = [key for key in values if key in keys or (numbered and key.isdecimal())]
        choices = [stripped(self._of(values[key])) for key in wanted]
        if math.prod(map(len, choices)) > _MOST_CHOICES:
            raise Unsayable("too many cases")
        found: Cases = []
        for combination in product(*choices):
            given: dict[str, bool] = {}
            for case in combination:
                if not agree(given, case.given):
                    break
                given |= case.given
            else:
                texts = dict(zip(wanted, (as_read(case.text) for case in combination), strict=True))
                if any(arguments_in(text) and not is_sayable_of_any(rule, key) for key, text in texts.items()):
                    raise Unsayable("another template that depends on an argument's words")
                text = rule.text(lambda key, texts=texts: texts.get(key, ""), name)  # type: ignore[misc]
                if text is not None:
                    found.append(Case(text, given))
            if len(found) > MOST_CASES:
                raise Unsayable("too many cases")
        return found

    def _link(self, link: Wikilink) -> Cases:
        """The label or the title; nothing for a category."""
        title = str(link.title).strip()
        prefix, colon, _ = title.partition(":")
        prefix = prefix.strip().lower()
        if colon and (prefix in self._site.media_names or _MEDIA.search(title)):
            if prefix in self._categories:
                return literal("")
            raise Unsayable("an image or another file")
        if link.text is not None:
            if not str(link.text).strip():
                raise Unsayable("a link whose label is not known")
            return within_markup(self._of(link.text))
        shown_title = title.removeprefix(":")
        if title.startswith(("/", "../")) or (":" in shown_title and "{" in title) or _INTERLANGUAGE.match(title):
            raise Unsayable("a link whose label is not known")
        return [Case(case.text.removeprefix(":"), case.given) for case in stripped(self._of(link.title))]

    def _tag(self, tag: Tag) -> Cases:
        """The text of a tag that only changes its looks."""
        name = str(tag.tag).strip().lower()
        if tag.wiki_markup or name not in _INLINE:
            raise Unsayable("a table, a block or several lines")
        words = {str(each.name).strip().lower(): str(each.value or "").lower() for each in tag.attributes}
        style, classes = words.get("style", ""), words.get("class", "").split()
        if any("{" in word for word in (*words, *classes)) or ("{" in style and re.search("display|visib", style)):
            raise Unsayable("a computed attribute")
        if _HIDDEN.search(style) or _NO_PRINT & {*classes} or words.get("id") == "coordinates":
            return literal("")  # coordinates with this id stand beside the title, by every wiki's style
        if "error" in classes:
            return []
        cases = self._of(tag.contents) if tag.contents else literal("")
        if name == "sup" and cases and all(_MARK.fullmatch(as_read(case.text)) for case in cases):
            return literal("")
        return within_markup(cases)


def _whole(param: Parameter) -> Wikicode:
    """All of a parameter; the parser takes the first = in it for the end of a name."""
    if not param.showkey:
        return param.value
    return mwparserfromhell.parse(str(param), skip_style_tags=True)


def _check_test(choice: Template) -> None:
    """Raise Unsayable unless #if tests arguments and text alone: what else shows nothing may have text for MediaWiki."""
    for node in choice.name.ifilter(recursive=True):
        if not isinstance(node, Text | Comment | Argument | Template):
            raise Unsayable("a test of more than arguments")
        if isinstance(node, Template) and not str(node.name).strip().lower().startswith("#if:"):
            raise Unsayable("a test of another template")


def _plain(text: str) -> str:
    """A text of the definition as it will be read, without what was set aside."""
    text = put_back(text)
    if HOLE in text or KEPT in text:
        raise Unsayable("a formula or preformatted text")
    return text


def _check(text: str) -> None:
    """Raise Unsayable for a text that a table cannot say, or that is no part of a sentence."""
    own = without_arguments(text)
    if _MARKUP & {*own} or "//" in own:
        raise Unsayable("a character that has a meaning in the table")
    if own.lstrip().startswith(("*", "#", ":", ";")):
        raise Unsayable("a table, a block or several lines")
    words = words_of(own)
    if words > _LONGEST_WORDS or (words >= _NOTICE and own.rstrip(" '").endswith(_SENTENCE_ENDS)):
        raise Unsayable("a sentence or more")
