"""The data layers: from a layer's text to what makes its tops. A new kind of data layer is one function here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ops.feed import arrays, database, lists, tables
from ops.feed.dummy_tops import DummyTops
from ops.feed.record_tops import RecordTops
from ops.feed.row_tops import RowTops
from ops.feed.sampling import Balanced, Sampling, skipped
from ops.feed.source import Joined, Source
from ops.feed.tops import Asked, Tops, batch_size
from ops.feed.transform import Transform
from ops.feed.window_tops import WindowTops
from ops.layers.registry import text
from ops.names import quoted
from ops.records import binaryproto

log = logging.getLogger("cortado")

# -- pictures ----------------------------------------------------------------------------------------------------------


def transform_of(asked: Asked) -> Transform:
    param = asked.spec.transform_param
    mean = None
    if param.mean_file:
        mean = binaryproto.read(asked.find(param.mean_file))
    return Transform(param, train=asked.phase == "TRAIN", mean=mean, augment=asked.options.augmentation)


def sampling_of(asked: Asked, source: Source, shuffle: bool = False, rand_skip: int = 0) -> Any:
    """The order of a source: as the options say, else as the layer does."""
    if not len(source):
        raise ValueError("holds no records")
    options = asked.options
    if options.balance:
        return Balanced(source.labels(), seed=asked.seed)
    chosen = shuffle if options.shuffle is None else options.shuffle
    skip = skipped(asked.seed, rand_skip)
    return Sampling(len(source), seed=asked.seed, shuffle=chosen, block=options.block, skip=skip)


def data(asked: Asked) -> RecordTops:
    """Data: an LMDB, a LevelDB, or a folder of shards, whatever `backend` says."""
    p, transform = asked.spec.data_param, asked.spec.transform_param
    folder = asked.find(p.source)
    source = open_records(
        folder,
        database.Parser(
            color=transform.force_color,
            gray=transform.force_gray,
            all_formats=asked.options.all_formats,
            max_pixels=asked.options.max_pixels,
        ),
    )
    if not len(source):
        raise ValueError(f"{folder}: holds no records")
    sampling = sampling_of(asked, source, rand_skip=p.rand_skip)
    batch = batch_size(p.batch_size, asked.options, "data_param")
    made = RecordTops(asked, source, sampling, transform_of(asked), batch, loose=True)
    if (transform.force_color or transform.force_gray) and made.usual is not None and made.usual.planar:
        log.warning("layer %s: force_color and force_gray change nothing in raw records", quoted(asked.spec.name))
    return made


def open_records(folder: Path, parser: database.Parser) -> Source:
    """The records of a database, recognized from the folder. ValueError where there is none."""
    from ops.inputs import recognize
    from ops.records.hdf5 import is_hdf5

    found = recognize.find(folder)
    if found.kind == "leveldb":
        return database.LevelDB(folder, parser)
    if found.kind in ("dataset", "hdf5") and is_hdf5(found.files[0]):
        return tables.Pictures(found.files)
    if found.kind not in ("dataset", "lmdb"):
        raise ValueError(f"{folder}: of kind {found.kind}; expected an LMDB, a LevelDB or a folder made by convert")
    parts: list[Source] = [database.LMDB(part, parser) for part in found.files]
    return parts[0] if len(parts) == 1 else Joined(parts)


def image_data(asked: Asked) -> RecordTops:
    """ImageData: the pictures of a list."""
    p = asked.spec.image_data_param
    if bool(p.new_height) != bool(p.new_width):
        raise ValueError(f"has new_height {p.new_height} and new_width {p.new_width}; write both or none")
    file = asked.find(p.source)
    source = lists.Files(
        file,
        p.root_folder,
        color=p.is_color,
        size=(p.new_height, p.new_width) if p.new_height else None,
        labels=asked.options.labels,
        all_formats=asked.options.all_formats,
        max_pixels=asked.options.max_pixels,
    )
    source.look_beside(asked.folder)
    for warning in source.listed.warnings:
        log.warning("%s", warning)
    sampling = sampling_of(asked, source, p.shuffle, p.rand_skip)
    batch = batch_size(p.batch_size, asked.options, "image_data_param")
    return RecordTops(asked, source, sampling, transform_of(asked), batch, loose=not p.new_height)


def memory_pictures(asked: Asked) -> RecordTops:
    """MemoryData over pictures of bytes, transformed as by Caffe's AddMatVector."""
    p = asked.spec.memory_data_param
    data, label = arrays.given(asked.options.arrays, asked.spec.top)
    source = arrays.Pixels(data, label)
    made = RecordTops(
        asked,
        source,
        sampling_of(asked, source),
        transform_of(asked),
        batch_size(p.batch_size, asked.options, "memory_data_param"),
    )
    found, written = made.shapes[made.tops[0]][1:], (p.channels, p.height, p.width)
    if found != written:
        raise ValueError(f"memory_data_param says {text(written)}, the pictures become {text(found)}")
    return made


