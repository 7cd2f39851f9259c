"""Dumps -> lines of a table: what their templates show, as far as that is simple enough to be said for sure."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from data_prep.cli import UserError, shows_bars
from data_prep.definitions.cases import Unsayable, pattern, pattern_of
from data_prep.definitions.shows import Definition
from data_prep.definitions.transcluded import transcluded
from data_prep.formats.dump import RawPage, Site, split_dump
from data_prep.formats.page import parse_page
from data_prep.formats.readers import PIECE
from data_prep.formats.templates import Rule, normalised, read_rule, read_table, rule_of
from data_prep.formats.wiki_names import REDIRECT_WORDS
from data_prep.inputs import local_files

_NAMESPACE = re.compile(rb"<ns>\s*([+-]?\d+)\s*</ns>")
_HEAD = 4096  # bytes of a page, in which its namespace is
_REDIRECT = re.compile(r"\s*[#＃]([^\s\[\]{}|<>#*:：]{2,40})\s*[:：]?\s*\[\[\s*:?([^\[\]\n|#]+)")
_LONGEST = 2000  # characters of a definition
_DEEPEST = 20  # templates in templates

Say = Callable[[str], object]


@dataclass(frozen=True)
class _Page:
    """A template's page: what it shows where it is used, or the ``target`` that it redirects to, without namespace."""

    name: str
    site: Site
    wikitext: str = ""
    target: str | None = None
    fault: str = ""


def lines_of(patterns: list[str], say: Say) -> str:
    """The table of the dumps that the paths or globs name. Raises UserError if they hold no template, or are no dumps."""
    files = {file.path: file for each in patterns for file in local_files(each, "templates")}
    wikis: dict[str, dict[str, list[_Page]]] = {}
    for path in sorted(files):
        found = Counter[bool]()
        for page in _pages(path, say):
            found[page.target is not None] += 1
            same = wikis.setdefault(page.site.language, {}).setdefault(normalised(page.name), [])
            if page not in same:
                same.append(page)
        say(f"{path}: {found.total():,} templates, of which {found[True]:,} redirect to others")
    if not wikis:
        raise UserError(
            f"{', '.join(map(str, sorted(files)[:3]))}: no page of the namespace 10 (Template) is in these dumps; "
            "those named pages-articles have them"
        )

    reasons: Counter[str] = Counter()
    lines = list(chain.from_iterable(_Wiki(language, wikis[language]).lines(reasons) for language in sorted(wikis)))
    names = sum(line.count(" | ") + 1 for line in lines)
    others = f"no line for {reasons.total():,} others, because of:" if reasons else "none is left out"
    say(f"{len(lines):,} lines for {names:,} names; {others}")
    for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        say(f"  {count:>9,}  {reason}")
    dumps = ", ".join(sorted({path.name for path in files}))
    return "\n".join((f"# The words of templates, by their definitions in {dumps}.", *_HEADER, *lines, ""))


_HEADER = (
    "# Made by `prep templates`, for `prep prepare --templates`. A line is a pattern, a tab, and names apart by |, as in",
    "# data_prep/formats/templates.txt, whose head says what they can be. Templates that have a line there have none here.",
)


def _pages(path: Path, say: Say) -> Iterator[_Page]:
    """Yield the templates of a dump; other pages are not parsed."""
    size = path.stat().st_size
    with tqdm(total=size, unit="B", unit_scale=True, disable=not shows_bars(), leave=False) as bar:
        for piece, raw in split_dump(path):
            bar.update(min(piece * PIECE, size) - bar.n)
            if raw.fault == "torn":
                say(
                    f"warning: {path}: breaks off near byte {min(piece * PIECE, size):,}; fetch it again to have all of it"
                )
            elif _is_template(raw):
                yield _page(raw)


def _is_template(raw: RawPage) -> bool:
    """Whether a page is in the namespace 10; by its title's prefix if the dump gives no numbers."""
    if found := _NAMESPACE.search(raw.data, 0, _HEAD):
        return int(found[1]) == 10
    prefix, colon, _ = raw.title.partition(":")
    return bool(colon) and normalised(prefix) in raw.site.template_names


