"""How many templates next to words show nothing, without the table of templates and with it.

    python -m tests.parts.words_beside DUMP ...

A line for each dump: its words; the templates lost in 1,000 of them without and with the table, and the second as a share of
the first; how many in 1,000 words are there by the table. Then the most common names that are still lost. Templates that show
no words anyway (``silent``) never count.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.formats import wikitext
from data_prep.formats.dump import split_dump
from data_prep.formats.page import Page, dropped_for, parse_page
from data_prep.formats.templates import Rule, rule_of

NAMES = 30  # of what is lost, the most common ones


@dataclass
class Loss:
    """``words`` of the articles, and by name the templates beside them that show nothing."""

    words: int = 0
    names: Counter[str] = field(default_factory=Counter)

    def add(self, page: Page) -> None:
        prose = wikitext.plain_text(page.wikitext, page.site, page.title)
        self.words += prose.words
        self.names.update(prose.beside)

    def merge(self, other: "Loss") -> None:
        self.words += other.words
        self.names.update(other.names)

    def rate(self) -> float:
        """In 1,000 words."""
        return 1000 * self.names.total() / max(self.words, 1)


@dataclass(frozen=True)
class Unknown:
    """A rule as it is without the table: silent where that is right, else without a text."""

    rule: Rule

    def text(self, argument: Callable[[str], str], name: str = "", literal: Callable[[str], str] = str) -> str | None:
        return None if self.rule.text(argument, name, literal) else ""


@contextmanager
def no_table() -> Iterator[None]:
    """Without the table, and without the parser functions that give an argument back."""

    def unknown(name: str, language: str = "", file: str = "") -> Unknown | None:
        rule = rule_of(name, language, file)
        return rule and Unknown(rule)

    kept = wikitext.rule_of, wikitext._CASES
    wikitext.rule_of, wikitext._CASES = unknown, {}  # type: ignore[assignment]
    try:
        yield
    finally:
        wikitext.rule_of, wikitext._CASES = kept


def losses(dump: Path) -> tuple[Loss, Loss]:
    """Without the table, and with it."""
    before, after = Loss(), Loss()
    for _, raw in split_dump(dump):
        page = parse_page(raw)
        if not dropped_for(page):
            after.add(page)
            with no_table():
                before.add(page)
    return before, after


def line(name: str, before: Loss, after: Loss) -> str:
    share = f"{after.rate() / before.rate():.1%}" if before.names else "-"
    back = 1000 * (after.words - before.words) / max(after.words, 1)
    return f"{name:<16}{after.words:>10,}{before.rate():>10.2f}{after.rate():>10.2f}{share:>10}{back:>10.2f}"


def main(*dumps: str) -> None:
    print(f"{'dump':<16}{'words':>10}{'without':>10}{'with':>10}{'share':>10}{'back':>10}")
    all_before, all_after = Loss(), Loss()
    for dump in dumps:
        before, after = losses(Path(dump))
        print(line(Path(dump).name.partition("-")[0].partition(".")[0], before, after))
        all_before.merge(before)
        all_after.merge(after)
    print(line("all", all_before, all_after))
    print(
        "still lost:", ", ".join(f"{name} {count}" for name, count in all_after.names.most_common(NAMES)) or "nothing"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
