"""Nets: what `load` makes of a definition, and what a forward gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from google.protobuf import text_format

from ops import net as nets
from ops.proto.caffe_pb2 import NetParameter
from ops.records import binaryproto

SMALL = """
name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 9 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc"
        inner_product_param { num_output: 5 weight_filler { type: "gaussian" std: 0.1 } } }
"""
LOSS = """
layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 2 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" }
"""


def net(text, *arguments, **options):
    return nets.load(text_format.Parse(text, NetParameter()), *arguments, **options)


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- a forward -------------------------------------------------------------------------------------------------------


def by_hand(small, x):
    """SMALL in plain torch."""
    conv = F.relu(F.conv2d(x, *small.params["conv"]))
    pool = F.max_pool2d(conv, 2, 2, ceil_mode=True)
    return {"data": x, "conv": conv, "pool": pool, "fc": F.linear(pool.flatten(1), *small.params["fc"])}


def test_a_forward_gives_every_blob_an_in_place_one_with_its_final_value():
    small, x = net(SMALL), draw(2, 3, 8, 9)
    blobs = small(data=x)
    assert blobs.keys() == {"data", "conv", "pool", "fc"}
    for name, expected in by_hand(small, x).items():
        assert torch.allclose(blobs[name], expected, atol=1e-6), name


def test_blobs_may_be_given_in_a_dict_or_as_arrays():
    small, x = net(SMALL), draw(2, 3, 8, 9)
    expected = small(data=x)["fc"]
    assert torch.equal(small({"data": x})["fc"], expected)
    assert torch.equal(small(data=x.double().numpy())["fc"], expected)
    whole = torch.randint(0, 255, (2, 3, 8, 9), dtype=torch.uint8)
    assert torch.equal(small(data=whole)["fc"], small(data=whole.float())["fc"])


def test_shapes_are_known_without_a_forward():
    small = net(SMALL)
    assert small.inputs == {"data": (2, 3, 8, 9)}
    assert small.shapes == {"data": (2, 3, 8, 9), "conv": (2, 4, 6, 7), "pool": (2, 4, 3, 4), "fc": (2, 5)}
    assert small.outputs == ["fc"]


def test_another_batch_or_size_is_just_another_call():
    small = net(SMALL)
    assert small(data=draw(7, 3, 8, 9))["fc"].shape == (7, 5)
    with pytest.raises(ValueError, match=r"small: layer 'fc' \(InnerProduct\): .*7 x 4 x 9 x 4"):
        small(data=draw(7, 3, 20, 9))


def test_inputs_are_never_written_into():
    text = """
    layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }
    layer { name: "relu" type: "ReLU" bottom: "data" top: "data" }
    layer { name: "power" type: "Power" bottom: "data" top: "data" power_param { scale: 2 } }
    """
    x = draw(2, 3)
    before = x.clone()
    with torch.no_grad():
        assert torch.equal(net(text)(data=x)["data"], 2 * x.relu())
    assert torch.equal(x, before)


def test_a_relu_writes_over_a_convolution_and_gradients_stay_right():
    small, x = net(SMALL), draw(2, 3, 8, 9)
    assert small.layers[2].inplace
    grad = draw(2, 5, seed=3)
    small(data=x)["fc"].backward(grad)
    ours = [blob.grad.clone() for blobs in small.params.values() for blob in blobs]
    small.zero_grad()
    by_hand(small, x)["fc"].backward(grad)
    for one, blob in zip(ours, (blob for blobs in small.params.values() for blob in blobs), strict=True):
        assert torch.allclose(one, blob.grad, atol=1e-5)


@pytest.mark.parametrize(
    ("first", "second"),
    [("Sigmoid", "ReLU"), ("Log", "ReLU"), ("Power", "Sigmoid"), ("Tile", "TanH"), ("Dropout", "ELU")],
)
@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_any_chain_in_place_has_the_gradients_of_the_chain_out_of_place(first, second, phase):
    def text(middle, last):
        params = {
            "Power": "power_param { power: 2 }",
            "Log": "log_param { shift: 9 }",
            "Tile": "tile_param { tiles: 1 }",
        }
        param = params.get(first, "")
        return f"""
        layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 2 dim: 3 }} }} }}
        layer {{ name: "b" type: "Bias" bottom: "x" top: "y" bias_param {{ filler {{ value: 0.5 }} }} }}
        layer {{ name: "1" type: "{first}" bottom: "y" top: "{middle}" {param} }}
        layer {{ name: "2" type: "{second}" bottom: "{middle}" top: "{last}" }}
        """

    x = draw(2, 3).requires_grad_()
    values = []
    for names in (("y", "y"), ("z", "w")):
        blobs = net(text(*names), phase)(x=x)
        values.append((blobs[names[1]], *torch.autograd.grad(blobs[names[1]].sum(), x)))
    assert torch.equal(values[0][0], values[1][0])
    assert torch.equal(values[0][1], values[1][1])


def test_batch_norm_and_scale_run_as_one_with_the_numbers_of_two():
    def text(middle):
        return f"""
        layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 4 dim: 3 dim: 5 dim: 5 }} }} }}
        layer {{ name: "bn" type: "BatchNorm" bottom: "x" top: "y" }}
        layer {{ name: "scale" type: "Scale" bottom: "y" top: "{middle}" scale_param {{ bias_term: true
                 filler {{ type: "gaussian" }} bias_filler {{ type: "gaussian" }} }} }}
        layer {{ name: "relu" type: "ReLU" bottom: "{middle}" top: "{middle}" }}
        """

    one, two = net(text("y"), "TRAIN"), net(text("z"), "TRAIN")
    assert (len(one.steps), len(two.steps)) == (2, 3)
    x, grad = draw(4, 3, 5, 5).requires_grad_(), draw(4, 3, 5, 5, seed=2)
    for a, b in zip(
        *(
            (blob, *torch.autograd.grad(blob, [x, *built.params["scale"]], grad))
            for built, blob in ((one, one(x=x)["y"]), (two, two(x=x)["z"]))
        ),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-5)
    assert torch.equal(one.params["bn"][0], two.params["bn"][0])


def test_channels_last_changes_no_value():
    small, x = net(SMALL), draw(2, 3, 8, 9)
    assert small.params["conv"][0].is_contiguous(memory_format=torch.channels_last)
    first = small(data=x)["fc"]
    plain = net(SMALL)
    with torch.no_grad():
        for mine, theirs in zip(plain.params["conv"], small.params["conv"], strict=True):
            mine.copy_(theirs)
    assert torch.equal(plain.params["conv"][0], small.params["conv"][0])
    assert torch.allclose(plain(data=x.to(memory_format=torch.channels_last))["fc"], first, atol=1e-6)


def test_parameters_have_gradients_and_statistics_are_buffers():
    text = SMALL + 'layer { name: "bn" type: "BatchNorm" bottom: "fc" top: "bn" }'
    built = net(text, "TRAIN")
    built(data=draw(2, 3, 8, 9))["bn"].square().sum().backward()
    assert all(isinstance(blob, torch.nn.Parameter) and blob.grad is not None for blob in built.params["conv"])
    assert [tuple(blob.shape) for blob in built.params["bn"]] == [(5,), (5,), (1,)]
    assert not any(isinstance(blob, torch.nn.Parameter) for blob in built.params["bn"])
    assert built.params["bn"][2].item() == 1


def test_double_precision_goes_through_the_whole_net():
    small = net(SMALL + LOSS, "TRAIN").double()
    blobs = small(data=draw(2, 3, 8, 9), label=torch.tensor([1, 4]))
    assert small.loss(blobs).dtype == torch.float64


# -- losses and outputs ----------------------------------------------------------------------------------------------


def test_a_loss_without_a_top_is_named_after_its_layer():
    built = net(SMALL + LOSS, "TRAIN")
    blobs = built(data=draw(2, 3, 8, 9), label=torch.tensor([1, 4]))
    assert built.outputs == ["loss(loss)"]
    assert torch.allclose(built.loss(blobs), F.cross_entropy(blobs["fc"], torch.tensor([1, 4])))


def test_the_loss_is_the_weighted_sum_over_all_elements():
    text = SMALL.replace('top: "pool"', 'top: "pool" loss_weight: 0.5')
    text = text.replace('top: "fc"', 'top: "fc" loss_weight: -2')
    built = net(text)
    blobs = built(data=draw(2, 3, 8, 9))
    assert torch.allclose(built.loss(blobs), 0.5 * blobs["pool"].sum() - 2 * blobs["fc"].sum())
    assert net(SMALL).loss(blobs).item() == 0


def test_outputs_stand_in_byte_order():
    names = ["b", "a", "Z", "ä", "_", "1"]
    text = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 6 } } }'
    tops = " ".join(f'top: "{name}"' for name in names)
    built = net(text + f'layer {{ name: "s" type: "Slice" bottom: "x" {tops} }}')
    assert built.outputs == ["1", "Z", "_", "a", "b", "ä"]


def test_a_loss_with_two_tops_weighs_the_first():
    text = SMALL + LOSS.replace('bottom: "label" }', 'bottom: "label" top: "loss" top: "prob" }')
    built = net(text, "TRAIN")
    assert built.loss_weights == {"loss": 1.0}
    blobs = built(data=draw(2, 3, 8, 9), label=torch.tensor([1, 4]))
    assert torch.allclose(blobs["prob"], blobs["fc"].softmax(1))


# -- gradients that are not wanted -----------------------------------------------------------------------------------


def test_a_blob_with_lr_mult_0_gets_no_gradient_unless_it_is_forced():
    text = SMALL.replace('top: "conv"\n', 'top: "conv" param { lr_mult: 0 }\n', 1)
    frozen, forced = net(text), net("force_backward: true " + text)
    for built, wanted in ((frozen, False), (forced, True)):
        built(data=draw(2, 3, 8, 9))["fc"].sum().backward()
        assert (built.params["conv"][0].grad is not None) == wanted
        assert built.params["conv"][1].grad is not None
    assert [one.lr_mult for one in frozen.learnable] == [0, 1, 1, 1]


def test_propagate_down_false_stops_a_gradient():
    text = SMALL.replace('bottom: "pool" top: "fc"', 'bottom: "pool" top: "fc" propagate_down: false')
    built = net(text)
    built(data=draw(2, 3, 8, 9))["fc"].sum().backward()
    assert built.params["conv"][0].grad is None
    assert built.params["fc"][0].grad is not None


# -- sharing ---------------------------------------------------------------------------------------------------------

TWINS = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 6 } } }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" lr_mult: 2 } param { name: "b" }
        inner_product_param { num_output: 6 weight_filler { type: "xavier" } } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" %s } param { name: "b" decay_mult: 0 }
        inner_product_param { num_output: %d bias_term: true } }
"""


