"""One part of a folder of features, read back in any of its formats; and the sum over its rows, on the way in and out.

with open_part("parquet", folder, "part-00000.parquet", {"fc7": (4096,)}) as part:
    for group in range(len(part.groups)):
        rows = part.read(group)                    # parquet.Rows as they are stored, in order
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from ops.records import datum, lmdb
from ops.records.features import blob_folders
from ops.records.parquet import Columns, Rows, read_facts

NAMES = ("key", "path")
BROKEN = (OSError, ValueError, KeyError, RuntimeError, pa.ArrowException)  # what reading a damaged file raises

Shapes = Mapping[str, tuple[int, ...]]


def as_stored(rows: Rows, columns: Columns, format: str) -> Rows:
    """Rows as a part of this format holds them: an LMDB has ten-digit places for names and no labels, HDF5 float
    labels."""
    if format == "lmdb":
        return Rows(rows.places, [f"{place:010d}" for place in rows.places.tolist()], None, rows.blobs)
    kind = np.int32 if columns.whole_labels and format == "parquet" else np.float32
    labels = None if rows.labels is None else np.ascontiguousarray(rows.labels, kind)
    return Rows(rows.places, rows.names, labels, rows.blobs)


class Tally:
    """What was counted of rows as they are stored: how many, the first and the last name, a checksum.

    xxh3-64 over the sums of the names (each with a zero byte behind it), of the labels (float64) and of each blob's
    numbers, so that it does not matter in which groups the rows come.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first = self.last = ""
        self.sums: dict[str, Any] = {}

    def add(self, rows: Rows) -> None:
        if not len(rows):
            return
        self.first, self.last = self.first if self.count else rows.names[0], rows.names[-1]
        self.count += len(rows)
        self._sum("names").update("".join(name + "\0" for name in rows.names).encode())
        if rows.labels is not None:
            self._sum("labels").update(np.ascontiguousarray(rows.labels, np.float64).tobytes())
        for blob, values in rows.blobs.items():
            self._sum(f"blob {blob}").update(np.ascontiguousarray(values).data.cast("B"))

    def _sum(self, name: str) -> Any:
        return self.sums.setdefault(name, xxhash.xxh3_64())

    def checksum(self) -> str:
        whole = xxhash.xxh3_64()
        for one in self.sums.values():
            whole.update(one.digest())
        return str(whole.hexdigest())


# -- parts that are read -----------------------------------------------------------------------------------------------


class Part(Protocol):
    """Rows in groups: as they are in the file, or as many as HDF5 and LMDB are read at a time."""

    name: str | None  # the column that names rows; None where keys are places
    blobs: Shapes
    dtype: str
    groups: list[int]  # rows of each
    facts: dict[str, Any] | None  # what the file says of where it comes from

    def read(self, group: int) -> Rows: ...

    def labels(self) -> NDArray[Any] | None: ...

    def close(self) -> None: ...


def open_part(format: str, folder: Path, name: str, blobs: Shapes) -> contextlib.closing[Part]:
    """The part that the manifest calls `name`; one of BROKEN where it is not one with these blobs, now or when read."""
    opened: Part
    for file in part_files(format, folder, name, blobs):
        if not file.exists():
            raise FileNotFoundError(2, "No such file or folder", str(file))
    if format == "parquet":
        opened = ParquetPart(folder / name, blobs)
    elif format == "hdf5":
        opened = HDF5Part(folder / name, blobs)
    else:
        opened = LMDBPart(lmdb_folders(folder, name, blobs), blobs)
    return contextlib.closing(opened)


def lmdb_folders(folder: Path, name: str, blobs: Shapes) -> dict[str, Path]:
    """Where the LMDBs of a part are; the manifest has the name of the first blob's."""
    last = Path(name).name
    found = {blob: folder / one for blob, one in blob_folders(blobs, last).items()}
    return {blob: one.parent if last == "data.mdb" else one for blob, one in found.items()}


def part_files(format: str, folder: Path, name: str, blobs: Shapes) -> list[Path]:
    """The files that hold the numbers of a part."""
    if format == "lmdb":
        return [one / "data.mdb" for one in lmdb_folders(folder, name, blobs).values()]
    return [folder / name]


