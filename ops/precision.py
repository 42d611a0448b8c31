"""Precision on any device: fp32 strictly, tf32, or bf16 under autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch

Precision = Literal["fp32", "tf32", "bf16"]


@contextlib.contextmanager
def precise(device: torch.device, precision: Precision) -> Iterator[None]:
    """A forward in a precision: fp32: nothing is rounded; tf32: a GPU rounds products to 10 bits; bf16: autocast."""
    with products(precision), autocast(device, precision):
        yield


@contextlib.contextmanager
def products(precision: Precision) -> Iterator[None]:
    """How a GPU multiplies inside the block, in backwards too: fp32 strictly, or with TF32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision != "fp32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """For a forward and its loss; the backward goes without, in the types of the forward."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
