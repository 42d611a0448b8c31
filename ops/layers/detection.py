"""Layers of detection nets that mainline Caffe never had, as in the forks that published them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

from ops.layers.registry import LARGEST, Layer, Phase, Shape, layer, text
from ops.layers.terms import precise, same_count
from ops.proto.caffe_pb2 import LayerParameter

Region = tuple[int, int, int, int, int]  # number of the map; top, left, height, width in its cells


@layer("SmoothL1Loss")
class SmoothL1Loss(Layer):
    """sum of outside * f(inside * (prediction - target)) / N; f(d) = (sigma d)^2 / 2 near 0, else |d| - 1 / 2 sigma^2.

    Near: |d| < 1 / sigma^2. Bottoms: prediction, target[, inside[, outside]], all of one size; weights default to 1.
    """

    bottoms = (2, 4)
    unlearnable = (2, 3)

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        sigma = spec.smooth_l1_loss_param.sigma
        if not sigma > 0:
            raise ValueError(f"smooth_l1_loss_param.sigma is {sigma:g}; it must be above 0")
        self.near = 1 / sigma**2
        self.check(bottoms)

    def check(self, shapes: list[Shape]) -> None:
        for number, shape in enumerate(shapes[1:], 1):
            same_count(shapes[0], shape, number)

    def forward(self, prediction: Tensor, target: Tensor, *weights: Tensor) -> Tensor:
        self.check([x.shape for x in (prediction, target, *weights)])
        first = precise(prediction)
        second, *factors = (precise(x).reshape(first.shape) for x in (target, *weights))
        if factors:
            first, second = factors[0] * (first - second), torch.zeros_like(first)
        terms = F.smooth_l1_loss(first, second, reduction="none", beta=self.near)
        return (terms * factors[1] if len(factors) > 1 else terms).sum() / self.whole(prediction.shape)[0]


@layer("ROIPooling")
class ROIPooling(Layer):
    """The maximum of each cell of a pooled_h x pooled_w grid over regions of a map.

    Bottoms: maps (N, C, H, W), regions (R, 5): number of the map, x1, y1, x2, y2 in image pixels, ends included; top:
    (R, C, pooled_h, pooled_w). Corners are round(pixel * spatial_scale), halves away from 0; a region is at least 1
    wide; cell i covers columns floor(i w / pooled_w) to ceil((i + 1) w / pooled_w) from its corner, cut to the map (an
    empty one gives 0), rows alike. The gradient goes to the maximum, of equals the first in row-major order.
    """

    bottoms = (2, 2)
    unlearnable = (1,)
    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.roi_pooling_param
        if not (p.pooled_h and p.pooled_w):
            raise ValueError(
                f"roi_pooling_param has pooled_h {p.pooled_h}, pooled_w {p.pooled_w}: both must be above 0"
            )
        self.grid, self.scale = (p.pooled_h, p.pooled_w), p.spatial_scale
        maps, regions = bottoms
        if len(maps) != 4:
            raise ValueError(f"bottom 0 is {text(maps)}, expected maps of 4 axes, N x C x H x W")
        if len(regions) < 2 or regions[1:] != (5, *[1] * (len(regions) - 2)):
            raise ValueError(f"bottom 1 is {text(regions)}, expected regions R x 5: map, x1, y1, x2, y2")

    def shapes(self, bottoms: list[Shape]) -> list[Shape]:
        return [(bottoms[1][0], bottoms[0][1], *self.grid)]

    def forward(self, maps: Tensor, regions: Tensor) -> Tensor:
        found = on_map(precise(regions.detach()).reshape(-1, 5), self.scale)
        for number, *_ in found:
            if not 0 <= number < len(maps):
                raise ValueError(f"a region is of map {number}, but bottom 0 has {len(maps)} maps, counted from 0")
        if not found:
            return maps.new_zeros(0, maps.shape[1], *self.grid)
        return _RegionMaxima.apply(maps, found, self.grid)  # type: ignore[no-untyped-call]


def on_map(regions: Tensor, scale: float) -> list[Region]:
    """Regions in image pixels (R, 5) in cells of the map; the only wait for a GPU."""
    regions = regions.nan_to_num(-1, LARGEST, -LARGEST).clamp(-LARGEST, LARGEST)
    numbers, corners = regions[:, :1].trunc(), round_away(regions[:, 1:] * scale)
    rows = torch.cat([numbers, corners], 1).long().tolist()
    return [(n, y1, x1, max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)) for n, x1, y1, x2, y2 in rows]


def round_away(x: Tensor) -> Tensor:
    """The nearest whole number, halves away from 0, as C's round."""
    whole = x.trunc()
    return torch.where((x - whole).abs() >= 0.5, whole + x.sign(), whole)


class _RegionMaxima(torch.autograd.Function):
    """The maxima of the cells of each region; the gradient is added up where they were found."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, regions: list[Region], grid: tuple[int, int]) -> Tensor:
        last = maps.contiguous(memory_format=torch.channels_last)  # torch pools it ten times as fast
        pooled = [region_maxima(last[region[0] : region[0] + 1], region, grid) for region in regions]
        ctx.save_for_backward(torch.cat([places for _, places in pooled]))
        ctx.regions, ctx.shape = regions, maps.shape
        return torch.cat([values for values, _ in pooled])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        count, channels, height, width = ctx.shape
        numbers = torch.tensor([number for number, *_ in ctx.regions], device=grad.device)
        planes = numbers.view(-1, 1) * channels + torch.arange(channels, device=grad.device)
        index = planes.view(-1, channels, 1, 1) * (height * width) + places
        empty = places < 0
        dx = grad.new_zeros(count * channels * height * width)
        dx.scatter_add_(0, index.masked_fill_(empty, 0).reshape(-1), grad.masked_fill(empty, 0).reshape(-1))
        return dx.view(ctx.shape), None, None


def region_maxima(plane: Tensor, region: Region, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Maxima (1, C, rows, columns) of the cells of a region of its map (1, C, H, W), and where they are: y * W + x.

    Empty cells: 0, at -1. torch's adaptive pooling has the same cells, but knows no region that leaves the map.
    """
    _, top, left, height, width = region
    high, wide = plane.shape[2:]
    if 0 <= top <= high - height and 0 <= left <= wide - width:
        part = plane[:, :, top : top + height, left : left + width]
        values, places = F.adaptive_max_pool2d(part, grid, return_indices=True)
        rows = places.div(width, rounding_mode="floor")
        return values, places.add_(rows.mul_(wide - width)).add_(top * wide + left)
    values = plane.new_zeros(*plane.shape[:2], *grid)
    places = torch.full(values.shape, -1, device=plane.device)
    for i, (above, below) in enumerate(cells(top, height, grid[0], high)):
        for j, (before, behind) in enumerate(cells(left, width, grid[1], wide)):
            if above < below and before < behind:
                part = plane[:, :, above:below, before:behind].flatten(2)
                values[..., i, j], place = part.max(2)
                rows = place.div(behind - before, rounding_mode="floor")
                places[..., i, j] = (above + rows) * wide + before + place - rows * (behind - before)
    return values, places


def cells(start: int, span: int, parts: int, size: int) -> list[tuple[int, int]]:
    """Where the cells of a region begin and end (end excluded) on an axis of `size`."""
    bounds = [(start + i * span // parts, start - (-(i + 1) * span // parts)) for i in range(parts)]
    return [(min(max(begin, 0), size), min(max(end, 0), size)) for begin, end in bounds]
