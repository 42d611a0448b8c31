"""Records by number with the names that rows get: the pictures of a list, or what a database holds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import h5py
import numpy as np
from numpy.typing import NDArray

from ops.feed import database, tables
from ops.feed.source import Example, Joined, Source
from ops.inputs import recognize
from ops.recipe import Line, Recipe

CHUNK = 4096  # lines of the plan that are read at once
KEPT = 4  # such chunks
Lines = Callable[[int, int], list[Line]]


class Reader(Protocol):
    """Records 0..len-1 with the names that rows get; `column` says what kind of name that is."""

    column: str

    def __len__(self) -> int: ...
    def locate(self, indices: NDArray[np.int64]) -> Sequence[Any]: ...
    def read(self, where: Any) -> tuple[Example, str | None]: ...
    def names(self, start: int, stop: int) -> list[bytes]: ...
    def number(self, index: int) -> int: ...
    def close(self) -> None: ...


class Listed:
    """The pictures of a list of `count` lines; `lines(start, stop)` gives some of them."""

    column = "path"

    def __init__(self, count: int, lines: Lines, recipe: Recipe):
        self.count, self.lines, self.recipe = count, lines, recipe
        self.chunk = functools.lru_cache(KEPT)(self._chunk)

    def _chunk(self, number: int) -> list[Line]:
        return self.lines(number * CHUNK, min((number + 1) * CHUNK, self.count))

    def line(self, index: int) -> Line:
        return self.chunk(index // CHUNK)[index % CHUNK]

    def __len__(self) -> int:
        return self.count

    def locate(self, indices: NDArray[np.int64]) -> list[Line]:
        return [self.line(index) for index in indices.tolist()]

    def read(self, where: Line) -> tuple[Example, str | None]:
        source, warning = self.recipe.read(where)
        return Example(self.recipe.picture(source), False, where.label, None), warning

    def names(self, start: int, stop: int) -> list[bytes]:
        return [self.line(index).path for index in range(start, stop)]

    def number(self, index: int) -> int:
        return self.line(index).number

    def close(self) -> None:
        self.chunk.cache_clear()


class KeyedLMDB(database.LMDB):
    """An LMDB that tells its keys by number."""

    def record_keys(self, indices: NDArray[np.int64]) -> list[bytes]:
        node = self._node_of(indices)
        ends = node + 8 + self._number(node + 6, 2)
        return [bytes(self.view[start:end]) for start, end in zip((node + 8).tolist(), ends.tolist(), strict=True)]


class KeyedLevelDB(database.LevelDB):
    def record_keys(self, indices: NDArray[np.int64]) -> list[bytes]:
        return [self._key(index) for index in indices.tolist()]


class KeyedTables:
    """Rows of HDF5 files, of any shape: of the dataset named as the net's input, else of `data`; with `label`."""

    def __init__(self, files: Sequence[Path], blob: str):
        with h5py.File(files[0], "r") as opened:
            held = set(opened)
        names = [blob if blob in held else "data", *(["label"] if "label" in held else [])]
        self.tables = tables.Tables(files, names)
        self.row_shape: tuple[int, ...] = tuple(self.tables.shapes[0])

    def __len__(self) -> int:
        return len(self.tables)

    def locate(self, indices: NDArray[np.int64]) -> Sequence[tuple[int, int]]:
        return list(zip(*(part.tolist() for part in self.tables.split(indices)), strict=True))

    def read(self, where: tuple[int, int]) -> Example:
        """A row as planes, whatever its shape: the axes that are missing are 1, those too many are one."""
        found = [table.row(where[1]) for table in self.tables.tables[where[0]]]
        row = found[0] if found[0].dtype == np.uint8 else np.asarray(found[0], np.float32)
        shape = (*self.row_shape, 1, 1, 1)
        planes = row.reshape(shape[:3] if len(self.row_shape) < 4 else (*shape[:2], -1))
        return Example(planes, True, tables.number(found[1]) if len(found) > 1 else 0, None)

    def record_keys(self, indices: NDArray[np.int64]) -> list[bytes]:
        """Dataset `key` or `path` of the rows; where there is none, their numbers in eight digits."""
        files, rows = self.tables.split(indices)
        out: list[bytes] = [b""] * len(indices)
        for number in np.unique(files).tolist():
            here = np.flatnonzero(files == number)
            with h5py.File(self.tables.files[number], "r") as opened:
                named = next((opened[name] for name in ("key", "path") if name in opened), None)
                keys = [b"%08d" % index for index in indices[here]] if named is None else named[:][rows[here]]
            for place, key in zip(here.tolist(), keys, strict=True):
                out[place] = key if isinstance(key, bytes) else str(key).encode()
        return out

    def name(self, index: int) -> str:
        return self.tables.name(index)

    def labels(self) -> NDArray[Any]:
        return self.tables.column("label")

    def close(self) -> None:
        self.tables.close()


