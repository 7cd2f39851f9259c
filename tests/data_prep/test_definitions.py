"""``prep templates``: a table of the words of templates, by their definitions in dumps."""

import bz2
import re
import shutil
from importlib import resources
from itertools import product

import pytest

from data_prep.cli import UserError
from data_prep.definitions.cases import Unsayable, keys_of, pattern_of
from data_prep.definitions.extract import lines_of
from data_prep.definitions.transcluded import transcluded
from data_prep.formats.dump import Site
from data_prep.formats.templates import FILE, read_rule, read_table, rule_of
from data_prep.formats.wikitext import plain_text
from tests.parts.corpora import dump, run_cli


def write_dump(path, templates, language="fr", redirects=None, spaces=None, more=()):
    """A dump of templates: name -> wikitext, or in ``redirects`` the target."""
    names = {10: "Modèle", 14: "Catégorie"} if spaces is None else spaces
    prefix = names.get(10, "Template")
    pages = [{"title": "Étoile", "text": "An {{zeta}} article."}]
    pages += [{"title": f"{prefix}:{name}", "ns": 10, "text": text} for name, text in templates.items()]
    for name, target in (redirects or {}).items():
        text = f"#REDIRECTION [[{prefix}:{target}]]"
        pages.append({"title": f"{prefix}:{name}", "ns": 10, "text": text, "redirect": True})
    path.write_text(dump([*pages, *more], language, names), encoding="utf-8")
    return path


def table_of(tmp_path, templates, **options):
    """Name -> pattern of the lines of a made dump, each read back; and what was said."""
    said = []
    text = lines_of([str(write_dump(tmp_path / "fr.xml", templates, **options))], said.append)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    exact, starts, ends = read_table(text.splitlines())
    assert not starts and not ends
    found = {name: line.split("\t")[0] for line in lines for name in line.split("\t")[1].split(" | ")}
    assert found.keys() == exact.keys()
    return found, said


SAID = {
    "": "silent",
    "words in it": "words in it",
    "''{{{1}}}''<noinclude>{{doc}} for the page</noinclude>": "''{1}''",
    "{{{1|{{{texte|rien}}}}}}": "{1} || {texte} || rien",
    "{{{1}}}{{#if:{{{2|}}}|&nbsp;({{{2}}})}}": "{1} ({2}) || {1}",
    "{{#if:{{{lien|}}}|[[{{{lien}}}|{{{1}}}]]|{{{1}}}}}": "{1}",
    "{{#if: {{{a|}}} | oui | non }}": "{a~(?s).+}oui || non",
    "{{#if:{{{a|}}}||{{{1|}}}}}": "{a~(?s).+} || {1} || silent",
    "{{#if:{{{1|}}}{{{2|}}}|x}}": "{1~(?s).+}x || {2~(?s).+}x || silent",
    "{{#if:{{{1|}}}|{{#if:{{{2|}}}|{{{1}}}–{{{2}}}|{{{1}}}}}|?}}": "{1}–{2} || {1} || ?",
    "{{ {{{|safesubst:}}}#if:{{{1|}}}|{{{1}}}|x}}": "{1} || x",
    "{{<includeonly>safesubst:</includeonly>#if:{{{1|}}}|{{{1}}}|x}}": "{1} || x",
    "[[Foo bar]]s, [[Foo|{{{1}}}]] [http://a.org {{{2}}}]": "Foo bars, {1} {2}",
    "[[:{{{1}}}]]": "{1}",
    "{{{1|}}}{{{1|x}}}": "{1}{1} || x",
    "{{{1}}}{{{2}}}{{{3}}}{{{4}}}, {{{5}}}{{{6}}}{{{7}}}{{{8}}}": "{1}{2}{3}{4}, {5}{6}{7}{8}",
    "<includeonly>[[Catégorie:Roches]] [[Category:A]]</includeonly>\n<noinclude>doc</noinclude>": "silent",
    "{{{1|}}}{{#if:{{{nocat|}}}||[[Catégorie:Roches]]}}": "{1} || silent",
    "<ref>{{{1}}}</ref>": "silent",
    "{{#tag:ref|{{{1}}}|name=a}}": "silent",
    '<sup class="noprint Inline-Template">&#91;[[Aide:X|{{{raison|pas clair}}}]]&#93;</sup>': "silent",
    "<sup>[[[Aide:X|réf. souhaitée]]]</sup>": "silent",
    "{{{1}}}<sup>{{{2|e}}}</sup>": "{1}{2} || {1}e",
    '<span style="visibility:hidden;color:transparent;">0</span>': "silent",
    '<span style="display: none" class="sortkey">{{{1}}}</span>{{{2}}}': "{2}",
    '{{{1}}}<small><span id="coordinates">Koordinatys: {{{1}}}</span></small>': "{1}",
    '{{{1}}}<span class="plainlinks noprint">&nbsp;[http://a.org voir]</span>': "{1}",
    '<span lang="{{{1}}}" style="white-space:nowrap">{{{2}}}</span>': "{2}",
    '{{#if:{{{1|}}}|<span style="color:red">{{{1}}}</span>|<strong class="error">sans texte</strong>}}': "{1}",
    "{{#if:{{{1|}}}|{{{1}}}{{{2|{{PAGENAME}}}}}|{{Inconnu}}}} m": "{1}{2} m",
    "{{#if:{{{1|}}}|{{Inconnu}}|x}}": "{1~}x",
    "a{{#if:{{{1|}}}| <b> b</b> |[[c| d ]]}}": "{1~(?s).+}a b || a d_",
    "{{#if:{{{1|}}}|{{{1}}} = {{{2}}}|=}}": "{1} = {2} || {1~}=",
    "&nbsp;&ndash; ": "_–_",
    "<nowiki>'</nowiki>s": "'s",
    "<!-- a -->\ntexte<!-- b\n-->": "texte",
    "{{formatnum:{{{1}}}}} km": "{1} km",
    "avant <onlyinclude>{{{1}}}</onlyinclude> après": "{1}",
    "{{nowrap|{{{1}}}}} [[{{nobr|x}}]]": "{1} x",
    "{{Modèle:Nobr|{{{a|{{{b|}}}}}}}} m": "{a} m || {b} m",
}


