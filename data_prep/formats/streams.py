"""From where to read a packed dump whose streams hold whole pages, as Wikimedia packs it, to begin in its middle."""

import bz2
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from data_prep.formats.readers import PIECE

BEGINS_PAGE = re.compile(rb"<page(?:\s[^<>]{0,99})?>\s{0,99}<title\b")  # wherever it stands: no page holds it

_STREAM_HEAD = re.compile(rb"BZh[1-9]1AY&SY")
_DUMP_TAG = re.compile(rb"</?mediawiki[\s>]")
_LOOK_BACK = 1 << 24  # bytes searched for the head of a bz2 stream; the streams of real dumps have about 1 MB
_LOOK_INSIDE = 1 << 20  # bytes of what a stream unpacks to
_SMALL_STREAM = 1 << 13  # bytes; a stream that holds nothing but the head or the end of a dump is smaller


def page_stream(path: Path, before: int) -> int:
    """The last byte up to ``before`` at which a bz2 stream begins whose text begins with a page, or 0.

    Pages that begin in the pieces from ``before`` on are all in this stream and those that follow: an earlier stream is
    unpacked to its end when its last byte is read. 0 too if another dump may begin in between.
    """
    with path.open("rb") as file:
        if not _STREAM_HEAD.match(file.read(10)):
            return 0
        # Streams that were cut without regard to pages rarely begin with one: a few are tried, not all.
        heads = list(_stream_heads(file, max(0, before - _LOOK_BACK), before))
        start = next((head for head in heads[:-9:-1] if BEGINS_PAGE.match(_text(file, head, PIECE).lstrip())), 0)
        return 0 if start and _dumps_meet(file, start) else start


def _stream_heads(file: BinaryIO, low: int, high: int) -> Iterator[int]:
    """Yield the bytes from ``low`` to ``high`` at which a bz2 stream seems to begin."""
    for begin in range(low, high + 1, _LOOK_BACK):
        file.seek(begin)
        window = file.read(min(_LOOK_BACK, high + 1 - begin) + 9)  # 9: a head of 10 bytes may begin at the last
        yield from (begin + found.start() for found in _STREAM_HEAD.finditer(window))


def _dumps_meet(file: BinaryIO, before: int) -> bool:
    """Whether a dump begins or ends in a small stream after the file's first, up to ``before``.

    So it is where dumps of many streams are joined; to look into the other streams is as dear as to read them.
    """
    heads = [*_stream_heads(file, 0, before - 1), before]
    if b"<page" in _text(file, 0, _LOOK_INSIDE):  # the heads of such dumps have no stream of their own
        return True
    small = (head for head, end in pairwise(heads[1:]) if end - head < _SMALL_STREAM)
    return any(_DUMP_TAG.search(_text(file, head, _LOOK_INSIDE)) for head in small)


def _text(file: BinaryIO, start: int, size: int) -> bytes:
    """The first ``size`` bytes that a bz2 stream at ``start`` unpacks to; nothing if it is none after all."""
    stream, text = bz2.BZ2Decompressor(), b""
    file.seek(start)
    try:
        while len(text) < size and not stream.eof and (data := file.read(PIECE)):
            text += stream.decompress(data, size - len(text))
    except OSError:
        return b""
    return text
