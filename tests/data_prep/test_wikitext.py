"""What of an article's wikitext is prose."""

import pytest

from data_prep.formats.apostrophes import without_emphasis
from data_prep.formats.dump import Site
from data_prep.formats.tidy import hole, tidied
from data_prep.formats.wikitext import plain_text, words_of


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("'''Bold''' and ''italic''", "Bold and italic"),
        ("a [[link]], a [[target|label]], [[Foo|''x'']]s", "a link, a label, xs"),
        ("fact<ref name=a>{{cite|x}}</ref> and<ref name=a /> more", "fact and more"),
        ("a {{no such|1|{{nested|2}}}} b", "a b"),
        ("a <!-- hidden [[x]] --> b", "a b"),
        ("one\n <!-- alone --> \ntwo <!-- x -->\nthree\n\n<!-- y -->\nfour", "one\ntwo\nthree\n\nfour"),
        ('before\n{| class="x"\n! head\n|-\n| cell {{t}}\n|}\nafter', "before\n\nafter"),
        ("before\n{| unclosed\n|-\n| cell\nafter", "before\n\nafter"),
        ("[[File:a.jpg|thumb|a [[caption]] here]]Text[[Image:b.png]]", "Text"),
        ("Text\n[[Category:Stones]]\n[[Category:Rivers|key]]", "Text"),
        ("Text [[:Category:Stones]] [[:File:a.jpg|the file]]", "Text Category:Stones the file"),
        ("a [[file]] of [[Category|categories]]", "a file of categories"),
        ("[[Bild:a.jpg|mini|alias of another language]]Text", "Text"),
        ("Text\n[[de:Fluss]]\n[[zh-min-nan:Khe]] and [[de:Fluss|the German]]", "Text\n\nand the German"),
        ("see [http://a.org the site] or [http://a.org] or http://a.org now", "see the site or or now"),
        ("__NOTOC__Text __БЕЗСЪД__here", "Text here"),
        ("a&nbsp;b &lt;tag&gt; &amp; c", "a b <tag> & c"),
        ("one<br />two<br>three", "one\ntwo\nthree"),
        ("* item\n* [[other]]\n# third", "item\nother\nthird"),
        ("x <math>a^2</math> y <gallery>\nFile:a.jpg|c\n</gallery>z", "x y z"),
        ("<div class=x>inside</div> <small>small</small> <nowiki>'s</nowiki>", "inside\nsmall 's"),
        ("Stone ({{unknown|el|x}}; {{no such|y}}) is ({{no such}}, hard)", "Stone is (hard)"),
        ("德国-{zh-hans:联邦州; zh-hant:邦}-之一, 56 -{km}-", "德国联邦州之一, 56 km"),
        ("main() * * *\n* * *\nend __x", "main() * * *\n\nend __x"),
        ("one\n\n\n\n\ntwo", "one\n\ntwo"),
        ("{{unclosed\ntext [[open", "unclosed\ntext open"),
        ("", ""),
        ("{{only|templates}}\n[[Category:X]]", ""),
    ],
)
def test_wikitext_becomes_prose(wikitext, text):
    assert plain_text(wikitext).text == text


def test_headings_stay_only_above_text():
    wikitext = (
        "Intro\n== Bare ==\n== A ==\n=== A1 ===\ntext\n=== A2 ===\n{{t}}\n== References ==\n{{reflist}}\n== Links ==\n"
    )
    assert plain_text(wikitext).text == "Intro\n\nA\n\nA1\n\ntext"


