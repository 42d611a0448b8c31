"""The messages against the facts of Caffe's own schema, and the generated module against its source."""

import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from ops.proto import caffe_pb2
from tests.ops.proto.strategies import type_name

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "schema.json").read_text())
ROOT = Path(__file__).parents[3]
# Layers of forks and ours: message -> (field of LayerParameter, its number, {field: (number, type, default)}).
BEYOND = {
    "ROIPoolingParameter": (
        "roi_pooling_param",
        8266711,
        {"pooled_h": (1, "uint32", 0), "pooled_w": (2, "uint32", 0), "spatial_scale": (3, "float", 1.0)},
    ),
    "SmoothL1LossParameter": ("smooth_l1_loss_param", 8266712, {"sigma": (1, "float", 1.0)}),
    "PermuteParameter": ("permute_param", 202, {"order": (1, "uint32", None)}),
    "NormalizeParameter": (
        "norm_param",
        206,
        {
            "across_spatial": (1, "bool", True),
            "scale_filler": (2, "message", None),
            "channel_shared": (3, "bool", True),
            "eps": (4, "float", 1e-10),
        },
    ),
    "MultiMarginLossParameter": ("multi_margin_loss_param", 52600001, {"margin": (1, "float", 1.0)}),
}
# Fields of forks and ours in Caffe's messages: message -> {field: (number, type, default)}.
FIELDS = {
    "LayerParameter": {name: (number, "message", None) for name, number, _ in BEYOND.values()},
    "SolverParameter": {
        "plateau_winsize": (52600001, "int32", None),
        "warmup_iter": (52600002, "int32", 0),
        "warmup_start_lr": (52600003, "float", 0.0),
        "min_lr": (52600004, "float", 0.0),
    },
    "SolverState": {"minimum_loss": (5, "float", 1e38), "iter_last_event": (6, "int32", 0)},
}
MESSAGES = caffe_pb2.DESCRIPTOR.message_types_by_name


def facts_of(field):
    """A field as the table of facts writes it."""
    kind = type_name(field).removeprefix("TYPE_").lower()
    named = field.message_type or field.enum_type
    default = field.default_value if field.has_default_value else None
    if field.enum_type and default is not None:
        default = field.enum_type.values_by_number[default].name
    label = "repeated" if field.is_repeated else "required" if field.is_required else "optional"
    return {
        "name": field.name,
        "number": field.number,
        "label": label,
        "kind": kind,
        "type": named.full_name.removeprefix("caffe.") if named else kind,
        "default": default,
        "packed": field.is_packed,
    }


def float32(number):
    return struct.unpack("f", struct.pack("f", number))[0]


def test_there_are_caffes_messages_and_those_beyond():
    assert set(MESSAGES) == set(GOLDEN["messages"]) | set(BEYOND)


@pytest.mark.parametrize("message", GOLDEN["messages"])
def test_a_message_has_caffes_fields_in_every_respect(message):
    beyond = FIELDS.get(message, {})
    ours = {field.name: facts_of(field) for field in MESSAGES[message].fields if field.name not in beyond}
    golden = {field["name"]: dict(field) for field in GOLDEN["messages"][message]["fields"]}
    for field in golden.values():
        del field["deprecated"]
        if field["kind"] == "float" and field["default"] is not None:
            field["default"] = float32(field["default"])
    assert ours == golden


@pytest.mark.parametrize("message", FIELDS)
def test_fields_beyond_caffes_keep_their_numbers_and_take_none_of_caffes(message):
    taken = {field["number"] for field in GOLDEN["messages"][message]["fields"]}
    for name, (number, kind, default) in FIELDS[message].items():
        facts = facts_of(MESSAGES[message].fields_by_name[name])
        assert number not in taken
        assert (facts["number"], facts["kind"]) == (number, kind)
        assert facts["default"] == (float32(default) if kind == "float" else default)


@pytest.mark.parametrize("enum", GOLDEN["enums"])
def test_an_enum_has_caffes_values_in_caffes_order(enum):
    *outer, name = enum.split(".")
    holder = MESSAGES[outer[0]] if outer else caffe_pb2.DESCRIPTOR
    ours = [{"name": value.name, "number": value.number} for value in holder.enum_types_by_name[name].values]
    assert ours == GOLDEN["enums"][enum]


def test_there_are_no_other_enums():
    nested = {f"{name}.{enum}" for name, message in MESSAGES.items() for enum in message.enum_types_by_name}
    assert nested | set(caffe_pb2.DESCRIPTOR.enum_types_by_name) == set(GOLDEN["enums"])


@pytest.mark.parametrize("message", BEYOND)
def test_a_forks_message_has_the_forks_numbers(message):
    name, number, fields = BEYOND[message]
    assert MESSAGES["LayerParameter"].fields_by_name[name].number == number
    ours = {field["name"]: field for field in map(facts_of, MESSAGES[message].fields)}
    assert {name: (field["number"], field["kind"]) for name, field in ours.items()} == {
        name: (number, kind) for name, (number, kind, _) in fields.items()
    }
    for name, (_, kind, default) in fields.items():
        assert ours[name]["default"] == (float32(default) if kind == "float" else default)


def test_the_generated_module_is_what_the_source_gives():
    pytest.importorskip("grpc_tools")
    from ops.proto import generate

    files = generate.fresh()
    assert set(files) == set(generate.GENERATED)
    assert generate.stale(files) == []


def test_a_message_survives_pickling_as_between_processes():
    datum = caffe_pb2.Datum(channels=3, data=b"abc", label=-1)
    assert pickle.loads(pickle.dumps(datum)) == datum


OTHERS = """
from google.protobuf import descriptor_pb2, descriptor_pool
file = descriptor_pb2.FileDescriptorProto(name="{name}", package="caffe", syntax="proto2")
file.message_type.add(name="Datum").field.add(name="other", number=1, type=5, label=1)
descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
"""
OURS = "from ops.proto.caffe_pb2 import Datum; assert Datum(label=3).label == 3\n"


@pytest.mark.parametrize("name", ["caffe.proto", "caffe/proto/caffe.proto", "ops/proto/caffe.proto"])
def test_another_packages_caffe_messages_load_before_and_after_ours(name):
    others = OTHERS.format(name=name)
    for script in (others + OURS, OURS + others):
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)
