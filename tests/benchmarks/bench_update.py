"""The solver's update against torch's optimizers and the whole step, and what a snapshot costs the training.

`python -m tests.benchmarks.bench_update [BATCH]`: CaffeNet (61 million weights, 244 MB), batch 32 unless said
otherwise, on the CPU with two threads or on the GPU. Ours and the peer's take turns.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ops import net as nets
from ops import zoo
from ops.proto.caffe_pb2 import SolverParameter
from ops.solver import snapshot
from ops.solver.snapshot import Snapshotter
from ops.solver.solver import Solver
from ops.solver.updates import RULES
from tests.benchmarks.bench_net import BATCH, DEVICE, THREADS, turns
from tests.benchmarks.common import row, workplace

MOMENTUM = {"SGD": 0.9, "Nesterov": 0.9, "AdaDelta": 0.95, "Adam": 0.9}
PEERS: dict[str, Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD": lambda w: torch.optim.SGD(w, lr=0.01, momentum=0.9, weight_decay=5e-4),
    "Nesterov": lambda w: torch.optim.SGD(w, lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True),
    "AdaGrad": lambda w: torch.optim.Adagrad(w, lr=0.01, weight_decay=5e-4),
    "RMSProp": lambda w: torch.optim.RMSprop(w, lr=0.01, weight_decay=5e-4),
    "AdaDelta": lambda w: torch.optim.Adadelta(w, lr=0.01, weight_decay=5e-4),
    "Adam": lambda w: torch.optim.Adam(w, lr=0.01, weight_decay=5e-4),
}


def settings(kind: str, **more: float) -> SolverParameter:
    momentum = MOMENTUM.get(kind, 0.0)
    spec = SolverParameter(type=kind, base_lr=1e-4, lr_policy="fixed", momentum=momentum, weight_decay=5e-4)
    spec.MergeFrom(SolverParameter(**more))
    return spec


class Training:
    """CaffeNet and a batch of noise."""

    def __init__(self, batch: int):
        shapes = {"data": (batch, 3, 227, 227), "label": (batch,)}
        self.net = nets.load(zoo.find("caffenet", "train_val.prototxt"), "TRAIN", inputs=shapes, device=DEVICE)
        self.x = torch.randn(*shapes["data"], device=DEVICE)
        self.label = torch.randint(0, 1000, (batch,), device=DEVICE).float()

    def backward(self) -> None:
        self.net.loss(self.net(data=self.x, label=self.label)).backward()


def updates(training: Training) -> None:
    """Each rule against torch's, with the defaults of either, on the same gradients."""
    for kind in RULES:
        solver, peer = Solver(settings(kind), training.net), PEERS[kind](list(training.net.parameters()))
        ours, theirs = turns(solver.update, peer.step)
        row(f"update, {kind}, against torch.optim", ours, theirs, "ms")
    for name, more in {"iter_size 2": {"iter_size": 2}, "clip_gradients": {"clip_gradients": 35.0}}.items():
        plain, other = Solver(settings("SGD"), training.net), Solver(settings("SGD", **more), training.net)
        ours, theirs = turns(other.update, plain.update)
        row(f"update, SGD with {name}, against without", ours, theirs, "ms")


def share(training: Training) -> None:
    """The update's part of a step; the parts take turns with the whole."""
    solver = Solver(settings("SGD"), training.net)

    def step() -> None:
        training.backward()
        solver.update()
        solver.zero_grad()

    def dropping() -> None:
        training.backward()
        solver.update()
        training.net.zero_grad()

    update, whole, dropped = turns(solver.update, step, dropping)
    row("the update's part of a step", update, whole, "ms", "(under 0.05)")
    row("a step that keeps the gradients' memory, or not", whole, dropped, "ms")


def snapshots(training: Training, folder: Path) -> None:
    """How long a snapshot holds up the training, and how long it takes in the background."""
    solver = Solver(settings("SGD"), training.net)
    for form in ("BINARYPROTO", "HDF5"):
        pauses, steps, beside, writes = [], [], [], []
        with Snapshotter(solver, folder / form, format=form, keep=1) as taken:
            taken.wait()
            for _ in range(5):
                steps.append(timed(lambda: (training.backward(), solver.update(), solver.zero_grad())))
                began = time.perf_counter()
                pauses.append(timed(taken.take))
                while taken.pending is not None and not taken.pending.done():
                    beside.append(timed(lambda: (training.backward(), solver.update(), solver.zero_grad())))
                taken.wait()
                writes.append(1000 * (time.perf_counter() - began))
        print(f"snapshot, {form}: {size_of(folder, form) / 1e6:,.0f} MB; in {statistics.median(writes):,.0f} ms")
        row(
            "  it pauses the training",
            statistics.median(pauses),
            100,
            "ms",
            f"(under 1; at worst {max(pauses):,.0f} ms)",
        )
        if beside:
            row("  a step while it is written", statistics.median(beside), statistics.median(steps), "ms")
    peer = timed(lambda: torch.save({"w": training.net.state_dict(), "h": solver.history}, folder / "peer.pt"))
    print(f"torch.save of the same numbers, which holds up the training: {peer:,.0f} ms")
    began = time.perf_counter()
    state = snapshot.latest(folder / "BINARYPROTO")
    assert state is not None
    middle = time.perf_counter()
    snapshot.resume(solver, state)
    print(f"finding it: {middle - began:.2f} s, going on from it: {time.perf_counter() - middle:.2f} s")


def timed(run: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - began)


def size_of(folder: Path, prefix: str) -> int:
    return sum(file.stat().st_size for file in folder.glob(f"{prefix}_iter_*"))


def main(arguments: list[str]) -> None:
    torch.set_num_threads(THREADS)
    batch = int(arguments[0]) if arguments else BATCH
    print(f"torch {torch.__version__}, {DEVICE}, batch {batch}; ours, the peer's, ratio of times")
    training = Training(batch)
    training.backward()
    updates(training)
    share(training)
    with workplace("update") as folder:
        snapshots(training, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
