"""Pooling and SPP: Caffe's numbers, and direct loops over Caffe's windows."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.layers import golden
from tests.ops.layers.alone import alone, draw, gradients_hold, run

LEAST = -float(np.finfo(np.float32).max)


@pytest.mark.parametrize("name", golden.names("pool", "spp"))
def test_poolings_compute_what_caffe_computes(name):
    assert max(golden.differences(name).values()) <= 1e-5


@np.errstate(divide="ignore", invalid="ignore")
def looped(x, method, kernel, stride, pad, ceil):
    """Pooling as the fact sheet words it, window by window; also the place of each maximum."""
    sizes = []
    for size, k, s, p in zip(x.shape[2:], kernel, stride, pad, strict=True):
        rounded = math.ceil if ceil else math.floor
        count = rounded((size + 2 * p - k) / s) + 1
        if any(pad) and (count - 1) * s >= size + p:
            count -= 1
        sizes.append(count)
    y, places = np.zeros((*x.shape[:2], *sizes)), np.full((*x.shape[:2], *sizes), -1.0)
    for n, c, i, j in itertools.product(range(x.shape[0]), range(x.shape[1]), *map(range, sizes)):
        top, left = i * stride[0] - pad[0], j * stride[1] - pad[1]
        bottom, right = min(top + kernel[0], x.shape[2] + pad[0]), min(left + kernel[1], x.shape[3] + pad[1])
        cells = (bottom - top) * (right - left)
        inside = [
            (h, w)
            for h in range(max(top, 0), min(bottom, x.shape[2]))
            for w in range(max(left, 0), min(right, x.shape[3]))
        ]
        if method == "AVE":
            y[n, c, i, j] = np.divide(sum(x[n, c, h, w] for h, w in inside), cells)
            continue
        y[n, c, i, j] = LEAST
        for h, w in inside:
            if x[n, c, h, w] > y[n, c, i, j]:
                y[n, c, i, j], places[n, c, i, j] = x[n, c, h, w], h * x.shape[3] + w
    return y, places


@st.composite
def windows(draw):
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    pad = tuple(draw(st.integers(0, k - 1)) for k in kernel)
    sizes = tuple(draw(st.integers(max(1, k - 2 * p - s + 1), 9)) for k, p, s in zip(kernel, pad, stride, strict=True))
    return kernel, stride, pad, sizes, draw(st.booleans())


def written(method, kernel, stride, pad, ceil, tops='top: "y"'):
    pairs = {"kernel": kernel, "stride": stride, "pad": pad}
    sides = " ".join(f"{name}_h: {h} {name}_w: {w}" for name, (h, w) in pairs.items())
    mode = "CEIL" if ceil else "FLOOR"
    return f'type: "Pooling" {tops} pooling_param {{ pool: {method} {sides} round_mode: {mode} }}'


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_any_window_is_that_of_the_direct_loops(method, last):
    @settings(max_examples=60)
    @given(windows())
    def check(window):
        kernel, stride, pad, sizes, ceil = window
        x = draw(1, 2, *sizes, grad=False).round()  # many ties
        expected, places = looped(x.numpy(), method, kernel, stride, pad, ceil)
        if min(expected.shape) < 1:
            return
        form = torch.channels_last if last else torch.contiguous_format
        shaped = x.contiguous(memory_format=form)
        y = run(alone(written(method, kernel, stride, pad, ceil), x.shape), shaped)
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12, atol=1e-12)
        if method == "MAX":
            two = alone(written(method, kernel, stride, pad, ceil, 'top: "y" top: "mask"'), x.shape)
            y, mask = run(two, shaped)
            np.testing.assert_allclose(y.numpy(), expected)
            np.testing.assert_array_equal(mask.numpy(), places)

    check()


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize("pad", [0, 1, 2])
def test_gradients_hold(method, pad):
    layer = alone(written(method, (3, 3), (2, 2), (pad, pad), True), (2, 2, 6, 5))
    assert gradients_hold(layer, draw(2, 2, 6, 5))


def test_the_whole_bottom_in_one_window():
    x = draw(2, 3, 4, 5)
    for method, value in (("AVE", x.mean((2, 3))), ("MAX", x.amax((2, 3)))):
        layer = alone(f'type: "Pooling" top: "y" pooling_param {{ pool: {method} global_pooling: true }}', x.shape)
        assert torch.allclose(run(layer, x)[..., 0, 0], value)
        assert layer(draw(1, 3, 9, 2)).shape == (1, 3, 1, 1)


def test_stochastic_pooling_draws_in_proportion_and_means_in_test():
    text = 'type: "Pooling" top: "y" pooling_param { pool: STOCHASTIC kernel_size: 2 stride: 2 }'
    x = torch.tensor([[1.0, 3.0], [0.0, 4.0]], dtype=torch.float64).expand(20000, 1, 2, 2)
    assert run(alone(text, (1, 1, 2, 2)), x[:1]).item() == pytest.approx((1 + 9 + 16) / 8)
    layer = alone(text, (20000, 1, 2, 2), phase="TRAIN")
    layer.generator = torch.Generator().manual_seed(1)
    drawn = run(layer, x).flatten()
    shares = [(drawn == value).double().mean().item() for value in (1, 3, 0, 4)]
    assert shares == pytest.approx([1 / 8, 3 / 8, 0, 4 / 8], abs=0.02)
    assert run(alone(text, (1, 1, 2, 2)), torch.zeros(1, 1, 2, 2)).item() == 0


@given(st.integers(1, 4), st.integers(1, 17), st.integers(1, 17), st.sampled_from(["MAX", "AVE"]))
@settings(max_examples=60)
def test_a_pyramid_is_its_levels_side_by_side(height, rows, columns, method):
    x = draw(2, 3, rows, columns, grad=False)
    text = f'type: "SPP" top: "y" spp_param {{ pyramid_height: {height} pool: {method} }}'
    levels = []
    for level in range(height):
        bins = 2**level
        kernel = (-(-rows // bins), -(-columns // bins))
        pad = ((kernel[0] * bins - rows + 1) // 2, (kernel[1] * bins - columns + 1) // 2)
        if pad[0] >= kernel[0] or pad[1] >= kernel[1]:
            with pytest.raises(ValueError, match=f"cannot be cut into {bins} x {bins} bins"):
                alone(text, x.shape)
            return
        levels.append(looped(x.numpy(), method, kernel, kernel, pad, True)[0])
    y = run(alone(text, x.shape), x).numpy()
    flat = np.concatenate([one.reshape(2, -1) for one in levels], 1)
    np.testing.assert_allclose(y, flat if height > 1 else levels[0])


@pytest.mark.parametrize(
    ("param", "told"),
    [
        ("", "has no kernel_size; give kernel_size, or kernel_h and kernel_w, or global_pooling: true"),
        ("kernel_size: 0", "kernel 0 x 0, stride 1 x 1: expected 1 or more"),
        ("kernel_size: 2 stride: 0", "stride 0 x 0: expected 1 or more"),
        ("kernel_size: 2 kernel_h: 2 kernel_w: 2", "both kernel_size and kernel_h/kernel_w"),
        ("kernel_h: 2", "gives only one of kernel_h and kernel_w"),
        ("kernel_size: 2 stride_h: 2", "gives only one of stride_h and stride_w"),
        ("kernel_size: 2 pad: 2", "pad 2 x 2 must be smaller than the kernel 2 x 2"),
        ("kernel_size: 2 pad: 1 pool: STOCHASTIC", "pad goes with MAX and AVE only"),
        ("kernel_size: 2 global_pooling: true", "leave the kernel out"),
        ("pad: 1 global_pooling: true", "pad 0 and stride 1 only"),
        ("kernel_size: 9", "9 x 9 does not fit into a bottom of 5 x 5 with pad 0 x 0"),
    ],
)
def test_what_is_no_pooling_is_told(param, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        alone(f'type: "Pooling" top: "y" pooling_param {{ {param} }}', (1, 2, 5, 5))


def test_a_second_top_and_other_axes_are_told():
    with pytest.raises(ValueError, match="needs pool: MAX, found AVE"):
        alone('type: "Pooling" top: "y" top: "z" pooling_param { pool: AVE kernel_size: 2 }', (1, 2, 5, 5))
    with pytest.raises(ValueError, match="1 x 2 x 5 has 3 axes, expected 4"):
        alone('type: "Pooling" top: "y" pooling_param { kernel_size: 2 }', (1, 2, 5))
    with pytest.raises(ValueError, match="pyramid_height 0"):
        alone('type: "SPP" top: "y"', (1, 2, 5, 5))
