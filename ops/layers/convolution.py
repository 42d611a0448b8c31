"""Convolution, its transpose, and their depthwise form, over any number of spatial axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ops.layers.registry import Counts, Layer, Phase, Shape, axis_of, layer, text
from ops.layers.windows import Windows, geometry
from ops.proto.caffe_pb2 import LayerParameter

FORWARD: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class Convolving(Layer):
    """What convolution and deconvolution share: bottoms of one shape under the same weights.

    Axes before `axis` are batch, `axis` the channels, those after it spatial.
    """

    bottoms: ClassVar[Counts] = (1, None)
    tops: ClassVar[Counts] = (1, None)
    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p, first = spec.convolution_param, bottoms[0]
        if any(shape != first for shape in bottoms):
            raise ValueError(f"bottoms of different shapes: {', '.join(map(text, bottoms))}; all must be the same")
        if len(spec.top) != len(bottoms):
            raise ValueError(f"has {len(bottoms)} bottoms and {len(spec.top)} tops, expected as many tops as bottoms")
        if not 0 < p.num_output < 2**31:
            raise ValueError(f"num_output {p.num_output}: expected 1 or more")
        self.axis = axis_of(p.axis, len(first))
        self.axes = len(first) - self.axis - 1
        self.channels = first[self.axis]
        self.group = self.groups(spec)
        for count, name in ((self.channels, "bottom's channels"), (p.num_output, "num_output")):
            if self.group < 1 or count % self.group:
                raise ValueError(f"group {self.group} does not divide the {name} ({count})")
        self.windows = geometry(p, self.axes)
        self.add_blob(self.weight_shape(p.num_output), p.weight_filler)
        if p.bias_term:
            self.add_blob((p.num_output,), p.bias_filler)
        self.outputs = p.num_output

    def groups(self, spec: LayerParameter) -> int:
        return spec.convolution_param.group

    def weight_shape(self, outputs: int) -> Shape:
        raise AssertionError("a convolution says what its weights are")

    def sizes(self, spatial: Shape) -> Shape:
        raise AssertionError("a convolution says what comes out")

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise AssertionError("a convolution says what it computes")

    def shapes(self, bottoms: list[Shape]) -> list[Shape]:
        first = bottoms[0]
        return [(*first[: self.axis], self.outputs, *self.sizes(first[self.axis + 1 :]))] * len(bottoms)

    def forward(self, *bottoms: Tensor) -> Any:
        weight, bias = self.blob(0), self.blob(1) if len(self.fillers) > 1 else None
        tops = tuple(self.one(x, weight, bias) for x in bottoms)
        return tops if len(tops) > 1 else tops[0]

    def one(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A bottom's top; to torch there is one batch axis and at least one spatial axis."""
        if x.shape[self.axis] != self.channels:
            raise ValueError(
                f"a bottom of {text(tuple(x.shape))} has {x.shape[self.axis]} channels, its weights are for "
                f"{self.channels}"
            )
        if self.axis == 1 and self.axes:
            return self.convolve(x, weight, bias)
        batch, rest = x.shape[: self.axis], x.shape[self.axis :]
        flat = x.reshape(math.prod(batch), *rest, *() if self.axes else (1,))
        y = self.convolve(flat, weight if self.axes else weight.unsqueeze(-1), bias)
        return y.reshape(*batch, *y.shape[1:]) if self.axes else y.reshape(*batch, y.shape[1])


