"""Training batches from other nodes (`data.where: cluster`): Ray tasks read and cut, the training worker computes.

Which records stand where is arithmetic, so a task is told which rows of the batch at which position to make and needs
nothing else: whoever makes them, and however often, they are the same.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

from ops.feed.handed import Asking, Handed, Maker, Piece
from ops.feed.tops import Asked, StoppedError, Tops

RECORDS, MANY_RECORDS = 32, 256  # of a piece: where a record takes long, and where it does not
BYTES = 32 << 20  # of a piece at most
STORE = 8  # the pieces of a layer that are under way may take one part in so many of the object store
LEAST = 2  # batches under way at least
RETRIES = 5  # of a task whose process or node was lost
LOOK_EVERY = 0.1  # seconds between looks at whether to stop
PATIENCE = 150  # seconds without a piece: fewer than other workers would wait for this one
KEPT = 8  # layers that a process keeps open


class Window:
    """The pieces of one worker's rows first..last-1 of each batch, under way a few batches ahead of their time."""

    def __init__(self, asked: Asked, tops: Tops, rows: tuple[int, int], *, world: int):
        import ray

        asked = replace(asked, options=replace(asked.options, arrays={}), on_device=True)
        self.layer = pickle.dumps((os.getcwd(), asked))
        self.batch, self.cuts = tops.batch, cuts_of(tops, rows)
        self.most = pieces_ahead(tops, self.cuts, ray.cluster_resources(), world)
        self.task = ray.remote(make).options(
            name=f"read {asked.spec.name}", num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD"
        )
        self.lock = threading.Lock()
        self.coming: dict[int, list[tuple[Piece, Any]]] = {}  # by the position of their batch
        self.next = 0  # position of the batch that no task was given yet

    def begins(self, position: int) -> None:
        with self.lock:
            self.coming.clear()
            self.next = position

    def ask(self, start: int) -> list[Asking]:
        with self.lock:
            assert start in self.coming or start >= self.next, "each batch is asked for once"
            while start not in self.coming:
                self._submit()
            found = self.coming.pop(start)
            while len(self.coming) < LEAST or (len(self.coming) + 1) * len(self.cuts) <= self.most:
                self._submit()
        return [Asking(piece, partial(received, ref)) for piece, ref in found]

    def _submit(self) -> None:
        """Have one more batch made."""
        pieces = [Piece(self.next, first, last) for first, last in self.cuts]
        self.coming[self.next] = [(one, self.task.remote(self.layer, *one)) for one in pieces]
        self.next += self.batch

    def close(self) -> None:
        with self.lock:
            self.coming.clear()


def cuts_of(tops: Tops, rows: tuple[int, int]) -> list[tuple[int, int]]:
    """The rows first, last of each piece."""
    first, last = rows
    most = max(1, min(RECORDS if tops.heavy else MANY_RECORDS, BYTES // row_bytes(tops)))
    count = -(-(last - first) // most)
    return list(pairwise(first + (last - first) * i // count for i in range(count + 1)))


def pieces_ahead(tops: Tops, cuts: list[tuple[int, int]], cluster: dict[str, float], world: int) -> int:
    """How many pieces a worker has under way: enough for its share of the CPUs, as far as memory goes."""
    room = cluster.get("object_store_memory", 0) / STORE / world / (row_bytes(tops) * (cuts[0][1] - cuts[0][0]))
    return min(int(room), 2 + int(cluster.get("CPU", 1)) // world)


def row_bytes(tops: Tops) -> int:
    """Bytes of a row as it is handed over."""
    own = getattr(tops, "dtype", None)  # of stored pictures: they are handed over as they are stored
    sizes = [array.nbytes for array in tops.buffers(1).values()]
    return max(1, sizes[0] * own.itemsize // 4 + sum(sizes[1:]) if own is not None else sum(sizes))


def received(ref: Any, stopped: Callable[[], bool]) -> Handed:
    """What a task made, as soon as it is there. RuntimeError, one line, where it never will be."""
    import ray

    from cluster.errors import unwrap

    until = time.monotonic() + PATIENCE
    while not ray.wait([ref], timeout=LOOK_EVERY)[0]:
        if stopped():
            raise StoppedError
        if time.monotonic() > until:
            raise RuntimeError(
                f"data.where: cluster: no batch for {PATIENCE} seconds: is a CPU free beside the training workers, and "
                "does the storage answer?"
            )
    try:
        handed: Handed = ray.get(ref)
    except ray.exceptions.RayError as error:
        raise unwrap(error) from error
    return handed


# -- where the CPUs are ------------------------------------------------------------------------------------------------

OPENED: dict[bytes, Maker] = {}  # in a process of Ray: the layers that it has made pieces of


def make(layer: bytes, start: int, first: int, last: int) -> Handed:
    """The task: rows first..last-1 of the batch at a position."""
    if layer not in OPENED:
        import ray

        folder, asked = pickle.loads(layer)
        try:
            os.chdir(folder)
            maker = Maker(asked)
        except (OSError, ValueError) as error:
            told = f"node {ray.util.get_node_ip_address()} cannot read what the training worker can: {error}"
            return Handed(error=ValueError(f"{told}; data.where: cluster wants the records where every node sees them"))
        while len(OPENED) >= KEPT:
            OPENED.pop(next(iter(OPENED))).close()
        OPENED[layer] = maker
    return OPENED[layer].make(Piece(start, first, last))
