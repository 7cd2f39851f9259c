"""prepare, stats and the workers: the same bytes by every road, and every mistake reported in one line."""

import bz2
import contextlib
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import locks
from data_prep.cli import UserError
from data_prep.description import Description, parse_source
from data_prep.encode import load_encoder
from data_prep.formats.readers import PIECE
from data_prep.inputs import InputFile, describe_file
from data_prep.prepare import asked_plan, prepare
from data_prep.processes import is_alive
from data_prep.shards import open_corpus, verify
from data_prep.stats import stats_lines
from data_prep.units import UnitReader, cut, side_of
from data_prep.workers import Pending
from tests.parts.corpora import (
    children,
    dump,
    noise,
    paragraphs,
    run_cli,
    start_cli,
    tree,
    write_corpus,
    write_vocab,
)

UNIT_MIB = 0.0625  # the smallest: one piece


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Two sources: a text of 9 units in two files, and a packed dump of 7."""
    folder = tmp_path_factory.mktemp("inputs")
    texts = paragraphs(2000)
    (folder / "a.txt").write_text("\n\n".join(texts[:1500]))
    (folder / "b.txt").write_text("\n\n".join(texts[1500:]))
    pages = [{"text": f"'''Page''' of {text}"} for text in noise(3000)]
    (folder / "wiki.xml.bz2").write_bytes(bz2.compress(dump(pages).encode(), 1))
    return folder


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    return write_vocab(tmp_path_factory.mktemp("tokenizer"))


def arguments(out, inputs, vocab, workers=2):
    sources = ["--source", f"books=text:{inputs}/*.txt", "--source", f"wiki=wikipedia:{inputs}/*.bz2"]
    options = ["--unit-mib", UNIT_MIB, "--heldout", 0.05, "--workers", workers]
    return ["prepare", "--out", out, "--tokenizer", vocab, *sources, *options]


@pytest.fixture(scope="module")
def whole(inputs, vocab, tmp_path_factory):
    """A corpus that was prepared without a hitch, by one worker."""
    out = tmp_path_factory.mktemp("whole") / "data"
    done = run_cli(*arguments(out, inputs, vocab, workers=1))
    assert done.returncode == 0, done.stderr
    return out


def small(tmp_path, vocab, *files, form="text", **options):
    """prepare() one source "s" of the given files' contents."""
    folder = tmp_path / "files"
    folder.mkdir(exist_ok=True)
    for number, content in enumerate(files):
        (folder / f"{number}.x").write_bytes(content)
    made(tmp_path / "data", vocab, [f"s={form}:{folder}/*.x"], **options)
    return open_corpus(tmp_path / "data")


def made(data, tokenizer, sources, workers=1, heldout=None, unit_mib=None, **options):
    """prepare() with sources as on the command line."""
    description = Description(tuple(map(parse_source, sources)), str(tokenizer), heldout, unit_mib)
    prepare(data, *asked_plan(description), workers, **options)


@pytest.mark.slow
def test_what_was_prepared_verifies_and_is_what_was_written(whole, inputs, vocab):
    assert verify(whole, deep=True) == []
    corpus = open_corpus(whole)
    encoder = load_encoder(vocab)
    documents = []
    for side in (corpus.sources, corpus.heldout):
        for shard in side["books"].shards:
            tokens, ends = shard.open().tolist(), shard.ends().tolist()
            begins = [0, *ends[:-1]]
            documents += [tuple(tokens[begin:end]) for begin, end in zip(begins, ends, strict=True)]
    wanted = [(*ids, encoder.special["sep"]) for ids in encoder.encode_batch(paragraphs(2000))]
    assert sorted(documents) == sorted(wanted)
    assert len(corpus.sources["books"].shards) > 5 and len(corpus.sources["wiki"].shards) > 2


