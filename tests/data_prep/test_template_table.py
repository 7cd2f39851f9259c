"""Which words a template stands for: the table in the package, and how lines of a table are read."""

import re
from importlib import resources

import pytest

from data_prep.cli import UserError
from data_prep.formats.dump import Site
from data_prep.formats.templates import FILE, read_rule, read_table, rule_of
from data_prep.formats.wikitext import plain_text
from tests.parts import words_beside
from tests.parts.corpora import dump


def shown(pattern: str, *given: str, name: str = "", **named: str) -> str | None:
    """What a pattern shows for these arguments."""
    arguments = {str(number): text for number, text in enumerate(given, 1)} | named
    return read_rule(pattern).text(lambda key: arguments.get(key, ""), name)


def prose(wikitext: str, language: str = "en") -> str:
    return plain_text(wikitext, Site(language), "River").text


@pytest.mark.parametrize(
    ("language", "wikitext", "text"),
    [
        ("en", "The mean is {{formatnum:1234}} people a year.", "The mean is 1234 people a year."),
        ("en", "At {{convert|1300|mi|km}} or {{Cvt|2|km}}, it is long.", "At 1300 mi or 2 km, it is long."),
        (
            "fr",
            "Il naît le {{date|17|octobre|1973}} à {{unité|2000|m}} d'altitude.",
            "Il naît le 17 octobre 1973 à 2000 m d'altitude.",
        ),
        (
            "en",
            "The {{nihongo|'''Lantern Festival'''|灯|Tōrō}} is a festival.",
            "The Lantern Festival is a festival.",
        ),
        (
            "en",
            "a {{nowrap|two words}}, {{nobr|b c}} {{small|d}} {{abbr|HTML|HyperText}} e",
            "a two words, b c d HTML e",
        ),
        (
            "en",
            "a {{lang|de|Fluss}}, {{lang-de|Strom}}, {{transl|ja|kawa}} {{langx|fr|fleuve}}",
            "a Fluss, Strom, kawa fleuve",
        ),
        ("en", "by {{ill|Ann Bee|de|Ann Bee (Malerin)|lt=Ann}} and {{ill|Ann Bee|de}}", "by Ann and Ann Bee"),
        (
            "en",
            "1900{{snd}}1910{{mdash}}x{{ndash}}y {{'}}tis Ann{{'s}} {{!}}",
            "1900 – 1910—x–y 'tis Ann's |",
        ),
        ("en", "{{frac|1|2}} or {{frac|2|1|2}} of {{val|1.5|u=m}}", "1/2 or 2 1/2 of 1.5 m"),
        (
            "en",
            "{{As of|2010}} it was; {{as of|2012|June|lc=y}} {{as of|2012|06|5|lc=y}} {{circa|1900}}",
            "As of 2010 it was; as of June 2012 as of 5 June 2012 c. 1900",
        ),
        ("en", "{{quote|A river.|Ann}}", "A river."),
        (
            "en",
            "the {{USS|Enterprise|CV-6}} and the {{HMS|Hood|51|6}}",
            "the USS Enterprise (CV-6) and the HMS Hood",
        ),
        (
            "fr",
            "au {{s|XIX|e}}, le {{-s|I}} et le {{IIe siècle}}",
            "au XIXe siècle, le Ier siècle av. J.-C. et le IIe siècle",
        ),
        (
            "fr",
            "le {{1er|champion}} d'{{lang|de|Österreich}} {{incise|enfin}}",
            "le 1er champion d'Österreich – enfin –",
        ),
        (
            "fr",
            "à {{heure|4|30}} par {{lien|lang=de|Anne}} de {{euro|77.80}}",
            "à 4 h 30 par Anne de 77.80 €",
        ),
        (
            "ru",
            "город {{s|12 км}} от {{нп5|Река|реки|en|River}} и {{не переведено 5|Озеро|||Lake}}",
            "город 12 км от реки и Озеро",
        ),
        ("uk", "місто ({{lang-de|Berlin}}) і {{нп|Річка||en|River}}", "місто (Berlin) і Річка"),
        (
            "ar",
            "نهر شبريه {{ألمانية|Spree}} يخترق {{وإو|تر=River|لغ=en|عر=نهر}} هنا",
            "نهر شبريه (بالألمانية: Spree) يخترق نهر هنا",
        ),
        (
            "it",
            "è {{TA|30 546 km²}} e {{M|12|u=km}} secondo {{senza fonte|molti}}",
            "è 30 546 km² e 12 km secondo molti",
        ),
        (
            "de",
            "Er schrieb {{\"|Wort und That}} auf {{Höhe|115|DE-NHN}} ({{enS|river}})",
            "Er schrieb „Wort und That“ auf 115 m ü. NHN (englisch river)",
        ),
        ("ja", "現在は{{仮リンク|ボン法|en|Bonn Act}}により{{読み仮名|川|かわ}}", "現在はボン法により川（かわ）"),
        (
            "zh",
            "出任{{link-de|总督|Markgraf}}和{{tsl|en|River|河|江}}和{{le|湖|Lake}}（{{bd|1900年|1月1日|1980年}}）",
            "出任总督和江和湖（1900年1月1日－1980年）",
        ),
        ("la", "Pagina fluminis {{Ling|Theodisce}} est", "Pagina fluminis (Theodisce) est"),
        ("lt", "Berlynas ({{de|Berlin}}) ir {{vok|Fluss}}", "Berlynas (vok. Berlin) ir vok. Fluss"),
        (
            "sk",
            "asi {{km|70|m}} od rieky ({{deu|Spree}}), {{v jazyku|deu|Fluss}}",
            "asi 70 km od rieky (nem. Spree), Fluss",
        ),
        ("cs", "řeka ({{vjazyce|de}} {{cizojazyčně|de|Fluss}})", "řeka (německy Fluss)"),
        ("ko", "강({{llang|de|Fluss}})과 {{임시 링크|호수|en|Lake}}", "강(Fluss)과 호수"),
        ("he", "הנהר ({{אנגלית|River}}) זורם אל {{ה|אגם הגדול}}", "הנהר (באנגלית: River) זורם אל אגם הגדול"),
        ("fa", "رود {{آلمانی|Fluss}} است", "رود (به آلمانی: Fluss) است"),
        ("pt", "no {{séc|XIII}} com {{fmtn|90000}} habitantes", "no século XIII com 90000 habitantes"),
        (
            "es",
            "en el {{siglo|XV||s}} unos 45{{esd}}km de {{unidad|30|km}}",
            "en el siglo XV unos 45 km de 30 km",
        ),
        ("ro", "de {{conversie|22|–|25|C|F}} vara", "de 22–25 °C vara"),
        ("hu", "lakossága {{szám|180000}} fő", "lakossága 180000 fő"),
        ("fi", "joki ({{k-de|Fluss}}) on", "joki (Fluss) on"),
        ("sr", "река ({{јез-нем|Fluss}}) је", "река (Fluss) је"),
        ("eo", "La {{daton|18|januaro|1791}} venis", "La 18-an de januaro 1791 venis"),
        ("id", "Sungai {{lahirmati|Bogor|1|5|1900}} itu", "Sungai lahir di Bogor, 1 Mei 1900 itu"),
    ],
)  # fmt: skip
def test_words_of_templates_stay_in_their_sentence(language, wikitext, text):
    found = plain_text(wikitext, Site(language), "River")
    assert found.text == text and not found.beside


