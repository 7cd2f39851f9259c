"""Files that are not text, by content: refused by name, in one line that says what they are and what to do."""

import bz2
import gzip
import io
import lzma
import random
import re
import sqlite3
import tarfile
import zipfile

import pytest

from data_prep.cli import UserError
from data_prep.formats.by_name import open_format
from data_prep.formats.readers import zstd
from tests.parts.corpora import run_cli, write_vocab

PROSE = b"The river ran under the old house, and the wind was old.\n\n" * 60
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>" + PROSE + b"</body></html>"


def tar(kind=tarfile.PAX_FORMAT):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=kind) as archive:
        entry = tarfile.TarInfo("books/river.txt")
        entry.size = len(PROSE)
        archive.addfile(entry, io.BytesIO(PROSE))
    return packed.getvalue()


def zipped(*names):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            archive.writestr(name, "application/epub+zip" if name == "mimetype" else PROSE)
    return packed.getvalue()


def database():
    with sqlite3.connect(":memory:") as base:
        base.execute("create table books (text)")
        return base.serialize()


OTHER = {
    "a Git LFS pointer.*git lfs pull": POINTER,
    "a git-annex pointer.*git annex get": b"/annex/objects/SHA256E-s12345--00.txt\n",
    "an HTML page.*fetch the file again, or extract its text": HTML,
    "an HTML page,": b"\xef\xbb\xbf \r\n<html lang='en'><body>Too many requests" + PROSE,
    "an HTML page, ": b"<?xml version='1.0'?>\n<!DOCTYPE html PUBLIC '-//W3C//DTD XHTML 1.0'>\n<html>" + PROSE,
    "an RTF document.*save it as plain text": rb"{\rtf1\ansi\deff0 {\fonttbl{\f0 Times;}}" + PROSE,
    "a tar archive.*tar -xf": tar(),
    "a tar archive, not": tar(tarfile.USTAR_FORMAT),
    "a tar archive": tar(tarfile.GNU_FORMAT),
    "a PDF document.*pdftotext": b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n" + PROSE,
    "a PostScript document": b"%!PS-Adobe-3.0\n" + PROSE,
    "a PostScript document, ": b"\x04%!PS-Adobe-3.0\n" + PROSE,
    "a PDF document, ": b"\xef\xbb\xbf\n%PDF-1.7\r" + PROSE,
    "a DVC pointer.*dvc pull": b"outs:\n- md5: " + b"0" * 32 + b"\n  size: 37\n  path: river.txt\n",
    "a git-annex pointer, ": b"../.git/modules/river/annex/objects/aa/bb/SHA256E-s12345--00.txt/SHA256E-s12345--00.txt",
    "an HTML page, not": b"<!-- saved --> <!-- cached -->\n<meta charset='utf-8'><title>Gone</title>" + PROSE,
    "a Word document, ": zipped("word/document.xml", "[Content_Types].xml"),
    "an EPUB book, ": zipped("META-INF/container.xml", "chapter.xhtml"),
    "a picture or a recording": b"\0\0\0\x18ftypheic\0\0\0\0" + PROSE,
    "a zip file; only": zipped("river.txt"),
    "a Word document": zipped("[Content_Types].xml", "word/document.xml"),
    "an Excel workbook": zipped("[Content_Types].xml", "xl/workbook.xml"),
    "an EPUB book": zipped("mimetype", "chapter.xhtml"),
    "an old Office document": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
    "an SQLite database": database(),
    "a PNG picture": b"\x89PNG\r\n\x1a\n" + PROSE,
    "a JPEG picture": b"\xff\xd8\xff\xe0\0\x10JFIF\0" + PROSE,
    "a GIF picture": b"GIF89a" + PROSE,
    "a RAR archive": b"Rar!\x1a\x07\x01\0" + PROSE,
    "a 7z file; only": b"7z\xbc\xaf\x27\x1c" + PROSE,
    "a parquet file: use format parquet": b"PAR1" + PROSE,
    "an Arrow file": b"ARROW1\0\0" + PROSE,
    "an Arrow stream": b"\xff\xff\xff\xff\x10\x03\0\0\x10\0\0\0" + PROSE,
    "an Avro file": b"Obj\x01" + PROSE,
    "a WARC archive": b"WARC/1.0\r\nWARC-Type: warcinfo\r\n\r\n" + PROSE,
    "a NumPy array": b"\x93NUMPY\x01\0" + PROSE,
    "a Python pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0" + PROSE,
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + PROSE,
    "macOS's side file": b"\0\x05\x16\x07\0\x02\0\0Mac OS X" + bytes(40),
    "a program": b"\x7fELF\x02\x01\x01" + bytes(9) + PROSE,
    "an lz4 file": b"\x04\x22\x4d\x18" + PROSE,
    "a Unix archive": b"!<arch>\ndebian-binary   " + PROSE,
}


@pytest.fixture
def refused(tmp_path):
    def refused(data, name="input.txt", form="text"):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(UserError) as error:
            list(open_format(form).split(path))
        line = str(error.value)
        assert line.startswith(f"{path}: ") and "\n" not in line
        return line.removeprefix(f"{path}: ")

    return refused


