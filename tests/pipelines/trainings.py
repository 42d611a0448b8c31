"""Small trainings, as tests use them: nets, data, a run in this process, and what came of it."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from ops import weights
from ops.proto import text
from ops.proto.caffe_pb2 import SolverParameter
from ops.solver import state
from pipelines import worker
from pipelines.stages.setup import Place, Training
from pipelines.worker import STOP, train

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SOLVERS = GOLDEN / "solvers"
RECORDS = 48  # in train.h5

LOSS = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }'
IP = """layer { name: "ip" type: "InnerProduct" bottom: "BOTTOM" top: "ip"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }"""
CONV = """layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }"""
RELU = 'layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }'


def hdf5_layer(batch: int = 8, more: str = "", source: str = "train_list.txt", tops: str = "data label") -> str:
    listed = " ".join(f'top: "{top}"' for top in tops.split())
    param = f'hdf5_data_param {{ source: "{source}" batch_size: {batch} {more} }}'
    return f'layer {{ name: "data" type: "HDF5Data" {listed} {param} }}\n'


def ip(bottom: str, classes: int = 5) -> str:
    return IP.replace("BOTTOM", bottom).replace("num_output: 5", f"num_output: {classes}") + "\n"


def net(*layers: str) -> str:
    return 'name: "tiny"\n' + "\n".join(layers)


NET = net(hdf5_layer(), CONV, RELU, ip("conv"), LOSS)
LAST = 13  # iterations


def solver(more: str = "", *, lr: float = 0.05, policy: str = "fixed") -> str:
    given = f'base_lr: {lr} lr_policy: "{policy}" momentum: 0.9 weight_decay: 0.005 max_iter: {LAST} random_seed: 3'
    return f"{given} {more}"


@dataclass
class Case:
    """A net, a solver, and options of Training."""

    net: str = NET
    solver: str = solver()
    options: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path, **changes: Any) -> Path:
        """net.prototxt and solver.prototxt, with some fields of the solver changed."""
        (folder / "net.prototxt").write_text(self.net)
        (folder / "solver.prototxt").write_text(f'net: "net.prototxt" {self.solver}')
        spec = text.read(folder / "solver.prototxt", SolverParameter)
        for name, value in changes.items():
            if isinstance(value, list):
                spec.ClearField(name)
                getattr(spec, name).extend(value)
            else:
                setattr(spec, name, value)
        text.write(folder / "solver.prototxt", spec)
        return folder / "solver.prototxt"


def data_files(folder: Path) -> None:
    """train.h5 of the golden runs (48 records, 2x8x8, 5 classes), sequences in time.h5, and lists that name them."""
    (folder / "train_list.txt").write_text(f"{SOLVERS / 'train.h5'}\n")
    numbers = np.random.default_rng(5)
    with h5py.File(folder / "time.h5", "w") as file:  # a row is a step of 3 streams
        file["data"] = numbers.normal(size=(40, 3, 4)).astype(np.float32)
        file["cont"] = (numbers.random((40, 3)) > 0.15).astype(np.float32)
        file["label"] = numbers.integers(0, 5, (40, 3)).astype(np.float32)
    (folder / "time_list.txt").write_text(f"{folder / 'time.h5'}\n")


def run(path: Path, folder: Path | str, *, stop: int | None = None, **options: Any) -> dict[str, Any]:
    """Train in this process on one thread; `stop`: as Ctrl-C once that many iterations are done."""
    seen = {"iteration": 0}
    place = Place(signals=False, report=lambda told: seen.update(told) if "loss" in told else None)
    if stop is not None:
        place.requests = lambda: STOP if seen["iteration"] >= stop - 1 else 0
    before, patience = torch.get_num_threads(), worker.SETTLE_SECONDS
    torch.set_num_threads(1)
    worker.SETTLE_SECONDS = 0.0  # it reports each iteration
    try:
        return train(Training(solver=str(path), run=str(folder), **options), place)
    finally:
        torch.set_num_threads(before)
        worker.SETTLE_SECONDS = patience


def rows(folder: Path, name: str = "metrics.csv") -> list[tuple[str, ...]]:
    """The rows of a table, without what depends on the clock."""
    with (folder / name).open() as file:
        timed = ("seconds", "data_wait")
        return [tuple(value for key, value in row.items() if key not in timed) for row in csv.DictReader(file)]


def arrays(model: str | Path) -> dict[str, np.ndarray]:
    """The blobs of a .caffemodel, as "layer/index"."""
    with weights.read(model) as saved:
        return {f"{one.name}/{i}": blob.values() for one in saved.layers for i, blob in one.blobs.items()}


def numbers_of(folder: Path, iteration: int, prefix: str = "solver", ending: str = "") -> dict[str, Any]:
    """Everything that a snapshot says in numbers: weights, history, iteration, falls."""
    base = f"{folder / prefix}_iter_{iteration}"
    found: dict[str, Any] = arrays(f"{base}.caffemodel{ending}")
    with state.read(f"{base}.solverstate{ending}") as one:
        found |= {f"history/{i}": blob.values() for i, blob in enumerate(one.history)}
        found |= {"iteration": one.iteration, "step": one.current_step, "least": one.minimum_loss}
    return found


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Bit for bit."""
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(found[name], value, equal_nan=True), name
        else:
            assert found[name] == value, name


def environment() -> dict[str, str]:
    """Of a training in a process of its own: one thread, so that small nets do not wait for each other."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}
