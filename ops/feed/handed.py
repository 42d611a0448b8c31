"""Batches that are read elsewhere: cut there, made into numbers here. The same batches, bit for bit.

What is handed over is what a CUDA device is sent: crops in the records' own type (mostly uint8), where each begins and
whether it is mirrored. Who carries it, and from where, is a Fetch's business.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from ops.feed.families import FAMILIES
from ops.feed.record_tops import RecordTops
from ops.feed.tops import Arrays, Asked, Plan, Tops
from ops.feed.transform import OddShapeError
from ops.names import pick

HERE = ("DummyData", "Input", "MemoryData")  # nothing to read: their rows are made up, or in memory already


class Piece(NamedTuple):
    """Rows first..last-1 of the whole batch that begins at a position."""

    start: int
    first: int
    last: int


@dataclass(frozen=True)
class Handed:
    """A piece: its rows by buffer, or what was wrong with one of them."""

    arrays: Arrays = field(default_factory=dict)
    digest: int = 0
    bad: Mapping[str, str] = field(default_factory=dict)  # records that others took the place of, and why
    moved: Mapping[int, int] = field(default_factory=dict)  # their positions -> the records that stand there
    error: Exception | None = None  # a ValueError or an OSError

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


class Asking(NamedTuple):
    """A piece that is under way; `wait` for it until `stopped` says True (then StoppedError)."""

    piece: Piece
    wait: Callable[[Callable[[], bool]], Handed]


class Fetch(Protocol):
    """Brings the pieces of one worker's part of each batch."""

    def begins(self, position: int) -> None:
        """The batches from a position on are asked for next, one after the other."""
        ...

    def ask(self, start: int) -> Sequence[Asking]:
        """The pieces of the batch that begins there, in order."""
        ...

    def close(self) -> None: ...


class Maker:
    """Makes pieces; lives where the CPUs are. ValueError or OSError where the layer's source cannot be opened."""

    def __init__(self, asked: Asked):
        self.one_at_a_time = threading.Lock()
        self.tops = pick(FAMILIES, asked.spec.type, "type of data layer")(replace(asked, on_device=True))
        if isinstance(self.tops, RecordTops) and asked.options.max_bad:
            self.tops.most_bad = len(self.tops.source)  # whether they are too many is the worker's to say

    def make(self, piece: Piece) -> Handed:
        with self.one_at_a_time:  # what stands in for bad records is noted on the tops
            return self._made(piece)

    def _made(self, piece: Piece) -> Handed:
        tops = self.tops
        records = tops if isinstance(tops, RecordTops) else None
        tops.bad.clear()
        if records is not None:
            records.moved.clear()
        try:
            arrays, digest = self._filled(piece)
        except OSError as error:
            return Handed(error=OSError(error.errno, error.strerror, error.filename) if error.errno else error)
        except ValueError as error:
            return Handed(error=ValueError(str(error)))
        return Handed(arrays, digest, dict(tops.bad), dict(records.moved) if records is not None else {})

    def _filled(self, piece: Piece) -> tuple[Arrays, int]:
        rows = piece.last - piece.first
        plan, arrays = self.tops.plan(*piece), self.tops.buffers(rows)
        if not self.tops.loose:
            try:
                return arrays, self.tops.fill(plan, 0, rows, arrays, never)
            except OddShapeError:
                if not isinstance(self.tops, RecordTops):
                    raise
        return self.tops.fill_loose(plan, arrays, never)

    def close(self) -> None:
        self.tops.close()


def never() -> bool:
    return False


class HandedTops(Tops):
    """The tops of a layer whose rows are made elsewhere; `tops` are the same, opened here for their shapes."""

    def __init__(self, tops: Tops, fetch: Fetch):
        super().__init__(tops.asked)
        self.inner, self.fetch = tops, fetch
        self.shapes, self.batch, self.records, self.bad = tops.shapes, tops.batch, tops.records, tops.bad
        self.loose = tops.loose

    def begins(self, position: int) -> None:
        self.fetch.begins(position)

    def buffers(self, rows: int) -> Arrays:
        return self.inner.buffers(rows)

    def plan(self, start: int, first: int, last: int) -> Plan:
        return Plan(start, np.arange(first, last, dtype=np.int64), {"asked": self.fetch.ask(start)})

    def fill(self, plan: Plan, begin: int, end: int, out: Arrays, stopped: Callable[[], bool]) -> int:
        total, offset = 0, int(plan.places[0])
        for piece, wait in plan.more["asked"]:
            first, last = piece.first - offset, piece.last - offset
            low, high = max(begin, first), min(end, last)
            if low >= high:
                continue
            handed = self._accepted(wait(stopped))
            for name in out.keys() & handed.arrays.keys():
                if (found := handed.arrays[name].shape[1:]) != out[name].shape[1:]:
                    told = self.inner.describe(piece.start + piece.first, piece.first)
                    raise OddShapeError(told, found, out[name].shape[1:])
            rows = {name: array[low - first : high - first] for name, array in handed.arrays.items()}
            self.inner.take(rows, {name: array[low:high] for name, array in out.items()})
            total += handed.digest if low == first else 0
        return total

    def _accepted(self, handed: Handed) -> Handed:
        """A piece that is as it should be; its errors are raised, and its bad records counted."""
        if handed.error is not None:
            raise handed.error
        if isinstance(self.inner, RecordTops):
            self.inner.moved.update(handed.moved)
            for name, reason in handed.bad.items():
                self.inner.count_bad(name, reason)
        return handed

    def fill_loose(self, plan: Plan, out: Arrays, stopped: Callable[[], bool]) -> tuple[Arrays, int]:
        first = self._accepted(plan.more["asked"][0].wait(stopped)).arrays
        data = self.tops[0]
        if out[data].shape[1:] != first[data].shape[1:]:
            out = {**out, data: np.empty((len(plan.places), *first[data].shape[1:]), out[data].dtype)}
        return out, self.fill(plan, 0, len(plan.places), out, stopped)

    def finish(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.inner.finish(tensors)

    def describe(self, position: int, place: int) -> str:
        return self.inner.describe(position, place)

    def close(self) -> None:
        self.fetch.close()
        self.inner.close()


Elsewhere = Callable[[Asked, Tops, tuple[int, int]], Fetch]
"""From what a layer is opened for, its tops, and this worker's rows first, last of each batch, to who brings them."""
