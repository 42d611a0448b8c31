"""Convolution and deconvolution: Caffe's numbers, direct loops, and what cannot be a convolution."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.layers import golden
from tests.ops.layers.alone import alone, draw, gradients_hold, run


@pytest.mark.parametrize("name", golden.names("conv", "deconv"))
def test_convolutions_compute_what_caffe_computes(name):
    assert max(golden.differences(name).values()) <= 1e-5


def looped(x, weight, bias, stride, pad, dilation, group):
    """(N, C, spatial..) convolved as the definition says, one output element after the other."""
    kernel, axes = weight.shape[2:], range(x.ndim - 2)
    extent = [dilation[a] * (kernel[a] - 1) + 1 for a in axes]
    sizes = [(x.shape[2 + a] + 2 * pad[a] - extent[a]) // stride[a] + 1 for a in axes]
    padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in pad)])
    y = np.zeros((len(x), len(weight), *sizes))
    outputs, inputs = len(weight) // group, x.shape[1] // group
    for place in itertools.product(*map(range, sizes)):
        cuts = zip(place, stride, extent, dilation, strict=True)
        window = padded[(..., *(slice(p * s, p * s + e, d) for p, s, e, d in cuts))]
        for o in range(len(weight)):
            first = o // outputs * inputs
            y[(slice(None), o, *place)] = (window[:, first : first + inputs] * weight[o]).reshape(len(x), -1).sum(1)
    return y + bias.reshape(-1, *[1] * len(sizes))


@st.composite
def geometries(draw, most=3):
    axes = draw(st.integers(1, most))
    sides = st.lists(st.integers(1, 3), min_size=axes, max_size=axes)
    kernel, stride, dilation = draw(sides), draw(sides), draw(sides)
    pad = draw(st.lists(st.integers(0, 3), min_size=axes, max_size=axes))
    extents = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, pad, strict=True)]
    sizes = [max(1, extent) + draw(st.integers(0, 3)) for extent in extents]
    group = draw(st.sampled_from([1, 2]))
    return kernel, stride, pad, dilation, sizes, group


def written(kernel, stride, pad, dilation, group, outputs=4, kind="Convolution"):
    sides = {"kernel_size": kernel, "stride": stride, "pad": pad, "dilation": dilation}
    text = " ".join(f"{name}: {value}" for name, values in sides.items() for value in values)
    return f'type: "{kind}" top: "y" convolution_param {{ num_output: {outputs} group: {group} {text} }}'


@settings(max_examples=60)
@given(geometries(most=4))
def test_any_geometry_is_that_of_the_direct_loops(geometry):
    kernel, stride, pad, dilation, sizes, group = geometry
    layer = alone(written(kernel, stride, pad, dilation, group), (2, 4, *sizes))
    x = draw(2, 4, *sizes, grad=False)
    blobs = [blob.detach().numpy() for blob in layer.blobs]
    np.testing.assert_allclose(
        run(layer, x).detach().numpy(), looped(x.numpy(), *blobs, stride, pad, dilation, group), atol=1e-10
    )


@settings(max_examples=40)
@given(geometries(most=4))
def test_a_deconvolution_is_the_transpose_of_the_convolution_with_its_geometry(geometry):
    kernel, stride, pad, dilation, sizes, group = geometry
    forward = alone(written(kernel, stride, pad, dilation, group), (2, 4, *sizes))
    counts = forward.windows.count(tuple(sizes))
    spread = (
        forward.windows.spread(counts)
        if min(forward.windows.extent[i] - 2 * pad[i] for i in range(len(pad))) > 0
        else None
    )
    if spread is None:
        return
    back = alone(written(kernel, stride, pad, dilation, group, kind="Deconvolution"), (2, 4, *counts))
    y, z = draw(2, 4, *counts, grad=False), draw(2, 4, *spread, seed=2, grad=False)
    with torch.no_grad():
        back.blobs[1].zero_()
        forward.blobs[1].zero_()
        back.blobs[0].copy_(forward.blobs[0])  # (outputs, inputs / group, ..) is (inputs, outputs / group, ..) turned
        assert torch.allclose((run(back, y) * z).sum(), (y * forward(z)).sum())


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
@pytest.mark.parametrize("axes", [1, 2, 3, 4])
def test_gradients_hold(kind, axes):
    sides = [2, 1, 2, 1][:axes]
    layer = alone(written(sides, sides, [0] * axes, [1] * axes, 2, kind=kind), (2, 4, *[3, 2, 3, 2][:axes]))
    assert gradients_hold(layer, draw(2, 4, *[3, 2, 3, 2][:axes]))


def test_axes_before_axis_are_batch_and_negatives_count_from_the_end():
    text = 'type: "Convolution" top: "y" convolution_param { num_output: 2 kernel_size: 3 axis: %d }'
    x = draw(2, 3, 4, 9, grad=False)
    here = run(alone(text % 2, (2, 3, 4, 9)), x)
    assert here.shape == (2, 3, 2, 7)
    assert torch.equal(here, run(alone(text % -2, (2, 3, 4, 9)), x))
    assert torch.allclose(here[1, 2], alone(text % 1, (1, 4, 9))(x[1, 2:3])[0])


def test_without_spatial_axes_it_is_a_matrix():
    layer = alone('type: "Convolution" top: "y" convolution_param { num_output: 2 }', (5, 3))
    x = draw(5, 3, grad=False)
    assert torch.allclose(run(layer, x), x @ layer.blobs[0].T + layer.blobs[1])


def test_bottoms_share_the_weights():
    text = 'type: "Convolution" top: "y" top: "z" convolution_param { num_output: 2 kernel_size: 3 }'
    layer = alone(text, (1, 3, 5, 5), (1, 3, 5, 5))
    a, b = draw(1, 3, 5, 5), draw(1, 3, 5, 5, seed=2)
    y, z = run(layer, a, b)
    assert torch.equal(z, layer(b, a)[0])
    assert torch.equal(y, layer(b, a)[1])


@pytest.mark.parametrize("kind", ["DepthwiseConvolution", "ConvolutionDepthwise"])
def test_depthwise_has_a_group_for_each_channel(kind):
    layer = alone(f'type: "{kind}" top: "y" convolution_param {{ num_output: 6 kernel_size: 3 }}', (2, 3, 5, 5))
    assert tuple(layer.blobs[0].shape) == (6, 1, 3, 3)
    x = draw(2, 3, 5, 5, grad=False)
    assert torch.allclose(run(layer, x), torch.nn.functional.conv2d(x, *layer.blobs, groups=3))


def test_another_size_is_just_another_call():
    layer = alone(written([3, 3], [1, 1], [0, 0], [1, 1], 1), (2, 4, 5, 5))
    assert layer(draw(7, 4, 9, 4)).shape == (7, 4, 7, 2)


@pytest.mark.parametrize(
    ("param", "shapes", "told"),
    [
        ("kernel_size: 3", [(1, 3, 9, 9)], "num_output 0: expected 1 or more"),
        ("num_output: 4", [(1, 3, 9, 9)], "has no kernel_size; give kernel_size, or kernel_h and kernel_w"),
        ("num_output: 4 kernel_size: 3 group: 2", [(1, 3, 9, 9)], "group 2 does not divide the bottom's channels (3)"),
        ("num_output: 4 kernel_size: 3 group: 3", [(1, 3, 9, 9)], "group 3 does not divide the num_output (4)"),
        ("num_output: 4 kernel_size: 3 group: 0", [(1, 3, 9, 9)], "group 0 does not divide"),
        ("num_output: 4 kernel_size: 0", [(1, 3, 9, 9)], "kernel 0 x 0: expected 1 or more on every axis"),
        ("num_output: 4 kernel_size: 3 stride: 0", [(1, 3, 9, 9)], "stride 0 x 0: expected 1 or more"),
        ("num_output: 4 kernel_size: 12", [(1, 3, 9, 9)], "12 x 12 does not fit into a bottom of 9 x 9 with pad 0 x 0"),
        ("num_output: 4 kernel_size: 5 dilation: 3", [(1, 3, 9, 9)], "5 x 5 dilated to 13 x 13 does not fit"),
        ("num_output: 4 kernel_h: 3", [(1, 3, 9, 9)], "gives only one of kernel_h and kernel_w"),
        ("num_output: 4 kernel_size: 3 kernel_h: 3 kernel_w: 3", [(1, 3, 9, 9)], "both kernel_size and kernel_h"),
        ("num_output: 4 kernel_h: 3 kernel_w: 3", [(1, 3, 9)], "for two spatial axes, the bottom has 1"),
        ("num_output: 4 kernel_size: 3 kernel_size: 3 kernel_size: 3", [(1, 3, 9, 9)], "kernel_size 3 times"),
        ("num_output: 4 kernel_size: 3 axis: 4", [(1, 3, 9, 9)], "axis 4 is outside a bottom of 4 axes"),
        ("num_output: 4 kernel_size: 3", [(1, 3, 9, 9), (1, 3, 9, 8)], "1 x 3 x 9 x 9, 1 x 3 x 9 x 8; all must be"),
    ],
)
def test_what_is_no_convolution_is_told(param, shapes, told):
    tops = " ".join(f'top: "y{i}"' for i in range(len(shapes)))
    with pytest.raises(ValueError, match=re.escape(told)):
        alone(f'type: "Convolution" {tops} convolution_param {{ {param} }}', *shapes)


def test_other_channels_than_the_weights_are_told():
    layer = alone(written([3, 3], [1, 1], [0, 0], [1, 1], 1), (2, 4, 5, 5))
    with pytest.raises(ValueError, match="2 x 3 x 5 x 5 has 3 channels, its weights are for 4"):
        layer(draw(2, 3, 5, 5))
