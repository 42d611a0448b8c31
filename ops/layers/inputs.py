"""Layers without bottoms: Input, and the sources of data. They tell the shapes of their tops; reading is the feed's.

A top's shape is what the caller gave for it, else what the parameters say, else that of the source's first record.
"""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ops import fillers
from ops.layers.first_record import HEAD, dataset_shape, first_name, first_record, hdf5_of, window_channels
from ops.layers.registry import Counts, Layer, Phase, Shape, check_size, layer, text
from ops.names import quoted
from ops.proto.caffe_pb2 import FillerParameter, LayerParameter, TransformationParameter

MOST_AXES = 32  # of a blob, as Caffe's


class Source(Layer):
    """A layer whose tops are inputs of the net."""

    bottoms: ClassVar[Counts] = (0, 0)
    tops: ClassVar[Counts] = (1, None)
    source = True

    def top_shapes(self, given: Mapping[str, Shape]) -> list[Shape]:
        """The shape of each top; `given` by blob name wins, and the others follow its batch."""
        known = {name: checked(given[name]) for name in self.spec.top if name in given}
        missing = [name for name in self.spec.top if name not in known]
        shapes = self.follow(known) | known
        if any(name not in shapes for name in missing):
            shapes = self.at_batch(self._own(), known) | shapes
        return [shapes[name] for name in self.spec.top]

    def _own(self) -> dict[str, Shape]:
        try:
            own = self.own_shapes()
        except OSError as error:
            raise ValueError(f"{error.filename}: {error.strerror or error}; {self.instead()}") from error
        return dict(zip(self.spec.top, map(checked, own), strict=True))

    def follow(self, known: dict[str, Shape]) -> dict[str, Shape]:
        """The shapes of tops that are plain from the known ones without opening anything: labels (N,) beside data."""
        first, *labels = self.spec.top
        return dict.fromkeys(labels, known[first][:1]) if known.get(first) else {}

    def at_batch(self, own: dict[str, Shape], known: dict[str, Shape]) -> dict[str, Shape]:
        """Tops of the same batch as a given one take its batch."""
        batches = {own[name][0]: shape[0] for name, shape in known.items() if own[name] and shape}
        return {name: (batches.get(shape[0], shape[0]), *shape[1:]) if shape else shape for name, shape in own.items()}

    @abstractmethod
    def own_shapes(self) -> list[Shape]:
        """The shape of each top by the parameters and the source."""

    def shapes(self, bottoms: list[Shape]) -> list[Shape]:
        return self.top_shapes({})

    def find(self, source: str, *others: Path) -> Path:
        """Where a file or folder is: from the working folder, else from others, else beside the prototxt."""
        if not source:
            raise ValueError(f"names no source; {self.instead()}")
        folders = [Path.cwd(), *others, *([self.folder] if self.folder is not None else [])]
        places = list(dict.fromkeys(os.path.join(folder.absolute(), source) for folder in folders))
        for place in places:
            if os.path.lexists(place):
                return Path(os.path.relpath(place)) if place == places[0] and not os.path.isabs(source) else Path(place)
        raise ValueError(f"there is no {quoted(source)}: looked for {' and '.join(places)}; {self.instead()}")

    def instead(self) -> str:
        return f"inputs={{{self.spec.top[0]!r}: (N, C, H, W)}} gives the shape without opening anything"


ADVICE = re.compile(r"[;,]( or)? inputs=\{'.*': \(N, C, H, W\)\} gives the shape without opening anything")


def unadvised(told: str) -> str:
    """An error without the advice to give a shape, for those who want the source itself."""
    return ADVICE.sub("", told)


def checked(shape: Iterable[int]) -> Shape:
    """A shape that a blob can have; ValueError for others."""
    found = tuple(map(int, shape))
    if len(found) > MOST_AXES:
        raise ValueError(f"a blob of {len(found)} axes; at most {MOST_AXES} go")
    check_size(found)
    return found


def batch_of(size: int, message: str) -> int:
    if size < 1:
        raise ValueError(f"{message} has batch_size {size}, expected 1 or more")
    return size


def cropped(record: Shape, transform: TransformationParameter) -> Shape:
    """(C, H, W) after the crop of transform_param, which is a square."""
    side = transform.crop_size
    if not side:
        return record
    channels, height, width = record
    if side > min(height, width):
        raise ValueError(f"crop_size {side} does not fit the records of {text(record)}")
    return channels, side, side


