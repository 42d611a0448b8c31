"""Pooling and spatial pyramid pooling, with Caffe's windows at the edges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ops.layers.registry import Counts, Layer, Phase, Shape, layer, text
from ops.proto.caffe_pb2 import LayerParameter, PoolingParameter

Method = Literal["MAX", "AVE", "STOCHASTIC"]
LEAST = torch.finfo(torch.float32).min  # what Caffe's maximum starts from
METHODS: dict[int, Method] = {0: "MAX", 1: "AVE", 2: "STOCHASTIC"}  # PoolMethod of both messages
Pair = tuple[int, int]


@dataclass(frozen=True)
class Pool:
    """A method with its windows, (height, width) each; windows at the far edges may be cut (`ceil`) or are left out."""

    method: Method
    kernel: Pair
    stride: Pair = (1, 1)
    pad: Pair = (0, 0)
    ceil: bool = True

    def counts(self, height: int, width: int) -> Pair:
        """Windows along each axis, as Caffe: where there is padding, none starts beyond the image."""
        sizes = (height, width)
        counts = []
        for size, kernel, stride, pad in zip(sizes, self.kernel, self.stride, self.pad, strict=True):
            room = size + 2 * pad - kernel
            count = (-(-room // stride) if self.ceil else room // stride) + 1
            if any(self.pad) and (count - 1) * stride >= size + pad:
                count -= 1
            counts.append(count)
        if min(counts) < 1:
            raise ValueError(
                f"a window of {text(self.kernel)} does not fit into a bottom of {text(sizes)} with pad "
                f"{text(self.pad)}: give a larger input or a smaller window"
            )
        return counts[0], counts[1]


def pool(x: Tensor, how: Pool, layer: Layer | None = None) -> Tensor:
    """(N, C, H, W) -> (N, C, H', W'); `layer` knows the phase, and the generator of STOCHASTIC's draws."""
    counts = how.counts(x.shape[2], x.shape[3])
    if how.method == "STOCHASTIC":
        return stochastic(x, how, counts, layer)
    if not as_torch(x, how, counts):
        return maximum(x, how, counts)[0] if how.method == "MAX" else average(x, how, counts)
    if how.method == "MAX":
        return F.max_pool2d(x, how.kernel, how.stride, how.pad, ceil_mode=how.ceil)
    if counts == (1, 1) and how.kernel == tuple(x.shape[2:]) and not any(how.pad):
        return x.mean((2, 3), keepdim=True)
    return F.avg_pool2d(x, how.kernel, how.stride, how.pad, ceil_mode=how.ceil)


def as_torch(x: Tensor, how: Pool, counts: Pair) -> bool:
    """Whether torch's own windows are these: it wants small pads, and leaves out windows that start outside."""
    axes = zip(x.shape[2:], how.kernel, how.stride, how.pad, counts, strict=True)
    return all(2 * p <= k and (n - 1) * s < size + p and size + 2 * p >= k for size, k, s, p, n in axes)


def padded(x: Tensor, how: Pool, counts: Pair, value: float) -> Tensor:
    """The image with margins so wide that exactly the windows of `counts` fit."""
    (top, left), (height, width) = how.pad, x.shape[2:]
    bottom, right = (
        (n - 1) * s + k - size - p
        for n, s, k, size, p in zip(counts, how.stride, how.kernel, (height, width), how.pad, strict=True)
    )
    return F.pad(x, (left, right, top, bottom), value=value)


def maximum(x: Tensor, how: Pool, counts: Pair) -> tuple[Tensor, Tensor]:
    """Maxima, and each one's place row * W + column in its channel; -1 and the least float for an empty window."""
    wide = padded(x, how, counts, LEAST)
    y, place = F.max_pool2d(wide, how.kernel, how.stride, return_indices=True)
    row, column = place // wide.shape[3] - how.pad[0], place % wide.shape[3] - how.pad[1]
    inside = (row >= 0) & (row < x.shape[2]) & (column >= 0) & (column < x.shape[3])
    return y, torch.where(inside, row * x.shape[3] + column, -1)


def average(x: Tensor, how: Pool, counts: Pair) -> Tensor:
    """Sums by Caffe's divisor: the cells of the window up to the far end of the padding."""
    sums = F.avg_pool2d(padded(x, how, counts, 0), how.kernel, how.stride, divisor_override=1)
    rows, columns = (
        torch.arange(n, device=x.device, dtype=x.dtype) * s - p
        for n, s, p in zip(counts, how.stride, how.pad, strict=True)
    )
    cells = [
        (start + k).clamp(max=size + p) - start
        for start, k, size, p in zip((rows, columns), how.kernel, x.shape[2:], how.pad, strict=True)
    ]
    return sums / (cells[0].unsqueeze(1) * cells[1])


def stochastic(x: Tensor, how: Pool, counts: Pair, layer: Layer | None) -> Tensor:
    """TRAIN: an element, with a probability in proportion to it; TEST: the mean under these probabilities."""
    wide = padded(x, how, counts, 0)
    windows = wide.unfold(2, how.kernel[0], how.stride[0]).unfold(3, how.kernel[1], how.stride[1]).flatten(4)
    sums = windows.sum(4, keepdim=True)
    if layer is None or layer.phase == "TEST":
        return ((windows * windows).sum(4) / sums.squeeze(4).clamp(min=torch.finfo(x.dtype).tiny)).to(x.dtype)
    shape = (layer.whole(x.shape)[0], *sums.shape[1:])
    draw = torch.rand(shape, device=x.device, dtype=x.dtype, generator=layer.generator)
    draw = draw if layer.part is None else layer.part.slice(draw)
    below = windows.detach().cumsum(4) < draw * sums.detach()
    return windows.gather(4, below.sum(4, keepdim=True).clamp(max=windows.shape[4] - 1)).squeeze(4)


