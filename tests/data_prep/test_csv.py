"""The csv format: the value of every row once and in order, whatever separates values, and a reason for what is no row."""

import csv
import gzip
import io

import pytest

from data_prep.cli import UserError
from data_prep.formats import csv_rows
from data_prep.formats.by_name import open_format
from data_prep.formats.readers import PIECE
from tests.parts.corpora import noise

FILE = "rows.csv"  # of ``write``


def read(path, field=None):
    rows = open_format("csv", field)
    return [rows.clean(raw) for _, raw in rows.split(path)]


def texts(path, field=None):
    return [document.text or document.dropped for document in read(path, field)]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(("separator", "end"), [(",", "\r\n"), (";", "\n"), ("|", "\n")])
def test_every_row_comes_once_and_in_order_with_the_piece_it_begins_in(write, pack, separator, end):
    wanted = [*noise(900), 'He said "yes",\nand; left|\tlines 行 \U0001f600', "plain"]
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=separator, lineterminator=end)
    writer.writerows([["id", "text"], *enumerate(wanted)])
    data = file.getvalue().encode()
    path = write(pack(data))
    found = list(open_format("csv").split(path))
    assert texts(path) == wanted
    pieces = [piece for piece, _ in found]
    assert pieces == sorted(pieces) and len(set(pieces)) > 1
    if pack is bytes:
        begins = [data.index(f"{end}{number}{separator}".encode()) + len(end) for number in range(len(wanted))]
        assert pieces == [begin // PIECE for begin in begins]


def test_a_value_between_tabs_ends_with_its_line_and_may_hold_quotes(write):
    rows = ["a\ttext", '1\t"Hello, he said', '2\t"She ""knew"" it"', '3\t5" disk', '4\t"', "5\tend"]
    wanted = ['"Hello, he said', 'She "knew" it', '5" disk', '"', "end"]
    assert texts(write("\n".join(rows))) == wanted


def test_the_column_is_the_one_asked_for_and_others_are_named(write):
    path = write("\ufeffÜberschrift,body\r\n\r\nA,B\r\n")
    assert texts(path, "body") == ["B"] and texts(path, "Überschrift") == ["A"]
    with pytest.raises(UserError, match=r"rows.csv: no column 'text'; its header has 'Überschrift', 'body'$"):
        read(path)
    with pytest.raises(UserError, match="no column 'text'; its header has 'a b c'"):
        read(write("a b c\nd e f\n"))
    with pytest.raises(UserError, match="2 columns are named 'text'; rename or drop all but one"):
        read(write("text,text\na,b\n"))
    with pytest.raises(UserError, match="no column 'text'; its header has none"):
        read(write(""))


def test_what_is_no_row_costs_its_own_line_and_is_counted(write):
    rows = [
        "id,text",
        "1,first",
        '2,"open',
        '3,"third"',
        "4,too,many",
        "5",
        '6,"a"b',
        '7,5" disk',
        '8,"two\nlines"',
        '9,"end',
    ]
    assert texts(write("\n".join(rows))) == [
        "first", "not_csv", "third", "other_columns", "other_columns", "not_csv", '5" disk', "two\nlines", "not_csv",
    ]  # fmt: skip


def test_a_quote_that_is_never_closed_swallows_no_row(write, monkeypatch):
    monkeypatch.setattr(csv_rows, "LONGEST_ROW", 1000)
    rows = ["id,text", '1,"open', *(f"{number},{'x' * 50}" for number in range(100))]
    assert texts(write("\n".join(rows))) == ["not_csv", *["x" * 50] * 100]
    assert texts(write("\n".join(["id,text", "1," + "y" * 2000, "2,z"]))) == ["not_csv", "z"]


def test_a_first_row_with_other_columns_than_the_header_is_refused(write):
    with pytest.raises(
        UserError, match="the header has 1 columns, the first row 2; a value with a comma in it must be"
    ):
        read(write("text\nHello, world\n"))
    with pytest.raises(UserError, match="its lines end with a lone CR"):
        read(write("id,text\r1,a\r"))


def test_invalid_bytes_are_mended_and_counted(write):
    (document,) = read(write(b"text\nthe na\xefve and the not so na\xefve\n"))
    assert document.text == "the na\ufffdve and the not so na\ufffdve" and document.repairs == {"invalid_utf8": 2}


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.csv.gz"])
def test_a_csv_is_not_read_as_text(write, name):
    data = b"id,text\n1,a\n"
    path = write(gzip.compress(data) if name.endswith("gz") else data, name)
    with pytest.raises(UserError, match=f"{name}: rows of values by its name, not plain text: use format csv.COLUMN"):
        list(open_format("text").split(path))
