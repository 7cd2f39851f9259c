"""pipeline.bench: it compares like with like, and what it prints can be read by people and machines."""

import json
import subprocess
import sys

import numpy as np
import pytest

from data_prep import shards
from data_prep.errors import UserError
from pipeline import batches, bench
from tests.launching import ROOT

SMALL = ["--length", "32", "--batch", "64", "--repeats", "2", "--at", "1000000"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    bench.make_corpus(folder, sources=5, tokens=60_000)
    return folder


def run(monkeypatch, capsys, *arguments) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    bench.main()
    return capsys.readouterr().out.splitlines()


def test_the_random_corpus_is_a_whole_corpus_of_very_different_sources(corpus):
    assert shards.verify(corpus, deep=True) == []
    sizes = [source.tokens for source in shards.open_corpus(corpus).sources.values()]
    assert len(sizes) == 5 and 60_000 <= sum(sizes) < 60_010 and 900 < max(sizes) / min(sizes) < 1100


def test_the_bare_gather_copies_the_very_rows_that_the_windows_read(corpus):
    windows = batches.training_windows(shards.open_corpus(corpus), 32)
    samples = batches.order_of(windows, 0.3, 1)(10_000, 10_300)
    gather = bench.BareGather(windows)
    assert np.array_equal(gather(*gather.rows(samples)), windows.read(samples.source, samples.window).numpy())


@pytest.mark.parametrize("batch", [64, 3000, 9000])
def test_each_repetition_reads_other_blocks_and_who_goes_first_alternates(corpus, monkeypatch, batch):
    seen = []

    def note(windows, order, gather, starts, bare_first):
        seen.append((starts, bare_first))
        return [2.0, 1.0]

    monkeypatch.setattr(bench, "_stretch_times", note)
    windows = batches.training_windows(shards.open_corpus(corpus), 32)
    times = bench.compare_with_bare(windows, batches.order_of(windows, 0.3, 1), batch, 10**9, repeats=3)
    assert times.shape == (3, 2) and np.allclose(times[:, 0], 2 * times[:, 1])
    assert [bare_first for _, bare_first in seen] == [False, True] * 4
    stretches = [(starts[0], starts[-1] + batch) for starts, _ in seen]
    assert all(stop - start >= bench.BLOCK for start, stop in stretches)
    blocks = [set(range(start // bench.BLOCK, -(-stop // bench.BLOCK))) for start, stop in stretches]
    assert sum(map(len, blocks)) == len(set.union(*blocks))
    assert seen[0][0][0] // bench.BLOCK == 10**9 // bench.BLOCK


def test_the_table_has_a_line_for_each_measure(corpus, monkeypatch, capsys):
    monkeypatch.setattr(bench, "_STEPS", 3)
    lines = run(monkeypatch, capsys, "data", "--data", corpus, *SMALL)
    names = ["batch", "bare gather", "ratio", "reading", "training step", "data wait"]
    assert [line[:14].strip() for line in lines] == names
    assert "64 sequences × 32" in lines[0]


def test_for_machines_there_is_one_json_object_a_line_and_the_random_corpus_is_thrown_away(monkeypatch, capsys):
    made = []
    monkeypatch.setattr(bench, "_TOKENS", 30_000)
    monkeypatch.setattr(bench, "training_wait", lambda windows, order, at: (0.5, 0.01))
    monkeypatch.setattr(bench, "open_corpus", lambda folder: (made.append(folder), shards.open_corpus(folder))[1])
    lines = run(monkeypatch, capsys, "data", "--sources", "3", *SMALL, "--json")
    rows = {row["measure"]: row for row in map(json.loads, lines)}
    assert len(rows) == len(lines) == 6 and all(row["bench"] == "data" for row in rows.values())
    assert rows["reading"]["value"] == pytest.approx(64 * 32 / rows["batch"]["value"] / 1e3)
    assert (rows["data wait"]["value"], rows["data wait"]["unit"]) == (1.0, "%")
    assert not made[0].exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["data", "--batch", "0"], "argument --batch: '0' is not a whole number of at least 1"),
        (["data", "--length", "two"], "argument --length: 'two' is not a whole number of at least 3"),
        (["data", "--at", "inf"], "argument --at: 'inf' is not a whole number of at least 0"),
        (["dta"], "invalid choice: 'dta' (choose from data)"),
        ([], "the following arguments are required: WHAT"),
        (["data", "--data", "/no/such/corpus"], "/no/such/corpus: no such folder"),
    ],
)
def test_a_bad_option_is_told_in_one_line(monkeypatch, capsys, arguments, message):
    with pytest.raises(UserError) as error:
        run(monkeypatch, capsys, *arguments)
    assert message in str(error.value).replace("'data'", "data") and "\n" not in str(error.value)


def test_the_command_exits_with_2_at_a_bad_option():
    command = [sys.executable, "-m", "pipeline.bench", "data", "--batch", "many"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(
        "error: python -m pipeline.bench data: argument --batch: 'many' is not a whole number"
    )
