"""Pictures that the page offers to try: a few that the net was tested with; where there are none, our own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

import pipelines
from ops import image, image_header
from ops import net as nets
from ops.proto.caffe_pb2 import LayerParameter
from ops.records import datum, lmdb
from ops.records.image_list import ImageList
from ops.training.nets import locate
from pipelines.stages.dataset import open_dataset, pixels
from pipelines.stages.feature_model import Model

Floats = NDArray[np.floating[Any]]
Candidate = tuple[int, Callable[[], bytes]]  # a label, and what makes the file; nothing where it is no picture
OWN = Path(pipelines.__path__[0]) / "page" / "samples"
MOST = 10
LOOKED_AT, CANDIDATES = 20_000, 100  # records that are passed over, and those among them that may be taken
SMALL = 64  # pixels of a side up to which a picture is kept to the bit
HEAVY, SIDE = 60_000, 320  # bytes of a file that is made smaller, pixels of its longer side then


class Sample(NamedTuple):
    """A picture's file; `label` is the class that it has, None where nobody knows."""

    name: str
    encoded: bytes
    label: int | None = None
    own: bool = False  # ours, and not of the net's data


def samples_of(model: Model) -> tuple[Sample, ...]:
    """At most MOST pictures, of as many classes as there are."""
    found = list(of_data(model))
    if found:
        return tuple(found)
    channels = (model.input_shape or tuple(model.facts.get("shape") or ()) or (3,))[0]
    return tuple(drawn_digits()) if channels == 1 else tuple(photographs())


# -- of the net's own data ---------------------------------------------------------------------------------------------


def of_data(model: Model) -> Iterator[Sample]:
    """Of the records or the list that its test net reads; none where that is not there any more."""
    try:
        layer, beside = tested(model)
        if layer.type == "Data":
            found = of_records(locate(layer.data_param.source, beside))
        elif layer.type == "ImageData":
            found = of_list(locate(layer.image_data_param.source, beside), layer.image_data_param.root_folder, beside)
        else:
            return
        chosen = islice(((label, made) for label, load in mixed(found) if (made := load())), MOST)
        for number, (label, encoded) in enumerate(sorted(chosen, key=lambda one: one[0]), 1):
            yield Sample(f"sample-{number}.{image_header.kind(encoded)}", encoded, label)
    except (OSError, ValueError):
        return


def tested(model: Model) -> tuple[LayerParameter, Path]:
    """The data layer of the run's test net, else the net's own, and the folder that its paths count from."""
    if model.run is not None and model.facts.get("test_net"):
        _, spec = nets.read(model.run / model.facts["test_net"])
        found = next((layer for layer in spec.layer if layer.type in ("Data", "ImageData")), None)
        if found is not None:
            return found, Path(model.facts.get("beside") or model.run)
    return model.layer, model.file.parent


def of_records(source: Path) -> Iterator[Candidate]:
    """Records of a data set of LMDBs, spread over its first shard."""
    data = open_dataset(source)
    if data.format != "lmdb":
        return
    count = min(data.counts[0], LOOKED_AT)
    with lmdb.Reader(data.shards[0]) as reader:
        for _, value in islice(reader.records(0, count), 0, None, max(1, count // CANDIDATES)):
            record = datum.parse(value)
            yield record.label, partial(file_of, record)


def file_of(record: datum.Datum) -> bytes:
    return fitting(bytes(record.data)) if record.encoded else written(pixels(record))


def of_list(file: Path, root: str, beside: Path) -> Iterator[Candidate]:
    """Files of an image list, spread over it."""
    listed = ImageList.read(file)
    for place in range(0, len(listed), max(1, len(listed) // CANDIDATES)):
        name = f"{root}{listed.path(place).decode(errors='surrogateescape')}"
        yield int(listed.labels[place]), partial(read, name, beside)


def read(name: str, beside: Path) -> bytes:
    """A listed file; nothing where it is not there."""
    try:
        return fitting(locate(name, beside).read_bytes())
    except OSError:
        return b""


def mixed(found: Iterable[Candidate]) -> list[Candidate]:
    """The first of each class, then the second of each, and so on."""
    turns = Counter[int]()
    ranked = []
    for label, load in found:
        ranked.append((turns[label], label, load))
        turns[label] += 1
    return [(label, load) for _, label, load in sorted(ranked, key=lambda one: one[0])]


def written(planes: NDArray[Any]) -> bytes:
    """(C, H, W) of a raw record as a file; nothing where they are no picture."""
    if planes.dtype != np.uint8 or planes.shape[0] not in (1, 3):
        return b""
    shown = np.ascontiguousarray(planes.transpose(1, 2, 0))
    return image.encode(shown, "png" if max(shown.shape[:2]) <= SMALL else "jpg")


def fitting(encoded: bytes) -> bytes:
    """A file of at most HEAVY bytes, made smaller where it has to be; nothing where it is no picture."""
    if len(encoded) <= HEAVY:
        return encoded
    try:
        whole = image.decode(encoded)
    except image.BadImage:
        return b""
    factor = SIDE / max(whole.shape[:2])
    size = [max(1, round(side * min(1.0, factor))) for side in whole.shape[:2]]
    small = image.encode(image.resize(whole, *size), "jpg")
    return small if len(small) <= HEAVY else b""


# -- our own -----------------------------------------------------------------------------------------------------------


def photographs() -> Iterator[Sample]:
    """Those of the package."""
    for file in sorted(OWN.glob("*.jpg")):
        yield Sample(file.name, file.read_bytes(), own=True)


def drawn_digits() -> Iterator[Sample]:
    """White on black, 28 x 28, for a net of one channel."""
    for digit in (0, 1, 2, 3, 4, 5, 7, 8):
        large = np.zeros((112, 112, 1), np.uint8)
        (wide, high), _ = cv2.getTextSize(str(digit), cv2.FONT_HERSHEY_SIMPLEX, 3.2, 11)
        corner = ((112 - wide) // 2, (112 + high) // 2)
        cv2.putText(large, str(digit), corner, cv2.FONT_HERSHEY_SIMPLEX, 3.2, (255.0,), 11, cv2.LINE_AA)
        small = np.asarray(cv2.resize(large, (28, 28), interpolation=cv2.INTER_AREA), np.uint8)
        yield Sample(f"{digit}.png", image.encode(small[:, :, np.newaxis], "png"), own=True)
