"""What layers carry from one forward to the next (the last values of recurrent layers), as text for a snapshot."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ops.layers.registry import Layer
from ops.net import Net
from ops.parallel import Group, share

TYPES = ("float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


def carried(net: Net, group: Group) -> dict[str, Any]:
    """{layer index/name: shape, type and bytes} of the whole batch; every process must ask, each gets all."""
    told = {}
    for key, layer, value in each(net):
        batch = whole_batch(layer)
        whole = value if batch is None else group.rows(value, batch)
        told[key] = pack(whole)
    return told


def carry_on(net: Net, group: Group, told: Mapping[str, Any]) -> None:
    """Go on from what `carried` gave, on any number of processes. ValueError where it is another net's."""
    state = {}
    for key, packed in told.items():
        index = key.partition("/")[0]
        if not index.isdecimal() or int(index) >= len(net.layers):
            raise ValueError(f"{net.name}: a state of layer {index}, of {len(net.layers)} layers")
        value, batch = unpack(packed), whole_batch(net.layers[int(index)])
        if batch is not None and len(value) == batch:
            start, stop = share(batch, group.rank, group.world)
            value = value[start:stop]
        state[key] = value
    net.load_state(state)


def each(net: Net) -> Iterator[tuple[str, Layer, Tensor]]:
    for key, value in net.state().items():
        yield key, net.layers[int(key.partition("/")[0])], value


def whole_batch(layer: Layer) -> int | None:
    """How many streams all processes have together, where a recurrent layer sees a part of them here."""
    part = layer.part
    return None if part is None or part.axes[0] != 1 else part.shapes[0][1]


def pack(value: Tensor) -> dict[str, Any]:
    """A tensor as JSON can say it; bits are kept."""
    value = value.detach().cpu()
    if str(value.dtype).removeprefix("torch.") not in TYPES:
        value = value.float()  # of 16 bits: nothing is lost
    array = np.ascontiguousarray(value.numpy())
    return {"shape": list(value.shape), "type": str(array.dtype), "data": base64.b64encode(array.tobytes()).decode()}


def unpack(packed: Mapping[str, Any]) -> Tensor:
    """The tensor that `pack` was given; ValueError where it is none."""
    shape, kind = tuple(packed["shape"]), packed["type"]
    if kind not in TYPES:
        raise ValueError(f"a tensor of type {kind!r}; expected one of {', '.join(TYPES)}")
    data = base64.b64decode(packed["data"], validate=True)
    if len(data) != math.prod(shape) * np.dtype(kind).itemsize:
        raise ValueError(f"{len(data):,} bytes for a tensor of {shape}")
    return torch.from_numpy(np.frombuffer(data, kind).reshape(shape).copy())
