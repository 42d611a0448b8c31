from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.layers import golden
from tests.ops.layers.alone import alone, draw, gradients_hold, run

GOLDEN = ("concat", "slice", "split", "flatten", "reshape", "crop", "permless_tile", "im2col")
SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple)
EXAMPLES = settings(max_examples=60)


@pytest.mark.parametrize("name", golden.names(*GOLDEN))
def test_shape_layers_compute_what_caffe_computes(name):
    assert max(golden.differences(name).values()) <= 1e-5


def counted(*shape):
    """0, 1, 2... in a shape: no number twice."""
    return torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)


def repeated(name, numbers):
    return " ".join(f"{name}: {number}" for number in numbers)


def either_sign(axis, rank, negative):
    return axis - rank if negative else axis


# -- against numpy, for any shape ------------------------------------------------------------------------------------


@EXAMPLES
@given(SHAPES, st.data())
def test_flatten_joins_the_axes_of_its_range(shape, data):
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(shape) - 1)] * 2)))
    written = [either_sign(axis, len(shape), data.draw(st.booleans())) for axis in (first, last)]
    layer = alone(f'type: "Flatten" flatten_param {{ axis: {written[0]} end_axis: {written[1]} }}', shape)
    expected = counted(*shape).numpy().reshape(*shape[:first], -1, *shape[last + 1 :])
    np.testing.assert_array_equal(run(layer, counted(*shape)), expected)


@EXAMPLES
@given(SHAPES, st.data())
def test_reshape_replaces_the_axes_of_its_range(shape, data):
    rank = len(shape)
    start = data.draw(st.integers(0, rank))
    number = data.draw(st.integers(0, rank - start))
    replaced = shape[start : start + number]
    dims = data.draw(st.sampled_from([[*replaced], [*reversed(replaced)], [math.prod(replaced)], [1, *replaced, 1]]))
    target = (*shape[:start], *dims, *shape[start + number :])
    written = [
        0 if start + i < rank and size == shape[start + i] and data.draw(st.booleans()) else size
        for i, size in enumerate(dims)
    ]
    if dims and data.draw(st.booleans()):
        written[data.draw(st.integers(0, len(dims) - 1))] = -1
    axis = start - rank - 1 if data.draw(st.booleans()) else start
    number = -1 if start + number == rank and data.draw(st.booleans()) else number
    layer = alone(
        f'type: "Reshape" reshape_param {{ shape {{ {repeated("dim", written)} }} axis: {axis} num_axes: {number} }}',
        shape,
    )
    np.testing.assert_array_equal(run(layer, counted(*shape)), counted(*shape).numpy().reshape(target))


@EXAMPLES
@given(SHAPES, st.data())
def test_slice_cuts_before_each_point(shape, data):
    axis = data.draw(st.integers(0, len(shape) - 1))
    size = shape[axis]
    points = sorted(data.draw(st.sets(st.integers(1, size - 1)))) if size > 1 else []
    equal = data.draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
    old = data.draw(st.booleans())
    where = f"slice_dim: {axis}" if old else f"axis: {either_sign(axis, len(shape), data.draw(st.booleans()))}"
    tops = repeated("top", [f'"t{i}"' for i in range(len(points) + 1 if points else equal)])
    layer = alone(f'type: "Slice" {tops} slice_param {{ {where} {repeated("slice_point", points)} }}', shape)
    parts = np.split(counted(*shape).numpy(), points or equal, axis)
    for ours, theirs in itertools.zip_longest(run(layer, counted(*shape)), parts):
        np.testing.assert_array_equal(ours, theirs)


@EXAMPLES
@given(SHAPES, st.data())
def test_concat_undoes_slice(shape, data):
    axis = data.draw(st.integers(0, len(shape) - 1))
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    parts = [counted(*shape[:axis], size, *shape[axis + 1 :]) + 1000 * i for i, size in enumerate(sizes)]
    old = data.draw(st.booleans())
    where = f"concat_dim: {axis}" if old else f"axis: {either_sign(axis, len(shape), data.draw(st.booleans()))}"
    layer = alone(f'type: "Concat" concat_param {{ {where} }}', *(tuple(part.shape) for part in parts))
    whole = run(layer, *parts)
    np.testing.assert_array_equal(whole, np.concatenate([part.numpy() for part in parts], axis))
    assert layer.fresh == (len(parts) > 1)


