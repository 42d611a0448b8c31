"""Splits: every record once, each class shared out, the same for the same seed."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.inputs import split

EIGHTY = [Fraction(4, 5), Fraction(1, 5)]


@settings(max_examples=100)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=40),
    st.lists(st.integers(1, 100), min_size=1, max_size=4),
    st.integers(0, 2**64 - 1),
)
def test_counts_are_rounded_shares_and_every_record_is_in_one_split(sizes, weights, seed):
    shares = [Fraction(weight, sum(weights)) for weight in weights]
    seats = split.seats(np.array(sizes), shares)
    assert seats.sum(axis=1).tolist() == sizes
    exact = np.array([[float(size * share) for share in shares] for size in sizes])
    assert (np.abs(seats - exact) < 1 + 1e-9).all()
    strata = np.repeat(np.arange(len(sizes)), sizes)
    if len(strata):
        got = split.assign(strata, shares, seed)
        full = np.zeros((len(sizes), len(shares)), np.int64)
        np.add.at(full, (strata, got), 1)
        assert (full == seats).all()


def test_tiny_classes_keep_the_shares_of_the_whole():
    assert split.seats(np.full(1000, 2), EIGHTY).sum(axis=0).tolist() == [1600, 400]
    assert split.seats(np.full(1000, 1), EIGHTY).sum(axis=0).tolist() == [800, 200]


def test_a_class_that_can_be_in_every_split_is():
    for size in range(3, 50):
        assert (split.seats(np.full(30, size), EIGHTY) > 0).all()


def test_the_seed_decides_who_and_nothing_else_does():
    strata = np.arange(1000) % 7
    one, again, other = (split.assign(strata, EIGHTY, seed) for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).any()
    assert Counter(one.tolist()) == Counter(other.tolist())


def test_the_draw_is_the_one_that_philox_defines():
    draws = np.random.Philox(key=3).random_raw(10).tolist()
    lower = sorted(draws)[:5]
    expected = [0 if draw in lower else 1 for draw in draws]
    assert (
        split.assign(np.zeros(10, np.int64), [Fraction(1, 2)] * 2, 3).tolist()
        == expected
        == [1, 0, 0, 1, 1, *expected[5:]]
    )


def test_shares_are_exact():
    assert split.parse("train=0.7,val=0.2,test=0.1") == {
        "train": Fraction(7, 10), "val": Fraction(1, 5), "test": Fraction(1, 10),
    }  # fmt: skip
    assert split.parse("a=80%, b=20%") == {"a": Fraction(4, 5), "b": Fraction(1, 5)}
    assert split.parse("a=0.333,b=0.333,c=0.333")["a"] == Fraction(1, 3)


@pytest.mark.parametrize(
    "text",
    ["train", "train=", "=1", "a=0.5,a=0.5", "a=0.5", "a=1.2", "a=-1,b=2", "a=x", "a/b=1", "classes=1", "a=1/0", ""],
)
def test_shares_that_make_no_sense_are_an_error(text):
    with pytest.raises(ValueError, match=r"--split .*: (expected|the shares sum|.*cannot be)"):
        split.parse(text)
