"""Write docs/reference/commands.md and recipe-keys.md from the parsers and the dataclasses: ``python docs/generate.py``.

A test compares the pages in the repository with what this makes.
"""

import argparse
import ast
import importlib
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["COLUMNS"] = "100"  # argparse wraps by it

from data_prep.files import write_text  # noqa: E402
from pipeline.__main__ import VERBS  # noqa: E402
from pipeline.settings import recipe  # noqa: E402

REFERENCE = ROOT / "docs" / "reference"
TABLES = {"Recipe": "At the top of the file", "Teacher": "[teacher]", "Student": "[student]"}


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The parser of a verb of ``python -m pipeline``."""
    made: argparse.ArgumentParser = importlib.import_module(VERBS[verb][0]).parser()
    return made


def inner_parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of a verb's own verbs, if it has some."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            found |= action.choices
    return found


def commands() -> str:
    """The page of commands: each verb's own help."""
    lines = [
        "# Commands",
        "",
        "Generated from the parsers by `python docs/generate.py`. `./run.sh VERB`, `python -m pipeline VERB` and, where the",
        "package is installed, `minilm-distil VERB` are the same; each has `--help`. `./run.sh` also has `demo`,",
        "`demo-multilingual` and `test`.",
        "",
        "| verb | |",
        "|---|---|",
        *(f"| [`{verb}`](#{verb}) | {what} |" for verb, (_, what) in VERBS.items()),
    ]
    for verb in VERBS:
        parser = parser_of(verb)
        lines += ["", f"## {verb}", "", "```text", parser.format_help().rstrip(), "```"]
        for name, inner in inner_parsers(parser).items():
            lines += ["", f"### {verb} {name}", "", "```text", inner.format_help().rstrip(), "```"]
    return "\n".join(lines) + "\n"


def keys(table: str) -> Iterator[tuple[str, str, str, str]]:
    """Key, type, default and meaning of each field of a dataclass; the meaning is the comment on its line."""
    source = Path(recipe.__file__).read_text(encoding="utf-8")
    lines = source.splitlines()
    (body,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == table)
    for field in body.body:
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if field.target.id in recipe.PLACE or field.target.id in ("teacher", "student"):
            continue
        kind, default = ast.unparse(field.annotation), "" if field.value is None else ast.unparse(field.value)
        comment = re.search(r"  # (.*)$", lines[(field.end_lineno or field.lineno) - 1])
        yield field.target.id, shown_type(kind), default, comment[1] if comment else ""


def shown_type(annotation: str) -> str:
    """An annotation in a reader's words."""
    if choices := re.fullmatch(r"Literal\[(.*)\]", annotation):
        return " or ".join(f"`{choice.strip()}`" for choice in choices[1].split(","))
    words: dict[str, str] = {"bool": "true or false", "int": "whole number", "float": "number", "str": "string"}
    if inner := re.fullmatch(r"tuple\[(\w+), \.\.\.\]", annotation):
        return f"list of {words[inner[1]]}s"
    return words[annotation]


def recipe_keys() -> str:
    """The page of recipe keys."""
    lines = [
        "# Recipe keys",
        "",
        "Generated from `pipeline/settings/recipe.py` by `python docs/generate.py`. A recipe is a TOML file; any key can be",
        "overridden on the command line, as in `steps=100` or `student.layers=4`. A key without a default must be given.",
        "Besides these, a file may have `base`, several `[[student]]` and several `[[stage]]`: see",
        "[recipes](../guides/recipes.md). Each of several `[[student]]` may also have",
        f"{', '.join(f'`{key}`' for key in recipe.OWN)}.",
    ]
    for table, heading in TABLES.items():
        lines += [
            "",
            f"## {heading}",
            "",
            *wrapped(doc_of(table)),
            "",
            "| key | value | default | |",
            "|---|---|---|---|",
        ]
        for key, kind, default, meaning in keys(table):
            cells = [f"`{key}`", kind, f"`{default}`" if default else "", meaning.replace("|", "\\|")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def doc_of(table: str) -> str:
    """A dataclass's docstring, its first word's markup as Markdown's."""
    owner: Any = getattr(recipe, table)
    return textwrap.dedent(owner.__doc__).replace("``", "`").strip()


def wrapped(text: str) -> list[str]:
    """Lines of at most 100 columns."""
    return textwrap.wrap(" ".join(text.split()), 100)


def pages() -> dict[Path, str]:
    """Every generated page and its text."""
    return {REFERENCE / "commands.md": commands(), REFERENCE / "recipe-keys.md": recipe_keys()}


if __name__ == "__main__":
    for page, text in pages().items():
        write_text(page, text)
        print(page.relative_to(ROOT))
