"""Blobs that lie elsewhere: the same numbers, no copy, not even of what cannot be written."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ops import net as nets
from ops.shared_blobs import blobs_of, use_blobs

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { name: "w" } convolution_param {
  num_output: 3 kernel_size: 3 pad: 1 bias_term: false weight_filler { type: "xavier" } } }
layer { name: "again" type: "Convolution" bottom: "conv" top: "again" param { name: "w" } convolution_param {
  num_output: 3 kernel_size: 3 pad: 1 bias_term: false } }
layer { name: "bn" type: "BatchNorm" bottom: "again" top: "again" }
layer { name: "scale" type: "Scale" bottom: "again" top: "again" scale_param { bias_term: true } }
layer { name: "fc" type: "InnerProduct" bottom: "again" top: "fc" inner_product_param {
  num_output: 4 weight_filler { type: "xavier" } } }
"""


@pytest.fixture
def nets_of_one_file(tmp_path):
    (tmp_path / "net.prototxt").write_text(NET)
    _, spec = nets.read(tmp_path / "net.prototxt")
    full = nets.load(tmp_path / "net.prototxt", seed=3)
    with torch.no_grad():
        full.params["bn"][0].fill_(0.3)
        full.params["bn"][1].fill_(2.0)
        full.params["bn"][2].fill_(1.0)
    return full, nets.assemble("other", spec, nets.state_of(spec, "TEST"))


def test_a_net_computes_with_them_where_they_lie(nets_of_one_file):
    full, other = nets_of_one_file
    arrays = [(*place, np.array(values)) for *place, values in blobs_of(full)]
    for *_, values in arrays:
        values.flags.writeable = False
    use_blobs(other, arrays, torch.device("cpu"))
    x = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(other(data=x)["fc"], full(data=x)["fc"])
    lies = {values.__array_interface__["data"][0] for *_, values in arrays}
    assert {blob.data_ptr() for layer in other.layers for blob in layer.blobs} == lies


def test_a_shared_blob_travels_once(nets_of_one_file):
    full, other = nets_of_one_file
    arrays = blobs_of(full)
    assert len(arrays) == sum(len(layer.blobs) for layer in full.layers) - 1
    use_blobs(other, arrays, torch.device("cpu"))
    assert other.params["again"][0].data_ptr() == other.params["conv"][0].data_ptr()
