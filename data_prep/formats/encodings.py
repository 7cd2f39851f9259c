"""Text in another encoding than UTF-8: which one it is, and the command that converts it."""

import re
from collections.abc import Iterable
from typing import Any

import chardet

_SAMPLE = 1 << 16  # bytes by which an encoding is known
_SEARCHED = 1 << 28  # bytes in which so many are looked for
_RARE = (  # hardly used, or not known to iconv
    *("mac-greek", "mac-iceland", "mac-latin2", "mac-turkish", "hp-roman8", "shift_jis_2004", "cp720", "cp856"),
    *("iso2022_jp_2004", "iso2022_jp_ext"),
)
_NAMES = {  # as iconv has them; Latin-1 is part of the first
    "ISO-8859-1": "WINDOWS-1252",
    "MACROMAN": "MACINTOSH",
    "MACCYRILLIC": "MAC-CYRILLIC",
    "UTF-16-LE": "UTF-16LE",
    "UTF-16-BE": "UTF-16BE",
    "UTF-32-LE": "UTF-32LE",
    "UTF-32-BE": "UTF-32BE",
}
# Text of western Europe as it looks in windows-1252: small letters amid words, capitals before them, quotes around words.
# A guess by frequencies takes a few such characters amid English for rarer encodings. Other text in 1252 is left to it.
_WESTERN = re.compile(
    r"(?:[\0-\x7f]|(?<![0-9])(?:[àâäáãåæçéèêëíìîïñóòôöøœúùûüß]|õ(?=e))(?![0-9A-Z])|(?<![a-z])[ÀÂÄÁÅÆÇÉÈÊÍÎÑÓÖÔØÚÜ](?=[a-z])|"
    r"(?<![a-zA-Z])[“‘«½¼¾£€§©®°¡¿](?![0-9]?[\x80-\xff])|[”»](?![a-z])|[’–—…•™\xa0ªº])*+"
)
_THREE = re.compile(r"[à-ÿœ]{3}")  # no word of these languages has three of them


def conversion(sample: bytes) -> str | None:
    """The command that converts text like ``sample`` to UTF-8; None if no encoding fits it."""
    if _is_western(sample):
        return "iconv -f WINDOWS-1252 -t UTF-8"
    eras = chardet.EncodingEra
    known = eras.MODERN_WEB | eras.LEGACY_ISO | eras.LEGACY_MAC | eras.DOS | eras.MAINFRAME
    name = chardet.detect(sample, encoding_era=known, exclude_encodings=_RARE, no_match_encoding="utf-8")["encoding"]
    if name is None or name.upper().startswith(("UTF-8", "ASCII")):
        return None
    return f"iconv -f {_NAMES.get(name.upper(), name.upper())} -t UTF-8"


def _is_western(sample: bytes) -> bool:
    """Whether the sample is surely windows-1252, or Latin-1 as its part."""
    if sample.isascii() or _is_utf8(sample):
        return False
    try:
        text = sample.decode("cp1252")
    except UnicodeDecodeError:
        return False
    return bool(_WESTERN.fullmatch(text)) and not _THREE.search(text)


def advice(raws: Iterable[Any], column: bool = False) -> str:
    """What to do about a file, or a ``column`` of parquet, whose raw documents are partly not UTF-8."""
    sample, mixed = _sample(raws)
    command = conversion(sample) if sample else None
    if command is None:
        return "no known encoding fits these bytes: is the file damaged? Fetch it again, or leave it out"
    if column:
        encoding = command.split()[2]
        return f"its bytes are {encoding}: decode them, write the column as text, and prepare into a new folder"
    if mixed:
        return f"convert its lines that are not UTF-8, and only these ({command}), and prepare into a new folder"
    return f"convert it ({command}), and prepare into a new folder"


def _sample(raws: Iterable[Any]) -> tuple[bytes, bool]:
    """The lines of raw documents that are not UTF-8, and whether many others are UTF-8 beyond ASCII."""
    invalid: list[bytes] = []
    size = read = others = 0
    for raw in raws:
        data = raw[0] if isinstance(raw, tuple) else raw
        if not isinstance(data, bytes):
            continue
        read += len(data)
        for line in [] if data.isascii() else data.splitlines():
            if not _is_utf8(line):
                invalid.append(line)
                size += len(line)
            elif not line.isascii():
                others += 1
        if size >= _SAMPLE or (invalid and read > _SEARCHED):
            break
    return b"\n".join(invalid), others * 10 > len(invalid)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