def test_shards_hold_their_documents_in_the_order_of_the_files(tmp_path, vocab):
    texts = paragraphs(50)
    corpus = small(tmp_path, vocab, "\n\n".join(texts[:30]).encode(), "\n\n".join(texts[30:]).encode(), heldout=0)
    encoder = load_encoder(vocab)
    stored = [token for shard in corpus.sources["s"].shards for token in shard.open().tolist()]
    assert stored == [token for ids in encoder.encode_batch(texts) for token in (*ids, encoder.special["sep"])]
    assert corpus.heldout == {} and not (tmp_path / "data" / "heldout").exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 5])
def test_one_two_and_five_workers_write_the_same_bytes(whole, inputs, vocab, tmp_path, workers):
    done = run_cli(*arguments(tmp_path / "data", inputs, vocab, workers))
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "data") == tree(whole)


def test_nothing_written_names_a_path_or_a_time(whole, inputs):
    for name, content in tree(whole).items():
        assert str(inputs).encode() not in content, name


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes(whole, inputs, vocab, tmp_path):
    out = tmp_path / "data"
    units = len(list(whole.glob("*/0*.json")))
    kills = 0
    for share in (0, 0.2, 0.5, 0.8):
        process = start_cli(*arguments(out, inputs, vocab))
        while process.poll() is None and len(list(out.glob("*/0*.json"))) < share * units:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.1))
        kills += process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert kills > 1
    done = run_cli(*arguments(out, inputs, vocab))
    assert done.returncode == 0, done.stderr
    assert tree(out) == tree(whole)


def wait_for_workers(process, count=2):
    deadline = time.monotonic() + 20
    while len(found := children(process.pid)) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


@pytest.mark.slow
def test_workers_die_with_their_parent_and_the_next_run_continues(whole, inputs, vocab, tmp_path):
    process = start_cli(*arguments(tmp_path / "data", inputs, vocab))
    workers = wait_for_workers(process)
    time.sleep(0.5)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 5
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers and not any(map(is_alive, workers))
    assert run_cli(*arguments(tmp_path / "data", inputs, vocab)).returncode == 0
    assert tree(tmp_path / "data") == tree(whole)


