"""Are the gradients of a net's layers right? Numerical differences against the backward, in double precision.

Every step of a net (a layer, or two that run as one) is checked by itself, on the values that reach it in a forward,
shaken a little so that no two are equal and no blob is zero. What is differentiated is the sum of its tops, each
element times a random factor, for each blob that has a gradient: bottoms and parameters. All elements of a small blob
are tried, a few of a large one, and all of them at once along random directions (ops/differences.py).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ops import user_frames
from ops.differences import Probe, places, signs, unit
from ops.layers.registry import Layer, Shape
from ops.names import hint, quoted
from ops.net import Net
from ops.random_inputs import random_inputs
from ops.steps import Step
from ops.stopwatch import parts

TOLERANCE = 1e-4  # relative error; that of the differences is a hundredth of it
AS_CAFFE = {"MVN": 1e-2, "ContrastiveLoss": 1e-2}  # whose gradient leaves out an eps that the forward has, as Caffe's
FEWEST, MOST = 12, 400  # elements of a blob that are tried
WORK = 1_000_000  # numbers that a layer has, times elements that are tried
OURS = "ops.layers."
ON_DEVICE = 1e-6  # relative error between two devices, in double precision


@dataclass(frozen=True)
class Checked:
    """One blob of one layer: how far the backward is from the differences, at worst."""

    layer: str
    type: str
    blob: str  # "bottom x", "blob 0", "top y"
    shape: Shape
    error: float  # relative; inf where one of the two is not finite
    tolerance: float
    checked: int  # elements, directions not counted; 0: all at once
    kinks: int = 0  # elements and directions at a kink
    at: tuple[int, ...] | None = None  # the worst element; None: along a direction
    backward: float = 0.0
    differences: float = 0.0
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance

    @property
    def told(self) -> str:
        """One line for a person."""
        head = f"layer {quoted(self.layer)} ({self.type}): {self.blob}: "
        tail = f" (relative error {self.error:.1e}, tolerance {self.tolerance:.0e})"
        if self.note:
            return head + self.note + tail
        where = "in a random direction" if self.at is None else f"at {list(self.at)}" if self.at else "here"
        return f"{head}the backward gives {self.backward:.8g} {where}, differences {self.differences:.8g}{tail}"


def check_gradients(
    net: Net,
    inputs: Mapping[str, Tensor] | None = None,
    *,
    only: str | None = None,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    device: str | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> list[Checked]:
    """Check every blob of every layer (or of the layer `only`) that has a gradient, in the order of the net.

    The net becomes one of double precision; its blobs keep their values. `inputs`: default random ones. `device`: also
    compare tops and gradients with those that it computes. ValueError for a layer that there is not, or that raises.
    """
    names = [layer.spec.name for layer in net.layers]
    if only is not None and only not in names:
        raise ValueError(f"{net.name}: has no layer {quoted(only)}{hint(only, names)}")
    net.double()
    values = net.take(random_inputs(net, seed) if inputs is None else inputs)
    values = {name: value.double() for name, value in values.items()}
    found: list[Checked] = []
    for done, step in enumerate(net.steps):
        if only is None or only in [net.layers[number].spec.name for number in parts(net, step)]:
            found += One(net, step, values, tolerance, seed).check(device)
        with torch.no_grad(), blamed(net, step):
            step.run(values, net.seed, 1)
        progress(done + 1)
    return found


@contextlib.contextmanager
def blamed(net: Net, step: Step, what: str = "") -> Iterator[None]:
    """Errors name the net and the layer."""
    title = f"{net.name}: {step.title}: {what}"
    try:
        with user_frames.told(title.removesuffix(": ")):
            yield
    except (torch.OutOfMemoryError, MemoryError):
        raise MemoryError(f"{title}out of memory") from None
    except (ValueError, RuntimeError, IndexError) as error:
        told = " ".join(str(error).split())
        raise ValueError(told if told.startswith(net.name) else f"{title}{told}") from error


# -- one step --------------------------------------------------------------------------------------------------------


class One:
    """A step on its own values, and what it is checked for."""

    def __init__(self, net: Net, step: Step, values: Mapping[str, Tensor], tolerance: float, seed: int):
        self.net, self.step, self.tolerance = net, step, tolerance
        self.layers: list[Layer] = [net.layers[number] for number in parts(net, step)]
        self.chance = torch.Generator().manual_seed(seed * 1_000_003 + step.number)
        self.bottoms = {name: values[name].clone() for name in step.bottoms}
        self.state = step.layer.state()
        self.factors: list[Tensor] = []
        learnable = {name for index, name in enumerate(step.bottoms) if index not in step.detached}
        self.learnable = [name for name in self.bottoms if name in learnable]

    def check(self, device: str | None) -> list[Checked]:
        blobs = [blob for layer in self.layers for blob in layer.blobs]
        kept = [blob.detach().clone() for blob in blobs]
        wanted = [blob.requires_grad for blob in blobs]
        try:
            with blamed(self.net, self.step):
                self.shake()
            targets = self.targets()
            if not targets or not self.step.tops:
                return []
            grads, note = self.backward(list(targets.values()))
            rows = [self.compare(*target, grad, note) for target, grad in zip(targets.items(), grads, strict=True)]
            return rows + (self.elsewhere(device, targets, grads) if device else [])
        finally:
            self.step.layer.load_state(self.state)
            with torch.no_grad():
                for blob, value, asked in zip(blobs, kept, wanted, strict=True):
                    blob.copy_(value)
                    blob.requires_grad_(asked)

    def targets(self) -> dict[tuple[str, str, str], Tensor]:
        """(layer, type, blob) -> the tensor whose gradient is checked."""
        first = self.layers[0].spec
        found = {(first.name, first.type, f"bottom {name}"): self.bottoms[name] for name in self.learnable}
        for layer in self.layers:
            for index, blob in enumerate(layer.blobs):
                if not layer.is_statistic(index):
                    found[layer.spec.name, layer.spec.type, f"blob {index}"] = blob
        return found

    # -- computing -------------------------------------------------------------------------------------------------

    def shake(self) -> None:
        """Move values and weights a little; where the layer has no numbers for them, take positive ones."""
        with torch.no_grad():
            for layer in self.layers:
                for index, blob in enumerate(layer.blobs):
                    if not layer.is_statistic(index):
                        blob.add_(0.1 * unit(blob) * self.random(blob, torch.randn))
            for name in self.learnable:
                blob = self.bottoms[name]
                blob.add_(0.5 * unit(blob) * self.random(blob, torch.rand))
        tops = self.run()
        if any(not bool(top.isfinite().all()) for top in tops):
            for name in self.learnable:
                self.bottoms[name] = self.bottoms[name].abs() + 0.1
            tops = self.run()
        self.factors = [(self.random(top, torch.rand) + 0.5) * signs(top, self.chance) for top in tops]

    def random(self, like: Tensor, kind: Callable[..., Tensor]) -> Tensor:
        return kind(like.shape, generator=self.chance, dtype=torch.float64).to(like.device)

    def run(self) -> list[Tensor]:
        """The tops of a forward: always of the same state, the same chance, on copies of the bottoms."""
        self.step.layer.load_state(self.state)
        values = {name: blob.clone() for name, blob in self.bottoms.items()}
        self.step.run(values, self.net.seed, 1)
        held = {blob.data_ptr() for layer in self.layers for blob in layer.blobs}
        tops = [values[top] for top in self.step.tops if top in values]
        return [top.clone() if top.data_ptr() in held else top for top in tops]  # else it moves with the blob

    def backward(self, targets: Sequence[Tensor]) -> tuple[list[Tensor], str]:
        """The gradients that the backward gives, zeros where it gives none; and why it refuses, where it does."""
        for target in targets:
            target.requires_grad_()
        try:
            with blamed(self.net, self.step):
                tops = self.run()
            told = [top.requires_grad for top in tops]
            none = [torch.zeros_like(target) for target in targets]
            if not any(told):
                return none, "no gradient reaches it"
            # a top without a gradient beside others that have one is told, not learned from
            self.factors = [factor * float(asked) for factor, asked in zip(self.factors, told, strict=True)]
            seeds = [factor for factor, asked in zip(self.factors, told, strict=True) if asked]
            given = [top for top, asked in zip(tops, told, strict=True) if asked]
            try:
                with blamed(self.net, self.step, "backward: "):
                    grads = torch.autograd.grad(given, list(targets), seeds, allow_unused=True)
            except ValueError as error:
                if not isinstance(error.__cause__, ValueError) or not type(self.step.layer).__module__.startswith(OURS):
                    raise
                return none, str(error.__cause__)  # a layer that has none, as Threshold, and says so
            return [zero if grad is None else grad for zero, grad in zip(none, grads, strict=True)], ""
        finally:
            for name in self.learnable:
                self.bottoms[name].requires_grad_(False)

    def compare(self, what: tuple[str, str, str], target: Tensor, grad: Tensor, note: str) -> Checked:
        """All that is tried for one blob; the worst of it."""
        layer, kind, blob = what
        tolerance = max(self.tolerance, AS_CAFFE.get(kind, 0.0))
        probe = Probe(self.run, self.factors, self.chance, tolerance)
        shape = tuple(target.shape)
        with blamed(self.net, self.step):
            found = probe.compare(target.detach(), grad, places(shape, self.most(), self.chance))
        result = Checked(layer, kind, blob, shape, found.error, tolerance, found.elements, found.kinks, note=note)
        worst = found.worst
        if worst is None:
            if found.kinks or not found.elements:
                return result
            return replace(result, error=math.inf, note="values that are not finite; give other inputs")
        if note and not result.ok:
            result = replace(result, note=f"{note}, differences give {worst.differences:.8g}")
        return replace(result, at=worst.at, backward=worst.gradient, differences=worst.differences)

    def most(self) -> int:
        """How many elements of a blob are tried: fewer where a forward is much work."""
        size = sum(blob.numel() for blob in self.bottoms.values()) + sum(one.numel() for one in self.factors)
        size += sum(blob.numel() for layer in self.layers for blob in layer.blobs)
        return min(max(WORK // max(size, 1), FEWEST), MOST)

    # -- another device --------------------------------------------------------------------------------------------

    def elsewhere(
        self, device: str, targets: Mapping[tuple[str, str, str], Tensor], grads: Sequence[Tensor]
    ) -> list[Checked]:
        """Tops and gradients computed on another device against those of here; not of layers that draw."""
        if self.step.drawing:
            return []
        here = [top.detach() for top in self.run()]
        home, kept = self.net.device, self.bottoms
        self.bottoms = {name: blob.to(device) for name, blob in kept.items()}
        factors, self.factors = self.factors, [factor.to(device) for factor in self.factors]
        try:
            for layer in self.layers:
                layer.to(device)
            theirs = self.targets()
            found, _ = self.backward(list(theirs.values()))
            tops = [top.detach() for top in self.run()]
        finally:
            for layer in self.layers:
                layer.to(home)
            self.bottoms, self.factors = kept, factors
        first = self.layers[0].spec
        names = [(first.name, first.type, f"top {name}") for name in self.step.tops] + list(targets)
        pairs = zip(names, (*here, *grads), (*tops, *found), strict=True)
        return [apart(name, ours, other.to(home), device) for name, ours, other in pairs]


def apart(name: tuple[str, str, str], ours: Tensor, theirs: Tensor, device: str) -> Checked:
    """A blob that two devices computed."""
    norm = float((ours - theirs).norm() / max(float(ours.norm()), 1e-6 * math.sqrt(max(ours.numel(), 1))))
    layer, kind, blob = name
    what = blob if blob.startswith("top") else f"gradient of {blob}"
    note = f"{device} differs from {ours.device}"
    error = norm if math.isfinite(norm) else math.inf
    return Checked(layer, kind, f"{what} on {device}", tuple(ours.shape), error, ON_DEVICE, 0, note=note)
