"""The gradient check: every layer passes it, and no planted error does."""

from __future__ import annotations

import json
import re

import pytest
import torch
from google.protobuf import text_format
from torch import Tensor

from ops import net as nets
from ops.differences import Probe, places, unravel
from ops.gradient_check import Checked, check_gradients
from ops.layers.registry import LAYERS, Layer
from ops.layers.registry import layer as register
from ops.own_backward import OwnBackward
from ops.proto.caffe_pb2 import FillerParameter, NetParameter
from tests.ops.layers import golden

NO_GRADIENT = {"Accuracy", "ArgMax", "Silence", "HDF5Output"}
BY_MODULE = {"Python"}  # test_layers_of_python_modules_pass


@pytest.fixture(autouse=True)
def _one_thread():
    """Many small forwards: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def net_of(text: str, *shapes: tuple[int, ...], phase: str = "TRAIN", **options) -> nets.Net:
    """A net of Input layers a, b, c, ... of `shapes` and the layer `l`."""
    layers = [
        f'layer {{ name: "in_{name}" type: "Input" top: "{name}" '
        f"input_param {{ shape {{ {' '.join(f'dim: {size}' for size in shape)} }} }} }}"
        for name, shape in zip("abcd", shapes, strict=False)
    ]
    return nets.load(text_format.Parse(" ".join([*layers, text]), NetParameter()), phase, **options)


def bottoms(count: int) -> str:
    return " ".join(f'bottom: "{name}"' for name in "abcd"[:count])


def one(kind: str, *shapes: tuple[int, ...], more: str = "", tops: int = 1, phase: str = "TRAIN") -> nets.Net:
    top = " ".join(f'top: "y{i}"' for i in range(tops))
    return net_of(f'layer {{ name: "l" type: "{kind}" {bottoms(len(shapes))} {top} {more} }}', *shapes, phase=phase)


def wrong(rows: list[Checked]) -> list[str]:
    return [row.told for row in rows if not row.ok]


# -- every layer type --------------------------------------------------------------------------------------------------

IMAGES = (2, 3, 6, 7)
RECURRENT = "recurrent_param { num_output: 3 weight_filler { type: 'gaussian' std: 0.5 } }"
BY_HAND = {
    "BatchReindex": lambda: one("BatchReindex", (4, 3), (6,)),
    "Clip": lambda: one("Clip", (3, 4), more="clip_param { min: -0.5 max: 1 }"),
    "ContrastiveLoss": lambda: one("ContrastiveLoss", (5, 4), (5, 4), (5,)),
    "ConvolutionDepthwise": lambda: one("ConvolutionDepthwise", IMAGES, more=WINDOWS),
    "DepthwiseConvolution": lambda: one("DepthwiseConvolution", IMAGES, more=WINDOWS),
    "Dropout": lambda: one("Dropout", (5, 8)),
    "Filter": lambda: one("Filter", (6, 3), (6,)),
    "GRU": lambda: one("GRU", (4, 2, 3), (4, 2), more=RECURRENT),
    "MultiMarginLoss": lambda: one("MultiMarginLoss", (4, 5), (4,)),
    "MultinomialLogisticLoss": lambda: one("MultinomialLogisticLoss", (4, 5), (4,)),
    "Normalize": lambda: one("Normalize", IMAGES),
    "PReLU": lambda: one("PReLU", IMAGES),
    "Permute": lambda: one("Permute", IMAGES, more="permute_param { order: 0 order: 2 order: 3 order: 1 }"),
    "ROIPooling": lambda: one("ROIPooling", IMAGES, (5, 5), more="roi_pooling_param { pooled_h: 2 pooled_w: 2 }"),
    "ReLU": lambda: one("ReLU", (3, 4)),
    "ReLU6": lambda: one("ReLU6", (3, 4)),
    "SmoothL1Loss": lambda: one("SmoothL1Loss", (4, 3), (4, 3), (4, 3), (4, 3)),
}
WINDOWS = "convolution_param { num_output: 3 kernel_size: 3 pad: 1 weight_filler { type: 'xavier' } }"


def golden_case(name: str) -> nets.Net:
    return nets.load(
        golden.FOLDER / f"{name}.prototxt", json.loads((golden.FOLDER / f"{name}.json").read_text())["phase"]
    )


def types() -> dict[str, list[str]]:
    """Layer type -> the golden cases that have it."""
    found: dict[str, list[str]] = {}
    for name in golden.names():
        kind = re.findall(r'name: "l" type: "(\w+)"', (golden.FOLDER / f"{name}.prototxt").read_text())[0]
        found.setdefault(kind, []).append(name)
    return found


GOLDEN = {kind: names for kind, names in types().items() if kind not in NO_GRADIENT}


@pytest.mark.parametrize("kind", sorted({*GOLDEN, *BY_HAND}))
def test_every_layer_passes(kind):
    net = BY_HAND[kind]() if kind in BY_HAND else golden_case(GOLDEN[kind][0])
    rows = check_gradients(net)
    assert rows, "something was checked"
    assert not wrong(rows)
    assert {row.type for row in rows} == {kind}


PYTHON = """
import caffe
import torch

