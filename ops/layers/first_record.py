"""What the first record of a source says of all of them: its shape. Nothing more is read."""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import Path

import h5py

from ops.layers.registry import Shape
from ops.names import hint, quoted
from ops.proto.caffe_pb2 import TransformationParameter

HEAD = 1 << 16  # bytes of a text that the first entry has to stand in


def hdf5_of(path: Path) -> Path | None:
    """The first HDF5 file of a folder made by convert, or the file itself; None where the records are no HDF5."""
    from ops.inputs import recognize
    from ops.records.hdf5 import is_hdf5

    found = recognize.find(path)
    first = found.files[0] if found.kind in ("dataset", "hdf5") and found.files else None
    return first if first is not None and is_hdf5(first) else None


def first_record(path: Path, transform: TransformationParameter) -> Shape:
    """(C, H, W) of the first record of a database; an encoded one is decoded, as force_color or force_gray say."""
    from ops.inputs import database, recognize
    from ops.records import lmdb

    found = recognize.find(path)
    for folder in found.files if found.kind in ("dataset", "lmdb", "leveldb") else ():
        records = database.LevelDB(folder).items() if found.kind == "leveldb" else lmdb.Reader(folder).records(0, 1)
        for key, value in islice(records, 1):
            try:
                return record_shape(bytes(value), transform)
            except ValueError as error:
                raise ValueError(f"{folder}: record {os.fsdecode(key)}: {error}") from error
    if found.kind in ("dataset", "lmdb", "leveldb"):
        raise ValueError(f"{path}: holds no records")
    raise ValueError(f"{path}: of kind {found.kind}; expected an LMDB, a LevelDB or a folder made by convert")


def record_shape(record: bytes, transform: TransformationParameter) -> Shape:
    """(C, H, W) of a Datum, or of an image file that stands without one."""
    from ops import image
    from ops.inputs.magic import starts_as_image
    from ops.records import datum

    encoded = record
    if not starts_as_image(record[:16]):
        parsed = datum.parse(record)
        if not parsed.encoded:
            return tuple(parsed.pixels().shape)
        encoded = bytes(parsed.data)
    if transform.force_color or transform.force_gray:
        pixels = image.decode(encoded, color=transform.force_color)
    else:
        pixels = image.decode_natural(encoded)
    return pixels.shape[2], pixels.shape[0], pixels.shape[1]


def first_name(listed: Path) -> str:
    """The file name of a list's first line: all before the last space, as Caffe."""
    with listed.open("rb") as file:
        line = file.readline(HEAD).removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n")
    if not line:
        raise ValueError(f"{listed}: an empty list; expected one 'path label' a line")
    return os.fsdecode(line.rpartition(b" ")[0] or line)


def window_channels(file: Path) -> int:
    """The channels of a window file's first image: the fourth line of '# 0', path, channels, height, width, ..."""
    with file.open("rb") as opened:
        head = opened.read(HEAD)
    found = re.match(rb"\s*#\s*\d+\s+\S+\s+(\d{1,9})\s", head)
    if not found:
        raise ValueError(f"{file}: no window file; it starts {head[:30]!r}, expected '# 0', path, channels, ...")
    return int(found[1])


def dataset_shape(file: Path, name: str) -> Shape:
    """The shape of a dataset of numbers with at least one axis."""
    from ops.inputs.damage import told
    from ops.inputs.hdf5 import ERRORS

    with told(file, "HDF5 file", *ERRORS), h5py.File(file, "r") as opened:
        if name not in opened:
            raise ValueError(f"{file}: no dataset {quoted(name)}{hint(name, opened)}")
        dataset = opened[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiu" or not dataset.shape:
            raise ValueError(f"{file}: {quoted(name)} is no dataset of numbers with an axis for the rows")
        return tuple(dataset.shape)
