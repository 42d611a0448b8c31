"""Losses: tops of one number, the value before its loss weight.

N is the size of axis 0. Labels are floats cut to integers, one a place in any shape of that count, places in row-major
order. A label that is no class is a ValueError on a CPU, and nan on a GPU, which nothing here waits for.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ops.layers.registry import Layer, Phase, Shape, axis_of, layer, text
from ops.layers.terms import (
    class_index,
    ignored,
    log_softmax,
    normalization,
    normalizer,
    one_label_a_place,
    one_label_an_item,
    pick,
    precise,
    same_count,
    sloped,
)
from ops.proto import binary
from ops.proto.caffe_pb2 import BlobProto, HingeLossParameter, LayerParameter, LossParameter

SMALLEST = math.log(
    torch.finfo(torch.float32).tiny
)  # log p in SoftmaxWithLoss counts as at least this: Caffe's FLT_MIN
THRESHOLD = 1e-20  # p in InfogainLoss and MultinomialLogisticLoss counts as at least this
SOFTENER = 1e-4  # ContrastiveLoss adds it to a distance that it divides by

# -- classification --------------------------------------------------------------------------------------------------


class _Likelihood(torch.autograd.Function):
    """-sum over places of max(log p[label], SMALLEST) / norm; the gradient to log p is that without the bound."""

    @staticmethod
    def forward(
        ctx: Any, log_p: Tensor, index: Tensor, counted: Tensor | None, axis: int, norm: Tensor | int
    ) -> Tensor:
        right, index = pick(log_p, axis, index)
        terms = right.clamp_(min=SMALLEST)
        if counted is not None:
            terms.masked_fill_(~counted, 0)
        ctx.save_for_backward(log_p, index, counted)
        ctx.axis, ctx.norm = axis, norm
        return terms.sum().div_(-norm)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        log_p, index, counted = ctx.saved_tensors
        slope = (grad / -ctx.norm).expand_as(index)
        if counted is not None:
            slope = slope * counted
        return torch.zeros_like(log_p).scatter_(ctx.axis, index, slope), None, None, None, None


@layer("SoftmaxWithLoss")
class SoftmaxWithLoss(Layer):
    """-sum over places of log(max(p[label], 1.2e-38)) / normalizer, p = softmax of bottom 0 along `axis`.

    Bottom 1: labels, one for each place of the other axes. A second top gets p; no gradient comes back through it. As
    Caffe's, a place costs at most 87.3, and its gradient is p - onehot even there.

    Set from outside, not by the prototxt: `smoothing`, 0 to below 1, the share of a place's target that is spread over
    all classes; `class_weights`, a number a class. A place then costs -sum over classes c of t[c] w[c] log(p[c]),
    without the bound, t = (1 - smoothing) onehot + smoothing / classes; the normalizations VALID and FULL divide by the
    sum of the weights w[label] of the places that count (FULL: and 1 for each ignored one), BATCH_SIZE and NONE as
    ever. So it is torch's cross_entropy, label_smoothing and weight.
    """

    bottoms = (2, 2)
    tops = (1, 2)
    unlearnable = (1,)

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        self.axis = axis_of(spec.softmax_param.axis, len(bottoms[0]))
        self.ignore, self.mode = ignored(spec.loss_param), normalization(spec.loss_param)
        self.two = len(spec.top) > 1
        self.smoothing = 0.0
        self.class_weights: Tensor | None = None
        one_label_a_place(bottoms[0], bottoms[1], self.axis)

    def shapes(self, bottoms: list[Shape]) -> list[Shape]:
        return [(), bottoms[0]] if self.two else [()]

    def forward(self, x: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        one_label_a_place(x.shape, labels.shape, self.axis)
        index, counted = class_index(labels, x.shape, self.axis, self.ignore)
        log_p = log_softmax(precise(x), self.axis)
        if self.smoothing or self.class_weights is not None:
            loss = self.softened(log_p, index, counted, labels.shape)
        else:
            norm = normalizer(self, self.mode, counted, x.shape, labels.shape, self.axis)
            loss = _Likelihood.apply(log_p, index, counted, self.axis, norm)  # type: ignore[no-untyped-call]
        return (loss, log_p.detach().exp()) if self.two else loss

    def softened(self, log_p: Tensor, index: Tensor, counted: Tensor | None, labels: Shape) -> Tensor:
        """The loss with smoothed targets and weighted classes."""
        right, index = pick(log_p, self.axis, index)
        every, norm = log_p, None
        if self.class_weights is not None:
            weights = self.class_weights = self.class_weights.to(log_p)
            each = weights[index]
            right, every = right * each, every * weights.reshape(-1, *[1] * (log_p.dim() - 1 - self.axis))
            norm = self.weight_in_all(each, counted)
        if self.smoothing:
            even = every.sum(self.axis, keepdim=True) / log_p.shape[self.axis]
            right = right * (1 - self.smoothing) + even * self.smoothing
        if counted is not None:
            right = right.masked_fill(~counted, 0)
        divisor = norm if norm is not None else normalizer(self, self.mode, counted, log_p.shape, labels, self.axis)
        return right.sum() / -divisor

    def weight_in_all(self, each: Tensor, counted: Tensor | None) -> Tensor | None:
        """The weights of the whole batch's labels together; None where the normalization does not count places."""
        if self.mode not in (LossParameter.VALID, LossParameter.FULL):
            return None
        beside = 1.0 if self.mode == LossParameter.FULL else 0.0
        total = self.in_all((each if counted is None else each.where(counted, beside)).sum())
        return total.where(total > 0, 1.0)  # where nothing counts the loss is 0


