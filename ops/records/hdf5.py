"""HDF5 files of records as Caffe's HDF5Data reads them: `data` (N, C, H, W) float32 and `label` (N,) or (N, K) float32.

A third dataset, `key`, holds the records' names; HDF5Data takes only the datasets that its tops are named after.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 1 << 20  # about this much data a chunk: a few images, so that a batch is read in a few pieces
SIGNATURE = b"\x89HDF\r\n\x1a\n"


def is_hdf5(file: Path) -> bool:
    """Whether the file starts as HDF5 does."""
    try:
        with file.open("rb") as opened:
            return opened.read(8) == SIGNATURE
    except OSError:
        return False


class Sink:
    """A new file for h5py to write into. HDF5 crashes the process when a write fails, so none does: from the first
    error on (a full disk) what is written stays in memory, and `check` raises that error. Closed, the file is synced.
    """

    def __init__(self, path: Path):
        self.path, self.place = path, 0
        self.error: OSError | None = None
        self.kept: list[tuple[int, bytes]] = []  # (where, what) that is not on the disk
        self.file = path.open("w+b", buffering=0)

    def open(self) -> h5py.File:
        return h5py.File(self, "w", libver=("earliest", "v110"))

    def check(self) -> None:
        """OSError where something could not be written."""
        if self.error is not None:
            raise OSError(self.error.errno, self.error.strerror, str(self.path)) from self.error

    def close(self) -> None:
        """Sync and close, after the HDF5 file; OSError where not all of it is on the disk."""
        try:
            if self.error is None:
                os.fsync(self.file.fileno())
        except OSError as error:
            self.error = error
        self.file.close()
        self.check()

    # -- what h5py asks of a file ----------------------------------------------------------------------------------

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        ends = [at + len(data) for at, data in self.kept] if whence == os.SEEK_END else []
        self.place = max([self.file.seek(place, whence), *ends])
        return self.place

    def tell(self) -> int:
        return self.place

    def write(self, data: Any) -> int:
        done, view = 0, memoryview(data).cast("B")
        try:
            while self.error is None and done < len(view):
                done += os.pwrite(self.file.fileno(), view[done:], self.place + done)
        except OSError as error:
            self.error = error
        if self.error is not None:
            self.kept.append((self.place + done, bytes(view[done:])))
        self.place += len(view)
        return len(view)

    def read(self, size: int) -> bytes:
        data = bytearray(size)
        return bytes(data[: self.readinto(data)])

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        read = os.preadv(self.file.fileno(), [view], self.place)
        for at, data in self.kept:
            first, last = max(at, self.place), min(at + len(data), self.place + len(view))
            if first < last:
                view[first - self.place : last - self.place] = data[first - at : last - at]
                read = max(read, last - self.place)
        self.place += read
        return read

    def truncate(self, size: int) -> int:
        if self.error is None:
            self.file.truncate(size)
        return size

    def flush(self) -> None:
        """Nothing is held back."""


class Writer:
    """Writes (C, H, W) float32 records with their labels, a chunk at a time; the same records give the same file.

    Raises OSError (ENOSPC) on a full disk.
    """

    def __init__(self, file: Path):
        self.path, self.count = file, 0
        file.parent.mkdir(parents=True, exist_ok=True)
        self.sink = Sink(file)
        self.file = self.sink.open()
        self.rows: list[NDArray[np.float32]] = []
        self.labels: list[NDArray[np.float32]] = []
        self.keys: list[bytes] = []
        self.shape: tuple[int, ...] | None = None

    def put(self, key: bytes, values: NDArray[np.float32], label: NDArray[np.float32]) -> None:
        """Append one record; ValueError when its shape is not the first one's."""
        if self.shape is None:
            self._create(values.shape, label.shape)
        if values.shape != self.shape:
            here, there = ("x".join(map(str, shape)) for shape in (values.shape, self.shape or ()))
            raise ValueError(f"{here} values where the first record has {there}: HDF5 needs one size (resize or crop)")
        self.rows.append(values)
        self.labels.append(label)
        self.keys.append(key)
        self.count += 1
        if len(self.rows) == self.chunk:
            self._flush()

    def _create(self, shape: tuple[int, ...], label: tuple[int, ...]) -> None:
        self.shape = shape
        self.chunk = max(1, min(256, CHUNK_BYTES // max(1, 4 * int(np.prod(shape)))))
        many = 1024
        options: dict[str, Any] = {"track_times": False}
        self.data = self.file.create_dataset(
            "data", (0, *shape), "<f4", maxshape=(None, *shape), chunks=(self.chunk, *shape), **options
        )
        self.label = self.file.create_dataset(
            "label", (0, *label), "<f4", maxshape=(None, *label), chunks=(many, *label), **options
        )
        text = h5py.string_dtype("utf-8")
        self.key = self.file.create_dataset("key", (0,), text, maxshape=(None,), chunks=(many,), **options)

    def _flush(self) -> None:
        if not self.rows:
            return
        start, stop = self.count - len(self.rows), self.count
        for dataset, rows in ((self.data, self.rows), (self.label, self.labels)):
            dataset.resize(stop, axis=0)
            dataset[start:stop] = np.stack(rows)
        self.key.resize(stop, axis=0)
        self.key[start:stop] = np.array(self.keys, dtype=object)
        self.sink.check()
        self.rows, self.labels, self.keys = [], [], []

    def close(self) -> None:
        """Flush and close; an empty file still has its datasets, of no rows."""
        if self.shape is None:
            self._create((1, 1, 1), ())
        self._flush()
        self.file.close()
        self.sink.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        self.file.close()
        with contextlib.suppress(OSError):  # the error under way says it already
            self.sink.close()


class Reader:
    """Read-only records of one HDF5 file."""

    def __init__(self, file: Path | str):
        self.path = Path(file)
        try:
            self.file = h5py.File(file, "r")
        except OSError as error:
            raise ValueError(f"{file}: cannot be read as HDF5: {' '.join(str(error).split())[:200]}") from error
        missing = [name for name in ("data", "label") if name not in self.file]
        if missing:
            raise ValueError(f"{file}: no dataset named {missing[0]!r}; it holds {sorted(self.file)}")
        if len(self.file["data"]) != len(self.file["label"]):
            raise ValueError(f"{file}: {len(self.file['data'])} data rows but {len(self.file['label'])} labels")

    def __len__(self) -> int:
        return len(self.file["data"])

    def records(
        self, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[bytes, NDArray[np.float32], NDArray[np.float32]]]:
        """(key, (C, H, W) values, label) in order, places start..stop-1; read a chunk at a time."""
        stop = len(self) if stop is None else min(stop, len(self))
        data, label, key = self.file["data"], self.file["label"], self.file.get("key")
        step = (data.chunks or (64,))[0]
        for first in range(start - start % step, stop, step):
            part = slice(max(first, start), min(first + step, stop))
            keys = key[part] if key is not None else [b"%08d" % place for place in range(part.start, part.stop)]
            yield from zip(map(bytes, keys), data[part], label[part], strict=True)

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
