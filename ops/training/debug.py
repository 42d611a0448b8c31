"""debug_info: what a forward and a backward did, layer by layer, in Caffe's lines and three of our own.

    with debugging(net, group, log, on=display) as tell:
        blobs = net(inputs)
        net.loss(blobs).backward()
        tell(blobs)                      # the lines of this pass

Caffe's are means of absolute values, over the whole batch. Ours: the L2 norm of each layer's gradient, the share of
dead ReLUs (zero for the whole batch; a channel is one unit) and of saturated values (Sigmoid, TanH). The numbers of the
training are the same with it as without; while it is off nothing is watched. Caffe's lines for the Splits that it
inserts have no counterpart.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ops.layers.normalization import BatchNorm
from ops.layers.registry import Layer
from ops.net import Net
from ops.parallel import Group
from ops.steps import Step, following_scale
from ops.training.log import NET, Log, number

Tell = Callable[..., None]
FLAT = 0.05  # a value whose slope is below this share of the steepest is saturated
SLOPES: dict[str, Callable[[Tensor], Tensor]] = {  # type -> the slope at a value, as a share of the steepest
    "Sigmoid": lambda y: 4 * y * (1 - y),
    "TanH": lambda y: 1 - y * y,
}


class Found(NamedTuple):
    """A line without its number: `total` / `among`, each summed over the processes, or the square root of that."""

    line: str
    total: Tensor
    among: int
    root: bool = False


@contextlib.contextmanager
def debugging(net: Net, group: Group, log: Log, *, on: bool = True) -> Iterator[Tell]:
    """Watch a net; `tell(blobs, whole=True)` after each pass writes its lines to the log.

    `whole`: the weights' gradients are already those of all processes. With several, each must tell.
    """
    if not on:
        yield lambda blobs, whole=True: None
        return
    watching = Watching(net, group)
    before = [(step, step.compute, step.layer.inplace) for step in net.steps]
    for step in net.steps:
        step.layer.inplace = False  # else a blob would be gone before its gradient comes
        step.compute = watching.around(step)
    try:
        yield lambda blobs, whole=True: watching.tell(log, blobs, whole=whole)
    finally:
        for step, compute, inplace in before:
            step.compute, step.layer.inplace = compute, inplace


@dataclass
class Seen:
    """What was seen of a layer in one pass."""

    forward: list[Found] = field(default_factory=list)
    bottoms: dict[int, Found] = field(default_factory=dict)  # gradients that came out, by bottom
    undivided: dict[int, Tensor] = field(default_factory=dict)  # those to be summed over the processes first
    ours: list[Found] = field(default_factory=list)


class Watching:
    """Notes, layer by layer, what passes through a net."""

    def __init__(self, net: Net, group: Group):
        self.net, self.group = net, group
        self.seen = [Seen() for _ in net.layers]

    # -- a pass ----------------------------------------------------------------------------------------------------

    def around(self, step: Step) -> Callable[..., Any]:
        """A step's computation that notes its tops, and the gradients at its bottoms."""
        compute, norm = step.compute, step.layer
        scale = following_scale(self.net.built, step.number)

        def watched(*bottoms: Tensor) -> Any:
            tops = compute(*(self.hooked(step, index, bottom) for index, bottom in enumerate(bottoms)))
            listed = tops if isinstance(tops, tuple) else (tops,)
            if scale is None:
                self.forward(step.number, listed)
                return tops
            assert isinstance(norm, BatchNorm)  # it and the Scale behind it ran as one
            self.forward(step.number, (normalized(norm, bottoms[0]),))
            self.forward(scale, listed)
            if tops.requires_grad:
                factor = self.net.layers[scale].blob(0).detach().reshape(-1, *[1] * (tops.dim() - 2))
                tops.register_hook(lambda grad: self.backward(scale, 0, grad * factor))
            return tops

        return watched

    def hooked(self, step: Step, index: int, bottom: Tensor) -> Tensor:
        """The bottom under another name, so that the gradient there is this layer's share alone, as Caffe's is."""
        if not bottom.requires_grad:
            return bottom
        alias = bottom.view_as(bottom)
        alias.register_hook(lambda grad: self.backward(step.number, index, grad))  # type: ignore[no-untyped-call]
        return alias

    @torch.no_grad()
    def forward(self, at: int, tops: tuple[Tensor, ...]) -> None:
        """A layer's tops, its blobs, and how its units do."""
        layer, seen = self.net.layers[at], self.seen[at]
        title = f"Layer {layer.spec.name}"
        for name, top in zip(layer.spec.top, tops, strict=True):
            whole = self.group.sum(top) if name in self.net.batch_sums else top
            seen.forward.append(mean(f"[Forward] {title}, top blob {name} data", whole))
        for name, blob in named(layer):
            seen.forward.append(mean(f"[Forward] {title}, param blob {name} data", blob))
        if layer.spec.type == "ReLU6" or (layer.spec.type == "ReLU" and not layer.spec.relu_param.negative_slope):
            idle = dead(tops[0], self.group)
            seen.ours.append(Found(f"[Debug] {title}, dead units", idle.sum(), idle.numel()))
        elif layer.spec.type in SLOPES:
            flat = SLOPES[layer.spec.type](tops[0].float()) < FLAT
            seen.ours.append(Found(f"[Debug] {title}, saturated values", flat.sum(), flat.numel()))

    @torch.no_grad()
    def backward(self, at: int, index: int, grad: Tensor) -> None:
        """A gradient came out of a layer."""
        name = self.net.layers[at].spec.bottom[index]
        if self.group.alone or self.net.batch_axes.get(name) is not None:
            self.seen[at].bottoms[index] = self.bottom(at, index, grad)
        else:
            self.seen[at].undivided[index] = grad  # nothing is sent around amid a backward

    def bottom(self, at: int, index: int, grad: Tensor) -> Found:
        spec = self.net.layers[at].spec
        # With several processes the gradients are those of the loss times their number.
        return mean(f"[Backward] Layer {spec.name}, bottom blob {spec.bottom[index]} diff", grad, 1 / self.group.world)

    # -- its lines -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def tell(self, log: Log, blobs: Mapping[str, Tensor], *, whole: bool) -> None:
        """Write what was seen of a pass, and forget it."""
        for at, layer in enumerate(self.net.layers):
            if layer.source:
                self.forward(at, tuple(blobs[name] for name in layer.spec.top))
        found = [one for seen in self.seen for one in seen.forward]
        at_end: list[Found] = []
        if any(seen.bottoms or seen.undivided for seen in self.seen):
            grads = self.gradients(whole)
            found += self.backwards(grads)
            at_end = self.all_params(grads)
            self.norms(grads)
        ours = [one for seen in self.seen for one in seen.ours]
        values = self.values([*found, *ours, *at_end])
        for one, value in zip(found, values, strict=False):
            log.line(f"    {one.line}: {number(value)}", where=NET)
        if at_end:
            a, b, c, d = map(number, values[-4:])
            told = f"L1 norm = ({a}, {b}); L2 norm = ({c}, {d})"
            log.line(f"    [Backward] All net params (data, diff): {told}", where=NET, level="E")
        for one, value in zip(ours, values[len(found) :], strict=False):
            log.line(f"    {one.line}: {number(value)}", where=NET)
        self.seen = [Seen() for _ in self.net.layers]

    def gradients(self, whole: bool) -> dict[tuple[int, int], Tensor]:
        """The gradient of each blob that has one, as the passes since the last update added it up."""
        held = {
            (at, index): blob.grad
            for at, layer in enumerate(self.net.layers)
            for index, blob in enumerate(layer.blobs)
            if blob.grad is not None
        }
        return held if whole else {key: self.group.sum(grad) / self.group.world for key, grad in held.items()}

    def backwards(self, grads: Mapping[tuple[int, int], Tensor]) -> list[Found]:
        """From the last layer to the first: gradients at its bottoms, then those of its blobs."""
        found: list[Found] = []
        for at, layer in reversed(list(enumerate(self.net.layers))):
            bottoms = dict(self.seen[at].bottoms)
            for index, grad in self.seen[at].undivided.items():
                bottoms[index] = self.bottom(at, index, self.group.sum(grad))
            found += [bottoms[index] for index in sorted(bottoms)]
            for index, (name, _) in enumerate(named(layer)):
                if (at, index) in grads:
                    line = f"[Backward] Layer {layer.spec.name}, param blob {name} diff"
                    found.append(mean(line, grads[at, index]))
        return found

    def norms(self, grads: Mapping[tuple[int, int], Tensor]) -> None:
        """The norm of the gradient of each layer's blobs together."""
        for at, layer in enumerate(self.net.layers):
            squares = [grad.float().square().sum() for (owner, _), grad in grads.items() if owner == at]
            if squares:
                line = f"[Debug] Layer {layer.spec.name}, gradient norm"
                self.seen[at].ours.append(Found(line, torch.stack(squares).sum(), 1, root=True))

    def all_params(self, grads: Mapping[tuple[int, int], Tensor]) -> list[Found]:
        """Caffe's sums over all blobs: L1 of data, of gradients, then L2."""
        keys = [(one.layer, one.index) for one in self.net.learnable]
        data = [self.net.layers[at].blobs[index].float() for at, index in keys]
        diff = [grads[key].float() for key in keys if key in grads]
        zero = torch.zeros((), device=self.net.device)
        sums = [sum((one.abs().sum() for one in each), zero) for each in (data, diff)]
        squares = [sum((one.square().sum() for one in each), zero) for each in (data, diff)]
        return [Found("", total, 1) for total in sums] + [Found("", total, 1, root=True) for total in squares]

    def values(self, found: list[Found]) -> list[float]:
        """The numbers of all lines; the device is waited for once."""
        if not found:
            return []
        totals = torch.stack([one.total.double() for one in found])
        counts = torch.tensor([one.among for one in found], dtype=torch.float64, device=totals.device)
        total, count = self.group.sum(torch.stack([totals, counts])).tolist()
        means = [a / b for a, b in zip(total, count, strict=True)]
        return [math.sqrt(value) if one.root else value for one, value in zip(found, means, strict=True)]


