"""A net and what feeds it, as a loop: parts of an input in, rows of features out. Knows no Ray: `classify` runs it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ops import net as nets
from ops.custom import Code
from ops.feed.feed import Feed
from ops.feed.options import FeedOptions
from ops.feed.record_tops import RecordTops
from ops.feed.tops import Asked
from ops.feed.transform import OddShapeError, Transform
from ops.forward import Pieces
from ops.net import Net
from ops.preprocess import Preprocessing
from ops.proto.caffe_pb2 import LayerParameter, NetParameter
from ops.records.parquet import Columns, Rows, flat
from pipelines.stages.feature_sources import ByRecord, InParts, Input, Note, Tolerant
from pipelines.stages.scoring import ten_crops

SIZES = "images of several sizes need one: give --images-dim H,W, or a crop_size in the net's transform_param"


@dataclass(frozen=True)
class Setup:
    """All that a worker must know; it travels."""

    name: str  # what errors call the net
    spec: bytes  # the definition, filtered for TEST, without blobs
    folder: Path | None  # of the prototxt
    shape: tuple[int, ...]  # of one image as the net takes it, (C, h, w)
    image: str  # the input that takes images
    labels: dict[str, tuple[int, ...]]  # inputs that take labels, and their shapes an image
    source: Input
    cuts: list[int]
    transform: Transform
    prepare: Preprocessing | None  # in place of the transform
    crop: tuple[int, int] | None  # ten crops of this size are cut of each picture; None: none, or `prepare` does
    blobs: tuple[str, ...]
    pool: str  # of spatial blobs: none, mean or max
    columns: Columns
    batch: int
    spare: int = 0  # batches that are read ahead, where the next part will be another worker's
    code: Code = field(default_factory=Code)  # layers from outside
    facts: dict[str, Any] = field(default_factory=dict)

    def net(self, batch: int) -> Net:
        """The net at a batch of that many images, still without memory."""
        spec = NetParameter.FromString(self.spec)
        inputs = {self.image: (batch, *self.shape), **{name: (batch, *one) for name, one in self.labels.items()}}
        state = NetParameter.FromString(self.spec).state
        return nets.assemble(self.name, spec, state, inputs=inputs, blobs=self.blobs, folder=self.folder)

    @property
    def crops(self) -> int:
        """How many go through the net for an image."""
        return 10 if self.crop is not None else self.prepare.crops if self.prepare is not None else 1


@dataclass
class Seconds:
    """Where the time of a loop went; `waited` for images, in the forward."""

    waited: float = 0.0
    forward: float = 0.0


def item_shape(shape: Sequence[int], pool: str) -> tuple[int, ...]:
    """What is kept of a blob an image, from the shape of the whole batch."""
    own = tuple(shape[1:])
    return own[:1] if pool != "none" and len(own) > 1 else flat(own)


class Extractor:
    """The loop over slices. `net` is the setup's, with its blobs."""

    def __init__(self, setup: Setup, net: Net, *, threads: int, device: torch.device):
        self.setup, self.net, self.device = setup, net, device
        self.order = InParts(setup.cuts, setup.batch, setup.spare)
        self.source = Tolerant(setup.source.open(), setup.cuts[-1], setup.transform, setup.prepare)
        spec = LayerParameter(name=setup.image, type="Data", top=[setup.image])
        asked = Asked(spec, "TEST", setup.folder, 0, FeedOptions(), device.type == "cuda", False)
        transform: Any = ByRecord(setup.transform, self.order)
        tops = RecordTops(asked, self.source, self.order, transform, setup.batch)
        where = f"layer {setup.image!r}"
        self.feed = Feed(tops, where, part=(0, 1), position=0, threads=threads, ahead=None, device=device)
        self.shape = tops.shapes[setup.image][1:]
        self.forward = Pieces(self._kept)
        self.needs_labels = [name for name in setup.labels if name in net.needed]
        self.seconds = Seconds()

    def rows(self, part: int) -> Iterator[tuple[Rows, list[Note]]]:
        """The rows of one part, a batch at a time, and a note on every record of the batch, bad ones too."""
        start, stop = self.setup.cuts[part], self.setup.cuts[part + 1]
        position = part * self.order.padded
        if self.feed.position != position:
            self.feed.seek(position)
            self.source.notes.clear()
        for at in range(start, stop, self.setup.batch):
            count = min(self.setup.batch, stop - at)
            data = self._next()[:count]
            notes = self.source.take_notes(at, at + count)
            yield self._rows(data, notes, at), notes

    def _next(self) -> Tensor:
        try:
            batch = next(self.feed)
        except ValueError as error:
            if isinstance(error.__cause__, OddShapeError):
                raise ValueError(f"{str(error).partition(': crop or resize')[0]}; {SIZES}") from error
            raise
        self.seconds.waited += batch.waited
        data = batch.blobs[self.setup.image]
        if tuple(data.shape[1:]) != self.shape:
            name = self.source.name(int(self.order.records(np.array([batch.start]))[0]))
            found, expected = ("x".join(map(str, shape)) for shape in (data.shape[1:], self.shape))
            raise ValueError(f"{name}: is {found} where the first image is {expected}; {SIZES}")
        return data

    def _rows(self, data: Tensor, notes: list[Note], at: int) -> Rows:
        """Features of a batch, without the rows of bad records."""
        good = [place for place, note in enumerate(notes) if note.bad is None]
        labels = np.array([notes[place].label for place in good]) if self.setup.columns.label is not None else None
        if len(good) < len(notes):
            data = data[torch.tensor(good, dtype=torch.long, device=data.device)]
        names = self._names(at, len(notes))
        began = time.perf_counter()
        blobs = self._features(data, labels) if good else self._nothing()
        self.seconds.forward += time.perf_counter() - began
        places = np.array(good, np.int64) + at
        return Rows(places, [names[place] for place in good], labels, blobs)

    def _names(self, at: int, count: int) -> list[str]:
        return [name.decode("utf-8", "backslashreplace") for name in self.source.reader.names(at, at + count)]

    def _nothing(self) -> dict[str, Any]:
        columns = self.setup.columns
        return {name: np.empty((0, *shape), columns.dtype) for name, shape in columns.blobs.items()}

    def _features(self, data: Tensor, labels: Any) -> dict[str, Any]:
        """An array of numpy a blob; as many images at a time as memory allows."""
        inputs = {self.setup.image: data}
        for name in self.needs_labels:
            inputs[name] = torch.as_tensor(np.asarray(labels, np.float32)).to(self.device)
        with torch.inference_mode():
            return {name: values.numpy() for name, values in self.forward(inputs).items()}

    def _kept(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is kept of each blob, in this machine's memory, of some images and their labels."""
        data = given[self.setup.image]
        count, crops = len(data), self.setup.crops
        if self.setup.crop is not None:
            data = torch.stack(ten_crops(data, *self.setup.crop), 1)
        inputs = {self.setup.image: data.reshape(count * crops, *self.setup.shape)}
        for name in self.needs_labels:
            repeated = given[name].repeat_interleave(crops, 0)
            inputs[name] = repeated.reshape(count * crops, *self.setup.labels[name])
        found = self.net(**inputs)
        return {name: self._stored(found[name], name, count, crops) for name in self.setup.blobs}

    def _stored(self, values: Tensor, name: str, count: int, crops: int) -> Tensor:
        """Pooled, averaged over crops, in the type that is stored."""
        if self.setup.pool != "none" and values.dim() > 2:
            spatial = values.flatten(2)
            values = spatial.mean(2) if self.setup.pool == "mean" else spatial.amax(2)
        values = values.reshape(count, crops, *self.setup.columns.blobs[name])
        kept = values.mean(1) if crops > 1 else values[:, 0]
        kind = torch.float16 if self.setup.columns.dtype == "float16" else torch.float32
        return kept.to("cpu", kind).contiguous()

    def close(self) -> None:
        self.feed.close()

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
