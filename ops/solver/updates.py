"""Caffe's six update rules, over many blobs at once.

Each takes a Part: flat weights w and gradients g of one device and type that share their multipliers, the history h
(and u) of each, and numbers. Everything is done in place, and w is what the rule leaves. Against torch's optimizers:
the rate is inside SGD's velocity, AdaDelta and Adam add delta where Caffe adds it, decay is always part of g.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

PIECE = 1 << 20  # elements: what a rule works on at a time on a CPU stays in its cache from one operation to the next
SMALLEST = 1e-9  # rates: below, 1 - (1 - rate) in float64 is less exact than float32

# mypy knows none of torch's multi-tensor operations
add, mul, sub = torch._foreach_add_, torch._foreach_mul_, torch._foreach_sub_
addcmul, addcdiv, div, sqrt = torch._foreach_addcmul_, torch._foreach_addcdiv_, torch._foreach_div_, torch._foreach_sqrt


@dataclass
class Part:
    """Blobs that are updated together: flat tensors in memory order, and the numbers of the formulas."""

    w: list[Tensor]
    g: list[Tensor]
    h: list[Tensor]
    u: list[Tensor]  # the second history; empty where the rule has one
    rate: float  # times lr_mult
    decay: float  # weight_decay times decay_mult
    momentum: float
    momentum2: float
    rms_decay: float
    delta: float
    time: int  # updates so far, this one included
    t: list[Tensor] = field(default_factory=list)  # gets what is taken from w, as Caffe's diffs; empty: not asked for


def sgd(p: Part) -> None:
    """h <- m h + rate g;  w <- w - h"""
    if p.momentum and abs(p.rate) > SMALLEST:
        # In one pass: torch's own with rate 1, and ours as what it calls 1 - dampening.
        torch._fused_sgd_(
            p.w,
            p.g,
            p.h,
            weight_decay=p.decay,
            momentum=p.momentum,
            lr=1.0,
            dampening=1 - p.rate,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )
        return
    regularize(p)
    mul(p.h, p.momentum)
    add(p.h, p.g, alpha=p.rate)
    sub(p.w, p.h)


def nesterov(p: Part) -> None:
    """h' = m h + rate g;  w <- w - ((1 + m) h' - m h) = w - m h' - rate g"""
    regularize(p)
    mul(p.h, p.momentum)
    add(p.h, p.g, alpha=p.rate)
    sub(p.w, p.h, alpha=p.momentum)
    sub(p.w, p.g, alpha=p.rate)


def adagrad(p: Part) -> None:
    """h <- h + g^2;  w <- w - rate g / (sqrt(h) + delta)"""
    regularize(p)
    addcmul(p.h, p.g, p.g)
    addcdiv(p.w, p.g, root(p.h, p.delta), -p.rate)


def rmsprop(p: Part) -> None:
    """h <- d h + (1 - d) g^2;  w <- w - rate g / (sqrt(h) + delta)"""
    regularize(p)
    mul(p.h, p.rms_decay)
    addcmul(p.h, p.g, p.g, 1 - p.rms_decay)
    addcdiv(p.w, p.g, root(p.h, p.delta), -p.rate)


def adadelta(p: Part) -> None:
    """h <- m h + (1 - m) g^2;  x = g sqrt((u + delta) / (h + delta));  u <- m u + (1 - m) x^2;  w <- w - rate x"""
    regularize(p)
    mul(p.h, p.momentum)
    addcmul(p.h, p.g, p.g, 1 - p.momentum)
    x = list(torch._foreach_add(p.u, p.delta))
    div(x, torch._foreach_add(p.h, p.delta))
    torch._foreach_sqrt_(x)
    mul(x, p.g)
    mul(p.u, p.momentum)
    addcmul(p.u, x, x, 1 - p.momentum)
    sub(p.w, x, alpha=p.rate)


def adam(p: Part) -> None:
    """h <- m h + (1 - m) g;  u <- m2 u + (1 - m2) g^2;  w <- w - rate sqrt(1 - m2^t) / (1 - m^t) h / (sqrt(u) + delta)

    In one pass: torch's own, which adds its eps after the correction of u.
    """
    corrected = p.delta / (1 - p.momentum2**p.time) ** 0.5
    times = [torch.full((), float(p.time), device=p.w[0].device)] * len(p.w)
    torch._fused_adam_(
        p.w,
        p.g,
        p.h,
        p.u,
        [],
        times,
        lr=p.rate,
        beta1=p.momentum,
        beta2=p.momentum2,
        weight_decay=p.decay,
        eps=corrected,
        amsgrad=False,
        maximize=False,
    )


