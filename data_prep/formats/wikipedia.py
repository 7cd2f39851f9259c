"""The ``wikipedia`` format: a MediaWiki export dump (XML) -> the plain text of its articles."""

from mwparserfromhell.parser import ParserError

from data_prep.formats.dump import RawPage, split_dump
from data_prep.formats.page import dropped_for, parse_page
from data_prep.formats.readers import Document, Format
from data_prep.formats.wikitext import plain_text


def clean_article(raw: RawPage, templates: str = "") -> Document:
    """The article's prose, or why the page was dropped; ``templates``: a table of their words, before the shipped one.

    The reasons: not_an_article, template, not_wikitext, redirect, over_2_mib, torn, broken_xml, empty or unparsable.
    """
    page = parse_page(raw)
    if reason := dropped_for(page):
        return Document(dropped=reason)
    try:
        prose = plain_text(page.wikitext, page.site, page.title, templates)
    except (ParserError, RecursionError, LookupError, ValueError):  # what parsers raise at odd input
        return Document(dropped="unparsable")
    return Document(prose.text, "" if prose.text else "empty", page.repairs, prose.words, prose.beside)


WIKIPEDIA = Format(split_dump, clean_article, guarded=True)
