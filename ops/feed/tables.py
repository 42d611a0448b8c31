"""Rows of HDF5 files by number: in place where the file holds plain numbers, in memory where they fit, else by h5py.

Caffe takes each file into memory whole. A dataset that is not compressed is an array in the file: it is mapped instead.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ops.feed.source import Example
from ops.inputs.damage import told
from ops.inputs.hdf5 import ERRORS
from ops.memory import available
from ops.names import hint, quoted

SHARE = 4  # a table may take this part of the free memory
LEAST = 64 << 20  # bytes that any table may take
SMALL = 4096  # bytes of a row: smaller ones are gathered together


class Table:
    """One dataset of numbers: row i is an array of `shape`."""

    def __init__(self, file: Path, name: str):
        self.file, self.name = file, name
        with told(file, "HDF5 file", *ERRORS), h5py.File(file, "r") as opened:
            if name not in opened:
                raise ValueError(f"{file}: no dataset {quoted(name)}{hint(name, opened)}")
            dataset = opened[name]
            if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiub" or not dataset.shape:
                raise ValueError(f"{file}: {quoted(name)} is no dataset of numbers with an axis for the rows")
            self.count, self.shape = len(dataset), tuple(dataset.shape[1:])
            self.rows: Any = _in_place(dataset, file)
            bytes_of = dataset.size * max(4, dataset.dtype.itemsize)
            if self.rows is None and bytes_of < max(LEAST, (available() or 0) // SHARE):
                self.rows = dataset[:].astype(np.float32, copy=False)
        if self.rows is None:
            self.rows = _ByH5py(file, name)

    def row(self, index: int) -> NDArray[Any]:
        """(*shape) in the file's own type, which may be a view of the file."""
        found: NDArray[Any] = self.rows[index]
        return found

    def take(self, indices: NDArray[np.int64], out: NDArray[np.float32], places: NDArray[np.int64]) -> None:
        """Rows `indices` to `places` of `out`."""
        if isinstance(self.rows, np.ndarray) and out[:1].nbytes <= SMALL:
            out[places] = self.rows[indices]
            return
        for place, index in zip(places.tolist(), indices.tolist(), strict=True):
            out[place] = self.rows[index]

    def close(self) -> None:
        self.rows = np.empty((0, *self.shape), np.float32)


