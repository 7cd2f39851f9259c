"""The ``books`` format: one file is one book, with or without the header and the licence of Project Gutenberg."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep.formats.readers import BLANK, LONGEST_DOCUMENT, Format, Pieces, clean_text, cut_point, only_text, unpack

_EDGE = 1 << 16  # bytes searched for a header, or for a licence without a proper mark
_EOL = rb"(?:\r\n?|\n)"
_PARAGRAPH = rb"[^\r\n]*+(?:" + _EOL + rb"[ \t]*+[^\r\n \t][^\r\n]*+)*+"
_WHOSE = rb" ?OF TH(?:E|IS)(?: COPYRIGHTED)? PROJECT GUTENBERG"
# The mark ends with asterisks, up to two lines later. A paragraph on who made the file often follows.
_START = rb"\*\*\* ?START" + _WHOSE + rb"[^*\r\n]*(?:(?:" + _EOL + rb"[^*\r\n]+){0,2}\*\*\*)?"
_MADE_BY = (
    rb"(?:\s*(?:Produced by|E-?text prepared by|Transcribed (?:from|by)|"
    rb"This e-?(?:text|book) was (?:produced|prepared|transcribed) by)\b" + _PARAGRAPH + rb")?"
)
_FIRST_HEADER = re.compile(  # before 2002 a header ended with its small print; later this may end the licence
    rb"(?:" + _START + rb"|\*END ?\*? ?THE SMALL PRINT)[^\r\n]*" + _MADE_BY, re.IGNORECASE
)
_NEXT_HEADER = re.compile(_START + rb"[^\r\n]*" + _MADE_BY, re.IGNORECASE)
_LICENCE = re.compile(rb"\*\*\* ?END" + _WHOSE)
_LAST_LINE = re.compile(rb"(?<=[\r\n])[ \t]*(?:End of|Ende dieses|Fin de)(?: the| this)? Proje[ck]t Gutenberg", re.I)
_LAST_PARAGRAPH = re.compile(_LAST_LINE.pattern + _PARAGRAPH + rb"\s*\Z", re.I)


class _Window:
    """The part of a text that was read and not yet returned. ``start``: the offset of its first byte."""

    def __init__(self, blocks: Iterator[bytes]):
        self._blocks = blocks
        self.text, self.start = b"", 0

    def fill(self, size: int) -> bytes:
        """Read on until there are ``size`` bytes of text, fewer only at its end. Returns them all."""
        parts, held = [self.text], len(self.text)
        while held < size and (block := next(self._blocks, b"")):
            parts.append(block)
            held += len(block)
        self.text = b"".join(parts)
        return self.text

    def drop(self, size: int) -> None:
        """Forget the first ``size`` bytes."""
        self.text, self.start = self.text[size:], self.start + size


def split_book(path: Path, begin: int = 0) -> Iterator[tuple[int, tuple[bytes, Mapping[str, int]]]]:
    """Yield (piece, (bytes, repairs)) for the book, in parts of at most 4 MiB; raw documents as of ``split_text``.

    Another header may follow a licence: then the file is several books. Raises UserError if it is not text.
    """
    pieces = Pieces(unpack(path))
    blocks = only_text(path, pieces, json=False)
    window = _Window(blocks)
    header = _header_end(_FIRST_HEADER, window.fill(_EDGE))
    while True:
        window.drop(header)
        yield from _split_to_licence(window, pieces, {"gutenberg_header": 1} if header else {})
        if not (header := _header_end(_NEXT_HEADER, window.fill(_EDGE))):
            break
    for _ in blocks:  # so that a file that is cut short is rejected even if only licence is missing
        pass


def _split_to_licence(
    window: _Window, pieces: Pieces, repairs: Mapping[str, int]
) -> Iterator[tuple[int, tuple[bytes, Mapping[str, int]]]]:
    """Yield the parts of one book, the first of them with ``repairs``, and drop it from the window with its licence."""
    whole = False
    while not whole:
        text = window.fill(LONGEST_DOCUMENT + _EDGE)
        end, following = _book_end(text)
        whole = end <= LONGEST_DOCUMENT
        if not whole:
            end = following = cut_point(text, 0)
        if raw := text[:end].lstrip(BLANK):
            found = {"cut_at_4_mib": not whole, "gutenberg_licence": following > end}
            repairs = {**repairs, **{name: 1 for name, true in found.items() if true}}
            yield pieces.piece_of(window.start + end - len(raw)), (raw.rstrip(BLANK), repairs)
            repairs = {}
        window.drop(following)


def _header_end(header: re.Pattern[bytes], text: bytes) -> int:
    """The offset at which the text's first book begins, or 0. Some headers have two marks."""
    licence = _LICENCE.search(text, 0, _EDGE)
    marks = [mark.end() for mark in header.finditer(text, 0, licence.start() if licence else _EDGE)]
    return marks[-1] if marks else 0


def _book_end(text: bytes) -> tuple[int, int]:
    """The ends of the book with which ``text`` begins, and of the mark of its licence; its length if it has none.

    The mark of the oldest books is an ordinary line, which counts only near the file's end.
    """
    if licence := _LICENCE.search(text):
        last = _LAST_PARAGRAPH.search(text, max(0, licence.start() - 1000), licence.start())
        return (last or licence).start(), licence.end()
    # If more may follow, the text is so long that a line found here is beyond LONGEST_DOCUMENT, and is cut off.
    if last := _LAST_LINE.search(text, max(0, len(text) - _EDGE + 1)):
        return last.start(), len(text)
    return len(text), len(text)


BOOKS = Format(split_book, clean_text)
