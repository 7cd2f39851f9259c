"""Bold and italics by apostrophes, by MediaWiki's own rule (its Parser::doQuotes): line by line, by the lengths of the runs."""

import re

_RUN = re.compile("''+")
_BOLD, _ITALICS, _BOTH = 3, 2, 5


def without_emphasis(text: str) -> str:
    """The text without apostrophes that are markup; those that a reader would see stay."""
    if "''" not in text:
        return text
    return "\n".join(_of_line(line) if "''" in line else line for line in text.split("\n"))


def _of_line(line: str) -> str:
    """One line: of a run of four one apostrophe is text, of six and more all but five."""
    runs = list(_RUN.finditer(line))
    sizes = [_markup(run.end() - run.start()) for run in runs]
    bold = sum(size in (_BOLD, _BOTH) for size in sizes)
    italics = sum(size in (_ITALICS, _BOTH) for size in sizes)
    if bold % 2 and italics % 2:
        _make_one_literal(line, runs, sizes)

    kept, done = [], 0
    for run, size in zip(runs, sizes, strict=True):
        kept += [line[done : run.start()], "'" * (run.end() - run.start() - size)]
        done = run.end()
    return "".join([*kept, line[done:]])


def _markup(length: int) -> int:
    """How many apostrophes of a run are markup."""
    return {2: _ITALICS, 3: _BOLD, 4: _BOLD}.get(length, _BOTH)


def _make_one_literal(line: str, runs: list[re.Match[str]], sizes: list[int]) -> None:
    """Read one run for bold as an apostrophe and italics, in ``sizes``, where neither bold nor italics are closed.

    That is the first after a word of one letter (l'''Étranger''), else the first after any word, else the first after a blank.
    """
    found: dict[str, int] = {}
    end = 0  # of the run before
    for number, (run, size) in enumerate(zip(runs, sizes, strict=True)):
        # The literal apostrophe of a run of four is text before the markup.
        before = line[end : run.start()] + "'" * (run.end() - run.start() - size)
        end = run.end()
        if size != _BOLD:
            continue
        if before.endswith(" "):
            kind = "blank"
        elif before[-2:-1] == " " and before[-1].isascii():  # MediaWiki looks at bytes, of which other letters have two
            kind = "letter"
        else:
            kind = "word"
        found.setdefault(kind, number)
    for kind in ("letter", "word", "blank"):
        if kind in found:
            sizes[found[kind]] = _ITALICS
            return
