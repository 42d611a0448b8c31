"""Layers that normalize: across neighbours (LRN), a batch (BatchNorm), a plane (MVN), or a vector (Normalize)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ops.layers.registry import Layer, Phase, Shape, layer, text
from ops.parallel import Part
from ops.proto.caffe_pb2 import FillerParameter, LayerParameter, LRNParameter


def with_axes(shape: Shape, axes: int, names: str) -> None:
    if len(shape) != axes:
        raise ValueError(f"a bottom of {text(shape)} has {len(shape)} axes, expected {axes} ({names})")


# -- LRN -------------------------------------------------------------------------------------------------------------


@layer("LRN")
class LRN(Layer):
    """Each element by a power of the sum of squares around it: (N, C, H, W) -> the same.

    ACROSS_CHANNELS: y = x * (k + alpha / n * sum of x ** 2 over the n channels around) ** -beta, zero beyond the ends.
    WITHIN_CHANNEL: y = x * (1 + alpha * mean of x ** 2 over the n x n pixels around) ** -beta; the mean divides by
    n * n at the borders too, and k is not looked at, as in Caffe's own engine.
    """

    keeps_shape = True
    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.lrn_param
        with_axes(bottoms[0], 4, "N x C x H x W")
        if p.local_size % 2 == 0:
            raise ValueError(f"local_size {p.local_size}: expected an odd number, so that it has a middle")
        self.size, self.alpha, self.beta, self.k = p.local_size, p.alpha, p.beta, p.k
        self.across = p.norm_region == LRNParameter.ACROSS_CHANNELS

    def forward(self, x: Tensor) -> Tensor:
        if self.across:
            return Across.apply(x, self.size, self.alpha / self.size, self.beta, self.k)  # type: ignore[no-untyped-call]
        means = F.avg_pool2d(x * x, self.size, 1, self.size // 2)
        return x * (1 + self.alpha * means) ** -self.beta


class Across(torch.autograd.Function):
    """x * scale ** -beta with scale = k + share * window sums of x ** 2.

    torch's own goes through a pooling over a padded copy, whose gradient costs more than the convolutions around it;
    here a window sum is a few additions of shifted channels, in either memory format.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, share: float, beta: float, k: float) -> Tensor:
        scale = window_sums(x * x, size).mul_(share).add_(k)
        factor = power(scale, beta)
        ctx.save_for_backward(x, scale, factor)
        ctx.constants = size, share, beta
        return x * factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, factor = ctx.saved_tensors
        size, share, beta = ctx.constants
        if torch.is_grad_enabled():  # a gradient of the gradient: by autograd
            y = x * (window_sums(x * x, size) * share + (scale - window_sums(x * x, size) * share).detach()) ** -beta
            (dx,) = torch.autograd.grad(y, x, grad, create_graph=True)
            return dx, None, None, None, None
        straight = grad * factor
        around = window_sums((straight * x).div_(scale), size).mul_(x)
        return straight.sub_(around, alpha=2 * share * beta), None, None, None, None


