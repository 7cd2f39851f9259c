"""What is taken out of wikitext before it is parsed: comments, tables, and tags whose content is no wikitext.

Parsing is what costs time: about a third of an article is references, and tables take a third of what is left.
"""

import re

from data_prep.formats.aside import literal, unescaped, verbatim
from data_prep.formats.tidy import APART, KEPT, hole

# Tags whose content is not prose. Where one of the second group stood, the sentence has a hole.
_NOTHING = (
    "ref references gallery timeline imagemap syntaxhighlight source graph mapframe maplink templatestyles templatedata"
)
_NOTHING += " categorytree inputbox section indicator languages pagequality charinsert phonos includeonly"
_HOLES = "math chem ce score hiero"
_OPENING = re.compile(rf"<!--|<(nowiki|pre|{'|'.join((_NOTHING + ' ' + _HOLES).split())})(?![\w-])([^<>]*)>", re.I)
_TRANSCLUSION = re.compile(r"</?(?:no|only)include\s*/?>", re.I)  # says nothing about the page itself
_REST_OF_LINE = re.compile(r"[ \t]*\n")
_NOWIKI = re.compile(r"</?nowiki\s*>", re.I)
# A table in which there is no other, line by line. A line "|}}" is the end of a template.
_TABLE = re.compile(r"^[ \t:]*\{\|[^\n]*\n(?:(?![ \t:]*\{\||[ \t]*\|\}(?!\}))[^\n]*\n)*+[ \t]*\|\}(?!\})", re.M)
_DEEPEST = 8  # tables within tables


def without_unparsed(wikitext: str) -> str:
    """The wikitext without comments, references, formulas and the like; the text of nowiki and pre is set aside in it.

    As in MediaWiki, a comment without an end takes the rest of the page.
    """
    kept, done = [], 0
    unclosed: set[str] = set()  # names that have no closing tag from here on
    opening = _OPENING.search(wikitext)
    while opening:
        name = (opening[1] or "").lower()
        inner, end = _end(wikitext, opening, name, unclosed)
        kept += [wikitext[done : opening.start()], _shown(name, inner)]
        done = end
        opening = _OPENING.search(wikitext, done)
    return _without_tables(_TRANSCLUSION.sub("", "".join([*kept, wikitext[done:]])))


def _without_tables(wikitext: str) -> str:
    """The wikitext without tables that are closed, the innermost first."""
    for _ in range(_DEEPEST):
        wikitext, count = _TABLE.subn("", wikitext)
        if not count:
            break
    return wikitext


def _end(wikitext: str, opening: re.Match[str], name: str, unclosed: set[str]) -> tuple[str, int]:
    """What is in a tag, and where it ends. Of one without an end only the tag goes; such an end is looked for once."""
    if not name:
        end = wikitext.find("-->", opening.end())
        return "", _line_end(wikitext, opening.start(), end + 3) if end >= 0 else len(wikitext)
    if opening[2].endswith("/") or name in unclosed:
        return "", opening.end()
    closing = re.compile(rf"</{name}\s*>", re.I).search(wikitext, opening.end())
    if closing is None:
        unclosed.add(name)
        return "", opening.end()
    return wikitext[opening.end() : closing.start()], closing.end()


def _line_end(wikitext: str, begin: int, end: int) -> int:
    """Where a comment ends that reaches from ``begin`` to ``end``: with its line, if nothing else is in it."""
    while begin and wikitext[begin - 1] in " \t":
        begin -= 1
    alone = begin and wikitext[begin - 1] == "\n" and _REST_OF_LINE.match(wikitext, end)
    return alone.end() if alone else end


def _shown(name: str, inner: str) -> str:
    """What a reader sees of a tag's content."""
    if name == "nowiki":
        return literal(unescaped(inner)) or APART
    if name == "pre":
        text = unescaped(_NOWIKI.sub("", inner)).strip("\n")
        lines = verbatim(text).split("\n") if text.strip() else []
        return "\n" + "\n".join(KEPT + line for line in lines) + "\n"
    return hole(0) if name in _HOLES.split() else ""
