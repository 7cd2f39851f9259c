"""The ``books`` format: one file is one book, with or without the header and the licence of Project Gutenberg."""

import re
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

from data_prep.formats.edition import without_additions
from data_prep.formats.readers import (
    BLANK,
    LONGEST_DOCUMENT,
    Document,
    Format,
    Pieces,
    clean_text,
    cut_point,
    only_text,
    unpack,
)

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
_SMALL_PRINT_END = rb"(?:\*END[* ]*(?:THE )?SMALL PRINT|\*SMALL PRINT![^*\r\n]*\*END\*)[^\r\n]*"  # before 2003
_FIRST_HEADER = re.compile(  # before 2002 a header ended with its small print; then or later this may end the licence
    rb"(?:" + _START + rb"[^\r\n]*|" + _SMALL_PRINT_END + rb")" + _MADE_BY, re.IGNORECASE
)
_NEXT_HEADER = re.compile(_START + rb"[^\r\n]*" + _MADE_BY, re.IGNORECASE)
_LICENCE = re.compile(rb"\*\*\* ?END" + _WHOSE)
_LAST_LINE = re.compile(rb"(?<=[\r\n])[ \t]*(?:End of|Ende dieses|Fin de)(?: the| this)? Proje[ck]t Gutenberg", re.I)
_LAST_PARAGRAPH = re.compile(_LAST_LINE.pattern + _PARAGRAPH + rb"\s*\Z", re.I)

_LINE = rb"(?<![^\r\n])[ \t]*+"  # its beginning
_LINE_ENDS = rb"[ \t]*+(?![^\r\n])"
_END = _LINE + rb"\*\*\* ?END ?\*\*\*" + _LINE_ENDS
_SMALL_PRINT = re.compile(  # from its first line, or a sentence in the first of its paragraphs
    _LINE
    + rb"(?:\*++[ \t]*+START[* ]*+(?:THE )?SMALL PRINT|Why is this .?Small Print!?.? statement here|"
    + rb"\**+ ?The Legal Small Print ?\**+"
    + _LINE_ENDS
    + rb")",
    re.IGNORECASE,
)
_ENDS_SMALL_PRINT = re.compile(_SMALL_PRINT_END, re.IGNORECASE)
_AFTER_BOOK = re.compile(  # lines that stand between a book and small print that follows it
    _LAST_LINE.pattern + rb"|Information about Project Gutenberg(?: \(one page\))?",
    re.IGNORECASE,
)
_END_MARK = re.compile(_END)
_BEFORE_MARK = (
    b" \t*\xef\xbb\xbf"  # what may stand before a mark on its line; a sentence that quotes one has words there
)
_LONGEST_HEADER = 1 << 14  # bytes before the small print in it
_LONGEST_SMALL_PRINT = 1 << 15


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

    After a licence with another header, or after small print, the file's next book follows. Raises UserError if the file
    is not text.
    """
    pieces = Pieces(unpack(path))
    blocks = only_text(path, pieces, json=False)
    window = _Window(blocks)
    after_licence = False
    while text := window.fill(2 * _EDGE):
        header = _header_end(_NEXT_HEADER if after_licence else _FIRST_HEADER, text)
        if after_licence and not header:
            break
        window.drop(header)
        after_licence = yield from _split_to_licence(window, pieces, {"gutenberg_header": 1} if header else {})
    for _ in blocks:  # so that a file that is cut short is rejected even if only licence is missing
        pass


def _split_to_licence(
    window: _Window, pieces: Pieces, repairs: Mapping[str, int]
) -> Generator[tuple[int, tuple[bytes, Mapping[str, int]]], None, bool]:
    """Yield the parts of one book, the first of them with ``repairs``, and drop it from the window with its licence.

    Returns whether the licence goes on, so that only another header ends it.
    """
    whole = False
    while not whole:
        text = window.fill(LONGEST_DOCUMENT + _EDGE)
        end, following, goes_on = _book_end(text)
        whole = end <= LONGEST_DOCUMENT
        if not whole:
            end = following = cut_point(text, 0)
        if raw := text[:end].lstrip(BLANK):
            found = {"cut_at_4_mib": not whole, "gutenberg_licence": following > end}
            repairs = {**repairs, **{name: 1 for name, true in found.items() if true}}
            yield pieces.piece_of(window.start + end - len(raw)), (raw.rstrip(BLANK), repairs)
            repairs = {}
        window.drop(following)
    return goes_on


def _header_end(header: re.Pattern[bytes], text: bytes) -> int:
    """The offset at which the text's first book begins, or 0. Some headers have two marks."""
    licence = next(_marks(_LICENCE, text, 0, _EDGE), None)
    found = _marks(header, text, 0, licence.start() if licence else _EDGE)
    marks = [mark.end() for mark in found if not _follows_book(text, mark)]
    return marks[-1] if marks else 0


