"""Tops made of windows of images: WindowData (R-CNN). Background first, then foreground, drawn with replacement."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ops import chance, image
from ops.feed import window_file
from ops.feed.tops import Arrays, Asked, Plan, Shape, StoppedError, Tops, batch_size, record_digest
from ops.inputs.fetch import Fetcher
from ops.names import unknown
from ops.recipe import fetch
from ops.records import binaryproto

MODES = ("warp", "square")
COIN, PICK = 0, 3  # which of a position's random words
F = np.float32


@dataclass(frozen=True)
class Cut:
    """What to take from an image and where to put it: its rows and columns, then size and corner in the crop."""

    top: int
    left: int
    bottom: int  # exclusive, as right
    right: int
    height: int
    width: int
    down: int
    over: int


def half_up(x: Any) -> int:
    """C's round: halves away from zero."""
    return int(np.copysign(np.floor(np.abs(np.float64(x)) + 0.5), x))


def cut_of(
    box: tuple[int, int, int, int], size: tuple[int, int], crop: int, context_pad: int, square: bool, flip: bool
) -> Cut:
    """A box (x1, y1, x2, y2) with its context, in an image of `size` (height, width), as a part of a square.

    Counted in float32, as Caffe does.
    """
    x1, y1, x2, y2 = box
    if not context_pad and not square:
        return Cut(y1, x1, y2 + 1, x2 + 1, crop, crop, 0, 0)
    factor = F(crop) / F(crop - 2 * context_pad)
    half_height, half_width = F(y2 - y1 + 1) / F(2), F(x2 - x1 + 1) / F(2)
    middle_x, middle_y = F(x1) + half_width, F(y1) + half_height
    if square:
        half_height = half_width = max(half_height, half_width)
    x1, x2 = half_up(middle_x - half_width * factor), half_up(middle_x + half_width * factor)
    y1, y2 = half_up(middle_y - half_height * factor), half_up(middle_y + half_height * factor)
    scale_y, scale_x = F(crop) / F(y2 - y1 + 1), F(crop) / F(x2 - x1 + 1)
    # what lies outside the image, and stays empty in the crop
    above, below = max(0, -y1), max(0, y2 - size[0] + 1)
    before, behind = max(0, -x1), max(0, x2 - size[1] + 1)
    y1, y2, x1, x2 = y1 + above, y2 - below, x1 + before, x2 - behind
    height, width = half_up(F(y2 - y1 + 1) * scale_y), half_up(F(x2 - x1 + 1) * scale_x)
    down = half_up(F(above) * scale_y)
    over = half_up(F(behind if flip else before) * scale_x)
    return Cut(y1, x1, y2 + 1, x2 + 1, min(height, crop - down), min(width, crop - over), down, over)


