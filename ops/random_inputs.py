"""Random values for the inputs of a net that all its layers can compute with: labels are classes, indices exist."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ops.layers.registry import Layer, Shape
from ops.net import Net

# (the layer that takes it, the shapes of that layer's bottoms, the shape to make, chance) -> values
Maker = Callable[[Any, list[Shape], Shape, torch.Generator], Tensor]


def random_inputs(net: Net, seed: int = 0) -> dict[str, Tensor]:
    """A tensor for each input of `net`, of its type and on its device; the same for the same net and seed.

    N(0, 1), but for inputs that a layer reads as something else. What DummyData layers make is made once.
    """
    made = net.make([name for name in net.inputs if any(name in tops for _, tops in net.made)])
    kind = net.dtype or torch.float32
    for place, (name, shape) in enumerate(net.inputs.items()):
        if name not in made:
            chance = torch.Generator().manual_seed(seed * 1_000_003 + place)
            made[name] = draw(net, name, shape, chance).to(net.device, kind)
    return {name: made[name] for name in net.inputs}


def draw(net: Net, name: str, shape: Shape, chance: torch.Generator) -> Tensor:
    """Values for one input, by the first layer that asks for more than numbers."""
    for number, bottom in readers(net, name):
        layer, taken = net.layers[number], net.built.taken[number]
        kind = layer.spec.type
        maker = MAKERS.get((kind, bottom)) or (MAKERS.get((kind, -1)) if bottom == len(taken) - 1 else None)
        if maker is None and bottom in layer.unlearnable and (kind, None) not in MAKERS:
            maker = classes
        if maker is not None:
            return maker(layer, taken, shape, chance)
    return normal(None, [], shape, chance)


def readers(net: Net, name: str) -> Iterator[tuple[int, int]]:
    """(layer, bottom) of all that take an input, through layers that only move numbers."""
    nodes = net.built.nodes
    makers = {
        top: (i, k) for i, node in enumerate(nodes) if net.layers[i].source for k, top in enumerate(node.spec.top)
    }
    todo, seen = [makers.get(name)], set[tuple[int, int]]()
    while todo:
        blob = todo.pop(0)
        for i, node in enumerate(nodes):
            for k, source in enumerate(node.sources):
                if source != blob or (source is None and node.spec.bottom[k] != name) or (i, k) in seen:
                    continue
                seen.add((i, k))
                yield i, k
                if node.spec.type in MOVERS:
                    todo += [(i, top) for top in range(len(node.spec.top))]


MOVERS = {"Split", "Slice", "Flatten", "Reshape"}

# -- by rising difficulty --------------------------------------------------------------------------------------------


def normal(_: Any, __: list[Shape], shape: Shape, chance: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=chance)


def uniform(_: Any, __: list[Shape], shape: Shape, chance: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=chance)


def below(bound: int, shape: Shape, chance: torch.Generator) -> Tensor:
    """Whole numbers 0..bound-1."""
    return torch.randint(max(bound, 1), shape, generator=chance).float()


def flags(_: Any, __: list[Shape], shape: Shape, chance: torch.Generator) -> Tensor:
    """0 or 1, at least one of them 1."""
    values = below(2, shape, chance)
    values.view(-1)[:1] = 1
    return values


def classes(layer: Layer, bottoms: list[Shape], shape: Shape, chance: torch.Generator) -> Tensor:
    """Labels for scores in bottom 0, whose classes lie along the layer's axis, else axis 1."""
    scores, axis = bottoms[0], int(getattr(layer, "axis", 1))
    return below(scores[axis] if axis < len(scores) else 1, shape, chance)


def probabilities(_: Any, __: list[Shape], shape: Shape, chance: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=chance).softmax(1 if len(shape) > 1 else 0)


def words(layer: Layer, _: list[Shape], shape: Shape, chance: torch.Generator) -> Tensor:
    return below(layer.spec.embed_param.input_dim, shape, chance)


def rows(_: Any, bottoms: list[Shape], shape: Shape, chance: torch.Generator) -> Tensor:
    return below(bottoms[0][0], shape, chance)


def continues(_: Any, __: list[Shape], shape: Shape, ___: torch.Generator) -> Tensor:
    """Sequences that begin at the first step and go on to the last."""
    values = torch.ones(shape)
    values[:1] = 0
    return values


def regions(layer: Layer, bottoms: list[Shape], shape: Shape, chance: torch.Generator) -> Tensor:
    """(R, 5): number of the map, x1, y1, x2, y2 in image pixels."""
    count, _, height, width = bottoms[0]
    scale = layer.spec.roi_pooling_param.spatial_scale or 1.0
    sides = torch.tensor([width, height, width, height]) / scale - 1
    corners = (torch.rand(math.prod(shape) // 5, 4, generator=chance) * sides).floor()
    low, high = torch.minimum(corners[:, :2], corners[:, 2:]), torch.maximum(corners[:, :2], corners[:, 2:])
    return torch.cat([below(count, (len(corners), 1), chance), low, high], 1).reshape(shape)


# (type, bottom; -1: the last) -> what it takes there; (type, None): its other bottoms take any numbers. A bottom that
# no gradient reaches, of a type that does not stand here, takes labels.
MAKERS: dict[tuple[str, int | None], Maker] = {
    ("MultinomialLogisticLoss", 0): probabilities,
    ("SigmoidCrossEntropyLoss", 1): uniform,
    ("InfogainLoss", 2): uniform,
    ("SmoothL1Loss", 2): uniform,
    ("SmoothL1Loss", 3): uniform,
    ("ContrastiveLoss", 2): flags,
    ("Embed", 0): words,
    ("BatchReindex", 1): rows,
    ("LSTM", 1): continues,
    ("RNN", 1): continues,
    ("GRU", 1): continues,
    ("LSTMUnit", 2): continues,
    ("ROIPooling", 1): regions,
    ("Filter", -1): flags,
    ("Accuracy", 1): classes,
    **{(kind, None): normal for kind in ("Accuracy", "ArgMax", "Crop", "HDF5Output")},
}
