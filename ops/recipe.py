"""From one listed line to its finished records: the named stages of `convert`, each a small function of its own.

read -> decode -> resize -> augment -> crop -> mirror -> subtract mean -> encode. What a line becomes depends on the
line, its place and the recipe alone: never on the shard, the process or the machine that works on it.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ops import augment as augmenting
from ops import chance, image, image_header
from ops.inputs.fetch import Fetcher
from ops.records import datum, lmdb

PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.ENETDOWN, errno.EREMOTEIO}
PAUSES = (0.05, 0.25, 1.0)  # seconds before a read that failed for a passing reason is tried again
MOST_COPIES = 1000  # of one line: their keys have three digits

Pixels = NDArray[Any]


class Line(NamedTuple):
    """One place of the (shuffled) list."""

    position: int  # its number in the keys
    path: bytes  # as listed
    label: Any  # int, or (K,) float32
    copies: int = 1  # augmented versions to make of it
    number: int = 0  # its line in the list file, from 1: where errors.csv sends a person
    bad: str | None = None  # why it was bad before any file was opened


class Record(NamedTuple):
    """A finished record: `value` is a Datum's bytes, or (C, H, W) float32 for HDF5; shape is (C, H, W)."""

    key: bytes
    value: Any
    label: Any
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Recipe:
    """How a line becomes records; the defaults are convert_imageset's."""

    root: str = ""
    backend: str = "lmdb"
    gray: bool = False
    resize: tuple[str, int, int] | None = (
        None  # mode exact | short-side | long-side, height, width (one side: the last)
    )
    crop: int = 0
    crop_at: Literal["centre", "random", "corners"] = "centre"
    crops: int = 1
    mirror: str = "none"
    mean: Pixels | None = None  # (C, H, W) of the uncropped image, or (1 or C,) per channel
    scale: float = 1.0
    augment: str = ""
    encode_type: str | None = None  # None: raw; "": by the file's own extension
    seed: int = 0
    all_formats: bool = False
    strict: bool = False
    fast_decode: bool = False
    max_pixels: int = 100_000_000
    want_pixels: bool = False  # a mean is wanted in the same pass
    scratch: list[Pixels] = field(default_factory=list, repr=False, compare=False)  # one buffer; see `reusing`
    fetcher: Fetcher = field(default_factory=Fetcher, repr=False, compare=False)

    @cached_property
    def floats(self) -> bool:
        """Whether records hold float32 values instead of bytes."""
        return self.mean is not None or self.scale != 1.0 or self.backend == "hdf5"

    @cached_property
    def augmentation(self) -> augmenting.Augment | None:
        return augmenting.parse(self.augment) if self.augment else None

    def stages(self) -> list[str]:
        """The names of the stages that this recipe runs, in order."""
        asked = {
            "read": True,
            "decode": True,
            "resize": self.resize,
            "augment": self.augment,
            "crop": self.crop,
            "mirror": self.mirror != "none",
            "mean": self.mean is not None or self.scale != 1.0,
            "encode": True,
        }
        return [name for name, used in asked.items() if used]

    def records(self, line: Line) -> tuple[list[Record], str | None]:
        """Every record of one line, and a warning or None; OSError or ValueError say why the line is bad."""
        source, warning = self.read(line)
        return list(self.finish(line, self.picture(source), source)), warning

    # -- the stages ------------------------------------------------------------------------------------------------

    def read(self, line: Line) -> tuple[bytes | Pixels, str | None]:
        """The file's bytes (or pixels, where a container holds pixels) and what is odd about them."""
        key_size = 9 + len(line.path) + (4 if line.copies * self.views > 1 else 0)
        if key_size > lmdb.LONGEST_KEY:
            raise ValueError(f"a path of {len(line.path)} bytes makes a key of over {lmdb.LONGEST_KEY}: shorten it")
        if line.bad or not line.path:
            raise ValueError(line.bad or "no path in this line")
        source = fetch(self.fetcher, self.root.encode(errors="surrogateescape") + line.path)
        if not isinstance(source, bytes):
            return source, None
        warning = image.defect(source)
        if warning and self.strict:
            raise ValueError(warning)
        return source, warning

    def picture(self, source: bytes | Pixels) -> Pixels:
        """decode and resize: (H, W, C) pixels at their working size."""
        picture = self.decode(source) if isinstance(source, bytes) else source
        if not self.resize:
            return picture
        mode, height, width = self.resize
        if mode == "exact":
            return image.resize(picture, height, width)
        return image.resize_short(picture, width) if mode == "short-side" else image.resize_long(picture, width)

    def decode(self, encoded: bytes) -> Pixels:
        """Pixels as imread gives them; with fast_decode, of a JPEG only as many as the target size needs."""
        options: dict[str, Any] = {"all_formats": self.all_formats, "max_pixels": self.max_pixels}
        if self.fast_decode and self.resize and image_header.kind(encoded) == "jpeg":
            options["reduce"] = image.reduce_factor(encoded, *self._target(encoded))
        return image.decode(encoded, color=not self.gray, **options)

    def _target(self, encoded: bytes) -> tuple[int, int]:
        """The (height, width) that a resize will ask of this file."""
        assert self.resize
        mode, height, width = self.resize
        if mode == "exact":
            return height, width
        announced = image_header.size(encoded) or (width, width)
        side = min(announced) if mode == "short-side" else max(announced)
        return announced[0] * width // side, announced[1] * width // side

    def finish(self, line: Line, picture: Pixels, source: Any) -> Iterator[Record]:
        """augment, crop, mirror, subtract mean and encode: the records of one picture, in the order of their copies."""
        crops, mirrors = self.crops if self.crop else 1, 2 if self.mirror == "both" else 1
        for version in range(line.copies):
            varied = self.vary(line, picture, version)
            for flip in range(mirrors):
                for place in range(crops):
                    copy = (version * mirrors + flip) * crops + place
                    yield self.record(line, varied, source, copy=copy, place=place, flip=bool(flip))

    def vary(self, line: Line, picture: Pixels, version: int) -> Pixels:
        """augment: a small random change; of several versions the first is the picture itself."""
        if self.augmentation is None or (version == 0 and line.copies > 1):
            return picture
        rng = chance.rng(self.seed, 0, line.position, version)
        return augmenting.apply(picture, self.augmentation.choose(rng))

    def record(self, line: Line, picture: Pixels, source: Any, *, copy: int, place: int, flip: bool) -> Record:
        """crop, mirror, subtract mean and encode one copy."""
        height, width = picture.shape[:2]
        top, left = 0, 0
        rng = chance.rng(self.seed, 1, line.position, copy) if self._chancy else None
        if rng is not None and self.mirror == "random":  # the coin before the corner, as Caffe's transformer draws
            flip = bool(rng.integers(2))
        if self.crop:
            top, left = image.crop_corner((height, width), self.crop, at=self.crop_at, rng=rng, place=place)
            picture = image.crop(picture, (top, left), self.crop)
        key = b"%08d_%b" % (line.position, line.path) + (b"#%03d" % copy if copy else b"")
        if self.floats:
            values = self.subtract(picture, (top, left), (height, width))
            values = np.ascontiguousarray(values[:, :, ::-1]) if flip else values
            value = values if self.backend == "hdf5" else datum.floats(values, line.label)
            return Record(key, value, line.label, values.shape)
        if flip:
            picture = image.mirror(picture)
        return self.encode(key, line, picture, source)

    @cached_property
    def _chancy(self) -> bool:
        return self.mirror == "random" or (self.crop > 0 and self.crop_at == "random")

    @cached_property
    def views(self) -> int:
        """Records of each version of a picture: its crops, and their mirror images."""
        return (self.crops if self.crop else 1) * (2 if self.mirror == "both" else 1)

    def subtract(self, picture: Pixels, corner: tuple[int, int], full: tuple[int, int]) -> NDArray[np.float32]:
        """(x - mean) * scale as (C, H, W) float32; a mean image counts from the corner of the uncropped picture."""
        values = picture.transpose(2, 0, 1).astype(np.float32, order="C")
        if self.mean is not None:
            values -= self._mean_at(values.shape, corner, full)
        if self.scale != 1.0:
            values *= np.float32(self.scale)
        return values

    def _mean_at(self, shape: tuple[int, ...], corner: tuple[int, int], full: tuple[int, int]) -> Pixels:
        assert self.mean is not None
        if self.mean.ndim == 1:
            if self.mean.size not in (1, shape[0]):
                raise ValueError(f"{self.mean.size} mean values for {shape[0]} channels")
            return self.mean[:, None, None]
        if self.mean.shape != (shape[0], *full):
            here, there = ("x".join(map(str, side)) for side in ((shape[0], *full), self.mean.shape))
            raise ValueError(
                f"a picture of {here} with a mean image of {there}: give both one size (--resize-height, ...)"
            )
        (top, left), (_, height, width) = corner, shape
        return self.mean[:, top : top + height, left : left + width]

    def encode(self, key: bytes, line: Line, picture: Pixels, source: Any) -> Record:
        """The Datum of one picture: raw planes, or file bytes, the file's own where nothing was asked to change."""
        shape = (picture.shape[2], *picture.shape[:2])
        if self.encode_type is None:
            if picture.dtype == np.uint8:
                return Record(key, self._raw(picture, line), line.label, shape)
            values = picture.transpose(2, 0, 1).astype(np.float32, order="C")
            return Record(key, datum.floats(values, line.label), line.label, shape)
        kind = self.encode_type or extension(line.path)
        if self._untouched and isinstance(source, bytes) and same_type(line.path, kind):
            data = source
        else:
            data = image.encode(picture, kind)
        return Record(key, datum.encoded(data, line.label), line.label, shape)

    def _raw(self, picture: Pixels, line: Line) -> Pixels:
        """The raw Datum, in the scratch buffer where there is one and the line has no second record that wants it."""
        if not self.scratch or line.copies * self.views > 1:
            return datum.raw(picture, line.label)
        if self.scratch[0].size < picture.size + datum.MOST_OVERHEAD:
            self.scratch[0] = np.empty(picture.size + datum.MOST_OVERHEAD, np.uint8)
        return datum.raw(picture, line.label, into=self.scratch[0])

    def reusing(self) -> Recipe:
        """The same recipe for a caller that uses up the records of a line before it asks for the next line's."""
        return replace(self, scratch=[np.empty(0, np.uint8)])

    @cached_property
    def _untouched(self) -> bool:
        return not (self.resize or self.crop or self.mirror != "none" or self.augment)


def fetch(fetcher: Fetcher, path: bytes) -> bytes | Pixels:
    """The file, read again after a pause where the storage had a passing fault."""
    for pause in PAUSES:
        try:
            return fetcher.fetch(path)
        except OSError as error:
            if error.errno not in PASSING:
                raise
            time.sleep(pause)
    return fetcher.fetch(path)


def extension(path: bytes) -> str:
    """What follows the last dot of a name, in lower case: how convert_imageset guesses the encoding."""
    name = path.rpartition(b".")[2] if b"." in path else b""
    if not name:
        raise ValueError("no extension to guess the encoding from; give --encode-type")
    return name.decode(errors="replace").lower()


def same_type(path: bytes, kind: str) -> bool:
    """Whether the name's extension says this encoding; jpg and jpeg are one, capitals do not count."""
    jpeg = {"jpg": "jpeg"}
    name = path.rpartition(b".")[2].decode(errors="replace").lower()
    return jpeg.get(name, name) == jpeg.get(kind.lower(), kind.lower())


def reason(error: BaseException) -> str:
    """Why a line is bad, on one line: what errors.csv lists."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, cv2.error):
        return "OpenCV: " + " ".join(str(error.err).split())
    return " ".join(str(error).split()) or type(error).__name__
