"""The order of computing: what runs, what may be written over, what is computed in one go, what is dropped when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ops.layers.registry import Layer
from ops.wiring import Built


class Step:
    """One layer (or two that run as one) at its place in a net."""

    __slots__ = ("bottoms", "compute", "detached", "drawing", "drop", "layer", "number", "title", "tops")

    def __init__(self, number: int, layer: Layer, title: str, compute: Callable[..., Any]):
        self.number, self.layer, self.title, self.compute = number, layer, title, compute
        self.bottoms: tuple[str, ...] = tuple(layer.spec.bottom)
        self.tops: tuple[str, ...] = tuple(layer.spec.top)
        told = list(layer.spec.propagate_down)
        stopped = [i for i, down in enumerate(told) if not down]
        self.detached = tuple({*stopped, *(i for i in layer.unlearnable if i < len(self.bottoms))})
        self.drawing = layer.phase == "TRAIN" and layer.draws
        self.drop: tuple[str, ...] = ()

    def run(self, values: dict[str, Tensor], seed: int, forwards: int) -> None:
        """Take the bottoms from `values`, put the tops there."""
        bottoms = [values[name] for name in self.bottoms]
        for index in self.detached:
            bottoms[index] = bottoms[index].detach()
        if self.drawing and not torch.compiler.is_compiling():
            self.layer.generator = generator(bottoms[0].device, seed, self.number, forwards)
        tops = self.compute(*bottoms)
        if isinstance(tops, tuple):
            values.update(zip(self.tops, tops, strict=True))
        else:
            values[self.tops[0]] = tops
        for name in self.drop:
            del values[name]


def generator(device: torch.device, seed: int, number: int, forwards: int) -> torch.Generator:
    """Chance for one layer in one forward; nothing else in the process has a part in it."""
    mixed = ((seed * 1_000_003 + number) * 1_000_003 + forwards) & (2**63 - 1)
    return torch.Generator(device).manual_seed(mixed)


def plan(built: Built) -> list[Step]:
    """The steps in order; layers that the caller feeds have none."""
    steps: list[Step] = []
    done = set[int]()
    for number, layer in enumerate(built.layers):
        if layer.source or number in done:
            continue
        scale = following_scale(built, number)
        step = Step(number, layer, built.nodes[number].title, layer)
        if scale is not None:
            step.compute = fused(layer, built.layers[scale])
            done.add(scale)
        elif may_overwrite(built, number):
            layer.inplace = True
        steps.append(step)
    if built.kept is not None:
        drop_early(steps, built.kept)
    return steps


def may_overwrite(built: Built, number: int) -> bool:
    """Whether a layer may write into its bottom: nobody else reads it, neither a layer, a backward nor the caller."""
    node, layer = built.nodes[number], built.layers[number]
    if not layer.can_be_inplace or list(node.spec.top) != list(node.spec.bottom) or node.sources[0] is None:
        return False
    maker, top = node.sources[0]
    alone = built.nodes[maker].takers[top] == {number}
    weighed = node.spec.bottom[0] in built.nodes[maker].spec.top and built.nodes[maker].spec.loss_weight
    return top == 0 and built.layers[maker].fresh and alone and not weighed


def following_scale(built: Built, number: int) -> int | None:
    """The Scale that works in place on a BatchNorm's top, one factor a channel: both are one pass over the blob."""
    node = built.nodes[number]
    if node.spec.type != "BatchNorm" or len(node.takers[0]) != 1:
        return None
    (taker,) = node.takers[0]
    spec, layer = built.nodes[taker].spec, built.layers[taker]
    blob = node.spec.top[0]
    same = list(spec.bottom) == [blob] and list(spec.top) == [blob] and not spec.propagate_down
    return taker if same and getattr(layer, "per_channel", False) else None


def fused(norm: Layer, scale: Layer) -> Callable[[Tensor], Tensor]:
    """BatchNorm and the Scale after it."""

    def compute(x: Tensor) -> Tensor:
        return norm(x, scale.blob(0), scale.blob(1) if len(scale.fillers) > 1 else None)

    return compute


def drop_early(steps: list[Step], kept: frozenset[str]) -> None:
    """Let go of each blob that nobody asked for after the last layer that takes it."""
    last = {name: step for step in steps for name in (*step.bottoms, *step.tops)}
    for name, step in last.items():
        if name not in kept:
            step.drop += (name,)
