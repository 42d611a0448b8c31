"""HDF5 files of records as Caffe's HDF5Data reads them: `data` (N, C, H, W) float32 and `label` (N,) or (N, K) float32.

A third dataset, `key`, holds the records' names; HDF5Data takes only the datasets that its tops are named after.
"""

from __future__ import annotations

import errno
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


class Writer:
    """Writes (C, H, W) float32 records with their labels, a chunk at a time; the same records give the same file."""

    def __init__(self, file: Path):
        self.path, self.count = file, 0
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = h5py.File(file, "w", libver=("earliest", "v110"))
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
        try:
            for dataset, rows in ((self.data, self.rows), (self.label, self.labels)):
                dataset.resize(stop, axis=0)
                dataset[start:stop] = np.stack(rows)
            self.key.resize(stop, axis=0)
            self.key[start:stop] = np.array(self.keys, dtype=object)
        except OSError as error:
            raise self._no_space(error) from error
        self.rows, self.labels, self.keys = [], [], []

    def close(self) -> None:
        """Flush and close; an empty file still has its datasets, of no rows."""
        if self.shape is None:
            self._create((1, 1, 1), ())
        self._flush()
        try:
            self.file.close()
        except (OSError, RuntimeError) as error:
            raise self._no_space(error) from error

    def _no_space(self, error: Exception) -> OSError:
        full = "No space left" in str(error) or "errno = 28" in str(error)
        if full:
            return OSError(errno.ENOSPC, "No space left on device", str(self.path))
        return OSError(errno.EIO, " ".join(str(error).split())[:200], str(self.path))

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        try:
            self.file.close()
        except (OSError, RuntimeError):  # what stands on a full disk cannot be flushed; the error under way says so
            self.file.id.close()


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
