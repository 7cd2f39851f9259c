"""A document that never ends or crashes what reads it costs itself alone, and is never dropped for another's fault."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from multiprocessing import get_context

import pytest

from data_prep.guard import Guard, Place
from data_prep.shards import open_corpus, verify
from tests.parts.corpora import ROOT, children, dump, paragraphs, run_cli, tree, write_vocab

UNIT_MIB = 0.0625  # one piece
BAD = {30: "loop", 31: "crash", 33: "abort", 200: "loop", 450: "crash", 699: "crash"}  # documents of a.txt


def deadly(*arguments):
    """data_prep as tests/parts/deadly.py has it, to its end."""
    command = [sys.executable, "-m", "tests.parts.deadly", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A text of several units in which six documents end the process, four of them in the first unit; and a small one."""
    folder = tmp_path_factory.mktemp("inputs")
    texts = paragraphs(700)
    (folder / "good.txt").write_text("\n\n".join(text for number, text in enumerate(texts) if number not in BAD))
    for number, word in BAD.items():
        texts[number] = f"{word} {texts[number]}"
    (folder / "a.txt").write_text("\n\n".join(texts))
    (folder / "b.txt").write_text("the river\n\ncrash here\n\nthe wind")
    write_vocab(folder)
    return folder


def arguments(out, inputs, files="[ab].txt", workers=1):
    source = f"s=text:{inputs}/{files}"
    options = ["--unit-mib", UNIT_MIB, "--heldout", 0.05, "--workers", workers]
    return ["prepare", "--out", out, "--tokenizer", inputs / "vocab.txt", "--source", source, *options]


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """The corpus by one worker, and what was said."""
    out = tmp_path_factory.mktemp("whole") / "data"
    done = deadly(*arguments(out, inputs))
    assert done.returncode == 0, done.stderr
    return out, done.stderr


def ids(data, side):
    """Of each document the ids, in order."""
    shards = getattr(open_corpus(data), side)["s"].shards
    return [part.tolist() for shard in shards for part in documents(shard)]


def documents(shard):
    begin, tokens = 0, shard.open()
    for end in shard.ends().tolist():
        yield tokens[begin:end]
        begin = end


def test_each_costs_itself_and_nothing_else(whole, inputs, tmp_path):
    out, _ = whole
    done = run_cli(*arguments(tmp_path / "data", inputs, "good.txt"))
    assert done.returncode == 0, done.stderr
    for side, more in (("sources", 2), ("heldout", 0)):  # of the river and the wind, held out is neither
        assert ids(out, side)[: len(ids(out, side)) - more] == ids(tmp_path / "data", side)
    entry = open_corpus(out).manifest["sources"]["s"]
    assert entry["dropped"] == {"over_time": 2, "crashed_parser": 5}
    assert verify(out, deep=True) == []


def test_each_is_named_as_it_happens_and_counted_at_the_end(whole, inputs):
    _, said = whole
    lines = said.splitlines()
    assert (
        f"prepare: document 30 (loop) of {inputs}/a.txt bytes 0 to 65536: takes over 0.5 s of CPU time, so it is left out"
        in lines
    )
    first, again = (line for line in lines if "document 33 (abort)" in line)
    assert first.endswith(
        f"a worker was killed by SIGABRT at document 33 (abort) of {inputs}/a.txt bytes 0 to 65536; trying again"
    )
    assert again.endswith("a worker was killed by SIGABRT at it once more, so it is left out")
    assert sum("document 1 (crash)" in line and "b.txt" in line for line in lines) == 2
    [warning] = [line for line in lines if "warning: source s" in line]
    assert "7 documents are more than the parser can read" in warning and "in a.txt, b.txt; " in warning


def test_the_receipt_says_which(whole):
    out, _ = whole
    for side in ("s", "heldout/s"):
        receipts = [json.loads(path.read_text()) for path in sorted((out / side).glob("*.json"))]
        assert receipts[0]["left_out"] == [
            [0, 30, "over_time"],
            [0, 31, "crashed_parser"],
            [0, 33, "crashed_parser"],
            [0, 200, "over_time"],
        ]
        assert receipts[0]["damaged"] == [[0, "crashed_parser", 2], [0, "over_time", 2]]
        assert receipts[0]["dropped"] == {"crashed_parser": 2, "over_time": 2}
        assert receipts[-1]["left_out"] == [[0, 1, "crashed_parser"]]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_writes_the_same_bytes(whole, inputs, tmp_path, workers):
    done = deadly(*arguments(tmp_path / "data", inputs, workers=workers))
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "data") == tree(whole[0])


