"""Training as `cortado train --local` does it, against a loop written in torch by hand over one batch in memory.

`python -m tests.benchmarks.bench_train [NET:BATCH ...]`: a step of ours reads its batch from an LMDB on a memory file
system and writes metrics.csv; the peer's has forward, cross_entropy, backward, torch.optim.SGD with momentum, decay
and two groups, and loss.item(). On the CPU with two threads, or as many as BENCH_THREADS says. Both take turns in this
process; a turn's first steps are not timed, so that the feed has no batches left over from the peer's turn. On a shared
machine the half of the turns counts in which other processes took least of the CPUs.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ops import zoo
from ops.proto import text
from ops.proto.caffe_pb2 import TRAIN, NetParameter, SolverParameter
from ops.records import binaryproto, datum
from ops.records.lmdb import Writer
from pipelines.stages.setup import Place, Setup, Training
from pipelines.worker import Loop
from tests.benchmarks.common import row, workplace
from tests.benchmarks.torch_nets import PEERS, LeNet

THREADS, TURNS = int(os.environ.get("BENCH_THREADS", 2)), 15
MODULES: dict[str, Callable[[], torch.nn.Module]] = {"lenet": LeNet}
MODULES |= {name: kind for name, (kind, _) in PEERS.items()}
STORED = {"lenet": (28, 1, 10, 4096)}  # side, channels, classes, records
OTHERS = (256, 3, 1000, 768)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Case:
    """A net, its batch, and how many steps of a turn are timed after how many that are not."""

    name: str
    batch: int
    steps: int
    before: int


CASES = [Case("lenet", 64, 100, 10), Case("caffenet", 32, 6, 2), Case("caffenet", 128, 3, 1)]


# -- ours ------------------------------------------------------------------------------------------------------------


def stored(name: str, folder: Path) -> None:
    """An LMDB of noise, and its mean image where the net subtracts one."""
    side, channels, classes, count = STORED.get(name, OTHERS)
    rng = np.random.default_rng(0)
    with Writer(folder / "train") as out:
        for number in range(count):
            pixels = rng.integers(0, 256, (side, side, channels), np.uint8)
            out.put(b"%08d" % number, datum.raw(pixels, number % classes))
    binaryproto.write(folder / "mean.binaryproto", np.full((channels, side, side), 127.5, np.float32))


def written(case: Case, folder: Path, rate: float) -> Path:
    """The zoo's net and solver over that LMDB; the solver's path."""
    net = text.read(zoo.find(case.name, "train_val.prototxt"), NetParameter)
    layer = next(one for one in net.layer if one.type == "Data" and TRAIN in [rule.phase for rule in one.include])
    layer.data_param.source, layer.data_param.batch_size = str(folder / "train"), case.batch
    if layer.transform_param.mean_file:
        layer.transform_param.mean_file = str(folder / "mean.binaryproto")
    text.write(folder / f"net_{case.batch}.prototxt", net)
    solver = text.read(zoo.find(case.name, "solver.prototxt"), SolverParameter)
    solver.net, solver.snapshot_prefix = str(folder / f"net_{case.batch}.prototxt"), str(folder / "snapshot")
    solver.base_lr, solver.random_seed = rate, 1
    for field in ("test_iter", "test_interval", "snapshot"):
        solver.ClearField(field)
    text.write(folder / f"solver_{case.batch}.prototxt", solver)
    return folder / f"solver_{case.batch}.prototxt"


# -- the peer's ------------------------------------------------------------------------------------------------------


def by_hand(case: Case, rate: float, layout: torch.memory_format) -> Callable[[], float]:
    """One step of a loop over a batch that is in memory."""
    torch.manual_seed(1)
    side, channels, classes, _ = STORED.get(case.name, OTHERS)
    side = PEERS[case.name][1] if case.name in PEERS else side
    model = MODULES[case.name]().to(memory_format=layout).train()
    x = torch.randn(case.batch, channels, side, side).to(memory_format=layout)
    label = torch.randint(0, classes, (case.batch,))
    named = dict(model.named_parameters())
    weights = [one for name, one in named.items() if name.endswith("weight")]
    biases = [one for name, one in named.items() if name.endswith("bias")]
    groups = [{"params": weights}, {"params": biases, "lr": 2 * rate, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9, weight_decay=5e-4, foreach=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = model.loss(x, label)  # type: ignore[operator]
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


# -- turns -----------------------------------------------------------------------------------------------------------


@dataclass
class Turn:
    """What some steps took: milliseconds a step, of the clock and of this process's CPUs; what others took of them."""

    wall: float
    cpu: float
    others: float


