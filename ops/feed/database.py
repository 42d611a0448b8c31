"""Records of databases by number: LMDB folders through an index of their pages, LevelDB folders through their keys.

Nothing but the mapped file is open for an LMDB, so it may be read by threads and forked processes alike.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ops import image
from ops.feed.source import Block, Example, text
from ops.inputs.damage import told
from ops.inputs.database import LevelDB as LevelDBFolder
from ops.inputs.magic import starts_as_image
from ops.records import datum
from ops.records.lmdb_pages import BIG, DUP, HEAD, LEAF, OVERFLOW, SUB, Pages

TAILS = 1 << 16  # different record ends that are remembered
LONGEST_TAIL = 64  # bytes behind the pixels of a record that is read with others
UNKNOWN = 1 << 64  # no label
CHANGES = 16  # of how records begin: beyond, the data set has no habit worth remembering


class Habit(NamedTuple):
    """How the raw records of a data set begin, and the label behind each of the ends seen so far."""

    head: bytes
    shape: tuple[int, int, int]
    size: int  # bytes of pixels
    labels: dict[bytes, int]


class Parser:
    """Records to examples. Raw records of one data set begin alike: the beginning of one is compared, not parsed."""

    def __init__(
        self, *, color: bool = False, gray: bool = False, all_formats: bool = False, max_pixels: int = image.MAX_PIXELS
    ):
        if color and gray:
            raise ValueError("transform_param has force_color and force_gray; write one of them")
        self.color, self.forced = color, color or gray
        self.options: dict[str, Any] = {"all_formats": all_formats, "max_pixels": max_pixels}
        self.habit = Habit(b"", (0, 0, 0), 0, {})
        self.changes = 0  # of the habit

    def example(self, view: memoryview, start: int, stop: int) -> Example:
        """The record in view[start:stop]."""
        head, shape, size, labels = self.habit
        begin = start + len(head)
        if size and begin + size <= stop and view[start:begin] == head:
            tail = bytes(view[begin + size : stop])
            label = labels[tail] if tail in labels else self._tail(tail, labels)
            if label is not None:
                return Example(np.ndarray(shape, np.uint8, view, begin), True, label, view[start:stop])
        return self._parsed(view[start:stop])

    def block(self, data: NDArray[np.uint8], where: Sequence[tuple[int, int]]) -> Block | None:
        """The records at these places of a file, where all of them begin as usual and end as others before."""
        head, shape, size, labels = self.habit
        starts, stops = np.fromiter(chain.from_iterable(where), np.int64, 2 * len(where)).reshape(-1, 2).T
        lengths, first, last = stops - starts, len(head), len(head) + size
        width = int(lengths.max())
        if not size or int(lengths.min()) < last or width > last + LONGEST_TAIL:
            return None
        furthest = data.size - width
        rows = np.lib.stride_tricks.sliding_window_view(data, width)[np.minimum(starts, furthest)]
        for place in np.flatnonzero(starts > furthest).tolist():  # a short record at the file's very end
            rows[place, : lengths[place]] = data[starts[place] : stops[place]]
        if (rows[:, :first] != np.frombuffer(head, np.uint8)).any():
            return None
        flat, begins = rows.tobytes(), range(0, rows.size, width)
        stored = [flat[begin : begin + length] for begin, length in zip(begins, lengths.tolist(), strict=True)]
        found = [labels.get(record[last:], UNKNOWN) for record in stored]
        if UNKNOWN in found:
            return None
        return Block(rows[:, first:last].reshape(-1, *shape), found, stored)

    def _tail(self, tail: bytes, labels: dict[bytes, int]) -> int | None:
        """The label of an end that was not seen before; None where it says more than a label."""
        end = datum.parse(tail)
        if end.shape != (0, 0, 0) or len(end.data) or end.float_data is not None or end.encoded:
            return None
        if len(labels) < TAILS:
            labels[tail] = end.label
        return end.label

    def label(self, record: memoryview) -> int:
        """The label of a record alone."""
        head, _, size, labels = self.habit
        if size and record[: len(head)] == head:
            tail = bytes(record[len(head) + size :])
            label = labels[tail] if tail in labels else self._tail(tail, labels)
            if label is not None:
                return label
        return 0 if starts_as_image(bytes(record[:16])) else datum.parse(record).label

    def _parsed(self, record: memoryview) -> Example:
        if starts_as_image(bytes(record[:16])):
            return Example(self._decoded(bytes(record)), False, 0, record)
        parsed = datum.parse(record)
        if parsed.encoded:
            return Example(self._decoded(bytes(parsed.data)), False, parsed.label, record)
        pixels = parsed.pixels()
        if pixels.dtype == np.uint8 and self.changes < CHANGES:
            self._learn(record, parsed)
        return Example(pixels, True, parsed.label, record)

    def _decoded(self, encoded: bytes) -> NDArray[np.uint8]:
        if self.forced:
            return image.decode(encoded, color=self.color, **self.options)
        return image.decode_natural(encoded, **self.options)

    def _learn(self, record: memoryview, parsed: datum.Datum) -> None:
        """Remember how this record begins and ends, where everything but the label stands before the pixels."""
        begin = _address(parsed.data) - _address(record)
        stop = begin + len(parsed.data)
        before, labels = datum.parse(record[:stop]), dict[bytes, int]()
        if before.label or before.encoded or before.shape != parsed.shape or before.float_data is not None:
            return
        if self._tail(bytes(record[stop:]), labels) is not None:
            self.habit = Habit(bytes(record[:begin]), parsed.shape, len(parsed.data), labels)
            self.changes += 1


def _address(data: memoryview | bytes) -> int:
    place: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    return place


class LMDB:
    """Records of one LMDB folder by number, in the order of the keys.

    Leaf pages are counted once, when it is opened; then a record is found by arithmetic, for a whole batch at once.
    Every offset is checked as in records/lmdb_pages.py.
    """

    def __init__(self, folder: Path, parser: Parser):
        self.folder, self.parser = folder, parser
        self.pages = Pages(folder)
        self.view = self.pages.view
        self.data = np.frombuffer(self.pages.map, np.uint8)
        self.psize = self.pages.size
        self.leaves = self._leaves()
        self.firsts = np.cumsum(np.concatenate([[0], self._counts(self.leaves, LEAF)]))
        if int(self.firsts[-1]) != len(self.pages):
            raise self._damaged(f"{self.firsts[-1]:,} records where its head says {len(self.pages):,}")

    def _damaged(self, what: str) -> ValueError:
        return ValueError(f"{self.pages.path}: damaged LMDB: {what}")

    def _number(self, places: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        """Little-endian numbers of `size` bytes at places of the file."""
        if places.size and not 0 <= int(places.min()) <= int(places.max()) <= self.data.size - size:
            raise self._damaged("a page lies behind the end")
        out = self.data[places].astype(np.int64)
        for byte in range(1, size):
            out |= self.data[places + byte].astype(np.int64) << (8 * byte)
        return out

    def _counts(self, pages: NDArray[np.int64], kind: int) -> NDArray[np.int64]:
        """How many nodes each page has."""
        starts = pages * self.psize
        flags, lower = self._number(starts + 10, 2), self._number(starts + 12, 2)
        if ((flags & kind) == 0).any() or (lower < HEAD).any() or (lower > self.psize).any():
            raise self._damaged("a page is not of its kind")
        return (lower - HEAD) // 2

    def _leaves(self) -> NDArray[np.int64]:
        """The numbers of the leaf pages, in the order of the keys; level by level."""
        pages = np.array([self.pages.root] if self.pages.count else [], np.int64)
        for _ in range(self.pages.depth - 1):
            counts = self._counts(pages, 1)
            total = int(counts.sum())
            if total * self.psize > self.data.size:
                raise self._damaged("pages refer to one another in a circle")
            number = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
            pages = self._children(np.repeat(pages, counts), number)
        return pages

    def _children(self, pages: NDArray[np.int64], number: NDArray[np.int64]) -> NDArray[np.int64]:
        node = self._nodes(pages, number)
        return self._number(node, 2) | self._number(node + 2, 2) << 16 | self._number(node + 4, 2) << 32

    def _nodes(self, pages: NDArray[np.int64], number: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in the file node `number` of each page starts."""
        starts = pages * self.psize
        inside = self._number(starts + HEAD + 2 * number, 2)
        if inside.size and not HEAD <= int(inside.min()) <= int(inside.max()) <= self.psize - 8:
            raise self._damaged("a node lies outside its page")
        return starts + inside

    def _node_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        leaf = np.searchsorted(self.firsts, indices, "right") - 1
        return self._nodes(self.leaves[leaf], indices - self.firsts[leaf])

    def __len__(self) -> int:
        return len(self.pages)

    def locate(self, indices: NDArray[np.int64]) -> Sequence[tuple[int, int]]:
        """(start, stop) of each record in the file."""
        node = self._node_of(indices)
        size = self._number(node, 2) | self._number(node + 2, 2) << 16
        flags = self._number(node + 4, 2)
        start = node + 8 + self._number(node + 6, 2)
        if (flags & (SUB | DUP)).any():
            raise ValueError(f"{self.pages.path}: holds named databases or several values for one key")
        big = np.flatnonzero(flags & BIG)
        if big.size:
            begin = self._number(start[big], 8) * self.psize
            if not (self._number(begin + 10, 2) & OVERFLOW).all():
                raise self._damaged("a large value is not where it should be")
            start[big] = begin + HEAD
        stop = start + size
        if stop.size and int(stop.max()) > self.data.size:
            raise self._damaged("a value lies behind the end")
        return list(zip(start.tolist(), stop.tolist(), strict=True))

    def read(self, where: tuple[int, int]) -> Example:
        return self.parser.example(self.view, *where)

    def block(self, where: Sequence[tuple[int, int]]) -> Block | None:
        return self.parser.block(self.data, where)

    def name(self, index: int) -> str:
        node = int(self._node_of(np.array([index]))[0])
        size = int(self._number(np.array([node + 6]), 2)[0])
        return f"{self.folder}: record {text(bytes(self.view[node + 8 : node + 8 + size]))}"

    def labels(self) -> NDArray[np.int64]:
        found = np.empty(len(self), np.int64)
        for first in range(0, len(self), 4096):
            part = np.arange(first, min(first + 4096, len(self)))
            found[part] = [self.parser.label(self.view[start:stop]) for start, stop in self.locate(part)]
        return found

    def close(self) -> None:
        """Let go of the file; it is closed when nobody holds a view of it any more."""
        del self.data, self.view, self.pages