@pytest.mark.parametrize(
    "wikitext",
    [
        "a river{{sfn|Bee|1999|p=3}}", "a river{{efn|A long note.}}", "a river{{citation needed|date=May 2017}}",
        "a river{{rp|30}}", "a river{{要出典|date=2020年3月}}", "{{anchor|x}}a river", "a river{{Нет АИ|3|01|2018}}",
        "{{flagicon|USA}} a river", "a river {{de}}", "a river {{en icon}}", "a river {{ref-de}}", "a river {{הערה|note}}",
        "a river{{Webarchive|url=https://example.org|date=2010-01-01}}", "a river{{Bron?||2019|04|15}}", "{{0}}a river",
        "a river {{أيقونة ألمانية}}", "a river{{coord|1|2|N|3|4|W|display=title}}",
    ],
)  # fmt: skip
def test_marks_show_nothing_and_are_no_loss(wikitext):
    found = plain_text(wikitext, Site("en"), "River")
    assert found.text == "a river" and not found.beside


@pytest.mark.parametrize(
    ("language", "wikitext"),
    [
        ("it", "{{S|calciatori|giugno 2010}}"), ("pl", "{{S|XX}}"), ("es", "{{s|XVI|e}}"), ("it", "{{W|musica|gennaio 2010}}"),
        ("it", "{{E|motivo|arg}}"), ("it", "{{U|Altra voce|arg}}"), ("it", "{{NN|x}}"), ("it", "{{L|arg}}"),
        ("en", "{{ce|date=May 2010}}"), ("en", "{{rm|Other name}}"), ("de", "{{U|Benutzer}}"), ("nl", "{{by|1990}}"),
        ("fr", "{{fy|1999}}"), ("pt", "{{SS|123}}"), ("it", "{{SS|12|ITA}}"), ("sv", "{{e|x}}"), ("cs", "{{del|důvod}}"),
        ("ru", "{{стиль|2010-01-01}}"), ("fr", "{{PHI|1990}}"), ("vi", "{{BRA|1930}}"), ("hu", "{{lat|47|É}}"),
        ("nl", "{{mme|1}}"), ("es", "{{vie|1990}}"), ("it", "{{port|x}}"), ("en", "{{pts|3}}"), ("da", "{{as of|2010}}"),
        ("da", "{{dts|1990|1|2}}"), ("id", "{{start date|1990|1|2}}"), ("fi", "{{ordinal|3}}"), ("nl", "{{3d|x}}"),
        ("ru", "{{k-x|y}}"), ("de", "{{GER|1933}}"), ("sv", "{{le|a|b|c}}"), ("et", "{{color|red}}"), ("nl", "{{dag|x}}"),
    ],
)  # fmt: skip
def test_a_name_that_means_something_else_on_another_wiki_prints_nothing_there(language, wikitext):
    assert prose(f"{wikitext}\nA river {wikitext} flows.", language) == "A river flows."


