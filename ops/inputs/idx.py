"""MNIST's IDX files, plain or compressed with gzip: images (magic 2051) and, found beside them, labels (magic 2049)."""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.inputs import containers
from ops.inputs.damage import told
from ops.inputs.labels import Labels, none, of_numbers
from ops.inputs.magic import is_idx, unpacked_head
from ops.records.image_list import ImageList

BYTES = 8  # the type code of unsigned bytes


def shape_of(file: Path, head: bytes) -> tuple[int, ...]:
    """The axes of unsigned bytes that a head announces."""
    axes = head[3]
    if head[2] != BYTES:
        raise ValueError(f"{file}: IDX values of type {head[2]:#04x}; expected unsigned bytes (0x08)")
    if len(head) < 4 + 4 * axes:
        raise ValueError(f"{file}: cut short in its head")
    return tuple(int.from_bytes(head[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes))


def read_array(file: Path, axes: int, what: str) -> NDArray[np.uint8]:
    """The whole array; a plain file stays mapped, a compressed one is unpacked. ValueError where it is cut short."""
    head = unpacked_head(file)
    if not is_idx(head) or head[3] != axes:
        raise ValueError(f"{file}: no IDX {what}; expected magic {0x800 + axes}, found {head[:4].hex(' ')}")
    shape, start = shape_of(file, head), 4 + 4 * axes
    wanted = math.prod(shape)
    if not math.prod(shape[1:]):
        raise ValueError(f"{file}: {what} of {'x'.join(map(str, shape[1:]))} bytes")
    with file.open("rb") as opened:
        packed = opened.read(2) == b"\x1f\x8b"
        size = opened.seek(0, os.SEEK_END)
        if wanted > (size * 1100 if packed else size):  # 1,032: the most that gzip can do
            raise ValueError(f"{file}: cut short: its head announces {wanted:,} bytes of {what}, it holds {size:,}")
        if packed:
            opened.seek(0)
            with told(file, "gzip file", zlib.error, EOFError, gzip.BadGzipFile):
                data = np.frombuffer(gzip.GzipFile(fileobj=opened).read(start + wanted), np.uint8)[start:]
        else:
            data = np.memmap(file, np.uint8, "r")[start : start + wanted]
    if data.size < wanted:
        raise ValueError(f"{file}: cut short: its head announces {wanted:,} bytes of {what}, it holds {data.size:,}")
    return data.reshape(shape)


def labels_file(images: Path) -> Path | None:
    """The labels beside an images file, by MNIST's names: train-images-idx3-ubyte.gz, train-labels-idx1-ubyte, ..."""
    plain = re.sub(r"\.gz$", "", images.name)
    if "images" not in plain:
        return None
    name = plain.replace("images", "labels").replace("idx3", "idx1")
    return next((file for file in (images.with_name(name), images.with_name(f"{name}.gz")) if file.is_file()), None)


def listing(files: Sequence[Path], mode: str) -> ImageList:
    """The images of IDX files, each with the labels beside it."""
    images = []
    for file in files:
        if unpacked_head(file)[3] == 1 and len(files) == 1:
            raise ValueError(f"{file}: IDX labels; give the images file, the labels beside it are found by its name")
        if unpacked_head(file)[3] != 1:
            images.append(file)
    if not images:
        raise ValueError(f"{files[0].parent}: IDX labels but no images")
    root = containers.root_of(images)
    parts, addresses = [], []
    for file in images:
        count = len(read_array(file, 3, "images"))
        addresses += containers.numbered(file, root, count)
        parts.append(_labels(file, count, mode))
    if not addresses:
        raise ValueError(f"{images[0]}: no images in it")
    values = Labels(np.concatenate([part.values for part in parts]))
    values.warnings = [warning for part in parts for warning in part.warnings]
    if len(images) > 1:
        values.warnings.append(f"{root}: {', '.join(file.name for file in images)} are listed together")
    return containers.listed(addresses, values, root)


def _labels(images: Path, count: int, mode: str) -> Labels:
    file = labels_file(images)
    if file is None:
        return none(count, str(images), mode, "no labels file beside it")
    labels = read_array(file, 1, "labels")
    if len(labels) != count:
        raise ValueError(f"{file}: {len(labels):,} labels for the {count:,} images of {images.name}")
    return of_numbers(np.asarray(labels), mode, str(file))


class IDX:
    """Images of one IDX file by number."""

    def __init__(self, file: Path):
        self.file, self.images = file, read_array(file, 3, "images")

    def read(self, member: bytes) -> NDArray[Any]:
        return np.array(self.images[containers.place_of(member, len(self.images), str(self.file))])[:, :, None]
