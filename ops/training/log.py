"""train.log: the lines that Caffe prints, in glog's form, which every parser of such logs reads.

I1124 15:04:05.000006  4711 solver.cpp:228] Iteration 100 (12.5 iter/s, 8s/100 iters), loss = 0.25
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

SOLVER, NET, TOOL, SGD = "solver.cpp", "net.cpp", "caffe.cpp", "sgd_solver.cpp"


def number(value: float) -> str:
    """As C++ streams print: six significant digits."""
    return (
        format(value, "g") if math.isfinite(value) else ("nan" if math.isnan(value) else "inf" if value > 0 else "-inf")
    )


@contextlib.contextmanager
def writing(path: Path | None) -> Iterator[None]:
    """An OSError of a write says which file it was."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


class Log:
    """Writes lines to a file; `level` letters are I, W, E."""

    def __init__(self, path: Path | None, *, append: bool = False):
        self.path = path
        self.file: IO[str] | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a" if append else "w", encoding="utf-8", buffering=1)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
            self.close()

    def line(self, text: str, *, where: str = SOLVER, level: str = "I") -> None:
        """One line with its time, thread and source file."""
        if self.file is None:
            return
        now = time.time()
        clock = time.strftime("%m%d %H:%M:%S", time.localtime(now))
        thread = threading.get_native_id()
        with writing(self.path):
            self.file.write(f"{level}{clock}.{int(now % 1 * 1e6):06d} {thread:5d} {where}:1] {text}\n")

    def close(self) -> None:
        file, self.file = self.file, None
        if file is not None:
            with writing(self.path), file:
                file.flush()
                os.fsync(file.fileno())

    # -- what a training says --------------------------------------------------------------------------------------

    def begins(self, net: str, policy: str) -> None:
        self.line("Starting Optimization", where=TOOL)
        self.line(f"Solving {net}")
        self.line(f"Learning Rate Policy: {policy}")

    def displays(self, iteration: int, loss: float, *, rate: float, seconds: float, every: int) -> None:
        """Loss at an iteration; `seconds` since the line before, `every` iterations ago."""
        self.line(
            f"Iteration {iteration} ({number(rate)} iter/s, {number(seconds)}s/{every} iters), loss = {number(loss)}"
        )

    def outputs(self, kind: str, values: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> None:
        """Each element of each output of a "Train" or "Test" net, with its share of the loss where it has one."""
        for place, (name, value) in enumerate(elements(values)):
            weight = weights.get(name, 0.0)
            share = f" (* {number(weight)} = {number(weight * value)} loss)" if weight else ""
            self.line(f"    {kind} net output #{place}: {name} = {number(value)}{share}")

    def learns(self, iteration: int, rate: float) -> None:
        self.line(f"Iteration {iteration}, lr = {number(rate)}", where=SGD)

    def tests(self, iteration: int, number_: int) -> None:
        self.line(f"Iteration {iteration}, Testing net (#{number_})")

    def snapshots(self, path: Path, *, state: bool, hdf5: bool) -> None:
        what = "solver state to " if state else "to "
        self.line(
            f"Snapshotting {what}{'HDF5' if hdf5 else 'binary proto'} file {path}", where=SGD if state else SOLVER
        )


def elements(values: Mapping[str, np.ndarray]) -> list[tuple[str, float]]:
    """(blob name, value) of each element, blob after blob."""
    listed: list[tuple[str, float]] = []
    for name, value in values.items():
        listed += [(name, float(one)) for one in np.ravel(value)]
    return listed


def smoothed(losses: Sequence[float], window: int) -> float:
    """The mean of the last losses; see Smoother for the running form that Caffe shows."""
    return sum(losses[-window:]) / min(len(losses), window)


class Smoother:
    """Caffe's smoothed loss: the plain mean while fewer than `window` are held, then a running one."""

    def __init__(self, window: int, losses: Sequence[float] = (), value: float = 0.0, turn: int = 0):
        self.window, self.losses, self.value, self.turn = max(1, window), list(losses), value, turn

    def add(self, loss: float) -> float:
        """The smoothed loss with one more."""
        if len(self.losses) < self.window:
            self.losses.append(loss)
            held = len(self.losses)
            self.value = (self.value * (held - 1) + loss) / held
        else:
            at = self.turn % self.window
            self.value += (loss - self.losses[at]) / self.window
            self.losses[at] = loss
        self.turn += 1
        return self.value

    @staticmethod
    def going_on(window: int, losses: Sequence[float] = (), value: float = 0.0, turn: int = 0) -> Smoother:
        """From what `state` gave; in a window of another size, from the losses that are still in it."""
        held = len(losses)
        if held == min(window, turn):
            return Smoother(window, losses, value, turn)
        made = Smoother(window)
        for at in range(max(0, held - window), held):
            made.add(losses[(turn + at) % held])
        return made

    def state(self) -> dict[str, object]:
        return {"losses": self.losses, "value": self.value, "turn": self.turn}
