"""Binary messages: Caffe's own files, damage of every kind, and files that are something else."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.proto import binary
from ops.proto.caffe_pb2 import BlobProto, Datum, NetParameter, SolverParameter, SolverState
from tests.ops.proto.strategies import damaged, messages, refusal

GOLDEN = Path(__file__).parents[2] / "golden"
CLASSES = {".caffemodel": NetParameter, ".solverstate": SolverState, ".binaryproto": BlobProto}
FILES = sorted((GOLDEN / "messages").iterdir())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_caffes_own_files_are_read_and_written_to_the_byte(file, tmp_path):
    message = binary.read(file, CLASSES[file.suffix])
    binary.write(tmp_path / "copy", message)
    assert (tmp_path / "copy").read_bytes() == file.read_bytes()


def test_values_of_caffes_mean_file():
    mean = binary.read(GOLDEN / "messages" / "mean.binaryproto", BlobProto)
    assert (mean.num, mean.channels, mean.height, mean.width) == (1, 3, 48, 64)
    assert len(mean.data) == 3 * 48 * 64
    assert all(0 <= value <= 255 for value in mean.data)


@settings(max_examples=100)
@given(messages(NetParameter) | messages(SolverParameter) | messages(Datum) | messages(SolverState))
def test_any_message_survives_the_binary_form(message):
    again = binary.parse(message.SerializeToString(), type(message))
    assert again.SerializeToString() == message.SerializeToString()


def complaint(data, message_class):
    with pytest.raises(ValueError, match="f: not a ") as caught:
        binary.parse(data, message_class, name="f")
    return str(caught.value)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_cut_is_noticed_unless_it_falls_between_two_fields(file):
    data, message_class = file.read_bytes(), CLASSES[file.suffix]
    for length in range(1, len(data), max(1, len(data) // 200)):
        said = refusal(binary.parse, data[:length], message_class)
        assert "cut short" in said or message_class.FromString(data[:length]).SerializeToString() == data[:length]


def test_a_cut_file_is_described():
    data = (GOLDEN / "messages" / "mean.binaryproto").read_bytes()
    assert complaint(data[:1000], BlobProto) == (
        f"f: not a BlobProto: cut short: 1,000 bytes, but its field at byte 8 ends at byte {len(data):,}"
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_of_another_message_is_named(file):
    right = CLASSES[file.suffix]
    for wanted in {NetParameter, SolverState, BlobProto, Datum} - {right}:
        assert complaint(file.read_bytes(), wanted).endswith(f"it reads as a {right.__name__}")


def test_text_and_hdf5_are_named():
    assert complaint(b'name: "x" layer { type: "Data" }', NetParameter).endswith("a text file")
    assert complaint(b"\x89HDF\r\n\x1a\n" + bytes(100), NetParameter).endswith("an HDF5 file")


def test_garbage_is_refused():
    assert "damaged" in complaint(b"\xff" * 100, NetParameter)
    assert "damaged" in complaint(bytes(100), Datum)


def test_unknown_fields_beside_known_ones_are_kept():
    data = NetParameter(name="x").SerializeToString() + b"\xfa\x7f\x02ab"  # field 2047: "ab"
    assert binary.parse(data, NetParameter).SerializeToString() == data


def test_an_enum_value_of_a_fork_is_no_reason_to_refuse():
    net = NetParameter(name="x").SerializeToString() + b"\x32\x02\x08\x07"  # state { phase: 7 }
    assert binary.parse(net, NetParameter).name == "x"
    solver = SolverParameter(type="SGD").SerializeToString() + b"\x88\x01\x07"  # solver_mode: 7
    assert binary.parse(solver, SolverParameter).type == "SGD"


def test_no_bytes_are_an_empty_message():
    assert binary.parse(b"", NetParameter) == NetParameter()


@pytest.mark.parametrize("depth", [101, 10_000, 1_000_000])
def test_messages_nested_too_deep_are_refused(depth):
    group = b"\xfb\x7f" * depth + b"\xfc\x7f" * depth  # field 2047, of no schema, inside itself
    assert "damaged" in complaint(group, NetParameter)


def test_lengths_that_lie_are_refused_without_taking_memory():
    for announced in (b"\xff\xff\xff\xff\x07", b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"):
        assert "cut short" in complaint(b"\x0a" + announced + b"abc", NetParameter)


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "huge.caffemodel").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(ValueError, match=r"huge\.caffemodel: 2,147,483,648 bytes, more than the 2,147,483,647"):
        binary.read(tmp_path / "huge.caffemodel", NetParameter)


def test_a_message_without_a_required_field_is_not_written(tmp_path):
    net = NetParameter()
    net.layer.add().clip_param.min = 1
    with pytest.raises(ValueError, match=r"clip_param\.max"):
        binary.write(tmp_path / "net.caffemodel", net)
    assert list(tmp_path.iterdir()) == []


def test_a_message_without_a_required_field_is_not_read():
    net = NetParameter()
    net.layer.add().clip_param.min = 1
    with pytest.raises(ValueError, match=r"f: layer\[0\]\.clip_param\.max must be given"):
        binary.parse(net.SerializePartialToString(), NetParameter, name="f")


@settings(max_examples=600)
@given(
    damaged([file.read_bytes()[:4000] for file in FILES]) | st.binary(max_size=300),
    st.sampled_from([NetParameter, SolverState, BlobProto, Datum]),
)
def test_damaged_bytes_are_read_or_refused_in_one_line(data, message_class):
    said = refusal(binary.parse, data, message_class, name="f")
    assert said == "" or said.startswith("f: ")
    assert "\n" not in said
