"""Corpus descriptions: TOML files, those that are shipped, and --source."""

import tomllib
from importlib import resources
from pathlib import Path

import pytest

from data_prep.cli import UserError
from data_prep.description import parse_source, read_description, select, shipped
from tests.parts.corpora import paragraphs, run_cli, write_vocab

GOOD = '[[source]]\nname = "a"\nformat = "text"\nfiles = "*.txt"\n'


def described(tmp_path, content, root=Path("/corpora")):
    path = tmp_path / "corpus.toml"
    path.write_text(content)
    return read_description(str(path), root)


def test_names_make_a_source_each_and_stand_in_for_name_in_the_files(tmp_path):
    content = 'alpha = 0.3\n[[source]]\nnames = ["de", "sw"]\nformat = "cc100"\nfiles = "cc/{name}.txt.xz"\n' + GOOD
    found = described(tmp_path, content)
    assert [(source.name, source.files) for source in found.sources] == [
        ("de", "/corpora/cc/de.txt.xz"),
        ("sw", "/corpora/cc/sw.txt.xz"),
        ("a", "/corpora/*.txt"),
    ]
    assert (found.alpha, found.heldout, found.tokenizer) == (0.3, None, None)


def test_files_lie_below_root_whatever_characters_it_has_unless_they_are_absolute(tmp_path):
    root = tmp_path / "a [1]"
    root.mkdir()
    (root / "x.txt").write_text("x")
    [source] = described(tmp_path, GOOD, root).sources
    assert [file.path for file in source.resolve().files] == [root / "x.txt"]
    [source] = described(tmp_path, GOOD.replace("*.txt", f"{tmp_path}/a*/*.txt"), Path("/nowhere")).sources
    assert [file.name for file in source.resolve().files] == ["x.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[source", "corpus.toml: not valid TOML"),
        ("alpha = 0.3", r"corpus.toml: has no \[\[source\]\]"),
        ("alfa = 0.3\n" + GOOD, "no key 'alfa', did you mean 'alpha'. Known: tokenizer, heldout, unit_mib, alpha"),
        ('alpha = "0.3"\n' + GOOD, "alpha = '0.3' has the wrong type"),
        (GOOD + 'fild = "x"', "no key 'fild', did you mean 'field'"),
        (GOOD + 'names = ["b"]', "needs name, or names, a list"),
        (GOOD.replace('name = "a"', ""), "needs name, or names, a list"),
        (GOOD.replace('files = "*.txt"', ""), "source a has no files"),
        (GOOD.replace('"text"', '"txet"'), "source a: no format 'txet', did you mean 'text'"),
        (GOOD.replace('"a"', '"a/b"'), "'a/b' cannot be a source's name"),
        (GOOD + 'hub = "org/name"', "source a: hub and revision go together"),
        (GOOD + 'field = "text"', "source a: field .text.: format text has no fields"),
    ],
)
def test_a_mistake_in_a_description_is_reported_with_file_and_key(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        described(tmp_path, content)


def test_an_unknown_description_is_reported_with_those_there_are():
    with pytest.raises(
        UserError, match=r"cc1000: no such corpus; name a .toml file, or one of cc100, wikipedia_bookcorpus"
    ):
        read_description("cc1000", Path())
    with pytest.raises(UserError, match=r"mine.toml: cannot be read as a corpus description"):
        read_description("mine.toml", Path())


def test_an_unknown_language_is_reported_with_its_nearest(tmp_path):
    cc100 = read_description("cc100", Path())
    assert [source.name for source in select(cc100, "sw, de,en").sources] == ["sw", "de", "en"]
    assert select(cc100, "sw").alpha == 0.3
    with pytest.raises(UserError, match=r"--languages zh-Hand: no such source among 116; nearest: zh-Hant, zh-Hans"):
        select(cc100, "de,zh-Hand")
    done = run_cli(
        "prepare", "cc100", "--out", tmp_path / "d", "--tokenizer", write_vocab(tmp_path), "--languages", "eng"
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "nearest: en" in done.stderr


@pytest.mark.parametrize("name", ["cc100", "wikipedia_bookcorpus"])
def test_a_shipped_description_says_what_its_own_example_calls(name):
    found = read_description(name, Path("/corpora"))
    assert name in shipped() and found.sources and 0 < found.heldout < 0.1
    text = (resources.files("data_prep.corpora") / f"{name}.toml").read_text()
    assert f"data_prep prepare {name} " in text and tomllib.loads(text)


def test_cc100_has_the_languages_of_the_corpus():
    names = [source.name for source in read_description("cc100", Path("x")).sources]
    assert len(names) == 116 and names == sorted(names)
    assert {"en", "zh-Hans", "zh-Hant", "my_zaw", "hi_rom", "sw", "ur_rom"} <= {*names}
    assert read_description("cc100", Path("x")).sources[0].files == "x/af.txt.xz"


def test_wikipedia_of_the_hub_is_pinned_to_a_commit():
    wikipedia, books = read_description("wikipedia_bookcorpus", Path()).sources
    assert wikipedia.hub == "wikimedia/wikipedia" and len(wikipedia.revision) == 40
    assert (wikipedia.format, books.format) == ("parquet", "bookcorpus")


def test_a_field_is_named_after_the_format():
    source = parse_source("web=jsonl.content:crawl/*.jsonl.gz")
    assert (source.name, source.format, source.field, source.files) == ("web", "jsonl", "content", "crawl/*.jsonl.gz")


def test_options_go_before_the_description(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(paragraphs(20)))
    (tmp_path / "c.toml").write_text("heldout = 0.5\nunit_mib = 0.0625\n" + GOOD)
    (tmp_path / "tokenizer").mkdir()
    arguments = ["--root", tmp_path, "--tokenizer", write_vocab(tmp_path / "tokenizer"), "--workers", 1]
    done = run_cli("prepare", tmp_path / "c.toml", "--out", tmp_path / "d", "--heldout", "0", *arguments)
    assert done.returncode == 0, done.stderr
    assert '"heldout": 0.0' in (tmp_path / "d" / "plan.json").read_text()
    assert '"unit_mib": 0.0625' in (tmp_path / "d" / "plan.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no corpus: name one of cc100, wikipedia_bookcorpus, a .toml file, or --source NAME=FORMAT:GLOB"),
        (["cc100", "--source", "a=text:*.txt"], "both the corpus cc100 and --source are given"),
        (["--source", "a=text:*.txt"], "--tokenizer: none is named"),
        (["cc100", "--budget-tokens", "many"], "argument --budget-tokens: 'many' is not a number; see "),
        (["cc100", "--budget-tokens", "0"], "--tokenizer: none is named|--budget-tokens 0"),
        (["--workers", "two"], "argument --workers: 'two' is not a whole number of at least 1; see "),
    ],
)
def test_a_mistaken_command_line_is_reported_in_one_line(arguments, message):
    done = run_cli("plan", *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert any(part in done.stderr for part in message.split("|")), done.stderr
