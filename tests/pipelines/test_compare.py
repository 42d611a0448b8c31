"""`cortado compare`: the layer where two nets begin to differ."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from ops import net as nets
from ops import weights, zoo
from pipelines.__main__ import main
from pipelines.compare import split


@pytest.fixture
def saved(tmp_path):
    """LeNet's weights, and the same with one number of ip1 changed."""
    net, generator = nets.load(zoo.find("lenet")), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for blob in (blob for blobs in net.params.values() for blob in blobs):
            blob.copy_(0.1 * torch.randn(blob.shape, generator=generator))
    weights.write(net, tmp_path / "a.caffemodel")
    with torch.no_grad():
        net.params["ip1"][0][7, 11] += 0.5
    weights.write(net, tmp_path / "b.caffemodel")
    return tmp_path


def test_one_changed_weight_is_found_in_its_layer(saved, run_cli):
    done = run_cli("compare", "lenet:a.caffemodel", "lenet:b.caffemodel", "--json", cwd=saved)
    result = json.loads(done.stdout)
    assert done.code == 1
    assert result["first"] == {"layer": "ip1", "type": "InnerProduct", "blob": "ip1"}
    before = [row["blob"] for row in result["blobs"] if row["equal"]]
    assert before == ["conv1", "pool1", "conv2", "pool2"]
    ip1 = next(row for row in result["blobs"] if row["blob"] == "ip1")
    assert ip1["largest"] > 0


def test_equal_weights_do_not_differ(saved, run_cli):
    done = run_cli("compare", "lenet:a.caffemodel", "lenet:a.caffemodel", cwd=saved)
    assert done.code == 0, done.stderr
    assert "no blob differs" in done.stdout


def test_precisions_differ_a_little(saved, run_cli):
    done = run_cli(
        "compare", "lenet:a.caffemodel", "lenet:a.caffemodel", "--precision", "fp32,bf16", "--json", cwd=saved
    )
    result = json.loads(done.stdout)
    assert result["first"]["blob"] == "conv1"
    assert all(row["relative"] < 0.1 for row in result["blobs"])


def test_input_may_be_an_array(saved, run_cli):
    shape = nets.load(zoo.find("lenet"), device="meta").inputs["data"]
    np.save(saved / "x.npy", np.zeros(shape, np.float32))
    done = run_cli("compare", "lenet:a.caffemodel", "lenet:b.caffemodel", "--input", "x.npy", "--json", cwd=saved)
    assert [row["equal"] for row in json.loads(done.stdout)["blobs"]][:4] == [True] * 4


