"""Files of weights, read: .caffemodel (current, V1 and V0 nets) and HDF5, told apart by their content.

A .caffemodel is walked field by field with small reads: what it holds is known before a number is read, and numbers go
from the file straight to where they are wanted. Every length is checked against the file, so that damaged bytes end
in a ValueError of one line.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from ops.inputs.magic import starts_as_image
from ops.layers.registry import Shape, text
from ops.names import quoted
from ops.proto import binary, caffe_pb2
from ops.proto.binary import BYTES, VARINT
from ops.proto.caffe_pb2 import NetParameter, V1LayerParameter
from ops.proto.files import HDF5_SIGNATURE, HEAD, kind
from ops.proto.wire import Bytes, DamageError, Field, fields, fits

STEP = 1 << 20  # numbers read at a time: they stay in the cache until they are checked
LONGEST_NAME = 64 * 1024  # bytes
MOST_AXES = 32  # of a blob, as Caffe's
MOST_NESTED = 64  # groups inside each other in HDF5
MOST_PACKED = 2_000  # times smaller than its numbers that a compressed HDF5 dataset may be; deflate reaches 1,032
NUMBERS: dict[int, np.dtype[Any]] = {5: np.dtype("<f4"), 8: np.dtype("<f8")}  # BlobProto's data and double_data
LOOKED_AT = 1000  # fields that tell what another file is
LFS = b"version https://git-lfs"
ARCHIVES = {b"PK\x03\x04": "a zip archive or a file of torch.save", b"\x1f\x8b": "packed with gzip: unpack it first"}
HDF5_ERRORS = (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError, MemoryError)
MESSAGES = {
    "SolverState": "a solver state; the weights are in the .caffemodel that was written with it",
    "BlobProto": "a single blob, as a mean image (BlobProto)",
    "Datum": "a record of a data set (Datum)",
}


@dataclass
class SavedBlob:
    """A blob in a file; `legacy` shapes are num x channels x height x width. `problem`: why it has no values."""

    shape: Shape
    dtype: np.dtype[Any]
    read: Callable[[NDArray[Any], int], None]  # fills a flat array of `dtype` from the given element on
    legacy: bool = False
    problem: str | None = None
    step: int | None = None  # elements to read at a time; None: all

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def fits(self, shape: Shape) -> bool:
        """Whether this is a blob of that shape; legacy shapes align at the end, with leading ones."""
        if self.legacy:
            return len(shape) <= 4 and (1,) * (4 - len(shape)) + shape == self.shape
        return shape == self.shape

    def values(self) -> NDArray[Any]:
        """All numbers, in a new array of the file's shape and type."""
        if self.problem:
            raise ValueError(self.problem)
        array = np.empty(self.shape, self.dtype)
        self.read(array.reshape(-1), 0)
        return array


@dataclass
class SavedLayer:
    """A layer in a file: its type as the file writes it (V1: CONVOLUTION; HDF5: none), its blobs by their index."""

    name: str
    type: str = ""
    blobs: dict[int, SavedBlob] = field(default_factory=dict)


@dataclass
class WeightFile:
    """An open file of weights; read values before it is closed."""

    path: str
    hdf5: bool
    layers: list[SavedLayer]
    close: Callable[[], None]

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


def read(path: str | Path) -> WeightFile:
    """What a .caffemodel or HDF5 file of weights holds; ValueError names the file and what is wrong with it."""
    file = Bytes(path)
    with ExitStack() as after_an_error:
        after_an_error.callback(file.close)
        if file.read(0, min(len(HDF5_SIGNATURE), file.size)) == HDF5_SIGNATURE:
            return _read_hdf5(str(path))
        try:
            layers = _nets_layers(file)
        except DamageError as error:
            raise ValueError(f"{path}: {_something_else(file) or f'no .caffemodel: {error}'}") from None
        after_an_error.pop_all()
        return WeightFile(str(path), False, layers, file.close)


# -- .caffemodel -----------------------------------------------------------------------------------------------------


