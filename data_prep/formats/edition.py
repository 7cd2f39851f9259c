"""What the makers of an electronic edition added to a book: headers, footers, notes, marks of pages and of pictures.

Every removal is bounded: a mark that never ends stays, and costs nothing of the book.
"""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

_HEAD = 1 << 14  # characters searched for a header or a note, at the book's beginning
_TAIL = 1 << 16  # and for a note at its end
_FOOT = 1 << 12  # and for a footer
_LONGEST_PARAGRAPH = 1500  # characters, of a header or footer
_LONGEST_SECTION = 1 << 13  # characters of a note under a heading, at the beginning
_DEEPEST = 8  # brackets in each other
_LONGEST = {"illustration": 1 << 11, "transcriber_note": 1 << 15}  # characters of one in brackets

_PARAGRAPH = re.compile(r"\s*+(\S[^\n]*+(?:\n[ \t]*+[^\s][^\n]*+)*+)")
# A house's own header: it says in one of its first paragraphs that this is an electronic book of that house.
_HOUSE = re.compile(
    r"^[ \t*]*(?:The |An? |This is (?:the|an?) )?(?:Project Gutenberg\b(?! (?:of )?(?:Australia|Canada))|"
    r"(?P<other>Project Gutenberg|Distributed Proofreaders Canada|Faded Page)\b)"
    r"[^\n]*?\be-?(?:book|text)|^[ \t*]*(?P<french>Livre électronique de Project Gutenberg Canada)\b",
    re.IGNORECASE | re.MULTILINE,
)
_OF_HEADER = re.compile(
    r"^[ \t*_]*(?:Title|Author|Translator|Editor|Illustrator|(?:Official )?Release Date|Posting Date|Edition|Language|"
    r"Character set encoding|e-?(?:book|text) No\.?|Date (?:first|most|last|of)\b[^\n:]*|Most recent update|Credits|"
    r"Place and date of edition\b[^\n:]*|Edition used as base\b[^\n:]*|"
    r"Titre|Auteur|Traducteur|(?:Lieu et )?date de (?:la|l['’])[^\n:]*)[ _]*:"
    r"|livre électronique (?:est rendu|a été)|domaine public (?:au Canada|canadien)"
    r"|Project Gutenberg|Distributed Proofreaders|gutenberg\.(?:net|org|ca)|Faded ?Page|Copyright laws are changing|"
    r"do not (?:remove|change or edit) (?:this|the) header|small print|Free Plain Vanilla|"
    r"Readable By Both Humans|Prepared By (?:Thousands|Hundreds) of Volunteers|made available at no cost|"
    r"public domain in (?:Australia|Canada)|Canadian public domain|"
    r"This e-?(?:book|text|file) was (?:first )?(?:produced|prepared|posted)",
    re.IGNORECASE,
)
_OF_FOOTER = re.compile(
    r"\[?(?:The )?End of\b[^\n]+(?:\n[^\n]+)?,? by [^\n]+\]\Z|This site is full of FREE ebooks|"
    r"(?:The )?(?:End of )?(?:the )?Project Gutenberg (?:of )?(?:Australia|Canada)\b[^\n]*\Z|"
    r"[^\n]*gutenberg\.(?:net\.au|ca)\b[^\n]*\Z",
    re.IGNORECASE,
)
_HOUSE_NOTE = re.compile(  # after Project Gutenberg's header
    r"(?:Note:\s+)?(?:Project Gutenberg (?:also )?has\b|Images of the original pages are available\b)|"
    r"\(?This file was produced from images\b",
    re.IGNORECASE,
)
_EXPORT = re.compile(  # what Wikisource and Standard Ebooks put before a book, and after it
    r"^[ \t]*Export(?:ed from|é de|iert aus) Wikisource\b[^\n]{0,60}$\n?|"
    r"(?:^[ \t]*Imprint[ \t]*\n\s*)?^[ \t]*This ebook is the product of many hours[^\0]{0,3000}?\bstandardebooks\.org\b[^\n]*$",
    re.IGNORECASE | re.MULTILINE,
)
_EXPORT_ENDS = re.compile(
    r"^[ \t]*(?:About this digital edition|À propos de cette édition électronique|Über diese digitale (?:Ausgabe|Edition)|"
    r"Colophon|Uncopyright)[ \t]*\n(?=(?:[^\n]*\n){0,10}?[^\n]*\b(?:Wikisource|Standard Ebooks)\b)",
    re.IGNORECASE | re.MULTILINE,
)
_SMASHWORDS = re.compile(r"\bSmashwords\b(?: Edition|\.com)|\bat Smashwords\b", re.IGNORECASE)
_SMASHWORDS_LINE = re.compile(
    r"^[^\n]{0,100}\bSmashwords Edition\b[^\n]{0,100}$|"
    r"^[^\n.]{0,80}\b(?:at|by|on|from|with) Smashwords(?:\.com)?[ .]*$(?!\n(?-i:[a-z]))|"
    r"^[^\n]{0,80}\b(?:www\.|//)smashwords\.com\b[^\n ]*$",
    re.IGNORECASE | re.MULTILINE,
)
_SMASHWORDS_LICENCE = re.compile(r"\A[^\n]*(?:\n[^\n]+)?licensed for your personal (?:enjoyment|use)", re.IGNORECASE)
_LICENCE_WORDS = re.compile(r"licen[cs]ed|re-?sold|purchase|download|distributed|retailer", re.IGNORECASE)
_SMASHWORDS_FOOTER = re.compile(
    r"\b(?:at|on|from|by) Smashwords\b|\bSmashwords(?:\.com\b|:)|"
    r"\A(?:Discover|Other) (?:other )?(?:titles|books|works)\b[^\n]* by |\AConnect with\b|\AFollow me\b|"
    r"\A(?:My )?(?:Twitter|Facebook|Blog|Website|Web ?site)\b[^\n]{0,100}\Z|\A(?:https?://|www\.)\S+\Z",
    re.IGNORECASE,
)
_NOTE = (
    r"(?:Original )?(?:Transcri(?:ber|ption|ptor)|Redactor|Proofreader|Etext(?:er| editor)|E-?text preparer)(?:['’]?s['’]?)?"
    r"(?: end)?[- ]?notes?\b|Notas? d(?:el|e la|o|a) transcri(?:p|ç)\w+|Notes? (?:du|de la|sur la) transcri\w+|"
    r"Im [Ff]olgenden werden alle ge[äa]nderten|Nota del trascrittore|Anmerkung(?:en)? (?:des Bearbeiters|zur Transkription)|"
    r"Opmerking(?:en)? van de bewerker|(?:Paliwanag|Tal[aâ]) ng Tagapagsalin"
)
_PICTURE = (
    r"(?:Illustrations?|Il(?:·?l)?ustraci(?:[oó]n?|ones)|Ilustraç(?:ão|ao|ões)|Illustrazion[ei]|Illustraties?|Ilustrac(?:j[ae]|e)|"
    r"Illusztráció|Abbildung(?:en)?|Afbeelding|Larawan|Kuva|Иллюстрация|Εικόνα|插圖|插图|挿絵)"
    r"(?=\s?(?:[\]:.;：—–]|--)| (?:No\.? ?)?\d+[a-z]?\s?[\].:]|[ \t]*\n\s*(?-i:[A-ZÀ-Þ“\"]))|"
    r"(?:Picture|Image|Bild|Frontispiece)(?=:)|(?:Image|Frontispiece|Decoration)(?=\.?\])|"
    r"Image (?:unavailable|not available)(?=[\]:.])"
)
_OPENING = re.compile(rf"\[[ _]*(?:(?P<transcriber_note>{_NOTE})|(?P<illustration>{_PICTURE}))", re.IGNORECASE)
_NOTE_OPENS = re.compile(_NOTE + r"|Typographical errors corrected\b", re.IGNORECASE)
_BRACKET = re.compile(r"[\[\]]")
_NUMBER = r"(?:\d{1,4}|[ivxlc]{1,8})"
_PAGE = re.compile(
    rf"\[(?:Pgs?|Pages?|P[aá]g(?:ina)?|Seite)[ ._]*{_NUMBER}[a-z]?(?:[-–, ]+{_NUMBER})?\]|\[Blank page\]|"
    rf"\{{(?:pg?\.?|page)[ _]*{_NUMBER}\}}",
    re.IGNORECASE,
)
# The same or another's reference: they are the pages' if they count, and most stand amid the text.
_MAYBE_PAGES = [re.compile(form) for form in (r"\[p\. ?(\d{1,4})\]", r"\[S\. ?(\d{1,4})\]", r"\{(\d{1,4})\}")]
_FEWEST_PAGES = 10
_PICTURE_FILE = re.compile(  # a line that only names one, and the line that led to a larger one
    r"^[ \t]*(?:[\w-]{1,60}\.(?:jpe?g|png|gif)(?:[ \t]*\(\d+[ \t]*K\))?|(?:0\d{3}|\d{5})m)[ \t]*$(?:\s+Full Size[ \t]*$)?\n?",
    re.IGNORECASE | re.MULTILINE,
)
_OF_NOTE = re.compile(  # what a transcriber writes of, in some languages
    r"\b(?:spell|hyphen|punctuat|typo|mis-?print|mis-?spel|errat|errors?\b|italic|underscore|bold\b|small cap|foot-?note|"
    r"corrected|chang(?:ed|es)\b|inconsisten|printe[dr]|printing|scann?ed|scans?\b|proofread|transcri|e-?text|e-?book|html|"
    r"utf|ascii|archaic|original|as published|copyright|quotation mark|illustrations?\b|pp?(?:age|\.) *\d|line \d|"
    r"sic\b|margin|"
    r"ort(?:h?o)?gra[fp]|pont?ua|puntua|ponctua|punteggiat|coquille|corrig|correg|corrett|erreur|erro(?:r|s|re)\b|italique|"
    r"cursiv|corsiv|kursiv|gesperrt|schreibweise|rechtschreib|zeichensetzung|druckfehler|fehler|spelling|drukfout|gecorrigeerd|"
    r"interpunctie|p[aá]gina \d|seite \d|zeile \d|ligne \d)|->|→|==>",
    re.IGNORECASE,
)
_BOX = re.compile(r"^[ \t]*\+-{9,}\+?[ \t]*\n((?:[ \t]*\|[^\n]*\n)+)[ \t]*\+-{9,}\+?[ \t]*(?:\n|\Z)", re.MULTILINE)
_HEADING = re.compile(
    rf"^[ \t*_=~]*(?:{_NOTE})((?:[:.]|--|—)[^\n]*|[^\n]{{0,60}})$", re.IGNORECASE | re.MULTILINE
)  # after a blank line