class Chancy(Layer):
    """A pooling that may draw."""

    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        if len(bottoms[0]) != 4:
            raise ValueError(f"a bottom of {text(bottoms[0])} has {len(bottoms[0])} axes, expected 4 (N x C x H x W)")


@layer("Pooling")
class Pooling(Chancy):
    """Maxima or means (or a draw) of windows: (N, C, H, W) -> (N, C, H', W').

    As Caffe: counts are rounded up (round_mode FLOOR: down) and windows are cut at the far edge; an average divides by
    the cells up to the end of the padding. A second top of MAX holds each maximum's place in its channel, as floats.
    """

    tops: ClassVar[Counts] = (1, 2)

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.pooling_param
        self.everything = p.global_pooling
        self.how = Pool(
            METHODS[p.pool],
            kernel=(1, 1) if self.everything else pair(p, "kernel_size", "kernel"),
            stride=pair(p, "stride", "stride"),
            pad=pair(p, "pad", "pad"),
            ceil=p.round_mode == PoolingParameter.CEIL,
        )
        self.draws = self.how.method == "STOCHASTIC"
        check(p, self.how)
        if len(spec.top) == 2 and self.how.method != "MAX":
            raise ValueError(f"a second top (places of the maxima) needs pool: MAX, found {self.how.method}")

    def shapes(self, bottoms: list[Shape]) -> list[Shape]:
        batch, channels, height, width = bottoms[0]
        counts = (1, 1) if self.everything else self.how.counts(height, width)
        return [(batch, channels, *counts)] * max(1, len(self.spec.top))

    def forward(self, x: Tensor) -> Any:
        how = self.how
        if self.everything:
            how = Pool(how.method, (x.shape[2], x.shape[3]))
        if len(self.spec.top) == 2:
            y, place = maximum(x, how, how.counts(x.shape[2], x.shape[3]))
            return y, place.to(x.dtype)
        return pool(x, how, self)


def pair(p: PoolingParameter, field: str, prefix: str) -> Pair:
    """(height, width) of a side that is given once, or as _h and _w."""
    h, w = f"{prefix}_h", f"{prefix}_w"
    if not p.HasField(h) and not p.HasField(w):
        if field == "kernel_size" and not p.HasField("kernel_size"):
            raise ValueError("has no kernel_size; give kernel_size, or kernel_h and kernel_w, or global_pooling: true")
        return getattr(p, field), getattr(p, field)
    if p.HasField(field):
        raise ValueError(f"gives both {field} and {h}/{w}; give one of them")
    if not (p.HasField(h) and p.HasField(w)):
        raise ValueError(f"gives only one of {h} and {w}; give both")
    return getattr(p, h), getattr(p, w)


def check(p: PoolingParameter, how: Pool) -> None:
    """What Caffe refuses."""
    if p.global_pooling and (p.HasField("kernel_size") or p.HasField("kernel_h") or p.HasField("kernel_w")):
        raise ValueError("global_pooling: true takes the whole bottom; leave the kernel out")
    if p.global_pooling and (any(how.pad) or how.stride != (1, 1)):
        raise ValueError("global_pooling: true goes with pad 0 and stride 1 only")
    if min(how.kernel) < 1 or min(how.stride) < 1:
        raise ValueError(f"kernel {text(how.kernel)}, stride {text(how.stride)}: expected 1 or more")
    if any(how.pad) and how.method == "STOCHASTIC":
        raise ValueError("pad goes with MAX and AVE only, found STOCHASTIC")
    if any(p >= k for p, k in zip(how.pad, how.kernel, strict=True)) and any(how.pad):
        raise ValueError(f"pad {text(how.pad)} must be smaller than the kernel {text(how.kernel)}")


@layer("SPP")
class SPP(Chancy):
    """Poolings into 1, 2 x 2, 4 x 4, ... bins, side by side: (N, C, H, W) -> (N, C (4 ** pyramid_height - 1) / 3).

    As Caffe: a level of b bins has windows of ceil(size / b), as far apart, and pads (window * b - size + 1) // 2;
    one level alone stays (N, C, 1, 1).
    """

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.spp_param
        if p.pyramid_height < 1:
            raise ValueError(f"pyramid_height {p.pyramid_height}: expected 1 or more")
        self.levels, self.method = p.pyramid_height, METHODS[p.pool]
        self.draws = self.method == "STOCHASTIC"

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        for level in range(self.levels):
            how = self.at(level, (x.shape[2], x.shape[3]))
            levels.append(pool(x, how, self))
        return torch.cat([level.flatten(1) for level in levels], 1) if len(levels) > 1 else levels[0]

    def at(self, level: int, sizes: Pair) -> Pool:
        """The windows of a level; ValueError where the bottom has too few pixels for its bins."""
        bins = 2**level
        kernel = (math.ceil(sizes[0] / bins), math.ceil(sizes[1] / bins))
        pad = ((kernel[0] * bins - sizes[0] + 1) // 2, (kernel[1] * bins - sizes[1] + 1) // 2)
        if pad[0] >= kernel[0] or pad[1] >= kernel[1]:
            raise ValueError(
                f"a bottom of {text(sizes)} cannot be cut into {bins} x {bins} bins (pad {text(pad)}, window "
                f"{text(kernel)}); give a lower pyramid_height"
            )
        return Pool(self.method, kernel, kernel, pad)
