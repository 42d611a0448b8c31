"""The training loop. It is handed its place (rank, device, what to report to), so that one process, torchrun and Ray
Train drive the same loop.

torchrun --nproc-per-node=2 -m pipelines.worker --solver solver.prototxt --folder runs/a
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ops.feed.feed import Batch
from ops.parallel import Group
from ops.solver.snapshot import ENDINGS
from ops.spread import gathered
from ops.training import testing
from ops.training.debug import debugging
from ops.training.nets import read_solver
from ops.training.step import set_precision
from ops.training.strays import first_bad, naming_of, naming_record
from pipelines.stages.books import Books, Pending
from pipelines.stages.clock import Clock
from pipelines.stages.live import beginning
from pipelines.stages.setup import Place, Setup, Tested, Training
from pipelines.stages.standing import record, stand

STOP, SNAPSHOT, RECOVER = 1, 2, 4  # requests, as bits
BITS = (STOP, SNAPSHOT, RECOVER)
EFFECTS = {"stop": STOP, "snapshot": SNAPSHOT, "none": 0}
SETTLE = {"cuda": 20}  # iterations between looks at the losses: a look waits for the device
SETTLE_SECONDS = 0.25  # on CPUs: a look waits for the slowest of several processes, and costs time in any
SETTLE_MOST = 100  # iterations


def train(job: Training, place: Place) -> dict[str, Any]:
    """Train to the end, or until asked to stop; what came of it."""
    set_precision(job.precision)
    clock = Clock("start")
    with contextlib.ExitStack() as hearing, contextlib.ExitStack() as closing:  # files close before signals act again
        setup = Setup(job, place, closing)
        if place.report is not None:
            place.report({"event": "ready", "iteration": setup.solver.iteration, "lines": beginning(setup)})
        loop = Loop(setup, clock)
        if place.signals:
            loop.listen(hearing)
        return loop.run()


class Loop:
    """A training under way; the order of what happens in an iteration is Caffe's."""

    def __init__(self, setup: Setup, clock: Clock | None = None):
        self.s, self.clock = setup, clock or Clock()
        self.spec, self.solver, self.net, self.trainer = setup.spec, setup.solver, setup.net, setup.trainer
        self.group, self.log, self.books = setup.group, setup.log, Books(setup, self.clock)
        self.heard = 0  # what this process was asked for
        self.asked = 0  # what all processes know of: only this is acted on
        self.stopped = False
        self.current: list[Batch] = []
        self.tests_stood: list[dict[str, Any]] | None = None  # where the test nets were before an interrupted test
        self.pending: list[Pending] = []
        self.settle_every = SETTLE.get(setup.place.device.type, SETTLE_MOST if self.group.alone else 1)
        self.settled = time.perf_counter()
        self.recovered = time.perf_counter()

    def listen(self, hearing: contextlib.ExitStack) -> None:
        """SIGINT and SIGHUP become requests, looked at between iterations."""
        wanted = {signal.SIGINT: self.s.job.sigint, signal.SIGHUP: self.s.job.sighup}

        def hear(number: int, frame: object) -> None:
            effect = EFFECTS[wanted[signal.Signals(number)]]
            if effect & STOP and not self.heard & STOP and self.group.rank == 0:
                os.write(2, b"\nstopping after this iteration, with a snapshot\n")
            self.heard |= effect

        for number in wanted:
            hearing.callback(signal.signal, number, signal.signal(number, hear))

    # -- the whole -------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """All iterations, the last snapshot, the last test."""
        first = self.solver.iteration
        self.set_up = self.clock.spent()["start"]
        self.clock.turn("rest")
        self.log.begins(self.net.spec.name, self.spec.lr_policy)
        while self.solver.iteration < self.spec.max_iter and not self.stopped:
            if self.test_due(self.solver.iteration) and (self.solver.iteration or self.spec.test_initialization):
                self.test_all()
                if self.stopped:
                    break
            try:
                self.iterate()
            except (OSError, ValueError):
                if self.group.alone:  # what came before it is told, too
                    self.settle()
                raise
            if self.solver.iteration == first + 1:
                self.tell_start()
            if self.spec.snapshot > 0 and self.solver.iteration % self.spec.snapshot == 0:
                self.snapshot()
        done = self.solver.iteration
        self.settle()
        states = [Path(f"{self.s.prefix}_iter_{done}.solverstate{ending}") for ending in ENDINGS.values()]
        here = done > first or any(state.exists() for state in states)  # where the solver takes one at this iteration
        if self.spec.snapshot_after_train and (self.spec.snapshot <= 0 or done % self.spec.snapshot or not here):
            self.snapshot()
        if self.stopped:
            self.log.line("Optimization stopped early.")
        else:
            self.finish(done)
        with self.clock.on("snapshot"):
            self.books.close()
        return self.books.result(stopped=self.stopped)

    def tell_start(self) -> None:
        """What it took until the first iteration was done."""
        if self.s.place.report is not None:
            spent = self.clock.spent()
            split = {"set_up": self.set_up, "first_batch": spent["data"], "first_step": spent["step"]}
            self.s.place.report({"event": "started", "split": split})

    def finish(self, done: int) -> None:
        """Caffe's last look: one more forward where display divides, one more test."""
        if self.spec.display and done % self.spec.display == 0:
            with torch.no_grad(), self.trainer.autocast():
                loss = self.group.sum(self.net.loss(self.net(self.batch()[0]))).item()
            self.books.smooth = self.s.smoother.add(loss)
            self.log.line(f"Iteration {done}, loss = {self.books.smooth:g}")
        if self.test_due(done):
            self.test_all()
        self.log.line("Optimization Done.")
        self.log.line("Optimization Done.", where="caffe.cpp")

    # -- an iteration ----------------------------------------------------------------------------------------------

    def batch(self) -> tuple[dict[str, Tensor], int, float]:
        """The next batch of every data layer: blobs by name, digest, seconds waited."""
        with self.clock.on("data"):
            self.current = [next(feed) for feed in self.s.feeds.values()]
        blobs = {name: blob for one in self.current for name, blob in one.blobs.items()}
        digest, waited = sum(one.digest for one in self.current), sum(one.waited for one in self.current)
        return blobs, digest % 2**64, waited

    def iterate(self) -> None:
        """iter_size forwards and backwards, the display, the update."""
        iteration, parts = self.solver.iteration, self.spec.iter_size
        losses, digest, waited = [], 0, 0.0
        blobs: dict[str, Tensor] = {}
        display = bool(self.spec.display) and iteration % self.spec.display == 0
        naming = naming_record(self.net, lambda: self.current)
        with naming, debugging(self.net, self.group, self.log, on=display and self.spec.debug_info) as tell:
            for part in range(parts):
                inputs, summed, spent = self.batch()
                digest, waited = (digest + summed) % 2**64, waited + spent
                with self.clock.on("step"):
                    loss, blobs = self.trainer.forward_backward(inputs, last=part == parts - 1)
                tell(blobs, whole=part == parts - 1)
                losses.append(loss)
                if not loss.is_cuda:  # its own share each process looks at each time: that waits for nobody
                    self.check(iteration, float(loss), blobs)
        images = parts * max((feed.batch for feed in self.s.feeds.values()), default=0)
        watching = self.spec.lr_policy == "plateau"  # whose rate goes by this iteration's loss
        rate = None if watching else self.solver.rate()
        self.pending.append(Pending(iteration, losses, rate, waited, images, digest, time.perf_counter()))
        if display or watching or self.settle_due():
            self.settle(blobs)
        if display:
            with torch.no_grad():
                outputs = gathered(self.net, self.group, {name: blobs[name] for name in self.net.outputs})
            self.books.displayed(iteration, outputs)
        with self.clock.on("step"):
            step = self.trainer.update()
        self.books.clipped(step)
        if self.group.alone:  # else what is heard is acted on once all know, at the next settling
            self.asked, self.heard = self.asked | self.heard, 0
        if self.asked & SNAPSHOT:
            self.asked &= ~SNAPSHOT
            self.snapshot()
        if self.asked & RECOVER:
            self.asked &= ~RECOVER
            self.recover()
        self.stopped = bool(self.asked & STOP)

    def agree(self) -> int:
        """What was asked for so far; every process must ask, and all get the same."""
        self.heard |= self.s.place.requests()
        heard, device = self.heard, self.s.place.device
        told = self.group.sum(torch.tensor([float(bool(heard & bit)) for bit in BITS], device=device)).tolist()
        self.heard &= ~heard
        self.asked |= sum(bit for bit, wanted in zip(BITS, told, strict=True) if wanted)
        return self.asked

    def settle_due(self) -> bool:
        """Whether so many iterations, or so much time where one process may go by that, lie behind the last look."""
        timed = self.group.alone and self.s.place.device.type == "cpu"
        since = time.perf_counter() - self.settled if timed else 0.0
        return len(self.pending) >= self.settle_every or since >= SETTLE_SECONDS

    def settle(self, blobs: dict[str, Tensor] | None = None) -> None:
        """Fetch the losses of the iterations since the last time, over all processes; agree on what was asked."""
        if not self.pending:
            return
        asked = self.heard | self.s.place.requests() | (RECOVER if self.recovery_due() else 0)
        self.heard &= ~asked
        parts, since = len(self.pending[0].losses), time.perf_counter() - self.settled
        losses = torch.stack([loss for one in self.pending for loss in one.losses]).double().view(-1, parts)
        extra = [
            [one.waited, one.digest >> 32, one.digest & 0xFFFFFFFF, since, *(float(bool(asked & bit)) for bit in BITS)]
            for one in self.pending
        ]
        with self.clock.on("step"):  # a GPU is waited for here, and the slowest of several workers
            if self.group.alone:
                told = [[*row, *more] for row, more in zip(losses.tolist(), extra, strict=True)]
            else:
                numbers = torch.tensor(extra, dtype=torch.float64, device=losses.device)
                told = self.group.sum(torch.cat([losses, numbers], 1)).tolist()
        settled, self.pending = self.pending, []
        for one, row in zip(settled, told, strict=True):
            (waited, high, low, seconds), asked = row[parts : parts + 4], row[parts + 4 :]
            self.check(one.iteration, sum(row[:parts]) / parts, blobs)
            digest = ((int(high) << 32) + int(low)) % 2**64
            self.books.iterated(one, row[:parts], waited=waited / self.group.world, digest=digest)
            self.asked |= sum(bit for bit, wanted in zip(BITS, asked, strict=True) if wanted)
        self.books.report(settled[-1])
        if not self.group.alone:  # all of them find the same
            each = seconds / self.group.world / len(settled)
            self.settle_every = max(1, min(SETTLE_MOST, int(SETTLE_SECONDS / max(each, 1e-6))))
        self.settled = time.perf_counter()

    def check(self, iteration: int, loss: float, blobs: dict[str, Tensor] | None) -> None:
        """A loss that is not finite ends the training; with `blobs` of its forward the layer that began it is named."""
        if not math.isfinite(loss):
            where = "lower base_lr, or set clip_gradients"
            if blobs:
                where = first_bad(self.net, self.trainer.every_blob(blobs), naming_of(self.current))
            raise ValueError(f"{self.net.name}: iteration {iteration}: the loss is {loss}: {where}")

    # -- tests and snapshots -----------------------------------------------------------------------------------------

    def test_due(self, iteration: int) -> bool:
        return bool(self.s.tests) and self.spec.test_interval > 0 and iteration % self.spec.test_interval == 0

    def test_all(self) -> None:
        """Every test net, one after the other."""
        self.settle()
        stood = [stand(self.s, one) for one in self.s.tests]
        with self.clock.on("test"):
            for number, one in enumerate(self.s.tests):
                found = self.test(number, one)
                if found is None:
                    self.log.line("Test interrupted.")
                    self.stopped, self.tests_stood = True, stood
                    return
                self.books.tested(self.solver.iteration, number, *found)
        self.stopped |= self.s.best.enough is not None

    def test(self, number: int, one: Tested) -> tuple[dict[str, Any], float] | None:
        """Outputs and loss of a test net, means over its batches; None where the test was interrupted."""
        self.log.tests(self.solver.iteration, number)
        naming = naming_record(one.net, lambda: one.current)
        with naming, debugging(one.net, self.group, self.log, on=self.spec.debug_info) as tell:
            return testing.evaluate(
                one.net,
                batches(one),
                one.definition.iterations,
                self.group,
                wanted=lambda: not self.agree() & STOP,
                each=lambda _, __, blobs: tell(blobs),
            )

    def snapshot(self) -> None:
        """Begin to write one; the training goes on meanwhile."""
        self.settle()
        with self.clock.on("snapshot"):
            told = record(self.s, self.tests_stood)
            if self.s.snapshots is not None:
                self.books.flush()
                self.books.snapped(self.s.snapshots.take(told))
            self.s.place.snapped(self.solver.iteration, self.books.smooth, self.s.snapshots)

    def recovery_due(self) -> bool:
        """Whether rank 0 wants a point to go on from, should a worker be lost."""
        every = self.s.place.recovery_seconds
        return self.group.rank == 0 and every > 0 and time.perf_counter() - self.recovered >= every

    def recover(self) -> None:
        """Such a point: as a snapshot, but in a place of its own, and only the newest stays."""
        self.settle()
        with self.clock.on("snapshot"):
            told = record(self.s)
            if self.s.snapshots is not None:
                self.books.flush()
                self.recovered = time.perf_counter()
                self.s.recovery().take(told)


