"""What a net learned and what it sees, as pictures: the filters of a layer, and the maps that it makes of an image.

Pictures are (H, W, 3) uint8 BGR, to be written as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ops import image
from ops.contact_sheet import INK, MARGIN, PALE, PAPER, SMALL, TITLE, Pixels, width, write

Floats = NDArray[np.floating[Any]]
COLOURS = 3  # channels of a filter that is shown in colour: blue, green, red, as Caffe reads images
TILE, FEW, LARGE = 56, 48, 96  # pixels that a small tile grows to by whole pixels; of few tiles, LARGE
WIDEST = 160  # pixels of a tile; larger maps are made smaller
GAP = 3  # pixels between tiles
BEHIND = (214, 178, 120)  # neither black nor white, so that the tiles' edges show
NUMBERS, SQUARE = 10_000, 12  # of a blob without maps: most numbers that are shown, pixels of each
LEAST = 420  # pixels of a picture's width, for the title


class Drawn(NamedTuple):
    """A picture and how much of the blob is on it: filters and channels of each, or maps and 1."""

    picture: Pixels
    shown: tuple[int, int]


def filters(weights: Floats, *, most: int = 256, title: str | None = "") -> Drawn:
    """The filters (outputs, channels, kernel..) of a convolution, at most `most` tiles; no title: see `grid`.

    Filters of three channels are tiles in colour. Of others each channel is a grey tile, a filter a row. The contrast
    of each filter is stretched over its own least and greatest weight.
    """
    kernels = flat_kernels(weights)
    outputs, channels = kernels.shape[:2]
    if channels == COLOURS:
        count = min(outputs, most)
        tiles = np.stack([stretched(one) for one in kernels[:count].transpose(0, 2, 3, 1)])
        told = f"{of(count, outputs, 'filter')}, {sides(weights)}, in colour"
        return Drawn(grid(tiles, title=title, subtitle=told), (count, channels))
    if channels == 1:
        count = min(outputs, most)
        tiles = np.stack([stretched(one) for one in kernels[:count, 0]])
        return Drawn(grid(tiles, title=title, subtitle=f"{of(count, outputs, 'filter')}, {sides(weights)}"), (count, 1))
    rows = min(outputs, max(math.isqrt(most), most // channels), most)
    columns = min(channels, most // rows)
    tiles = np.concatenate([stretched(one) for one in kernels[:rows, :columns]])
    told = f"{of(rows, outputs, 'filter')} (rows), {of(columns, channels, 'channel')} (columns), {sides(weights)}"
    return Drawn(grid(tiles, title=title, subtitle=told, columns=columns, a_row=1), (rows, columns))


def responses(maps: Floats, *, most: int = 256, title: str | None = "") -> Drawn:
    """The maps (channels, height, width) of a blob, at most `most`, each stretched over its own values.

    A map of one value everywhere is black. A blob (channels,) is a square a number, all stretched together; axes
    behind the third lie side by side.
    """
    if maps.ndim < 2:
        count = min(maps.size, NUMBERS)
        tiles = stretched(maps.reshape(-1)[:count])[:, np.newaxis, np.newaxis]
        side = SQUARE if count > most else None
        return Drawn(grid(tiles, title=title, subtitle=of(count, maps.size, "number"), side=side), (count, 1))
    planes = maps.reshape(*maps.shape[:2], -1)
    count = min(len(planes), most)
    tiles = np.stack([stretched(one) for one in planes[:count]])
    told = f"{of(count, len(planes), 'map')}, {sides(planes[np.newaxis])}"
    return Drawn(grid(tiles, title=title, subtitle=told), (count, 1))


def silent(maps: Floats) -> int:
    """How many maps (channels, ..) have one value everywhere: units that do not see anything in this image."""
    planes = maps.reshape(len(maps), -1)
    return int((planes.max(1) == planes.min(1)).sum()) if planes.shape[1] > 1 else int((planes == 0).sum())


# -- an image for a net ----------------------------------------------------------------------------------------------


def net_input(pixels: Pixels, shape: Sequence[int], *, mean: Floats | None = None, scale: float = 1.0) -> Floats:
    """(height, width, channels) uint8 -> (1, channels, height', width') float32 for a net's input of that shape.

    The middle of the image in the input's aspect, resized to it; minus the mean, (channels,), (1,) or (channels, h, w)
    whose middle is taken; times `scale`.
    """
    channels, height, wide = shape
    if pixels.shape[2] != channels:
        raise ValueError(f"the image has {pixels.shape[2]} channels, the net's input {channels}")
    fitted: Floats = image.resize(middle(pixels, height, wide), height, wide).transpose(2, 0, 1).astype(np.float32)
    if mean is not None:
        fitted = fitted - fitting_mean(mean, channels, height, wide)
    return np.ascontiguousarray(fitted * np.float32(scale))[np.newaxis]


def middle(pixels: Pixels, height: int, wide: int) -> Pixels:
    """The largest window of the aspect height : wide in the middle of an image."""
    rows, columns = pixels.shape[:2]
    if columns * height > rows * wide:
        size = rows, max(1, round(rows * wide / height))
    else:
        size = max(1, round(columns * height / wide)), columns
    return image.crop(pixels, image.crop_corner(pixels.shape, size), size)


def fitting_mean(mean: Floats, channels: int, height: int, wide: int) -> Floats:
    """A mean as something that can be taken from (channels, height, wide); ValueError where it is of another size."""
    if mean.ndim == 1:
        if len(mean) not in (1, channels):
            want = f"1 or {channels}" if channels > 1 else "1"
            raise ValueError(f"{len(mean)} values for an input of {channels} channels; expected {want}")
        return mean.reshape(-1, 1, 1).astype(np.float32)
    found = " x ".join(map(str, mean.shape))
    if mean.shape[0] != channels or mean.shape[1] < height or mean.shape[2] < wide:
        raise ValueError(
            f"a mean of {found} does not cover the net's input of {channels} x {height} x {wide}; give one value a "
            "channel, or the mean of images that are at least as large"
        )
    top, left = (mean.shape[1] - height) // 2, (mean.shape[2] - wide) // 2
    return mean[:, top : top + height, left : left + wide].astype(np.float32)


# -- tiles -----------------------------------------------------------------------------------------------------------


def flat_kernels(weights: Floats) -> Floats:
    """(outputs, channels, height, width): kernels of one axis are a row, the planes of a deep one stand above each
    other."""
    if weights.ndim < 2:
        raise ValueError(f"weights of {weights.ndim} axes; expected outputs x channels x kernel")
    last = weights.shape[-1] if weights.ndim > 2 else 1
    return weights.reshape(*weights.shape[:2], -1, last)


def stretched(values: Floats) -> Pixels:
    """Numbers as 0..255, from the least to the greatest; what is not finite is black, and so are equal ones."""
    finite = np.isfinite(values)
    known = np.where(finite, values, 0).astype(np.float64)
    low, high = (known[finite].min(), known[finite].max()) if finite.any() else (0.0, 0.0)
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    return np.where(finite, np.rint((known - low) * (255 / (high - low))), 0).astype(np.uint8)


def grid(
    tiles: Pixels,
    *,
    title: str | None,
    subtitle: str,
    columns: int | None = None,
    a_row: int | None = None,
    side: int | None = None,
) -> Pixels:
    """Tiles (N, h, w) or (N, h, w, 3) in rows of `columns` (default: a picture of about 3:2), under a title.

    Small ones grow to about `side` pixels (default: the fewer, the larger). Rows are numbered at the left, by what they
    begin with: a row holds `a_row` things (default: a thing a tile). Without a title (None) there are only the tiles.
    """
    side = side or (LARGE if len(tiles) <= FEW else TILE)
    tiles = sized(tiles if tiles.ndim == 4 else np.repeat(tiles[..., np.newaxis], 3, axis=3), side)
    count, high, wide = tiles.shape[:3]
    columns = columns or even(count, high, wide)
    rows = math.ceil(count / columns)
    if title is None:
        return bare(tiles, rows, columns)
    numbers = [str(row * (a_row or columns)) for row in range(rows)]
    left = MARGIN + max(width(number, SMALL, False) for number in numbers) + 8
    top = MARGIN + TITLE + 2 * SMALL + 10
    room = max(LEAST, left + columns * (wide + GAP) - GAP + MARGIN)
    picture = np.full((top + rows * (high + GAP) - GAP + MARGIN, room, 3), PAPER, np.uint8)
    picture[top - GAP : -MARGIN + GAP, left - GAP : left + columns * (wide + GAP)] = BEHIND
    write(picture, title, MARGIN, MARGIN + TITLE - 4, room - 2 * MARGIN, TITLE, INK, bold=True)
    write(picture, subtitle, MARGIN, MARGIN + TITLE + SMALL + 4, room - 2 * MARGIN, SMALL, PALE)
    for number, one in enumerate(tiles):
        row, column = divmod(number, columns)
        y, x = top + row * (high + GAP), left + column * (wide + GAP)
        picture[y : y + high, x : x + wide] = one
        if column == 0:
            at = left - 8 - width(numbers[row], SMALL, False)
            write(picture, numbers[row], at, y + (high + SMALL) // 2 - 1, left - at, SMALL, PALE)
    return picture


def bare(tiles: Pixels, rows: int, columns: int) -> Pixels:
    """Tiles (N, h, w, 3) in rows, with a frame of GAP pixels around each."""
    high, wide = tiles.shape[1:3]
    picture = np.full((rows * (high + GAP) + GAP, columns * (wide + GAP) + GAP, 3), BEHIND, np.uint8)
    for number, one in enumerate(tiles):
        row, column = divmod(number, columns)
        y, x = GAP + row * (high + GAP), GAP + column * (wide + GAP)
        picture[y : y + high, x : x + wide] = one
    return picture


def sized(tiles: Pixels, side: int) -> Pixels:
    """Tiles grown to about `side` pixels by whole pixels, so that they stay sharp, or made smaller than WIDEST."""
    longest = max(tiles.shape[1:3])
    if longest > max(WIDEST, side):
        factor = max(WIDEST, side) / longest
        size = max(1, round(tiles.shape[2] * factor)), max(1, round(tiles.shape[1] * factor))
        return np.stack([np.asarray(cv2.resize(one, size, interpolation=cv2.INTER_AREA), np.uint8) for one in tiles])
    factor = max(1, round(side / longest))
    return tiles.repeat(factor, axis=1).repeat(factor, axis=2)


def even(count: int, high: int, wide: int) -> int:
    """Columns for a picture of about 3:2 that leave few places of the last row empty."""
    about = math.sqrt(count * 1.5 * (high + GAP) / (wide + GAP))
    near = range(max(1, round(about * 0.8)), max(2, min(count, round(about * 1.25)) + 1))
    return min(near, key=lambda columns: (-count % columns, abs(columns - about)))


def of(shown: int, whole: int, thing: str) -> str:
    """As "96 filters", "16 of 256 filters"."""
    return f"{shown:,} of {whole:,} {thing}s" if shown < whole else f"{whole:,} {thing}{'s' * (whole != 1)}"


def sides(blob: Floats) -> str:
    """The axes behind the first two, as 11 x 11."""
    return " x ".join(map(str, blob.shape[2:])) or "1"