def ticks() -> tuple[float, float]:
    """Seconds that all CPUs of the machine were busy, and those of this process among them."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    mine = os.times()
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK"), mine.user + mine.system


def turn(run: Callable[[], object], case: Case) -> Turn:
    for _ in range(case.before):
        run()
    (busy, mine), began = ticks(), time.perf_counter()
    for _ in range(case.steps):
        run()
    wall, (busy_then, mine_then) = time.perf_counter() - began, ticks()
    own = mine_then - mine
    others = max(0.0, busy_then - busy - own) / wall / (os.cpu_count() or 1)
    return Turn(1000 * wall / case.steps, 1000 * own / case.steps, others)


def turns(case: Case, *runs: Callable[[], object]) -> list[list[Turn]]:
    """The turns of each; the first, which warms up, is left out."""
    spent: list[list[Turn]] = [[] for _ in runs]
    for number in range(1 + TURNS):
        for kept, run in zip(spent, runs, strict=True):
            found = turn(run, case)
            if number:
                kept.append(found)
    return spent


def quietest(found: list[Turn]) -> list[Turn]:
    """The half in which other processes took least."""
    return sorted(found, key=lambda one: one.others)[: (len(found) + 1) // 2]


def wall(found: list[Turn]) -> float:
    return statistics.median(one.wall for one in quietest(found))


def cpu(found: list[Turn]) -> float:
    return statistics.median(one.cpu for one in found)


def compare(case: Case, folder: Path) -> None:
    """Ours against the peer in the layout that is faster; then where our time goes."""
    rate, title = 1e-4, f"{case.name}, batch {case.batch}"
    job = Training(solver=str(written(case, folder, rate)), run=str(folder / f"run_{case.batch}"))
    with contextlib.ExitStack() as closing:
        loop = Loop(Setup(job, Place(), closing))
        peers = {name: by_hand(case, rate, layout) for name, layout in LAYOUTS.items()}
        found = dict(zip(["ours", *peers], turns(case, loop.iterate, *peers.values()), strict=True))
        best = min(peers, key=lambda name: wall(found[name]))
        ours, theirs = found["ours"], found[best]
        row(f"{title}: a step, by hand in {best}", wall(ours), wall(theirs), "ms", "(at most 1.05)")
        row("  CPU time of it, the feed's threads included", cpu(ours), cpu(theirs), "ms")
        others = [statistics.median(one.others for one in quietest(each)) for each in (ours, theirs)]
        print(f"  other processes took {others[0]:.0%} and {others[1]:.0%} of the CPUs meanwhile")
        parts(case, loop)


def parts(case: Case, loop: Loop) -> None:
    """Shares of our step: waiting for data (the mean), the update (medians)."""
    update, updates, steps = loop.trainer.update, list[float](), list[float]()

    def timed_update(**options: bool) -> object:
        began = time.perf_counter()
        step = update(**options)
        updates.append(1000 * (time.perf_counter() - began))
        return step

    loop.trainer.update = timed_update  # type: ignore[method-assign, assignment]
    for _ in range(case.before):
        loop.iterate()
    waited = loop.books.waited
    for _ in range(case.steps * TURNS // 2):
        began = time.perf_counter()
        loop.iterate()
        steps.append(1000 * (time.perf_counter() - began))
    row(
        "  waiting for data, of a step",
        1000 * (loop.books.waited - waited) / len(steps),
        statistics.mean(steps),
        "ms",
        "(under 0.02)",
    )
    row("  the update, of a step", statistics.median(updates), statistics.median(steps), "ms", "(under 0.05)")


def main(arguments: list[str]) -> None:
    torch.set_num_threads(THREADS)
    print(f"torch {torch.__version__}, cpu, {THREADS} threads; ours, by hand, ratio of times")
    cases = CASES
    if arguments:
        asked = [one.partition(":") for one in arguments]
        cases = [Case(name, int(batch or 32), *((100, 10) if name == "lenet" else (3, 2))) for name, _, batch in asked]
    for name in dict.fromkeys(case.name for case in cases):
        with workplace(f"train-{name}") as folder:
            stored(name, folder)
            for case in cases:
                if case.name == name:
                    compare(case, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