class WindowTops(Tops):
    """(batch, channels, crop, crop) windows and (batch,) labels; an endless stream without epochs."""

    heavy = True

    def __init__(self, asked: Asked):
        super().__init__(asked)
        p, transform = asked.spec.window_data_param, asked.spec.transform_param
        self.file, self.crop, self.mirror = asked.find(p.source), int(transform.crop_size), transform.mirror
        if not self.crop:
            raise ValueError("needs transform_param { crop_size: ... }: windows have that size, and it is 0")
        if p.crop_mode not in MODES:
            raise ValueError(unknown("crop_mode", p.crop_mode, MODES))
        if 2 * p.context_pad >= self.crop:
            raise ValueError(f"context_pad {p.context_pad} leaves nothing of crop_size {self.crop}")
        self.pad, self.square, self.root = int(p.context_pad), p.crop_mode == "square", p.root_folder
        self.windows = window_file.read(self.file, fg_threshold=p.fg_threshold, bg_threshold=p.bg_threshold)
        self.batch = batch_size(p.batch_size, asked.options, "window_data_param")
        self.foregrounds = int(F(self.batch) * F(p.fg_fraction))
        self.channels = self.windows.images[0][1]
        shape = (self.batch, self.channels, self.crop, self.crop)
        self.shapes: dict[str, Shape] = dict(zip(self.tops, (shape, (self.batch,)), strict=True))
        self.scale = F(p.scale)
        self.options: dict[str, Any] = {
            "all_formats": asked.options.all_formats,
            "max_pixels": asked.options.max_pixels,
        }
        self._take_mean(transform)
        self._look_beside()
        self.fetcher = Fetcher()
        self.cache: dict[int, bytes] | None = {} if p.cache_images else None

    def _take_mean(self, transform: Any) -> None:
        """The mean: a value a channel, or the middle of the mean image."""
        values = np.array(transform.mean_value, F)
        if transform.mean_file and values.size:
            raise ValueError("transform_param has mean_file and mean_value; write one of them")
        if values.size not in (0, 1, self.channels):
            raise ValueError(f"{values.size} mean_values for {self.channels} channels; expected 1 or {self.channels}")
        self.mean = np.broadcast_to(
            values.reshape(-1, 1, 1) if values.size else F(0), (self.channels, self.crop, self.crop)
        )
        if transform.mean_file:
            mean = binaryproto.read(self.asked.find(transform.mean_file))
            margin = (mean.shape[2] - self.crop) // 2
            if mean.shape[0] != self.channels or min(mean.shape[1:]) < self.crop or mean.shape[1] != mean.shape[2]:
                told = "x".join(map(str, mean.shape))
                raise ValueError(
                    f"{transform.mean_file}: a mean image of {told}; expected a square with {self.channels} channels, "
                    f"{self.crop} or more a side"
                )
            self.mean = mean[:, margin : margin + self.crop, margin : margin + self.crop]

    def _look_beside(self) -> None:
        """Where the first file is not found from the working folder, try beside the prototxt."""
        first, folder = window_file.path_of(self.root, self.windows.images[0][0]), self.asked.folder
        if folder is not None and not os.path.isabs(first) and not os.path.exists(first) and (folder / first).exists():
            self.root = os.path.join(folder, self.root)

    # -- rows --------------------------------------------------------------------------------------------------------

    def plan(self, start: int, first: int, last: int) -> Plan:
        plan = Plan(start, np.arange(first, last, dtype=np.int64))
        plan.more["windows"], plan.more["flips"] = self._drawn(plan.positions, plan.places)
        return plan

    def _drawn(self, positions: NDArray[np.int64], places: NDArray[np.int64]) -> tuple[Any, Any]:
        """(n, 6) windows and (n,) flips; the last places of a batch are the foreground."""
        drawn = chance.words(self.asked.seed, self.asked.spec.name, positions, (COIN, PICK))
        front = places >= self.batch - self.foregrounds
        sets = self.windows.background, self.windows.foreground
        picks = chance.below(drawn[:, 1], np.where(front, len(sets[1]), len(sets[0])))
        found = np.empty((len(places), 6), np.int64)
        for kind in (0, 1):
            here = front == bool(kind)
            found[here] = sets[kind][picks[here]]
        return found, (drawn[:, 0] >> np.uint64(63) == 1) & self.mirror

    def fill(self, plan: Plan, begin: int, end: int, out: Arrays, stopped: Callable[[], bool]) -> int:
        total = 0
        for row in range(begin, end):
            if stopped():
                raise StoppedError
            number, label, *box = plan.more["windows"][row].tolist()
            flip = bool(plan.more["flips"][row])
            try:
                encoded = self._bytes(number)
                pixels = image.decode(encoded, color=self.channels == 3, **self.options)
                self._into(pixels, box, flip, out[self.tops[0]][row])
            except (OSError, ValueError, cv2.error) as error:
                raise ValueError(f"{self._name(number, box)}: {getattr(error, 'strerror', None) or error}") from error
            out[self.tops[1]][row] = label
            if self.asked.digest:
                total += record_digest(int(plan.places[row]), encoded, label, *box, flip)
        return total

    def _bytes(self, number: int) -> bytes:
        if self.cache is not None and number in self.cache:
            return self.cache[number]
        path = os.fsencode(window_file.path_of(self.root, self.windows.images[number][0]))
        encoded = fetch(self.fetcher, path)
        if not isinstance(encoded, bytes):
            raise ValueError("a container of pixels; expected an image file")
        if self.cache is not None:
            self.cache[number] = encoded
        return encoded

    def _into(self, pixels: NDArray[np.uint8], box: Any, flip: bool, out: NDArray[np.float32]) -> None:
        """One window as (C, crop, crop); what lies outside the image is 0, the mean's place."""
        height, width = pixels.shape[:2]
        cut = cut_of(tuple(box), (height, width), self.crop, self.pad, self.square, flip)
        if not (0 <= cut.top < cut.bottom <= height and 0 <= cut.left < cut.right <= width):
            raise ValueError(f"the box {box} lies outside the image of {height} x {width}")
        if cut.height < 1 or cut.width < 1:
            raise ValueError(f"the box {box} with its context leaves nothing of the image of {height} x {width}")
        window: Any = cv2.resize(pixels[cut.top : cut.bottom, cut.left : cut.right], (cut.width, cut.height))
        window = window.reshape(cut.height, cut.width, -1)
        if flip:
            window = window[:, ::-1]
        rows, columns = slice(cut.down, cut.down + cut.height), slice(cut.over, cut.over + cut.width)
        out[...] = 0
        out[:, rows, columns] = (window.transpose(2, 0, 1) - self.mean[:, rows, columns]) * self.scale

    def _name(self, number: int, box: Any) -> str:
        return f"{self.file}: image {number}, {window_file.path_of('', self.windows.images[number][0])}, window {box}"

    def describe(self, position: int, place: int) -> str:
        windows, _ = self._drawn(np.array([position]), np.array([place]))
        number, _, *box = windows[0].tolist()
        return self._name(number, box)

    def close(self) -> None:
        self.fetcher = Fetcher()
