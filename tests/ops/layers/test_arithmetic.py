"""Eltwise, Reduction, ArgMax: Caffe's numbers, and loops of its comparisons."""

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


@pytest.mark.parametrize("name", golden.names("elt", "red_", "argmax"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_caffe(name, dtype):
    assert max(golden.differences(name, dtype=dtype).values()) < 1e-5


def eltwise(definition, *bottoms):
    return alone(f"type: 'Eltwise' eltwise_param {{ {definition} }}", *bottoms)


# -- Eltwise ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coeffs", [(), (1, -1), (0.5, 2), (2, 1, -3), (1, 1, 1, 0.25)])
def test_sum_weighs_its_bottoms(coeffs):
    bottoms = [draw(2, 3, 4, seed=i) for i in range(len(coeffs) or 3)]
    layer = eltwise(" ".join(f"coeff: {c}" for c in coeffs), *[(2, 3, 4)] * len(bottoms))
    before = [x.detach().clone() for x in bottoms]
    expected = sum(c * x for c, x in zip(coeffs or (1, 1, 1), before, strict=True))
    torch.testing.assert_close(run(layer, *bottoms), expected, check_layout=False)
    assert all(torch.equal(x, old) for x, old in zip(bottoms, before, strict=True))
    assert gradients_hold(layer, *bottoms)


def test_one_blob_may_be_added_to_itself():
    x = draw(2, 3)
    y = run(eltwise("", (2, 3), (2, 3)), x, x)
    y.sum().backward()
    assert x.grad.unique().tolist() == [2]


def test_stable_product_gives_each_the_product_of_the_others():
    bottoms = [draw(2, 3, seed=i) for i in range(3)]
    with torch.no_grad():
        bottoms[1][0, 0] = 0
    layer = eltwise("operation: PROD", *[(2, 3)] * 3)
    run(layer, *bottoms).sum().backward()
    torch.testing.assert_close(bottoms[1].grad, (bottoms[0] * bottoms[2]).detach())
    assert gradients_hold(layer, *bottoms)


def test_the_other_product_divides_and_is_nan_at_zero():
    bottoms = [draw(2, 3, seed=i) for i in range(3)]
    layer = eltwise("operation: PROD stable_prod_grad: false", *[(2, 3)] * 3)
    assert gradients_hold(layer, *bottoms)
    with torch.no_grad():
        bottoms[1][0, 0] = 0
    run(layer, *bottoms).sum().backward()
    assert bottoms[1].grad.isnan().nonzero().tolist() == [[0, 0]]
    assert bottoms[0].grad[0, 0] == 0
    assert not layer.fresh, "its backward reads the top"


def test_all_gradient_of_a_maximum_goes_to_one_and_of_equals_to_the_second_then_the_first():
    points = list(itertools.product([0.0, 1.0, 2.0], repeat=4))
    bottoms = [torch.tensor(values, requires_grad=True) for values in zip(*points, strict=True)]
    y = run(eltwise("operation: MAX coeff: 5 coeff: 5 coeff: 5 coeff: 5", *[(81,)] * 4), *bottoms)
    y.sum().backward()
    assert y.tolist() == [max(point) for point in points]
    for i, point in enumerate(points):
        winner = 0 if point[0] > point[1] else 1
        for later in (2, 3):
            winner = later if point[later] > point[winner] else winner
        assert [x.grad[i].item() for x in bottoms] == [float(place == winner) for place in range(4)]


def test_a_maximum_passes_gradcheck():
    assert gradients_hold(eltwise("operation: MAX", *[(3, 4)] * 3), *[draw(3, 4, seed=i) for i in range(3)])


@pytest.mark.parametrize("operation", ["SUM", "PROD", "MAX"])
def test_eltwise_keeps_channels_last(operation):
    bottoms = [draw(2, 3, 4, 5, seed=i).to(memory_format=torch.channels_last) for i in range(3)]
    y = run(eltwise(f"operation: {operation}", *[(2, 3, 4, 5)] * 3), *bottoms)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("operation", ["SUM", "PROD", "MAX"])
def test_a_fresh_top_may_be_overwritten(operation):
    layer, bottoms = eltwise(f"operation: {operation}", *[(3, 4)] * 3), [draw(3, 4, seed=i) for i in range(3)]
    assert layer.fresh
    layer(*bottoms).relu_().sum().backward()
    gradients = [x.grad.clone() for x in bottoms]
    for x in bottoms:
        x.grad = None
    layer(*bottoms).relu().sum().backward()
    torch.testing.assert_close(gradients, [x.grad for x in bottoms])


@pytest.mark.parametrize(
    ("definition", "bottoms", "words"),
    [
        ("", [(2, 3)], "has 1 bottom, expected at least 2"),
        ("", [(2, 3), (2, 3), (2, 4)], "bottom 0 is 2 x 3, bottom 2 is 2 x 4: all must be the same"),
        ("", [(2, 3), (1, 3)], "bottom 1 is 1 x 3"),
        ("coeff: 1", [(2, 3), (2, 3)], "has coeff 1 times for 2 bottoms"),
        ("operation: MAX coeff: 1", [(2, 3), (2, 3)], "has coeff 1 times for 2 bottoms"),
        ("operation: PROD coeff: 1 coeff: 1", [(2, 3), (2, 3)], "goes with operation SUM only"),
    ],
)
def test_eltwise_refuses_what_does_not_fit(definition, bottoms, words):
    with pytest.raises(ValueError, match=words):
        eltwise(definition, *bottoms)


def test_eltwise_never_stretches_a_bottom():
    with pytest.raises(ValueError, match="bottom 0 is 4 x 3, bottom 1 is 1 x 3: all must be the same"):
        eltwise("", (2, 3), (2, 3))(draw(4, 3), draw(1, 3))


# -- Reduction -------------------------------------------------------------------------------------------------------

NUMPY = {"SUM": np.sum, "ASUM": lambda x, a: abs(x).sum(a), "SUMSQ": lambda x, a: (x**2).sum(a), "MEAN": np.mean}


@pytest.mark.parametrize("operation", NUMPY)
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
@pytest.mark.parametrize("coeff", [1, -2.5])
def test_reduction_is_numpys_over_the_last_axes(operation, axis, coeff):
    x = draw(2, 3, 4)
    definition = f"operation: {operation} axis: {axis} coeff: {coeff}"
    layer = alone(f"type: 'Reduction' reduction_param {{ {definition} }}", (2, 3, 4))
    expected = coeff * NUMPY[operation](x.detach().numpy(), tuple(range(axis % 3, 3)))
    np.testing.assert_allclose(run(layer, x).detach(), expected)
    assert gradients_hold(layer, x)


def test_reduction_of_absolute_values_has_no_gradient_at_zero():
    x = torch.tensor([-2.0, 0, 3], requires_grad=True)
    alone("type: 'Reduction' reduction_param { operation: ASUM coeff: 2 }", (3,))(x).backward()
    assert x.grad.tolist() == [-2, 0, 2]


def test_a_mean_is_that_of_the_batch_at_hand():
    layer = alone("type: 'Reduction' reduction_param { operation: MEAN }", (2, 3))
    assert layer(torch.ones(7, 5)) == 1


@pytest.mark.parametrize("axis", [2, -3])
def test_reduction_refuses_an_axis_outside(axis):
    with pytest.raises(ValueError, match=f"axis {axis} is outside a bottom of 2 axes"):
        alone(f"type: 'Reduction' reduction_param {{ axis: {axis} }}", (2, 3))


# -- ArgMax ----------------------------------------------------------------------------------------------------------


def ranked(row, k):
    """Caffe's order: (value, place) pairs, largest first, so the later of equals is first."""
    return sorted(((value, place) for place, value in enumerate(row)), reverse=True)[:k]


@settings(max_examples=80)
@given(
    sides=st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple),
    axis=st.none() | st.integers(-5, 4),
    k=st.integers(1, 3),
    values=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_argmax_is_caffes_for_any_shape(sides, axis, k, values, seed):
    if axis is not None and not -len(sides) <= axis < len(sides):
        return
    if k > (math.prod(sides[1:]) if axis is None else sides[axis]):
        return
    x = np.random.default_rng(seed).integers(0, 3, sides).astype(np.float32)
    written = f"top_k: {k} out_max_val: {str(values).lower()}" + ("" if axis is None else f" axis: {axis}")
    layer = alone(f"type: 'ArgMax' argmax_param {{ {written} }}", sides)
    y = run(layer, torch.from_numpy(x)).numpy()
    if axis is None:
        best = [ranked(row, k) for row in x.reshape(len(x), -1)]
        rows = [[[p for _, p in b], [v for v, _ in b]][: 1 + values] for b in best]
        expected = np.array(rows).reshape(len(x), 1 + values, k, *[1] * (len(sides) - 3))
    else:
        expected = np.apply_along_axis(lambda row: [pair[not values] for pair in ranked(row, k)], axis, x)
    np.testing.assert_array_equal(y, expected)


def test_argmax_tells_large_places_of_short_floats():
    x = torch.zeros(1, 1000, dtype=torch.bfloat16)
    x[0, 999] = 1
    assert alone("type: 'ArgMax'", (1, 1000))(x).item() == 999


def test_argmax_has_no_gradient():
    layer = alone("type: 'ArgMax' argmax_param { out_max_val: true axis: 1 }", (2, 3))
    assert not layer(draw(2, 3)).requires_grad


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        ("top_k: 7", "top_k is 7, bottom 0 is 4 x 3 x 2: expected 1 to 6"),
        ("top_k: 0", "top_k is 0"),
        ("top_k: 4 axis: 1", "top_k is 4, bottom 0 is 4 x 3 x 2: expected 1 to 3"),
        ("axis: 3", "axis 3 is outside a bottom of 3 axes"),
    ],
)
def test_argmax_refuses_what_does_not_fit(definition, words):
    with pytest.raises(ValueError, match=words):
        alone(f"type: 'ArgMax' argmax_param {{ {definition} }}", (4, 3, 2))
