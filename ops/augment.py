"""Augmentations in two halves: `Augment.choose` draws the numbers, `apply` makes the pixels and knows no chance.

An image is turned, shifted and scaled in one resampling about its centre, its edge mirrored outwards; then contrast and
brightness change; then noise is added. Brightness and noise count in grey levels of 0 to 255.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ops.names import unknown

Pixels = NDArray[np.uint8]
LONGEST = (1 << 15) - 1  # side that OpenCV's warpAffine takes
MIDDLE = 128.0  # grey level about which contrast changes


@dataclass(frozen=True)
class Choice:
    """What happens to one image; the defaults leave it as it is."""

    angle: float = 0.0
    """degrees, counter-clockwise"""
    down: float = 0.0
    """share of the height"""
    right: float = 0.0
    """share of the width"""
    scale: float = 1.0
    """above 1: larger"""
    brightness: float = 0.0
    """grey levels added"""
    contrast: float = 1.0
    """factor about grey level 128"""
    noise: float = 0.0
    """standard deviation of what is added to each number, in grey levels"""
    noise_key: int = 0
    """which noise"""


@dataclass(frozen=True)
class Augment:
    """How far each choice may go; 0 is not at all."""

    rotate: float = 0.0
    """up to so many degrees either way, at most 180"""
    translate: float = 0.0
    """up to this share of each side, at most 1"""
    scale: float = 0.0
    """from 1 / (1 + this) to 1 + this times the size, at most 10"""
    brightness: float = 0.0
    """up to this share of 255 grey levels either way, at most 1"""
    contrast: float = 0.0
    """from 1 / (1 + this) to 1 + this times the contrast, at most 10"""
    noise: float = 0.0
    """Gaussian noise of this standard deviation in grey levels, at most 255"""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, most = getattr(self, field.name), LIMITS[field.name]
            if not 0 <= value <= most:  # nan is refused too
                raise ValueError(f"augment: {field.name}={value:g} is not between 0 and {most}")

    def choose(self, rng: np.random.Generator) -> Choice:
        """Draw one choice.

        Always six uniform numbers, for angle, down, right, scale, brightness and contrast in this order, and one 63-bit
        integer, the noise key; so switching one augmentation on or off does not change what the others do.
        """
        angle, down, right, scale, brightness, contrast = (2 * rng.random(6) - 1).tolist()
        return Choice(
            angle=angle * self.rotate,
            down=down * self.translate,
            right=right * self.translate,
            scale=(1 + self.scale) ** scale,
            brightness=brightness * self.brightness * 255,
            contrast=(1 + self.contrast) ** contrast,
            noise=self.noise,
            noise_key=int(rng.integers(1 << 63)),
        )


LIMITS = {"rotate": 180, "translate": 1, "scale": 10, "brightness": 1, "contrast": 10, "noise": 255}


def parse(text: str) -> Augment:
    """From what is typed: "rotate=10,translate=0.05,scale=0.1,brightness=0.2,contrast=0.2,noise=4", any part of it."""
    values: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, number = (word.strip() for word in part.partition("="))
        if name not in LIMITS:
            raise ValueError(f"augment: {unknown('augmentation', name, LIMITS)}")
        if name in values:
            raise ValueError(f"augment: {name} is given twice")
        try:
            values[name] = float(number)
        except ValueError:
            wanted = f"{name}=NUMBER" if not equals else "a number"
            raise ValueError(f"augment: found {part!r}, expected {wanted}, as in rotate=10,noise=4") from None
    return Augment(**values)


def apply(image: Pixels, choice: Choice) -> Pixels:
    """The image as chosen: same shape, uint8; the very same array where nothing is to be done."""
    image = move(image, choice)
    image = tone(image, choice)
    return grain(image, choice)


def move(image: Pixels, choice: Choice) -> Pixels:
    """Rotation, scale and translation: one bilinear resampling, mirrored at the edges."""
    if (choice.angle, choice.down, choice.right, choice.scale) == (0, 0, 0, 1):
        return image
    height, width = image.shape[:2]
    if max(height, width) > LONGEST:
        raise ValueError(f"an image of {height} x {width} cannot be rotated or moved: at most {LONGEST:,} a side")
    middle = ((width - 1) / 2, (height - 1) / 2)
    matrix = cv2.getRotationMatrix2D(middle, choice.angle, choice.scale)
    matrix[:, 2] += choice.right * width, choice.down * height
    moved: Any = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return moved.reshape(image.shape)


def tone(image: Pixels, choice: Choice) -> Pixels:
    """Contrast about the middle grey, then brightness: a table of 256 levels."""
    if (choice.contrast, choice.brightness) == (1, 0):
        return image
    levels = (np.arange(256) - MIDDLE) * choice.contrast + MIDDLE + choice.brightness
    toned: Any = cv2.LUT(image, to_bytes(levels))
    return toned.reshape(image.shape)


def grain(image: Pixels, choice: Choice) -> Pixels:
    """Gaussian noise from the choice's own key, another draw for each number of the image."""
    if choice.noise == 0:
        return image
    draws = np.random.Generator(np.random.Philox(key=choice.noise_key)).standard_normal(image.shape, dtype=np.float32)
    return to_bytes(image + choice.noise * draws)


def to_bytes(values: NDArray[np.floating]) -> Pixels:
    """Rounded to the nearest grey level, cut at 0 and 255."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