@pytest.mark.parametrize(
    ("language", "wikitext", "text"),
    [
        ("fr", "au {{s-|XX}} et {{-s|II}} {{mme|Bee}}, {{2e}}", "au XXe siècle et IIe siècle av. J.-C. Mme Bee, 2e"),
        ("fr", "(moins{{etc.}}) {{ap. J.-C.}} {{abréviation discrète|St|Saint}}", "(moins etc.) apr. J.-C. St"),
        ("en", "10{{e|6}} {{j|a b}} {{SS|Great Britain}} {{by|1990}}", "10×10^6 a b SS Great Britain 1990"),
        ("ca", "x {{e|-12}} y", "x ×10^-12 y"),
        ("en", "{{dts|1990|1|2}} {{ordinal|3}} {{color|red|word}} {{columns-list|2|b}}", "2 January 1990 3rd word b"),
        ("en", "{{rquote|left|A river.|Ann}} {{bibleref|Mark|1|2}}", "A river. Mark 1:2"),
        ("en", "{{bibleverse||John|3:16|KJV}}, {{bibleverse|1|John|3:16}}", "John 3:16, 1 John 3:16"),
        ("en", "{{sic|hide=y|teh}} {{sic|teh}} {{section link|A|B}}", "teh teh [sic] A § B"),
        ("en", "{{INRConvert|12|c}} {{±|5}} {{CO2}}", "₹12 crore ±5 CO2"),
        ("en", "of {{track gauge|1435mm}} and {{RailGauge|ussg}} gauge", "of 1435mm and gauge"),
        ("fa", "می{{نیم‌فاصله}}رود می{{zwnj}}رود", "می\u200cرود می\u200cرود"),
        ("ml", "x{{zwj}}y", "x\u200dy"),
        ("pt", "em {{AC|300}}, {{dni|1|2|1990}}, {{fmtn|12000|km}}", "em 300 a.C., 1 de fevereiro de 1990, 12000 km"),
        ("ro", "la {{Ill-wd|Q1||Text}} x", "la Text x"),
        ("th", "x {{ลิงก์ไปภาษาอื่น|en|Foo|ฟู}} y", "x ฟู y"),
        ("eu", "x {{bihurtu|12|km}} y", "x 12 km y"),
        ("pl", "x {{w języku|de|Warschau}} y", "x Warschau y"),
        ("ltg", "x {{vol-vo|Fluss}} y", "x Fluss y"),
        ("ca", "segle {{romanes|XV}} {{aC}} x", "segle XV aC x"),
        (
            "de",
            "in {{FRA}} und {{RUS}} ({{ruS|река}}), {{ITA|#}} Rom",
            "in Frankreich und Russland (russisch река), Rom",
        ),
        ("ja", "{{JPN}}の川", "日本の川"),
        ("en", "{{BRA|1930}} and {{GER}}, {{ket|x}}", "Brazil and Germany, |x⟩"),
        ("en", "* {{see|name=Dam|content=A big dam.}}\n* {{eat|name=Inn}}", "Dam. A big dam."),
        ("pl", "x {{fakt|słowo}} y", "x słowo y"),
        ("sv", "x {{fakt|2010}} y", "x y"),
        ("zh", "在{{PRC}}的河", "在中华人民共和国的河"),
        ("ko", "{{KOR}}의 강", "대한민국의 강"),
    ],
)
def test_such_names_keep_their_words_where_they_have_them(language, wikitext, text):
    assert prose(wikitext, language) == text