class Form(NamedTuple):
    """Field numbers of a layer's message; `inner`: a V0 layer inside a V1 layer."""

    name: int
    type: int
    blobs: int
    inner: int = 0


V0 = Form(1, 2, 50)
FORMS = {2: Form(4, 5, 6, inner=1), 100: Form(1, 2, 7)}  # NetParameter's layers (V1) and layer


def _nets_layers(file: Bytes) -> list[SavedLayer]:
    """The layers of a NetParameter."""
    if file.size > binary.LIMIT:
        raise DamageError(f"{file.size:,} bytes, more than the {binary.LIMIT:,} that such a file may have")
    found: dict[int, list[SavedLayer]] = {2: [], 100: []}
    for one in fields(file, 0, file.size):
        known = NetParameter.DESCRIPTOR.fields_by_number.get(one.number)
        if known is not None and not fits(known, one.wire):
            raise DamageError(f"its field {one.number} is no '{known.name}'")
        if one.number in FORMS:
            found[one.number].append(_layer(file, one, FORMS[one.number]))
    if found[2] and found[100]:
        raise ValueError(f"{file.path}: holds layers of the old format ('layers') and of the new ('layer'), not one")
    if not found[2] and not found[100]:
        raise DamageError("it holds no layers" if file.size else "it is empty")
    return found[2] or found[100]


def _layer(file: Bytes, message: Field, form: Form) -> SavedLayer:
    layer = SavedLayer("")
    blobs: list[SavedBlob] = []
    for one in fields(file, message.start, message.stop):
        if one.number == form.inner and one.wire == BYTES:
            old = _layer(file, one, V0)
            layer.name, layer.type = old.name or layer.name, old.type or layer.type
            blobs += old.blobs.values()
        elif one.number == form.name:
            layer.name = _string(file, one)
        elif one.number == form.type:
            layer.type = _v1_type(one.value) if one.wire == VARINT else _string(file, one)
        elif one.number == form.blobs:
            blobs.append(_blob(file, one))
    layer.blobs = dict(enumerate(blobs))
    return layer


def _string(file: Bytes, one: Field) -> str:
    if one.wire != BYTES or one.stop - one.start > LONGEST_NAME:
        raise DamageError(f"damaged: no name at byte {one.start:,}")
    return file.read(one.start, one.stop - one.start).decode(errors="replace")


def _v1_type(number: int) -> str:
    known = V1LayerParameter.LayerType.DESCRIPTOR.values_by_number.get(number)
    return known.name if known is not None else str(number)


def _blob(file: Bytes, message: Field) -> SavedBlob:
    if message.wire != BYTES:
        raise DamageError(f"damaged: no blob at byte {message.start:,}")
    sizes: dict[int, int] = {}
    dims: list[int] = []
    runs: dict[int, Runs] = {number: Runs(file, dtype) for number, dtype in NUMBERS.items()}
    strangers: list[int] = []
    for one in fields(file, message.start, message.stop):
        known = caffe_pb2.BlobProto.DESCRIPTOR.fields_by_number.get(one.number)
        if known is None:
            strangers.append(one.number)
        elif not fits(known, one.wire):
            raise DamageError(f"damaged: a blob's field {one.number} is no '{known.name}' at byte {one.start:,}")
        elif one.number <= 4:
            sizes[one.number] = _signed(one.value, 32)
        elif one.number in runs:
            runs[one.number].add(one)
        elif known.name == "shape":
            dims += _dims(file, one)
        if len(dims) > MOST_AXES:
            raise DamageError(f"damaged: a blob of more than {MOST_AXES} axes at byte {message.start:,}")
    shape = tuple(sizes.get(number, 0) for number in (1, 2, 3, 4)) if sizes else tuple(dims)
    held = runs[8] if runs[8].count else runs[5]
    problem = _misfit(shape, held.count, strangers)
    return SavedBlob(shape, held.dtype, held.read, legacy=bool(sizes), problem=problem, step=STEP)