@layer("InfogainLoss")
class InfogainLoss(Layer):
    """-sum over places and classes l of H[label, l] * log(max(p_l, 1e-20)) / normalizer, p = softmax of bottom 0.

    H, classes x classes, is bottom 2, or else in the BlobProto file `source`. A second top gets p. The softmax is the
    layer's own, as Caffe's of today; older releases took probabilities. The gradient is p * (sum of H[label]) -
    H[label], whatever is cut off.
    """

    bottoms = (2, 3)
    tops = (1, 2)
    unlearnable = (1, 2)

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        if spec.loss_param.HasField("normalize"):
            raise ValueError("loss_param has `normalize`, which InfogainLoss does not take: write `normalization`")
        self.axis = axis_of(spec.infogain_loss_param.axis, len(bottoms[0]))
        self.ignore, self.mode = ignored(spec.loss_param), normalization(spec.loss_param)
        self.two = len(spec.top) > 1
        self.held = None if len(bottoms) == 3 else read_matrix(spec.infogain_loss_param.source)
        self.placed = self.held  # of the type and on the device of the last scores
        self.check(*bottoms)

    def check(self, scores: Shape, labels: Shape, matrix: Shape | None = None) -> None:
        one_label_a_place(scores, labels, self.axis)
        where, found = "bottom 2", matrix
        if self.held is not None:
            where, found = f"the matrix in {self.spec.infogain_loss_param.source}", self.held.shape
        classes = scores[self.axis]
        if found is not None and math.prod(found) != classes**2:
            raise ValueError(
                f"{where} is {text(tuple(found))}, bottom 0 is {text(tuple(scores))} with {classes} classes on axis "
                f"{self.axis}: expected {classes} x {classes}"
            )

    def matrix(self, like: Tensor) -> Tensor:
        """The matrix of the file, on the device and of the type of `like`."""
        assert self.held is not None
        assert self.placed is not None
        if self.placed.device != like.device or self.placed.dtype != like.dtype:
            self.placed = self.held.to(like)
        return self.placed

    def forward(self, x: Tensor, labels: Tensor, matrix: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        self.check(x.shape, labels.shape, None if matrix is None else matrix.shape)
        classes = x.shape[self.axis]
        index, counted = class_index(labels, x.shape, self.axis, self.ignore)
        norm = normalizer(self, self.mode, counted, x.shape, labels.shape, self.axis)
        log_p = log_softmax(precise(x.detach()), self.axis)
        h = (self.matrix(log_p) if matrix is None else precise(matrix.detach())).reshape(classes, classes)
        rows, _ = pick(h, 0, index.reshape(-1, 1).expand(-1, classes))
        rows = rows.reshape(*index.squeeze(self.axis).shape, classes).movedim(-1, self.axis)
        terms = rows * log_p.clamp(min=math.log(THRESHOLD))
        slope = log_p.exp() * rows.sum(self.axis, keepdim=True) - rows
        if counted is not None:
            terms, slope = (each.masked_fill(~counted, 0) for each in (terms, slope))
        loss = sloped(precise(x), terms.sum() / -norm, slope / norm)
        return (loss, log_p.exp()) if self.two else loss


def read_matrix(source: str) -> Tensor:
    """The float32 values of a BlobProto file, in its shape."""
    if not source:
        raise ValueError("has no matrix: give a third bottom, or infogain_loss_param.source, a BlobProto file")
    try:
        blob = binary.read(source, BlobProto)
    except OSError as error:
        raise ValueError(f"infogain_loss_param.source {source}: {error.strerror or error}") from error
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else (blob.num, blob.channels, blob.height, blob.width)
    values = np.array(blob.data if blob.data else blob.double_data, np.float32)
    if min(shape, default=1) < 1 or values.size != math.prod(shape):
        raise ValueError(f"{source}: has {values.size} values for the shape {text(shape)}")
    return torch.from_numpy(values.reshape(shape))


@layer("MultinomialLogisticLoss")
class MultinomialLogisticLoss(Layer):
    """-sum of log(max(p[label], 1e-20)) / N; bottom 0: probabilities (N, ...), bottom 1: N labels.

    The gradient is -1 / max(p[label], 1e-20) / N also below the threshold, as Caffe's.
    """

    bottoms = (2, 2)
    unlearnable = (1,)

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        one_label_an_item(bottoms[0], bottoms[1])

    def forward(self, p: Tensor, labels: Tensor) -> Tensor:
        one_label_an_item(p.shape, labels.shape)
        right, _ = pick(precise(p).reshape(len(p), -1), 1, labels.reshape(-1, 1).long())
        bounded = right.detach().clamp(min=THRESHOLD)
        items = self.whole(p.shape)[0]
        return sloped(right, bounded.log().sum() / -items, -1 / (bounded * items))


@layer("HingeLoss")
class HingeLoss(Layer):
    """sum over items and classes of m / N (norm L1) or m^2 / N (L2), m = max(0, 1 - s x), s = 1 at the label, else -1.

    One class against the rest; all elements of an item of bottom 0 are classes, bottom 1 holds N labels.
    """

    bottoms = (2, 2)
    unlearnable = (1,)

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        self.norm = spec.hinge_loss_param.norm
        one_label_an_item(bottoms[0], bottoms[1])

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        one_label_an_item(x.shape, labels.shape)
        scores = precise(x).reshape(len(x), -1)
        right, index = pick(scores, 1, labels.reshape(-1, 1).long())
        margins = (1 + scores).scatter(1, index, 1 - right).relu()
        return (margins if self.norm == HingeLossParameter.L1 else margins.square()).sum() / self.whole(x.shape)[0]


@layer("MultiMarginLoss")
class MultiMarginLoss(Layer):
    """sum over items and classes j other than the label y of max(0, x_j - x_y + margin) / N.

    torch's multi_margin_loss times the number of classes. Bottom 0: (N, ...), all elements of an item are classes.
    """

    bottoms = (2, 2)
    unlearnable = (1,)

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        self.margin = spec.multi_margin_loss_param.margin
        one_label_an_item(bottoms[0], bottoms[1])

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        one_label_an_item(x.shape, labels.shape)
        scores = precise(x).reshape(len(x), -1)
        right, index = pick(scores, 1, labels.reshape(-1, 1).long())
        return (scores - right + self.margin).scatter(1, index, 0).relu().sum() / self.whole(x.shape)[0]


# -- numbers against numbers -----------------------------------------------------------------------------------------


@layer("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(Layer):
    """-sum of t log s + (1 - t) log(1 - s) / normalizer, s = sigmoid(bottom 0), t = bottom 1 in [0, 1], as many.

    The normalizer is N unless told otherwise. As Caffe, the integer part of a target is what ignore_label is compared
    with: 0 drops 0.7 too.
    """

    bottoms = (2, 2)
    unlearnable = (1,)

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        self.ignore = ignored(spec.loss_param)
        self.mode = normalization(spec.loss_param, LossParameter.BATCH_SIZE)
        same_count(bottoms[0], bottoms[1])

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        same_count(x.shape, targets.shape)
        scores = precise(x)
        targets = targets.detach().reshape(x.shape).to(scores.dtype)
        counted = None
        if self.ignore is not None:
            counted = targets.trunc() != self.ignore
            scores, targets = scores.masked_fill(~counted, 0), targets.masked_fill(~counted, 0)
        weight = None if counted is None else counted.to(scores.dtype)
        loss = F.binary_cross_entropy_with_logits(scores, targets, weight, reduction="sum")
        return loss / normalizer(self, self.mode, counted, x.shape, targets.shape, 1)


@layer("EuclideanLoss")
class EuclideanLoss(Layer):
    """sum of (a - b)^2 / 2N, bottoms a and b of equally many elements; gradients go to both."""

    bottoms = (2, 2)

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        same_count(bottoms[0], bottoms[1])

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        same_count(a.shape, b.shape)
        return F.mse_loss(precise(a), precise(b).reshape(a.shape), reduction="sum") / (2 * self.whole(a.shape)[0])


@layer("ContrastiveLoss")
class ContrastiveLoss(Layer):
    """sum over pairs of s d^2 + (1 - s) max(0, margin - d)^2 / 2N; d: distance of a and b (N, ...), s: similarity (N).

    A pair is similar where the integer part of s is not 0. legacy_version: max(0, margin - d^2) in place of the second
    square. As Caffe's, the gradient of that square divides by d + 1e-4.
    """

    bottoms = (3, 3)
    unlearnable = (2,)

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        self.margin = spec.contrastive_loss_param.margin
        self.legacy = spec.contrastive_loss_param.legacy_version
        self.check(*bottoms)

    def check(self, a: Shape, b: Shape, similar: Shape) -> None:
        same_count(a, b)
        one_label_an_item(a, similar, 2)

    def forward(self, a: Tensor, b: Tensor, similar: Tensor) -> Tensor:
        self.check(a.shape, b.shape, similar.shape)
        apart = (precise(a) - precise(b).reshape(a.shape)).reshape(len(a), -1)
        alike = similar.detach().reshape(-1).trunc() != 0
        difference = apart.detach()
        square = difference.square().sum(1)
        if self.legacy:
            gap = self.margin - square
            cost, pull = gap.clamp(min=0), torch.full_like(gap, -1)
        else:
            distance = square.sqrt()
            gap = self.margin - distance
            cost, pull = gap.clamp(min=0).square(), -gap / (distance + SOFTENER)
        pull = torch.where(alike, 1, torch.where(gap > 0, pull, 0))
        pairs = self.whole(a.shape)[0]
        loss = torch.where(alike, square, cost).sum() / (2 * pairs)
        return sloped(apart, loss, difference * (pull / pairs).unsqueeze(1))
