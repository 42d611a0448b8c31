"""`train --explain`: what reading the batches would cost in the training workers and elsewhere, and which is faster."""

from __future__ import annotations

import csv
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.feed.families import FAMILIES
from ops.feed.feed import FeedOptions, with_place
from ops.feed.handed import HERE, Maker, Piece
from ops.feed.tops import Asked
from ops.names import quoted
from ops.phases import select
from ops.training.nets import Definition, read_solver, train_definition

if TYPE_CHECKING:
    from cluster.config import Config
    from cluster.connect import Connection
    from pipelines.stages.setup import Training

SECONDS = 0.7  # of reading, after the first records
RECORDS = 16  # at a time
CARRIED = 1e9  # bytes a second that one worker takes in: 10 Gbit/s, or a core that copies
TASKS = 0.9  # of a core's reading is left where Ray's tasks do it


@dataclass(frozen=True)
class Reading:
    """What one record of a layer costs."""

    layer: str
    batch: int
    rate: float  # records a second of one core
    bytes: float  # handed over for a record
    measured: int  # records


@dataclass(frozen=True)
class Sides:
    """Images a second that either side reads at most, and what the net takes; 0 where that is not known."""

    worker: float
    cluster: float
    net: float
    gpu: bool
    kept: float = 1.0  # of the CPUs that the workers have where they read, those that they have where others do


def explained(job: Training, config: Config, *, gpu: str | None = None) -> dict[str, Any]:
    """`explain` on the cluster that the configuration means."""
    import cluster
    import ops
    import pipelines
    from cluster.connect import connected

    with connected(config, packages=(ops, pipelines, cluster)) as connection:
        return explain(job, config, connection, gpu=gpu)


def explain(job: Training, config: Config, connection: Connection, *, gpu: str | None = None) -> dict[str, Any]:
    """What `--explain` prints: reading measured on the real records, both places, and the one that is faster."""
    from cluster.scaling import spare_cpus, train_pool

    definition = train_definition(read_solver(job.solver), job.solver, level=job.level, stages=job.stages)
    reading = measure(definition, job)
    if reading is None:
        return {"faster": "worker: no layer of the net reads records", "chosen": f"data.where: {config.data.where}"}
    told = {"layer": f"{reading.layer}, batches of {reading.batch:,}", "reading": describe(reading)}
    here = train_pool(at(config, "worker"), connection, gpu=gpu)
    workers = here.workers if isinstance(here.workers, int) else here.workers[1]
    most = workers * here.cpus_per_worker * reading.rate
    shared = "" if here.gpu else ", on the CPUs that the net computes on"
    told["worker"] = f"{workers} x {cpus(here.cpus_per_worker)}: up to {most:,.0f} images/s{shared}"
    net = known(Path(job.run))
    try:
        there = train_pool(at(config, "cluster"), connection, gpu=gpu)
    except ValueError:
        told["cluster"] = "no CPU is left beside the workers"
        faster = "worker: no CPU is free for reading elsewhere"
    else:
        free = spare_cpus(there, connection)
        carried = workers * CARRIED / reading.bytes
        rate = min(free * TASKS * reading.rate, carried)
        limit = ", which the network limits" if rate == carried else ""
        told["cluster"] = (
            f"{cpus(free)} beside the workers: up to {rate:,.0f} images/s{limit}; "
            f"{reading.bytes * reading.batch / 1e6:,.1f} MB a batch to carry"
        )
        kept = there.cpus_per_worker / here.cpus_per_worker
        faster = verdict(Sides(most, rate, net, here.gpu, kept), reading)
    told["net"] = f"took {net:,.0f} images/s in {job.run}" if net else "not known before it has trained"
    return {**told, "faster": faster, "chosen": f"data.where: {config.data.where}"}