def _page(raw: RawPage) -> _Page:
    page = parse_page(raw)
    site, name = page.site, page.title.partition(":")[2].strip()
    if page.too_long:
        return _Page(name, site, fault=f"over {_LONGEST:,} characters")
    if page.fault:
        return _Page(name, site, fault="damaged in the dump")
    if page.model not in ("", "wikitext"):
        return _Page(name, site, fault="no wikitext")
    found = _REDIRECT.match(page.wikitext)
    if found and (page.redirect or found[1].casefold() in REDIRECT_WORDS):
        prefix, colon, target = found[2].partition(":")
        if colon and normalised(prefix) in site.template_names:
            return _Page(name, site, target=target.strip())
        return _Page(name, site, fault="a redirect to another namespace")
    wikitext = transcluded(page.wikitext)
    if len(wikitext) > _LONGEST:
        return _Page(name, site, fault=f"over {_LONGEST:,} characters")
    return _Page(name, site, wikitext)


class _Wiki:
    """The templates of one wiki, by their names in one spelling."""

    def __init__(self, language: str, pages: dict[str, list[_Page]]):
        self._language, self._pages = language, pages
        self._said: dict[str, str | Unsayable] = {}  # patterns of definitions
        self._open: list[str] = []  # the templates that are being looked at, each within the one before

    def lines(self, reasons: Counter[str]) -> Iterator[str]:
        """Yield the lines, by the name of the template that is defined; ``reasons`` counts the names without one."""
        entries: dict[tuple[str, str], list[str]] = {}  # names by the template that they stand for, and its pattern
        for name in sorted(self._pages):
            if rule_of(name, self._language):
                reasons["a line in the shipped table"] += 1
                continue
            try:
                target = self._target(name)
                entries.setdefault((target, self._pattern(target)), []).append(name)
            except Unsayable as reason:
                reasons[str(reason)] += 1
        for (target, said), names in sorted(entries.items()):
            fitting = [name for name in names if self._reads_back(said, name)]
            if wrong := len(names) - len(fitting):
                reasons["a character that has a meaning in the table"] += wrong
            if fitting:
                ordered = sorted(fitting, key=lambda name: (name != target, name))
                yield f"{said}\t{' | '.join(map(self._key, ordered))}"

    def _key(self, name: str) -> str:
        return f"{self._language.lower()}:{name}" if self._language else name

    def _reads_back(self, said: str, name: str) -> bool:
        """Whether a line of a pattern and one name is read as that."""
        try:
            exact, starts, ends = read_table([f"{said}\t{self._key(name)}"])
        except UserError:
            return False
        return [*exact] == [self._key(name)] and not starts and not ends

    def _target(self, name: str) -> str:
        """The name at the end of a chain of redirects, which has a definition here or a shipped line."""
        seen = {name}
        while not rule_of(name, self._language):
            page = self._only(name)
            if page.target is None:
                return name
            name = normalised(page.target)
            if name in seen:
                raise Unsayable("redirects in a circle")
            seen.add(name)
        return name

    def _only(self, name: str) -> _Page:
        """The page of a name; a redirect to another spelling of the name is none."""
        pages = [page for page in self._pages.get(name, []) if normalised(page.target or "") != name]
        if not pages:
            raise Unsayable("a redirect to what is not there" if name not in self._pages else "redirects in a circle")
        if len(pages) > 1:
            raise Unsayable("several pages of one name")
        return pages[0]

    def _pattern(self, name: str) -> str:
        """What the template of that name shows: by its shipped line, else by its definition, which is looked at once."""
        if rule := rule_of(name, self._language):
            return pattern_of(rule)
        if name not in self._said:
            if name in self._open or len(self._open) > _DEEPEST:
                raise Unsayable("templates within themselves")
            self._open.append(name)
            try:
                self._said[name] = self._defined(self._only(name))
            except Unsayable as reason:
                self._said[name] = reason
            finally:
                self._open.pop()
        said = self._said[name]
        if isinstance(said, Unsayable):
            raise said
        return said

    def _defined(self, page: _Page) -> str:
        if page.fault:
            raise Unsayable(page.fault)
        try:
            return pattern(Definition(page.site, self._rule).cases(page.wikitext))
        except RecursionError:
            raise Unsayable("templates within templates, too many") from None

    def _rule(self, name: str) -> Rule | None:
        """The rule for a template that is used in a definition, or None."""
        name = normalised(name)
        if rule := rule_of(name, self._language):
            return rule
        try:
            return read_rule(self._pattern(self._target(name)))
        except Unsayable:
            return None
