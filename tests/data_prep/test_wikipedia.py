"""The wikipedia format: which pages become documents, and what of their wikitext is prose."""

import bz2
import gzip
import tracemalloc

import pytest

from data_prep.cli import UserError
from data_prep.formats import dump as xml
from data_prep.formats import readers
from data_prep.formats.dump import split_dump
from data_prep.formats.readers import PIECE
from data_prep.formats.wikipedia import clean_article
from data_prep.formats.wikitext import plain_text
from tests.parts.corpora import dump, noise


def read(path):
    return [clean_article(page) for _, page in split_dump(path)]


@pytest.fixture
def write(tmp_path):
    def write(data, name="dump.xml"):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("'''Bold''' and ''italic''", "Bold and italic"),
        ("a [[link]], a [[target|label]], [[Foo|''x'']]s", "a link, a label, xs"),
        ("fact<ref name=a>{{cite|x}}</ref> and<ref name=a /> more", "fact and more"),
        ("a {{convert|1|{{nested|2}}}} b", "a b"),
        ("a <!-- hidden [[x]] --> b", "a b"),
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
        ("a&nbsp;b &lt;tag&gt; &amp; c", "a b & c"),
        ("one<br />two<br>three", "one\ntwo\nthree"),
        ("* item\n* [[other]]\n# third", "item\nother\nthird"),
        ("x <math>a^2</math> y <gallery>\nFile:a.jpg|c\n</gallery>z", "x y z"),
        ("<div class=x>inside</div> <small>small</small> <nowiki>'s</nowiki>", "inside\nsmall 's"),
        ("Stone ({{lang|el|x}}; {{IPA|y}}) is ({{x}}, hard)", "Stone is (hard)"),
        ("德国-{zh-hans:联邦州; zh-hant:邦}-之一, 56 -{km}-", "德国联邦州之一, 56 km"),
        ("main() * * *\n* * *\nend __x", "main() * * *\n\nend __x"),
        ("one\n\n\n\n\ntwo", "one\n\ntwo"),
        ("{{unclosed\ntext [[open", "unclosed\ntext open"),
        ("", ""),
        ("{{only|templates}}\n[[Category:X]]", ""),
    ],
)
def test_wikitext_becomes_prose(wikitext, text):
    assert plain_text(wikitext) == text


def test_headings_stay_only_above_text():
    wikitext = (
        "Intro\n== Bare ==\n== A ==\n=== A1 ===\ntext\n=== A2 ===\n{{t}}\n== References ==\n{{reflist}}\n== Links ==\n"
    )
    assert plain_text(wikitext) == "Intro\n\nA\n\nA1\n\ntext"


def test_a_numeric_entity_that_is_no_character_does_not_break_encoding():
    assert plain_text("a&#xD800;b &#233;").encode()
    assert plain_text("&#233; &#2;x &#x110000; &#0;y") == "é x &#x110000; &#0;y"


def test_redirects_other_namespaces_and_empty_articles_are_dropped_with_reasons(write):
    pages = [
        {"text": "An [[article]]."},
        {"text": "#REDIRECT [[P0]]", "redirect": True},
        {"text": "Talk", "ns": 1, "title": "Talk:P0"},
        {"text": "{{template}}"},
        {"text": "Template", "ns": 10},
    ]
    documents = read(write(dump(pages)))
    assert [document.dropped for document in documents] == ["", "redirect", "not_an_article", "empty", "not_an_article"]
    assert documents[0].text == "An article."


def test_the_namespace_names_of_the_dump_report_its_files_and_categories(write):
    text = "Текст [[Файл:а|мини|надпис]][[Категория:Реки]][[File:b.jpg]]"
    names = {6: "Файл", 14: "Категория"}
    assert read(write(dump([{"text": text}], "bg", names)))[0].text == "Текст"
    assert read(write(dump([{"text": text}])))[0].text != "Текст"


def test_utf_16_reads_as_utf_8(write):
    text = dump([{"text": f"Река {number} " + "вода " * 500} for number in range(100)])
    utf8, utf16 = write(text, "a.xml"), write(text.encode("utf-16"), "b.xml")
    assert read(utf8) == read(utf16)
    assert len(read(utf16)) == 100


