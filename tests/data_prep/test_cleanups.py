"""Texts of two versions of a clean-up are not mixed in one corpus; and what an earlier one made stays what it is."""

import json
import shutil

import pytest

from data_prep.cli import UserError
from data_prep.description import Description, parse_source
from data_prep.formats.by_name import CLEANUPS
from data_prep.prepare import asked_plan, extend, planned_again, prepare
from data_prep.roundtrip import roundtrip
from data_prep.shards import open_corpus, verify
from data_prep.stats import stats_lines
from data_prep.status import status_lines
from tests.parts.corpora import paragraphs, tree, write_vocab


def made(data, sources, tokenizer, refresh=False):
    description = Description(tuple(map(parse_source, sources)), str(tokenizer), 0.1, 0.0625)
    prepare(data, *asked_plan(description), 1, refresh=refresh)


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """The arguments of a corpus of three units, prepared before the clean-up of format text got a second version."""
    (tmp_path / "a.txt").write_text("\n\n".join(paragraphs(600)))
    (tmp_path / "b.txt").write_text("\n\n".join(paragraphs(10, seed=1)))
    arguments = tmp_path / "data", [f"s=text:{tmp_path}/[ab].txt"], write_vocab(tmp_path)
    made(*arguments)
    monkeypatch.setitem(CLEANUPS, "text", 2)
    return arguments


REFUSAL = (
    r"data/plan\.json: it was prepared by an earlier version of the clean-up of text \(1, this program has 2\); make it again "
    "with --refresh, or prepare into a new folder"
)


def test_an_earlier_corpus_stays_whole_and_is_not_taken_as_what_is_asked_for(earlier):
    data = earlier[0]
    before = tree(data)
    with pytest.raises(UserError, match=REFUSAL):
        made(*earlier)
    with pytest.raises(UserError, match=REFUSAL):
        prepare(data, *planned_again(data), 1)
    assert tree(data) == before
    assert open_corpus(data).id and verify(data, deep=True) == [] and stats_lines(data)
    assert any("complete, id " in line for line in status_lines(data))
    with pytest.raises(UserError, match="was prepared by version 1 of the clean-up of text, and this program has 2"):
        roundtrip(data, 10)


def test_an_unfinished_one_is_not_mixed(earlier):
    data = earlier[0]
    (data / "manifest.json").unlink()
    (data / "s" / "00000-00001.json").unlink()
    with pytest.raises(UserError, match=REFUSAL):
        made(*earlier)
    assert not (data / "manifest.json").exists() and not (data / "s" / "00000-00001.json").exists()


def test_refresh_makes_all_of_it_again(earlier, capsys):
    data = earlier[0]
    before = tree(data)
    made(*earlier, refresh=True)
    said = capsys.readouterr().err
    assert "an earlier version of the clean-up of text (1, this program has 2); its units are made again" in said
    assert "are done; continuing" not in said
    receipts = [json.loads(path.read_text()) for path in data.glob("**/0*.json")]
    assert len(receipts) > 3 and {receipt["cleanup"] for receipt in receipts} == {2}
    again = tree(data)
    shutil.rmtree(data)
    made(*earlier)
    assert tree(data) == again != before
    assert roundtrip(data, 10) == (10, [])


def test_units_of_one_version_are_not_another_ones(earlier, monkeypatch):
    """Whatever the plan says."""
    data, sources, tokenizer = earlier
    monkeypatch.setitem(CLEANUPS, "text", 1)
    (data / "plan.json").unlink()
    (data / "manifest.json").unlink()
    monkeypatch.setitem(CLEANUPS, "text", 2)
    made(data, sources, tokenizer)
    assert {json.loads(path.read_text())["cleanup"] for path in data.glob("**/0*.json")} == {2}


def test_what_nothing_was_made_of_is_planned_anew(earlier):
    data = earlier[0]
    for path in [*data.glob("**/0*.json"), data / "manifest.json"]:
        path.unlink()
    made(*earlier)
    assert open_corpus(data).sources["s"].documents


def test_an_earlier_corpus_is_not_extended(earlier):
    data = earlier[0]
    before, encoder = planned_again(data)
    with pytest.raises(UserError, match=r"an earlier version of the clean-up of text .*; prepare with --refresh first"):
        extend(data, before, None, encoder, None, 1)


def test_another_formats_clean_up_does_not_matter(earlier, monkeypatch, capsys):
    monkeypatch.setitem(CLEANUPS, "text", 1)
    monkeypatch.setitem(CLEANUPS, "wikipedia", 99)
    made(*earlier)
    assert "already complete" in capsys.readouterr().err
    assert "cleanup" not in json.loads((earlier[0] / "s" / "00000-00000.json").read_text())
