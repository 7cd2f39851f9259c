"""Kinds of files that are not text, known by their first bytes, and what to do about each."""

import re
import tarfile
from pathlib import Path

from data_prep.cli import UserError

HEAD = 1 << 12  # bytes by which a kind is known

_AS_TEXT = "save it as plain text and name that file"
_UNPACK = "unpack it and name the files in it"
_LEAVE_OUT = "leave it out"
_ROWS = "convert it to parquet, or to JSON lines, and use that format"
_ARROW = "use format arrow"
_OFFICE = (
    rb"PK\x03\x04.{26}(?=\[Content_Types\]|_rels/|docProps/|customXml/|word/|xl/|ppt/)"  # the archive's first name
)
# What a file is, the bytes it begins with, and the way out. Each pattern holds bytes that no text begins with, or more
# of them than a text that speaks of such files would.
_KINDS = [
    (name, re.compile(pattern, re.DOTALL), remedy)
    for name, pattern, remedy in (
        ("an old Office document", rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", _AS_TEXT),
        ("a Word document", _OFFICE + rb".*?word/", _AS_TEXT),
        ("an Excel workbook", _OFFICE + rb".*?xl/", _AS_TEXT),
        ("a PowerPoint document", _OFFICE + rb".*?ppt/", _AS_TEXT),
        (
            "an EPUB book",
            rb"PK\x03\x04.{26}(?:mimetypeapplication/epub|META-INF/container\.xml)",
            "convert it to plain text (pandoc -t plain)",
        ),
        ("an OpenDocument file", rb"PK\x03\x04.{26}mimetypeapplication/vnd\.oasis", _AS_TEXT),
        ("an SQLite database", rb"SQLite format 3\0", "export its text as JSON lines, and use format jsonl"),
        ("a PNG picture", rb"\x89PNG\r\n\x1a\n", _LEAVE_OUT),
        ("a JPEG picture", rb"\xff\xd8\xff", _LEAVE_OUT),
        ("a GIF picture", rb"GIF8[79]a", _LEAVE_OUT),
        ("a TIFF picture", rb"II\*\0|MM\0\*", _LEAVE_OUT),
        ("a picture or a recording", rb"RIFF.{4}(?:WEBP|WAVE|AVI )", _LEAVE_OUT),
        ("a picture or a recording", rb"....ftyp[a-zA-Z0-9 ]{4}\0", _LEAVE_OUT),
        ("a recording", rb"ID3[\x02-\x04]\0|OggS\0|fLaC\0", _LEAVE_OUT),
        ("a DjVu document", rb"AT&TFORM", "extract its text first (djvutxt)"),
        ("a Mobipocket book", rb".{60}BOOKMOBI", "convert it to plain text"),
        ("a RAR archive", rb"Rar!\x1a\x07", _UNPACK),
        ("a Unix archive", rb"!<arch>\n", _UNPACK),
        ("a cpio archive", rb"07070[12][0-9a-fA-F]{70}", _UNPACK),
        ("an lz4 file", rb"\x04\x22\x4d\x18", "unpack it first"),
        ("a file packed by compress", rb"\x1f\x9d", "unpack it first (uncompress)"),
        ("an Arrow file", rb"ARROW1\0\0", _ARROW),
        ("an Arrow stream", rb"\xff\xff\xff\xff..\0\0\x10\0\0\0", _ARROW),
        ("an Avro file", rb"Obj\x01", _ROWS),
        ("an HDF5 file", rb"\x89HDF\r\n\x1a\n", _ROWS),
        ("a NumPy array", rb"\x93NUMPY", _ROWS),
        ("a Python pickle", rb"\x80[\x02-\x05](?:[\x95}\]]|c[a-z_]+)", _ROWS),
        ("a WARC archive", rb"WARC/\d\.\d\r?\n", "extract its text first, to JSON lines, and use format jsonl"),
        ("macOS's side file", rb"\0\x05\x16[\0\x07]", "delete the files whose names begin with ._"),
        ("a program", rb"\x7fELF|\xca\xfe\xba\xbe|\xcf\xfa\xed\xfe|MZ[^\0]{0,10}\0", _LEAVE_OUT),
    )
]
_AFTER_BLANKS = [  # kinds that are text themselves
    (name, re.compile(pattern, re.IGNORECASE | re.DOTALL), remedy)
    for name, pattern, remedy in (
        ("a PDF document", rb"%PDF-\d\.\d", "extract its text first (pdftotext)"),
        ("a PostScript document", rb"\x04?%!PS-Adobe", "extract its text first (ps2ascii)"),
        (
            "a Git LFS pointer",
            rb"version https://(?:git-lfs|hawser)[\w.]*/spec/",
            "fetch the file itself (git lfs pull)",
        ),
        ("a git-annex pointer", rb"\S{0,300}/annex/objects/\S+\s*\Z", "fetch the file itself (git annex get)"),
        ("a DVC pointer", rb"(?:md5: \w{32}\s+)?outs:\s+- (?:md5|etag|hash): \w", "fetch the file itself (dvc pull)"),
        (
            "an HTML page",
            rb"(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body|meta|title|script|style|link)\b",
            "if a server sent it for the file, fetch the file again, or extract its text",
        ),
        ("an RTF document", rb"\{\\rtf\d", _AS_TEXT),
    )
]
_NUL = b"\0"


def refuse_other_kinds(path: Path, head: bytes, wanted: str = "text") -> None:
    """Raise UserError if the file that begins with ``head``, packed or unpacked, is of a kind that is not ``wanted``."""
    head = head[:HEAD]
    if kind := _known(head):
        name, remedy = kind
        raise UserError(f"{path}: {name}, not {wanted}: {remedy}")


def _known(head: bytes) -> tuple[str, str] | None:
    """The name of the kind and the remedy; None if it may be text."""
    for name, pattern, remedy in _KINDS:
        if pattern.match(head):
            return name, remedy
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n\0")
    for name, pattern, remedy in _AFTER_BLANKS:
        if pattern.match(text):
            return name, remedy
    if _is_tar(head):
        return "a tar archive", "unpack it (tar -xf) and name the files in it"
    return None


def _is_tar(head: bytes) -> bool:
    """Whether a file begins with the header of a tar archive's first member, which holds its own sum."""
    block = head[: tarfile.BLOCKSIZE]
    if _NUL not in block:
        return False
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
