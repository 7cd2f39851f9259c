"""README, CONTRIBUTING and docs/: every command line is understood by the real parsers, every link and path is there."""

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.cli import UserError
from pipeline.__main__ import VERBS
from pipeline.settings.reading import SHIPPED, find_recipe, load_stages

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
SHELL = re.compile(r"^( *)```(?:sh|bash|console)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
ANY_FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
OURS = re.compile(
    r"\./run\.sh|python3? -m (?:pipeline|data_prep|tests)\b|minilm-distil|-m pipeline\.|--module pipeline\."
)
# On purpose: the tutorial shows what a mistake looks like.
MISTAKES = {"./run.sh recipe demo student.hidden=385"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def shell_lines(text: str) -> Iterator[str]:
    """Command lines of fenced and indented blocks, continuation lines joined, variables that the page sets put in."""
    blocks = [block for _, block in SHELL.findall(text)]
    blocks.append("\n".join(re.findall(r"^ {4}(\S.*)$", ANY_FENCE.sub("", text), re.MULTILINE)))
    known: dict[str, str] = {}
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ").strip()
            if assigned := re.fullmatch(r"(\w+)=(\"[^\"]*\"|\S+)", line):
                known[assigned[1]] = assigned[2].strip('"')
            line = re.sub(r"\$(\w+)", lambda found: known.get(found[1], "1"), line)
            yield re.sub(r"\$\{[^}]*\}", "1", line)


def commands(page: Path) -> list[str]:
    return [line for line in shell_lines(page.read_text(encoding="utf-8")) if OURS.search(line)]


def words_of(line: str) -> list[str]:
    """The words from our own command on, without what a shell takes out."""
    words = shlex.split(line, comments=True)
    if any(OURS.search(word) and " " in word for word in words):  # quoted for another shell: sbatch --wrap '…'
        words = shlex.split(next(word for word in words if OURS.search(word) and " " in word))
    while "&&" in words and not any(OURS.search(word) for word in words[: words.index("&&")]):
        words = words[words.index("&&") + 1 :]
    for end in ("|", ">", ">>", "2>&1", "&&", ";", "&", "done"):
        words = words[: words.index(end)] if end in words else words
    return words


def module_and_arguments(line: str) -> tuple[str, list[str]] | None:
    """The module whose parser reads the line, and its arguments; None for verbs of run.sh alone."""
    words = words_of(line)
    for number, word in enumerate(words):
        if word.endswith(("run.sh", "minilm-distil")) or (word == "pipeline" and words[number - 1] == "-m"):
            verb, *arguments = words[number + 1 :] or ["demo"]
            if verb in ("demo", "demo-multilingual", "test", "--help", "VERB"):
                return None
            assert verb in VERBS, f"{line}: there is no verb {verb}"
            return VERBS[verb][0], arguments
        if word.startswith(("pipeline.", "data_prep")) and words[number - 1] in ("-m", "--module"):
            door = ROOT / word.replace(".", "/") / "__main__.py"
            return (f"{word}.__main__" if door.is_file() else word), words[number + 1 :]
        if word.startswith("tests.") and words[number - 1] == "-m":
            assert (ROOT / f"{word.replace('.', '/')}.py").is_file(), line
            return None
    raise AssertionError(f"{line}: no command of ours found in it")


def check_recipe(arguments: list[str], line: str) -> None:
    """A shipped recipe that is named must be there, and take the overrides."""
    if "--new" in arguments:
        return
    name, *others = [word for word in arguments if not word.startswith("-")]
    if (SHIPPED / f"{name}.toml").is_file():
        overrides = [word for word in others if re.match(r"[\w.-]+=", word)]
        load_stages(name, overrides)
    elif "/" not in name and not name.endswith(".toml"):
        pytest.fail(f"{line}: no recipe {name} is shipped")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_line_is_understood(page):
    for line in commands(page):
        found = module_and_arguments(line)
        if found is None:
            continue
        module, arguments = found
        parser = importlib.import_module(module).parser()
        if {"-h", "--help"} & set(arguments) or arguments[:1] == ["VERB"]:
            continue
        try:
            intermixed = not any(action.nargs == "A..." for action in parser._actions)
            (parser.parse_intermixed_args if intermixed else parser.parse_args)(arguments)
        except (UserError, SystemExit) as error:
            pytest.fail(f"{line}: {error}")
        if module in (
            "pipeline.distill",
            "pipeline.recipe.__main__",
            "pipeline.launch.__main__",
            "pipeline.plan.__main__",
        ):
            if line in MISTAKES:
                with pytest.raises(UserError):
                    check_recipe(arguments, line)
            else:
                check_recipe(arguments, line)


def test_the_pages_have_commands_to_look_at():
    assert sum(len(commands(page)) for page in PAGES) > 100
    assert [name_of(page) for page in PAGES if "tutorial" in page.name and not commands(page)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    text = ANY_FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name_of(page)}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{name_of(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_of_this_repository_is_there(page):
    for path in re.findall(
        r"`((?:pipeline|data_prep|ds_configs|tests|docs)/[\w./-]+)`", page.read_text(encoding="utf-8")
    ):
        assert (ROOT / path).exists() or list(ROOT.glob(f"{path}*")), f"{name_of(page)}: {path}"


def test_the_reference_is_generated_from_the_code():
    if sys.version_info[:2] != (3, 11):
        pytest.skip("argparse words its help differently in other versions; the pages are of 3.11")
    code = "import runpy; pages = runpy.run_path('docs/generate.py')['pages']()\n"
    code += "for page, text in pages.items(): assert page.read_text(encoding='utf-8') == text, page"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stderr}\nrun: python docs/generate.py"


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200 and len(text.encode()) <= 12_000


def test_every_shipped_recipe_is_named_in_the_docs():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [path.stem for path in SHIPPED.glob("*.toml") if f"`{path.stem}`" not in text] == []
    assert find_recipe("demo").is_file()
