"""The last step from wikitext to prose: what stands in the text of the nodes and is no text, and what dropped things left.

Everything here is linear in the text's length.
"""

import re
from collections import Counter
from collections.abc import Iterator

from data_prep.formats.apostrophes import without_emphasis

# Marks in the text until it is tidied. No XML file can hold them.
HEADING = "\x02"  # begins a heading's line; its level follows
HOLE = "\x03"  # something without a text was here; the character after it says what
BREAK = "\x04"  # a line end within a line of wikitext
APART = "\x05"  # between apostrophes that do not belong together
ITEM = "\x07"  # before a definition, which may follow its term in a line
KEPT = "\x06"  # begins a line that stays as it is

_FIRST_NAME = 0xF0000  # of the characters of a private plane that stand for names after HOLE
_NAME = "[\U000f0000-\U000ffffd]"
_HOLE = f"{HOLE}{_NAME}"
_HOLES = f"{_HOLE}(?: ?{_HOLE})*+"  # a run, to be looked at from its beginning alone

_MAGIC = re.compile(r"__([^\W\d_]{1,40}(?:_[^\W\d_]{1,40}){0,5})__")
_MAGIC_IN_ANY_CASE = re.compile(
    "notoc|forcetoc|toc|nogallery|noeditsection|newsectionlink|nonewsectionlink|hiddencat|index|noindex|nocc|notc|"
    "notitleconvert|nocontentconvert|staticredirect|expectunusedcategory|archivedtalk|notalk|disambig",
    re.I,
)
_VARIANTS = re.compile(r"-\{([^{}]*)\}-")
_DEEPEST = 8  # variants within variants
_HIDDEN_FLAGS = frozenset("HT-")
_RULE = re.compile(r"\s*[a-z]{2,4}(?:-[a-zA-Z]+)*\s*:([^;]*)")
# Elements of HTML, today's and earlier ones, and of MediaWiki's extensions; other tags are text.
TAG_NAMES = (
    "a|abbr|acronym|address|area|article|aside|audio|b|base|basefont|bdi|bdo|big|blockquote|body|br|"
    "button|canvas|caption|categorytree|ce|center|chem|cite|code|col|colgroup|data|datalist|dd|del|details|"
    "dfn|dialog|dir|div|dl|dt|em|embed|fieldset|figcaption|figure|font|footer|form|frame|frameset|gallery|"
    "graph|h1|h2|h3|h4|h5|h6|head|header|hiero|hr|html|i|iframe|imagemap|img|includeonly|indicator|input|"
    "inputbox|ins|kbd|label|legend|li|link|main|map|mapframe|maplink|mark|math|meta|meter|nav|noframes|"
    "noinclude|noscript|nowiki|object|ol|onlyinclude|optgroup|option|output|p|param|picture|poem|pre|"
    "progress|q|rb|ref|references|rp|rt|rtc|ruby|s|samp|score|script|section|select|small|source|span|"
    "strike|strong|style|sub|summary|sup|svg|syntaxhighlight|table|tbody|td|templatedata|templatestyles|"
    "textarea|tfoot|th|thead|time|timeline|title|tr|track|translate|tt|tvar|u|ul|var|video|wbr"
)
_HALF_A_LINK = re.compile(r"(?<!\[)\[[^\[\]|\n]{1,200}\|([^\[\]\n]*)\]\]")
_STRAYS = [
    re.compile(r"\[\[|\]\]|\{\{+|\}\}+"),  # what the parser could not pair
    re.compile(r"^[ \t]*(?:\{\||\|).*$", re.M),  # lines of tables the parser could not close
    re.compile(rf"</?(?:{TAG_NAMES})(?![\w-])[^<>\n]*>", re.I),  # tags the parser could not pair
]
_PAIRS = "“”„“„”””«»»«‹›‘’‚‘「」『』《》〈〉【】〔〕（）()[]"
_AROUND_HOLES = [
    (re.compile(pattern, re.M), replacement)
    for pattern, replacement in (
        *(
            (rf"{re.escape(pair[0])} ?({_HOLES}) ?{re.escape(pair[1])}", r"\1")
            for pair in zip(_PAIRS[::2], _PAIRS[1::2], strict=True)
        ),
        (rf'"({_HOLES})"', r"\1"),
        (rf"[(（](?=[^\w()（）]*+[)）])[^\w()（）]*?({_HOLES})[^\w()（）]*+[)）]", r"\1"),  # and no word next to it
        (rf"([(（]) ?{_HOLES} ?(?:[,;:،；，、：] ?)*+", r"\1"),  # the first in parentheses
        (rf"[,;:،؛；，、：] ?({_HOLES}) ?(?=[,;:،؛；，、：.。!?)）])", r"\1"),  # one of a list
        (rf"([–—-]) ?{_HOLES} ?[–—](?!\w)", r"\1"),  # between dashes
        (rf"(?<!{_NAME}) ({_HOLES})(?=[;:!?؛؟、。।])", r"\1"),
        (rf"^ ?({_HOLES}) ?[,;:.،؛；，、：。] ?", r"\1"),
    )
]
_BETWEEN_BLANKS = re.compile(rf"{HOLE}(?<= {HOLE})(?<!{_NAME} {HOLE}){_NAME}(?: ?{_HOLE})*+ ")
_ANY_HOLES = re.compile(_HOLES)
_TIDY = [
    (re.compile(pattern, re.M), replacement)
    for pattern, replacement in (
        (r" \( ?(?:[,;:،；，、] ?)*+\)|（[，；、 ]*+）", ""),  # parentheses of which nothing is left
        (r"([(（]) ?(?:[,;،；，、] ?)*+", r"\1"),
        (r"[,;](?<![,;][,;])(?<![,;] [,;])[,; ]*+(?=\))", ""),  # a run of them, looked at from its beginning alone
        (r", ?(?:, ?)++", ", "),
        (r" (?:(?=[,)])|(?<!\. )(?=\.(?![\w.]| \.)))", ""),  # but not of " .5", ".NET", "..." and ". . ."
        (rf"^(?:[^\w\n{KEPT}]|_)+$", ""),  # lines without a letter or digit
    )
]
_BLANKS = re.compile(r"[^\S\n ][^\S\n]*| [^\S\n]+")  # all but single blanks
_BLANK_LINES = re.compile(r"\n{3,}")
_ITEMS = re.compile(f"^{ITEM}+", re.M)
_LETTER = re.compile(r"[^\W_]")


