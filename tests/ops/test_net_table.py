"""The table of a net: published figures, torch's own counter of operations, and the memory that a forward takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from google.protobuf import text_format
from torch.utils.flop_counter import FlopCounterMode

from ops import net as nets
from ops import zoo
from ops.layers import registry
from ops.net_table import Row, at_batch, batch_of, multiply_adds, rows, settings, totals
from ops.proto.caffe_pb2 import NetParameter

GOLDEN = Path(__file__).parents[1] / "golden"
WEIGHTED = sorted(
    file.stem
    for kind in ("conv_", "deconv_", "ip", "lstm", "rnn")
    for file in GOLDEN.glob(f"layers/{kind}*.prototxt")
    if file.stem != "lstmunit"
)


def net(text: str, *arguments, **options) -> nets.Net:
    return nets.load(text_format.Parse(text, NetParameter()), *arguments, device="meta", **options)


def from_zoo(name: str, *arguments, **options) -> nets.Net:
    return nets.load(zoo.resolve(name), *arguments, device="meta", **options)


def by_name(built: nets.Net) -> dict[str, Row]:
    return {row.name: row for row in rows(built)}


def given(*shape: int, name: str = "data") -> str:
    dims = " ".join(f"dim: {size}" for size in shape)
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}\n'


# -- multiply-adds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "published", "exact", "parameters"), [
    ("caffenet", 724e6, 724_406_816, 60_965_224),
    ("alexnet", 724e6, 724_406_816, 60_965_224),
    ("googlenet", 1.58e9, 1_582_671_872, 6_998_552),
    ("vgg16", 15.5e9, 15_470_264_320, 138_357_544),
    ("resnet50", 3.86e9, 3_857_973_248, 25_557_096),
])  # fmt: skip
def test_multiply_adds_and_parameters_are_the_published_ones(name, published, exact, parameters):
    built = from_zoo(name)
    sums = totals(built, rows(built))
    assert (sums.per_item, sums.parameters) == (exact, parameters)
    assert sums.per_item == pytest.approx(published, rel=0.003)
    assert sums.multiply_adds == exact * sums.batch


def test_resnets_statistics_are_no_parameters():
    built = from_zoo("resnet50")
    sums = totals(built, rows(built))
    assert sums.statistics == 2 * 26_560 + 53
    assert sums.parameter_bytes == 4 * (25_557_096 + 2 * 26_560 + 53)


def counted_by_torch(built: nets.Net) -> int:
    """Floating-point operations of a forward: two a multiply-add."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        built({name: torch.empty(shape, device="meta") for name, shape in built.inputs.items()})
    return counter.get_total_flops()


@pytest.mark.parametrize("name", WEIGHTED)
def test_torchs_counter_of_operations_agrees_on_every_layer_with_weights(name):
    text = (GOLDEN / f"layers/{name}.prototxt").read_text()
    built = nets.load(text_format.Parse(text, NetParameter()), device="meta")
    assert counted_by_torch(built) == 2 * totals(built, rows(built)).multiply_adds > 0


@pytest.mark.parametrize("name", ["lenet", "cifar10_quick", "caffenet", "googlenet", "resnet50", "mnist_autoencoder"])
def test_torchs_counter_of_operations_agrees_on_whole_nets(name):
    built = from_zoo(name)
    assert counted_by_torch(built) == 2 * totals(built, rows(built)).multiply_adds


def test_an_inner_product_and_a_recurrent_layer_by_hand():
    built = net(
        given(5, 2, 3)
        + given(5, 2, name="cont")
        + """layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
                     inner_product_param { num_output: 7 axis: 2 } }
             layer { name: "lstm" type: "LSTM" bottom: "ip" bottom: "cont" top: "lstm"
                     recurrent_param { num_output: 4 } }
             layer { name: "gru" type: "GRU" bottom: "ip" bottom: "cont" top: "gru"
                     recurrent_param { num_output: 4 } }"""
    )
    found = {name: row.multiply_adds for name, row in by_name(built).items()}
    assert found["ip"] == 5 * 2 * 3 * 7
    assert found["lstm"] == 5 * 2 * (16 * 7 + 16 * 4)
    assert found["gru"] == 5 * 2 * (12 * 7 + 12 * 4)


