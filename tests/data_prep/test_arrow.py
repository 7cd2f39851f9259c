"""The arrow format: every value of a column of IPC files and streams once and in order, and what is refused."""

import pyarrow as pa
import pyarrow.feather
import pytest
from datasets import Dataset

from data_prep.cli import UserError
from data_prep.formats.by_name import open_format
from data_prep.formats.readers import PIECE
from tests.parts.corpora import noise

FILE = "rows.arrow"  # of ``write``


def read(path, field=None, begin=0):
    rows = open_format("arrow", field)
    return [rows.clean(raw).text or rows.clean(raw).dropped for _, raw in rows.split(path, begin)]


def written(path, table, new=pa.ipc.new_stream, rows=50, **options):
    with new(path, table.schema, **options) as file:
        file.write_table(table, rows)
    return path


TEXTS = [*noise(900), "Zeilen\nund行", None]


@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_every_value_comes_once_and_in_order_with_the_piece_of_its_batch(tmp_path, new, compression):
    table = pa.table({"id": range(len(TEXTS)), "text": TEXTS})
    path = written(tmp_path / FILE, table, new, options=pa.ipc.IpcWriteOptions(compression=compression))
    assert read(path) == [*TEXTS[:-1], "null"]
    found = list(open_format("arrow").split(path))
    pieces = [piece for piece, _ in found]
    assert pieces == sorted(pieces) and len(set(pieces)) > 2 and max(pieces) <= path.stat().st_size // PIECE
    middle = pieces[len(pieces) // 2]
    assert list(open_format("arrow").split(path, middle)) == [each for each in found if each[0] >= middle]


def test_what_datasets_and_feather_write_is_read(tmp_path):
    Dataset.from_dict({"body": ["a", "b"]}).save_to_disk(tmp_path / "set")
    (saved,) = (tmp_path / "set").glob("*.arrow")
    assert read(saved, "body") == ["a", "b"]
    pyarrow.feather.write_feather(
        pa.table({"text": pa.array(["x", "y", "x"]).dictionary_encode()}), tmp_path / "f.feather"
    )
    assert read(tmp_path / "f.feather") == ["x", "y", "x"]
    inner = pa.table({"article": [{"plain": "p", "html": "<p>"}]})
    assert read(written(tmp_path / "inner.arrow", inner), "article.plain") == ["p"]


def test_a_wrong_column_or_kind_and_damage_are_named(tmp_path, write):
    path = written(tmp_path / FILE, pa.table({"id": [1], "body": ["a"]}))
    with pytest.raises(UserError, match=r"rows.arrow: no column 'text'; it has 'id', 'body'"):
        read(path)
    with pytest.raises(UserError, match="column 'id' is of type int64, not text; the columns of text are 'body'"):
        read(path, "id")
    whole = written(tmp_path / "long.arrow", pa.table({"text": noise(400)})).read_bytes()
    for cut in (6, 200):
        with pytest.raises(UserError, match="its schema or first record batch is damaged or cut off"):
            read(write(whole[:cut], "cut.arrow"))
    with pytest.raises(UserError, match="record batch 4 is damaged or cut off"):
        read(write(whole[: len(whole) * 6 // 10], "cut.arrow"))
    with pytest.raises(UserError, match="not Arrow data at byte 0 but b'text'"):
        read(write("text", "plain.arrow"))
    with pytest.raises(UserError, match=r"rows.arrow: an Arrow stream, not text: use format arrow"):
        list(open_format("text").split(path))
