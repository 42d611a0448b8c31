"""What a person is told of a prototxt that does not parse: one line with the place, the message, the field."""

import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ops.proto import text
from ops.proto.caffe_pb2 import NetParameter, SolverParameter
from tests.ops.proto.strategies import damaged, refusal
from tests.ops.proto.test_text import FILES, compiler

SOLVER = [
    ("base_rl: 1", "1:1: SolverParameter has no field named 'base_rl'; did you mean 'base_lr'?"),
    ("\n\tbase_rl: 1", "2:2: SolverParameter has no field named 'base_rl'; did you mean 'base_lr'?"),
    (
        "# a\r\nnet: 'x'\r\n  base_rl: 1\r\n",
        "3:3: SolverParameter has no field named 'base_rl'; did you mean 'base_lr'?",
    ),
    ("net: '\u00e9\u4e2d' base_rl: 1", "1:11: SolverParameter has no field named 'base_rl'; did you mean 'base_lr'?"),
    ("layer { }", "1:1: SolverParameter has no field named 'layer'; NetParameter has one: is this the right file?"),
    ("base_lr: abc", "1:10: SolverParameter.base_lr wants a number, found 'abc'"),
    ("base_lr: '0.1'", "1:10: SolverParameter.base_lr wants a number, found \"'0.1'\""),
    ("base_lr:\n", "2:1: SolverParameter.base_lr wants a number, found the end of the file"),
    ("base_lr 0.1", "1:9: SolverParameter.base_lr: expected ':' and a value, found '0.1'"),
    ("base_lr: 1\nbase_lr: 2", "2:1: SolverParameter: 'base_lr' may only be given once; it stands on line 1 too"),
    ("max_iter: 1e5", "1:11: SolverParameter.max_iter wants a whole number (int32), found '1e5'"),
    (
        "max_iter: 3000000000",
        "1:11: SolverParameter.max_iter wants a whole number (int32); '3000000000' is out of its range",
    ),
    ("debug_info: yes", "1:13: SolverParameter.debug_info wants true or false, found 'yes'"),
    ("solver_mode: cpu", "1:14: SolverParameter.solver_mode has no value named 'cpu'; did you mean 'CPU'?"),
    ("solver_mode: 7", "1:14: SolverParameter.solver_mode has no value named '7'; known: CPU, GPU"),
    ("test_iter: 1 2", "1:14: expected a field name of SolverParameter, found '2'"),
    ("test_iter: [1 2]", "1:15: SolverParameter.test_iter: expected ',' or ']' in the list, found '2'"),
    ("test_iter: [1, 2", "1:17: SolverParameter.test_iter: expected ',' or ']' in the list, found the end of the file"),
    ("net: x.prototxt", "1:6: SolverParameter.net wants a string in quotes, found 'x'"),
    ("net: 'C:\\data'", "1:9: \\d in a string is no escape; write \\\\ for a backslash"),
    ("net: 'x\nbase_lr: 1", "1:6: SolverParameter.net: the string that starts here has no closing quote on its line"),
    ("net: '\\377'", "1:6: SolverParameter.net: the string's bytes are not UTF-8"),
    (
        "net: '\\ud800'",
        "1:6: SolverParameter.net: the string \"'\\\\ud800'\" holds an escape that stands for no character",
    ),
    ("= 5", "1:1: expected a field name of SolverParameter, found '='"),
    ("net_param { layer { bottom: 3 } }", "1:29: LayerParameter.bottom wants a string in quotes, found '3'"),
]
NET = [
    ("layer {\n  name: 'a'\n", "1:7: layer: this '{' is never closed"),
    ("layer { name: 'a' } }", "1:21: this '}' closes nothing; is a '{' missing, or one '}' too many?"),
    (
        "layer {\n name: 'a'\nlayer { name: 'b' }",
        "3:1: LayerParameter has no field named 'layer'; is a '}' missing before it? layer on line 1 is still open",
    ),
    (
        "layer { transform_param: 5 }",
        "1:26: LayerParameter.transform_param wants a message in braces { ... }, found '5'",
    ),
    (
        "layer { pooling_param { pool: AVG } }",
        "1:31: PoolingParameter.pool has no value named 'AVG'; did you mean 'AVE'?",
    ),
    ("layers { type: CONV }", "1:16: V1LayerParameter.type has no value named 'CONV'"),
    (
        "layer { convolution_param { num_outputs: 3 } }",
        "1:29: ConvolutionParameter has no field named 'num_outputs'; did you mean 'num_output'?",
    ),
    (
        "layer { kernel_size: 3 }",
        "1:9: LayerParameter has no field named 'kernel_size'; did you mean it inside convolution_param or pool",
    ),
    (
        "layer { convolution_param { pad: -1 } }",
        "1:34: ConvolutionParameter.pad wants a whole number of 0 or more (uint32); '-1' is out of its range",
    ),
    (
        "layer { transform_param { scale: 1 }\n  transform_param { } }",
        "2:3: LayerParameter: 'transform_param' may only be given once; it stands on line 1 too",
    ),
    ("layer [{ name: 'a' }, { nam: 'b' }]", "1:25: LayerParameter has no field named 'nam'; did you mean 'name'?"),
    ("name: 'has no field named \"x\".' bad: 1", "1:33: NetParameter has no field named 'bad'; known: debug_info,"),
]