class Twice(caffe.Layer):
    def setup(self, bottom, top):
        self.blobs.add_blob(3)
        self.blobs[0].data[...] = 2

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data * self.blobs[0].data

    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = top[0].diff * self.blobs[0].data
        self.blobs[0].diff[...] = {factor} * (top[0].diff * bottom[0].data).sum(0)

class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        return torch.sin(x * self.weight)
"""


@pytest.mark.parametrize(
    ("kind", "factor", "wrong_blobs"), [("Twice", 1, []), ("Module", 1, []), ("Twice", 1.001, [0])]
)
def test_layers_of_python_modules_pass(tmp_path, monkeypatch, kind, factor, wrong_blobs):
    name = f"module_{kind}_{len(wrong_blobs)}"
    (tmp_path / f"{name}.py").write_text(PYTHON.format(factor=factor))
    monkeypatch.syspath_prepend(tmp_path)
    rows = check_gradients(one("Python", (4, 3), more=f'python_param {{ module: "{name}" layer: "{kind}" }}'))
    assert [row.blob for row in rows] == ["bottom a", "blob 0"]
    assert [row.blob for row in rows if not row.ok] == [f"blob {index}" for index in wrong_blobs]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for names in GOLDEN.values() for name in names[1:]])
def test_every_case_passes(name):
    assert not wrong(check_gradients(golden_case(name)))


def test_no_layer_type_is_left_out():
    computing = {kind for kind, made in LAYERS.items() if not made.source and made.__module__.startswith("ops.layers.")}
    assert computing == {*GOLDEN, *BY_HAND} | NO_GRADIENT | BY_MODULE


@pytest.mark.parametrize("kind", ["Accuracy", "ArgMax"])
def test_a_layer_without_a_gradient_has_nothing_to_check(kind):
    assert check_gradients(one(kind, (4, 5), *[(4,)] * (kind == "Accuracy"))) == []


# -- planted errors ----------------------------------------------------------------------------------------------------


@pytest.fixture
def planted():
    """Register "Planted": y = x * w + v, with functions for its three gradients' errors."""
    errors: dict[str, Tensor | float] = {}

    class Planted(OwnBackward):
        def __init__(self, spec, bottoms, phase):
            super().__init__(spec, bottoms, phase)
            self.add_blob((bottoms[0][1],), FillerParameter(value=2))
            self.add_blob((bottoms[0][1],))

        def compute(self, x):
            return x * self.blob(0) + self.blob(1)

        def bottom_gradient(self, grad, x):
            return grad * self.blob(0) * errors.get("bottom a", 1.0)

        def blob_gradient(self, grad, x):
            return (grad * x).sum(0) * errors.get("blob 0", 1.0), grad.sum(0) * errors.get("blob 1", 1.0)

    register("Planted")(Planted)
    yield errors
    del LAYERS["Planted"]


def off(at: int, by: float) -> Tensor:
    """Factors of 1, but for one."""
    factors = torch.ones(5, dtype=torch.float64)
    factors[at] = by
    return factors