@EXAMPLES
@given(SHAPES, st.data())
def test_crop_takes_the_second_bottoms_sizes_at_the_offsets(shape, data):
    axis = data.draw(st.integers(0, len(shape) - 1))
    sizes = [data.draw(st.integers(1, size)) for size in shape]
    room = [size - taken for size, taken in zip(shape[axis:], sizes[axis:], strict=True)]
    how = data.draw(st.sampled_from(["none", "one", "each"]))
    offsets = {
        "none": lambda: [],
        "one": lambda: [data.draw(st.integers(0, min(room)))],
        "each": lambda: [data.draw(st.integers(0, free)) for free in room],
    }[how]()
    written = either_sign(axis, len(shape), data.draw(st.booleans()))
    layer = alone(f'type: "Crop" crop_param {{ axis: {written} {repeated("offset", offsets)} }}', shape, tuple(sizes))
    starts = (offsets or [0]) * len(room) if len(offsets) < 2 else offsets
    window = [slice(None)] * axis + [slice(a, a + n) for a, n in zip(starts, sizes[axis:], strict=False)]
    y = run(layer, counted(*shape), torch.zeros(sizes))
    np.testing.assert_array_equal(y, counted(*shape).numpy()[tuple(window)])


@EXAMPLES
@given(SHAPES, st.data())
def test_tile_repeats_blocks(shape, data):
    axis, tiles = data.draw(st.integers(0, len(shape) - 1)), data.draw(st.integers(1, 4))
    written = either_sign(axis, len(shape), data.draw(st.booleans()))
    layer = alone(f'type: "Tile" tile_param {{ axis: {written} tiles: {tiles} }}', shape)
    expected = np.concatenate([counted(*shape).numpy()] * tiles, axis)
    np.testing.assert_array_equal(run(layer, counted(*shape)), expected)


@EXAMPLES
@given(SHAPES, st.data())
def test_permute_orders_the_named_axes_and_lets_the_others_follow(shape, data):
    order = data.draw(st.permutations(range(len(shape))))
    named = order[: data.draw(st.integers(0, len(shape)))]
    layer = alone(f'type: "Permute" permute_param {{ {repeated("order", named)} }}', shape)
    whole = [*named, *sorted(set(range(len(shape))) - set(named))]
    np.testing.assert_array_equal(run(layer, counted(*shape)), counted(*shape).numpy().transpose(whole))


def columns(x, kernel, stride, pad, dilation):
    """Im2col by loops: (N, C, sizes) -> (N, C * taps, windows an axis)."""
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in pad)])
    sizes = x.shape[2:]
    counts = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(sizes, kernel, stride, dilation, strict=True)]
    out = np.empty((x.shape[0], x.shape[1], math.prod(kernel), *counts))
    for t, tap in enumerate(itertools.product(*map(range, kernel))):
        for at in itertools.product(*map(range, counts)):
            place = tuple(i * s + k * d for i, s, k, d in zip(at, stride, tap, dilation, strict=True))
            out[(slice(None), slice(None), t, *at)] = x[(slice(None), slice(None), *place)]
    return out.reshape(x.shape[0], -1, *counts)


@EXAMPLES
@given(st.integers(1, 3), st.data())
def test_im2col_gathers_every_window(axes, data):
    def one_each(least, most):
        return data.draw(st.lists(st.integers(least, most), min_size=axes, max_size=axes))

    kernel, stride, pad, dilation = one_each(1, 3), one_each(1, 3), one_each(0, 2), one_each(1, 2)
    shape = (2, 2, *(d * (k - 1) + data.draw(st.integers(1, 3)) for k, d in zip(kernel, dilation, strict=True)))
    fields = {"kernel_size": kernel, "stride": stride, "pad": pad, "dilation": dilation}
    text = " ".join(repeated(name, numbers) for name, numbers in fields.items())
    layer = alone(f'type: "Im2col" convolution_param {{ {text} }}', shape)
    y = run(layer, counted(*shape))
    np.testing.assert_array_equal(y, columns(counted(*shape).numpy(), kernel, stride, pad, dilation))


