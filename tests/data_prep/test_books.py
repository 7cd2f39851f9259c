"""The books format: a file is a book, without what Project Gutenberg puts around it, and with every line of its own."""

import bz2
import gzip
import lzma
import tracemalloc

import pytest

from data_prep.cli import UserError
from data_prep.formats import books, readers
from data_prep.formats.books import BOOKS
from tests.parts.corpora import noise

BOOK = "THE RIVER\n\n\nIt ran under\nthe old house.\n\n      *       *       *\n\n*** A note ***\n\nTHE END"
HEADER = (
    "The Project Gutenberg eBook of The River\n\nThis ebook is for the use of anyone anywhere.\n\nTitle: The River\n\n"
)
LICENCE = (
    "\n\nUpdated editions will replace the previous one.\n\n*** START: FULL LICENSE ***\n\nSection 1. General Terms\n"
)
START, END = (
    "*** START OF THE PROJECT GUTENBERG EBOOK THE RIVER ***",
    "*** END OF THE PROJECT GUTENBERG EBOOK THE RIVER ***",
)


FILE = "book.txt"  # of ``write``


def read(path):
    return [BOOKS.clean(raw) for _, raw in BOOKS.split(path)]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("start", "end"),
    [
        (START, END),
        (START.replace("THE PROJECT", "THIS PROJECT"), END.replace("THE PROJECT", "THIS PROJECT")),
        ("***START OF THE PROJECT GUTENBERG EBOOK THE RIVER***", "***END OF THE PROJECT GUTENBERG EBOOK THE RIVER***"),
        (START.replace("RIVER ***", "RIVER\nAND THE HOUSE ***"), END),
        (START.replace("RIVER ***", "RIVER, OF WHICH\nTHE MARK NEVER ENDS"), END),
        (
            "*** START OF THE COPYRIGHTED PROJECT GUTENBERG EBOOK X ***",
            "*** END OF THE COPYRIGHTED PROJECT GUTENBERG EBOOK X ***",
        ),
        (
            "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*",
            "End of the Project Gutenberg Etext of The River",
        ),
        ("*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*", "End of Project Gutenberg's The River, by Nobody"),
        (
            "***START**THE SMALL PRINT!***\n*END*THE SMALL PRINT!*END*\n\n" + START,
            "End of The Project Gutenberg EBook\n\n" + END,
        ),
        (START + "\n\n\nProduced by Some One and the Online\nDistributed Proofreading Team", END),
        (START + "\nE-text prepared by Some One", "End of Project Gutenberg's The River, by\nSome One\n\n\n" + END),
        (START, "Ende dieses Projekt Gutenberg Etextes Der Fluss"),
        (START, END + "\n\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*END*"),
    ],
)
def test_header_and_licence_are_stripped_and_counted_and_no_line_of_the_book(write, start, end, line_end):
    if "NEVER" in start:
        start, rest = start.split("\n")
        book = rest + "\n\n" + BOOK  # without its asterisks the mark ends with its line
    else:
        book = BOOK
    text = f"{HEADER}{start}\n\n\n{book}\n\n\n{end}{LICENCE}".replace("\n", line_end)
    (document,) = read(write(text))
    assert document.text == book
    repairs = dict(document.repairs)
    assert (repairs.pop("gutenberg_header"), repairs.pop("gutenberg_licence")) == (1, 1)
    assert set(repairs) == {"\n": set(), "\r\n": {"crlf"}, "\r": {"lone_cr"}}[line_end]


def test_a_book_from_elsewhere_stays_whole(write):
    (document,) = read(write(BOOK))
    assert (document.text, dict(document.repairs)) == (BOOK, {})
    quote = BOOK + "\nEnd of Project Gutenberg's quotes\n" + "a line of the book\n" * 9999
    assert read(write(quote))[0].text == quote.strip()


def test_a_header_without_a_licence_and_a_licence_without_a_header_are_stripped(write):
    assert read(write(HEADER + START + "\n" + BOOK))[0].text == BOOK
    (document,) = read(write(BOOK + "\n\n" + END + LICENCE))
    assert (document.text, dict(document.repairs)) == (BOOK, {"gutenberg_licence": 1})


