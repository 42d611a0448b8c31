"""Batches ahead of their time: a few threads fill reused buffers in order, while the caller computes.

The threads spend their time in numpy, OpenCV and file reads, which let go of the interpreter. What a batch holds
follows from its position alone, so neither the number of threads nor who finishes first changes it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ops.feed.tops import WORD, Arrays, Plan, Tops
from ops.feed.transform import OddShapeError

CHUNK, LEAST_CHUNK = 64, 8  # records that a thread takes at a time
LEAST_BYTES = 1 << 19  # of them, where they are no more than copied: waking a thread costs as much as copying so many
AHEAD_RECORDS = 32  # batches ahead hold at least about so many, where batches are small
AHEAD = 2  # batches
MOST_TOGETHER = 16  # batches that are made as one


class Slot:
    """The buffers of one batch, or of several small ones in a row, and the work on them."""

    def __init__(self, tops: Tops, rows: int, batches: int, pin: bool):
        self.rows, self.batches = rows, batches
        self.arrays: Arrays = {}
        self.parts: list[dict[str, Tensor]] = [{} for _ in range(batches)]  # of each batch
        for name, array in tops.buffers(rows * batches).items():
            tensor = torch.from_numpy(array).pin_memory() if pin else torch.from_numpy(array)
            self.arrays[name] = tensor.numpy()
            cuts = torch.split(tensor, rows) if batches > 1 else (tensor,)  # not every top has a row a record
            for part, rest in zip(self.parts, cuts, strict=True):
                part[name] = rest
        self.start, self.given = 0, 0  # position of the first batch; batches that were handed out
        self.plan: Plan | None = None
        self.lock = threading.Lock()
        self.work: list[Future[Any]] = []
        self.free: Callable[[], None] | None = None  # waits until the buffers may be written into again

    def planned(self, tops: Tops, first: int, last: int) -> Plan:
        """The batch's plan; whoever comes first makes it."""
        with self.lock:
            if self.plan is None:
                if self.free is not None:
                    self.free()
                if self.batches == 1:
                    self.plan = tops.plan(self.start, first, last)
                else:
                    self.plan = tops.plan_several(self.start, first, last, self.batches)
            return self.plan

    def part(self, number: int) -> Arrays:
        """The buffers of one of the batches."""
        begin = number * self.rows
        return {name: array[begin : begin + self.rows] for name, array in self.arrays.items()}


