"""Trainings on Ray, as tests use them: the golden solvers' nets and data, a run, and what came of it."""

from __future__ import annotations

import contextlib
import csv
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ops import weights
from pipelines.train import Train

GOLDEN = Path(__file__).resolve().parents[1] / "golden/solvers"
LINE = r"a worker was lost at iteration ([\d,]+); went on from ([\d,]+); ([\d.,]+) seconds lost"


def golden_files(folder: Path) -> None:
    for file in GOLDEN.iterdir():
        shutil.copy(file, folder)


def solver(folder: Path, name: str, more: str = "", **changes: str) -> Path:
    """A golden solver under another name, with more fields or others."""
    text = (folder / f"solver_{name}.prototxt").read_text().replace("snap_", "mine_")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    file = folder / f"mine_{name}.prototxt"
    file.write_text(f"{text}\n{more}\n")
    return file


def train(file: Path, run: str, workers: object = 1, **options: Any) -> dict[str, Any]:
    """On Ray, in this process's session."""
    settings = (f"train.workers={workers}", "train.cpus_per_worker=1", *options.pop("set", ()))
    return Train(solver=file, run_folder=Path(run), set=settings, **options).run()


def begin(file: Path, run: str, *options: str, workers: object = 2, cwd: Path | None = None) -> subprocess.Popen[str]:
    """The command, in a process of its own."""
    command = [sys.executable, "-m", "pipelines", "train", "--solver", file.name, "--run", run, "--json", *options]
    command += ["--set", f"train.workers={workers}", "--set", "train.cpus_per_worker=1"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=cwd, text=True, **pipes)


def rows(run: str | Path) -> list[dict[str, str]]:
    with (Path(run) / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def digests(run: str | Path) -> list[str]:
    return [row["batch_digest"] for row in rows(run)]


def blobs(file: str | Path) -> dict[str, np.ndarray]:
    with weights.read(file) as saved:
        return {f"{one.name}/{i}": np.asarray(blob.values()) for one in saved.layers for i, blob in one.blobs.items()}


def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest relative error of a blob."""
    return max(
        float(np.linalg.norm(one[key] - other[key].reshape(one[key].shape)) / np.linalg.norm(other[key])) for key in one
    )


def reached(run: str | Path) -> int:
    """The iteration that a run says it has come to."""
    try:
        return int(json.loads((Path(run) / ".run" / "live.json").read_text())["iteration"])
    except (OSError, ValueError, KeyError):
        return 0


def once(run: str | Path, iteration: int, act: Callable[[], None], *, ended: Callable[[], bool]) -> None:
    """Do something as soon as a run has come so far, unless it has ended."""
    deadline = time.monotonic() + 300
    while reached(run) < iteration and not ended():
        assert time.monotonic() < deadline, f"the run has come to {reached(run)} only"
        time.sleep(0.02)
    assert not ended(), "the run ended before anything could be done to it"
    act()


def at_each(run: str | Path, iterations: list[int], act: Callable[[], None], *, ended: Callable[[], bool]) -> None:
    """Do something that ends a worker at each of the iterations, but not before what was lost has been done again; in
    between, wait until others train."""
    lost = 0
    for iteration in iterations:
        once(run, max(iteration, lost), lambda: None, ended=ended)
        before = {one.pid for one in workers_there()}
        act()
        deadline = time.monotonic() + 200
        while {one.pid for one in workers_there()} & before and not ended():
            assert time.monotonic() < deadline, "the workers that were to end are still there"
            lost = max(lost, reached(run))
            time.sleep(0.05)
        lost, old = max(lost, reached(run)), told_at(run)
        while told_at(run) == old and not ended():  # what it says is of those before
            assert time.monotonic() < deadline, "no other workers have begun to train"
            time.sleep(0.05)


def told_at(run: str | Path) -> int:
    """When a run last said how far it is, in ns."""
    try:
        return (Path(run) / ".run" / "live.json").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def workers_there() -> list[psutil.Process]:
    """The processes that train now, of those that this one has begun: others on the machine are not ours to end."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(one.cmdline()):
                found.append(one)
    return found


def node_of_a_worker(chance: random.Random) -> psutil.Process:
    """The raylet of a node where a worker trains, but not of the head's."""
    raylets = []
    for one in workers_there():
        with contextlib.suppress(psutil.NoSuchProcess):
            raylets.append(one.parent())
    heads = {one.pid for one in psutil.process_iter(["cmdline"]) if "--head" in (one.info["cmdline"] or [])}
    away = [one for one in raylets if one is not None and one.pid not in heads]
    assert away, [one.cmdline() for one in raylets if one]
    return chance.choice(sorted(away, key=lambda one: one.pid))


def cut_off(node: psutil.Process) -> None:
    """As a power cut: the raylet and everything that it started."""
    for one in [node, *node.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
