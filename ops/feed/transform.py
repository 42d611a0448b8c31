"""transform_param: crop, mean, scale, mirror, in Caffe's order, from stored pixels to the numbers that a net takes.

What is random is drawn before, for many positions at once (`choose`); the rest is arithmetic. It runs on the host,
record by record into the batch, or on the device, where the host only cuts. Both give the same bits: (x - mean) * scale
in float32, two roundings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ops import augment as augmenting
from ops import chance
from ops.proto.caffe_pb2 import TransformationParameter

Pixels = NDArray[Any]
Floats = NDArray[np.float32]
Shape = tuple[int, ...]
COIN, ROW, COLUMN, AUGMENT = 0, 1, 2, 3  # which of a position's random words; augmentation has 7 from its own on
AUGMENTS = 7


class OddShapeError(ValueError):
    """A record of another shape than the batch's."""

    def __init__(self, name: str, found: Shape, expected: Shape):
        what = f"{name}: is {by(found)} where the batch is {by(expected)}"
        super().__init__(f"{what}: crop or resize to one size, or take batch_size 1")


def by(shape: Shape) -> str:
    return "x".join(map(str, shape))


@dataclass
class Choices:
    """What is drawn for some positions; None where nothing is."""

    flips: NDArray[np.bool_] | None  # mirror or not
    corners: NDArray[np.float64] | None  # (n, 2): where the crop starts, row and column, in [0, 1) of the room there is
    augments: NDArray[np.uint64] | None  # (n, 7)