@pytest.mark.slow
def test_a_killed_worker_is_reported_in_one_line_and_its_unit_done_again(whole, inputs, vocab, tmp_path):
    process = start_cli(*arguments(tmp_path / "data", inputs, vocab))
    os.kill(wait_for_workers(process)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    [line] = [line for line in errors.splitlines() if "a worker " in line]
    assert "was killed by SIGKILL" in line and " bytes 0 to " in line and line.endswith("trying again")
    assert tree(tmp_path / "data") == tree(whole)


def test_a_unit_whose_worker_dies_twice_is_listed_at_the_end(inputs, vocab, tmp_path):
    out = tmp_path / "data"
    sources = ["--source", f"b=text:{inputs}/b.txt", "--unit-mib", 64, "--workers", 1]
    process = start_cli("prepare", "--out", out, "--tokenizer", vocab, *sources)
    for _ in range(2):
        [worker] = wait_for_workers(process, count=1)
        os.kill(worker, signal.SIGKILL)
        while is_alive(worker):
            time.sleep(0.01)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "error: a worker died twice on each of 1 units: " in errors and "b.txt bytes 0 to" in errors
    assert not (out / "manifest.json").exists()


def test_a_complete_corpus_is_left_alone(whole, inputs, vocab):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.*") if path.name != ".lock"}
    done = run_cli(*arguments(whole, inputs, vocab))
    assert done.returncode == 0 and "already complete" in done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*.*") if path.name != ".lock"}


@pytest.mark.slow
def test_damaged_units_are_prepared_again_and_leftovers_removed(inputs, vocab, tmp_path, whole):
    out = tmp_path / "data"
    assert run_cli(*arguments(out, inputs, vocab)).returncode == 0
    tokens = out / "books" / "00000-00002.tokens.npy"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    (out / "wiki" / "00000-00001.json").write_text("{")
    (out / "heldout" / "wiki" / "00000-00002.json").unlink()
    receipt = out / "books" / "00000-00003.json"
    receipt.write_text(receipt.read_text().replace('"bytes": ', '"bytes": 1'))
    before = receipt.read_bytes()
    (out / "books" / ".00000-00004.tokens.npy.77.tmp").write_bytes(b"half")
    assert run_cli(*arguments(out, inputs, vocab)).returncode == 0
    assert tree(out) == tree(whole)
    assert receipt.read_bytes() != before


def test_other_settings_sources_or_tokenizer_are_rejected_by_name(whole, inputs, vocab, tmp_path):
    def rejected(message, sources=None, tokenizer=vocab, heldout=0.05, unit_mib=UNIT_MIB):
        sources = sources or [f"books=text:{inputs}/*.txt", f"wiki=wikipedia:{inputs}/*.bz2"]
        with pytest.raises(UserError, match=message):
            made(whole, tokenizer, sources, 1, heldout, unit_mib)

    rejected("--heldout was 0.05, now 0.06; go back to that, or prepare into a new folder", heldout=0.06)
    rejected("--unit-mib was 0.0625, now 0.125", unit_mib=0.125)
    rejected(
        "the sources were books, wiki, now books .`extend` adds to them",
        [f"books=text:{inputs}/*.txt"],
    )
    rejected(
        "source books had 2 files, now 1; not in both: b.txt",
        [f"books=text:{inputs}/a.txt", f"wiki=wikipedia:{inputs}/*.bz2"],
    )
    rejected(
        "the format of source books was text, now books",
        [f"books=books:{inputs}/*.txt", f"wiki=wikipedia:{inputs}/*.bz2"],
    )
    rejected("XML at byte 0, not plain text", [f"books=text:{inputs}/*.txt", f"wiki=text:{inputs}/*.bz2"])
    other = tmp_path / "vocab.txt"
    other.write_text(vocab.read_text() + "zebra\n")
    rejected("the tokenizer was another one", tokenizer=other)


def test_changed_input_is_rejected_by_name(tmp_path, vocab):
    small(tmp_path, vocab, b"one\n\ntwo", b"three", heldout=0)
    with pytest.raises(
        UserError,
        match=r"1\.x of source s has changed since \(5 bytes, now 5\); go back to that, or take .* with --refresh",
    ):
        small(tmp_path, vocab, b"one\n\ntwo", b"seven", heldout=0)


@pytest.mark.slow
def test_a_linked_file_is_known_by_the_name_of_the_link(tmp_path, vocab):
    """As in a cache of the hub, where names are links to blobs that are named by their hash."""
    (tmp_path / "blob").write_text("\n\n".join(paragraphs(20)))
    (tmp_path / "part.txt").symlink_to(tmp_path / "blob")
    out = tmp_path / "data"
    for command in (
        ("prepare", "--out", out, "--tokenizer", vocab, "--source", f"s=text:{tmp_path}/*.txt"),
        ("prepare", "--out", out),
        ("verify", out, "--deep", "--roundtrip", 5),
    ):
        done = run_cli(*command)
        assert done.returncode == 0, done.stderr


def test_a_plan_without_any_work_done_may_be_replaced(tmp_path, vocab):
    with pytest.raises(UserError, match=r"0\.x: UTF-16"):
        small(tmp_path, vocab, "one".encode("utf-16"), heldout=0)
    assert small(tmp_path, vocab, b"one", heldout=0).sources["s"].documents == 1


def test_a_second_run_on_one_folder_waits_and_is_then_rejected(tmp_path, vocab, monkeypatch, capsys):
    monkeypatch.setattr(locks, "PATIENCE", 0.5)
    (tmp_path / "data").mkdir()
    with locks.sole_process(tmp_path / "data", print):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            small(tmp_path, vocab, b"one")
        assert capsys.readouterr().err.count("waiting up to") == 1
    assert small(tmp_path, vocab, b"one", heldout=0).sources["s"].documents == 1


def test_held_out_documents_are_a_function_of_their_text(whole):
    corpus = open_corpus(whole)
    for name in ("books", "wiki"):
        kept, aside = corpus.sources[name].documents, corpus.heldout[name].documents
        assert 0.02 < aside / (aside + kept) < 0.09
    texts = paragraphs(4000, seed=5)
    aside = {text for text in texts if side_of(text, 0.1) == "heldout"}
    assert 300 < len(aside) < 500
    assert aside < {text for text in texts if side_of(text, 0.2) == "heldout"}
    assert not any(side_of(text, 0) == "heldout" for text in texts)


def test_repairs_drops_and_unknown_tokens_are_counted_in_the_manifest(tmp_path, vocab):
    corpus = small(tmp_path, vocab, b"the\r\nriver\n\n\xff stone\n\n\xef\xbb\xbf\n\n\xe2\x80\x8b", b"", heldout=0)
    entry = corpus.manifest["sources"]["s"]
    assert entry["repairs"] == {"byte_order_mark": 1, "crlf": 1, "invalid_utf8": 1}
    assert entry["dropped"] == {"empty": 1, "no_tokens": 1, "empty_file": 1}
    assert (entry["documents"], entry["tokens"], entry["unknown"]) == (2, 5, 0)
    assert [file["name"] for file in entry["files"]] == ["0.x", "1.x"]
    assert corpus.manifest["settings"] == {"heldout": 0, "unit_mib": 64}


def test_unknown_tokens_are_counted(tmp_path, vocab):
    corpus = small(tmp_path, vocab, "the 字 river 字".encode(), heldout=0)
    assert corpus.manifest["sources"]["s"]["unknown"] == 2


PROSE = "The river ran under the old house, and the wind was very old.\n\n"
QUOTED = "“It’s the café,” he said – “naïve, isn’t it?”\n\n"


def mended_warnings(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if "not UTF-8" in line]


@pytest.mark.parametrize(
    ("encoding", "sentence", "command"),
    [
        ("cp1252", QUOTED, "iconv -f WINDOWS-1252 -t UTF-8"),
        ("cp1251", "Вода реки текла под старым домом.\n\n", "iconv -f WINDOWS-1251 -t UTF-8"),
        (
            "mac-roman",
            "Où est la forêt ? À côté de la rivière, près du château, répondit l’élève.\n\n",
            "iconv -f MACINTOSH -t UTF-8",
        ),
    ],
)
@pytest.mark.parametrize("form", ["text", "books"])
def test_text_in_another_encoding_is_warned_of_with_the_command_that_converts_it(
    tmp_path, vocab, capsys, form, encoding, sentence, command
):
    text = (PROSE * 40 + sentence) * 60
    small(tmp_path, vocab, PROSE.encode() * 9, text.encode(encoding), form=form, heldout=0)
    [line] = mended_warnings(capsys)
    assert re.match(
        r"prepare: warning: source s: \d+\.\d% of its characters were not UTF-8 and are lost; most are in 1\.x: ", line
    )
    assert line.endswith(f": convert it ({command}), and prepare into a new folder")


def test_the_warning_begins_at_a_thousandth(tmp_path, vocab, capsys):
    for number, (characters, warned) in enumerate([(1000, True), (1001, False)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        content = b"\x93" + ("the river " * 200)[: characters - 2].encode() + b"."
        small(folder, vocab, content, heldout=0)
        assert bool(mended_warnings(capsys)) == warned


def test_good_utf8_is_not_warned_of(tmp_path, vocab, capsys):
    small(tmp_path, vocab, (QUOTED * 99).encode(), ("\ufffd" * 99 + PROSE + "字 вода").encode(), heldout=0)
    assert mended_warnings(capsys) == []


def test_where_only_some_lines_are_in_another_encoding_only_these_are_to_be_converted(tmp_path, vocab, capsys):
    small(tmp_path, vocab, b"".join([QUOTED.encode(), QUOTED.encode("cp1252")] * 99), heldout=0)
    [line] = mended_warnings(capsys)
    assert "convert its lines that are not UTF-8, and only these (iconv -f WINDOWS-1252 -t UTF-8)" in line


def test_bytes_of_no_encoding_are_said_to_be_damage(tmp_path, vocab, capsys):
    noise = random.Random(0).randbytes(1 << 12)
    small(tmp_path, vocab, PROSE.encode() * 3000 + noise, heldout=0)
    [line] = mended_warnings(capsys)
    assert "no known encoding fits these bytes: is the file damaged?" in line


def test_jsonl_and_packed_files_are_warned_of_too(tmp_path, vocab, capsys):
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in [PROSE, QUOTED] * 99)
    small(tmp_path, vocab, bz2.compress(lines.encode("cp1252")), form="jsonl", heldout=0)
    [line] = mended_warnings(capsys)
    assert "(iconv -f WINDOWS-1252 -t UTF-8)" in line


def test_a_column_of_bytes_in_another_encoding_is_not_to_be_converted_as_a_file(tmp_path, vocab, capsys):
    rows = io.BytesIO()
    pq.write_table(pa.table({"text": [QUOTED.encode("cp1252")] * 99}), rows)
    small(tmp_path, vocab, rows.getvalue(), form="parquet", heldout=0)
    [line] = mended_warnings(capsys)
    assert "its bytes are WINDOWS-1252: decode them, write the column as text" in line and "iconv" not in line


@pytest.mark.slow
def test_mended_text_is_the_same_bytes_by_any_number_of_workers_and_warned_of_alike(tmp_path, vocab):
    (tmp_path / "a.txt").write_bytes((PROSE * 40 + QUOTED).encode("cp1252") * 200)
    warned = set()
    for workers in (1, 2, 3):
        options = ["--source", f"s=text:{tmp_path}/a.txt", "--unit-mib", UNIT_MIB, "--workers", workers]
        done = run_cli("prepare", "--out", tmp_path / f"{workers}", "--tokenizer", vocab, *options)
        assert done.returncode == 0, done.stderr
        warned |= {line for line in done.stderr.splitlines() if "not UTF-8" in line}
    assert len(warned) == 1
    assert tree(tmp_path / "1") == tree(tmp_path / "2") == tree(tmp_path / "3")


def test_an_empty_file_is_warned_of_and_a_source_of_nothing_is_rejected(tmp_path, vocab, capsys):
    with pytest.raises(UserError, match=r"source s: no document was left of its 2 files \(dropped: 2 empty_file"):
        small(tmp_path, vocab, b"", b"\n \n")
    assert "warning: source s: 2 files are empty: 0.x, 1.x" in capsys.readouterr().err
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_a_fault_of_an_input_ends_the_run_with_one_line(tmp_path, vocab):
    (tmp_path / "a.bz2").write_bytes(bz2.compress(b"<mediawiki>" * 50)[:-9] + bytes(9))
    done = run_cli(
        "prepare", "--out", tmp_path / "d", "--tokenizer", vocab, "--source", f"w=wikipedia:{tmp_path}/a.bz2"
    )
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "a.bz2" in line and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["books"], "--source books: must be NAME=FORMAT:GLOB"),
        (["books=text:"], "must be NAME=FORMAT:GLOB"),
        (["b/c=text:*.txt"], "'b/c' cannot be a source's name"),
        (["heldout=text:*.txt"], "'heldout' cannot be a source's name"),
        (["manifest.json=text:*.txt"], "'manifest.json' cannot be a source's name"),
        (["..=text:*.txt"], "'..' cannot be a source's name"),
        (["w=wikpedia:*.txt"], "no format 'wikpedia', did you mean 'wikipedia'"),
        (["b=text:nothing-*.txt"], r"no file matches nothing-\*\.txt"),
        (["b=text:*.txt", "b=text:*.md"], "source b: this name is given 2 times"),
        (["b=text:*.txt", "c=text:./a*"], "a.txt: is in source c and already in source b"),
    ],
)
def test_a_mistaken_source_is_reported(tmp_path, vocab, monkeypatch, sources, message):
    for name in ("a.txt", "b.txt", "c.md"):
        (tmp_path / name).write_text("x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        made(tmp_path / "data", vocab, sources)


def test_globs_are_expanded_in_sorted_order(tmp_path):
    for name in ("b10", "b9", "a", "sub/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    source = parse_source(f"s=text:{tmp_path}/**/*").resolve()
    assert [file.path.relative_to(tmp_path).as_posix() for file in source.files] == ["a", "b10", "b9", "sub/c"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heldout": 1.0}, "--heldout 1.0: must be at least 0 and below 1"),
        ({"heldout": float("nan")}, "--heldout nan"),
        ({"unit_mib": 0.05}, "--unit-mib 0.05: must be from 0.0625"),
        ({"unit_mib": float("nan")}, "--unit-mib nan"),
        ({"unit_mib": float("inf")}, "--unit-mib inf"),
        ({"workers": 0}, "--workers 0: must be at least 1"),
    ],
)
def test_a_mistaken_setting_is_reported(tmp_path, vocab, options, message):
    with pytest.raises(UserError, match=message):
        small(tmp_path, vocab, b"one", **options)


def test_a_number_may_be_written_as_it_likes(tmp_path, vocab):
    small(tmp_path, vocab, b"one", heldout=0, unit_mib=2)
    before = tree(tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    small(tmp_path, vocab, b"one", heldout=0.0, unit_mib=2.0)
    assert tree(tmp_path / "data") == before


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path, vocab):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"data: holds thesis\.tex but no plan\.json"):
        small(tmp_path, vocab, b"one")