def _dims(file: Bytes, message: Field) -> Iterator[int]:
    """The sizes in a BlobShape."""
    for one in fields(file, message.start, message.stop):
        if one.number == 1 and one.wire == VARINT:
            yield _signed(one.value, 64)
        elif one.number == 1 and one.wire == BYTES:
            at = one.start
            for _ in range(MOST_AXES + 1):
                if at < one.stop:
                    size, at = file.varint(at, one.stop)
                    yield _signed(size, 64)


def _signed(value: int, bits: int) -> int:
    value %= 1 << bits
    return value - (1 << bits) if value >> (bits - 1) else value


def _misfit(shape: Shape, held: int, strangers: list[int]) -> str | None:
    """Why a blob's numbers are not those of its shape."""
    if any(size < 1 for size in shape):
        return f"its shape {text(shape)} has a size below 1"
    if held == math.prod(shape):
        return None
    if not held and strangers:
        return (
            f"its values are in field {strangers[0]}, which Caffe's own format lacks: raw or half-precision data of a "
            "fork; save it as float32 there"
        )
    return f"its shape {text(shape)} wants {math.prod(shape):,} values, the file has {held:,}"


class Runs:
    """A blob's numbers as they lie in the file: packed runs, or one by one, each behind its tag."""

    def __init__(self, file: Bytes, dtype: np.dtype[Any]):
        self.file, self.dtype, self.count = file, dtype, 0
        self.firsts: list[int] = []  # the number of elements before each run
        self.places: list[tuple[int, int]] = []  # (byte, bytes from one element to the next)

    def add(self, one: Field) -> None:
        width = self.dtype.itemsize
        if one.wire == BYTES and (one.stop - one.start) % width:
            raise DamageError(f"damaged: {one.stop - one.start:,} bytes of {width}-byte numbers at byte {one.start:,}")
        self.firsts.append(self.count)
        self.places.append((one.start, width if one.wire == BYTES else width + 1))
        self.count += (one.stop - one.start) // width if one.wire == BYTES else one.repeats

    def read(self, out: NDArray[Any], start: int) -> None:
        """Fill `out` with the elements from `start` on."""
        done = 0
        index = bisect_right(self.firsts, start) - 1
        while done < len(out):
            here = start + done - self.firsts[index]
            ends = self.firsts[index + 1] if index + 1 < len(self.firsts) else self.count
            count = min(len(out) - done, ends - self.firsts[index] - here)
            at, stride = self.places[index]
            self._run(out[done : done + count], at + here * stride, stride)
            done, index = done + count, index + 1

    def _run(self, out: NDArray[Any], at: int, stride: int) -> None:
        if stride == self.dtype.itemsize:
            self.file.into(at, memoryview(out.data).cast("B"))
        elif len(out):
            raw = np.frombuffer(self.file.read(at, len(out) * stride - 1), np.uint8)
            tagged = np.lib.stride_tricks.as_strided(raw, (len(out), stride - 1), (stride, 1))
            out[:] = np.ascontiguousarray(tagged).view(self.dtype)[:, 0]


def _something_else(file: Bytes) -> str | None:
    """What a file that is no .caffemodel is instead."""
    head = file.read(0, min(HEAD, file.size))
    if starts_as_image(head):
        return "an image, not weights"
    if head.startswith(LFS):
        return "a Git LFS pointer, not the weights themselves; fetch them with git lfs pull"
    for magic, what in ARCHIVES.items():
        if head.startswith(magic):
            return f"not weights as Caffe writes them, but {what}"
    if kind(head) == "text" and (b":" in head or b"{" in head):
        return "a text file, not weights; a net's definition holds none"
    for name, what in MESSAGES.items():
        if _reads_as(file, name):
            return f"not weights, but {what}"
    return None


def _reads_as(file: Bytes, name: str) -> bool:
    """Whether the outermost fields are those of another message."""
    known = getattr(caffe_pb2, name).DESCRIPTOR.fields_by_number
    file.fields = 0
    try:
        found = {(one.number, one.wire) for one in islice(fields(file, 0, file.size), LOOKED_AT)}
    except DamageError:
        return False
    return bool(found) and all(number in known and fits(known[number], wire) for number, wire in found)


