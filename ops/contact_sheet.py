"""Many pictures on one, each in a cell of the same size with its caption, to look a data set in the face."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]  # blue, green, red

PAPER: Colour = (255, 255, 255)
FRAME: Colour = (242, 240, 238)
INK: Colour = (38, 34, 32)
PALE: Colour = (138, 130, 124)
CELL = 168  # pixels
MARGIN = 24  # pixels around the sheet
GAP = 14  # pixels between cells
TEXT = 15  # pixels, the first line of a caption; the second is smaller
SMALL = 12
TITLE = 22
ELLIPSIS = "…"


def contact_sheet(
    images: Sequence[NDArray[Any]],
    captions: Sequence[str],
    columns: int | None = None,
    *,
    cell: int | None = None,
    title: str = "",
) -> Pixels:
    """The sheet, (H, W, 3) uint8 BGR: `columns` cells of `cell` x `cell` pixels a row (defaults: see `fitting`).

    An image is (H, W), or (H, W, C) with any C, uint8 or float; see `viewable`. It keeps its aspect. A caption is one
    line or two; what is too long for its cell is shortened.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images with {len(captions)} captions")
    shown = [thumbnail(image, cell or CELL) for image in images]
    cell, columns = fitting(shown, cell, columns)
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    step_down, step_right = cell + 8 + lines * (TEXT + 5) + GAP, cell + GAP
    top = MARGIN + (TITLE + 20 if title else 0)
    rows = math.ceil(len(images) / columns)
    sheet = np.full(
        (top + rows * step_down + MARGIN - GAP, 2 * MARGIN + columns * step_right - GAP, 3), PAPER, np.uint8
    )
    if title:
        write(sheet, title, MARGIN, MARGIN + TITLE - 4, sheet.shape[1] - 2 * MARGIN, TITLE, INK, bold=True)
    for number, (image, caption) in enumerate(zip(shown, captions, strict=True)):
        row, column = divmod(number, columns)
        y, x = top + row * step_down, MARGIN + column * step_right
        place(sheet[y : y + cell, x : x + cell], image)
        for line, text in enumerate(caption.split("\n")[:2]):
            height, colour = (SMALL, PALE) if line else (TEXT, INK)
            write(sheet, text, x, y + cell + 6 + (line + 1) * (TEXT + 3), cell, height, colour)
    return sheet


def fitting(images: Sequence[Pixels], cell: int | None, columns: int | None) -> tuple[int, int]:
    """(cell, columns) where they are not given.

    Cells of about CELL pixels, a whole multiple of the longest side where all images are small; as many columns as make
    a sheet of about 3:2 and leave few cells of the last row empty.
    """
    longest = max((max(image.shape[:2]) for image in images), default=0)
    cell = cell or (longest * round(CELL / longest) if 0 < longest <= CELL / 1.5 else CELL)
    about = max(1, min(len(images), math.ceil(math.sqrt(len(images) * 1.5))))
    near = range(max(1, about - 1), about + 2)
    return cell, columns or min(near, key=lambda count: (-len(images) % count, abs(count - about)))


def viewable(image: NDArray[Any]) -> Pixels:
    """Any picture as (H, W, 3) uint8.

    Floats are stretched so that the smallest becomes 0 and the largest 255, unless they already are grey levels. One
    channel is grey; two (the halves of a pair) stand side by side; of four or more, the first three are shown.
    """
    image = np.atleast_3d(image)
    if image.dtype != np.uint8:
        image = stretched(image)
    if image.shape[2] == 2:
        image = np.concatenate([image[:, :, :1], image[:, :, 1:]], axis=1)
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else np.ascontiguousarray(image[:, :, :3])


def thumbnail(image: NDArray[Any], side: int = CELL) -> Pixels:
    """`viewable`, no side longer than `side`, in its own aspect: many large pictures need not stay in memory."""
    image = viewable(image)
    factor = side / max(*image.shape[:2], 1)
    return image if factor >= 1 else scaled(image, factor, cv2.INTER_AREA)


def scaled(image: Pixels, factor: float, method: int) -> Pixels:
    height, width = image.shape[:2]
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(image, size, interpolation=method), np.uint8)


def stretched(values: NDArray[Any]) -> Pixels:
    """Numbers of any range as 0..255; what is not finite is black."""
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
    if low < 0 or high > 255 or high <= 1:
        values = (values - low) * (255 / (high - low)) if high > low else np.full_like(values, 128)
    return np.where(finite, np.rint(np.where(finite, values, 0)), 0).astype(np.uint8)


def place(cell: Pixels, image: Pixels) -> None:
    """Draw the image into the middle of a cell, as large as fits; small ones grow by whole pixels and stay sharp."""
    room = cell.shape[0]
    cell[:] = FRAME
    height, width = image.shape[:2]
    if not height or not width:
        return
    factor = room / max(height, width)
    if factor >= 2:
        image = image.repeat(int(factor), axis=0).repeat(int(factor), axis=1)
    elif factor != 1:
        image = scaled(image, factor, cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    height, width = image.shape[:2]
    top, left = (room - height) // 2, (room - width) // 2
    cell[top : top + height, left : left + width] = image


def write(
    sheet: Pixels, text: str, x: int, y: int, room: int, height: int, colour: Colour, *, bold: bool = False
) -> None:
    """One line of text with its foot at y, shortened to `room` pixels."""
    text = shortened(printable(text), room, height, bold)
    if hasattr(cv2, "FontFace"):  # OpenCV 5 brings a font with most of the world's scripts
        cv2.putText(sheet, text, (x, y), colour, cv2.FontFace("sans"), height, weight(bold))
    else:
        scale = cv2.getFontScaleFromHeight(cv2.FONT_HERSHEY_SIMPLEX, round(height * 0.7))
        cv2.putText(sheet, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1 + bold, cv2.LINE_AA)


def weight(bold: bool) -> int:
    """Of OpenCV's variable font, 100 to 1000."""
    return 600 if bold else 420


def printable(text: str) -> str:
    """Without control characters and lone surrogates; in ASCII for OpenCV 4, whose fonts know nothing else."""
    text = "".join(" " if unicodedata.category(letter)[0] == "C" else letter for letter in text)
    if hasattr(cv2, "FontFace"):
        return text.strip()
    return unicodedata.normalize("NFKD", text).encode("ascii", "replace").decode().replace("?", "").strip()


def shortened(text: str, room: int, height: int, bold: bool) -> str:
    """The text, or its beginning and an ellipsis where it is wider than `room` pixels."""
    if width(text, height, bold) <= room:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        short_enough = width(text[:middle].rstrip() + ELLIPSIS, height, bold) <= room
        fits, too_long = (middle, too_long) if short_enough else (fits, middle)
    return text[:fits].rstrip() + ELLIPSIS


def width(text: str, height: int, bold: bool) -> int:
    """Of a line, in pixels."""
    if hasattr(cv2, "FontFace"):
        return int(cv2.getTextSize((0, 0), text, (0, 0), cv2.FontFace("sans"), height, weight(bold))[2])
    scale = cv2.getFontScaleFromHeight(cv2.FONT_HERSHEY_SIMPLEX, round(height * 0.7))
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1 + bold)[0][0])
