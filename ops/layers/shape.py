"""Layers that move numbers and compute none: views where they can be, else copies."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ops.layers.registry import Layer, Phase, Shape, axis_of, layer, text
from ops.layers.windows import geometry
from ops.proto.caffe_pb2 import LayerParameter


def refuse_inplace(spec: LayerParameter) -> None:
    """A layer whose top may not have its bottom's name (as Caffe's check)."""
    if spec.top and spec.top[0] in spec.bottom:
        raise ValueError(f"cannot work in place: give the top another name than {spec.top[0]!r}")


@layer("Split")
class Split(Layer):
    """Every top is the bottom; gradients add up."""

    keeps_shape = True
    tops = (1, None)

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        refuse_inplace(spec)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x,) * len(self.spec.top)


@layer("Flatten")
class Flatten(Layer):
    """The axes `axis` to `end_axis`, both included, become one."""

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        refuse_inplace(spec)
        p = spec.flatten_param
        self.first = axis_of(p.axis, len(bottoms[0]))
        self.last = axis_of(p.end_axis, len(bottoms[0]), "end_axis")
        if self.first > self.last:
            raise ValueError(f"axis {p.axis} comes after end_axis {p.end_axis} in a bottom of {text(bottoms[0])}")

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(self.first, self.last)


@layer("Permute")
class Permute(Layer):
    """Axis i of the top is axis order[i] of the bottom; axes that `order` does not name follow in their old order."""

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        named = list(spec.permute_param.order)
        rank = len(bottoms[0])
        if len(set(named)) < len(named) or any(axis >= rank for axis in named):
            raise ValueError(f"order {named} must name axes of a bottom of {rank} axes, 0 to {rank - 1}, each once")
        self.order = named + [axis for axis in range(rank) if axis not in named]

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


@layer("Tile")
class Tile(Layer):
    """The block from `axis` on, `tiles` times one after another: a b -> a b a b."""

    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.tile_param
        if p.tiles < 1:
            raise ValueError(f"tiles is {p.tiles or 'missing'}; expected 1 or more")
        axis = axis_of(p.axis, len(bottoms[0]))
        self.repeats = [p.tiles if at == axis else 1 for at in range(len(bottoms[0]))]

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(self.repeats)


@layer("Concat")
class Concat(Layer):
    """The bottoms one after another along `axis` (or the older concat_dim); all other sizes are equal."""

    bottoms = (1, None)

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.concat_param
        old = p.concat_dim if p.HasField("concat_dim") else None
        self.axis = either_axis(p.axis if p.HasField("axis") else None, old, "concat_dim", len(bottoms[0]))
        for number, shape in enumerate(bottoms[1:], 1):
            if without(shape, self.axis) != without(bottoms[0], self.axis):
                raise ValueError(
                    f"bottom {number} of {text(shape)} does not fit bottom 0 of {text(bottoms[0])}: "
                    f"all sizes but that of axis {self.axis} must be equal"
                )
        self.fresh = len(bottoms) > 1

    def shapes(self, bottoms: list[Shape]) -> list[Shape]:
        total = sum(shape[self.axis] for shape in bottoms)
        return [(*bottoms[0][: self.axis], total, *bottoms[0][self.axis + 1 :])]

    def forward(self, *bottoms: Tensor) -> Tensor:
        return torch.cat(bottoms, self.axis) if len(bottoms) > 1 else bottoms[0]


@layer("Slice")
class Slice(Layer):
    """The bottom cut along `axis` (or the older slice_dim) before each slice_point, or into equal parts."""

    tops = (1, None)

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.slice_param
        old = p.slice_dim if p.HasField("slice_dim") else None
        self.axis = either_axis(p.axis if p.HasField("axis") else None, old, "slice_dim", len(bottoms[0]))
        self.points, self.count = list(p.slice_point), len(spec.top)
        if self.points and len(self.points) != self.count - 1:
            raise ValueError(f"{self.count} tops need {self.count - 1} slice_point, found {len(self.points)}")
        self.sizes(bottoms[0])

    def sizes(self, shape: Shape) -> list[int]:
        """The size of every top along the axis."""
        whole = shape[self.axis]
        if not self.points:
            if whole % self.count:
                raise ValueError(f"axis {self.axis} of {text(shape)} cannot be cut into {self.count} equal parts")
            return [whole // self.count] * self.count
        ends = [0, *self.points, whole]
        sizes = [end - start for start, end in itertools.pairwise(ends)]
        if min(sizes) < 1:
            raise ValueError(f"slice_point {self.points} must rise from above 0 to below {whole} (of {text(shape)})")
        return sizes

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(x, self.sizes(tuple(x.shape)), self.axis) if self.count > 1 else (x,)


@layer("Reshape")
class Reshape(Layer):
    """The axes [axis, axis + num_axes) are replaced by shape's; the numbers keep their order.

    In shape, 0 copies the bottom's size at that place counted from `axis`, and one -1 takes what is left. num_axes -1:
    all that follow; a negative `axis` counts from behind the last (-1: new axes after it).
    """

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        refuse_inplace(spec)
        p, rank = spec.reshape_param, len(bottoms[0])
        self.dims = tuple(p.shape.dim)
        if self.dims.count(-1) > 1 or min(self.dims, default=0) < -1:
            raise ValueError(f"shape {list(self.dims)} must have sizes of 0 (copied) or more, and at most one -1")
        self.start = p.axis if p.axis >= 0 else rank + 1 + p.axis
        if not 0 <= self.start <= rank:
            raise ValueError(f"axis {p.axis} is outside a bottom of {text(bottoms[0])}: {-rank - 1} to {rank} go")
        if p.num_axes < -1:
            raise ValueError(f"num_axes is {p.num_axes}; expected 0 or more, or -1 for all that follow `axis`")
        self.end = rank if p.num_axes == -1 else self.start + p.num_axes
        if self.end > rank:
            raise ValueError(
                f"axis {p.axis} and num_axes {p.num_axes} reach past the {rank} axes of {text(bottoms[0])}"
            )
        self.target(bottoms[0])

    def target(self, shape: Shape) -> Shape:
        """The shape of the top for a bottom of `shape`."""
        dims = list(self.dims)
        for place, size in enumerate(dims):
            if size == 0 and self.start + place >= len(shape):
                raise ValueError(f"shape {dims} copies axis {self.start + place} of a bottom of {text(shape)}")
            dims[place] = shape[self.start + place] if size == 0 else size
        target = [*shape[: self.start], *dims, *shape[self.end :]]
        if -1 in dims:
            target[self.start + dims.index(-1)] = left_over(shape, target)
        if math.prod(target) != math.prod(shape):
            raise ValueError(f"a bottom of {text(shape)} does not fill a top of {text(tuple(target))}")
        return tuple(target)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(self.target(tuple(x.shape)))


@layer("Crop")
class Crop(Layer):
    """The part of bottom 0 that has bottom 1's sizes along the axes from `axis` on, and starts at `offset`.

    offset: none (0), one for all, or one an axis. Bottom 1 gives only its shape.
    """

    bottoms = (2, 2)
    unlearnable = (1,)

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p, rank = spec.crop_param, len(bottoms[0])
        self.axis = axis_of(p.axis, rank)
        offsets, cropped = list(p.offset) or [0], rank - self.axis
        if len(offsets) not in (1, cropped):
            raise ValueError(
                f"has {len(offsets)} offset; expected none, 1, or {cropped} (one an axis from {p.axis} on)"
            )
        self.offsets = offsets * cropped if len(offsets) == 1 else offsets
        self.window(*bottoms)

    def window(self, shape: Shape, like: Shape) -> tuple[slice, ...]:
        """What to take along every axis."""
        if len(like) < len(shape):
            raise ValueError(f"bottom 1 of {text(like)} has fewer axes than bottom 0 of {text(shape)}")
        window = [slice(None)] * self.axis
        for axis, start in enumerate(self.offsets, self.axis):
            if start + like[axis] > shape[axis]:
                raise ValueError(
                    f"bottom 1 of {text(like)} at offset {start} reaches past axis {axis} of bottom 0 of {text(shape)}"
                )
            window.append(slice(start, start + like[axis]))
        return tuple(window)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        return x[self.window(tuple(x.shape), tuple(like.shape))]


@layer("BatchReindex")
class BatchReindex(Layer):
    """Row i of the top is row int(b1[i]) of bottom 0; rows may come twice, or not at all."""

    bottoms = (2, 2)
    unlearnable = (1,)
    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        rows_of(bottoms[0])
        if len(bottoms[1]) != 1:
            raise ValueError(f"bottom 1 lists rows and must have one axis, not the {text(bottoms[1])} it has")

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        index = rows.long()
        try:
            return x.index_select(0, index)
        except IndexError:
            wrong = index[(index < 0) | (index >= len(x))].tolist()
            raise ValueError(
                f"row {wrong[0]} is outside the {len(x)} rows of bottom 0 ({text(tuple(x.shape))})"
            ) from None


@layer("Filter")
class Filter(Layer):
    """The rows of every bottom but the last where the last, one number a row, is not 0; maybe none.

    How many rows there are is known only from the numbers: as Caffe's, the shapes are told with all of them.
    """

    bottoms = (2, None)
    tops = (1, None)
    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        *items, selector = bottoms
        if len(spec.top) != len(items):
            raise ValueError(f"has {len(spec.top)} tops, expected {len(items)}: one a bottom but the last")
        if rows_of(selector) != math.prod(selector):
            raise ValueError(f"the last bottom selects rows and must have one number a row, not be {text(selector)}")
        for number, shape in enumerate(items):
            if rows_of(shape) != selector[0]:
                raise ValueError(
                    f"bottom {number} of {text(shape)} and the selector of {text(selector)} differ in rows (axis 0)"
                )

    def shapes(self, bottoms: list[Shape]) -> list[Shape]:
        return list(bottoms[:-1])

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        rows = bottoms[-1].reshape(-1).nonzero().reshape(-1)
        return tuple(bottom.index_select(0, rows) for bottom in bottoms[:-1])


@layer("Im2col")
class Im2col(Layer):
    """Every window of convolution_param as a column: (..., C, sizes) -> (..., C * taps, windows an axis).

    Any number of spatial axes; the new channels are ordered by old channel, then by the taps, row-major.
    """

    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p, rank = spec.convolution_param, len(bottoms[0])
        self.axis = axis_of(p.axis, rank)
        self.spatial = rank - self.axis - 1
        if self.spatial < 1:
            raise ValueError(f"axis {p.axis} leaves no spatial axis in a bottom of {text(bottoms[0])}")
        self.windows = geometry(p, self.spatial)
        self.windows.count(bottoms[0][self.axis + 1 :])

    def forward(self, x: Tensor) -> Tensor:
        shape, w = tuple(x.shape), self.windows
        counts = w.count(shape[self.axis + 1 :])
        x = x.reshape(-1, *shape[self.axis :])
        if self.spatial == 2:
            columns = F.unfold(x, w.kernel, w.dilation, w.pad, w.stride)
        else:
            columns = self.unfold(x)
        return columns.reshape(*shape[: self.axis], shape[self.axis] * math.prod(w.kernel), *counts)

    def unfold(self, x: Tensor) -> Tensor:
        """(N, C, sizes) -> (N, C, taps an axis, windows an axis)."""
        w = self.windows
        x = F.pad(x, [side for pad in reversed(w.pad) for side in (pad, pad)])
        for axis in range(self.spatial):  # each turn adds the taps of one axis at the end
            x = x.unfold(2 + axis, w.extent[axis], w.stride[axis])[..., :: w.dilation[axis]]
        taps = range(2 + self.spatial, 2 + 2 * self.spatial)
        return x.permute(0, 1, *taps, *range(2, 2 + self.spatial))


# -- what they share -------------------------------------------------------------------------------------------------


def either_axis(axis: int | None, old: int | None, name: str, rank: int) -> int:
    """The axis from `axis` or from the older field `name`, which takes no negatives; 1 where neither is given."""
    if axis is not None and old is not None:
        raise ValueError(f"gives both axis and {name}; give axis alone")
    if old is not None and old >= rank:
        raise ValueError(f"{name} {old} is outside a bottom of {rank} axes")
    return old if old is not None else axis_of(1 if axis is None else axis, rank)


def without(shape: Shape, axis: int) -> tuple[Shape, Shape]:
    """The sizes before and after an axis."""
    return shape[:axis], shape[axis + 1 :]


def rows_of(shape: Shape) -> int:
    """The size of axis 0."""
    if not shape:
        raise ValueError("a bottom is one number without axes; expected rows along axis 0")
    return shape[0]


def left_over(shape: Shape, target: list[int]) -> int:
    """The size that stands as -1 in `target`, so that it holds as many numbers as `shape`."""
    given = math.prod(size for size in target if size != -1)
    count = math.prod(shape)
    if given == 0:  # no rows: what would be left with one
        given, count = (math.prod(max(size, 1) for size in sizes if size != -1) for sizes in (target, shape))
    if count % given:
        raise ValueError(f"a bottom of {text(shape)} cannot be reshaped to {target}: {count} is no multiple of {given}")
    return count // given
