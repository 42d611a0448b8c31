"""What trainings left behind -> tables, and from them the curves of a picture.

A run is a folder with metrics.csv (a row an iteration) and test.csv (a row an output of a test), or a log that Caffe or
we wrote (a row each `display` iterations). An element of a vector output is called output[k].
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_numeric_dtype

from ops.names import nearest, unknown
from ops.training import log_reader, norms

Axis = Literal["iterations", "epochs", "seconds"]
Array = NDArray[np.float64]

LOSS, RATE, SPEED = "loss", "lr", "images_per_s"
PLACES = ("iteration", "seconds")  # columns that are no quantities
TESTS = ("iteration", "net", "output", "value")
FEWER = ("err", "cost", "mse", "mae", "perplexity")  # in a name: less is better
SPEED_ROWS = 20  # iterations that make a speed, at least: on a GPU they end in bursts
WINDOWS = 50  # of smoothing in a run, where nobody says
DEFAULT_OUTPUTS = 3  # test outputs that are drawn unasked


@dataclass
class Run:
    """A training's tables. train: iteration, seconds, loss, lr, ...; tests: iteration, seconds, net, output, value.

    losses: outputs of tests that count as losses; epoch: iterations in one, None where nobody says.
    """

    path: Path
    train: pd.DataFrame
    tests: pd.DataFrame
    losses: frozenset[str] = frozenset()
    epoch: float | None = None
    ahead: int = 0  # iterations that were done when a row was written, beyond its number
    name: str = ""

    @property
    def iterations(self) -> int:
        """How far the training has come, as far as it was written down."""
        train = self.train["iteration"].max() + self.ahead if len(self.train) else 0
        return int(max(train, self.tests["iteration"].max() if len(self.tests) else 0))

    @property
    def seconds(self) -> float:
        """How long it took until then; nan where nobody says."""
        return float(max((table["seconds"].max() for table in (self.train, self.tests) if len(table)), default=np.nan))

    @property
    def outputs(self) -> list[str]:
        """Outputs of tests, elements of vectors one by one."""
        return list(dict.fromkeys(self.tests["output"]))

    @property
    def columns(self) -> list[str]:
        """What can be drawn."""
        own = [name for name in self.train.columns if name not in PLACES and self.train[name].notna().any()]
        speed = [SPEED] if "images" in own else []
        return list(dict.fromkeys([*own, *speed, *self.outputs, *map(base, self.outputs)]))

    def is_loss(self, output: str) -> bool:
        """Whether a test output counts as a loss."""
        return base(output) in self.losses if self.losses else LOSS in output.lower()

    def less_is_better(self, name: str) -> bool:
        return name in (LOSS, "loss_last") or self.is_loss(name) or any(word in name.lower() for word in FEWER)


@dataclass
class Curve:
    """One line of a picture. raw: what y was smoothed from, None where there is no difference."""

    run: int
    kind: Literal["train", "test"]
    label: str
    iteration: Array
    x: Array
    y: Array
    raw: Array | None = None
    net: int = 0
    better: Literal["less", "more"] | None = None


@dataclass
class Panel:
    """The curves of one quantity."""

    name: str
    curves: list[Curve] = field(default_factory=list)


def base(name: str) -> str:
    """The output that an element belongs to: prob[3] -> prob."""
    return name.partition("[")[0] if name.endswith("]") else name


# -- reading -----------------------------------------------------------------------------------------------------------


def read(path: Path) -> Run:
    """A run's folder, one of its tables, or a log; ValueError or OSError with one line where it is none of them."""
    if path.name in ("metrics.csv", "test.csv") and path.is_file():
        path = path.parent
    if path.is_file():
        return read_log(path)
    if not path.exists():
        siblings = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        near = nearest(path.name, siblings)
        raise ValueError(f"{path}: no such run" + (f"; did you mean {path.parent / near}?" if near else ""))
    if (path / "metrics.csv").is_file():
        return read_folder(path)
    if (path / "train.log").is_file():
        return read_log(path / "train.log")
    inside = sorted(one.parent.name for one in path.glob("*/metrics.csv"))
    listed = f"; runs in it: {', '.join(inside[:8])}{', ...' if len(inside) > 8 else ''}" if inside else ""
    raise ValueError(f"{path}: not a run: no metrics.csv and no train.log in it{listed}")


