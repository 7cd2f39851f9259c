"""data.packed: rows of whole pieces, each piece once in an epoch, the same rows whoever reads them."""

import os

import numpy as np
import pytest
import torch

from data_prep.cli import UserError
from data_prep.packing import packing_of
from data_prep.shards import open_corpus, write_manifest
from pipeline.data import fits
from pipeline.data.packed import PackedWindows
from pipeline.data.reading import filled, heldout_of, order_of, read, read_of, steps, training_windows
from pipeline.data.segments import cut
from tests.data.conftest import LENGTHS, write_documents
from tests.parts.tiny import SPECIAL, fingerprint, make_corpus

INNER = 14


def pieces_in(inputs):
    """Of each row its pieces: tuples of ids, the frame included; what the rest of the row is."""
    for ids, first, stop in zip(inputs.ids, inputs.pieces.first, inputs.pieces.stop, strict=True):
        found, place = [], 0
        while place < len(ids) and stop[place]:
            assert first[place] == place
            end = int(stop[place])
            assert (first[place:end] == place).all() and (stop[place:end] == end).all()
            found.append(tuple(ids[place:end].tolist()))
            place = end
        yield found, ids[place:].tolist()


@pytest.mark.parametrize("length", [16, 64])
def test_an_epoch_reads_every_piece_of_every_document_once(documents, length):
    corpus, texts = documents
    windows = training_windows(corpus, length, "packed")
    for source, name in enumerate(windows.names):
        rows = windows.counts[source]
        order = order_of(windows, 1.0, 3)
        order.quotas[:] = 0  # not asked again
        inner = length - 2
        wanted = sorted(text[i : i + inner] for text in texts[name] for i in range(0, len(text), inner))
        found, taken = [], 0
        inputs = windows.rows(_All(source, rows), 0, rows, (0, rows))
        for own, rest in pieces_in(inputs):
            assert own and set(rest) <= {SPECIAL["pad"]}
            assert all(piece[0] == SPECIAL["cls"] and piece[-1] == SPECIAL["sep"] for piece in own)
            found += [piece[1:-1] for piece in own]
            taken += sum(map(len, own))
        assert sorted(found) == wanted
        assert windows.filled[source] == pytest.approx(taken / (rows * length))
        assert windows.a_row[source] == pytest.approx(len(found) / rows)
        assert inputs.pieces.a_row == pytest.approx(len(found) / rows)


class _All:
    """An order that gives the windows of one source from first to last."""

    def __init__(self, source, count):
        self._source, self._count = source, count

    def __call__(self, start, stop):
        return np.full(stop - start, self._source), np.zeros(stop - start, int), np.arange(start, stop)


def test_rows_are_nearly_full(tmp_path):
    corpus = open_corpus(make_corpus(tmp_path / "data", {"a": 60_000}))
    windows = training_windows(corpus, 64, "packed")
    assert filled(windows, order_of(windows, 1.0, 3)) > 0.97


@pytest.mark.parametrize("paired", [False, True])
def test_the_loss_of_a_step_counts_its_pieces_whoever_reads_them(documents, paired):
    corpus, _ = documents
    windows = training_windows(corpus, 64, "packed", paired)
    order = order_of(windows, 0.5, 3)
    alone = next(steps(windows, order, 3, 4, 24, 0, 1))
    shares = [next(steps(windows, order, 3, 4, 24, rank, 4)) for rank in range(4)]
    assert torch.equal(torch.cat([part.ids for part in shares]), alone.ids)
    assert {part.pieces.a_row for part in shares} == {alone.pieces.a_row}
    count = sum(len(own) for own, _ in pieces_in(alone))
    assert alone.pieces.a_row == count / 24 and sum(alone.shares()) == pytest.approx(24)
    whole = alone.bounds().weight(torch.float64)
    assert whole.sum() == pytest.approx(1)
    parts = torch.cat([part.bounds().weight(torch.float64) for rank in shares for part in rank.split(2)])
    torch.testing.assert_close(parts / 12, whole)  # of 12 micro-batches, whose mean is taken


def test_pairs_are_of_the_piece_itself_or_of_another_of_its_source(documents):
    corpus, texts = documents
    windows = training_windows(corpus, 32, "packed", paired=True)
    order, inner = order_of(windows, 0.5, 3), 29
    inputs = read(windows, order, 0, 300)
    source = order(0, 300).source
    continued, others = 0, 0
    known = {name: {t[i : i + inner] for t in texts[name] for i in range(0, len(t), inner)} for name in LENGTHS}
    for row, (own, _) in enumerate(pieces_in(inputs)):
        place = 0
        for piece in own:
            second = inputs.second[row, place : place + len(piece)].tolist()
            first_end = second.index(True)
            a, b = piece[1 : first_end - 1], piece[first_end:-1]
            assert (
                piece[0] == SPECIAL["cls"]
                and piece[first_end - 1] == piece[-1] == SPECIAL["sep"]
                and all(second[first_end:])
            )
            name = windows.names[source[row]]
            if a + b in known[name]:
                continued += 1
            else:
                others += 1
                assert any(text[: len(a)] == a for text in known[name])
                assert any(_holds(text, b) for text in known[name])
            assert 1 <= len(a) <= inner
            place += len(piece)
        assert not inputs.second[row, place:].any()
    assert 0.3 < continued / (continued + others) < 0.9  # of pieces of one token every pair is its own continuation
    assert cut(np.array([1]), np.array([5], np.uint64)).tolist() == [1]


