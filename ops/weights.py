"""Weights of nets: copied from files by layer name, and written so that Caffe reads them.

    report = load(net, ["bvlc_reference_caffenet.caffemodel"])
    write(net, "flowers_iter_1000.caffemodel")

Loading needs a few megabytes beside the net and its largest HDF5 blob; a file that does not fit changes nothing.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ops.layers.registry import Layer, Shape, text
from ops.names import pick, quoted
from ops.proto.binary import LIMIT
from ops.proto.caffe_pb2 import TEST, TRAIN, LayerParameter, NetParameter
from ops.weight_files import SavedBlob, SavedLayer, WeightFile
from ops.weight_files import read as read

RENAME = "rename the layer to train it afresh"
NAMED = 5  # layers that an error lists
BLOBS = LayerParameter.DESCRIPTOR.fields_by_name["blobs"].number
ERRNO = re.compile(r"errno = (\d+)")
HDF5_PIECE = 1 << 22  # bytes: a few milliseconds
Parts = list[bytes | Tensor]  # of a file: bytes as they are, tensors as their numbers
Format = Literal["BINARYPROTO", "HDF5"]


class Network(Protocol):
    """What a net must have: its layers in order, which blobs (layer, blob) belong to another layer, its definition."""

    spec: NetParameter

    @property
    def layers(self) -> Sequence[Layer]: ...

    @property
    def shared(self) -> Container[tuple[int, int]]: ...


# -- loading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What loading did: layers whose blobs were copied; layers of the files that the net has not (as Caffe's
    "Ignoring source layer"); layers with blobs of their own that no file had; what the numbers look wrong in."""

    copied: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Copy(NamedTuple):
    """A blob on its way from a file into a net."""

    path: str
    layer: int
    blob: int
    source: SavedBlob
    target: Tensor


def load(net: Network, paths: str | Path | Sequence[str | Path], *, strict: bool = False) -> Report:
    """Copy weights from files into the layers of the same names; later files override earlier ones.

    ValueError, before the net is touched: a file that cannot be read, blob counts or shapes that differ, a file of
    which nothing fits; with `strict` also where a layer with blobs gets none.
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    with ExitStack() as opened:
        files = [opened.enter_context(read(path)) for path in listed]
        copies = [copy for file in files for copy in plan(net, file)]
        copied = {copy.layer for copy in copies}
        names = {layer.spec.name for layer in net.layers}
        ignored = (layer.name for file in files for layer in file.layers if layer.name not in names)
        kept = [i for i, layer in enumerate(net.layers) if i not in copied and _owns(net, i, layer)]
        if strict and kept:
            raise ValueError(
                f"{', '.join(map(str, listed))}: no weights for {_some(net.layers[i].spec.name for i in kept)}"
            )
        wrong = [copy for copy in copies if not transfer(copy.source, copy.target)]
    return Report(
        copied=tuple(net.layers[i].spec.name for i in sorted(copied)),
        ignored=tuple(dict.fromkeys(ignored)),
        kept=tuple(net.layers[i].spec.name for i in kept),
        warnings=tuple(f"{one.path}: {_place(net, one.layer, one.blob)} holds NaN or infinite values" for one in wrong),
    )


def plan(net: Network, file: WeightFile) -> list[Copy]:
    """What goes where. As Caffe's: by name, of layers of one name into the first; counts and shapes must be equal."""
    first = {layer.spec.name: i for i, layer in reversed(list(enumerate(net.layers)))}
    copies, problems = [], []
    for saved in file.layers:
        if saved.name in first:
            fitting, told = _match(net, first[saved.name], saved, file)
            copies += fitting
            problems += told
    if problems:
        others = f" (and {len(problems) - 1} more blobs or layers do not fit)" if problems[1:] else ""
        raise ValueError(f"{file.path}: {problems[0]}{others}")
    wanted = [layer.spec.name for layer in net.layers if layer.blobs]
    if wanted and not copies:
        held = [saved.name for saved in file.layers if saved.blobs]
        raise ValueError(
            f"{file.path}: nothing in it fits: it has weights for {_some(held)}, the net wants {_some(wanted)}"
        )
    return copies


