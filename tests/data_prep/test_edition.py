"""Books without what the makers of an electronic edition added: small print, notes, marks of pages and pictures."""

import gzip
import lzma
import time

import pytest

from data_prep.formats.books import BOOKS
from tests.parts.corpora import noise, run_cli, write_vocab

SMALL_PRINT = (
    "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\n"
    'Why is this "Small Print!" statement here?  You know: lawyers.\n\n'
    + "They tell us you might sue us if there is something wrong.\n\n" * 150
    + "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n"
)
OLD_HEADER = (
    "The Project Gutenberg Etext of The River, by Nobody\n\n"
    "Copyright laws are changing all over the world, be sure to check\nthe laws for your country.\n\n"
    "Please do not remove this header.\n\n"
    "**Welcome To The World of Free Plain Vanilla Electronic Texts**\n\n"
    "Title: The River\n\nAuthor: Nobody\n\n"
)
INFORMATION = "Information about Project Gutenberg (one page)\n\nWe produce about two million dollars an hour.\n\n"


FILE = "book.txt"  # of ``write``


def read(path):
    return [BOOKS.clean(raw) for _, raw in BOOKS.split(path)]


def only(path):
    (document,) = read(path)
    return document


def novel(paragraphs):
    return "THE RIVER\n\n" + "\n\n".join(noise(paragraphs)) + "\n\nTHE END"


@pytest.mark.parametrize("pack", [str.encode, lambda text: lzma.compress(text.encode())])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("paragraphs", [3, 60, 900])  # 1, 14 and 216 KiB: shorter and longer than what is searched
@pytest.mark.parametrize(
    "before",
    [
        "***END***\n\nThe Legal Small Print\n\n",
        "***END***\n\n",
        "End of the Project Gutenberg Etext of The River, by Nobody\n\n",
        f"End of Project Gutenberg's The River\n\n{INFORMATION}**The Legal Small Print**\n\n\n(Three Pages)\n\n",
        INFORMATION,
    ],
)
def test_small_print_at_the_end_is_removed_and_the_book_stays(write, before, paragraphs, line_end, pack):
    book = novel(paragraphs)
    text = f"{OLD_HEADER}\n\n{book}\n\n{before}{SMALL_PRINT}".replace("\n", line_end)
    document = only(write(pack(text)))
    assert document.text == book
    assert document.repairs["gutenberg_licence"] == document.repairs["gutenberg_header"] == 1


def test_the_end_of_the_small_print_alone_is_enough_where_its_beginning_is_not_marked(write):
    book = novel(40)
    body = SMALL_PRINT.partition("\n")[2]
    assert only(write(f"{book}\n\n***END***\n\nThe Legal Small Print\n{body}")).text == book
    assert only(write(f"{book}\n\n***END***\n\n{body}")).text == book
    last = "*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n"
    assert only(write(f"{book}\n\n***END***\n\n{last}")).text == book
    assert only(write(f"{book}\n\n{last}")).text == book


@pytest.mark.parametrize("paragraphs", [1, 60, 900])
def test_small_print_before_the_book_is_removed_as_ever(write, paragraphs):
    book = novel(paragraphs)
    document = only(
        write(f"{OLD_HEADER}{INFORMATION}{SMALL_PRINT}\n\n{book}\n\nEnd of Project Gutenberg's The River\n")
    )
    assert document.text == book
    assert (document.repairs["gutenberg_header"], document.repairs["gutenberg_licence"]) == (1, 1)


def test_small_print_that_follows_the_mark_of_the_licence_is_no_book(write):
    start = "*** START OF THE PROJECT GUTENBERG EBOOK, THE RIVER ***"
    end = "*** END OF THE PROJECT GUTENBERG EBOOK, THE RIVER ***"
    for paragraphs in (3, 900):
        book = novel(paragraphs)
        assert (
            only(write(f"{OLD_HEADER}{start}\n\n{book}\n\n{end}\n\nThis file is riv10.txt\n\n{SMALL_PRINT}")).text
            == book
        )


@pytest.mark.parametrize("paragraphs", [3, 60, 900])
def test_books_with_small_print_that_follow_each_other_are_all_read(write, paragraphs):
    books = [f"BOOK {number}\n\n" + "\n\n".join(noise(paragraphs, number)) for number in range(3)]
    end = "End of the Project Gutenberg Etext of The River\n\n"
    after = "".join(f"{OLD_HEADER}{book}\n\n{end}{SMALL_PRINT}\n\n" for book in books)
    assert [document.text for document in read(write(after))] == books


