"""HDF5 files with `data` (N, C, H, W) and `label`, one, or several through the list that an HDF5Data layer reads."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ops.inputs import containers
from ops.inputs.damage import told
from ops.inputs.labels import Labels, none, of_numbers
from ops.records.image_list import ImageList

ERRORS = (OSError, KeyError, RuntimeError, TypeError, AttributeError, MemoryError, OverflowError, UnicodeDecodeError)
LARGEST = 1 << 32  # bytes of one image: more is damage
MOST = 1100  # bytes that a byte of the file can stand for: 1,032 is the most that gzip can do


def listing(files: Sequence[Path], mode: str) -> ImageList:
    """The rows of HDF5 files with their labels."""
    root = containers.root_of(files)
    addresses: list[bytes] = []
    parts = []
    for file in files:
        with told(file, "HDF5 file", *ERRORS), h5py.File(file, "r") as opened:
            data = _data(opened, file)
            labels = _labels(opened, file, len(data))
        addresses += containers.numbered(file, root, len(data) if labels is None else len(labels))
        parts.append(labels)
    if not addresses:
        raise ValueError(f"{files[0]}: no rows in it")
    return containers.listed(addresses, _joined(parts, len(addresses), mode, str(files[0])), root)


def _joined(parts: list[NDArray[Any] | None], count: int, mode: str, where: str) -> Labels:
    known = [part for part in parts if part is not None]
    if not known:
        return none(count, where, mode, "no dataset named 'label'")
    if len(known) < len(parts) or len({part.shape[1:] for part in known}) > 1:
        raise ValueError(f"{where}: the files of one list differ in their labels")
    return of_numbers(np.concatenate(known), mode, where)


def _data(opened: h5py.File, file: Path) -> Any:
    if "data" not in opened or not isinstance(opened["data"], h5py.Dataset):
        raise ValueError(f"{file}: no dataset named 'data'; it holds {', '.join(sorted(opened)) or 'nothing'}")
    data = opened["data"]
    if data.ndim != 4 or data.dtype.kind not in "fiu":
        raise ValueError(f"{file}: data of shape {data.shape} and type {data.dtype}; expected numbers (N, C, H, W)")
    if not 0 < math.prod(data.shape[1:]) * data.dtype.itemsize <= LARGEST or len(data) > MOST * file.stat().st_size:
        raise ValueError(f"{file}: damaged HDF5 file: images of shape {data.shape[1:]}")
    return data


def _labels(opened: h5py.File, file: Path, count: int) -> NDArray[Any] | None:
    """(count,) or (count, K)."""
    if "label" not in opened:
        return None
    label = opened["label"]
    if not isinstance(label, h5py.Dataset) or label.dtype.kind not in "fiub" or not label.ndim:
        raise ValueError(f"{file}: its label is no dataset of numbers")
    if math.prod(label.shape) * label.dtype.itemsize > MOST * file.stat().st_size:
        raise ValueError(f"{file}: damaged HDF5 file: labels of shape {label.shape}")
    if len(label) != count:
        raise ValueError(f"{file}: {count:,} rows of data but {len(label):,} labels")
    values = np.asarray(label[:]).reshape(count, -1)
    return values[:, 0] if values.shape[1:] == (1,) else values


class HDF5:
    """Images of one HDF5 file by row: (H, W, C), uint8 where the file has bytes, else float32."""

    def __init__(self, file: Path):
        self.file, self.lock = file, threading.Lock()
        with told(file, "HDF5 file", *ERRORS):
            self.data = _data(h5py.File(file, "r"), file)

    def read(self, member: bytes) -> NDArray[Any]:
        with self.lock, told(self.file, "HDF5 file", *ERRORS):
            image = containers.pixels(self.data[containers.place_of(member, len(self.data), str(self.file))])
        return image if image.dtype == np.uint8 else image.astype(np.float32)