def by_top(name: str, listed: int, tops: int, least: int = 0) -> None:
    """ValueError unless something is written not at all, once, or once a top."""
    if listed not in {least, 1, tops}:
        expected = f"{least or 'none'}, one or {tops}" if least == 0 else f"1 or {tops}"
        raise ValueError(f"has {listed} {name} for {tops} top{'s' * (tops != 1)}, expected {expected}")


# -- by their parameters -----------------------------------------------------------------------------------------------


@layer("Input")
class Input(Source):
    """Tops that the caller fills; input_param has no shape, one for all, or one a top."""

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        by_top("shapes", len(spec.input_param.shape), len(spec.top))

    def follow(self, known: dict[str, Shape]) -> dict[str, Shape]:
        return {}

    def at_batch(self, own: dict[str, Shape], known: dict[str, Shape]) -> dict[str, Shape]:
        """The shapes as they are written: whoever replaces one says so for each."""
        return own

    def own_shapes(self) -> list[Shape]:
        shapes = [tuple(shape.dim) for shape in self.spec.input_param.shape]
        if not shapes:
            raise ValueError(f"has no shape: write input_param {{ shape {{ dim: ... }} }}, or {self.instead()}")
        return shapes * len(self.spec.top) if len(shapes) == 1 else shapes


@layer("DummyData")
class DummyData(Source):
    """Tops made by fillers: constant ones (the default, 0) once, others anew at each forward."""

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p, tops = spec.dummy_data_param, len(spec.top)
        by_top("data_fillers", len(p.data_filler), tops)
        old = {"num": p.num, "channels": p.channels, "height": p.height, "width": p.width}
        self.is_old = any(map(len, old.values()))
        if self.is_old and p.shape:
            raise ValueError("has shape and num, channels, height or width; write one kind")
        for name, sizes in old.items() if self.is_old else {"shape": p.shape}.items():
            by_top(name, len(sizes), tops, 1)
        self.resolved: list[Shape] | None = None
        self.constants: dict[int, Tensor] = {}

    def follow(self, known: dict[str, Shape]) -> dict[str, Shape]:
        return {}

    def own_shapes(self) -> list[Shape]:
        p, tops = self.spec.dummy_data_param, len(self.spec.top)
        if self.is_old:
            sizes = [list(one) * (tops if len(one) == 1 else 1) for one in (p.num, p.channels, p.height, p.width)]
            return list(zip(*sizes, strict=True))
        return [tuple(shape.dim) for shape in p.shape] * (tops if len(p.shape) == 1 else 1)

    def top_shapes(self, given: Mapping[str, Shape]) -> list[Shape]:
        self.resolved, self.constants = super().top_shapes(given), {}
        for index, shape in enumerate(self.resolved):
            fillers.check(self._filler(index), shape)
        return self.resolved

    def produce(self, generator: torch.Generator) -> list[Tensor]:
        """The tops, float32 on the generator's device; constant ones are the same tensor at each call."""
        shapes = self.resolved or self.top_shapes({})
        return [self._produced(index, shape, generator) for index, shape in enumerate(shapes)]

    def _filler(self, index: int) -> FillerParameter:
        listed = self.spec.dummy_data_param.data_filler
        return listed[index if len(listed) > 1 else 0] if listed else FillerParameter()

    def _produced(self, index: int, shape: Shape, generator: torch.Generator) -> Tensor:
        filler = self._filler(index)
        if filler.type != "constant":
            return filled(shape, filler, generator)
        if index not in self.constants:
            self.constants[index] = filled(shape, filler, generator)
        return self.constants[index]


def filled(shape: Shape, filler: FillerParameter, generator: torch.Generator) -> Tensor:
    blob = torch.empty(shape, dtype=torch.float32, device=generator.device)
    fillers.fill(blob, filler, generator)
    return blob


@layer("MemoryData")
class MemoryData(Source):
    """Images handed over in memory: (batch_size, channels, height, width), labels (batch_size,).

    A crop_size changes nothing here, as in Caffe: the sizes are those after the transformation.
    """

    tops = (2, 2)

    def own_shapes(self) -> list[Shape]:
        p = self.spec.memory_data_param
        shape = (p.batch_size, p.channels, p.height, p.width)
        if min(shape) < 1:
            raise ValueError(
                "memory_data_param needs batch_size, channels, height and width, each 1 or more; "
                f"found {text(shape)}; or {self.instead()}"
            )
        return [shape, shape[:1]]


# -- by their first record ---------------------------------------------------------------------------------------------