def test_a_short_book_is_read_next_to_others_with_small_print_at_its_end(tmp_path):
    (tmp_path / "a.txt").write_text(novel(40))
    (tmp_path / "b.txt").write_text(f"{OLD_HEADER}\n\n{novel(30)}\n\n***END***\n\n{SMALL_PRINT}")
    sources = ["--source", f"s=books:{tmp_path}/?.txt", "--heldout", 0, "--workers", 1]
    done = run_cli("prepare", "--out", tmp_path / "data", "--tokenizer", write_vocab(tmp_path), *sources)
    assert done.returncode == 0, done.stderr
    assert "s: 2 documents" in done.stderr and "empty" not in done.stderr


QUOTES = [
    'all began with "***START**THE SMALL PRINT!**" and went on to "*END*THE SMALL PRINT! FOR PUBLIC\nDOMAIN ETEXTS*END*"',
    'all had a line "*** START OF THE PROJECT GUTENBERG EBOOK X ***", and "*** END OF THE PROJECT GUTENBERG EBOOK X ***"',
    'all asked: Why is this "Small Print!" statement here?',
]


@pytest.mark.parametrize("quote", QUOTES)
@pytest.mark.parametrize("paragraphs", [3, 60, 900])
def test_a_book_that_speaks_of_such_marks_keeps_every_word(write, quote, paragraphs):
    book = f"{novel(paragraphs)}\n\nOld files {quote}.\n\n{novel(paragraphs)}"
    document = only(write(book))
    assert (document.text, dict(document.repairs)) == (book, {})
    document = only(write(f"{OLD_HEADER}{SMALL_PRINT}\n\n{book}\n\nEnd of Project Gutenberg's The River\n"))
    assert document.text == book


@pytest.mark.parametrize("mark", ["  *** START", "\ufeff*** START", "****** START", "*** START"])
def test_a_mark_is_found_behind_blanks_asterisks_and_a_byte_order_mark(write, mark):
    assert only(write(f"{mark} OF THE PROJECT GUTENBERG EBOOK X ***\n\n{novel(3)}")).text == novel(3)


