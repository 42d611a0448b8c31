"""pycaffe's preprocessing, by its own formulas in numpy and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest

from ops.preprocess import Preprocessing, fitting_mean, read_mean
from ops.records import binaryproto


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def test_channels_are_swapped_scaled_and_centred_in_transformers_order(pixels):
    mean = np.random.default_rng(1).uniform(0, 255, (3, 32, 24)).astype(np.float32)
    made = Preprocessing((32, 24), None, (2, 1, 0), 255.0, mean, 0.017)(pixels)
    rgb = pixels[4:36, 13:37, ::-1] / 255.0
    expected = (rgb.transpose(2, 0, 1)[[2, 1, 0]] * 255 - mean) * 0.017
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)


def test_without_a_swap_channels_are_rgb_of_0_to_1(pixels):
    np.testing.assert_allclose(Preprocessing((40, 50))(pixels), pixels[:, :, ::-1].transpose(2, 0, 1) / 255, rtol=1e-6)


def test_the_resize_is_bilinear_on_floats(pixels):
    """As skimage.transform.resize of order 1 without antialiasing, which pycaffe calls; whole pixels stay inside."""
    transform = pytest.importorskip("skimage.transform")
    made = Preprocessing((20, 30), (20, 30))(pixels)
    rgb = pixels[:, :, ::-1] / 255.0
    expected = transform.resize(rgb, (20, 30), order=1, mode="edge", anti_aliasing=False).transpose(2, 0, 1)
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_ten_crops_are_corners_and_centre_then_mirrored(pixels):
    made = Preprocessing((32, 24), oversample=True)(pixels).reshape(10, 3, 32, 24)
    rgb = (pixels[:, :, ::-1] / 255.0).transpose(2, 0, 1)
    corners = [(0, 0), (0, 26), (8, 0), (8, 26), (4, 13)]
    for place, (top, left) in enumerate(corners):
        crop = rgb[:, top : top + 32, left : left + 24]
        np.testing.assert_allclose(made[place], crop, atol=1e-6)
        np.testing.assert_allclose(made[place + 5], crop[:, :, ::-1], atol=1e-6)


def test_grey_pictures_have_nothing_to_swap():
    grey = np.full((8, 8, 1), 128, np.uint8)
    made = Preprocessing((8, 8), None, (2, 1, 0), 255.0, np.float32([[[28]]]))(grey)
    np.testing.assert_allclose(made, np.full((1, 8, 8), 100), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "told"),
    [({"crop": (60, 60)}, "does not fit"), ({"swap": (1, 0)}, "--channel-swap"), ({"mean": np.zeros((2, 1, 1))}, "2")],
)
def test_what_does_not_fit_a_picture_is_told(pixels, change, told):
    with pytest.raises(ValueError, match=told):
        Preprocessing(**{"crop": (32, 32), **change})(pixels)


def test_means_are_read_from_values_npy_and_binaryproto(tmp_path):
    image = np.random.default_rng(0).uniform(0, 255, (3, 6, 7)).astype(np.float32)
    np.save(tmp_path / "image.npy", image.astype(np.float64))
    np.save(tmp_path / "values.npy", image.mean((1, 2)))
    binaryproto.write(tmp_path / "mean.binaryproto", image)
    np.testing.assert_array_equal(read_mean(str(tmp_path / "image.npy")), image)
    np.testing.assert_array_equal(read_mean(str(tmp_path / "mean.binaryproto")), image)
    assert read_mean(str(tmp_path / "values.npy")).shape == (3, 1, 1)
    assert read_mean("104,117,123").ravel().tolist() == [104, 117, 123]
    with pytest.raises(FileNotFoundError, match="No such mean file"):
        read_mean("nowhere.npy")
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="no array of numpy"):
        read_mean(str(tmp_path / "pickle.npy"))


def test_a_mean_image_of_another_size_is_resized_to_the_input():
    ramp = np.tile(np.arange(16, dtype=np.float32), (3, 16, 1))
    found = fitting_mean(ramp, (3, 8, 8))
    np.testing.assert_allclose(found, np.tile(2 * np.arange(8) + 0.5, (3, 8, 1)), atol=1e-5)
    assert fitting_mean(ramp, (3, 16, 16)) is ramp
    with pytest.raises(ValueError, match="2 channels for an input of 3 x 8 x 8"):
        fitting_mean(np.zeros((2, 8, 8), np.float32), (3, 8, 8))
