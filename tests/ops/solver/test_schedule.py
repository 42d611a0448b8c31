"""Rates against the formulas in another notation, torch's schedulers, and Caffe's way of counting falls."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops.proto import text
from ops.proto.caffe_pb2 import SolverParameter
from ops.solver import schedule
from ops.solver.schedule import advance, rate


def spec(words):
    return text.parse(words, SolverParameter)


@pytest.mark.parametrize(
    ("words", "formula"),
    [
        ("lr_policy: 'fixed'", lambda i: 1.0),
        ("lr_policy: 'step' gamma: 0.3 stepsize: 7", lambda i: np.float32(0.3) ** np.floor(i / 7)),
        ("lr_policy: 'exp' gamma: 0.95", lambda i: np.exp(i * np.log(float(np.float32(0.95))))),
        ("lr_policy: 'inv' gamma: 0.05 power: 0.75", lambda i: 1 / np.sqrt(np.sqrt(1 + i / 20)) ** 3),
        ("lr_policy: 'poly' power: 2 max_iter: 200", lambda i: np.square(200.0 - i) / 40000),
        ("lr_policy: 'poly' max_iter: 200", lambda i: 1.0),
        ("lr_policy: 'sigmoid' gamma: 0.25 stepsize: 60", lambda i: 0.5 + 0.5 * np.tanh((i - 60) / 8)),
        ("lr_policy: 'cosine' max_iter: 200", lambda i: np.cos(np.pi * i / 400) ** 2),
        ("lr_policy: 'cosine' max_iter: 200 min_lr: 0.125", lambda i: 0.5 + 0.5 * np.cos(np.pi * i / 400) ** 2),
    ],
)
def test_policies(words, formula):
    solver = spec(f"base_lr: 0.25 {words}")
    schedule.check(solver)
    for i in (0, 1, 6, 7, 8, 20, 59, 60, 150, 199):
        assert rate(solver, i) == pytest.approx(0.25 * float(formula(i)), rel=1e-6, abs=1e-12)


def test_rates_are_float32_as_caffe_holds_them():
    assert rate(spec("base_lr: 0.05 lr_policy: 'fixed'"), 3) == float(np.float32(0.05))


@pytest.mark.parametrize(("iteration", "expected"), [(0, 0.1), (99, 0.1), (100, 0.01), (199, 0.01), (200, 0.001)])
def test_step_falls_at_each_stepsize(iteration, expected):
    solver = spec("base_lr: 0.1 lr_policy: 'step' gamma: 0.1 stepsize: 100")
    assert rate(solver, iteration) == pytest.approx(expected, rel=1e-6)


def falls(solver, count, start=0, have=0):
    counted = []
    for i in range(start, start + count):
        have = advance(solver, i, have)
        counted.append(have)
    return counted


def test_multistep_falls_where_it_is_told_to():
    solver = spec("base_lr: 1 lr_policy: 'multistep' gamma: 0.5 stepvalue: 3 stepvalue: 5")
    assert falls(solver, 8) == [0, 0, 0, 1, 1, 2, 2, 2]
    assert [rate(solver, i) for i in (2, 3, 5, 99)] == [1, 0.5, 0.25, 0.25]


def test_multistep_falls_at_most_once_an_iteration():
    solver = spec("base_lr: 1 lr_policy: 'multistep' gamma: 0.5 stepvalue: 2 stepvalue: 2 stepvalue: 1 stepvalue: 9")
    assert falls(solver, 7) == [0, 0, 1, 2, 3, 3, 3]
    assert falls(solver, 4, start=20) == [1, 2, 3, 4]  # a state that counted none: it catches up


@given(st.lists(st.integers(0, 30), max_size=6), st.integers(0, 5), st.integers(0, 40))
def test_the_falls_of_a_run_from_the_start_need_no_counting(values, warm, iteration):
    solver = SolverParameter(base_lr=1, lr_policy="multistep", gamma=0.5, stepvalue=values, warmup_iter=warm)
    counted = falls(solver, iteration + 1)[-1]
    assert schedule.falls_by(solver, iteration) == counted
    assert rate(solver, iteration) == rate(solver, iteration, counted)


def test_plateau_falls_when_a_window_passes_without_an_event():
    solver = spec("base_lr: 1 lr_policy: 'plateau' gamma: 0.1 plateau_winsize: 10 plateau_winsize: 5")
    assert advance(solver, 9, 0, last_event=0) == 0
    assert advance(solver, 10, 0, last_event=0) == 1
    assert advance(solver, 10, 0, last_event=4) == 0
    assert advance(solver, 15, 1, last_event=10) == 2
    assert advance(solver, 999, 2, last_event=10) == 2  # no window is left
    assert rate(solver, 999, 2) == pytest.approx(0.01)


def test_cosine_is_torchs():
    peer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    ends = torch.optim.lr_scheduler.CosineAnnealingLR(peer, 40, eta_min=0.01)
    solver = spec("base_lr: 0.5 lr_policy: 'cosine' max_iter: 40 min_lr: 0.01")
    for i in range(40):
        assert rate(solver, i) == pytest.approx(peer.param_groups[0]["lr"], rel=1e-6)
        peer.step()
        ends.step()
    assert rate(solver, 400) == pytest.approx(0.01)


def test_a_warm_up_is_torchs_and_goes_before_any_policy():
    peer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    grows = torch.optim.lr_scheduler.LinearLR(peer, 0.2, 1.0, total_iters=10)
    for policy in ("'fixed'", "'step' gamma: 0.5 stepsize: 100", "'multistep' gamma: 0.5 stepvalue: 90"):
        solver = spec(f"base_lr: 0.5 warmup_iter: 10 warmup_start_lr: 0.1 lr_policy: {policy}")
        assert [rate(solver, i) for i in (0, 5, 10)] == pytest.approx([0.1, 0.3, 0.5])
    for i in range(15):
        assert rate(solver, i) == pytest.approx(peer.param_groups[0]["lr"], rel=1e-6)
        peer.step()
        grows.step()


def test_a_policy_after_a_warm_up_counts_from_the_start():
    warm = spec("base_lr: 1 lr_policy: 'cosine' max_iter: 100 warmup_iter: 10")
    plain = spec("base_lr: 1 lr_policy: 'cosine' max_iter: 100")
    assert rate(warm, 0) == 0
    assert [rate(warm, i) for i in range(10, 100)] == [rate(plain, i) for i in range(10, 100)]


def test_nothing_falls_during_a_warm_up():
    solver = spec("base_lr: 1 lr_policy: 'multistep' gamma: 0.5 stepvalue: 2 stepvalue: 3 warmup_iter: 5")
    assert falls(solver, 8) == [0, 0, 0, 0, 0, 1, 2, 2]


def test_numbers_out_of_range_end_in_zero_or_infinity_not_in_an_exception():
    assert rate(spec("base_lr: 1 lr_policy: 'sigmoid' gamma: 10 stepsize: 1000000"), 0) == 0
    assert rate(spec("base_lr: 1 lr_policy: 'exp' gamma: 10"), 5000) == math.inf
    assert rate(spec("base_lr: 1 lr_policy: 'exp' gamma: 10"), 100) == math.inf  # beyond float32 only
    assert rate(spec("base_lr: 1 lr_policy: 'poly' power: -1 max_iter: 10"), 10) == math.inf
    assert rate(spec("base_lr: 1 lr_policy: 'poly' power: 0.5 max_iter: 10"), 11) == 0  # Caffe: nan


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "base_lr: 1",
            "has no lr_policy; write one of cosine, exp, fixed, inv, multistep, plateau, poly, sigmoid, step",
        ),
        ("base_lr: 1 lr_policy: 'stepp'", "unknown lr_policy 'stepp'; did you mean 'step'?"),
        ("lr_policy: 'fixed'", "has no base_lr; write the learning rate, as base_lr: 0.01"),
        ("base_lr: nan lr_policy: 'fixed'", "base_lr is nan; expected a number"),
        ("base_lr: 1 gamma: inf lr_policy: 'exp'", "gamma is inf; expected a number"),
        ("base_lr: 1 lr_policy: 'step' gamma: 1", "stepsize is 0; lr_policy 'step' wants 1 or more iterations"),
        ("base_lr: 1 lr_policy: 'sigmoid' gamma: 1", "stepsize is 0; lr_policy 'sigmoid' wants 1 or more iterations"),
        ("base_lr: 1 lr_policy: 'exp' gamma: -0.5", "gamma is -0.5; lr_policy 'exp' wants 0 or more"),
        ("base_lr: 1 lr_policy: 'poly'", "max_iter is 0; lr_policy 'poly' wants 1 or more, to end at"),
        (
            "base_lr: 1 lr_policy: 'cosine' max_iter: -2",
            "max_iter is -2; lr_policy 'cosine' wants 1 or more, to end at",
        ),
        ("base_lr: 1 lr_policy: 'fixed' warmup_iter: -1", "warmup_iter is -1; expected 0 or more iterations"),
        (
            "base_lr: 1 lr_policy: 'plateau' gamma: 0.1",
            "plateau_winsize is not given; lr_policy 'plateau' wants 1 or more iterations for each fall",
        ),
        (
            "base_lr: 1 lr_policy: 'plateau' gamma: 0.1 plateau_winsize: 5 plateau_winsize: 0",
            "plateau_winsize is 5, 0; lr_policy 'plateau' wants 1 or more iterations for each fall",
        ),
    ],
)
def test_what_a_policy_lacks_is_told_in_one_line(words, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        schedule.check(spec(words))
