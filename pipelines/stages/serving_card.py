"""What the folder of a run knows of how a served net was trained, for its model card. Names of files, never paths."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

from ops.proto import text
from ops.proto.caffe_pb2 import LayerParameter, NetParameter
from ops.training.nets import locate, read_solver
from pipelines.stages.dataset import open_dataset
from pipelines.stages.feature_model import Model

ITERATION = re.compile(r"_iter_(\d+)\.caffemodel")
SOURCES = {"Data": "data_param", "ImageData": "image_data_param", "HDF5Data": "hdf5_data_param"}


def trained(model: Model) -> dict[str, Any] | None:
    """Solver, iterations, data, and what the tests at that iteration said; None for a net that is of no run."""
    if model.run is None:
        return None
    run, iteration = model.run, iteration_of(model)
    found: dict[str, Any] = {"run": run.absolute().name, "iteration": iteration, "solver": None, "max_iter": None}
    try:
        solver = read_solver(run / "solver.prototxt")
        found |= {"solver": solver.type, "max_iter": solver.max_iter or None}
    except (OSError, ValueError):
        pass
    beside = Path(model.facts.get("beside") or run)
    parts = {"train": run / "train.prototxt", "test": run / (model.facts.get("test_net") or "test.prototxt")}
    found["data"] = [one for phase, file in parts.items() for one in data_of(file, phase, beside)]
    found["tests"] = tests_at(run / "test.csv", iteration)
    return found


def iteration_of(model: Model) -> int | None:
    """Of the weights: what their name says, or what is noted of the best."""
    named = [ITERATION.search(path.name) for path in model.weights]
    if named and named[-1] is not None:
        return int(named[-1][1])
    best = model.facts.get("best") or {}
    return best.get("iteration") if best.get("weights") == model.weights[-1].name else None


def data_of(file: Path, phase: str, beside: Path) -> list[dict[str, Any]]:
    """The data layers of a net's text: name, records where they can be counted, batch."""
    try:
        spec = text.read(file, NetParameter)
    except (OSError, ValueError):
        return []
    listed = [layer for layer in spec.layer if layer.type in SOURCES]
    return [{"phase": phase, **source_of(layer, beside)} for layer in listed]


def source_of(layer: LayerParameter, beside: Path) -> dict[str, Any]:
    param = getattr(layer, SOURCES[layer.type])
    try:
        records = open_dataset(locate(param.source, beside)).count
    except (OSError, ValueError):
        records = None
    return {"name": Path(param.source).name, "records": records, "batch": param.batch_size}


def tests_at(file: Path, iteration: int | None) -> dict[str, float]:
    """The outputs of the first test net at an iteration: accuracy, loss."""
    try:
        with file.open(newline="", encoding="utf-8") as table:
            rows = [row for row in csv.DictReader(table) if row["iteration"] == str(iteration) and row["net"] == "0"]
        values = {row["output"]: float(row["value"]) for row in rows}
    except (OSError, ValueError, KeyError):
        return {}
    return {name: value for name, value in values.items() if math.isfinite(value)}