# -- rows of numbers ---------------------------------------------------------------------------------------------------


def hdf5_data(asked: Asked) -> RowTops:
    """HDF5Data: the files of a list, one after the other; datasets named as the tops."""
    p = asked.spec.hdf5_data_param
    files = tables.listed(asked.find(p.source), asked.find)
    batch = batch_size(p.batch_size, asked.options, "hdf5_data_param")
    return RowTops(asked, tables.Tables(files, asked.spec.top), batch, shuffle=p.shuffle)


def input_data(asked: Asked) -> RowTops:
    """Input: arrays of the rows' shapes."""
    tops, p = list(asked.spec.top), asked.spec.input_param
    shapes = [tuple(shape.dim) for shape in p.shape] * (len(tops) if len(p.shape) == 1 else 1)
    found = arrays.given(asked.options.arrays, tops)
    if shapes and len(shapes) != len(tops):
        raise ValueError(f"has {len(shapes)} shapes for {len(tops)} tops, expected none, one or {len(tops)}")
    for top, shape, array in zip(tops, shapes, found, strict=bool(shapes)):
        if shape[1:] != array.shape[1:]:
            raise ValueError(f"{quoted(top)} is {text(shape)}, rows of the array given are {text(array.shape[1:])}")
    if len({shape[0] for shape in shapes}) > 1:
        raise ValueError(f"has tops of different batches: {', '.join(map(text, shapes))}")
    batch = batch_size(shapes[0][0] if shapes else 0, asked.options, "input_param")
    return RowTops(asked, arrays.Rows(tops, found), batch)


def memory_rows(asked: Asked) -> RowTops:
    """MemoryData over numbers: as they are, as by Caffe's Reset."""
    p, tops = asked.spec.memory_data_param, list(asked.spec.top)
    data, label = arrays.given(asked.options.arrays, tops)
    if data.shape[1:] != (p.channels, p.height, p.width):
        written = text((p.channels, p.height, p.width))
        raise ValueError(f"memory_data_param says {written}, rows of the array given are {text(data.shape[1:])}")
    if asked.spec.HasField("transform_param"):
        log.warning(
            "layer %s: transform_param is for pictures of bytes; numbers stay as they are", quoted(asked.spec.name)
        )
    label = np.asarray(label, np.float32).reshape(len(label), -1)
    label = label[:, 0] if label.shape[1] == 1 else label
    return RowTops(
        asked, arrays.Rows(tops, [data, label]), batch_size(p.batch_size, asked.options, "memory_data_param")
    )


def memory_data(asked: Asked) -> Tops:
    """MemoryData: pictures of bytes are transformed, as by Caffe's AddMatVector; numbers are not, as by its Reset."""
    first = asked.options.arrays.get(asked.spec.top[0])
    return memory_pictures(asked) if getattr(first, "dtype", None) == np.uint8 else memory_rows(asked)


FAMILIES: dict[str, Callable[[Asked], Tops]] = {
    "Data": data,
    "ImageData": image_data,
    "HDF5Data": hdf5_data,
    "MemoryData": memory_data,
    "Input": input_data,
    "DummyData": DummyTops,
    "WindowData": WindowTops,
}
