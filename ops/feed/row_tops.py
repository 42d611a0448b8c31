"""Tops that are rows of arrays, as they are: HDF5Data, Input, and MemoryData over numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ops.feed import arrays, tables
from ops.feed.sampling import Balanced, Sampling
from ops.feed.tops import Arrays, Asked, Plan, Shape, StoppedError, Tops, record_digest


class RowTops(Tops):
    """Row i of every top is row i of a table's datasets, as float32."""

    def __init__(self, asked: Asked, table: tables.Tables | arrays.Rows, batch: int, *, shuffle: bool = False):
        super().__init__(asked)
        self.table, self.batch, self.records = table, batch, len(table)
        self.shapes: dict[str, Shape] = {
            top: (batch, *shape) for top, shape in zip(self.tops, table.shapes, strict=True)
        }
        options = asked.options
        if options.augmentation:
            raise ValueError("rows of numbers are not pictures: augment does not go with them")
        if options.balance:
            if "label" not in self.tops and len(self.tops) < 2:
                raise ValueError("balance needs labels, and there is but one top")
            labels = table.column("label" if "label" in self.tops else self.tops[-1])
            self.sampling: Any = Balanced(labels.reshape(len(labels), -1).squeeze(1), seed=asked.seed)
        else:
            chosen = shuffle if options.shuffle is None else options.shuffle
            self.sampling = Sampling(len(table), seed=asked.seed, shuffle=chosen, block=options.block)

    def plan(self, start: int, first: int, last: int) -> Plan:
        plan = Plan(start, np.arange(first, last, dtype=np.int64))
        plan.more["records"] = self.sampling.records(plan.positions)
        return plan

    def fill(self, plan: Plan, begin: int, end: int, out: Arrays, stopped: Callable[[], bool]) -> int:
        if stopped():
            raise StoppedError
        outs = [out[top][begin:end] for top in self.tops]
        self.table.fill(plan.more["records"][begin:end], outs)
        if not self.asked.digest:
            return 0
        places = plan.places[begin:end].tolist()
        rows = (b"".join(one[i].tobytes() for one in outs) for i in range(end - begin))
        return sum(record_digest(place, row) for place, row in zip(places, rows, strict=True))

    def describe(self, position: int, place: int) -> str:
        return self.table.name(int(self.sampling.records(np.array([position]))[0]))

    def close(self) -> None:
        self.table.close()
