"""shuffle_shards: shards come some at a time, each window once an epoch, the same whoever reads and from wherever."""

import numpy as np
import pytest

from data_prep.shards import open_corpus, write_manifest
from pipeline.data.order import BLOCK, Order
from pipeline.data.reading import order_of, read, training_windows
from tests.data.conftest import write_documents
from tests.parts.tiny import WORDS, fingerprint

SHARDS = (np.array([40, 0, 70, 1, 30, 55, 20]), np.array([9, 12]))
COUNTS = [int(counts.sum()) for counts in SHARDS]


def order(at_a_time=2, seed=5, shards=SHARDS):
    return Order([int(counts.sum()) for counts in shards], [3, 1], seed, shards, at_a_time)


def test_every_window_is_read_once_an_epoch_and_epochs_differ():
    source, epoch, window = order()(0, 2 * BLOCK)
    for index, size in enumerate(COUNTS):
        mine = source == index
        assert (np.diff(epoch[mine]) >= 0).all()
        whole = [window[mine & (epoch == number)].tolist() for number in range(int(epoch[mine].max()))]
        assert all(sorted(each) == list(range(size)) for each in whole)
        assert len({tuple(each) for each in whole}) > 0.9 * len(whole)


def test_only_so_many_shards_are_read_at_a_time_and_mixed_among_each_other():
    source, epoch, window = order()(0, BLOCK)
    bounds = np.cumsum(SHARDS[0])
    seen = set()
    for number in range(10):
        mine = window[(source == 0) & (epoch == number)]
        shard = np.searchsorted(bounds, mine, side="right")
        first = list(dict.fromkeys(shard.tolist()))
        assert sorted(first) == [0, 2, 3, 4, 5, 6]
        turns = [np.flatnonzero(np.isin(shard, first[place : place + 2])) for place in (0, 2, 4)]
        assert all(turn[-1] - turn[0] == len(turn) - 1 for turn in turns)  # none comes back
        assert sum(int((np.diff(shard[turn]) != 0).sum()) for turn in turns) > 40  # 3 if one came after the other
        seen.add(tuple(sorted(first[:2])))
    assert len(seen) > 3  # shards meet others in other epochs


def test_any_slicing_reads_the_same_and_the_shares_stay():
    whole = np.stack(order()(0, 960))
    for size in (7, 96, 320):
        one = order()
        pieces = [np.stack(one(start, min(start + size, 960))) for start in range(0, 960, size)]
        assert np.array_equal(np.concatenate(pieces, axis=1), whole)
    late = np.stack(order()(5 * BLOCK - 10, 5 * BLOCK + 10))
    assert np.array_equal(late[:, 10:], np.stack(order()(5 * BLOCK, 5 * BLOCK + 10)))
    plain = Order(COUNTS, [3, 1], 5)(0, 960)
    assert np.array_equal(plain.source, whole[0]) and np.array_equal(plain.epoch, whole[1])


def test_seeds_differ_and_zero_is_the_order_without():
    assert not np.array_equal(order(seed=1)(0, 500).window, order(seed=2)(0, 500).window)
    assert np.array_equal(order(at_a_time=0)(0, 500).window, Order(COUNTS, [3, 1], 5)(0, 500).window)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Many shards of documents that differ from shard to shard: each has a token of its own."""
    folder, generator = tmp_path_factory.mktemp("many"), np.random.default_rng(4)
    content = {"tokenizer": fingerprint(), "sources": {}, "heldout": {}}
    rows = []
    for number in range(12):
        sizes = generator.integers(2, 40, 30)
        rows.append(write_documents(folder / "a", number, [(5 + number,) * int(size) for size in sizes]))
    tokens, documents = (sum(row[key] for row in rows) for key in ("tokens", "documents"))
    content["sources"]["a"] = {"documents": documents, "tokens": tokens, "size": tokens, "shards": rows}
    write_manifest(folder, content)
    assert len(WORDS) > 17
    return open_corpus(folder)


@pytest.mark.parametrize("layout", ["full", "doc", "packed"])
@pytest.mark.parametrize("paired", [False, True])
def test_a_sample_needs_one_shard_and_a_turn_so_many(corpus, layout, paired):
    windows = training_windows(corpus, 16, layout, paired)
    reading = order_of(windows, 1.0, 3, shuffle_shards=3)
    assert [counts.sum() for counts in windows.by_shard] == windows.counts
    source, _, window = reading(0, 64)
    ids = read(windows, reading, 0, 64).ids.numpy()
    for row, shard in zip(ids, windows.shard_of(source, window), strict=True):
        assert set(row[row >= 5].tolist()) <= {5 + int(shard)}
    if paired:  # without it a second segment comes from anywhere
        anywhere = read(windows, order_of(windows, 1.0, 3), 0, 64).ids.numpy()
        assert max(len(set(row[row >= 5].tolist())) for row in anywhere) > 1
