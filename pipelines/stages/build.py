"""The Ray Data side of a conversion: the shards that are missing go in, finished shards come out.

Fused (the default), all stages of a shard are one operator and pixels stay in the process that decodes them. Not fused,
shuffle, decode, transform and write are operators of their own, for clusters whose decoding and writing nodes differ.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ops.recipe import Recipe
from pipelines.stages import operators
from pipelines.stages.output import Output, summary
from pipelines.stages.plan import Plan
from pipelines.stages.shards import BuildShard, Shard, sizes_differ
from pipelines.stages.stream import results

if TYPE_CHECKING:
    from cluster.config import Config
    from cluster.scaling import Pool

LOOK_EVERY = 0.5  # seconds between two looks at how far the attempts are
LONG_ENOUGH = 5.0  # seconds of work after which one can tell what limits the speed
IN_FLIGHT = 2  # slices a worker has: the next one waits behind the one it works on


def build(
    output: Output,
    recipe: Recipe,
    config: Config,
    tell: Callable[[int], None],
    *,
    check_size: bool,
    allowed_bad: float,
) -> dict[str, Any]:
    """Make every shard that is not finished yet; what the run was like, for people.

    Raises ValueError or OSError when the job cannot go on; what was finished by then stays finished.
    """
    pending = [shard for shard in range(output.plan.shards) if shard not in output.finished]
    if not pending:
        return {}
    import cluster
    import ops
    import pipelines
    from cluster.connect import connected
    from cluster.scaling import data_pool

    began = time.monotonic()
    lines = sum(output.plan.cuts[shard + 1] - output.plan.cuts[shard] for shard in pending)
    with connected(config, packages=(ops, pipelines, cluster)) as connection:
        pool = data_pool(config, connection, tasks=len(pending))
        start_up = time.monotonic() - began
        shards = dataset(output, recipe, pool, pending, fuse=config.data.fuse, check_size=check_size)
        working = time.monotonic()
        made, bad = [], summary(output.shards())["bad"]
        with Watch(output, tell):
            for row in results(shards, "shard"):
                made.append(Shard(**json.loads(row)))
                take(made[-1], output, check_size=check_size)
                bad += len(made[-1].bad)
                if bad > allowed_bad:
                    break
        worked = time.monotonic() - working
    tell(output.progress())
    return {
        "images_per_s": round(lines / worked, 1),
        "start_up_s": round(start_up, 3),
        "workers": pool.workers * pool.cpus_per_worker,
        "limited_by": limit(made),
    }


def take(made: Shard, output: Output, *, check_size: bool) -> None:
    """Accept a finished shard; OSError or ValueError when it says that the whole job must stop."""
    if made.full:
        raise output.no_space(made)
    if made.failure:
        raise ValueError(made.failure)
    output.accept(made)
    if check_size or output.backend == "hdf5" or output.wants_sum:
        shapes = {tuple(one.shape): one for one in output.shards() if one.count}
        if len(shapes) > 1:
            (here, first), (there, second) = list(shapes.items())[:2]
            raise ValueError(sizes_differ(here, first.first_key, there, second.first_key))


def limit(made: list[Shard]) -> str:
    """What held the speed back, from the share of time in which the workers computed."""
    seconds = sum(one.seconds for one in made)
    if seconds < LONG_ENOUGH:
        return "too short a run to say what limits it"
    busy = min(1.0, sum(one.cpu_seconds for one in made) / seconds)
    return f"limited by {'the CPUs' if busy > 0.8 else 'storage'} (workers computed {100 * busy:.0f} % of the time)"


class Watch:
    """Tells how many lines are done, twice a second, while the job runs."""

    def __init__(self, output: Output, tell: Callable[[int], None]):
        self.output, self.tell = output, tell
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self.stop.wait(LOOK_EVERY):
            self.tell(self.output.progress())

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop.set()
        self.thread.join()


def dataset(output: Output, recipe: Recipe, pool: Pool, pending: list[int], *, fuse: bool, check_size: bool) -> Any:
    """The ray.data.Dataset from slices of the list to finished shards."""
    import ray

    blocks = slices(output.plan, pending) if fuse else pieces(output.plan, pending)
    rows = ray.data.from_arrow(blocks)
    shared = {"run": str(output.run), "plan": output.plan, "recipe": recipe}
    if not fuse:
        return operators.apart(rows, pool, shared, check_size=check_size)
    return rows.map_batches(
        named(BuildShard, [*stages(output.plan, recipe), "write"]),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=pool.workers, max_tasks_in_flight_per_actor=IN_FLIGHT),
        num_cpus=pool.cpus_per_worker,
        memory=pool.memory,
        fn_constructor_kwargs={**shared, "threads": pool.cpus_per_worker, "check_size": check_size},
    )


def stages(plan: Plan, recipe: Recipe) -> list[str]:
    return [*(["shuffle"] if plan.options.get("shuffle") else []), *recipe.stages()]


def named(kind: type, stages: list[str]) -> type:
    """The operator under the names of its stages: what Ray's plan, progress and dashboard show."""
    return type("+".join(stages), (kind,), {"__module__": kind.__module__})


def slices(plan: Plan, pending: list[int]) -> list[pa.Table]:
    """One row, and one block, a shard."""
    cuts = plan.cuts
    return [pa.table({"shard": [one], "start": [cuts[one]], "stop": [cuts[one + 1]]}) for one in pending]


def pieces(plan: Plan, pending: list[int]) -> list[pa.Table]:
    """One row, and one block, for every 256 lines of a shard."""
    cuts, step = plan.cuts, operators.PIECE
    starts = [
        (one, at, min(at + step, cuts[one + 1])) for one in pending for at in range(cuts[one], cuts[one + 1], step)
    ]
    return [pa.table({"shard": [one], "start": [start], "stop": [stop]}) for one, start, stop in starts]


def explain(plan: Plan, recipe: Recipe, config: Config, out: Path, *, shuffle: bool, versions: int) -> dict[str, Any]:
    """What `--explain` prints: stages, shards, order, what runs where, bytes expected."""
    names = [*stages(plan, recipe), "write"]
    fused = config.data.fuse
    return {
        "stages": " > ".join(names),
        "lines": plan.count,
        "shards": f"{plan.shards} of up to {-(-plan.count // plan.shards):,} lines",
        "order": f"shuffled by seed {recipe.seed}" if shuffle else "the list's",
        "operators": "one: all stages of a shard in one process" if fused else " | ".join(operators.names(names)),
        "runs_on": f"{config.address or 'local'}, {config.data.workers} workers",
        "pixels": "stay in the process that decodes them" if fused else "travel through Ray's object store",
        "records_expected": versions * recipe.views,
        "bytes_expected": expected_bytes(recipe, versions),
        "out": str(out),
        "commit": f"shards under {out}/.run, renamed when all are done; manifest.json last",
    }


def expected_bytes(recipe: Recipe, versions: int) -> int | str:
    """From the sizes alone; a word where pictures keep theirs."""
    side = (recipe.crop, recipe.crop) if recipe.crop else recipe.resize[1:] if recipe.resize else None
    if (
        not side
        or (recipe.resize and recipe.resize[0] != "exact" and not recipe.crop)
        or recipe.encode_type is not None
    ):
        return "as the pictures are"
    per_record = side[0] * side[1] * (1 if recipe.gray else 3)
    per_record *= 4 if recipe.backend == "hdf5" else 5 if recipe.floats else 1
    return versions * recipe.views * per_record