def window_sums(x: Tensor, size: int) -> Tensor:
    """The sum over the `size` channels around each; fewer at the ends."""
    sums = x.clone()
    for step in range(1, min(size // 2, x.shape[1] - 1) + 1):
        sums[:, step:] += x[:, :-step]
        sums[:, :-step] += x[:, step:]
    return sums


def power(scale: Tensor, beta: float) -> Tensor:
    """scale ** -beta; the usual exponents by square roots, which take a tenth of the time of a power."""
    if beta == 0.75:
        root = scale.rsqrt()
        return root.sqrt().mul_(root)
    if beta == 0.5:
        return scale.rsqrt()
    return scale**-beta


# -- BatchNorm -------------------------------------------------------------------------------------------------------


@layer("BatchNorm")
class BatchNorm(Layer):
    """y = (x - mean) / sqrt(variance + eps), a channel (axis 1) at a time: (N, C, ..) -> the same.

    TRAIN, or use_global_stats: false: mean and (biased) variance of the batch, which also go into the statistics,
    in the forward, as Caffe does: blob 0 sums of means, blob 1 sums of unbiased variances, blob 2 their number, all
    faded by moving_average_fraction. TEST, or use_global_stats: true: blob 0 and 1 over blob 2; 0 where that is 0.
    """

    keeps_shape = True
    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.batch_norm_param
        if len(bottoms[0]) < 2:
            raise ValueError(f"a bottom of {text(bottoms[0])} has no channels; expected 2 axes or more (N x C x ..)")
        self.eps, self.fraction = p.eps, p.moving_average_fraction
        self.use_global = p.use_global_stats if p.HasField("use_global_stats") else phase == "TEST"
        for shape in ((bottoms[0][1],), (bottoms[0][1],), (1,)):
            self.add_blob(shape, statistic=True)

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """`weight` and `bias`, a number a channel, are those of a Scale that runs along."""
        if self.use_global:
            mean, variance = self.statistics()
            return torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, self.eps, CUDNN)
        if math.prod(self.whole(x.shape)) == x.shape[1]:  # one value a channel: it is its own mean
            self.remember(x, x.detach().flatten(), torch.zeros_like(self.blob1))
            y = x - x
            return y if weight is None else affine(y, weight, bias)
        if self.part is not None and self.part.synchronize:
            return self.over_all(x, self.part, weight, bias)
        mean, variance = torch.zeros_like(self.blob0), torch.zeros_like(self.blob1)
        y = torch.batch_norm(x, weight, bias, mean, variance, True, 1.0, self.eps, CUDNN)
        self.remember(x, mean, variance)
        return y

    def over_all(self, x: Tensor, part: Part, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The same with the statistics of the whole batch, of which every process has a part."""
        axes = [axis for axis in range(x.dim()) if axis != 1]
        count = math.prod(part.shapes[0]) // x.shape[1]
        mean = part.group.total(x.sum(axes, keepdim=True)) / count
        centred = x - mean
        variance = part.group.total((centred * centred).sum(axes, keepdim=True)) / count
        unbiased = variance.detach().flatten() * (count / max(count - 1, 1))
        self.remember(x, mean.detach().flatten(), unbiased)
        y = centred * (variance + self.eps).rsqrt()
        return y if weight is None else affine(y, weight, bias)

    blob0: Tensor
    blob1: Tensor
    blob2: Tensor

    def statistics(self) -> tuple[Tensor, Tensor]:
        """The mean and the variance that the blobs stand for."""
        share = torch.where(self.blob2 == 0, 0.0, 1 / self.blob2)
        return self.blob(0) * share, self.blob(1) * share

    @torch.no_grad()
    def remember(self, x: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Add a batch to the statistics; torch's `variance` is unbiased, as Caffe wants it."""
        if x.is_meta:
            return
        self.blob0.mul_(self.fraction).add_(mean)
        self.blob1.mul_(self.fraction).add_(variance)
        self.blob2.mul_(self.fraction).add_(1)


CUDNN = True  # torch may use cuDNN where it has it


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A factor and an offset for each channel."""
    shape = (-1, *[1] * (x.dim() - 2))
    y = x * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


# -- MVN and Normalize -----------------------------------------------------------------------------------------------


@layer("MVN")
class MVN(Layer):
    """(x - mean) / (standard deviation + eps) of each plane, or of each example (across_channels): (N, C, H, W).

    As Caffe: the deviation is the biased one, and eps is added to it, not to the variance; normalize_variance: false
    only takes the mean off. The gradient is Caffe's, which differs from the formula's where eps counts.
    """

    keeps_shape = True
    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.mvn_param
        if len(bottoms[0]) > 4:
            raise ValueError(f"a bottom of {text(bottoms[0])} has {len(bottoms[0])} axes, at most 4 go")
        self.variance, self.across, self.eps = p.normalize_variance, p.across_channels, p.eps

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(1 if self.across else 2, x.dim()))
        if not axes:  # planes of one pixel
            return x - x if not self.variance else (x - x) / self.eps
        centred = x - x.mean(axes, keepdim=True)
        if not self.variance:
            return centred
        variance = (centred * centred).mean(axes, keepdim=True)
        divisor = (variance.sqrt() + self.eps).detach()
        # Caffe's gradient takes the divisor, eps and all, for the deviation.
        return centred / (divisor + (variance - variance.detach()) / (2 * divisor))


@layer("Normalize")
class Normalize(Layer):
    """y = scale * x / sqrt(sum of x ** 2 + eps), over C x H x W (across_spatial) or over C: (N, C, ..) -> the same.

    From SSD's fork. Blob: scale, one number (channel_shared) or [C]; it starts at 1 where scale_filler is absent.
    """

    keeps_shape = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.norm_param
        if len(bottoms[0]) < 2:
            raise ValueError(f"a bottom of {text(bottoms[0])} has no channels; expected 2 axes or more (N x C x ..)")
        self.everywhere, self.eps = p.across_spatial, p.eps
        filler = p.scale_filler if p.HasField("scale_filler") else FillerParameter(type="constant", value=1)
        self.add_blob(() if p.channel_shared else (bottoms[0][1],), filler)

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(1, x.dim())) if self.everywhere else (1,)
        scale = self.blob(0)
        if scale.dim():
            scale = scale.reshape(-1, *[1] * (x.dim() - 2))
        return x * (((x * x).sum(axes, keepdim=True) + self.eps).rsqrt() * scale)
