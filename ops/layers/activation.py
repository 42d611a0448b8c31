"""Layers that work element by element: one bottom, one top of the same shape. Sorted by rising difficulty."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ops.layers.registry import Layer, Phase, Shape, layer
from ops.layers.shape import refuse_inplace
from ops.proto.caffe_pb2 import FillerParameter, LayerParameter


@layer("TanH")
class TanH(Layer):
    """y = tanh(x)."""

    keeps_shape = True
    can_be_inplace = True

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh_(x) if self.inplace else torch.tanh(x)


@layer("Sigmoid")
class Sigmoid(Layer):
    """y = 1 / (1 + exp(-x))."""

    keeps_shape = True
    can_be_inplace = True

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid_(x) if self.inplace else torch.sigmoid(x)


@layer("ReLU6")
class ReLU6(Layer):
    """y = min(max(x, 0), 6); gradient 0 at both ends."""

    keeps_shape = True
    can_be_inplace = True

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x, inplace=self.inplace)


@layer("AbsVal")
class AbsVal(Layer):
    """y = |x|; gradient sign(x), 0 at 0."""

    keeps_shape = True
    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        refuse_inplace(spec)

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


@layer("BNLL")
class BNLL(Layer):
    """y = log(1 + exp(x)); gradient exp(t) / (exp(t) + 1) with t = min(x, 50), as Caffe's."""

    keeps_shape = True
    fresh = True

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x, threshold=50)  # beyond it y = x and the gradient is 1: the same to a double's last bit


@layer("ReLU")
class ReLU(Layer):
    """y = max(x, 0) + negative_slope * min(x, 0); gradient 1 where x > 0, else negative_slope."""

    keeps_shape = True
    can_be_inplace = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        self.slope = spec.relu_param.negative_slope

    def forward(self, x: Tensor) -> Tensor:
        if self.slope == 0:
            return torch.relu_(x) if self.inplace else torch.relu(x)
        # The sign of y tells that of x only where the slope is positive.
        return F.leaky_relu(x, self.slope, inplace=self.inplace and self.slope > 0)


@layer("ELU")
class ELU(Layer):
    """y = x where x > 0, else alpha * (exp(x) - 1)."""

    keeps_shape = True
    can_be_inplace = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        self.alpha = spec.elu_param.alpha

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x, self.alpha, inplace=self.inplace and self.alpha > 0)


@layer("Clip")
class Clip(Layer):
    """y = x cut to min..max; gradient 1 where min <= x <= max, ends included."""

    keeps_shape = True
    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.clip_param
        if not (p.HasField("min") and p.HasField("max")):
            raise ValueError("needs both ends: clip_param { min: ... max: ... }")
        if p.min > p.max:
            raise ValueError(f"clip_param has min {p.min:g} above max {p.max:g}")
        self.min, self.max = p.min, p.max

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.min, self.max)


@layer("PReLU")
class PReLU(Layer):
    """y = max(x, 0) + a[c] * min(x, 0), c along axis 1. Blob 0: a, (C,), or one number where channel_shared."""

    keeps_shape = True
    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.prelu_param
        if len(bottoms[0]) < 2:
            raise ValueError(f"needs a bottom of two or more axes (axis 1 is the channel), not {len(bottoms[0])}")
        filler = p.filler if p.HasField("filler") else FillerParameter(value=0.25)
        self.add_blob(() if p.channel_shared else (bottoms[0][1],), filler)

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.blob(0))


@layer("Swish")
class Swish(Layer):
    """y = x * sigmoid(beta * x)."""

    keeps_shape = True
    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        self.beta = spec.swish_param.beta

    def forward(self, x: Tensor) -> Tensor:
        if self.beta == 1:
            return F.silu(x)
        return F.silu(x * self.beta) / self.beta if self.beta else x / 2


@layer("Threshold")
class Threshold(Layer):
    """y = 1 where x > threshold, else 0; without a gradient: a backward that comes here is an error, as Caffe's."""

    keeps_shape = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        self.threshold = spec.threshold_param.threshold

    def forward(self, x: Tensor) -> Tensor:
        return Step.apply(x, self.threshold)  # type: ignore[no-untyped-call]


@layer("Exp")
class Exp(Layer):
    """y = base ** (shift + scale * x); base -1 means e."""

    keeps_shape = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.exp_param
        log = logarithm_of(p.base)
        self.scale, self.shift = p.scale * log, p.shift * log

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(affine(x, self.scale, self.shift))