def read_log(path: Path) -> Run:
    """A log, as Caffe prints it."""
    train, tests, losses = log_reader.read(path)
    return Run(path, norms.beside(train, path), tests, losses)


def read_folder(folder: Path) -> Run:
    """The tables of a run's folder, also while they are written."""
    train = table(folder / "metrics.csv", ("iteration", "seconds", "loss")).drop(
        columns="batch_digest", errors="ignore"
    )
    tests = pd.DataFrame(columns=list(TESTS))
    if (folder / "test.csv").is_file():
        tests = table(folder / "test.csv", TESTS)
    tests = tests.assign(output=elements(tests), seconds=seconds_at(train, tests["iteration"].to_numpy(float)))
    train = norms.beside(train, folder / "train.log")
    run = Run(folder, train, tests, losses_of(folder / "test.prototxt"), ahead=1)
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        run.epoch = float(json.loads((folder / "run.json").read_text()).get("epoch"))
    return run


def table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A CSV file as numbers (`output`, `batch_digest`: text), without a last line that is not whole yet."""
    data = path.read_bytes()
    words = {"output": str, "batch_digest": str}
    try:
        content = pd.read_csv(io.BytesIO(data[: data.rfind(b"\n") + 1]), dtype=words, keep_default_na=False)
        if missing := [name for name in columns if name not in content.columns]:
            raise ValueError(f"no column {missing[0]}")
        for name in content.columns.difference(list(words)):
            values = content[name]
            content[name] = (values if is_numeric_dtype(values) else values.astype(object)).astype(float)
    except ValueError as error:  # pandas' own are ValueErrors too
        raise ValueError(f"{path}: not a table of a run: {error}") from None
    return content


def elements(tests: pd.DataFrame) -> pd.Series[str]:
    """Names of outputs, those of vectors with their place: prob[0], prob[1]."""
    place = tests.groupby(["iteration", "net", "output"]).cumcount()
    vector = tests["output"].isin(set(tests["output"][place > 0]))
    return tests["output"].where(~vector, tests["output"] + "[" + place.astype(str) + "]")


def seconds_at(train: pd.DataFrame, iterations: Array) -> Array:
    """When so many iterations were done: a row's seconds are those at its end."""
    return np.interp(iterations, [0, *(train["iteration"] + 1)], [0, *train["seconds"]])


def losses_of(net: Path) -> frozenset[str]:
    """Tops of a net's layers that count as losses: by loss_weight, else by the layer's type, as Caffe does."""
    from ops.proto import text
    from ops.proto.caffe_pb2 import NetParameter

    found: set[str] = set()
    with contextlib.suppress(OSError, ValueError):
        for layer in text.read(net, NetParameter).layer:
            weights = list(layer.loss_weight) or [float(layer.type.endswith("Loss"))]
            found |= {top for top, weight in zip(layer.top, weights, strict=False) if weight}
    return frozenset(found)


def give_names(runs: Sequence[Run]) -> None:
    """To each run the shortest end of its path that no other has."""
    paths = [run.path.resolve() for run in runs]
    shown = [path.parent if path.name == "train.log" and path.parent not in paths else path for path in paths]
    for run, path in zip(runs, shown, strict=True):
        others = [other.parts for other in shown if other != path]
        tails = (path.parts[-count:] for count in range(1, len(path.parts) + 1))
        tail = next((tail for tail in tails if all(other[-len(tail) :] != tail for other in others)), path.parts)
        run.name = "/".join(tail)


