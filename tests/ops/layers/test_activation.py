from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.ops.layers import golden
from tests.ops.layers.alone import alone, draw, gradients_hold, run

# A layer's text -> its formula in numpy.
FORMULAS = {
    'type: "ReLU"': lambda x: np.maximum(x, 0),
    'type: "ReLU" relu_param { negative_slope: 0.25 }': lambda x: np.maximum(x, 0) + 0.25 * np.minimum(x, 0),
    'type: "ReLU" relu_param { negative_slope: -0.5 }': lambda x: np.maximum(x, 0) - 0.5 * np.minimum(x, 0),
    'type: "ReLU6"': lambda x: np.minimum(np.maximum(x, 0), 6),
    'type: "ELU"': lambda x: np.where(x > 0, x, np.exp(x) - 1),
    'type: "ELU" elu_param { alpha: 0.5 }': lambda x: np.where(x > 0, x, 0.5 * (np.exp(x) - 1)),
    'type: "ELU" elu_param { alpha: -0.5 }': lambda x: np.where(x > 0, x, -0.5 * (np.exp(x) - 1)),
    'type: "Sigmoid"': lambda x: 0.5 * np.tanh(0.5 * x) + 0.5,
    'type: "TanH"': np.tanh,
    'type: "Swish"': lambda x: x / (1 + np.exp(-x)),
    'type: "Swish" swish_param { beta: -1.5 }': lambda x: x / (1 + np.exp(1.5 * x)),
    'type: "Swish" swish_param { beta: 0 }': lambda x: x / 2,
    'type: "Clip" clip_param { min: -1 max: 0.5 }': lambda x: np.clip(x, -1, 0.5),
    'type: "AbsVal"': np.abs,
    'type: "BNLL"': lambda x: np.log(1 + np.exp(x)),
    'type: "Exp"': np.exp,
    'type: "Exp" exp_param { scale: -0.5 shift: 1.5 }': lambda x: np.exp(1.5 - 0.5 * x),
    'type: "Exp" exp_param { base: 2 scale: 0.5 shift: -1 }': lambda x: 2 ** (-1 + 0.5 * x),
    'type: "Exp" exp_param { base: 1 }': np.ones_like,
    'type: "Log" log_param { shift: 16 }': lambda x: np.log(16 + x),
    'type: "Log" log_param { base: 0.5 scale: 2 shift: 32 }': lambda x: np.log(32 + 2 * x) / np.log(0.5),
    'type: "Power"': lambda x: x,
    'type: "Power" power_param { scale: -2 shift: 3 }': lambda x: 3 - 2 * x,
    'type: "Power" power_param { shift: 3 }': lambda x: 3 + x,
    'type: "Power" power_param { power: 2 scale: 0.5 shift: 1 }': lambda x: (1 + 0.5 * x) ** 2,
    'type: "Power" power_param { power: 3 }': lambda x: x**3,
    'type: "Power" power_param { power: -0.75 scale: -0.25 shift: 4 }': lambda x: (4 - 0.25 * x) ** -0.75,
    'type: "Power" power_param { power: 0 scale: 2 }': np.ones_like,
    'type: "Power" power_param { power: 3 scale: 0 shift: 2 }': lambda x: np.full_like(x, 8),
}
IN_PLACE = [
    text for text in FORMULAS if any(f'"{name}"' in text for name in ("ReLU", "ReLU6", "ELU", "Sigmoid", "TanH"))
]


@pytest.mark.parametrize("name", golden.names("act_"))
def test_element_wise_layers_compute_what_caffe_computes(name):
    assert max(golden.differences(name).values()) <= 1e-5