# -- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ('type: "Split" top: "a" top: "b"', [(2, 3)]),
        ('type: "Flatten"', [(2, 3, 2)]),
        ('type: "Permute" permute_param { order: 2 order: 0 }', [(2, 3, 2)]),
        ('type: "Tile" tile_param { tiles: 3 }', [(2, 3)]),
        ('type: "Concat"', [(2, 3), (2, 1)]),
        ('type: "Slice" top: "a" top: "b"', [(2, 4)]),
        ('type: "Reshape" reshape_param { shape { dim: 0 dim: 2 dim: -1 } }', [(2, 4)]),
        ('type: "Im2col" convolution_param { kernel_size: 2 pad: 1 stride: 2 }', [(2, 2, 3, 3)]),
        ('type: "Im2col" convolution_param { kernel_size: 2 dilation: 2 pad: 1 }', [(2, 2, 4)]),
        ('type: "Im2col" convolution_param { kernel_size: 2 axis: 2 }', [(2, 1, 2, 3, 3)]),
    ],
)
def test_gradients_go_where_the_numbers_came_from(text, shapes):
    assert gradients_hold(alone(text, *shapes), *(draw(*shape, seed=i) for i, shape in enumerate(shapes)))


def test_crop_gives_its_gradient_to_the_window_alone():
    x = draw(1, 1, 3, 3)
    layer = alone('type: "Crop" crop_param { offset: 1 }', (1, 1, 3, 3), (1, 1, 2, 2))
    layer(x, torch.zeros(1, 1, 2, 2)).sum().backward()
    assert x.grad[0, 0].tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 1]]


# -- rows ------------------------------------------------------------------------------------------------------------


def test_batch_reindex_gathers_rows_and_adds_their_gradients():
    layer, x = alone('type: "BatchReindex"', (3, 2), (4,)), draw(3, 2)
    y = run(layer, x, torch.tensor([2.0, 0.0, 2.0, 2.0]))
    torch.testing.assert_close(y, x[[2, 0, 2, 2]])
    y.sum().backward()
    assert x.grad.tolist() == [[1, 1], [0, 0], [3, 3]]


@pytest.mark.parametrize("row", [3, -1])
def test_batch_reindex_tells_a_row_that_is_not_there(row):
    with pytest.raises(ValueError, match=rf"row {row} is outside the 3 rows of bottom 0 \(3 x 2\)"):
        alone('type: "BatchReindex"', (3, 2), (2,))(draw(3, 2), torch.tensor([0.0, row]))


@pytest.mark.parametrize("selector", [(4,), (4, 1), (4, 1, 1, 1)])
def test_filter_keeps_the_selected_rows_of_every_bottom(selector):
    layer = alone('type: "Filter" top: "a" top: "b"', (4, 2), (4,), selector)
    assert layer.shapes([(4, 2), (4,), selector]) == [(4, 2), (4,)]
    x, y = draw(4, 2), draw(4)
    a, b = layer(x, y, torch.tensor([1.0, 0.0, -2.0, 0.0]).reshape(selector))
    torch.testing.assert_close(a, x[[0, 2]])
    torch.testing.assert_close(b, y[[0, 2]])
    (a.sum() + b.sum()).backward()
    assert x.grad.tolist() == [[1, 1], [0, 0], [1, 1], [0, 0]]


def test_filter_may_keep_nothing_and_the_layers_after_it_go_on():
    x = draw(4, 3, 2)
    (none,) = alone('type: "Filter" top: "a"', (4, 3, 2), (4,))(x, torch.zeros(4))
    assert none.shape == (0, 3, 2)
    reshape = 'type: "Reshape" reshape_param {{ shape {{ {} }} }}'
    assert alone('type: "Flatten"', (4, 3, 2))(none).shape == (0, 6)
    assert alone(reshape.format("dim: 0 dim: -1"), (4, 3, 2))(none).shape == (0, 6)
    assert alone(reshape.format("dim: -1 dim: 6"), (4, 3, 2))(none).shape == (0, 6)
    assert alone('type: "Concat"', (4, 3, 2), (4, 3, 2))(none, none).shape == (0, 6, 2)
    assert alone('type: "Tile" tile_param { tiles: 2 }', (4, 3, 2))(none).shape == (0, 6, 2)
    assert alone('type: "Im2col" convolution_param { kernel_size: 1 }', (4, 3, 2))(none).shape == (0, 3, 2)
    none.sum().backward()
    assert not x.grad.any()


