"""debug_info: the lines of a pass against a net written out in torch, and a training that does not notice them."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from google.protobuf import text_format

from ops import net as nets
from ops.parallel import Group
from ops.proto.caffe_pb2 import NetParameter
from ops.training.debug import debugging
from ops.training.log import Log

ALONE = Group()
NET = """
name: "watched"
layer { name: "data" type: "Input" top: "data" top: "label"
        input_param { shape { dim: 4 dim: 2 dim: 6 dim: 6 } shape { dim: 4 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 } param { lr_mult: 0 }
        convolution_param { num_output: 3 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "norm" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true
        filler { type: "uniform" min: 0.5 max: 2 } bias_filler { type: "uniform" min: -1 max: 1 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "a" type: "InnerProduct" bottom: "pool" top: "a" param { name: "w" } param { name: "b" }
        inner_product_param { num_output: 5 weight_filler { type: "gaussian" std: 2 } } }
layer { name: "b" type: "InnerProduct" bottom: "pool" top: "b" param { name: "w" } param { name: "b" }
        inner_product_param { num_output: 5 } }
layer { name: "sigmoid" type: "Sigmoid" bottom: "a" top: "a" }
layer { name: "tanh" type: "TanH" bottom: "b" top: "b" }
layer { name: "sum" type: "Eltwise" bottom: "a" bottom: "b" top: "sum" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "sum" bottom: "label" top: "loss" }
"""


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load(text=NET, phase="TRAIN"):
    return nets.load(text_format.Parse(text, NetParameter()), phase, seed=3)


def inputs(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {"data": torch.randn(4, 2, 6, 6, generator=generator), "label": torch.tensor([0.0, 2.0, 4.0, 2.0])}


class Lines(Log):
    """A log that keeps what it is told, as (level, file, text)."""

    def __init__(self):
        super().__init__(None)
        self.said = []

    def line(self, text, *, where="", level="I"):
        self.said.append((level, where, text))

    def numbers(self):
        """line without its number -> number"""
        found = {}
        for _, _, text in self.said:
            name, _, value = text.strip().rpartition(": ")
            if "L1 norm" not in text:
                assert name not in found, f"{name} twice"
                found[name] = float(value)
        return found


def watched(net, given, *, passes=1):
    log = Lines()
    with debugging(net, ALONE, log) as tell:
        for _ in range(passes):
            log.said.clear()
            blobs = net(given)
            net.loss(blobs).backward()
            tell(blobs)
    return log


def size(tensor):
    return tensor.detach().abs().mean().item()


def written_out(net, given):
    """The same pass in plain torch: {what the line says: number}."""
    kept = {}

    def keep(name, tensor):
        tensor.retain_grad()
        kept[name] = tensor
        return tensor

    w, bias = (net.params["conv"][i].detach() for i in (0, 1))
    w.requires_grad_()
    gamma, beta = (blob.detach().clone().requires_grad_() for blob in net.params["scale"])
    shared, offset = (blob.detach().clone().requires_grad_() for blob in net.params["a"])
    conv = keep("conv", F.conv2d(given["data"], w, bias))
    normal = keep("norm", F.batch_norm(conv, None, None, training=True, eps=1e-5))
    scaled = keep("scale", normal * gamma.reshape(-1, 1, 1) + beta.reshape(-1, 1, 1))
    relu = keep("relu", scaled.relu())
    pool = keep("pool", F.max_pool2d(relu, 2))
    to_a, to_b = keep("to a", pool * 1), keep("to b", pool * 1)
    a, b = (keep(name, F.linear(x.flatten(1), shared, offset)) for name, x in (("a", to_a), ("b", to_b)))
    sigmoid, tanh = keep("sigmoid", a.sigmoid()), keep("tanh", b.tanh())
    total = keep("sum", sigmoid + tanh)
    loss = F.cross_entropy(total, given["label"].long())
    loss.backward()
    forward = {"data": ("data", given["data"]), "conv": ("conv", conv), "norm": ("conv", normal)}
    forward |= {"scale": ("conv", scaled), "relu": ("conv", relu), "pool": ("pool", pool), "a": ("a", a), "b": ("b", b)}
    forward |= {"sigmoid": ("a", sigmoid), "tanh": ("b", tanh), "sum": ("sum", total), "loss": ("loss", loss)}
    found = {f"[Forward] Layer {name}, top blob {blob} data": size(x) for name, (blob, x) in forward.items()}
    found["[Forward] Layer data, top blob label data"] = size(given["label"])
    blobs = {"conv": {"0": w, "1": bias}, "scale": {"0": gamma, "1": beta}, "a": {"w": shared, "b": offset}}
    blobs["b"] = blobs["a"]
    for name, each in blobs.items():
        for blob, x in each.items():
            found[f"[Forward] Layer {name}, param blob {blob} data"] = size(x)
            if x.grad is not None:
                found[f"[Backward] Layer {name}, param blob {blob} diff"] = size(x.grad)
    backward = {
        ("norm", "conv"): "conv",
        ("scale", "conv"): "norm",
        ("relu", "conv"): "scale",
        ("pool", "conv"): "relu",
    }
    backward |= {("a", "pool"): "to a", ("b", "pool"): "to b", ("sigmoid", "a"): "a", ("tanh", "b"): "b"}
    backward |= {("sum", "a"): "sigmoid", ("sum", "b"): "tanh", ("loss", "sum"): "sum"}
    for (name, blob), of in backward.items():
        found[f"[Backward] Layer {name}, bottom blob {blob} diff"] = size(kept[of].grad)
    for name, owned in {"conv": [w], "scale": [gamma, beta], "a": [shared, offset], "b": [shared, offset]}.items():
        found[f"[Debug] Layer {name}, gradient norm"] = sum(x.grad.square().sum() for x in owned).sqrt().item()
    dead = (relu == 0).all(0).all(1).all(1)
    found["[Debug] Layer relu, dead units"] = dead.float().mean().item()
    slopes = {"sigmoid": 4 * sigmoid * (1 - sigmoid), "tanh": 1 - tanh**2}
    for name, slope in slopes.items():
        found[f"[Debug] Layer {name}, saturated values"] = (slope < 0.05).float().mean().item()
    learned = [w, gamma, beta, shared, offset]
    data = [*learned, bias, *net.params["norm"]]
    sums = (sum(x.detach().abs().sum() for x in data), sum(x.grad.abs().sum() for x in learned))
    squares = (sum(x.detach().square().sum() for x in data), sum(x.grad.square().sum() for x in learned))
    return found, [*map(float, sums), *(float(x) ** 0.5 for x in squares)]


def test_every_line_of_a_pass_says_what_torch_finds():
    net, given = load(), inputs()
    log = watched(net, given)
    expected, norms = written_out(net, given)
    found = log.numbers()
    statistics = {name: value for name, value in found.items() if "Layer norm, param blob" in name}
    assert len(statistics) == 3
    assert {name: pytest.approx(value, rel=2e-5) for name, value in expected.items()} == {
        name: value for name, value in found.items() if name not in statistics
    }
    (told,) = [text for level, _, text in log.said if level == "E"]
    pairs = re.findall(r"norm = \((\S+), (\S+)\)", told)
    assert [float(value) for pair in pairs for value in pair] == pytest.approx(norms, rel=2e-5)
    assert told.startswith("    [Backward] All net params (data, diff): L1 norm = (")
    assert {where for _, where, _ in log.said} == {"net.cpp"}


def test_forward_lines_go_down_the_net_and_backward_lines_up():
    order = [layer.spec.name for layer in load().layers]
    said = [text.strip() for _, _, text in watched(load(), inputs()).said]
    layers = {kind: [] for kind in ("[Forward]", "[Backward]")}
    for text in said:
        kind, _, rest = text.partition(" Layer ")
        if kind in layers and "All net params" not in text:
            layers[kind].append(order.index(rest.partition(",")[0]))
    assert layers["[Forward]"] == sorted(layers["[Forward]"])
    assert layers["[Backward]"] == sorted(layers["[Backward]"], reverse=True)
    assert [text for text in said if "sum, bottom" in text] == sorted(text for text in said if "sum, bottom" in text)


def test_a_pass_computes_the_same_bits_whether_or_not_it_is_watched():
    plain, net = load(), load()
    for seed in (1, 2):
        blobs = plain(inputs(seed))
        plain.loss(blobs).backward()
        log = Lines()
        with debugging(net, ALONE, log) as tell:
            seen = net(inputs(seed))
            net.loss(seen).backward()
            tell(seen)
        for name, blob in blobs.items():
            assert torch.equal(blob, seen[name]), name
    for one, other in zip(plain.layers, net.layers, strict=True):
        for mine, theirs in zip(one.blobs, other.blobs, strict=True):
            assert torch.equal(mine, theirs)
            assert mine.grad is theirs.grad is None or torch.equal(mine.grad, theirs.grad)


def test_the_net_is_left_as_it_was_and_untouched_while_it_is_off():
    net = load()
    before = [(step.compute, step.layer.inplace) for step in net.steps]
    assert any(inplace for _, inplace in before)
    with debugging(net, ALONE, Lines(), on=False) as tell:
        assert [(step.compute, step.layer.inplace) for step in net.steps] == before
        assert tell(net(inputs())) is None
    with pytest.raises(ZeroDivisionError), debugging(net, ALONE, Lines()):
        raise ZeroDivisionError
    assert [(step.compute, step.layer.inplace) for step in net.steps] == before


def test_weight_gradients_are_those_added_up_so_far():
    once, twice = watched(load(), inputs()).numbers(), watched(load(), inputs(), passes=2).numbers()
    name = "[Backward] Layer conv, param blob 0 diff"
    assert twice[name] == pytest.approx(2 * once[name], rel=1e-5)
    name = "[Backward] Layer pool, bottom blob conv diff"
    assert twice[name] == pytest.approx(once[name], rel=1e-5)


def test_a_channel_that_is_zero_for_the_whole_batch_is_a_dead_unit():
    text = NET.replace("lr_mult: 1", "lr_mult: 0")
    net = load(text)
    with torch.no_grad():
        net.params["scale"][1].copy_(torch.tensor([-50.0, 0.0, -50.0]))
    assert watched(net, inputs()).numbers()["[Debug] Layer relu, dead units"] == pytest.approx(2 / 3, rel=1e-5)


def test_leaky_units_do_not_die():
    net = load(NET.replace('type: "ReLU"', 'type: "ReLU" relu_param { negative_slope: 0.1 }'))
    assert not [name for name in watched(net, inputs()).numbers() if "dead" in name]


def test_large_sums_saturate_a_sigmoid_and_a_tanh():
    net = load()
    with torch.no_grad():
        net.params["a"][0].zero_()
        net.params["a"][1].copy_(torch.tensor([9.0, 0.0, -9.0, 0.0, 0.0]))
    found = watched(net, inputs()).numbers()
    assert found["[Debug] Layer sigmoid, saturated values"] == pytest.approx(0.4)
    assert found["[Debug] Layer tanh, saturated values"] == pytest.approx(0.4)


def test_a_test_net_has_forward_lines_alone_with_the_stored_statistics():
    net = load(phase="TEST")
    with torch.no_grad():
        for blob, value in zip(net.params["norm"], (0.5, 2.0, 2.0), strict=True):
            blob.fill_(value)
    log = Lines()
    with torch.no_grad(), debugging(net, ALONE, log) as tell:
        blobs = net(inputs())
        tell(blobs)
        first = log.numbers()
        log.said.clear()
        tell(net(inputs(2)))
    assert not [text for _, _, text in log.said if "Backward" in text or "gradient" in text]
    conv = F.conv2d(inputs()["data"], *net.params["conv"])
    expected = ((conv - 0.25) / (1.0 + 1e-5) ** 0.5).abs().mean().item()
    assert first["[Forward] Layer norm, top blob conv data"] == pytest.approx(expected, rel=2e-5)
    assert (
        first["[Forward] Layer data, top blob data data"] != log.numbers()["[Forward] Layer data, top blob data data"]
    )