def hole(number: int) -> str:
    """What marks the place of something without a text; ``number``: of its name in the list given to ``tidied``."""
    return HOLE + chr(_FIRST_NAME + number)


def tidied(text: str, names: list[str]) -> tuple[str, Counter[str]]:
    """The prose of rendered nodes, and how often each of ``names`` marks a hole beside text; "" is not counted."""
    text = without_emphasis(text)
    text = text.replace(BREAK, "\n").replace(APART, "")
    if ITEM in text:
        text = _ITEMS.sub("", text).replace(ITEM, "\n")
    text = _without_variants(text)
    text = _MAGIC.sub(_magic, text)
    text = _HALF_A_LINK.sub(r"\1", text)
    for stray in _STRAYS:
        text = stray.sub("", text)
    text = _BLANKS.sub(" ", text)

    beside: Counter[str] = Counter()
    if HOLE in text:
        lines = text.split("\n")
        for number, line in enumerate(lines):
            if HOLE in line:
                beside.update(_beside_text(line, names))
                lines[number] = _without_holes(line)
        text = "\n".join(lines)
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    text = text.replace("\n ", "\n").replace(" \n", "\n")
    return _without_bare_headings(text).replace(KEPT, "").strip(), beside


def _beside_text(line: str, names: list[str]) -> Iterator[str]:
    """Yield the names of a line's holes if it has a letter or digit too."""
    before, *parts = line.split(HOLE)
    if before.startswith(HEADING):
        before = before[2:]
    if _LETTER.search(before) or any(_LETTER.search(part, 1) for part in parts):
        for part in parts:
            if name := names[ord(part[0]) - _FIRST_NAME]:
                yield name


def _without_holes(line: str) -> str:
    """The line without its holes, and without the quotation marks, parentheses and commas that were around them alone."""
    for pattern, replacement in (*_AROUND_HOLES, *_AROUND_HOLES):  # twice: pairs stand in pairs
        line = pattern.sub(replacement, line)
    return _ANY_HOLES.sub("", _BETWEEN_BLANKS.sub("", line))


def _without_variants(text: str) -> str:
    """Text in which of each -{choice between language variants}- the first is left."""
    for _ in range(_DEEPEST):
        if "-{" not in text:
            break
        text, count = _VARIANTS.subn(_variant, text)
        if not count:
            break
    return text


def _variant(found: re.Match[str]) -> str:
    """What -{flags|rules}- shows: nothing for a rule or title alone, of ``zh-cn:a;zh-tw:b`` the first, else its text."""
    flags, bar, body = found[1].rpartition("|")
    if bar and _HIDDEN_FLAGS & {flag.strip() for flag in flags.split(";")}:
        return ""
    rule = _RULE.match(body)
    return rule[1].strip() if rule else body


def _magic(found: re.Match[str]) -> str:
    """Nothing for a behaviour switch such as __NOTOC__ in any language; ``__init__`` is text."""
    word = found[1]
    if _MAGIC_IN_ANY_CASE.fullmatch(word) or (len(word) > 2 and word == word.upper()):
        return ""
    return found[0]


def _without_bare_headings(text: str) -> str:
    """Drop headings under which there is neither text nor a filled heading of a deeper level."""
    kept, open_level = [], 0  # headings of a level below open_level have something under them
    for line in reversed(text.split("\n")):
        if line.startswith(HEADING):
            level, line = int(line[1]), line[2:].strip()
            if level >= open_level or not _LETTER.search(line):
                continue
            open_level = level
        elif line:
            open_level = 7
        kept.append(line)
    return _BLANK_LINES.sub("\n\n", "\n".join(reversed(kept)))
