"""`cortado check --gradients`: a wrong backward is named, with its layer and blob."""

from __future__ import annotations

import json
import re

import pytest

from pipelines.__main__ import main

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 8 dim: 3 dim: 6 dim: 6 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 2 kernel_size: 3 } }
layer { name: "gain" type: "WrongGain" bottom: "conv" top: "gain" }
layer { name: "best" type: "ArgMax" bottom: "gain" top: "best" }
"""
GAIN = """
from ops.own_backward import OwnBackward
from ops.layers.registry import layer

@layer("WrongGain")
class WrongGain(OwnBackward):
    def __init__(self, spec, bottoms, phase):
        super().__init__(spec, bottoms, phase)
        self.add_blob((bottoms[0][1],))

    def compute(self, x):
        return x * self.blob(0).reshape(-1, 1, 1)

    def bottom_gradient(self, grad, x):
        return grad * self.blob(0).reshape(-1, 1, 1)

    def blob_gradient(self, grad, x):
        return {gradient}
"""
RIGHT = "(grad * x).sum((0, 2, 3))"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(NET)
    return tmp_path


def check(capsys, *arguments: str) -> tuple[int, dict, str]:
    code = main(["check", "net.prototxt", "--gradients", *arguments, "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else {}, captured.err


@pytest.fixture
def gain(folder):
    """`gain("...")` writes the layer with this gradient of its blob."""
    from ops import custom
    from ops.layers.registry import LAYERS

    def write(gradient: str) -> None:
        (folder / "gain.py").write_text(GAIN.format(gradient=gradient))

    yield write
    LAYERS.pop("WrongGain", None)
    custom.LOADED.clear()


def test_a_right_backward_passes(gain, capsys):
    gain(RIGHT)
    code, found, _ = check(capsys, "--code", "gain.py")
    assert code == 0
    assert [(row["layer"], row["blob"], row["ok"]) for row in found["blobs"]] == [
        ("conv", "bottom data", True),
        ("conv", "blob 0", True),
        ("conv", "blob 1", True),
        ("gain", "bottom conv", True),
        ("gain", "blob 0", True),
    ]
    assert found["batch"] == 2, "the file's 8 would only take longer"
    assert found["without_gradient"] == ["best"]
    assert (found["kind"], found["ok"], found["problems"]) == ("gradients", True, [])


def test_an_error_of_a_thousandth_is_named_and_fails(gain, capsys):
    gain(f"1.001 * {RIGHT}")
    code, found, told = check(capsys, "--code", "gain.py", "--batch", "3")
    assert code == 1
    assert [(row["layer"], row["blob"]) for row in found["blobs"] if not row["ok"]] == [("gain", "blob 0")]
    assert re.search(r"problem: layer 'gain' \(WrongGain\): blob 0: the backward gives [-\d.]+ at \[\d\]", told)
    assert found["batch"] == 3


def test_one_layer_may_be_checked_alone(gain, capsys):
    gain(f"1.001 * {RIGHT}")
    code, found, _ = check(capsys, "--code", "gain.py", "--layer", "conv")
    assert code == 0
    assert {row["layer"] for row in found["blobs"]} == {"conv"}


def test_a_tolerance_may_be_given(gain, capsys):
    gain(f"1.001 * {RIGHT}")
    assert check(capsys, "--code", "gain.py", "--tolerance", "0.01")[0] == 0


def test_what_a_person_sees(gain, capsys):
    gain(f"1.001 * {RIGHT}")
    assert main(["check", "net.prototxt", "--gradients", "--code", "gain.py"]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"layer +type +blob +shape +elements +kinks +relative error", shown)
    assert re.search(r"conv +Convolution +blob 0 +2x3x3x3 +54 +[\d.e-]+ +ok", shown)
    assert re.search(r"gain +WrongGain +blob 0 +2 +2 +1\.0e-03 +WRONG", shown)
    assert re.search(r"verdict +1 problem", shown)


def test_a_net_of_the_zoo_passes(capsys):
    assert main(["check", "lenet/train_val", "--gradients", "--input", "1x28x28"]) == 0


def test_a_batch_that_the_net_needs_is_left_as_it_is(folder, capsys):
    (folder / "net.prototxt").write_text(
        NET.partition('layer { name: "gain"')[0] + 'layer { name: "r" type: "Reshape" bottom: "conv" top: "r" '
        "reshape_param { shape { dim: 8 dim: 32 } } }"
    )
    code, found, _ = check(capsys)
    assert (code, found["batch"]) == (0, 8)


@pytest.mark.parametrize(
    ("arguments", "told", "code"),
    [
        (("--layer", "gane"), "has no layer 'gane'; did you mean 'gain'?", 1),
        (("--batch", "0"), "--batch 0: expected 1 or more", 2),
        (("--tolerance", "2"), "--tolerance 2: expected more than 0, less than 1", 2),
        (("--input", "3by6"), "--input 3by6: expected channels x height x width", 1),
        (("--weights", "none.caffemodel"), "none.caffemodel", 1),
    ],
)
def test_bad_input_is_told_in_one_line(gain, capsys, arguments, told, code):
    gain(RIGHT)
    found, _, shown = check(capsys, "--code", "gain.py", *arguments)
    assert found == code
    assert told in shown
    assert len(shown.strip().splitlines()) == 1


def test_without_the_code_the_type_is_unknown(folder, capsys):
    code, _, told = check(capsys)
    assert code == 1
    assert "unknown layer type 'WrongGain'" in told
    assert "docs/add-a-layer.md says how to add one" in told


def test_options_of_the_check_go_with_it_only(folder, capsys):
    assert main(["check", "net.prototxt", "--layer", "conv"]) == 2
    assert "--layer goes with --gradients" in capsys.readouterr().err


def test_a_backward_that_raises_is_told_with_its_lines(gain, capsys):
    gain("self.nothing")
    code, _, told = check(capsys, "--code", "gain.py")
    assert code == 1
    *trace, last = told.strip().splitlines()
    assert re.match(r"cortado: error: net.prototxt: layer 'gain' \(WrongGain\): backward: AttributeError: ", last)
    assert last.endswith("(gain.py:18)")
    assert 'gain.py", line 18, in blob_gradient' in "\n".join(trace)
