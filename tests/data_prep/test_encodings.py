"""The encoding of text that is not UTF-8: the command that converts it, also where a few characters amid English decide."""

import pytest

from data_prep.formats.encodings import advice, conversion

WESTERN = [
    "He said “no” — it’s the café.",
    "naïve",
    "It costs £5, or €6 at 20 °C.",
    "see § 3",
    "½ cup",
    "Zoë and Ångström",
    "l’été à Nîmes",
    "¿Qué? señor",
    "as ações do coração",
]
OTHER = [
    ("cp1250", "Bełchatów leży w Łodzi", "WINDOWS-1250"),
    ("cp1250", "hűség és erő, őszi idő", "WINDOWS-1250"),
    ("cp1251", "the word Вода means water", "WINDOWS-1251"),
    ("koi8-r", "the words вода реки текла под старым домом", "KOI8-R"),
    ("cp1254", "güzel bir gün, ışık, şehir, ağaç", "WINDOWS-1254"),
    ("cp1255", "the word שלום means peace", "WINDOWS-1255"),
    ("mac-roman", "L’élève répondit à côté de la forêt, près du château où l’été dura", "MACINTOSH"),
    ("iso8859-15", "le cœur de la sœur et l’œuf", "ISO8859-15"),
]


@pytest.mark.parametrize("times", [1, 30])
@pytest.mark.parametrize("text", WESTERN)
def test_a_few_western_characters_amid_english_are_windows_1252(text, times):
    assert conversion("\n".join([text] * times).encode("cp1252")) == "iconv -f WINDOWS-1252 -t UTF-8"


@pytest.mark.parametrize(("encoding", "text", "name"), OTHER)
def test_what_looks_like_them_elsewhere_is_not(encoding, text, name):
    assert conversion("\n".join([text] * 20).encode(encoding, errors="ignore")) == f"iconv -f {name} -t UTF-8"


def test_utf8_and_ascii_need_no_conversion():
    for text in ("", "The river ran.", "naïve, вода, 川"):
        assert conversion(text.encode()) is None


def test_the_advice_is_of_the_lines_that_are_not_utf8():
    lines = [b"The river ran.", *(text.encode("cp1252") for text in WESTERN)]
    assert advice([b"\n".join(lines)]).startswith("convert it (iconv -f WINDOWS-1252")
    assert advice([b"The river ran.", "naïve".encode()]).startswith("no known encoding fits these bytes")
