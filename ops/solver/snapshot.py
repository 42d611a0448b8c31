"""Snapshots of a training: weights, solver state and a small JSON, written by a thread while the training goes on.

    with Snapshotter(solver, "lenet", keep=2) as snapshots:
        snapshots.take({"position": 6400})            # lenet_iter_100.caffemodel, .solverstate, .json
    latest("lenet")                                   # lenet_iter_100.solverstate

A snapshot of ours exists when its JSON does, which is renamed last and holds sizes and checksums of the other two; one
that Caffe wrote has none. While ours is unfinished, the temporary file of its JSON stands beside it.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import xxhash
from torch import Tensor

from ops import weights
from ops.net import Net
from ops.proto.binary import LIMIT
from ops.proto.caffe_pb2 import SolverParameter
from ops.solver import state
from ops.solver.solver import Solver
from ops.solver.updates import flat
from ops.weights import Format, replacing

CHUNK = 1 << 22  # bytes that are read at a time for a checksum
ENDINGS: dict[Format, str] = {"BINARYPROTO": "", "HDF5": ".h5"}
STATE = re.compile(r"_iter_(\d+)\.solverstate(\.h5)?")
UNFINISHED = re.compile(r"(?:\.tmp-\d+-[0-9a-f]{8}-)+(.*)_iter_(\d+)\.(json|caffemodel|solverstate)(\.h5)?")


@dataclass(frozen=True)
class Snapshot:
    """The files of one; `record` is what `take` was given, None where Caffe wrote the files."""

    iteration: int
    state: Path
    model: Path
    record: dict[str, Any] | None = None
    sums: Mapping[str, Mapping[str, Any]] | None = None  # file name -> bytes, xxh3

    @property
    def json(self) -> Path:
        return self.state.with_name(self.state.name.partition(".solverstate")[0] + ".json")


@dataclass(frozen=True)
class Names:
    """What the files of a snapshot are called."""

    model: str
    state: str
    json: str

    @staticmethod
    def of(prefix: str | Path, iteration: int, format: Format) -> Names:
        base, ending = f"{prefix}_iter_{iteration}", ENDINGS[format]
        return Names(f"{base}.caffemodel{ending}", f"{base}.solverstate{ending}", f"{base}.json")


# -- what there is -----------------------------------------------------------------------------------------------------


def find_snapshots(prefix: str | Path) -> list[Snapshot]:
    """The snapshots of a prefix, the oldest first; a state without its weights, or ours half written, is none."""
    folder, stem = Path(prefix).parent, Path(prefix).name
    names = {name for name in os.listdir(folder) if stem in name} if folder.is_dir() else set[str]()
    halves = {int(found[2]) for found in map(UNFINISHED.fullmatch, names) if found and found[1] == stem}
    snapshots = []
    for name in names:
        found = STATE.fullmatch(name.removeprefix(stem)) if name.startswith(stem) else None
        if found is None:
            continue
        iteration, model = int(found[1]), f"{stem}_iter_{found[1]}.caffemodel{found[2] or ''}"
        told = read_json(folder / f"{stem}_iter_{iteration}.json")
        if model not in names or (told is None and iteration in halves):
            continue
        if told is not None and not {name, model} <= set(told["files"]):
            continue  # of another format, from an earlier run
        record, sums = (told["record"], told["files"]) if told else (None, None)
        snapshots.append(Snapshot(iteration, folder / name, folder / model, record, sums))
    return sorted(snapshots, key=lambda one: (one.iteration, one.record is not None))


def read_json(path: Path) -> dict[str, Any] | None:
    """What `take` wrote; None where there is no such file."""
    try:
        told = json.loads(path.read_bytes())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return told if isinstance(told, dict) and {"iteration", "files", "record"} <= set(told) else None


def latest(prefix: str | Path) -> Path | None:
    """The solver state of the newest snapshot that is whole, each byte as it was written; None: there is none."""
    return next((one.state for one in reversed(find_snapshots(prefix)) if damage(one) is None), None)


def of_state(path: str | Path) -> Snapshot | None:
    """The snapshot that a .solverstate belongs to, with its record; None where it stands alone, as Caffe's may."""
    path = Path(path)
    found = STATE.search(path.name)
    if found is None:
        return None
    return next((one for one in find_snapshots(path.with_name(path.name[: found.start()])) if one.state == path), None)


def damage(snapshot: Snapshot) -> str | None:
    """What is wrong with a snapshot's files, in one line; None: nothing. Ours are read whole."""
    if snapshot.sums is None:
        try:
            with state.read(snapshot.state), weights.read(snapshot.model):
                return None
        except (OSError, ValueError) as error:
            return str(error)
    for path in (snapshot.model, snapshot.state):
        expected = snapshot.sums[path.name]
        if path.stat().st_size != expected["bytes"]:
            return f"{path}: {path.stat().st_size:,} bytes; its snapshot was written with {expected['bytes']:,}"
        if checksum(path) != expected["xxh3"]:
            return f"{path}: not the bytes that its snapshot was written with"
    return None


