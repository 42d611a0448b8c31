from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.layers import golden
from tests.ops.layers.alone import alone, draw, gradients_hold, run


@pytest.mark.parametrize("name", golden.names("ip", "embed", "scale", "bias", "parameter"))
def test_dense_layers_compute_what_caffe_computes(name):
    assert max(golden.differences(name).values()) <= 1e-5


def shapes_of(layer):
    return [tuple(blob.shape) for blob in layer.blobs]


# -- InnerProduct ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transpose", [True, False])
@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2, -4])
def test_inner_product_flattens_from_its_axis_on(axis, transpose, bias):
    shape, text = (2, 3, 2, 2), f"axis: {axis} transpose: {transpose} bias_term: {bias}".lower()
    layer = alone(f'type: "InnerProduct" inner_product_param {{ num_output: 5 {text} }}', shape)
    k = math.prod(shape[axis:])
    assert shapes_of(layer) == [(k, 5) if transpose else (5, k)] + [(5,)] * bias
    x, (weight, *rest) = draw(*shape), layer.blobs
    expected = x.reshape(*shape[: axis % 4], k) @ (weight if transpose else weight.T) + (rest[0] if bias else 0)
    torch.testing.assert_close(run(layer, x), expected)
    assert gradients_hold(layer, x)


def test_inner_product_reads_channels_last_bottoms_in_their_logical_order():
    layer, x = alone('type: "InnerProduct" inner_product_param { num_output: 5 }', (2, 3, 4, 2)), draw(2, 3, 4, 2)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), layer(x))


def test_inner_product_takes_any_batch_and_refuses_another_width():
    layer = alone('type: "InnerProduct" inner_product_param { num_output: 5 }', (2, 3, 4))
    assert layer(draw(7, 12)).shape == (7, 5)
    assert layer(draw(0, 3, 4)).shape == (0, 5)
    with pytest.raises(ValueError, match="2 x 3 x 5 has 15 numbers from axis 1 on, the weights of 5 x 12 take 12"):
        layer(draw(2, 3, 5))


# -- Embed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3)])
def test_embed_looks_up_rows(shape, bias):
    layer = alone(f'type: "Embed" embed_param {{ input_dim: 4 num_output: 5 bias_term: {str(bias).lower()} }}', shape)
    assert shapes_of(layer) == [(4, 5)] + [(5,)] * bias
    index = torch.arange(math.prod(shape)).reshape(shape) % 4
    y = run(layer, index + 0.9)  # cut to whole numbers
    torch.testing.assert_close(y, layer.blobs[0][index] + (layer.blobs[1] if bias else 0))
    assert gradients_hold(layer, index.double())


@pytest.mark.parametrize(("value", "shown"), [(4.0, "4"), (-1.0, "-1"), (math.nan, "-9223372036854775808")])
def test_embed_tells_an_index_that_is_no_row(value, shown):
    layer = alone('type: "Embed" embed_param { input_dim: 4 num_output: 5 }', (2,))
    with pytest.raises(ValueError, match=rf"index {shown} is outside 0..3 \(input_dim is 4\)"):
        layer(torch.tensor([1.0, value]))


# -- Scale and Bias --------------------------------------------------------------------------------------------------

SHAPE = (2, 3, 4, 2)
PLACES = [  # axis, num_axes, where the factor lies
    (1, 1, slice(1, 2)),
    (0, 1, slice(0, 1)),
    (-1, 1, slice(3, 4)),
    (1, 2, slice(1, 3)),
    (-2, 2, slice(2, 4)),
    (0, -1, slice(0, 4)),
    (2, -1, slice(2, 4)),
    (1, 0, slice(1, 1)),
]


def laid(factor, place):
    """`factor` with the rank of SHAPE, as numpy broadcasts it."""
    return factor.reshape(*[1] * place.start, *factor.shape, *[1] * (4 - place.stop))


@pytest.mark.parametrize(("axis", "num_axes", "place"), PLACES)
@pytest.mark.parametrize("bias", [True, False])
def test_scale_multiplies_along_its_axes(axis, num_axes, place, bias):
    text = f"axis: {axis} num_axes: {num_axes} bias_term: {str(bias).lower()}"
    layer = alone(f'type: "Scale" scale_param {{ {text} }}', SHAPE)
    assert shapes_of(layer) == [SHAPE[place]] * (1 + bias)
    assert layer.per_channel == (place == slice(1, 2))
    x = draw(*SHAPE)
    expected = x * laid(layer.blobs[0], place) + (laid(layer.blobs[1], place) if bias else 0)
    torch.testing.assert_close(run(layer, x), expected)
    assert gradients_hold(layer, x)


@pytest.mark.parametrize(("axis", "num_axes", "place"), PLACES)
def test_bias_adds_along_its_axes(axis, num_axes, place):
    layer = alone(f'type: "Bias" bias_param {{ axis: {axis} num_axes: {num_axes} }}', SHAPE)
    assert shapes_of(layer) == [SHAPE[place]]
    x = draw(*SHAPE)
    torch.testing.assert_close(run(layer, x), x + laid(layer.blobs[0], place))
    assert gradients_hold(layer, x)


