"""What `cortado show` draws of a net's weights: the filters of a layer, and its responses to an image."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ops import image, pictures, weights
from ops.layers.registry import text
from ops.names import hint, quoted
from ops.net import Net, paths_of
from ops.proto.caffe_pb2 import LayerParameter
from ops.records import binaryproto
from pipelines.stages.netshow import Asked

FILTERED = ("Convolution", "Deconvolution", "DepthwiseConvolution", "ConvolutionDepthwise")
NAMED = 5  # layers that an error lists


@dataclass(frozen=True)
class Picture:
    """How a picture is to be made: its file, and how many tiles go on it."""

    out: Path
    most: int

    def write(self, pixels: NDArray[np.uint8]) -> None:
        self.out.absolute().parent.mkdir(parents=True, exist_ok=True)
        self.out.write_bytes(image.encode(pixels, self.out.suffix))


def weight_files(asked: Asked, given: str | None, option: str) -> list[Path]:
    """The files of --weights; a .caffemodel that is shown has its own."""
    if given is None and not asked.saved:
        raise ValueError(f"{option} needs --weights FILE: {asked.file} is a definition without weights")
    return paths_of(given) or [asked.file]


def filters(asked: Asked, name: str, given: str | None, picture: Picture) -> dict[str, Any]:
    """The filters of a layer as a picture; the net is not built for it, only its weights are looked at."""
    layers = {layer.name: layer for layer in reversed(asked.spec.layer)}
    if name not in layers:
        raise ValueError(f"{asked.file}: has no layer {quoted(name)}{hint(name, layers)}")
    layer = layers[name]
    if layer.type not in FILTERED:
        others = [one.name for one in asked.spec.layer if one.type in FILTERED]
        told = f"the convolutions have: {some(others)}" if others else "the net has no convolution"
        raise ValueError(f"{asked.file}: layer {quoted(name)} ({layer.type}) has no filters; {told}")
    values, file = saved_blob(asked, layer, weight_files(asked, given, "--filters"))
    made = pictures.filters(values, most=picture.most, title=f"{asked.title or asked.file.name}: {name}")
    picture.write(made.picture)
    return {
        "net": str(asked.file),
        "layer": name,
        "type": layer.type,
        "weights": str(file),
        "shape": list(values.shape),
        "least": finite(values.min()),
        "greatest": finite(values.max()),
        "filters_shown": made.shown[0],
        "channels_shown": made.shown[1],
        "picture": str(picture.out),
    }


def saved_blob(asked: Asked, layer: LayerParameter, paths: Sequence[Path]) -> tuple[NDArray[Any], Path]:
    """Blob 0 of a layer, from the last file that has it; a shared one may stand at another layer of its param name."""
    shared = {param.name for param in layer.param[:1] if param.name}
    owners = [one.name for one in asked.spec.layer if one.param and one.param[0].name in shared and one is not layer]
    held: dict[str, None] = {}
    for path in reversed(paths):
        with weights.read(path) as file:
            found = {saved.name: saved.blobs[0] for saved in file.layers if 0 in saved.blobs}
            held |= dict.fromkeys(found)
            for owner in (layer.name, *owners):
                if owner in found:
                    if found[owner].problem:
                        raise ValueError(f"{path}: layer {quoted(owner)} blob 0: {found[owner].problem}")
                    return found[owner].values(), path
    listed = ", ".join(map(str, paths))
    near = hint(layer.name, held) or f"; it has weights for {some(held)}"
    raise ValueError(f"{listed}: no weights for layer {quoted(layer.name)}{near}")


def responses(
    asked: Asked, name: str, photo: Path, given: str | None, picture: Picture, *, mean: str | None, scale: float
) -> dict[str, Any]:
    """What a layer makes of an image, as a picture of its maps."""
    paths = weight_files(asked, given, "--responses")
    whole = asked.load(device="meta")
    blob = blob_of(asked, whole, name)
    feed = image_input(asked, whole, blob)
    shape = (1, *whole.inputs[feed][1:])
    net = asked.load({feed: shape}, weights=paths, blobs=[blob])
    check_report(net, paths, blob)
    try:
        pixels = image.decode(photo.read_bytes(), color=shape[1] == 3)
    except image.BadImage as error:
        raise ValueError(f"{photo}: {error}") from error
    mean_values = read_mean(mean)
    try:
        values = pictures.net_input(pixels, shape[1:], mean=mean_values, scale=scale)
    except ValueError as error:
        raise ValueError(f"--mean {mean}: {error}") from error
    made = {top for _, tops in net.made for top in tops}
    unread = {one: torch.zeros(shape) for one, shape in net.inputs.items() if one not in made}  # labels beside the data
    with torch.no_grad():
        found = net({**unread, feed: torch.from_numpy(values)})[blob].float().numpy()
    maps = found[0] if found.ndim else found.reshape(1)
    title = f"{asked.title or asked.file.name}: {name} of {photo.name}"
    drawn = pictures.responses(maps, most=picture.most, title=title)
    picture.write(drawn.picture)
    return {
        "net": str(asked.file),
        "blob": blob,
        "weights": ", ".join(map(str, paths)),
        "image": str(photo),
        "input": {feed: list(shape)},
        "shape": list(maps.shape),
        "least": finite(maps.min()),
        "greatest": finite(maps.max()),
        "silent": pictures.silent(maps),
        "maps_shown": drawn.shown[0],
        "picture": str(picture.out),
    }


def blob_of(asked: Asked, net: Net, name: str) -> str:
    """The blob that a layer's or a blob's name stands for: a layer's first top."""
    tops = {layer.spec.name: list(layer.spec.top) for layer in reversed(net.layers)}
    if tops.get(name):
        return tops[name][0]
    if name in net.shapes:
        return name
    if name in tops:
        raise ValueError(f"{asked.file}: layer {quoted(name)} makes no blob")
    raise ValueError(f"{asked.file}: has no layer or blob {quoted(name)}{hint(name, {**tops, **net.shapes})}")