def verdict(sides: Sides, reading: Reading) -> str:
    """Which is expected to be faster, and why."""
    worker, cluster, net = sides.worker, sides.cluster, sides.net
    if reading.rate > CARRIED / reading.bytes:
        return f"worker: a record is read in {1e6 / reading.rate:,.0f} us, and carrying it takes longer"
    if sides.gpu:
        if net and net <= worker:
            return "worker: it reads as fast as the net computes, and nothing travels"
        return (
            "cluster: more CPUs are free elsewhere than the workers have"
            if cluster > worker
            else "worker: it has as many CPUs"
        )
    return on_cpus(sides)


def on_cpus(sides: Sides) -> str:
    """The same where the workers' CPUs read and compute in turns, or compute while others read."""
    worker, cluster, net, kept = sides.worker, sides.cluster, sides.net, sides.kept
    if net:
        alone, apart = 1 / (1 / net + 1 / worker), min(net * kept, cluster)
        if apart > alone:
            return f"cluster: {apart:,.0f} images/s against {alone:,.0f}, as the workers' CPUs only compute"
        return f"worker: {alone:,.0f} images/s against {apart:,.0f}, as few CPUs are free"
    least = worker * (1 - kept) / kept
    most = cluster * worker / (worker - cluster) if cluster < worker else math.inf
    if least >= most:
        return "worker: the CPUs that would read elsewhere are those that the net computes on"
    if not least and most == math.inf:
        return "cluster: the free CPUs read as fast, and the workers' CPUs only compute"
    over = f"more than {least:,.0f}" if least else ""
    below = f"fewer than {most:,.0f}" if most < math.inf else ""
    return f"cluster where the net computes {' and '.join(filter(None, (over, below)))} images/s, else worker"


def measure(definition: Definition, job: Training) -> Reading | None:
    """How fast one core reads the records of the first layer that has any; None where no layer does."""
    layers = select(definition.spec, definition.state, definition.name).layer
    layer = next((one for one in layers if one.type in FAMILIES and one.type not in HERE), None)
    if layer is None:
        return None
    asked = Asked(layer, "TRAIN", definition.folder, 0, FeedOptions(**job.feed), on_device=True, digest=True)
    try:
        return timed(asked)
    except (OSError, ValueError) as error:
        raise with_place(error, f"{definition.name}: layer {quoted(layer.name)}") from error


def timed(asked: Asked) -> Reading:
    """Pieces of the layer, made one after the other for a moment."""
    maker = Maker(asked)
    try:
        batch, rows = maker.tops.batch, min(RECORDS, maker.tops.batch)
        handed = maker.make(Piece(0, 0, rows))
        count, began = 0, time.perf_counter()
        while handed.error is None and ((spent := time.perf_counter() - began) < SECONDS or not count):
            handed = maker.make(Piece(rows * (count // rows + 1), 0, rows))
            count += rows
        if handed.error is not None:
            raise handed.error
    finally:
        maker.close()
    name = f"{quoted(asked.spec.name)} ({asked.spec.type})"
    return Reading(name, batch, count / spent, handed.nbytes / rows, count)


def known(run: Path) -> float:
    """Images a second that the net took in this run's folder, its waiting for data left out; 0 where it never ran."""
    try:
        with (run / "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("batch_digest")]
    except OSError:
        return 0.0
    if len(rows) < 2:
        return 0.0
    spent = float(rows[-1]["seconds"]) - float(rows[0]["seconds"]) - sum(float(row["data_wait"]) for row in rows[1:])
    return sum(float(row["images"]) for row in rows[1:]) / spent if spent > 0 else 0.0


def at(config: Config, where: str) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"where": where})})


def cpus(count: int) -> str:
    return f"{count} CPU{'s' * (count != 1)}"


def describe(reading: Reading) -> str:
    each = 1 / reading.rate
    cost = f"{1e3 * each:.1f} ms" if each >= 1e-3 else f"{1e6 * each:.0f} us"
    return (
        f"{cost} a record on one core, {reading.rate:,.0f} a second (measured on {reading.measured:,}); "
        f"{reading.bytes / 1e3:,.0f} kB each once it is cut"
    )
