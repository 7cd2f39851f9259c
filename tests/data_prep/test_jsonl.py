"""The jsonl format: the text of every line once and in order, and a reason for every line without one."""

import gzip
import json
import tracemalloc

import pytest

from data_prep.cli import UserError
from data_prep.formats import jsonl, readers
from data_prep.formats.by_name import open_format
from data_prep.formats.readers import PIECE, zstd
from tests.parts.corpora import noise

FILE = "lines.jsonl"  # of ``write``


def read(path, field=None):
    lines = open_format("jsonl", field)
    return [lines.clean(raw) for _, raw in lines.split(path)]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress])
@pytest.mark.parametrize("block", [100, 1 << 19])
def test_every_line_comes_once_and_in_order_with_the_piece_it_begins_in(write, monkeypatch, pack, block):
    monkeypatch.setattr(readers, "_BLOCK", block)
    texts = [*noise(1200), "Zeilen\nund\tлинии 行 \U0001f600"]
    data = "".join(
        json.dumps({"id": 1, "text": text}, ensure_ascii=number % 2) + "\n" for number, text in enumerate(texts)
    )
    path = write(pack(data.encode()))
    found = list(open_format("jsonl").split(path))
    assert [document.text for document in read(path)] == texts
    assert list(open_format("jsonl").split(path, 2)) == found
    pieces = [piece for piece, _ in found]
    assert pieces == sorted(pieces) and len(set(pieces)) > 1
    if pack is bytes:
        begins = [0, *(place + 1 for place, byte in enumerate(data.encode()) if byte == 10)][:-1]
        assert pieces == [begin // PIECE for begin in begins]


def test_the_field_is_the_one_asked_for(write):
    assert [document.text for document in read(write('{"text": "a", "body": "b"}'), "body")] == ["b"]


def test_a_field_inside_an_object_is_named_with_a_dot(write):
    """As Wikimedia Enterprise's article_body, whose own fields are html, wikitext and plain."""
    lines = [
        '{"article_body": {"plain": "a", "html": "<p>"}}',
        '{"article_body": null}',
        '{"article_body": {"plain": null}}',
        '{"article_body": {"html": "<p>"}}',
        '{"article_body": "text"}',
        '{"article_body.plain": "b", "article_body": {"plain": "c"}}',
    ]
    documents = read(write("\n".join(lines)), "article_body.plain")
    wanted = [("a", ""), ("", "not_text"), ("", "not_text"), ("", "no_field"), ("", "no_field"), ("b", "")]
    assert [(document.text, document.dropped) for document in documents] == wanted
    assert [document.text for document in read(write('{"a": {"b.c": {"d": "x"}, "b": {"c": 1}}}'), "a.b.c.d")] == ["x"]
    message = r"line 1 has no field 'article_body\.text'; it has 'article_body\.plain', 'article_body\.html'$"
    with pytest.raises(UserError, match=message):
        read(write(lines[0]), "article_body.text")


def test_lines_without_a_text_are_dropped_and_counted_by_reason(write):
    lines = ['{"text": "first"}', "{text}", "", " \r", '"text"', '{"body": 1}', '{"text": null}', '{"text": ["a"]}']
    lines += ['{"text": " \\n"}', "[" * 99_999, "1" * 9999, '{"text": "last"}\r']
    dropped = [document.dropped for document in read(write("\n".join(lines)))]
    wanted = ["", "not_json", "no_field", "no_field", "not_text", "not_text", "empty", "not_json", "not_json", ""]
    assert dropped == wanted


def test_texts_are_mended_and_the_mends_counted(write):
    lines = [
        b'\xef\xbb\xbf{"text": "one\\r\\ntwo\\rthree\\u0000"}\r',
        b'{"text": "\\ud83d\\ude00 \\ud83d \\uDE00 \xff"}',
        b'{"text": "\\\\ud83d"}',
    ]
    data = b"\n".join(lines)
    documents = read(write(data))
    assert [document.text for document in documents] == ["one\ntwo\nthree", "\U0001f600 � � �", "\\ud83d"]
    assert [dict(document.repairs) for document in documents] == [
        {"crlf": 1, "lone_cr": 1, "nul": 1},
        {"lone_surrogate": 2, "invalid_utf8": 1},
        {},
    ]


@pytest.mark.parametrize("block", [100, 1 << 19])
def test_a_line_above_16_mib_is_dropped_and_those_around_it_stay(write, monkeypatch, block):
    monkeypatch.setattr(readers, "PIECE", 64)
    monkeypatch.setattr(readers, "_BLOCK", block)
    monkeypatch.setattr(jsonl, "LONGEST_LINE", 1000)
    fits = json.dumps({"text": "a" * (1000 - len('{"text": ""}'))})
    lines = [
        json.dumps({"text": "b" * 5000}),
        fits,
        fits.replace("a", "aa", 1),
        '{"text": "c"}',
        '{"text": "' + "d" * 3000,
    ]
    documents = read(write("\n".join(lines)))
    assert [document.dropped for document in documents] == [
        "line_over_16_mib",
        "",
        "line_over_16_mib",
        "",
        "line_over_16_mib",
    ]
    assert documents[3].text == "c"


def test_memory_does_not_grow_with_a_line(write):
    path = write(gzip.compress(b'{"text": "' + b"river " * 15_000_000 + b'"}\n{"text": "x"}', 1, mtime=0))
    tracemalloc.start()
    assert [document.dropped for document in read(path)] == ["line_over_16_mib", ""]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24e6  # of 90 MB
    assert jsonl.LONGEST_LINE == 16 << 20


def test_a_file_of_nothing_has_no_documents(write):
    assert read(write(b"")) == read(write(b"\n\r\n  \n")) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('\n{"body": "a", "id": 2}', r"line 1 has no field 'text'; it has 'body', 'id'"),
        ("{}", r"line 1 has no field 'text'; it has none"),
        ('["text"]', "line 1 is a JSON list, but format jsonl reads one object a line"),
        ("A river ran under the house.", r"line 1 is not JSON \(.*\); .* is it format text\?"),
        ('{\n"text": "a"\n}', r"line 1 is not JSON"),
        ("<mediawiki>", "XML at byte 0, not plain text: if this is a dump of a wiki, use format wikipedia"),
        ('{"text": 1}'.encode("utf-16"), "UTF-16 at byte 0"),
        (b"\x93\0\x80" * 99, r"of the first \d+ bytes 100% are NUL or not UTF-8"),
        (b"PAR1", "a parquet file: use format parquet"),
        (gzip.compress(b'{"text": "a"}', mtime=0)[:-5], "the gzip data breaks off at byte"),
    ],
)
def test_what_is_not_json_lines_is_rejected_by_name(write, data, message):
    with pytest.raises(UserError, match=rf"lines\.jsonl: {message}"):
        read(write(data))


@pytest.mark.parametrize(
    ("data", "way_out"),
    [
        ('[{"text": "a"}]', r"a JSON list, .*: write each of the list on a line of its own \(jq -c '\.\[\]'\)"),
        ('\ufeff[\n{"text": "a"},\n', r"write each of the list on a line of its own"),
        ('{\n  "text": "a"\n}\n', r"write each object on a line of its own \(jq -c \.\)"),
        ("The river ran.", "is it format text"),
    ],
)
def test_json_in_another_layout_is_told_what_to_do(tmp_path, data, way_out):
    path = tmp_path / "rows.jsonl"
    path.write_text(data)
    with pytest.raises(UserError, match=way_out):
        list(open_format("jsonl").split(path))
