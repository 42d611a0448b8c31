"""From trained to deployed nets: what stays, and that it computes what the trained one did."""

from __future__ import annotations

import pytest
import torch
from google.protobuf import text_format

from ops import net as nets
from ops import zoo
from ops.phases import state_of
from ops.proto.caffe_pb2 import NetParameter
from ops.training.deploy import deploy, ends

DATA = 'layer { name: "d" type: "DummyData" top: "data" top: "label" dummy_data_param { %s } }'
SHAPES = "shape { dim: 6 dim: 3 dim: 8 dim: 8 } shape { dim: 6 }"
IP = """layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
        inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }"""


def trained(*layers, shapes=SHAPES):
    text = "\n".join(['name: "n"', DATA % shapes, *layers])
    return nets.load(text_format.Parse(text, NetParameter()), "TEST", seed=2)


def deployed(net):
    """The deployed net with the trained one's weights, as read back from its text."""
    spec = deploy(net.spec, net.inputs)
    made = nets.load(text_format.Parse(text_format.MessageToString(spec), NetParameter()), "TEST", seed=9)
    with torch.no_grad():
        for name, blobs in made.params.items():
            for blob, source in zip(blobs, net.params[name], strict=True):
                blob.copy_(source)
    return made


def types(net):
    return [layer.spec.type for layer in net.layers]


def test_probabilities_are_the_softmax_that_the_loss_took():
    net = trained(
        IP,
        'layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" }',
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }',
    )
    used = deployed(net)
    assert types(used) == ["Input", "InnerProduct", "Softmax"]
    assert (used.inputs, used.outputs) == ({"data": (1, 3, 8, 8)}, ["prob"])
    assert ends(used.spec) == ["prob"]
    x = torch.randn(6, 3, 8, 8)
    assert torch.allclose(used(data=x)["prob"], net(data=x, label=torch.zeros(6))["ip"].softmax(1))


@pytest.mark.parametrize("name", ["lenet", "caffenet", "cifar10_quick", "vgg16"])
def test_a_published_net_is_deployed_as_its_authors_did(name):
    published = nets.read(zoo.find(name))[1]
    shape = nets.assemble("theirs", published, state("TEST")).inputs["data"]
    net = for_tests(name, data=shape, label=shape[:1])
    made = deploy(net.spec, net.inputs)
    for found, expected in zip(made.layer, published.layer, strict=True):
        assert (found.type, list(found.bottom), list(found.top)) == (
            expected.type,
            list(expected.bottom),
            list(expected.top),
        )
        assert found.type in ("Input", "Softmax") or found.name == expected.name
    shapes = nets.assemble("made", made, state("TEST")).shapes
    theirs = nets.assemble("theirs", published, state("TEST")).shapes
    assert {name: shape[1:] for name, shape in shapes.items()} == {name: shape[1:] for name, shape in theirs.items()}


def state(phase, stages=()):
    return state_of(NetParameter(), phase, level=0, stages=stages)


def for_tests(name, stages=(), **inputs):
    """The TEST net of a published train_val.prototxt, without its data."""
    return nets.assemble(*nets.read(zoo.find(name, "train_val.prototxt")), state("TEST", stages), inputs=inputs)


def test_several_losses_leave_a_softmax_each_with_names_of_their_own():
    loss = 'layer { name: "%s" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "%s" %s }'
    second = IP.replace('"ip"', '"fc"')
    net = trained(IP, second, loss % ("a", "a", ""), (loss % ("b", "b", 'top: "p"')).replace('"ip"', '"fc"'))
    assert deployed(net).outputs == ["p", "prob_a"]


def test_a_softmax_that_is_there_already_is_not_made_twice():
    net = trained(
        IP,
        'layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }',
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }',
    )
    assert types(deployed(net)) == ["Input", "InnerProduct", "Softmax"]


def test_names_that_are_taken_get_another():
    net = trained(
        IP.replace('"ip"', '"prob"'),
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "prob" bottom: "label" top: "loss" }',
    )
    assert deployed(net).outputs == ["prob_"]