@pytest.mark.parametrize("form", ["text", "books", "jsonl"])
@pytest.mark.parametrize("message", OTHER)
def test_what_is_not_text_is_refused_by_name(refused, message, form):
    line = refused(OTHER[message], form=form)
    assert re.match(message, line), line
    assert "iconv" not in line


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd.compress])
@pytest.mark.parametrize("message", [message for message in OTHER if not message.endswith(("only", "parquet"))])
def test_it_is_refused_by_name_when_it_was_packed_too(refused, message, pack):
    suffix = {"gzip": "gz", "bz2": "bz2", "_lzma": "xz", "lzma": "xz"}.get(pack.__module__, "zst")
    line = refused(pack(OTHER[message]), f"input.x.{suffix}")
    assert re.match(message, line), line


def test_a_packed_tar_is_told_to_be_unpacked_whatever_its_name(refused):
    for name in ("books.tar.gz", "books.tgz", "books.txt", "books.gz"):
        assert refused(gzip.compress(tar()), name).startswith("a tar archive, not text: unpack it (tar -xf) and name")


def test_what_was_packed_twice_is_refused(refused):
    line = refused(gzip.compress(gzip.compress(PROSE)), "input.gz")
    assert line.startswith("packed twice, by gzip and within it by gzip: unpack it once")


def test_a_text_that_was_packed_under_a_plain_name_is_still_read(tmp_path):
    path = tmp_path / "input.txt"
    path.write_bytes(gzip.compress(PROSE))
    assert len(list(open_format("text").split(path))) == 60


@pytest.mark.parametrize(
    "text",
    [
        b"version https://example.org of the text",
        b"PDF is a format; %PDF- begins it.",
        b"GIF89 was old. Rar! he said.",
        b"Obj one, ID3 tags, MZ, BM, ORC and GIF8.",
        b"{\\river} is a macro",
        b"<p>html in a text is the user's own</p>",
        b"<doc id=1>The river</doc>",
        b"ustar" * 200,
        b"!<arch> was here",
        b"WARC/ is no header",
        b"/annex/objects/ is a folder of git-annex",
        b"outs:\n- the river",
        b"\x1b[1mThe river\x1b[0m ran",
        b"[The river]",
    ],
)
def test_a_text_that_only_speaks_of_them_is_read(tmp_path, text):
    path = tmp_path / "input.txt"
    path.write_bytes(text)
    assert [raw for _, (raw, _) in open_format("text").split(path)] == [text]


@pytest.mark.parametrize("form", ["text", "wikipedia", "books"])
@pytest.mark.parametrize(
    ("data", "name"), [(POINTER, "a Git LFS pointer"), (HTML, "an HTML page"), (tar(), "a tar archive")]
)
def test_prepare_ends_with_code_2_and_one_line(tmp_path, data, name, form):
    (tmp_path / "input.txt").write_bytes(data)
    vocab = write_vocab(tmp_path)
    source = f"s={form}:{tmp_path}/input.txt"
    done = run_cli("prepare", "--out", tmp_path / "data", "--tokenizer", vocab, "--source", source, "--workers", 1)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/input.txt: {name}") and done.stderr.count("\n") == 1


def test_random_bytes_are_not_told_to_use_iconv(refused):
    line = refused(random.Random(0).randbytes(1 << 16))
    assert "% are NUL or not UTF-8" in line and "iconv" not in line


@pytest.mark.parametrize(
    ("encoding", "named"),
    [
        ("cp1251", "WINDOWS-1251"),
        ("koi8-r", "KOI8-R"),
        ("shift_jis", "CP932"),
        ("euc_jp", "EUC-JP"),
        ("iso2022_jp", "ISO-2022-JP"),
        ("cp500", "CP500"),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16LE"),
        ("utf-16-be", "UTF-16BE"),
        ("utf-32", "UTF-32"),
        ("utf-32-le", "UTF-32LE"),
        ("utf-32-be", "UTF-32BE"),
    ],
)
def test_text_in_another_encoding_is_refused_with_the_command_that_converts(refused, encoding, named):
    japanese = dict.fromkeys(("shift_jis", "euc_jp", "iso2022_jp"), "川は古い家の下を流れていました。")
    text = japanese | dict.fromkeys(("cp500", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"), "The river ran. ")
    data = (text.get(encoding, "Вода реки текла под старым домом. ") * 40).encode(encoding)
    assert f"iconv -f {named} -t UTF-8" in refused(data)


def test_a_list_in_json_is_no_text_and_told_what_to_do(refused):
    for name in ("input.json", "input.json.gz"):
        data = b'[{"text": "The river ran."}]'
        assert "write one object a line (jq -c '.[]'), and use format jsonl" in refused(data, name.removesuffix(".gz"))
    assert "use format jsonl" in refused(gzip.compress(data), name)


@pytest.mark.parametrize("form", ["parquet", "bookcorpus"])
def test_what_is_no_parquet_is_known_by_name_too(refused, form):
    assert refused(POINTER, form=form) == "a Git LFS pointer, not parquet: fetch the file itself (git lfs pull)"
    assert refused(HTML, form=form).startswith("an HTML page, not parquet: if a server sent it")
    assert refused(b"ARROW1\0\0" + PROSE, form=form).startswith("an Arrow file, not parquet: use format arrow")
    assert refused(b"PARE" + PROSE, form=form) == "encrypted parquet, which is not read: decrypt it first"
