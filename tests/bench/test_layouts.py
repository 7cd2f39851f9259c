"""bench step --layout: it compares text with text, and says what each layout reads."""

import json
import re
import sys

import numpy as np
import pytest

from data_prep.cli import UserError
from data_prep.shards import open_corpus
from pipeline.bench import __main__ as bench
from pipeline.bench import layouts
from pipeline.data.reading import order_of, read, training_windows
from pipeline.engines.ranks import start_ranks
from tests.parts.tiny import SPECIAL, make_corpus

STEP = ["step", "--compile", "none", "--teacher", "1x24", "--student", "1x24", "--heads", "2", "--precision", "fp32"]
SMALL = ["--batch", "4", "--length", "64", "--repeats", "2"]
LAYOUTS = ["full", "doc", "packed"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("layouts"))


def options(corpus, *more):
    return bench.parser().parse_args([*STEP, *SMALL, "--data", str(corpus), "--layout", *LAYOUTS, *more])


def run(monkeypatch, capsys, *arguments) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    bench.main()
    return capsys.readouterr().out.splitlines()


@pytest.mark.slow
def test_each_layout_has_its_rows_and_speeds_are_compared(corpus, monkeypatch, capsys):
    monkeypatch.setattr(layouts, "interleaved_times", fake_times)
    words = [*STEP, *SMALL, "--data", corpus, "--layout", *LAYOUTS, "--json"]
    rows = list(map(json.loads, run(monkeypatch, capsys, *words)))[1:]
    assert all(row["bench"] == "step" and row["data"] == str(corpus) for row in rows)
    got = {
        layout: {row["measure"]: row["value"] for row in rows if row.get("layout") == layout}
        for layout in (*LAYOUTS, None)
    }
    for layout in LAYOUTS:
        parts = {name: value for name, value in got[layout].items() if name.startswith("share of ")}
        assert sum(parts.values()) == pytest.approx(100) and "share of data wait" in parts
        assert set(got[layout]) - set(parts) == {"speed", "tokens", "update", "fill", "pieces a row"}
        assert got[layout]["update"] == SECONDS[layout]
        assert got[layout]["speed"] == pytest.approx(
            got[layout]["tokens"] / SECONDS[layout]
        )  # of two, so mean and median
    # Documents have 19 tokens, 21 with their frame: three of them fit a row of 64.
    assert [got[layout]["pieces a row"] for layout in ("full", "doc")] == [1, 1]
    assert 2.9 < got["packed"]["pieces a row"] <= 3 and got["packed"]["fill"] > 95 and got["full"]["fill"] == 100
    assert 32 < got["doc"]["fill"] < 33
    speeds = {layout: per_batch(corpus, layout)[1:] / SECONDS[layout] for layout in LAYOUTS}
    for below in ("full", "doc"):
        wanted = np.median(speeds["packed"] / speeds[below])
        assert got[None][f"packed / {below}"] == pytest.approx(wanted)


SECONDS = {"full": 2.0, "doc": 1.0, "packed": 4.0}


def fake_times(works, repeats, device):
    for work in works.values():
        work()
    return {name: [SECONDS[name]] * repeats for name in works}


def per_batch(corpus, layout) -> np.ndarray:
    """The tokens of text in the first three batches of four, counted one by one."""
    windows = training_windows(open_corpus(corpus), 64, layout)
    order = order_of(windows, 1.0, layouts.SEED)
    rows = [read(windows, order, first, first + 4).ids.tolist() for first in (0, 4, 8)]
    others = {SPECIAL[role] for role in ("pad", "cls", "sep")}
    return np.array([sum(token not in others for row in batch for token in row) for batch in rows])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_is_counted_and_nothing_else(corpus, layout):
    reading = layouts.Reading(open_corpus(corpus), layout, options(corpus), start_ranks())
    assert reading.tokens == per_batch(corpus, layout).tolist() and len(reading.batches) == 3
    for batch, tokens in zip(reading.batches, reading.tokens, strict=True):
        if layout == "full":  # between [CLS] and [SEP] a window has the separators of documents, too
            assert tokens == 4 * 62 - sum(row[1:-1].count(SPECIAL["sep"]) for row in batch.ids.tolist()) < 4 * 62
        elif layout == "doc":
            assert tokens == int(batch.lengths.sum()) - 2 * 4
        else:
            begun = int((batch.ids == SPECIAL["cls"]).sum())
            assert tokens == int((batch.pieces.stop > 0).sum()) - 2 * begun and begun > 4


def test_every_update_reads_the_next_batch(corpus):
    class Models:
        def update(self, trainees, samples):
            seen.append((trainees, samples))

    reading = layouts.Reading(open_corpus(corpus), "packed", options(corpus), start_ranks())
    for trainees in (["first"], ["second"]):  # a setting after the other, on the same batches
        seen: list = []
        update = reading.updates(Models(), trainees)
        for _ in reading.batches:
            update()
        assert [samples is batch for (_, samples), batch in zip(seen, reading.batches, strict=True)] == [True] * 3
        assert seen[0][0] is trainees


def test_what_makes_the_index_is_said_on_stderr(tmp_path, monkeypatch, capsys):
    corpus = make_corpus(tmp_path / "new", {"a": 2000})
    layouts.Reading(open_corpus(corpus), "packed", options(corpus), start_ranks())
    told = capsys.readouterr()
    assert told.out == "" and "packing the documents" in told.err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--layout", "packed"], "--layout: add --data DIR, a prepared corpus"),
        (["--data", "CORPUS"], "--data: goes with --layout; other updates read random ids"),
        (["--layout", "doc", "--data", "/no/such"], "/no/such: no such folder"),
        (["--layout", "packt", "--data", "CORPUS"], "argument --layout: invalid choice: 'packt'"),
        (["--layout", "--data", "CORPUS"], "argument --layout: expected at least one argument"),
        (["--layout", "doc", "--data", "CORPUS", "--launches"], "--launches: does not go with --layout"),
        (["--layout", "doc", "--data", "CORPUS", "--embeddings"], "--embeddings: does not go with --layout"),
        (["--layout", "doc", "--data", "CORPUS", "--loss-kernel", "literal"], "--loss-kernel literal: does not go"),
        (
            ["--layout", "doc", "--data", "CORPUS", "--arithmetic", "native", "widened"],
            "--arithmetic: one with --layout",
        ),
        (
            ["--layout", "packed", "--data", "CORPUS", "--length", "3"],
            "length 3: a row needs room for 2 special tokens",
        ),
        (["--layout", "doc", "--data", "CORPUS", "--heads", "7"], "--heads 7: does not divide the teacher's width 24"),
        (["--layout", "full", "--data", "CORPUS", "--length", "5000"], "no shard holds the 4998 tokens of one window"),
    ],
)
def test_what_does_not_go_together_is_reported_in_one_line(corpus, monkeypatch, capsys, arguments, message):
    words = [str(corpus) if word == "CORPUS" else word for word in arguments]
    with pytest.raises(UserError, match=re.escape(message)) as error:
        run(monkeypatch, capsys, *STEP, *words)
    assert "\n" not in str(error.value)


def test_a_vocabulary_that_the_models_lack_is_rejected(corpus, monkeypatch, capsys):
    def with_more(path):
        found = open_corpus(path)
        found.tokenizer["vocab_size"] = 250_002
        return found

    monkeypatch.setattr(layouts, "open_corpus", with_more)
    with pytest.raises(UserError, match=r"--vocabulary 30522: .* has 250002 entries; add --vocabulary 250002"):
        run(monkeypatch, capsys, *STEP, "--layout", "doc", "--data", corpus)
