"""The packed layout's index: what is in it, that it is made once and whole, and that what is wrong with it is named."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_prep import packing as packing_module
from data_prep import prepare
from data_prep.cli import UserError
from data_prep.files import file_sha256, sealed
from data_prep.packing import INDEX, index_folder, pack, packing_findings, packing_of
from data_prep.shards import ENDS_DTYPE, open_corpus, shard_folder, verify, write_manifest, write_shard
from tests.parts.corpora import ROOT, run_cli

SEP = 3


def write(folder, sources, heldout=None):
    """A whole corpus whose sources have shards of documents with these numbers of tokens."""
    tokenizer = {"backend": "tokenizers", "sha256": "0", "vocab_size": 30000}
    tokenizer |= {"special": {"cls": 2, "sep": SEP, "pad": 0, "unk": 1}, "probe": {"text": "x", "ids": [5]}}
    entries = {"train": {}, "heldout": {}}
    for side, named in (("train", sources), ("heldout", heldout or {})):
        for name, shards in named.items():
            rows = []
            for number, sizes in enumerate(shards):
                ends = np.cumsum(np.array(sizes, np.int64) + 1)
                tokens = np.arange(ends[-1] if len(ends) else 0) % 20000 + 5
                tokens[ends - 1] = SEP
                stem, receipt = f"00000-{number:05d}", {"unknown": 0}
                at = shard_folder(folder, name, side)
                rows.append(write_shard(at, stem, tokens.astype(np.uint16), ends.astype(ENDS_DTYPE), receipt))
            total = {key: sum(row[key] for row in rows) for key in ("tokens", "documents")}
            entries[side][name] = total | {"size": total["tokens"], "unknown": 0, "shards": rows, "dropped": {}}
    write_manifest(folder, {"tokenizer": tokenizer, "sources": entries["train"], "heldout": entries["heldout"]})
    return open_corpus(folder)


@pytest.fixture
def corpus(tmp_path):
    """Two sources with text and one without, 8 tokens a row: pieces of up to 6."""
    a = [[6, 7, 1, 0, 13, 2], [], [0, 0], [5, 1, 1, 12]]
    return write(tmp_path / "data", {"a": a, "none": [[]], "b": [[3, 3, 3]]}, {"a": [[2, 4]], "none": [[]], "b": [[]]})


def quiet(line):
    """Say nothing."""


def rows_of(packing):
    """The rows of each shard: lists of (start, size)."""
    stretches = list(zip(packing.start.tolist(), packing.size.tolist(), strict=True))
    rows = [stretches[a:b] for a, b in zip(packing.first[:-1].tolist(), packing.first[1:].tolist(), strict=True)]
    stops = np.cumsum(packing.rows).tolist()
    return [rows[stop - count : stop] for stop, count in zip(stops, packing.rows.tolist(), strict=True)]


def expected(sizes, inner):
    """The pieces of documents, by hand."""
    pieces, start = [], 0
    for size in sizes:
        pieces += [(start + begin, min(inner, size - begin)) for begin in range(0, size, inner)]
        start += size + 1
    return pieces


def check(corpus, side, length, frame):
    packing = packing_of(corpus, side, length, frame, quiet)
    sources = corpus.sources if side == "train" else corpus.heldout
    shards = [shard for source in sources.values() for shard in source.shards]
    assert len(packing.rows) == len(packing.pieces) == len(shards)
    assert packing.first[0] == 0 and packing.first[-1] == len(packing.start) == len(packing.size)
    for shard, rows, pieces in zip(shards, rows_of(packing), packing.pieces.tolist(), strict=True):
        sizes = np.diff(shard.ends().astype(np.int64), prepend=0) - 1
        found = [piece for row in rows for piece in row]
        assert sorted(found) == expected(sizes.tolist(), length - frame) and len(found) == pieces
        assert all(row == sorted(row) and sum(size + frame for _, size in row) <= length for row in rows)
        tokens = shard.open()
        assert not any((tokens[start : start + size] == SEP).any() for start, size in found)
    return packing


def naive(sizes, length):
    """The room left in each row after best-fit decreasing, piece by piece."""
    rooms = []
    for size in sorted(sizes, reverse=True):
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else length) - size)
    return sorted(rooms)


def test_packing_is_best_fit_decreasing():
    dice = np.random.default_rng(0)
    for trial in range(400):
        length, count = int(dice.integers(4, 40)), int(dice.integers(1, 60))
        among = 1 + dice.permutation(length)[: 4 if trial % 2 else length]  # few sizes: many rows with the same room
        sizes = dice.choice(among, count)
        row = pack(sizes, length)
        assert sorted((length - np.bincount(row, sizes)).tolist()) == naive(sizes.tolist(), length)
        assert np.array_equal(np.unique(row), np.arange(row.max() + 1))
        _, first = np.unique(row, return_index=True)
        assert (np.diff(first) > 0).all()  # rows are numbered by their first piece
        assert np.array_equal(row, pack(sizes.astype(np.uint16), length))


def test_nothing_packs_into_no_row_and_what_does_not_fit_is_refused():
    assert pack(np.zeros(0, np.int64), 8).tolist() == []
    for wrong in ([9], [0, 3]):
        with pytest.raises(ValueError, match="not all from 1 to 8"):
            pack(np.array(wrong), 8)


@pytest.mark.parametrize("frame", [2, 3])
@pytest.mark.parametrize("length", [512, 128])
@pytest.mark.parametrize(("median", "spread"), [(400, 0.7), (25, 0.6)])
def test_rows_of_texts_like_news_and_like_lines_are_full(tmp_path, median, spread, length, frame):
    sizes = np.random.default_rng(1).lognormal(np.log(median), spread, 4_000_000 // median // 3).astype(int)
    corpus = write(tmp_path, {"a": [sizes]})
    packing = check(corpus, "train", length, frame)
    assert (sizes.sum() + frame * len(packing.size)) / (packing.rows.sum() * length) >= 0.97


@pytest.mark.parametrize("side", ["train", "heldout"])
@pytest.mark.parametrize(("length", "frame"), [(8, 2), (9, 3), (4, 2), (512, 2)])
def test_each_piece_of_each_document_is_in_one_row(corpus, side, length, frame):
    packing = check(corpus, side, length, frame)
    assert packing.first.dtype == np.uint64 and packing.start.dtype == np.uint32
    assert packing.size.dtype == (np.uint8 if length < 256 else np.uint16)
    assert packing_findings(corpus, deep=True) == []


def test_pieces_are_where_a_reader_looks_for_them(corpus):
    packing = packing_of(corpus, "train", 8, 2, quiet)
    assert packing.pieces.tolist() == [8, 0, 5, 3]  # 6, 6 + 1, 1, 6 + 6 + 1, 2; no text; 5, 1, 1, 6 + 6; 3, 3, 3
    # The empty shard is left out. Of 3, 3 and 3 with two special tokens each no two fit into 8.
    assert rows_of(packing)[3] == [[(0, 3)], [(4, 3)], [(8, 3)]]
    assert rows_of(packing)[0][:2] == [[(0, 6)], [(7, 6)]]  # each as long as a row may be


@pytest.mark.parametrize("stretch", [1, 3, 7, 20, 1000])
def test_any_stretches_give_the_same_pieces(corpus, stretch, monkeypatch):
    monkeypatch.setattr(packing_module, "STRETCH", stretch)
    check(corpus, "train", 8, 2)
    check(corpus, "heldout", 8, 2)


def test_many_shards_and_long_documents_in_stretches(tmp_path, monkeypatch):
    monkeypatch.setattr(packing_module, "STRETCH", 500)
    dice = np.random.default_rng(2)
    shards = [[dice.geometric(1 / 40, 60) - 1, [], [3000], [0] * 2000, [1] * 700][kind] for kind in range(5)] * 4
    corpus = write(tmp_path, dict.fromkeys("abc", shards), {"a": shards[:1]})
    check(corpus, "train", 32, 2)
    assert packing_findings(corpus, deep=True) == []


def test_a_corpus_without_heldout_has_no_held_out_rows(tmp_path):
    corpus = write(tmp_path, {"a": [[4, 4]]})
    packing = packing_of(corpus, "heldout", 8, 2, quiet)
    assert packing.first.tolist() == [0] and len(packing.rows) == len(packing.start) == 0
    assert packing_findings(corpus, deep=True) == []


def test_the_same_corpus_gives_the_same_bytes(corpus):
    folder = index_folder(corpus, 8, 2)
    hashes = []
    for _ in range(2):
        packing_of(corpus, "train", 8, 2, quiet)
        hashes.append({path.name: file_sha256(path) for path in folder.iterdir()})
        shutil.rmtree(folder)
    assert hashes[0] == hashes[1] and len(hashes[0]) == 7


def test_an_index_that_is_there_is_only_opened(corpus):
    packing_of(corpus, "train", 8, 2, quiet)
    folder = index_folder(corpus, 8, 2)
    before = (folder / INDEX).stat()
    (corpus.path / ".packed" / ".lock").unlink()
    packing_of(corpus, "heldout", 8, 2, pytest.fail)
    assert (folder / INDEX).stat().st_ino == before.st_ino
    assert names(corpus.path / ".packed") == [folder.name]  # no lock was taken, nothing was written


@pytest.mark.parametrize(("length", "frame"), [(3, 2), (4, 3), (0, 2)])
def test_a_length_without_room_is_refused(corpus, length, frame):
    with pytest.raises(UserError, match=f"length {length}: .* use {frame + 2} or more"):
        packing_of(corpus, "train", length, frame, quiet)
    assert not index_folder(corpus, length, frame).exists()


def test_document_ends_that_are_damaged_are_named(tmp_path):
    corpus = write(tmp_path, {"a": [[4, 4, 4]]})
    [shard] = corpus.sources["a"].shards
    for ends in ([5, 4, 15], [5, 10, 14], [5, 10, 16], [5, 2**63, 15]):
        np.lib.format.write_array(shard.docs_path.open("wb"), np.array(ends, ENDS_DTYPE), version=(1, 0))
        with pytest.raises(UserError, match=r"00000-00000\.docs\.npy: document ends are not ascending up to 15"):
            packing_of(corpus, "train", 8, 2, quiet)
        assert names(tmp_path / ".packed") == [".lock"]


# ``pack`` as a verb, whose second stretch is packed once the file of this name is there.
HELD = """
import os, sys, time
from data_prep import packing
from data_prep.__main__ import main
from data_prep.cli import run_command

