"""Which pages of a dump are articles of wikitext: by what the dump says, or by its namespaces' names and its text."""

import gc

import pytest
from mwparserfromhell.parser import ParserError

from data_prep.formats import wikipedia
from data_prep.formats.dump import RawPage, Site, split_dump
from data_prep.formats.page import dropped_for, parse_page
from data_prep.formats.wiki_names import MEDIA_NAMES
from data_prep.formats.wikipedia import clean_article
from tests.parts.corpora import dump

FILE = "dump.xml"  # of ``write``


@pytest.fixture
def reasons(write):
    """Why each page of a dump is dropped; its text if it is not."""

    def reasons(pages, *arguments, **options):
        found = [parse_page(raw) for _, raw in split_dump(write(dump(pages, *arguments, **options)))]
        return [dropped_for(page) or page.wikitext for page in found]

    return reasons


def test_redirects_other_namespaces_and_empty_articles_are_dropped_with_reasons(write):
    pages = [
        {"text": "An [[article]]."},
        {"text": "#REDIRECT [[P0]]", "redirect": True},
        {"text": "Talk", "ns": 1, "title": "Talk:P0"},
        {"text": "[[Category:Rivers]]"},
        {"text": "Template", "ns": 10},
        {"text": "a\x01b"},
    ]
    documents = [clean_article(raw) for _, raw in split_dump(write(dump(pages)))]
    reasons = ["", "redirect", "not_an_article", "empty", "template", ""]
    assert [document.dropped for document in documents] == reasons
    assert documents[0].text == "An article."
    assert (documents[5].text, documents[5].repairs) == ("ab", {"forbidden_character": 1})


def test_the_namespace_names_of_the_dump_report_its_files_and_categories(write):
    text = "Tekst [[Vajl:a|mini|nadpis]][[Skupiina:Reki]][[File:b.jpg]]"
    names = {6: "Vajl", 14: "Skupiina"}
    raw = next(split_dump(write(dump([{"text": text}], "xx", names))))[1]
    assert raw.site.language == "xx" and {"vajl", "skupiina", "file"} <= raw.site.media_names
    assert raw.site.namespaces == {0: "", 6: "Vajl", 14: "Skupiina"}
    assert clean_article(raw).text == "Tekst"
    assert clean_article(next(split_dump(write(dump([{"text": text}]))))[1]).text != "Tekst"


UNLISTED = """
分類 分类 檔案 文件 档案 圖像 图像 ファイル 画像 カテゴリ 파일 그림 분류 файл изображение категория зображення
категорія fichier catégorie datei bild kategorie archivo imagen categoría ficheiro imagem plik grafika bestand fil tiedosto
ملف تصنيف پرونده رده קובץ קטגוריה चित्र श्रेणी ไฟล์ หมวดหมู่ dosya resim kategori soubor fájl αρχείο lêer jamii
"""


@pytest.mark.parametrize("name", UNLISTED.split())
def test_files_and_categories_have_names_that_siteinfo_does_not_list(name):
    assert name in MEDIA_NAMES and name in Site().media_names


