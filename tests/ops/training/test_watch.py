"""What is watched in a test, and when a training has nothing more to gain."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from ops import net as nets
from ops.proto.caffe_pb2 import NetParameter
from ops.training.watch import Watch

DATA = """layer { name: "data" type: "Input" top: "x" top: "label"
        input_param { shape { dim: 2 dim: 3 } shape { dim: 2 } } }"""
ACCURACY = 'layer { name: "a" type: "Accuracy" bottom: "x" bottom: "label" top: "%s" }'
LOSS = 'layer { name: "l" type: "SoftmaxWithLoss" bottom: "x" bottom: "label" top: "%s" }'
ERROR = 'layer { name: "e" type: "Reduction" bottom: "x" top: "error" }'


def net_of(*layers):
    return nets.load(text_format.Parse("\n".join([DATA, *layers]), NetParameter()), "TEST")


PLAIN = (ACCURACY % "accuracy", LOSS % "loss")


def scores(watch, values):
    """(better, done) after each test."""
    return [(watch.see(10 * number, value), watch.done) for number, value in enumerate(values)]


# -- which score -------------------------------------------------------------------------------------------------------


def test_accuracy_is_watched_where_nobody_says_what():
    watch = Watch.of([net_of(*PLAIN)], None)
    assert (watch.output, watch.higher, watch.name) == ("accuracy", True, "accuracy")
    assert watch.score({"accuracy": np.array(0.5), "loss": np.array(2.0)}, 2.0) == 0.5


def test_the_loss_is_watched_where_there_is_no_accuracy():
    watch = Watch.of([net_of(LOSS % "cost")], None)
    assert (watch.output, watch.higher) == (None, False)
    assert watch.score({"cost": np.array(3.0)}, 4.5) == 4.5


@pytest.mark.parametrize(
    ("wanted", "output", "higher"),
    [
        ("accuracy", "top1", True),
        ("top1", "top1", True),
        ("loss", None, False),
        ("cost", "cost", False),
        ("error:min", "error", False),
        ("error:max", "error", True),
        ("top1:min", "top1", False),
    ],
)
def test_words_outputs_and_directions(wanted, output, higher):
    watch = Watch.of([net_of(ACCURACY % "top1", LOSS % "cost", ERROR)], wanted)
    assert (watch.output, watch.higher) == (output, higher)


def test_the_first_test_net_that_has_the_output_counts():
    found = Watch.of([net_of(LOSS % "loss"), net_of(*PLAIN), net_of(*PLAIN)], "accuracy")
    assert (found.net, found.output) == (1, "accuracy")


def test_the_elements_of_an_output_are_averaged():
    watch = Watch.of([net_of(ACCURACY % "top1", ERROR)], "error:min")
    assert watch.score({"error": np.array([1.0, 2.0, 6.0])}, 0.0) == 3.0


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("acuracy", "no test net has an output 'acuracy'; did you mean 'accuracy'"),
        ("error", "does more 'error' mean better? Write error:max or error:min"),
        ("loss:down", "'down' is no direction; write loss:max or loss:min"),
    ],
)
def test_a_score_that_cannot_be_watched_is_told(wanted, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        Watch.of([net_of(*PLAIN, ERROR)], wanted)


def test_without_a_test_net_there_is_nothing_to_watch():
    with pytest.raises(ValueError, match="give the solver test_iter and test_interval"):
        Watch.of([], "loss")
    with pytest.raises(ValueError, match="patience 0: expected 1 test or more"):
        Watch.of([net_of(*PLAIN)], "loss", patience=0)


# -- when it is enough ------------------------------------------------------------------------------------------------


def test_patience_counts_tests_without_a_better_score():
    watch = Watch.of([net_of(*PLAIN)], "accuracy", patience=2)
    assert scores(watch, [0.1, 0.3, 0.3, 0.4, 0.2, 0.4]) == [
        (True, False),
        (True, False),
        (False, False),
        (True, False),
        (False, False),
        (False, True),
    ]
    assert (watch.best, watch.iteration) == (0.4, 30)
    assert watch.told() == "accuracy has not got better in 2 tests: 0.4 at iteration 30"


def test_the_lowest_loss_is_the_best_and_nan_never_is():
    watch = Watch.of([net_of(*PLAIN)], "loss", patience=3)
    assert [better for better, _ in scores(watch, [math.nan, 2.0, 1.0, math.nan, 1.5])] == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert (watch.best, watch.since) == (1.0, 2)


def test_without_patience_it_never_ends():
    watch = Watch.of([net_of(*PLAIN)], "loss")
    assert not any(done for _, done in scores(watch, [1.0] * 50))


def test_a_test_that_is_repeated_at_the_same_iteration_counts_once():
    watch = Watch.of([net_of(*PLAIN)], "accuracy", patience=2)
    for iteration in (0, 10, 10, 10):
        watch.see(iteration, 0.5)
    assert (watch.since, watch.done) == (1, False)


@given(st.lists(st.floats(0, 1), max_size=30), st.integers(0, 30), st.integers(1, 5))
def test_going_on_from_a_record_is_as_if_it_had_not_stopped(values, cut, patience):
    whole = Watch("accuracy", 0, "accuracy", True, patience)
    expected = scores(whole, values)
    first = Watch("accuracy", 0, "accuracy", True, patience)
    found = scores(first, values[:cut])
    second = Watch("accuracy", 0, "accuracy", True, patience)
    assert second.resume(json.loads(json.dumps(first.state())))
    for number, value in enumerate(values[cut:], len(values[:cut])):
        found.append((second.see(10 * number, value), second.done))
    assert found == expected
    assert second.state() == whole.state()


def test_a_record_of_another_score_is_not_taken_up():
    first = Watch.of([net_of(*PLAIN)], "loss")
    first.see(0, 1.0)
    second = Watch.of([net_of(*PLAIN)], "accuracy")
    assert not second.resume(first.state())
    assert second.best is None
