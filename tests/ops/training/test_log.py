"""train.log: Caffe's lines, as its own log parsers' patterns read them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.training.log import Log, Smoother, number

# The patterns of parse_log.py and extract_seconds.py, in our words.
ITERATION = re.compile(r"Iteration (\d+)")
OUTPUT = re.compile(r"(Train|Test) net output #(\d+): (\S+) = ([.\deE+-]+)")
RATE = re.compile(r"lr = ([-+]?[0-9]*\.?[0-9]+([eE]?[-+]?[0-9]+)?)")


def test_lines_begin_with_level_date_time_thread_and_file(tmp_path):
    log = Log(tmp_path / "train.log")
    log.displays(100, 0.25, rate=12.5, seconds=8, every=100)
    log.close()
    line = (tmp_path / "train.log").read_text()
    assert re.fullmatch(
        r"I\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ solver\.cpp:\d+\] "
        r"Iteration 100 \(12\.5 iter/s, 8s/100 iters\), loss = 0\.25\n",
        line,
    )


def test_parsers_find_iterations_outputs_and_rates(tmp_path):
    log = Log(tmp_path / "train.log")
    log.begins("net", "step")
    log.tests(0, 0)
    log.outputs("Test", {"accuracy": np.array(0.5), "loss": np.array(2.25)}, {"loss": 1.0})
    log.displays(0, 2.5, rate=1, seconds=1, every=1)
    log.outputs("Train", {"loss": np.array([1.5, 0.25])}, {"loss": 2.0})
    log.learns(0, 1e-05)
    log.close()
    text = (tmp_path / "train.log").read_text()
    assert "Solving net" in text
    assert [found[:4] for found in OUTPUT.findall(text)] == [
        ("Test", "0", "accuracy", "0.5"),
        ("Test", "1", "loss", "2.25"),
        ("Train", "0", "loss", "1.5"),
        ("Train", "1", "loss", "0.25"),
    ]
    assert "    Test net output #1: loss = 2.25 (* 1 = 2.25 loss)" in text
    assert "(* 2 = 3 loss)" in text
    assert RATE.findall(text)[0][0] == "1e-05"
    assert ITERATION.findall(text) == ["0", "0", "0"]


@pytest.mark.parametrize(
    ("value", "printed"), [(0.1234567, "0.123457"), (1e-7, "1e-07"), (1234567.0, "1.23457e+06"), (3.0, "3")]
)
def test_numbers_have_six_digits(value, printed):
    assert number(value) == printed
    assert number(float("nan")) == "nan"
    assert number(-float("inf")) == "-inf"


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40), st.integers(1, 12))
def test_the_smoothed_loss_is_the_mean_of_the_last_ones(losses, window):
    smoother = Smoother(window)
    for count in range(1, len(losses) + 1):
        found = smoother.add(losses[count - 1])
        assert found == pytest.approx(np.mean(losses[max(0, count - window) : count]), abs=1e-9)
    again = Smoother(window, **smoother.state())
    assert again.add(1.0) == smoother.add(1.0)


def test_no_file_is_no_log():
    Log(None).displays(0, 1.0, rate=1, seconds=1, every=1)
