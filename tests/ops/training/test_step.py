"""An iteration of training against torch's own, and what it keeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from google.protobuf import text_format

from ops import net as nets
from ops.parallel import Group
from ops.proto.caffe_pb2 import NetParameter, SolverParameter
from ops.solver.solver import Solver
from ops.training.step import Trainer

NET = """name: "n" layer { name: "in" type: "Input" top: "x" top: "label"
  input_param { shape { dim: 6 dim: 3 dim: 8 dim: 8 } shape { dim: 6 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "conv"
  param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
DROPOUT
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" loss_weight: WEIGHT }"""
DROPOUT = 'layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" }'


def trainer(*, dropout="", weight=1.0):
    text = NET.replace("DROPOUT", dropout).replace("WEIGHT", str(weight))
    net = nets.load(text_format.Parse(text, NetParameter()), "TRAIN", seed=3)
    spec = SolverParameter(base_lr=0.05, lr_policy="fixed", momentum=0.9, weight_decay=0.01)
    return Trainer(Solver(spec, net), net, Group())


def batches(count):
    drawn = torch.Generator().manual_seed(5)
    for _ in range(count):
        yield torch.randn(6, 3, 8, 8, generator=drawn), torch.randint(0, 5, (6,), generator=drawn)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_iterations_are_those_of_a_loop_by_hand(weight):
    ours = trainer(weight=weight)
    blobs = [blob.detach().clone().requires_grad_() for blob in ours.solver.blobs]
    rate = 0.05
    groups = [{"params": blobs[::2]}, {"params": blobs[1::2], "lr": 2 * rate, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9, weight_decay=0.01)
    for x, label in batches(5):
        loss, _ = ours.forward_backward({"x": x, "label": label.float()})
        ours.update()
        optimizer.zero_grad()
        theirs = F.conv2d(x, blobs[0], blobs[1]).relu().flatten(1)
        theirs = weight * F.cross_entropy(F.linear(theirs, blobs[2], blobs[3]), label)
        theirs.backward()
        optimizer.step()
        torch.testing.assert_close(loss, theirs.detach())
    for blob, expected in zip(ours.solver.blobs, blobs, strict=True):
        torch.testing.assert_close(blob, expected, rtol=1e-5, atol=1e-6)


def test_what_lies_between_inputs_and_outputs_is_let_go_of_and_comes_again_when_asked_for():
    ours, (x, label) = trainer(dropout=DROPOUT), next(batches(1))
    inputs = {"x": x, "label": label.float()}
    loss, blobs = ours.forward_backward(inputs)
    assert set(blobs) == {"x", "label", "loss"}
    again = ours.every_blob(blobs)
    assert set(again) == {"x", "label", "conv", "ip", "loss"}
    assert torch.equal(again["loss"], loss)  # under the same dropout mask
    assert not again["loss"].requires_grad


def test_a_backward_adds_to_the_one_before_until_the_update():
    ours, other = trainer(), trainer()
    sums = [torch.zeros_like(blob) for blob in other.solver.blobs]
    for x, label in batches(2):
        inputs = {"x": x, "label": label.float()}
        ours.forward_backward(inputs)
        other.solver.zero_grad(set_to_none=True)
        other.forward_backward(inputs)
        sums = [total + blob.grad for total, blob in zip(sums, other.solver.blobs, strict=True)]
    for blob, total in zip(ours.solver.blobs, sums, strict=True):
        torch.testing.assert_close(blob.grad, total)
    ours.update()
    assert [one.grad for one in ours.solver.blobs] == [None] * 4


def test_weights_that_were_put_elsewhere_are_updated_there():
    ours, (x, label) = trainer(), next(batches(1))
    inputs = {"x": x, "label": label.float()}
    ours.forward_backward(inputs)
    ours.update()
    weights = ours.net.params["ip"][0]
    left = weights.data
    weights.data = left.clone()
    before = left.clone()
    ours.forward_backward(inputs)
    ours.update()
    assert torch.equal(left, before)
    assert not torch.equal(weights, before)


def test_a_net_without_loss_cannot_be_trained():
    text = NET.replace("DROPOUT", "").partition('layer { name: "loss"')[0]
    net = nets.load(text_format.Parse(text, NetParameter()), "TRAIN")
    with pytest.raises(ValueError, match=r"n: has no loss to train with: add a loss layer, or a loss_weight"):
        Trainer(Solver(SolverParameter(base_lr=0.1, lr_policy="fixed"), net), net, Group())
