"""`cortado time`: the table, the JSON, the chart, and the lines of `caffe time`."""

from __future__ import annotations

import json
import re

import cv2
import pytest

from ops import time_chart
from ops.stopwatch import LayerTime
from pipelines.__main__ import main
from pipelines.timing import number, rounded

LENET = ("lenet/train_val", "--input", "1x28x28", "--batch", "4", "--iterations", "2")
FUSED = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "bn" type: "BatchNorm" bottom: "c" top: "c" }
layer { name: "scale" type: "Scale" bottom: "c" top: "c" scale_param { bias_term: true } }
"""


@pytest.fixture
def result(capsys):
    """`result("lenet", ...)`: the JSON of a run in this process."""

    def run(*arguments: str) -> dict:
        code = main(["time", *arguments, "--json"])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out)

    return run


def test_every_layer_has_its_milliseconds(result):
    found = result(*LENET)
    assert [row["layers"] for row in found["layers"]] == [
        [name] for name in ("conv1", "pool1", "conv2", "pool2", "ip1", "relu1", "ip2", "loss")
    ]
    assert all(row["forward_ms"] > 0 and row["backward_ms"] > 0 for row in found["layers"])
    assert sum(row["share"] for row in found["layers"]) == pytest.approx(1, abs=1e-3)
    assert found["layers_forward_ms"] == pytest.approx(sum(row["forward_ms"] for row in found["layers"]), rel=0.01)
    assert found["pass_ms"] == pytest.approx(found["forward_ms"] + found["backward_ms"], rel=0.01)
    assert found["images_per_second"] == pytest.approx(4000 / found["pass_ms"], rel=0.01)
    assert (found["batch"], found["phase"], found["backward_from"]) == (4, "TRAIN", "loss")
    assert found["loss"] == pytest.approx(2.3, abs=1.5)
    assert len(found["passes_ms"]) == found["iterations"] == 2


def test_a_net_without_a_loss_is_timed_from_its_outputs(result):
    found = result("lenet", "--batch", "1", "--iterations", "1")
    assert found["backward_from"] == "outputs"
    assert found["layers"][0]["backward_ms"] > 0


def test_layers_that_run_as_one_have_one_line(result, tmp_path):
    (tmp_path / "net.prototxt").write_text(FUSED)
    found = result(str(tmp_path / "net.prototxt"), "--iterations", "1")
    assert [row["layers"] for row in found["layers"]] == [["conv"], ["bn", "scale"]]
    assert found["layers"][1]["types"] == ["BatchNorm", "Scale"]


def test_what_a_person_sees(capsys):
    assert main(["time", *LENET]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"layer +type +forward ms +backward ms +share", shown)
    assert re.search(r"\w+ +\w+ +[\d.,]+ +[\d.,]+ +[\d.]+ % +█{24}", shown)
    assert "LeNet, TRAIN, batch 4, fp32, CPU" in shown
    assert re.search(r"sum of the layers +[\d.]+ \+ [\d.]+ ms, [\d.]+ % of the pass", shown)
    assert re.search(r"items a second +[\d.,]+", shown)


def test_the_lines_of_caffe_time(capsys):
    """As the parsers of such logs want them: a tab behind the layer's name, then "forward: x ms."."""
    assert main(["time", *LENET, "--caffe"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["*** Benchmark begins ***", "Testing for 2 iterations."]
    assert lines[-1] == "*** Benchmark ends ***"
    found = [re.fullmatch(r"\s*(\S+)\t(forward|backward): ([\d.e-]+) ms\.", line) for line in lines]
    names = [one[1] for one in found if one]
    assert names[:4] == ["conv1", "conv1", "pool1", "pool1"]
    assert len(names) == 16
    for head in ("Initial loss: ", "Average Forward pass: ", "Average Backward pass: ", "Average Forward-Backward: "):
        assert sum(line.startswith(head) for line in lines) == 1
    assert sum(line.startswith("Iteration: ") for line in lines) == 2


def test_caffes_lines_name_both_of_two_layers_that_run_as_one(capsys, tmp_path):
    (tmp_path / "net.prototxt").write_text(FUSED)
    assert main(["time", str(tmp_path / "net.prototxt"), "--iterations", "1", "--caffe"]) == 0
    lines = capsys.readouterr().out.splitlines()
    spent = dict(re.match(r"\s*(\S+)\tforward: (\S+) ms", line).groups() for line in lines if "\tforward" in line)
    assert list(spent) == ["conv", "bn", "scale"]
    assert float(spent["bn"]) > 0
    assert float(spent["scale"]) == 0


def test_the_chart_is_a_picture_of_a_bar_a_layer(result, tmp_path):
    found = result(*LENET, "--chart", str(tmp_path / "charts/lenet.png"))
    assert found["chart"] == str(tmp_path / "charts/lenet.png")
    picture = cv2.imread(found["chart"])
    small = cv2.imdecode(read(time_chart.draw([LayerTime(("a",), ("T",), 1.0, None)], "one")), cv2.IMREAD_COLOR)
    assert picture.shape[1] == small.shape[1]
    assert picture.shape[0] - small.shape[0] == pytest.approx(7 * 0.19 * 150, abs=2)


def read(encoded: bytes):
    import numpy as np

    return np.frombuffer(encoded, np.uint8)


@pytest.mark.parametrize(
    ("value", "shown", "kept"),
    [(0.01234, "0.012", 0.01234), (3.14159, "3.142", 3.142), (31.4159, "31.42", 31.416), (1234.56, "1,234.6", 1234.56)],
)
def test_milliseconds_are_written_with_the_digits_that_they_have(value, shown, kept):
    assert number(value) == shown
    assert rounded(value) == kept


@pytest.mark.parametrize(
    ("arguments", "told", "code"),
    [
        (("lenet", "--iterations", "0"), "--iterations 0: expected 1 or more", 2),
        (("lenet", "--batch", "0"), "--batch 0: expected 1 or more", 2),
        (("lenet", "--chart", "x.pdf"), "--chart x.pdf: expected a name that ends in .png", 2),
        (("lenet", "--device", "tpu"), "--device tpu: expected cpu, cuda or cuda:N", 1),
        (("lenet", "--device", "cuda:99"), "--device cuda:99: this machine has", 1),
        (("lennet",), "no such net in the zoo; did you mean 'lenet'?", 1),
        ((".",), ".: a folder; expected a prototxt", 1),
        (("lenet/train_val",), "--input 3x224x224 gives the shape without opening anything", 1),
        (("lenet", "--input", "28 x 28"), "--input 28 x 28: expected channels x height x width", 1),
        (("lenet", "--weights", "none.caffemodel"), "none.caffemodel: No such file or directory", 1),
        (("lenet", "--code", "none.py"), "none.py: No such file or folder", 1),
        (("lenet", "--phase", "PLAY"), "--phase PLAY: expected one of TRAIN, TEST", 2),
    ],
)
def test_bad_input_is_told_in_one_line(arguments, told, code, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["time", *arguments]) == code
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == 1
    assert told in shown[0]


def test_a_layer_that_raises_is_told_with_the_users_lines_only(run_cli, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from ops.layers.registry import Layer, layer\n\n\n@layer('Odd')\nclass Odd(Layer):\n"
        "    def forward(self, x):\n        return self.help(x)\n\n"
        "    def help(self, x):\n        return x.odd if not x.is_meta else x\n"
    )
    (tmp_path / "net.prototxt").write_text(FUSED + 'layer { name: "odd" type: "Odd" bottom: "c" top: "o" }')
    done = run_cli("time", "net.prototxt", "--code", "mine.py", "--iterations", "1")
    assert done.code == 1
    *trace, last = done.stderr.strip().splitlines()
    assert re.fullmatch(
        r"cortado: error: net.prototxt: layer 'odd' \(Odd\): forward: AttributeError: .* \(mine.py:10\).*", last
    )
    assert [line.split(", ")[1:] for line in trace if line.startswith("  File")] == [
        ["line 7", "in forward"],
        ["line 10", "in help"],
    ]
    assert "ops/" not in done.stderr.replace(str(tmp_path), "")
