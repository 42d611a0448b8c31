"""Weights that we wrote, read back by OpenCV 4's own Caffe importer (OpenCV 5 has none).

CORTADO_OPENCV4 names the Python interpreter of an environment that has opencv-python-headless 4.x and numpy:
python -m venv opencv4 && opencv4/bin/pip install 'opencv-python-headless<5'
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from ops import net as nets
from ops import weights, zoo

PYTHON = os.environ.get("CORTADO_OPENCV4")
pytestmark = pytest.mark.skipif(not PYTHON, reason="CORTADO_OPENCV4 names no interpreter with OpenCV 4")


@pytest.mark.parametrize("name", ["lenet", "caffenet", "googlenet", "resnet50"])
def test_opencv_computes_the_same_from_our_file(name, tmp_path):
    deploy = zoo.find(name)
    net = nets.load(deploy, seed=3, inputs={"data": (1, *nets.load(deploy, device="meta").inputs["data"][1:])})
    with torch.no_grad():
        for blob in (
            blob for blobs in net.params.values() for blob in blobs if not isinstance(blob, torch.nn.Parameter)
        ):
            blob.uniform_(0.5, 1.5)  # statistics of a net that has seen something
    x = np.random.default_rng(1).standard_normal(net.inputs["data"]).astype(np.float32)
    weights.write(net, tmp_path / "w.caffemodel")
    np.save(tmp_path / "x.npy", x)
    script = Path(__file__).with_name("read_by_opencv.py")
    files = [str(tmp_path / "w.caffemodel"), str(tmp_path / "x.npy"), "prob", str(tmp_path / "y.npy")]
    subprocess.run([str(PYTHON), str(script), str(deploy), *files], check=True, env={"PATH": os.environ["PATH"]})
    with torch.no_grad():
        ours = net(data=x)["prob"].numpy()
    theirs = np.load(tmp_path / "y.npy")
    assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 1e-4
