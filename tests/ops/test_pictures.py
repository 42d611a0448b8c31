"""Filters and responses as pictures, pixel by pixel, and an image as a net takes it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops import pictures
from ops.contact_sheet import MARGIN, SMALL, TITLE
from ops.pictures import BEHIND, GAP, filters, net_input, responses, silent, stretched

TOP = MARGIN + TITLE + 2 * SMALL + 10


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tiles_of(picture: np.ndarray, rows: int, columns: int, high: int, wide: int) -> np.ndarray:
    """(rows, columns, high, wide, 3): the tiles cut out again; their frame is found by its colour."""
    framed = np.argwhere((picture == np.array(BEHIND)).all(axis=2))
    top, left = framed.min(axis=0) + GAP
    assert top == TOP
    bottom, right = framed.max(axis=0) + 1
    assert (bottom - top, right - left) == (rows * (high + GAP), columns * (wide + GAP))
    area = picture[top:bottom, left:right].reshape(rows, high + GAP, columns, wide + GAP, 3)
    return area[:, :high, :, :wide].transpose(0, 2, 1, 3, 4)


def stretch(values: np.ndarray) -> np.ndarray:
    """0..255 from the least to the greatest."""
    low, high = float(values.min()), float(values.max())
    return np.rint((values.astype(float) - low) / (high - low) * 255).astype(np.uint8)


# -- filters ---------------------------------------------------------------------------------------------------------


def test_filters_of_three_channels_are_tiles_in_the_colours_of_an_image():
    weights = draw(6, 3, 11, 11)
    drawn = filters(weights)
    assert drawn.shown == (6, 3)
    tiles = tiles_of(drawn.picture, 2, 3, 99, 99).reshape(6, 99, 99, 3)
    for tile, filter_ in zip(tiles, weights, strict=True):  # an image that the net reads is blue, green, red too
        np.testing.assert_array_equal(tile[4::9, 4::9], stretch(filter_).transpose(1, 2, 0))


def test_a_filter_that_likes_red_is_red_in_the_file(tmp_path):
    weights = np.zeros((1, 3, 5, 5), np.float32)
    weights[0, 2] = 1  # channels are B, G, R
    cv2.imwrite(str(tmp_path / "red.png"), filters(weights).picture)
    from PIL import Image

    pixels = np.asarray(Image.open(tmp_path / "red.png").convert("RGB"))
    assert (pixels == (255, 0, 0)).all(axis=2).sum() == 95 * 95


def test_the_contrast_is_stretched_filter_by_filter():
    weights = draw(4, 1, 5, 5) * np.float32([1, 100, 1e-4, 7]).reshape(4, 1, 1, 1)
    tiles = tiles_of(filters(weights).picture, 2, 2, 95, 95).reshape(4, 95, 95, 3)
    for tile, filter_ in zip(tiles, weights, strict=True):
        np.testing.assert_array_equal(tile[9::19, 9::19], stretch(filter_[0])[..., np.newaxis].repeat(3, 2))


def test_deeper_filters_are_rows_of_grey_tiles_with_one_contrast():
    weights = draw(7, 5, 3, 3)
    drawn = filters(weights, most=1000)
    assert drawn.shown == (7, 5)
    tiles = tiles_of(drawn.picture, 7, 5, 96, 96)
    for row, filter_ in zip(tiles, weights, strict=True):
        np.testing.assert_array_equal(row[:, 16::32, 16::32, 0], stretch(filter_))


@given(
    outputs=st.integers(1, 60), channels=st.integers(1, 60).filter(lambda count: count != 3), most=st.integers(1, 300)
)
@settings(max_examples=40)
def test_no_more_tiles_than_asked_for_and_no_fewer_than_fit(outputs, channels, most):
    drawn = filters(np.zeros((outputs, channels, 2, 2), np.float32), most=most)
    rows, columns = drawn.shown
    assert rows * columns <= most
    assert 1 <= rows <= outputs
    assert 1 <= columns <= channels
    if rows < outputs and columns < channels:  # another row or column would be too much
        assert (rows + 1) * (columns + 1) > most


@pytest.mark.parametrize(("shape", "tile"), [
    ((4, 1, 5), (19, 95)), ((4, 1, 2, 3, 4), (96, 64)), ((4, 1), (96, 96)), ((4, 1, 200, 100), (160, 80)),
])  # fmt: skip
def test_kernels_of_any_number_of_axes_are_tiles(shape, tile):
    picture = filters(draw(*shape)).picture
    framed = np.argwhere((picture == np.array(BEHIND)).all(axis=2))
    extent = framed.max(axis=0) - framed.min(axis=0) + 1 - GAP
    assert extent[0] % (tile[0] + GAP) == 0
    assert extent[1] % (tile[1] + GAP) == 0


def test_weights_without_channels_are_refused():
    with pytest.raises(ValueError, match="weights of 1 axes; expected outputs x channels x kernel"):
        filters(draw(4))


def test_without_a_title_there_are_only_the_tiles_in_frames():
    weights = draw(6, 1, 5, 5)
    named, plain = filters(weights).picture, filters(weights, title=None).picture
    side = 95 + GAP
    assert plain.shape == (2 * side + GAP, 3 * side + GAP, 3)
    left = np.argwhere((named == np.array(BEHIND)).all(axis=2))[:, 1].min()
    np.testing.assert_array_equal(plain[:-GAP, :-GAP], named[TOP - GAP :, left:][: 2 * side, : 3 * side])
    maps = responses(draw(3, 7, 7), title=None).picture
    assert (maps[:GAP] == np.array(BEHIND)).all()


def test_what_is_not_finite_or_all_the_same_is_black():
    values = np.float32([[np.nan, 1], [np.inf, 3]])
    np.testing.assert_array_equal(stretched(values), [[0, 0], [0, 255]])
    np.testing.assert_array_equal(stretched(np.full((2, 2), 7.0)), 0)
    np.testing.assert_array_equal(stretched(np.full((2, 2), np.nan)), 0)


# -- responses -------------------------------------------------------------------------------------------------------


def test_each_map_is_stretched_over_its_own_values():
    maps = draw(6, 24, 24) * np.float32(10) ** np.arange(6).reshape(6, 1, 1)
    drawn = responses(maps)
    assert drawn.shown == (6, 1)
    tiles = tiles_of(drawn.picture, 2, 3, 96, 96).reshape(6, 96, 96, 3)
    for tile, one in zip(tiles, maps, strict=True):
        np.testing.assert_array_equal(tile[2::4, 2::4, 0], stretch(one))


def test_at_most_so_many_maps_and_large_ones_smaller():
    drawn = responses(draw(500, 300, 200), most=12)
    assert drawn.shown == (12, 1)
    assert drawn.picture.shape[1] < 900


@pytest.mark.parametrize(("count", "shown"), [(10, 10), (4096, 4096), (25_088, 10_000)])
def test_a_blob_without_maps_is_a_square_a_number(count, shown):
    values = draw(count)
    drawn = responses(values)
    assert drawn.shown == (shown, 1)
    assert drawn.picture.shape[1] < 2200
    greys = np.unique(drawn.picture.reshape(-1, 3), axis=0).tolist()
    assert [0, 0, 0] in greys
    assert [255, 255, 255] in greys


def test_maps_of_one_value_are_counted_as_silent():
    maps = draw(5, 3, 3)
    maps[1], maps[4] = 0, 2
    assert silent(maps) == 2
    assert silent(np.float32([0, 1, 0, 2])) == 2


# -- an image for a net ----------------------------------------------------------------------------------------------


def test_the_middle_of_an_image_is_resized_to_the_nets_input():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)
    found = net_input(pixels, (3, 30, 20))
    expected = cv2.resize(pixels[:, 30:70], (20, 30)).transpose(2, 0, 1)
    assert (found.shape, found.dtype) == ((1, 3, 30, 20), np.float32)
    np.testing.assert_array_equal(found[0], expected)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64), st.integers(1, 64))
def test_any_image_fits_any_input(high, wide, height, width):
    pixels = np.full((high, wide, 1), 9, np.uint8)
    window = pictures.middle(pixels, height, width)
    assert (window.shape[0] == high) or (window.shape[1] == wide)
    assert net_input(pixels, (1, height, width)).tolist() == np.full((1, 1, height, width), 9).tolist()


@pytest.mark.parametrize("shape", [(1, 1_000_000, 1), (1_000_000, 1, 1)])
def test_a_sliver_of_an_image_needs_no_memory_for_what_is_cut_off(shape):
    assert net_input(np.zeros(shape, np.uint8), (1, 227, 227)).shape == (1, 1, 227, 227)


def test_the_mean_and_the_scale_are_applied_as_caffe_does():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    image = pixels.transpose(2, 0, 1).astype(np.float32)
    values = np.float32([104, 117, 123])
    np.testing.assert_array_equal(
        net_input(pixels, (3, 8, 8), mean=values, scale=0.5)[0], (image - values.reshape(3, 1, 1)) * 0.5
    )
    np.testing.assert_array_equal(net_input(pixels, (3, 8, 8), mean=np.float32([7]))[0], image - 7)
    whole = draw(3, 12, 14)
    np.testing.assert_array_equal(net_input(pixels, (3, 8, 8), mean=whole)[0], image - whole[:, 2:10, 3:11])


@pytest.mark.parametrize(("mean", "told"), [
    (np.zeros(2), "2 values for an input of 3 channels; expected 1 or 3"),
    (np.zeros((3, 4, 8)), "a mean of 3 x 4 x 8 does not cover the net's input of 3 x 8 x 8"),
    (np.zeros((1, 8, 8)), "a mean of 1 x 8 x 8 does not cover"),
])  # fmt: skip
def test_a_mean_of_another_size_is_told(mean, told):
    with pytest.raises(ValueError, match=told):
        net_input(np.zeros((8, 8, 3), np.uint8), (3, 8, 8), mean=mean)


def test_an_image_of_other_channels_is_told():
    with pytest.raises(ValueError, match="the image has 1 channels, the net's input 3"):
        net_input(np.zeros((8, 8, 1), np.uint8), (3, 8, 8))
