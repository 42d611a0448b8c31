"""Layers with weights and no windows: InnerProduct, Embed, Scale, Bias, Parameter."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ops.layers.registry import Layer, Phase, Shape, axis_of, layer, text
from ops.proto.caffe_pb2 import FillerParameter, LayerParameter


@layer("Parameter")
class Parameter(Layer):
    """y = blob 0, learned like a weight, of the shape in parameter_param; starts at zeros."""

    bottoms = (0, 0)

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        self.add_blob(tuple(spec.parameter_param.shape.dim))

    def forward(self) -> Tensor:
        return self.blob(0)


@layer("InnerProduct")
class InnerProduct(Layer):
    """y = W x + b: (..., axes from `axis` on, K numbers in all) -> (..., num_output).

    Blob 0: W, (num_output, K), or (K, num_output) where `transpose`; blob 1: b, (num_output,).
    """

    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.inner_product_param
        positive("num_output", p.num_output)
        self.axis = axis_of(p.axis, len(bottoms[0]))
        self.transpose, self.bias = p.transpose, p.bias_term
        self.inputs = math.prod(bottoms[0][self.axis :])
        shape = (self.inputs, p.num_output) if p.transpose else (p.num_output, self.inputs)
        self.add_blob(shape, p.weight_filler)
        if p.bias_term:
            self.add_blob((p.num_output,), p.bias_filler)
        self.outputs = p.num_output

    def shapes(self, bottoms: list[Shape]) -> list[Shape]:
        return [(*bottoms[0][: self.axis], self.outputs)]

    def forward(self, x: Tensor) -> Tensor:
        shape = tuple(x.shape)
        if math.prod(shape[self.axis :]) != self.inputs:
            raise ValueError(
                f"a bottom of {text(shape)} has {math.prod(shape[self.axis :])} numbers from axis {self.axis} on, "
                f"the weights of {text(tuple(self.blob(0).shape))} take {self.inputs}"
            )
        weight = self.blob(0).t() if self.transpose else self.blob(0)
        return F.linear(x.reshape(*shape[: self.axis], self.inputs), weight, self.blob(1) if self.bias else None)


@layer("Embed")
class Embed(Layer):
    """y = W[int(x)] + b: indices of any shape -> that shape + (num_output,). No gradient to x.

    Blob 0: W, (input_dim, num_output); blob 1: b, (num_output,). An index outside 0..input_dim-1 is a ValueError on
    the CPU; a GPU does not look.
    """

    unlearnable = (0,)
    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.embed_param
        positive("input_dim", p.input_dim)
        positive("num_output", p.num_output)
        self.bias = p.bias_term
        self.add_blob((p.input_dim, p.num_output), p.weight_filler)
        if p.bias_term:
            self.add_blob((p.num_output,), p.bias_filler)

    def forward(self, x: Tensor) -> Tensor:
        index = x.long()
        try:
            y = F.embedding(index, self.blob(0))
        except IndexError:
            raise ValueError(outside(index, len(self.blob(0)), "input_dim")) from None
        return y + self.blob(1) if self.bias else y


@layer("Bias")
class Bias(Layer):
    """y = x + b, b laid along the axes of x from `axis` on: bottom 1, or without one blob 0 of `num_axes` axes."""

    keeps_shape = True
    bottoms = (1, 2)
    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.bias_param
        self.axis, covered = laid_along(bottoms, p.axis, p.num_axes)
        if len(bottoms) == 1:
            self.add_blob(covered, p.filler)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return x + spread(self.blob(0) if bias is None else bias, x, self.axis)


@layer("Scale")
class Scale(Layer):
    """y = x * s + b, both laid along the axes of x from `axis` on: s is bottom 1, or without one blob 0.

    The next blob, where `bias_term`, is b in the shape of s. `per_channel`: s is a blob of shape (C,) at axis 1.
    """

    keeps_shape = True
    bottoms = (1, 2)
    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.scale_param
        self.axis, covered = laid_along(bottoms, p.axis, p.num_axes)
        self.bias = p.bias_term
        self.per_channel = len(bottoms) == 1 and self.axis == 1 and len(covered) == 1
        if len(bottoms) == 1:
            self.add_blob(covered, p.filler if p.HasField("filler") else FillerParameter(value=1))
        if p.bias_term:
            self.add_blob(covered, p.bias_filler)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        bias = self.blob(len(self.fillers) - 1) if self.bias else None
        factor = self.blob(0) if scale is None else scale
        s = spread(factor, x, self.axis)
        if bias is None:
            return x * s
        if self.per_channel:  # as a normalization with mean 0 and variance 1: one pass forward, two backward
            zeros, ones = torch.zeros_like(factor), torch.ones_like(factor)
            return F.batch_norm(x, zeros, ones, factor, bias, training=False, momentum=0.0, eps=0.0)
        return x * s + spread(bias, x, self.axis)


# -- what they share -------------------------------------------------------------------------------------------------


def positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value or 'missing'}; expected 1 or more")


def laid_along(bottoms: list[Shape], axis: int, num_axes: int) -> tuple[int, Shape]:
    """Where in bottom 0 a factor or summand starts, and its shape: bottom 1's, or `num_axes` axes (-1: to the end)."""
    first = bottoms[0]
    if len(bottoms) == 2 and not bottoms[1]:
        return 0, ()
    start = axis_of(axis, len(first))
    if len(bottoms) == 2:
        check_fit(first, bottoms[1], start, "bottom 1")
        return start, bottoms[1]
    if num_axes < -1:
        raise ValueError(f"num_axes is {num_axes}; expected 0 or more, or -1 for all that follow `axis`")
    end = len(first) if num_axes == -1 else start + num_axes
    if end > len(first):
        raise ValueError(f"axis {start} and num_axes {num_axes} reach past the {len(first)} axes of {text(first)}")
    return start, first[start:end]


def check_fit(x: Shape, factor: Shape, axis: int, name: str) -> None:
    if x[axis : axis + len(factor)] != factor:
        raise ValueError(f"{name} of {text(factor)} does not fit bottom 0 of {text(x)} from axis {axis} on")


def spread(factor: Tensor, x: Tensor, axis: int) -> Tensor:
    """`factor` with axes of 1 behind it, so that it lies along the axes of x from `axis` on."""
    shape = tuple(factor.shape)
    check_fit(tuple(x.shape), shape, axis, "a factor or summand")
    return factor.reshape(shape + (1,) * (x.dim() - axis - len(shape)))


def outside(index: Tensor, size: int, name: str) -> str:
    """The message for indices of which one is not in 0..size-1."""
    wrong = index[(index < 0) | (index >= size)][0].item()
    return f"index {wrong} is outside 0..{size - 1} ({name} is {size})"
