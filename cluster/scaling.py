"""How many workers, and how large: from the configuration and what the cluster has."""

from __future__ import annotations

from typing import NamedTuple

from cluster.config import Config, Range
from cluster.connect import Connection, Machine


class Pool(NamedTuple):
    """Workers of one size that all fit into the cluster at once."""

    workers: int
    cpus_per_worker: int  # threads of each
    memory: int | None  # bytes kept for each; None: not counted


def data_pool(config: Config, connection: Connection, tasks: int) -> Pool:
    """Workers for `tasks` shards: never more than there are shards, and every CPU used where the file leaves it open.

    With fewer shards than CPUs each worker gets an even number of CPUs, as threads. Raises ValueError, one line, when
    what the file asks for can never run here; Ray would wait for it without end.
    """
    asked, each = config.data.workers, config.data.cpus_per_worker
    memory = None if config.data.memory_per_worker == "auto" else config.data.memory_per_worker
    machines = connection.machines
    tasks = max(tasks, 1)
    smallest = 1 if each == "auto" else each
    room = places(machines, smallest, memory)
    workers = min(tasks, room if asked == "auto" else asked)
    if workers > room or room == 0:
        wanted = (
            f"{_workers(workers)} of {_size(smallest, memory)} cannot run {'at once' if workers > 1 else 'anywhere'}"
        )
        raise ValueError(f"{wanted}: {there(connection)} has room for {room}; {_way_out(config)}")
    if each != "auto":
        return Pool(workers, each, memory)
    budget = connection.cpus if asked == "auto" else min(asked, connection.cpus)
    return Pool(workers, _widest(machines, workers, budget // workers, memory), memory)


class TrainPool(NamedTuple):
    """Workers of a training."""

    workers: int | tuple[int, int]  # a number, or from..to
    cpus_per_worker: int
    gpu: bool


def train_pool(config: Config, connection: Connection, *, gpu: str | None = None) -> TrainPool:
    """Workers for a training: one a GPU, or one with all CPUs where there is none, unless the file says otherwise.

    `gpu` is the command line's: none, all, or numbers. Raises ValueError, one line, where what is asked for is not
    there; Ray would wait for it without end.
    """
    asked, each, wanted = config.train.workers, config.train.cpus_per_worker, config.train.gpu
    use = connection.gpus > 0 if wanted == "auto" else wanted
    named = None if gpu in (None, "all", "none") else len(str(gpu).split(","))
    use = use if gpu is None else gpu != "none"
    if use and connection.gpus == 0:
        said = f"--gpu {gpu}" if gpu is not None else "train.gpu: true"
        raise ValueError(f"{said}: {there(connection)} has no GPU; --gpu none trains on CPUs")
    workers: int | tuple[int, int]
    if isinstance(asked, Range):
        workers = (asked.min, asked.max)
    elif asked == "auto":
        workers = (named or connection.gpus) if use else 1
    else:
        workers = asked
    least = workers if isinstance(workers, int) else workers[0]
    most = workers if isinstance(workers, int) else workers[1]
    if use and least > connection.gpus:
        raise ValueError(f"{least} workers with a GPU each: {there(connection)} has {connection.gpus}")
    machines = connection.machines
    smallest = 1 if each == "auto" else each
    room = places(machines, smallest, None, gpu=use)
    if least > room:
        lower = "train.workers or train.cpus_per_worker" if each != "auto" else "train.workers"
        they = f"{_workers(least)} of {_size(smallest, None)}"
        raise ValueError(f"{they} cannot run at once: {there(connection)} has room for {room}; lower {lower}")
    apart = config.data.where == "cluster"  # tasks of their own read the batches, and want CPUs of their own
    if each == "auto":
        count = min(most, room)
        budget = connection.cpus - count if apart else connection.cpus
        smallest = _widest(machines, count, max(1, budget // count), None, gpu=use)
    pool = TrainPool(workers, smallest, use)
    if apart and not spare_cpus(pool, connection):
        they = f"{_workers(min(most, room))} of {_size(smallest, None)}"
        raise ValueError(
            f"data.where: cluster wants a CPU beside the training workers: {there(connection)} has none left beside "
            f"{they}; lower train.workers or train.cpus_per_worker, add a node, or set data.where=worker"
        )
    return pool


def spare_cpus(pool: TrainPool, connection: Connection) -> int:
    """The CPUs that no training worker has."""
    most = pool.workers if isinstance(pool.workers, int) else pool.workers[1]
    room = places(connection.machines, pool.cpus_per_worker, None, gpu=pool.gpu)
    return connection.cpus - pool.cpus_per_worker * min(most, room)


def places(machines: tuple[Machine, ...], cpus: int, memory: int | None, *, gpu: bool = False) -> int:
    """How many workers of this size, with a GPU each or without, run at once; none of them spans two machines."""
    return sum(
        min(one.cpus // cpus, one.memory // memory if memory else one.cpus, one.gpus if gpu else one.cpus)
        for one in machines
    )


def there(connection: Connection) -> str:
    """What there is, for a message: the cluster (2 nodes, 8 CPUs, 30.1 GB for tasks)."""
    nodes = f"{connection.nodes} node{'s' * (connection.nodes != 1)}"
    memory = sum(machine.memory for machine in connection.machines) / 1e9
    return f"the cluster ({nodes}, {connection.cpus} CPU{'s' * (connection.cpus != 1)}, {memory:.1f} GB for tasks)"


def _widest(machines: tuple[Machine, ...], workers: int, most: int, memory: int | None, *, gpu: bool = False) -> int:
    """The most CPUs that each of `workers` can have."""
    return next((cpus for cpus in range(most, 1, -1) if places(machines, cpus, memory, gpu=gpu) >= workers), 1)


def _workers(count: int) -> str:
    return f"{count} workers" if count > 1 else "a worker"


def _size(cpus: int, memory: int | None) -> str:
    return f"{cpus} CPU{'s' * (cpus != 1)}" + (f" and {memory / 1e9:.1f} GB" if memory else "")


def _way_out(config: Config) -> str:
    given = {name: getattr(config.data, name) for name in ("workers", "cpus_per_worker", "memory_per_worker")}
    named = [f"data.{name}" for name, value in given.items() if value != "auto"]
    return f"lower {' or '.join(named)}" if named else "add a node with CPUs"