@pytest.mark.parametrize("out", ["file", "file/data"])
def test_a_folder_that_cannot_be_made_is_reported(tmp_path, vocab, out):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=rf"--out {tmp_path / out}: (File exists|Not a directory); name a new"):
        made(tmp_path / out, vocab, [f"s=text:{tmp_path}/file"])


def test_workers_keep_to_their_file_and_spread_over_files():
    a, b, c = (InputFile(name, size * PIECE, name, Path(name)) for name, size in (("a", 2), ("b", 2), ("c", 1)))
    a0, a1, b0, b1, c0 = units = cut("s", "text", None, [a, b, c], 1)
    assert Pending(units).take(None, []) == a0
    assert Pending([a1, b0, b1]).take(None, [a0]) == b0
    assert Pending([a1, b1, c0]).take(b0, [a0, b0]) == b1
    assert Pending([a1, b1]).take(c0, [a0, a1, b0]) == b1
    pending = Pending(units)
    assert [pending.take(None, []) for _ in units] == units and not pending
    pending.put_back(b0)
    assert pending.take(a1, [a1]) == b0


def test_what_lies_behind_a_fault_of_a_file_is_given_up_and_nothing_else():
    a, b = (InputFile(name, 4 * PIECE, name, Path(name)) for name in "ab")
    units = cut("s", "text", None, [a, b], 1)
    pending = Pending(units)
    faulty = [pending.take(None, []), pending.take(units[0], [])][1]
    pending.put_back(units[0])
    assert pending.drop_file_of(faulty) == units[2:4]
    assert [pending.take(units[0], []) for _ in range(5)] == [units[0], *units[4:]]


