"""Time per layer: milliseconds of the forward and of the backward of every step of a net, on the CPU or a GPU.

A step is what runs: one layer, or a BatchNorm with the Scale after it. The clock is read where the pass itself goes
from step to step, so that the pass which is measured is the one that training runs: in the forward after each step,
in the backward whenever autograd comes to a step. (Autograd goes through a graph in the reverse of the order
in which it was made, whatever its branches: a step's backward is in one piece, the gradients of its blobs with it.)

Every figure is a mean over the faster half of the passes: what else a machine does makes passes slower, never faster.
Whole passes are left out, not single layers' times, so that the layers' times add up to the pass's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean as mean
from typing import Any, Protocol

import torch
from torch import Tensor

from ops.net import Net
from ops.precision import Precision, autocast, products
from ops.steps import Step, following_scale

WARM = 3  # passes that nobody measures: memory is found, kernels are chosen
Spent = tuple[float, float]  # milliseconds of a forward and of its backward


@dataclass(frozen=True)
class LayerTime:
    """Milliseconds of one step; backward None: no gradient goes through it."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    forward: float
    backward: float | None


@dataclass(frozen=True)
class Times:
    """Milliseconds. `forward`, `backward`: the whole pass without the stopwatch; `watched_..`: with it."""

    layers: tuple[LayerTime, ...]
    iterations: int
    forward: float
    backward: float
    watched_forward: float
    watched_backward: float
    passes: tuple[float, ...]  # each pass without the stopwatch, forward and backward together
    loss: float  # of the first pass
    seeded: bool  # the net has no loss: the backward began with ones at its outputs

    @property
    def layers_forward(self) -> float:
        return sum(layer.forward for layer in self.layers)

    @property
    def layers_backward(self) -> float:
        return sum(layer.backward or 0.0 for layer in self.layers)

    @property
    def whole(self) -> float:
        return self.forward + self.backward


