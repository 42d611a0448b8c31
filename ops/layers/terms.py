"""What losses and metrics are made of: normalizers, shapes that fit, labels as indices, gradients by decree."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ops.layers.registry import Layer, Shape, text
from ops.proto.caffe_pb2 import AccuracyParameter, LossParameter

# (places, places that are not ignored, N) -> what a sum over places is divided by, though never by less than 1.
NORMALIZERS: dict[int, Callable[[int, Tensor | int, int], Tensor | int]] = {
    LossParameter.FULL: lambda places, counted, batch: places,
    LossParameter.VALID: lambda places, counted, batch: counted,
    LossParameter.BATCH_SIZE: lambda places, counted, batch: batch,
    LossParameter.NONE: lambda places, counted, batch: 1,
}


def normalizer(
    layer: Layer, mode: int, counted: Tensor | None, scores: Shape, labels: Shape, axis: int
) -> Tensor | int:
    """What to divide by: counts of the whole batch, of bottoms of these shapes; N is that of the axes before `axis`.

    `counted` is True where places are not ignored, None if none is. Never waits for a GPU.
    """
    places, batch = math.prod(layer.whole(labels, 1)), math.prod(layer.whole(scores)[:axis])
    divisor = NORMALIZERS[mode](places, places if counted is None else layer.in_all(counted.sum()), batch)
    return divisor.clamp(min=1) if isinstance(divisor, Tensor) else max(1, divisor)


def normalization(p: LossParameter, default: int = LossParameter.VALID) -> int:
    """The mode asked for; the old `normalize` counts only where `normalization` is not written, as Caffe."""
    if p.HasField("normalization"):
        return p.normalization
    if p.HasField("normalize"):
        return LossParameter.VALID if p.normalize else LossParameter.BATCH_SIZE
    return default


def ignored(p: LossParameter | AccuracyParameter) -> int | None:
    """The ignore_label, None where it is not written."""
    return p.ignore_label if p.HasField("ignore_label") else None


# -- what fits -------------------------------------------------------------------------------------------------------


def same_batch(first: Shape, other: Shape, number: int = 1) -> None:
    """Bottoms 0 and `number` begin with the same size."""
    if not first or not other or first[0] != other[0]:
        raise ValueError(f"{both(first, other, number)}: their first axes must have the same size")


def same_count(first: Shape, other: Shape, number: int = 1) -> None:
    """Bottoms 0 and `number` hold as many elements an item, in as many items."""
    same_batch(first, other, number)
    if math.prod(first) != math.prod(other):
        raise ValueError(f"{both(first, other, number)}: they must hold equally many elements")


def one_label_a_place(scores: Shape, labels: Shape, axis: int) -> None:
    """Bottom 1 holds a label for each place of the axes of bottom 0 other than `axis`."""
    same_batch(scores, labels)
    places = math.prod(scores[:axis]) * math.prod(scores[axis + 1 :])
    if math.prod(labels) != places:
        raise ValueError(
            f"{both(scores, labels)}: with the classes on axis {axis} there must be {places} labels, not "
            f"{math.prod(labels)}; the axis may be wrong"
        )


def one_label_an_item(scores: Shape, labels: Shape, number: int = 1) -> None:
    """Bottom `number` holds one label for each item of bottom 0."""
    same_batch(scores, labels, number)
    if math.prod(labels) != labels[0]:
        raise ValueError(f"{both(scores, labels, number)}: there must be one label an item, {scores[0]} in all")


def both(first: Shape, other: Shape, number: int = 1) -> str:
    return f"bottom 0 is {text(tuple(first))}, bottom {number} is {text(tuple(other))}"


# -- labels ----------------------------------------------------------------------------------------------------------


def class_index(labels: Tensor, scores: Shape, axis: int, ignore: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Labels as an index into `axis` of scores, of size 1 there, and True where they count (None: everywhere)."""
    index = labels.reshape(*scores[:axis], 1, *scores[axis + 1 :]).long()
    if ignore is None:
        return index, None
    counted = index != ignore
    return index.masked_fill(~counted, 0), counted


def pick(scores: Tensor, axis: int, index: Tensor) -> tuple[Tensor, Tensor]:
    """The scores at `index` along `axis` (nan on a GPU where it is out of range), and the index made safe."""
    classes = scores.shape[axis]
    if scores.device.type not in ("cpu", "meta"):
        safe = index.clamp(0, classes - 1)
        return scores.gather(axis, safe).masked_fill(safe != index, math.nan), safe
    try:
        return scores.gather(axis, index), index
    except (RuntimeError, IndexError):
        strays = index[(index < 0) | (index >= classes)]
        if not len(strays):
            raise
    raise ValueError(
        f"label {int(strays[0])} is none of the {classes} classes (0 to {classes - 1}): correct the labels, give "
        "bottom 0 as many classes, or set ignore_label"
    )


def precise(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def log_softmax(x: Tensor, axis: int) -> Tensor:
    """x - log(sum(exp(x))) along `axis`; channels_last stays so, which torch's own gives up at three times the cost."""
    if is_channels_last(x) and axis == 1:
        return torch.log_softmax(x.permute(0, 2, 3, 1), -1).permute(0, 3, 1, 2)
    return torch.log_softmax(x, axis)


def is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


class _Sloped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * grad, None, None


def sloped(x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """`value`, one number, whose gradient to x is `slope`, whatever calculus says."""
    return _Sloped.apply(x, value.detach(), slope.detach())  # type: ignore[no-untyped-call]