def checksum(path: Path) -> str:
    """XXH3 of a file, 64 bits in hexadecimal."""
    sums, buffer = xxhash.xxh3_64(), bytearray(CHUNK)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            sums.update(memoryview(buffer)[:count])
    return sums.hexdigest()


def resume(solver: Solver, path: str | Path) -> tuple[state.Restored, Snapshot | None]:
    """`state.restore`, after a look whether the snapshot is whole; its record, where it has one, is in the second."""
    snapshot = of_state(path)
    if snapshot is not None and snapshot.sums is not None:
        told = damage(snapshot)
        if told is not None:
            raise ValueError(f"{told}; resume from another, or delete {snapshot.json.name} to use it as it is")
    learned = snapshot.model if snapshot is not None and snapshot.sums is not None else None
    return state.restore(solver, path, learned_net=learned), snapshot


# -- writing -----------------------------------------------------------------------------------------------------------


def prefix_of(spec: SolverParameter, path: str | Path) -> str:
    """What a solver's snapshots begin with: snapshot_prefix, else the solver's file without its ending.

    As Caffe: a prefix that is a folder means the solver's name in it.
    """
    stem = Path(path).with_suffix("")
    if not spec.snapshot_prefix:
        return str(stem)
    return str(Path(spec.snapshot_prefix) / stem.name) if Path(spec.snapshot_prefix).is_dir() else spec.snapshot_prefix


def save(
    solver: Solver,
    prefix: str | Path,
    record: Mapping[str, Any] | None = None,
    *,
    format: Format = "BINARYPROTO",
    diff: bool = False,
) -> Path:
    """Write a snapshot now, from the net's own tensors; its .solverstate."""
    writing = Writing.of(solver, prefix, record, format=format, diff=diff)
    blobs = [blob.detach() for blob in solver.blobs]
    for blob, value in zip(blobs, solver.diffs if diff else (), strict=diff):
        blob.grad = value
    writing.run(every_blob(solver.net, blobs), solver.history)
    return Path(writing.names.state)


class Snapshotter:
    """Takes snapshots without holding up the training for longer than a copy of its numbers takes.

    The copies go to memory that is reused (for CUDA pinned, and copied by the device); a thread writes them. `diff`:
    what the last update took from the weights too (`Solver.diffs`). `keep`: of the snapshots with this prefix that are
    ours and not newer, only so many stay; the older ones are deleted once the newer is complete. What goes wrong in the
    thread, a full disk, is raised by the next call.
    One process at a time writes under a prefix: what it finds half written there is deleted.
    """

    def __init__(
        self,
        solver: Solver,
        prefix: str | Path,
        *,
        format: Format = "BINARYPROTO",
        diff: bool = False,
        keep: int | None = None,
    ):
        if keep is not None and keep < 1:
            raise ValueError(f"keep is {keep}; at least 1 snapshot must stay")
        check(solver, prefix, format)
        tidy(prefix)
        self.solver, self.prefix, self.format, self.diff, self.keep = solver, prefix, format, diff, keep
        self.blobs: list[Tensor] = []
        self.history: list[Tensor] = []
        self.thread = ThreadPoolExecutor(1, "snapshot")
        self.pending: Future[None] | None = self.thread.submit(self._allocate)

    def __enter__(self) -> Snapshotter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.thread.shutdown()
        if error is None:
            self.wait()

    def take(self, record: Mapping[str, Any] | None = None) -> Path:
        """Snapshot the solver as it stands; its .solverstate, which is there after `wait` or the next `take`.

        `record` goes into the JSON: where the feed is, keys of chance, digests. Waits for the snapshot before.
        """
        self.wait()
        writing = Writing.of(self.solver, self.prefix, record, format=self.format, diff=self.diff)
        copied = self._copy()
        self.pending = self.thread.submit(self._write, writing, copied)
        return Path(writing.names.state)

    def wait(self) -> None:
        """Until what was taken is written; OSError or ValueError of one line where it could not be."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def _allocate(self) -> None:
        """Memory for the copies, touched once: the first touch of a page takes longer than a copy."""
        self.blobs = [host_like(blob) for blob in self.solver.blobs]
        self.history = [host_like(one) for one in self.solver.history]
        if self.diff:
            for blob in self.blobs:
                blob.grad = host_like(blob)

    @torch.no_grad()
    def _copy(self) -> torch.cuda.Event | None:
        """The numbers into host memory; on CUDA, the event after which they are there."""
        pairs = list(zip([*self.blobs, *self.history], [*self.solver.blobs, *self.solver.history], strict=True))
        for held, blob in pairs:
            flat(held).copy_(flat(blob), non_blocking=True)
        for held, value in zip(self.blobs, self.solver.diffs if self.diff else (), strict=self.diff):
            if held.grad is not None:
                flat(held.grad).copy_(flat(value), non_blocking=True)
        if not any(blob.is_cuda for _, blob in pairs):
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _write(self, writing: Writing, copied: torch.cuda.Event | None) -> None:
        if copied is not None:
            copied.synchronize()
        writing.run(every_blob(self.solver.net, self.blobs), self.history)
        if self.keep is not None:
            prune(self.prefix, writing.state.iteration, self.keep)


@dataclass(frozen=True)
class Writing:
    """One snapshot on its way to the disk."""

    net: Net
    names: Names
    state: state.State
    record: str  # as JSON
    format: Format
    diff: bool

    @staticmethod
    def of(
        solver: Solver, prefix: str | Path, record: Mapping[str, Any] | None, *, format: Format, diff: bool
    ) -> Writing:
        names = Names.of(prefix, solver.iteration, format)
        standing = state.standing(solver, names.state, names.model)
        return Writing(solver.net, names, standing, json.dumps(dict(record or {})), format, diff)

    def run(self, blobs: Mapping[tuple[int, int], Tensor], history: Sequence[Tensor]) -> None:
        """Write all three under temporary names, sync them, rename them: the JSON last."""
        with ExitStack() as renames:  # in reverse order
            told = renames.enter_context(replacing(self.names.json, len(self.record)))
            stated = renames.enter_context(replacing(self.names.state, weights.size_of([*history])))
            weighed = renames.enter_context(replacing(self.names.model, weights.size_of([*blobs.values()])))
            weights.write(self.net, weighed, format=self.format, diff=self.diff, blobs=blobs)
            state.write_state(replace(self.state, path=str(stated)), history, format=self.format)
            sums = {
                Path(name).name: {"bytes": path.stat().st_size, "xxh3": checksum(path)}
                for name, path in ((self.names.model, weighed), (self.names.state, stated))
            }
            told.write_text(
                f'{{"iteration": {self.state.iteration}, "files": {json.dumps(sums)}, "record": {self.record}}}\n'
            )


def every_blob(net: Net, blobs: Sequence[Tensor]) -> dict[tuple[int, int], Tensor]:
    """(layer, blob) -> tensor, from those of net.learnable; blobs that are shared have their owner's."""
    owned = {(one.layer, one.index): blob for one, blob in zip(net.learnable, blobs, strict=True)}
    return owned | {at: owned[owner] for at, owner in net.shared.items()}