@pytest.mark.parametrize("definition", SAID)
def test_a_definition_becomes_a_pattern(tmp_path, definition):
    assert table_of(tmp_path, {"Zeta": definition})[0] == {"fr:zeta": SAID[definition]}


def expanded(definition, given):
    """What MediaWiki makes of a definition: its arguments, then each #if, the innermost first."""
    text = re.sub(r"\{\{\{\|safesubst:\}\}\}|<includeonly>safesubst:</includeonly>", "", definition)
    text = transcluded(text)
    for _ in range(9):
        text = re.sub(r"\{\{\{([^{}|]+)(?:\|([^{}]*))?\}\}\}", lambda found: given.get(found[1], found[2] or ""), text)
    for _ in range(9):
        text = re.sub(r"\{\{\s*#if:([^{}|]*)\|([^{}|]*)(?:\|([^{}|]*))?\}\}", _chosen, text)
    return text


def _chosen(found):
    return (found[2] if found[1].strip() else found[3] or "").strip()


# Without those that use another template, or hold what readers do not see.
PLAIN = [
    each
    for each in SAID
    if not re.search(r"\{\{(?!\{|#if|<|\s)|coordin|error|Inconnu|none|hidden|\[\[\[|noprint", each)
]


@pytest.mark.parametrize("definition", PLAIN)
def test_a_page_reads_as_if_the_definition_stood_in_it(definition):
    rule = read_rule(SAID[definition])
    keys = sorted({*re.findall(r"\{\{\{(\w+)", definition)})
    compared = 0
    for values in product(("", "mot"), repeat=len(keys)):
        given = {key: value + key for key, value in zip(keys, values, strict=True) if value}
        text = rule.text(lambda key, given=given: given.get(key, ""))
        if text is not None:
            site = Site("fr", {10: "Modèle", 14: "Catégorie"})
            want = plain_text(f"Avant {expanded(definition, given)} après", site).text
            assert " ".join(plain_text(f"Avant {text} après").text.split()) == " ".join(want.split()), given
            compared += 1
    assert compared