def test_a_layer_from_elsewhere_is_not_guessed(monkeypatch):
    monkeypatch.setattr(registry, "LAYERS", dict(registry.LAYERS))

    @registry.layer("Doubling")
    class Doubling(registry.Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    built = net(given(1, 3) + 'layer { name: "twice" type: "Doubling" bottom: "data" top: "twice" }')
    listed = rows(built)
    assert listed[1].multiply_adds is None
    assert listed[1].family == ""
    assert totals(built, listed).uncounted == ("twice",)
    assert multiply_adds(built.layers[0], []) == 0


def test_a_step_of_a_recurrent_layer_has_no_weights_of_its_own():
    built = nets.load(GOLDEN / "layers/lstmunit.prototxt", device="meta")
    assert totals(built, rows(built)).multiply_adds == 0


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lenet", "cifar10_full", "googlenet", "mnist_autoencoder", "resnet50"])
def test_the_blobs_take_the_memory_that_a_forward_takes(name):
    inputs = {"data": (1, 3, 224, 224)} if name in ("googlenet", "resnet50") else None
    built = nets.load(zoo.find(name), inputs=inputs)
    with torch.no_grad():
        blobs = built(data=torch.zeros(built.inputs["data"]))
    held = {blob.untyped_storage().data_ptr(): blob.untyped_storage().nbytes() for blob in blobs.values()}
    assert totals(built, rows(built)).blob_bytes == sum(held.values())


def test_an_input_without_a_layer_takes_memory_too():
    text = 'layer { name: "relu" type: "ReLU" bottom: "x" top: "y" }'
    built = net(text, inputs={"x": (2, 5)})
    assert totals(built, rows(built)).blob_bytes == 2 * 4 * 10


# -- parameters ------------------------------------------------------------------------------------------------------


def test_shared_blobs_count_once_and_say_whose_they_are():
    built = from_zoo("siamese/train_val", inputs={"pair_data": (64, 2, 28, 28)})
    assert totals(built, rows(built)).parameters == 431_102
    second = by_name(built)["conv1_p"]
    assert (second.parameters, second.shared) == (0, ("conv1",))


def test_frozen_parameters_are_those_with_lr_mult_0():
    built = net(
        given(1, 3)
        + """layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" param { lr_mult: 0 }
                     inner_product_param { num_output: 7 } }
             layer { name: "bn" type: "BatchNorm" bottom: "ip" top: "ip" }"""
    )
    found = by_name(built)
    assert (found["ip"].parameters, found["ip"].frozen) == (28, 21)
    assert (found["bn"].parameters, found["bn"].statistics, found["bn"].frozen) == (0, 15, 0)
    assert totals(built, rows(built)).frozen == 21


# -- the batch -------------------------------------------------------------------------------------------------------


def test_the_batch_is_the_first_axis_of_the_first_input():
    built = from_zoo("lenet")
    assert batch_of(built) == 64
    assert at_batch(built, 7) == {"data": (7, 1, 28, 28)}
    assert batch_of(net('layer { name: "p" type: "Parameter" top: "p" parameter_param { shape { dim: 2 } } }')) is None


def test_of_sequences_the_batch_is_the_streams():
    built = nets.load(GOLDEN / "prototxt/lstm_static.prototxt", device="meta")
    assert {name: shape[:2] for name, shape in built.inputs.items()} == {"x": (4, 3), "c": (4, 3), "s": (3, 7)}
    assert batch_of(built) == 3
    wider = at_batch(built, 9)
    assert wider == {"x": (4, 9, 5), "c": (4, 9), "s": (9, 7)}
    again = nets.load(GOLDEN / "prototxt/lstm_static.prototxt", device="meta", inputs=wider)
    one, other = totals(built, rows(built)), totals(again, rows(again))
    assert one.per_item == other.per_item


def test_inputs_of_another_first_axis_keep_it():
    built = net(
        given(2, 3, 8, 8)
        + given(50, 5, name="rois")
        + """layer { name: "roi" type: "ROIPooling" bottom: "data" bottom: "rois" top: "roi"
                     roi_pooling_param { pooled_h: 2 pooled_w: 2 } }"""
    )
    assert at_batch(built, 4) == {"data": (4, 3, 8, 8), "rois": (50, 5)}


# -- settings and rows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "told"), [
    ('type: "Convolution" convolution_param { num_output: 4 kernel_size: 3 }', {"kernel": "3"}),
    ('type: "Convolution" convolution_param { num_output: 4 kernel_h: 3 kernel_w: 5 stride: 2 pad_h: 1 pad_w: 0 '
     "group: 2 dilation: 1 bias_term: false }",
     {"kernel": "3x5", "stride": "2", "pad": "1x0", "group": "2", "bias": "no"}),
    ('type: "Pooling" pooling_param { pool: AVE global_pooling: true }', {"pool": "AVE", "kernel": "all"}),
    ('type: "Pooling" pooling_param { kernel_size: 2 stride: 2 }', {"pool": "MAX", "kernel": "2", "stride": "2"}),
    ('type: "LRN" lrn_param { alpha: 0.0001 norm_region: WITHIN_CHANNEL }',
     {"alpha": "0.0001", "norm_region": "WITHIN_CHANNEL"}),
    ('type: "Dropout" dropout_param { dropout_ratio: 0.7 }', {"dropout_ratio": "0.7"}),
    ('type: "Scale" scale_param { bias_term: true filler { value: 2 } }', {"bias_term": "yes"}),
    ('type: "InnerProduct" inner_product_param { num_output: 3 bias_term: true }', {}),
    ('type: "Reduction" loss_weight: 0.3', {"loss_weight": "0.3"}),
    ('type: "Slice" top: "b" top: "c" slice_param { slice_point: 1 slice_point: 2 }', {"slice_point": "1 2"}),
])  # fmt: skip
def test_settings_are_what_the_text_says_beside_shapes(layer, told):
    built = net(given(1, 4, 8, 8) + f'layer {{ name: "one" bottom: "data" top: "one" {layer} }}')
    assert settings(built.layers[1]) == told


def test_an_eltwise_always_says_what_it_does():
    built = net(given(2, 3) + 'layer { name: "sum" type: "Eltwise" bottom: "data" bottom: "data" top: "sum" }')
    assert settings(built.layers[1]) == {"operation": "SUM"}


def test_a_row_tells_bottoms_tops_shapes_and_what_is_in_place():
    found = by_name(from_zoo("caffenet"))
    conv, relu = found["conv1"], found["relu1"]
    assert (conv.bottoms, conv.tops, conv.shapes) == (("data",), ("conv1",), ((10, 96, 55, 55),))
    assert (conv.inplace, conv.bytes, conv.parameters, conv.family) == (False, 4 * 2_904_000, 34_944, "convolution")
    assert (relu.inplace, relu.bytes, relu.multiply_adds) == (True, 0, 0)
