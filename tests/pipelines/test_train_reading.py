"""How `cortado train` reads its records when it is asked to read them otherwise than Caffe."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from ops import weights
from pipelines.__main__ import main

NET = """
name: "regression"
layer {{ name: "data" type: "ImageData" top: "data" top: "label"
        image_data_param {{ source: "{source}" batch_size: 4 }} transform_param {{ scale: 0.01 }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
        inner_product_param {{ num_output: 2 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "label" top: "loss" }}
"""
SOLVER = 'net: "net.prototxt" lr_policy: "fixed" base_lr: 0 max_iter: 4 random_seed: 3 solver_mode: CPU'


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Sixteen pictures, each with two numbers beside it."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    lines = []
    for number in range(16):
        cv2.imwrite(str(tmp_path / f"{number}.png"), rng.integers(0, 256, (6, 5, 3), np.uint8))
        lines.append(f"{number}.png {number}.5 -{number}\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    (tmp_path / "net.prototxt").write_text(NET.format(source="list.txt"))
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    return tmp_path


def train(capsys, run, *options):
    arguments = ["--solver", "solver.prototxt", "--run", run, "--local", "--gpu", "none", "--json"]
    code = main(["train", *arguments, *options])
    told = capsys.readouterr()
    return code, json.loads(told.out) if code == 0 else None, told.err


def losses(run):
    with open(f"{run}/metrics.csv") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_vector_labels_of_a_list(capsys):
    code, found, told = train(capsys, "a", "--labels", "vector:2")
    assert code == 0, told
    assert found["iterations"] == 4
    with weights.read(next(Path("a").glob("*.caffemodel"))) as saved:
        blobs = next(layer.blobs for layer in saved.layers if layer.name == "ip")
        kernel, bias = blobs[0].values(), blobs[1].values()
    for step, loss in enumerate(losses("a")):  # the rate is 0: each loss can be computed by hand
        numbers = range(4 * step, 4 * step + 4)
        pixels = np.stack([cv2.imread(f"{number}.png").transpose(2, 0, 1).ravel() for number in numbers])
        wanted = np.array([[number + 0.5, -number] for number in numbers])
        apart = (pixels * 0.01) @ kernel.reshape(2, -1).T + bias.ravel() - wanted
        assert loss == pytest.approx((apart**2).sum() / 8, rel=1e-4)


def test_a_share_of_the_records_may_be_bad(capsys):
    Path("5.png").write_bytes(b"no picture")
    code, _, told = train(capsys, "a", "--labels", "vector:2")
    assert code == 1
    assert "list.txt:6: 5.png" in told.splitlines()[-1]
    code, found, told = train(capsys, "b", "--labels", "vector:2", "--max-bad", "7%")
    assert code == 0, told
    assert found["bad"] == 1
    with open("b/errors.csv") as file:
        (row,) = csv.DictReader(file)
    assert row["record"] == "list.txt:6: 5.png"
    assert row["reason"].startswith("not an image")


def test_an_epoch_in_blocks_has_every_record_once(capsys):
    digests = {}
    for run, options in {"order": (), "any": ("--shuffle",), "blocks": ("--shuffle-blocks",)}.items():
        assert train(capsys, run, "--labels", "vector:2", *options)[0] == 0
        digests[run] = losses(run)
    assert len({tuple(each) for each in digests.values()}) == 3
    for each in digests.values():  # the rate is 0: the mean over an epoch does not depend on the order
        assert np.mean(each) == pytest.approx(np.mean(digests["order"]), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--shuffle", "--shuffle-blocks"), "give one of them"),
        (("--max-bad", "x"), "expected a share, as 1% or 0.01"),
        (("--max-bad", "100%"), "some records must be good"),
        (("--labels", "vektor:2"), "expected caffe, int, float or vector:N"),
    ],
)
def test_what_does_not_go(capsys, options, told):
    code, _, error = train(capsys, "a", *options)
    assert code in (1, 2)
    assert told in error.splitlines()[-1]
