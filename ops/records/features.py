"""Features in the formats that Caffe's own layers read: float Datums as extract_features writes them, and HDF5.

A writer takes parquet.Rows. Names of files are below the folder that it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from ops.proto.caffe_pb2 import Datum
from ops.records import hdf5, lmdb, parquet
from ops.records.parquet import Columns, Rows

TAG = 0x35  # float_data: field 6, four bytes
MOST_AXES = 3  # of an image's part of a blob: a Datum has channels, height, width


class Writer(Protocol):
    """Rows in, files out; closed and synced at the end of a `with`."""

    count: int

    def put(self, rows: Rows) -> None: ...

    def __enter__(self) -> Writer: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None: ...


def datums(values: NDArray[np.float32]) -> Iterator[memoryview]:
    """The float Datum of each of (n, ...) arrays: channels, height, width (missing axes 1), float_data; no label."""
    if values.ndim - 1 > MOST_AXES:
        raise ValueError(f"{values.ndim - 1} axes an image; a Datum has {MOST_AXES}")
    shape = (*values.shape[1:], 1, 1, 1)[:MOST_AXES]
    head = Datum(channels=shape[0], height=shape[1], width=shape[2]).SerializeToString()
    size = math.prod(shape)
    kind = np.dtype([("head", np.uint8, (len(head),)), ("body", [("tag", "u1"), ("value", "<f4")], (size,))])
    out = np.empty(len(values), kind)
    out["head"] = np.frombuffer(head, np.uint8)
    out["body"]["tag"] = TAG
    out["body"]["value"] = values.reshape(len(values), size)
    records = out.view(np.uint8).reshape(len(values), kind.itemsize)
    return (record.data for record in records)


class LMDBWriter:
    """One LMDB a blob, in the folder that `folders` names for it; keys are the places in the input, ten digits."""

    def __init__(self, folders: Mapping[str, Path]):
        self.folders, self.count = folders, 0
        self.writers = {blob: lmdb.Writer(folder) for blob, folder in folders.items()}

    def put(self, rows: Rows) -> None:
        keys = [b"%010d" % place for place in rows.places.tolist()]
        for blob, writer in self.writers.items():
            for key, record in zip(keys, datums(rows.blobs[blob]), strict=True):
                writer.put(key, record)
        self.count += len(rows)

    def __enter__(self) -> LMDBWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for writer in self.writers.values():
            writer.__exit__(kind, error, where)


class HDF5Writer:
    """One file: a dataset a blob, named as it, `label`, and `key` or `path`; an HDF5Data layer takes the first ones."""

    def __init__(self, file: Path, columns: Columns):
        self.columns, self.count = columns, 0
        self.sink = hdf5.Sink(file)
        self.file = self.sink.open()
        for blob, shape in columns.blobs.items():
            rows = max(1, min(256, hdf5.CHUNK_BYTES // max(1, math.prod(shape) * np.dtype(columns.dtype).itemsize)))
            self._create(blob, shape, columns.dtype, rows)
        if columns.label is not None:
            self._create("label", columns.label, "<f4", 1024)
        self._create(columns.name, (), h5py.string_dtype("utf-8"), 1024)

    def _create(self, name: str, shape: tuple[int, ...], dtype: Any, rows: int) -> None:
        options: dict[str, Any] = {"maxshape": (None, *shape), "chunks": (rows, *shape), "track_times": False}
        self.file.create_dataset(name, (0, *shape), dtype, **options)

    def put(self, rows: Rows) -> None:
        values: dict[str, Any] = {**rows.blobs, self.columns.name: np.array(rows.names, dtype=object)}
        if self.columns.label is not None:
            values["label"] = rows.labels
        for name, one in values.items():
            dataset = self.file[name]
            dataset.resize(self.count + len(rows), axis=0)
            dataset[self.count :] = one
        self.sink.check()
        self.count += len(rows)

    def __enter__(self) -> HDF5Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.file.close()
        try:
            self.sink.close()
        except OSError:
            if kind is None:  # else the error under way says it already
                raise


def blob_folders(blobs: Mapping[str, Any], name: str) -> dict[str, str]:
    """Where a blob's LMDB goes: `name` itself for the only blob, else a folder of the blob's own."""
    if len(blobs) == 1:
        return dict.fromkeys(blobs, name)
    taken: dict[str, str] = {}
    for blob in blobs:
        folder = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in blob).strip(".") or "_"
        while folder in taken.values():
            folder += "_"
        taken[blob] = folder
    return {blob: f"{folder}/{name}" for blob, folder in taken.items()}


def open_parquet(folder: Path, columns: Columns, facts: Mapping[str, Any]) -> Writer:
    return parquet.Writer(folder / "part.parquet", columns, facts)


def open_lmdb(folder: Path, columns: Columns, facts: Mapping[str, Any]) -> Writer:
    return LMDBWriter({blob: folder / name for blob, name in blob_folders(columns.blobs, "part.lmdb").items()})


def open_hdf5(folder: Path, columns: Columns, facts: Mapping[str, Any]) -> Writer:
    return HDF5Writer(folder / "part.h5", columns)


WRITERS: dict[str, Callable[[Path, Columns, Mapping[str, Any]], Writer]] = {
    "parquet": open_parquet,
    "lmdb": open_lmdb,
    "hdf5": open_hdf5,
}