UNSAID = {
    "{{#invoke:Foo|bar|{{{1}}}}}": "a call of a module",
    "{{#switch:{{{1}}}|a=b|c}}": "a function other than #if",
    "{{PAGENAME}}": "a function other than #if",
    "{{{{{1}}}}}": "a function other than #if",
    "{{Inconnu|{{{1}}}}}": "another template without a line",
    "{{convert|{{{1}}}|km}}": "another template that depends on an argument's words",
    "{{#if:{{nobr|{{{1|}}}}}|a|b}}": "a test of another template",
    "{{#if:&nbsp;{{{1|}}}|a|b}}": "a test of more than arguments",
    "{{#if:{{#if:{{{1|}}}|[[Catégorie:A]]}}|a|b}}": "a test of more than arguments",
    "{{#if:{{{1|}}}|{{Inconnu}}|{{Inconnu|2}}}}": "another template without a line",
    "{{{|x}}}": "a computed argument",
    "{{{ {{{1}}} }}}": "a computed argument",
    '<span style="display:{{{1}}}">a</span>': "a computed attribute",
    '{|\n| class="infobox" | {{{1}}}\n|}': "a table, a block or several lines",
    "<div>{{{1}}}</div>": "a table, a block or several lines",
    "a<br />b": "a table, a block or several lines",
    "a\n\nb": "a table, a block or several lines",
    "* {{{1}}}": "a table, a block or several lines",
    "{{#if:{{{1|}}}|* {{{1}}}|#}}": "a table, a block or several lines",
    "== {{{1}}} ==": "a table, a block or several lines",
    ":''Voir aussi {{{1}}}''": "a table, a block or several lines",
    "[[Fichier:a.png|20px]] {{{1}}}": "an image or another file",
    "[[File:a.png|20px]]": "an image or another file",
    "''Cet article est une ébauche.''": "a sentence or more",
    "本條目需要補充更多來源。": "a sentence or more",
    "mot " * 13: "a sentence or more",
    "mot [[" + "lien|" * 500 + "]]": "over 2,000 characters",
    "a_b": "a character that has a meaning in the table",
    "silent": "a character that has a meaning in the table",
    "&lt;b&gt;": "a character that has a meaning in the table",
    "{{{1|}}} || {{{2|}}}": "a character that has a meaning in the table",
    "{{{1|}}}{{{2|}}}{{{3|}}}{{{4|}}}{{{5|}}}{{{6|}}}": "too many cases",
    "".join(f"{{{{{{{number}}}}}}}" for number in range(1, 13)): "too many cases",
    "<math>x</math>": "a formula or preformatted text",
    "[[{{{langue}}}:{{{1}}}]]": "a link whose label is not known",
    "http://a.org/{{{1}}}": "a link whose label is not known",
    "<foo>{{{1}}}</foo>": "a table, a block or several lines",
    '<strong class="error">{{{1}}}</strong>': "an error message",
    "{{Zeta|{{{1}}}}}": "another template without a line",
}


@pytest.mark.parametrize("definition", UNSAID)
def test_what_cannot_be_said_for_sure_is_left_out_and_counted(tmp_path, definition):
    found, said = table_of(tmp_path, {"Zeta": definition})
    assert found == {} and said[-1].split(maxsplit=1) == ["1", UNSAID[definition]]


def test_templates_within_templates_hand_their_arguments_on(tmp_path):
    templates = {
        "Alpha": "{{{1}}}{{#if:{{{2|}}}|&#32;({{{2}}}) }}",
        "Beta": "{{alpha|{{{x|}}}|2=n° {{{y}}}}} m",
        "Gamma": "{{beta|x={{#if:{{{1|}}}|{{{1}}}|sans}}|y=5}}",
        "Zeta": "{{theta|{{{a|x}}}|{{{a|y}}}}}",
        "Theta": "{{{1}}}{{{2}}}",
        "Delta": "{{Epsilon}}",
        "Epsilon": "{{Delta}}",
    }
    found, said = table_of(tmp_path, templates)
    assert found == {
        "fr:alpha": "{1} ({2}) || {1}",
        "fr:beta": "{x} (n° {y}) m",
        "fr:gamma": "{1} (n° 5) m || sans (n° 5) m",
        "fr:zeta": "{a}{a} || xy",
        "fr:theta": "{1}{2}",
    }
    assert said[-1].split(maxsplit=1) == ["2", "another template without a line"]


