"""The demo's training: LeNet's recipe for the digits, a run that is stopped in its middle, and two runs compared."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ITERATIONS = 1000
BATCH = 64
AUGMENT = "rotate=15,translate=0.08,scale=0.15"
SOLVER = """\
# LeNet by Adam: {iterations:,} iterations of {batch} digits, about {epochs:.0f} times through the {train:,}
net: "{folder}/train_val.prototxt"

# one batch holds all {test} digits of the test part
test_iter: 1
test_interval: 250

# the rate falls in a line to 0
base_lr: 0.001
lr_policy: "poly"
power: 1
max_iter: {iterations}

type: "Adam"
momentum: 0.9
momentum2: 0.999

# first weights, order and augmentation are drawn by this seed: a run can be repeated
random_seed: 1

display: 50
snapshot: 500
"""
POLL_SECONDS = 0.05  # between looks at the log of a run that is to be stopped
STOP_SECONDS = 60  # that a run may take to stop: the iteration, and a snapshot of a few MB
ITERATION = re.compile(r"\] Iteration (\d+) \(")


def write_recipe(folder: Path, place: Path, data: Path, records: Mapping[str, int]) -> None:
    """train_val.prototxt and solver.prototxt into `folder`, which will stand at `place`, for the records below `data`.

    The net is the zoo's; its paths count from the working folder, as in Caffe's own examples.
    """
    from ops import zoo

    scale = "transform_param { scale: 0.00390625 }"
    net = adapted(
        zoo.find("lenet", "train_val").read_text(encoding="utf-8"),
        {
            "# Data: grey digits, values 0 .. 255 times 1/256": "# Data: grey digits, values 0 .. 255 minus the mean "
            "image, times 1/256",
            '"mnist"': '"digits"',
            scale: f'transform_param {{ mean_file: "{data / "mean.binaryproto"}"  scale: 0.00390625 }}',
            '"data/train"': f'"{data / "train"}"',
            '"data/test"  batch_size: 100': f'"{data / "test"}"  batch_size: {records["test"]}',
        },
    )
    epochs = ITERATIONS * BATCH / records["train"]
    solver = SOLVER.format(iterations=ITERATIONS, batch=BATCH, epochs=epochs, folder=place, **records)
    (folder / "train_val.prototxt").write_text(net, encoding="utf-8")
    (folder / "solver.prototxt").write_text(solver, encoding="utf-8")


def adapted(text: str, swaps: Mapping[str, str]) -> str:
    """`text` with each left side, which must stand in it, replaced by its right side."""
    for old, new in swaps.items():
        assert old in text, f"the zoo's LeNet has no {old!r} any more"
        text = text.replace(old, new)
    return text


def last_weights(solver: Path, run: Path) -> Path:
    """The weights that a run of the solver has in its folder once it is finished.

    The folder's own copy of the solver counts where there is one: a person may have changed the file since.
    """
    from ops.training.nets import read_solver

    used = run / "solver.prototxt"
    spec = read_solver(used if used.exists() else solver)
    return run / f"{solver.stem}_iter_{spec.max_iter}.caffemodel"


def begun(run: Path) -> bool:
    """Whether a training got anywhere in this folder."""
    return bool(rows(run))


def stop_midway(arguments: Sequence[str], run: Path, iteration: int) -> int:
    """Start a training in a process of its own, interrupt it as Ctrl-C does once its log shows `iteration`.

    After how many iterations it stopped; RuntimeError where it failed.
    """
    import pipelines

    home = Path(pipelines.__file__).parent.parent  # wherever the packages come from, the new process has the same
    path = os.pathsep.join(filter(None, (str(home), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-P", "-m", "pipelines", *arguments, "--json"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,  # a person's Ctrl-C is this process's; it hands it on
    )
    try:
        while process.poll() is None and shown(run / "train.log") < iteration:
            time.sleep(POLL_SECONDS)
    finally:  # in its middle, or when somebody stops the whole
        process.send_signal(signal.SIGINT)
        try:
            told, _ = process.communicate(timeout=STOP_SECONDS)
        except BaseException:
            process.kill()
            process.wait()
            raise
    if process.returncode:
        raise RuntimeError(f"the training in {run} ended with exit code {process.returncode}")
    return int(json.loads(told)["iterations"])


def shown(log: Path) -> int:
    """The last iteration that a train.log shows; -1: none yet."""
    try:
        found = ITERATION.findall(log.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return -1
    return int(found[-1]) if found else -1


def compare(one: Path, other: Path) -> dict[str, Any]:
    """Two weight files with the metrics beside them: how far the weights are apart, how many iterations are the same.

    `difference`: the largest ||a - b|| / ||a|| of a blob, 0.0 where they are the same to the bit.
    """
    first, second = rows(one.parent), rows(other.parent)
    numbers = ("loss", "lr", "batch_digest")
    same = sum(all(a[name] == b[name] for name in numbers) for a, b in zip(first, second, strict=False))
    return {"iterations": len(first), "same_iterations": same, "difference": difference(one, other)}


def difference(one: Path, other: Path) -> float:
    """The largest ||a - b|| / ||a|| of a blob of two weight files of one net."""
    import numpy as np

    from ops import weights

    worst = 0.0
    with weights.read(one) as first, weights.read(other) as second:
        for a, b in zip(first.layers, second.layers, strict=True):
            for index, blob in a.blobs.items():
                x, y = blob.values().astype(np.float64), b.blobs[index].values().astype(np.float64)
                apart = float(np.linalg.norm(x - y))
                worst = max(worst, apart / max(float(np.linalg.norm(x)), math.ulp(0.0)) if apart else 0.0)
    return worst


def rows(run: Path) -> list[dict[str, str]]:
    """metrics.csv, an iteration a row; none where there is none."""
    try:
        with (run / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def mistakes(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> list[str]:
    """As "8 for 1 (2)": what was taken for what, the most often first."""
    pairs = [(count, i, j) for i, row in enumerate(matrix) for j, count in enumerate(row) if count and i != j]
    return [f"{names[i]} for {names[j]} ({count})" for count, i, j in sorted(pairs, key=lambda one: -one[0])]