class Halt:
    """Whether the threads are to stop where they are; of each run of batches its own."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked


@dataclass(frozen=True)
class Ready:
    """A filled batch: its buffers as tensors, which stay as they are until the next batch is asked for."""

    start: int
    tensors: dict[str, Tensor]
    digest: int
    waited: float
    slot: Slot


class Loader:
    """The part first..last-1 of every batch from `position` on, in order, read ahead by `threads` threads."""

    def __init__(
        self, tops: Tops, first: int, last: int, *, threads: int, ahead: int, position: int = 0, pin: bool = False
    ):
        self.tops, self.first, self.last, self.threads = tops, first, last, threads
        self.rows, self.ahead, self.pin = last - first, ahead, pin
        row = sum(array.nbytes for array in tops.buffers(1).values())
        least = LEAST_CHUNK if tops.heavy else max(LEAST_CHUNK, LEAST_BYTES // max(1, row))
        self.chunk = max(least, min(CHUNK, self.rows // (2 * threads)))
        self.batches = max(1, min(MOST_TOGETHER, tops.together // self.rows))  # that are made as one
        self.position = position  # of the next batch that is handed out
        self.spare: list[Slot] = []
        self._begin()

    def _begin(self) -> None:
        self.slots: deque[Slot] = deque()
        self.given: Slot | None = None
        self.halt = Halt()
        self.pool: ThreadPoolExecutor | None = None
        self.process = os.getpid()

    def next(self) -> Ready:
        """The next batch; the one before is no longer the caller's. Raises what went wrong while it was filled."""
        if self.process != os.getpid():  # a forked process has none of the threads
            self.spare = []
            self._begin()
        if self.given is not None:
            self.spare.append(self.given)
            self.given = None
        if self.pool is None:
            self.tops.begins(self.position)
            self.pool = ThreadPoolExecutor(self.threads, "cortado-feed")
        while not self.slots or (len(self.slots) - 1) * self.batches < self.ahead:
            self._submit()
        slot, began = self.slots[0], time.perf_counter()
        tensors, digest = self._result(slot)
        waited = time.perf_counter() - began
        start = slot.start + slot.given * self.tops.batch
        slot.given, self.position = slot.given + 1, start + self.tops.batch
        if slot.given == slot.batches:
            self.slots.popleft()
            slot.plan = None  # and whatever it holds
            self.given = slot
        return Ready(start, tensors, digest % WORD, waited, slot)

    def _submit(self) -> None:
        """Give the threads one more batch, or several small ones."""
        assert self.pool is not None
        slot = self.spare.pop() if self.spare else Slot(self.tops, self.rows, self.batches, self.pin)
        last = self.slots[-1] if self.slots else None
        slot.start = self.position if last is None else last.start + last.batches * self.tops.batch
        slot.plan, slot.given = None, 0
        self.slots.append(slot)
        if slot.batches > 1:
            slot.work = [self.pool.submit(self._fill_several, slot, self.halt)]
            return
        if self.tops.loose:
            slot.work = [self.pool.submit(self._fill_loose, slot, self.halt)]
            return
        cuts = [*range(0, self.rows, self.chunk), self.rows]
        slot.work = [self.pool.submit(self._fill, slot, begin, end, self.halt) for begin, end in pairwise(cuts)]

    def _fill(self, slot: Slot, begin: int, end: int, halt: Halt) -> int:
        plan = slot.planned(self.tops, self.first, self.last)
        return self.tops.fill(plan, begin, end, slot.arrays, halt)

    def _fill_several(self, slot: Slot, halt: Halt) -> list[int | Exception]:
        """The digest of each batch of a slot, or what is wrong with it."""
        with suppress(OSError, ValueError):  # in which of the batches, each one's own plan says
            together = self.tops.fill_together(
                slot.planned(self.tops, self.first, self.last), slot.arrays, slot.batches
            )
            if together is not None:
                return [*together]
        found: list[int | Exception] = []
        for number in range(slot.batches):
            try:
                found.append(self._fill_one(slot, number, halt))
            except (OSError, ValueError) as error:
                found.append(error)
        return found

    def _fill_one(self, slot: Slot, number: int, halt: Halt) -> int:
        try:
            plan = slot.planned(self.tops, self.first, self.last)
        except (OSError, ValueError):  # in which of the batches, each one's own plan says
            plan = self._plan(slot, number)
            return self.tops.fill(plan, 0, self.rows, slot.part(number), halt)
        return self.tops.fill(plan, number * self.rows, (number + 1) * self.rows, slot.arrays, halt)

    def _plan(self, slot: Slot, number: int) -> Plan:
        return self.tops.plan(slot.start + number * self.tops.batch, self.first, self.last)

    def _fill_loose(self, slot: Slot, halt: Halt) -> tuple[Arrays, int]:
        return self.tops.fill_loose(slot.planned(self.tops, self.first, self.last), slot.arrays, halt)

    def _result(self, slot: Slot) -> tuple[dict[str, Tensor], int]:
        """What became of a slot's next batch. Records of an odd shape may still be a batch: of their own shape."""
        number, arrays = slot.given, slot.arrays
        try:
            if self.tops.loose:
                arrays, digest = slot.work[0].result()
            elif slot.batches > 1:
                digest = slot.work[0].result()[number]
                if isinstance(digest, Exception):
                    raise digest
            else:
                digest = sum(work.result() for work in slot.work)
        except OddShapeError:
            wait(slot.work)
            if self.rows != self.tops.batch:
                raise
            arrays = slot.part(number)
            made, digest = self.tops.fill_loose(self._plan(slot, number), arrays, self.halt)
            return {name: torch.from_numpy(array) for name, array in made.items()}, digest
        if arrays is slot.arrays:
            return slot.parts[number], digest
        return {name: torch.from_numpy(array) for name, array in arrays.items()}, digest

    def seek(self, position: int) -> None:
        """Go on from another position."""
        self.close()
        self.position = position

    def close(self) -> None:
        """Stop the threads at once; a `next` would start them again."""
        self.halt.asked = True
        if self.pool is not None and self.process == os.getpid():
            self.pool.shutdown(wait=True, cancel_futures=True)
        for slot in (*self.slots, *([self.given] if self.given else [])):
            slot.work = []
            self.spare.append(slot)
        self._begin()