# -- another batch, another layout -----------------------------------------------------------------------------------

ONE_BOTTOM = [
    'type: "Split" top: "a" top: "b"',
    'type: "Flatten" flatten_param { axis: 2 }',
    'type: "Permute" permute_param { order: 0 order: 2 order: 3 order: 1 }',
    'type: "Tile" tile_param { axis: -1 tiles: 2 }',
    'type: "Slice" top: "a" top: "b" slice_param { slice_point: 1 }',
    'type: "Slice" top: "a" top: "b" slice_param { axis: 0 }',
    'type: "Reshape" reshape_param { shape { dim: 0 dim: 0 dim: -1 } }',
    'type: "Im2col" convolution_param { kernel_size: 2 }',
]


@pytest.mark.parametrize("text", ONE_BOTTOM)
def test_another_batch_size_and_memory_layout_are_just_another_call(text):
    layer, other = alone(text, (2, 4, 3, 5)), alone(text, (6, 4, 7, 3))
    x = counted(6, 4, 7, 3)
    listed = [layer(x), other(x), layer(x.to(memory_format=torch.channels_last))]
    for tops in zip(*(tops if isinstance(tops, tuple) else (tops,) for tops in listed), strict=True):
        assert torch.equal(tops[0], tops[1])
        assert torch.equal(tops[0], tops[2])


