"""A table of the words of templates, of one's own: its lines come first, and it is a part of the plan."""

import shutil

import pytest

from data_prep.cli import UserError
from data_prep.definitions.extract import lines_of
from data_prep.description import Description, parse_source, read_description, with_templates
from data_prep.files import read_json
from data_prep.formats.by_name import open_format
from data_prep.formats.templates import rule_of
from data_prep.plan import read_plan
from data_prep.prepare import asked_plan, planned_again, prepare
from data_prep.roundtrip import roundtrip
from data_prep.shards import open_corpus, verify
from data_prep.stats import stats_lines
from data_prep.units import UnitReader
from tests.parts.corpora import dump, noise, run_cli, tree, write_vocab


@pytest.fixture
def wiki(tmp_path):
    """A dump of 60 articles that use a template which it defines, as a source, and a vocabulary."""
    pages = [
        {"title": "Modèle:Zeta", "ns": 10, "text": "{{{1}}} river"},
        {"title": "Discussion:A", "ns": 1, "text": "x"},
    ]
    pages += [{"text": f"A {{{{zeta|old}}}} {{{{nobr|stone}}}} {words}"} for words in noise(60)]
    (tmp_path / "fr.xml").write_text(dump(pages, "fr", {10: "Modèle"}), encoding="utf-8")
    return f"wiki=wikipedia:{tmp_path}/fr.xml", write_vocab(tmp_path)


def asked(wiki, table=None, heldout=0.1):
    described = Description((parse_source(wiki[0]),), str(wiki[1]), heldout, 0.0625)
    return asked_plan(with_templates(described, str(table)) if table else described)


def texts(data):
    return [document.text for unit in read_plan(data).all_units() for _, document in UnitReader().documents(unit)]