# -- smoothing ---------------------------------------------------------------------------------------------------------


def running_mean(values: Array, window: int) -> Array:
    """The mean of the last `window` values; at the start of fewer, as Caffe's average_loss, from a quarter on: means of
    less are noise. Values that are not finite stay out, and give nan.
    """
    finite = np.isfinite(values)
    sums = running_sum(np.where(finite, values, 0.0), window)
    counts = running_sum(finite.astype(float), window)
    return late(np.where(finite, sums / np.maximum(counts, 1), np.nan), window)


def late(values: Array, window: int) -> Array:
    """nan at the first quarter of the first window."""
    window = min(window, len(values))
    return np.where(np.arange(len(values)) < (window - 1) // 4, np.nan, values)


def running_sum(values: Array, window: int) -> Array:
    """The sum of the last `window` values: the end of one block of that length and the beginning of the next. A
    difference of two long sums would not do: one loss of 1e30 would spoil all that come after.
    """
    window = max(1, min(window, len(values)))
    blocks = np.zeros(-(-len(values) // window) * window)
    blocks[: len(values)] = values
    begins = np.cumsum(blocks.reshape(-1, window), 1).ravel()[: len(values)]
    ends = np.cumsum(blocks.reshape(-1, window)[:, ::-1], 1)[:, ::-1].ravel()
    first = np.arange(len(values)) - window + 1
    return begins + np.where((first > 0) & (first % window > 0), ends[np.maximum(first, 0)], 0.0)


def rows_of(run: Run, smooth: int, rows: pd.DataFrame | None = None) -> int:
    """How many rows of the run's table, or of some `rows` of it, `smooth` iterations are."""
    steps = np.diff((run.train if rows is None else rows)["iteration"].to_numpy(float))
    return max(1, round(smooth / max(1.0, float(np.median(steps))))) if len(steps) else 1


def automatic(runs: Sequence[Run]) -> int:
    """Iterations to smooth over where nobody says: the same for all runs."""
    return max(1, max(run.iterations for run in runs) // WINDOWS)


# -- curves ------------------------------------------------------------------------------------------------------------


def place(run: Run, rows: pd.DataFrame, axis: Axis) -> Array:
    """Where rows stand on the x axis; ValueError where the run does not say."""
    if axis == "seconds":
        if rows["seconds"].isna().all():
            raise ValueError(f"{run.path}: no times in it; --x iterations does without")
        return rows["seconds"].to_numpy(float)
    if axis == "epochs" and not run.epoch:
        raise ValueError(f"{run.path}: does not say how many iterations an epoch has; give --epoch N")
    return rows["iteration"].to_numpy(float) / (run.epoch if axis == "epochs" and run.epoch else 1)


def train_curve(run: Run, number: int, name: str, axis: Axis, smooth: int) -> Curve | None:
    """A column over training; None where the run has none."""
    rows, window = run.train, rows_of(run, smooth)
    raw: Array | None = None
    if name == SPEED and "images" in rows.columns:
        window = max(SPEED_ROWS, window)
        spent = np.diff(rows["seconds"].to_numpy(float), prepend=0.0)
        y = running_sum(rows["images"].to_numpy(float), window) / np.maximum(running_sum(spent, window), 1e-9)
        y = late(y, window)
    elif name in rows.columns and name not in PLACES and rows[name].notna().any():
        rows = rows[rows[name].notna()] if name != LOSS else rows  # the nan of a loss says something
        raw = rows[name].to_numpy(float)
        window = 1 if name == RATE else rows_of(run, smooth, rows)
        y = running_mean(raw, window)
    else:
        return None
    curve = Curve(number, "train", name, rows["iteration"].to_numpy(float), place(run, rows, axis), y)
    curve.raw = raw if window > 1 else None
    if run.less_is_better(name) or name in run.outputs:  # of the others nobody can say what is better
        curve.better = "less" if run.less_is_better(name) else "more"
    return curve


def test_curves(run: Run, number: int, name: str, axis: Axis) -> list[Curve]:
    """An output over tests, a curve for each test net; of a vector without its place the mean."""
    wanted = loss_output(run) if name == LOSS else name
    rows = run.tests[run.tests["output"] == wanted]
    if rows.empty:
        rows = run.tests[run.tests["output"].map(base) == wanted]
    found: list[Curve] = []
    for net in sorted(set(rows["net"])):
        means = rows[rows["net"] == net].groupby("iteration", as_index=False)[["seconds", "value"]].mean()
        label = f"test{int(net) or ''} {wanted}"
        iteration, y = means["iteration"].to_numpy(float), means["value"].to_numpy(float)
        curve = Curve(number, "test", label, iteration, place(run, means, axis), np.where(np.isfinite(y), y, np.nan))
        curve.net, curve.better = int(net), "less" if run.less_is_better(str(wanted)) else "more"
        found.append(curve)
    return found


def loss_output(run: Run) -> str | None:
    """The test output that is what the training's loss is: of that name, else the only loss there is."""
    losses = [name for name in run.outputs if run.is_loss(name)]
    return LOSS if LOSS in run.outputs else losses[0] if len(losses) == 1 else None


def default_names(runs: Sequence[Run]) -> list[str]:
    """What is drawn unasked: the loss, and the last few outputs of tests that are single numbers and no losses."""
    outputs = [name for run in runs for name in run.outputs if name == base(name) and not run.is_loss(name)]
    return [LOSS, *list(dict.fromkeys(outputs))[-DEFAULT_OUTPUTS:]]


def panels(runs: Sequence[Run], names: Sequence[str], axis: Axis, smooth: int) -> list[Panel]:
    """A panel for each name (none: the usual ones) with the curves of all runs; ValueError for a name that none has."""
    drawn: list[Panel] = []
    for name in names or default_names(runs):
        panel = Panel(name)
        for number, run in enumerate(runs):
            curve = train_curve(run, number, name, axis, smooth)
            panel.curves += [*([] if curve is None else [curve]), *test_curves(run, number, name, axis)]
        if not panel.curves and names:
            known = list(dict.fromkeys(name for run in runs for name in run.columns))
            raise ValueError(unknown("column", name, known))
        drawn += [panel] if panel.curves else []
    if not any(np.isfinite(curve.y).any() for panel in drawn for curve in panel.curves):
        raise ValueError(f"{', '.join(str(run.path) for run in runs)}: nothing to draw yet")
    return drawn


# -- figures -----------------------------------------------------------------------------------------------------------


def figures(number: int, drawn: Sequence[Panel]) -> dict[str, dict[str, float | int]]:
    """Of each curve of a run the last value, the best and its iteration: {"loss": {"final": 0.1, "best": ...}}."""
    found: dict[str, dict[str, float | int]] = {}
    for curve in (curve for panel in drawn for curve in panel.curves if curve.run == number):
        finite = np.flatnonzero(np.isfinite(curve.y))
        row: dict[str, float | int] = {}
        if len(finite):
            row["final"] = float(curve.y[finite[-1]])
        if len(finite) and curve.better:
            at = finite[(np.argmin if curve.better == "less" else np.argmax)(curve.y[finite])]
            row |= {"best": float(curve.y[at]), "best_iteration": int(curve.iteration[at])}
        if (lost := lost_at(curve)) is not None:
            row["not_finite_from"] = lost
        found[curve.label] = row
    return found


def lost_at(curve: Curve) -> int | None:
    """The iteration from which on no value is finite; None where the last one is."""
    finite = np.flatnonzero(np.isfinite(curve.y))
    begin = int(finite[-1]) + 1 if len(finite) else 0
    return int(curve.iteration[begin]) if begin < len(curve.y) else None