def test_a_heading_above_code_without_text_goes_too():
    assert (
        plain_text("Intro\n== A ==\n<pre>\n&nbsp;\n</pre>\n== B ==\ntext\n<pre></pre>\nend").text
        == "Intro\n\nB\n\ntext\n\nend"
    )


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("a {{lang|fr|\n== H ==\nb}}", "a\n\nH\n\nb"),
        ("{{nowrap|\n== H ==\n}} b", "H\n\nb"),
        ("a {{#if:x|\n== H ==\n}} b", "a\n\nH\n\nb"),
    ],
)
def test_a_heading_in_an_argument_is_a_line_of_its_own(wikitext, text):
    assert plain_text(wikitext).text == text


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("Il relit l'''Étranger''.", "Il relit l'Étranger."),
        ("L<nowiki>'</nowiki>'''épistémologie'''", "L'épistémologie"),
        ("L&#39;'''épistémologie''' et l&apos;''Iliade''", "L'épistémologie et l'Iliade"),
        ("the ''Iliad'''s plot", "the Iliad's plot"),
        ("l'''Osservatore Romano'' e ''l'Unità''", "l'Osservatore Romano e l'Unità"),
        ("''''four'''' and '''three''' and ''''''six''''''", "'four' and three and 'six'"),
        ("''''''''eight", "'''eight"),
        ("'''''both''''' ''one'' '''two'' three", "both one 'two three"),
        ("''a<br>b''' c", "a\nb' c"),
        ("open ''italics\nnext line's ''text", "open italics\nnext line's text"),
        ("''a''<nowiki/>'s", "a's"),
        ("'<nowiki/>''a''", "'a"),
        ("[[Émile|l'''Œuvre'']] d'Emile", "l'Œuvre d'Emile"),
        ("rock 'n' roll isn't ''that''", "rock 'n' roll isn't that"),
        ("Hawai'i, O''ahu'', ʻokina", "Hawai'i, Oahu, ʻokina"),
        ("&#39;&#39;x&#39;&#39; and &quot;y&quot;", "''x'' and \"y\""),
        ("dell'''Arte'' e sull'''acqua''", "dellArte e sullacqua"),  # bold is closed, so MediaWiki shows no apostrophe
    ],
)
def test_apostrophes_are_read_as_mediawiki_reads_them(wikitext, text):
    assert plain_text(wikitext).text == text


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("aa'''b c'''d e'''f ''g''", "aab cd ef g"),  # italics are closed
        ("aa'''b c'''d ee'''f ''g", "aab c'd eef g"),  # a word of a single letter, though not the first
        ("aa'''b ee'''f gg'''h ''i", "aa'b eef ggh i"),  # else the first word
        ("a '''b ''c", "a 'b c"),  # else the first after a blank
        ("é'''a'' xx", "é'a xx"),
        ("x é'''a '''b '''c ''d", "x é'a b c d"),
    ],
)
def test_where_bold_and_italics_are_both_open_one_apostrophe_is_text(line, text):
    assert without_emphasis(line) == text


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("`vector&lt;int&gt;` and vector<int> are types", "`vector<int>` and vector<int> are types"),
        ("an &lt;b&gt;escaped&lt;/b&gt; tag, a <b>real</b> one", "an <b>escaped</b> tag, a real one"),
        (
            "Write <nowiki><ref></nowiki> before a note. Second sentence.<ref>note</ref> Third.",
            "Write <ref> before a note. Second sentence. Third.",
        ),
        (
            "<nowiki>[[no link]] {{no}} ''no italics'' -{no; variant}-</nowiki>",
            "[[no link]] {{no}} ''no italics'' -{no; variant}-",
        ),
        ("<nowiki>&lt;br&gt; &amp;nbsp;</nowiki>", "<br> &nbsp;"),
        ("&#91;&#91;a&#93;&#93; &#123;&#123;b&#125;&#125; &#124; &#95;&#95;NOTOC&#95;&#95;", "[[a]] {{b}} | __NOTOC__"),
        ("<code>a[[1]] __init__ {x} f(, )</code>", "a1 __init__ {x} f(, )"),
        ("<code><nowiki>a[[1]]</nowiki></code> <tt>''x''</tt>", "a[[1]] x"),
        (
            "before\n<pre>\n  def f(x):\n    ''return''\n  }\n</pre>\nafter",
            "before\n\n  def f(x):\n    ''return''\n  }\n\nafter",
        ),
        ("a <!-- <nowiki> --> b <nowiki>c <!-- d --></nowiki>", "a b c <!-- d -->"),
        ("__init__ and __main__ stay, __NOTOC__ and __notoc__ go", "__init__ and __main__ stay, and go"),
        ("__КРАТКОЕ__ __ΧΩΡΙΣΠΑ__ __لا_فهرس__ __目次非表示__ text", "text"),
        ("x < y and y > z; <3 <-- <o>p</o>", "x < y and y > z; <3 <-- <o>p</o>"),
        ("<includeonly>a</includeonly><section begin=x />b<Center>c</CENTER>", "b\nc"),
        ("<noinclude>==H==</noinclude>\n<onlyinclude>text</onlyinclude>", "H\n\ntext"),
        (
            "The News: and Data:base, geo:fix, tel:12 or mailto:a@b.c",
            "The News: and Data:base, geo:fix, tel:12 or mailto:a@b.c",
        ),
        ("(http://a.org) see http://a.org/b. [http://c.d] end", "see. end"),
        (
            "[[Lista d''e paise]], [[7%25 Solution]], [[/sub/]], [[CSI: Miami]]",
            "Lista d''e paise, 7% Solution, sub, CSI: Miami",
        ),
        ("<ruby>漢<rp>(</rp><rt>kan</rt><rp>)</rp></ruby>字 ([Praņcīši|praņciskai]] ''x'')", "漢字 (praņciskai x)"),
        (
            'a<span style="display: none;">0</span>b <SPAN STYLE="color:red; Visibility:hidden">x</SPAN><i style="x">c</i>',
            "ab c",
        ),
        (";term:definition\n: text: more\n*; [[a:b|x]] : y", "term\ndefinition\ntext: more\nx\ny"),
        ('kept <ref name=x>gone</ref>, <REF group="y">gone</REF>; kept <ref name=z/>too', "kept, ; kept too"),
        ("a <ref>without an end", "a without an end"),
        ("<pre>a\t\tb\u3000\u3000c\xa0(）（）</pre>", "a\t\tb\u3000\u3000c\xa0(）（）"),
    ],
)
def test_text_that_is_no_markup_stays(wikitext, text):
    assert plain_text(wikitext).text == text


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("The mean is {{formatnum:1234}} people a year.", "The mean is 1234 people a year."),
        ("{{FORMATNUM:1234|R}} {{lc:ABC}} {{uc:abc}} {{ucfirst:abc}} {{lcfirst:ABC}}", "1234 abc ABC Abc aBC"),
        ("{{#if:a|yes|no}} {{#if: |yes|no}} {{#ifeq:a|a|same|other}} {{#ifeq:a|b|same|other}}", "yes no same other"),
        ("{{PAGENAME}} is {{Template:Convert|1|mi}} from {{Vorlage:Convert|2|mi}}", "Étoile d'or is 1 mi from 2 mi"),
        ("At {{convert|1300|mi|km}}, it is long.", "At 1300 mi, it is long."),
        (
            "Il naît le {{date|17|octobre|1973}} à {{unité|2000|m}} d'altitude.",
            "Il naît le 17 octobre 1973 à 2000 m d'altitude.",
        ),
        (
            "The {{nihongo|'''Lantern Festival'''|灯|Tōrō}} is a festival.",
            "The Lantern Festival is a festival.",
        ),
        ("{{ convert | 12 \n| [[mile|mi]]}}", "12 mi"),
        ("{{lang|fr|{{nowrap|l'''Étranger''}}}} of {{lang-de|''Fluss''}}", "l'Étranger of Fluss"),
        ("{{ship's}} {{'}}s {{'s}}", None),
        ("''l{{'}}''{{'}}{{'}}x''y'' a{{!}}b", "l'''xy a|b"),
    ],
)
def test_a_template_stands_for_its_words(wikitext, text):
    site = Site(language="de", namespaces={10: "Vorlage"})
    found = plain_text(wikitext, site, "Étoile d'or")
    if text is None:
        assert found.text == "'s 's" and found.beside == {"ship's": 1}
    else:
        assert found.text == text and not found.beside


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("A “{{no such}}” and «&nbsp;{{no such|1}}&nbsp;» of x", "A and of x"),
        ("日本「{{no such}}」と（{{no such}}）、{{no such}}、東京", "日本と、東京"),
        ("Berlin ( {{no such}}, German), a city", "Berlin (German), a city"),
        ("Berlin (German, {{no such}}; {{no such}}), a city", "Berlin (German), a city"),
        ("one, {{no such}}, two", "one, two"),
        ("برلين، {{no such}}، ألمانيا", "برلين، ألمانيا"),
        ("end {{no such}}.", "end."),
        ("the {{no such}} river {{no such}} {{no such}} flows", "the river flows"),
        ('he said "{{no such}}" and "x"', 'he said and "x"'),
        ("empty “” and () stay in a text that says them: “”", "empty “” and stay in a text that says them: “”"),
        ("x <math>a</math>, <math>b</math>, y", "x, y"),
        ("see {{no such}}; then {{no such}}: yes {{no such}}! Is {{no such}}?", "see; then: yes! Is?"),
        ("un mot {{no such}} ; puis « {{no such}} » : oui", "un mot ; puis : oui"),
        ("(x {{audio|a.ogg}}; y), ({{audio|a.ogg}}) z", "(x; y), z"),
        ("a ({{no such}}/{{no such}}), (or {{no such}}) b", "a, (or) b"),
        ("* {{no such}}. Corrections\n* <math>x</math>, or", "Corrections\nor"),
        ("大阪、{{no such}}、{{R|a}}、東京", "大阪、東京"),
        ("the range – {{no such}} – is big", "the range – is big"),
        ("=== {{no such}}, {{no such}} ===\ntext", "text"),
        ("* {{no such}}, ''Daugpiļs'', 2004", "Daugpiļs, 2004"),
    ],
)
def test_a_template_without_words_leaves_no_empty_quotation(wikitext, text):
    assert plain_text(wikitext).text == text


