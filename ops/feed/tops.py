"""What makes the tops of a data layer: the shapes of a whole batch, and the rows of any part of it, for any position.

A family of layers is one class: records through transform_param (record_tops), rows as they are (row_tops), windows of
images (window_tops), fillers (dummy_tops). None of them keeps a state: what a row holds follows from its position.
"""

from __future__ import annotations

import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from ops.feed.options import FeedOptions
from ops.names import quoted
from ops.proto.caffe_pb2 import LayerParameter

Shape = tuple[int, ...]
Arrays = dict[str, NDArray[Any]]
WORD = 1 << 64
ALIGNED = 64  # bytes
LABEL = 0xD6E8FEB86659FD93  # an odd number: different labels, different words


class StoppedError(Exception):
    """The feed was closed, or sent elsewhere, while this part was being filled."""


@dataclass(frozen=True)
class Asked:
    """What a feed is opened for."""

    spec: LayerParameter
    phase: str
    folder: Path | None
    seed: int
    options: FeedOptions
    on_device: bool
    digest: bool

    def find(self, source: str, *others: Path) -> Path:
        """Where a file or folder is: from the working folder as Caffe, else in `others`, else beside the prototxt."""
        if not source:
            raise ValueError("names no source")
        folders = [Path.cwd(), *others, *([self.folder] if self.folder is not None else [])]
        places = list(dict.fromkeys(folder.absolute() / source for folder in folders))
        for place in places:
            if place.exists():
                return Path(source) if place == places[0] else place
        raise ValueError(f"there is no {quoted(source)}: looked for {' and '.join(map(str, places))}")


@dataclass
class Plan:
    """Rows first..last-1 of the whole batch that begins at a position, and what was worked out for all of them.

    Or the same rows of several batches, one after the other: `shift` is then where each row's batch begins, from there.
    """

    start: int
    places: NDArray[np.int64]  # in their batch
    more: dict[str, Any] = field(default_factory=dict)
    shift: Any = 0

    @property
    def positions(self) -> NDArray[np.int64]:
        positions: NDArray[np.int64] = self.places + (self.start + self.shift)
        return positions


class Tops(ABC):
    """The tops of one data layer."""

    asked: Asked
    shapes: dict[str, Shape]  # of the whole batch
    batch: int
    records: int | None = None  # in an epoch; None where the stream has none
    loose = False  # each batch has the shape of its own first record
    heavy = False  # a record takes long: worth every core
    together = 0  # rows that are best planned and filled at once, of several batches where these are smaller

    def __init__(self, asked: Asked):
        self.asked, self.tops = asked, list(asked.spec.top)
        self.bad: dict[str, str] = {}  # records that others took the place of, and why

    def buffers(self, rows: int) -> Arrays:
        """Arrays for that many rows of a batch, by top; more of them where `finish` needs them."""
        return {top: room((rows, *shape[1:])) for top, shape in self.shapes.items()}

    def begins(self, position: int) -> None:  # noqa: B027
        """The batches from a position on are planned next, one after the other."""

    @abstractmethod
    def plan(self, start: int, first: int, last: int) -> Plan: ...

    def plan_several(self, start: int, first: int, last: int, batches: int) -> Plan:
        """The plan of so many batches in a row; where `together` says so."""
        raise AssertionError("the batches of this layer are planned one by one")

    @abstractmethod
    def fill(self, plan: Plan, begin: int, end: int, out: Arrays, stopped: Callable[[], bool]) -> int:
        """Rows begin..end-1 of the plan into the same rows of `out`; their digest. Raises StoppedError if asked to."""

    def fill_together(self, plan: Plan, out: Arrays, batches: int) -> list[int] | None:
        """All rows of a plan of several batches at once; the digest of each batch. None: `fill` has to look closer."""
        return None

    def fill_loose(self, plan: Plan, out: Arrays, stopped: Callable[[], bool]) -> tuple[Arrays, int]:
        """All rows of the plan, in new arrays where those in `out` have another shape."""
        raise AssertionError("this layer's records have one shape")

    def take(self, rows: Arrays, out: Arrays) -> None:
        """Rows that were made elsewhere, as for a device, into as many rows of `out`."""
        for name, array in rows.items():
            np.copyto(out[name], array)

    def finish(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tops from the buffers, where the batch is used."""
        return dict(tensors)

    @abstractmethod
    def describe(self, position: int, place: int) -> str:
        """The name of the record at a position, place `place` of its batch."""

    def close(self) -> None:  # noqa: B027
        """Let go of the files."""


def room(shape: Shape, dtype: Any = np.float32) -> NDArray[Any]:
    """An array for a batch, as numpy.empty: at a multiple of 64 bytes, where torch has its own memory.

    It is numpy's memory, which asks the system for large pages: batches too large for a cache are written faster.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNED, np.uint8)
    begin = -memory.ctypes.data % ALIGNED
    return memory[begin : begin + size].view(dtype).reshape(shape)


def record_digest(place: int, stored: Any, *choices: float) -> int:
    """64 bits of a record: its stored bytes, its place in the whole batch, and what was chosen for it."""
    packed = struct.pack(f"<{len(choices)}d", *choices)
    seed = xxhash.xxh3_64_intdigest(packed, seed=place)
    return int(xxhash.xxh3_64_intdigest(stored, seed=seed))


def label_word(label: Any) -> int:
    """A label, a number or several, as a word that a digest begins with."""
    if type(label) is int:
        return label * LABEL % WORD
    return int(xxhash.xxh3_64_intdigest(np.asarray(label, np.float32).tobytes()))


def label_words(labels: NDArray[np.int64]) -> NDArray[np.uint64]:
    """`label_word` of many labels that are numbers."""
    return labels.astype(np.uint64) * np.uint64(LABEL)


def batch_size(written: int, options: FeedOptions, message: str) -> int:
    """The whole batch: as the options say, else as the layer does."""
    size = options.batch or written
    if size < 1:
        raise ValueError(f"{message} has batch_size {size}, expected 1 or more")
    return size
