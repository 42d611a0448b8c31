"""The learning-rate range test: the rate rises exponentially from iteration to iteration, and the loss says what it
makes of it. After Leslie Smith, "Cyclical learning rates for training neural networks" (2017).

RUN/lr_range.csv     a row an iteration: iteration, rate, loss, smoothed
RUN/lr_range.png     the curve, where the loss falls fastest, where it is lost, and the rate to take
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ops.net import paths_of
from ops.proto import text
from ops.proto.caffe_pb2 import SolverParameter
from ops.training import targets
from ops.training.nets import locate, read_solver
from ops.training.step import set_precision
from pipelines.job import Progress
from pipelines.stages.setup import Place, Setup, Training

ITERATIONS = 200  # fewer are less sure: of 100 one in ten ended elsewhere
LEAST = 20
LOW, HIGH = 1e-6, 10.0  # rates between which the test goes; AdaDelta's are a thousand times as high
SHARE = 0.05  # of the iterations, over which the loss is smoothed
LOST = 2.0  # a smoothed loss so many times the first one, above the least, ends the test
SAFE = 2.0  # the recommended rate is so far below the middle of where the loss fell fastest and where it was least
TESTING = ("test_iter", "test_net", "test_net_param", "test_state", "stepvalue", "plateau_winsize")
WRITING = ("test_interval", "snapshot", "display", "snapshot_prefix", "debug_info", "warmup_iter")


@dataclass(frozen=True)
class Found:
    """What a range test found; rates. lost: where the loss was no number any more, or too large; None: nowhere."""

    recommended: float
    steepest: float
    least: float
    lost: float | None
    falls: bool  # whether the loss fell at all


def lr_range(
    job: Training, place: Place, *, iterations: int = ITERATIONS, low: float | None = None, high: float | None = None
) -> dict[str, Any]:
    """Run the test in this process on a scratch copy of the training; its files go into the run's folder."""
    if iterations < LEAST:
        raise ValueError(
            f"--range-iterations {iterations}: expected {LEAST} or more for a range test; usual are {ITERATIONS}"
        )
    set_precision(job.precision)
    with tempfile.TemporaryDirectory(prefix="cortado-") as scratch, contextlib.ExitStack() as closing:
        copy, ends = prepared(job, Path(scratch), iterations, low, high)
        setup = Setup(copy, dataclasses.replace(place, signals=False, recovery_seconds=0), closing)
        rates, losses = climb(setup, iterations)
    if not math.isfinite(losses[0]):
        raise ValueError(f"{job.solver}: the loss is {losses[0]} before the first update: look at data, mean and scale")
    smoothed = smooth(losses, max(1.0, SHARE * iterations))
    found = read(rates, smoothed)
    folder = Path(job.run)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "lr_range.csv", rates, losses, smoothed)
    picture = folder / "lr_range.png"
    draw(picture, rates, losses, smoothed, found, title=job.solver)
    result = {
        "run": str(folder),
        "picture": str(picture),
        "iterations": len(losses),
        "from": ends[0],
        "to": float(rates[-1]),
        "base_lr": read_solver(job.solver).base_lr,
        **dataclasses.asdict(found),
    }
    return {**result, "advice": advice(result)}


# -- the test ----------------------------------------------------------------------------------------------------


def prepared(
    job: Training, scratch: Path, iterations: int, low: float | None, high: float | None
) -> tuple[Training, tuple[float, float]]:
    """The training as a copy below `scratch` whose rate rises from `low` to `high`, without tests and snapshots."""
    spec = read_solver(job.solver)
    factor = 1000.0 if spec.type == "AdaDelta" else 1.0
    ends = (low or LOW * factor, high or HIGH * factor)
    if not 0 < ends[0] < ends[1]:
        raise ValueError(f"the rate is to rise from {ends[0]:g} to {ends[1]:g}; expected 0 < low < high")
    for name in (*TESTING, *WRITING):
        spec.ClearField(name)  # type: ignore[arg-type]
    spec.snapshot_after_train = False
    spec.lr_policy, spec.base_lr, spec.max_iter = "exp", ends[0], iterations
    spec.gamma = (ends[1] / ends[0]) ** (1 / max(1, iterations - 1))
    beside = Path(job.solver).parent
    settle_paths(spec, beside)
    text.write(scratch / "solver.prototxt", spec)
    return settled(job, scratch, beside), ends


def settled(job: Training, scratch: Path, beside: Path) -> Training:
    """The job for the solver in `scratch`: from the beginning, with nothing that lives on tests or snapshots."""
    weights = tuple(str(locate(one, beside).resolve()) for name in job.weights for one in map(str, paths_of(name)))
    changes: dict[str, Any] = {"snapshot": None, "resume": False, "patience": None, "best": None, "keep": None}
    if job.class_weights not in (None, targets.BALANCED):
        changes["class_weights"] = str(locate(str(job.class_weights), beside).resolve())
    changes |= {"solver": str(scratch / "solver.prototxt"), "run": str(scratch / "run"), "weights": weights}
    return dataclasses.replace(job, **changes)


def settle_paths(spec: SolverParameter, beside: Path) -> None:
    """Absolute paths of the files that a solver names, so that a copy of it may lie elsewhere."""
    for name in ("net", "train_net"):
        if spec.HasField(name):  # type: ignore[arg-type]
            setattr(spec, name, str(locate(getattr(spec, name), beside).resolve()))
    found = [str(locate(str(one), beside).resolve()) for each in spec.weights for one in paths_of(each)]
    spec.ClearField("weights")
    spec.weights.extend(found)


