"""Tops made of pictures: a record is read, cut, and made into numbers, row by row."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from xxhash import xxh3_64_intdigest

from ops import chance
from ops.feed.source import Blocks, Example, Source
from ops.feed.tops import Arrays, Asked, Plan, Shape, StoppedError, Tops, label_word, label_words, room
from ops.feed.transform import Choices, OddShapeError, Transform, cut

log = logging.getLogger("cortado")
SMALL = 1 << 14  # numbers of a record: below it, a chunk of records is worked on at once
TOGETHER, TOGETHER_BYTES = 1024, 8 << 20  # small records that are planned and read at once, and what they may take
CORNERS, FLIPS = "@corners", "@flips"  # buffers beside the tops; no blob has such a name
BAD = (ValueError, OSError, cv2.error)


class RecordTops(Tops):
    """Records of a source through a Transform; one top, or two with the labels."""

    def __init__(
        self, asked: Asked, source: Source, sampling: Any, transform: Transform, batch: int, *, loose: bool = False
    ):
        super().__init__(asked)
        self.source, self.sampling, self.transform, self.batch = source, sampling, transform, batch
        self.name, self.seed, self.records = asked.spec.name, asked.seed, len(source)
        self.blocks = source if isinstance(source, Blocks) else None
        self.most_bad = int(asked.options.max_bad * len(source))
        self.lock = threading.Lock()
        self.moved: dict[int, int] = {}  # positions of bad records -> the record that stands there instead
        self.usual: Example | None = None  # what nearly every record looks like
        plan = self.plan(0, 0, 1)
        first = self._example(plan, 0)
        self._corner(plan, 0, first)
        self.dtype = first.pixels.dtype
        if transform.augment is not None and self.dtype != np.uint8:
            raise ValueError(f"{self._named(plan, 0)}: holds float values; augmentation takes pictures of bytes")
        like = np.broadcast_to(np.zeros((), self.dtype), first.pixels.shape)  # and no view of the file
        self.usual = Example(like, first.planar, first.label, None)
        self.heavy = not first.planar or transform.augment is not None
        shapes = [(batch, *transform.shape(planes_of(first))), (batch, *np.shape(first.label))]
        self.shapes: dict[str, Shape] = dict(zip(self.tops, shapes, strict=False))
        self.loose = loose and batch == 1 and not transform.crop
        self.on_device = asked.on_device
        numbers = max(math.prod(self.shapes[self.tops[0]][1:]), first.pixels.size)  # whole records are read
        if numbers <= SMALL and not (self.heavy or self.loose):
            self.together = min(TOGETHER, TOGETHER_BYTES // (4 * max(1, numbers)))
        self.mean: Tensor | None = None  # where the batch is used

    # -- reading -----------------------------------------------------------------------------------------------------

    def buffers(self, rows: int) -> Arrays:
        out = super().buffers(rows)
        if self.on_device:
            out[self.tops[0]] = room((rows, *self.shapes[self.tops[0]][1:]), self.dtype)
            out |= {CORNERS: np.zeros((rows, 2), np.int64), FLIPS: np.zeros(rows, np.bool_)}
        return out

    def plan(self, start: int, first: int, last: int) -> Plan:
        return self.plan_several(start, first, last, 1)

    def plan_several(self, start: int, first: int, last: int, batches: int) -> Plan:
        plan = Plan(start, np.arange(first, last, dtype=np.int64))
        if batches > 1:
            plan.shift = np.repeat(np.arange(batches) * self.batch, len(plan.places))
            plan.places = np.tile(plan.places, batches)
        records = self.sampling.records(plan.positions)
        choices = self.transform.choose(self.seed, self.name, plan.positions)
        plan.more = {"records": records, "where": self.source.locate(records), "choices": choices}
        if self.usual is not None:
            corners = self.transform.corners(planes_of(self.usual), choices, len(records))
            plan.more |= {"corners": corners, "each": list(map(tuple, corners.tolist()))}
            plan.more["flips"] = np.zeros(len(records), np.bool_) if choices.flips is None else choices.flips
            if self.asked.digest:
                plan.more["beginnings"] = self._beginnings(plan, slice(None))
        return plan

    def _example(self, plan: Plan, row: int) -> Example:
        """The record of a row; where it is bad, the next good one, if so many may be bad."""
        try:
            return self.source.read(plan.more["where"][row])
        except BAD as error:
            self._count_bad(int(plan.more["records"][row]), error)
        position = int(plan.positions[row])
        for later in range(position + 1, position + 1 + len(self.source)):
            record = self.sampling.records(np.array([later]))
            try:
                found = self.source.read(self.source.locate(record)[0])
            except BAD as error:
                self._count_bad(int(record[0]), error)
                continue
            plan.more["records"][row] = record[0]
            self.moved[position] = int(record[0])
            return found
        raise ValueError("no record can be read")

    def _count_bad(self, record: int, error: BaseException) -> None:
        name, reason = self.source.name(record), " ".join(str(getattr(error, "strerror", None) or error).split())
        self.count_bad(name, reason)

    def count_bad(self, name: str, reason: str) -> None:
        """Note a bad record; ValueError where it is one too many."""
        with self.lock:
            known = name in self.bad
            self.bad[name] = reason
            many = len(self.bad)
        if many > self.most_bad:
            if not self.asked.options.max_bad:
                raise ValueError(f"{name}: {reason}")
            share = self.asked.options.max_bad
            raise ValueError(
                f"{name}: {reason}; {many:,} of {self.records:,} records are bad, more than max_bad {share:g}"
            )
        if not known:
            log.warning("%s: %s; the next record takes its place", name, reason)

    def _corner(self, plan: Plan, row: int, example: Example) -> tuple[int, int]:
        """Where the crop of a row begins; ValueError, with the record's name, where its shape does not do."""
        try:
            shape = planes_of(example)
            self.transform.check(shape)
            corner = self.transform.corner(shape, plan.more["choices"], row)
            if self.usual is not None and shape[0] != planes_of(self.usual)[0]:
                hint = "" if example.planar else "; transform_param { force_color: true } decodes all of them alike"
                raise ValueError(f"has {shape[0]} channels where the first record has {planes_of(self.usual)[0]}{hint}")
            if self.usual is not None and example.pixels.dtype != self.dtype:
                raise ValueError(f"holds {example.pixels.dtype} values where the first record has {self.dtype}")
            return corner
        except ValueError as error:
            raise ValueError(f"{self._named(plan, row)}: {error}") from error

    def _named(self, plan: Plan, row: int) -> str:
        return self.source.name(int(plan.more["records"][row]))

    # -- filling -----------------------------------------------------------------------------------------------------

    def fill(self, plan: Plan, begin: int, end: int, out: Arrays, stopped: Callable[[], bool]) -> int:
        digests = self._fill_block(plan, begin, end, out)
        return self._fill(plan, begin, end, out, stopped, None) if digests is None else sum(digests)

    def fill_together(self, plan: Plan, out: Arrays, batches: int) -> list[int] | None:
        digests, rows = self._fill_block(plan, 0, len(plan.places), out), len(plan.places) // batches
        return None if digests is None else [sum(digests[n * rows : (n + 1) * rows]) for n in range(batches)]

    def _fill_block(self, plan: Plan, begin: int, end: int, out: Arrays) -> list[int] | None:
        """Rows begin..end-1 at once and their digests; None unless all are small raw records that look as usual."""
        if not self.together or self.blocks is None or self.usual is None or self.dtype != np.uint8:
            return None
        block = self.blocks.block(plan.more["where"][begin:end])
        if block is None or block.pixels.shape[1:] != self.usual.pixels.shape:
            return None
        data, pixels = out[self.tops[0]][begin:end], block.pixels
        corners, flips = plan.more["corners"][begin:end], plan.more["flips"][begin:end]
        if self.transform.crop:
            windows = np.lib.stride_tricks.sliding_window_view(pixels, data.shape[2:], (2, 3))
            pixels = windows[np.arange(end - begin), :, corners[:, 0], corners[:, 1]]
        if self.on_device:
            np.copyto(data, pixels)
            out[CORNERS][begin:end], out[FLIPS][begin:end] = corners, flips
        else:
            self.transform.all_into(pixels, corners, flips, data)
        labels = np.array(block.labels)
        if len(self.tops) > 1:
            out[self.tops[1]][begin:end] = labels
        if not self.asked.digest:
            return [0] * (end - begin)
        starts = plan.more["beginnings"][begin:end] ^ label_words(labels)
        return list(map(xxh3_64_intdigest, block.stored, starts.tolist()))

    def fill_loose(self, plan: Plan, out: Arrays, stopped: Callable[[], bool]) -> tuple[Arrays, int]:
        first = self._example(plan, 0)
        data = out[self.tops[0]]
        shape = (len(data), *self.transform.shape(planes_of(first)))
        if data.shape != shape:
            out = {**out, self.tops[0]: np.empty(shape, data.dtype)}
        return out, self._fill(plan, 0, len(data), out, stopped, first)

    def _fill(
        self, plan: Plan, begin: int, end: int, out: Arrays, stopped: Callable[[], bool], example: Example | None
    ) -> int:
        """Rows begin..end-1; `example`: the first of them, where it was read already."""
        data, flips, corners, usual = out[self.tops[0]], plan.more["flips"], plan.more["each"], self.usual
        assert usual is not None
        labels = out[self.tops[1]] if len(self.tops) > 1 else None
        shape, made = usual.pixels.shape, self.transform.shape(planes_of(usual))
        put = Putter(self.transform, data[begin:end], self.dtype, self.on_device)
        digests, total = plan.more["beginnings"][begin:end].tolist() if self.asked.digest else [], 0
        for row in range(begin, end):
            if stopped():
                raise StoppedError
            if example is None:
                example = self._example(plan, row)
            pixels, planar, label, stored = example
            if pixels.shape == shape and planar is usual.planar and pixels.dtype == self.dtype:
                corner, found = corners[row], made
            else:
                corner = corners[row] = self._corner(plan, row, example)
                plan.more["corners"][row], found = corner, self.transform.shape(planes_of(example))
                if self.asked.digest:
                    digests[row - begin] = int(self._beginnings(plan, slice(row, row + 1))[0])
            if found != data.shape[1:]:
                raise OddShapeError(self._named(plan, row), found, data.shape[1:])
            if self.transform.augment is not None:
                pixels, planar = self.transform.augmented(pixels, planar, plan.more["choices"], row)
            put(row - begin, pixels, planar, corner, flips[row])
            if labels is not None:
                labels[row] = label
            if self.asked.digest:
                total += xxh3_64_intdigest(stored, digests[row - begin] ^ label_word(label))
            example = None
        put.end(plan.more["corners"][begin:end], flips[begin:end])
        if self.on_device:
            out[CORNERS][begin:end], out[FLIPS][begin:end] = plan.more["corners"][begin:end], flips[begin:end]
        return total

    def _beginnings(self, plan: Plan, rows: slice) -> NDArray[np.uint64]:
        """What the digests of some rows begin with: their places and all that was chosen for them, as one word each."""
        choices: Choices = plan.more["choices"]
        columns = [plan.places[rows], *plan.more["corners"][rows].T, plan.more["flips"][rows]]
        if choices.augments is not None:
            columns += list(choices.augments[rows].T)
        return chance.folded(columns)

    # -- finishing ---------------------------------------------------------------------------------------------------

    def take(self, rows: Arrays, out: Arrays) -> None:
        if self.on_device:
            super().take(rows, out)
            return
        cuts, corners, flips, data = rows[self.tops[0]], rows[CORNERS], rows[FLIPS], out[self.tops[0]]
        if data[0].size > SMALL:
            scratch = np.empty(cuts[0].size, cuts.dtype)
            for planes, corner, flip, target in zip(cuts, corners.tolist(), flips.tolist(), data, strict=True):
                self.transform.into(planes, (0, 0), corner, flip, target, scratch)
        else:
            self.transform.all_into(cuts, corners, flips, data)
        for top in self.tops[1:]:
            np.copyto(out[top], rows[top])

    def finish(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        done = {top: tensors[top] for top in self.tops}
        if self.on_device:
            data = tensors[self.tops[0]]
            if self.transform.mean is not None and (self.mean is None or self.mean.device != data.device):
                self.mean = torch.from_numpy(self.transform.mean).to(data.device)
            done[self.tops[0]] = self.transform.finish(data, tensors[CORNERS], tensors[FLIPS], self.mean)
        return done

    def describe(self, position: int, place: int) -> str:
        record = self.moved.get(position)
        return self.source.name(int(self.sampling.records(np.array([position]))[0]) if record is None else record)

    def close(self) -> None:
        self.source.close()


class Putter:
    """Where the records of a chunk go: each as numbers into its row, or first cut, and all made numbers at the end."""

    def __init__(self, transform: Transform, data: NDArray[Any], dtype: Any, on_device: bool):
        self.transform, self.data = transform, data
        self.direct = not on_device and data[0].size > SMALL
        self.small = not on_device and not self.direct
        self.cuts = np.empty(data.shape, dtype) if self.small else data
        self.window = np.empty(data.shape[1:], dtype) if self.direct else np.empty(0)
        self.scratch = np.empty(0, dtype)

    def __call__(self, row: int, pixels: NDArray[Any], planar: bool, corner: tuple[int, int], flip: bool) -> None:
        if not self.direct:
            cut(pixels, planar, corner, self.cuts[row])
            return
        out, at = self.data[row], corner
        if not planar:
            cut(pixels, planar, corner, self.window)
            pixels, at = self.window, (0, 0)
        room = pixels.shape[0] * pixels.shape[1] * out.shape[2]
        if flip and self.scratch.size < room:
            self.scratch = np.empty(room, pixels.dtype)
        self.transform.into(pixels, at, corner, flip, out, self.scratch)

    def end(self, corners: NDArray[np.int64], flips: NDArray[np.bool_]) -> None:
        if self.small:
            self.transform.all_into(self.cuts, corners, flips, self.data)


def planes_of(example: Example) -> tuple[int, int, int]:
    """(C, H, W)"""
    shape = example.pixels.shape
    return shape if example.planar else (shape[2], shape[0], shape[1])