class LevelDB:
    """Records of one LevelDB folder by number: its keys are read once, when it is opened."""

    def __init__(self, folder: Path, parser: Parser):
        self.folder, self.parser = folder, parser
        self.opened, self.process = LevelDBFolder(folder), os.getpid()
        with told(folder, "LevelDB", *self.opened.errors):
            keys = list(self.opened.db.iterator(include_value=False))
        self.keys = b"".join(keys)
        self.ends = np.cumsum([len(key) for key in keys], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    def _key(self, index: int) -> bytes:
        return self.keys[int(self.ends[index - 1]) if index else 0 : int(self.ends[index])]

    def _value(self, index: int) -> memoryview:
        with self.opened.lock:
            if self.process != os.getpid():  # a forked process opens it again; the folder of links is its parent's
                self.opened._remove.detach()
                self.opened, self.process = LevelDBFolder(self.folder), os.getpid()
        try:
            value = self.opened.db.get(self._key(index), verify_checksums=True)
        except self.opened.errors as error:
            raise ValueError(" ".join(str(error).split())) from error
        if value is None:
            raise ValueError("is there no more")
        return memoryview(value)

    def locate(self, indices: NDArray[np.int64]) -> Sequence[int]:
        return indices.tolist()

    def read(self, where: int) -> Example:
        value = self._value(where)
        return self.parser.example(value, 0, len(value))

    def name(self, index: int) -> str:
        return f"{self.folder}: record {text(self._key(index))}"

    def labels(self) -> NDArray[np.int64]:
        return np.array([self.parser.label(self._value(index)) for index in range(len(self))], np.int64)

    def close(self) -> None:
        with contextlib.suppress(AttributeError):
            self.opened.db.close()