AUSTRALIA = """Title:      The River (1925)
Author:     Nobody
* A Project Gutenberg of Australia eBook *
eBook No.:  0200041.txt
Edition:    1
Language:   English
Character set encoding:     Latin-1(ISO-8859-1)--8 bit
Date first posted:          January 2002

This eBook was produced by: Somebody

Project Gutenberg of Australia eBooks are created from printed editions
which are in the public domain in Australia, unless a copyright notice
is included. We do NOT keep any eBooks in compliance with a particular
paper edition.

Copyright laws are changing all over the world. Be sure to check the
copyright laws for your country before downloading or redistributing this
file.

This eBook is made available at no cost and with almost no restrictions
whatsoever. You may copy it, give it away or re-use it under the terms
of the Project Gutenberg of Australia License which may be viewed online at
gutenberg.net.au/licence.html

To contact Project Gutenberg of Australia go to http://gutenberg.net.au


"""
CANADA = """* A Distributed Proofreaders Canada eBook *

This eBook is made available at no cost and with very few
restrictions. These restrictions apply only if (1) you make
a change in the eBook.

This work is in the Canadian public domain, but may be under
copyright in some countries. IF THE BOOK IS UNDER COPYRIGHT
IN YOUR COUNTRY, DO NOT DOWNLOAD OR REDISTRIBUTE THIS FILE.

_Title:_ The River
_Date of first publication:_ 1927
_Author:_ Nobody
_Date first posted:_ Jan. 20, 2017
Faded Page eBook #20170133

This eBook was produced by: Somebody, Cindy Beyer
& the online Distributed Proofreaders Canada team
at https://www.pgdpcanada.net


"""
OLD_CANADA = """* A Project Gutenberg Canada Ebook *

This ebook is made available at no cost and with very few
restrictions.

Title: The River

Author: Nobody

Place and date of edition used as base for this ebook:
Paris: Nobody & Co., 1920 (first edition)

Date last updated: 1 March 2008

Project Gutenberg Canada ebook #77

This ebook was produced by: Somebody


"""
FRENCH_CANADA = """* Livre électronique de Project Gutenberg Canada *

Le présent livre électronique est rendu accessible gratuitement.

Ce texte est dans le domaine public au Canada.

Titre: The River
Auteur: Nobody
Lieu et date de l'édition utilisée comme modèle: Montréal, 1920

Livre électronique de Project Gutenberg Canada no 77

Ce livre électronique a été créé par: Somebody


"""
WIKISOURCE = (
    "Exported from Wikisource on November 1, 2020\n\n",
    "\n\nAbout this digital edition\n\nThis e-book comes from the online library Wikisource.\n\n"
    + "  • Somebody\n" * 900,
)
STANDARD = (
    "Imprint\n\nThis ebook is the product of many hours of work for Standard Ebooks.\n\nIt has no price.\n\n"
    "You can download this and other ebooks at standardebooks.org.\n\n",
    "\n\nColophon\n\nThe River\nwas published by\nNobody.\n\nIt was produced for\nStandard Ebooks\nby Somebody.\n\nUncopyright",
)
SMASHWORDS = """by Nobody

Smashwords Edition

Published by Nobody at Smashwords

Smashwords Edition, License Notes

This ebook is licensed for your personal enjoyment only. This ebook may not be re-sold
or given away to other people. If you would like to share this book with another person,
please purchase an additional copy for each recipient.

"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (AUSTRALIA, "\n\n\nThis site is full of FREE ebooks - Project Gutenberg Australia\n"),
        (AUSTRALIA, "\n\nProject Gutenberg Australia\n"),
        (CANADA, "\n\n[End of The River, by Nobody]\n"),
        (
            CANADA.replace("_", ""),
            "\n\nTRANSCRIBER NOTES\n\nMis-spelled words were corrected.\n\n[End of _The River_ by Nobody]",
        ),
        (CANADA, "\n\n[The end of _The River_ by Nobody]\n"),
        (
            "* A Project Gutenberg Canada Ebook *\n\n" + CANADA.partition("\n\n")[2],
            "\n\n[End of _The River_ by Nobody]\n",
        ),
        (OLD_CANADA, "\n\n[End of _The River_ by Nobody]\n"),
        (FRENCH_CANADA, "\n\n[End of _The River_ by Nobody]\n"),
        (WIKISOURCE[0], WIKISOURCE[1]),
        (STANDARD[0], STANDARD[1]),
    ],
)
def test_headers_and_footers_of_other_houses_are_removed(write, before, after):
    document = only(write(before + novel(5) + after))
    assert document.text == novel(5)
    assert (document.repairs["edition_header"], document.repairs["edition_footer"]) == (1, 1)


def test_notes_on_other_editions_after_the_header_are_removed(write):
    start = (
        "*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\n\nE-text prepared by Somebody\n(http://www.pgdp.net)\n\n\n"
    )
    note = "Note: Project Gutenberg also has an HTML version of this\n      file. See 9-h.htm.\n\n\n"
    images = "      Images of the original pages are available through\n      the Internet Archive.\n\n\n"
    document = only(write(f"{start}{note}{images}{novel(3)}"))
    assert document.text == novel(3)
    assert (document.repairs["gutenberg_header"], document.repairs["transcriber_note"]) == (1, 2)
    kept = f"{novel(3)}\n\n{note}and so on"
    assert only(write(kept)).text == kept


def test_what_smashwords_adds_is_removed_and_the_title_page_stays(write):
    after = (
        "\n\n###\n\nThank you for reading my book.\n\nDiscover other titles by Nobody at Smashwords.com\n\n"
        "Connect with Me Online:\nTwitter: http://twitter.com/nobody\n"
        "Smashwords: https://www.smashwords.com/profile/view/nobody\n"
    )
    document = only(write("THE RIVER\n\n" + SMASHWORDS + novel(5) + after))
    assert document.text == f"THE RIVER\n\nby Nobody\n\n{novel(5)}\n\n###\n\nThank you for reading my book."
    assert (document.repairs["edition_header"], document.repairs["edition_footer"]) == (1, 1)
    page = "The River\nby Nobody\nSmashwords Edition\nCopyright 2012 Nobody\n\n"
    assert only(write(page + novel(5))).text == f"The River\nby Nobody\nCopyright 2012 Nobody\n\n{novel(5)}"


def test_a_foreword_that_speaks_of_smashwords_stays(write):
    foreword = (
        "I published this at Smashwords\nin the year of the flood, and nine people read it, of whom\n"
        "one wrote to me at Smashwords.com and said that it was long. " + "It was long indeed. " * 20
    ).strip()
    document = only(write(f"THE RIVER\n\n{SMASHWORDS}{foreword}\n\n{novel(3)}\n\nIt told of Smashwords and of rivers."))
    assert document.text.startswith(f"THE RIVER\n\nby Nobody\n\n{foreword}\n\n")
    assert document.text.endswith("It told of Smashwords and of rivers.")


@pytest.mark.parametrize(
    ("marked", "plain", "counts"),
    [
        ("One.\n\n[Illustration]\n\nTwo.", "One.\n\n\nTwo.", {"illustration": 1}),
        ("One.\n\n[Illustration: The river]\n\nTwo.", "One.\n\n\nTwo.", {"illustration": 1}),
        ("[Illustration: The\nriver\n\n[_Copyright 1894 by\nNobody._]]\nTwo.", "Two.", {"illustration": 1}),
        ("[Illustration] THE next day", "THE next day", {"illustration": 1}),
        ("[Illustration: ] VULCAN", "VULCAN", {"illustration": 1}),
        ("One [Illustration: a] two", "One two", {"illustration": 1}),
        ("[Illustration: a]\n[Illustration: b]\nTwo.", "Two.", {"illustration": 2}),
        ("   [Picture: Lady pouring tea]\n\nTwo.", "Two.", {"illustration": 1}),
        ("[Ilustración: El río]\n\nDos.", "Dos.", {"illustration": 1}),
        ("[Illustration : L’eau]\n\nDeux.", "Deux.", {"illustration": 1}),
        ("[Ilustracja: Rzeka]\n\nDwa.", "Dwa.", {"illustration": 1}),
        ("[Illustration 12.]\n\nTwo.", "Two.", {"illustration": 1}),
        ("[Illustration No. 3: A pump]\n\nTwo.", "Two.", {"illustration": 1}),
        ("[Illustration--The river]\n\nTwo.", "Two.", {"illustration": 1}),
        ("[Illustration\nThe river]\n\nTwo.", "Two.", {"illustration": 1}),
        ("[Image unavailable.]\n\nTwo.", "Two.", {"illustration": 1}),
        ("the [Seite 12] river [Pág. 13]ran [Blank Page]", "the river ran", {"page_mark": 3}),
        ("One.\n\np003.jpg (307K)\n\n\nFull Size\n\nTwo.", "One.\n\n\nTwo.", {"illustration": 1}),
        ("One.\n\n0009m\n20011m \n\nTwo.", "One.\n\n\nTwo.", {"illustration": 2}),
        ("+-----------+\n| Typographical errors corrected: |\n+-----------+\n\nOne.", "One.", {"transcriber_note": 1}),
        ("the [Pg 12]river", "the river", {"page_mark": 1}),
        ("the [Pg 12] river", "the river", {"page_mark": 1}),
        ("the ri[Pg 12]ver", "the river", {"page_mark": 1}),
        ("the old\n[Pg xii]\nriver", "the old\nriver", {"page_mark": 1}),
        ("the old [Page 12-13]\nriver", "the old\nriver", {"page_mark": 1}),
        ("the {p. 12} river", "the river", {"page_mark": 1}),
        ("the river[Transcriber's Note: sic] ran", "the river ran", {"transcriber_note": 1}),
        ("[Transcriber’s Notes: see [1]\nand\n\n[2].]\n\nTwo.", "Two.", {"transcriber_note": 1}),
        ("[Nota del transcriptor: así]\n\nDos.", "Dos.", {"transcriber_note": 1}),
        (
            "Ende.\n\n  [ Im folgenden werden alle geänderten Textzeilen angeführt:\n\n  Loch.»\n  Loch.« ]",
            "Ende.",
            {"transcriber_note": 1},
        ),
        ("Transcriber's note: Spelling is as printed.\n\nOne.\n\nTwo.", "One.\n\nTwo.", {"transcriber_note": 1}),
        (
            "Transcriber's Note: This etext was produced from a magazine of 1951. Research did not find that\n"
            "it was renewed.\n\nOne.",
            "One.",
            {"transcriber_note": 1},
        ),
        (" \n \t\nTranscriber's Note:\n \n  An etext.\n \n \n \nOne.", "One.", {"transcriber_note": 1}),
        (
            "Transcriber's Note\n\nSpelling is kept.\n\nONE\n\nTwo.\n\n\nTHREE",
            "ONE\n\nTwo.\n\n\nTHREE",
            {"transcriber_note": 1},
        ),
        (
            "One and two and three and four.\n\n" * 4
            + "THE END\n\n\nTranscriber's Note:\n\nAn etext of 1951.\n\n\nTHE HOUSE\n\nIt was old.",
            "One and two and three and four.\n\n" * 4 + "THE END\n\n\nTHE HOUSE\n\nIt was old.",
            {"transcriber_note": 1},
        ),
        (
            "Eins und zwei und drei und vier.\n\n\n\n\nAnmerkungen zur Transkription\n\nDruckfehler wurden korrigiert.",
            "Eins und zwei und drei und vier.",
            {"transcriber_note": 1},
        ),
        (
            "A NOVEL\n\n\n\nTRANSCRIBER'S NOTES\n\nItalics are _so_.\n\nSpelling is kept.\n\n\n\nONE\n\nTwo.",
            "A NOVEL\n\n\n\nONE\n\nTwo.",
            {"transcriber_note": 1},
        ),
        (
            "+----------+\n| Transcriber's Note: |\n|  |\n| Typos. |\n+----------+\n\nOne.",
            "One.",
            {"transcriber_note": 1},
        ),
        (
            "One.\n\nTwo and three.\n\nFour and five.\n\nThe end.\n\n\n\n\nTranscriber's Notes:\n\n\n  Italics.\n\n  Hyphens.",
            "One.\n\nTwo and three.\n\nFour and five.\n\nThe end.",
            {"transcriber_note": 1},
        ),
    ],
)
def test_notes_and_marks_are_removed_and_counted(write, marked, plain, counts):
    document = only(write(marked))
    assert (document.text, dict(document.repairs)) == (plain, counts)


@pytest.mark.parametrize("form", ["{%d}", "[p. %d]", "[S. %d]"])
def test_numbers_that_count_amid_the_text_are_pages_and_others_are_not(write, form):
    def text(numbers, between):
        return "It ran " + between.join(f"{form % number} and on" for number in numbers)

    document = only(write(text(range(7, 19), " and on ")))
    assert (document.text, document.repairs["page_mark"]) == ("It ran " + " and on ".join(["and on"] * 12), 12)
    for numbers, between in (
        (range(1, 6), " "),  # few
        (range(1, 99, 7), " "),  # others' pages
        ([*range(1, 12), *range(1, 12)], " "),  # notes
        (range(1, 12), "\n\n"),  # sections
    ):
        kept = text(numbers, between)
        assert only(write(kept)).text == kept


@pytest.mark.parametrize(
    "text",
    [
        "[Illustration: the bracket never ends\n\nand this is the book",
        "[Illustration: the bracket never ends\n\n" + "It ran on and on.\n\n" * 150 + "and then it was closed]",
        "[Illustration A shows the river,] and [illustration 3 below] the house [of Illustration: fame].",
        "An [illustration of] the river and a [page] of it, [12] and [Footnote 1: The river.]",
        "The transcriber's note was lost,\nand the river ran [Exit FAUSTUS] on.",
        "Smashwords was the name of the river.\n\nIt ran.",
        "Preface to the Project Gutenberg Etext\n\nIt was prepared with love.\n\nTHE RIVER",
        "THE RIVER\n\n+---+---+\n| a | b |\n+---+---+\n\nIt ran.",
        "He opened p003.jpg at last.",
        "Full Size\n\n1009m\n\n12",
        "I said [End of the river, by night] and\n\nwent.",
    ],
)
def test_what_only_looks_like_an_addition_stays(write, text):
    document = only(write(text))
    assert (document.text, dict(document.repairs)) == (text, {})


def test_a_note_in_the_head_ends_with_a_gap_and_never_takes_the_book(write):
    book = "\n\n".join(noise(900))
    text = only(write(f"Transcriber's Note\n\n{book}")).text
    assert text.endswith(book[-100_000:])  # a heading that nothing ends may cost itself, not the book
    assert len(text) > len(book) - 100


@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_marks_are_found_whatever_the_line_ends(write, line_end):
    text = "One.\n\n[Illustration: a\nb]\n\nTwo.\n[Pg 3]\nThree.".replace("\n", line_end)
    assert only(write(gzip.compress(text.encode()))).text == "One.\n\n\nTwo.\nThree."


def test_books_are_cleaned_in_time_that_grows_with_their_length(write):
    hard = [
        "[Illustration: " * 40_000,
        "[Pg " * 200_000,
        "\n \n" * 200_000 + "x",
        "+" + "-" * 600_000,
        "| a\n" * 200_000,
    ]
    hard += ["Transcriber's Note\n\n" * 40_000, "{12} " * 200_000, "[Illustration " * 40_000, "*** START OF" * 90_000]
    hard += ["Transcriber's Note\n" * 40_000, "smashwords\n\n" * 60_000, "Title: a\n\n" * 60_000, "*" * 600_000]
    for text in hard:
        path = write(text)
        began = time.process_time()
        read(path)
        assert time.process_time() - began < 3, text[:20]
