"""Pages of a MediaWiki dump: where each begins, which of them are articles, and what one bad place costs."""

import bz2
import gzip
import lzma
import sys
import tracemalloc

import pytest

from data_prep.cli import UserError
from data_prep.formats import dump as xml
from data_prep.formats import page, readers
from data_prep.formats.dump import split_dump
from data_prep.formats.page import dropped_for, parse_page
from data_prep.formats.readers import PIECE
from tests.parts.corpora import dump, noise

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def read(path, begin=0):
    """What is known of each page: the reason why it is dropped, or its text."""
    pages = [parse_page(raw) for _, raw in split_dump(path, begin)]
    return [dropped_for(page) or page.wikitext for page in pages]


FILE = "dump.xml"  # of ``write``


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
    assert [parse_page(page).wikitext.split()[1] for _, page in found] == [str(number) for number in range(300)]
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


def test_a_page_above_4_mib_is_dropped_and_never_held(write, monkeypatch):
    limit = 100_000
    for module in (xml, page):
        monkeypatch.setattr(module, "LONGEST_PAGE", limit)
    pages = [{"text": "before"}, {"text": "river " * 4_000_000}, {"text": "after"}, {"text": "a" * limit}]
    pages += [{"text": "é" * (limit // 2 + 1)}, {"text": "talk " * limit, "ns": 1}]
    path = write(gzip.compress(dump(pages).encode(), 1))
    tracemalloc.start()
    found = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == ["before", "over_2_mib", "after", "a" * limit, "over_2_mib", "not_an_article"]
    assert peak < 6e6  # of 24 MB


BOMB = '<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not XML, so not a MediaWiki dump at byte 0"),
        (b"just a text\n\nof two paragraphs", "not XML, so not a MediaWiki dump at byte 0 .* use format text"),
        (b'{"text": "a line"}', "not XML, so not a MediaWiki dump at byte 0 .* use format jsonl"),
        (b"PAR1rest", "a parquet file: use format parquet"),
        (b"<rss><channel/></rss>", "XML with root <rss>, but a MediaWiki dump has <mediawiki>"),
        (
            (BOMB + dump([{"text": "&b;"}])).encode(),
            r"a document type is declared at byte \d+; .* entities are not expanded",
        ),
        (bz2.compress(dump([{"text": "x" * 999}]).encode())[:90], "the bzip2 data breaks off at byte"),
        (b"\n\n  ", "not XML, so not a MediaWiki dump at byte 0"),
        (b"<page><title>A</title></page>", "XML with root <page>, but a MediaWiki dump has <mediawiki>"),
        (b"<mediawiki ", "not XML, so not a MediaWiki dump at byte"),
        (
            gzip.compress(b"<mediawiki xml:lang='de' " + bytes(range(32, 99)) * 9, mtime=0)[:40],
            "the gzip data breaks off at byte",
        ),
        ((BOMB + "<rss a='&b;'/>").encode(), r"a document type is declared at byte \d+"),
        ((dump([]) + BOMB + dump([{"text": "&b;"}])).encode(), r"a document type is declared at byte \d+; .*"),
        (b"<?xml version='1.0' encoding='klingon'?><mediawiki>", "XML in the encoding klingon, which is not read"),
        (b"<?xml version='1.0' encoding='rot13'?><mediawiki>", "XML in the encoding rot13, which is not read"),
        (b"<?xml version='1.0' encoding='iso-2022-jp'?><mediawiki>", "XML in the encoding iso-2022-jp, which is not"),
    ],
)
def test_what_is_no_dump_is_rejected_by_name(write, data, message):
    with pytest.raises(UserError, match=rf"dump\.xml: {message}"):
        read(write(data))


def test_a_page_is_its_head_and_its_last_revision(write, monkeypatch):
    monkeypatch.setattr(xml, "LONGEST_PAGE", 100_000)
    revision = "<revision><model>json</model><text>" + "old " * 25_000 + "</text></revision>"
    pages = [{"text": "new", "earlier": revision * 200}, {"text": "after"}]
    path = write(gzip.compress(dump(pages).encode(), 1))
    tracemalloc.start()
    assert read(path) == ["new", "after"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6  # of 20 MB
    assert b"old" not in next(split_dump(path))[1].data


@pytest.mark.parametrize(
    ("bad", "found", "repairs"),
    [
        ("\x0b", "ab", {"forbidden_character": 1}),
        ("\x00\x1f\ufffe\uffff", "ab", {"forbidden_character": 4}),
        ("&#11;&#x0;&#xFFFE;&#xd800;&#x110000;&#55296;", "ab", {"forbidden_character": 6}),
        ("&#x41;\x01&#0000000000233;&amp;#11;", "aAé&#11;b", {"forbidden_character": 1}),
        (b"\xe9", "a\ufffdb", {"invalid_utf8": 1}),
        (b"\xed\xa0\x80\x02\xef\xbf\xbd", "a" + 4 * "\ufffd" + "b", {"invalid_utf8": 3, "forbidden_character": 1}),
        ("&nbsp;", "broken_xml", {}),
        ("&b;", "broken_xml", {}),
        ("\x0b&b;", "broken_xml", {}),
        ("<b>", "broken_xml", {}),
        ("</revision>", "broken_xml", {}),
        ("</ns>", "broken_xml", {}),
        ("<page>", "broken_xml", {}),
        ("<!DOCTYPE x [<!ENTITY b 'b'>]>&b;", "broken_xml", {}),
        ("<revision", "broken_xml", {}),
        ("a < b", "broken_xml", {}),
    ],
)
@pytest.mark.parametrize("pack", [bytes, bz2.compress])
def test_a_bad_place_costs_its_page_at_most(write, bad, found, repairs, pack):
    bad = bad if isinstance(bad, bytes) else bad.encode("utf-8", "surrogatepass")
    data = dump([{"text": "before"}, {"text": "aPLACEb"}, {"text": "after"}]).encode().replace(b"PLACE", bad)
    path = write(pack(data))
    assert read(path) == ["before", found, "after"]
    assert [parse_page(raw).repairs for _, raw in split_dump(path)] == [{}, repairs if found[0] == "a" else {}, {}] or (
        found == "broken_xml"
    )


def test_a_page_that_lost_its_end_does_not_cost_the_next(write):
    xml = dump([{"text": name} for name in "abcd"])
    assert read(write(xml.replace("b</text></revision></page>", "b"))) == ["a", "broken_xml", "c", "d"]
    assert read(write(xml.replace("d</text></revision></page>", "d"))) == ["a", "b", "c", "broken_xml"]
    assert read(write(xml.replace("<page><title>P1</title>", ""))) == ["a", "c", "d"]
    assert read(write(xml.replace("<ns>0</ns><id>1", "<ns>0</nx><id>1"))) == ["a", "broken_xml", "c", "d"]
    assert read(write(xml.replace("\n<page>", "\n<logitem><id>1</id><text>x</text></logitem>\n<page>"))) == list("abcd")
    assert read(write(xml.replace("<page>", "<page >").replace("</page>", "</page\n>"))) == list("abcd")


def test_a_bad_place_in_the_head_costs_no_page(write):
    xml = dump([{"text": "a", "ns": None, "title": "Ibada:X"}, {"text": "b"}], "sw", {3: "Ibada"})
    assert read(write(xml)) == ["not_an_article", "b"]
    for old, new in (('version="0.10"', "version=\x01&b;"), ("</sitename>", "</sitenam>"), ("</siteinfo>", "")):
        assert read(write(xml.replace(old, new)))[-1] == "b"
    for old in ("</namespaces>", "</siteinfo>"):
        assert read(write(xml.replace(old, "\x01"))) == ["not_an_article", "b"]
    torn = xml[: xml.index("<namespaces>")]
    assert read(write(torn + xml)) == ["torn", "not_an_article", "b"]
    assert read(write(xml.replace("<siteinfo>", "<siteinfo>" * 50_000))) == ["not_an_article", "b"]
    assert read(write("\n" + xml)) == read(write("\ufeff" + xml)) == ["not_an_article", "b"]


def dumps_of_three():
    """Dumps in three languages with the same page, which is an article in those where "Rito" names no namespace."""
    pages = [{"text": f"page {number}", "ns": None, "title": "Rito:X"} for number in range(3)]
    return [dump(pages, "eo", {4: "Rito"}), dump(pages, "sw", {5: "Ibada"}), dump(pages, "fi", {100: "Riitti"})]


THREE = ["not_an_article"] * 3 + ["page 0", "page 1", "page 2"] * 2


@pytest.mark.parametrize("pack", [bytes, bz2.compress, gzip.compress])
@pytest.mark.parametrize("join", ["", "\n", '<?xml version="1.0" encoding="UTF-8"?>\n', "\ufeff"])
def test_dumps_joined_by_cat_are_read_each_with_its_own_siteinfo(write, pack, join):
    path = write(b"".join(pack((join + dump).encode()) for dump in dumps_of_three()))
    assert read(path) == THREE
    assert [raw.site.language for _, raw in split_dump(path)] == ["eo"] * 3 + ["sw"] * 3 + ["fi"] * 3
    assert len({id(raw.site) for _, raw in split_dump(path)}) == 3


def test_joined_dumps_of_several_encodings_are_read_each_in_its_own(write):
    head = '<?xml version="1.0" encoding="{}"?>'
    texts = [
        ("koi8-r", "река"),
        ("utf-8", "rivière"),
        ("iso-8859-1", "rivière"),
        ("windows-1250", "řeka"),
        ("gbk", "河流"),
    ]
    data = b"".join((head.format(name) + dump([{"text": text}])).encode(name) for name, text in texts)
    assert read(write(data)) == [text for _, text in texts]
    bad = (head.format("euc-jp") + dump([{"text": "川A"}])).encode("euc-jp").replace(b"A", b"\xff")
    assert parse_page(next(split_dump(write(bad)))[1]).repairs == {"invalid_utf8": 1}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("declared", ["utf-8", "utf-16", "UTF-16LE", "iso-8859-1"])
def test_the_bytes_decide_the_encoding_not_the_declaration(write, encoding, declared):
    text = f'<?xml version="1.0" encoding="{declared}"?>\n' + dump([{"text": "Река 川 𝄞"}])
    assert read(write(text.encode(encoding))) == ["Река 川 𝄞"]
    if declared != "iso-8859-1":
        assert read(write(text.encode())) == ["Река 川 𝄞"]
    assert read(write((text + "\ufeff" + text).encode(encoding))) == ["Река 川 𝄞"] * 2


def test_a_lone_surrogate_in_utf_16_is_mended_and_counted(write):
    data = dump([{"text": "aXb"}, {"text": "é"}]).encode("utf-16-le").replace(b"X\0", b"\0\xd8")
    pages = [parse_page(raw) for _, raw in split_dump(write(data))]
    assert [(page.wikitext, page.repairs) for page in pages] == [("a\ufffdb", {"invalid_utf8": 1}), ("é", {})]


@pytest.mark.parametrize("compress", [bytes, bz2.compress, gzip.compress])
def test_a_dump_that_breaks_off_keeps_what_came_before_and_counts_what_is_torn(write, compress):
    streams = [f"page {number} {text}" for number, text in enumerate(noise(40))]
    xml = dump([{"text": text} for text in streams]).encode()
    for cut in (xml.index(b"page 30") + 99, xml.index(b"<page><title>P30"), xml.index(b"</mediawiki>")):
        found = read(write(compress(xml[:cut])))
        assert found == [*streams[: xml[:cut].count(b"</page>")], "torn"]


@pytest.mark.parametrize("compress", [bz2.compress, gzip.compress, lzma.compress, zstd.compress])
def test_packed_data_that_break_off_keep_what_they_give_and_count_one_torn_page(write, compress):
    texts = [f"page {number} {text}" for number, text in enumerate(noise(1500))]
    packed = compress(dump([{"text": text} for text in texts]).encode())
    for cut in (packed[:-5], packed[: len(packed) * 4 // 5]):
        if compress is bz2.compress and len(cut) < len(packed) - 5:  # it gives a block only when all of it is there
            continue
        *whole, torn = read(write(cut))
        assert torn == "torn" and len(whole) >= 900 and whole == texts[: len(whole)]


def test_what_is_torn_is_counted_once_in_each_of_joined_dumps(write):
    one = dump([{"text": "a"}, {"text": "b"}])
    torn_page, torn_between = one[: one.index("b</text>")], one[: one.index("</mediawiki>")]
    assert read(write(torn_page + one)) == ["a", "torn", "a", "b"]
    assert read(write(torn_between + one)) == ["a", "b", "torn", "a", "b"]
    assert read(write(torn_between + torn_page)) == ["a", "b", "torn", "a", "torn"]
    assert read(write(one + "<mediawiki xml:lang='de'><siteinfo><namespaces><name")) == ["a", "b", "torn"]
    assert read(write(one[: one.index("<ns>")])) == ["torn"]
    assert (
        read(write(one.replace("<ns>0", "<ns>1")[: one.index("</title>", one.index("P1")) + 20]))
        == ["not_an_article"] * 2
    )


@pytest.mark.parametrize("sizes", [[2] * 9, [1, 5, 3]])
def test_joined_dumps_of_many_streams_are_the_same_from_any_piece(write, small_pieces, sizes):
    parts = [multistream(sizes), multistream(sizes)]
    parts[1][0] = bz2.compress(bz2.decompress(parts[1][0]).replace(b'lang="bg"', b'lang="ru"'))
    for streams in (parts[0] + parts[1], parts[0][:-1] + parts[1], parts[0] + parts[1][:-2]):
        path = write(b"".join(streams))
        whole = list(split_dump(path))
        assert {raw.site.language for _, raw in whole} == {"bg", "ru"}
        for begin in range(path.stat().st_size // xml.PIECE + 2):
            assert [row for row in split_dump(path, begin) if row[0] >= begin] == [
                row for row in whole if row[0] >= begin
            ]


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.95])
def test_a_plain_or_torn_dump_is_the_same_from_any_piece(write, small_pieces, cut):
    streams = multistream([3, 1, 9, 2, 30, 1])
    for data in (b"".join(map(bz2.decompress, streams)), b"".join(streams)):
        path = write(data[: int(len(data) * cut)])
        whole = list(split_dump(path))
        assert whole[-1][1].fault == "torn"
        for begin in range(0, path.stat().st_size // xml.PIECE + 2, 3):
            assert [row for row in split_dump(path, begin) if row[0] >= begin] == [
                row for row in whole if row[0] >= begin
            ]


def test_pages_are_the_same_wherever_a_block_of_bytes_ends(monkeypatch, write):
    xml_text = '<?xml version="1.0" encoding="iso-8859-1"?>' + "".join(dumps_of_three()) + "<mediawiki><page>"
    path = write(xml_text.replace("page 1", "é" * 300).replace("page 2</text>", "x<page></text>").encode("latin-1"))
    whole = [row[1] for row in split_dump(path)]
    assert len(whole) == 10
    for size in (1, 2, 3, 7, 64, 1000):
        pages = xml._Pages(path)
        data, found = path.read_bytes(), []
        first = 200  # the root is looked for in the first block
        for begin, end in [(0, first), *((at, at + size) for at in range(first, len(data), size))]:
            found += pages.feed(data[begin:end])
        assert [page for _, page in found + pages.finish(torn=False)] == whole


@pytest.mark.parametrize(
    ("name", "base", "language"),
    [
        ("frwiki-20240101-pages-articles.xml", "https://en.wikipedia.org/wiki/Main_Page", "fr"),
        ("zh_min_nanwiki-latest-pages-articles1.xml", "https://en.wikipedia.org/wiki/Main_Page", "zh-min-nan"),
        ("simplewiki-latest-pages-articles.xml", "https://simple.wikipedia.org/wiki/Main_Page", "en"),
        ("mywiki-backup.xml", "https://wiki.example.org/", "en"),
        ("dump.xml", "https://fr.wikipedia.org/wiki/", "en"),
        ("frwiktionary-latest.xml", "https://fr.wiktionary.org/wiki/", "en"),
    ],
)
def test_the_name_of_a_file_of_wikipedia_says_its_language(write, name, base, language):
    text = dump([{"text": "x"}]).replace("<sitename>W</sitename>", f"<sitename>W</sitename><base>{base}</base>")
    [(_, page)] = split_dump(write(text, name))
    assert page.site.language == language