@pytest.mark.parametrize("pack", [bytes, bz2.compress])
def test_pages_come_in_order_with_the_piece_they_begin_in(write, pack):
    xml = dump([{"text": f"page {number} " + "long text " * 300} for number in range(300)]).encode()
    path = write(pack(xml))
    found = list(split_dump(path))
    assert [page.wikitext.split()[1] for _, page in found] == [str(number) for number in range(300)]
    pieces = [piece for piece, _ in found]
    assert pieces == sorted(pieces) and pieces[-1] * PIECE < path.stat().st_size
    if pack is bytes:
        assert pieces == [begin // PIECE for begin in range(len(xml)) if xml.startswith(b"<page>", begin)]


def test_memory_does_not_grow_with_the_dump(write):
    path = write(gzip.compress(dump([{"text": "word " * 20_000}] * 100).encode(), 1))
    tracemalloc.start()
    assert sum(1 for _ in split_dump(path)) == 100
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6  # of 10 MB


def multistream(pages_in_streams, encoding="utf-8", cut=None):
    """A dump as Wikimedia packs it: a stream with the head, streams of whole pages, a stream with the end."""
    count = sum(pages_in_streams)
    xml = dump([{"text": f"page {number} {text}"} for number, text in enumerate(noise(count))], "bg", {6: "Файл"})
    parts = [
        part + "\n" for part in xml.replace("<page>", "\0 <page>").replace("</mediawiki>", "\0</mediawiki>").split("\0")
    ]
    head, *pages, end = [part.encode(encoding) for part in parts]
    streams, begin = [head], 0
    for size in pages_in_streams:
        streams.append(b"".join(pages[begin : begin + size]))
        begin += size
    streams.append(end)
    if cut:
        xml = b"".join(streams)
        streams = [xml[begin : begin + cut] for begin in range(0, len(xml), cut)]
    return [bz2.compress(stream) for stream in streams]


@pytest.fixture
def small_pieces(monkeypatch):
    for module in (readers, xml):
        monkeypatch.setattr(module, "PIECE", 300)


@pytest.mark.parametrize(
    "streams",
    [
        multistream([1] * 20),
        multistream([3, 1, 9, 2, 30, 1]),
        multistream([40]),
        multistream([3, 1, 9, 2], encoding="utf-16-le"),
        multistream([20], cut=700),
        [bz2.compress(b"".join(map(bz2.decompress, multistream([20]))))],
    ],
    ids=["a page a stream", "some pages", "one stream of pages", "UTF-16", "cut anywhere", "single stream"],
)
def test_reading_from_any_piece_gives_the_pages_that_reading_from_the_start_gives(write, small_pieces, streams):
    path = write(b"".join(streams))
    whole = list(split_dump(path))
    last = path.stat().st_size // xml.PIECE
    assert last > 9
    for begin in range(last + 2):
        assert [row for row in split_dump(path, begin) if row[0] >= begin] == [row for row in whole if row[0] >= begin]


def test_a_dump_of_many_streams_is_not_read_before_the_piece_asked_for(write, small_pieces):
    head, *streams = multistream([2] * 20)
    streams[3] = streams[3][:-30] + bytes(30)
    path = write(head + b"".join(streams))
    with pytest.raises(UserError, match="damaged bzip2 data"):
        list(split_dump(path))
    assert len(list(split_dump(path, 20))) < 40
    streams[-2] = bz2.compress(b"<page></pag>")
    path.write_bytes(head + b"".join(streams))
    with pytest.raises(
        UserError, match=r"not well-formed XML at byte \d+ of what unpacks from byte \d+ of the file on"
    ):
        list(split_dump(path, 20))


def test_a_page_above_4_mib_is_dropped_and_never_held(write, monkeypatch):
    monkeypatch.setattr(xml, "LONGEST_PAGE", limit := 100_000)
    pages = [{"text": "before"}, {"text": "river " * 4_000_000}, {"text": "after"}, {"text": "a" * limit}]
    pages += [{"text": "é" * (limit // 2 + 1)}, {"text": "talk " * limit, "ns": 1}]
    path = write(gzip.compress(dump(pages).encode(), 1))
    tracemalloc.start()
    found = [(page.too_long, page.wikitext == "") for _, page in split_dump(path)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [(False, False), (True, True), (False, False), (False, False), (True, True), (True, True)]
    assert peak < 6e6  # of 24 MB
    reasons = [clean_article(page).dropped for _, page in split_dump(path) if page.too_long]
    assert reasons == ["over_2_mib", "over_2_mib", "not_an_article"]


BOMB = '<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not XML, so not a MediaWiki dump at byte 0"),
        (b"just a text\n\nof two paragraphs", "not XML, so not a MediaWiki dump at byte 0 .* use format text"),
        (b'{"text": "a line"}', "not XML, so not a MediaWiki dump at byte 0 .* use format jsonl"),
        (b"PAR1rest", "a parquet file: use format parquet"),
        (b"<rss><channel/></rss>", "XML with root <rss>, but a MediaWiki dump has <mediawiki>"),
        (dump([{"text": "x"}]).encode()[:-30], r"not well-formed XML at byte \d+ of the unpacked file"),
        (dump([{"text": "x"}]).replace("</ns>", "</nx>").encode(), r"not well-formed XML at byte \d+"),
        (dump([{"text": "x"}]).replace("<ns>", "\x01<ns>").encode(), r"not well-formed XML at byte \d+"),
        (
            (BOMB + dump([{"text": "&b;"}])).encode(),
            r"a document type is declared at byte \d+; .* entities are not expanded",
        ),
        (dump([{"text": "x"}]).replace("x</text>", "&b;</text>").encode(), r"not well-formed XML .*undefined entity"),
        (bz2.compress(dump([{"text": "x" * 999}]).encode())[:-9], "the bzip2 data breaks off at byte"),
    ],
)
def test_what_is_no_whole_dump_is_rejected_by_name(write, data, message):
    with pytest.raises(UserError, match=rf"dump\.xml: {message}"):
        read(write(data))