def _marks(pattern: re.Pattern[bytes], text: bytes, begin: int, end: int) -> Iterator[re.Match[bytes]]:
    """What the pattern finds between these offsets at the beginning of a line."""
    for mark in pattern.finditer(text, begin, end):
        before = text[max(0, mark.start() - 80) : mark.start()].replace(b"\r", b"\n")
        if not before[before.rfind(b"\n") + 1 :].strip(_BEFORE_MARK):
            yield mark


def _follows_book(text: bytes, mark: re.Match[bytes]) -> bool:
    """Whether the mark ends small print that stands after a book, not before it."""
    if not _ENDS_SMALL_PRINT.match(mark[0]):
        return False
    start = _SMALL_PRINT.search(text, 0, mark.start())
    begin = start.start() if start else mark.start()
    longest = _LONGEST_HEADER if start else _LONGEST_SMALL_PRINT
    ended = _LAST_LINE.search(text, 0, begin) or _END_MARK.search(text, 0, begin)
    return bool(ended) or begin > longest or not text[mark.end() :].strip(BLANK)


def _book_end(text: bytes) -> tuple[int, int, bool]:
    """The ends of the book with which ``text`` begins, and of the mark of its licence; its length if it has none.

    Last, whether the licence goes on after its mark. The mark of the oldest books is an ordinary line, which counts only
    near the file's end, or before small print.
    """
    licence = next(_marks(_LICENCE, text, 0, len(text)), None)
    if small := _small_print(text, licence.start() if licence else len(text)):
        return *small, False
    if licence:
        last = _LAST_PARAGRAPH.search(text, max(0, licence.start() - 1000), licence.start())
        return (last or licence).start(), licence.end(), True
    # If more may follow, the text is so long that a line found here is beyond LONGEST_DOCUMENT, and is cut off.
    if last := _LAST_LINE.search(text, max(0, len(text) - _EDGE + 1)):
        return last.start(), len(text), True
    return len(text), len(text), True


def _small_print(text: bytes, limit: int) -> tuple[int, int] | None:
    """The ends of a book whose small print stands after it, before ``limit``, and of the small print; None without it."""
    last = next(_marks(_ENDS_SMALL_PRINT, text, 0, limit), None)
    if last is None:
        return None
    earliest = max(0, last.start() - _LONGEST_SMALL_PRINT)
    first = _SMALL_PRINT.search(text, earliest, last.start())
    end = first.start() if first else last.start()
    if line := _AFTER_BOOK.search(text, max(0, end - _LONGEST_HEADER), end):
        end = line.start()
    for mark in _END_MARK.finditer(text, max(0, end - 300), end):
        end = mark.start()
    return end, last.end()


def clean_book(raw: tuple[bytes, Mapping[str, int]]) -> Document:
    """The mended text of a book, without what the makers of the electronic edition added to it."""
    document = clean_text(raw)
    text, found = without_additions(document.text)
    return Document(text, "" if text else "empty", document.repairs + found)


BOOKS = Format(split_book, clean_book, guarded=True)