@layer("Data")
class Data(Source):
    """Records of an LMDB, a LevelDB or a folder made by convert: (batch_size, C, H, W) and, with 2 tops, labels (N,).

    What a source is shows in its folder; `backend` is not asked.
    """

    tops = (1, 2)

    def follow(self, known: dict[str, Shape]) -> dict[str, Shape]:
        """Labels in HDF5 shards may be vectors: where the source is at hand, it says so."""
        try:
            tables = hdf5_of(self.find(self.spec.data_param.source))
        except (OSError, ValueError):
            tables = None
        return super().follow(known) if tables is None else {}

    def own_shapes(self) -> list[Shape]:
        p, transform = self.spec.data_param, self.spec.transform_param
        batch = batch_of(p.batch_size, "data_param")
        if transform.force_color and transform.force_gray:
            raise ValueError("transform_param has force_color and force_gray; write one of them")
        source = self.find(p.source)
        tables = hdf5_of(source)
        label: Shape = ()
        if tables is None:
            record = first_record(source, transform)
        else:
            record = dataset_shape(tables, "data")[1:]
            label = dataset_shape(tables, "label")[1:] if len(self.spec.top) > 1 else ()
        return [(batch, *cropped(record, transform)), (batch, *label)][: len(self.spec.top)]


@layer("ImageData")
class ImageData(Source):
    """Image files of a list: (batch_size, 3, H, W), with is_color false (batch_size, 1, H, W), and labels (N,).

    H x W is new_height x new_width, else the size of the list's first image, then crop_size.
    """

    tops = (2, 2)

    def own_shapes(self) -> list[Shape]:
        p, transform = self.spec.image_data_param, self.spec.transform_param
        batch = batch_of(p.batch_size, "image_data_param")
        if bool(p.new_height) != bool(p.new_width):
            raise ValueError(f"has new_height {p.new_height} and new_width {p.new_width}; write both or none")
        size = (p.new_height, p.new_width) if p.new_height else self._first_size()
        return [(batch, *cropped((3 if p.is_color else 1, *size), transform)), (batch,)]

    def _first_size(self) -> tuple[int, int]:
        """(height, width) of the first image."""
        from ops import image

        p = self.spec.image_data_param
        listed = self.find(p.source)
        try:
            file = self.find(p.root_folder + first_name(listed))
            return image.decode(file.read_bytes(), color=p.is_color).shape[:2]
        except ValueError as error:
            raise ValueError(f"{listed}: its first image: {error}") from error


@layer("WindowData")
class WindowData(Source):
    """Windows of images (R-CNN): (batch_size, channels, crop_size, crop_size) and labels (N,)."""

    tops = (2, 2)

    def own_shapes(self) -> list[Shape]:
        p, side = self.spec.window_data_param, self.spec.transform_param.crop_size
        batch = batch_of(p.batch_size, "window_data_param")
        if not side:
            raise ValueError("needs transform_param { crop_size: ... }: windows have that size, and it is 0")
        return [(batch, window_channels(self.find(p.source)), side, side), (batch,)]


@layer("HDF5Data")
class HDF5Data(Source):
    """Datasets of HDF5 files, named as the tops: (batch_size, ...) with the axes of the dataset behind its first.

    The source lists the files; a file itself, or a folder made by convert, does too.
    """

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        if spec.HasField("transform_param"):
            raise ValueError("has transform_param, which HDF5Data cannot do; take it out")

    def follow(self, known: dict[str, Shape]) -> dict[str, Shape]:
        """Labels may be vectors: where the source is at hand, it says so."""
        try:
            self.find(self.spec.hdf5_data_param.source)
        except ValueError:
            return super().follow(known) if len(self.spec.top) == 2 else {}
        return {}

    def own_shapes(self) -> list[Shape]:
        p = self.spec.hdf5_data_param
        batch = batch_of(p.batch_size, "hdf5_data_param")
        file = self._first_file(self.find(p.source))
        shapes = {name: dataset_shape(file, name) for name in self.spec.top}
        if len({shape[0] for shape in shapes.values()}) > 1:
            rows = ", ".join(f"{name} {shape[0]:,}" for name, shape in shapes.items())
            raise ValueError(f"{file}: datasets of different numbers of rows: {rows}")
        return [(batch, *shape[1:]) for shape in shapes.values()]

    def _first_file(self, source: Path) -> Path:
        from ops.records.hdf5 import is_hdf5

        if is_hdf5(source):
            return source
        listed = source / "list.txt" if source.is_dir() else source
        with listed.open("rb") as opened:
            words = opened.read(HEAD).split(None, 1)
        if not words:
            raise ValueError(f"{listed}: an empty list; expected paths of HDF5 files")
        file = self.find(os.fsdecode(words[0]), listed.parent)
        if not is_hdf5(file):
            raise ValueError(f"{listed}: its first entry {quoted(str(file))} is no HDF5 file")
        return file
