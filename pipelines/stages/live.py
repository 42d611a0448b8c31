"""What a person sees of a training: one live line, a line a test, and where the time went."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

from ops.parallel import share
from pipelines.job import PLAIN_EVERY, counted, duration, say
from pipelines.stages.course import Course

if TYPE_CHECKING:
    from pipelines.stages.setup import Setup

PRECISIONS = {"fp32": "fp32 (strict)", "tf32": "tf32 (products of 10 bits)", "bf16": "bf16 (mixed)"}


class Live:
    """Takes the loop's reports: a line that is written over on a terminal, a line every five seconds elsewhere."""

    def __init__(self, total: int, *, began: float | None = None):
        """`total`: iterations; `began`: the time.monotonic() at which the job began."""
        self.total, self.course = total, Course(began)
        self.last = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.drawn = 0.0

    def __call__(self, told: dict[str, Any]) -> None:
        lines = self.course.take(told)
        if "test" in told:
            best = ", the best so far" if told.get("best") else ""
            lines.append(f"iteration {told['iteration']:,}: test net {told['net']}: {scores(told['test'])}{best}")
        if lines:
            self.clear()
            for line in lines:
                say(line)
        if "loss" in told:
            self.draw(told)

    def draw(self, told: dict[str, Any]) -> None:
        now = time.monotonic()
        if self.terminal and now - self.drawn > 0.1:
            self.drawn = now
            wide = shutil.get_terminal_size().columns - 1
            print(f"\r{self.line(told)[:wide]}\x1b[K", end="", file=sys.stderr, flush=True)
        elif not self.terminal and now - self.last >= PLAIN_EVERY:
            self.last = now
            say(self.line(told))

    def line(self, told: dict[str, Any]) -> str:
        done = told["iteration"]
        spent = max(told["seconds"], 1e-9)
        rate = (done - told["first"]) / spent
        left = f", {duration((self.total - done) / rate)} left" if rate and done < self.total else ""
        speed = f"{rate:,.0f}" if rate >= 20 else f"{rate:.2f}"
        return (
            f"iteration {done:,}/{self.total:,}  loss {told['loss']:.4g}  lr {told['lr']:.3g}  {speed} it/s  "
            f"{told['images'] / spent:,.0f} images/s  waiting for data {100 * told['waited']:.0f} %{left}"
        )

    def clear(self) -> None:
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def scores(values: dict[str, list[float]]) -> str:
    """As "accuracy 0.98, loss 0.05"; of long outputs the first few elements."""
    shown = []
    for name, each in values.items():
        listed = " ".join(f"{value:.4g}" for value in each[:4]) + (" ..." if len(each) > 4 else "")
        shown.append(f"{name} {listed}")
    return ", ".join(shown)


def best(held: dict[str, Any]) -> str:
    """As "accuracy 0.98 at iteration 400, kept as best.caffemodel"."""
    return f"{held['output']} {held['value']:.4g} at iteration {held['iteration']:,}, kept as {held['weights']}"


def beginning(setup: Setup) -> list[str]:
    """What a training begins with: which weights came from where, what it computes with, and on what."""
    job, net, lines = setup.job, setup.net, going_on(setup)
    if net.report is not None:
        source = ", ".join(map(str, setup.first_weights()))
        lines.append(f"copied from {source}: {listed(net.report.copied)}")
        lines += [f"skipped, not in this net: {listed(net.report.ignored)}"] if net.report.ignored else []
        lines += [f"left fresh, in no file: {listed(net.report.kept)}"] if net.report.kept else []
    learned = [one for one in net.learnable if one.lr_mult]
    numbers = sum(net.layers[one.layer].blobs[one.index].numel() for one in learned)
    layers = counted(len({one.layer for one in learned}), "layer")
    precision = PRECISIONS[job.precision]
    lines.append(f"{net.spec.name or 'net'}: {numbers:,} weights to learn in {layers}, {precision}, on {on(setup)}")
    divided, *note = division(setup)
    parts = [divided]
    parts += [f"iter_size {setup.spec.iter_size}"] if setup.spec.iter_size > 1 else []
    parts += [f"label smoothing {job.label_smoothing:g}"] if job.label_smoothing else []
    for name, weights in setup.class_weights.items():
        parts.append(f"class weights of {name}: {min(weights):.3g} to {max(weights):.3g}")
    return [*lines, ", ".join(parts), *note]


def going_on(setup: Setup) -> list[str]:
    """From where, and what has to be done again."""
    if setup.path is None:
        return []
    lines, undone = [f"going on from {setup.path}"], setup.metrics.undone if setup.metrics is not None else []
    if undone:
        seconds = float(undone[-1][4]) - setup.seconds
        since = f"iterations {int(undone[0][0]):,} to {int(undone[-1][0]):,} are done again"
        lines.append(f"{since}: {duration(max(0.0, seconds))} of training lost")
    return lines


def division(setup: Setup) -> list[str]:
    """How the batch is divided among the workers, and what Caffe's -gpu would have made of it."""
    batch, world = max((feed.batch for feed in setup.feeds.values()), default=0), setup.group.world
    if setup.group.alone or not batch:
        return [f"batch {batch:,}"]
    gpus = ",".join(map(str, range(world)))
    if setup.job.per_worker:
        each = f"{batch // world:,} (train.batch: per_worker, as Caffe's -gpu {gpus})"
        return [f"batch {batch:,} = {world} workers x {each}"]
    sizes = sorted({stop - start for start, stop in (share(batch, rank, world) for rank in range(world))})
    return [
        f"batch {batch:,} = {world} workers x {' or '.join(f'{size:,}' for size in sizes)}",
        f"(Caffe's -gpu {gpus} would take {batch:,} on each, {batch * world:,} in all: train.batch=per_worker)",
    ]


def listed(names: tuple[str, ...]) -> str:
    """The names of layers, and how many."""
    return f"{', '.join(names)} ({counted(len(names), 'layer')})" if names else "nothing"


def on(setup: Setup) -> str:
    """The device of this process."""
    import torch

    device = setup.place.device
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    return f"the CPU with {counted(torch.get_num_threads(), 'thread')}"