def batches(one: Tested) -> Iterator[dict[str, Tensor]]:
    """The blobs of one batch after the other of a test net's data layers."""
    while True:
        one.current = [next(feed) for feed in one.feeds.values()]
        yield {name: blob for batch in one.current for name, blob in batch.blobs.items()}


def main() -> int:
    """One of the processes that torchrun starts; also the only one, without it."""
    import torch.distributed as dist
    import tyro

    from ops import custom, user_frames
    from pipelines.job import one_line, say
    from pipelines.stages.clock import limit, listed
    from pipelines.stages.live import Live

    job = tyro.cli(Training, prog="torchrun -m pipelines.worker")
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if world > 1:
        dist.init_process_group("nccl" if cuda and torch.cuda.device_count() >= world else "gloo")
    place = Place(Group(rank, world), device)
    place.report = Live(read_solver(job.solver).max_iter) if rank == 0 else None
    try:
        with user_frames.told("", say):
            custom.load_code(job.code)
            result = train(job, place)
    except (ValueError, OSError, MemoryError) as error:
        print(f"cortado: error: {one_line(error)}", file=sys.stderr, flush=True)
        os._exit(1)  # the others wait in a collective: torchrun ends them
    if rank == 0:
        loss = "none" if result["loss"] is None else f"{result['loss']:.6g}"
        print(f"trained to iteration {result['iterations']}, loss {loss}")
        print(f"{listed(result['time'])}\n{limit(result['time'], cuda=cuda)}")
    if world > 1:
        leave()
    return 0


def leave() -> None:
    """End one of several processes, once all have come here: taking gloo's threads down aborts now and then."""
    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    raise SystemExit(main())
