"""Tables with a row an image: CSV and TSV with a column of paths; Parquet with paths or with the images themselves.

An image column holds bytes, or {bytes, path} as Hugging Face's data sets have it; their class names are kept.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ops.inputs import containers, text
from ops.inputs.damage import told
from ops.inputs.labels import Labels, none, of_numbers, of_objects, of_texts
from ops.records.image_list import ImageList, label_width

LOOKED_AT = 100  # rows in which a column of image names is looked for
SPILL = 4 << 30  # bytes of unpacked row groups that a process keeps in a file without a name
MOST = 1000  # rows that a byte of a file can stand for
ERRORS = (pa.ArrowException, OSError, MemoryError, OverflowError, UnicodeDecodeError)


def read_csv(file: Path, look: text.Table) -> pa.Table:
    """A text table, every cell as bytes: paths keep theirs, whatever their encoding."""
    with file.open("rb") as opened:
        first = opened.readline().removeprefix(b"\xef\xbb\xbf")
        row = text.cells(first.rstrip(b"\r\n"), look.delimiter.encode())
    names = [cell.decode(errors="replace") for cell in row] if look.header else [f"{n + 1}" for n in range(len(row))]
    names = [name if names.count(name) == 1 else f"{name}:{place + 1}" for place, name in enumerate(names)]
    with told(file, "table", pa.ArrowException):
        return pa.csv.read_csv(
            file,
            pa.csv.ReadOptions(column_names=names, skip_rows=int(look.header)),
            pa.csv.ParseOptions(delimiter=look.delimiter, newlines_in_values=True),
            pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.binary())),
        )


def csv_listing(files: Sequence[Path], looks: Sequence[text.Table], mode: str) -> ImageList:
    """The rows of text tables; relative paths are below the table's folder."""
    tables = [read_csv(file, look) for file, look in zip(files, looks, strict=True)]
    with told(files[0], "table", pa.ArrowException):
        table = pa.concat_tables(tables)
    where = str(files[0])
    column = path_column(table, where)
    labels = _labels(table, column, mode, where, {})
    return _of_paths(table[column], labels, containers.root_of(files))


def path_column(table: pa.Table, where: str) -> str:
    """The column of paths: by its name, or else by the names of images in it."""
    byname = {name.strip().lower(): name for name in reversed(table.column_names)}
    for name in text.PATHS:
        column = byname.get(name)
        if column and _is_text(table.schema.field(column).type) and not _all_numbers(table[column]):
            return column
    for column in table.column_names:
        if _is_text(table.schema.field(column).type):
            sample = [bytes(cell) for cell in table[column].slice(0, LOOKED_AT).cast(pa.binary()).to_pylist() if cell]
            if sample and 2 * sum(map(text.is_image_name, sample)) > len(sample):
                return column
    raise ValueError(
        f"{where}: no column of paths or images; it has {', '.join(table.column_names)}; call one 'path' or 'image'"
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_bytes(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _all_numbers(column: Any) -> bool:
    sample = [cell for cell in column.slice(0, LOOKED_AT).cast(pa.binary()).to_pylist() if cell]
    return bool(sample) and all(cell.strip().isdigit() for cell in sample)


def _of_paths(column: Any, labels: Labels, root: str) -> ImageList:
    """A list straight from the column's buffers."""
    array = pa.chunked_array(column).cast(pa.large_binary()).combine_chunks()
    array = array if isinstance(array, pa.Array) else pa.concat_arrays(array.chunks)
    if array.null_count:
        labels.bad.update(
            {int(row): "no path" for row in np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))}
        )
        array = pc.fill_null(array, b"")
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    raw = memoryview(array.buffers()[2] or b"")
    found = ImageList(raw, offsets[:-1], offsets[1:], labels.values, classes=labels.classes)
    found.warnings, found.bad = list(labels.warnings), labels.bad
    return _placed(_on_one_line(found), root)


def _on_one_line(found: ImageList) -> ImageList:
    """Without the paths that hold a newline."""
    data = np.frombuffer(found.raw, np.uint8) if len(found.raw) else np.zeros(0, np.uint8)
    breaks = np.flatnonzero(data == ord("\n"))
    if not breaks.size:
        return found
    split = np.zeros(len(found), np.bool_)
    rows = np.searchsorted(found.ends, breaks, side="right")
    split[rows[rows < len(found)]] = True
    keep = np.flatnonzero(~split)
    places = {int(old): new for new, old in enumerate(keep)}
    note = f"{int(split.sum()):,} paths with a newline were left out: a list holds one a line"
    bad = {places[row]: reason for row, reason in found.bad.items() if row in places}
    return ImageList(
        found.raw, found.starts[keep], found.ends[keep], found.labels[keep], found.root, found.classes,
        [*found.warnings, note], bad,
    )  # fmt: skip


