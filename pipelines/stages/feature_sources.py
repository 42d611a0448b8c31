"""What features are taken of, record by record: the pictures of a list, or the records of a database.

A source that feeds may read a record that is bad, or lies behind the end: it gives a blank one then and takes a note of
it, so that its row is left out and listed, and nothing else takes its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ops.feed import database
from ops.feed.source import Example
from ops.feed.transform import Choices, Transform
from ops.inputs import recognize
from ops.recipe import Line, Recipe, reason
from ops.records.image_list import ImageList
from pipelines.stages.feature_readers import Listed, Reader, Records, Repeated, pixels_of
from pipelines.stages.plan import Plan

BAD = (ValueError, OSError, cv2.error)
LOOKED_AT = 1000  # records among which the first good one must be
NO_CHOICES = Choices(None, None, None)


class Note(NamedTuple):
    """What was found out about a record when it was read."""

    label: Any
    bad: str | None = None
    warning: str | None = None


# -- what a feed reads from --------------------------------------------------------------------------------------------


class Tolerant:
    """A Source for RecordTops over a Reader: bad records become blank ones with a note.

    `prepare` makes float planes of a picture's pixels; without it the feed's Transform does. Record -1 is blank.
    """

    def __init__(self, reader: Reader, count: int, transform: Transform, prepare: Callable[[NDArray[Any]], Any] | None):
        self.reader, self.count, self.transform, self.prepare = reader, count, transform, prepare
        self.notes: dict[int, Note] = {}
        self.like: Example | None = None
        self.like = self._first_good()

    def _first_good(self) -> Example:
        """What the records look like; ValueError where none can be read."""
        first: Note | None = None
        for index in range(min(self.count, LOOKED_AT)):
            example = self._read(index, self.reader.locate(np.array([index]))[0])
            note = self.notes.pop(index)
            if note.bad is None:
                assert example is not None
                return example._replace(pixels=example.pixels.copy(), stored=None)
            first = first or note
        looked = min(self.count, LOOKED_AT)
        assert first is not None
        told = f"none of {'the' if looked == self.count else 'its first'} {looked:,} images can be read"
        raise ValueError(f"{told} (first: {os.fsdecode(self.reader.names(0, 1)[0])}: {first.bad})")

    def _read(self, index: int, where: Any) -> Example | None:
        """A record that fits in with the others, or None and a note why not."""
        try:
            example, warning = self.reader.read(where)
            if self.prepare is not None:
                example = Example(self.prepare(pixels_of(example)), True, example.label, None)
            self._check(example)
        except BAD as error:
            self.notes[index] = Note(0, bad=reason(error))
            return None
        self.notes[index] = Note(example.label, warning=warning)
        return example

    def _check(self, example: Example) -> None:
        shape = example.pixels.shape if example.planar else (example.pixels.shape[2], *example.pixels.shape[:2])
        self.transform.corner(shape, NO_CHOICES, 0)
        if self.like is None:
            return
        like = self.like.pixels.shape[0 if self.like.planar else 2]
        if shape[0] != like:
            raise ValueError(f"has {shape[0]} channels where the first image has {like}")
        if example.pixels.dtype != self.like.pixels.dtype:
            raise ValueError(f"holds {example.pixels.dtype} values where the first image has {self.like.pixels.dtype}")

    def __len__(self) -> int:
        return self.count

    def locate(self, indices: NDArray[np.int64]) -> Sequence[Any]:
        out: list[Any] = [None] * len(indices)
        here = np.flatnonzero(indices >= 0)
        inside = indices[here]
        for place, index, where in zip(here.tolist(), inside.tolist(), self.reader.locate(inside), strict=True):
            out[place] = (index, where)
        return out

    def read(self, where: Any) -> Example:
        assert self.like is not None
        example = None if where is None else self._read(*where)
        return self.like if example is None else example

    def take_notes(self, start: int, stop: int) -> list[Note]:
        """What was noted of records start..stop-1, which were read before."""
        return [self.notes.pop(index) for index in range(start, stop)]

    def name(self, index: int) -> str:
        return os.fsdecode(self.reader.names(index, index + 1)[0]) if index >= 0 else "no record"

    def labels(self) -> NDArray[Any]:
        raise AssertionError("features are taken in the input's order")

    def close(self) -> None:
        self.reader.close()


class InParts:
    """Position -> record, where every part begins at a position of its own: `padded` apart, a multiple of the batch.

    So a batch never holds records of two parts. Places behind the end of a part are record -1, which is blank; `spare`
    more batches of them keep a feed from reading ahead into a part that is somebody else's.
    """

    def __init__(self, cuts: Sequence[int], batch: int, spare: int = 0):
        self.cuts = np.array(cuts, np.int64)
        longest = int(np.diff(self.cuts).max())
        self.padded = (-(-longest // batch) + spare) * batch

    def records(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        parts, places = np.divmod(positions, self.padded)
        inside = parts < len(self.cuts) - 1
        parts = np.where(inside, parts, 0)
        found = self.cuts[parts] + places
        return np.where(inside & (found < self.cuts[parts + 1]), found, -1)


class ByRecord:
    """A Transform whose chance (a mirror in TEST) goes with the record, not with its position among the parts."""

    def __init__(self, transform: Transform, order: InParts):
        self.transform, self.order = transform, order

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transform, name)

    def choose(self, seed: int, name: str, positions: NDArray[np.int64]) -> Choices:
        return self.transform.choose(seed, name, np.maximum(self.order.records(positions), 0))


# -- what an input is, in words that travel to the workers -------------------------------------------------------------


@dataclass(frozen=True)
class ListedInput:
    """A list whose plan every worker reads."""

    plan: Plan
    recipe: Recipe
    column = "path"

    def open(self) -> Reader:
        return Listed(self.plan.count, self.plan.lines, self.recipe)


@dataclass(frozen=True, eq=False)
class MemoryInput:
    """`count` lines of a list that is in memory, which begins anew behind its end."""

    listed: ImageList
    count: int
    recipe: Recipe
    column = "path"

    def open(self) -> Reader:
        return Listed(self.count, self.lines, self.recipe)

    def lines(self, start: int, stop: int) -> list[Line]:
        listed, places = self.listed, np.arange(start, stop)
        lines = places % len(self.listed)
        labels = listed.labels[lines]
        values = labels.tolist() if labels.ndim == 1 else list(labels)
        return [
            Line(place, path, value, 1, line + 1, listed.bad.get(line))
            for place, line, path, value in zip(
                places.tolist(), lines.tolist(), listed.paths(lines), values, strict=True
            )
        ]


@dataclass(frozen=True)
class RecordInput:
    """A database or a data set."""

    found: recognize.Found
    color: bool = False
    gray: bool = False
    resize: tuple[int, int] | None = None
    blob: str = "data"  # the net's input, for HDF5
    max_pixels: int = 100_000_000
    repeated: int | None = None  # records in all, again from the first one behind the last
    column = "key"

    def open(self) -> Reader:
        parser = database.Parser(color=self.color, gray=self.gray, max_pixels=self.max_pixels)
        found = Records(self.found, parser, self.resize, self.blob)
        return found if self.repeated is None else Repeated(found, self.repeated)


Input = ListedInput | MemoryInput | RecordInput
