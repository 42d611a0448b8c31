"""A test: so many batches through a test net, each output's elements averaged, as Caffe reports them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ops.net import Net
from ops.parallel import Group
from ops.spread import gathered

ALONE = Group()


@torch.no_grad()
def evaluate(
    net: Net,
    batches: Iterator[Mapping[str, Tensor]],
    iterations: int,
    group: Group,
    *,
    wanted: Callable[[], bool] = lambda: True,
    each: Callable[[int, dict[str, Tensor], dict[str, Tensor]], None] | None = None,
) -> tuple[dict[str, np.ndarray], float] | None:
    """(each output's mean over `iterations` batches, the mean loss), the same on every process.

    None where `wanted` (asked before each batch) says no. `each` gets the batch's number, its whole outputs, and the
    blobs here.
    """
    sums: dict[str, Tensor] = {}
    loss = torch.zeros((), dtype=torch.float64)
    for number in range(iterations):
        if not wanted():
            return None
        blobs = net(next(batches))
        outputs = gathered(net, group, {name: blobs[name] for name in net.outputs})
        loss += group.sum(net.loss(blobs)).double().cpu()
        for name, value in outputs.items():
            mine = value.detach().double().cpu()
            sums[name] = sums[name] + mine if name in sums else mine
        if each is not None:
            each(number, outputs, blobs)
    return {name: (total / iterations).numpy() for name, total in sums.items()}, loss.item() / iterations