def climb(setup: Setup, iterations: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rates and losses until the last iteration, or until the loss is lost; the last may be nan."""
    rates: list[float] = []
    losses: list[float] = []
    least = math.inf
    with Progress("range test", total=iterations, unit="iterations") as progress:
        while setup.solver.iteration < iterations:
            rates.append(setup.solver.rate())
            losses.append(step(setup))
            recent = float(smooth(losses, max(1.0, SHARE * iterations))[-1])
            least = min(least, recent)
            if not math.isfinite(losses[-1]) or recent > least + LOST * abs(losses[0]):
                break
            progress.update(len(losses))
    return np.array(rates), np.array(losses)


def step(setup: Setup) -> float:
    """One iteration; its loss."""
    parts = setup.spec.iter_size
    total = torch.zeros((), device=setup.place.device)
    for part in range(parts):
        blobs = {name: blob for feed in setup.feeds.values() for name, blob in next(feed).blobs.items()}
        loss, _ = setup.trainer.forward_backward(blobs, last=part == parts - 1)
        total = total + loss.float()
    setup.trainer.update()
    return total.item() / parts


# -- what it says ----------------------------------------------------------------------------------------------------


def smooth(losses: Sequence[float] | NDArray[np.float64], window: float) -> NDArray[np.float64]:
    """An exponential mean of about so many iterations, without the bias to the first."""
    keep = 1 - 1 / max(1.0, window)
    held, out = 0.0, []
    for count, loss in enumerate(losses, 1):
        held = keep * held + (1 - keep) * loss
        out.append(held / (1 - keep**count))
    return np.array(out)


def read(rates: NDArray[np.float64], smoothed: NDArray[np.float64]) -> Found:
    """The rate to take: half of the (geometric) middle between where the smoothed loss fell fastest and where it was
    least. A training stays at its rate, which the test only passes by."""
    finite = np.isfinite(smoothed)
    lost = None if finite.all() and smoothed[-1] <= 2 * smoothed[0] else float(rates[-1])
    rates, smoothed = rates[finite], smoothed[finite]
    least = int(np.argmin(smoothed))
    falls = bool(smoothed[least] < 0.98 * smoothed[0])
    slopes = np.gradient(smoothed[: least + 1], np.log(rates[: least + 1])) if least >= 2 else np.zeros(1)
    steepest = int(np.argmin(slopes))
    return Found(
        recommended=float(f"{math.sqrt(rates[steepest] * rates[least]) / SAFE:.2g}"),
        steepest=float(rates[steepest]),
        least=float(rates[least]),
        lost=lost,
        falls=falls,
    )


def write_table(path: Path, *columns: NDArray[np.float64]) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("iteration", "rate", "loss", "smoothed"))
        for number, row in enumerate(zip(*columns, strict=True)):
            rows.writerow((number, *(format(value, ".9g") for value in row)))


def draw(
    path: Path,
    rates: NDArray[np.float64],
    losses: NDArray[np.float64],
    smoothed: NDArray[np.float64],
    found: Found,
    *,
    title: str,
) -> None:
    """The curve over the rate, logarithmic."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from ops.chart import COLOURS, DPI, FAINT, STYLE

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        ax = figure.subplots()
        ax.set_title(f"learning-rate range test of {title}")
        ax.plot(rates, losses, color=COLOURS[0], alpha=2 * FAINT, linewidth=0.8, label="loss")
        ax.plot(rates, smoothed, color=COLOURS[0], linewidth=1.8, label="smoothed")
        marks = [(found.steepest, "falls fastest", 2, ":"), (found.least, "is least", 3, "--")]
        marks += [(found.lost, "is lost", 1, "-.")] if found.lost is not None else []
        for rate, what, number, dashes in marks:
            ax.axvline(rate, color=COLOURS[number], linestyle=dashes, label=f"{what}: {rate:.2g}")
        ax.axvline(found.recommended, color=COLOURS[6], linewidth=2, label=f"recommended: {found.recommended:.2g}")
        ax.set_xscale("log")
        ax.set_xlabel("base_lr")
        ax.set_ylabel("loss")
        kept = smoothed[np.isfinite(smoothed)]
        low, high = float(kept.min()), float(min(kept.max(), 1.5 * kept[0] + 1e-9))
        room = 0.08 * max(high - low, 1e-6)
        ax.set_ylim(low - room, high + room)
        figure.legend(loc="outside right upper")
        figure.savefig(path, dpi=DPI, metadata={"Software": None})


def advice(result: dict[str, Any]) -> str:
    """What to do with what was found, in one line."""
    if not result["falls"]:
        return (
            f"the loss did not fall at any rate up to {result['to']:.2g}: more iterations (--lr-range N), or look at "
            "labels, mean and scale of the data; --overfit 16 shows whether the net can learn at all"
        )
    where = f"the loss falls fastest at {result['steepest']:.2g}, is least at {result['least']:.2g}"
    if result["lost"] is not None:
        where += f", lost at {result['lost']:.2g}"
    return f"{where}: base_lr: {result['recommended']:g} (the solver has {result['base_lr']:g})"