@pytest.mark.parametrize(
    ("language", "mark"),
    [
        ("en", "{{Sheep-stub}}"), ("en", "{{more citations needed section|date=May 2010}}"), ("de", "{{Belege fehlen}}"),
        ("de", "{{QS-Biologie}}"), ("fr", "{{ébauche fleuve|x}}"), ("fr", "{{Voir homonymes|Berlin}}"), ("it", "{{S|fiumi}}"),
        ("it", "{{Da unire|x}}"), ("es", "{{esbozo|ríos}}"), ("pt", "{{esboço-rio}}"), ("nl", "{{Beginnetje|rivier}}"),
        ("pl", "{{Zalążek artykułu}}"), ("ru", "{{Germany-geo-stub}}"), ("ru", "{{стиль|дата=2010}}"), ("uk", "{{без джерел}}"),
        ("cs", "{{Pahýl - řeka}}"), ("sk", "{{Výhonok}}"), ("sv", "{{Geografistub}}"), ("no", "{{Elvstubb}}"),
        ("fi", "{{Tynkä/Joki}}"), ("hu", "{{csonk-földrajz}}"), ("ro", "{{ciot-geografie}}"), ("tr", "{{nehir-taslak}}"),
        ("vi", "{{Sơ khai Đức}}"), ("id", "{{Rintisan}}"), ("ar", "{{بذرة جغرافيا}}"), ("fa", "{{رود-خرد}}"),
        ("he", "{{קצרמר}}"), ("ja", "{{出典の明記}}"), ("zh", "{{小作品}}"), ("ko", "{{독일 토막글}}"),
        ("ca", "{{Esborrany de rius}}"), ("eo", "{{ĝermo}}"), ("la", "{{stipula}}"),
    ],
)  # fmt: skip
def test_marks_of_stubs_and_of_work_to_do_are_no_loss(language, mark):
    found = plain_text(f"{mark} a river flows {mark}", Site(language), "River")
    assert found.text == "a river flows" and not found.beside


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("1300|mi|km", "1300 mi"), ("60|to|170|kg|lb", "60 to 170 kg"), ("5|ft|8|in|cm", "5 ft 8 in"),
        ("5|ft|8|in|to|6|ft|2|in|cm", "5 ft 8 in to 6 ft 2 in"), ("10|-|20|km", "10–20 km"), ("1|x|2|x|3|m", "1 × 2 × 3 m"),
        ("891|km2|sqmi|2", "891 km2"), ("5|a|ha", "5 a"), ("10|ft|0", "10 ft"), ("-5|to|+5|C|F", "-5 to +5 °C"),
        ("78000 naissances", "78000 naissances"), ("1+1/2|in|mm", "1+1/2 in"), ("2|and(-)|3|km", "2 and 3 km"),
        ("1.5|e6km2|sqmi", "1.5×10^6 km2"), ("2|to|3|e9USgal|L", "2 to 3×10^9 USgal"),
        ("15|à|20|km", "15 à 20 km"), ("no number|km", None), ("", None),
    ],
)  # fmt: skip
def test_a_quantity_is_as_given_without_what_it_is_converted_to(given, text):
    assert shown("@measure", *given.split("|")) == text


