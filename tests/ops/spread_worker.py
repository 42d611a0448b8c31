"""One of several processes that share a batch: `torchrun -m tests.ops.spread_worker CASE.pt OUT` (see test_spread)."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from google.protobuf import text_format

from ops import net as nets
from ops.parallel import Group, share
from ops.proto.caffe_pb2 import NetParameter
from ops.spread import gathered, spread
from pipelines.worker import leave


def main(case: str, out: str) -> None:
    dist.init_process_group("gloo")
    group = Group(dist.get_rank(), dist.get_world_size())
    results = []
    for text, inputs in torch.load(case):
        net = nets.load(text_format.Parse(text, NetParameter()), "TRAIN", seed=4)
        spread(net, group)
        parts = {}
        for name, tensor in inputs.items():
            start, stop = share(len(tensor), group.rank, group.world)
            parts[name] = tensor[start:stop]
        blobs = net(parts)
        loss = net.loss(blobs)
        loss.backward()
        learned = [blob for layer in net.layers for blob in layer.blobs]
        grads = [group.sum(blob.grad if blob.grad is not None else torch.zeros_like(blob)) for blob in learned]
        results.append((gathered(net, group, blobs), group.sum(loss), grads, [blob.detach() for blob in learned]))
    if group.rank == 0:
        torch.save(results, out)
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
