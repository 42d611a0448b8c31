"""Image operations on arrays: (height, width, channels) uint8, channels in BGR order; grey pictures have one channel.

Decoding is OpenCV's `imread`, as Caffe's: EXIF orientation applied, CMYK to BGR, 16 bits cut to 8, alpha dropped.
Importing this module makes OpenCV single-threaded and silent in the process (see ops/quiet.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ops.image_header import animated, ends, has_exif, kind, size, still_png
from ops.names import unknown
from ops.quiet import imdecode

Pixels = NDArray[np.uint8]

MAX_PIXELS = 100_000_000
END = b"\xff\xd9"  # JPEG's end-of-image marker
# libjpeg reads end markers on and on behind the end of a file; a segment holds 65,533 bytes at most
ENDLESS = END * 33_000
# What OpenCV 4.6, which Caffe is built with, reads; its EXR is off unless an environment variable says otherwise
CAFFE_KINDS = frozenset({"jpeg", "png", "bmp", "webp", "tiff", "jp2", "j2k", "pnm", "pam", "pfm", "hdr", "ras"})
ALL_KINDS = CAFFE_KINDS | {"gif", "avif"}
COLOR = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
GREY = {
    1: cv2.IMREAD_GRAYSCALE,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
# what OpenCV 4.6 writes 8-bit pictures as, and reads back
ENCODERS = (
    "bmp",
    "dib",
    "jp2",
    "jpe",
    "jpeg",
    "jpg",
    "pam",
    "pgm",
    "png",
    "pnm",
    "ppm",
    "ras",
    "sr",
    "tif",
    "tiff",
    "webp",
)


class BadImage(ValueError):  # noqa: N818
    """A file that holds no picture that can be used; the message is one line without the path."""


def decode(
    encoded: bytes, *, color: bool = True, all_formats: bool = False, max_pixels: int = MAX_PIXELS, reduce: int = 1
) -> Pixels:
    """The pixels that imread gives for a file of these bytes: (H, W, 3) in colour, (H, W, 1) in grey.

    BadImage where it gives none, where the header announces more than `max_pixels`, and, unless `all_formats`, for
    what Caffe's OpenCV could not read (GIF, AVIF, animated WebP). A truncated JPEG has pixels (see `defect`).
    `reduce` 2, 4 or 8 decodes a JPEG at that fraction of its size: much faster, other pixels than a resize gives.
    """
    image = read(encoded, (COLOR if color else GREY)[reduce], all_formats, max_pixels)
    if image.ndim != (3 if color else 2):  # OpenCV forgets which was asked for when it reads PFM
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if color else cv2.COLOR_BGR2GRAY)
    return image if color else image[:, :, np.newaxis]


def decode_natural(encoded: bytes, *, all_formats: bool = False, max_pixels: int = MAX_PIXELS) -> Pixels:
    """As Caffe decodes an encoded Datum without force_color or force_gray: the file's own 1, 3 or 4 channels.

    Alpha stays and EXIF orientation is not applied; a picture of 16 bits a channel is a BadImage (Caffe stops there).
    """
    image = read(encoded, cv2.IMREAD_UNCHANGED, all_formats, max_pixels)
    if image.dtype != np.uint8:
        raise BadImage(f"{image.dtype.itemsize * 8} bits a channel; an encoded record holds 8")
    return image if image.ndim == 3 else image[:, :, np.newaxis]


def read(encoded: bytes, flag: int, all_formats: bool, max_pixels: int) -> Any:
    """The picture as OpenCV gives it, after a look at the header; BadImage where there is none."""
    announced = size(encoded)
    if announced is None:
        raise BadImage(why_not(encoded, all_formats))
    if announced[0] * announced[1] > max_pixels:
        raise BadImage(f"announces {announced[1]:,} x {announced[0]:,} pixels, more than --max-pixels {max_pixels:,}")
    jpeg = encoded[:3] == b"\xff\xd8\xff"
    whole = encoded if jpeg and encoded[-2:] == END else encoded + ENDLESS if jpeg else usable(encoded, all_formats)
    try:
        image = imdecode(whole, flag) if whole else None
        if image is None and jpeg:
            image = imdecode(encoded + ENDLESS, flag)
    except cv2.error as error:
        raise BadImage(f"OpenCV cannot decode it: {' '.join((error.err or error.msg).split())}") from None
    if image is None:
        raise BadImage(why_not(encoded, all_formats))
    return image


def usable(encoded: bytes, all_formats: bool) -> bytes | None:
    """What of a file, which is no JPEG, may go to a decoder."""
    name = kind(encoded)
    if name == "png":
        return still_png(encoded)
    wanted = name in ALL_KINDS if all_formats else name in CAFFE_KINDS and not (name == "webp" and animated(encoded))
    return encoded if wanted else None


def why_not(encoded: bytes, all_formats: bool) -> str:
    """One line on a file that gives no pixels."""
    name = kind(encoded)
    if not encoded:
        return "an empty file"
    if name in ALL_KINDS and not all_formats and (name not in CAFFE_KINDS or (name == "webp" and animated(encoded))):
        found = "an animated WebP" if name == "webp" else name.upper()
        return f"{found}: Caffe's OpenCV does not read it; --formats all does"
    if name in ALL_KINDS:
        return f"a {name.upper()} file that cannot be decoded: damaged or cut short ({len(encoded):,} bytes)"
    if name:
        return f"a {name.upper()} file, which OpenCV does not read"
    head = encoded[:512].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not an image"
    if not encoded.strip(b"\0"):
        return f"{len(encoded):,} zero bytes, not an image"
    return f"not an image ({len(encoded):,} bytes, starting with {encoded[:8]!r})"


def defect(encoded: bytes) -> str | None:
    """What is wrong with a file that still decodes: a JPEG without its end; None for a whole file.

    What stands behind the end marker (zeros, rubbish, another picture) does not matter.
    """
    if encoded[-2:] == END or encoded[:3] != b"\xff\xd8\xff" or ends(encoded):
        return None
    return "truncated JPEG: no end-of-image marker"


def reduce_factor(encoded: bytes, target_height: int, target_width: int) -> int:
    """The largest of 8, 4, 2 and 1 by which a JPEG may shrink while decoding and still be no smaller than the target.

    An EXIF orientation may turn the picture on its side, so a file that has EXIF has to fit both ways.
    """
    announced = size(encoded) if encoded[:3] == b"\xff\xd8\xff" else None
    if announced is None or target_height <= 0 or target_width <= 0:
        return 1
    if has_exif(encoded):
        announced = (min(announced),) * 2
        target_height = target_width = max(target_height, target_width)
    height, width = announced
    for factor in (8, 4, 2):
        if -(-height // factor) >= target_height and -(-width // factor) >= target_width:  # libjpeg rounds up
            return factor
    return 1


def resize(image: Pixels, height: int, width: int) -> Pixels:
    """To exactly height x width, bilinear, without antialiasing: cv2.resize as Caffe calls it."""
    return with_channels(cv2.resize(image, (width, height)))


def resize_short(image: Pixels, side: int) -> Pixels:
    """The short side to `side`, the long one in proportion, rounded down (as Caffe's resize_and_crop_images.py)."""
    return resize(image, *short_side(image.shape[:2], side))


def resize_long(image: Pixels, side: int) -> Pixels:
    """The long side to `side`, the short one in proportion, rounded down, at least 1."""
    return resize(image, *long_side(image.shape[:2], side))


def short_side(image_size: Sequence[int], side: int) -> tuple[int, int]:
    """(height, width) of a picture whose short side becomes `side`."""
    height, width = image_size
    return (side, side * width // height) if height <= width else (side * height // width, side)


def long_side(image_size: Sequence[int], side: int) -> tuple[int, int]:
    """(height, width) of a picture whose long side becomes `side`."""
    height, width = image_size
    return (side, max(1, side * width // height)) if height >= width else (max(1, side * height // width), side)


def encode(image: Pixels, extension: str) -> bytes:
    """The picture as a file of that kind ("jpg", "png", ...), with OpenCV's default quality."""
    name = extension.lower().removeprefix(".")
    if name not in ENCODERS:
        raise ValueError(unknown("image type", extension, ENCODERS))
    try:
        done, encoded = cv2.imencode(f".{name}", image)
    except cv2.error:
        done = False
    if not done:
        raise ValueError(f"an image of {image.shape} {image.dtype} cannot be written as {name}")
    return encoded.tobytes()


def with_channels(image: Any) -> Pixels:
    """OpenCV drops the axis of a single channel; here it is put back."""
    return image if image.ndim == 3 else image[:, :, np.newaxis]


def crop(image: Pixels, corner: tuple[int, int], size: int | Sequence[int]) -> Pixels:
    """The window of `image` of `size` (height, width; one number for a square) that starts at `corner` (top, left)."""
    (top, left), (height, width) = corner, sides(size)
    if top < 0 or left < 0 or top + height > image.shape[0] or left + width > image.shape[1]:
        raise ValueError(
            f"a crop of {height} x {width} at {corner} leaves the image of {image.shape[0]} x {image.shape[1]}"
        )
    return image[top : top + height, left : left + width]


def crop_corner(
    image_size: Sequence[int],
    crop_size: int | Sequence[int],
    at: Literal["centre", "random", "corners"] = "centre",
    *,
    rng: np.random.Generator | None = None,
    place: int = 0,
) -> tuple[int, int]:
    """Where a crop starts, (top, left).

    "centre": rounded down, as Caffe's TEST phase; "random": row, then column from `rng`, uniform over all where it
    fits; "corners": number `place` of `crop_corners`.
    """
    if at == "corners":
        return crop_corners(image_size, crop_size)[place]
    if at == "centre":
        return crop_corners(image_size, crop_size)[4]
    if at != "random":
        raise ValueError(unknown("place of a crop", at, ("centre", "random", "corners")))
    if rng is None:
        raise ValueError("a crop at random needs a generator")
    room_down, room_right = room(image_size, crop_size)
    return int(rng.integers(room_down + 1)), int(rng.integers(room_right + 1))


def crop_corners(image_size: Sequence[int], crop_size: int | Sequence[int]) -> list[tuple[int, int]]:
    """The five places of pycaffe's oversample: top left, top right, bottom left, bottom right, centre."""
    down, right = room(image_size, crop_size)
    return [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]


def room(image_size: Sequence[int], crop_size: int | Sequence[int]) -> tuple[int, int]:
    """How far a crop can move down and right."""
    (height, width), (crop_height, crop_width) = image_size[:2], sides(crop_size)
    if crop_height > height or crop_width > width or min(crop_height, crop_width) < 1:
        raise ValueError(f"a crop of {crop_height} x {crop_width} does not fit an image of {height} x {width}")
    return height - crop_height, width - crop_width


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width), where one number stands for a square."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def mirror(image: Pixels) -> Pixels:
    """Left and right exchanged."""
    return image[:, ::-1]


def oversample(image: Pixels, size: int | Sequence[int]) -> Pixels:
    """Ten crops as pycaffe's io.oversample: `crop_corners` in order, then the same five mirrored: (10, h, w, C)."""
    crops = [crop(image, corner, size) for corner in crop_corners(image.shape, size)]
    return np.stack(crops + [mirror(one) for one in crops])
