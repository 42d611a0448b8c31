"""Bad nets and bad weights: one line that says which file, which layer, what to do; never a crash or a hang."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from ops import net as nets
from ops import weights
from tests.ops.test_net import DATA, SMALL, net

CONV = 'convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } }'


def refusal(path, *arguments, **options):
    """The error of `load`, which is one line and names the file."""
    with pytest.raises((ValueError, OSError)) as caught:
        nets.load(path, *arguments, **options)
    told = str(caught.value)
    assert "\n" not in told
    return told


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("num_output", "num_outputs", "FILE:5:29: ConvolutionParameter has no field named 'num_outputs'; did you mean"),
        ("Pooling", "Poling", "layer 'pool' (Poling): unknown layer type 'Poling'; did you mean 'Pooling'?; docs/"),
        ('type: "Pooling"', "", "layer 'pool' (no type): has no type"),
        (
            'bottom: "pool"',
            'bottom: "pol"',
            "'fc' (InnerProduct): takes blob 'pol', which no earlier layer makes",
        ),
        (
            'bottom: "data"',
            'bottom: "fc"',
            "(Convolution): takes blob 'fc', which layer 'fc' makes only later",
        ),
        ('bottom: "data"', 'bottom: "conv"', "'conv' (Convolution): takes blob 'conv', which it makes itself: a cycle"),
        (
            'top: "pool"',
            'top: "data"',
            "(Pooling): makes blob 'data', which layer 'data' (Input) makes already",
        ),
        (
            "dim: 8",
            "dim: 0",
            "layer 'data' (Input): a blob of shape 2 x 3 x 0 x 9 is empty",
        ),
        ("dim: 8", "dim: -8", "layer 'data' (Input): a blob of shape 2 x 3 x -8 x 9 is empty"),
        ("dim: 8", "dim: 2000000000", "elements, at most 2,147,483,647 go"),
        ("dim: 8", "dim: 2", "layer 'conv' (Convolution): a kernel of 3 x 3 does not fit into a bottom of 2 x 9"),
        (CONV, CONV[:-1] + "group: 2 }", "'conv' (Convolution): group 2 does not divide the bottom's channels (3)"),
        ("xavier", "xaver", "layer 'conv' (Convolution): unknown filler type 'xaver'; did you mean 'xavier'?"),
        ('top: "fc"', 'top: "fc" top: "x"', "layer 'fc' (InnerProduct): has 2 tops, expected 1"),
        ('bottom: "pool"', "", "layer 'fc' (InnerProduct): has 0 bottoms, expected 1"),
        ('top: "fc"', 'top: "fc" ' + "param {} " * 3, "'fc' (InnerProduct): has 3 param entries for 2 blobs"),
        (
            'top: "fc"',
            'top: "fc" loss_weight: 1 loss_weight: 2',
            "(InnerProduct): gives loss_weight 2 times for 1 top",
        ),
        (
            'top: "fc"',
            'top: "fc" propagate_down: true propagate_down: true',
            "gives propagate_down 2 times for 1",
        ),
        ('name: "fc"', 'name: "fc" include {} exclude {}', "layer 'fc': has include and exclude rules"),
        ("num_output: 5", "num_output: 1000000000", "layer 'fc' (InnerProduct): a blob of shape 1000000000 x 48 has"),
    ],
)
def test_what_is_wrong_with_a_net_is_told(tmp_path, old, new, told):
    file = tmp_path / "net.prototxt"
    assert old in SMALL
    file.write_text(SMALL.replace(old, new, 1))
    error = refusal(file)
    assert error.startswith(str(file))
    assert told.replace("FILE", str(file)) in error


def test_shapes_that_do_not_fit_are_both_named():
    text = (
        SMALL
        + """
    layer { name: "other" type: "Input" top: "other" input_param { shape { dim: 2 dim: 7 } } }
    layer { name: "sum" type: "Eltwise" bottom: "fc" bottom: "other" top: "sum" }
    """
    )
    with pytest.raises(ValueError, match=r"small: layer 'sum' \(Eltwise\): .*2 x 5.*2 x 7"):
        net(text)


def test_more_memory_than_there_is_is_refused_before_it_is_taken(monkeypatch):
    monkeypatch.setattr("ops.net.available", lambda: 1_000_000)
    with pytest.raises(ValueError, match=r"its blobs take 24,0.. bytes and 1,000,000 are free|take [\d,]+ bytes"):
        net(SMALL.replace("num_output: 5", "num_output: 50000"))


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        nets.load(tmp_path / "none.prototxt")


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\x89HDF\r\n\x1a\n" + bytes(64), bytes(range(256))]
)
def test_a_file_of_another_kind_is_told(tmp_path, content):
    file = tmp_path / "net.prototxt"
    file.write_bytes(content)
    assert refusal(file).startswith(f"{file}: ")


def test_a_prototxt_of_50_mb_is_refused_at_once(tmp_path):
    file = tmp_path / "net.prototxt"
    file.write_text(SMALL + "# a comment\n" * (50 * 1024 * 1024 // 12))
    began = time.monotonic()
    assert "more than the 33,554,432 that such a file may have" in refusal(file)
    assert time.monotonic() - began < 5


def test_a_nesting_1000_deep_is_refused_at_once(tmp_path):
    file = tmp_path / "net.prototxt"
    file.write_text("layer { " * 1000 + "}" * 1000)
    began = time.monotonic()
    assert refusal(file).startswith(f"{file}:1:")
    assert time.monotonic() - began < 5


# -- weights ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    file = tmp_path / "small.caffemodel"
    weights.write(net(SMALL), file)
    return file


def test_truncated_weights_are_told(saved):
    saved.write_bytes(saved.read_bytes()[:-9])
    with pytest.raises(ValueError, match=re.escape(str(saved)) + ".*cut short"):
        net(SMALL, weights=saved)


def test_weights_of_another_shape_are_told_with_what_to_do(saved):
    other = SMALL.replace("num_output: 5", "num_output: 6")
    with pytest.raises(ValueError, match=r"'fc'.* is 6 x 48, the file has 5 x 48: rename the layer to train it afresh"):
        net(other, weights=saved)


def test_weights_for_another_net_list_what_there_is_and_what_is_wanted(saved):
    other = SMALL.replace('name: "conv"', 'name: "c1"').replace('name: "fc"', 'name: "ip"')
    with pytest.raises(ValueError, match="it has weights for 'conv', 'fc', the net wants 'c1', 'ip'"):
        net(other, weights=saved)


def test_nan_weights_are_warned_about(saved, caplog):
    broken = net(SMALL)
    with torch.no_grad():
        broken.params["conv"][0][0, 0, 0, 0] = np.nan
    weights.write(broken, saved)
    loaded = net(SMALL, weights=saved)
    assert "'conv'" in loaded.report.warnings[0]
    assert "NaN" in loaded.report.warnings[0]
    assert "NaN" in caplog.text


def test_upgrades_that_lose_something_are_warned_about(caplog):
    sizes = " ".join(f"input_dim: {size}" for size in (2, 3, 8, 9))
    net(f'input: "data" {sizes} {sizes} ' + SMALL.replace(DATA, ""))
    assert "small: 4 input_dim more than the 4 of the inputs left out" in caplog.text


# -- damage ----------------------------------------------------------------------------------------------------------


def fuzz(count, trace):
    command = [sys.executable, "-m", "tests.ops.fuzz_nets", str(count), str(trace)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{trace.read_text()}: {done.returncode} {done.stderr[-2000:]}"
    assert int(done.stdout.split()[0]) > count // 20


@pytest.mark.slow
def test_500_damaged_files_are_refused_or_load(tmp_path):
    fuzz(500, tmp_path / "trace")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_soak_5000_damaged_files_are_refused_or_load(tmp_path):
    fuzz(5000, tmp_path / "trace")