def test_blobs_of_one_name_are_one_blob_whose_gradients_add_up():
    built, x = net(TWINS % ("", 6)), draw(2, 6)
    assert built.params["a"][0] is built.params["b"][0]
    assert len(list(built.parameters())) == 2
    learnable = [(one.layer, one.index, one.lr_mult, one.decay_mult) for one in built.learnable]
    assert learnable == [(1, 0, 2, 1), (1, 1, 1, 0)]
    built(x=x)["b"].sum().backward()
    w = built.params["a"][0].detach().clone().requires_grad_()
    bias = built.params["a"][1].detach()
    F.linear(F.linear(x, w, bias), w, bias).sum().backward()
    assert torch.allclose(built.params["a"][0].grad, w.grad, atol=1e-5)
    assert built.double().params["a"][0] is built.params["b"][0]


def test_shared_statistics_stay_one_when_the_net_moves():
    norm = (
        'layer {{ name: "{0}" type: "BatchNorm" bottom: "x" top: "{0}" '
        + " ".join(f'param {{{{ name: "{name}" }}}}' for name in "mvf")
        + " }}"
    )
    built = net(TWINS % ("", 6) + norm.format("n1") + norm.format("n2"), "TRAIN").double()
    assert built.params["n1"][0] is built.params["n2"][0]
    built(x=draw(2, 6))
    assert built.params["n1"][2].item() == pytest.approx(1.999)


