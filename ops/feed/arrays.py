"""Records that are in memory already: what MemoryData and Input are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.feed.source import Example
from ops.names import hint, quoted


def given(arrays: Mapping[str, Any], tops: Sequence[str]) -> list[NDArray[Any]]:
    """The array of each top: uint8 stays, everything else is float32; all of one length."""
    missing = [top for top in tops if top not in arrays]
    if missing:
        raise ValueError(
            f"nothing given for {quoted(missing[0])}{hint(missing[0], arrays)}: give FeedOptions(arrays={{...}})"
        )
    found = [np.asarray(arrays[top]) for top in tops]
    found = [array if array.dtype == np.uint8 else np.ascontiguousarray(array, np.float32) for array in found]
    lengths = {top: len(array) if array.ndim else 0 for top, array in zip(tops, found, strict=True)}
    if len(set(lengths.values())) > 1 or not min(lengths.values()):
        told = ", ".join(f"{top} {length:,}" for top, length in lengths.items())
        raise ValueError(f"arrays of {told} records; expected as many in each, and at least one")
    return found


class Pixels:
    """(N, C, H, W) uint8 pictures and their labels as a source of records."""

    def __init__(self, data: NDArray[np.uint8], label: NDArray[Any]):
        if data.ndim != 4:
            raise ValueError(f"pictures of {data.ndim} axes; expected (N, C, H, W)")
        self.data, self.label = data, label.reshape(len(label), -1)

    def __len__(self) -> int:
        return len(self.data)

    def locate(self, indices: NDArray[np.int64]) -> Sequence[int]:
        return indices.tolist()

    def read(self, where: int) -> Example:
        pixels, label = self.data[where], self.label[where]
        return Example(pixels, True, float(label[0]) if label.size == 1 else label, np.ascontiguousarray(pixels))

    def name(self, index: int) -> str:
        return f"array row {index}"

    def labels(self) -> NDArray[Any]:
        return self.label[:, 0] if self.label.shape[1] == 1 else self.label

    def close(self) -> None:
        pass


class Rows:
    """Arrays of any shape side by side, as a table (see tables.Tables)."""

    def __init__(self, names: Sequence[str], arrays: Sequence[NDArray[Any]]):
        self.names, self.arrays = list(names), list(arrays)
        self.shapes = [array.shape[1:] for array in arrays]

    def __len__(self) -> int:
        return len(self.arrays[0])

    def fill(self, indices: NDArray[np.int64], outs: Sequence[NDArray[np.float32]]) -> None:
        """Rows `indices` of each array, as float32."""
        for array, out in zip(self.arrays, outs, strict=True):
            out[...] = array[indices]

    def name(self, index: int) -> str:
        return f"array row {index}"

    def column(self, name: str) -> NDArray[Any]:
        return self.arrays[self.names.index(name)]

    def close(self) -> None:
        pass