def test_damaged_characters_of_a_book_are_mended_as_in_text(write):
    (document,) = read(write(b"\xef\xbb\xbfThe ri\0ver\r\nran \xff under\rthe house, and the wind was old\n"))
    assert document.text == "The river\nran � under\nthe house, and the wind was old"
    assert dict(document.repairs) == {"byte_order_mark": 1, "nul": 1, "crlf": 1, "lone_cr": 1, "invalid_utf8": 1}


@pytest.mark.parametrize("pack", [bytes, lzma.compress])
@pytest.mark.parametrize("paragraphs", [900, 9])
def test_books_that_follow_each_other_in_one_file_are_all_read(write, pack, paragraphs):
    texts = ["\n\n".join([f"BOOK {number}", *noise(paragraphs, number)]) for number in range(4)]
    path = write(pack("".join(f"{HEADER}{START}\n{text}\n{END}{LICENCE}\n\n" for text in texts).encode()))
    found = list(BOOKS.split(path))
    assert [BOOKS.clean(raw).text for _, raw in found] == texts
    assert found[0][0] == 0 and (found[-1][0] > 0) == (paragraphs > 9)
    assert all(BOOKS.clean(raw).repairs == {"gutenberg_header": 1, "gutenberg_licence": 1} for _, raw in found)


@pytest.fixture(params=[100, 1 << 19])
def small_parts(request, monkeypatch):
    """Books are cut at 10,000 bytes, and read in small blocks or at once."""
    monkeypatch.setattr(readers, "PIECE", 999)
    monkeypatch.setattr(readers, "_BLOCK", request.param)
    for module in (readers, books):
        monkeypatch.setattr(module, "LONGEST_DOCUMENT", 10_000)
    monkeypatch.setattr(books, "_EDGE", 2000)


def test_a_long_book_is_cut_at_line_ends_and_nothing_is_lost(write, small_parts):
    quote = "End of Project Gutenberg's quotes"  # no mark of a licence so far from the end
    lines = [line for text in noise(200) for line in (quote, text)] + noise(99)
    path = write(f"{HEADER}{START}\n" + "\n".join(lines) + f"\n{END}{LICENCE * 99}")
    documents = read(path)
    assert "\n".join(document.text for document in documents) == "\n".join(lines)
    assert max(len(document.text) for document in documents) <= 10_000
    assert [document.repairs["cut_at_4_mib"] for document in documents] == [1] * (len(documents) - 1) + [0]
    assert [document.repairs["gutenberg_header"] for document in documents] == [1] + [0] * (len(documents) - 1)
    assert [document.repairs["gutenberg_licence"] for document in documents] == [0] * (len(documents) - 1) + [1]
    pieces = [piece for piece, _ in BOOKS.split(path)]
    assert pieces == sorted(set(pieces)) and pieces[0] == 0


def test_a_file_cut_short_in_its_licence_is_rejected(write, small_parts):
    data = gzip.compress(f"{START}\n{BOOK}\n{END}\n{chr(10).join(noise(999))}".encode())
    with pytest.raises(UserError, match="the gzip data breaks off"):
        read(write(data[:-9]))


def test_memory_does_not_grow_with_the_book(write):
    path = write(gzip.compress(b"the river under the old house\n" * 2_000_000, 1))
    tracemalloc.start()
    assert sum(len(raw[0]) for _, raw in BOOKS.split(path)) > 59e6
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # of 60 MB


def test_an_empty_file_holds_no_book(write):
    assert read(write(b"")) == read(write(b"\n \r\n")) == []


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"<?xml version='1.0'?>", "book.txt", "XML at byte 0"),
        (b'{"text": "a"}', "book.jsonl", "JSON at byte 0, not plain text: use format jsonl"),
        (bytes(range(256)) * 99, "book.txt", r"of the first \d+ bytes \d\d% are NUL or not UTF-8"),
        (b"PAR1", "book.txt", "a parquet file: use format parquet"),
        (
            bz2.compress(f"{START}\n{BOOK}\n{END}{LICENCE}".encode())[:-9],
            "book.bz2",
            "the bzip2 data breaks off at byte",
        ),
    ],
)
def test_what_is_no_whole_book_is_rejected_by_name(write, data, name, message):
    with pytest.raises(UserError, match=f"{name}: {message}"):
        read(write(data, name))
