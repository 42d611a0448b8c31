"""Prototxt files: what is read, what is written, and that C++'s parser and printer agree."""

import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings

from ops.proto import caffe_pb2, text
from ops.proto.caffe_pb2 import BlobProto, Datum, LayerParameter, NetParameter, SolverParameter
from tests.ops.proto.strategies import messages

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).parents[2] / "golden" / "prototxt"
FILES = sorted(GOLDEN.glob("*.prototxt"))


def class_of(file):
    return SolverParameter if file.name.startswith("solver") else NetParameter


def compiler(option, message, data):
    """Bytes that protobuf's C++ makes of `data`: text to binary with --encode, binary to text with --decode."""
    pytest.importorskip("grpc_tools")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", f"{option}=caffe.{message}"]
    source = ROOT / "ops" / "proto" / "caffe.proto"
    return subprocess.run([*command, str(source)], input=data, capture_output=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_real_files_are_read_and_written_without_loss(file):
    message = text.read(file, class_of(file))
    assert message.ByteSize()
    assert text.parse(text.dump(message), class_of(file)) == message


@pytest.mark.parametrize("name", ["v0_upgraded", "v1_upgraded"])
def test_a_file_that_caffe_printed_is_printed_the_same(name):
    file = GOLDEN / f"{name}.prototxt"
    assert text.dump(text.read(file, NetParameter)) == file.read_text()


def test_fields_of_a_real_solver_have_their_values():
    solver = text.read(GOLDEN / "solver_adam.prototxt", SolverParameter)
    assert solver.type == "Adam"
    assert solver.momentum2 == pytest.approx(0.999)
    assert not solver.HasField("gamma")


LIBERTIES = {
    "comments": (NetParameter, "# first\nname: 'x' # é\n#last"),
    "colon before a brace": (NetParameter, "layer: { name: 'x' } layer { }"),
    "either quote, strings joined": (NetParameter, 'name: "a\'b" \'c"d\'\n  "e"'),
    "lists": (NetParameter, "input_dim: [1, 2] input_dim: 3 input_dim: [] layer [{ name: 'a' }, { name: 'b' }]"),
    "separators": (SolverParameter, "base_lr: 1, gamma: 2; power: 3 net_param { }, type: 'SGD'"),
    "pointed brackets": (NetParameter, "layer < name: 'x' >"),
    "nothing between": (SolverParameter, "net:'a'base_lr:1"),
    "floats": (SolverParameter, "base_lr: .5f gamma: 1. power: 1e-3F momentum: -inf weight_decay: 5"),
    "not a number": (SolverParameter, "delta: nan"),
    "integers": (SolverParameter, "max_iter: 0x10 display: 010 test_interval: -3"),
    "bools": (SolverParameter, "debug_info: True snapshot_diff: 1 test_initialization: f"),
    "enum numbers": (SolverParameter, "solver_mode: 0 snapshot_format: HDF5"),
    "escapes": (NetParameter, r"name: '\x41\102\u00e9\n\\\'\"'"),
    "spaces": (SolverParameter, "\f\tbase_lr\v:\r\n1\r\n"),
    "beyond float32": (SolverParameter, "base_lr: 1e400 gamma: 1e39 power: 1e-60"),
    "empty": (SolverParameter, ""),
}


@pytest.mark.parametrize("what", LIBERTIES)
def test_what_cpp_reads_is_read_the_same(what):
    message_class, source = LIBERTIES[what]
    expected = compiler("--encode", message_class.DESCRIPTOR.name, source.encode())
    assert text.parse(source, message_class).SerializeToString() == expected


def everything():
    """A blob with numbers of every kind."""
    draw = random.Random(7)
    singles = [0.0005, 1, 0.1, 1e-6, 1e5, 1e6, 123456.7, 1 / 3, -0.0, 3.4028234e38, 1e-45, float("inf"), float("nan")]
    singles += [struct.unpack("f", draw.randbytes(4))[0] for _ in range(300)]
    doubles = [0.1, 1 / 3, 1e300, 5e-324, 1e15, 1e16, 123456789012345678.0, float("-inf")]
    doubles += [struct.unpack("d", draw.randbytes(8))[0] for _ in range(300)]
    return BlobProto(num=-1, data=singles, double_data=doubles)


@pytest.mark.parametrize(
    "message",
    [
        everything(),
        Datum(data=bytes(range(256)), label=-3, encoded=True),
        NetParameter(name="é中\n\t'\"\\\x7f", layer=[LayerParameter(type="Data", phase=caffe_pb2.TEST)]),
    ],
    ids=["numbers", "bytes", "names"],
)
def test_the_printed_text_is_cpps_to_the_byte(message):
    expected = compiler("--decode", message.DESCRIPTOR.name, message.SerializeToString())
    assert text.dump(message) == expected.decode("ascii")


@settings(max_examples=150)
@given(messages(NetParameter))
def test_any_net_survives_text(message):
    again = text.parse(text.dump(message), NetParameter)
    assert again.SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)


@settings(max_examples=150)
@given(messages(SolverParameter))
def test_any_solver_survives_text(message):
    again = text.parse(text.dump(message), SolverParameter)
    assert again.SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)


@given(messages(Datum))
def test_any_record_survives_text(message):
    again = text.parse(text.dump(message), Datum)
    assert again.SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)


def test_an_empty_file_is_an_empty_message(tmp_path):
    (tmp_path / "net.prototxt").write_bytes(b"")
    assert text.read(tmp_path / "net.prototxt", NetParameter) == NetParameter()


def test_a_byte_order_mark_and_crlf_are_read_over(tmp_path):
    (tmp_path / "net.prototxt").write_bytes(b"\xef\xbb\xbfname: 'x'\r\nforce_backward: true\r\n")
    assert text.read(tmp_path / "net.prototxt", NetParameter) == NetParameter(name="x", force_backward=True)


def test_a_comment_may_be_in_any_encoding(tmp_path):
    (tmp_path / "net.prototxt").write_bytes("# 卷积 'net'\nname: 'x'".encode("gbk"))
    assert text.read(tmp_path / "net.prototxt", NetParameter).name == "x"


def test_write_makes_a_file_that_reads_back(tmp_path):
    message = text.read(GOLDEN / "feat.prototxt", NetParameter)
    text.write(tmp_path / "copy.prototxt", message)
    assert text.read(tmp_path / "copy.prototxt", NetParameter) == message
    assert [file.name for file in tmp_path.iterdir()] == ["copy.prototxt"]


def test_a_name_that_is_not_utf8_can_still_be_printed():
    net = NetParameter.FromString(b"\n\x02\xff\xfe")  # as binary files may hold
    assert text.dump(net) == 'name: "\\377\\376"\n'