def complaint(source, message_class):
    with pytest.raises(ValueError, match=":") as caught:
        text.parse(source, message_class, name="f")
    return str(caught.value)


@pytest.mark.parametrize(("source", "expected"), SOLVER)
def test_a_mistake_in_a_solver_is_named_at_its_place(source, expected):
    assert complaint(source, SolverParameter) == f"f:{expected}"


@pytest.mark.parametrize(("source", "expected"), NET)
def test_a_mistake_in_a_net_is_named_at_its_place(source, expected):
    assert complaint(source, NetParameter).startswith(f"f:{expected}")


def test_a_required_field_that_is_missing_is_named():
    source = "layer { } layer { clip_param { min: 1 } }"
    assert complaint(source, NetParameter) == "f: layer[1].clip_param.max must be given and is not"


def in_file(tmp_path, data, message_class=NetParameter):
    file = tmp_path / "net.prototxt"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=":") as caught:
        text.read(file, message_class)
    return str(caught.value).removeprefix(f"{file}:")


def test_a_string_in_another_encoding_is_refused_at_its_byte(tmp_path):
    said = in_file(tmp_path, b"# caf\xe9\n  name: 'caf\xe9'")
    assert said == "2:13: byte 0xe9 is not UTF-8; save the file as UTF-8"


def test_utf16_is_named(tmp_path):
    assert in_file(tmp_path, "name: 'x'".encode("utf-16")) == "1:1: UTF-16 text; save the file as UTF-8"


def test_a_binary_file_is_told_from_text(tmp_path):
    said = in_file(tmp_path, NetParameter(name="x" * 40, force_backward=True).SerializeToString())
    assert said.endswith("this is a binary file; the text of a NetParameter (a .prototxt) was expected")


def test_an_hdf5_file_is_named(tmp_path):
    assert in_file(tmp_path, b"\x89HDF\r\n\x1a\n" + bytes(100)).startswith(" an HDF5 file")


def test_a_missing_file_and_a_folder_are_os_errors_with_the_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.prototxt"):
        text.read(tmp_path / "no.prototxt", NetParameter)
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        text.read(tmp_path, NetParameter)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "huge.prototxt").open("wb") as file:
        file.truncate(text.LIMIT + 1)
    with pytest.raises(ValueError, match="more than the 268,435,456"):
        text.read(tmp_path / "huge.prototxt", NetParameter)


BOMBS = {
    "braces": "layer {" * 200_000,
    "brackets": "[" * 1_000_000,
    "quotes": "'" * 1_000_000,
    "backslashes": "name: '" + "\\\\" * 1_000_000 + "'",
    "digits": "input_dim: " + "9" * 1_000_000,
    "a long word": "a" * 1_000_000 + ": 1",
    "open list": "input_dim: [" + "1," * 50_000,
    "closing braces": "}" * 1_000_000,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", BOMBS)
def test_a_bomb_is_refused_in_one_short_line(what):
    said = complaint(BOMBS[what], NetParameter)
    assert "\n" not in said
    assert len(said) < 400


ORIGINALS = [file.read_bytes()[:3000] for file in FILES]


@settings(max_examples=400)
@given(damaged(ORIGINALS) | st.binary(max_size=200), st.sampled_from([NetParameter, SolverParameter]))
@example(b"name: '\\", NetParameter)
@example(b"layer {\x0b", NetParameter)
def test_damaged_text_is_read_or_refused_in_one_line(tmp_path_factory, data, message_class):
    file = tmp_path_factory.getbasetemp() / "damaged.prototxt"
    file.write_bytes(data)
    said = refusal(text.read, file, message_class)
    assert said == "" or said.startswith(f"{file}:")
    assert "\n" not in said


@pytest.mark.parametrize("mistake", ["layer { name: 'a' ", "base_rl: 1", "name: x", "name: 'a' } "])
def test_the_line_is_the_one_that_cpp_names(mistake):
    """C++ counts a tab as up to eight columns, so only the lines are compared."""
    source = "\n\n" + mistake
    with pytest.raises(subprocess.CalledProcessError) as caught:
        compiler("--encode", "NetParameter", source.encode())
    theirs = caught.value.stderr.decode().split(":")[1]
    assert complaint(source, NetParameter).split(":")[1] == theirs