def told(error: BaseException, where: Path) -> str:
    """What is wrong with a part, on one line that names it."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())[:300]
    return text if str(where) in text else f"{where}: {text or type(error).__name__}"


def compare(found: Shapes, expected: Shapes) -> None:
    """ValueError where a part has other blobs than the manifest says."""
    for blob, shape in expected.items():
        if blob not in found:
            raise ValueError(f"no blob {blob!r}; it has {', '.join(found) or 'none'}")
        if tuple(found[blob]) != tuple(shape):
            here, there = ("x".join(map(str, one)) for one in (found[blob], shape))
            raise ValueError(f"blob {blob!r} is {here}, expected {there}")


class ParquetPart:
    """A Parquet file of `parquet.Writer`; its row groups are the groups."""

    def __init__(self, file: Path, blobs: Shapes):
        self.facts: dict[str, Any] | None = read_facts(file)
        self.file = pq.ParquetFile(file)
        schema = self.file.schema_arrow
        self.name: str | None = next((one for one in NAMES if one in schema.names), None)
        if self.name is None:
            raise ValueError(f"no column {' or '.join(NAMES)}; it has {', '.join(schema.names)}")
        kinds = {one.name: shape_of(one.type) for one in schema if one.name not in (self.name, "label")}
        compare({blob: shape for blob, (shape, _) in kinds.items()}, blobs)
        self.blobs: Shapes = dict(blobs)
        self.dtype = kinds[next(iter(blobs))][1]
        self.labelled = "label" in schema.names
        metadata = self.file.metadata
        self.groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def read(self, group: int) -> Rows:
        table, first, count = self.file.read_row_group(group), sum(self.groups[:group]), self.groups[group]
        names = [str(name) for name in table[self.name].to_pylist()]
        labels = numbers(table["label"]) if self.labelled else None
        blobs = {blob: numbers(table[blob]).reshape(-1, *shape) for blob, shape in self.blobs.items()}
        check_lengths(count, len(names), *map(len, blobs.values()))
        return Rows(np.arange(first, first + count), names, labels, blobs)

    def labels(self) -> NDArray[Any] | None:
        """Of all rows, (n,) or (n, k)."""
        if not self.labelled:
            return None
        found = numbers(self.file.read(["label"])["label"])
        return found.reshape(self.file.metadata.num_rows, -1) if self.file.metadata.num_rows else found

    def close(self) -> None:
        self.file.close()


def shape_of(kind: Any) -> tuple[tuple[int, ...], str]:
    """(shape, type of the numbers) of a column of fixed-size lists."""
    shape: tuple[int, ...] = ()
    while pa.types.is_fixed_size_list(kind):
        shape, kind = (*shape, kind.list_size), kind.value_type
    return shape, {"halffloat": "float16", "float": "float32"}.get(str(kind), str(kind))


def numbers(column: Any) -> NDArray[Any]:
    """The numbers of a column, flat, without what is null."""
    one = column.combine_chunks()
    one = pa.concat_arrays(one.chunks) if isinstance(one, pa.ChunkedArray) else one
    while pa.types.is_fixed_size_list(one.type):
        one = one.flatten()
    return np.asarray(one.drop_null().to_numpy(zero_copy_only=False))


def check_lengths(*lengths: int) -> None:
    if len(set(lengths)) > 1:
        raise ValueError(f"columns of {' and '.join(f'{one:,}' for one in sorted(set(lengths)))} rows side by side")


class HDF5Part:
    """A file of `features.HDF5Writer`."""

    facts: dict[str, Any] | None = None

    def __init__(self, file: Path, blobs: Shapes):
        self.file = h5py.File(file, "r")
        sets = {name: one for name, one in self.file.items() if isinstance(one, h5py.Dataset)}
        self.name: str | None = next((one for one in NAMES if one in sets), None)
        if self.name is None:
            raise ValueError(f"no dataset {' or '.join(NAMES)}; it has {', '.join(sets)}")
        compare({name: one.shape[1:] for name, one in sets.items()}, blobs)
        check_lengths(*(len(one) for one in sets.values()))
        self.blobs: Shapes = dict(blobs)
        self.dtype = str(sets[next(iter(blobs))].dtype)
        self.count, self.labelled = len(sets[self.name]), "label" in sets
        self.groups = cut(self.count, Columns("", None, False, blobs, self.dtype).group)

    def read(self, group: int) -> Rows:
        first = sum(self.groups[:group])
        part = slice(first, first + self.groups[group])
        names = [bytes(name).decode("utf-8", "replace") for name in self.file[self.name][part]]
        labels = self.file["label"][part] if self.labelled else None
        blobs = {blob: self.file[blob][part] for blob in self.blobs}
        return Rows(np.arange(part.start, part.stop), names, labels, blobs)

    def labels(self) -> NDArray[Any] | None:
        return self.file["label"][:].reshape(self.count, -1) if self.labelled and self.count else None

    def close(self) -> None:
        self.file.close()


class LMDBPart:
    """The LMDBs of a part, one a blob; their keys must be the same."""

    facts: dict[str, Any] | None = None
    name: str | None = None
    dtype = "float32"

    def __init__(self, folders: Mapping[str, Path], blobs: Shapes):
        self.blobs: Shapes = dict(blobs)
        self.readers = {blob: lmdb.Reader(folder) for blob, folder in folders.items()}
        check_lengths(*map(len, self.readers.values()))
        count = len(next(iter(self.readers.values())))
        self.groups = cut(count, Columns("", None, False, blobs).group)
        self.next, self.records = -1, self._from(0)

    def _from(self, first: int) -> Iterator[tuple[tuple[bytes, memoryview], ...]]:
        return zip(*(one.records(first) for one in self.readers.values()), strict=True)

    def read(self, group: int) -> Rows:
        if group != self.next:
            self.records = self._from(sum(self.groups[:group]))
        self.next, count = group + 1, self.groups[group]
        blobs = {blob: np.empty((count, *shape), np.float32) for blob, shape in self.blobs.items()}
        keys = [self._record(next(self.records), place, blobs) for place in range(count)]
        return Rows(np.array([int(key) for key in keys], np.int64), keys, None, blobs)

    def labels(self) -> NDArray[Any] | None:
        return None

    def _record(self, found: Sequence[tuple[bytes, memoryview]], place: int, blobs: dict[str, Any]) -> str:
        """Put one record of each blob at a place; their key. ValueError where it is none of extract_features."""
        key = found[0][0].decode(errors="replace")
        if len(key) != 10 or not (key.isascii() and key.isdigit()) or any(one != found[0][0] for one, _ in found):
            raise ValueError(f"record {key}: expected the same ten digits for every blob")
        for (blob, values), (_, value) in zip(blobs.items(), found, strict=True):
            try:
                pixels = datum.parse(value).pixels()
                if pixels.dtype != np.float32:
                    raise ValueError("holds bytes, expected float values")
                values[place] = pixels.reshape(self.blobs[blob])
            except ValueError as error:
                raise ValueError(f"record {key}: {error}") from error
        return key

    def close(self) -> None:
        """The files are let go of with the last view of them."""


def cut(count: int, most: int) -> list[int]:
    """`count` rows in groups of at most `most`."""
    return [min(most, count - first) for first in range(0, count, most)]