@pytest.mark.parametrize("blob", ["bottom a", "blob 0", "blob 1"])
@pytest.mark.parametrize("error", [1.001, 0.999, off(3, 1.001), 0.0, -1.0])
def test_an_error_of_a_thousandth_is_found_in_its_layer_and_blob(planted, blob, error):
    text = """layer { name: "first" type: "Sigmoid" bottom: "a" top: "s" }
    layer { name: "second" type: "Planted" bottom: "a" top: "p" }
    layer { name: "third" type: "TanH" bottom: "p" top: "t" }"""
    net = net_of(text, (7, 5))
    assert not wrong(check_gradients(net))
    planted[blob] = error
    told = wrong(check_gradients(net_of(text, (7, 5))))
    assert len(told) == 1
    assert told[0].startswith(f"layer 'second' (Planted): {blob}: the backward gives ")


def test_a_single_wrong_element_of_a_large_blob_is_found_along_a_direction(planted):
    """Only a few elements of a large blob are tried by themselves; a sum over all shows the one that is wrong."""
    net = one("Planted", (3, 40_000))
    factors = torch.ones(40_000, dtype=torch.float64)
    factors[17_003] = 1.2
    planted["blob 0"] = factors
    rows = check_gradients(net)
    assert [row.blob for row in rows if not row.ok] == ["blob 0"]
    assert all(row.checked < 20 for row in rows)
    assert [row.at for row in rows if not row.ok] == [None]


def test_a_gradient_that_is_missing_is_found():
    class Cut(Layer):
        def forward(self, x):
            return (x * 2).detach()

    register("Cut")(Cut)
    try:
        (row,) = check_gradients(one("Cut", (2, 3)))
    finally:
        del LAYERS["Cut"]
    assert not row.ok
    assert "no gradient reaches it, differences give" in row.told


def test_a_gradient_that_is_not_a_number_is_found(planted):
    planted["blob 1"] = float("nan")
    assert [row.error for row in check_gradients(one("Planted", (2, 3))) if not row.ok] == [float("inf")]


def test_a_wrong_gradient_of_a_layer_that_runs_with_another_is_found(monkeypatch):
    """A BatchNorm and the Scale behind it are one step: blobs of both are checked, under their own layers."""
    text = """layer { name: "bn" type: "BatchNorm" bottom: "a" top: "y" }
    layer { name: "scale" type: "Scale" bottom: "y" top: "y" scale_param { bias_term: true } }"""
    rows = check_gradients(net_of(text, IMAGES))
    assert [(row.layer, row.blob) for row in rows] == [("bn", "bottom a"), ("scale", "blob 0"), ("scale", "blob 1")]
    assert not wrong(rows)


# -- kinks -------------------------------------------------------------------------------------------------------------


def compare(function, gradient, x: Tensor):
    probe = Probe(lambda: [function(x)], [torch.ones_like(x)], torch.Generator().manual_seed(0), 1e-4)
    return probe.compare(x, gradient, places(tuple(x.shape), 100, torch.Generator()))


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
def test_at_a_kink_any_slope_between_its_sides_is_right(slope):
    x = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    gradient = torch.tensor([0.0, slope, 1.0], dtype=torch.float64)
    found = compare(torch.relu, gradient, x)
    assert found.error <= 1e-4
    assert found.kinks >= 1 or slope == 0.5  # which the differences give


@pytest.mark.parametrize("slope", [-0.01, 1.01])
def test_at_a_kink_other_slopes_are_wrong(slope):
    x = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    assert compare(torch.relu, torch.tensor([0.0, slope, 1.0], dtype=torch.float64), x).error > 1e-3


def test_a_kink_near_by_is_no_error():
    x = torch.tensor([3e-6, -3e-6, 0.5], dtype=torch.float64)
    assert compare(torch.relu, torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64), x).error <= 1e-4


@pytest.mark.parametrize(
    ("function", "derivative"),
    [
        (torch.exp, torch.exp),
        (torch.sin, torch.cos),
        (lambda x: x**3, lambda x: 3 * x**2),
        (lambda x: 1e-9 * x, lambda x: torch.full_like(x, 1e-9)),
        (lambda x: 1e9 * x.sqrt(), lambda x: 5e8 / x.sqrt()),
        (lambda x: x * 0 + 5, torch.zeros_like),
    ],
)
def test_derivatives_that_are_known_pass_and_a_thousandth_more_does_not(function, derivative):
    x = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    right = derivative(x)
    assert compare(function, right, x).error < 1e-5
    if right.any():
        assert compare(function, right * 1.001, x).error > 5e-4


