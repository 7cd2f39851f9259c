"""The parquet and bookcorpus formats: every row once, in order, by row group; damage and wrong files are named."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.cli import UserError
from data_prep.formats import parquet
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


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_any_type_of_text_reads_alike(write, kind):
    assert texts(write({"text": pa.array(["a", "b é", "a"]).cast(kind)})) == ["a", "b é", "a"]


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
    monkeypatch.setattr(parquet, "LONGEST_VALUE", 100)
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
        UserError, match=r"rows\.parquet: column 'n' is of type int64, not text; the columns are n, text"
    ):
        read(write({"n": [1], "text": ["a"]}), "bookcorpus", "n")


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
