"""Two nets blob by blob: the first layer that differs, whatever works in place behind it."""

from __future__ import annotations

import math

import pytest
import torch
from google.protobuf import text_format

from ops import net as nets
from ops import zoo
from ops.compare import compare, difference, fill_zeros
from ops.proto.caffe_pb2 import NetParameter
from ops.random_inputs import random_inputs

HEAD = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 6 dim: 6 } } }'
CONV = """layer { name: "conv" type: "Convolution" bottom: "x" top: "conv"
    convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }"""
RELU = 'layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }'
IP = """layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
    inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }"""


def net_of(*layers: str) -> nets.Net:
    return nets.load(text_format.Parse(" ".join([HEAD, *layers]), NetParameter()))


def change(net: nets.Net, layer: str, by: float = 1e-3, blob: int = 0) -> nets.Net:
    """The same net with the largest number of a blob changed a little."""
    with torch.no_grad():
        values = net.params[layer][blob]
        values[torch.unravel_index(values.abs().argmax(), values.shape)] += by
    return net


def load_lenet() -> nets.Net:
    return nets.load(zoo.find("lenet", "train_val.prototxt"), "TEST", inputs={"data": (4, 1, 28, 28), "label": (4,)})


@pytest.fixture(scope="module")
def lenet() -> nets.Net:
    return load_lenet()


@pytest.mark.parametrize("layer", ["conv1", "conv2", "ip1", "ip2"])
@pytest.mark.parametrize("blob", [0, 1])
def test_a_changed_weight_is_found_in_its_layer(lenet, layer, blob):
    found = compare(lenet, change(load_lenet(), layer, blob=blob), random_inputs(lenet))
    assert (found.first.layer, found.first.blob) == (layer, layer)
    assert [(one.layer, one.blob) for one in found.weights] == [(layer, f"blob {blob}")]
    assert found.weights[0].largest == pytest.approx(1e-3, rel=1e-3)


def test_a_net_does_not_differ_from_itself(lenet):
    found = compare(lenet, load_lenet(), random_inputs(lenet))
    assert found.first is None
    assert found.beyond(0.0) is None
    assert found.weights == found.only_first == found.only_second == ()
    assert [one.layer for one in found.tops][:3] == ["conv1", "pool1", "conv2"]


def test_a_layer_behind_one_that_writes_in_place_hides_nothing():
    """The blob of `conv` is that of `relu` at the end; each is looked at when it is made."""
    one, other = net_of(CONV, RELU, IP), net_of(CONV, RELU.replace('"ReLU"', '"TanH"'), IP)
    found = compare(one, other, random_inputs(one))
    assert [(at.layer, at.equal) for at in found.tops] == [("conv", True), ("relu", False), ("ip", False)]


def test_differences_are_those_of_numpy():
    one, other = torch.tensor([3.0, 4.0]).double(), torch.tensor([3.0, 4.5]).double()
    found = difference("l", "T", "b", one, other)
    assert (found.largest, found.relative) == (0.5, 0.5 / 5.0)
    assert not found.equal


@pytest.mark.parametrize(
    ("one", "other", "relative"),
    [
        ([math.nan, math.inf, -math.inf], [math.nan, math.inf, -math.inf], 0.0),
        ([math.nan], [1.0], math.inf),
        ([math.inf], [-math.inf], math.inf),
        ([0.0], [0.0], 0.0),
        ([0.0], [-0.0], 0.0),
        ([0.0], [1e-9], 1e-3),
        ([], [], 0.0),
    ],
)
def test_odd_numbers_are_compared(one, other, relative):
    found = difference("l", "T", "b", torch.tensor(one).double(), torch.tensor(other).double())
    assert found.relative == pytest.approx(relative)


def test_shapes_that_differ_are_a_difference():
    one, other = net_of(CONV, RELU, IP), net_of(CONV, RELU, IP.replace("num_output: 5", "num_output: 7"))
    found = compare(one, other, random_inputs(one))
    assert (found.beyond(1e3).layer, found.first.shape, found.first.other) == ("ip", (2, 5), (2, 7))


def test_blobs_that_only_one_net_has_are_listed():
    found = compare(one := net_of(CONV, RELU), net_of(CONV, IP), random_inputs(one))
    assert (found.only_first, found.only_second) == ((), ("ip",))
    assert [(at.layer, at.equal) for at in found.tops] == [("conv", True), ("relu", False)], "the other has no relu"


def test_a_layer_of_another_name_is_compared_by_its_blob():
    one, other = net_of(CONV, IP), net_of(CONV.replace('name: "conv"', 'name: "other"'), IP)
    with torch.no_grad():
        for mine, theirs in zip(one.params["conv"], other.params["other"], strict=True):
            theirs.copy_(mine)
    assert compare(one, other, random_inputs(one)).first is None


def test_precisions_differ_by_their_rounding(lenet):
    found = compare(lenet, lenet, random_inputs(lenet), precisions=("fp32", "bf16"))
    assert found.first.layer == "conv1"
    assert found.beyond(0.1) is None
    assert found.beyond(1e-4) is not None
    assert not torch.is_autocast_enabled("cpu")


def test_weights_that_are_zero_are_filled_alike_by_name():
    one, other = net_of(CONV, RELU, IP.replace("xavier", "constant")), net_of(IP.replace('"conv"', '"x"'))
    with torch.no_grad():
        other.params["ip"][0].zero_()
    for net in (one, other):
        fill_zeros(net)
    assert one.params["ip"][0].any()
    assert torch.equal(one.params["ip"][1], other.params["ip"][1])


def test_a_layer_that_fails_is_named():
    one = net_of(CONV, RELU, IP)
    with pytest.raises(ValueError, match=r"layer 'ip' \(InnerProduct\)"):
        compare(one, one, {"x": torch.zeros(2, 3, 9, 9)})
