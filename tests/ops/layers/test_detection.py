"""ROIPooling and SmoothL1Loss against direct loops over their published formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.layers.detection import round_away
from ops.layers.registry import find
from tests.ops.layers.alone import alone, draw, gradients_hold, run


def pooling(grid, scale, *bottoms):
    parameters = f"pooled_h: {grid[0]} pooled_w: {grid[1]} spatial_scale: {scale}"
    return alone(f"type: 'ROIPooling' roi_pooling_param {{ {parameters} }}", *bottoms)


def looped(maps, regions, grid, scale, fed):
    """Values, and the gradient for `fed`, cell by cell."""
    high, wide = maps.shape[2:]
    y, dx = np.zeros((len(regions), maps.shape[1], *grid)), np.zeros(maps.shape)
    for r, (number, *corners) in enumerate(regions):
        x1, y1, x2, y2 = (math.floor(abs(v * scale) + 0.5) * (-1 if v < 0 else 1) for v in corners)
        h, w = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        for i, j in np.ndindex(*grid):
            rows = range(max(0, y1 + i * h // grid[0]), min(high, y1 + math.ceil((i + 1) * h / grid[0])))
            columns = range(max(0, x1 + j * w // grid[1]), min(wide, x1 + math.ceil((j + 1) * w / grid[1])))
            for c in range(maps.shape[1]):
                best, place = -math.inf, None
                for at in ((row, column) for row in rows for column in columns):
                    value = maps[int(number), c][at]
                    if value > best:
                        best, place = value, at
                if place is not None:
                    y[r, c, i, j] = best
                    dx[int(number), c][place] += fed[r, c, i, j]
    return y, dx


@settings(max_examples=60)
@given(
    sides=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    scale=st.sampled_from([1, 0.5, 0.25]),
    boxes=st.lists(st.tuples(*[st.integers(-8, 24)] * 4), min_size=1, max_size=5),
    last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_regions_are_pooled_as_in_a_loop_over_their_cells(sides, grid, scale, boxes, last, seed):
    rng = np.random.default_rng(seed)
    maps = rng.integers(-3, 3, sides).astype(np.float64)  # so few values that ties are everywhere
    regions = np.array([(rng.integers(sides[0]), *box) for box in boxes], np.float64)
    fed = rng.normal(size=(len(boxes), sides[1], *grid))
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.from_numpy(maps).contiguous(memory_format=layout).requires_grad_()
    y = run(pooling(grid, scale, sides, regions.shape), x, torch.from_numpy(regions))
    y.backward(torch.from_numpy(fed))
    value, gradient = looped(maps, regions, grid, scale, fed)
    np.testing.assert_array_equal(y.detach(), value)
    np.testing.assert_allclose(x.grad, gradient, atol=1e-12)


def test_region_pooling_passes_gradcheck_and_gives_regions_no_gradient():
    regions = torch.tensor([[0.0, 0, 0, 5, 3], [1, 2, 1, 8, 9], [0, 3, 3, 3, 3]]).double()
    layer = pooling((2, 3), 1, (2, 2, 4, 6), (3, 5))
    assert find("ROIPooling").unlearnable == (1,)
    assert gradients_hold(layer, draw(2, 2, 4, 6), regions)


def test_regions_far_outside_are_zero_and_take_no_memory():
    regions = torch.tensor([[0, 1e9, 1e9, 2e9, 2e9], [0, -3e38, -3e38, 3e38, 3e38], [0, math.nan, 0, math.inf, 0]])
    y = pooling((2, 2), 1, (1, 3, 4, 4), (3, 5))(torch.ones(1, 3, 4, 4), regions)
    assert y[0].eq(0).all()
    assert y.isfinite().all()


def test_regions_may_have_more_axes_or_be_none_at_all():
    layer, x = pooling((2, 2), 1, (1, 3, 4, 4), (1, 5, 1, 1)), draw(1, 3, 4, 4)
    torch.testing.assert_close(layer(x, torch.tensor([0.0, 0, 0, 3, 3]).reshape(1, 5, 1, 1)), F.max_pool2d(x, 2))
    assert layer(x, torch.zeros(0, 5)).shape == (0, 3, 2, 2)


def test_nan_comes_through_region_pooling():
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 3, 3] = math.nan
    y = pooling((2, 2), 1, (1, 1, 4, 4), (1, 5))(x, torch.tensor([[0.0, 0, 0, 3, 3]]))
    assert y.isnan().reshape(-1).tolist() == [False, False, False, True]


def test_halves_are_rounded_away_from_zero():
    values = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997, 2.4, -2.6])
    assert round_away(values).tolist() == [1, 2, 3, -1, -2, 0, 2, -3]


@pytest.mark.parametrize(
    ("grid", "bottoms", "words"),
    [
        ((0, 2), [(1, 3, 4, 4), (2, 5)], "pooled_h 0, pooled_w 2: both must be above 0"),
        ((2, 2), [(1, 3, 4), (2, 5)], "bottom 0 is 1 x 3 x 4, expected maps of 4 axes"),
        ((2, 2), [(1, 3, 4, 4), (2, 4)], "bottom 1 is 2 x 4, expected regions R x 5"),
        ((2, 2), [(1, 3, 4, 4)], "has 1 bottom, expected 2"),
    ],
)
def test_region_pooling_refuses_what_does_not_fit(grid, bottoms, words):
    with pytest.raises(ValueError, match=words):
        pooling(grid, 1, *bottoms)


@pytest.mark.parametrize("number", [2, -1, math.nan])
def test_a_region_of_a_map_that_is_not_there_is_named(number):
    layer = pooling((2, 2), 1, (2, 3, 4, 4), (1, 5))
    with pytest.raises(ValueError, match=r"a region is of map -?\d+, but bottom 0 has 2 maps"):
        layer(draw(2, 3, 4, 4), torch.tensor([[number, 0, 0, 3, 3]]))


# -- SmoothL1Loss ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [0, 1, 2])
@pytest.mark.parametrize("sigma", [1, 3, 0.5])
def test_smooth_l1_loss_is_its_formula(weights, sigma):
    bottoms = [draw(4, 3, 2, 2, seed=i).detach() for i in range(2 + weights)]
    layer = alone(f"type: 'SmoothL1Loss' smooth_l1_loss_param {{ sigma: {sigma} }}", *[(4, 3, 2, 2)] * (2 + weights))
    a, b, inside, outside = (x.numpy() for x in (*bottoms, *[torch.ones(4, 3, 2, 2)] * (2 - weights)))
    d = inside * (a - b)
    f = np.where(abs(d) < 1 / sigma**2, 0.5 * (sigma * d) ** 2, abs(d) - 0.5 / sigma**2)
    for x in bottoms[:2]:
        x.requires_grad_()
    assert run(layer, *bottoms).item() == pytest.approx((outside * f).sum() / 4)
    assert gradients_hold(layer, *bottoms)


def test_smooth_l1_loss_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="bottom 0 is 4 x 3, bottom 2 is 4 x 2: they must hold equally many elements"):
        alone("type: 'SmoothL1Loss'", (4, 3), (4, 3), (4, 2))
    with pytest.raises(ValueError, match="sigma is 0; it must be above 0"):
        alone("type: 'SmoothL1Loss' smooth_l1_loss_param { sigma: 0 }", (4, 3), (4, 3))
    with pytest.raises(ValueError, match="has 5 bottoms, expected 2 to 4"):
        alone("type: 'SmoothL1Loss'", *[(4, 3)] * 5)
