"""What a source of records is: random access by number, one picture and one label a record."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


class Example(NamedTuple):
    """A record as it is stored, before anything random happens to it."""

    pixels: NDArray[Any]  # uint8 or float32: (C, H, W), or (H, W, C) where `planar` is false
    planar: bool
    label: Any  # a number, or (K,) float32
    stored: Any  # the bytes that a digest is taken of


class Source(Protocol):
    """Records 0..len-1. Reading is safe for threads, and for processes that were forked before the first reading."""

    def __len__(self) -> int: ...

    def locate(self, indices: NDArray[np.int64]) -> Sequence[Any]:
        """Whatever `read` needs to find each of these records; worked out for many at once."""
        ...

    def read(self, where: Any) -> Example:
        """One record. ValueError or OSError, without its name, where it is bad."""
        ...

    def name(self, index: int) -> str:
        """What people call a record: its database and key, its list and line."""
        ...

    def labels(self) -> NDArray[Any]:
        """The label of every record; reads them all where they stand nowhere else."""
        ...

    def close(self) -> None: ...


class Block(NamedTuple):
    """Several raw records of one shape."""

    pixels: NDArray[np.uint8]  # (n, C, H, W)
    labels: list[int]
    stored: list[Any]  # as Example's


@runtime_checkable
class Blocks(Protocol):
    """A source that can read many raw records with one look."""

    def block(self, where: Sequence[Any]) -> Block | None:
        """The records there; None where one of them wants `read`'s closer look. Raises nothing for what is bad."""
        ...


def text(key: bytes) -> str:
    """A key or path for people, on one line."""
    shown = os.fsdecode(key)
    return shown if shown.isprintable() else ascii(shown)[1:-1]


class Joined:
    """Several sources in a row."""

    def __init__(self, parts: Sequence[Source]):
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def locate(self, indices: NDArray[np.int64]) -> Sequence[Any]:
        out: list[Any] = [None] * len(indices)
        part = np.searchsorted(self.ends, indices, "right")
        for number in np.unique(part).tolist():
            here = np.flatnonzero(part == number)
            source = self.parts[number]
            inside = indices[here] - (int(self.ends[number]) - len(source))
            for place, where in zip(here.tolist(), source.locate(inside), strict=True):
                out[place] = (source, where)
        return out

    def read(self, where: Any) -> Example:
        source, inside = where
        example: Example = source.read(inside)
        return example

    def block(self, where: Sequence[Any]) -> Block | None:
        groups: dict[int, list[int]] = {}  # the places of each source
        for place, (source, _) in enumerate(where):
            groups.setdefault(id(source), []).append(place)
        blocks: list[Block] = []
        for places in groups.values():
            source = where[places[0]][0]
            block = source.block([where[place][1] for place in places]) if isinstance(source, Blocks) else None
            if block is None:
                return None
            blocks.append(block)
        if len({block.pixels.shape[1:] for block in blocks}) > 1:
            return None
        order = np.argsort([*chain.from_iterable(groups.values())]).tolist()
        labels = [*chain.from_iterable(block.labels for block in blocks)]
        stored = [*chain.from_iterable(block.stored for block in blocks)]
        pixels = np.concatenate([block.pixels for block in blocks])
        return Block(pixels[order], [labels[place] for place in order], [stored[place] for place in order])

    def name(self, index: int) -> str:
        number = int(np.searchsorted(self.ends, index, "right"))
        return self.parts[number].name(index - int(self.ends[number]) + len(self.parts[number]))

    def labels(self) -> NDArray[Any]:
        return np.concatenate([part.labels() for part in self.parts])

    def close(self) -> None:
        for part in self.parts:
            part.close()