def test_permissive_sharing_wants_only_the_count():
    text = """
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 6 } } }
    layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" }
            inner_product_param { num_output: 4 bias_term: false weight_filler { type: "xavier" } } }
    layer { name: "y" type: "Input" top: "y" input_param { shape { dim: 2 dim: 3 } } }
    layer { name: "b" type: "InnerProduct" bottom: "y" top: "b" param { name: "w" share_mode: PERMISSIVE }
            inner_product_param { num_output: 8 bias_term: false } }
    """
    built, y = net(text), draw(2, 3)
    assert torch.allclose(built(x=draw(2, 6), y=y)["b"], y @ built.params["a"][0].reshape(8, 3).T)
    with pytest.raises(ValueError, match="8 x 3 cannot be the 4 x 6 param 'w' of layer 'a'; share_mode: PERMISSIVE"):
        net(text.replace("share_mode: PERMISSIVE", ""))


@pytest.mark.parametrize(
    ("more", "outputs", "told"),
    [
        ("", 5, r"layer 'b' \(InnerProduct\): blob 0 of 5 x 6 cannot be the 6 x 6 param 'w' of layer 'a'"),
        ("lr_mult: 3", 6, "blob 0 has lr_mult 3, the param 'w' of layer 'a' has 2; write one of them, or the same"),
    ],
)
def test_blobs_that_cannot_be_one_are_told(more, outputs, told):
    with pytest.raises(ValueError, match=told):
        net(TWINS % (more, outputs))


