"""A layer that says its gradients itself, by three functions: tops, gradients of bottoms, gradients of blobs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ops.layers.registry import Layer

Tensors = Tensor | tuple[Tensor, ...]
Gradients = Tensor | None | tuple[Tensor | None, ...]


class OwnBackward(Layer):
    """The base class of a layer whose backward is not autograd's.

    `grad` is the gradient at the top, or a tuple of them where there are several tops. A gradient that is None is zero.
    """

    def compute(self, *bottoms: Tensor) -> Tensors:
        """The top, or a tuple of tops; `self.blob(i)` are the weights. Nothing here is seen by autograd."""
        raise NotImplementedError

    def bottom_gradient(self, grad: Any, *bottoms: Tensor) -> Gradients:
        """The gradient of the bottom, or a tuple of one for each."""
        raise NotImplementedError

    def blob_gradient(self, grad: Any, *bottoms: Tensor) -> Gradients:
        """The gradient of the blob, or a tuple of one for each; called where there are blobs that learn."""
        raise NotImplementedError

    def forward(self, *bottoms: Tensor) -> Tensors:
        blobs = [self.blob(index) for index in range(len(self.fillers))]
        return _ThreeFunctions.apply(self, len(bottoms), *bottoms, *blobs)  # type: ignore[no-untyped-call]


class _ThreeFunctions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: OwnBackward, count: int, *tensors: Tensor) -> Tensors:
        ctx.layer, ctx.count = layer, count
        ctx.save_for_backward(*tensors)
        return layer.compute(*tensors[:count])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layer, count, wanted = ctx.layer, ctx.count, ctx.needs_input_grad[2:]
        bottoms = ctx.saved_tensors[:count]  # also finds out whether a weight was changed since the forward
        grad = grads if len(grads) > 1 else grads[0]
        below: tuple[Tensor | None, ...] = (None,) * count
        own: tuple[Tensor | None, ...] = (None,) * (len(wanted) - count)
        if any(wanted[:count]):
            below = several(layer.bottom_gradient(grad, *bottoms), count, "bottom_gradient", "bottom")
        if any(wanted[count:]):
            own = several(layer.blob_gradient(grad, *bottoms), len(own), "blob_gradient", "blob")
        return (None, None, *below, *own)


def several(found: Gradients, count: int, name: str, what: str) -> tuple[Tensor | None, ...]:
    """One gradient for each bottom or blob; ValueError where they are more or fewer."""
    listed = found if isinstance(found, tuple) else (found,)
    if len(listed) != count:
        raise ValueError(f"{name} gave {len(listed)} gradients, the layer has {count} {what}{'s' * (count != 1)}")
    return listed
