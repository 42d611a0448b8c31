"""`cortado time` on real nets: how far the layers' sum is from the pass, what the stopwatch adds, whether the same net
takes the same time twice; and our nets against the same written in torch by hand, in each precision, eager and
compiled.

`python -m tests.benchmarks.bench_time [NET ...]`: batch 32 on a GPU; on the CPU batch 8, two threads, eager.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from ops import net as nets
from ops import zoo
from ops.precision import autocast, products
from ops.random_inputs import random_inputs
from ops.stopwatch import time_layers
from tests.benchmarks.bench_net import DEVICE, THREADS, turns
from tests.benchmarks.common import row
from tests.benchmarks.torch_nets import PEERS

GPU = DEVICE == "cuda"
BATCH = 32 if GPU else 8
ITERATIONS = 50 if GPU else 12
PRECISIONS = ("fp32", "tf32", "bf16") if GPU else ("fp32", "bf16")


def train_net(name: str) -> tuple[nets.Net, dict[str, torch.Tensor]]:
    side = PEERS[name][1]
    shapes = {"data": (BATCH, 3, side, side), "label": (BATCH,)}
    net = nets.load(zoo.find(name, "train_val.prototxt"), "TRAIN", inputs=shapes, device=DEVICE)
    return net, random_inputs(net)


def stopwatch(name: str) -> None:
    """The stopwatch against the pass without it."""
    net, inputs = train_net(name)
    first, second = (time_layers(net, inputs, iterations=ITERATIONS) for _ in range(2))
    row(f"{name}: sum of the layers, forward", second.layers_forward, second.forward, "ms", "(0.95 to 1.05)")
    row(f"{name}: sum of the layers, backward", second.layers_backward, second.backward, "ms", "(0.95 to 1.05)")
    watched = second.watched_forward + second.watched_backward
    row(f"{name}: the pass with the stopwatch", watched, second.whole, "ms", "(at most 1.03)")
    row(f"{name}: the pass a second time", second.whole, first.whole, "ms", "(0.95 to 1.05)")


def against_torch(name: str, precision: Any, *, compiled: bool) -> None:
    """Forward and backward of ours and of the net by hand, in turn."""
    device = torch.device(DEVICE)
    net, inputs = train_net(name)
    peer = PEERS[name][0]().to(DEVICE)
    if not GPU:
        peer = peer.to(memory_format=torch.channels_last)
    ours: Callable[..., Any] = torch.compile(net) if compiled else net
    theirs: Callable[..., Any] = torch.compile(peer.loss) if compiled else peer.loss
    x, label = inputs["data"], inputs["label"].long()

    def our_step() -> None:
        net.zero_grad()
        with autocast(device, precision):
            loss = net.loss(ours(inputs))
        loss.backward()

    def their_step() -> None:
        peer.zero_grad()
        with autocast(device, precision):
            loss = theirs(x, label)
        loss.backward()

    with products(precision):
        mine, peers = turns(our_step, their_step)
    row(f"{name}: {precision}, {'compiled' if compiled else 'eager'}", mine, peers, "ms", "(at most 1.03)")


def main(arguments: list[str]) -> None:
    torch.set_num_threads(THREADS)
    where = torch.cuda.get_device_name() if GPU else f"CPU, {THREADS} threads"
    print(f"torch {torch.__version__}, {where}, batch {BATCH}; forward and backward")
    for name in arguments or PEERS:
        stopwatch(name)
        for precision in PRECISIONS:
            for compiled in (False, True) if GPU else (False,):
                against_torch(name, precision, compiled=compiled)


if __name__ == "__main__":
    main(sys.argv[1:])
