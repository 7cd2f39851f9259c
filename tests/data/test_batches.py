"""data.windows, documents and reading: windows of real shards, ranks, and reading ahead."""

import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.cli import UserError
from data_prep.shards import open_corpus
from pipeline.data import fits
from pipeline.data import reading as reading_module
from pipeline.data.documents import DocWindows
from pipeline.data.inputs import Inputs
from pipeline.data.order import Order
from pipeline.data.reading import (
    LAYOUTS,
    ReadAhead,
    filled,
    heldout_of,
    order_of,
    read_of,
    training_windows,
)
from pipeline.data.windows import Windows
from tests.parts.tiny import SPECIAL, make_corpus

CPU = torch.device("cpu")
INNER = 14  # tokens of a window of 16


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return open_corpus(make_corpus(tmp_path_factory.mktemp("data"), {"a": 6000, "b": 3001, "tiny": 10}))


def test_a_window_is_the_shards_own_tokens_between_cls_and_sep(corpus):
    windows = training_windows(corpus, 16)
    ids = windows.read(np.array([0, 0, 1]), np.array([0, 215, 3]))
    assert ids.shape == (3, 16) and ids.dtype == torch.int64
    assert ids[:, 0].tolist() == [SPECIAL["cls"]] * 3 and ids[:, -1].tolist() == [SPECIAL["sep"]] * 3
    first, second = (shard.open() for shard in corpus.sources["a"].shards)
    assert ids[0, 1:-1].tolist() == first[:14].tolist()
    assert ids[1, 1:-1].tolist() == second[14:28].tolist()  # 3000 // 14 = 214 windows lie in the first shard
    assert ids[2, 1:-1].tolist() == corpus.sources["b"].shards[0].open()[42:56].tolist()