def test_a_reader_continues_from_unit_to_unit_as_a_fresh_one_would_find_them(inputs):
    units = cut("w", "wikipedia", None, [describe_file(inputs / "wiki.xml.bz2")], 1)
    assert len(units) > 2
    one = UnitReader()
    going_on = [[document.text for _, document in one.documents(unit)] for unit in units]
    fresh = [[document.text for _, document in UnitReader().documents(unit)] for unit in units]
    assert going_on == fresh
    assert sum(map(len, fresh)) == 3000


def test_big_files_are_known_by_blocks_from_end_to_end(tmp_path):
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(200 << 20)
    seen = {describe_file(path).sha256}
    for offset in (0, 100 << 20, (200 << 20) - 1):
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(b"x")
        seen.add(describe_file(path).sha256)
    assert len(seen) >= 3


def test_stats_report_documents_tokens_share_lengths_drops_and_repairs(whole, tmp_path):
    done = run_cli("stats", whole)
    assert done.returncode == 0, done.stderr
    corpus = open_corpus(whole)
    for name, source in corpus.sources.items():
        rows = [line.split() for line in done.stdout.splitlines() if line.startswith(f"{name} ")]
        assert [row[1] for row in rows] == ["train", "heldout"]
        share = source.tokens / sum(other.tokens for other in corpus.sources.values())
        assert rows[0][2:5] == [f"{source.documents:,}", f"{source.tokens:,}", f"{share:.2%}"]
    assert done.stdout.count("tokens per document: mean") == done.stdout.count("dropped: ") == 2
    lines = stats_lines(write_corpus(tmp_path / "data"))
    assert any("mean 2, 5% 1" in line and "max 3" in line for line in lines)


