"""Training through Ray against the same without it.

`python -m tests.benchmarks.bench_ray_train [step|ddp|start ...] [lenet|caffenet ...]`

step   the loop in workers of Ray Train against the same loop under torchrun, one worker and two
ddp    two workers against DistributedDataParallel by hand over a batch in memory, one thread each; CaffeNet's batch of
       128 also against one worker with two threads
start  the first step done against an empty loop of a TorchTrainer entered, seconds from the start of the command

Each figure is the median step of a process of its own; the sides take turns, BENCH_TURNS of them (3), and the median
turn counts. BENCH_STEPS divides the steps (10: a quick look whether all works).
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ops.proto import text
from ops.proto.caffe_pb2 import SolverParameter
from pipelines.worker import leave
from tests.benchmarks.bench_train import MODULES, OTHERS, STORED, Case, stored, written
from tests.benchmarks.common import PROJECT, cortado, row, workplace
from tests.benchmarks.torch_nets import PEERS

TURNS, LESS = int(os.environ.get("BENCH_TURNS", 3)), int(os.environ.get("BENCH_STEPS", 1))
RATE = 1e-4
CASES = {  # net, batch: steps of a turn
    "lenet:64": Case("lenet", 64, 600 // LESS, 0),
    "caffenet:32": Case("caffenet", 32, max(3, 20 // LESS), 0),
    "caffenet:128": Case("caffenet", 128, max(3, 8 // LESS), 0),
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def process(command: list[str], *, threads: int = 1, look: Callable[[], bool] | None = None) -> float:
    """Run a command; seconds until it ended, or until `look` first said so."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": str(threads)}
    began, seen = time.perf_counter(), 0.0
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as running:  # type: ignore[call-overload]
        while look is not None and not seen and running.poll() is None:
            time.sleep(0.01)
            seen = time.perf_counter() - began if look() else 0.0
        _, told = running.communicate()
    if running.returncode:
        sys.exit(f"{' '.join(command)}\n{told}")
    return seen or time.perf_counter() - began


def torchrun(workers: int, *arguments: object) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}", "-m"]
    return [*command, *map(str, arguments)]


