"""`cortado test` on several workers: Ray actors that share every batch; the driver follows them and adds up counts."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.connect import Connection, chosen
from cluster.errors import unwrap
from cluster.scaling import TrainPool, places
from ops import user_frames
from ops.custom import Code
from ops.memory import keep_memory
from ops.parallel import Group
from pipelines.job import say
from pipelines.stages import scoring
from pipelines.stages.ray_training import COLLECTIVE_SECONDS, LOOK_EVERY
from pipelines.stages.scoring import Found, Trial

if TYPE_CHECKING:
    from cluster.config import Config

PATIENCE = 10  # seconds that workers may take to start before the wait is explained
LEFT_BEHIND = re.compile(r"\bgloo\b|NCCL|ProcessGroup|Connection (?:closed|reset) by peer")
LAST_WORDS = 5  # seconds in which the other workers may tell why one of them failed

# -- who tests ---------------------------------------------------------------------------------------------------------


def one_here(config: Config, gpu: str | None) -> bool:
    """Whether one process of this machine is all that is asked for: no cluster is named, no second worker wanted."""
    if chosen(config) != "local":
        return False
    asked, wanted = config.train.workers, config.train.gpu
    if asked != "auto":
        return asked == 1
    if gpu == "none" or (gpu is None and wanted is False):
        return True
    return (torch.cuda.device_count() if gpu in (None, "all") else len(str(gpu).split(","))) <= 1


def device_here(config: Config, gpu: str | None) -> torch.device:
    """The device of that process: what --gpu says, else train.gpu, else what there is."""
    if gpu is None and config.train.gpu is True and not torch.cuda.is_available():
        raise ValueError("train.gpu: true: torch finds no GPU here; --gpu none tests on the CPU")
    return scoring.device_of("none" if gpu is None and config.train.gpu is False else gpu)


def workers_for(pool: TrainPool, connection: Connection, config: Config, batch: int, model: str) -> int:
    """How many of them: as many as train has, but where the file leaves it open no more than a batch has places."""
    if isinstance(pool.workers, int):
        most = pool.workers
    else:
        most = min(pool.workers[1], places(connection.machines, pool.cpus_per_worker, None, gpu=pool.gpu))
    if config.train.workers == most and batch < most:
        raise ValueError(f"{model}: a batch of {batch} for {most} workers; lower train.workers, or raise batch_size")
    return min(most, batch)


def division(batch: int, workers: int) -> str:
    """As "batch 100 = 3 workers x 33 or 34"."""
    each = f"{batch // workers:,}" + (f" or {batch // workers + 1:,}" if batch % workers else "")
    return f"batch {batch:,} = {workers} worker{'s' * (workers != 1)} x {each}"


# -- a worker ----------------------------------------------------------------------------------------------------------


class Worker:
    """An actor with two threads: one tests, the other tells how far it is."""

    def __init__(self, folder: str):
        os.chdir(folder)
        self.news: list[tuple[int, dict[str, Any]]] = []
        self.trace = ""  # of an error in the user's own code

    def host(self) -> tuple[str, int]:
        """Where the workers find each other; the first one's."""
        from ray.util import get_node_ip_address

        address = get_node_ip_address()
        self.store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)
        return address, self.store.port

    def run(
        self, tested: Trial, code: Code, group: Group, meeting: tuple[str, int], *, gpu: bool, threads: int, told: bool
    ) -> Found:
        """The test of this worker's part; `told`: keep each batch's outputs for `take`."""
        torch.set_num_threads(threads)
        store = self.store if group.rank == 0 else dist.TCPStore(*meeting, is_master=False)
        patience = timedelta(seconds=COLLECTIVE_SECONDS)
        place = {"store": store, "rank": group.rank, "world_size": group.world, "timeout": patience}
        dist.init_process_group("nccl" if gpu else "gloo", **place)  # type: ignore[arg-type]

        def note(number: int, outputs: dict[str, Tensor]) -> None:
            kept = {name: value.float().cpu().numpy() for name, value in outputs.items()} if told else {}
            self.news.append((number, kept))

        device = torch.device("cuda", 0) if gpu else torch.device("cpu")
        with user_frames.told("", lambda trace: setattr(self, "trace", trace)):
            code.load()
            found = scoring.run(tested, scoring.assemble(tested), group, device, note, threads=threads)
        dist.destroy_process_group()
        return found

    def user_trace(self) -> str:
        return self.trace

    def take(self) -> list[tuple[int, dict[str, Any]]]:
        """Batches that were done since the last time."""
        taken, self.news = self.news, []
        return taken


