"""Choosing: ranges and a fixed order of draws. Applying: known pixels, no chance of its own."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops import augment
from ops.augment import Augment, Choice, apply
from ops.chance import rng
from tests.odd_images import picture

EVERYTHING = "rotate=10,translate=0.05,scale=0.1,brightness=0.2,contrast=0.25,noise=4"
STILL = Choice()


def test_the_text_says_how_far_each_may_go():
    assert augment.parse(EVERYTHING) == Augment(10, 0.05, 0.1, 0.2, 0.25, 4)
    assert augment.parse(" noise = 2 , rotate=5,") == Augment(rotate=5, noise=2)
    assert augment.parse("") == Augment()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rotat=3", "unknown augmentation 'rotat'; did you mean 'rotate'"),
        ("rotate", "found 'rotate', expected rotate=NUMBER"),
        ("rotate=x", "found 'rotate=x', expected a number"),
        ("rotate=1,rotate=2", "rotate is given twice"),
        ("rotate=-1", "rotate=-1 is not between 0 and 180"),
        ("scale=nan", "scale=nan is not between 0 and 10"),
        ("noise=1e9", "noise=1e\\+09 is not between 0 and 255"),
    ],
)
def test_a_text_that_is_not_understood_is_refused_in_one_line(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        augment.parse(text)


@given(st.integers(), st.integers(0, 10**6))
def test_choices_stay_within_their_ranges(seed, index):
    choice = augment.parse(EVERYTHING).choose(rng(seed, 0, index))
    assert abs(choice.angle) <= 10
    assert max(abs(choice.down), abs(choice.right)) <= 0.05
    assert 1 / 1.1 - 1e-12 <= choice.scale <= 1.1 + 1e-12
    assert abs(choice.brightness) <= 0.2 * 255
    assert 0.8 - 1e-12 <= choice.contrast <= 1.25 + 1e-12
    assert choice.noise == 4


def test_choices_fill_their_ranges_evenly():
    choices = [augment.parse(EVERYTHING).choose(rng(0, 0, index)) for index in range(1000)]
    angles = np.array([choice.angle for choice in choices])
    assert angles.min() < -9.8
    assert angles.max() > 9.8
    assert abs(angles.mean()) < 0.6
    assert abs(np.mean([np.log(choice.scale) for choice in choices])) < 0.01


def test_switching_one_augmentation_off_changes_no_other():
    whole, part = augment.parse(EVERYTHING), augment.parse("rotate=10,brightness=0.2,noise=4")
    for index in range(20):
        chosen = whole.choose(rng(3, 1, index))
        assert part.choose(rng(3, 1, index)) == replace(chosen, down=0, right=0, scale=1, contrast=1)


def test_nothing_chosen_changes_nothing():
    image = picture()
    assert apply(image, Augment().choose(rng(0, 0, 0))) is image


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("side", [1, 2, 45])
def test_shape_and_type_stay_and_the_original_is_untouched(channels, side):
    image = np.atleast_3d(picture(side, 70, channels))
    before = image.copy()
    changed = apply(image, augment.parse(EVERYTHING).choose(rng(0, 0, 1)))
    assert (changed.shape, changed.dtype) == (image.shape, np.uint8)
    np.testing.assert_array_equal(image, before)


def test_the_same_choice_makes_the_same_pixels_and_another_key_other_noise():
    choice = augment.parse(EVERYTHING).choose(rng(0, 0, 1))
    np.testing.assert_array_equal(apply(picture(), choice), apply(picture(), choice))
    assert (apply(picture(), choice) != apply(picture(), replace(choice, noise_key=1))).any()


def test_a_quarter_turn_of_a_square_is_rot90():
    image = picture(41, 41)
    np.testing.assert_array_equal(apply(image, replace(STILL, angle=90)), np.rot90(image))
    np.testing.assert_array_equal(apply(image, replace(STILL, angle=180)), image[::-1, ::-1])


def test_a_shift_by_whole_pixels_moves_them_and_mirrors_the_edge():
    image = picture(40, 50)
    moved = apply(image, replace(STILL, down=3 / 40, right=-5 / 50))
    np.testing.assert_array_equal(moved[3:, :45], image[:37, 5:])
    np.testing.assert_array_equal(moved[:3, :45], image[2::-1, 5:])


def test_twice_the_size_shows_the_middle():
    image = np.zeros((41, 41, 3), np.uint8)
    image[15:26, 15:26] = 255  # 11 pixels, 5 either way of the middle
    bright = apply(image, replace(STILL, scale=2))[20, :, 0] > 200
    assert bright.sum() == 21


def test_contrast_is_about_the_middle_grey_and_brightness_adds():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    expected = np.clip(np.rint((ramp.astype(float) - 128) * 1.25 + 128 + 7.5), 0, 255)
    np.testing.assert_array_equal(apply(ramp, replace(STILL, contrast=1.25, brightness=7.5)), expected)


def test_noise_has_its_standard_deviation_and_no_bias():
    grey = np.full((300, 300, 3), 128, np.uint8)
    difference = apply(grey, replace(STILL, noise=4, noise_key=9)).astype(float) - 128
    assert abs(difference.mean()) < 0.05
    assert difference.std() == pytest.approx(np.hypot(4, 1 / np.sqrt(12)), rel=0.02)  # and the rounding's own


def test_a_picture_wider_than_opencv_can_move_is_refused_in_one_line():
    with pytest.raises(ValueError, match="an image of 1 x 40000 cannot be rotated or moved: at most 32,767 a side"):
        apply(np.zeros((1, 40_000, 1), np.uint8), replace(STILL, angle=1))


def test_small_turns_agree_with_opencvs_own_matrix():
    image = picture()
    matrix = cv2.getRotationMatrix2D((34.5, 22), 7, 1.05)
    expected = cv2.warpAffine(image, matrix, (70, 45), borderMode=cv2.BORDER_REFLECT)
    np.testing.assert_array_equal(apply(image, replace(STILL, angle=7, scale=1.05)), expected)