def test_a_blank_before_punctuation_goes_but_not_before_what_begins_with_a_dot():
    text = "a {{no such}}. b {{no such}}, c {{no such}}) d"
    assert plain_text(text).text == "a. b, c) d"
    text = "In 1961, ... the .NET framework, a .txt file, .5 and . . . end"
    assert plain_text(text).text == text


def test_templates_without_words_are_counted_beside_text_alone():
    wikitext = (
        "{{Infobox\n|a=b\n}}'''Stone''' is {{Unknown_one|x}} hard.\n\n{{box}}\n* {{unknown one}} list\n"
        "== Heading {{other}} ==\ntext {{sfn|A}}<ref>{{cite web}}</ref>\n{| \n| {{in a table}} words\n|}\n{{#invoke:Lang|x}} y"
        "\n{{#expr: 1+1}} z {{#tag:ref|note}} {{DEFAULTSORT:Stone}} {{SORTIERUNG:x}} {{デフォルトソート:y}}"
    )
    found = plain_text(wikitext)
    assert found.beside == {"unknown one": 2, "other": 1, "#invoke:Lang": 1, "#expr:": 1}
    assert found.words == len(found.text.split()) == 8


def test_no_number_of_names_leaves_a_mark():
    found = plain_text("text " + "".join(f"{{{{no such {number}}}}}" for number in range(66_000)))
    assert (found.text, found.beside.total()) == ("text", 66_000)
    assert 5000 < found.beside["(other names)"] < 7000