# -- inputs and sources ----------------------------------------------------------------------------------------------

DATA = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 9 } } }'
SOURCE = SMALL.replace(
    DATA,
    'layer { name: "data" type: "Data" top: "data" top: "label" data_param { source: "nowhere" batch_size: 4 } }',
)


def test_inputs_give_shapes_and_no_source_is_opened():
    built = net(SOURCE, inputs={"data": (6, 3, 8, 9)})
    assert built.inputs == {"data": (6, 3, 8, 9), "label": (6,)}
    assert built.shapes["fc"] == (6, 5)
    assert net(SMALL, inputs={"data": [1, 3, 20, 20]}).shapes["pool"] == (1, 4, 9, 9)
    with pytest.raises(ValueError, match=r"small: layer 'data' \(Data\): .*nowhere"):
        net(SOURCE)


def test_a_piece_of_a_net_gets_its_inputs_from_outside():
    piece = SMALL.replace('layer { name: "data" type: "Input"', 'layer { name: "other" type: "Input"').replace(
        'top: "data"', 'top: "other"'
    )
    assert net(piece, inputs={"data": (1, 3, 8, 9)}).shapes["fc"] == (1, 5)
    old = 'input: "data" ' + SMALL.replace(DATA, "")
    assert net(old, inputs={"data": (1, 3, 8, 9)}).shapes["fc"] == (1, 5)


def test_dummy_data_is_made_where_nobody_gives_it():
    text = """
    layer { name: "d" type: "DummyData" top: "x" top: "y" dummy_data_param {
        shape { dim: 2 dim: 3 } data_filler { value: 4 } data_filler { type: "gaussian" } } }
    layer { name: "p" type: "Power" bottom: "x" top: "z" power_param { scale: 2 } }
    """
    built = net(text)
    first, second = built(), built()
    assert torch.equal(first["z"], torch.full((2, 3), 8.0))
    assert not torch.equal(first["y"], second["y"])
    assert torch.equal(net(text)()["y"], first["y"])
    assert built(x=torch.ones(2, 3))["z"].tolist() == [[2, 2, 2], [2, 2, 2]]


def test_only_what_the_wanted_blobs_need_is_built():
    built = net(SMALL + LOSS, blobs=["pool"])
    assert [layer.spec.name for layer in built.layers] == ["data", "conv", "relu", "pool"]
    assert built.inputs == {"data": (2, 3, 8, 9)}
    assert built.outputs == ["pool"]
    assert "pool" in built(data=draw(2, 3, 8, 9))
    conv = net(SMALL, blobs=["conv"])
    assert (conv(data=draw(2, 3, 8, 9))["conv"] >= 0).all()  # with the layer in place
    with pytest.raises(ValueError, match="small: has no blob 'pol'; did you mean 'pool'"):
        net(SMALL, blobs=["pol"])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, r"small: no tensor given for data \(2 x 3 x 8 x 9\)"),
        ({"dat": draw(2, 3, 8, 9)}, "small: has no input 'dat'; did you mean 'data'"),
        ({"data": draw(2, 3, 2, 2)}, r"small: layer 'conv' \(Convolution\): .*\(bottoms: data 2 x 3 x 2 x 2\)"),
        ({"data": draw(2, 4, 8, 9)}, r"layer 'conv' \(Convolution\): .*2 x 4 x 8 x 9 has 4 channels"),
    ],
)
def test_a_call_that_does_not_fit_is_told(given, told):
    with pytest.raises(ValueError, match=told):
        net(SMALL)(**given)


def test_inputs_that_are_none_are_told():
    with pytest.raises(ValueError, match=r"small: inputs: blob 'conv' is made by layer 'conv' \(Convolution\)"):
        net(SMALL, inputs={"conv": (2, 4, 6, 7)})
    with pytest.raises(ValueError, match="small: inputs: has no input 'dta'; did you mean 'data'"):
        net(SMALL, inputs={"dta": (2, 4, 6, 7)})
    with pytest.raises(ValueError, match=r"layer 'data' \(Input\): .*0 x 3 x 8 x 9"):
        net(SMALL, inputs={"data": (0, 3, 8, 9)})


