"""Several processes that share one batch: who has which part, and sums over all.

The rule: each process computes its share of the whole batch's loss (sums divided by the whole batch's counts), so that
the shares add up to the loss, and their gradients to its gradient, that one process would have found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Shape = tuple[int, ...]


def share(batch: int, rank: int, world: int) -> tuple[int, int]:
    """The places start..stop-1 of a batch that a process takes; parts differ by one place at most."""
    return rank * batch // world, (rank + 1) * batch // world


@dataclass(frozen=True)
class Group:
    """The processes that train together; rank 0 of 1 where there is only this one."""

    rank: int = 0
    world: int = 1

    @property
    def alone(self) -> bool:
        return self.world == 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, without a gradient."""
        if self.alone:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes; its gradient is the sum of what all of them hand back."""
        if self.alone:
            return tensor
        return _Total.apply(tensor)  # type: ignore[no-untyped-call]

    def everyones(self, own: Any) -> list[Any]:
        """What each process has, by rank; anything that can be pickled."""
        if self.alone:
            return [own]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, own)
        return found

    def rows(self, tensor: Tensor, batch: int, axis: int = 0) -> Tensor:
        """The whole blob from everybody's part along `axis`, in the order of the batch; without a gradient."""
        if self.alone:
            return tensor
        start, stop = share(batch, self.rank, self.world)
        shape = list(tensor.shape)
        shape[axis] = batch
        whole = tensor.new_zeros(shape)
        whole.narrow(axis, start, stop - start).copy_(tensor.detach())
        dist.all_reduce(whole)
        return whole


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


@dataclass(frozen=True)
class Part:
    """What a layer knows of the whole batch while it sees a part: its bottoms' whole shapes, and the batch axis."""

    group: Group
    shapes: tuple[Shape, ...]
    axes: tuple[int | None, ...]  # None: this bottom is whole
    synchronize: bool = True  # BatchNorm takes the statistics of the whole batch

    def slice(self, whole: Tensor, bottom: int = 0) -> Tensor:
        """This process's part of something that has the shape of the whole bottom."""
        axis = self.axes[bottom]
        if axis is None:
            return whole
        start, stop = share(self.shapes[bottom][axis], self.group.rank, self.group.world)
        return whole.narrow(axis, start, stop - start)