@pytest.mark.parametrize(
    ("language", "namespaces", "title", "article"),
    [
        ("en", {}, "River", True),
        ("en", {}, "Talk:River", False),
        ("en", {}, "user_talk:River", False),
        ("en", {}, "USER  TALK:River", False),
        ("en", {}, "C: a film", True),
        ("en", {}, "Mission: Impossible", True),
        ("en", {}, ":Odd", True),
        ("en", {}, "Portal: Prelude", True),
        ("en", {}, "Image:River.jpg", False),
        ("en", {4: "W"}, "W:About", False),
        ("de", {10: "Vorlage"}, "Vorlage:Fluss", False),
        ("de", {10: "Vorlage"}, "Template:Fluss", False),
        ("de", {}, "Vorlage:Fluss", True),
        ("fr", {10: "Modèle", 3: "Discussion utilisateur"}, "Discussion_utilisateur:A", False),
        ("ru", {10: "Шаблон"}, "ШАБЛОН:Река", False),
        ("uk", {100: "Портал"}, "Портал:Річка", False),
        ("el", {2: "Χρήστης"}, "χρήστης:Α", False),
        ("tr", {12: "Yardım"}, "Yardım:A", False),
        ("ar", {10: "قالب"}, "قالب:نهر", False),
        ("he", {10: "תבנית"}, "תבנית:נהר", False),
        ("fa", {1: "بحث"}, "بحث:رود", False),
        ("hi", {10: "साँचा"}, "साँचा:नदी", False),
        ("th", {10: "แม่แบบ"}, "แม่แบบ:แม่น้ำ", False),
        ("ja", {10: "Template"}, "ファイル:川.jpg", False),
        ("zh", {4: "Wikipedia"}, "分類:河流", False),
        ("ko", {10: "틀"}, "틀:강", False),
        ("vi", {10: "Bản mẫu"}, "Bản_mẫu:Sông", False),
    ],
)
def test_without_ns_the_prefix_of_the_title_tells_the_namespace(reasons, language, namespaces, title, article):
    for number, found in ((None, article), (0, True), (1, False), (" 0\n", True), ("", article), ("x", article)):
        page = {"text": "x", "ns": number, "title": title}
        assert reasons([page], language, namespaces) == ["x" if found else "not_an_article"], number


def test_without_siteinfo_the_english_names_of_wikipedia_count_too(reasons):
    titles = ["River", "Portal:Rivers", "Wikipedia:About", "Template:A", "Datei:A.jpg", "Talk:River", "C: a film"]
    pages = [{"text": "x", "ns": None, "title": title} for title in titles]
    assert reasons(pages, siteinfo=False) == ["x", *["not_an_article"] * 5, "x"]


@pytest.mark.parametrize(
    ("kind", "wikitext"),
    [
        ({}, True),
        ({"model": "wikitext", "format": "text/x-wiki"}, True),
        ({"model": "wikitext", "format": "application/json"}, True),
        ({"format": "text/x-wiki"}, True),
        ({"format": "text/plain"}, True),
        ({"model": "wikibase-item", "format": "application/json"}, False),
        ({"model": "Scribunto"}, False),
        ({"model": "json"}, False),
        ({"model": "flow-board"}, False),
        ({"format": "application/json"}, False),
        ({"format": "text/css"}, False),
        ({"format": "text/javascript"}, False),
        ({"format": "application/x-lua"}, False),
    ],
)
def test_a_page_of_another_model_is_not_wikitext(reasons, kind, wikitext):
    assert reasons([{"text": "x", **kind}]) == ["x" if wikitext else "not_wikitext"]
    assert reasons([{"text": "x", "ns": ns, **kind} for ns in (10, 828)]) == ["template", "not_an_article"]


def test_other_slots_are_not_the_page(reasons, write):
    slot = "<role>mediainfo</role><model>wikibase-mediainfo</model><format>application/json</format><text>{}</text>"
    slot = f"<content>{slot}</content>"
    assert reasons([{"text": "x", "slots": slot}, {"text": "y", "slots": slot * 3}]) == ["x", "y"]
    before = dump([{"text": "x"}]).replace("<comment>", slot + "<comment>")
    assert parse_page(next(split_dump(write(before)))[1]).wikitext == "x"


REDIRECTS = [
    "#REDIRECT [[River]]",
    "\n #redirect[[River#Source|a river]] {{R from move}}\nand more text",
    "#Redirect: [[River]]",
    "#WEITERLEITUNG [[Fluss]]",
    "#REDIRECTION [[Fleuve]] texte",
    "#REDIRECCIÓN [[Río]]",
    "#REDIRECIONAMENTO [[Rio]]",
    "#RINVIA [[Fiume]]",
    "#DOORVERWIJZING [[Rivier]]",
    "#PATRZ [[Rzeka]]",
    "#OMDIRIGERING [[Älv]]",
    "#OHJAUS [[Joki]]",
    "#ÁTIRÁNYÍTÁS [[Folyó]] szöveg",
    "#перенаправление [[Река]] текст",
    "#ПЕРЕНАПРАВЛЕННЯ [[Річка]]",
    "#YÖNLENDİRME [[Nehir]] metin",
    "#yönlendirme [[Nehir]] metin",
    "#تحويل [[نهر]] نص",
    "#تغییر_مسیر [[رود]] متن",
    "#הפניה [[נהר]] טקסט",
    "#अनुप्रेषित [[नदी]] पाठ",
    "#เปลี่ยนทาง [[แม่น้ำ]]",
    "#転送 [[川]] 文",
    "＃リダイレクト[[川]]",
    "#重定向 [[河流]]文",
    "#重新導向：[[河流]]",
    "#넘겨주기 [[강]] 글",
    "#đổi [[Sông]]",
    "#WORD [[Target]]",
    "#Ngebele: [[Mto]]\n{{x|{{y}}}}\n[[Jamii:Mito|a]] <!-- why --> __STATICREDIRECT__\n",
]


