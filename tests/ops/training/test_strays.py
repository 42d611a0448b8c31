"""Which record has the label that is none, and where values begin that are not finite."""

from __future__ import annotations

import pytest
import torch
from google.protobuf import text_format

from ops import net as nets
from ops.proto.caffe_pb2 import NetParameter
from ops.training.strays import first_bad, stray_label

INPUT = """layer { name: "in" type: "Input" top: "x" top: "label"
  input_param { shape { dim: 4 dim: 3 dim: 2 dim: 2 } shape { dim: 4 dim: 2 dim: 2 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "y"
  convolution_param { num_output: 3 kernel_size: 1 weight_filler { type: "xavier" } } }"""
LOSS = 'layer { name: "l" type: "SoftmaxWithLoss" bottom: "y" bottom: "label" top: "l" MORE }'
FLAT = """layer { name: "in" type: "Input" top: "y" top: "label"
  input_param { shape { dim: 4 dim: 3 } shape { dim: 4 } } }
layer { name: "l" type: "KIND" bottom: "y" bottom: "label" top: "l" }"""


def build(text):
    return nets.load(text_format.Parse(f'name: "n" {text}', NetParameter()), "TRAIN")


@pytest.mark.parametrize(("place", "label"), [((2, 1, 0), 3), ((0, 0, 0), -1), ((3, 1, 1), 255)])
def test_the_row_of_a_label_that_is_no_class(place, label):
    net, labels = build(INPUT + LOSS.replace("MORE", "")), torch.zeros(4, 2, 2)
    assert stray_label(net, {"label": labels}) is None
    labels[place] = label
    assert stray_label(net, {"label": labels}) == ("label", place[0])
    ignoring = build(INPUT + LOSS.replace("MORE", f"loss_param {{ ignore_label: {label} }}"))
    assert stray_label(ignoring, {"label": labels}) is None


@pytest.mark.parametrize("kind", ["Accuracy", "HingeLoss", "MultinomialLogisticLoss", "MultiMarginLoss"])
def test_every_layer_that_chooses_by_label_is_asked(kind):
    net = build(FLAT.replace("KIND", kind))
    assert stray_label(net, {"label": torch.tensor([0.0, 2, 1, 3])}) == ("label", 3)


def test_targets_that_are_no_labels_are_not():
    net = build(FLAT.replace("KIND", "EuclideanLoss").replace("shape { dim: 4 }", "shape { dim: 4 dim: 3 }"))
    assert stray_label(net, {"label": torch.full((4, 3), 9.0)}) is None


def test_where_values_that_are_not_finite_begin():
    net = build(INPUT + LOSS.replace("MORE", ""))

    def told(**changes):
        values = {"x": torch.ones(4, 3, 2, 2), "label": torch.zeros(4, 2, 2)}
        with torch.no_grad():
            return first_bad(net, net(values) | changes, lambda blob, row: f"row {row} of {blob}")

    bad = torch.ones(4, 3, 2, 2)
    bad[2, 0, 1, 1] = float("inf")
    assert told(x=bad) == "input 'x' holds values that are not finite, first in row 2 of x; check the data"
    assert told(y=bad).startswith("layer 'conv' (Convolution) is the first whose top is not finite; lower base_lr")
    assert told() == "the loss alone is not finite; check loss_weight and the labels"
    net.params["conv"][0].data[0] = float("nan")
    assert told().startswith("the weights of layer 'conv' (Convolution) are not finite; lower base_lr")
    with torch.no_grad():
        blobs = net({"x": torch.ones(4, 3, 2, 2), "label": torch.zeros(4, 2, 2)})
    blobs["label"] = torch.full((4, 2, 2), 7.0)  # a GPU's loss is nan then
    assert first_bad(net, blobs, lambda blob, row: "that one").startswith(
        "the label of that one is none of the classes"
    )
