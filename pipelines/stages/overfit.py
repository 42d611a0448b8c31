"""Can the net learn N records by heart? The same batch again and again, without decay and without augmentation.

A net that cannot has a mistake in it, or in its data or its rate; it shows in a minute and not after a night.

RUN/overfit.csv      a row an iteration: iteration, rate, loss
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ops.proto import text
from ops.training.nets import read_solver
from ops.training.step import set_precision
from pipelines.job import Progress
from pipelines.stages.lr_range import TESTING, WRITING, settle_paths, settled
from pipelines.stages.setup import Place, Setup, Training

ITERATIONS = 300
LEARNT = 0.05  # share of the first loss, below which the records are learnt
LOOK = 10  # iterations between looks at the loss without dropout


def overfit(job: Training, place: Place, *, records: int, iterations: int = ITERATIONS) -> dict[str, Any]:
    """Train with the first `records` records until the loss is a twentieth of the first, or `iterations` are done.

    Runs in this process on a scratch copy of the training. learnt: whether it came so far.
    """
    if records < 1:
        raise ValueError(f"--overfit {records}: expected 1 record or more")
    set_precision(job.precision)
    with tempfile.TemporaryDirectory(prefix="cortado-") as scratch, contextlib.ExitStack() as closing:
        copy = prepared(job, Path(scratch), records, iterations)
        setup = Setup(copy, dataclasses.replace(place, signals=False, recovery_seconds=0), closing)
        held = [feed.records for feed in setup.feeds.values() if feed.records]
        if held and records > min(held):
            raise ValueError(f"--overfit {records}: there are {min(held):,} records to train with")
        rows, tested = learn(setup, iterations)
    folder = Path(job.run)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "overfit.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("iteration", "rate", "loss"))
        table.writerows((number, f"{rate:.9g}", f"{loss:.9g}") for number, (rate, loss) in enumerate(rows))
    if not math.isfinite(rows[0][1]):
        raise ValueError(
            f"{job.solver}: the loss is {rows[0][1]} before the first update: look at data, mean and scale"
        )
    first, last = rows[0][1], tested.get("loss", rows[-1][1])
    learnt = last <= LEARNT * first
    result = {
        "run": str(folder),
        "records": records,
        "iterations": len(rows),
        "first_loss": first,
        "loss": last if math.isfinite(last) else None,
        "accuracy": tested.get("accuracy"),
        "learnt": learnt,
        "ok": learnt,
    }
    return {**result, "advice": verdict(result)}


def prepared(job: Training, scratch: Path, records: int, iterations: int) -> Training:
    """The training as a copy below `scratch`: a fixed rate, no decay, batches of `records`, in order."""
    spec, beside = read_solver(job.solver), Path(job.solver).parent
    for name in (*TESTING, *WRITING):
        spec.ClearField(name)  # type: ignore[arg-type]
    spec.snapshot_after_train = False
    spec.lr_policy, spec.weight_decay, spec.iter_size, spec.max_iter = "fixed", 0, 1, iterations
    settle_paths(spec, beside)
    text.write(scratch / "solver.prototxt", spec)
    feed: dict[str, Any] = {name: value for name, value in job.feed.items() if name not in ("augment", "balance")}
    feed |= {"batch": records, "shuffle": False}
    return dataclasses.replace(settled(job, scratch, beside), feed=feed, label_smoothing=0.0, class_weights=None)


def learn(setup: Setup, iterations: int) -> tuple[list[tuple[float, float]], dict[str, float]]:
    """Rate and loss of each iteration; loss (and accuracy) at the end, of the net as it trains or as it is for testing,
    whichever is less: dropout makes the one worse, moving statistics the other.
    """
    blobs = {name: blob.clone() for feed in setup.feeds.values() for name, blob in next(feed).blobs.items()}
    seeing = tester(setup)
    rows: list[tuple[float, float]] = []
    tested: dict[str, float] = {}
    with Progress("by heart", total=iterations, unit="iterations") as progress:
        while len(rows) < iterations:
            rate = setup.solver.rate()
            loss, _ = setup.trainer.forward_backward(blobs)
            rows.append((rate, loss.item()))
            if not math.isfinite(rows[-1][1]):
                return rows, {}
            setup.trainer.update()
            progress.update(len(rows))
            if len(rows) % LOOK == 0 or len(rows) == iterations:
                tested = seeing(blobs)
                tested["loss"] = min(tested["loss"], rows[-1][1])
                if tested["loss"] <= LEARNT * rows[0][1]:
                    break
    return rows, tested


def tester(setup: Setup) -> Any:
    """blobs -> loss, and accuracy where it can be counted, of the net as it is for testing."""
    from ops.proto.caffe_pb2 import TEST, NetState
    from ops.training.nets import train_definition

    definition = train_definition(setup.spec, setup.job.solver, level=setup.job.level, stages=setup.job.stages)
    state = NetState()
    state.CopyFrom(definition.state)
    state.phase = TEST
    net: Any = None
    with contextlib.suppress(ValueError, OSError):  # a net that there is for training only
        shapes = {name: setup.net.inputs[name] for name in setup.net.inputs}
        net = dataclasses.replace(definition, state=state).net(seed=setup.seed, inputs=shapes)
        net.adopt(setup.net)
        net.materialize(setup.place.device, weights=[])
    if net is None or set(net.inputs) != set(setup.net.inputs) or not net.loss_weights:
        net = setup.net

    @torch.no_grad()
    def see(blobs: Mapping[str, Tensor]) -> dict[str, float]:
        found = net(blobs)
        shown = {"loss": float(net.loss(found))}
        made = [layer.spec.top[0] for layer in net.layers if layer.spec.type == "Accuracy" and layer.spec.top]
        for name in made[:1]:
            shown["accuracy"] = float(found[name].float().mean())
        return shown

    return see


def verdict(result: Mapping[str, Any]) -> str:
    """What it means, in one line."""
    count, done = result["records"], result["iterations"]
    if result["learnt"]:
        return f"the net can learn {count:,} records by heart: it took {done:,} iterations"
    if result["loss"] is None:
        return "the loss was lost (nan): lower base_lr (--lr-range finds one), or set clip_gradients"
    return (
        f"after {done:,} iterations the net has not learnt {count:,} records by heart: look whether labels belong to "
        "the pictures (cortado show), whether mean and scale fit, and try another base_lr (--lr-range finds one)"
    )