def _in_place(dataset: Any, file: Path) -> Any:
    """Rows as views of the mapped file, or None where they are compressed, or do not lie in one piece each."""
    dtype = dataset.dtype
    if dataset.dtype.kind == "b" or not dataset.size or not dataset.id.get_space().is_simple():
        return None
    plain = dataset.id.get_create_plist()
    if plain.get_nfilters() or dataset.external or dataset.is_virtual:
        return None
    if not dataset.chunks:
        start = dataset.id.get_offset()
        return None if start is None else np.asarray(np.memmap(file, dtype, "r", start, dataset.shape))
    if dataset.chunks[1:] != dataset.shape[1:] or not hasattr(dataset.id, "chunk_iter"):
        return None
    pieces: list[Any] = []
    dataset.id.chunk_iter(pieces.append)
    places = {piece.chunk_offset[0] // dataset.chunks[0]: piece.byte_offset for piece in pieces}
    if len(places) * dataset.chunks[0] < len(dataset):
        return None  # a chunk that nobody wrote
    return _Chunks(file, dtype, dataset.shape[1:], dataset.chunks[0], places)


class _Chunks:
    """Rows of a dataset that lies in pieces of `per` rows."""

    def __init__(self, file: Path, dtype: Any, shape: tuple[int, ...], per: int, places: dict[int, int]):
        with file.open("rb") as opened:
            self.map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        self.dtype, self.shape, self.per, self.places = dtype, shape, per, places
        self.size = dtype.itemsize * int(np.prod(shape))

    def __getitem__(self, index: int) -> NDArray[Any]:
        chunk, inside = divmod(index, self.per)
        return np.ndarray(self.shape, self.dtype, self.map, self.places[chunk] + inside * self.size)


class _ByH5py:
    """Rows through h5py; the file is opened by the process that reads it."""

    def __init__(self, file: Path, name: str):
        self.file, self.name, self.lock = file, name, threading.Lock()
        self.opened: tuple[int, Any] | None = None

    def __getitem__(self, index: int) -> NDArray[Any]:
        with self.lock, told(self.file, "HDF5 file", *ERRORS):
            if self.opened is None or self.opened[0] != os.getpid():
                self.opened = (os.getpid(), h5py.File(self.file, "r")[self.name])
            found: NDArray[Any] = self.opened[1][index]
            return found


class Tables:
    """The datasets `names` of several files, their rows in a row."""

    def __init__(self, files: Sequence[Path], names: Sequence[str]):
        self.files, self.names = list(files), list(names)
        self.tables = [[Table(file, name) for name in names] for file in self.files]
        for file, row in zip(self.files, self.tables, strict=True):
            self._check(file, row)
        self.ends = np.cumsum([row[0].count for row in self.tables])
        if not self.ends[-1]:
            raise ValueError(f"{self.files[0]}: holds no rows")
        self.shapes = [table.shape for table in self.tables[0]]

    def _check(self, file: Path, row: list[Table]) -> None:
        counts = {table.count for table in row}
        if len(counts) > 1:
            told_counts = ", ".join(f"{table.name} {table.count:,}" for table in row)
            raise ValueError(f"{file}: datasets of different numbers of rows: {told_counts}")
        for first, table in zip(self.tables[0], row, strict=True):
            if first.shape != table.shape:
                here, there = ("x".join(map(str, shape)) or "one number" for shape in (table.shape, first.shape))
                raise ValueError(f"{file}: rows of {quoted(table.name)} are {here}, those of {first.file} {there}")

    def __len__(self) -> int:
        return int(self.ends[-1])

    def split(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The file of each row, and its number there."""
        file = np.searchsorted(self.ends, indices, "right")
        return file, indices - self.ends[file] + np.diff(self.ends, prepend=0)[file]

    def fill(self, indices: NDArray[np.int64], outs: Sequence[NDArray[np.float32]]) -> None:
        """Rows `indices` of each dataset into its array, as float32."""
        files, rows = self.split(indices)
        for file in np.unique(files).tolist():
            here = np.flatnonzero(files == file)
            for table, out in zip(self.tables[file], outs, strict=True):
                table.take(rows[here], out, here)

    def name(self, index: int) -> str:
        file, row = self.split(np.array([index]))
        return f"{self.files[int(file[0])]}: row {int(row[0])}"

    def column(self, name: str) -> NDArray[Any]:
        """One dataset of all files, whole."""
        number = self.names.index(name)
        return np.concatenate([np.stack([row[number].row(i) for i in range(row[number].count)]) for row in self.tables])

    def close(self) -> None:
        for row in self.tables:
            for table in row:
                table.close()


class Pictures:
    """Tables with `data` (N, C, H, W) and `label`, as a source of records: the HDF5 shards that convert writes."""

    def __init__(self, files: Sequence[Path]):
        self.tables = Tables(files, ("data", "label"))
        if len(self.tables.shapes[0]) != 3:
            raise ValueError(f"{files[0]}: data of {len(self.tables.shapes[0]) + 1} axes; expected (N, C, H, W)")

    def __len__(self) -> int:
        return len(self.tables)

    def locate(self, indices: NDArray[np.int64]) -> Sequence[tuple[int, int]]:
        return list(zip(*(part.tolist() for part in self.tables.split(indices)), strict=True))

    def read(self, where: tuple[int, int]) -> Example:
        data, label = (table.row(where[1]) for table in self.tables.tables[where[0]])
        if data.dtype != np.uint8:
            data = np.asarray(data, np.float32)
        return Example(data, True, number(label), np.ascontiguousarray(data))

    def name(self, index: int) -> str:
        return self.tables.name(index)

    def labels(self) -> NDArray[Any]:
        return self.tables.column("label")

    def close(self) -> None:
        self.tables.close()


def number(label: NDArray[Any]) -> Any:
    """A label as a plain number, or (K,) float32 where it is a vector."""
    return float(label) if np.ndim(label) == 0 else np.asarray(label, np.float32)


def listed(source: Path, find: Any) -> list[Path]:
    """The files that an HDF5Data source names: words separated by white space; or the file itself, or a folder's."""
    from ops.inputs.magic import is_hdf5

    if is_hdf5(source):
        return [source]
    names = source / "list.txt" if source.is_dir() else source
    words = names.read_bytes().split()
    if not words:
        raise ValueError(f"{names}: an empty list; expected paths of HDF5 files")
    files = [find(os.fsdecode(word), names.parent) for word in words]
    for word, file in zip(words, files, strict=True):
        if not is_hdf5(file):
            raise ValueError(f"{names}: its entry {quoted(os.fsdecode(word))} is no HDF5 file")
    return files