def compared(capsys, *arguments: object) -> dict:
    main(["compare", *map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def test_the_weights_that_differ_are_named_too(saved, capsys, monkeypatch):
    monkeypatch.chdir(saved)
    found = compared(capsys, "lenet:a.caffemodel", "lenet:b.caffemodel", "--batch", "1")
    assert [(row["layer"], row["blob"], row["largest"]) for row in found["weights"]] == [
        ("ip1", "blob 0", pytest.approx(0.5))
    ]
    assert found["shapes"] == {"data": [1, 1, 28, 28]}
    assert found["beyond"] == found["first"]
    assert found["ok"] is False


def test_a_tolerance_lets_a_difference_pass(saved, capsys, monkeypatch):
    monkeypatch.chdir(saved)
    found = compared(capsys, "lenet:a.caffemodel", "lenet:b.caffemodel", "--tolerance", "10")
    assert (found["ok"], found["beyond"], found["first"]["layer"]) == (True, None, "ip1")


def test_a_caffemodel_is_a_net_with_weights(saved, capsys, monkeypatch):
    monkeypatch.chdir(saved)
    found = compared(capsys, "a.caffemodel", "lenet:b.caffemodel", "--batch", "1")
    assert found["first"]["layer"] == "ip1"


def test_an_image_goes_in_as_show_puts_it_in(saved, capsys, monkeypatch, golden):
    """Its middle in the size of the input, less the mean, times the scale; against the net fed by hand."""
    from ops import image, pictures

    monkeypatch.chdir(saved)
    photo = sorted((golden / "files/photos").iterdir())[0]
    array = pictures.net_input(
        image.decode(photo.read_bytes(), color=False), (1, 28, 28), mean=np.array([100.0]), scale=0.5
    )
    np.save(saved / "x.npy", array)
    nets_ = ("lenet:a.caffemodel", "lenet:b.caffemodel")
    ours = compared(capsys, *nets_, "--input", photo, "--mean", "100", "--scale", "0.5")
    theirs = compared(capsys, *nets_, "--input", "x.npy")
    assert ours["blobs"] == theirs["blobs"]
    assert ours["shapes"] == {"data": [1, 1, 28, 28]}


def test_another_seed_is_another_input(saved, capsys, monkeypatch):
    monkeypatch.chdir(saved)
    nets_ = ("lenet:a.caffemodel", "lenet:b.caffemodel", "--batch", "1")
    first, again, other = (compared(capsys, *nets_, "--input", seed) for seed in (1, 1, 2))
    assert first["blobs"] == again["blobs"] != other["blobs"]


def test_the_first_layer_beyond_the_tolerance_is_marked(saved, capsys, monkeypatch):
    monkeypatch.chdir(saved)
    assert main(["compare", "lenet:a.caffemodel", "lenet:b.caffemodel"]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in shown if line.startswith(">")] == ["ip1"]
    assert any(re.match(r"first that differs +layer ip1 \(InnerProduct\): relative", line) for line in shown)


def test_nets_without_weights_get_the_same_random_ones(saved, capsys, monkeypatch):
    monkeypatch.chdir(saved)
    assert main(["compare", "lenet", "lenet", "--precision", "fp32,bf16", "--json"]) == 0
    captured = capsys.readouterr()
    assert "no weights given: both nets get the same random ones" in captured.err
    assert json.loads(captured.out)["blobs"][0]["relative"] > 1e-4


def test_the_path_of_a_net_may_have_colons(tmp_path):
    odd = tmp_path / "a:b.prototxt"
    odd.write_text("")
    assert split(str(odd)) == (str(odd), None)
    assert split(f"{odd}:w.caffemodel") == (str(odd), "w.caffemodel")
    assert split("lenet:w.caffemodel,x.caffemodel") == ("lenet", "w.caffemodel,x.caffemodel")
    assert split("lenet") == ("lenet", None)


@pytest.mark.parametrize(
    ("arguments", "told", "code"),
    [
        (("lenet", "caffenet"), "nets of different shapes cannot be compared", 1),
        (("lenet", "lennet"), "no such net in the zoo; did you mean 'lenet'?", 1),
        (("lenet:none.caffemodel", "lenet"), "none.caffemodel", 1),
        (("lenet", "lenet", "--precision", "fp8"), "--precision fp8: expected fp32, tf32 or bf16", 2),
        (("lenet", "lenet", "--precision", "fp32,bf16,tf32"), "--precision fp32,bf16,tf32: expected one, or two", 2),
        (("lenet", "lenet", "--device", "cuda:99"), "--device cuda:99: this machine has", 1),
        (("lenet", "lenet", "--batch", "0"), "--batch 0: expected 1 or more", 2),
        (("lenet", "lenet", "--tolerance", "-1"), "--tolerance -1: expected 0 or more", 2),
        (
            ("lenet", "lenet", "--input", "none.jpg"),
            "none.jpg: No such file; expected an image, .npy, .npz, or a seed",
            1,
        ),
        (("lenet", "lenet", "--input", "a.caffemodel"), "a.caffemodel: not an image", 1),
        (("lenet", "lenet", "--input", "odd.npy"), "odd.npy: no arrays of numpy", 1),
        (("lenet", "lenet", "--input", "flat.npy"), "flat.npy: 3 x 4 fits no input of", 1),
        (("lenet", "lenet", "--input", "named.npz"), "has no input 'dat'; did you mean 'data'?", 1),
        (("lenet", "lenet", "--input", "words.npy"), "words.npy: an array of <U1; expected numbers", 1),
        (("lenet/train_val", "lenet"), "--shape 3x224x224 gives the shape", 1),
        (("lenet", "lenet", "--code", "none.py"), "none.py: No such file or folder", 1),
    ],
)
def test_what_cannot_be_compared_is_told_in_one_line(saved, capsys, monkeypatch, arguments, told, code):
    monkeypatch.chdir(saved)
    (saved / "odd.npy").write_bytes(b"no array")
    np.save(saved / "flat.npy", np.zeros((3, 4)))
    np.save(saved / "words.npy", np.array(["a"]))
    np.savez(saved / "named.npz", dat=np.zeros((1, 1, 28, 28)))
    assert main(["compare", *arguments]) == code
    shown = capsys.readouterr().err
    assert told in shown
    assert len(shown.strip().splitlines()) == 1