class Transform:
    """One layer's transform_param in one phase; `mean` is the mean file's (C, H, W), `augment` goes before all else."""

    def __init__(
        self,
        param: TransformationParameter,
        *,
        train: bool,
        mean: Floats | None = None,
        augment: augmenting.Augment | None = None,
    ):
        if mean is not None and param.mean_value:
            raise ValueError("transform_param has mean_file and mean_value; write one of them")
        self.crop, self.mirror, self.train = int(param.crop_size), bool(param.mirror), train
        self.scale = np.float32(param.scale)
        self.values = np.array(param.mean_value, np.float32)
        self.mean, self.augment = mean, augment
        self.mirrored = None if mean is None else np.ascontiguousarray(mean[:, :, ::-1])
        self.tables: list[Floats] = []  # what becomes of each byte; of every channel, or one for all

    # -- what is random ----------------------------------------------------------------------------------------------

    def choose(self, seed: int, name: str, positions: NDArray[np.int64]) -> Choices:
        """Draw for positions of the sample stream: the coin if `mirror`, the corner if TRAIN crops."""
        crops = self.crop > 0 and self.train
        which = [COIN] * self.mirror + [ROW, COLUMN] * crops
        which += range(AUGMENT, AUGMENT + AUGMENTS) if self.augment else []
        if not which:
            return Choices(None, None, None)
        drawn = chance.words(seed, name, positions, which)
        first, second = int(self.mirror), int(self.mirror) + 2 * crops
        return Choices(
            drawn[:, 0] >> np.uint64(63) == 1 if self.mirror else None,
            chance.uniform(drawn[:, first:second]) if crops else None,
            drawn[:, second:] if self.augment else None,
        )

    def corner(self, shape: tuple[int, int, int], choices: Choices, i: int) -> tuple[int, int]:
        """Where the crop of choice `i` starts in a picture of (C, H, W)."""
        if not self.crop:
            return 0, 0
        down, right = shape[1] - self.crop, shape[2] - self.crop
        if down < 0 or right < 0:
            raise ValueError(f"is {shape[1]}x{shape[2]}, smaller than crop_size {self.crop}")
        if choices.corners is None:
            return down // 2, right // 2
        return int(choices.corners[i, 0] * (down + 1)), int(choices.corners[i, 1] * (right + 1))

    def corners(self, shape: tuple[int, int, int], choices: Choices, count: int) -> NDArray[np.int64]:
        """`corner` of all choices, (count, 2), for pictures of one shape that fits."""
        room = np.array([shape[1] - self.crop, shape[2] - self.crop]) if self.crop else np.zeros(2, np.int64)
        if choices.corners is None:
            return np.tile(room // 2, (count, 1))
        return (choices.corners * (room + 1)).astype(np.int64)

    def shape(self, shape: Shape) -> Shape:
        """(C, h, w) of the top for a record of (C, H, W)."""
        return (shape[0], self.crop, self.crop) if self.crop else shape

    def check(self, shape: Shape) -> None:
        """ValueError where a record of (C, H, W) does not go with the mean."""
        if self.mean is not None and self.mean.shape != shape:
            raise ValueError(
                f"is {by(shape)}, the mean file {by(self.mean.shape)}: a mean image has the records' own shape"
            )
        if self.values.size not in (0, 1, shape[0]):
            raise ValueError(
                f"has {shape[0]} channels, transform_param {self.values.size} mean_values; expected 1 or {shape[0]}"
            )

    def augmented(self, pixels: Pixels, planar: bool, choices: Choices, i: int) -> tuple[Pixels, bool]:
        """The record after its small random change, (H, W, C)."""
        assert self.augment is not None
        assert choices.augments is not None
        if planar:
            pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        rng: Any = chance.Drawn(choices.augments[i])
        return augmenting.apply(pixels, self.augment.choose(rng)), False

    # -- on the host -------------------------------------------------------------------------------------------------

    def into(
        self, picture: Pixels, at: tuple[int, int], corner: tuple[int, int], flip: bool, out: Floats, scratch: Pixels
    ) -> None:
        """One record to float32 `out`, (C, h, w): the window at `at` of `picture`, (C, H, W) without gaps in memory.

        `corner` is where the window lies in the uncropped picture; `scratch`: C * H * w numbers of the picture's type.
        One call a record where that is possible: threads wait for the interpreter between calls, not inside of one.
        """
        (row, column), (top, left), (_, height, width) = at, corner, out.shape
        if flip and picture.dtype == np.uint8:
            planes = mirrored(picture, at, out.shape, scratch)
        else:
            planes = picture[:, row : row + height, column : column + width]
            planes = planes[:, :, ::-1] if flip else planes
        if self.mean is None and planes.dtype == np.uint8 and (self.values.size or self.scale != 1):
            self.look_up(planes, out)
            return
        mean: Floats | None = self.values.reshape(-1, 1, 1) if self.values.size else None
        if self.mean is not None:
            left = self.mean.shape[2] - width - left if flip else left
            whole = self.mean if self.mirrored is None or not flip else self.mirrored
            mean = whole[:, top : top + height, left : left + width]
        if mean is None:
            np.copyto(out, planes)
        elif planes.dtype == np.uint8:  # OpenCV takes an array of four axes as it lies, and as one plane after another
            cv2.subtract(planes[np.newaxis], mean[np.newaxis], out[np.newaxis], None, cv2.CV_32F)
        else:
            np.subtract(planes, mean, out=out)
        if self.scale != 1:
            np.multiply(out, self.scale, out=out)

    def look_up(self, planes: Pixels, out: Floats) -> None:
        """Bytes to numbers through a table for each channel: a byte has only 256 of them."""
        if not self.tables:
            means = self.values.reshape(-1, 1, 1) if self.values.size else np.zeros((1, 1, 1), np.float32)
            self.tables = [*((np.arange(256, dtype=np.float32).reshape(256, 1) - means) * self.scale)]
        if len(self.tables) == 1:
            cv2.LUT(planes[np.newaxis], self.tables[0], out[np.newaxis])
            return
        for plane, table, target in zip(planes, self.tables, out, strict=True):
            cv2.LUT(plane, table, target)

    def all_into(self, block: Pixels, corners: NDArray[np.int64], flips: NDArray[np.bool_], out: Floats) -> None:
        """Many small records at once: (n, C, h, w) crops, (n, 2) where they start, to float32 `out`."""
        np.copyto(out, block)
        if self.mean is not None:
            height, width = out.shape[2:]
            if self.crop:
                windows = np.lib.stride_tricks.sliding_window_view(self.mean, (height, width), (1, 2))
                out -= windows[:, corners[:, 0], corners[:, 1]].transpose(1, 0, 2, 3)
            else:
                out -= self.mean
        elif self.values.size:
            out -= self.values.reshape(-1, 1, 1)
        if self.scale != 1:
            out *= self.scale
        if flips.any():
            out[flips] = out[flips][..., ::-1]

    # -- on the device -----------------------------------------------------------------------------------------------

    def finish(self, cut: Tensor, corners: Tensor, flips: Tensor, mean: Tensor | None) -> Tensor:
        """The same for a whole batch where `cut` (n, C, h, w), `corners` (n, 2) and `flips` (n,) are; `mean` too."""
        height, width = cut.shape[2:]
        if self.mirror:
            cut = torch.where(flips[:, None, None, None], cut.flip(3), cut)
        out = cut.to(torch.float32)
        if mean is not None:
            if self.crop or self.mirror:
                rows = corners[:, :1] + torch.arange(height, device=cut.device)
                columns = torch.arange(width, device=cut.device).expand(len(cut), width)
                columns = torch.where(flips[:, None], width - 1 - columns, columns) + corners[:, 1:]
                mean = mean[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)
            out = out.sub_(mean) if out is not cut else out - mean
        elif self.values.size:
            values = torch.from_numpy(self.values).to(cut.device).view(-1, 1, 1)
            out = out.sub_(values) if out is not cut else out - values
        if self.scale != 1:
            out = out * float(self.scale)
        return out


def cut(pixels: Pixels, planar: bool, corner: tuple[int, int], out: Pixels) -> None:
    """The window of `out`'s size at `corner`, as planes."""
    (top, left), (height, width) = corner, out.shape[1:]
    if planar:
        np.copyto(out, pixels[:, top : top + height, left : left + width])
        return
    window = pixels[top : top + height, left : left + width]
    if window.shape[2] == 3 and window.dtype == out.dtype:
        cv2.split(window, list(out))
    else:
        out[:] = window.transpose(2, 0, 1)


def mirrored(picture: Pixels, at: tuple[int, int], shape: Shape, scratch: Pixels) -> Pixels:
    """The window of `shape` at `at` of the planes `picture`, right to left, in `scratch`: all planes in one call.

    The planes lie one under the other, so what is turned is one tall image from the first window to the last.
    """
    (row, column), (channels, height, width), high = at, shape, picture.shape[1]
    tall = picture.reshape(channels * high, -1)
    last = row + (channels - 1) * high + height
    turned = scratch[: channels * high * width].reshape(channels * high, width)
    cv2.flip(tall[row:last, column : column + width], 1, turned[: last - row])
    return turned.reshape(channels, high, width)[:, :height]
