"""Signs of a training that goes wrong, in losses whose course is known."""

import math

import numpy as np
import pytest

from ops import net as nets
from ops.proto import text
from ops.proto.caffe_pb2 import NetParameter, SolverParameter
from ops.training.signs import WINDOW, Signs

NET = """
layer { name: "data" type: "Input" top: "data" top: "label"
  input_param { shape { dim: 4 dim: 3 } shape { dim: 4 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 20 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" WEIGHT }
"""
NOISE = np.random.default_rng(1)


def signs(*, weight="", begun=0, max_iter=500):
    net = nets.load(text.parse(NET.replace("WEIGHT", weight), NetParameter), "TRAIN")
    return Signs.of(net, SolverParameter(base_lr=0.01, max_iter=max_iter), begun=begun)


def told(seen, losses):
    return [line for iteration, loss in enumerate(losses) for line in seen.see(iteration, float(loss))]


def test_a_loss_that_stays_at_that_of_guessing_is_told_once():
    lines = told(signs(), math.log(20) + 0.01 * NOISE.normal(size=500))
    assert len(lines) == 1
    assert "learnt nothing in 100 iterations: the loss is about 2.99" in lines[0]
    assert "guessed among 20 classes" in lines[0]
    assert "--lr-range" in lines[0]


def test_the_weights_of_several_losses_count():
    assert signs(weight="loss_weight: 0.3").guess == pytest.approx(0.3 * math.log(20))


def test_a_loss_that_falls_says_nothing():
    assert told(signs(), 3 * np.exp(-np.arange(500) / 300) + 0.1 * NOISE.normal(size=500)) == []


def test_a_loss_that_comes_down_from_the_sky_to_that_of_guessing_has_learnt_nothing():
    lines = told(signs(), [*np.linspace(5, 3, 40), *np.full(200, math.log(20))])
    assert "learnt nothing" in lines[0]


def test_a_loss_that_explodes_at_once_is_told_by_how_guessing_does():
    assert "explodes" in told(signs(), [3.56, 8.27, 14.9, 14.2, 13.1, 26.8, 15.7, 24.7, 12.7, 5.2, 5.7])[0]


def test_a_loss_that_begins_high_and_falls_says_nothing():
    assert told(signs(), [*np.linspace(87, 2, 40), *np.full(200, 1.5)]) == []


def test_a_net_that_knew_everything_from_the_start_says_nothing():
    assert told(signs(), np.full(500, 0.05)) == []


def test_a_training_that_goes_on_need_not_move():
    assert told(signs(begun=400), np.full(500, 3.0)) == []


@pytest.mark.parametrize("steps", [5, 100])
def test_a_loss_that_explodes_is_told_once_with_a_tenth_of_the_rate(steps):
    losses = [*np.full(WINDOW, 3.0), *np.linspace(3, 60, steps), *np.full(400, 60.0)]
    lines = told(signs(), losses)
    assert len(lines) == 1
    assert "the loss explodes" in lines[0]
    assert "base_lr: 0.001" in lines[0]


def test_where_nobody_knows_what_guessing_gives_a_still_loss_is_told_too():
    seen = signs()
    seen.guess = None
    assert "learnt nothing" in told(seen, np.full(500, 1e-3))[0]
