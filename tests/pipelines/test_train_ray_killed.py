"""Workers, nodes and drivers are killed at seeded iterations: the run ends with the weights of an undisturbed one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ops.layers.registry import LAYERS
from pipelines.stages import ray_training
from tests.pipelines.ray_trainings import (
    LINE,
    at_each,
    begin,
    cut_off,
    digests,
    golden_files,
    node_of_a_worker,
    once,
    rows,
    solver,
    train,
    workers_there,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
LAST, EVERY = 900, 150  # iterations, and between snapshots
MODEL = f"mine_sgd_iter_{LAST}.caffemodel"


def seeds(first: int) -> Any:
    """One that every run of the tests takes, and more for the soak run."""
    return pytest.mark.parametrize(
        "seed", [first, *(pytest.param(one, marks=pytest.mark.soak) for one in range(90, 96))]
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    golden_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def long_solver(folder: Path) -> Path:
    return solver(folder, "sgd", f"snapshot: {EVERY}", **{"max_iter: 24": f"max_iter: {LAST}"})


@pytest.fixture(scope="module")
def undisturbed(ray_session, tmp_path_factory):
    """`undisturbed(workers)`: weights and digests of a run that nothing happened to, made once."""
    made: dict[int, tuple[bytes, list[str]]] = {}

    def of(workers: int) -> tuple[bytes, list[str]]:
        if workers not in made:
            folder, before = tmp_path_factory.mktemp("undisturbed"), Path.cwd()
            golden_files(folder)
            os.chdir(folder)
            try:
                train(long_solver(folder), "run", workers, weights="init_cls.caffemodel")
                made[workers] = Path(MODEL).read_bytes(), digests("run")
            finally:
                os.chdir(before)
        return made[workers]

    return of


@contextlib.contextmanager
def meanwhile(run: str, iteration: int, act: Callable[[], None]) -> Iterator[None]:
    """Inside, a run goes on; something is done once it has come to the iteration."""
    done = threading.Event()
    thread = threading.Thread(target=once, args=(run, iteration, act), kwargs={"ended": done.is_set})
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def lost(told: str) -> list[tuple[int, int, float]]:
    """Iteration, the one it went on from, seconds: of each line about it."""
    found = re.findall(LINE, told)
    return [
        (int(at.replace(",", "")), int(since.replace(",", "")), float(s.replace(",", ""))) for at, since, s in found
    ]


def soon(result: dict[str, Any]) -> float:
    """Seconds that a loss may cost: a minute, and on a slow machine what a few starts take there."""
    return max(60.0, 4 * sum(result["started"].values()))


# -- workers -----------------------------------------------------------------------------------------------------------


@seeds(1)
def test_three_killed_workers_cost_seconds_and_no_bit(seed, undisturbed, folder, capsys):
    chance, done = random.Random(seed), threading.Event()
    weights, batches = undisturbed(2)
    places = [first + chance.randrange(90) for first in (60, 260, 460)]
    kill = lambda: chance.choice(workers_there()).kill()  # noqa: E731
    killer = threading.Thread(target=at_each, args=("run", places, kill), kwargs={"ended": done.is_set})
    killer.start()
    try:
        result = train(long_solver(folder), "run", 2, weights="init_cls.caffemodel", set=("train.max_failures=3",))
    finally:
        done.set()
        killer.join()
    assert result["iterations"] == LAST
    assert digests("run") == batches
    assert Path(MODEL).read_bytes() == weights
    found = lost(capsys.readouterr().err)
    assert len(found) == 3
    for at, (iteration, since, seconds) in zip(places, found, strict=True):
        assert iteration >= at
        assert since % EVERY == 0
        assert iteration - 2 * EVERY < since <= iteration  # one may have been on its way
        assert seconds < soon(result)
    assert result["lost"] == [{"iteration": at, "from": since, "seconds": spent} for at, since, spent in found]
    assert 0 < result["time"]["lost"] <= sum(seconds + 0.05 for _, _, seconds in found)  # rounded


def test_a_worker_that_hangs_is_replaced(undisturbed, folder, capsys, monkeypatch):
    """After so many seconds as a constant says, minutes in earnest."""
    assert 60 <= ray_training.COLLECTIVE_SECONDS <= 600
    weights, batches = undisturbed(2)
    monkeypatch.setattr(ray_training, "COLLECTIVE_SECONDS", 25)  # so far apart workers may begin on a slow machine
    with meanwhile("run", 300, lambda: workers_there()[-1].suspend()):
        result = train(long_solver(folder), "run", 2, weights="init_cls.caffemodel")
    assert (result["iterations"], digests("run")) == (LAST, batches)
    assert Path(MODEL).read_bytes() == weights
    assert len(lost(capsys.readouterr().err)) == 1


# -- the driver --------------------------------------------------------------------------------------------------------


@seeds(7)
def test_a_driver_that_is_killed_three_times_goes_on_with_the_same_command(seed, undisturbed, folder):
    file, chance = long_solver(folder), random.Random(seed)
    options = ["--weights", "init_cls.caffemodel", "--resume", "--set", "cpus=2", "--set", "address=local"]
    since = 0
    for _ in range(3):  # early: workers outlive their driver for a moment, and must not come to the end in it
        process = begin(file, "run", *options, cwd=folder)
        at = (since or EVERY) + chance.randrange(20, 70)
        once("run", at, process.kill, ended=lambda one=process: one.poll() is not None)
        process.communicate()
        shutil.rmtree("run/.run", ignore_errors=True)  # workers may still write there
        since = max((int(file.stem.rpartition("_")[2]) for file in folder.glob("mine_sgd_iter_*.json")), default=0)
    out, told = begin(file, "run", *options, cwd=folder).communicate(timeout=300)
    result = json.loads(out)
    assert (result["iterations"], result["lost"]) == (LAST, [])
    assert result["from"] >= since  # they may snapshot once more, too
    assert f"going on from mine_sgd_iter_{result['from']}.solverstate" in told
    if result["from"] < LAST:  # else workers came to the end by themselves
        assert re.search(rf"iterations {result['from']:,} to [\d,]+ are done again: [\d.]+ s of training lost", told)
    weights, batches = undisturbed(2)
    assert digests("run") == batches
    assert Path(MODEL).read_bytes() == weights


def notes(folder: str) -> list[str]:
    """The files there, but not those that are being written."""
    return sorted(name for name in os.listdir(folder) if not name.endswith(".new"))


def test_a_second_driver_is_refused_and_changes_nothing(folder):
    file = solver(folder, "sgd", "snapshot: 500", **{"max_iter: 24": "max_iter: 1000000"})
    first = begin(file, "run", "--set", "cpus=2", "--set", "address=local", cwd=folder)
    once("run", 50, lambda: None, ended=lambda: first.poll() is not None)
    before = notes("run/.run"), Path("run/run.json").read_bytes()
    second = begin(file, "run", "--resume", "--set", "cpus=2", "--set", "address=local", cwd=folder)
    _, told = second.communicate(timeout=200)
    assert second.returncode == 1
    (line,) = told.splitlines()
    assert line.startswith(f"cortado: error: run: another run is writing here (process {first.pid} on ")
    assert (notes("run/.run"), Path("run/run.json").read_bytes()) == before
    here = begin(file, "run", "--resume", "--local", cwd=folder)
    assert "another run is writing here" in here.communicate(timeout=200)[1]
    first.send_signal(signal.SIGINT)
    out, told = first.communicate(timeout=120)
    assert first.returncode == 0, told
    result = json.loads(out)
    assert result["stopped"]
    assert len(rows("run")) == result["iterations"] > 50


# -- nodes -------------------------------------------------------------------------------------------------------------


@seeds(11)
def test_three_lost_nodes_cost_seconds_and_no_bit(seed, cluster_of, undisturbed, folder):
    weights, batches = undisturbed(2)
    file, chance = long_solver(folder), random.Random(seed)
    with cluster_of(5, cpus=1) as outside:
        options = ["--weights", "init_cls.caffemodel", "--set", f"address={outside.address}"]
        process = begin(file, "run", *options, cwd=folder)
        places = [first + chance.randrange(90) for first in (60, 240, 420)]  # it says how far it is twice a second
        at_each("run", places, lambda: cut_off(node_of_a_worker(chance)), ended=lambda: process.poll() is not None)
        out, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    result = json.loads(out)
    assert result["iterations"] == LAST
    found = lost(told)
    assert len(found) == 3
    for at, (iteration, since, seconds) in zip(places, found, strict=True):
        assert iteration >= at
        assert (since % EVERY, seconds < soon(result)) == (0, True)
    assert digests("run") == batches
    assert Path(MODEL).read_bytes() == weights


def test_with_fewer_nodes_a_training_goes_on_with_fewer_workers(cluster_of, folder):
    file, chance = long_solver(folder), random.Random(3)
    with cluster_of(2, cpus=1) as outside:
        options = ["--weights", "init_cls.caffemodel", "--set", f"address={outside.address}"]
        process = begin(file, "run", *options, workers="{min: 1, max: 2}", cwd=folder)
        once(
            "run",
            200,
            lambda: cut_off(node_of_a_worker(chance)),
            ended=lambda: process.poll() is not None,
        )
        out, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert "batch 8 = 2 workers x 4" in told
    assert re.search(r"a worker was lost at iteration [\d,]+: beginning again with 1\n", told)
    assert [int(row["iteration"]) for row in rows("run")] == list(range(LAST))
    result = json.loads(out)
    assert result["lost"][0]["seconds"] < soon(result)


# -- workers that cannot live ------------------------------------------------------------------------------------------


def dying(folder: Path) -> Path:
    """A solver whose net kills its process."""
    (folder / "dies.py").write_text(DIES)
    text = (folder / "net_cls.prototxt").read_text()
    (folder / "net_cls.prototxt").write_text(text.replace('type: "ReLU"', 'type: "Dies"'))
    return solver(folder, "sgd")


def test_a_worker_that_dies_each_time_is_told_in_one_line(ray_session, folder):
    told = r"a worker process died each time that it was started \(train\.max_failures\): killed, out of memory, or"
    with pytest.raises(RuntimeError, match=told) as error:
        train(dying(folder), "run", 2, code=(Path("dies.py"),), set=("train.max_failures=1",))
    assert "\n" not in str(error.value)
    LAYERS.pop("Dies")


def test_a_machine_out_of_memory_is_told_in_one_line(cluster_of, folder):
    """Ray's watch over memory stops the worker: what other processes hold counts, too."""
    held = psutil.virtual_memory()
    share = (held.total - held.available) / held.total
    watched = {"RAY_memory_usage_threshold": f"{share / 2:.3f}", "RAY_memory_monitor_refresh_ms": "500"}
    with cluster_of(1, cpus=2, env=watched) as outside:
        options = ["--set", f"address={outside.address}", "--set", "train.max_failures=1"]
        process = begin(long_solver(folder), "run", *options, workers=1, cwd=folder)
        _, told = process.communicate(timeout=200)
    assert process.returncode == 1
    assert told.splitlines()[-1].startswith("cortado: error: a worker was stopped as its machine ran out of memory;")


DIES = """
import os, signal
from ops.layers.registry import Layer, layer

@layer("Dies")
class Dies(Layer):
    def forward(self, x):
        if x.device.type != "meta":
            os.kill(os.getpid(), signal.SIGKILL)
        return x
"""