def test_the_first_alternative_whose_arguments_have_text_is_shown():
    pattern = "{text,1} of {2} || {1} || none"
    assert shown(pattern, "a", "b") == "a of b" and shown(pattern, "a", "b", text="c") == "c of b"
    assert shown(pattern, "a", " ") == "a" and shown(pattern) == "none" and shown("{1}") is None


def test_words_conditions_joins_blanks_and_names():
    assert shown("{1}{2=-:–,to:_to_,by}{3}", "1", "-", "2") == "1–2" and shown("{1}{2=by}{3}", "1", "by", "2") == "1by2"
    assert (
        shown("{1}{2=by}", "1", "of") is None
        and shown("{lc=:A,y:a}s", lc="y") == "as"
        and shown("{lc=:A,y:a}s") == "As"
    )
    assert shown("{1=6:June}", "06") == "June"
    assert shown("{1~[a-z]+}{2} || {1}", "de", "x") == "x" and shown("{1~[a-z]+}{2} || {1}", "[x]") == "[x]"
    assert shown("{1+}", "a", "", "b") == "ab" and shown("{2+, }", "a", "b", "c") == "b, c" and shown("{1+}") is None
    assert shown("{-1} {0}", "a", "b", name="XXe_siècle") == "b XXe siècle"
    assert (
        shown("_–_") == " – " and shown("\\n") == "\n" and shown("{1} || silent") == "" and shown("silent", "a") == ""
    )


def test_a_list_of_words_serves_several_lines():
    exact, _, _ = read_table(["$days\t1:Monday,2:Tuesday", "on {1=$days}\ta", "since {1=$days}\tb"])
    assert exact["b"].text(lambda key: "2") == "since Tuesday"


