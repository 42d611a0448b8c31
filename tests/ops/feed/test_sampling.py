"""The sample stream: Caffe's order, shuffles that are bijections, classes in balance."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.feed.sampling import Balanced, Sampling, skipped

COUNTS = st.integers(1, 400)
SEEDS = st.integers(-(2**64), 2**64)


@given(COUNTS, SEEDS, st.sampled_from([False, True, "blocks"]), st.integers(1, 50), st.integers(0, 5))
def test_an_epoch_holds_every_record_once(count, seed, shuffle, block, epoch):
    sampling = Sampling(count, seed=seed, shuffle=shuffle, block=block)
    records = sampling.records(np.arange(epoch * count, (epoch + 1) * count))
    assert sorted(records.tolist()) == list(range(count))


@given(COUNTS, SEEDS, st.sampled_from([False, True, "blocks"]), st.data())
def test_any_positions_give_what_the_whole_stream_has_there(count, seed, shuffle, data):
    sampling = Sampling(count, seed=seed, shuffle=shuffle, block=16)
    whole = sampling.records(np.arange(3 * count))
    places = np.array(data.draw(st.lists(st.integers(0, 3 * count - 1), min_size=1, max_size=20)))
    assert sampling.records(places).tolist() == whole[places].tolist()


def test_without_a_shuffle_it_is_the_records_order_again_and_again():
    assert Sampling(5, seed=1).records(np.arange(12)).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_a_skip_begins_further_on_and_wraps():
    assert Sampling(5, seed=1, skip=7).records(np.arange(6)).tolist() == [2, 3, 4, 0, 1, 2]


def test_rand_skip_is_below_its_limit_and_follows_from_the_seed():
    drawn = [skipped(seed, 10) for seed in range(500)]
    assert set(drawn) == set(range(10))
    assert skipped(3, 10) == drawn[3]
    assert skipped(3, 0) == 0


def test_epochs_have_orders_of_their_own():
    sampling = Sampling(1000, seed=4, shuffle=True)
    first, second = sampling.records(np.arange(1000)), sampling.records(np.arange(1000, 2000))
    assert (first == second).sum() < 10


def test_blocks_are_read_one_after_the_other():
    records = Sampling(1000, seed=2, shuffle="blocks", block=64).records(np.arange(1000))
    changes = np.count_nonzero(np.diff(records // 64))
    assert changes == 15  # of sixteen blocks
    assert (np.diff(records) != 1).sum() > 900


@given(st.lists(st.integers(0, 6), min_size=1, max_size=120), SEEDS)
def test_balanced_rounds_hold_every_class_once(labels, seed):
    labels = np.array(labels)
    classes = np.unique(labels)
    balanced = Balanced(labels, seed=seed)
    records = balanced.records(np.arange(6 * len(classes)))
    for start in range(0, len(records), len(classes)):
        assert sorted(labels[records[start : start + len(classes)]]) == sorted(classes)


def test_balanced_classes_give_each_record_before_any_comes_again():
    labels = np.array([0] * 3 + [1] * 10)
    records = Balanced(labels, seed=5).records(np.arange(2 * 30))
    rare, often = records[labels[records] == 0], records[labels[records] == 1]
    assert all(sorted(rare[i : i + 3]) == [0, 1, 2] for i in range(0, 30, 3))
    assert all(sorted(often[i : i + 10]) == list(range(3, 13)) for i in range(0, 30, 10))


def test_balanced_records_are_uniform_inside_a_class():
    labels = np.repeat([0, 1], [40, 60])
    first = Counter(int(Balanced(labels, seed=seed).records(np.array([0, 1])).min()) for seed in range(4000))
    counts = np.array([first[i] for i in range(40)])
    assert ((counts - 100) ** 2 / 100).sum() < 73  # 39 degrees of freedom: one in a thousand


def test_vector_labels_have_no_classes():
    with pytest.raises(ValueError, match="vectors of 3 numbers"):
        Balanced(np.zeros((4, 3)), seed=0)


@pytest.mark.parametrize("shuffle", [True, "blocks"])
def test_a_stream_over_a_billion_records_takes_no_memory(shuffle):
    sampling = Sampling(10**9, seed=1, shuffle=shuffle, block=100_000)
    tracemalloc.start()
    try:
        sampling.records(np.arange(7 * 10**8, 7 * 10**8 + 256))
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()