def _holds(text, part):
    return any(text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1))


@pytest.mark.parametrize("paired", [False, True])
def test_the_fill_that_is_told_is_that_of_what_is_read(tmp_path, paired):
    sizes = np.random.default_rng(0).lognormal(3, 0.8, 400).astype(int).clip(1, 300)
    content = {"tokenizer": fingerprint(), "sources": {}, "heldout": {}}
    texts = [tuple(np.random.default_rng(i).integers(5, 50, n).tolist()) for i, n in enumerate(sizes)]
    row = write_documents(tmp_path / "a", 0, texts)
    tokens = row["tokens"]
    content["sources"]["a"] = {"documents": len(texts), "tokens": tokens, "size": tokens, "shards": [row]}
    write_manifest(tmp_path, content)
    windows = training_windows(open_corpus(tmp_path), 64, "packed", paired)
    inputs = read(windows, order_of(windows, 1.0, 3), 0, windows.counts[0])
    assert windows.filled == pytest.approx([float((inputs.pieces.stop > 0).double().mean())])
    assert windows.filled[0] > 0.97


@pytest.mark.parametrize("name", ["first", "start", "size"])
def test_an_index_that_is_rewritten_while_it_is_read_is_noticed(tmp_path, name):
    corpus = open_corpus(make_corpus(tmp_path / "data"))
    windows = training_windows(corpus, 64, "packed")
    assert windows.changed() is None
    (path,) = (corpus.path / ".packed").glob(f"*/train.{name}.npy")
    path.write_bytes(path.read_bytes())
    os.utime(path, (1, 1))
    assert windows.changed() == path


def test_a_corpus_of_empty_documents_has_nothing_to_pack(tmp_path):
    content = {"tokenizer": fingerprint(), "sources": {}, "heldout": {}}
    row = write_documents(tmp_path / "a", 0, [(), ()])
    content["sources"]["a"] = {"documents": 2, "tokens": 2, "size": 2, "shards": [row]}
    write_manifest(tmp_path, content)
    with pytest.raises(UserError, match="no document to train on holds a token; prepare it from other text"):
        training_windows(open_corpus(tmp_path), 64, "packed")


def test_what_is_read_has_the_fill_and_the_pieces_of_its_rows(documents):
    corpus, _ = documents
    windows = training_windows(corpus, 64, "packed")
    order = order_of(windows, 0.5, 3)
    for number, reading in enumerate(read_of(windows, order, 100).values()):
        assert reading.a_row == windows.a_row[number] and reading.filled == windows.filled[number]
    mean = np.average(windows.a_row, weights=order.quotas)
    padding = 1 - filled(windows, order)
    wanted = f"a row has {mean:.1f} pieces in the mean; {padding:.1%} of the positions that are read are padding"
    assert wanted in list(fits.notes(corpus, windows, order, 8, 1))


def test_heldout_rows_are_packed_as_well(tmp_path):
    corpus = open_corpus(make_corpus(tmp_path / "data", {"a": 6000, "b": 3000}))
    heldout = heldout_of(corpus, 64, 20, 1.0, 3, "packed")
    assert len(heldout.inputs) == len(heldout.sources) == 20
    assert heldout.inputs.pieces.a_row == sum(len(own) for own, _ in pieces_in(heldout.inputs)) / 20


def test_a_tokenizer_that_pads_with_its_separator_has_no_packed_layout(documents):
    corpus, _ = documents
    tokenizer = corpus.tokenizer | {"special": SPECIAL | {"pad": SPECIAL["sep"]}}

    def packing(frame):
        return packing_of(corpus, "train", 16, frame)

    with pytest.raises(UserError, match=r"layout = 'packed': the tokenizer pads with its separator \(id 3\)"):
        PackedWindows(corpus.sources, tokenizer, 16, False, packing)


def test_an_id_outside_the_vocabulary_names_its_shard_and_offset(tmp_path):
    data = make_corpus(tmp_path / "data", {"a": 600, "b": 600})
    damaged = data / "b" / "00000-00001.tokens.npy"
    tokens = np.lib.format.open_memmap(damaged, mode="r+")
    tokens[285] = 60_000
    tokens.flush()
    windows = training_windows(open_corpus(data), 16, "packed")
    rows = windows.counts[1]
    with pytest.raises(UserError, match=r"token id 60000 near offset 280 is outside the vocabulary of 50") as error:
        windows.rows(_All(1, rows), 0, rows, (0, rows))
    assert str(error.value).startswith(f"{damaged}: ")
