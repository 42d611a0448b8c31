"""Old nets and solvers: what Caffe makes of them, every type and field, weights kept, and what cannot be upgraded."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.proto import binary, text
from ops.proto.caffe_pb2 import NetParameter, SolverParameter, V0LayerParameter, V1LayerParameter
from ops.proto.upgrade import V0_FIELDS, V0_TYPES, V1_TYPES, needs_upgrade, upgrade_net, upgrade_solver
from tests.ops.proto.strategies import damaged, messages, refusal

GOLDEN = Path(__file__).parents[2] / "golden"
LEGACY = GOLDEN / "legacy"
TYPES = {match for file in GOLDEN.rglob("*.prototxt") for match in re.findall(r'type: "(\w+)"', file.read_text())}


def net(written: str) -> NetParameter:
    return text.parse(written, NetParameter)


def upgraded(written: str) -> tuple[NetParameter, list[str]]:
    """The net after the upgrade, and what was told."""
    spec = net(written)
    return spec, upgrade_net(spec, "f.prototxt")


def warnings(told: list[str]) -> list[str]:
    return [line for line in told if line.startswith("warning: ")]


def v0(layer: str, rest: str = "") -> str:
    return f"layers {{ layer {{ {layer} }} {rest} }}\n"


# -- what Caffe made ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["v0", "v1"])
def test_old_text_becomes_what_caffe_makes_of_it(form):
    spec = text.read(LEGACY / f"{form}.prototxt", NetParameter)
    assert needs_upgrade(spec)
    assert upgrade_net(spec)
    assert spec == text.read(LEGACY / f"{form}_upgraded.prototxt", NetParameter)
    assert text.dump(spec) == (LEGACY / f"{form}_upgraded.prototxt").read_text()
    assert not needs_upgrade(spec)


@pytest.mark.parametrize("form", ["v0", "v1"])
def test_old_weights_travel_along(form):
    old = binary.read(LEGACY / f"{form}.caffemodel", NetParameter)
    before = {item.name or item.layer.name: list(item.blobs) + list(item.layer.blobs) for item in old.layers}
    spec = binary.read(LEGACY / f"{form}.caffemodel", NetParameter)
    upgrade_net(spec)
    after = {layer.name: list(layer.blobs) for layer in spec.layer}
    assert {name: blobs for name, blobs in after.items() if blobs} == {
        name: blobs for name, blobs in before.items() if blobs
    }
    assert [len(after["conv1"]), len(after["fc2"])] == [2, 2]
    assert (after["conv1"][1].num, after["conv1"][1].width) == (1, 6)  # the shape's old fields stay
    for layer in spec.layer:
        layer.ClearField("blobs")
    assert spec == text.read(LEGACY / f"{form}_upgraded.prototxt", NetParameter)


CURRENT = [*sorted((GOLDEN / "layers").glob("*.prototxt"))[::10], LEGACY / "v0_upgraded.prototxt"]


@pytest.mark.parametrize("file", CURRENT, ids=lambda file: file.stem)
def test_a_current_net_stays_as_it_is(file):
    spec = text.read(file, NetParameter)
    if not needs_upgrade(spec):
        assert upgrade_net(spec) == []
        assert spec == text.read(file, NetParameter)


# -- types -------------------------------------------------------------------------------------------------------------


ONLY_HERE = "ContrastiveLoss Data Dropout DummyData HDF5Data HDF5Output ImageData MemoryData MultinomialLogisticLoss"
TYPES |= set(f"{ONLY_HERE} Silence WindowData".split())  # of no file here; spelled as in Caffe's registry


@pytest.mark.parametrize("old", sorted(set(V1LayerParameter.LayerType.keys()) - {"NONE"}))
def test_every_v1_type_becomes_the_type_of_the_same_name(old):
    spec, _ = upgraded(f'layers {{ name: "l" type: {old} bottom: "a" top: "b" }}')
    spelled = {"SOFTMAX_LOSS": "softmaxwithloss"}.get(old, old.replace("_", "").lower())
    assert spec.layer[0].type in {name for name in TYPES if name.lower() == spelled}


def test_v1_none_and_no_type_are_layers_without_a_type():
    spec, _ = upgraded('layers { name: "a" type: NONE } layers { name: "b" }')
    assert [(layer.HasField("type"), layer.type) for layer in spec.layer] == [(True, ""), (False, "")]


def test_the_table_of_v1_types_is_the_enum():
    assert set(V1_TYPES) == set(V1LayerParameter.LayerType.keys())


V0 = """
accuracy Accuracy, bnll BNLL, concat Concat, conv Convolution, data Data, dropout Dropout,
euclidean_loss EuclideanLoss, flatten Flatten, hdf5_data HDF5Data, hdf5_output HDF5Output, im2col Im2col,
images ImageData, infogain_loss InfogainLoss, innerproduct InnerProduct, lrn LRN,
multinomial_logistic_loss MultinomialLogisticLoss, pool Pooling, relu ReLU, sigmoid Sigmoid, softmax Softmax,
softmax_loss SoftmaxWithLoss, split Split, tanh TanH, window_data WindowData
"""


@pytest.mark.parametrize(("old", "new"), [pair.split() for pair in V0.split(",")])
def test_v0_types(old, new):
    spec, told = upgraded(v0(f'name: "l" type: "{old}"', 'bottom: "a" top: "b"'))
    assert text.dump(spec.layer[0]) == f'name: "l"\ntype: "{new}"\nbottom: "a"\ntop: "b"\n'
    assert told == ["V0 to V1: 1 layer", "V1 to the current format: 1 layer"]


# -- every V0 field ----------------------------------------------------------------------------------------------------

DATA_PARAMS = {"data": "data", "hdf5_data": "hdf5_data", "images": "image_data", "window_data": "window_data"}
FIELDS = [
    ("conv", "num_output: 7", "convolution_param { num_output: 7 }"),
    ("innerproduct", "num_output: 7", "inner_product_param { num_output: 7 }"),
    ("conv", "biasterm: false", "convolution_param { bias_term: false }"),
    ("innerproduct", "biasterm: false", "inner_product_param { bias_term: false }"),
    (
        "conv",
        'weight_filler { type: "gaussian" std: 2 }',
        'convolution_param { weight_filler { type: "gaussian" std: 2 } }',
    ),
    ("innerproduct", "weight_filler { value: 2 }", "inner_product_param { weight_filler { value: 2 } }"),
    ("conv", "bias_filler { value: 2 }", "convolution_param { bias_filler { value: 2 } }"),
    ("innerproduct", "bias_filler { value: 2 }", "inner_product_param { bias_filler { value: 2 } }"),
    ("conv", "pad: 2", "convolution_param { pad: 2 }"),
    ("pool", "pad: 2", "pooling_param { pad: 2 }"),
    ("conv", "kernelsize: 3", "convolution_param { kernel_size: 3 }"),
    ("pool", "kernelsize: 3", "pooling_param { kernel_size: 3 }"),
    ("conv", "group: 2", "convolution_param { group: 2 }"),
    ("conv", "stride: 2", "convolution_param { stride: 2 }"),
    ("pool", "stride: 1", "pooling_param { stride: 1 }"),
    ("pool", "pool: MAX", "pooling_param { pool: MAX }"),
    ("pool", "pool: AVE", "pooling_param { pool: AVE }"),
    ("pool", "pool: STOCHASTIC", "pooling_param { pool: STOCHASTIC }"),
    ("dropout", "dropout_ratio: 0.25", "dropout_param { dropout_ratio: 0.25 }"),
    ("lrn", "local_size: 3", "lrn_param { local_size: 3 }"),
    ("lrn", "alpha: 0.1", "lrn_param { alpha: 0.1 }"),
    ("lrn", "beta: 0.1", "lrn_param { beta: 0.1 }"),
    ("lrn", "k: 2", "lrn_param { k: 2 }"),
    ("infogain_loss", 'source: "s"', 'infogain_loss_param { source: "s" }'),
    *[(old, 'source: "s"', f'{new}_param {{ source: "s" }}') for old, new in DATA_PARAMS.items()],
    *[(old, "batchsize: 8", f"{new}_param {{ batch_size: 8 }}") for old, new in DATA_PARAMS.items()],
    ("data", "scale: 0.5", "transform_param { scale: 0.5 }"),
    ("images", 'meanfile: "m"', 'transform_param { mean_file: "m" }'),
    ("data", "cropsize: 5", "transform_param { crop_size: 5 }"),
    ("window_data", "mirror: true", "transform_param { mirror: true }"),
    ("data", "rand_skip: 4", "data_param { rand_skip: 4 }"),
    ("images", "rand_skip: 4", "image_data_param { rand_skip: 4 }"),
    ("window_data", "det_fg_threshold: 0.6", "window_data_param { fg_threshold: 0.6 }"),
    ("window_data", "det_bg_threshold: 0.6", "window_data_param { bg_threshold: 0.6 }"),
    ("window_data", "det_fg_fraction: 0.6", "window_data_param { fg_fraction: 0.6 }"),
    ("window_data", "det_context_pad: 6", "window_data_param { context_pad: 6 }"),
    ("window_data", 'det_crop_mode: "square"', 'window_data_param { crop_mode: "square" }'),
    ("images", "new_height: 6", "image_data_param { new_height: 6 }"),
    ("images", "new_width: 6", "image_data_param { new_width: 6 }"),
    ("images", "shuffle_images: true", "image_data_param { shuffle: true }"),
    ("concat", "concat_dim: 0", "concat_param { concat_dim: 0 }"),
    ("hdf5_output", 'hdf5_output_param { file_name: "f" }', 'hdf5_output_param { file_name: "f" }'),
    ("relu", "blobs_lr: 0 blobs_lr: 2", "param { lr_mult: 0 } param { lr_mult: 2 }"),
    ("relu", "weight_decay: 1 weight_decay: 0", "param { decay_mult: 1 } param { decay_mult: 0 }"),
    ("relu", "blobs { num: 1 data: 3 }", "blobs { num: 1 data: 3 }"),
]


@pytest.mark.parametrize(("kind", "old", "new"), FIELDS)
def test_v0_fields_move_to_the_message_of_their_type(kind, old, new):
    spec, told = upgraded(v0(f'name: "l" type: "{kind}" {old}'))
    assert spec.layer[0] == net(f'layer {{ name: "l" type: "{V1_TYPES[V0_TYPES[kind]]}" {new} }}').layer[0]
    assert not warnings(told)


def test_no_v0_field_is_forgotten():
    tested = {re.match(r"\w+", old)[0] for _, old, _ in FIELDS}
    schema = json.loads((GOLDEN / "schema.json").read_text())["messages"]["V0LayerParameter"]["fields"]
    assert {field["name"] for field in schema} - tested == {"name", "type", "new_num", "new_channels"}


@pytest.mark.parametrize("field", [*V0_FIELDS, "new_num", "new_channels", "hdf5_output_param"])
def test_a_v0_field_on_a_type_that_takes_none_is_told_and_left_out(field):
    spec = net(v0('name: "l" type: "flatten"'))
    target = spec.layers[0].layer
    descriptor = V0LayerParameter.DESCRIPTOR.fields_by_name[field]
    if descriptor.message_type is not None:
        getattr(target, field).SetInParent()
    else:
        setattr(target, field, getattr(target, field))
    assert warnings(upgrade_net(spec)) == [f"warning: layer 'l': a V0 flatten layer takes no {field}; left out"]
    assert spec == net('layer { name: "l" type: "Flatten" }')


@pytest.mark.parametrize(
    ("kind", "old"), [("pool", "group: 2"), ("hdf5_data", "rand_skip: 1"), ("data", "shuffle_images: true")]
)
def test_a_field_of_a_neighbour_type_is_left_out_too(kind, old):
    spec, told = upgraded(v0(f'type: "{kind}" {old}'))
    assert len(warnings(told)) == 1
    assert [field.name for field, _ in spec.layer[0].ListFields()] == ["type"]


def test_what_a_v0_layer_has_beside_its_inner_message_is_kept():
    old = v0('name: "l" type: "relu" blobs_lr: 3', "loss_weight: 2 include { phase: TRAIN } blobs { data: 1 }")
    new = 'name: "l" type: "ReLU" loss_weight: 2 include { phase: TRAIN } param { lr_mult: 3 } blobs { data: 1 }'
    assert upgraded(old)[0] == net(f"layer {{ {new} }}")


# -- padding layers ----------------------------------------------------------------------------------------------------

PAD = v0('name: "p" type: "padding" pad: 2', 'bottom: "data" top: "p"')


@pytest.mark.parametrize(("kind", "param"), [("conv", "convolution_param"), ("pool", "pooling_param")])
def test_a_padding_layer_becomes_the_pad_of_its_reader(kind, param):
    spec, told = upgraded(PAD + v0(f'name: "c" type: "{kind}"', 'bottom: "p" top: "c"'))
    assert [(layer.name, list(layer.bottom)) for layer in spec.layer] == [("c", ["data"])]
    assert getattr(spec.layer[0], param) == getattr(net(f"layer {{ {param} {{ pad: 2 }} }}").layer[0], param)
    assert told[0] == "the padding layer 'p' is now pad: 2 of layer 'c'"


def test_a_padding_layer_may_have_several_readers():
    readers = [v0(f'name: "{name}" type: "conv"', f'bottom: "p" top: "{name}"') for name in ("a", "b")]
    spec, _ = upgraded(PAD + "".join(readers))
    assert [(layer.name, layer.bottom[0], layer.convolution_param.pad[0]) for layer in spec.layer] == [
        ("a", "data", 2),
        ("b", "data", 2),
    ]


def test_a_padding_layer_in_place_pads_until_the_blob_is_made_anew():
    pad = v0('name: "p" type: "padding" pad: 2', 'bottom: "x" top: "x"')
    conv = v0('name: "c" type: "conv"', 'bottom: "x" top: "x"')
    spec, _ = upgraded(pad + conv + v0('name: "r" type: "relu"', 'bottom: "x" top: "x"') + conv)
    assert [list(layer.bottom) for layer in spec.layer] == [["x"], ["x"], ["x"]]
    assert [list(layer.convolution_param.pad) for layer in spec.layer] == [[2], [], []]


def test_the_pad_of_a_padding_layer_replaces_the_reader_s_own():
    spec, told = upgraded(PAD + v0('name: "c" type: "conv" pad: 1', 'bottom: "p" top: "c"'))
    assert list(spec.layer[0].convolution_param.pad) == [2]
    assert told[0].endswith("in place of its own 1")


def test_a_padding_layer_that_nothing_reads_is_gone():
    assert upgraded(PAD + v0('name: "r" type: "relu"', 'bottom: "data" top: "r"'))[0] == net(
        'layer { name: "r" type: "ReLU" bottom: "data" top: "r" }'
    )


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        (v0('name: "r" type: "relu"', 'bottom: "p" top: "p"'), "layer 'r' (relu): reads the padding layer 'p', which"),
        (v0('name: "q" type: "padding"', 'bottom: "p" top: "q"'), "layer 'q' (padding): reads the padding layer 'p'"),
        (v0('name: "c" type: "conv"', 'bottom: "p" bottom: "p"'), "has 2 bottoms; only 1 can be padded"),
        ('layers { name: "v" type: CONVOLUTION bottom: "p" }', "layer 'v' (V1): reads the padding layer"),
    ],
)
def test_padding_that_nothing_can_take_in_is_refused(rest, told):
    said = refusal(upgraded, PAD + rest)
    assert told in said
    assert said.startswith("f.prototxt: ")


def test_a_padding_layer_of_two_tops_is_refused():
    pad = v0('name: "p" type: "padding"', 'bottom: "x" top: "p" top: "q"')
    assert "the padding layer 'p' has 1 bottoms and 2 tops" in refusal(
        upgraded, pad + v0('name: "c" type: "conv"', 'bottom: "p"')
    )


# -- V1 ----------------------------------------------------------------------------------------------------------------

ODD = [
    ("blobs_lr: 0", "param { lr_mult: 0 }"),
    ("weight_decay: 1 weight_decay: 0", "param { decay_mult: 1 } param { decay_mult: 0 }"),
    ("blobs_lr: 1 blobs_lr: 2 weight_decay: 0", "param { lr_mult: 1 decay_mult: 0 } param { lr_mult: 2 }"),
    ("blobs_lr: 1 weight_decay: 1 weight_decay: 0", "param { lr_mult: 1 decay_mult: 1 } param { decay_mult: 0 }"),
    ('param: "w" param: "b"', 'param { name: "w" } param { name: "b" }'),
    ('param: "" param: "b" blobs_lr: 3', 'param { name: "" lr_mult: 3 } param { name: "b" }'),
    (
        'param: "w" param: "b" blob_share_mode: PERMISSIVE blob_share_mode: STRICT',
        'param { name: "w" share_mode: PERMISSIVE } param { name: "b" share_mode: STRICT }',
    ),
    ("blob_share_mode: PERMISSIVE", "param { share_mode: PERMISSIVE }"),
    ("loss_weight: 0.5 loss_weight: 0", "loss_weight: 0.5 loss_weight: 0"),
    (
        'include { phase: TEST stage: "s" } exclude { min_level: 2 }',
        'include { phase: TEST stage: "s" } exclude { min_level: 2 }',
    ),
    ("loss_param { ignore_label: 255 }", "loss_param { ignore_label: 255 }"),
    ("blobs { num: 2 data: [1, 2] diff: 3 } blobs { }", "blobs { num: 2 data: [1, 2] diff: 3 } blobs { }"),
    ('bottom: "a" bottom: "a" top: "c" top: "d"', 'bottom: "a" bottom: "a" top: "c" top: "d"'),
]


@pytest.mark.parametrize(("old", "new"), ODD)
def test_v1_fields(old, new):
    assert upgraded(f'layers {{ name: "l" type: RELU {old} }}')[0] == net(f'layer {{ name: "l" type: "ReLU" {new} }}')


PARAMS = [name for name in V1LayerParameter.DESCRIPTOR.fields_by_name if name.endswith("_param")]


@pytest.mark.parametrize("name", PARAMS)
def test_every_parameter_message_of_v1_is_carried_over(name):
    spec = NetParameter()
    message = getattr(spec.layers.add(), name)
    message.SetInParent()
    for field in message.DESCRIPTOR.fields:
        if field.message_type is None:
            value = getattr(message, field.name)
            value.append(1) if field.is_repeated else setattr(message, field.name, value)
    before = message.SerializeToString()
    upgrade_net(spec)
    assert spec.layer[0].HasField(name)
    assert getattr(spec.layer[0], name).SerializeToString() == before


@pytest.mark.parametrize(
    ("kind", "param"),
    [("DATA", "data_param"), ("IMAGE_DATA", "image_data_param"), ("WINDOW_DATA", "window_data_param")],
)
def test_the_transformation_of_v1_data_layers_has_a_message_of_its_own_now(kind, param):
    old = f'{param} {{ source: "s" scale: 1 mean_file: "m" crop_size: 5 mirror: false batch_size: 2 }}'
    new = 'transform_param { scale: 1 mean_file: "m" crop_size: 5 mirror: false }'
    spec, told = upgraded(f'layers {{ name: "d" type: {kind} {old} transform_param {{ scale: 3 mean_value: 7 }} }}')
    layer = net(f'layer {{ name: "d" type: "{V1_TYPES[kind]}" {param} {{ source: "s" batch_size: 2 }} {new} }}').layer[
        0
    ]
    layer.transform_param.mean_value.append(7)
    assert spec.layer[0] == layer
    assert told[0] == "layer 'd': scale, mean_file, crop_size, mirror moved to transform_param"


def test_only_the_fields_that_are_there_move():
    spec, _ = upgraded('layers { name: "d" type: DATA data_param { source: "s" mirror: true } }')
    assert spec == net('layer { name: "d" type: "Data" data_param { source: "s" } transform_param { mirror: true } }')
    spec, _ = upgraded('layers { name: "d" type: DATA data_param { source: "s" } }')
    assert not spec.layer[0].HasField("transform_param")


def test_the_data_param_of_other_types_and_of_current_nets_stays():
    spec, _ = upgraded("layers { type: RELU data_param { mirror: true } }")
    assert spec == net('layer { type: "ReLU" data_param { mirror: true } }')
    current = 'layer { type: "Data" data_param { mirror: true } }'
    assert not needs_upgrade(net(current))
    assert upgraded(current) == (net(current), [])


def test_the_scale_of_window_data_is_told_to_be_dead():
    _, told = upgraded('layers { name: "w" type: WINDOW_DATA window_data_param { scale: 0.5 } }')
    assert warnings(told) == ["warning: layer 'w': WindowData reads no scale in transform_param; nor does Caffe's"]


def test_the_type_of_a_fork_in_a_binary_net_is_told_and_the_weights_stay():
    spec = net('layers { name: "l" blobs { data: 1 } }')
    raw = spec.layers[0].SerializeToString() + b"\x28\x63"  # type: 99
    spec = NetParameter.FromString(b"\x12" + bytes([len(raw)]) + raw)
    assert warnings(upgrade_net(spec)) == [
        "warning: layer 'l': field 5 (its type), as a fork of Caffe may write it, left out"
    ]
    assert spec == net('layer { name: "l" blobs { data: 1 } }')


# -- inputs and BatchNorm ----------------------------------------------------------------------------------------------


def test_inputs_become_the_first_layer():
    old = 'input: "a" input: "b" layer { name: "r" type: "ReLU" bottom: "a" top: "r" }'
    shapes = "shape { dim: [1, 2, 3, 4] } shape { dim: [5, 6, 7, 8] }"
    new = f'layer {{ name: "input" type: "Input" top: "a" top: "b" input_param {{ {shapes} }} }}'
    new += 'layer { name: "r" type: "ReLU" bottom: "a" top: "r" }'
    assert upgraded(f"{old} input_dim: [1, 2, 3, 4, 5, 6, 7, 8]")[0] == net(new)
    spec, told = upgraded(f"{old} input_shape {{ dim: [1, 2, 3, 4] }} input_shape {{ dim: [5, 6, 7, 8] }}")
    assert spec == net(new)
    assert told == ["input 'a', 'b' is now an Input layer, 'input'"]


def test_input_shapes_may_have_any_number_of_axes():
    spec, _ = upgraded('input: "a" input_shape { dim: [7, 2] } input: "b" input_shape { }')
    assert [list(shape.dim) for shape in spec.layer[0].input_param.shape] == [[7, 2], []]


def test_input_shape_wins_over_input_dim_and_what_is_over_is_told():
    spec, told = upgraded('input: "a" input_shape { dim: 7 } input_shape { dim: 8 } input_dim: 5')
    assert [list(shape.dim) for shape in spec.layer[0].input_param.shape] == [[7]]
    assert len(warnings(told)) == 2
    assert not spec.input_dim
    spec, told = upgraded('input: "a" input_dim: [1, 2, 3, 4, 5]')
    assert [list(shape.dim) for shape in spec.layer[0].input_param.shape] == [[1, 2, 3, 4]]
    assert warnings(told) == ["warning: 1 input_dim more than the 4 of the inputs left out"]


def test_inputs_without_dimensions_are_dropped():
    spec, told = upgraded('input: "a" layer { type: "ReLU" bottom: "a" }')
    assert spec == net('layer { type: "ReLU" bottom: "a" }')
    assert len(warnings(told)) == 1


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ('input: "a" input_dim: [1, 2, 3]', "f.prototxt: 1 input and 3 input_dim; expected 4 input_dim, 4 for each"),
        ('input: "a" input: "b" input_shape { dim: 1 }', "2 input and 1 input_shape; expected 2 input_shape"),
        ("layer { } layers { }", "f.prototxt: mixes two formats, 1 `layer` and 1 `layers`"),
        (v0('name: "l" type: "cnov"'), "f.prototxt: layer 'l': unknown V0 layer type 'cnov'; did you mean 'conv'?"),
        (v0('name: "l" type: "power"'), "f.prototxt: layer 'l': unknown V0 layer type 'power'"),
        (v0('name: "l" type: "relu" blobs { }', "blobs { }"), "layer 'l': holds weights twice, 1 blobs and 1 inside"),
    ],
)
def test_what_cannot_be_upgraded_is_told_in_one_line(written, told):
    said = refusal(upgraded, written)
    assert told in said
    assert "\n" not in said


BATCH_NORM = 'layer { name: "bn" type: "BatchNorm" param { name: "m" } param { lr_mult: 0 } param { decay_mult: 2 } }'


def test_three_params_of_a_batch_norm_neither_learn_nor_decay():
    spec, told = upgraded(BATCH_NORM)
    assert [(param.lr_mult, param.decay_mult) for param in spec.layer[0].param] == [(0, 0)] * 3
    assert spec.layer[0].param[0].name == "m"
    assert told == ["layer 'bn': lr_mult and decay_mult of the statistics set to 0"]


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_another_number_of_params_is_left_alone(count):
    written = f'layer {{ type: "BatchNorm" {"param { lr_mult: 1 }" * count} }}'
    assert not needs_upgrade(net(written))
    assert upgraded(written) == (net(written), [])


# -- all at once -------------------------------------------------------------------------------------------------------


def test_all_steps_follow_each_other():
    written = 'input: "data" input_dim: [1, 3, 8, 8]' + PAD
    written += v0('name: "c" type: "conv" kernelsize: 3', 'bottom: "p" top: "c"')
    spec, _ = upgraded(written)
    assert [layer.type for layer in spec.layer] == ["Input", "Convolution"]
    assert list(spec.layer[1].bottom) == ["data"]


@settings(max_examples=150)
@given(messages(NetParameter))
def test_an_upgraded_net_is_current_and_needs_no_second_upgrade(spec):
    needed = needs_upgrade(spec)
    before = spec.SerializeToString(deterministic=True)
    if refusal(upgrade_net, spec):
        assert needed
        return
    assert not needs_upgrade(spec)
    after = spec.SerializeToString(deterministic=True)
    assert needed or after == before
    assert upgrade_net(spec) == []
    assert spec.SerializeToString(deterministic=True) == after


@settings(max_examples=150)
@given(damaged([(LEGACY / f"{form}.caffemodel").read_bytes() for form in ("v0", "v1")]), st.booleans())
def test_damaged_nets_are_upgraded_or_refused_in_one_line(data, twice):
    try:
        spec = binary.parse(data, NetParameter)
    except ValueError:
        return
    said = refusal(upgrade_net, spec, "f")
    assert not said or (said.startswith("f: ") and "\n" not in said)
    if not said:
        assert not needs_upgrade(spec)


@pytest.mark.parametrize("place", ["name", "bottom", "source", "input"])
def test_text_that_is_not_utf8_is_refused(place):
    spec = net('input: "QQQQ" layers { name: "QQQQ" bottom: "QQQQ" layer { source: "QQQQ" type: "data" } }')
    keep = {"name": b"\x22\x04", "bottom": b"\x12\x04", "source": b"\x82\x01\x04", "input": b"\x1a\x04"}[place]
    raw = spec.SerializeToString()
    assert keep + b"QQQQ" in raw
    spec = NetParameter.FromString(raw.replace(keep + b"QQQQ", keep + b"\xd6\xd0\xff\xfe"))
    said = refusal(upgrade_net, spec, "f")
    assert said.startswith("f: holds ")
    assert "not UTF-8" in said


def test_big_weights_are_moved_without_a_look_at_each():
    spec = NetParameter()
    blob = spec.layers.add(name="l", type=V1LayerParameter.INNER_PRODUCT).blobs.add()
    blob.data.extend(np.arange(4_000_000, dtype=np.float32))
    began = time.perf_counter()
    upgrade_net(spec)
    took = time.perf_counter() - began
    began = time.perf_counter()
    assert len(list(spec.layer[0].blobs[0].data)) == 4_000_000
    assert took < time.perf_counter() - began


# -- solvers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"])
def test_solver_types_are_words_now(new):
    old = new.upper()
    spec = text.parse(f'net: "n" solver_type: {old}', SolverParameter)
    assert needs_upgrade(spec)
    assert upgrade_solver(spec) == [f"solver_type: {old} is now type: '{new}'"]
    assert spec == text.parse(f'net: "n" type: "{new}"', SolverParameter)
    assert not needs_upgrade(spec)
    assert upgrade_solver(spec) == []


def test_every_solver_type_of_the_enum_has_its_word():
    for number in SolverParameter.SolverType.values():
        upgrade_solver(SolverParameter(solver_type=number))


def test_a_solver_of_two_types_is_refused():
    spec = text.parse('solver_type: ADAM type: "Adam"', SolverParameter)
    said = refusal(upgrade_solver, spec, "s.prototxt")
    assert said == "s.prototxt: holds both solver_type: ADAM and type: 'Adam'; keep `type` alone"


def test_the_nets_inside_a_solver_are_upgraded_with_it():
    old, new = 'layers { name: "l" type: RELU }', 'layer { name: "l" type: "ReLU" }'
    inside = "net_param {{ {0} }} train_net_param {{ {0} }} test_net_param {{ {0} }} test_net_param {{ {0} }}"
    spec = text.parse(inside.format(old), SolverParameter)
    assert needs_upgrade(spec)
    told = upgrade_solver(spec)
    assert spec == text.parse(inside.format(new), SolverParameter)
    assert told[-1] == "test_net_param 1: V1 to the current format: 1 layer"
    broken = text.parse("net_param { layers { } layer { } }", SolverParameter)
    assert refusal(upgrade_solver, broken, "s").startswith("s: net_param: mixes two formats")


def test_a_current_solver_stays_as_it_is():
    spec = text.read(GOLDEN / "prototxt" / "solver_adam.prototxt", SolverParameter)
    assert not needs_upgrade(spec)
    assert upgrade_solver(spec) == []
