"""CPUs of a training whose batches are read elsewhere: some stay beside the workers, and a GPU has its machine's."""

from __future__ import annotations

import pytest

from cluster.config import Config, Data, Train
from cluster.connect import Connection, Machine
from cluster.scaling import TrainPool, spare_cpus, train_pool

GB = 10**9


def there(*sizes: tuple[int, int]) -> Connection:
    """Machines of (CPUs, GPUs)."""
    return Connection("local", True, 0.0, tuple(Machine(cpus, gpus, 8 * GB) for cpus, gpus in sizes))


def pool_of(connection: Connection, where: str = "cluster", **train: object) -> TrainPool:
    return train_pool(Config(train=Train(**train), data=Data(where=where)), connection)


@pytest.mark.parametrize(
    ("sizes", "train", "pool", "spare"),
    [
        ([(8, 0)], {}, TrainPool(1, 7, False), 1),
        ([(8, 0)], {"workers": 2}, TrainPool(2, 3, False), 2),
        ([(8, 0), (32, 0)], {}, TrainPool(1, 32, False), 8),
        ([(8, 0)], {"cpus_per_worker": 2, "workers": {"min": 1, "max": 3}}, TrainPool((1, 3), 2, False), 2),
        ([(16, 8), (64, 0)], {}, TrainPool(8, 2, True), 64),
    ],
)
def test_a_cpu_a_worker_stays_free_for_reading(sizes, train, pool, spare):
    found = pool_of(there(*sizes), **train)
    assert found == pool
    assert spare_cpus(found, there(*sizes)) == spare


@pytest.mark.parametrize(
    ("sizes", "train"),
    [([(1, 0)], {}), ([(4, 0)], {"workers": 4}), ([(4, 0)], {"workers": {"min": 1, "max": 9}, "cpus_per_worker": 1})],
)
def test_workers_that_would_leave_no_cpu_for_reading_are_refused(sizes, train):
    with pytest.raises(
        ValueError, match=r"^data\.where: cluster wants a CPU beside the training workers: .* data\.where=w"
    ):
        pool_of(there(*sizes), **train)
    assert spare_cpus(pool_of(there(*sizes), "worker", **train), there(*sizes)) == 0


def test_workers_with_gpus_are_as_wide_as_the_machines_with_gpus_allow():
    assert pool_of(there((16, 8), (64, 0)), "worker") == TrainPool(8, 2, True)
    assert pool_of(there((16, 4), (16, 4)), "worker") == TrainPool(8, 4, True)
    with pytest.raises(ValueError, match=r"2 workers of 8 CPUs cannot run at once: .* has room for 1"):
        pool_of(there((8, 2), (64, 0)), "worker", cpus_per_worker=8, workers=2)