@pytest.mark.parametrize("text", FORMULAS)
@pytest.mark.parametrize("shape", [(5, 3, 2, 4), (7,), ()])
def test_values_are_those_of_the_formula(text, shape):
    x = draw(*shape, grad=False) * 3
    y = run(alone(text, shape), x)
    np.testing.assert_allclose(y.numpy(), FORMULAS[text](x.numpy()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("text", FORMULAS)
def test_gradients_are_those_of_the_formula(text):
    assert gradients_hold(alone(text, (4, 3)), draw(4, 3))


@pytest.mark.parametrize("text", FORMULAS)
def test_a_top_that_is_fresh_may_be_overwritten(text):
    x = draw(4, 3)
    layer = alone(text, (4, 3))
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    y = layer(x)
    if layer.fresh:
        assert y is not x
        twice = 2 * y.detach()
        y.mul_(1)  # an error in the backward if it needed what was there
        (found,) = torch.autograd.grad(y, x, twice)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("text", IN_PLACE)
def test_in_place_gives_the_same_values_and_gradients(text):
    x = draw(4, 3)
    layer = alone(text, (4, 3))
    y = layer(x)
    (expected,) = torch.autograd.grad(y.square().sum(), x)
    layer.inplace = True
    bottom = x * 1
    top = layer(bottom)
    (found,) = torch.autograd.grad(top.square().sum(), x)
    torch.testing.assert_close(top, y)
    torch.testing.assert_close(found, expected)
    assert (top.data_ptr() == bottom.data_ptr()) == ("-" not in text)  # a negative slope loses the sign


def slopes(text, values):
    """The gradient at each value."""
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(alone(text, (len(values),))(x).sum(), x)
    return slope.tolist()


@pytest.mark.parametrize(
    ("text", "at", "slope"),
    [
        ('type: "ReLU"', [0.0, -0.0], [0, 0]),
        ('type: "ReLU" relu_param { negative_slope: 0.5 }', [0.0], [0.5]),
        ('type: "ReLU6"', [0.0, 6.0], [0, 0]),
        ('type: "ELU" elu_param { alpha: 0.5 }', [0.0], [0.5]),
        ('type: "AbsVal"', [-2.0, 0.0, 2.0], [-1, 0, 1]),
        ('type: "Clip" clip_param { min: -1 max: 1 }', [-1.5, -1.0, 1.0, 1.5], [0, 1, 1, 0]),
        ('type: "BNLL"', [-800.0, 0.0, 60.0, 800.0], [0, 0.5, 1, 1]),
        ('type: "Power" power_param { power: 2 }', [0.0], [0]),
        ('type: "Power" power_param { power: 0 }', [0.0, math.nan], [0, 0]),
        ('type: "Power" power_param { power: 2 scale: 0 }', [0.0], [0]),
    ],
)
def test_gradients_at_the_corners_are_caffes(text, at, slope):
    assert slopes(text, at) == slope


@pytest.mark.parametrize("power", ["power: 0.5", "power: 3", "power: 3 scale: 2", "power: 1.5 shift: 2 scale: 2"])
def test_power_has_a_gradient_of_nan_where_its_base_is_zero(power):
    zero = -1.0 if "shift" in power else 0.0
    assert math.isnan(slopes(f'type: "Power" power_param {{ {power} }}', [zero])[0])


def test_bnll_does_not_overflow():
    y = alone('type: "BNLL"', (3,))(torch.tensor([-1000.0, 80.0, 1000.0]))
    assert y.tolist() == [0, 80, 1000]


@pytest.mark.parametrize("text", [text for text in FORMULAS if "power: 0" not in text and "scale: 0 " not in text])
def test_nan_stays_nan(text):
    if "base: 1 " not in text:
        assert alone(text, (1,))(torch.tensor([math.nan])).isnan().all()


@pytest.mark.parametrize(("shift", "power", "value"), [(-2, 0.5, math.nan), (0, -1, math.inf), (0, 0, 1), (-2, 3, -8)])
def test_a_power_without_scale_is_a_constant(shift, power, value):
    y = alone(f'type: "Power" power_param {{ power: {power} scale: 0 shift: {shift} }}', (2,))(torch.zeros(2))
    np.testing.assert_array_equal(y, [value, value])


def test_threshold_is_strict_and_has_no_gradient():
    layer = alone('type: "Threshold" threshold_param { threshold: 0.5 }', (4,))
    x = torch.tensor([0.0, 0.5, 0.75, math.nan], requires_grad=True)
    y = run(layer, x)
    assert y.tolist() == [0, 0, 1, 0]
    with pytest.raises(ValueError, match="Threshold has no gradient"):
        y.sum().backward()


# -- PReLU -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 2), (2, 3, 2, 2, 2)])
@pytest.mark.parametrize("shared", ["true", "false"])
def test_prelu_has_a_slope_a_channel_or_one(shape, shared):
    layer = alone(f'type: "PReLU" prelu_param {{ channel_shared: {shared} }}', shape)
    assert [tuple(blob.shape) for blob in layer.blobs] == [() if shared == "true" else (3,)]
    x = draw(*shape)
    slope = layer.blobs[0].detach().numpy().reshape(-1, *[1] * (len(shape) - 2))
    value = x.detach().numpy()
    np.testing.assert_allclose(run(layer, x).detach(), np.maximum(value, 0) + slope * np.minimum(value, 0))
    assert gradients_hold(layer, x)


def test_prelu_starts_at_a_quarter_unless_told():
    assert alone('type: "PReLU"', (1, 2)).fillers[0].value == 0.25
    assert alone('type: "PReLU" prelu_param { filler { value: 0.1 } }', (1, 2)).fillers[0].value == pytest.approx(0.1)
    assert alone('type: "PReLU" prelu_param { filler { } }', (1, 2)).fillers[0].value == 0


# -- Dropout ---------------------------------------------------------------------------------------------------------


def dropout(ratio=0.3, phase="TRAIN", shape=(100, 40)):
    return alone(f'type: "Dropout" dropout_param {{ dropout_ratio: {ratio} }}', shape, phase=phase)


def test_dropout_lets_everything_pass_when_testing():
    x = draw(100, 40)
    assert dropout(phase="TEST")(x) is x


@pytest.mark.parametrize("seed", [None, 3])
def test_dropout_drops_its_share_and_scales_the_rest(seed):
    layer = dropout(0.3)
    torch.manual_seed(5)
    layer.generator = None if seed is None else torch.Generator().manual_seed(seed)
    x = torch.full((100, 40), 2.0, requires_grad=True)
    y = run(layer, x)
    kept = y != 0
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 2 / 0.7))
    assert abs(kept.double().mean() - 0.7) < 0.03  # 4 standard deviations
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(kept, 1 / 0.7, 0.0))