@pytest.mark.slow
def test_help_explains_every_verb_and_an_unknown_one_is_rejected():
    for verb in ("plan", "prepare", "status", "verify", "stats", "extend"):
        assert verb in run_cli("--help").stdout
    assert "NAME=FORMAT[.FIELD]:GLOB" in run_cli("prepare", "--help").stdout
    assert run_cli("prepair").returncode == 2


def test_manifest_is_the_sum_of_its_receipts(whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    for name, entry in manifest["sources"].items():
        receipts = [json.loads(path.read_text()) for path in sorted((whole / name).glob("*.json"))]
        assert entry["shards"] == [receipt["shard"] for receipt in receipts]
        assert entry["tokens"] == sum(np.load(path).size for path in (whole / name).glob("*.tokens.npy"))


@pytest.mark.slow
def test_ctrl_c_ends_everything_quietly_and_the_next_run_continues(whole, inputs, vocab, tmp_path):
    process = start_cli(*arguments(tmp_path / "data", inputs, vocab))
    workers = wait_for_workers(process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in errors and "stopped; what is finished is kept, and the same command continues" in errors
    assert workers and not any(map(is_alive, workers))
    assert run_cli(*arguments(tmp_path / "data", inputs, vocab)).returncode == 0
    assert tree(tmp_path / "data") == tree(whole)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_ctrl_c_while_a_worker_starts_is_heard_once_it_is_known(moment, tmp_path, vocab, monkeypatch):
    start, done = BaseProcess.start, threading.Event()
    other = threading.Thread(target=done.wait, daemon=True)  # the system may give the signal to any thread

    def interrupted(process):
        if moment == "before":
            os.kill(os.getpid(), signal.SIGINT)
        start(process)
        if moment == "after":
            signal.pthread_kill(other.ident, signal.SIGINT)
            time.sleep(0.1)  # it wakes up

    monkeypatch.setattr(BaseProcess, "start", interrupted)
    previous = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored, where tests are started in the background
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            small(tmp_path, vocab, b"one", b"two")
    finally:
        signal.signal(signal.SIGINT, previous)
        done.set()
    assert not multiprocessing.active_children()


def test_a_copy_of_a_file_is_warned_of(tmp_path, vocab, capsys):
    small(tmp_path, vocab, b"one\n\ntwo", b"three", b"one\n\ntwo", b"", b"", heldout=0)
    [line] = [line for line in capsys.readouterr().err.splitlines() if "warning" in line and "bytes" in line]
    assert line.endswith(f"{tmp_path}/files/2.x has the same bytes as {tmp_path}/files/0.x")