@pytest.mark.slow
def test_nodes_and_a_run_that_continues_write_the_same_bytes(whole, inputs, tmp_path):
    for share in ("1/2", "0/2"):
        done = deadly(*arguments(tmp_path / "data", inputs), "--node", share)
        assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "data") == tree(whole[0])
    (tmp_path / "data" / "s" / "00000-00000.json").unlink()
    (tmp_path / "data" / "manifest.json").unlink()
    done = deadly("prepare", "--out", tmp_path / "data")
    assert done.returncode == 0 and "units are done; continuing" in done.stderr
    assert tree(tmp_path / "data") == tree(whole[0])


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(whole, inputs, tmp_path):
    dice, kills = random.Random(), 0
    while kills < 6:
        command = [
            sys.executable,
            "-m",
            "tests.parts.deadly",
            *map(str, arguments(tmp_path / "data", inputs, workers=2)),
        ]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
        time.sleep(dice.uniform(0.5, 2.5))
        for worker in children(process.pid)[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        time.sleep(dice.uniform(0, 0.5))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        kills += 1
        _, errors = process.communicate()
        assert "Traceback" not in errors, errors
    done = deadly(*arguments(tmp_path / "data", inputs, workers=2))
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "data") == tree(whole[0])


def test_the_round_trip_leaves_out_the_same(whole):
    done = deadly("verify", whole[0], "--roundtrip", 100_000)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "whole; 696 documents compared with their source" in done.stderr


def test_stats_count_them(whole):
    assert "  dropped: 5 crashed_parser, 2 over_time" in run_cli("stats", whole[0]).stdout.splitlines()


def one_file(folder, text):
    write_vocab(folder)
    (folder / "a.txt").write_text(text)
    return deadly(*arguments(folder / "data", folder, "a.txt"))


def test_a_worker_that_is_killed_from_outside_says_nothing_against_its_document(tmp_path):
    done = one_file(tmp_path, "the river\n\nkilled here\n\nthe wind")
    assert done.returncode == 2
    assert "error: a worker died twice on each of 1 units: " in done.stderr
    lines = [line for line in done.stderr.splitlines() if "was killed by SIGKILL on" in line]
    assert [line.rpartition("; ")[2] for line in lines] == ["trying again", "given up"]
    assert "left out" not in done.stderr and not (tmp_path / "data" / "manifest.json").exists()


def test_a_crash_that_does_not_come_back_drops_nothing(tmp_path):
    done = one_file(tmp_path, f"the river\n\nonce {tmp_path}/seen\n\nthe wind")
    assert done.returncode == 0, done.stderr
    assert len(re.findall("killed by SIGSEGV", done.stderr)) == 1
    assert open_corpus(tmp_path / "data").manifest["sources"]["s"]["dropped"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("bad", ["crash", "killed"])
def test_a_sample_is_measured_without_it_too(tmp_path, bad):
    """For `plan`, and for `prepare` under a budget, which measure the start of the files first."""
    (tmp_path / "a.txt").write_text(f"{bad} here\n\nthe river\n\n{bad} there\n\nthe wind")
    source = ["--source", f"s=text:{tmp_path}/a.txt", "--tokenizer", write_vocab(tmp_path), "--budget-tokens", 100]
    done = deadly("plan", *source)
    if bad == "killed":
        assert done.returncode == 2 and "error: a process died twice on " in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("so it is left out") == 2
    [row] = [line.split() for line in done.stdout.splitlines() if line.startswith("s ")]
    assert row[4] == "6"  # tokens, all but a hundredth of which are for training
    done = deadly("prepare", "--out", tmp_path / "data", *source)
    assert done.returncode == 0, done.stderr
    assert open_corpus(tmp_path / "data").manifest["sources"]["s"]["dropped"] == {"crashed_parser": 2}


def test_a_source_of_which_nothing_else_is_left_is_rejected_with_the_reason(tmp_path):
    done = one_file(tmp_path, "crash\n\ncrash again")
    assert done.returncode == 2
    assert "no document was left of its 1 files (dropped: 2 crashed_parser)" in done.stderr


def test_the_limit_ends_with_the_document():
    """However it ends; and what is cleaned is noted while it is."""
    place = get_context("spawn").RawValue(Place)
    guard = Guard(place, 5.0)

    def fail(raw):
        assert 4 < signal.getitimer(signal.ITIMER_PROF)[0] < 6
        assert (place.cleaning, place.part, place.document, place.title) == (True, 2, 7, "Ä".encode())
        raise RecursionError

    class Titled:
        title = "Ä"

    with pytest.raises(RecursionError):
        guard.clean(fail, Titled(), 2, 7)
    assert signal.getitimer(signal.ITIMER_PROF)[0] == 0 and not place.cleaning


def test_a_wiki_page_that_crashes_the_parser_costs_one_page(tmp_path):
    pages = [{"text": text} for text in paragraphs(3)]
    pages[0]["text"] = "= " * 100_000
    (tmp_path / "w.xml").write_text(dump(pages))
    source = ["--source", f"w=wikipedia:{tmp_path}/w.xml", "--heldout", 0, "--workers", 1]
    done = run_cli("prepare", "--out", tmp_path / "data", "--tokenizer", write_vocab(tmp_path), *source)
    assert done.returncode == 0, done.stderr
    assert open_corpus(tmp_path / "data").sources["w"].documents >= 2