@pytest.mark.parametrize("text", REDIRECTS)
def test_a_redirect_is_known_by_its_word_in_any_language(reasons, text):
    assert reasons([{"text": text, "ns": ns} for ns in (0, None, 1)]) == ["redirect", "redirect", "not_an_article"]
    assert reasons([{"text": text, "model": "json"}]) == ["not_wikitext"]


@pytest.mark.parametrize(
    "text",
    [
        "#First [[river]]\n#Second [[stone]]",
        "# REDIRECT is a word of [[MediaWiki]]",
        "#[[River]]",
        "#Erster [[Fluss]] und mehr",
        "A text with #REDIRECT [[River]]",
        "#REDIRECT River",
        "#Word [[Target]] {{x}} and text",
        "#Word [[Target]] " + "{{" * 3000,
        "#Word [[Target]] " + "{{" * 1000 + "}}" * 1000 + "x",
        "#Word [[Target]]" + "<!---->" * 600 + "x",
        "#Word [[Target]]" + "__A__" * 600 + "x",
        "#Word" + " " * 300_000 + "x",
        "\n" * 300_000 + "#",
    ],
)
def test_a_numbered_list_is_no_redirect_and_is_known_in_linear_time(reasons, text):
    assert reasons([{"text": text}]) == [text]


def test_what_is_no_article_is_told_before_what_is_broken(reasons, write):
    torn = {"text": "x\x00&b;"}
    pages = [torn, {**torn, "ns": 1}, {**torn, "model": "json"}, {**torn, "redirect": True}]
    xml = dump(pages).replace("&amp;b;", "&b;")
    found = [dropped_for(parse_page(raw)) for _, raw in split_dump(write(xml))]
    assert found == ["broken_xml", "not_an_article", "not_wikitext", "redirect"]
    found = [dropped_for(parse_page(raw)) for _, raw in split_dump(write(xml[: xml.rindex("x\x00")]))]
    assert found == ["broken_xml", "not_an_article", "not_wikitext", "redirect"]
    found = [dropped_for(parse_page(raw)) for _, raw in split_dump(write(dump([{"text": "x"}])[:-40]))]
    assert found == ["torn"]


def test_elements_are_known_wherever_the_xml_has_blanks(write):
    xml = dump([{"text": " x ", "model": "wikitext"}]).replace("><", ">\n  <").replace("0</ns>", "\n0 </ns>")
    assert parse_page(next(split_dump(write(xml)))[1]).wikitext == " x "
    assert parse_page(next(split_dump(write(xml.replace("> x <", "><"))))[1]).wikitext == ""


def test_a_parsed_page_leaves_nothing_to_the_garbage_collector(write):
    raw = next(split_dump(write(dump([{"text": "x" * 10_000}]))))[1]
    gc.collect()
    gc.disable()
    try:
        parse_page(raw)
        parse_page(raw._replace(fault="torn"))
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [ParserError("x"), RecursionError(), KeyError("x"), ValueError("x")])
def test_an_error_of_the_parser_costs_one_page(monkeypatch, error):
    def fail(*_):
        raise error

    raw = RawPage(b"<page><title>A</title><ns>0</ns><revision><text>x</text></revision></page>")
    assert clean_article(raw).text == "x"
    monkeypatch.setattr(wikipedia, "plain_text", fail)
    assert clean_article(raw).dropped == "unparsable"
