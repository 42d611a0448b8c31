"""Workers that fit, and use what there is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import Config, Data, Train
from cluster.connect import Connection, Machine
from cluster.scaling import Pool, TrainPool, data_pool, places, train_pool

GB = 10**9


def machines(*cpus: int, memory: int = 8 * GB) -> Connection:
    return Connection("local", True, 0.0, tuple(Machine(count, 0, memory) for count in cpus))


def asking(**data: object) -> Config:
    return Config(data=Data(**data))


@pytest.mark.parametrize(
    ("cpus", "tasks", "pool"),
    [
        ((8,), 100, Pool(8, 1, None)),
        ((8,), 8, Pool(8, 1, None)),
        ((8,), 5, Pool(5, 1, None)),
        ((8,), 4, Pool(4, 2, None)),
        ((8,), 3, Pool(3, 2, None)),
        ((8,), 1, Pool(1, 8, None)),
        ((8,), 0, Pool(1, 8, None)),
        ((4, 4), 1, Pool(1, 4, None)),  # a worker stands on one machine
        ((4, 4), 3, Pool(3, 2, None)),
        ((2, 0), 9, Pool(2, 1, None)),  # a head without CPUs for tasks
        ((1,), 9, Pool(1, 1, None)),
    ],
)
def test_all_cpus_work_on_what_there_is_to_do(cpus, tasks, pool):
    assert data_pool(Config(), machines(*cpus), tasks) == pool


def test_what_the_file_asks_for_is_given():
    assert data_pool(asking(workers=1), machines(8), 100) == Pool(1, 1, None)
    assert data_pool(asking(workers=4), machines(8), 2) == Pool(2, 2, None)  # the CPUs of four, for two
    assert data_pool(asking(cpus_per_worker=3), machines(8), 100) == Pool(2, 3, None)
    assert data_pool(asking(workers=2, cpus_per_worker=2), machines(8), 100) == Pool(2, 2, None)
    assert data_pool(asking(memory_per_worker="2GB"), machines(8, memory=5 * GB), 100) == Pool(2, 4, 2 * GB)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            {"workers": 9},
            r"9 workers of 1 CPU cannot run at once: the cluster \(1 node, 8 CPUs, 8\.0 GB for tasks\) has ",
        ),
        (
            {"cpus_per_worker": 9},
            r"a worker of 9 CPUs cannot run anywhere: .* room for 0; lower data\.cpus_per_worker$",
        ),
        ({"workers": 5, "cpus_per_worker": 2}, r"5 workers of 2 CPUs .* room for 4; lower data\.workers or data\.cpus"),
        (
            {"memory_per_worker": "9GB"},
            r"a worker of 1 CPU and 9\.0 GB cannot run anywhere.*lower data\.memory_per_work",
        ),
    ],
)
def test_more_than_the_cluster_has_is_an_error_not_a_wait(data, told):
    with pytest.raises(ValueError, match=told):
        data_pool(asking(**data), machines(8), 100)


def test_a_cluster_without_cpus_is_an_error():
    with pytest.raises(ValueError, match="room for 0; add a node with CPUs"):
        data_pool(Config(), machines(0), 100)


some = st.integers(1, 20)


@given(
    st.lists(st.integers(0, 16), min_size=1, max_size=5),
    st.integers(0, 40),
    st.just("auto") | some,
    st.just("auto") | some,
    st.just("auto") | st.integers(1, 10).map(lambda count: count * GB),
)
def test_a_pool_always_fits_and_never_has_idle_workers(cpus, tasks, workers, each, memory):
    connection = machines(*cpus)
    pool, told = None, ""
    try:
        pool = data_pool(asking(workers=workers, cpus_per_worker=each, memory_per_worker=memory), connection, tasks)
    except ValueError as error:
        told = str(error)
    if pool is None:
        assert "room for" in told
        return
    assert 1 <= pool.workers <= max(tasks, 1)
    assert places(connection.machines, pool.cpus_per_worker, pool.memory) >= pool.workers
    assert pool.cpus_per_worker == each or each == "auto"
    assert pool.workers <= workers if workers != "auto" else True


@given(st.integers(1, 64), st.integers(1, 100))
def test_on_one_machine_no_whole_cpu_per_worker_is_left_over(cpus, tasks):
    pool = data_pool(Config(), machines(cpus), tasks)
    assert pool.workers == min(cpus, tasks)
    assert cpus - pool.workers * pool.cpus_per_worker < pool.workers


# -- training --------------------------------------------------------------------------------------------------------


def training(**train: object) -> Config:
    return Config(train=Train(**train))


def with_gpus(*gpus: int) -> Connection:
    return Connection("local", True, 0.0, tuple(Machine(8, count, 8 * GB) for count in gpus))


@pytest.mark.parametrize(
    ("connection", "train", "gpu", "pool"),
    [
        (machines(8), {}, None, TrainPool(1, 8, False)),
        (machines(2), {"workers": 2}, None, TrainPool(2, 1, False)),
        (machines(4, 4), {"workers": 4}, None, TrainPool(4, 2, False)),
        (machines(8), {"workers": {"min": 1, "max": 4}}, None, TrainPool((1, 4), 2, False)),
        (machines(8), {"cpus_per_worker": 3, "workers": 2}, None, TrainPool(2, 3, False)),
        (with_gpus(2, 2), {}, None, TrainPool(4, 4, True)),
        (with_gpus(4), {}, "0,1", TrainPool(2, 4, True)),
        (with_gpus(4), {}, "none", TrainPool(1, 8, False)),
        (with_gpus(4), {"gpu": False}, None, TrainPool(1, 8, False)),
    ],
)
def test_workers_of_a_training(connection, train, gpu, pool):
    assert train_pool(training(**train), connection, gpu=gpu) == pool


@pytest.mark.parametrize(
    ("connection", "train", "gpu", "told"),
    [
        (
            machines(2),
            {"workers": 3},
            None,
            r"3 workers of 1 CPU cannot run at once: .* has room for 2; lower train\.workers",
        ),
        (machines(2), {"workers": 2, "cpus_per_worker": 2}, None, "2 workers of 2 CPUs cannot run at once"),
        (machines(2), {}, "all", "--gpu all: the cluster .* has no GPU; --gpu none trains on CPUs"),
        (machines(2), {"gpu": True}, None, "train.gpu: true: the cluster .* has no GPU"),
        (with_gpus(2), {"workers": 3}, None, "3 workers with a GPU each: the cluster .* has 2"),
    ],
)
def test_a_training_that_would_wait_without_end_is_refused(connection, train, gpu, told):
    with pytest.raises(ValueError, match=told):
        train_pool(training(**train), connection, gpu=gpu)