@pytest.mark.parametrize(
    ("loss", "axis"),
    [
        ('type: "SoftmaxWithLoss" softmax_param { axis: 2 }', 2),
        ('type: "InfogainLoss" infogain_loss_param { axis: -1 }', -1),
    ],
)
def test_the_softmax_stays_on_its_axis(loss, axis):
    extra = 'layer { name: "h" type: "DummyData" top: "h" dummy_data_param { shape { dim: 4 dim: 4 } } }'
    more = 'bottom: "h"' if "Infogain" in loss else ""
    net = trained(
        extra if more else "",
        IP.replace("num_output: 4", "num_output: 4 axis: 2"),
        f'layer {{ name: "loss" {loss} bottom: "ip" bottom: "label" {more} top: "loss" }}',
        shapes="shape { dim: 6 dim: 3 dim: 8 } shape { dim: 6 dim: 3 }",
    )
    used = deployed(net)
    assert used.layers[-1].spec.softmax_param.axis == axis
    assert used.inputs == {"data": (1, 3, 8)}


def test_several_labels_leave_a_sigmoid_each():
    net = trained(
        IP,
        'layer { name: "loss" type: "SigmoidCrossEntropyLoss" bottom: "ip" bottom: "label" top: "loss" }',
        shapes="shape { dim: 6 dim: 3 dim: 8 dim: 8 } shape { dim: 6 dim: 4 }",
    )
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(deployed(net)(data=x)["prob"], deployed(net)(data=x)["ip"].sigmoid())


def test_a_regression_ends_in_its_prediction():
    net = trained(
        IP,
        'layer { name: "loss" type: "EuclideanLoss" bottom: "label" bottom: "ip" top: "loss" }',
        shapes="shape { dim: 6 dim: 3 dim: 8 dim: 8 } shape { dim: 6 dim: 4 }",
    )
    used = deployed(net)
    assert (types(used), used.outputs) == (["Input", "InnerProduct"], ["ip"])


def test_what_is_made_of_labels_goes_with_them():
    net = trained(
        'layer { name: "cut" type: "Slice" bottom: "label" top: "a" top: "b" slice_param { axis: 1 } }',
        'layer { name: "twice" type: "Power" bottom: "a" top: "c" power_param { scale: 2 } }',
        IP,
        'layer { name: "ip2" type: "InnerProduct" bottom: "data" top: "ip2" inner_product_param { num_output: 2 } }',
        'layer { name: "l" type: "EuclideanLoss" bottom: "ip2" bottom: "c" top: "l" }',
        'layer { name: "mute" type: "Silence" bottom: "b" }',
        shapes="shape { dim: 6 dim: 3 dim: 8 dim: 8 } shape { dim: 6 dim: 4 }",
    )
    assert types(deployed(net)) == ["Input", "InnerProduct", "InnerProduct"]


def test_an_autoencoder_ends_in_its_picture_and_not_in_its_target():
    net = for_tests("mnist_autoencoder", ["test-on-test"], data=(6, 1, 28, 28))
    made = nets.assemble("made", deploy(net.spec, net.inputs), state("TEST"))
    assert made.outputs == ["decode1neuron"]
    assert len(made.inputs) == 1


def test_a_second_source_of_labels_is_no_input():
    maps = 'layer { name: "maps" type: "DummyData" top: "maps" dummy_data_param { shape { dim: 6 } } }'
    net = trained(maps, IP, 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "maps" top: "loss" }')
    assert list(deployed(net).inputs) == ["data"]


def test_fields_of_training_do_not_stay():
    net = trained(IP.replace('top: "ip"', 'top: "ip" loss_weight: 1 include { phase: TEST } phase: TEST'))
    (layer,) = deploy(net.spec, net.inputs).layer[1:]
    assert [field.name for field, _ in layer.ListFields()] == ["name", "type", "bottom", "top", "inner_product_param"]
