"""The shapes that layers say directly are those of a forward without numbers."""

from __future__ import annotations

import pytest
import torch

from ops import net as nets
from ops import zoo
from tests.ops.layers import golden

FILES = [golden.FOLDER / f"{name}.prototxt" for name in golden.names()]
SHAPES = {"data": (2, 3, 224, 224), "label": (2,)}


def compare(net):
    for layer, bottoms, tops in zip(net.layers, net.built.taken, net.built.given, strict=True):
        if layer.source or layer.spec.type in ("Python", "Filter", "BatchReindex"):
            continue
        with torch.device("meta"), torch.no_grad():
            made = layer(*(torch.empty(shape) for shape in bottoms))
        listed = made if isinstance(made, tuple) else (made,)
        assert [tuple(one.shape) for one in listed] == tops, layer.spec


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_shapes_of_every_golden_layer(file, phase):
    compare(nets.load(file, phase, device="meta"))


@pytest.mark.parametrize("name", ["googlenet", "resnet50"])
def test_shapes_of_whole_nets(name):
    compare(nets.load(zoo.find(name, "train_val.prototxt"), "TRAIN", inputs=SHAPES, device="meta"))