_GAP = re.compile(r"(?:\n[ \t]*){3}")  # two blank lines
_BREAK = re.compile(r"(?:\n[ \t]*){5}")  # four, as before a chapter


def without_additions(text: str) -> tuple[str, Counter[str]]:
    """The book alone, and by kind the number of what was removed."""
    found: Counter[str] = Counter()
    for remove in (
        _header,
        _house_notes,
        _export,
        _footer,
        _smashwords_footer,
        _smashwords_header,
        _boxes,
        _note_sections,
        _brackets,
        _files,
        _pages,
    ):
        text = remove(text, found)
    found = +found
    return (text.strip() if found else text), found


def _paragraphs(text: str, limit: int) -> Iterator[re.Match[str]]:
    """The paragraphs that begin in the first ``limit`` characters."""
    at = 0
    while at < limit and (paragraph := _PARAGRAPH.match(text, at)):
        yield paragraph
        at = paragraph.end()


def _header(text: str, found: Counter[str]) -> str:
    """Without the header of a house that marks no end of it: the paragraphs that only such a header has."""
    end, house = 0, None
    for number, paragraph in enumerate(_paragraphs(text, _HEAD)):
        content = paragraph[1]
        if len(content) > _LONGEST_PARAGRAPH or not _OF_HEADER.search(content):
            break
        house = house or (_HOUSE.search(content) if number < 3 else None)
        end = paragraph.end()
    if house is None:
        return text
    kind = "edition_header" if house["other"] or house["french"] else "gutenberg_header"
    found[kind] += 1
    return text[end:].lstrip()


