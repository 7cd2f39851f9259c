"""The parquet and bookcorpus formats: every row once, in order, by row group; damage and wrong files are named."""

import base64

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.cli import UserError
from data_prep.formats import columns, parquet
from data_prep.formats.by_name import open_format
from data_prep.formats.readers import PIECE
from tests.parts.corpora import noise, paragraphs


@pytest.fixture
def write(tmp_path):
    def write(columns, name="rows.parquet", **options):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), path, **options)
        return path

    return write


def read(path, name="parquet", field=None, begin=0):
    rows = open_format(name, field)
    return [(piece, rows.clean(raw)) for piece, raw in rows.split(path, begin)]


def texts(*arguments):
    return [document.text for _, document in read(*arguments)]


def wiki(count):
    """The columns of Hugging Face's wikimedia/wikipedia."""
    numbers = [str(number) for number in range(count)]
    return {
        "id": numbers,
        "url": [f"https://w.org/{number}" for number in numbers],
        "title": numbers,
        "text": noise(count),
    }


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd"])
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_every_row_comes_once_and_in_order(write, compression, use_dictionary):
    columns = wiki(2500)
    path = write(columns, row_group_size=400, compression=compression, use_dictionary=use_dictionary)
    assert texts(path) == columns["text"]
    assert texts(path, "parquet", "title") == columns["title"]


TEXT_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.uint32(), pa.large_string()),
    pa.dictionary(pa.uint32(), pa.string_view()),
]


def write_as(path, **columns):
    """A file of columns (type, values) whose Arrow schema says that they were of these types in its writer's memory.

    So write polars and arrow-rs; pyarrow itself cannot write some of these types.
    """
    table = pa.table({name: pa.array(values) for name, (_, values) in columns.items()})
    arrow = pa.schema([(name, kind) for name, (kind, _) in columns.items()]).serialize().to_pybytes()
    with pq.ParquetWriter(path, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"ARROW:schema": base64.b64encode(arrow)})
    return path


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_any_type_of_text_reads_alike(tmp_path, write, kind):
    values = ["a", "b é", "a"]
    assert texts(write_as(tmp_path / "as.parquet", text=(kind, values))) == values
    if not pa.types.is_dictionary(kind):
        assert texts(write({"text": pa.array(values).cast(pa.binary()).cast(kind)})) == values


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_a_field_of_a_struct_is_a_column_of_its_own(tmp_path, kind):
    rows = [{"plain": "a", "n": 1}, {"plain": None, "n": 2}, None, {"plain": "b é", "n": 3}]
    path = write_as(tmp_path / "rows.parquet", text=(pa.struct([("plain", kind), ("n", pa.int64())]), rows))
    documents = [document for _, document in read(path, "parquet", "text.plain")]
    assert [(document.text, document.dropped) for document in documents] == [
        ("a", ""),
        ("", "null"),
        ("", "null"),
        ("b é", ""),
    ]


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_a_row_group_is_decoded_in_batches_whatever_the_type(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(parquet, "_BATCH", 1000)
    values = [*noise(500), "same", "same", None] * 2
    rows = [{"plain": value} for value in values]
    path = write_as(tmp_path / "rows.parquet", text=(kind, values), body=(pa.struct([("plain", kind)]), rows))
    wanted = [value or "" for value in values]
    assert texts(path) == texts(path, "parquet", "body.plain") == wanted


def test_a_file_without_an_arrow_schema_reads_alike(write):
    """As DuckDB writes: no schema of Arrow's, later encodings, pages of the second version."""
    options = {"store_schema": False, "use_dictionary": False, "data_page_version": "2.0"}
    for encoding in ("DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"):
        path = write({"text": ["a", "b é", "a"]}, column_encoding={"text": encoding}, **options)
        assert texts(path) == ["a", "b é", "a"]


def test_json_in_a_column_of_its_own_type_is_text(write):
    values = pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array(["{}", "1"]))
    assert texts(write({"text": values})) == ["{}", "1"]


