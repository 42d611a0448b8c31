"""Streams that depend on (seed, epoch, index, copy) and on nothing else."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.chance import Drawn, below, rng, uniform, words

ANY = st.integers(-(2**200), 2**200)
COUNT = st.integers(0, 2**64 - 1)


@given(ANY, COUNT, COUNT, COUNT)
def test_the_same_place_has_the_same_stream(seed, epoch, index, copy):
    first, second = rng(seed, epoch, index, copy), rng(seed, epoch, index, copy)
    assert first.random(5).tolist() == second.random(5).tolist()


@given(st.tuples(ANY, COUNT, COUNT, COUNT), st.tuples(ANY, COUNT, COUNT, COUNT))
def test_another_place_has_another_stream(here, there):
    same = np.array_equal(rng(*here).integers(1 << 63, size=4), rng(*there).integers(1 << 63, size=4))
    assert same == (here == there)


def test_neighbours_share_no_number():
    places = [
        (seed, epoch, index, copy) for seed in (-1, 0, 1) for epoch in (0, 1) for index in range(50) for copy in (0, 1)
    ]
    draws = np.concatenate([rng(*place).integers(1 << 63, size=64) for place in places])
    assert len(np.unique(draws)) == draws.size


def test_the_seed_is_the_key_and_the_place_the_counter_of_numpys_philox():
    counter = (7 << 192) | (11 << 128) | (2 << 64)
    expected = np.random.Generator(np.random.Philox(key=5, counter=counter)).random(9)
    np.testing.assert_array_equal(rng(5, 7, 11, 2).random(9), expected)


def test_numbers_are_these_in_every_process_and_on_every_machine():
    program = "from ops.chance import rng; print(rng(1, 2, 3, 4).integers(1000, size=5).tolist())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[380, 664, 719, 482, 472]\n"


def test_numpy_integers_are_numbers_too():
    assert rng(np.int64(3), np.int32(1), np.uint64(2)).random() == rng(3, 1, 2).random()


def test_first_draws_over_many_places_are_uniform():
    draws = np.array([rng(0, 0, index).random() for index in range(4000)])
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    assert ((counts - 200) ** 2 / 200).sum() < 45  # chi square of 19 degrees of freedom: 0.1 % of streams exceed 43.8


# -- many places at once -----------------------------------------------------------------------------------------------


@given(ANY, st.sampled_from(["", "data", "é"]), st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=9))
def test_a_places_words_do_not_depend_on_the_others(seed, purpose, places):
    together = words(seed, purpose, np.array(places), (0, 3))
    alone = [words(seed, purpose, np.array([place]), (3,))[0, 0] for place in places]
    assert together[:, 1].tolist() == alone


def test_other_seeds_purposes_and_numbers_have_other_words():
    drawn = [words(seed, name, np.arange(100), range(8)) for seed in (-1, 0, 1, 2**64) for name in ("a", "b", "")]
    assert len(np.unique(np.concatenate(drawn))) == 12 * 100 * 8


def test_words_are_uniform_in_each_bit_and_do_not_follow_one_another():
    drawn = words(7, "data", np.arange(20_000), (0, 1, 2))
    for number in range(3):
        bits = (drawn[:, number, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
        assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / 20_000**0.5
    values = uniform(drawn)
    assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.03
    assert abs(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]) < 0.03


@pytest.mark.parametrize("limit", [1, 2, 3, 30, 1000])
def test_integers_from_words_are_uniform_below_their_limit(limit):
    found = below(words(3, "x", np.arange(100 * limit), (0,)), limit)
    counts = np.bincount(found.ravel(), minlength=limit)
    assert len(counts) == limit
    assert ((counts - 100) ** 2 / 100).sum() < limit + 5 * (2 * limit) ** 0.5


def test_the_largest_word_stays_below_any_limit():
    top = np.array([2**64 - 1], np.uint64)
    assert uniform(top)[0] < 1
    assert all(below(top, limit)[0] == limit - 1 for limit in (1, 3, 7, 1000, 2**53))


def test_words_are_these_on_every_machine():
    assert words(1, "data", np.array([0, 5]), (0, 2)).tolist() == WORDS


def test_drawn_words_are_handed_out_as_by_a_generator():
    drawn = words(1, "a", np.array([4]), range(7))[0]
    rng = Drawn(drawn)
    assert rng.random(6).tolist() == uniform(drawn[:6]).tolist()
    assert rng.integers(1 << 63) == int(drawn[6]) >> 1
    with pytest.raises(IndexError, match="only 7 words"):
        rng.random(1)


WORDS = [[12417136354283745355, 17903006613383241782], [9498160353699779611, 13541221078532010615]]
