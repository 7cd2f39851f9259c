"""The part of a template's page that stands where the template is used, as MediaWiki's preprocessor cuts it out."""

import re

_ONLY = re.compile(r"<onlyinclude>(.*?)</onlyinclude>", re.DOTALL)
_MARKS = re.compile(
    r"(?P<comment><!--.*?(?:-->|\Z))"
    r"|<(?P<opaque>nowiki|pre|math|syntaxhighlight|source|templatedata)(?![\w-])[^<>]*(?:/>|>.*?</(?P=opaque)\s*>)"
    r"|(?P<left_out><noinclude(?:\s[^<>]*)?(?:/>|>.*?(?:</noinclude\s*>|\Z)))"
    r"|(?P<tag></?(?:noinclude|includeonly|onlyinclude)(?:\s[^<>]*)?>)",
    re.DOTALL | re.IGNORECASE,
)
_LINE_BEGINS = re.compile(r"(?:\A|\n)[ \t]*\Z")
_LINE_ENDS = re.compile(r"[ \t]*\n")
# How templates are written that can also be substituted: it has no effect on what a reader sees.
_SUBSTITUTION = re.compile(r"\{\{\{\|\s*safesubst:\s*\}\}\}|(?<=\{\{)\s*safesubst:", re.IGNORECASE)


def transcluded(wikitext: str) -> str:
    """The text without what is for the template's own page, without comments, and without the tags that say so."""
    if only := _ONLY.findall(wikitext):
        wikitext = "".join(only)
    kept, done = "", 0
    for mark in _MARKS.finditer(wikitext):
        if mark["opaque"]:
            continue
        kept += wikitext[done : mark.start()]
        done = mark.end()
        if mark["comment"] and (before := _LINE_BEGINS.search(kept)) and (after := _LINE_ENDS.match(wikitext, done)):
            kept, done = kept[: before.end()].rstrip(" \t"), after.end()  # a line of comments alone is none
    return _SUBSTITUTION.sub("", kept + wikitext[done:])
