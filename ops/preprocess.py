"""How a picture becomes a net's input in pycaffe (Classifier, io.Transformer): resize, crop, swap, scale, mean, scale.

The other way, Caffe's transform_param, is ops/feed/transform.py. They differ in when they crop and in what a mean image
is as large as: there the whole picture, here the crop.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ops import image
from ops.layers.registry import text
from ops.records import binaryproto

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Preprocessing:
    """Pixels of 0..255, (H, W, C) in BGR order or grey -> (C, h, w) float32, or ten crops of it as (10 * C, h, w).

    As pycaffe: pixels become RGB in 0..1, are resized to `resize` (height, width), bilinear; the centre, or ten crops,
    of `crop` (height, width) are cut; channels are put in the order `swap`; then (x * raw_scale - mean) * input_scale.
    """

    crop: tuple[int, int]
    resize: tuple[int, int] | None = None
    swap: tuple[int, ...] | None = None  # of RGB; (2, 1, 0): BGR
    raw_scale: float = 1.0
    mean: Floats | None = None  # (C, 1, 1) or (C, h, w), in the order after the swap
    input_scale: float = 1.0
    oversample: bool = False

    @property
    def crops(self) -> int:
        return 10 if self.oversample else 1

    def __call__(self, pixels: NDArray[np.generic]) -> Floats:
        """ValueError where the crop does not fit, or the mean or the swap has other channels."""
        values = pixels.astype(np.float32) / np.float32(255)
        if self.resize is not None and values.shape[:2] != self.resize:
            values = np.atleast_3d(cv2.resize(values, self.resize[::-1], interpolation=cv2.INTER_LINEAR))
        channels = values.shape[2]
        order = self._order(channels)
        if self.oversample:
            crops = image.oversample(values, self.crop)  # type: ignore[arg-type]
        else:
            corner = image.crop_corner(values.shape, self.crop)
            crops = image.crop(values, corner, self.crop)[np.newaxis]  # type: ignore[arg-type]
        planes = np.ascontiguousarray(crops.transpose(0, 3, 1, 2)[:, order], np.float32)
        if self.raw_scale != 1:
            planes *= np.float32(self.raw_scale)
        if self.mean is not None:
            if self.mean.shape[0] not in (1, channels):
                raise ValueError(f"has {channels} channels, the mean {self.mean.shape[0]}")
            planes -= self.mean
        if self.input_scale != 1:
            planes *= np.float32(self.input_scale)
        return planes.reshape(-1, *self.crop)

    def _order(self, channels: int) -> list[int]:
        """Which of the stored channels (BGR) comes at each place."""
        stored = list(range(channels))[::-1] if channels == 3 else list(range(channels))
        if self.swap is None:
            return stored
        if sorted(self.swap) != list(range(channels)):
            if channels == 1:
                return stored  # a grey picture has nothing to swap
            raise ValueError(f"has {channels} channels, --channel-swap orders {len(self.swap)}")
        return [stored[place] for place in self.swap]


def read_mean(word: str) -> Floats:
    """Values as 104,117,123, or a .npy or .binaryproto file: (C, 1, 1) or (C, H, W)."""
    try:
        return np.array([float(value) for value in word.split(",")], np.float32).reshape(-1, 1, 1)
    except ValueError:
        pass
    path = Path(word)
    if not path.exists():
        raise FileNotFoundError(2, "No such mean file; expected .npy, .binaryproto or values as 104,117,123", word)
    if path.suffix.lower() != ".npy":
        return binaryproto.read(path)
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{word}: no array of numpy: {' '.join(str(error).split())}") from error
    if found.dtype.kind not in "fiu" or found.ndim not in (1, 2, 3):
        raise ValueError(
            f"{word}: a mean of shape {found.shape} and type {found.dtype}; expected C, H x W or C x H x W"
        )
    found = np.asarray(found, np.float32)
    return found.reshape(-1, 1, 1) if found.ndim == 1 else found[np.newaxis] if found.ndim == 2 else found


def fitting_mean(mean: Floats, shape: tuple[int, int, int]) -> Floats:
    """A mean for an input of (C, h, w), as Transformer.set_mean: a mean image of another size is resized to it."""
    if mean.shape[0] not in (1, shape[0]):
        raise ValueError(f"a mean of {mean.shape[0]} channels for an input of {text(shape)}")
    if mean.shape[1:] in ((1, 1), shape[1:]):
        return mean
    resized = cv2.resize(mean.transpose(1, 2, 0), shape[:0:-1], interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(np.atleast_3d(resized).transpose(2, 0, 1))