def regularize(p: Part) -> None:
    """g <- g + decay w"""
    if p.decay:
        add(p.g, p.w, alpha=p.decay)


def root(h: list[Tensor], delta: float) -> list[Tensor]:
    """sqrt(h) + delta"""
    roots = list(sqrt(h))
    add(roots, delta)
    return roots


class Rule(NamedTuple):
    """An update rule: how many histories a blob has, the formula, whether it is one pass over memory."""

    histories: int
    update: Callable[[Part], None]
    fused: bool = False


RULES: dict[str, Rule] = {
    "SGD": Rule(1, sgd, fused=True),
    "Nesterov": Rule(1, nesterov),
    "AdaGrad": Rule(1, adagrad),
    "RMSProp": Rule(1, rmsprop),
    "AdaDelta": Rule(2, adadelta),
    "Adam": Rule(2, adam, fused=True),
}


def apply(rule: Rule, part: Part, *, scale: float | Tensor = 1.0, lasso: bool = False) -> None:
    """Scale the gradients, add the decay (`lasso`: that of L1), update the weights; the gradients are used up."""
    if part.t:
        return apply_and_keep(rule, part, scale=scale, lasso=lasso)
    scaled = not isinstance(scale, float) or scale != 1.0
    lasso = lasso and part.decay != 0
    if rule.fused and not scaled and not lasso:
        return rule.update(part)
    for piece in pieces(part):
        if scaled:
            mul(piece.g, scale)
        if lasso:
            add(piece.g, torch._foreach_sign(piece.w), alpha=piece.decay)
            piece.decay = 0.0
        rule.update(piece)
    return None


def apply_and_keep(rule: Rule, part: Part, *, scale: float | Tensor, lasso: bool) -> None:
    """As `apply`, with the value that is taken from the weights in part.t: w <- w - t."""
    if not isinstance(scale, float) or scale != 1.0:
        mul(part.g, scale)
    if part.decay:
        add(part.g, torch._foreach_sign(part.w) if lasso else part.w, alpha=part.decay)
    torch._foreach_zero_(part.t)
    rule.update(replace(part, w=part.t, decay=0.0))
    torch._foreach_neg_(part.t)
    sub(part.w, part.t)


def pieces(part: Part) -> Iterator[Part]:
    """On a CPU, cuts of about PIECE elements, small blobs together; elsewhere all at once."""
    if part.w[0].device.type != "cpu":
        yield part
        return
    columns = [part.w, part.g, part.h] + ([part.u] if part.u else [])
    rows = [
        cut
        for blobs in zip(*columns, strict=True)
        for cut in zip(*(torch.split(blob, PIECE) for blob in blobs), strict=True)
    ]
    held: list[tuple[Tensor, ...]] = []
    for at, row in enumerate(rows):
        held.append(row)
        if sum(len(one[0]) for one in held) >= PIECE or at + 1 == len(rows):
            w, g, h, *u = (list(column) for column in zip(*held, strict=True))
            numbers = (part.rate, part.decay, part.momentum, part.momentum2, part.rms_decay, part.delta, part.time)
            yield Part(w, g, h, u[0] if u else [], *numbers)
            held = []


# -- blobs as flat tensors -------------------------------------------------------------------------------------------


def flat(tensor: Tensor) -> Tensor:
    """The numbers of a blob as they lie in memory, whatever its layout: a view of one axis."""
    if tensor.is_contiguous():
        return tensor.detach().view(-1)
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda axis: -strides[axis])
    return tensor.detach().permute(order).view(-1)


def flat_like(tensor: Tensor, blob: Tensor) -> Tensor:
    """`flat`, in the order in which `blob` lies: a view where they lie alike, else a copy."""
    if tensor.stride() == blob.stride():  # as nearly all do: `flat` in one call
        return tensor.detach().as_strided((tensor.numel(),), (1,))
    if layout(tensor) != layout(blob):
        tensor = torch.empty_like(blob).copy_(tensor)
    return flat(tensor)


def layout(tensor: Tensor) -> list[int]:
    """The strides that count: an axis of one element may have any."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