@layer("Convolution")
class Convolution(Convolving):
    """y[o] = b[o] + sum over c and the taps of W[o, c, tap] * x[c, place * stride - pad + tap * dilation].

    Bottom (batch.., C, spatial..) -> (batch.., num_output, spatial'..) with
    floor((size + 2 pad - (dilation (kernel - 1) + 1)) / stride) + 1 places; no flip of the kernel.
    Blobs: W [num_output, C / group, kernel..], b [num_output].
    """

    def weight_shape(self, outputs: int) -> Shape:
        return (outputs, self.channels // self.group, *self.windows.kernel)

    def sizes(self, spatial: Shape) -> Shape:
        return self.windows.count(spatial)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        w = self.windows
        if self.axes == 0:
            return F.conv1d(x, weight, bias, groups=self.group)
        if self.axes > 3:
            return by_taps(x, weight, bias, w, self.group)
        return FORWARD[self.axes](x, weight, bias, w.stride, w.pad, w.dilation, self.group)


@layer("DepthwiseConvolution", "ConvolutionDepthwise")
class DepthwiseConvolution(Convolution):
    """Convolution with a group for each channel, whatever `group` says (MobileNet forks); the same blob shapes."""

    def groups(self, spec: LayerParameter) -> int:
        return self.channels


@layer("Deconvolution")
class Deconvolution(Convolving):
    """The transpose of a convolution: each element spreads its kernel over the top, overlaps add.

    Bottom (batch.., C, spatial..) -> (batch.., num_output, stride (size - 1) + dilation (kernel - 1) + 1 - 2 pad).
    Blobs: W [C, num_output / group, kernel..], b [num_output].
    """

    def weight_shape(self, outputs: int) -> Shape:
        return (self.channels, outputs // self.group, *self.windows.kernel)

    def sizes(self, spatial: Shape) -> Shape:
        return self.windows.spread(spatial)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        w = self.windows
        if self.axes == 0:
            return F.conv_transpose1d(x, weight, bias, groups=self.group)
        if self.axes > 3:
            return by_taps_transposed(x, weight, bias, w, self.group)
        return TRANSPOSED[self.axes](x, weight, bias, w.stride, w.pad, 0, self.group, w.dilation)


# -- more than three spatial axes: tap by tap ------------------------------------------------------------------------


def taps(w: Windows, counts: Shape) -> list[tuple[Any, Any]]:
    """Every tap of a kernel, and the places in the padded blob that it meets, as indices."""
    axes = [
        [(k, slice(k * d, k * d + s * (n - 1) + 1, s)) for k in range(size)]
        for size, d, s, n in zip(w.kernel, w.dilation, w.stride, counts, strict=True)
    ]
    return [((..., *(k for k, _ in tap)), (..., *(s for _, s in tap))) for tap in itertools.product(*axes)]


def by_taps(x: Tensor, weight: Tensor, bias: Tensor | None, w: Windows, group: int) -> Tensor:
    """A convolution (N, C, spatial..) of any number of axes."""
    counts = w.count(tuple(x.shape[2:]))
    padded = F.pad(x, [p for pad in reversed(w.pad) for p in (pad, pad)])
    y = x.new_zeros(len(x), weight.shape[0], *counts)
    for tap, places in taps(w, counts):
        y = y + mixed(padded[places], weight[tap], group)
    return y if bias is None else y + bias.reshape(-1, *[1] * len(counts))


def by_taps_transposed(x: Tensor, weight: Tensor, bias: Tensor | None, w: Windows, group: int) -> Tensor:
    """A deconvolution (N, C, spatial..) of any number of axes."""
    counts = tuple(x.shape[2:])
    sizes = tuple(s * (n - 1) + e for n, s, e in zip(counts, w.stride, w.extent, strict=True))
    flipped = weight.reshape(group, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    y = x.new_zeros(len(x), len(flipped), *sizes)
    for tap, places in taps(w, counts):
        spread = torch.zeros_like(y)
        spread[places] = mixed(x, flipped[tap], group)
        y = y + spread
    inner: Any = (..., *(slice(p, size - p) for p, size in zip(w.pad, sizes, strict=True)))
    y = y[inner]
    return y if bias is None else y + bias.reshape(-1, *[1] * len(counts))


def mixed(x: Tensor, weight: Tensor, group: int) -> Tensor:
    """(N, C, ..) channels mixed by (outputs, C / group) within their groups."""
    parts = x.reshape(len(x), group, -1, math.prod(x.shape[2:]))
    weights = weight.reshape(group, -1, weight.shape[1])
    return torch.einsum("ngcs,goc->ngos", parts, weights).reshape(len(x), len(weight), *x.shape[2:])
