"""From MNIST's file format to a trained LeNet, by the commands that a person would type."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from ops import zoo
from pipelines.__main__ import main

SOLVER = """
net: "net.prototxt" type: "SGD" base_lr: 0.01 lr_policy: "inv" gamma: 0.0001 power: 0.75 momentum: 0.9
weight_decay: 0.0005 max_iter: 400 test_iter: 1 test_interval: 400 test_initialization: false random_seed: 1
solver_mode: CPU
"""


def write_idx(prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    """PREFIX-images-idx3-ubyte and PREFIX-labels-idx1-ubyte, as the MNIST page describes them."""
    Path(f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, *images.shape) + images.tobytes())
    Path(f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, len(labels)) + labels.tobytes())


def told(capsys, *command: str) -> dict:
    code = main([*command, "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out)


@pytest.mark.ray
@pytest.mark.slow
def test_lenet_learns_what_idx_files_hold(tmp_path, monkeypatch, capsys, ray_session):
    monkeypatch.chdir(tmp_path)
    held = load_digits()
    order = np.random.default_rng(0).permutation(len(held.target))
    images = np.stack([cv2.resize(held.images[i] * 15.9, (28, 28)).astype(np.uint8) for i in order])
    labels = held.target[order].astype(np.uint8)
    write_idx("train", images[:1400], labels[:1400])
    write_idx("t10k", images[1400:], labels[1400:])
    for part, name in (("train", "train"), ("t10k", "test")):
        made = told(capsys, "convert", "--list", f"{part}-images-idx3-ubyte", "--out", f"data/{name}", "--gray")
        assert made["records"] == (1400 if name == "train" else 397)
    recipe = zoo.find("lenet", "train_val").read_text().replace("batch_size: 100", "batch_size: 397")
    Path("net.prototxt").write_text(recipe)
    Path("solver.prototxt").write_text(SOLVER)
    told(capsys, "train", "--solver", "solver.prototxt", "--run", "run", "--local", "--gpu", "none", "--shuffle")
    found = told(capsys, "test", "--run", "run", "--iterations", "1", "--local")
    assert found["outputs"]["accuracy"][0] >= 0.97