def _placed(found: ImageList, root: str) -> ImageList:
    """With the table's folder as root, where the paths are relative; absolute ones stand for themselves."""
    if not len(found):
        raise ValueError(f"{root}: a table without rows")
    data = np.frombuffer(found.raw, np.uint8)
    absolute = (found.ends > found.starts) & (data[np.minimum(found.starts, len(data) - 1)] == ord("/"))
    if not absolute.any():
        found.root = root
        return found
    if absolute.all():
        return found
    paths = found.paths(slice(None))
    whole = [path if path.startswith(b"/") else os.fsencode(root) + path for path in paths]
    mixed = ImageList.of(whole, found.labels, classes=found.classes)
    mixed.warnings, mixed.bad = found.warnings, found.bad
    return mixed


# -- Parquet -----------------------------------------------------------------------------------------------------------


def parquet_listing(files: Sequence[Path], mode: str) -> ImageList:
    """The rows of Parquet files; the image column itself is not read."""
    where, root = str(files[0]), containers.root_of(files)
    with told(files[0], "Parquet file", *ERRORS):
        opened = [pq.ParquetFile(file) for file in files]
        for file, one in zip(files, opened, strict=True):
            if one.metadata.num_rows > MOST * file.stat().st_size:
                raise ValueError(f"{file}: damaged Parquet file: {one.metadata.num_rows:,} rows")
        schema, names = opened[0].schema_arrow, _class_names(opened[0].schema_arrow)
        image = image_column(schema)
        table = pa.concat_tables([one.read(columns=_wanted(schema.names, image, mode)) for one in opened])
    if image is None:
        column = path_column(table, where)
        return _of_paths(table[column], _labels(table, column, mode, where, names), root)
    addresses: list[bytes] = []
    for file, one in zip(files, opened, strict=True):
        with told(file, "Parquet file", *ERRORS):
            paths = _paths_instead(one, schema, image)
        addresses += containers.numbered(file, root, one.metadata.num_rows) if paths is None else paths
    if not addresses:
        raise ValueError(f"{where}: a table without rows")
    return containers.listed(addresses, _labels(table, None, mode, where, names), root)


def _wanted(columns: list[str], image: str | None, mode: str) -> list[str]:
    """The columns to read: those that are called as paths and labels are, or all where the names do not tell."""
    plain = [name for name in columns if name != image]
    named = [name for name in plain if name.strip().lower() in (*text.PATHS, *text.LABELS)]
    kinds = {name.strip().lower() in text.LABELS for name in named}
    told = True in kinds and (image is not None or False in kinds) and not mode.startswith("vector")
    return named if told else plain


def image_column(schema: pa.Schema) -> str | None:
    """The column of image bytes, {bytes, path} or plain, by its type and then its name."""
    structs = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type)
        and "bytes" in {field.type.field(i).name for i in range(field.type.num_fields)}
    ]
    binary = [field.name for field in schema if _is_bytes(field.type)]
    likely = sorted(
        structs + binary, key=lambda name: name.lower() not in ("image", "img", "jpg", "png", "bytes", "data")
    )
    return likely[0] if likely else None


