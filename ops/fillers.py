"""First values of weights, by Caffe's fillers, drawn from a given generator.

A blob's values depend on the filler, the blob's shape and the generator's state; not on its strides or device.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ops.names import pick
from ops.proto.caffe_pb2 import FillerParameter

Shape = tuple[int, ...]
LARGEST = torch.finfo(torch.float32).max
DENSE = -1  # `sparse` of a filler that draws every weight


def fill(blob: Tensor, filler: FillerParameter | None, generator: torch.Generator) -> None:
    """Fill `blob` in place, drawing on the generator's device; no filler means zeros. ValueError as `check`."""
    filler = FillerParameter() if filler is None else filler
    check(filler, tuple(blob.shape))
    dtype = torch.float64 if blob.dtype == torch.float64 else torch.float32
    with torch.no_grad():
        direct = blob.is_contiguous() and blob.dtype == dtype and blob.device == generator.device
        values = blob if direct else torch.empty(blob.shape, dtype=dtype, device=generator.device)
        FILLERS[filler.type](values, filler, generator)
        if not direct:
            blob.copy_(values)


def check(filler: FillerParameter | None, shape: Shape) -> None:
    """ValueError where `filler` cannot fill a blob of this shape; nothing is drawn."""
    if filler is None:
        return
    pick(FILLERS, filler.type, "filler type")
    if problem := _problem(filler, shape):
        raise ValueError(f"filler '{filler.type}': {problem}")


def fan(filler: FillerParameter, shape: Shape) -> float:
    """What the variance is divided by: inputs of an output (FAN_IN), outputs of an input (FAN_OUT), their mean.

    As Caffe counts them: all elements over axis 0, over axis 1 (all elements where there is one axis).
    """
    count = math.prod(shape)
    fan_in, fan_out = count // shape[0], count // shape[1] if len(shape) > 1 else count
    if filler.variance_norm == FillerParameter.AVERAGE:
        return (fan_in + fan_out) / 2
    return fan_out if filler.variance_norm == FillerParameter.FAN_OUT else fan_in


# -- the table, by rising difficulty ---------------------------------------------------------------------------------


def constant(blob: Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    """`value` everywhere."""
    blob.fill_(filler.value)


def uniform(blob: Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    """U[min, max]"""
    blob.uniform_(filler.min, filler.max, generator=generator)


def xavier(blob: Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    """U[-a, a], a = sqrt(3 / fan)"""
    bound = math.sqrt(3 / fan(filler, tuple(blob.shape)))
    blob.uniform_(-bound, bound, generator=generator)


def msra(blob: Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    """N(0, sqrt(2 / fan))"""
    blob.normal_(0, math.sqrt(2 / fan(filler, tuple(blob.shape))), generator=generator)


def gaussian(blob: Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    """N(mean, std); with sparse >= 0 a weight is kept with probability sparse / outputs, the others are 0."""
    blob.normal_(filler.mean, filler.std, generator=generator)
    if filler.sparse != DENSE:
        blob.mul_(torch.empty_like(blob).bernoulli_(filler.sparse / blob.shape[0], generator=generator))


def positive_unitball(blob: Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    """U[0, 1], then each row (axis 0) divided by its sum."""
    rows = blob.uniform_(0, 1, generator=generator).view(blob.shape[0], -1)
    rows.div_(rows.sum(1, keepdim=True))


def bilinear(blob: Tensor, filler: FillerParameter, generator: torch.Generator) -> None:
    """(1 - |x / f - c|) (1 - |y / f - c|), f = ceil(w / 2), c = (w - 1) / (2 f), for every pair of channels."""
    width = blob.shape[3]
    half = math.ceil(width / 2)
    center = (width - 1) / (2 * half)
    row = 1 - (torch.arange(width, dtype=torch.float64, device=blob.device) / half - center).abs()
    blob.copy_(torch.outer(row, row).expand(blob.shape))


FILLERS: dict[str, Callable[[Tensor, FillerParameter, torch.Generator], None]] = {
    "constant": constant,
    "uniform": uniform,
    "gaussian": gaussian,
    "xavier": xavier,
    "msra": msra,
    "positive_unitball": positive_unitball,
    "bilinear": bilinear,
}


def _problem(filler: FillerParameter, shape: Shape) -> str | None:
    """What Caffe's check of this filler stumbles over."""
    kind = filler.type
    if not math.prod(shape):
        return f"a blob of shape {shape} is empty"
    if filler.sparse != DENSE and kind != "gaussian":
        return f"sparse is {filler.sparse}, but only 'gaussian' can be sparse"
    if kind in {"xavier", "msra", "positive_unitball"} and not shape:
        return "it counts inputs and outputs, but the blob is one number without axes; use 'constant'"
    if kind == "bilinear" and (len(shape) != 4 or shape[2] != shape[3]):
        return f"it fills blobs of 4 axes with square kernels, this one has the shape {shape}"
    if kind == "uniform" and not 0 <= filler.max - filler.min <= LARGEST:
        return f"min is {filler.min:g} and max {filler.max:g}; min may not be above max, both are finite"
    if kind == "gaussian" and not 0 < filler.std <= LARGEST:
        return f"std is {filler.std:g}; it must be above 0"
    return _sparse_problem(filler.sparse, shape) if filler.sparse != DENSE else None


def _sparse_problem(sparse: int, shape: Shape) -> str | None:
    if sparse < 0:
        return f"sparse is {sparse}; it is a number of weights an input keeps, or {DENSE} for all of them"
    if not shape or sparse > shape[0]:
        return f"sparse is {sparse}, more than the {shape[0] if shape else 0} outputs (axis 0) of the blob"
    return None