whole, calls = packing.pack, []
go = sys.argv.pop(1)

def pack(*arguments):
    calls.append(1)
    while len(calls) == 2 and not os.path.exists(go):
        time.sleep(0.01)
    return whole(*arguments)

packing.pack = pack
run_command(main)
"""


def start_held(corpus, go, output):
    """A process that makes the index of length 64 and stops half-way; what it says goes to the file ``output``."""
    command = [sys.executable, "-c", HELD, go, "pack", corpus.path, "--length", "64"]
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a background script's is ignored
    with output.open("w") as said:
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said, **heed)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_of_processes_at_once_one_makes_the_index_and_the_others_wait(tmp_path):
    corpus = write(tmp_path / "data", {"a": [[20] * 100, [30] * 100]}, {"a": [[3]]})
    outputs = [tmp_path / str(number) for number in range(3)]
    processes = [start_held(corpus, tmp_path / "go", output) for output in outputs]
    wait_for(lambda: all(output.read_text() for output in outputs))  # one packs, and the others have met it
    assert not index_folder(corpus, 64, 2).exists()
    (tmp_path / "go").touch()
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    said = [output.read_text() for output in outputs]
    assert sum("packing the documents" in each for each in said) == 1
    assert sum("is at work here; waiting up to" in each for each in said) == 2
    assert names(corpus.path / ".packed") == [".lock", f"{corpus.id[:12]}-64-2"]
    check(corpus, "train", 64, 2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_build_leaves_nothing_that_counts(tmp_path, number):
    corpus = write(tmp_path / "data", {"a": [[20] * 100, [30] * 100]})
    place, folder = corpus.path / ".packed", index_folder(corpus, 64, 2)
    writing = place / f".{folder.name}.writing"
    process = start_held(corpus, tmp_path / "go", tmp_path / "said")
    wait_for(lambda: len(list(writing.glob(".*.tmp"))) == 3)
    process.send_signal(number)
    assert process.wait(60) == (-number if number == signal.SIGKILL else 130)
    assert writing.exists() == (number == signal.SIGKILL) and not folder.exists()
    assert packing_findings(corpus, deep=True) == []
    packing_of(corpus, "train", 128, 2, quiet)  # another index removes the leftovers
    assert names(place) == [".lock", f"{corpus.id[:12]}-128-2"]
    check(corpus, "train", 64, 2)


def test_a_prepare_in_the_meantime_leaves_a_build_alone(tmp_path):
    growing = tmp_path / ".packed" / ".0-64-2.writing" / ".train.first.npy.host.1.tmp"
    left = tmp_path / "a" / ".00000-00000.tokens.npy.host.1.tmp"
    for path in (growing, left):
        path.parent.mkdir(parents=True)
        path.touch()
    prepare._remove_leftovers(tmp_path)
    assert growing.exists() and not left.exists()


def test_where_it_cannot_be_written_the_way_out_is_named(corpus, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        for frame, more in ((2, ""), (3, " --pairs")):
            with pytest.raises(UserError) as error:
                packing_of(corpus, "train", 8, frame, quiet)
            assert "cannot be written (Permission denied)" in str(error.value)
            assert str(error.value).endswith(f"`python -m data_prep pack {corpus.path} --length 8{more}`")
    (corpus.path / ".packed").write_text("")
    done = run_cli("pack", corpus.path, "--length", 8)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"{corpus.path / '.packed'}: not a folder" in done.stderr and "remove it" in done.stderr
    assert packing_findings(corpus, deep=True) == verify(corpus.path, deep=True) == []


def rewrite_index(folder, seal=True, **changes):
    index = json.loads((folder / INDEX).read_text()) | changes
    (folder / INDEX).write_text(json.dumps(sealed(index) if seal else index))


def cut(name):
    def damage(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:-1])

    return damage


def flip(name):
    def damage(folder):
        content = bytearray((folder / name).read_bytes())
        content[-16] ^= 1
        (folder / name).write_bytes(content)

    return damage


def counted_otherwise(folder):
    """A row that moves from a shard to the next, in an index.json that is in order by itself."""
    index = json.loads((folder / INDEX).read_text())
    index["train"]["shards"][0]["rows"] -= 1
    index["train"]["shards"][2]["rows"] += 1
    rewrite_index(folder, **index)


DAMAGES = {
    "no index": (lambda folder: (folder / INDEX).unlink(), r"index\.json: is missing"),
    "torn index": (lambda folder: cut(INDEX)(folder) or cut(INDEX)(folder), r"index\.json: not valid JSON"),
    "a list": (lambda folder: (folder / INDEX).write_text("[]"), r"index\.json: not a JSON object"),
    "edited": (lambda folder: rewrite_index(folder, seal=False, frame=3), r"index\.json: its id .* altered"),
    "version": (lambda folder: rewrite_index(folder, version=0), r"index\.json: format version 0, .* reads 1"),
    "corpus": (lambda folder: rewrite_index(folder, corpus="0" * 64), r"index\.json: made for corpus 0{64}, not "),
    "length": (lambda folder: rewrite_index(folder, length=16), r"index\.json: made for length 16, not 8"),
    "frame": (lambda folder: rewrite_index(folder, frame=3), r"index\.json: made for frame 3, not 2"),
    "shards": (lambda folder: rewrite_index(folder, train={"shards": []}), r"index\.json: lists other train shards"),
    "missing": (lambda folder: (folder / "train.start.npy").unlink(), r"train\.start\.npy: is missing"),
    "torn": (cut("train.size.npy"), r"train\.size\.npy: has 143 bytes instead of 144"),
    "dtype": (
        lambda folder: np.save(folder / "train.size.npy", np.load(folder / "train.size.npy").view("i1")),
        r"train\.size\.npy: has another \.npy header",
    ),
    "counted": (counted_otherwise, r"train\.first\.npy: does not give each shard the pieces that index\.json says"),
}
ALTERED = {
    name: (flip(f"train.{name}.npy"), rf"train\.{name}\.npy: sha256 is not that of index\.json")
    for name in ("first", "start", "size")
}


@pytest.mark.parametrize(("damage", "problem"), [*DAMAGES.values(), *ALTERED.values()], ids=[*DAMAGES, *ALTERED])
def test_an_index_that_is_not_whole_is_refused(corpus, damage, problem):
    folder = index_folder(corpus, 8, 2)
    packing_of(corpus, "train", 8, 2, quiet)
    damage(folder)
    remedy = f"; delete the folder {folder}: the index is made again at the next run"
    with pytest.raises(UserError, match=problem) as raised:
        packing_of(corpus, "train", 8, 2, quiet)
    assert str(raised.value).endswith(remedy) and str(raised.value).startswith(str(folder))
    [finding] = packing_findings(corpus, deep=True)
    assert finding == str(raised.value)
    assert packing_findings(corpus, deep=False) == ([] if (damage, problem) in ALTERED.values() else [finding])
    shutil.rmtree(folder)
    check(corpus, "train", 8, 2)


def test_a_large_index_is_not_read_whole_when_it_is_opened(corpus, monkeypatch):
    packing_of(corpus, "train", 8, 2, quiet)
    flip("train.start.npy")(index_folder(corpus, 8, 2))
    monkeypatch.setattr(packing_module, "_REHASHED", 100)
    packing_of(corpus, "train", 8, 2, quiet)
    assert len(packing_findings(corpus, deep=True)) == 1


def test_the_index_of_a_corpus_that_was_extended_is_not_its_index(corpus, tmp_path):
    packing_of(corpus, "train", 8, 2, quiet)
    flip("train.start.npy")(index_folder(corpus, 8, 2))
    larger = write(corpus.path, {"a": [[6, 7, 1, 0, 13, 2], [9]]})
    assert packing_findings(larger, deep=True) == []
    check(larger, "train", 8, 2)
    shutil.move(index_folder(corpus, 8, 2), index_folder(larger, 9, 2))
    with pytest.raises(UserError, match="made for corpus"):
        packing_of(larger, "train", 9, 2, quiet)


def replaced(folder, **arrays):
    """Arrays with other content, and an index.json that has their hashes."""
    index = json.loads((folder / INDEX).read_text())
    for name, array in arrays.items():
        path = folder / f"train.{name}.npy"
        array = array.astype(np.load(path).dtype)
        np.lib.format.write_array(path.open("wb"), array, version=(1, 0))
        index["train"]["sha256"][name] = file_sha256(path)
    rewrite_index(folder, **index)


def test_deep_verify_finds_content_that_is_wrong(tmp_path):
    corpus = write(tmp_path, {"a": [[1, 2, 3, 6, 1], [2, 2]]})
    folder = index_folder(corpus, 8, 2)
    whole = packing_of(corpus, "train", 8, 2, quiet)
    first, start, size = (np.array(each, np.int64) for each in (whole.first, whole.start, whole.size))
    assert first.tolist() == [0, 2, 4, 5, 7] and start.tolist() == [0, 5, 2, 16, 9, 0, 3]

    def finding(**arrays):
        replaced(folder, first=first, start=start, size=size)
        assert packing_findings(corpus, deep=True) == []
        replaced(folder, **arrays)
        assert packing_findings(corpus, deep=False) == []
        [found] = packing_findings(corpus, deep=True)
        return found.split(";")[0]

    once = f"{folder}/train.start.npy: does not hold each piece of a/00000-00000.tokens.npy once"
    assert finding(start=start[[0, 1, 1, 3, 4, 5, 6]]) == once
    assert finding(start=start + (start == 9)) == once
    assert finding(size=size - (size == 6)) == once
    rows = f"{folder}/train.first.npy: the rows from 0 on are not ascending"
    assert finding(first=np.array([0, 2, 2, 5, 7])) == rows
    assert finding(first=np.array([0, 6, 4, 5, 7])) == rows
    assert finding(first=np.array([0, 1, 4, 5, 7])) == f"{folder}/train.size.npy: row 1 takes 12 positions of 8"


def test_deep_verify_finds_a_piece_too_many(tmp_path):
    corpus = write(tmp_path, {"a": [[6, 6], [6, 6]]})
    folder = index_folder(corpus, 8, 2)
    packing_of(corpus, "train", 8, 2, quiet)
    index = json.loads((folder / INDEX).read_text())
    for shard, count in zip(index["train"]["shards"], (3, 1), strict=True):
        shard |= {"rows": count, "pieces": count}
    rewrite_index(folder, **index)
    [found] = packing_findings(corpus, deep=True)
    assert "train.start.npy: has 1 pieces more than a/00000-00000.tokens.npy" in found


@pytest.mark.slow
def test_the_verbs(corpus):
    made = run_cli("pack", corpus.path, "--length", 8, "--pairs")
    assert made.returncode == 0, made.stderr
    folder = index_folder(corpus, 8, 3)
    table = [line.split() for line in made.stdout.splitlines()]
    packing = packing_of(corpus, "train", 8, 3, pytest.fail)
    rows, pieces = len(packing.first) - 1, len(packing.size)
    filled = (int(packing.size.sum()) + 3 * pieces) / (8 * rows)
    assert table[1] == ["train", f"{rows}", f"{pieces}", f"{pieces / rows:.2f}", f"{filled:.2%}"]
    assert table[2][0] == "heldout" and made.stdout.splitlines()[-1].startswith(f"{folder}: made, ")
    again = run_cli("pack", corpus.path, "--length", 8, "--pairs")
    assert again.stderr == "" and again.stdout.splitlines()[-1].startswith(f"{folder}: was there, ")
    assert again.stdout.splitlines()[:-1] == made.stdout.splitlines()[:-1]
    for deep in ([], ["--deep"]):
        assert run_cli("verify", corpus.path, *deep).returncode == 0

    flip("heldout.first.npy")(folder)
    packed = run_cli("pack", corpus.path, "--length", 8, "--pairs")
    assert packed.returncode == 2 and packed.stderr.count("\n") == 1
    assert "heldout.first.npy: sha256" in packed.stderr and f"delete the folder {folder}" in packed.stderr
    assert run_cli("verify", corpus.path).returncode == 0
    found = run_cli("verify", corpus.path, "--deep")
    assert found.returncode == 1 and found.stdout.count("\n") == 1 and "heldout.first.npy: sha256" in found.stdout
    short = run_cli("pack", corpus.path, "--length", 3)
    assert short.returncode == 2 and "length 3: a row needs room" in short.stderr
    long = run_cli("pack", corpus.path, "--length", 65537)
    assert long.returncode == 2 and long.stderr == "error: length 65537: rows have at most 65536 positions\n"
