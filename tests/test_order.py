"""pipeline.order: every promise of the sampling order, on whole epochs."""

import numpy as np
import pytest

from pipeline.order import BLOCK, Order, permute, quotas


@pytest.mark.parametrize("size", [1, 2, 3, 10, 64, 1000, 4097])
@pytest.mark.parametrize("key", [0, 1, 2**63 + 12345])
def test_permute_is_a_bijection(size, key):
    x = np.arange(size, dtype=np.uint64)
    got = permute(x, np.full(size, size, np.uint64), np.full(size, key, np.uint64))
    assert sorted(got.tolist()) == list(range(size))


def test_different_keys_give_different_orders():
    x, size = np.arange(1000, dtype=np.uint64), np.full(1000, 1000, np.uint64)
    orders = [permute(x, size, np.full(1000, key, np.uint64)) for key in range(20)]
    assert len({tuple(order.tolist()) for order in orders}) == 20
    fixed_points = sum(int((order == x).sum()) for order in orders)
    assert fixed_points < 60  # one each is expected of random permutations


def test_every_window_is_read_exactly_once_per_epoch_of_its_source():
    order = Order(windows=[700, 53], weights=[3, 1], seed=5)
    source, epoch, window = order(np.arange(40_000))
    for index, size in enumerate([700, 53]):
        mine = source == index
        for number in range(int(epoch[mine].max())):  # the last epoch may be unfinished
            assert sorted(window[mine & (epoch == number)].tolist()) == list(range(size))


def test_epochs_of_one_source_differ():
    _, epoch, window = Order([300], [1], seed=1)(np.arange(600))
    first, second = window[epoch == 0].tolist(), window[epoch == 1].tolist()
    assert len(first) == len(second) == 300
    assert first != second


def test_shares_of_every_block_equal_their_integer_quotas():
    weights = [0.61, 0.29, 0.1]
    order = Order([10_000, 20, 3000], weights, seed=9)
    source, _, _ = order(np.arange(5 * BLOCK))
    for block in source.reshape(5, BLOCK):
        assert np.bincount(block, minlength=3).tolist() == quotas(weights, BLOCK).tolist()
    assert len(set(source[:50].tolist())) == 3  # mixed inside the block, not one source after the other


def test_quotas_are_the_largest_remainders():
    assert quotas([1, 1, 1], 10).tolist() == [4, 3, 3]
    assert quotas([0.5, 0.3, 0.2], 10).tolist() == [5, 3, 2]
    assert quotas([2.6, 1.3, 0.1], 4).tolist() == [3, 1, 0]
    assert quotas(np.random.default_rng(0).random(100), BLOCK).sum() == BLOCK


def test_any_slicing_reads_the_same_sequence():
    order = Order([500, 90], [1, 2], seed=3)
    whole = np.stack(order(np.arange(960)))
    for size in (1, 7, 96, 320):
        pieces = [np.stack(order(np.arange(start, min(start + size, 960)))) for start in range(0, 960, size)]
        assert np.array_equal(np.concatenate(pieces, axis=1), whole)


def test_a_position_far_out_is_reached_directly():
    order = Order([123_457] * 100, [1.0 + i for i in range(100)], seed=2)
    source, epoch, window = order(np.arange(10**12, 10**12 + 2048))
    assert (window < 123_457).all()
    assert (source < 100).all()
    assert epoch.max() > 1000


def test_the_seed_decides_the_order():
    g = np.arange(500)
    first, again, other = (Order([1000], [1], seed)(g)[2].tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_source_without_windows_cannot_be_drawn_from():
    with pytest.raises(ValueError, match="no window"):
        Order([10, 0], [1, 1], seed=0)