def test_windows_never_span_shards_and_short_sources_are_left_out(corpus):
    windows = training_windows(corpus, 16)
    assert windows.names == ["a", "b"]
    assert windows.counts == [2 * (3000 // 14), 1500 // 14 + 1501 // 14]


def read_steps(windows: Windows, order: Order, start: int, stop: int, batch: int, rank: int = 0, ranks: int = 1):
    """Ids of steps, and the tokens of second segments if there are any, [steps, share, 1 or 2, length]."""
    read = reading_module.steps(windows, order, start, stop, batch, rank, ranks)
    return torch.stack([torch.stack([x for x in (part.ids, part.second) if x is not None], 1) for part in read])


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ranks, micro", [(1, 24), (2, 4), (3, 2), (8, 1)])
def test_any_number_of_ranks_reads_the_same_global_sequence(corpus, layout, paired, ranks, micro):
    windows = training_windows(corpus, 16, layout, paired)
    order = order_of(windows, alpha=0.5, seed=3)
    alone = read_steps(windows, order, 5, 9, 24)
    shares = [read_steps(windows, order, 5, 9, 24, rank, ranks) for rank in range(ranks)]
    assert torch.equal(torch.cat(shares, dim=1), alone)
    assert all(len(part) == micro for part in shares[0][0].split(micro))


@pytest.mark.parametrize("paired", [False, True])
def test_a_run_can_begin_at_any_step(corpus, paired):
    windows = training_windows(corpus, 16, paired=paired)
    order = order_of(windows, 1.0, 3)
    assert torch.equal(read_steps(windows, order, 0, 10, 8)[6:], read_steps(windows, order, 6, 10, 8))


@pytest.mark.parametrize("change", ["written to", "replaced", "gone"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shard_that_is_changed_under_a_run_is_told(tmp_path, layout, change):
    corpus = open_corpus(make_corpus(tmp_path / "data"))
    windows = training_windows(corpus, 16, layout)
    windows.read(np.array([0]), np.array([0]))
    assert windows.changed() is None
    path = corpus.sources["a"].shards[1].path
    content = np.load(path)
    if change == "written to":
        np.load(path, mmap_mode="r+")[:] = content[::-1]
    elif change == "replaced":
        np.save(tmp_path / "other.npy", content[::-1])
        (tmp_path / "other.npy").replace(path)
    else:
        path.unlink()
    assert windows.changed() == path


def test_what_will_not_be_read_is_said(corpus, tmp_path):
    windows = training_windows(corpus, 16)
    notes = list(fits.notes(corpus, windows, order_of(windows, 30.0, 3), batch=10_000, steps=1))
    assert any("642 windows of 16 tokens, less than a batch" in note for note in notes)
    assert any(note.startswith("source tiny is left out") for note in notes)
    assert any(note.startswith("source b is never read: its share of 8192 samples rounds to none") for note in notes)
    assert any(note == "23 of 9,011 tokens lie in shard tails that fill no window" for note in notes)


@pytest.mark.parametrize("samples", [0, 5, 8192, 3 * 8192 + 4000])
def test_what_is_read_of_a_source_is_counted_without_reading(corpus, samples):
    windows = training_windows(corpus, 16)
    order = order_of(windows, 0.5, 3)
    found = Counter(windows.names[number] for number in (order(0, samples).source if samples else ()))
    for name, reading in read_of(windows, order, samples).items():
        assert reading.tokens == 16 * found[name]
        assert reading.planned == pytest.approx(order.quotas[windows.names.index(name)] / 8192)
        assert reading.share == pytest.approx(found[name] / max(samples, 1))
        assert reading.epochs == pytest.approx(found[name] / windows.counts[windows.names.index(name)])


def test_a_source_that_is_read_too_often_is_told(corpus):
    windows = training_windows(corpus, 16)
    order = order_of(windows, 0.0, 3)  # as often from b, which has half as many windows
    told = [note for steps in (1000, 1300, 2200) for note in fits.notes(corpus, windows, order, 8, steps)]
    told = [note for note in told if "times" in note]
    assert [note.split(" are read")[0] for note in told] == ["1 of 2 sources", "2 of 2 sources"]
    assert "the most: b 24)" in told[0] and "the most: b 41, a 21)" in told[1]


def test_sources_are_drawn_by_the_size_of_the_whole_not_of_the_part_that_was_prepared(corpus):
    windows = training_windows(corpus, 16)
    assert windows.sizes == [6000, 3001]
    whole = corpus.sources["b"].__class__(**(vars(corpus.sources["b"]) | {"size": 54_000}))
    windows = Windows({"a": corpus.sources["a"], "b": whole}, corpus.tokenizer, 16)
    assert order_of(windows, 1.0, 3).quotas.tolist() == [819, 7373]
    assert order_of(windows, 0.5, 3).quotas.tolist() == [2048, 6144]  # 9 times the size, 3 times as often


@pytest.mark.parametrize("layout", ["full", "doc"])
def test_reading_holds_no_file_open(corpus, layout):
    """A process may have about a thousand open files; a corpus has as many shards as it likes."""
    windows = training_windows(corpus, 16, layout)
    before = open_files()
    windows.read(np.array([0, 0, 1, 1]), np.array([0, 215, 3, 190]))  # of four shards
    assert open_files() == before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("layout", ["full", "doc"])
def test_an_id_outside_the_vocabulary_names_its_shard_and_offset(tmp_path, layout):
    data = make_corpus(tmp_path, {"a": 600, "b": 600})
    damaged = data / "b" / "00000-00001.tokens.npy"
    tokens = np.lib.format.open_memmap(damaged, mode="r+")
    tokens[285] = 60_000
    tokens.flush()
    windows = training_windows(open_corpus(data), 16, layout)
    source = np.repeat([0, 1], windows.counts)
    window = np.concatenate([np.arange(count) for count in windows.counts])
    with pytest.raises(UserError, match=r"token id 60000 near offset 280 is outside the vocabulary of 50") as error:
        windows.read(source, window)
    assert str(error.value).startswith(f"{damaged}: ")


# --- the doc layout ---------------------------------------------------------------------------------------------------


def test_doc_windows_hold_every_token_of_every_document_once_and_never_cross(documents):
    corpus, texts = documents
    windows = training_windows(corpus, 16, "doc")
    for source, name in enumerate(windows.names):
        pieces = [text[i : i + INNER] for text in texts[name] for i in range(0, len(text), INNER)]
        assert windows.counts[source] == len(pieces)
        ids = windows.read(np.full(len(pieces), source), np.arange(len(pieces)))
        expected = [
            (SPECIAL["cls"], *piece, SPECIAL["sep"], *[SPECIAL["pad"]] * (INNER - len(piece))) for piece in pieces
        ]
        assert ids.dtype == torch.int64 and ids.tolist() == [list(row) for row in expected]


def test_doc_windows_come_in_the_order_that_was_asked_for(documents):
    windows = training_windows(documents[0], 16, "doc")
    source, window = np.array([1, 0, 0, 1, 0]), np.array([500, 3, 600, 0, 3])
    together = windows.read(source, window)
    alone = [windows.read(source[i : i + 1], window[i : i + 1])[0] for i in range(5)]
    assert torch.equal(together, torch.stack(alone))


def test_the_share_of_padding_is_that_of_what_is_read(documents):
    corpus, _ = documents
    windows = training_windows(corpus, 16, "doc")
    shares = []
    for source, count in enumerate(windows.counts):
        ids = windows.read(np.full(count, source), np.arange(count))
        shares.append(float((ids != SPECIAL["pad"]).double().mean()))
    assert windows.filled == pytest.approx(shares)
    order = order_of(windows, 0.5, 3)
    share = float(np.average(shares, weights=order.quotas))
    assert filled(windows, order) == pytest.approx(share)
    assert f"{1 - share:.1%} of the positions that are read are padding" in list(
        fits.notes(corpus, windows, order, 8, 1)
    )


def test_a_tokenizer_that_pads_with_its_separator_has_no_doc_layout(documents):
    corpus, _ = documents
    tokenizer = corpus.tokenizer | {"special": SPECIAL | {"pad": SPECIAL["sep"]}}
    assert Windows(corpus.sources, tokenizer, 16).padding is None
    with pytest.raises(UserError, match=r"pads with its separator \(id 3\).*use layout = 'full'"):
        DocWindows(corpus.sources, tokenizer, 16)
    for role, name in (("unk", "unknown piece"), ("cls", r"\[CLS\]")):
        tokenizer = corpus.tokenizer | {"special": SPECIAL | {"pad": SPECIAL[role]}}
        with pytest.raises(UserError, match=rf"pads with its {name} \(id {SPECIAL[role]}\), so .*use layout = 'full'"):
            DocWindows(corpus.sources, tokenizer, 16)


def test_the_full_layout_of_the_same_shards_has_no_padding(documents):
    corpus, texts = documents
    windows = training_windows(corpus, 16)
    first = corpus.sources["a"].shards[0].tokens // INNER  # windows of the first shard
    ids = windows.read(np.zeros(3, int), first + np.arange(3))
    second = [token for text in texts["a"][8:] for token in (*text, SPECIAL["sep"])]
    assert ids[:, 1:-1].flatten().tolist() == second[: 3 * INNER]
    assert windows.padding is None and filled(windows, order_of(windows, 1.0, 3)) == 1.0


def test_padding_columns_are_cut_off_and_lengths_counted():
    ids, second = torch.tensor([[2, 7, 3, 0, 0], [2, 7, 8, 3, 0]]), torch.zeros(2, 5, dtype=torch.bool)
    (shorter,) = Inputs(ids, second, torch.tensor([3, 4])).split(2)
    assert shorter.ids.tolist() == [[2, 7, 3, 0], [2, 7, 8, 3]] and shorter.lengths.tolist() == [3, 4]
    assert shorter.second.shape == shorter.ids.shape
    assert [part.ids.shape[1] for part in Inputs(ids, None, torch.tensor([3, 4])).split(1)] == [3, 4]
    (same,) = Inputs(ids).split(2)
    assert torch.equal(same.ids, ids) and same.lengths is None and same.second is None


def test_one_epoch_reads_every_window_once(corpus):
    windows = Windows({"b": corpus.sources["b"]}, corpus.tokenizer, 16)
    order = order_of(windows, 1.0, 3)
    _, epoch, window = order(0, len(windows))
    assert sorted(window.tolist()) == list(range(len(windows))) and not epoch.any()


def test_held_out_samples_are_the_same_each_time_and_capped(corpus):
    first = heldout_of(corpus, 16, 20, 1.0, 3)
    assert first.inputs.ids.shape == (20, 16) and len(first.sources) == 20
    again = heldout_of(corpus, 16, 20, 1.0, 3)
    assert torch.equal(first.inputs.ids, again.inputs.ids) and first.sources == again.sources
    whole = heldout_of(corpus, 16, 10**9, 1.0, 3)
    assert len(whole.inputs) == 3 * (700 // 14) and set(whole.sources) == {"a", "b", "tiny"}
    for name in set(whole.sources):  # each sequence is of the source that it is said to be of
        kept = corpus.heldout[name].shards[0].open()[: 700 // 14 * 14].reshape(-1, 14)
        own = whole.inputs.ids[[source == name for source in whole.sources], 1:-1].numpy()
        assert {row.tobytes() for row in own} <= {row.tobytes() for row in kept.astype(own.dtype)}
    assert heldout_of(corpus, 16, 0, 1.0, 3) is None


def test_reading_ahead_gives_the_same_batches_in_order():
    source = [Inputs(torch.full((2, 3), i)) for i in range(50)]
    assert [int(batch.ids[0, 0]) for batch in ReadAhead(iter(source), CPU)] == list(range(50))


def test_an_error_while_reading_ahead_is_raised_in_the_loop():
    def broken():
        yield Inputs(torch.zeros(1, 3))
        raise OSError("disk gone")

    reading = ReadAhead(broken(), CPU)
    next(reading)
    with pytest.raises(OSError, match="disk gone"):
        next(reading)


def test_the_next_batch_is_given_before_its_turn_if_it_has_been_read():
    allowed = threading.Semaphore(0)

    def slow():
        for number in range(3):
            allowed.acquire()
            yield Inputs(torch.full((1, 3), number))
        raise OSError("disk gone")

    def waited_for():
        deadline = time.monotonic() + 5
        while (batch := reading.coming()) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return batch

    reading = ReadAhead(slow(), CPU)
    assert reading.coming() is None
    allowed.release()
    first = next(reading)
    assert reading.coming() is None  # nothing waits for it
    allowed.release(2)
    second = waited_for()
    assert reading.coming() is second is next(reading)
    third = waited_for()
    assert [int(batch.ids[0, 0]) for batch in (first, second, third)] == [0, 1, 2]
    assert next(reading) is third
    assert reading.coming() is None
    with pytest.raises(OSError, match="disk gone"):
        next(reading)
    assert reading.coming() is None


def test_reading_ends_once_and_for_all():
    reading = ReadAhead(iter([Inputs(torch.zeros(1, 3))]), CPU)
    assert [len(list(reading)) for _ in range(2)] == [1, 0]


def test_lengths_stay_known_where_they_are_sent_and_tell_padding():
    lengths = torch.tensor([4, 2])
    inputs = Inputs(torch.zeros(2, 4), None, lengths).to(torch.device("meta"))
    assert inputs.lengths.is_meta and inputs.known_lengths is lengths and inputs.padded
    whole, cut = inputs.split(1)
    assert not whole.padded and not cut.padded and cut.ids.shape == (1, 2)
    assert not Inputs(torch.zeros(2, 4)).padded and not Inputs(torch.zeros(2, 4), None, torch.tensor([4, 4])).padded


def test_leaving_the_loop_ends_the_reading_thread():
    def endless():
        while True:
            yield Inputs(torch.zeros(1, 3))

    reading = ReadAhead(endless(), CPU)
    next(reading)
    reading.close()
    deadline = time.monotonic() + 5
    while any(thread.name == "read-ahead" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(thread.name == "read-ahead" for thread in threading.enumerate())