def test_lists_and_structs_of_views_beside_the_text_do_not_matter(tmp_path):
    view = pa.string_view()
    part = pa.struct([("p", view)])
    path = write_as(
        tmp_path / "rows.parquet",
        tags=(pa.list_(view), [["a"], []]),
        parts=(pa.list_(part), [[{"p": "a"}], None]),
        meta=(part, [{"p": "a"}, None]),
        text=(view, ["first", "second"]),
    )
    assert texts(path) == ["first", "second"]
    message = r"column 'tags' is of type list<.*>, not text; the columns of text are 'meta\.p', 'text'$"
    with pytest.raises(UserError, match=message):
        read(path, "parquet", "tags")
    with pytest.raises(UserError, match=r"no column 'parts\.p'; it has 'tags', 'parts', 'meta\.p', 'text'$"):
        read(path, "parquet", "parts.p")


def test_structs_nest_and_a_name_with_a_dot_is_a_name_first(write):
    columns = {
        "a.b": ["dotted"],
        "a": [{"b": "of a", "c.d": "with a dot", "c": {"d": "deep", "e": "deeper"}}],
        "text.raw": ["raw"],
        "text": ["clean"],
    }
    path = write(columns)
    fields = ("a.b", "a.c.d", "a.c.e", "text.raw", "text")
    assert [texts(path, "parquet", field) for field in fields] == [
        ["dotted"],
        ["with a dot"],
        ["deeper"],
        ["raw"],
        ["clean"],
    ]


def test_two_columns_of_one_name_are_rejected_unless_another_is_wanted(tmp_path):
    path = tmp_path / "rows.parquet"
    inner = pa.StructArray.from_arrays([pa.array(["e"]), pa.array([2]), pa.array(["f"])], ["p", "p", "q"])
    columns = [pa.array(["a"]), pa.array([1]), pa.array(["c"]), inner]
    pq.write_table(pa.Table.from_arrays(columns, ["text", "text", "other", "in"]), path)
    with pytest.raises(UserError, match=r"rows\.parquet: 2 columns are named 'text' \(string, int64\); rename or drop"):
        read(path)
    with pytest.raises(
        UserError, match=r"rows\.parquet: 2 columns are named 'in\.p' \(string, int64\); rename or drop"
    ):
        read(path, "parquet", "in.p")
    assert texts(path, "parquet", "other") == ["c"] and texts(path, "parquet", "in.q") == ["f"]