def time_layers(
    net: Net,
    inputs: Mapping[str, Tensor],
    *,
    iterations: int = 50,
    precision: Precision = "fp32",
    clock: Clock | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Times:
    """Time `iterations` passes of a net with the stopwatch and as many without, in turn.

    `progress` is told how many iterations are done. The net's gradients are dropped.
    """
    if clock is None:
        clock = CudaClock(net.device) if net.device.type == "cuda" else WallClock()
    watch = Watch(net, clock)
    bare: list[Spent] = []
    watched: list[Spent] = []
    with products(precision):
        first = run(net, inputs, clock, precision)
        for _ in range(WARM - 1):
            run(net, inputs, clock, precision)
        for done in range(iterations):
            for with_watch in (done % 2 == 0, done % 2 == 1):  # neither always comes after the other
                if not with_watch:
                    bare.append(run(net, inputs, clock, precision).spent())
                    continue
                with watch.attached():
                    watched.append(watch.read(run(net, inputs, clock, precision, watch.arm)).spent())
            progress(done + 1)
    net.zero_grad(set_to_none=True)
    quick, chosen = faster(bare), faster(watched)
    return Times(
        watch.times(chosen),
        iterations,
        mean(bare[i][0] for i in quick),
        mean(bare[i][1] for i in quick),
        mean(watched[i][0] for i in chosen),
        mean(watched[i][1] for i in chosen),
        tuple(map(sum, bare)),
        first.loss,
        first.seeded,
    )


def faster(spent: Sequence[Spent]) -> list[int]:
    """The numbers of the passes that make the faster half."""
    order = sorted(range(len(spent)), key=lambda i: sum(spent[i]))
    return order[: (len(order) + 1) // 2]


def parts(net: Net, step: Step) -> list[int]:
    """The layers that a step runs: its own, and the Scale that runs along with a BatchNorm."""
    scale = following_scale(net.built, step.number)
    return [step.number] if scale is None else [step.number, scale]


# -- clocks ----------------------------------------------------------------------------------------------------------


class Clock(Protocol):
    """Stamps now, milliseconds between two of them later."""

    def stamp(self) -> Any: ...

    def between(self, begin: Any, end: Any) -> float: ...

    def settle(self) -> None:
        """Wait until all that was asked for is computed."""


class WallClock:
    """For a CPU, which has computed when it returns."""

    def stamp(self) -> float:
        return time.perf_counter()

    def between(self, begin: float, end: float) -> float:
        return 1000 * (end - begin)

    def settle(self) -> None:
        """Nothing is under way."""


class CudaClock:
    """Events in the stream: what the GPU takes, not what it takes to ask for it."""

    def __init__(self, device: torch.device):
        self.device = device

    def stamp(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def between(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end))

    def settle(self) -> None:
        torch.cuda.synchronize(self.device)


# -- one pass --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """The stamps of a pass: begin and end of its forward, begin and end of its backward."""

    clock: Clock
    begin: Any
    turn: Any
    back: Any
    end: Any
    loss: float
    seeded: bool

    def spent(self) -> Spent:
        return self.clock.between(self.begin, self.turn), self.clock.between(self.back, self.end)


def run(
    net: Net,
    inputs: Mapping[str, Tensor],
    clock: Clock,
    precision: Precision = "fp32",
    between: Callable[[], object] | None = None,
) -> Pass:
    """A forward and a backward from the loss, or from ones at all outputs where a net has none.

    `between` them something may be done whose time does not count.
    """
    net.zero_grad(set_to_none=True)
    clock.settle()
    begin = clock.stamp()
    with autocast(net.device, precision):
        blobs = net(inputs)
        loss = net.loss(blobs)
    turn = back = clock.stamp()
    seeded = not loss.requires_grad
    tops = [blobs[name] for name in net.outputs if blobs[name].requires_grad] if seeded else [loss]
    seeds = [torch.ones_like(top) for top in tops]
    if between is not None:
        between()
        back = clock.stamp()
    if tops:
        torch.autograd.backward(tops, seeds)
    end = clock.stamp()
    clock.settle()
    return Pass(clock, begin, turn, back, end, float(loss.detach()), seeded)


class Watch:
    """The stamps of every step in one pass, and the milliseconds of all passes so far.

    What lies between two steps counts to the one that follows, what comes before the first or after the last to that.
    """

    def __init__(self, net: Net, clock: Clock):
        self.net, self.clock, self.steps = net, clock, net.steps
        self.forward: list[list[float]] = []  # pass, step
        self.backward: list[dict[int, float]] = []  # pass, the steps that have one
        self.went: list[Any] = []  # after each step
        self.nodes: list[tuple[int, Any]] = []  # of autograd's graph, by the steps that made them
        self.came: list[tuple[int, Any]] = []  # the steps whose backward began, in this order

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """While open, the net's forward goes through this watch."""
        self.went, self.nodes, self.came = [], [], []
        self.net.steps = [Watched(step, index, self) for index, step in enumerate(self.steps)]  # type: ignore[misc]
        try:
            yield
        finally:
            self.net.steps = self.steps
            self.nodes = []

    def arm(self) -> None:
        """Have the clock read when the backward comes to a step; one that only passes its bottom on made no node."""
        marked = set[Any]()
        for index, node in self.nodes:
            if node is not None and node not in marked:
                marked.add(node)
                node.register_prehook(lambda _, index=index: self.came.append((index, self.clock.stamp())))

    def read(self, one: Pass) -> Pass:
        """Take the times of the pass that went by, when it is over."""
        stamps = [one.begin, *self.went[:-1], one.turn]
        self.forward.append([self.clock.between(*pair) for pair in pairwise(stamps)])
        spent: dict[int, float] = {}
        stamps = [one.back, *[stamp for _, stamp in self.came[1:]], one.end]
        for (index, _), pair in zip(self.came, pairwise(stamps), strict=False):
            spent[index] = spent.get(index, 0.0) + self.clock.between(*pair)
        self.backward.append(spent)
        return one

    def times(self, chosen: Sequence[int]) -> tuple[LayerTime, ...]:
        """The means over some of the passes."""
        return tuple(
            LayerTime(
                tuple(self.net.layers[number].spec.name for number in parts(self.net, step)),
                tuple(self.net.layers[number].spec.type for number in parts(self.net, step)),
                mean(self.forward[i][index] for i in chosen),
                mean(self.backward[i][index] for i in chosen) if index in self.backward[0] else None,
            )
            for index, step in enumerate(self.steps)
        )


class Watched:
    """A step whose run is timed; else it is the step."""

    def __init__(self, step: Step, index: int, watch: Watch):
        self.step, self.index, self.watch = step, index, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)

    def run(self, values: dict[str, Tensor], seed: int, forwards: int) -> None:
        self.step.run(values, seed, forwards)
        for name in self.step.tops:
            if name in values:  # else nobody takes it, and it is gone
                self.watch.nodes.append((self.index, values[name].grad_fn))
        self.watch.went.append(self.watch.clock.stamp())
