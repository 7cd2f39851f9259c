"""The text format and unpacking: every document once, in order, mended and counted, whatever the file's form."""

import bz2
import gzip
import lzma
import random
from functools import partial

import pytest

from data_prep.cli import UserError
from data_prep.formats import readers
from data_prep.formats.by_name import FORMATS, open_format
from data_prep.formats.readers import LONGEST_DOCUMENT, PIECE, Format, Pieces, clean_text, split_text, unpack, zstd

PACK = {
    "txt": bytes,
    "gz": gzip.compress,
    "bz2": partial(bz2.compress, compresslevel=1),
    "xz": lzma.compress,
    "zst": partial(zstd.compress, options={zstd.CompressionParameter.checksum_flag: 1}),
}
PACKED = [suffix for suffix in PACK if suffix != "txt"]
SKIPPED = b"\x50\x2a\x4d\x18\x05\0\0\0hello"  # a zstd frame that holds no data


def read(path):
    return [clean_text(raw) for _, raw in split_text(path)]


def texts(path):
    return [document.text for document in read(path)]


FILE = "input.txt"  # of ``write``


def random_documents(size, seed=0):
    """Documents of letters that do not compress well, and the file that holds them."""
    dice = random.Random(seed)
    documents, total = [], 0
    while total < size:
        lines = ["".join(dice.choices("abcdefghijklmnop é字", k=dice.randrange(1, 300))).strip() for _ in range(3)]
        text = "\n".join(line for line in lines if line)
        if text:
            documents.append(text)
            total += len(text.encode())
    return documents, "\n\n".join(documents).encode()


@pytest.mark.parametrize("suffix", PACK)
def test_every_document_comes_once_and_in_order_plain_or_packed(write, suffix):
    documents, data = random_documents(5 * PIECE)
    path = write(PACK[suffix](data), f"input.{suffix}")
    pieces = [piece for piece, _ in split_text(path)]
    assert texts(path) == documents
    assert pieces == sorted(pieces)
    assert len(set(pieces)) > 1 and max(pieces) <= path.stat().st_size // PIECE


def test_a_document_belongs_to_the_piece_of_its_first_byte(write):
    path = write(b"a" * (PIECE - 2) + b"\n\nsecond\n\nthird")
    assert [piece for piece, _ in split_text(path)] == [0, 1, 1]
    path.write_bytes(b"a" * (PIECE - 3) + b"\n\nsecond\n\nthird")
    assert [piece for piece, _ in split_text(path)] == [0, 0, 1]
    path.write_bytes(b"a" * (PIECE - 3) + b"\n\n  second\n\nthird")  # blanks are no part of a document
    assert [piece for piece, _ in split_text(path)] == [0, 1, 1]


def test_the_pieces_of_text_do_not_depend_on_where_reading_begins(write):
    path = write(random_documents(3 * PIECE)[1])
    assert list(split_text(path)) == list(split_text(path, 1)) == list(split_text(path, 99))


@pytest.mark.parametrize("suffix", PACKED)
def test_what_packs_well_is_unpacked_in_small_blocks(write, suffix):
    data = b"word word word word\n\n" * 200_000
    path = write(PACK[suffix](data), f"input.{suffix}")
    blocks = list(Pieces(unpack(path)))
    assert b"".join(blocks) == data
    assert max(map(len, blocks)) <= 1 << 20


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_any_line_end_separates_documents_at_any_place_in_a_piece(write, monkeypatch, line_end):
    monkeypatch.setattr(readers, "PIECE", 7)
    monkeypatch.setattr(readers, "_BLOCK", 1)
    lines = ["one", "still one", "", "two", "", "\t ", "", "three", "still three", ""]
    path = write(("\n\n" + "\n".join(lines)).replace("\n", line_end).encode())
    for _ in range(40):
        assert texts(path) == ["one\nstill one", "two", "three\nstill three"]
        data = path.read_bytes()
        assert [piece for piece, _ in split_text(path)] == [
            data.index(word) // 7 for word in (b"one", b"two", b"three")
        ]
        path.write_bytes(b"\n" + data)


def test_packed_streams_that_follow_each_other_are_one_text(write):
    for suffix in PACKED:
        pack = PACK[suffix]
        path = write(pack(b"one\n") + pack(b"\ntwo") + b"\0" * 8 + pack(b" and\n\nthree") + b"\0" * 512, f"a.{suffix}")
        assert texts(path) == ["one", "two and", "three"]


def test_packing_is_known_by_content_not_by_name(write):
    assert texts(write(bz2.compress(b"one\n\ntwo"), "input.txt")) == ["one", "two"]


@pytest.mark.parametrize("suffix", PACKED)
def test_truncated_packed_file_is_rejected_with_its_offset(write, suffix):
    path = write(PACK[suffix](random_documents(3 * PIECE)[1])[:-20], f"input.{suffix}")
    with pytest.raises(UserError, match=rf"input\.{suffix}: the .* data breaks off at byte {path.stat().st_size}"):
        texts(path)


@pytest.mark.parametrize("suffix", PACKED)
def test_damaged_packed_file_is_rejected_with_its_offset(write, suffix):
    data = bytearray(PACK[suffix](random_documents(3 * PIECE)[1]))
    data[-PIECE - 99 : -PIECE] = b"\xff" * 99
    with pytest.raises(UserError, match=rf"input\.{suffix}: damaged .* data within 65536 bytes from byte \d+"):
        texts(write(bytes(data), f"input.{suffix}"))