def test_a_row_group_belongs_to_the_piece_it_begins_in_wherever_reading_begins(write, monkeypatch):
    path = write(wiki(1500), row_group_size=300)
    metadata = pq.read_metadata(path)
    starts = [metadata.row_group(group).column(0).dictionary_page_offset for group in range(metadata.num_row_groups)]
    for piece in (PIECE, 1):
        monkeypatch.setattr(parquet, "PIECE", piece)
        whole = read(path)
        assert [piece for piece, _ in whole[::300]] == [start // piece for start in starts]
        assert whole[-1][0] > 2
        for begin in {start // piece + step for start in starts for step in (-1, 0, 1)}:
            assert read(path, begin=begin) == [row for row in whole if row[0] >= begin]


def test_values_that_are_no_text_are_dropped_and_damaged_ones_mended(write, monkeypatch):
    monkeypatch.setattr(columns, "LONGEST_VALUE", 100)
    values = [b"a\r\nb", None, b"", b"x" * 100, b"y" * 101, b"na\0ul \xff"]
    documents = [document for _, document in read(write({"text": pa.array(values, pa.binary())}))]
    assert [document.dropped for document in documents] == ["", "null", "empty", "", "value_over_16_mib", ""]
    assert dict(documents[0].repairs) == {"crlf": 1}
    assert (documents[-1].text, dict(documents[-1].repairs)) == ("naul �", {"nul": 1, "invalid_utf8": 1})


def test_sentences_are_joined_into_documents_within_a_row_group_and_none_is_lost(write):
    sentences = [text.removesuffix(".") + " ." for text in paragraphs(1500)]
    path = write({"text": [*sentences, None, " ", ""]}, row_group_size=600)
    documents = [document for _, document in read(path, "bookcorpus")]
    kept = [document.text for document in documents if not document.dropped]
    assert " ".join(kept) == " ".join(sentences)
    assert [document.dropped for document in documents if document.dropped] == ["null"]
    ends = [
        sum(map(len, sentences[begin : begin + 600])) + len(sentences[begin : begin + 600]) for begin in (0, 600, 1200)
    ]
    lengths = [len(text) + 1 for text in kept]
    assert all(sum(lengths[:count]) in {sum(ends[:1]), sum(ends[:2]), sum(ends)} for count in (len(kept),))
    short = [place for place, length in enumerate(lengths) if length <= parquet.SENTENCES]
    assert len(short) <= 3 and {sum(lengths[: place + 1]) for place in short} <= {
        sum(ends[:1]),
        sum(ends[:2]),
        sum(ends),
    }
    assert max(lengths) < parquet.SENTENCES + 400


def test_a_file_without_rows_has_no_documents(write):
    assert read(write({"text": pa.array([], pa.string())})) == []


def test_a_missing_column_is_rejected_with_those_there_are(write):
    with pytest.raises(UserError, match=r"rows\.parquet: no column 'body'; it has 'id', 'url', 'title', 'text'"):
        read(write(wiki(3)), "parquet", "body")
    with pytest.raises(
        UserError, match=r"rows\.parquet: column 'n' is of type int64, not text; the columns of text are 'text'$"
    ):
        read(write({"n": [1], "text": ["a"]}), "bookcorpus", "n")
    with pytest.raises(UserError, match=r"column 'a' is of type struct<p: string>, not text; .* are 'a\.p'$"):
        read(write({"a": [{"p": "x"}]}), "parquet", "a")
    with pytest.raises(UserError, match=r"column 'text' is of type int64, not text; there are no columns of text$"):
        read(write({"text": [1]}))


def test_a_truncated_parquet_file_is_rejected_by_name(write):
    path = write(wiki(300))
    data = path.read_bytes()
    for size in (4, 9, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(
            UserError, match=r"rows\.parquet: its footer is damaged or cut off \(.*\); fetch the file again"
        ):
            read(path)


def test_a_flipped_byte_in_a_page_is_rejected_with_its_row_group(write):
    path = write(wiki(600), row_group_size=200, write_page_checksum=True, compression="none")
    data = bytearray(path.read_bytes())
    data[data.index(noise(600)[450].encode())] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        UserError, match=r"rows\.parquet: row group 2 is damaged \(.*CRC.*\); fetch the file again"
    ) as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\x16\xd8\x04\x19", b"\x16\xdc\x04\x19"),  # 300 rows in all, in Thrift's compact protocol, become 302
        (b"\x26\x08", b"\x26\x07"),  # the first page begins at byte 4, and then at byte -4
        (b"text", b"te\xfft"),
    ],
)
def test_a_footer_that_cannot_be_true_is_rejected_by_name(write, old, new):
    path = write({"text": noise(300)}, store_schema=False, use_dictionary=False)
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    assert old in data[footer:]
    path.write_bytes(data[:footer] + data[footer:].replace(old, new))
    with pytest.raises(UserError, match=r"^\S*rows\.parquet: its footer is damaged .*; fetch the file again$"):
        read(path)


@pytest.mark.parametrize("name", ["partial-train/0000.parquet", "partial-0000.parquet"])
def test_a_partial_conversion_is_rejected_with_the_reason(write, name):
    with pytest.raises(
        UserError, match=r"partial-\S+ is what Hugging Face converts of a data set's first 5 GB, the rest is"
    ):
        read(write(wiki(3), name))


@pytest.mark.parametrize("data", [b"", b"A river ran under the house.", b"<mediawiki>", b'{"text": "a"}'])
def test_what_is_not_parquet_is_rejected_by_name(tmp_path, data):
    path = tmp_path / "rows.parquet"
    path.write_bytes(data)
    with pytest.raises(
        UserError, match=r"rows\.parquet: not parquet data at byte 0 but .*; text has format text, JSON lines jsonl"
    ):
        read(path)


def test_a_column_without_values_in_one_file_of_many_is_read(write):
    path = write({"text": pa.nulls(3), "id": [1, 2, 3]})
    assert [document.dropped for _, document in read(path)] == ["null"] * 3