def test_crop_follows_both_bottoms():
    layer = alone('type: "Crop" crop_param { offset: 1 offset: 0 }', (1, 1, 3, 3), (1, 1, 2, 2))
    x = counted(2, 1, 5, 4)
    assert torch.equal(layer(x, torch.zeros(2, 1, 4, 1)), x[:, :, 1:5, :1])


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        ('type: "Split" bottom: "x" top: "x" top: "y"', [(2,)], "cannot work in place"),
        ('type: "Flatten" bottom: "x" top: "x"', [(2, 3)], "cannot work in place"),
        ('type: "Reshape" bottom: "x" top: "x"', [(2, 3)], "cannot work in place"),
        ('type: "Flatten"', [(2,)], "axis 1 is outside a bottom of 1 axes"),
        ('type: "Flatten" flatten_param { end_axis: 3 }', [(2, 3)], "end_axis 3 is outside"),
        ('type: "Flatten" flatten_param { axis: 1 end_axis: 0 }', [(2, 3)], "axis 1 comes after end_axis 0 .* 2 x 3"),
        ('type: "Permute" permute_param { order: 2 }', [(2, 3)], r"order \[2\] must name axes of a bottom of 2 axes"),
        ('type: "Permute" permute_param { order: 1 order: 1 }', [(2, 3)], "each once"),
        ('type: "Tile"', [(2, 3)], "tiles is missing; expected 1 or more"),
        ('type: "Tile" tile_param { tiles: -1 }', [(2, 3)], "tiles is -1"),
        ('type: "Tile" tile_param { tiles: 2 axis: 2 }', [(2, 3)], "axis 2 is outside"),
        ('type: "Concat"', [(2, 3), (3, 3)], "bottom 1 of 3 x 3 does not fit bottom 0 of 2 x 3: .* axis 1"),
        ('type: "Concat"', [(2, 3), (2, 3, 1)], "bottom 1 of 2 x 3 x 1 does not fit bottom 0 of 2 x 3"),
        ('type: "Concat" concat_param { axis: 0 concat_dim: 0 }', [(2, 3)], "gives both axis and concat_dim"),
        ('type: "Concat" concat_param { concat_dim: 2 }', [(2, 3)], "concat_dim 2 is outside a bottom of 2 axes"),
        ('type: "Concat" concat_param { axis: -3 }', [(2, 3)], "axis -3 is outside"),
        ('type: "Concat"', [], "has 0 bottoms, expected at least 1"),
        ('type: "Slice" top: "a" top: "b"', [(2, 3)], "axis 1 of 2 x 3 cannot be cut into 2 equal parts"),
        ('type: "Slice" top: "a" slice_param { slice_point: 1 }', [(2, 3)], "1 tops need 0 slice_point, found 1"),
        (
            'type: "Slice" top: "a" top: "b" top: "c" slice_param { slice_point: 2 slice_point: 2 }',
            [(2, 4)],
            r"slice_point \[2, 2\] must rise from above 0 to below 4 \(of 2 x 4\)",
        ),
        ('type: "Slice" top: "a" top: "b" slice_param { slice_point: 0 }', [(2, 4)], "must rise"),
        ('type: "Slice" top: "a" top: "b" slice_param { slice_point: 4 }', [(2, 4)], "must rise"),
        ('type: "Slice" top: "a" slice_param { axis: 1 slice_dim: 1 }', [(2, 4)], "gives both axis and slice_dim"),
        ('type: "Reshape" reshape_param { shape { dim: -1 dim: -1 } }', [(2, 3)], "at most one -1"),
        ('type: "Reshape" reshape_param { shape { dim: -2 } }', [(2, 3)], "sizes of 0"),
        ('type: "Reshape" reshape_param { shape { dim: 0 dim: 0 dim: 0 } }', [(2, 3)], "copies axis 2 of .* 2 x 3"),
        ('type: "Reshape" reshape_param { shape { dim: 5 dim: -1 } }', [(2, 3)], "2 x 3 cannot be reshaped to"),
        ('type: "Reshape" reshape_param { shape { dim: 5 } }', [(2, 3)], "a bottom of 2 x 3 does not fill a top of 5"),
        ('type: "Reshape" reshape_param { axis: 3 }', [(2, 3)], "axis 3 is outside a bottom of 2 x 3: -3 to 2 go"),
        ('type: "Reshape" reshape_param { axis: 1 num_axes: 2 }', [(2, 3)], "reach past the 2 axes of 2 x 3"),
        ('type: "Reshape" reshape_param { num_axes: -2 }', [(2, 3)], "num_axes is -2"),
        (
            'type: "Crop"',
            [(1, 1, 4, 4), (1, 1, 5, 4)],
            "1 x 1 x 5 x 4 at offset 0 reaches past axis 2 .* 1 x 1 x 4 x 4",
        ),
        ('type: "Crop" crop_param { offset: 2 }', [(1, 1, 4, 4), (1, 1, 3, 2)], "at offset 2 reaches past axis 2"),
        ('type: "Crop"', [(1, 1, 4, 4), (4, 4)], "bottom 1 of 4 x 4 has fewer axes than bottom 0 of 1 x 1 x 4 x 4"),
        (
            'type: "Crop" crop_param { axis: 1 offset: 0 offset: 0 }',
            [(1, 1, 4, 4), (1, 1, 4, 4)],
            "has 2 offset; expected none, 1, or 3",
        ),
        ('type: "Crop"', [(1, 1, 4, 4)], "has 1 bottom, expected 2"),
        ('type: "BatchReindex"', [(3, 2), (2, 1)], "must have one axis, not the 2 x 1 it has"),
        ('type: "BatchReindex"', [(), (2,)], "one number without axes"),
        ('type: "Filter" top: "a"', [(3, 2), (4,)], "bottom 0 of 3 x 2 and the selector of 4 differ in rows"),
        ('type: "Filter" top: "a"', [(3, 2), (3, 2)], "must have one number a row, not be 3 x 2"),
        ('type: "Filter" top: "a" top: "b"', [(3, 2), (3,)], "has 2 tops, expected 1: one a bottom but the last"),
        ('type: "Im2col" convolution_param { kernel_size: 2 }', [(3, 2)], "axis 1 leaves no spatial axis"),
        ('type: "Im2col"', [(1, 3, 2, 2)], "has no kernel_size"),
        ('type: "Im2col" convolution_param { kernel_size: 3 }', [(1, 3, 2, 2)], "kernel of 3 x 3 .* 2 x 2"),
    ],
)
def test_bad_parameters_and_shapes_are_told(text, shapes, message):
    with pytest.raises(ValueError, match=message) as told:
        alone(text, *shapes)
    assert "\n" not in str(told.value)


def test_shapes_that_no_longer_fit_are_told_when_they_come():
    with pytest.raises(ValueError, match="2 x 5 cannot be cut into 2 equal parts"):
        alone('type: "Slice" top: "a" top: "b"', (2, 4))(draw(2, 5))
    with pytest.raises(ValueError, match="a bottom of 3 x 4 does not fill a top of 2 x 4"):
        alone('type: "Reshape" reshape_param { shape { dim: 2 dim: 4 } }', (2, 4))(draw(3, 4))
