"""What a definition shows, case by case: by which arguments have text. And the pattern that says it in a table."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from data_prep.formats.templates import Rule, read_rule

MOST_CASES = 32
_MOST_CHOICES = 2048  # cases times choices of arguments that have text
_SHOWN = re.compile("\x0e([^\x0f]*)\x0f")  # an argument in the text of a case; no XML file can hold these characters
BLANK = "\x10"  # a blank that is written as an entity, which MediaWiki does not trim
_EDGE = "\x11"  # of a tag or a link, beyond which MediaWiki does not trim
_TRIMMED = " \t\n\r\0\x0b"  # what PHP's trim() removes
_BLANKS = re.compile(rf"[\s{BLANK}]+")
FULL, EMPTY = "(?s).+", ""  # tests of an argument in a pattern


class Unsayable(Exception):
    """What a definition shows cannot be said by a pattern, for the reason given."""


@dataclass(frozen=True)
class Case:
    """The ``text``, shown if the arguments named have text (True) or are absent or empty (False)."""

    text: str
    given: Mapping[str, bool] = field(default_factory=dict)


Cases = list[Case]  # that exclude each other; of what they leave out nothing is known


def literal(text: str) -> Cases:
    """A text that is always shown."""
    return [Case(text)]


def shown(key: str) -> str:
    """The sign for an argument in a case's text."""
    return f"\x0e{key}\x0f"


def arguments_in(text: str) -> list[str]:
    """The arguments that a case's text shows."""
    return _SHOWN.findall(text)


def without_arguments(text: str) -> str:
    """The words of a case's text that stand in the definition itself."""
    return _SHOWN.sub("", text)


def joined(parts: Iterable[Cases]) -> Cases:
    """What is shown by parts that follow each other."""
    found = literal("")
    for cases in parts:
        pairs = product(found, cases)
        found = [
            Case(one.text + two.text, {**one.given, **two.given}) for one, two in pairs if agree(one.given, two.given)
        ]
        if len(found) > MOST_CASES:
            raise Unsayable("too many cases")
    return found


def agree(one: Mapping[str, bool], two: Mapping[str, bool]) -> bool:
    """Whether two conditions can hold at once."""
    return all(two.get(key, value) == value for key, value in one.items())


def chosen(tested: Cases, full: Cases, empty: Cases) -> Cases:
    """What is shown by ``full`` in the cases in which something has text, and else by ``empty``."""
    found: Cases = []
    for case in tested:
        branch = full if case.text.strip(_TRIMMED) else empty
        found += joined(([Case("", case.given)], branch))
    if len(found) > MOST_CASES:
        raise Unsayable("too many cases")
    return found


def stripped(cases: Cases) -> Cases:
    """The cases, their texts without blanks at the ends, as MediaWiki trims them."""
    return [Case(case.text.strip(_TRIMMED), case.given) for case in cases]


def within_markup(cases: Cases) -> Cases:
    """The text of a tag or a link, whose blanks are not at the end of the wikitext."""
    return [Case(f"{_EDGE}{case.text}{_EDGE}", case.given) for case in cases]


def as_read(text: str) -> str:
    """A case's text, its blanks as a reader sees them."""
    return _BLANKS.sub(" ", text.replace(_EDGE, ""))


def pattern(cases: Cases) -> str:
    """The shortest pattern that shows, for all arguments, what the cases show. Raises Unsayable if there is none."""
    cases = [Case(as_read(case.text), case.given) for case in cases]
    keys = sorted({key for case in cases for key in (*case.given, *arguments_in(case.text))})
    if len(cases) << len(keys) > _MOST_CHOICES:
        raise Unsayable("too many cases")
    wanted = _outcomes(cases, keys)
    said = " || ".join(_alternative(case) for case in _shortest(cases, keys, wanted))
    if _said(said, keys) != wanted:
        raise Unsayable("a character that has a meaning in the table")
    return said


def _assignments(keys: list[str]) -> list[dict[str, bool]]:
    return [dict(zip(keys, values, strict=True)) for values in product((True, False), repeat=len(keys))]


