"""Two nets on the same input, blob by blob: where they begin to differ, and by how much.

Two definitions, weight files, precisions or devices alike.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ops.layers.registry import Shape
from ops.net import Net
from ops.precision import Precision, precise

SMALL = 1e-6  # a blob of smaller numbers is measured as if they were so large: zeros and rounding are alike


@dataclass(frozen=True)
class Difference:
    """A blob of both nets. `largest`: of |a - b|; `relative`: ||a - b|| / ||a||; both inf where the shapes differ, or
    where only one of two numbers is finite. The same nan or infinity is no difference."""

    layer: str
    type: str
    blob: str  # a top's name; of weights "blob 0"
    shape: Shape
    other: Shape
    largest: float
    relative: float

    @property
    def equal(self) -> bool:
        return self.largest == 0


@dataclass(frozen=True)
class Comparison:
    """Tops in the order in which the first net makes them, weights that differ, and what only one of the nets has."""

    tops: tuple[Difference, ...]
    weights: tuple[Difference, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    def beyond(self, tolerance: float) -> Difference | None:
        """The first top whose relative difference is larger."""
        return next((one for one in self.tops if one.relative > tolerance), None)

    @property
    def first(self) -> Difference | None:
        """The first top that differs at all."""
        return next((one for one in self.tops if not one.equal), None)


def compare(
    first: Net,
    second: Net,
    inputs: Mapping[str, Tensor],
    *,
    others: Mapping[str, Tensor] | None = None,
    precisions: tuple[Precision, Precision] = ("fp32", "fp32"),
) -> Comparison:
    """Run both nets on the same `inputs` (the second on `others`, where its inputs have other names) and compare.

    A top of one net goes with that of the layer of the same name in the other; where there is no such layer, with the
    blob of the same name, as it is at the end. So a layer in place has its own line: its blob before it is looked at
    too.
    """
    made = {(layer, top): value for layer, _, top, value in tops(second, others or inputs, precisions[1])}
    last = {top: value for (_, top), value in made.items()}
    theirs = {layer.spec.name for layer in second.layers}
    found: list[Difference] = []
    alone: list[str] = []
    for layer, kind, top, value in tops(first, inputs, precisions[0]):
        other = made.get((layer, top), None if layer in theirs else last.get(top))
        if other is None:
            alone.append(top)
        else:
            found.append(difference(layer, kind, top, value, other))
    matched = {one.blob for one in found}
    missing = [top for top in dict.fromkeys(alone) if top not in matched]
    more = [top for top in last if top not in matched]
    return Comparison(tuple(found), tuple(weights(first, second)), tuple(missing), tuple(more))


def tops(net: Net, inputs: Mapping[str, Tensor], precision: Precision) -> Iterator[tuple[str, str, str, Tensor]]:
    """(layer, type, blob, float64 values on the CPU) after each step of a forward, before a later one writes there."""
    with torch.no_grad(), precise(net.device, precision):
        values = net.take(inputs)
        for step in net.steps:
            try:
                step.run(values, net.seed, 1)
            except (RuntimeError, IndexError, ValueError) as error:
                raise net.blame(step, values, error) from error
            for top in step.tops:
                if top in values:
                    yield step.layer.spec.name, step.layer.spec.type, top, values[top].detach().double().cpu().clone()


def weights(first: Net, second: Net) -> Iterator[Difference]:
    """The blobs that differ, of layers of one name."""
    theirs = second.params
    for layer in first.layers:
        pairs = zip(layer.blobs, theirs.get(layer.spec.name, []), strict=False)
        for index, (ours, other) in enumerate(pairs):
            found = difference(
                layer.spec.name,
                layer.spec.type,
                f"blob {index}",
                ours.detach().double().cpu(),
                other.detach().double().cpu(),
            )
            if not found.equal:
                yield found


def fill_zeros(net: Net) -> None:
    """Random numbers for weights that are all zero, as those without a filler; equal for layers of one name."""
    with torch.no_grad():
        for layer in net.layers:
            for index, blob in enumerate(layer.blobs):
                if layer.is_statistic(index) or bool(blob.any()):
                    continue
                chance = torch.Generator().manual_seed(zlib.crc32(f"{layer.spec.name}/{index}".encode()))
                inputs = math.prod(blob.shape[1:])
                blob.copy_(torch.randn(blob.shape, generator=chance) / math.sqrt(max(inputs, 16)))


def difference(layer: str, kind: str, blob: str, ours: Tensor, theirs: Tensor) -> Difference:
    """Of two float64 blobs."""
    shape, other = tuple(ours.shape), tuple(theirs.shape)
    largest = relative = math.inf
    if shape == other:
        alike = (ours == theirs) | (ours.isnan() & theirs.isnan())
        apart = (ours - theirs).abs().masked_fill(alike, 0)
        if bool(apart.isfinite().all()):
            largest = float(apart.max()) if apart.numel() else 0.0
            norm = float(ours.masked_fill(~ours.isfinite(), 0).norm())
            relative = float(apart.norm()) / max(norm, SMALL * math.sqrt(max(ours.numel(), 1)))
    return Difference(layer, kind, blob, shape, other, largest, relative)