@pytest.mark.parametrize("place", [slice(0, 0), slice(0, 1), slice(1, 2), slice(1, 3), slice(0, 4), slice(2, 4)])
def test_scale_and_bias_take_a_second_bottom(place):
    x, factor = draw(*SHAPE), draw(*SHAPE[place], seed=2)
    # A factor of one number has no axes to lay: `axis` does not count.
    axis = place.start if factor.dim() else 9
    scale = alone(f'type: "Scale" scale_param {{ axis: {axis} }}', SHAPE, tuple(factor.shape))
    biased = alone(f'type: "Scale" scale_param {{ axis: {axis} bias_term: true }}', SHAPE, tuple(factor.shape))
    bias = alone(f'type: "Bias" bias_param {{ axis: {axis} }}', SHAPE, tuple(factor.shape))
    assert shapes_of(scale) == shapes_of(bias) == []
    assert shapes_of(biased) == [SHAPE[place]]
    assert not biased.per_channel
    wide = laid(factor, place)
    torch.testing.assert_close(run(scale, x, factor), x * wide)
    torch.testing.assert_close(run(biased, x, factor), x * wide + laid(biased.blobs[0], place))
    torch.testing.assert_close(run(bias, x, factor), x + wide)
    assert all(gradients_hold(layer, x, factor) for layer in (scale, biased, bias))


@settings(max_examples=30)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=6), st.data())
def test_scale_fits_bottoms_of_any_rank(shape, data):
    axis = data.draw(st.integers(0, len(shape) - 1))
    number = data.draw(st.integers(0, len(shape) - axis))
    layer = alone(f'type: "Scale" scale_param {{ axis: {axis} num_axes: {number} bias_term: true }}', tuple(shape))
    scale, bias = (np.reshape(b.detach().numpy(), (*b.shape, *[1] * (len(shape) - axis - number))) for b in layer.blobs)
    x = draw(*shape, grad=False)
    np.testing.assert_allclose(run(layer, x).detach(), x.numpy() * scale + bias, atol=1e-12)


@pytest.mark.parametrize("bias", ["true", "false"])
def test_scale_keeps_the_memory_format_and_takes_any_batch_and_size(bias):
    layer = alone(f'type: "Scale" scale_param {{ bias_term: {bias} }}', SHAPE)
    x = draw(5, 3, 7, 6)
    y = layer(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, layer(x))
    assert layer(draw(0, 3, 7, 6)).shape == (0, 3, 7, 6)


def test_scale_starts_at_one_and_everything_else_at_zero_unless_told():
    scale = alone('type: "Scale" scale_param { bias_term: true }', SHAPE)
    told = alone('type: "Scale" scale_param { filler { type: "constant" } }', SHAPE)
    bias = alone('type: "Bias"', SHAPE)
    assert [filler.value for filler in scale.fillers] == [1, 0]
    assert [layer.fillers[0].value for layer in (told, bias)] == [0, 0]


# -- Parameter -------------------------------------------------------------------------------------------------------


def test_parameter_gives_its_blob():
    layer = alone('type: "Parameter" parameter_param { shape { dim: 2 dim: 3 } }')
    assert run(layer) is layer.blobs[0]
    assert shapes_of(layer) == [(2, 3)]
    assert layer.fillers == [None]
    assert not layer.fresh


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        ('type: "InnerProduct"', [(2, 3)], "num_output is missing; expected 1 or more"),
        ('type: "InnerProduct" inner_product_param { num_output: 2 axis: 2 }', [(2, 3)], "axis 2 is outside"),
        ('type: "InnerProduct" inner_product_param { num_output: 4000000000 }', [(2, 3)], "at most"),
        ('type: "InnerProduct" inner_product_param { num_output: 2 }', [(2, 3), (2, 3)], "has 2 bottoms, expected 1"),
        ('type: "Embed" embed_param { num_output: 2 }', [(2,)], "input_dim is missing"),
        ('type: "Embed" embed_param { input_dim: 2 }', [(2,)], "num_output is missing"),
        ('type: "Scale" scale_param { axis: 2 }', [(2, 3)], "axis 2 is outside a bottom of 2 axes"),
        ('type: "Scale" scale_param { num_axes: 2 }', [(2, 3)], "axis 1 and num_axes 2 reach past the 2 axes of 2 x 3"),
        ('type: "Scale" scale_param { num_axes: -2 }', [(2, 3)], "num_axes is -2"),
        ('type: "Scale"', [(2, 3), (2,)], "bottom 1 of 2 does not fit bottom 0 of 2 x 3 from axis 1 on"),
        ('type: "Scale"', [(2, 3), (3, 4)], "bottom 1 of 3 x 4 does not fit bottom 0 of 2 x 3 from axis 1 on"),
        ('type: "Bias" bias_param { axis: 0 }', [(2, 3), (3,)], "bottom 1 of 3 does not fit bottom 0 of 2 x 3"),
        ('type: "Parameter" parameter_param { shape { dim: 0 } }', [], "a blob of shape 0 is empty"),
        ('type: "Parameter" parameter_param { shape { dim: 2 dim: -1 } }', [], "a blob of shape 2 x -1 is empty"),
        ('type: "Parameter"', [(2,)], "has 1 bottom, expected 0"),
    ],
)
def test_bad_parameters_and_shapes_are_told(text, shapes, message):
    with pytest.raises(ValueError, match=message) as told:
        alone(text, *shapes)
    assert "\n" not in str(told.value)


def test_a_bottom_that_no_longer_fits_its_factor_is_told_when_it_comes():
    layer = alone('type: "Scale"', (2, 3, 4))
    for shape in ((2, 1, 4), (2, 4, 4), (2,)):
        with pytest.raises(ValueError, match="of 3 does not fit bottom 0 of"):
            layer(draw(*shape))
