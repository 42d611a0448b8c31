"""Tables of features as Parquet that everybody reads: a row an image, a FixedSizeList of numbers a blob.

Float columns have neither dictionary nor compression: random-looking numbers shrink by a few percent and take four
times as long to write. Nothing here knows Ray.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

GROUP_BYTES = 32 << 20  # of a row group: what a reader takes at a time
MOST_ROWS = 1 << 16  # of a row group
METADATA = b"cortado"  # under this name, JSON in the file's metadata
FULL = ("No space left", "errno 28", "quota")


@dataclass(frozen=True)
class Columns:
    """What a row holds: a name, a label (() one number, (K,) several, None: no label), an array a blob."""

    name: str  # "key" or "path"
    label: tuple[int, ...] | None
    whole_labels: bool
    blobs: Mapping[str, tuple[int, ...]]  # of one image
    dtype: str = "float32"

    @property
    def row_bytes(self) -> int:
        """Of the numbers in one row."""
        return sum(math.prod(shape) for shape in self.blobs.values()) * np.dtype(self.dtype).itemsize

    @property
    def group(self) -> int:
        """Rows of a row group."""
        return max(1, min(MOST_ROWS, GROUP_BYTES // max(1, self.row_bytes)))


@dataclass(frozen=True)
class Rows:
    """Some rows in order: their places in the input, names, labels, and {blob: (n, *shape)}."""

    places: NDArray[np.int64]
    names: Sequence[str]
    labels: NDArray[Any] | None
    blobs: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.places)


def flat(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of an image's part of a blob without axes that say nothing: (96, 1, 1) -> (96,), () -> (1,)."""
    shape = tuple(shape) or (1,)
    return shape[:1] if math.prod(shape[1:]) == 1 else shape


def kind_of(shape: Sequence[int], dtype: str) -> pa.DataType:
    """FixedSizeList<float>, of FixedSizeLists for blobs with more axes."""
    kind: Any = {"float32": pa.float32(), "float16": pa.float16()}[dtype]
    for size in reversed(tuple(shape)):
        kind = pa.list_(kind, size)
    return kind


def lists_of(values: NDArray[Any]) -> pa.Array:
    """(n, ...) numbers as an Arrow array of fixed-size lists, without a copy."""
    made: Any = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(values.shape[1:]):
        made = pa.FixedSizeListArray.from_arrays(made, size)
    return made


def schema_of(columns: Columns, facts: Mapping[str, Any]) -> pa.Schema:
    """The columns in order: name, label, blobs; `facts` go into the metadata as JSON."""
    fields = [pa.field(columns.name, pa.string(), nullable=False)]
    if columns.label is not None:
        number = pa.int32() if columns.whole_labels else pa.float32()
        fields.append(pa.field("label", pa.list_(number, columns.label[0]) if columns.label else number))
    fields += [pa.field(name, kind_of(shape, columns.dtype)) for name, shape in columns.blobs.items()]
    return pa.schema(fields, {METADATA: json.dumps(facts).encode()})


class Writer:
    """Writes rows into one new file; each `put` is a row group. Raises OSError (ENOSPC) on a full disk."""

    def __init__(self, file: Path, columns: Columns, facts: Mapping[str, Any]):
        self.file, self.columns, self.count = file, columns, 0
        self.schema = schema_of(columns, facts)
        counted = [columns.name, *(["label"] if columns.label == () else [])]
        options = {"compression": "none", "use_dictionary": False, "write_statistics": counted}
        try:
            self.sink = file.open("wb")
            self.writer: Any = pq.ParquetWriter(self.sink, self.schema, **options)
        except OSError as error:
            raise no_space(error, file) from error

    def put(self, rows: Rows) -> None:
        """One row group."""
        columns: list[Any] = [pa.array(rows.names, pa.string())]
        if self.columns.label is not None:
            assert rows.labels is not None
            kind = np.int32 if self.columns.whole_labels else np.float32
            labels = np.ascontiguousarray(rows.labels, kind)
            columns.append(lists_of(labels) if self.columns.label else pa.array(labels))
        columns += [lists_of(rows.blobs[name]) for name in self.columns.blobs]
        try:
            self.writer.write_table(pa.Table.from_arrays(columns, schema=self.schema), row_group_size=len(rows))
        except OSError as error:
            raise no_space(error, self.file) from error
        self.count += len(rows)

    def close(self) -> None:
        """Write the footer and sync to the disk."""
        try:
            self.writer.close()
            self.sink.flush()
            os.fsync(self.sink.fileno())
            self.sink.close()
        except OSError as error:
            raise no_space(error, self.file) from error

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        try:
            self.writer.close()
            self.sink.close()
        except (OSError, ValueError):  # what stands on a full disk cannot be flushed; the error under way says so
            pass


def no_space(error: OSError, file: Path) -> OSError:
    """The same error as the operating system numbers it: Arrow puts the number into the text."""
    if error.errno is not None and error.errno not in (errno.EIO,):
        return error
    told = " ".join(str(error).split())
    full = any(word in told for word in FULL)
    return OSError(errno.ENOSPC if full else errno.EIO, "No space left on device" if full else told[:200], str(file))


def read_facts(file: Path | str) -> dict[str, Any]:
    """What a file's metadata says; ValueError where no extraction wrote it."""
    try:
        found = (pq.read_schema(file).metadata or {}).get(METADATA)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file}: no Parquet file: {' '.join(str(error).split())[:200]}") from error
    if found is None:
        raise ValueError(f"{file}: a Parquet file that `cortado extract` did not write")
    return dict(json.loads(found))


def count_rows(file: Path | str) -> int:
    return int(pq.read_metadata(file).num_rows)
