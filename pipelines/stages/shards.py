"""Shards: one slice of the list becomes one shard, in one task that reads, decodes, transforms, writes and syncs.

A task works in a folder of its own under OUT/.run/attempts; only the driver gives a shard its name. So a task that is
killed, or run twice, leaves nothing that anyone would take for data.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import statistics
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple, TypeVar

import numpy as np
import xxhash

from ops.image import decode_natural
from ops.mean import PixelSum
from ops.recipe import Line, Recipe, Record, reason
from ops.records import datum, hdf5, lmdb
from pipelines.stages.plan import Plan

TOLD = "made.json"  # in the folder of an attempt that is whole: what it tells the driver
REPORT_EVERY = 16  # lines between two notes of progress
READERS = 32  # threads that read ahead on slow storage
SLOW_READ = 0.001  # seconds a file; storage slower than this is read ahead
PROBE = 8  # reads that decide it, again and again
AHEAD_BYTES = 128 << 20  # most encoded bytes that wait to be decoded

T = TypeVar("T")
R = TypeVar("R")
Odd = tuple[int, str, str]  # line number, path, reason


@dataclass
class Shard:
    """What one attempt tells the driver; everything in it is small."""

    shard: int
    attempt: str = ""
    lines: int = 0
    count: int = 0
    bytes: int = 0
    checksum: str = ""
    first_key: str = ""
    last_key: str = ""
    shape: list[int] = field(default_factory=list)  # of every record; empty where they differ
    bad: list[Odd] = field(default_factory=list)
    warned: list[Odd] = field(default_factory=list)
    failure: str = ""  # why the whole job must stop
    full: bool = False  # the disk is: `bytes` and `lines` tell what had been written of what
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of this process in that time


class Outcome(NamedTuple):
    """What became of a line: its records, or why there are none; between the stages, its source."""

    line: Line
    content: Any
    warning: str | None = None
    bad: str | None = None


class BuildShard:
    """All stages of a shard as one operator: batches of {shard, start, stop} become batches of Shards, as JSON."""

    def __init__(self, run: str, plan: Plan, recipe: Recipe, threads: int, check_size: bool):
        keep_freed_memory()
        self.run, self.plan, self.recipe = Path(run), plan, recipe
        self.threads, self.check_size = threads, check_size

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        slices = zip(*(batch[key].tolist() for key in ("shard", "start", "stop")), strict=True)
        return {"shard": [json.dumps(vars(self.build(*one))) for one in slices]}

    def build(self, shard: int, start: int, stop: int) -> Shard:
        """One attempt at one shard."""
        outcomes = make(self.plan.lines(start, stop), self.recipe, threads=self.threads)
        return write(outcomes, shard, self.run, self.recipe, check_size=self.check_size)


def keep_freed_memory() -> None:
    """Ask glibc to keep what pictures free: handed back, the next picture costs a page fault every 4 kB."""
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 64 << 20)
        libc.mallopt(trim_threshold, 256 << 20)


# -- lines -> records ------------------------------------------------------------------------------------------------


def make(lines: Iterable[Line], recipe: Recipe, *, threads: int = 1) -> Iterator[Outcome]:
    """Every line's records, in order; with several threads, pictures are decoded side by side."""
    sources = read_all(iter(lines), recipe)
    if threads == 1:
        recipe = recipe.reusing()
        yield from (finish(source, recipe) for source in sources)
        return
    with ThreadPoolExecutor(threads, "decode") as pool:
        yield from ahead(pool, lambda source: finish(source, recipe), sources, lambda: 2 * threads)