def test_zstd_frames_that_hold_no_data_are_skipped(write):
    frame = PACK["zst"]
    path = write(SKIPPED + frame(b"one\n") + SKIPPED + frame(b"\ntwo") + SKIPPED, "a.zst")
    assert texts(path) == ["one", "two"]


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"plain", "input.bz2", "not bzip2 data at byte 0, whatever its name says"),
        (b"PK\x03\x04rest", "input.txt", "a zip file; only plain files and gzip, bzip2, xz, zstd are read"),
        (b"PAR1rest", "input.txt", "a parquet file: use format parquet"),
        (
            b"\x28\xb5\x2f\xfd\0\xb0rest",
            "input.zst",
            r"damaged zstd data .*too much memory.* fetch it again or repack it",
        ),
        ("text".encode("utf-16"), "input.txt", "UTF-16 at byte 0"),
        (b'\n<?xml version="1.0"?><a/>', "input.txt", "XML at byte 0, not plain text: .* use format wikipedia"),
        (b"\xef\xbb\xbf<mediawiki>", "input.txt", "XML at byte 0"),
        (bz2.compress(b"<mediawiki>"), "dump.bz2", "XML at byte 0"),
        (b'{"text": "a"}\n', "input.jsonl", "JSON at byte 0, not plain text: use format jsonl"),
        (gzip.compress(b'\n{"text": "a"}', mtime=0), "input.json.gz", "JSON at byte 0"),
        (random.Random(0).randbytes(PIECE), "input.txt", r"of the first \d+ bytes \d\d% are NUL or not UTF-8"),
        (
            "вода реки".encode("cp1251") * 99,
            "input.txt",
            r"of the first 891 bytes 89% are .* convert it with iconv first",
        ),
        (b"a\0b\0c" * 9, "input.txt", "of the first 45 bytes 40% are NUL"),
    ],
)
def test_what_is_not_text_is_rejected_by_name(write, data, name, message):
    with pytest.raises(UserError, match=f"{name}: {message}"):
        texts(write(data, name))


def test_repairs_are_made_and_counted(write):
    path = write(b"\xef\xbb\xbffirst\r\nline\rother\n\nna\0ul\n\nbad \xff\xfe byte, good \xef\xbf\xbd\n\nclean")
    documents = read(path)
    assert [document.text for document in documents] == ["first\nline\nother", "naul", "bad �� byte, good �", "clean"]
    assert [dict(document.repairs) for document in documents] == [
        {"byte_order_mark": 1, "crlf": 1, "lone_cr": 1},
        {"nul": 1},
        {"invalid_utf8": 2},
        {},
    ]


def test_a_text_in_which_little_is_invalid_is_mended_not_rejected(write):
    latin = ("la for\xeat est \xe0 c\xf4t\xe9 de la rivi\xe8re, " * 20).encode("latin-1")
    with pytest.raises(UserError, match="are NUL or not UTF-8"):
        texts(write(latin))
    assert read(write(latin + b"the river and the forest and the wind " * 20))[0].repairs["invalid_utf8"] == 100
    assert texts(write(b'{"a": 1} is no document of its own')) == ['{"a": 1} is no document of its own']


def test_a_file_of_nothing_or_of_blank_lines_has_no_documents(write):
    assert read(write(b"")) == read(write(b"", "empty.gz")) == read(write(b"\r\n \t\n\0\n")) == []


def test_a_document_with_nothing_left_is_dropped_as_empty(write):
    assert [document.dropped for document in read(write(b"one\n\n\xef\xbb\xbf\n\ntwo"))] == ["", "empty", ""]


@pytest.mark.parametrize("blank", ["\n", "\r", " ", ""])
def test_a_text_without_blank_lines_is_cut_and_nothing_is_lost(write, monkeypatch, blank):
    monkeypatch.setattr(readers, "LONGEST_DOCUMENT", 1003)
    data = blank.join(f"{number:04}" for number in range(900))
    documents = read(write(data.encode() + b"\n\nlast"))
    assert max(len(document.text) for document in documents) <= 1003
    assert "".join("".join(document.text.split()) for document in documents[:-1]) == "".join(data.split())
    assert [document.repairs["cut_at_4_mib"] for document in documents] == [1] * (len(documents) - 2) + [0, 0]
    assert documents[-1].text == "last"
    words = " ".join(document.text for document in documents[:-1]).split()
    assert not blank or words == data.split()
    assert LONGEST_DOCUMENT == 4 << 20


def test_every_format_opens_by_its_name():
    assert FORMATS == ("wikipedia", "text", "cc100", "books", "jsonl", "csv", "parquet", "bookcorpus", "arrow")
    assert all(isinstance(open_format(name), Format) for name in FORMATS)
    assert open_format("cc100") == open_format("text")


def test_an_unknown_format_is_rejected_with_the_nearest_known_one():
    with pytest.raises(
        UserError, match=r"^no format 'wikipdia', did you mean 'wikipedia'\? Known: wikipedia, text, cc100"
    ):
        open_format("wikipdia")


@pytest.mark.parametrize("name", ["wikipedia", "text", "cc100", "books"])
def test_a_field_is_rejected_where_there_are_none(name):
    with pytest.raises(UserError, match=f"field 'body': format {name} has no fields; only jsonl, csv, parquet"):
        open_format(name, "body")
