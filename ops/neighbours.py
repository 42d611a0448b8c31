"""Which rows of a table of features are alike: cosine, exact, block by block over Parquet files that are mapped.

table = FeatureTable.open(folder)                  # made by `cortado extract`
places, scores = nearest(table, queries, top=10)   # (q, 10) each, best first
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ops.names import hint, quoted
from ops.records.parquet import read_facts

BLOCK = 64 << 20  # bytes of numbers that are compared at a time
NAMES = ("key", "path")

Floats = NDArray[np.float32]


@dataclass
class FeatureTable:
    """The parts of a table, the column that names rows, and the blob that is compared."""

    files: list[Path]
    name: str
    blob: str
    width: int  # numbers a row
    facts: dict[str, Any] = field(default_factory=dict)
    counts: list[int] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path | str, blob: str | None = None) -> FeatureTable:
        """The features in a folder or a file. ValueError or OSError, in one line, where there are none."""
        files = parts_of(Path(path))
        schema = pq.read_schema(files[0])
        name = next((one for one in NAMES if one in schema.names), None)
        if name is None:
            raise ValueError(f"{files[0]}: no column key or path; expected a table that `cortado extract` made")
        blobs = [field.name for field in schema if pa.types.is_fixed_size_list(field.type) and field.name != "label"]
        if not blobs:
            raise ValueError(f"{files[0]}: no column of features; it has {', '.join(schema.names)}")
        if blob is not None and blob not in blobs:
            raise ValueError(f"{path}: has no blob {quoted(blob)}{hint(blob, blobs)}")
        if blob is None and len(blobs) > 1:
            raise ValueError(f"{path}: holds the blobs {', '.join(blobs)}: name one with --blob")
        chosen, width, kind = blob or blobs[0], 1, schema.field(blob or blobs[0]).type
        while pa.types.is_fixed_size_list(kind):
            width, kind = width * kind.list_size, kind.value_type
        counts = [pq.read_metadata(file).num_rows for file in files]
        if not sum(counts):
            raise ValueError(f"{path}: a table without rows")
        return cls(files, name, chosen, width, read_facts(files[0]), counts)

    def __len__(self) -> int:
        return sum(self.counts)

    def blocks(self, start: int = 0) -> Iterator[tuple[int, list[str], Floats]]:
        """(place of the first row, names, (n, width) numbers) from the block that holds row `start` on, in order."""
        first = 0
        for file, count in zip(self.files, self.counts, strict=True):
            if first + count <= start:
                first += count
                continue
            with pq.ParquetFile(file, memory_map=True) as opened:
                for group in range(opened.num_row_groups):
                    rows = opened.metadata.row_group(group).num_rows
                    if first + rows > start:
                        yield from self._cut(first, opened.read_row_group(group, columns=[self.name, self.blob]))
                    first += rows

    def _cut(self, first: int, table: pa.Table) -> Iterator[tuple[int, list[str], Floats]]:
        names, values = table[self.name].to_pylist(), self._numbers(table[self.blob])
        step = max(1, BLOCK // (4 * self.width))
        for at in range(0, len(names), step):
            yield first + at, names[at : at + step], values[at : at + step]

    def _numbers(self, column: Any) -> Floats:
        rows = len(column)
        column = pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)
        while pa.types.is_fixed_size_list(column.type):
            column = column.flatten()
        return np.asarray(column.to_numpy(zero_copy_only=False), np.float32).reshape(rows, self.width)

    def find(self, name: str) -> int | None:
        """The row of that name, or the only one that ends in it; None where there is none. ValueError for several."""
        first, ending = 0, list[int]()
        for file, count in zip(self.files, self.counts, strict=True):
            column = pq.read_table(file, columns=[self.name], memory_map=True)[self.name]
            exact = pc.index(column, name).as_py()
            if exact >= 0:
                return first + int(exact)
            ending += [first + int(i) for i in np.flatnonzero(pc.ends_with(column, name).to_numpy())]
            first += count
        if len(ending) > 1:
            raise ValueError(f"--of {name}: {len(ending):,} rows end so; give the whole {self.name}")
        return ending[0] if ending else None

    def row(self, place: int) -> tuple[str, Floats]:
        """The name and the numbers of a row."""
        for first, names, values in self.blocks(place):
            if first <= place < first + len(names):
                return names[place - first], values[place - first]
        raise IndexError(place)

    def names(self, places: NDArray[np.int64]) -> list[str]:
        """The names of a few rows, in the order asked for."""
        column = pa.chunked_array(
            [chunk for file in self.files for chunk in pq.read_table(file, columns=[self.name])[self.name].chunks]
        )
        return [str(name) for name in column.take(pa.array(places)).to_pylist()]


def parts_of(path: Path) -> list[Path]:
    """The Parquet files of a table, in order."""
    if path.is_file():
        return [path]
    if not path.exists():
        raise FileNotFoundError(2, "No such file or folder; expected features that `cortado extract` made", str(path))
    if (path / ".run" / "plan").is_dir():
        raise ValueError(f"{path}: an extraction that is not finished; run its command again")
    files = sorted(path.glob("part-*.parquet"))
    if not files:
        raise ValueError(f"{path}: no part-*.parquet in it; `cortado extract --format parquet` makes them")
    return files


def unit(values: Floats) -> Floats:
    """Rows of length 1; a row of zeros stays one, and is like nothing."""
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.where(lengths > 0, lengths, 1), np.float32)


def nearest(
    table: FeatureTable, queries: Floats, top: int, *, without: int | None = None
) -> tuple[NDArray[np.int64], Floats]:
    """The `top` rows most like each of (q, width) queries: their places and cosines, (q, top), best first.

    Of equal ones the earlier comes first. `without`: a row to leave out, the query itself.
    """
    queries = unit(np.atleast_2d(np.asarray(queries, np.float32)))
    top = min(top, len(table) - (without is not None))
    best = np.empty((len(queries), 0), np.float32)
    places = np.empty((len(queries), 0), np.int64)
    for first, names, values in table.blocks():
        scores = queries @ unit(values).T
        if without is not None and first <= without < first + len(names):
            scores[:, without - first] = -np.inf
        here = np.broadcast_to(np.arange(first, first + len(names)), scores.shape)
        best, places = np.concatenate([best, scores], 1), np.concatenate([places, here], 1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :top]
        best, places = np.take_along_axis(best, order, 1), np.take_along_axis(places, order, 1)
    return places, best


def duplicates(table: FeatureTable, least: float) -> list[list[int]]:
    """Groups of rows that are connected by cosines of at least `least`, each in order, the largest group first.

    Exact: every row is compared with every other, so the time grows with the square of the rows.
    """
    parent = np.arange(len(table))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = int(parent[place])
        return place

    for first, _, values in table.blocks():
        ours = unit(values)
        for other, names, others in table.blocks(first):
            scores = ours @ unit(others).T
            rows, columns = np.nonzero(scores >= least)
            for one, two in zip((rows + first).tolist(), (columns + other).tolist(), strict=True):
                if one < two:
                    here, there = root(one), root(two)
                    parent[max(here, there)] = min(here, there)
            del names
    groups: dict[int, list[int]] = {}
    for place in range(len(table)):
        groups.setdefault(root(place), []).append(place)
    return sorted((group for group in groups.values() if len(group) > 1), key=lambda group: (-len(group), group))


def comparisons(table: FeatureTable) -> float:
    """Multiply-adds of `duplicates`."""
    return math.comb(len(table), 2) * float(table.width)