# -- chance ----------------------------------------------------------------------------------------------------------


def test_the_same_seed_fills_and_draws_the_same():
    text = SMALL + 'layer { name: "drop" type: "Dropout" bottom: "fc" top: "drop" }'
    x = draw(2, 3, 8, 9)
    one, two, other = net(text, "TRAIN", seed=5), net(text, "TRAIN", seed=5), net(text, "TRAIN", seed=6)
    torch.manual_seed(1)
    first = one(data=x)["drop"]
    torch.manual_seed(2)
    assert torch.equal(two(data=x)["drop"], first)
    assert not torch.equal(one(data=x)["drop"], first)  # the next forward draws anew
    assert not torch.equal(one.params["conv"][0], other.params["conv"][0])


def test_what_is_filled_does_not_depend_on_what_else_is(tmp_path):
    from ops import weights

    weights.write(net(SMALL, seed=1), tmp_path / "w.caffemodel")
    more = SMALL + LOSS.replace('"fc"', '"fc8"').replace(
        'layer { name: "label"',
        """layer { name: "fc8" type: "InnerProduct" bottom: "fc" top: "fc8"
           inner_product_param { num_output: 9 weight_filler { type: "xavier" } } }
           layer { name: "label\"""",
    )
    fresh, tuned = net(more, seed=2), net(more, seed=2, weights=tmp_path / "w.caffemodel")
    assert torch.equal(fresh.params["fc8"][0], tuned.params["fc8"][0])
    assert torch.equal(tuned.params["conv"][0], net(SMALL, seed=1).params["conv"][0])
    assert tuned.report.copied == ("conv", "fc")
    assert tuned.report.kept == ("fc8",)


# -- old and binary files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_old_nets_give_caffe_s_outputs(version, golden):
    folder = golden / "legacy"
    expected = dict(np.load(folder / f"{version}_expected.npz"))
    built = nets.load(folder / f"{version}.prototxt", weights=folder / f"{version}.caffemodel")
    alone = nets.load(folder / f"{version}.caffemodel")  # a net and its weights in one file
    for one in (built, alone):
        with torch.no_grad():
            blobs = one(data=expected["in/data"])
        for key, value in expected.items():
            distance = np.linalg.norm(blobs[key.partition("/")[2]].numpy() - value) / np.linalg.norm(value)
            assert distance < 1e-5, key


def test_stages_and_levels_choose_layers():
    text = SMALL.replace('layer { name: "relu"', 'layer { include { stage: "x" } name: "relu"')
    assert len(net(text).layers) == 4
    assert len(net(text, stages=["x"]).layers) == 5
    assert [layer.name for layer in net(text, stages=["x"]).spec.layer][2] == "relu"


def test_a_recurrent_state_goes_on_from_a_saved_one():
    text = """
    layer { name: "in" type: "Input" top: "x" top: "c"
            input_param { shape { dim: 3 dim: 2 dim: 4 } shape { dim: 3 dim: 2 } } }
    layer { name: "lstm" type: "LSTM" bottom: "x" bottom: "c" top: "h"
            recurrent_param { num_output: 5 weight_filler { type: "xavier" } } }
    """
    one, two, x, cont = net(text), net(text), draw(3, 2, 4), torch.ones(3, 2)
    one(x=x, c=cont)
    two.load_state({key: value.clone() for key, value in one.state().items()})
    assert torch.equal(one(x=x, c=cont)["h"], two(x=x, c=cont)["h"])
    assert one.state()


def test_the_matrix_of_infogain_loss_is_looked_for_beside_the_prototxt(tmp_path, monkeypatch):
    binaryproto.write(tmp_path / "h.binaryproto", np.eye(3, dtype=np.float32)[None])
    (tmp_path / "net.prototxt").write_text(
        """layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 4 dim: 3 } shape { dim: 4 } } }
        layer { name: "loss" type: "InfogainLoss" bottom: "x" bottom: "y" top: "loss"
          infogain_loss_param { source: "h.binaryproto" } }"""
    )
    x, y = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    monkeypatch.chdir(tmp_path.parent)
    beside = nets.load(tmp_path / "net.prototxt")
    torch.testing.assert_close(beside(x=x, y=y.float())["loss"], F.cross_entropy(x, y))