def test_words_are_counted_by_blanks_and_where_there_are_none_by_pairs_of_characters():
    assert words_of("three plain words") == 3
    assert words_of("東京都は日本の首都") == 1 + 9 // 2
    assert words_of("") == 0


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("a-{H|zh-cn:博客;zh-tw:部落格}-b-{T|标题}-c-{-|zh-cn:x}-d", "abcd"),
        (
            "-{zh-cn:博客; zh-tw:部落格;}- -{A|zh-hans:甲;zh-hant:乙}- -{R|raw}- -{zh-hans;zh-hant|丙}-",
            "博客 甲 raw 丙",
        ),
        ("-{плав}- -{sr-ec:плав;sr-el:plav}- -{zh:乌-{江}-}-", "плав плав 乌江"),
        ("-{[[河|河流]]}- -{''x''}-", "河流 x"),
    ],
)
def test_of_language_variants_the_first_is_read_and_rules_show_nothing(wikitext, text):
    assert plain_text(wikitext).text == text


@pytest.mark.parametrize(
    "wikitext",
    [
        ", " * 200_000,
        "<ref>" * 80_000,
        "[[" * 50_000,
        "__aaa" * 50_000,
        "( " * 100_000,
        "''a'''b " * 50_000,
        "-{" * 100_000,
    ],
)
def test_the_clean_up_is_linear_in_the_page(wikitext):
    assert len(plain_text(wikitext).text) <= len(wikitext)  # would take minutes to hours


@pytest.mark.parametrize(
    ("before", "repeated"), [("", f"{hole(0)} "), ("a", f" {hole(0)}"), ("(", hole(0)), ("(", f"{hole(0)}, ")]
)
def test_many_holes_in_a_line_are_tidied_in_linear_time(before, repeated):
    text, _ = tidied(before + repeated * 60_000 + "a", [""])
    assert len(text) <= 3