# -- HDF5 ------------------------------------------------------------------------------------------------------------


def _read_hdf5(path: str) -> WeightFile:
    """Groups data/LAYER/INDEX; a layer named a/b is a group in a group."""
    try:
        file = h5py.File(path, "r")
    except HDF5_ERRORS as error:
        raise ValueError(f"{path}: cannot be read as HDF5: {_line(error)}") from None
    try:
        if (said := _no_weights(file)) is not None:
            raise DamageError(said)
        return WeightFile(path, True, list(_groups(path, file["data"], "", set())), file.close)
    except DamageError as error:
        file.close()
        raise ValueError(f"{path}: {error}") from None
    except HDF5_ERRORS as error:
        file.close()
        raise ValueError(f"{path}: damaged HDF5: {_line(error)}") from None


def _no_weights(file: h5py.File) -> str | None:
    """What an HDF5 file without weights is."""
    if isinstance(file.get("data"), h5py.Group):
        return None
    if "data" in file:
        return "an HDF5 file of records ('data' is a dataset), not weights"
    if "history" in file:
        return "a solver state, not weights; they are in the .caffemodel.h5 that was written with it"
    held = ", ".join(map(quoted, list(file)[:5])) or "nothing"
    return f"an HDF5 file without a group 'data', not weights; it holds {held}"


def _groups(path: str, group: h5py.Group, name: str, seen: set[int], depth: int = 0) -> Iterator[SavedLayer]:
    """The layers at and below a group: a layer is a group with blobs, or an empty one."""
    address = h5py.h5o.get_info(group.id).addr
    if address in seen or depth > MOST_NESTED:
        raise DamageError(f"damaged: group {quoted(name)} stands in two places, or {MOST_NESTED} groups deep")
    seen.add(address)
    layer, below = SavedLayer(name), []
    for key in group:
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            raise DamageError(f"{quoted(f'{name}/{key}')} is a link to elsewhere; weights must be in the file itself")
        item = group[key]
        if isinstance(item, h5py.Group):
            below.append(key)
        elif not isinstance(item, h5py.Dataset) or not name or not (key.isdecimal() and str(int(key)) == key):
            raise DamageError(f"{quoted(f'{name}/{key}')} is no blob; a layer's blobs are datasets named 0, 1, ...")
        else:
            layer.blobs[int(key)] = _dataset(f"{path}: layer {quoted(name)} blob {key}", item)
    if name and (layer.blobs or not below):
        yield layer
    for key in below:
        yield from _groups(path, group[key], f"{name}/{key}" if name else key, seen, depth + 1)


def _dataset(label: str, dataset: h5py.Dataset) -> SavedBlob:
    shape = dataset.shape
    dtype = np.dtype("<f8") if dataset.dtype == np.float64 else np.dtype("<f4")

    def into(out: NDArray[Any], start: int) -> None:
        assert start == 0
        assert out.size == dataset.size
        try:
            dataset.read_direct(out.reshape(dataset.shape))
        except HDF5_ERRORS as error:
            raise ValueError(f"{label}: cannot be read: {_line(error)}") from None

    return SavedBlob(shape or (), dtype, into, problem=_unreadable(dataset), step=None)


def _unreadable(dataset: h5py.Dataset) -> str | None:
    """Why a dataset's numbers are none that were written into this file."""
    if dataset.shape is None or dataset.dtype.kind not in "fiu" or dataset.dtype.itemsize > 8:
        return f"it holds {dataset.dtype}, not numbers"
    if dataset.is_virtual or dataset.external:
        return "its values are in another file"
    if any(size < 1 for size in dataset.shape):
        return f"its shape {text(dataset.shape)} has a size below 1"
    stored = dataset.id.get_storage_size() * (1 if dataset.chunks is None else MOST_PACKED)
    if stored < dataset.nbytes:
        return f"its shape {text(dataset.shape)} wants {dataset.nbytes:,} bytes, the file has fewer"
    return None


def _line(error: BaseException) -> str:
    return " ".join(str(error).strip("'\"").split())[:200] or type(error).__name__