def read_all(lines: Iterator[Line], recipe: Recipe) -> Iterator[Outcome]:
    """Every line's source, in order: one by one while storage answers at once, else many ahead."""
    took: list[float] = []
    for line in lines:
        began = perf_counter()
        source = read(line, recipe)
        took.append(perf_counter() - began)
        yield source
        if len(took) == PROBE:
            if statistics.median(took) >= SLOW_READ:
                break
            took.clear()
    largest = 1

    def window() -> int:
        return max(4, min(2 * READERS, AHEAD_BYTES // largest))

    with ThreadPoolExecutor(READERS, "read") as pool:
        for source in ahead(pool, lambda line: read(line, recipe), lines, window):
            largest = max(largest, len(source.content) if isinstance(source.content, bytes) else 1)
            yield source


def ahead(
    pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], window: Callable[[], int]
) -> Iterator[R]:
    """work(item) for each item, in order, with up to window() of them under way."""
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            while len(pending) >= window():
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def read(line: Line, recipe: Recipe) -> Outcome:
    try:
        source, warning = recipe.read(line)
        return Outcome(line, source, warning)
    except (OSError, ValueError) as error:
        return Outcome(line, None, bad=reason(error))


def picture(source: Outcome, recipe: Recipe) -> Outcome:
    """decode and resize."""
    if source.bad:
        return source
    try:
        return source._replace(content=recipe.picture(source.content))
    except (OSError, ValueError) as error:
        return source._replace(content=None, bad=reason(error))


def finish(source: Outcome, recipe: Recipe) -> Outcome:
    """All stages after read."""
    if source.bad:
        return source
    line, content, warning, _ = source
    try:
        return Outcome(line, list(recipe.finish(line, recipe.picture(content), content)), warning)
    except (OSError, ValueError) as error:
        return Outcome(line, None, bad=reason(error))


def records(pictured: Outcome, source: Any, recipe: Recipe) -> Outcome:
    """augment, crop, mirror, subtract mean, encode."""
    if pictured.bad:
        return pictured
    try:
        return pictured._replace(content=list(recipe.finish(pictured.line, pictured.content, source)))
    except (OSError, ValueError) as error:
        return pictured._replace(content=None, bad=reason(error))


# -- records -> shard ------------------------------------------------------------------------------------------------


def write(outcomes: Iterable[Outcome], shard: int, run: Path, recipe: Recipe, *, check_size: bool) -> Shard:
    """Write one attempt at a shard: records, their checksum and sums; what is bad is listed, not written."""
    attempt = run / "attempts" / f"{shard:05d}-{uuid.uuid4().hex[:12]}"
    done = Shard(shard, attempt.name)
    began, worked = perf_counter(), process_time()
    try:
        attempt.mkdir(parents=True)
        with Notes(attempt / "progress") as notes, writer(attempt, recipe.backend) as out:
            total = Total(out, recipe, done, check_size)
            for outcome in outcomes:
                total.take(outcome)
                notes.tell(done.lines)
        total.close(attempt)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        done.full, done.failure = True, f"{attempt}: {error.strerror}"
    except SizesDifferError as error:
        done.failure = str(error)
    done.seconds, done.cpu_seconds = perf_counter() - began, process_time() - worked
    note_made(attempt, done)
    return done


def note_made(attempt: Path, done: Shard) -> None:
    """Say in the attempt's folder that it is whole, so that it counts if its driver dies before it hears of it."""
    if done.full or done.failure:
        return
    scratch = attempt / f"{TOLD}.new"
    with scratch.open("w", encoding="utf-8") as file:
        file.write(json.dumps(vars(done)))
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(attempt / TOLD)


class SizesDifferError(Exception):
    """Records of two sizes where there may be one only; as convert_imageset under -check_size, the job stops."""


def one_size(recipe: Recipe, check_size: bool) -> str:
    """Which option wants records of one size; "" for none."""
    if check_size:
        return "--check-size:"
    return "--backend hdf5:" if recipe.backend == "hdf5" else "--mean-out:" if recipe.want_pixels else ""


def sizes_differ(here: Iterable[int], first: str, there: Iterable[int], second: str) -> str:
    """What to say of two records that differ in size."""
    shapes = ["x".join(map(str, shape)) for shape in (here, there)]
    return f"records of one size are needed, but {first} is {shapes[0]} and {second} is {shapes[1]}; resize or crop"


class Total:
    """Puts records into a shard and keeps account of them."""

    def __init__(self, out: lmdb.Writer | hdf5.Writer, recipe: Recipe, done: Shard, check_size: bool):
        self.out, self.recipe, self.done = out, recipe, done
        self.one_size = one_size(recipe, check_size)
        self.hash = xxhash.xxh3_64()
        self.sum = PixelSum() if recipe.want_pixels else None
        self.first, self.last, self.shapes = b"", b"", dict[tuple[int, ...], bytes]()

    def take(self, outcome: Outcome) -> None:
        """Write a line's records, or note why it has none."""
        line, done = outcome.line, self.done
        done.lines += 1
        path = os.fsdecode(line.path)
        if outcome.bad:
            done.bad.append((line.number, path, outcome.bad))
            return
        try:
            for record in outcome.content:
                self.put(record)
        except ValueError as error:  # a record that this shard cannot hold: HDF5 wants one size
            done.bad.append((line.number, path, reason(error)))
            return
        if outcome.warning:
            done.warned.append((line.number, path, outcome.warning))

    def put(self, record: Record) -> None:
        key, value = record.key, record.value
        if record.shape not in self.shapes:
            self._new_shape(record)
        if self.sum:
            self._add(record)
        if isinstance(self.out, hdf5.Writer):
            label = np.asarray(record.label, np.float32)
            self.out.put(key, value, label)
            self.hash.update(key)
            self.hash.update(value)
            self.hash.update(label.tobytes())
        else:
            self.out.put(key, value)
            self.hash.update(key)
            self.hash.update(value)
        self.first, self.last = self.first or key, key
        self.done.count += 1
        self.done.bytes += len(key) + memoryview(value).nbytes

    def _new_shape(self, record: Record) -> None:
        self.shapes[record.shape] = record.key
        if self.one_size and len(self.shapes) > 1:
            (here, first), (there, second) = list(self.shapes.items())[:2]
            told = sizes_differ(here, first.decode(errors="replace"), there, second.decode(errors="replace"))
            raise SizesDifferError(f"{self.one_size} {told}")

    def _add(self, record: Record) -> None:
        """Add to the mean's sums; what a stored file decodes to may have other channels than its picture."""
        assert self.sum
        try:
            self.sum.add(pixels(record.value))
        except ValueError as error:
            raise SizesDifferError(f"--mean-out: {record.key.decode(errors='replace')}: {error}") from error

    def close(self, attempt: Path) -> None:
        """Look once more at what stands on the disk, and note what it is."""
        done = self.done
        if self.sum and self.sum.count:
            self.sum.save(attempt / "sum.npz")
        verify(attempt, self.recipe.backend, done.count, (self.first, self.last))
        done.checksum = self.hash.hexdigest()
        done.first_key, done.last_key = os.fsdecode(self.first), os.fsdecode(self.last)
        done.shape = list(next(iter(self.shapes))) if len(self.shapes) == 1 else []


def pixels(value: Any) -> np.ndarray[Any, Any]:
    """The (C, H, W) pixels that a mean adds up: as they are, or those of a Datum."""
    if isinstance(value, np.ndarray) and value.ndim == 3:
        return value
    parsed = datum.parse(value)
    return decode_natural(bytes(parsed.data)).transpose(2, 0, 1) if parsed.encoded else parsed.pixels()


def writer(attempt: Path, backend: str) -> lmdb.Writer | hdf5.Writer:
    return hdf5.Writer(attempt / "shard.h5") if backend == "hdf5" else lmdb.Writer(attempt / "shard")


def verify(attempt: Path, backend: str, count: int, ends: tuple[bytes, bytes]) -> None:
    """Open what was written and see that it has its records, first and last where they belong."""
    if backend == "hdf5":
        file = attempt / "shard.h5"
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
        with hdf5.Reader(file) as rows:
            found: Any = len(rows)
            expected: Any = count
    else:
        with lmdb.Reader(attempt / "shard") as reader:
            found, expected = (len(reader), *reader.ends()), (count, *ends)
    if found != expected:
        raise OSError(errno.EIO, f"wrote {expected} but read back {found}", str(attempt))


class Notes:
    """How many lines are done, in a small file that the driver looks at."""

    def __init__(self, file: Path):
        self.file = os.open(file, os.O_CREAT | os.O_WRONLY, 0o644)
        self.told = 0

    def tell(self, lines: int) -> None:
        if lines - self.told >= REPORT_EVERY:
            os.pwrite(self.file, b"%-12d" % lines, 0)
            self.told = lines

    def __enter__(self) -> Notes:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self.file)