def test_places_are_all_or_a_few():
    shape = (3, 4, 5)
    assert [unravel(i, shape) for i in (0, 1, 5, 59)] == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (2, 3, 4)]
    assert len(set(places(shape, 60, torch.Generator()))) == 60
    assert 1 <= len(places(shape, 7, torch.Generator().manual_seed(0))) <= 7


# -- what it leaves as it was ------------------------------------------------------------------------------------------


def test_weights_and_inputs_keep_their_values():
    net = golden_case("ip")
    before = [blob.detach().double().clone() for blob in net.params["l"]]
    inputs = {name: torch.randn(shape) for name, shape in net.inputs.items()}
    kept = {name: value.clone() for name, value in inputs.items()}
    check_gradients(net, inputs)
    assert all(torch.equal(blob, value) for blob, value in zip(net.params["l"], before, strict=True))
    assert all(torch.equal(inputs[name], value) for name, value in kept.items())


def test_a_blob_that_is_not_learned_stays_so():
    net = net_of(
        'layer { name: "l" type: "InnerProduct" bottom: "a" top: "y" param { lr_mult: 0 } param { lr_mult: 1 } '
        "inner_product_param { num_output: 2 } }",
        (2, 3),
    )
    rows = check_gradients(net)
    assert [row.blob for row in rows] == ["bottom a", "blob 0", "blob 1"]
    assert [blob.requires_grad for blob in net.params["l"]] == [False, True]


def test_only_one_layer_is_checked_where_it_is_named():
    text = """layer { name: "p" type: "TanH" bottom: "a" top: "p" }
    layer { name: "q" type: "Sigmoid" bottom: "p" top: "q" }"""
    assert [row.layer for row in check_gradients(net_of(text, (2, 3)), only="q")] == ["q"]
    with pytest.raises(ValueError, match="has no layer 'Q'; did you mean 'q'"):
        check_gradients(net_of(text, (2, 3)), only="Q")


def test_bottoms_that_get_no_gradient_are_left_out():
    net = one("Eltwise", (2, 3), (2, 3), more="propagate_down: true propagate_down: false")
    assert [row.blob for row in check_gradients(net)] == ["bottom a"]


def test_values_that_a_layer_has_no_number_for_are_made_positive():
    """A logarithm of random numbers is nan for half of them."""
    rows = check_gradients(one("Log", (3, 4)))
    assert not wrong(rows)
    assert rows[0].checked == 12


def test_a_layer_that_raises_in_its_backward_is_named():
    class Raises(OwnBackward):
        def compute(self, x):
            return 2 * x

        def bottom_gradient(self, grad, x):
            return grad, grad

    register("Raises")(Raises)
    try:
        with pytest.raises(ValueError, match=r"layer 'l' \(Raises\): backward: bottom_gradient gave 2 gradients"):
            check_gradients(one("Raises", (2, 3)))
    finally:
        del LAYERS["Raises"]


# -- another device ----------------------------------------------------------------------------------------------------


def test_another_device_is_compared_blob_by_blob():
    """Here with the CPU itself, which must agree."""
    rows = check_gradients(golden_case("ip"), device="cpu")
    assert [row.blob for row in rows if "on cpu" in row.blob] == [
        "top y on cpu",
        "gradient of bottom x on cpu",
        "gradient of blob 0 on cpu",
        "gradient of blob 1 on cpu",
    ]
    assert not wrong(rows)


def test_a_device_that_computes_otherwise_is_told():
    """A stand-in for a GPU with a wrong kernel: a layer that changes after it was moved."""

    class Moody(Layer):
        factor = 1.0

        def forward(self, x):
            return x * self.factor

        def to(self, device):
            self.factor = 1.001
            return self

    register("Moody")(Moody)
    try:
        told = wrong(check_gradients(one("Moody", (2, 3)), device="cpu"))
    finally:
        del LAYERS["Moody"]
    assert len(told) == 2
    assert told[0].startswith("layer 'l' (Moody): top y0 on cpu: cpu differs from cpu (relative error 1.0e-03")
    assert "gradient of bottom a" in told[1]