@layer("Log")
class Log(Layer):
    """y = log(shift + scale * x) to the base; base -1 means e."""

    keeps_shape = True
    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.log_param
        if p.base == 1:
            raise ValueError("base 1 has no logarithm; give another base, or -1 for e")
        self.scale, self.shift, self.log = p.scale, p.shift, logarithm_of(p.base)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.log(affine(x, self.scale, self.shift))
        return y if self.log == 1 else y * (1 / self.log)


@layer("Power")
class Power(Layer):
    """y = (shift + scale * x) ** power.

    As Caffe's: where power * scale is 0, y is the constant shift ** power (1 for power 0) and the gradient is 0;
    for powers other than 1 and 2 the gradient is power * scale * y / (shift + scale * x), so nan where that is 0 / 0.
    """

    keeps_shape = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.power_param
        self.power, self.scale, self.shift = p.power, p.scale, p.shift
        self.constant: float | None = None
        if p.power * p.scale == 0:
            with np.errstate(all="ignore"):
                self.constant = float(np.float64(p.shift) ** p.power)
        self.fresh = self.constant is not None or p.power == 2 or (p.power == 1 and (p.scale, p.shift) != (1, 0))

    def forward(self, x: Tensor) -> Tensor:
        if self.constant is not None:
            return Constant.apply(x, self.constant)  # type: ignore[no-untyped-call]
        if self.power == 1:
            return affine(x, self.scale, self.shift)
        if self.power == 2:
            return affine(x, self.scale, self.shift).square()
        return PowerOf.apply(x, self.power, self.scale, self.shift)  # type: ignore[no-untyped-call]


@layer("Dropout")
class Dropout(Layer):
    """TRAIN: y = x * mask / (1 - p), mask 1 with probability 1 - p, else 0; TEST: y = x. p is dropout_ratio.

    `generator` draws the mask, the same for one state in any memory layout; without one torch's default generator does.
    """

    keeps_shape = True
    draws = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        self.ratio = spec.dropout_param.dropout_ratio
        if not 0 <= self.ratio < 1:
            raise ValueError(f"dropout_ratio is {self.ratio:g}; expected 0 or more, and less than 1")
        self.fresh = phase == "TRAIN"

    def forward(self, x: Tensor) -> Tensor:
        if self.phase == "TEST":
            return x
        if self.generator is None:
            return F.dropout(x, self.ratio)
        return x * self.mask(x, self.generator)

    def mask(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """0 or 1 / (1 - p) for every element of x, drawn in row-major order where the generator lives."""
        kept = torch.empty(self.whole(x.shape), dtype=x.dtype, device=generator.device)
        kept.bernoulli_(1 - self.ratio, generator=generator).div_(1 - self.ratio)
        return (kept if self.part is None else self.part.slice(kept)).to(x.device)


# -- formulas --------------------------------------------------------------------------------------------------------


def affine(x: Tensor, scale: float, shift: float) -> Tensor:
    """shift + scale * x in one pass over memory; x itself where that is x."""
    if shift == 0:
        return x if scale == 1 else x * scale
    return torch.rsub(x, shift, alpha=-scale)


def logarithm_of(base: float) -> float:
    """log(base) of an Exp or Log layer, where -1 stands for e."""
    if base != -1 and not 0 < base < math.inf:
        raise ValueError(f"base is {base:g}; expected a number above 0, or -1 for e")
    return 1.0 if base == -1 else math.log(base)


class Constant(torch.autograd.Function):
    """The same number for every x, with a gradient of zeros (not None: what lies below still gets its update)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: float) -> Tensor:
        return torch.full_like(x, value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return torch.zeros_like(grads[0]), None


class Step(torch.autograd.Function):
    """1 where x > threshold, else 0; no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: float) -> Tensor:
        return (x > threshold).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        raise ValueError(
            "Threshold has no gradient; write propagate_down: false, or set lr_mult: 0 in all layers below"
        )


class PowerOf(torch.autograd.Function):
    """(shift + scale * x) ** power, its gradient from y: nan where both y and its base are 0, as Caffe's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, power: float, scale: float, shift: float) -> Tensor:
        y = affine(x, scale, shift).pow(power)
        ctx.save_for_backward(x, y)
        ctx.power, ctx.scale, ctx.shift = power, scale, shift
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        x, y = ctx.saved_tensors
        ratio = y / affine(x, ctx.scale, ctx.shift)
        return grads[0] * (ratio * (ctx.power * ctx.scale)), None, None, None