def host_like(tensor: Tensor) -> Tensor:
    """Touched memory on the host for a tensor's numbers, laid out as it is."""
    pinned = tensor.is_cuda
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, pin_memory=pinned).zero_()


def check(solver: Solver, prefix: str | Path, format: Format) -> None:
    """OSError or ValueError where snapshots could not be written: better now than at the first."""
    folder = Path(prefix).parent
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder, and snapshots are to be written there", str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "snapshots cannot be written there", str(folder))
    if format == "HDF5":
        return weights.check_names(solver.net, prefix)
    size = max(weights.size_of([*solver.blobs]), weights.size_of([*solver.history]))
    if size > LIMIT:
        told = f"a snapshot of {size:,} bytes, more than the {LIMIT:,} that a binary file may have"
        raise ValueError(f"{prefix}: {told}; write snapshot_format: HDF5")
    return None


def prune(prefix: str | Path, iteration: int, keep: int) -> None:
    """Delete our snapshots up to `iteration` but the newest `keep`: weights, state, and the JSON last."""
    folder, stem = Path(prefix).parent, Path(prefix).name
    ours = []
    for name in os.listdir(folder):
        found = re.fullmatch(r"_iter_(\d+)\.json", name.removeprefix(stem)) if name.startswith(stem) else None
        told = read_json(folder / name) if found and int(found[1]) <= iteration else None
        if found and told:
            ours.append((int(found[1]), [*told["files"], name]))
    for _, names in sorted(ours)[:-keep]:
        for name in names:
            (folder / Path(name).name).unlink(missing_ok=True)


def tidy(prefix: str | Path) -> None:
    """Delete what a killed run left: temporary files of this prefix, and a snapshot that has no JSON yet."""
    folder, stem = Path(prefix).parent, Path(prefix).name
    left = [(name, UNFINISHED.fullmatch(name)) for name in os.listdir(folder) if stem in name]
    ours = [(name, found) for name, found in left if found and found[1] == stem]
    for name, found in sorted(ours, key=lambda one: one[1][3] == "json"):
        base = f"{stem}_iter_{found[2]}"
        if found[3] == "json" and not (folder / f"{base}.json").exists():
            for file in folder.glob(f"{glob.escape(base)}.*"):
                if STATE.fullmatch(file.name.removeprefix(stem)) or ".caffemodel" in file.name:
                    file.unlink(missing_ok=True)
        (folder / name).unlink(missing_ok=True)