def test_redirects_join_the_line_of_what_they_lead_to(tmp_path):
    redirects = {
        "Zz": "Zeta",
        "Aa": "zz",
        "Zn": "Nobr",
        "Zo": "Zn",
        "Loop": "Pool",
        "Pool": "Loop",
        "Self": "Self",
        "Gone": "Nowhere",
    }
    redirects |= {"Bb": "Omega"}
    found, said = table_of(
        tmp_path, {"Zeta": "{{{1}}} m", "Omega": "{{PAGENAME}}", "Nobr": "<div>"}, redirects=redirects
    )
    shipped = pattern_of(rule_of("nobr", "fr"))
    assert found == {"fr:zeta": "{1} m", "fr:zz": "{1} m", "fr:aa": "{1} m", "fr:zn": shipped, "fr:zo": shipped}
    assert "\n".join(said).count("redirect") and {tuple(line.split(maxsplit=1)) for line in said[2:]} == {
        ("3", "redirects in a circle"),
        ("2", "a function other than #if"),
        ("1", "a redirect to what is not there"),
        ("1", "a line in the shipped table"),
    }


def test_a_redirect_out_of_the_namespace_and_pages_of_code_have_no_line(tmp_path):
    more = [
        {"title": "Modèle:Ici", "ns": 10, "text": "#REDIRECT [[Étoile]]", "redirect": True},
        {"title": "Modèle:Zeta/styles.css", "ns": 10, "text": ".a { }", "model": "sanitized-css"},
        {"title": "Zeta", "text": "{{{1}}}"},
        {"title": "Discussion modèle:Zeta", "ns": 11, "text": "{{{1}}}"},
    ]
    found, said = table_of(tmp_path, {"Plan": "x"}, more=more)
    assert found == {"fr:plan": "x"}
    assert {line.strip() for line in said[2:]} == {"1  a redirect to another namespace", "1  no wikitext"}


def test_names_that_differ_by_case_alone_have_a_line_if_one_leads_to_the_other(tmp_path):
    found, said = table_of(tmp_path, {"ABC": "x", "Abc": "y", "DEF": "z"}, redirects={"Def": "DEF"})
    assert found == {"fr:def": "z"}
    assert said[-1].split(maxsplit=1) == ["1", "several pages of one name"]


def test_names_that_the_table_would_read_otherwise_are_left_out(tmp_path):
    found, _ = table_of(tmp_path, {"*": "x", "Zeta*": "x", "De:zeta": "x", "#": "x"})
    assert found == {"fr:de:zeta": "x", "fr:#": "x"} or found == {"fr:*": "x", "fr:de:zeta": "x", "fr:#": "x"}


def test_several_wikis_and_the_files_of_one_are_read_together(tmp_path):
    one = write_dump(tmp_path / "fr-1.xml", {"Zeta": "{{Eta}} a"})
    two = tmp_path / "fr-2.xml.bz2"
    two.write_bytes(bz2.compress(write_dump(tmp_path / "x", {"Eta": "b"}).read_bytes()))
    other = write_dump(tmp_path / "ru.xml", {"Eta": "{{{1}}}ы"}, "ru", spaces={10: "Шаблон"})
    without = write_dump(
        tmp_path / "old.xml", {}, "", spaces={}, more=[{"title": "Template:Eta", "ns": None, "text": "c"}]
    )
    said = []
    text = lines_of([str(without), str(other), str(two), str(tmp_path / "fr-*.xml")], said.append)
    lines = [line for line in text.splitlines() if line[0] != "#"]
    assert lines == ["c\teta", "b\tfr:eta", "b a\tfr:zeta", "{1}ы\tru:eta"]
    assert "fr-1.xml, fr-2.xml.bz2, old.xml, ru.xml" in text.splitlines()[0]
    shutil.copy(one, tmp_path / "copy.xml")
    again = lines_of([str(tmp_path / "copy.xml"), str(one), str(two), str(other), str(without)], said.append)
    assert text.splitlines()[1:] == again.splitlines()[1:]


