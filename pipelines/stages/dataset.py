"""Data sets as folders: whatever holds records, by us or by Caffe, as a row of shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.image import decode_natural
from ops.records import datum, hdf5, lmdb
from pipelines.stages.output import read_manifest

PART = 4096  # records that one task reads


@dataclass(frozen=True)
class Dataset:
    """Shards of records in order: LMDB folders, or HDF5 files."""

    path: Path
    format: str
    shards: list[Path]
    counts: list[int]
    manifest: dict[str, Any] | None = None

    @property
    def count(self) -> int:
        return sum(self.counts)

    def parts(self, size: int = PART) -> list[tuple[int, int, int]]:
        """(shard, start, stop) of at most `size` records each."""
        return [
            (shard, start, min(start + size, count))
            for shard, count in enumerate(self.counts)
            for start in range(0, count, size)
        ]

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[bytes, NDArray[Any], Any]]:
        """(key, (C, H, W) pixels, label) of the records at places start..stop-1 of all shards joined."""
        stop = self.count if stop is None else min(stop, self.count)
        first = 0
        for shard, count in zip(self.shards, self.counts, strict=True):
            if first < stop and start < first + count:
                yield from read_shard(shard, self.format, max(0, start - first), stop - first)
            first += count


def open_dataset(path: Path | str) -> Dataset:
    """The data set at `path`: a folder made by convert, an LMDB folder, an HDF5 file or an HDF5Data source list."""
    path = Path(path)
    manifest = read_manifest(path)
    if manifest:
        shards = [path if one["name"] == "data.mdb" else path / one["name"] for one in manifest["shards"]]
        return Dataset(path, manifest["format"], shards, [one["count"] for one in manifest["shards"]], manifest)
    if (path / ".run" / "plan").is_dir():
        raise ValueError(f"{path}: a conversion that is not finished; run its command again")
    if lmdb.is_lmdb(path):
        return Dataset(path, "lmdb", [path], [_count(path, "lmdb")])
    if path.is_dir():
        sets = sorted(part.parent.name for part in path.glob("*/manifest.json"))
        if sets:
            raise ValueError(f"{path}: holds the data sets {', '.join(sets)}; name one of them, as {path / sets[0]}")
        folders = sorted(part for part in path.glob("*") if lmdb.is_lmdb(part))
        files = sorted(part for part in path.glob("*.h5"))
        if folders or files:
            kind = "lmdb" if folders else "hdf5"
            return Dataset(path, kind, folders or files, [_count(one, kind) for one in folders or files])
        raise ValueError(f"{path}: no records here; expected manifest.json, data.mdb, part-*.lmdb or part-*.h5")
    if hdf5.is_hdf5(path):
        return Dataset(path, "hdf5", [path], [_count(path, "hdf5")])
    if path.suffix == ".txt":
        text = path.read_text(errors="surrogateescape")
        for words in (text.split(), text.splitlines()):  # as HDF5Data, or lines of paths with spaces
            files = [Path(word) for word in words]
            if files and all(hdf5.is_hdf5(file) for file in files):
                return Dataset(path, "hdf5", files, [_count(file, "hdf5") for file in files])
    if not path.exists():
        raise FileNotFoundError(2, "No such file or folder", str(path))
    raise ValueError(f"{path}: not a data set; expected a folder made by convert, an LMDB folder, or an HDF5 file")


def _count(shard: Path, kind: str) -> int:
    with lmdb.Reader(shard) if kind == "lmdb" else hdf5.Reader(shard) as reader:
        return len(reader)


def read_shard(shard: Path, kind: str, start: int = 0, stop: int | None = None) -> Iterator[tuple[bytes, Any, Any]]:
    """(key, (C, H, W) pixels, label) of one shard, encoded Datums decoded as they are; ValueError names a bad one."""
    if kind == "hdf5":
        with hdf5.Reader(shard) as rows:
            yield from rows.records(start, stop)
        return
    with lmdb.Reader(shard) as reader:
        for key, value in reader.records(start, stop):
            try:
                record = datum.parse(value)
                yield key, pixels(record), record.label
            except ValueError as error:
                raise ValueError(f"{shard}: record {key.decode(errors='replace')}: {error}") from None


def pixels(record: datum.Datum) -> NDArray[Any]:
    """(C, H, W) pixels of a Datum, raw, float or encoded."""
    if not record.encoded:
        return record.pixels()
    return decode_natural(bytes(record.data)).transpose(2, 0, 1)


def label_values(label: Any) -> list[float]:
    """A label as plain numbers."""
    return [float(value) for value in np.ravel(label)]