def named(layer: Layer) -> Iterator[tuple[str, Tensor]]:
    """A layer's blobs as Caffe calls them: by the name under which they are shared, else their number."""
    for index, blob in enumerate(layer.blobs):
        name = layer.spec.param[index].name if index < len(layer.spec.param) else ""
        yield name or str(index), blob


def mean(line: str, tensor: Tensor, share: float = 1.0) -> Found:
    """The line of a mean of absolute values."""
    return Found(line, tensor.float().abs().sum() * share, max(1, tensor.numel()))


def dead(top: Tensor, group: Group) -> Tensor:
    """True for each unit that is zero for the whole batch, wherever it looks: one a channel (axis 1)."""
    axes = [axis for axis in range(top.dim()) if axis != 1]
    active = (top > 0).sum(axes) if axes else (top > 0).long()
    return group.sum(active) == 0


def normalized(norm: BatchNorm, x: Tensor) -> Tensor:
    """What a BatchNorm made of its bottom, where a Scale ran in the same go: its formula, once more."""
    with torch.no_grad():
        shape = (1, -1, *[1] * (x.dim() - 2))
        if norm.use_global:
            middle, variance = norm.statistics()
        else:
            axes = [axis for axis in range(x.dim()) if axis != 1]
            add = norm.in_all if norm.part is None or norm.part.synchronize else torch.clone
            count = add(torch.tensor(x.numel() / x.shape[1], device=x.device))
            middle = add(x.float().sum(axes)) / count
            variance = add((x.float() - middle.reshape(shape)).square().sum(axes)) / count
        return (x - middle.reshape(shape)) * (variance.reshape(shape) + norm.eps).rsqrt()