def test_what_is_only_for_the_templates_own_page_is_cut_out():
    assert transcluded("a<noinclude>b</noinclude>c<NOINCLUDE >d") == "ac"
    assert transcluded("a<includeonly>b</includeonly ><noinclude/>c") == "abc"
    assert transcluded("a<onlyinclude>b<noinclude>x</noinclude></onlyinclude>c<onlyinclude>d</onlyinclude>") == "bd"
    assert transcluded("a<!-- <noinclude> -->b<nowiki><noinclude></nowiki>c") == "ab<nowiki><noinclude></nowiki>c"
    assert transcluded("a\n <!-- c --> \nb<!-- d -->\nc<!-- e") == "a\nb\nc"


def test_every_shipped_line_can_be_written_for_another_name():
    lines = (resources.files("data_prep.formats") / FILE).read_text(encoding="utf-8").splitlines()
    exact, starts, ends = read_table(lines)
    rules = [rule for rules in (exact, starts, ends) for rule in rules.values()]
    written = 0
    for rule in rules:
        try:
            written += bool(pattern_of(rule))  # only if it is read as the same
        except Unsayable as reason:
            assert "depends on the name" in str(reason)
    assert written > len(rules) / 2
    with pytest.raises(Unsayable):
        pattern_of(read_rule("{0}"))
    assert keys_of(read_rule("{-1} {a,b}")) == ({"-1", "a", "b"}, True)


def test_the_command_writes_a_table_and_refuses_what_holds_no_template(tmp_path):
    path, out = write_dump(tmp_path / "fr.xml", {"Zeta": "{{{1}}} m", "Box": "{|\n|}"}), tmp_path / "words.txt"
    done = run_cli("templates", path, "--out", out)
    assert done.returncode == 0 and not done.stdout
    assert "2 templates" in done.stderr and "1 lines for 1 names" in done.stderr
    printed = run_cli("templates", path)
    assert printed.stdout == out.read_text(encoding="utf-8") and printed.stdout.endswith("{1} m\tfr:zeta\n")

    articles = write_dump(tmp_path / "articles.xml", {})
    nothing = tmp_path / "text.txt"
    nothing.write_text("plain text")
    for path, words in ((articles, r"articles\.xml: no page of the namespace 10"), (nothing, r"text\.txt: not XML")):
        with pytest.raises(UserError, match=words):
            lines_of([str(path)], lambda line: None)
    done = run_cli("templates", tmp_path / "none.xml")
    assert done.returncode == 2 and done.stderr.startswith("error: templates: no file matches")
    done = run_cli("templates", path, "--out", tmp_path / "no/where")
    assert done.returncode == 2 and done.stderr.startswith("error: --out ") and done.stderr.count("\n") == 1


def test_pages_that_are_not_kept_are_not_taken_for_empty_ones(tmp_path):
    path = write_dump(
        tmp_path / "fr.xml", {"Long": "x" * (1 << 21) + "x", "Longer": "x" * 5_000_000, "Broken": "&", "Eta": "y"}
    )
    path.write_text(path.read_text(encoding="utf-8").replace(">&amp;<", "><b><"), encoding="utf-8")
    said = []
    assert lines_of([str(path)], said.append).endswith("here.\ny\tfr:eta\n")
    assert {line.strip() for line in said[2:]} == {"2  over 2,000 characters", "1  damaged in the dump"}


def test_a_torn_dump_gives_the_templates_before_its_end(tmp_path):
    text = write_dump(tmp_path / "fr.xml", {"Zeta": "x", "Eta": "y"}).read_text(encoding="utf-8")
    (tmp_path / "torn.xml").write_text(text[: text.index(">y<")], encoding="utf-8")
    said = []
    assert lines_of([str(tmp_path / "torn.xml")], said.append).endswith("\nx\tfr:zeta\n")
    assert any("torn.xml: breaks off" in line for line in said)