def test_dropout_with_a_generator_of_one_state_drops_the_same():
    layer, x = dropout(shape=(8, 6, 5, 4)), draw(8, 6, 5, 4)
    tops = []
    for bottom in (x, x.to(memory_format=torch.channels_last), x.float()):
        layer.generator = torch.Generator().manual_seed(11)
        torch.rand(3)  # torch's own chance plays no part
        tops.append(layer(bottom) != 0)
    assert torch.equal(tops[0], tops[1])
    assert torch.equal(tops[0], tops[2])
    assert not torch.equal(tops[0], layer(x) != 0)


@pytest.mark.parametrize(
    "text", ['type: "Dropout"', 'type: "Sigmoid"', 'type: "ReLU" relu_param { negative_slope: 2 }']
)
def test_another_batch_and_size_are_just_another_call(text):
    layer = alone(text, (2, 3, 4, 5), phase="TRAIN")
    assert layer(draw(7, 3, 9, 2)).shape == (7, 3, 9, 2)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('type: "Clip"', "needs both ends"),
        ('type: "Clip" clip_param { min: 2 max: 1 }', "min 2 above max 1"),
        ('type: "Exp" exp_param { base: 0 }', "base is 0; expected a number above 0, or -1 for e"),
        ('type: "Exp" exp_param { base: -2 }', "base is -2"),
        ('type: "Log" log_param { base: -3 }', "base is -3"),
        ('type: "Log" log_param { base: nan }', "base is nan"),
        ('type: "Log" log_param { base: 1 }', "base 1 has no logarithm"),
        ('type: "PReLU"', "two or more axes"),
        ('type: "Dropout" dropout_param { dropout_ratio: 1 }', "dropout_ratio is 1"),
        ('type: "Dropout" dropout_param { dropout_ratio: -0.5 }', "dropout_ratio is -0.5"),
        ('type: "AbsVal" bottom: "x" top: "x"', "cannot work in place: give the top another name than 'x'"),
    ],
)
def test_bad_parameters_are_told(text, message):
    with pytest.raises(ValueError, match=message) as told:
        alone(text, (3,))
    assert "\n" not in str(told.value)