def _house_notes(text: str, found: Counter[str]) -> str:
    """Without the paragraphs at the beginning on other editions of the house, and on the pictures it is made of."""
    at = 0
    while (paragraph := _PARAGRAPH.match(text, at)) and _HOUSE_NOTE.match(paragraph[1]):
        at = paragraph.end()
        found["transcriber_note"] += 1
    return text[at:].lstrip() if at else text


def _export(text: str, found: Counter[str]) -> str:
    """Without what a site that exports books says of itself and of the edition."""
    head, count = _EXPORT.subn("", text[:_HEAD])
    found["edition_header"] += bool(count)
    text = head + text[_HEAD:]
    if closing := _EXPORT_ENDS.search(text, max(0, len(text) - _TAIL)):
        found["edition_footer"] += 1
        return text[: closing.start()].rstrip()
    return text


def _footer(text: str, found: Counter[str]) -> str:
    """Without the paragraphs with which such a house ends a book."""
    begin = _last_of(_OF_FOOTER, text)
    found["edition_footer"] += begin < len(text)
    return text[:begin].rstrip()


def _smashwords_header(text: str, found: Counter[str]) -> str:
    """Without the lines and paragraphs of Smashwords near the beginning; the title page around them stays."""
    if not _SMASHWORDS.search(text, 0, _HEAD):
        return text
    kept, at = [], 0
    for paragraph in _paragraphs(text, _HEAD):
        content = paragraph[1]
        kept.append(text[at : paragraph.start(1)])
        at = paragraph.end()
        if _SMASHWORDS_LICENCE.search(content) or (_SMASHWORDS.search(content) and _LICENCE_WORDS.search(content)):
            kept[-1] = kept[-1].rstrip()
        elif lines := _SMASHWORDS_LINE.sub("", content).strip("\n"):
            kept.append(re.sub(r"\n{2,}", "\n", lines) if lines != content else content)
        else:
            kept[-1] = kept[-1].rstrip()
    rest = "".join([*kept, text[at:]])
    found["edition_header"] += rest != text
    return rest


