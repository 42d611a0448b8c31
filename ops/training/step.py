"""One iteration of training: iter_size forwards and backwards over this part of the batch, then the update."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ops.net import Net
from ops.parallel import Group
from ops.solver.solver import Solver, Step
from ops.steps import drop_early
from ops.wiring import towards_loss

Precision = Literal["fp32", "tf32", "bf16"]


def set_precision(precision: Precision) -> None:
    """fp32 is strict on every device; tf32 lets a GPU round products to 10 bits; bf16 computes under autocast."""
    loose = precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = loose
    torch.backends.cudnn.allow_tf32 = loose


class Joined(nn.Module):
    """A net as DistributedDataParallel holds it; without inputs, a number to which every weight contributes nothing.

    After its first backward DDP lays out anew which gradients are summed together, and with three workers and more the
    layout shows in the last bit of a sum. A backward through that number, the last layer's weights first, gets it over
    with: all iterations of a training are then of one layout, the first after a resume too.
    """

    def __init__(self, net: Any):
        super().__init__()
        self.net = net

    def forward(self, inputs: Mapping[str, Tensor] | None) -> Any:
        if inputs is not None:
            return self.net(inputs)
        nothing = torch.zeros((), device=next(self.parameters()).device)
        for blob in self.parameters():
            if blob.requires_grad:
                nothing = nothing + (blob.reshape(-1)[:1] * 0).sum()
        return nothing


class Trainer:
    """A net, its solver and the processes that train it together.

    A forward of the net gives its inputs, outputs and losses from now on; what lies between is the backward's alone,
    and its memory is used again as soon as that has been there.
    """

    def __init__(
        self, solver: Solver, net: Net, group: Group, *, precision: Precision = "fp32", compiled: bool = False
    ):
        self.solver, self.net, self.group, self.precision = solver, net, group, precision
        self.switch_off()
        drop_early(net.steps, frozenset({*net.inputs, *net.outputs, *net.loss_weights}))
        self.model: Any = torch.compile(net) if compiled else net
        if not group.alone and any(blob.requires_grad for blob in net.parameters()):
            with warnings.catch_warnings():  # its successor would still send buffers around at the start
                warnings.simplefilter("ignore", FutureWarning)
                self.model = DistributedDataParallel(
                    Joined(self.model), broadcast_buffers=False, gradient_as_bucket_view=True
                )
            self.model(None).backward()
            for blob in net.parameters():
                if blob.grad is not None:
                    blob.grad.zero_()

    def switch_off(self) -> None:
        """No gradients for layers that have no part in the loss."""
        if not self.net.loss_weights:
            raise ValueError(f"{self.net.name}: has no loss to train with: add a loss layer, or a loss_weight")
        if self.net.spec.force_backward:
            return
        useful = towards_loss(self.net.built)
        for number, layer in enumerate(self.net.layers):
            if number not in useful:
                for blob in layer.blobs:
                    blob.requires_grad_(False)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.net.device.type, torch.bfloat16)

    def forward_backward(self, inputs: Mapping[str, Tensor], *, last: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        """This process's share of the loss, and blobs; gradients add up, over the processes in the `last` one."""
        joined = isinstance(self.model, DistributedDataParallel)
        with self.model.no_sync() if joined and not last else contextlib.nullcontext():
            with self.autocast():
                blobs = self.model(inputs)
                loss = self.net.loss(blobs)
            # DDP divides the sum of the gradients by the number of processes; the whole loss's is the sum.
            torch.autograd.backward(loss * self.group.world if joined else loss)
        return loss.detach(), blobs

    @torch.no_grad()
    def every_blob(self, blobs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The last forward once more, for its `blobs` and all those that it did not keep."""
        for step in self.net.steps:
            step.drop = ()
        self.net.forwards -= 1
        with self.autocast():
            return self.net({name: blobs[name] for name in self.net.inputs if name in blobs})

    def update(self, *, norm: bool = False) -> Step:
        """The solver's update; the gradients are zero, or none, afterwards."""
        step = self.solver.update(norm=norm)
        self.solver.zero_grad(set_to_none=self.group.alone)  # DDP's lie in the buffers that it sums
        return step
