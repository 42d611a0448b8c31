"""Order as arithmetic: a bijection, keyed, uniform, the same from any side."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.order import in_blocks, shuffled, shuffled_each


@given(count=st.integers(1, 5000), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 1000))
def test_a_shuffle_is_a_bijection(count, seed, epoch):
    order = shuffled(np.arange(count), count, seed=seed, epoch=epoch)
    assert np.array_equal(np.sort(order), np.arange(count))


@given(count=st.integers(1, 10**12), seed=st.integers(0, 2**63), data=st.data())
def test_any_slice_of_the_order_is_computed_on_its_own(count, seed, data):
    places = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=20)))
    together = shuffled(places, count, seed=seed)
    assert together.tolist() == [int(shuffled(places[i : i + 1], count, seed=seed)[0]) for i in range(len(places))]
    assert together.min() >= 0
    assert together.max() < count


def test_every_permutation_of_four_comes_up_as_often():
    seen = Counter(tuple(shuffled(np.arange(4), 4, seed=seed)) for seed in range(24_000))
    assert len(seen) == 24
    chi_square = sum((times - 1000) ** 2 / 1000 for times in seen.values())
    assert chi_square < 49.7  # 23 degrees of freedom, one in a thousand


def test_every_record_is_equally_likely_at_every_place():
    count, runs = 50, 2000
    table = np.zeros((count, count))
    for seed in range(runs):
        table[np.arange(count), shuffled(np.arange(count), count, seed=seed)] += 1
    chi_square = ((table - runs / count) ** 2 / (runs / count)).sum()
    expected = (count - 1) ** 2
    assert abs(chi_square - expected) < 5 * (2 * expected) ** 0.5


def test_neighbours_are_torn_apart_and_seeds_and_epochs_differ():
    first = shuffled(np.arange(10_000), 10_000, seed=1)
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05
    for other in (shuffled(np.arange(10_000), 10_000, seed=2), shuffled(np.arange(10_000), 10_000, seed=1, epoch=1)):
        assert (first == other).sum() < 10


def test_the_order_is_part_of_the_format_and_never_changes():
    assert shuffled(np.arange(10), 10, seed=1).tolist() == KNOWN
    assert in_blocks(np.arange(10), 10, 4, seed=1).tolist() == KNOWN_IN_BLOCKS


def test_places_outside_the_list_are_refused():
    with pytest.raises(IndexError, match=r"outside 0\.\.4"):
        shuffled(np.array([5]), 5, seed=0)


@given(count=st.integers(1, 1000), size=st.integers(1, 200), seed=st.integers(0, 2**63), epoch=st.integers(0, 9))
def test_a_shuffle_in_blocks_is_a_bijection_that_stays_in_its_blocks(count, size, seed, epoch):
    order = in_blocks(np.arange(count), count, size, seed=seed, epoch=epoch)
    assert np.array_equal(np.sort(order), np.arange(count))
    assert np.count_nonzero(np.diff(order // size)) == -(-count // size) - 1


@given(count=st.integers(1, 10**12), size=st.integers(10**6, 10**12), seed=st.integers(0, 2**63), data=st.data())
def test_any_slice_of_an_order_in_blocks_is_computed_on_its_own(count, size, seed, data):
    places = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=5)))
    together = in_blocks(places, count, size, seed=seed)
    assert together.tolist() == [
        int(in_blocks(places[i : i + 1], count, size, seed=seed)[0]) for i in range(len(places))
    ]
    assert 0 <= together.min() <= together.max() < count


def test_the_short_block_stands_anywhere():
    slots = {int(np.flatnonzero(in_blocks(np.arange(70), 70, 20, seed=seed) >= 60)[0]) // 20 for seed in range(60)}
    assert slots == {0, 1, 2, 3}


def test_blocks_of_nothing_and_places_outside_are_refused():
    with pytest.raises(ValueError, match="blocks of 0 records"):
        in_blocks(np.arange(3), 3, 0, seed=0)
    with pytest.raises(IndexError, match=r"outside 0\.\.2"):
        in_blocks(np.array([3]), 3, 2, seed=0)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(0, 2**64 - 1))
def test_many_small_shuffles_at_once_are_each_a_bijection(counts, key):
    places = np.concatenate([np.arange(count) for count in counts])
    each = np.repeat(counts, counts)
    number = np.repeat(np.arange(len(counts)), counts)
    found = shuffled_each(places, each, (np.uint64(key) + number.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15))
    for i, count in enumerate(counts):
        assert sorted(found[number == i].tolist()) == list(range(count))


def test_every_permutation_of_four_comes_up_as_often_among_many_small_shuffles():
    keys = np.random.default_rng(0).integers(0, 2**64, 24_000, dtype=np.uint64)
    orders = np.stack([shuffled_each(np.full(24_000, i), np.full(24_000, 4), keys) for i in range(4)], axis=1)
    seen = Counter(map(tuple, orders.tolist()))
    assert len(seen) == 24
    assert sum((times - 1000) ** 2 / 1000 for times in seen.values()) < 49.7


def test_a_place_outside_its_small_list_is_refused():
    with pytest.raises(IndexError, match="outside its list"):
        shuffled_each(np.array([0, 3]), np.array([1, 3]), np.zeros(2, np.uint64))


KNOWN = [6, 1, 2, 3, 8, 0, 4, 5, 7, 9]
KNOWN_IN_BLOCKS = [1, 2, 3, 0, 5, 4, 6, 7, 9, 8]