def test_a_wiki_decides_before_all_and_a_full_name_before_a_beginning():
    assert prose("au {{s|XII}} x", "fr") == "au XIIe siècle x" and prose("{{s|XII}} x", "ru") == "XII x"
    assert prose("x {{ S _|XII}}", "uk") == "x XII" and prose("a {{cite_any  book|x}}b") == "a b"
    assert prose("a {{Lang-xyz|b}} {{lang-zh-tw|c=d}} {{XXIVe_siècle}}") == "a b d XXIVe siècle"
    assert prose("le {{21er|e}} x", "fr") == "le 21er e x"
    assert rule_of("date", "fr") is rule_of("date", "fr_x") is not rule_of("date", "de")
    assert prose("a {{cita libro|b}}{{cita textual|c}}{{lang-zh-x|c=d|p=e}}", "es") == "a cd; e"
    assert prose("er {{XXXvet}} kantved", "br") == "er XXXvet kantved" and rule_of("XXXvet", "fr") is None
    assert rule_of("no such template") is None and rule_of("") is None
    assert rule_of("cite " + "x" * 250) and not rule_of("cite " + "x" * 251)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{1}"], "line 1: '{1}' is not a pattern, a tab and names"),
        (["# x", "", "{1}\t "], "line 3: '{1}\\t ' is not"),
        (["{1\ta"], "line 1: a brace without its other one in '{1'"),
        (["1}\ta"], "line 1: a brace without"),
        (["{1} || \ta"], "line 1: an empty alternative"),
        (["\ta"], "line 1: an empty alternative"),
        (["{}\ta"], "line 1: {} names no argument"),
        (["{text,}\ta"], "line 1: {text,} names no argument"),
        (["{1~[}\ta"], "line 1: '[' is no regular expression"),
        (["{text+}\ta"], "line 1: {text+}: only numbered arguments"),
        (["{0+}\ta"], "line 1: {0+}: only numbered"),
        (["{1=$days}\ta"], "line 1: no line above begins with $days"),
        (["{1}\ta*b"], "line 1: 'a*b' is no name"),
        (["{1}\ta || silent"], "line 1: 'a || silent' is no name"),
        (["{1}\ta | fr:"], "line 1: 'fr:' is no name"),
        (["{1}\ta | b", "{2}\tB"], "line 2: b has a line already"),
        (["{1}\tfr,de:a", "{2}\tde:a"], "line 2: de:a has a line already"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_rule_is_named(lines, message):
    with pytest.raises(UserError) as caught:
        read_table(lines, "mine.txt")
    assert str(caught.value).startswith(f"mine.txt, {message}") and "\n" not in str(caught.value)


def test_the_table_has_no_name_twice_and_every_pattern_reads():
    lines = (resources.files("data_prep.formats") / FILE).read_text(encoding="utf-8").splitlines()
    exact, starts, ends = read_table(lines)
    assert len(exact) > 3000 and starts and ends


def test_a_name_of_one_letter_or_two_prints_no_words_of_its_own_on_every_wiki():
    exact, _, _ = read_table((resources.files("data_prep.formats") / FILE).read_text(encoding="utf-8").splitlines())
    short = {name: rule for name, rule in exact.items() if re.fullmatch("[a-z]{1,2}", name)}
    words = {"1": "word", "2": "word", "3": "word", "text": "word"}
    assert {name for name, rule in short.items() if (rule.text(lambda key: words.get(key, "")) or "").strip()} == {"zh"}


def test_every_rule_of_the_table_answers_whatever_its_arguments_are():
    for rules in read_table((resources.files("data_prep.formats") / FILE).read_text(encoding="utf-8").splitlines()):
        for name, rule in rules.items():
            for argument in ("", "1", "de", " 17 ", "II", "x|y"):
                given = dict.fromkeys(("1", "2", "3", "text"), argument)
                text = rule.text(lambda key, given=given: given.get(key, ""), "Name")
                assert text is None or "{" not in text, name


def test_the_tool_counts_what_is_lost_without_the_table_and_with_it(tmp_path, capsys):
    text = "one {{lang|fr|fleuve}} two {{formatnum:12}} three {{sfn|Bee}} four {{no such}} five"
    path = tmp_path / "frwiki-1.xml"
    path.write_text(dump([{"text": text}]), encoding="utf-8")
    words_beside.main(str(path))
    _, row, whole, lost = capsys.readouterr().out.splitlines()
    assert row.split() == ["frwiki", "7", "600.00", "142.86", "23.8%", "285.71"]  # 3 of 5, 1 of 7, 2 of 7
    assert whole.split()[1:] == row.split()[1:] and lost == "still lost: no such 1"
    assert plain_text("a {{lang|fr|b}}").text == "a b"  # the table is back
