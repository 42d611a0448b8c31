"""The golden solver runs: nets, start weights and data as Caffe had them."""

from functools import cache
from pathlib import Path

import h5py
import numpy as np
import torch

from ops import net as nets
from ops.proto import text
from ops.proto.caffe_pb2 import SolverParameter
from ops.solver.solver import Solver

FOLDER = Path(__file__).parents[2] / "golden" / "solvers"
RUNS = sorted(file.stem.removeprefix("traj_") for file in FOLDER.glob("traj_*.npz"))
SNAPSHOTS = sorted(file.name.removesuffix("_iter_10.solverstate")[5:] for file in FOLDER.glob("snap_*.solverstate"))
BATCH, RECORDS = 8, 48


@cache
def data():
    with h5py.File(FOLDER / "train.h5") as file:
        return {name: torch.from_numpy(file[name][:]) for name in file}


class Run:
    """One golden run: `step()` does an iteration and gives its loss, the last sub-batch's as Caffe's file has it."""

    def __init__(self, name, *, device="cpu", **changes):
        spec = text.read(FOLDER / f"solver_{name}.prototxt", SolverParameter)
        spec.MergeFrom(SolverParameter(**changes))
        kind = "reg" if "reg" in spec.net else "cls"
        self.target = {"reg": "vec", "cls": "label"}[kind]
        shapes = {"data": (BATCH, 2, 8, 8), self.target: (BATCH, 3) if kind == "reg" else (BATCH,)}
        weights = FOLDER / f"init_{kind}.caffemodel"
        self.net = nets.load(FOLDER / spec.net, "TRAIN", weights=weights, inputs=shapes, device=device)
        self.solver = Solver(spec, self.net, name=f"solver_{name}.prototxt")

    def batch(self, number):
        rows = [place % RECORDS for place in range(number * BATCH, (number + 1) * BATCH)]
        return {name: data()[name][rows] for name in ("data", self.target)}

    def step(self):
        size = self.solver.spec.iter_size
        for part in range(size):
            loss = self.net.loss(self.net(self.batch(self.solver.iteration * size + part)))
            loss.backward()
        self.solver.update()
        self.solver.zero_grad()
        return loss.item()

    def weights(self):
        params = self.net.params
        return {f"{layer}/{i}": blob.detach().cpu().numpy() for layer in params for i, blob in enumerate(params[layer])}


def trajectory(name):
    """Losses of the 24 iterations, and {iteration: {"layer/blob": weights}}."""
    with np.load(FOLDER / f"traj_{name}.npz") as file:
        arrays = dict(file)
    after = {n: {k.partition("/")[2]: v for k, v in arrays.items() if k.startswith(f"iter{n}/")} for n in (1, 10, 24)}
    return arrays["loss"], after


def error(found, expected):
    """The relative error of a norm."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