def test_the_lines_of_a_table_come_before_the_shipped_ones(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\ufeff# mine\nmine {1}\tfr:nobr | zz*\nalso {1}\tfr:zz top\n", encoding="utf-8")
    table = str(path)

    def text(name, language, file=table):
        rule = rule_of(name, language, file)
        return rule and rule.text(lambda key: key)

    assert text("Nobr", "fr") == "mine 1" and text("nobr", "de") == text("nobr", "fr", "") != "mine 1"
    assert text("zz_top", "fr") == "also 1" and text("zz top", "de") == "mine 1" and text("zz top", "de", "") is None
    assert text("nowrap", "fr") == text("nowrap", "fr", "")


def test_a_corpus_is_prepared_with_a_table_and_read_again_with_it(tmp_path, wiki):
    data, table = tmp_path / "data", tmp_path / "all words.txt"
    prepare(tmp_path / "plain", *asked(wiki), 1)
    hint = "its dumps define templates: `prep templates DUMP …` makes a table of them for `prep prepare --templates`"
    assert [line.strip() for line in stats_lines(tmp_path / "plain")].count(hint) == 1
    (tmp_path / "fr2.xml").write_text((tmp_path / "fr.xml").read_text(encoding="utf-8").replace("<ns>10<", "<ns>4<"))
    prepare(tmp_path / "without", *asked((wiki[0].replace("fr.xml", "fr2.xml"), wiki[1])), 1)
    assert any("{{zeta}}" in line for line in stats_lines(tmp_path / "without"))
    assert not any("its dumps define" in line for line in stats_lines(tmp_path / "without"))

    (tmp_path / "other.txt").write_text("{1}\tfr:other\n")
    prepare(tmp_path / "other", *asked(wiki, tmp_path / "other.txt"), 1)
    assert any("{{zeta}}" in line for line in stats_lines(tmp_path / "other"))
    assert not any("its dumps define" in line for line in stats_lines(tmp_path / "other"))

    table.write_text(lines_of([str(tmp_path / "fr.xml")], lambda line: None), encoding="utf-8")
    prepare(data, *asked(wiki, table), 2)
    assert len(found := [text for text in texts(data) if text]) == 60
    assert all(text.startswith("A old river stone ") for text in found)
    assert verify(data, deep=True) == [] and roundtrip(data, 1000) == (60, [])
    entry = open_corpus(data).manifest["sources"]["wiki"]
    assert entry["templates"]["name"] == "all words.txt" and len(entry["templates"]["sha256"]) == 64
    assert entry["dropped"] == {"template": 1, "not_an_article": 1} and entry["beside"] == []
    assert not any("its dumps define" in line for line in stats_lines(data))


def test_a_corpus_without_a_table_is_what_it_was(tmp_path, wiki):
    prepare(tmp_path / "data", *asked(wiki), 1)
    files = [*tmp_path.glob("data/**/*.json"), tmp_path / "data/.inputs.json"]
    assert len(files) > 4 and not any(b'"templates"' in path.read_bytes() for path in files)


def test_a_table_that_has_changed_is_another_plan(tmp_path, wiki):
    data, table = tmp_path / "data", tmp_path / "words.txt"
    table.write_text("{1} lake\tfr:zeta\n")
    prepare(data, *asked(wiki, table), 1)
    before = tree(data)

    table.write_text("{1} river\tfr:zeta\n")
    changed = r"data/plan.json: the templates of source wiki were by words.txt \(sha256 \w{12}\), now by words.txt"
    for make in (lambda: asked(wiki, table), lambda: planned_again(data)):
        with pytest.raises(UserError, match=f"{changed}.*--refresh"):
            prepare(data, *make(), 1)
    with pytest.raises(UserError, match=r"now by the shipped table alone"):
        prepare(data, *asked(wiki), 1)
    assert tree(data) == before
    compared, findings = roundtrip(data, 1000)
    assert (
        compared == 0 and all("words.txt: has changed since it was prepared" in line for line in findings) and findings
    )

    prepare(data, *planned_again(data), 1, refresh=True)
    prepare(tmp_path / "fresh", *asked(wiki, shutil.copy(table, tmp_path / "other")), 1)
    assert all(text.startswith("A old river ") for text in texts(data) if text)
    shards = {name: content for name, content in tree(data).items() if name.endswith(".npy")}
    assert shards == {name: content for name, content in tree(tmp_path / "fresh").items() if name.endswith(".npy")}

    prepare(data, *asked(wiki), 1, refresh=True)
    assert all(text.startswith("A stone ") for text in texts(data) if text)
    table.unlink()
    assert roundtrip(data, 5)[1] == []  # it is not looked at any more


def test_units_of_two_tables_are_not_mixed(tmp_path, wiki):
    """The receipts of a unit name the table that it was made with."""
    data, table = tmp_path / "data", tmp_path / "words.txt"
    table.write_text("{1} lake\tfr:zeta\n")
    prepare(data, *asked(wiki, table), 1)
    plan, _ = asked(wiki, table)
    receipts = [read_json(path) for path in data.glob("wiki/**/[0-9]*.json")] or [
        read_json(path) for path in data.rglob("[0-9]*.json")
    ]
    assert receipts and {receipt["templates"] for receipt in receipts} == {plan.sources["wiki"].templates.sha256}


def test_the_table_may_not_vanish(tmp_path, wiki):
    data, table = tmp_path / "data", tmp_path / "words.txt"
    table.write_text("{1} lake\tfr:zeta\n")
    prepare(data, *asked(wiki, table), 1)
    table.unlink()
    with pytest.raises(UserError, match=r"words\.txt: cannot be read as a table of templates .*; if it has been moved"):
        planned_again(data)
    assert "words.txt: cannot be read" in roundtrip(data, 5)[1][0]


def test_mistakes_are_found_before_anything_is_prepared(tmp_path, wiki):
    (tmp_path / "bad.txt").write_text("# a\nno tab here\n")
    (tmp_path / "twice.txt").write_text("{1}\tfr:a\n{2}\tfr:a\n")
    (tmp_path / "latin.txt").write_bytes(b"{1}\tfr:\xe9\n")
    (tmp_path / "a.txt").write_text("plain")
    text = f"text=text:{tmp_path}/a.txt"
    for source, table, words in (
        (wiki[0], "bad.txt", r"bad\.txt, line 2: 'no tab here'"),
        (wiki[0], "twice.txt", r"twice\.txt, line 2: "),
        (wiki[0], "latin.txt", r"latin\.txt: not UTF-8 at byte 7"),
        (wiki[0], "none.txt", r"none\.txt: cannot be read as a table of templates \(No such file"),
        (wiki[0], ".", r"cannot be read as a table of templates \(Is a directory"),
        (text, "a.txt", r"--templates .*a\.txt: is for sources of format wikipedia, and there is none"),
    ):
        with pytest.raises(UserError, match=words):
            asked((source, wiki[1]), tmp_path / table)
    bad, out = ("--templates", tmp_path / "bad.txt"), tmp_path / "out"
    for given, words in (
        (("--source", wiki[0], "--tokenizer", wiki[1], *bad), "bad.txt, line 2"),
        (bad, "--templates: is for CORPUS or --source"),
    ):
        done = run_cli("prepare", "--out", out, *given)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert words in done.stderr and not out.exists()


def test_a_description_names_a_table_for_each_wiki(tmp_path):
    path = tmp_path / "c.toml"
    source = '[[source]]\nnames = ["fr", "de"]\nformat = "wikipedia"\nfiles = "{name}.xml"\ntemplates = "{name}.txt"\n'
    path.write_text(source)
    described = read_description(str(path), tmp_path / "root")
    assert [each.templates for each in described.sources] == [f"{tmp_path}/root/{name}.txt" for name in ("fr", "de")]
    path.write_text(source.replace("{name}.txt", str(tmp_path / "all.txt")))
    assert {each.templates for each in read_description(str(path), tmp_path).sources} == {str(tmp_path / "all.txt")}
    assert {each.templates for each in with_templates(described, "x").sources} == {"x"}

    path.write_text(source.replace("wikipedia", "text"))
    with pytest.raises(UserError, match=r"source fr: templates .*only format wikipedia has templates, not text"):
        read_description(str(path), tmp_path)
    path.write_text(source.replace('"{name}.txt"', "3"))
    with pytest.raises(UserError, match="templates = 3 has the wrong type"):
        read_description(str(path), tmp_path)


def test_other_formats_have_no_templates(tmp_path):
    assert open_format("text", None, tmp_path) == open_format("text")