def _match(net: Network, i: int, saved: SavedLayer, file: WeightFile) -> tuple[list[Copy], list[str]]:
    """The copies of one layer, and what does not fit."""
    blobs = net.layers[i].blobs
    # An HDF5 file holds a shared blob only at its owner.
    missing = [j for j in range(len(blobs)) if j not in saved.blobs and not (file.hdf5 and (i, j) in net.shared)]
    if missing or len(saved.blobs) > len(blobs) or any(j >= len(blobs) for j in saved.blobs):
        return [], [f"layer {quoted(saved.name)} has {len(blobs)} blobs, the file has {len(saved.blobs)}: {RENAME}"]
    copies, problems = [], []
    for j, source in sorted(saved.blobs.items()):
        shape = blob_shape(net.layers[i], j)
        if not source.fits(shape):
            problems.append(f"{_place(net, i, j)} is {text(shape)}, the file has {text(source.shape)}: {RENAME}")
        elif source.problem:
            problems.append(f"{_place(net, i, j)}: {source.problem}")
        copies.append(Copy(file.path, i, j, source, blobs[j]))
    return copies, problems


def transfer(source: SavedBlob, target: Tensor) -> bool:
    """Copy a blob's numbers into `target`, of as many elements, whatever its strides, type and device; True where all
    that it then holds are finite."""
    whole = target.detach()
    whole = whole.reshape(1) if whole.dim() == 0 else whole
    row = whole[0].numel()
    rows = len(whole) if source.step is None else max(1, source.step // row)
    scratch: NDArray[Any] = np.empty(0, source.dtype)
    finite = True
    for first in range(0, len(whole), rows):
        part = whole[first : first + rows]
        if part.device.type == "cpu" and part.dtype == getattr(torch, source.dtype.name) and part.is_contiguous():
            values = part.numpy()
            source.read(values.reshape(-1), first * row)
            finite &= bool(np.isfinite(values).all())
        else:
            scratch = scratch if scratch.size >= part.numel() else np.empty(part.numel(), source.dtype)
            source.read(scratch[: part.numel()], first * row)
            finite &= _put(scratch[: part.numel()].reshape(part.shape), part)
    return finite


def _put(values: NDArray[Any], part: Tensor) -> bool:
    """Copy into a tensor; True where it then holds finite numbers. The pieces are small: numpy starts no threads."""
    if part.device.type == "cpu" and part.dtype in (torch.float32, torch.float64):
        array = part.numpy()
        with np.errstate(over="ignore"):
            np.copyto(array, values)
        return bool(np.isfinite(array).all())
    part.copy_(torch.from_numpy(values))
    return bool(torch.isfinite(part).all())


def blob_shape(layer: Layer, index: int) -> Shape:
    """A blob's shape in this layer, also where it is shared with one of another shape."""
    return layer.views[index] if index in layer.views else tuple(layer.blobs[index].shape)


def _owns(net: Network, i: int, layer: Layer) -> bool:
    """Whether a layer has blobs that are not another's."""
    return any((i, j) not in net.shared for j in range(len(layer.blobs)))


def _place(net: Network, i: int, j: int) -> str:
    return f"layer {quoted(net.layers[i].spec.name)} blob {j}"


def _some(names: Iterable[str]) -> str:
    """A few names: 'a', 'b' and 7 more."""
    listed = list(dict.fromkeys(names))
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return (", ".join(map(quoted, listed[:NAMED])) or "no layer") + more


# -- writing ---------------------------------------------------------------------------------------------------------


def write(
    net: Network,
    path: str | Path,
    *,
    format: Format | None = None,
    diff: bool = False,
    blobs: Mapping[tuple[int, int], Tensor] | None = None,
) -> None:
    """Write definition and blobs (HDF5: the blobs alone), with `diff` the gradients too; whole or not at all.

    `format` is by default what the name says: .h5 and .hdf5 are HDF5. `blobs`: the tensors (layer, blob) to write in
    place of the net's own, each as large as its own, their `grad` with them.
    """
    held = [
        [blobs[i, j] if blobs else blob for j, blob in enumerate(layer.blobs)] for i, layer in enumerate(net.layers)
    ]
    pick(WRITERS, format or format_of(path), "snapshot format")(net, held, path, diff)


def format_of(path: str | Path) -> Format:
    """What a name says: .h5 and .hdf5 are HDF5."""
    return "HDF5" if Path(path).suffix.lower() in {".h5", ".hdf5"} else "BINARYPROTO"


def _write_binary(net: Network, held: list[list[Tensor]], path: str | Path, diff: bool) -> None:
    """A NetParameter as Caffe's own: name, layers with their blobs, fields in the order of their numbers."""
    parts: Parts = [record(1, net.spec.name.encode())]
    for layer, blobs in zip(net.layers, held, strict=True):
        parts += _layer_parts(layer, blobs, diff)
    write_parts(path, parts, ".caffemodel")


def write_parts(path: str | Path, parts: Parts, kind: str) -> None:
    """Write a message of bytes and of tensors' numbers, whole or not at all; `kind` is what errors call the file."""
    total = size_of(parts)
    if total > LIMIT:
        raise ValueError(f"{path}: {total:,} bytes, more than the {LIMIT:,} that a {kind} may have; write HDF5 (.h5)")
    with replacing(path, total) as temporary, temporary.open("wb") as file:
        for part in parts:
            file.write(part if isinstance(part, bytes) else memoryview(_array(part).reshape(-1).data).cast("B"))


def _layer_parts(layer: Layer, blobs: list[Tensor], diff: bool) -> Parts:
    """A LayerParameter: the fields before its blobs, the blobs, the fields after.

    As in Caffe's files, the phase that it was built for and the weight 1 of a loss are written out.
    """
    before, after = LayerParameter(), LayerParameter()
    before.CopyFrom(layer.spec)
    after.CopyFrom(layer.spec)
    for known, _ in layer.spec.ListFields():
        for half, gone in ((before, known.number >= BLOBS), (after, known.number <= BLOBS)):
            if gone:
                half.ClearField(known.name)
    before.DiscardUnknownFields()  # they stand in `after`
    if not after.HasField("phase"):
        after.phase = TRAIN if layer.phase == "TRAIN" else TEST
    if before.type.endswith("Loss") and not before.loss_weight:
        before.loss_weight.append(1)
    parts: Parts = [before.SerializePartialToString(deterministic=True)]
    for j, blob in enumerate(blobs):
        parts += message(BLOBS, blob_parts(blob, blob_shape(layer, j), diff))
    return message(100, [*parts, after.SerializePartialToString(deterministic=True)])


def blob_parts(blob: Tensor, shape: Shape, diff: bool = False) -> Parts:
    """A BlobProto: data 5, diff 6, shape 7, or shape 7, double_data 8, double_diff 9. A single number has no shape."""
    packed = record(1, b"".join(map(_varint, shape)))
    numbers: dict[int, Parts] = {7: [record(7, packed)] if shape else []}
    data, gradient = (8, 9) if blob.dtype == torch.float64 else (5, 6)
    numbers[data] = message(data, [blob.detach()])
    if diff:
        numbers[gradient] = message(gradient, [_gradient(blob)])
    return [part for number in sorted(numbers) for part in numbers[number]]


def _gradient(blob: Tensor) -> Tensor:
    """A blob's gradient; zeros where there is none yet."""
    return blob.new_zeros(()).expand(blob.shape) if blob.grad is None else blob.grad.detach()


def _array(tensor: Tensor) -> NDArray[Any]:
    """Numbers as a file has them: float64 as they are, all else float32; row-major."""
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.detach().to("cpu", dtype).contiguous().numpy()


def message(number: int, parts: Parts) -> Parts:
    """A field that holds a message, or a tensor's numbers one after the other."""
    return [_varint(number << 3 | 2) + _varint(size_of(parts)), *parts]


def record(number: int, content: bytes) -> bytes:
    """A field that holds bytes."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def size_of(parts: Parts) -> int:
    """Bytes in a file."""
    widths = ((len(p), 1) if isinstance(p, bytes) else (p.numel(), 8 if p.dtype == torch.float64 else 4) for p in parts)
    return sum(count * width for count, width in widths)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    coded = bytearray()
    while value > 0x7F:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*coded, value])


def _write_hdf5(net: Network, held: list[list[Tensor]], path: str | Path, diff: bool) -> None:
    """Groups data/LAYER/INDEX (and diff/...); a shared blob stands at its owner only; a/b is a group in a group."""
    check_names(net, path)
    total = sum(size_of([*blobs]) for blobs in held) * (1 + diff)
    with replacing(path, total) as temporary, h5py.File(temporary, "w") as file:
        for root in ("data", "diff") if diff else ("data",):
            for i, layer in enumerate(net.layers):
                group = file.require_group(f"{root}/{layer.spec.name}")
                for j, blob in enumerate(held[i]):
                    if (i, j) not in net.shared:
                        put(group, str(j), blob if root == "data" else _gradient(blob))


def put(group: h5py.Group, name: str, tensor: Tensor) -> None:
    """Write a dataset, in pieces: HDF5 lets no other thread of the process run while it writes one."""
    array = _array(tensor)
    if array.ndim == 0 or array.nbytes <= HDF5_PIECE:
        group.create_dataset(name, data=array)
        return
    dataset = group.create_dataset(name, array.shape, array.dtype)
    rows = max(1, HDF5_PIECE * len(array) // array.nbytes)
    for first in range(0, len(array), rows):
        dataset[first : first + rows] = array[first : first + rows]


def check_names(net: Network, path: str | Path) -> None:
    """ValueError where a layer has no place of its own in HDF5."""
    layers = [(layer.spec.name, len(layer.blobs)) for layer in net.layers]
    times, blobs = Counter(name for name, _ in layers), {f"{name}/{j}" for name, count in layers for j in range(count)}
    for name, count in layers:
        parts, wrong = name.split("/"), None
        if (name or count) and ({"", "."} & set(parts) or "\0" in name):
            wrong = "has a name that HDF5 cannot store"
        elif any("/".join(parts[:length]) in blobs for length in range(1, len(parts) + 1)):
            wrong = "has the name of another layer's blob in HDF5"
        elif count and times[name] > 1:
            wrong = f"is there {times[name]} times, and HDF5 stores blobs by name"
        if wrong:
            raise ValueError(f"{path}: layer {quoted(name)} {wrong}; rename it, or write a .caffemodel")


WRITERS = {"BINARYPROTO": _write_binary, "HDF5": _write_hdf5}


@contextmanager
def replacing(path: str | Path, size: int) -> Iterator[Path]:
    """A name beside `path` to write about `size` bytes under; then synced and renamed, or removed after an error.

    A link is followed; a pipe or a device is written to directly. OSError names the file and the bytes needed.
    """
    target = Path(path).resolve()
    direct = target.exists() and not target.is_file() and not target.is_dir()
    temporary = target if direct else target.with_name(temporary_name(target.name))
    try:
        yield temporary
        if not direct:
            _sync(temporary)
            temporary.replace(target)
            _sync(target.parent)
    except (OSError, RuntimeError) as error:  # HDF5 reports a full disk as either, with the number in its words
        said = ERRNO.search(str(error))
        number = error.errno if isinstance(error, OSError) else None
        named = getattr(error, "filename", None) or temporary  # a file inside, told already
        if (number is None and said is None) or str(named) != str(temporary):
            raise
        number = number or int(said[1] if said else errno.EIO)
        raise OSError(number, f"{os.strerror(number)}; {size:,} bytes were to be written", str(path)) from error
    finally:
        if not direct:
            temporary.unlink(missing_ok=True)


def temporary_name(name: str) -> str:
    """What a file is called while it is written: `name` at the end, as far as a name may be long."""
    start = f".tmp-{os.getpid()}-{secrets.token_hex(4)}-"
    return start + os.fsdecode(os.fsencode(name)[-(255 - len(start)) :])


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
