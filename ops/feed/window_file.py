"""Window files of R-CNN: images and the boxes in them (data.md section 8 of Caffe's facts, in a few lines of text)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.names import quoted

_HEAD = re.compile(rb"\s*#\s*(\d+)\s+(\S+)\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)(?=\s|$)")


@dataclass(frozen=True)
class Windows:
    """images: (path, channels, height, width) in order. Rows of foreground and background: (image, class, x1, y1, x2,
    y2), corners inclusive; of the background the class is 0."""

    images: list[tuple[bytes, int, int, int]]
    foreground: NDArray[np.int32]
    background: NDArray[np.int32]


def read(file: Path, *, fg_threshold: float, bg_threshold: float) -> Windows:
    """A window file: blocks of `# number`, path, channels, height, width, count, then count times `class overlap x1 y1
    x2 y2`, separated by white space.

    overlap >= fg_threshold: foreground, whose class must be above 0; else below bg_threshold: background; else dropped.
    """
    raw = file.read_bytes()
    if not raw.strip():
        raise ValueError(f"{file}: an empty window file")
    images: list[tuple[bytes, int, int, int]] = []
    front: list[NDArray[np.int32]] = []
    behind: list[NDArray[np.int32]] = []
    place = 0
    while place < len(raw):
        number = len(images)
        try:
            image, block, place = _block(raw, place, number)
            fore, back = _split(block, number, fg_threshold, bg_threshold)
        except ValueError as error:
            raise ValueError(f"{file}: image {number}: {error}") from error
        images.append(image)
        front.append(fore)
        behind.append(back)
    found = [np.concatenate(rows) for rows in (front, behind)]
    for what, windows in zip(("foreground", "background"), found, strict=True):
        if not len(windows):
            at = f"fg_threshold {fg_threshold:g} and bg_threshold {bg_threshold:g}"
            raise ValueError(f"{file}: no {what} window at {at}; both kinds are needed")
    return Windows(images, *found)


def _block(raw: bytes, place: int, number: int) -> tuple[tuple[bytes, int, int, int], NDArray[np.float64], int]:
    """One image, its (count, 6) windows, and where the next block begins."""
    head = _HEAD.match(raw, place)
    if head is None or int(head[1]) != number:
        met = b" ".join(raw[place : place + 100].split()[:2]).decode(errors="replace")
        raise ValueError(f"found {quoted(met)}, expected '# {number}', path, channels, height, width, windows")
    channels, height, width, count = (int(head[i]) for i in range(3, 7))
    if min(channels, height, width) < 1:
        raise ValueError(f"an image of {channels} x {height} x {width}")
    end = raw.find(b"#", head.end())  # windows are numbers: the next sign is the next block's
    end = len(raw) if end < 0 else end
    words = raw[head.end() : end].split()
    try:
        values = np.array(words, dtype="S").astype(np.float64) if words else np.empty(0)
    except ValueError:
        raise ValueError("words where its windows' numbers should be") from None
    if values.size != 6 * count:
        raise ValueError(f"{values.size} numbers for its {count} windows; expected 6 each")
    return (head[2], channels, height, width), values.reshape(count, 6), end


def _split(block: NDArray[np.float64], number: int, fg_threshold: float, bg_threshold: float) -> Any:
    """The foreground and the background among the windows of one image."""
    overlap = block[:, 1].astype(np.float32)
    front = overlap >= np.float32(fg_threshold)
    behind = ~front & (overlap < np.float32(bg_threshold))
    if (block[front, 0] <= 0).any():
        raise ValueError("a foreground window of class 0 or below")
    rows = np.concatenate([np.full((len(block), 1), number), block[:, :1], block[:, 2:]], axis=1).astype(np.int32)
    background = rows[behind]
    background[:, 1] = 0
    return rows[front], background


def path_of(root: str, path: bytes) -> str:
    return os.fsdecode(os.fsencode(root) + path)
