"""Kernels that slide over a blob: their geometry from the text, and how many fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ops.layers.registry import Shape, text


class Sides(Protocol):
    """What ConvolutionParameter says of a window: once for all axes, or one number an axis, or _h and _w."""

    def HasField(self, name: str, /) -> bool: ...  # noqa: N802


@dataclass(frozen=True)
class Windows:
    """A kernel's size, step and margins, one number a spatial axis."""

    kernel: Shape
    stride: Shape
    pad: Shape
    dilation: Shape

    @property
    def extent(self) -> Shape:
        """Pixels from a kernel's first to its last tap."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    def count(self, sizes: Shape) -> Shape:
        """How many windows fit along each axis, as Caffe's convolution: the last one is never cut."""
        pairs = zip(sizes, self.pad, self.extent, self.stride, strict=True)
        counts = tuple((size + 2 * pad - extent) // stride + 1 for size, pad, extent, stride in pairs)
        if any(count < 1 for count in counts):
            dilated = f" dilated to {text(self.extent)}" if self.extent != self.kernel else ""
            raise ValueError(
                f"a kernel of {text(self.kernel)}{dilated} does not fit into a bottom of {text(sizes)} with pad "
                f"{text(self.pad)}: give a larger input or a smaller kernel"
            )
        return counts

    def spread(self, sizes: Shape) -> Shape:
        """The size whose windows are `sizes`: the output of a deconvolution."""
        pairs = zip(sizes, self.pad, self.extent, self.stride, strict=True)
        spread = tuple(stride * (size - 1) + extent - 2 * pad for size, pad, extent, stride in pairs)
        if any(size < 1 for size in spread):
            raise ValueError(
                f"pad {text(self.pad)} leaves nothing of the {text(sizes)} bottom under a kernel of {text(self.kernel)}"
            )
        return spread


def geometry(param: Sides, axes: int) -> Windows:
    """The windows of a ConvolutionParameter over `axes` spatial axes."""
    windows = Windows(
        kernel=sides(param, "kernel_size", "kernel", axes, None),
        stride=sides(param, "stride", "stride", axes, 1),
        pad=sides(param, "pad", "pad", axes, 0),
        dilation=sides(param, "dilation", None, axes, 1),
    )
    for name in ("kernel", "stride", "dilation"):
        if any(size < 1 for size in getattr(windows, name)):
            raise ValueError(f"{name} {text(getattr(windows, name))}: expected 1 or more on every axis")
    return windows


def sides(param: Sides, field: str, prefix: str | None, axes: int, default: int | None) -> Shape:
    """One number an axis from `field` (none, one, or one an axis) or from `prefix`_h and `prefix`_w."""
    listed = list(getattr(param, field))
    h, w = f"{prefix}_h", f"{prefix}_w"
    if prefix and (param.HasField(h) or param.HasField(w)):
        if listed:
            raise ValueError(f"gives both {field} and {h}/{w}; give one of them")
        if axes != 2:
            raise ValueError(f"{h} and {w} are for two spatial axes, the bottom has {axes}; give {field} an axis")
        if default is None and not (param.HasField(h) and param.HasField(w)):
            raise ValueError(f"gives only one of {h} and {w}; give both")
        return (getattr(param, h), getattr(param, w))
    if not listed and default is not None:
        return (default,) * axes
    if not listed and axes:
        raise ValueError(f"has no {field}; give {field}" + (f", or {h} and {w}" if prefix else ""))
    if len(listed) not in (1, axes):
        raise ValueError(f"gives {field} {len(listed)} times; expected once, or {axes} times (one a spatial axis)")
    return tuple(listed * axes) if len(listed) == 1 else tuple(listed)
