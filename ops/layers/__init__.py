"""Every layer type; importing this package fills the catalogue (registry.LAYERS)."""

from ops.layers import (
    activation,
    arithmetic,
    convolution,
    dense,
    detection,
    inputs,
    loss,
    normalization,
    output,
    pooling,
    python,
    recurrent,
    shape,
)

__all__ = [
    "activation",
    "arithmetic",
    "convolution",
    "dense",
    "detection",
    "inputs",
    "loss",
    "normalization",
    "output",
    "pooling",
    "python",
    "recurrent",
    "shape",
]
