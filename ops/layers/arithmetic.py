"""Arithmetic between blobs and along axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ops.layers.registry import Layer, Phase, Shape, axis_of, layer, text
from ops.proto.caffe_pb2 import EltwiseParameter, LayerParameter, ReductionParameter


def weighted_sum(bottoms: tuple[Tensor, ...], coeffs: list[float]) -> Tensor:
    """c0 x0 + c1 x1 + ..., in one pass where two bottoms are added."""
    first = bottoms[0] if coeffs[0] == 1 else bottoms[0] * coeffs[0]
    total = torch.add(first, bottoms[1], alpha=coeffs[1])
    for x, coeff in zip(bottoms[2:], coeffs[2:], strict=True):
        total.add_(x, alpha=coeff)
    return total


def product(bottoms: tuple[Tensor, ...]) -> Tensor:
    """x0 x1 ...; the gradient to one is the product of the others."""
    y = bottoms[0] * bottoms[1]
    for x in bottoms[2:]:
        y = y * x
    return y


def maximum(bottoms: tuple[Tensor, ...]) -> Tensor:
    """The largest; all gradient goes to one bottom, among equals to the second, then the first, then the later ones.

    So Caffe's CPU compares (its GPU gives equals to the latest); a nan in the first bottom alone is passed over.
    """
    first, second = bottoms[:2]
    y = torch.where(first > second, first, second)
    for x in bottoms[2:]:
        y = torch.where(x > y, x, y)
    return y


class _DivisionProduct(torch.autograd.Function):
    """The product; the gradient to a bottom x is y / x, nan where x is 0."""

    @staticmethod
    def forward(ctx: Any, *bottoms: Tensor) -> Tensor:
        y = product(bottoms)
        ctx.save_for_backward(y, *bottoms)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, *bottoms = ctx.saved_tensors
        wanted = zip(bottoms, ctx.needs_input_grad, strict=True)
        return tuple((y / x).mul_(grad) if needed else None for x, needed in wanted)


@layer("Eltwise")
class Eltwise(Layer):
    """SUM: sum of coeff_i x_i; PROD: product of x_i; MAX: the largest x_i; element by element over equal shapes.

    stable_prod_grad false: the product's gradient is y / x_i, as Caffe's, and nan where x_i is 0.
    """

    keeps_shape = True
    bottoms = (2, None)

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.eltwise_param
        if p.coeff and p.operation == EltwiseParameter.PROD:
            raise ValueError("eltwise_param has coeff, which goes with operation SUM only, not with PROD")
        if p.coeff and len(p.coeff) != len(bottoms):
            raise ValueError(f"eltwise_param has coeff {len(p.coeff)} times for {len(bottoms)} bottoms; give one each")
        self.operation, self.stable = p.operation, p.stable_prod_grad
        self.coeffs = list(p.coeff) or [1.0] * len(bottoms)
        self.fresh = p.operation != EltwiseParameter.PROD or p.stable_prod_grad
        equal_shapes(bottoms)

    def forward(self, *bottoms: Tensor) -> Tensor:
        equal_shapes([x.shape for x in bottoms])
        if self.operation == EltwiseParameter.SUM:
            return weighted_sum(bottoms, self.coeffs)
        if self.operation == EltwiseParameter.MAX:
            return maximum(bottoms)
        if self.stable:
            return product(bottoms)
        return _DivisionProduct.apply(*bottoms)  # type: ignore[no-untyped-call]


def equal_shapes(shapes: list[Shape]) -> None:
    for number, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f"bottom 0 is {text(tuple(shapes[0]))}, bottom {number} is {text(tuple(shape))}: all must be the same"
            )


# (x, the axes to reduce) -> one number for all of them.
REDUCTIONS: dict[int, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    ReductionParameter.SUM: lambda x, axes: x.sum(axes),
    ReductionParameter.ASUM: lambda x, axes: x.abs().sum(axes),
    ReductionParameter.SUMSQ: lambda x, axes: x.square().sum(axes),
    ReductionParameter.MEAN: lambda x, axes: x.mean(axes),
}


@layer("Reduction")
class Reduction(Layer):
    """y = coeff * the sum (of absolute values, of squares) or the mean of x over the axes from `axis` on.

    The top has the axes before; one number where there are none.
    """

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.reduction_param
        self.axis = axis_of(p.axis, len(bottoms[0]))
        self.coeff = p.coeff
        self.reduce = REDUCTIONS[p.operation]
        self.mean = p.operation == ReductionParameter.MEAN

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(x, tuple(range(self.axis, x.dim())))
        coeff = self.coeff
        if self.part is not None and self.mean:  # a part of the elements is here: its share of the mean
            coeff *= math.prod(x.shape[self.axis :]) / math.prod(self.part.shapes[0][self.axis :])
        return y if coeff == 1 else y * coeff


@layer("ArgMax")
class ArgMax(Layer):
    """The places of the top_k largest values as floats, the largest first, of equals the larger place first.

    With `axis`: places along it, the bottom's shape with top_k there; out_max_val gives the values instead. Without:
    places in an item's elements, (N, 1, k, 1, ...) with as many axes as the bottom, at least 3; out_max_val gives
    (N, 2, k, 1, ...), places and values. No gradient.
    """

    unlearnable = (0,)

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.argmax_param
        self.axis = axis_of(p.axis, len(bottoms[0])) if p.HasField("axis") else None
        self.k, self.values = p.top_k, p.out_max_val
        if not bottoms[0]:
            raise ValueError("bottom 0 is one number without axes; there is nothing to choose from")
        self.check(bottoms[0])

    def check(self, shape: Shape) -> None:
        sides = shape[1:] if self.axis is None else shape[self.axis : self.axis + 1]
        choice = 1
        for side in sides:
            choice *= side
        if not 1 <= self.k <= choice:
            raise ValueError(f"top_k is {self.k}, bottom 0 is {text(tuple(shape))}: expected 1 to {choice}")

    def forward(self, x: Tensor) -> Tensor:
        self.check(x.shape)
        x = x.detach()
        if self.axis is not None:
            values, places = largest(x, self.axis, self.k)
            return values if self.values else places
        values, places = largest(x.reshape(len(x), -1), 1, self.k)
        rows = torch.stack([places, values], 1) if self.values else places.unsqueeze(1)
        return rows.reshape(*rows.shape, *[1] * (x.dim() - 3))


def largest(x: Tensor, axis: int, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values along `axis` in falling order, and their places as floats; of equals the last is first."""
    backwards = x.flip(axis)
    if k == 1:
        values, places = backwards.max(axis, keepdim=True)
    else:
        values, places = backwards.sort(dim=axis, descending=True, stable=True)
        values, places = values.narrow(axis, 0, k), places.narrow(axis, 0, k)
    exact = x.dtype if x.dtype == torch.float64 else torch.float32  # places over 256 are none of bfloat16's numbers
    return values, (x.shape[axis] - 1 - places).to(exact)