def _paths_instead(opened: pq.ParquetFile, schema: pa.Schema, image: str) -> list[bytes] | None:
    """The paths of an image column that holds no bytes at all, as Hugging Face's data sets may; else None."""
    if not pa.types.is_struct(schema.field(image).type):
        return None
    data = opened.metadata
    nulls = 0
    for group in range(data.num_row_groups):
        for place in range(data.num_columns):
            column = data.row_group(group).column(place)
            if column.path_in_schema == f"{image}.bytes":
                nulls += column.statistics.null_count if column.statistics and column.statistics.has_null_count else 0
    if not nulls or nulls < data.num_rows:
        return None
    paths = opened.read(columns=[f"{image}.path"])[image].combine_chunks().field("path").to_pylist()
    return [os.fsencode(path or "") for path in paths]


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Column -> class names, from the metadata of Hugging Face's data sets."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: list(map(str, kind["names"])) for name, kind in features.items() if "names" in kind}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _labels(table: pa.Table, paths: str | None, mode: str, where: str, names: dict[str, list[str]]) -> Labels:
    """Labels from the column that is called so, or from the only other one; of several for a vector."""
    others = [name for name in table.column_names if name != paths]
    named = {name.strip().lower(): name for name in reversed(others)}
    column = next((named[name] for name in text.LABELS if name in named), others[0] if len(others) == 1 else None)
    width = label_width(mode) if mode.startswith("vector") else 1
    if len(others) == width > 1:
        rows = [of_column(table[name], "float", where).values for name in others]
        return of_numbers(np.concatenate(rows, axis=1), mode, where)
    if column is None:
        why = f"no label column among {', '.join(others)}" if others else "no label column"
        return none(table.num_rows, where, mode, why)
    found = of_column(table[column], mode, f"{where}: column {column}")
    if column in names and found.values.dtype == np.int32:
        found.classes = names[column]
    return found


def of_column(column: Any, mode: str, where: str) -> Labels:
    """Labels from one column of a table."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if _is_text(kind):
        with told(where, "labels", pa.ArrowInvalid):
            return of_texts(column.cast(pa.binary()).cast(pa.string()), mode, where)
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        if pa.types.is_boolean(kind):
            column = column.cast(pa.int8())
        column = column.cast(pa.float64()) if column.null_count else column
        return of_numbers(column.to_numpy() if isinstance(column, pa.ChunkedArray) else np.asarray(column), mode, where)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return of_objects(column.to_pylist(), mode, where)
    raise ValueError(f"{where}: labels of type {kind}; expected numbers or names")


class Parquet:
    """Images of one Parquet file by row.

    A row can only be reached by unpacking its row group, of hundreds of images. So an unpacked group is kept in a file
    without a name on the local disk, and rows in any order cost one unpacking each group, not one each image.
    """

    def __init__(self, file: Path):
        self.file, self.lock = file, threading.Lock()
        with told(file, "Parquet file", *ERRORS):
            self.opened = pq.ParquetFile(file)
            self.image = image_column(self.opened.schema_arrow)
            data = self.opened.metadata
            self.bounds = np.cumsum([0] + [data.row_group(group).num_rows for group in range(data.num_row_groups)])
        if self.image is None:
            raise ValueError(f"{file}: no column of image bytes; it has {', '.join(self.opened.schema_arrow.names)}")
        self.spill = tempfile.TemporaryFile(prefix="cortado-parquet-")  # noqa: SIM115 (lives as long as this object)
        self.written = 0
        self.groups: dict[int, tuple[NDArray[np.int64], NDArray[np.bool_]]] = {}

    def read(self, member: bytes) -> bytes:
        row = containers.place_of(member, int(self.bounds[-1]), str(self.file))
        group = int(np.searchsorted(self.bounds, row, side="right")) - 1
        with self.lock:
            if group not in self.groups:
                self.groups[group] = self._unpack(group)
            places, missing = self.groups[group]
            place = row - int(self.bounds[group])
            start, stop = int(places[place]), int(places[place + 1])
            if missing[place]:
                raise ValueError(f"{self.file}: row {row} holds no image")
            return os.pread(self.spill.fileno(), stop - start, start)

    def _unpack(self, group: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Write a row group's images behind one another; their (n + 1,) places and which rows have none."""
        with told(self.file, "Parquet file", *ERRORS):
            kind = self.opened.schema_arrow.field(self.image).type
            leaf = f"{self.image}.bytes" if pa.types.is_struct(kind) else self.image
            column = self.opened.read_row_group(group, columns=[leaf])[self.image].combine_chunks()
            column = column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)
            array = (pc.struct_field(column, "bytes") if pa.types.is_struct(kind) else column).cast(pa.large_binary())
            array.validate(full=True)
        offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
        if len(array) != self.bounds[group + 1] - self.bounds[group]:
            raise ValueError(f"{self.file}: damaged Parquet file: a row group of {len(array)} rows")
        if self.written > SPILL:
            self.groups, self.written = {}, 0
        body = memoryview(array.buffers()[2] or b"")[int(offsets[0]) : int(offsets[-1])]
        self.spill.seek(self.written)
        self.spill.write(body)
        self.spill.flush()
        places = offsets - offsets[0] + self.written
        self.written += len(body)
        return places, array.is_null().to_numpy(zero_copy_only=False)