def _smashwords_footer(text: str, found: Counter[str]) -> str:
    """Without the last paragraphs, if they name the author's places on the net, Smashwords among them."""
    begin = _last_of(_SMASHWORDS_FOOTER, text)
    if "smashwords" not in text[begin:].lower():
        return text
    found["edition_footer"] += 1
    return text[:begin].rstrip()


def _last_of(kind: re.Pattern[str], text: str) -> int:
    """The offset from which on all paragraphs are of that kind; the text's length if the last is not."""
    before = max(0, len(text) - _FOOT)
    if before:  # begin with a whole paragraph
        gap = text.find("\n\n", before)
        before = len(text) if gap < 0 else gap
    begin = len(text)
    for paragraph in reversed([*_PARAGRAPH.finditer(text, before)]):
        if len(paragraph[1]) > _LONGEST_PARAGRAPH or not kind.search(paragraph[1].rstrip()):
            break
        begin = paragraph.start(1)
    return begin


def _boxes(text: str, found: Counter[str]) -> str:
    """Without notes in frames of + - and |."""

    def without(box: re.Match[str]) -> str:
        if not _NOTE_OPENS.search(box[1], 0, 300):
            return box[0]
        found["transcriber_note"] += 1
        return ""

    return _BOX.sub(without, text)


def _note_sections(text: str, found: Counter[str]) -> str:
    """Without notes under a heading, near the beginning or the end."""
    for heading in reversed(
        [*_HEADING.finditer(text, 0, _HEAD), *_HEADING.finditer(text, max(_HEAD, len(text) - _TAIL))]
    ):
        begin = heading.start()
        line_before = text[text.rfind("\n", 0, max(0, begin - 1)) + 1 : begin]
        end = None if line_before.strip() else _section_end(text, heading)
        if end is not None:
            found["transcriber_note"] += 1
            text = text[:begin] + text[end:].lstrip("\n")
    return text


