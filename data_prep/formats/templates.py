"""The words that a template stands for in a sentence: a table, ``templates.txt``, and how its lines are read.

A line is a pattern, a tab, and names apart by ``|``. The head of the file says what patterns and names can be.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import zip_longest
from pathlib import Path

from data_prep.cli import UserError
from data_prep.formats.quantities import quantity

FILE = "templates.txt"

Argument = Callable[[str], str]

_FIELD = re.compile(r"\{([^{}]*)\}")
_PARTS = re.compile(r"([^=~+]*)([=~+]?)(.*)", re.DOTALL)
_WORDS = re.compile(r"(\$[a-z-]+)\t(.+)")
_LANGUAGES = re.compile(r"([a-z]{2,}(?:-[a-z]+)*(?:,[a-z]{2,}(?:-[a-z]+)*)*):(?=.)")
_NUMBER = re.compile(r"\d+")
_LEADING_ZERO = re.compile(r"0+(?=\d)")
_NO_NAME = re.compile("[{}<>|]|.:$")
_LONGEST_NAME = 255  # characters; MediaWiki allows as many bytes
_GAP = 3  # this many empty positional arguments on end are the end of them


@dataclass(frozen=True)
class _Field:
    """What stands in braces. ``keys``: arguments, of which the first with text counts."""

    keys: tuple[str, ...]
    words: dict[str, str] | None = None  # the argument must be one of these -> what is shown for it
    test: re.Pattern[str] | None = None  # the argument, empty or not, must match this; nothing is shown
    first: int = 0  # all positional arguments from this one on, joined by ``joint`` or, if that is None, as a quantity
    joint: str | None = ""

    def text(self, argument: Argument, name: str) -> str | None:
        """None if the arguments do not fit."""
        if self.first:
            given = [each for each in positional(argument, self.first) if each]
            return (quantity(given) if self.joint is None else self.joint.join(given)) or None
        found = next((text for key in self.keys if (text := _value(argument, key, name)).strip()), "")
        if self.test:
            return "" if self.test.fullmatch(found.strip()) else None
        if self.words is not None:
            word = found.strip()
            return self.words.get(word, self.words.get(_LEADING_ZERO.sub("", word)))
        return found or None


_MEASURE = _Field((), first=1, joint=None)


@dataclass(frozen=True)
class Rule:
    """One line's pattern."""

    alternatives: tuple[tuple[str | _Field, ...], ...]

    @property
    def silent(self) -> bool:
        """Whether it shows nothing, whatever its arguments are."""
        return self.alternatives == ((),)

    def text(self, argument: Argument, name: str = "", literal: Callable[[str], str] = str) -> str | None:
        """The text of a template; "" if it is silent, None if its arguments fit no alternative of the pattern.

        ``argument("1")`` gives an argument's plain text, "" if it is absent or empty; ``name``: as written in the page;
        ``literal`` makes text of the pattern's own words, which are no markup.
        """
        for parts in self.alternatives:
            texts = [literal(part) if isinstance(part, str) else part.text(argument, name) for part in parts]
            if None not in texts:
                return "".join(text for text in texts if text)
        return None


def positional(argument: Argument, first: int = 1) -> list[str]:
    """Positional arguments from the ``first`` on, "" for an empty one between others."""
    found: list[str] = []
    number = first
    while len(found) < _GAP or any(found[-_GAP:]):
        found.append(argument(str(number)).strip())
        number += 1
    return found[:-_GAP]


def _value(argument: Argument, key: str, name: str) -> str:
    if key == "0":
        return name.replace("_", " ").strip()
    if key == "-1":
        return next(iter(positional(argument)[::-1]), "")
    return argument(key).strip("\n")


def rule_of(name: str, language: str = "", file: str = "") -> Rule | None:
    """The rule for a template, or None. ``name``: without its namespace; ``language``: the wiki's code, as "fr".

    The lines of the table ``file``, if there is one, decide before the shipped ones. Raises UserError as ``table_in``.
    """
    if len(name) > _LONGEST_NAME:
        return None
    return (_rule_of(name, language, file) if file else None) or _rule_of(name, language, "")


@lru_cache(maxsize=1 << 14)
def _rule_of(name: str, language: str, file: str) -> Rule | None:
    exact, starts, ends = _table(file)
    keys = _keys(name)
    wiki = language.replace("_", "-").lower()
    for where in dict.fromkeys((f"{wiki}:", f"{wiki.partition('-')[0]}:", "")):
        for key in keys:
            if rule := exact.get(where + key):
                return rule
        begin, end = _open_ended(where, file)
        for key in keys:
            if found := begin.match(key):
                return starts[where + found[0]]
            if found := end.search(key):
                return ends[where + found[0]]
    return None


