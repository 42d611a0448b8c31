"""The Ray Data side of an extraction: the parts that are missing go in, finished parts come out."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ops import shared_blobs
from ops.feed.loader import AHEAD
from ops.memory import keep_memory
from pipelines.job import say
from pipelines.stages.build import LONG_ENOUGH, Watch, named, take
from pipelines.stages.extracting import ExtractFeatures, Part
from pipelines.stages.feature_output import FeatureOutput
from pipelines.stages.feature_setup import BATCH, Prepared
from pipelines.stages.featuring import Setup
from pipelines.stages.output import summary
from pipelines.stages.stream import results

if TYPE_CHECKING:
    from cluster.config import Config
    from cluster.connect import Connection
    from cluster.scaling import Pool

SHARE = 0.5  # of a node's object store that weights may take; larger ones are read by each worker
LARGE = 1 << 24  # bytes of a blob: a thread of its own does not keep many of these (ops/memory.py)
DAY = 86_400  # seconds; also what a part may take: Ray Data gives up on tasks of half an hour


def build(
    output: FeatureOutput, prepared: Prepared, config: Config, tell: Callable[[int], None], *, allowed_bad: float
) -> dict[str, Any]:
    """Make every part that is not finished yet; what the run was like, for people.

    Raises ValueError or OSError when the job cannot go on; what was finished by then stays finished.
    """
    pending = [part for part in range(output.plan.shards) if part not in output.finished]
    if not pending:
        return {}
    import cluster
    import ops
    import pipelines
    from cluster.connect import connected

    began = time.monotonic()
    lines = sum(output.plan.cuts[part + 1] - output.plan.cuts[part] for part in pending)
    with connected(config, packages=(ops, pipelines, cluster)) as connection:
        pool, gpu = pool_of(config, connection, len(pending), prepared.job.gpu)
        spare = AHEAD + 1 if pool.workers > 1 else 0
        setup = replace(prepared.for_workers(), batch=batch_of(prepared.job, gpu), spare=spare)
        parts = dataset(output, setup, weights(prepared), pool, pending, gpu=gpu)
        made, bad = [], summary(output.shards())["bad"]
        with Watch(output, tell):
            for row in results(parts, "shard"):
                made.append(Part(**json.loads(row)))
                take(made[-1], output, check_size=False)
                bad += len(made[-1].bad)
                if bad > allowed_bad:
                    break
    tell(output.progress())
    worked = max(one.began + one.seconds for one in made) - min(one.began for one in made)
    fewer = min((one.pieces for one in made if one.pieces), default=0)
    if fewer:
        say(f"note: memory ran out, batches were halved until {fewer} images at a time fitted (--batch-size {fewer})")
    return {
        "images_per_s": round(lines / worked, 1),
        "images_per_day": round(lines / worked * DAY),
        "start_up_s": round(max(0.0, time.monotonic() - began - worked), 3),
        "workers": pool.workers,
        "cpus_per_worker": pool.cpus_per_worker,
        "gpu": gpu,
        "batch_size": setup.batch,
        **shares(made),
        "limited_by": limit(made),
    }


def pool_of(config: Config, connection: Connection, parts: int, gpu: str | None) -> tuple[Pool, bool]:
    """Actors: one a GPU where there are any and --gpu does not say none, else by CPUs; and whether they have GPUs."""
    from cluster.scaling import Pool, data_pool, there

    if gpu not in (None, "none") and not connection.gpus:
        raise ValueError(f"--gpu {gpu}: {there(connection)} has no GPU; --gpu none uses CPUs")
    if gpu == "none" or not connection.gpus:
        return data_pool(config, connection, parts), False
    asked, each = config.data.workers, config.data.cpus_per_worker
    workers = min(parts, connection.gpus, asked if isinstance(asked, int) else connection.gpus)
    if gpu not in (None, "all"):
        workers = min(workers, len(gpu.split(",")))
    cpus = each if isinstance(each, int) else max(1, connection.cpus // max(1, connection.gpus))
    return Pool(workers, cpus, None), True


def batch_of(job: Any, gpu: bool) -> int:
    """Images of one forward: --batch-size, or as many as keep the device busy; ten crops count."""
    return job.batch_size or max(1, BATCH["cuda" if gpu else "cpu"] // (10 if job.oversample else 1))


def weights(prepared: Prepared) -> Any:
    """The net's blobs in the object store, once a node; their files' names where they would fill it."""
    import ray

    arrays = shared_blobs.blobs_of(prepared.net)
    prepared.net = None  # type: ignore[assignment]  # the driver needs it no more
    need = sum(values.nbytes for *_, values in arrays)
    nodes: list[Any] = ray.nodes()  # type: ignore[no-untyped-call]
    stores = [node["Resources"].get("object_store_memory", 0) for node in nodes if node["Alive"]]
    if need > SHARE * min(stores, default=0):
        return [str(path.absolute()) for path in prepared.model.weights]
    return ray.put(arrays)


def environment(setup: Setup) -> dict[str, Any]:
    """How an actor's process is to be started; one with settings of its own takes a second longer, so small nets have
    none."""
    largest = 4 * max(math.prod(shape) for shape in setup.net(setup.batch).shapes.values())
    settings = keep_memory() if largest > LARGE else {}
    return {"runtime_env": {"env_vars": settings}} if settings else {}


def dataset(output: FeatureOutput, setup: Setup, blobs: Any, pool: Pool, pending: list[int], *, gpu: bool) -> Any:
    """The ray.data.Dataset from numbers of parts to finished parts."""
    import ray

    stages = [setup.source.column == "path" and "read+decode", "transform", "forward", "write"]
    rows = ray.data.from_arrow([pa.table({"shard": [part]}) for part in pending])
    # On a CPU a part takes seconds: waiting behind another one it would leave a worker without, the last to start most.
    made = rows.map_batches(
        named(ExtractFeatures, [stage for stage in stages if stage]),
        batch_size=1 if gpu else None,
        compute=ray.data.ActorPoolStrategy(size=pool.workers, max_tasks_in_flight_per_actor=2 if gpu else 1),
        num_cpus=pool.cpus_per_worker,
        num_gpus=1 if gpu else None,
        memory=pool.memory,
        **environment(setup),
        fn_constructor_kwargs={
            "run": str(output.run),
            "setup": setup,
            "blobs": blobs,
            "format": output.backend,
            "threads": pool.cpus_per_worker,
            "gpu": gpu,
        },
    )
    made.context.execution_no_progress_timeout_s = DAY
    return made


def shares(made: list[Part]) -> dict[str, float]:
    """Where the workers' time went, in percent: waiting for images, forward, writing, the rest."""
    total = sum(one.seconds for one in made)
    names = {"decode": "waited", "forward": "forward", "write": "writing"}
    return {f"{name}_percent": percent(sum(getattr(one, key) for one in made), total) for name, key in names.items()}


def percent(part: float, total: float) -> float:
    return round(100 * part / total, 1) if total else 0.0


def limit(made: list[Part]) -> str:
    """What held the speed back: the largest share of the time."""
    seconds = sum(one.seconds for one in made)
    if seconds < LONG_ENOUGH:
        return "too short a run to say what limits it"
    kinds = {
        "the net (forward)": sum(one.forward for one in made),
        "reading and decoding": sum(one.waited for one in made),
        "writing": sum(one.writing for one in made),
    }
    return f"limited by {max(kinds, key=lambda kind: kinds[kind])}"
