"""The "did you mean" error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.names import hint, nearest, pick, unknown

LAYERS = {"Pooling": 1, "Convolution": 2, "ReLU": 3}


def test_a_slip_names_the_nearest():
    assert unknown("layer type", "Poling", LAYERS) == "unknown layer type 'Poling'; did you mean 'Pooling'?"


def test_the_case_of_letters_does_not_hide_the_nearest():
    assert nearest("RELU", LAYERS) == "ReLU"


def test_a_short_table_is_listed_where_nothing_is_near():
    assert hint("Xyzzy", LAYERS) == "; known: Convolution, Pooling, ReLU"


def test_a_long_table_is_not_listed():
    assert hint("Xyzzy", [f"layer{i}" for i in range(50)]) == ""


def test_an_empty_table_gives_no_hint():
    assert hint("Pooling", []) == ""


def test_pick_returns_the_entry_or_says_what_was_meant():
    assert pick(LAYERS, "ReLU", "layer type") == 3
    with pytest.raises(ValueError, match="unknown layer type 'relu'; did you mean 'ReLU'"):
        pick(LAYERS, "relu", "layer type")


@given(st.text(max_size=3000))
def test_whatever_the_name_the_error_is_one_short_line(name):
    message = unknown("name", name, LAYERS)
    assert "\n" not in message
    assert len(message) < 1000