def typical(seconds: list[float]) -> float:
    """Milliseconds of a step; the first third warms up."""
    return 1000 * statistics.median(seconds[len(seconds) // 3 :])


def steps_of(run: Path) -> float:
    """Milliseconds of a step, from a run's metrics.csv."""
    with (run / "metrics.csv").open() as file:
        at = [float(row["seconds"]) for row in csv.DictReader(file)]
    return typical([after - before for before, after in itertools.pairwise(at)])


class Sides:
    """The ways to train a net over the LMDB in a folder; each gives milliseconds of a step."""

    def __init__(self, folder: Path, case: Case):
        self.folder, self.case, self.runs = folder, case, 0
        self.solver = written(case, folder, RATE)
        spec = text.read(self.solver, SolverParameter)
        spec.max_iter, spec.display, spec.snapshot_after_train = case.steps, 0, False
        text.write(self.solver, spec)

    def place(self) -> Path:
        self.runs += 1
        return self.folder / f"run-{self.case.name}-{self.case.batch}-{self.runs}"

    def under_torchrun(self, workers: int) -> float:
        run = self.place()
        process(torchrun(workers, "pipelines.worker", "--solver", self.solver, "--folder", run))
        return steps_of(run)

    def through_ray(self, workers: int, threads: int = 1) -> float:
        run = self.place()
        process(ours(self.solver, run, workers, threads))
        return steps_of(run)

    def by_hand(self, layout: str) -> float:
        """Two processes with DistributedDataParallel."""
        out = self.place().with_suffix(".json")
        process(torchrun(2, "tests.benchmarks.bench_ray_train", "by_hand", self.case.name, *self.sizes(), layout, out))
        return typical(json.loads(out.read_text()))

    def sizes(self) -> tuple[int, int]:
        return self.case.batch, self.case.steps


def ours(solver: Path, run: Path, workers: int, threads: int = 1) -> list[str]:
    settings = ["address=local", "cpus=2", f"train.workers={workers}", f"train.cpus_per_worker={threads}"]
    return cortado("train", "--solver", solver, "--run", run, "--gpu", "none", *(f"--set={one}" for one in settings))


def turns(*sides: Callable[[], float]) -> list[float]:
    """The median turn of each."""
    found = [[side() for side in sides] for _ in range(TURNS)]
    return [statistics.median(column) for column in zip(*found, strict=True)]


# -- the parts ---------------------------------------------------------------------------------------------------------


def step(sides: Sides, title: str) -> None:
    for workers in (1, 2):
        ray, plain = turns(lambda w=workers: sides.through_ray(w), lambda w=workers: sides.under_torchrun(w))
        row(f"{title}: a step, Ray Train / torchrun, {workers} workers", ray, plain, "ms", "(at most 1.02)")


def ddp(sides: Sides, title: str) -> None:
    """Speeds, so that more is better."""
    mine, *peers = turns(lambda: sides.through_ray(2), *(lambda one=one: sides.by_hand(one) for one in LAYOUTS))
    best = min(range(len(peers)), key=lambda number: peers[number])
    batch, name = sides.case.batch, list(LAYOUTS)[best]
    speeds = 1000 * batch / mine, 1000 * batch / peers[best]
    row(f"{title}: two workers / DDP by hand, {name}", *speeds, "images/s", "(at least 0.95)")
    if title == "caffenet:128":
        one, two = turns(lambda: sides.through_ray(1, threads=2), lambda: sides.through_ray(2))
        row(f"{title}: two workers / one of two threads", 1000 * batch / two, 1000 * batch / one, "images/s", "(0.9)")


def start(sides: Sides) -> None:
    for workers in (1, 2):

        def started(workers: int = workers) -> float:
            run = sides.place()
            told = run / ".run" / "events.jsonl"
            look = lambda: told.exists() and '"started"' in told.read_text()  # noqa: E731
            return process(ours(sides.solver, run, workers), look=look)

        def entered(workers: int = workers) -> float:
            mark = sides.place()
            command = [sys.executable, "-m", "tests.benchmarks.bench_ray_train", "empty", str(workers), str(mark)]
            return process(command, look=mark.exists)

        mine, theirs = turns(started, entered)
        row(
            f"start, {workers} workers: first step / empty loop",
            mine,
            theirs,
            "s",
            f"{mine - theirs:+.1f} s (at most +2)",
        )


# -- the peers ---------------------------------------------------------------------------------------------------------


def train_by_hand(name: str, batch: int, steps: int, layout: str, out: Path) -> None:
    """One of the processes: forward, cross_entropy, backward through DDP, SGD; seconds of each step, rank 0's."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(1)
    side, channels, classes, _ = STORED.get(name, OTHERS)
    side = PEERS[name][1] if name in PEERS else side
    model = MODULES[name]().to(memory_format=LAYOUTS[layout]).train()
    joined = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    x = torch.randn(batch // dist.get_world_size(), channels, side, side).to(memory_format=LAYOUTS[layout])
    label = torch.randint(0, classes, (len(x),))
    optimizer = torch.optim.SGD(joined.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4, foreach=True)
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(joined(x), label)
        loss.backward()
        optimizer.step()
        loss.item()
        seconds.append(time.perf_counter() - began)
    if dist.get_rank() == 0:
        out.write_text(json.dumps(seconds))
    leave()


def train_nothing(workers: int, mark: Path) -> None:
    """A TorchTrainer whose loop only says that it was entered."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    def loop() -> None:
        if ray.train.get_context().get_world_rank() == 0:
            mark.touch()

    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=500_000_000, log_to_driver=False)
    TorchTrainer(
        loop,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(storage_path=str(mark.with_suffix(".ray"))),
    ).fit()


def main(arguments: list[str]) -> None:
    nets = [name for name in ("lenet", "caffenet") if name in arguments] or ["lenet", "caffenet"]
    asked = [one for one in arguments if one not in nets] or ["step", "ddp", "start"]
    print(f"torch {torch.__version__}, cpu, {TURNS} turns; ours, the peer, ratio")
    for name in nets:
        with workplace(f"ray-train-{name}") as folder:
            stored(name, folder)
            for title, case in CASES.items():
                if case.name != name:
                    continue
                sides = Sides(folder, case)
                if "step" in asked and title != "caffenet:128":
                    step(sides, title)
                if "ddp" in asked:
                    ddp(sides, title)
                if "start" in asked and title == "lenet:64":
                    start(sides)


if __name__ == "__main__":
    if sys.argv[1:2] == ["by_hand"]:
        train_by_hand(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], Path(sys.argv[6]))
    elif sys.argv[1:2] == ["empty"]:
        train_nothing(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(sys.argv[1:])
