"""A layer by itself: built from its text and the shapes of its bottoms as a net builds it, with random blobs."""

from __future__ import annotations

from typing import Any

import torch
from google.protobuf import text_format
from torch import Tensor, nn

from ops.layers.registry import Layer, Phase, Shape, find
from ops.proto.caffe_pb2 import LayerParameter


def alone(text: str, *shapes: Shape, phase: Phase = "TEST", dtype: torch.dtype = torch.float64) -> Layer:
    """The layer of `text` for bottoms of `shapes`; its blobs are drawn from N(0, 1), always the same."""
    spec = text_format.Parse(text, LayerParameter())
    with torch.device("meta"):
        layer = find(spec.type)(spec, list(shapes), phase)
        layer.told = layer.shapes(list(shapes))
    generator = torch.Generator().manual_seed(7)
    for index, blob in enumerate(layer.blobs):
        values = torch.randn(blob.shape, generator=generator, dtype=dtype)
        layer.set_blob(index, nn.Parameter(values))
    return layer


def draw(*shape: int, seed: int = 1, grad: bool = True) -> Tensor:
    """N(0, 1) numbers in float64."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.requires_grad_(grad)


def run(layer: Layer, *bottoms: Any) -> Any:
    """The tops of a forward on bottoms as the layer was built for; also that they have the shapes which it told."""
    tops = layer(*bottoms)
    listed = tops if isinstance(tops, tuple) else (tops,)
    assert layer.told == [tuple(top.shape) for top in listed]
    return tops


def gradients_hold(layer: Layer, *bottoms: Tensor) -> bool:
    """torch's gradcheck with respect to the bottoms that want a gradient and to all blobs."""
    blobs = layer.blobs

    def forward(*values: Tensor) -> Any:
        for index, value in enumerate(values[len(bottoms) :]):
            layer.set_blob(index, value)
        return layer(*values[: len(bottoms)])

    held = torch.autograd.gradcheck(forward, (*bottoms, *blobs))
    for index, blob in enumerate(blobs):
        layer.set_blob(index, blob)
    return held
