"""pipeline.batches: windows of real shards, ranks, and reading ahead."""

import threading
import time

import numpy as np
import pytest
import torch

from data_prep import shards
from pipeline import batches
from tests.tiny import SPECIAL, make_corpus

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return shards.open_corpus(make_corpus(tmp_path_factory.mktemp("data"), {"a": 6000, "b": 3001, "tiny": 10}))


def test_a_window_is_the_shards_own_tokens_between_cls_and_sep(corpus):
    windows = batches.training_windows(corpus, 16)
    ids = windows.read(np.array([0, 0, 1]), np.array([0, 215, 3]))
    assert ids.shape == (3, 16) and ids.dtype == torch.int64
    assert ids[:, 0].tolist() == [SPECIAL["cls"]] * 3 and ids[:, -1].tolist() == [SPECIAL["sep"]] * 3
    first, second = (shard.open() for shard in corpus.sources["a"].shards)
    assert ids[0, 1:-1].tolist() == first[:14].tolist()
    assert ids[1, 1:-1].tolist() == second[14:28].tolist()  # 3000 // 14 = 214 windows lie in the first shard
    assert ids[2, 1:-1].tolist() == corpus.sources["b"].shards[0].open()[42:56].tolist()


def test_windows_never_span_shards_and_short_sources_are_left_out(corpus):
    windows = batches.training_windows(corpus, 16)
    assert windows.names == ["a", "b"]
    assert windows.counts == [2 * (3000 // 14), 1500 // 14 + 1501 // 14]


@pytest.mark.parametrize("ranks, micro", [(1, 24), (2, 4), (3, 2), (8, 1)])
def test_any_number_of_ranks_reads_the_same_global_sequence(corpus, ranks, micro):
    windows = batches.training_windows(corpus, 16)
    order = batches.order_of(windows, alpha=0.5, seed=3)
    alone = torch.stack(list(batches.steps(windows, order, 5, 9, 24, 0, 1)))
    shares = [torch.stack(list(batches.steps(windows, order, 5, 9, 24, rank, ranks))) for rank in range(ranks)]
    assert torch.equal(torch.cat(shares, dim=1), alone)
    assert all(len(part) == micro for part in shares[0][0].split(micro))


def test_a_run_can_begin_at_any_step(corpus):
    windows = batches.training_windows(corpus, 16)
    order = batches.order_of(windows, 1.0, 3)
    whole = list(batches.steps(windows, order, 0, 10, 8, 0, 1))
    later = list(batches.steps(windows, order, 6, 10, 8, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(whole[6:], later, strict=True))


def test_what_will_not_be_read_is_said(corpus, tmp_path):
    windows = batches.training_windows(corpus, 16)
    notes = list(batches.notes(corpus, windows, batches.order_of(windows, 30.0, 3), batch=10_000))
    assert any("642 windows of 16 tokens, less than a batch" in note for note in notes)
    assert any(note.startswith("source tiny is left out") for note in notes)
    assert any(note.startswith("source b is never read: its share is below 1 in 8192") for note in notes)
    assert any(note == "23 of 9,011 tokens lie in shard tails that fill no window" for note in notes)


def test_one_epoch_reads_every_window_once(corpus):
    windows = batches.Windows({"b": corpus.sources["b"]}, corpus.tokenizer, 16)
    order = batches.order_of(windows, 1.0, 3)
    _, epoch, window = order(np.arange(len(windows)))
    assert sorted(window.tolist()) == list(range(len(windows))) and not epoch.any()


def test_held_out_samples_are_the_same_each_time_and_capped(corpus):
    first = batches.heldout_ids(corpus, 16, 20, 1.0, 3)
    assert first.shape == (20, 16)
    assert torch.equal(first, batches.heldout_ids(corpus, 16, 20, 1.0, 3))
    assert len(batches.heldout_ids(corpus, 16, 10**9, 1.0, 3)) == 3 * (700 // 14)
    assert batches.heldout_ids(corpus, 16, 0, 1.0, 3) is None


def test_reading_ahead_gives_the_same_batches_in_order():
    source = [torch.full((2,), i) for i in range(50)]
    assert [int(x[0]) for x in batches.read_ahead(iter(source), CPU)] == list(range(50))


def test_an_error_while_reading_ahead_is_raised_in_the_loop():
    def broken():
        yield torch.zeros(1)
        raise OSError("disk gone")

    reading = batches.read_ahead(broken(), CPU)
    next(reading)
    with pytest.raises(OSError, match="disk gone"):
        next(reading)


def test_leaving_the_loop_ends_the_reading_thread():
    def endless():
        while True:
            yield torch.zeros(1)

    reading = batches.read_ahead(endless(), CPU)
    next(reading)
    reading.close()
    deadline = time.monotonic() + 5
    while any(thread.name == "read-ahead" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(thread.name == "read-ahead" for thread in threading.enumerate())