@lru_cache(maxsize=512)
def _open_ended(where: str, file: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What finds the longest beginning, and the longest end, that a wiki's rules are for."""
    _, *tables = _table(file)
    starts, ends = (
        [re.escape(key[len(where) :]) for key in sorted(rules, key=len, reverse=True) if _wiki_of(key) == where]
        for rules in tables
    )
    return re.compile("|".join(starts) or "(?!)"), re.compile(f"(?:{'|'.join(ends) or '(?!)'})$")


def _wiki_of(key: str) -> str:
    """The language and its colon, of a name of the table."""
    found = _LANGUAGES.match(key)
    return found[0] if found else ""


def _keys(name: str) -> tuple[str, ...]:
    """How a template is looked up: by its name, then with ``#`` for each number in it."""
    plain = normalised(name)
    return tuple(dict.fromkeys((plain, _NUMBER.sub("#", plain))))


def normalised(name: str) -> str:
    """One spelling of a name: lower case, single blanks for blanks and underscores."""
    return " ".join(name.replace("_", " ").split()).lower()


Table = tuple[dict[str, Rule], dict[str, Rule], dict[str, Rule]]  # by name, by beginning, by end


@lru_cache(maxsize=8)
def _table(file: str) -> Table:
    if file:
        return table_in(Path(file))
    text = (resources.files("data_prep.formats") / FILE).read_text(encoding="utf-8")
    return read_table(text.splitlines())


def table_in(path: Path) -> Table:
    """The table of a file. Raises UserError, with the line, if it cannot be read as one."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a table of templates ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}, so no table of templates") from None
    return read_table(lines, str(path))


def read_table(lines: Iterable[str], file: str = FILE) -> Table:
    """Rules by "name" or "language:name". Raises UserError with file and line for what is no rule, or a name twice."""
    table: Table = ({}, {}, {})
    lists: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        where = f"{file}, line {number}"
        if words := _WORDS.fullmatch(line):
            lists[words[1]] = words[2]
            continue
        pattern, tab, names = line.partition("\t")
        if not tab or not names.strip():
            raise UserError(f"{where}: {line!r} is not a pattern, a tab and names")
        rule = read_rule(pattern, where, lists)
        for name in re.split(r" \| ", names):
            _enter(table, name, rule, where)
    return table


def _enter(table: Table, name: str, rule: Rule, where: str) -> None:
    """Put a rule under one name of its line."""
    found = _LANGUAGES.match(name.strip())
    languages, plain = [""], normalised(name)
    if found:
        languages = [f"{language}:" for language in found[1].split(",")]
        plain = normalised(name.strip()[found.end() :])
    rules, bare = table[0], plain
    if plain.endswith("*") and plain != "*":
        rules, bare = table[1], plain[:-1]
    elif plain.startswith("*") and plain != "*":
        rules, bare = table[2], plain[1:]
    if not bare or "*" in bare.strip("*") or _NO_NAME.search(plain):
        raise UserError(
            f"{where}: {name.strip()!r} is no name; * may stand at one end of a name, names are apart by ' | '"
        )
    for language in languages:
        if language + bare in rules:
            raise UserError(f"{where}: {language}{plain} has a line already; keep one of the two")
        rules[language + bare] = rule


def read_rule(pattern: str, where: str = FILE, lists: Mapping[str, str] | None = None) -> Rule:
    """A rule of its pattern; ``lists``: words by the names of lists. Raises UserError that begins with ``where``."""
    alternatives: list[tuple[str | _Field, ...]] = []
    for alternative in (each.strip(" ") for each in pattern.split(" || ")):
        if not alternative:
            raise UserError(f"{where}: an empty alternative in {pattern!r}; for one that shows nothing write silent")
        if alternative in ("silent", "@measure"):
            alternatives.append(() if alternative == "silent" else (_MEASURE,))
            continue
        pieces = _FIELD.split(alternative)
        if any("{" in piece or "}" in piece for piece in pieces[::2]):
            raise UserError(f"{where}: a brace without its other one in {alternative!r}")
        pieces[::2] = [_literal(piece) for piece in pieces[::2]]
        parts: list[str | _Field] = []
        for literal, field in zip_longest(pieces[::2], pieces[1::2]):
            parts += [literal] if literal else []
            parts += [_read_field(field, where, lists or {})] if field is not None else []
        alternatives.append(tuple(parts))
    return Rule(tuple(alternatives))


def _literal(text: str) -> str:
    return text.replace("_", " ").replace("\\n", "\n")


def _read_field(inner: str, where: str, lists: Mapping[str, str]) -> _Field:
    """What stands between braces: ``1``, ``text,1``, ``2=to,-:–``, ``2=$list``, ``1~[a-z]+`` or ``1+, ``."""
    found = _PARTS.fullmatch(inner)
    assert found
    keys, sign, rest = found.groups()
    names = tuple(key.strip() for key in keys.split(","))
    if not all(names):
        raise UserError(f"{where}: {{{inner}}} names no argument; write {{1}}, {{text}} or {{text,1}}")
    if sign == "=":
        return _Field(names, words=_read_words(rest, where, lists))
    if sign == "~":
        try:
            return _Field(names, test=re.compile(rest))
        except re.error as error:
            raise UserError(f"{where}: {rest!r} is no regular expression ({error})") from None
    if sign == "+":
        if not re.fullmatch(r"\s*[1-9]\d?\s*", keys):
            raise UserError(f"{where}: {{{inner}}}: only numbered arguments can be joined, as in {{1+, }}")
        return _Field((), first=int(keys), joint=_literal(rest))
    return _Field(names)


def _read_words(text: str, where: str, lists: Mapping[str, str]) -> dict[str, str]:
    """Word -> what is shown for it, of ``to,-:–`` or of a list's name."""
    if text.startswith("$") and text not in lists:
        raise UserError(f"{where}: no line above begins with {text} and a tab")
    pairs = [word.partition(":") for word in lists.get(text, text).split(",")]
    return {word.strip(): _literal(shown if colon else word) for word, colon, shown in pairs}
