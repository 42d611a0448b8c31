"""Solver states, .solverstate files (binary and HDF5) as Caffe writes and reads them.

    write("lenet_iter_100.solverstate", solver, learned_net="lenet_iter_100.caffemodel")
    restored = restore(solver, "lenet_iter_100.solverstate")     # the weights too

A file that does not fit the solver or its net changes neither.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from torch import Tensor

from ops import weight_files, weights
from ops.layers.registry import text
from ops.names import pick, quoted
from ops.proto.binary import BYTES, VARINT
from ops.proto.caffe_pb2 import SolverState
from ops.proto.files import HDF5_SIGNATURE, sniff
from ops.proto.wire import Bytes, DamageError, fields, fits
from ops.solver.solver import Solver
from ops.weight_files import SavedBlob
from ops.weights import Format, Report, format_of

LONGEST_PATH = 64 * 1024  # bytes
UNSEEN = 1e38  # the least loss where none was seen: SolverState's default
HISTORY = SolverState.DESCRIPTOR.fields_by_name["history"].number


@dataclass
class State:
    """An open .solverstate: read the history before it is closed."""

    path: str
    iteration: int = 0
    current_step: int = 0
    learned_net: str = ""  # where the weights were written, as the solver named it
    minimum_loss: float = math.inf  # this and the next of lr_policy "plateau" only
    last_event: int = 0
    history: list[SavedBlob] = field(default_factory=list)
    close: Callable[[], None] = lambda: None

    @property
    def watches(self) -> bool:
        """Whether lr_policy "plateau" has something to remember."""
        return self.minimum_loss < math.inf or self.last_event > 0

    def __enter__(self) -> State:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


# -- reading -----------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> State:
    """What a .solverstate holds, binary or HDF5 by its content; ValueError names the file and what is wrong with it."""
    file = Bytes(path)
    with ExitStack() as after_an_error:
        after_an_error.callback(file.close)
        if file.read(0, min(len(HDF5_SIGNATURE), file.size)) == HDF5_SIGNATURE:
            return _read_hdf5(str(path))
        try:
            state = _read_binary(file)
        except DamageError as error:
            raise ValueError(f"{path}: {_something_else(path) or f'no .solverstate: {error}'}") from None
        after_an_error.pop_all()
        return state


def _read_binary(file: Bytes) -> State:
    if not file.size:
        raise DamageError("it is empty")
    state = State(file.path, close=file.close)
    for one in fields(file, 0, file.size):
        known = SolverState.DESCRIPTOR.fields_by_number.get(one.number)
        if known is None:
            continue
        if not fits(known, one.wire):
            raise DamageError(f"its field {one.number} is no '{known.name}'")
        if one.number == HISTORY:
            state.history.append(weight_files._blob(file, one))
        elif one.wire == BYTES:
            if one.stop - one.start > LONGEST_PATH:
                raise DamageError(f"damaged: no path at byte {one.start:,}")
            state.learned_net = os.fsdecode(file.read(one.start, one.stop - one.start))
        elif one.wire == VARINT:
            _count(state, known.name, one.value)
        else:
            state.minimum_loss = _seen(np.frombuffer(file.read(one.start, 4), "<f4")[0])
    return state


def _count(state: State, name: str, value: int) -> None:
    if value >= 1 << 31:
        raise DamageError(f"damaged: its {name} is {value:,}")
    setattr(state, {"iter": "iteration", "iter_last_event": "last_event"}.get(name, name), value)


def _seen(loss: float) -> float:
    return float(loss) if loss < np.float32(UNSEEN) else math.inf


def _something_else(path: str | Path) -> str | None:
    """What a file that is no .solverstate is instead."""
    if os.path.getsize(path) and sniff(path) == "text":
        return "a text file, not a solver state"
    try:
        with weights.read(path):
            return "weights (a .caffemodel), not a solver state; give the .solverstate that was written with it"
    except ValueError:
        return None


def _read_hdf5(path: str) -> State:
    try:
        file = h5py.File(path, "r")
    except weight_files.HDF5_ERRORS as error:
        raise ValueError(f"{path}: cannot be read as HDF5: {_line(error)}") from None
    try:
        return _hdf5_state(path, file)
    except DamageError as error:
        file.close()
        raise ValueError(f"{path}: {error}") from None
    except weight_files.HDF5_ERRORS as error:
        file.close()
        raise ValueError(f"{path}: damaged HDF5: {_line(error)}") from None


def _hdf5_state(path: str, file: h5py.File) -> State:
    """Datasets iter, current_step, learned_net, and history/0, history/1, ..."""
    group = file.get("history")
    if not isinstance(group, h5py.Group) or "iter" not in file:
        if isinstance(file.get("data"), h5py.Group):
            raise DamageError("weights, not a solver state; give the .solverstate.h5 that was written with them")
        held = ", ".join(map(quoted, list(file)[:5])) or "nothing"
        raise DamageError(f"an HDF5 file without 'iter' and 'history', not a solver state; it holds {held}")
    names = list(map(str, range(len(group))))
    if sorted(group) != sorted(names) or not all(isinstance(group[name], h5py.Dataset) for name in names):
        raise DamageError(f"damaged: 'history' holds {', '.join(map(quoted, list(group)[:5]))}, not datasets 0, 1, ...")
    state = State(path, close=file.close)
    state.iteration, state.current_step = _number(file, "iter"), _number(file, "current_step")
    state.last_event = _number(file, "iter_last_event")
    if "minimum_loss" in file:
        state.minimum_loss = _seen(float(_only(file, "minimum_loss")))
    if "learned_net" in file:
        told = _only(file, "learned_net")
        state.learned_net = os.fsdecode(told) if isinstance(told, bytes) else str(told)
    state.history = [weight_files._dataset(f"{path}: history {name}", group[name]) for name in names]
    return state


def _number(file: h5py.File, name: str) -> int:
    number = int(_only(file, name)) if name in file else 0
    if number < 0:
        raise DamageError(f"damaged: its {name} is {number:,}")
    return number


def _only(file: h5py.File, name: str) -> Any:
    """The one element of a dataset."""
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.size != 1:
        raise DamageError(f"damaged: {quoted(name)} is not one number or string")
    return np.asarray(dataset[()]).reshape(-1)[0]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


# -- restoring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Restored:
    """Where a training goes on, the weights that it goes on with, what loading them told."""

    iteration: int
    learned_net: Path | None
    report: Report | None


def restore(solver: Solver, path: str | Path, *, learned_net: str | Path | None = None) -> Restored:
    """Go on from a .solverstate: history, iteration, rate, and weights: those that it names, or of `learned_net`.

    ValueError or OSError of one line, before anything is changed, where the state is another net's or solver's.
    """
    with read(path) as state:
        _check(solver, state)
        found = Path(learned_net) if learned_net else find_learned_net(state)
        report = weights.load(solver.net, found, strict=True) if found else None
        for saved, history in zip(state.history, solver.history, strict=True):
            weights.transfer(saved, history)
        solver.stand(state.iteration, state.current_step, minimum_loss=state.minimum_loss, last_event=state.last_event)
    return Restored(state.iteration, found, report)


def _check(solver: Solver, state: State) -> None:
    """Every blob of the net has its history, of its shape."""
    owners, rule = solver.net.learnable, solver.spec.type
    wanted, found = len(solver.history), len(state.history)
    if found != wanted:
        more = ""
        if owners and found in (len(owners), 2 * len(owners)):
            more = "; its solver was of another type (AdaDelta and Adam have two for each blob, the others one)"
        told = f"{rule} on this net, of {len(owners)} blobs, wants {wanted}"
        raise ValueError(f"{state.path}: holds {found} history blobs; {told}{more}")
    for at, saved in enumerate(state.history):
        one = owners[at % len(owners)]
        layer = solver.net.layers[one.layer]
        place = f"history {at} (layer {quoted(layer.spec.name)} blob {one.index})"
        shape = tuple(solver.history[at].shape)
        if not saved.fits(shape):
            raise ValueError(
                f"{state.path}: {place} is {text(saved.shape)}, the net wants {text(shape)}: another net's"
            )
        if saved.problem:
            raise ValueError(f"{state.path}: {place}: {saved.problem}")


def find_learned_net(state: State) -> Path | None:
    """The file of weights that a state names: as it is stored, as Caffe looks it up, else beside the state."""
    if not state.learned_net:
        return None
    stored = Path(state.learned_net)
    beside = Path(state.path).parent / stored.name
    for path in (stored, beside):
        if path.is_file():
            return path
    both = f"{stored} and {beside}" if stored != beside else str(stored)
    raise FileNotFoundError(
        f"{state.path}: its weights, {stored.name}, are not there; looked for {both}; put them beside the state"
    )


# -- writing -----------------------------------------------------------------------------------------------------------


def write(path: str | Path, solver: Solver, *, learned_net: str, format: Format | None = None) -> None:
    """Write where a solver stands, whole or not at all; `format` is by default what the name says, as for weights."""
    write_state(standing(solver, path, learned_net), solver.history, format=format)


def standing(solver: Solver, path: str | Path, learned_net: str) -> State:
    """What a state file says beside the history."""
    return State(str(path), solver.iteration, solver.current_step, learned_net, solver.minimum_loss, solver.last_event)


def write_state(state: State, history: Sequence[Tensor], *, format: Format | None = None) -> None:
    """Write a state with these tensors as its history."""
    pick(WRITERS, format or format_of(state.path), "snapshot format")(state, history)


def _write_binary(state: State, history: Sequence[Tensor]) -> None:
    """The fields in the order of their numbers, all that Caffe writes."""
    before, after = SolverState(iter=state.iteration), SolverState(current_step=state.current_step)
    if state.watches:
        after.minimum_loss, after.iter_last_event = min(state.minimum_loss, UNSEEN), state.last_event
    parts: weights.Parts = [before.SerializeToString() + weights.record(2, os.fsencode(state.learned_net))]
    for blob in history:
        parts += weights.message(HISTORY, weights.blob_parts(blob, tuple(blob.shape)))
    weights.write_parts(state.path, [*parts, after.SerializeToString()], ".solverstate")


def _write_hdf5(state: State, history: Sequence[Tensor]) -> None:
    """Caffe's datasets: numbers of one element, a string with its final zero."""
    total = weights.size_of([*history])
    with weights.replacing(state.path, total) as temporary, h5py.File(temporary, "w") as file:
        kind = h5py.h5t.C_S1.copy()
        learned_net = os.fsencode(state.learned_net) + b"\0"
        kind.set_size(len(learned_net))
        made = h5py.h5d.create(file.id, b"learned_net", kind, h5py.h5s.create(h5py.h5s.SCALAR))
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array(learned_net, f"S{len(learned_net)}"), kind)
        file.create_dataset("iter", data=np.array([state.iteration], np.int32))
        file.create_dataset("current_step", data=np.array([state.current_step], np.int32))
        if state.watches:
            file.create_dataset("minimum_loss", data=np.array([min(state.minimum_loss, UNSEEN)], np.float32))
            file.create_dataset("iter_last_event", data=np.array([state.last_event], np.int32))
        group = file.create_group("history")
        for at, blob in enumerate(history):
            weights.put(group, str(at), blob)


WRITERS = {"BINARYPROTO": _write_binary, "HDF5": _write_hdf5}
