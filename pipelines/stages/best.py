"""The best weights of a run so far, as its tests tell, kept in its folder; and when to stop for want of better ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ops import weights
from ops.training.watch import Watch
from pipelines.stages.run_folder import read_json, write_json

if TYPE_CHECKING:
    from pipelines.stages.setup import Setup


class Best:
    """`held`: what is known of the weights that the folder holds; `enough`: why to stop, once it is time to."""

    def __init__(self, setup: Setup):
        self.s = setup
        known = (read_json(setup.folder / "model.json") or {}).get("best") if setup.record else None
        self.held: dict[str, Any] | None = known if known and (setup.folder / known["weights"]).exists() else None
        self.enough: str | None = None
        self.watch = self.watching()
        told = setup.record.get("watch")
        if self.watch is not None and told and (told["best"] is None or self.held):
            self.watch.resume(told)  # else the best weights are in another run's folder

    def watching(self) -> Watch | None:
        job = self.s.job
        if job.patience is None and job.best is None:
            return None
        try:
            return Watch.of([one.net for one in self.s.tests], job.best, patience=job.patience)
        except ValueError as error:
            asked = f"--best {job.best}" if job.best is not None else "--patience"
            raise ValueError(f"{asked}: {error}") from None

    def see(self, number: int, values: Mapping[str, np.ndarray], loss: float) -> bool:
        """Whether the result of test net `number` is the best so far: its weights are kept. Every process asks."""
        watch, setup = self.watch, self.s
        if watch is None or watch.net != number:
            return False
        better = watch.see(setup.solver.iteration, watch.score(values, loss))
        if better and setup.group.rank == 0:
            self.keep(watch)
        done = torch.tensor(float(watch.done and setup.group.rank == 0), device=setup.place.device)
        if setup.group.sum(done).item() and setup.solver.iteration < setup.spec.max_iter:
            self.enough = watch.told()
            setup.log.line(f"Stopping: {self.enough}")
        return better

    def keep(self, watch: Watch) -> None:
        """Write the weights into the run's folder, and what they reached into run.json and model.json."""
        hdf5 = self.s.spec.snapshot_format == self.s.spec.HDF5
        name = f"best.caffemodel{'.h5' if hdf5 else ''}"
        weights.write(self.s.net, self.s.folder / name)
        self.held = {
            "weights": name,
            "iteration": watch.iteration,
            "net": watch.net,
            "output": watch.name,
            "value": watch.best,
        }
        for file in (self.s.folder / "run.json", self.s.folder / "model.json"):
            write_json(file, {**(read_json(file) or {}), **self.facts()})

    def facts(self) -> dict[str, Any]:
        """What run.json and model.json say of it."""
        return {"best": self.held} if self.held else {}

    def state(self) -> dict[str, Any] | None:
        """For a snapshot's record."""
        return self.watch.state() if self.watch is not None else None
