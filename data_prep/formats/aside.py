"""Text that is no markup, whatever it looks like: its special characters are set aside until the clean-up is done.

They wait as Unicode noncharacters, which stand for nothing in any text.
"""

import html
import re

_MARKUP = "'[]{}|<>_*#=~&:;!-"  # characters with which wikitext says something
_TIDIED = '(),."/\\ \t\xa0\u3000（'  # and those that the clean-up moves
_FIRST = 0xFDD0  # of 32 noncharacters

_AWAY = {ord(character): _FIRST + number for number, character in enumerate(_MARKUP + _TIDIED)}
_BACK = {place: character for character, place in _AWAY.items()}
_LITERAL = {ord(character): _AWAY[ord(character)] for character in _MARKUP}
SET_ASIDE = f"{chr(_FIRST)}-{chr(_FIRST + 31)}"  # for a class of characters in a pattern
_ANY = re.compile(f"[{SET_ASIDE}]")


def literal(text: str) -> str:
    """The text with the characters of markup set aside; blanks and punctuation may still be tidied."""
    return text.translate(_LITERAL)


def verbatim(text: str) -> str:
    """The text with everything set aside that the clean-up could change, but for line ends."""
    return text.translate(_AWAY)


def unescaped(text: str) -> str:
    """The text with its entities as characters."""
    return html.unescape(text) if "&" in text else text


def put_back(text: str) -> str:
    """The text with what was set aside as it was."""
    return text.translate(_BACK) if _ANY.search(text) else text
