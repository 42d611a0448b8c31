"""Layers of three functions: against what autograd makes of the same formula."""

from __future__ import annotations

import pytest
import torch

from ops.own_backward import OwnBackward
from ops.proto.caffe_pb2 import FillerParameter, LayerParameter


class Mix(OwnBackward):
    """Tops a * w + b and a * b."""

    bottoms, tops = (2, 2), (2, 2)

    def __init__(self, spec, bottoms, phase):
        super().__init__(spec, bottoms, phase)
        self.add_blob((1,), FillerParameter(value=3))

    def compute(self, a, b):
        return a * self.blob(0) + b, a * b

    def bottom_gradient(self, grads, a, b):
        first, second = grads
        return first * self.blob(0) + second * b, first + second * a

    def blob_gradient(self, grads, a, b):
        return (grads[0] * a).sum().reshape(1)


def test_gradients_of_several_tops_bottoms_and_blobs_are_autograds():
    layer = Mix(LayerParameter(), [(2, 3), (2, 3)], "TRAIN")
    layer.fill(0, torch.Generator())
    a, b = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    weight = layer.blobs[0]
    factors = [torch.randn(2, 3) for _ in range(2)]

    def gradients(tops):
        return torch.autograd.grad(tops, (a, b, weight), factors)

    for ours, theirs in zip(gradients(layer(a, b)), gradients((a * weight + b, a * b)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_functions_that_nobody_needs_are_not_called():
    called = []

    class Counting(Mix):
        def bottom_gradient(self, grads, a, b):
            called.append("bottoms")
            return super().bottom_gradient(grads, a, b)

        def blob_gradient(self, grads, a, b):
            called.append("blobs")
            return super().blob_gradient(grads, a, b)

    layer = Counting(LayerParameter(), [(2, 3), (2, 3)], "TRAIN")
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    layer(a, b)[0].sum().backward()
    assert called == ["blobs"]
    layer.blobs[0].requires_grad_(False)
    layer(a.requires_grad_(), b)[0].sum().backward()
    assert called == ["blobs", "bottoms"]


def test_shapes_are_told_without_computing():
    with torch.device("meta"):
        assert Mix(LayerParameter(), [(2, 3), (2, 3)], "TRAIN").shapes([(2, 3), (2, 3)]) == [(2, 3), (2, 3)]


def test_a_gradient_too_many_is_told():
    class TooMany(Mix):
        def blob_gradient(self, grads, a, b):
            return grads

    layer = TooMany(LayerParameter(), [(2, 3), (2, 3)], "TRAIN")
    with pytest.raises(ValueError, match="blob_gradient gave 2 gradients, the layer has 1 blob"):
        layer(torch.randn(2, 3), torch.randn(2, 3))[0].sum().backward()


def test_a_weight_that_changes_between_forward_and_backward_is_noticed():
    layer = Mix(LayerParameter(), [(2, 3), (2, 3)], "TRAIN")
    tops = layer(torch.randn(2, 3), torch.randn(2, 3))
    with torch.no_grad():
        layer.blobs[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        tops[0].sum().backward()
