"""data.order: every promise of the sampling order, on whole epochs."""

import numpy as np
import pytest

from pipeline.data.feistel import Grid, permute
from pipeline.data.order import BLOCK, Order, quotas


@pytest.mark.parametrize("size", [1, 2, 3, 10, 64, 1000, 4097])
@pytest.mark.parametrize("key", [0, 1, 2**63 + 12345])
def test_permute_is_a_bijection(size, key):
    x = np.arange(size, dtype=np.uint64)
    got = permute(x, Grid.over(np.full(size, size, np.uint64)), np.full(size, key, np.uint64))
    assert sorted(got.tolist()) == list(range(size))


def test_different_keys_give_different_orders():
    x, grid = np.arange(1000, dtype=np.uint64), Grid.over(np.full(1000, 1000, np.uint64))
    orders = [permute(x, grid, np.full(1000, key, np.uint64)) for key in range(20)]
    assert len({tuple(order.tolist()) for order in orders}) == 20
    fixed_points = sum(int((order == x).sum()) for order in orders)
    assert fixed_points < 60  # one each is expected of random permutations


def test_every_window_is_read_exactly_once_per_epoch_of_its_source():
    order = Order(windows=[700, 53], weights=[3, 1], seed=5)
    source, epoch, window = order(0, 40_000)
    for index, size in enumerate([700, 53]):
        mine = source == index
        assert (np.diff(epoch[mine]) >= 0).all()  # none is read again before all are
        for number in range(int(epoch[mine].max())):  # the last epoch may be unfinished
            assert sorted(window[mine & (epoch == number)].tolist()) == list(range(size))


def test_epochs_of_one_source_differ():
    _, epoch, window = Order([300], [1], seed=1)(0, 600)
    first, second = window[epoch == 0].tolist(), window[epoch == 1].tolist()
    assert len(first) == len(second) == 300
    assert first != second


def test_shares_of_every_block_equal_their_integer_quotas():
    weights = [0.61, 0.29, 0.1]
    order = Order([10_000, 20, 3000], weights, seed=9)
    source, _, _ = order(0, 5 * BLOCK)
    for block in source.reshape(5, BLOCK):
        assert np.bincount(block, minlength=3).tolist() == quotas(weights, BLOCK).tolist()
    assert len(set(source[:50].tolist())) == 3  # mixed inside the block, not one source after the other
    assert not np.array_equal(source[:BLOCK], source[BLOCK : 2 * BLOCK])  # and in each block otherwise


def test_quotas_are_the_largest_remainders():
    assert quotas([1, 1, 1], 10).tolist() == [4, 3, 3]
    assert quotas([0.5, 0.3, 0.2], 10).tolist() == [5, 3, 2]
    assert quotas([2.6, 1.3, 0.1], 4).tolist() == [3, 1, 0]
    assert quotas(np.random.default_rng(0).random(100), BLOCK).sum() == BLOCK


def test_any_slicing_reads_the_same_sequence():
    order = Order([500, 90], [1, 2], seed=3)
    whole = np.stack(order(0, 960))
    for size in (1, 7, 96, 320):
        pieces = [np.stack(order(start, min(start + size, 960))) for start in range(0, 960, size)]
        assert np.array_equal(np.concatenate(pieces, axis=1), whole)


def test_a_batch_that_straddles_blocks_is_the_end_of_one_and_the_start_of_the_next():
    order = Order([500, 90], [1, 2], seed=3)
    first, second = np.stack(order(0, BLOCK)), np.stack(order(BLOCK, 2 * BLOCK))
    straddling = np.stack(order(BLOCK - 300, BLOCK + 20))
    assert np.array_equal(straddling, np.concatenate([first[:, -300:], second[:, :20]], axis=1))
    three = np.stack(order(BLOCK - 1, 3 * BLOCK + 1))
    assert three.shape == (3, 2 * BLOCK + 2) and np.array_equal(three[:, 1 : BLOCK + 1], second)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [24, 48, 120])
def test_any_ranks_and_batch_size_read_the_same_sequence(ranks, batch):
    sequence = np.stack(Order([500, 90], [1, 2], seed=3)(BLOCK - 240, BLOCK + 240))
    share = batch // ranks
    slices = []
    for step in range(480 // batch):
        for rank in range(ranks):
            start = BLOCK - 240 + step * batch + rank * share
            slices.append(np.stack(Order([500, 90], [1, 2], seed=3)(start, start + share)))
    assert np.array_equal(np.concatenate(slices, axis=1), sequence)


@pytest.mark.parametrize("g", [10**9, 2**40 + 12_345, 2**52 + 1])
def test_a_position_far_out_is_reached_directly_and_keeps_every_promise(g):
    sizes, weights = [123_457, 100, 2**33 + 7], [5.0, 1.0, 2.0]
    order = Order(sizes, weights, seed=2)
    block = g // BLOCK
    samples = order(block * BLOCK, (block + 1) * BLOCK)
    for index, (size, quota) in enumerate(zip(sizes, quotas(weights, BLOCK).tolist(), strict=True)):
        mine = samples.source == index
        epochs, windows = samples.epoch[mine].tolist(), samples.window[mine].tolist()
        assert epochs == [(block * quota + rank) // size for rank in range(quota)]
        assert all(0 <= window < size for window in windows)
        assert len(set(zip(epochs, windows, strict=True))) == quota
        for epoch in set(epochs[size:]) - set(epochs[-size:]):  # begun and ended in this block
            assert sorted(w for e, w in zip(epochs, windows, strict=True) if e == epoch) == list(range(size))
    assert np.array_equal(np.stack(order(g, g + 5)), np.stack(samples)[:, g % BLOCK : g % BLOCK + 5])


def test_sources_are_drawn_in_proportion_to_their_weights():
    tokens = np.array([55_608, 11_700, 1200, 88.0])  # millions, as of languages
    for alpha in (1.0, 0.7, 0.3):
        drawn = np.bincount(Order([10**6] * 4, tokens**alpha, seed=1)(0, 4 * BLOCK).source, minlength=4) / (4 * BLOCK)
        np.testing.assert_allclose(drawn, tokens**alpha / (tokens**alpha).sum(), atol=1 / BLOCK)


def test_the_seed_decides_the_order():
    first, again, other = (Order([1000], [1], seed)(0, 500).window.tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_source_without_windows_cannot_be_drawn_from():
    with pytest.raises(ValueError, match="no window"):
        Order([10, 0], [1, 1], seed=0)
