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


class Slot:
    """The buffers of one batch, and the work on it."""

    def __init__(self, tops: Tops, rows: int, pin: bool):
        self.arrays: Arrays = {}
        self.tensors: dict[str, Tensor] = {}
        for name, array in tops.buffers(rows).items():
            tensor = torch.from_numpy(array)
            if pin:
                tensor = tensor.pin_memory()
            self.arrays[name], self.tensors[name] = tensor.numpy(), tensor
        self.start = 0
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
                self.plan = tops.plan(self.start, first, last)
            return self.plan


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
        while len(self.slots) <= self.ahead:
            self._submit()
        slot, began = self.slots[0], time.perf_counter()
        arrays, digest = self._result(slot)
        waited = time.perf_counter() - began
        self.slots.popleft()
        slot.plan = None  # and whatever it holds
        self.given, self.position = slot, slot.start + self.tops.batch
        tensors = {
            name: slot.tensors[name] if array is slot.arrays[name] else torch.from_numpy(array)
            for name, array in arrays.items()
        }
        return Ready(slot.start, tensors, digest % WORD, waited, slot)

    def _submit(self) -> None:
        """Give the threads one more batch."""
        assert self.pool is not None
        slot = self.spare.pop() if self.spare else Slot(self.tops, self.rows, self.pin)
        slot.start = self.slots[-1].start + self.tops.batch if self.slots else self.position
        slot.plan = None
        self.slots.append(slot)
        if self.tops.loose:
            slot.work = [self.pool.submit(self._fill_loose, slot, self.halt)]
            return
        cuts = [*range(0, self.rows, self.chunk), self.rows]
        slot.work = [self.pool.submit(self._fill, slot, begin, end, self.halt) for begin, end in pairwise(cuts)]

    def _fill(self, slot: Slot, begin: int, end: int, halt: Halt) -> int:
        plan = slot.planned(self.tops, self.first, self.last)
        return self.tops.fill(plan, begin, end, slot.arrays, halt)

    def _fill_loose(self, slot: Slot, halt: Halt) -> tuple[Arrays, int]:
        return self.tops.fill_loose(slot.planned(self.tops, self.first, self.last), slot.arrays, halt)

    def _result(self, slot: Slot) -> tuple[Arrays, int]:
        """What became of a batch. Records of an odd shape may still be a batch: of their own shape."""
        if self.tops.loose:
            arrays, digest = slot.work[0].result()
            return arrays, digest
        try:
            return slot.arrays, sum(work.result() for work in slot.work)
        except OddShapeError:
            wait(slot.work)
            if self.rows != self.tops.batch:
                raise
            return self._fill_loose(slot, self.halt)

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
