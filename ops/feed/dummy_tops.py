"""Tops made by fillers: DummyData. Constant ones once; others anew for each batch, from its position."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ops import chance, fillers
from ops.feed.tops import Arrays, Asked, Plan, Shape, StoppedError, Tops, record_digest, room
from ops.layers.inputs import DummyData
from ops.proto.caffe_pb2 import FillerParameter


class DummyTops(Tops):
    """Each worker draws the whole batch and takes its part, so that any filler gives what one worker would see."""

    def __init__(self, asked: Asked):
        super().__init__(asked)
        p = asked.spec.dummy_data_param
        layer = DummyData(asked.spec, [], "TRAIN" if asked.phase == "TRAIN" else "TEST")
        written = layer.top_shapes({})
        first = written[0][0] if written[0] else 1
        self.batch = asked.options.batch or first
        listed = list(p.data_filler) or [FillerParameter()]
        self.fillers = dict(zip(self.tops, listed * (len(self.tops) if len(listed) == 1 else 1), strict=True))
        self.shapes: dict[str, Shape] = {}
        for top, shape in zip(self.tops, written, strict=True):
            divided = bool(shape) and shape[0] == first
            self.shapes[top] = (self.batch, *shape[1:]) if divided else shape
        self.divided = [top for top in self.tops if self.shapes[top][:1] == (self.batch,)]
        self.constants = {top: self._drawn(top, 0) for top in self.tops if self.fillers[top].type == "constant"}

    def _drawn(self, top: str, start: int) -> Tensor:
        """A top of the whole batch that begins at a position."""
        word = chance.words(self.asked.seed, f"{self.asked.spec.name}: {top}", np.array([start]), [0])[0, 0]
        generator = torch.Generator().manual_seed(int(word) >> 1)
        blob = torch.empty(self.shapes[top], dtype=torch.float32)
        fillers.fill(blob, self.fillers[top], generator)
        return blob

    def buffers(self, rows: int) -> Arrays:
        out = {}
        for top, shape in self.shapes.items():
            out[top] = room((rows, *shape[1:]) if top in self.divided else shape)
            if top in self.constants and top not in self.divided:
                out[top][...] = self.constants[top].numpy()
            elif top in self.constants:
                out[top][...] = self.constants[top][:rows].numpy()  # rows of a constant are alike
        return out

    def plan(self, start: int, first: int, last: int) -> Plan:
        plan = Plan(start, np.arange(first, last, dtype=np.int64))
        plan.more = {top: self._drawn(top, start).numpy() for top in self.tops if top not in self.constants}
        return plan

    def fill(self, plan: Plan, begin: int, end: int, out: Arrays, stopped: Callable[[], bool]) -> int:
        if stopped():
            raise StoppedError
        for top, drawn in plan.more.items():
            if top not in self.divided:
                if begin == 0:
                    out[top][...] = drawn
            else:
                out[top][begin:end] = drawn[plan.places[begin:end]]
        if not self.asked.digest:
            return 0
        rows = [b"".join(out[top][row].tobytes() for top in self.divided) for row in range(begin, end)]
        return sum(record_digest(int(plan.places[row]), rows[row - begin]) for row in range(begin, end))

    def describe(self, position: int, place: int) -> str:
        return f"row {place} of the batch at position {position - place}"
