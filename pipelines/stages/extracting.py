"""One slice of an input -> one part of the features, in an actor that holds the net: read, decode, forward, write.

As a shard of a conversion (stages/shards.py): every attempt has a folder of its own, and only the driver gives it a
name.
"""

from __future__ import annotations

import errno
import json
import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ops import shared_blobs
from ops.net import Net
from ops.records import features, lmdb, parquet
from ops.records.feature_parts import Tally, as_stored
from ops.records.hdf5 import is_hdf5
from ops.records.parquet import Columns, Rows
from ops.training.step import set_precision
from pipelines.stages.featuring import Extractor, Setup
from pipelines.stages.shards import Notes, Shard, note_made

MADE = "made"  # what an attempt's folder holds when it is done


@dataclass
class Part(Shard):
    """What one attempt at a part tells the driver."""

    began: float = 0.0  # seconds since 1970
    waited: float = 0.0  # seconds for images
    forward: float = 0.0
    writing: float = 0.0  # seconds that writing held the loop up
    pieces: int = 0  # images at a time after memory ran out; 0: it did not


class ExtractFeatures:
    """The operator: batches of {shard} become batches of Parts, as JSON. The net is made once, in here.

    `blobs`: arrays of the object store (a reference to them), or weight files where they do not fit in there.
    """

    def __init__(self, run: str, setup: Setup, blobs: Any, format: str, threads: int, gpu: bool):
        torch.set_num_threads(threads)
        set_precision("fp32")
        setup.code.load()
        device = torch.device("cuda", 0) if gpu else torch.device("cpu")
        self.run, self.setup, self.format = Path(run), setup, format
        self.extractor = Extractor(setup, with_blobs(setup, blobs, device), threads=threads, device=device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        return {"shard": [json.dumps(vars(self.part(int(number)))) for number in batch["shard"]]}

    def part(self, number: int) -> Part:
        return write_part(self.extractor, number, self.run, self.format)


def with_blobs(setup: Setup, blobs: Any, device: torch.device) -> Net:
    """The setup's net with its numbers."""
    net = setup.net(setup.batch)
    if isinstance(blobs, list):
        net.materialize(device, weights=[Path(one) for one in blobs])
    else:
        import ray

        shared_blobs.use_blobs(net, ray.get(blobs), device)
    return net


def write_part(extractor: Extractor, number: int, run: Path, format: str) -> Part:
    """One attempt at one part."""
    setup = extractor.setup
    attempt = run / "attempts" / f"{number:05d}-{uuid.uuid4().hex[:12]}"
    done = Part(number, attempt.name, began=time.time())
    began, worked, seconds = time.perf_counter(), time.process_time(), extractor.seconds
    before = (seconds.waited, seconds.forward)
    try:
        (attempt / MADE).mkdir(parents=True)
        with Notes(attempt / "progress") as notes:
            fill(extractor, done, attempt / MADE, format, notes)
        verify(attempt / MADE, setup.columns, format, done.count)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        done.full, done.failure = True, f"{attempt}: {error.strerror}"
    done.waited, done.forward = seconds.waited - before[0], seconds.forward - before[1]
    done.pieces = extractor.forward.most or 0
    done.seconds, done.cpu_seconds = time.perf_counter() - began, time.process_time() - worked
    note_made(attempt, done)
    return done


def fill(extractor: Extractor, done: Part, folder: Path, format: str, notes: Notes) -> None:
    """Write a part's rows, in groups, beside the forward of the next ones; keep account of them."""
    setup, tally = extractor.setup, Tally()
    group = Group(setup.columns)
    with (
        features.WRITERS[format](folder, setup.columns, setup.facts) as writer,
        ThreadPoolExecutor(1, "write") as pool,
    ):
        pending: Future[None] | None = None

        def write(rows: Rows) -> None:
            writer.put(rows)
            tally.add(as_stored(rows, setup.columns, format))

        def hand_over(rows: Rows) -> None:
            nonlocal pending
            began = time.perf_counter()
            if pending is not None:
                pending.result()
            pending = pool.submit(write, rows) if len(rows) else None
            done.writing += time.perf_counter() - began

        for rows, records in extractor.rows(done.shard):
            account(extractor, done, records)
            for full in group.add(rows):
                hand_over(full)
            notes.tell(done.lines)
        hand_over(group.rest())
        began = time.perf_counter()
        if pending is not None:
            pending.result()
        done.writing += time.perf_counter() - began
    done.count = writer.count
    done.bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    done.first_key, done.last_key, done.checksum = tally.first, tally.last, tally.checksum()


def account(extractor: Extractor, done: Part, records: list[Any]) -> None:
    """Count a batch's records, and list the bad and the odd ones."""
    start = extractor.setup.cuts[done.shard] + done.lines
    reader = extractor.source.reader
    for place, note in enumerate(records, start):
        if note.bad is None and note.warning is None:
            continue
        odd = (reader.number(place), os.fsdecode(reader.names(place, place + 1)[0]))
        if note.bad is not None:
            done.bad.append((*odd, note.bad))
        else:
            done.warned.append((*odd, str(note.warning)))
    done.lines += len(records)


class Group:
    """Gathers batches into groups of rows as large as they are written."""

    def __init__(self, columns: Columns):
        self.columns = columns
        self._begin()

    def _begin(self) -> None:
        self.count = 0
        self.places = np.empty(self.columns.group, np.int64)
        self.names: list[str] = []
        self.labels: list[NDArray[Any]] = []
        kind = self.columns.dtype
        self.blobs = {name: np.empty((self.columns.group, *shape), kind) for name, shape in self.columns.blobs.items()}

    def add(self, rows: Rows) -> Iterator[Rows]:
        """Copy a batch in; the groups that it fills."""
        first = 0
        while first < len(rows):
            some = min(len(rows) - first, self.columns.group - self.count)
            there, here = slice(self.count, self.count + some), slice(first, first + some)
            self.places[there] = rows.places[here]
            self.names += rows.names[here]
            if rows.labels is not None:
                self.labels.append(rows.labels[here])
            for name, values in rows.blobs.items():
                self.blobs[name][there] = values[here]
            self.count, first = self.count + some, first + some
            if self.count == self.columns.group:
                yield self.rest()

    def rest(self) -> Rows:
        """What was gathered so far; a new group begins."""
        count = self.count
        blobs = {name: values[:count] for name, values in self.blobs.items()}
        labels = np.concatenate(self.labels) if self.labels else None
        found = Rows(self.places[:count], self.names, labels, blobs)
        self._begin()
        return found


def verify(folder: Path, columns: Columns, format: str, count: int) -> None:
    """Open what was written and see that it has its rows."""
    if format == "parquet":
        found = [parquet.count_rows(folder / "part.parquet")]
    elif format == "lmdb":
        names = features.blob_folders(columns.blobs, "part.lmdb").values()
        found = [len(lmdb.Reader(folder / name)) for name in names]
    else:
        found = [count if is_hdf5(folder / "part.h5") else -1]
    if any(one != count for one in found):
        raise OSError(errno.EIO, f"wrote {count} rows but read back {found}", str(folder))