def _outcomes(cases: Cases, keys: list[str]) -> list[str | None]:
    """What the first case that fits shows, for every choice of arguments that have text."""
    return [
        next((case.text for case in cases if agree(case.given, given) and _has_all(case, given)), None)
        for given in _assignments(keys)
    ]


def _has_all(case: Case, given: Mapping[str, bool]) -> bool:
    return all(given[key] for key in arguments_in(case.text))


def _said(said: str, keys: list[str]) -> list[str | None]:
    """What a pattern shows, as ``_outcomes``: read and asked as it will be for pages."""
    rule = read_rule(said)
    return [
        rule.text(lambda key, given=given: shown(key) if given.get(key) else "")  # type: ignore[misc]
        for given in _assignments(keys)
    ]


def _shortest(cases: Cases, keys: list[str], wanted: list[str | None]) -> Cases:
    """The cases, those with the most arguments first, without tests and cases that make no difference."""
    cases = sorted(cases, key=lambda case: (-sum(case.given.values()), case.text))
    for number in reversed(range(len(cases))):
        fewer = cases[:number] + cases[number + 1 :]
        if fewer and _outcomes(fewer, keys) == wanted:
            cases = fewer
            continue
        for key in sorted(cases[number].given):
            case = cases[number]
            looser = Case(case.text, {each: value for each, value in case.given.items() if each != key})
            changed = [*cases[:number], looser, *cases[number + 1 :]]
            if _outcomes(changed, keys) == wanted:
                cases = changed
    for number in reversed(range(1, len(cases))):  # with fewer tests, earlier cases may be enough
        fewer = cases[:number] + cases[number + 1 :]
        if _outcomes(fewer, keys) == wanted:
            cases = fewer
    return cases


def _alternative(case: Case) -> str:
    """One case as a pattern writes it."""
    tests = "".join(f"{{{key}~{FULL if value else EMPTY}}}" for key, value in sorted(case.given.items()))
    text = case.text
    if text[:1] == " ":
        text = "_" + text[1:]
    if text[-1:] == " ":
        text = text[:-1] + "_"
    return tests + _SHOWN.sub(r"{\1}", text) or "silent"


def is_sayable_of_any(rule: Rule, key: str) -> bool:
    """Whether a rule asks of an argument no more than whether it has text, so that any text will do."""
    for part in _fields(rule):
        if part.first and part.joint is None and key.isdecimal():
            return False
        if key in part.keys and (part.words is not None or (part.test and part.test.pattern not in (FULL, EMPTY))):
            return False
    return True


def keys_of(rule: Rule) -> tuple[set[str], bool]:
    """The arguments that a rule asks for, and whether it asks for all that have numbers."""
    keys = {key for part in _fields(rule) for key in part.keys}
    return keys, "-1" in keys or any(part.first for part in _fields(rule))


def pattern_of(rule: Rule) -> str:
    """The pattern of a rule that was read. Raises Unsayable if it means another thing under another name."""
    if "0" in keys_of(rule)[0]:
        raise Unsayable("a shipped line that depends on the name")
    said = " || ".join("".join(map(_part, parts)) or "silent" for parts in rule.alternatives)
    if read_rule(said) != rule:
        raise Unsayable("a shipped line that cannot be repeated")
    return said


def _fields(rule: Rule) -> list[Any]:
    return [part for parts in rule.alternatives for part in parts if not isinstance(part, str)]


def _part(part: Any) -> str:
    """One part of a pattern."""
    if isinstance(part, str):
        return part.replace(" ", "_").replace("\n", "\\n")
    keys = ",".join(part.keys)
    if part.first:
        return "@measure" if part.joint is None else f"{{{part.first}+{_part(part.joint)}}}"
    if part.test:
        return f"{{{keys}~{part.test.pattern}}}"
    if part.words is not None:
        return f"{{{keys}={','.join(f'{word}:{_part(text)}' for word, text in part.words.items())}}}"
    return f"{{{keys}}}"
