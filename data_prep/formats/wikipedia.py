"""The ``wikipedia`` format: a MediaWiki export dump (XML) -> the plain text of its articles."""

from mwparserfromhell.parser import ParserError

from data_prep.formats.dump import Page, split_dump
from data_prep.formats.readers import Document, Format
from data_prep.formats.wikitext import plain_text


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
