"""Which record it was: a label that is no class, a value that is not finite."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ops.feed.feed import Batch
from ops.layers.registry import Layer
from ops.net import Net

CHOOSING = ("Accuracy", "SoftmaxWithLoss", "InfogainLoss", "MultinomialLogisticLoss", "HingeLoss", "MultiMarginLoss")
PER_ITEM = ("MultinomialLogisticLoss", "HingeLoss", "MultiMarginLoss")  # all elements of an item are classes
Naming = Callable[[str, int], str]  # (input blob, row) -> what the record is called


@contextlib.contextmanager
def naming_record(net: Net, current: Callable[[], Sequence[Batch]]) -> Iterator[None]:
    """A ValueError about a label that is none says, too, which record of the batches in the net has it."""
    try:
        yield
    except ValueError as error:
        batches = current()
        stray = stray_label(net, {name: blob for one in batches for name, blob in one.blobs.items()})
        if stray is None or "label" not in str(error):
            raise
        raise ValueError(f"{error}; it is the label of {naming_of(batches)(*stray)}") from error


def naming_of(batches: Sequence[Batch]) -> Naming:
    """What the rows of these batches are called."""

    def name(blob: str, row: int) -> str:
        return next((one.names(row) for one in batches if blob in one.blobs), f"row {row}")

    return name


def stray_label(net: Net, inputs: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """(input, row) of the first label that is none of the classes of a layer which takes it as it comes in."""
    for layer in net.layers:
        if layer.spec.type not in CHOOSING or layer.spec.bottom[1] not in inputs:
            continue
        scores, labels = net.shapes[layer.spec.bottom[0]], inputs[layer.spec.bottom[1]].long()
        wrong = (labels < 0) | (labels >= classes(layer, scores))
        if getattr(layer, "ignore", None) is not None:
            wrong &= labels != layer.ignore
        if bool(wrong.any()):
            return layer.spec.bottom[1], row_of(wrong)
    return None


def classes(layer: Layer, scores: tuple[int, ...]) -> int:
    if layer.spec.type in PER_ITEM:
        return math.prod(scores[1:])
    axis: int = getattr(layer, "axis", 1)
    return scores[axis]


def row_of(wrong: Tensor) -> int:
    """The first row that holds a True."""
    return int(wrong.reshape(len(wrong), -1).any(1).nonzero()[0])


def first_bad(net: Net, blobs: Mapping[str, Tensor], naming: Naming) -> str:
    """Where values that are not finite begin: in an input, in weights, in a layer's top, or with a label."""
    for name in net.inputs:
        if name in blobs and not finite(blobs[name]):
            record = naming(name, row_of(~torch.isfinite(blobs[name])))
            return f"input {name!r} holds values that are not finite, first in {record}; check the data"
    stray = stray_label(net, {name: blobs[name] for name in net.inputs if name in blobs})
    if stray is not None:
        return f"the label of {naming(*stray)} is none of the classes; correct it, or set ignore_label"
    for step in net.steps:
        title = f"layer {step.layer.spec.name!r} ({step.layer.spec.type})"
        if not all(finite(blob) for blob in step.layer.blobs):
            return f"the weights of {title} are not finite; lower base_lr, or set clip_gradients"
        if not all(finite(blobs[name]) for name in step.tops if name in blobs):
            return f"{title} is the first whose top is not finite; lower base_lr, or check its input's range"
    return "the loss alone is not finite; check loss_weight and the labels"


def finite(blob: Tensor) -> bool:
    return bool(torch.isfinite(blob).all())
