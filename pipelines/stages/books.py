"""What a training writes down as it goes: a row an iteration, Caffe's lines, curves, and the reports to the driver.

Files are rank 0's alone; the others keep the same sums.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor

from ops.solver.solver import Step
from ops.training.signs import Signs
from pipelines.stages.clock import Clock, limit
from pipelines.stages.run_folder import link

if TYPE_CHECKING:
    from pipelines.stages.setup import Setup

FLUSH_SECONDS = 2.0  # between writes of metrics.csv


@dataclass
class Pending:
    """What is known of an iteration before its losses are fetched from the device."""

    iteration: int
    losses: list[Tensor]
    rate: float | None  # None: it goes by this iteration's own loss
    waited: float
    images: int
    digest: int
    at: float


class Books:
    """`smooth`: the loss as Caffe shows it; `waited`: seconds for data, the mean over the workers."""

    def __init__(self, setup: Setup, clock: Clock):
        self.s, self.log, self.clock = setup, setup.log, clock
        self.first = setup.solver.iteration
        self.began = self.flushed = time.perf_counter()
        self.shown = (self.first - 1, self.began)
        self.smooth = setup.smoother.value if setup.smoother.losses else math.nan
        self.waited = 0.0
        self.images = 0
        self.scores: list[dict[str, Any]] = []
        self.saved: list[str] = []
        self.bad: dict[str, str] = {}  # records that others took the place of, and why; known at the end
        self.signs = Signs.of(setup.net, setup.spec, begun=self.first)

    # -- an iteration ------------------------------------------------------------------------------------------------

    def iterated(self, one: Pending, losses: list[float], *, waited: float, digest: int) -> None:
        """An iteration's row and its point of the curves; all numbers are those of the whole batch."""
        loss = sum(losses) / len(losses)
        self.smooth = self.s.smoother.add(loss)
        self.waited, self.images = self.waited + waited, self.images + one.images
        if one.rate is None:
            self.s.solver.observe(self.smooth)
            one.rate = self.s.solver.rate()
        spent = one.at - self.began
        for sign in self.signs.see(one.iteration, loss):
            self.log.line(f"warning: {sign}")
            if self.s.place.report is not None:
                self.s.place.report({"event": "sign", "lines": [f"warning: {sign}"]})
        if self.s.metrics is not None:
            row = (loss, losses[-1], one.rate, round(self.s.seconds + spent, 6), one.images, round(waited, 6))
            self.s.metrics.add(one.iteration, *row, f"{digest:016x}")
            self.s.events.trained(one.iteration, loss, one.rate, images=self.images, seconds=spent)
            if time.perf_counter() - self.flushed > FLUSH_SECONDS:
                self.flush()

    def report(self, one: Pending) -> None:
        """How far it is, after the newest of some iterations."""
        if self.s.place.report is not None:
            spent = one.at - self.began
            done = {"first": self.first, "iteration": one.iteration + 1, "loss": self.smooth, "lr": one.rate}
            done |= {"waited": self.waited / max(spent, 1e-9), "images": self.images, "seconds": spent}
            self.s.place.report({**done, "spent": self.clock.spent()})

    def flush(self) -> None:
        if self.s.metrics is not None:
            self.s.metrics.flush()
            self.s.events.flush()
            self.flushed = time.perf_counter()

    def displayed(self, iteration: int, outputs: Mapping[str, Tensor]) -> None:
        """Caffe's lines of an iteration: its loss, and how fast it went since the line before."""
        (before, at), now = self.shown, time.perf_counter()
        self.shown = iteration, now
        every, seconds = iteration - before, now - at
        self.log.displays(iteration, self.smooth, rate=every / max(seconds, 1e-9), seconds=seconds, every=every)
        values = {name: value.detach().float().cpu().numpy() for name, value in outputs.items()}
        self.log.outputs("Train", values, self.s.net.loss_weights)
        self.log.learns(iteration, self.s.solver.rate())

    def clipped(self, step: Step) -> None:
        """Caffe's line where a gradient was too long."""
        if step.clip_scale is None or step.norm is None or self.s.snapshots is None or float(step.clip_scale) >= 1:
            return
        self.log.line(
            f"Gradient clipping: scaling down gradients (L2 norm {float(step.norm):g} > "
            f"{self.s.spec.clip_gradients:g}) by scale factor {float(step.clip_scale):g}",
            where="sgd_solver.cpp",
        )

    # -- tests and snapshots -----------------------------------------------------------------------------------------

    def tested(self, iteration: int, number: int, values: Mapping[str, np.ndarray], loss: float) -> None:
        """What test net `number` gave; the weights are kept where that is the best so far."""
        if self.s.spec.test_compute_loss:
            self.log.line(f"Test loss: {loss:g}")
        self.log.outputs("Test", values, self.s.tests[number].net.loss_weights)
        flat = {name: value.ravel().tolist() for name, value in values.items()}
        self.scores = [*(old for old in self.scores if old["net"] != number)]
        self.scores.append({"net": number, "iteration": iteration, **flat})
        if self.s.scores is not None:
            for name, each in flat.items():
                for value in each:
                    self.s.scores.add(iteration, number, name, value)
            self.s.scores.flush()
            self.s.events.tested(iteration, number, flat)
        best = self.s.best.see(number, values, loss)
        if self.s.place.report is not None:
            self.s.place.report({"iteration": iteration, "net": number, "test": flat, "best": best})

    def snapped(self, state: Path) -> None:
        """A snapshot that has begun to be written."""
        name, hdf5 = str(state), state.name.endswith(".h5")
        self.saved = [*self.saved, name, name.replace(".solverstate", ".caffemodel")]
        self.log.snapshots(Path(self.saved[-1]), state=False, hdf5=hdf5)
        self.log.snapshots(state, state=True, hdf5=hdf5)

    # -- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Snapshots are written, and seen in the run's folder; so are the records that were left out."""
        if self.s.job.feed.get("max_bad"):
            own = {name: why for feed in self.s.feeds.values() for name, why in feed.bad.items()}
            self.bad = {name: why for part in self.s.group.everyones(own) for name, why in part.items()}
            if self.s.metrics is not None:
                list_bad(self.s.folder / "errors.csv", self.bad)
        if self.s.snapshots is not None:
            self.s.snapshots.wait()
            self.s.forget_recovery()
            link(self.s.folder, [Path(name) for name in self.saved])

    def result(self, *, stopped: bool) -> dict[str, Any]:
        seconds, spent, device = time.perf_counter() - self.began, self.spent(), self.s.place.device.type
        return {
            "run": str(self.s.folder),
            "iterations": self.s.solver.iteration,
            "from": self.first,
            "loss": self.smooth if math.isfinite(self.smooth) else None,
            "tests": self.scores,
            "snapshots": [name for name in self.saved if Path(name).exists()],  # without those that `keep` took away
            "bad": len(self.bad),
            "stopped": stopped,
            "best": self.s.best.held,
            "enough": self.s.best.enough,
            "seconds": round(seconds, 3),
            "images_per_s": round(self.images / seconds, 1) if seconds else 0.0,
            "waited_for_data": round(self.waited / seconds, 4) if seconds else 0.0,
            "time": spent,
            "device": device,
            "limited_by": limit(spent, cuda=device == "cuda"),
        }

    def spent(self) -> dict[str, float]:
        """The clock's seconds; for data what the workers waited in the mean, as all are as fast as the slowest."""
        spent = self.clock.spent()
        moved = min(self.waited - spent["data"], spent["step"])
        return {**spent, "data": spent["data"] + moved, "step": spent["step"] - moved}


def list_bad(file: Path, bad: Mapping[str, str]) -> None:
    """errors.csv of a run: `record,reason`; what an earlier part of the training found stays."""
    before = pd.read_csv(file, dtype=str).to_numpy().tolist() if file.exists() else []
    rows = sorted({**dict(before), **bad}.items())
    pd.DataFrame(rows, columns=["record", "reason"]).to_csv(file, index=False)