def _section_end(text: str, heading: re.Match[str]) -> int | None:
    """Where a note ends: with its paragraph if that has more than the heading, else with the last that is of a note.

    The paragraphs are searched up to a gap. None if nothing shows that the heading is one.
    """
    begin, late = heading.start(), heading.start() > len(text) // 2
    paragraph = _PARAGRAPH.match(text, begin)
    if paragraph is None:
        return None
    end = None
    if paragraph.end() > heading.end() or re.search(r":.*\w", heading[1]):
        end = paragraph.end() if paragraph.end() - begin < _LONGEST_SECTION else None
        if end is None or not late:
            return end
    at = end or heading.end()
    first = at + len(text[at : at + _LONGEST_SECTION]) - len(text[at : at + _LONGEST_SECTION].lstrip())
    gap = (_BREAK if late else _GAP).search(text, first, first + (_TAIL if late else _LONGEST_SECTION))
    limit = gap.start() if gap else len(text)
    while (paragraph := _PARAGRAPH.match(text, at)) and paragraph.start(1) < limit and _OF_NOTE.search(paragraph[1]):
        at = end = paragraph.end()
        if at - begin > (_TAIL if late else _LONGEST_SECTION):
            return None
    return end


def _brackets(text: str, found: Counter[str]) -> str:
    """Without notes and pictures in brackets, which may hold other brackets, and without the lines they leave blank."""
    kept, at = [], 0
    for opening in _OPENING.finditer(text):
        if opening.start() < at:
            continue
        kind = opening.lastgroup or ""
        end = _closing(text, opening, _LONGEST[kind])
        if end is None:
            continue
        begin, end = _with_blanks(text, opening.start(), end)
        kept.append(text[at:begin])
        at = end
        found[kind] += 1
    return "".join([*kept, text[at:]]) if at else text


def _closing(text: str, opening: re.Match[str], longest: int) -> int | None:
    """The end of the bracket that closes the opening one; None if there is none within ``longest`` characters."""
    depth = 0
    for bracket in _BRACKET.finditer(text, opening.start(), opening.start() + longest):
        depth += 1 if bracket[0] == "[" else -1
        if depth == 0:
            return bracket.end()
        if depth > _DEEPEST:
            return None
    return None


def _with_blanks(text: str, begin: int, end: int) -> tuple[int, int]:
    """The span widened to whole lines if nothing else is on them, else by the blanks that would be left over."""
    line = text.rfind("\n", 0, begin) + 1
    after = end
    while after < len(text) and text[after] in " \t":
        after += 1
    at_end = after == len(text) or text[after] == "\n"
    if not text[line:begin].strip(" \t"):  # at the beginning of a line
        return (line, min(after + 1, len(text))) if at_end else (begin, after)
    if at_end:
        return line + len(text[line:begin].rstrip(" \t")), after
    return begin, after if text[begin - 1] in " \t" else end


def _files(text: str, found: Counter[str]) -> str:
    """Without lines that are the names of pictures' files."""
    text, count = _PICTURE_FILE.subn("", text)
    found["illustration"] += count
    return text


def _pages(text: str, found: Counter[str]) -> str:
    """Without the numbers of the printed pages in their marks."""
    for form in (_PAGE, *_MAYBE_PAGES):
        marks = [*form.finditer(text)]
        if form is _PAGE or _count_pages(text, marks):
            text = _without_pages(text, marks, found)
    return text


def _count_pages(text: str, marks: list[re.Match[str]]) -> bool:
    """Whether these numbers are those of pages, not of notes, verses or sections."""
    numbers = [int(mark[1]) for mark in marks]
    ascending = all(first < second for first, second in pairwise(numbers))
    amid = sum(text[max(0, mark.start() - 2) : mark.start()] != "\n\n" for mark in marks)
    return len(marks) >= _FEWEST_PAGES and ascending and numbers[-1] - numbers[0] < 2 * len(marks) < 4 * amid


def _without_pages(text: str, marks: list[re.Match[str]], found: Counter[str]) -> str:
    kept, at = [], 0
    for mark in marks:
        begin, end = _with_blanks(text, mark.start(), mark.end())
        kept.append(text[at : max(begin, at)])
        at = end
        found["page_mark"] += 1
    return "".join([*kept, text[at:]]) if at else text