def image_input(asked: Asked, net: Net, blob: str) -> str:
    """The one input that a blob is computed from, which takes images; others the net must make itself."""
    needed = {blob}
    for layer in reversed(net.layers):
        if needed & set(layer.spec.top):
            needed |= set(layer.spec.bottom)
    made = {top for _, tops in net.made for top in tops}
    feeds = [name for name in net.inputs if name in needed and name not in made]
    if len(feeds) != 1:
        told = f"inputs {', '.join(map(quoted, feeds))}" if feeds else "no input"
        raise ValueError(f"{asked.file}: blob {quoted(blob)} is computed from {told}; an image goes into exactly one")
    shape = net.inputs[feeds[0]]
    if len(shape) != 4 or shape[1] not in (1, 3):
        told = f"is {text(shape)}, expected N x 1 or 3 x height x width"
        raise ValueError(f"{asked.file}: input {quoted(feeds[0])} does not take an image: it {told}")
    return feeds[0]


def check_report(net: Net, paths: Sequence[Path], blob: str) -> None:
    """Every layer on the way to the blob has weights from the files."""
    if net.report and net.report.kept:
        listed = ", ".join(map(str, paths))
        raise ValueError(f"{listed}: no weights for {some(net.report.kept)}, which {quoted(blob)} is computed with")


def read_mean(given: str | None) -> NDArray[np.floating[Any]] | None:
    """--mean: a value a channel with commas, a binaryproto, or a .npy of pycaffe."""
    if given is None:
        return None
    path = Path(given)
    if not path.exists():
        try:
            return np.array([float(value) for value in given.split(",")], np.float32)
        except ValueError:
            raise FileNotFoundError(errno.ENOENT, "No such file, and no values as 104,117,123", given) from None
    if path.suffix.lower() == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path}: no array of numpy: {error}") from error
        if values.dtype.kind not in "fiu" or values.ndim not in (1, 3):
            raise ValueError(f"{path}: an array {values.shape} of {values.dtype}; expected numbers, (C,) or (C, H, W)")
        return values.astype(np.float32)
    return binaryproto.read(path)


def finite(value: Any) -> float | None:
    """A number as JSON can say it."""
    return float(value) if np.isfinite(value) else None


def some(names: Iterable[str]) -> str:
    """A few names: 'a', 'b' and 7 more."""
    listed = list(names)
    more = f" and {len(listed) - NAMED:,} more" if len(listed) > NAMED else ""
    return (", ".join(map(quoted, listed[:NAMED])) or "no layer") + more
