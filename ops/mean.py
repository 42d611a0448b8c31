"""The mean image: exact sums that merge, so that it does not matter who added what in which order.

As compute_image_mean: the sum of every pixel over all records, divided by their count, as float32. Caffe adds in
float32; the two agree to the bit while no sum passes 2**24, that is up to 65,793 images of 8 bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

FLUSH = 257  # images of 8 bits that a 16-bit sum can hold: 257 * 255 = 65,535


class PixelSum:
    """The sum and count of images of one shape (C, H, W): int64 for uint8 images, float64 for float ones."""

    def __init__(self) -> None:
        self.count = 0
        self.total: NDArray[Any] | None = None
        self._small: NDArray[np.uint16] | None = None  # a 16-bit partial sum: four times the images a second
        self._held = 0

    def add(self, pixels: NDArray[Any]) -> None:
        """Add one (C, H, W) image; ValueError when its shape is not that of the others."""
        kind = np.int64 if pixels.dtype == np.uint8 else np.float64
        if self.total is None:
            self.total = np.zeros(pixels.shape, kind)
        elif self.total.shape != pixels.shape:
            here, there = ("x".join(map(str, shape)) for shape in (pixels.shape, self.total.shape))
            raise ValueError(
                f"an image of {here} among images of {there}: a mean needs one size (resize when converting)"
            )
        if kind is np.float64 or self.total.dtype == np.float64:
            self.total = self.total.astype(np.float64, copy=False)
            self.total += pixels
        else:
            if self._small is None:
                self._small = np.zeros(pixels.shape, np.uint16)
            self._small += pixels
            self._held += 1
            if self._held == FLUSH:
                self._flush()
        self.count += 1

    def _flush(self) -> None:
        if self._held and self.total is not None and self._small is not None:
            self.total += self._small
            self._small[:] = 0
            self._held = 0

    def sums(self) -> NDArray[Any]:
        """(C, H, W) sums so far."""
        self._flush()
        if self.total is None:
            raise ValueError("the mean of no images")
        return self.total

    def merge(self, other: PixelSum) -> None:
        """Take over the images of another sum."""
        if not other.count:
            return
        theirs = other.sums()
        if self.total is None:
            self.total = theirs.copy()
        elif self.total.shape != theirs.shape:
            here, there = ("x".join(map(str, shape)) for shape in (theirs.shape, self.total.shape))
            raise ValueError(f"images of {here} and of {there}: a mean needs one size (resize when converting)")
        else:
            self.total = self.sums() + theirs
        self.count += other.count

    def mean(self) -> NDArray[np.float32]:
        """(C, H, W) float32; the division is done in float64 and rounded once, which is float32's own division here."""
        return (self.sums() / np.float64(self.count)).astype(np.float32)

    def save(self, file: Path | BinaryIO) -> None:
        """Sums and count as an .npz file; `load` reads it back."""
        np.savez(file, total=self.sums(), count=self.count)

    @classmethod
    def load(cls, file: Path | BinaryIO) -> PixelSum:
        out = cls()
        with np.load(file, allow_pickle=False) as saved:
            out.total, out.count = saved["total"], int(saved["count"])
        return out