class Records:
    """The records of a database, or of a data set that convert made, as stored."""

    column = "key"

    def __init__(
        self, found: recognize.Found, parser: database.Parser, resize: tuple[int, int] | None, blob: str = "data"
    ):
        kinds: dict[str, Callable[[Path], Any]] = {
            "lmdb": lambda folder: KeyedLMDB(folder, parser),
            "leveldb": lambda folder: KeyedLevelDB(folder, parser),
        }
        hdf5 = found.kind == "hdf5" or (found.kind == "dataset" and not found.files[0].is_dir())
        self.parts: list[Any] = (
            [KeyedTables(found.files, blob)]
            if hdf5
            else [kinds["leveldb" if found.kind == "leveldb" else "lmdb"](file) for file in found.files]
        )
        self.source: Source = Joined(self.parts)
        self.resize = resize
        self.row_shape: tuple[int, ...] | None = self.parts[0].row_shape if hdf5 else None

    def __len__(self) -> int:
        return len(self.source)

    def locate(self, indices: NDArray[np.int64]) -> Sequence[Any]:
        return self.source.locate(indices)

    def read(self, where: Any) -> tuple[Example, str | None]:
        example = self.source.read(where)
        if self.resize is not None and example.pixels.shape[example.planar :][:2] != self.resize:
            pixels = np.ascontiguousarray(pixels_of(example))
            resized = np.atleast_3d(cv2.resize(pixels, self.resize[::-1]))
            example = Example(resized, False, example.label, None)
        return example, None

    def names(self, start: int, stop: int) -> list[bytes]:
        out: list[bytes] = []
        first = 0
        for part in self.parts:
            here = np.arange(max(start, first), min(stop, first + len(part))) - first
            out += part.record_keys(here) if len(here) else []
            first += len(part)
        return out

    def number(self, index: int) -> int:
        return index + 1

    def close(self) -> None:
        self.source.close()


class Repeated:
    """`count` records of a reader, which begins anew behind its last one."""

    def __init__(self, reader: Records, count: int):
        self.reader, self.count, self.once = reader, count, len(reader)
        self.column, self.row_shape = reader.column, reader.row_shape

    def __len__(self) -> int:
        return self.count

    def locate(self, indices: NDArray[np.int64]) -> Sequence[Any]:
        return self.reader.locate(indices % self.once)

    def read(self, where: Any) -> tuple[Example, str | None]:
        return self.reader.read(where)

    def names(self, start: int, stop: int) -> list[bytes]:
        out: list[bytes] = []
        while start < stop:
            first = start % self.once
            out += self.reader.names(first, min(self.once, first + stop - start))
            start += min(self.once, first + stop - start) - first
        return out

    def number(self, index: int) -> int:
        return self.reader.number(index % self.once)

    def close(self) -> None:
        self.reader.close()


def pixels_of(example: Example) -> NDArray[Any]:
    """(H, W, C)"""
    return example.pixels.transpose(1, 2, 0) if example.planar else example.pixels