# -- the driver --------------------------------------------------------------------------------------------------------


def test_on_ray(
    tested: Trial,
    code: Code,
    *,
    workers: int,
    cpus_per_worker: int,
    gpu: bool,
    each: Callable[[int, dict[str, Any]], None],
    told: bool,
) -> Found:
    """The test by `workers` actors at once; `each` gets a batch's number, and its outputs where they are `told`."""
    import ray
    from ray.util import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    need: dict[str, float] = {"CPU": cpus_per_worker, **({"GPU": 1} if gpu else {})}
    room = placement_group([need] * workers, strategy="PACK")
    hired: list[Any] = []
    results: list[Any] = []
    try:
        if not room.wait(PATIENCE):
            say(f"waiting for {workers} x {cpus_per_worker} CPUs{' and a GPU' * gpu}: the cluster is busy")
            ray.get(room.ready())
        kind = ray.remote(Worker).options(
            num_cpus=cpus_per_worker,
            num_gpus=int(gpu),
            max_concurrency=2,
            runtime_env={"env_vars": keep_memory()},
            scheduling_strategy=PlacementGroupSchedulingStrategy(room),
        )
        hired = [kind.remote(os.getcwd()) for _ in range(workers)]
        meeting = ray.get(hired[0].host.remote())
        options = {"gpu": gpu, "threads": cpus_per_worker}
        results = [
            one.run.remote(tested, code, Group(rank, workers), meeting, told=told and rank == 0, **options)
            for rank, one in enumerate(hired)
        ]
        return added(follow(hired, results, each))
    except ray.exceptions.RayError as error:
        raise unwrap(error) from error
    finally:
        for one in hired:
            ray.kill(one)
        failures(results)  # else Ray prints those that nobody has seen
        remove_placement_group(room)


def follow(hired: list[Any], results: list[Any], each: Callable[[int, dict[str, Any]], None]) -> list[Found]:
    """What all workers found; meanwhile the first one's news. The error of the one that failed first."""
    import ray

    waiting = list(results)
    try:
        while waiting:
            done, waiting = ray.wait(waiting, timeout=LOOK_EVERY)
            for number, outputs in ray.get(hired[0].take.remote()):
                each(number, outputs)
            ray.get(done)
        return ray.get(results)
    except ray.exceptions.RayError as error:
        if explains(told := unwrap(error)):
            tell_trace(hired)
            raise told from error
        raise why([error, *failures(results)]) from error


def tell_trace(hired: list[Any]) -> None:
    """Where in the user's own code it went wrong, by the first worker that knows."""
    import ray

    for one in hired:
        with contextlib.suppress(ray.exceptions.RayError):
            if trace := ray.get(one.user_trace.remote(), timeout=LAST_WORDS):
                say(trace)
                return


def explains(error: BaseException) -> bool:
    """Whether it is bad input or a lack of memory; workers left behind only see their connection close."""
    known = isinstance(error, ValueError | OSError | MemoryError | torch.OutOfMemoryError)
    return known and not LEFT_BEHIND.search(str(error))


def failures(results: list[Any]) -> list[BaseException]:
    """The errors of workers that have failed, or do so soon."""
    import ray

    done, _ = ray.wait(results, num_returns=len(results), timeout=LAST_WORDS)
    found: list[BaseException] = []
    for one in done:
        try:
            ray.get(one)
        except ray.exceptions.RayError as error:
            found.append(error)
    return found


def why(errors: Sequence[BaseException]) -> BaseException:
    """Of errors of several workers the one that explains the others, or a worker's death, or the first."""
    import ray

    told = [unwrap(error) for error in errors]
    died = [one for error, one in zip(errors, told, strict=True) if isinstance(error, ray.exceptions.RayActorError)]
    return next(filter(explains, told), (died or told)[0])


def added(found: list[Found]) -> Found:
    """The first worker's means with the counts of all."""
    counts = [one.matrix for one in found if one.matrix is not None]
    return replace(found[0], matrix=sum(counts[1:], counts[0]) if counts else None)
