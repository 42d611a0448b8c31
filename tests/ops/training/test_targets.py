"""Label smoothing and class weights, against torch's cross_entropy; weights from files and from counts."""

from __future__ import annotations

import re

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from google.protobuf import text_format
from sklearn.utils.class_weight import compute_class_weight

from ops import net as nets
from ops.feed.feed import open_feed
from ops.layers.loss import SoftmaxWithLoss
from ops.parallel import Group, Part
from ops.proto.caffe_pb2 import LayerParameter, NetParameter
from ops.training import targets

N, CLASSES = 6, 5
WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.5])
NETWORK = f"""
name: "n"
layer {{ name: "data" type: "HDF5Data" top: "x" top: "label" hdf5_data_param {{ source: "list.txt" batch_size: 2 }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param {{ num_output: {CLASSES} }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss"
        loss_param {{ ignore_label: 4 }} }}
"""


def loss_layer(more="", shape=(N, CLASSES), **attributes):
    spec = text_format.Parse(f'name: "l" type: "SoftmaxWithLoss" top: "loss" {more}', LayerParameter())
    axis = spec.softmax_param.axis
    places = [size for at, size in enumerate(shape) if at != axis % len(shape)]
    made = SoftmaxWithLoss(spec, [shape, tuple(places)], "TRAIN")
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def draw(shape=(N, CLASSES), axis=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    places = [size for at, size in enumerate(shape) if at != axis]
    x = torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
    return x, torch.randint(0, CLASSES, places, generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("ignore", [None, 1])
@pytest.mark.parametrize(("shape", "axis"), [((N, CLASSES), 1), ((N, CLASSES, 2, 3), 1), ((2, 3, CLASSES), 2)])
def test_loss_and_gradient_are_those_of_torchs_cross_entropy(smoothing, weights, ignore, shape, axis):
    x, labels = draw(shape, axis)
    more = f"softmax_param {{ axis: {axis} }}" + (
        f" loss_param {{ ignore_label: {ignore} }}" if ignore is not None else ""
    )
    loss = loss_layer(more, shape, smoothing=smoothing, class_weights=weights)(x, labels.double())
    (found,) = torch.autograd.grad(loss, x)
    expected = F.cross_entropy(
        x.movedim(axis, 1),
        labels,
        None if weights is None else weights.double(),
        ignore_index=-100 if ignore is None else ignore,
        label_smoothing=smoothing,
    )
    (gradient,) = torch.autograd.grad(expected, x)
    assert torch.allclose(loss, expected, rtol=1e-10)
    assert torch.allclose(found, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("mode", "divisor"), [("NONE", 1), ("BATCH_SIZE", N), ("VALID", "weights"), ("FULL", "more")])
def test_what_the_weighted_sum_is_divided_by(mode, divisor):
    x, labels = draw()
    counted = labels != 1
    found = loss_layer(f"loss_param {{ normalization: {mode} ignore_label: 1 }}", smoothing=0.2, class_weights=WEIGHTS)(
        x, labels.double()
    )
    total = F.cross_entropy(x, labels, WEIGHTS.double(), ignore_index=1, label_smoothing=0.2, reduction="sum")
    heavy = WEIGHTS[labels[counted]].sum().item()
    by = {"weights": heavy, "more": heavy + int((~counted).sum())}.get(divisor, divisor)
    assert found.item() == pytest.approx(total.item() / by, rel=1e-9)


def test_smoothing_alone_is_normalized_as_ever():
    x, labels = draw()
    plain, smoothed = loss_layer(), loss_layer(smoothing=1e-12)
    assert plain(x, labels.double()).item() == pytest.approx(smoothed(x, labels.double()).item(), rel=1e-9)


def test_the_plain_path_is_not_touched():
    x, labels = draw()
    assert "_Likelihood" in loss_layer()(x, labels.double()).grad_fn.name()
    assert "_Likelihood" not in loss_layer(smoothing=0.1)(x, labels.double()).grad_fn.name()


def test_a_batch_of_classes_that_weigh_nothing_costs_nothing():
    x, _ = draw()
    loss = loss_layer(class_weights=WEIGHTS)(x, torch.full((N,), 2.0))
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()


@pytest.mark.parametrize("weights", [None, WEIGHTS.double()])
def test_the_gradient_is_the_slope(weights):
    x, labels = draw()
    layer = loss_layer(smoothing=0.15, class_weights=weights)
    assert torch.autograd.gradcheck(lambda x: layer(x, labels.double()), x)


def test_a_label_that_is_no_class_is_told():
    x, labels = draw()
    labels[2] = 7
    with pytest.raises(ValueError, match="label 7 is none of the 5 classes"):
        loss_layer(smoothing=0.1, class_weights=WEIGHTS)(x, labels.double())


class Halves(Group):
    """Two processes of whom the other has a part that is known."""

    def __init__(self, rank, other):
        super().__init__(rank, 2)
        object.__setattr__(self, "other", other)

    def sum(self, tensor):
        return tensor + self.other


def test_the_shares_of_two_processes_add_up_to_the_loss_of_the_whole_batch():
    x, labels = draw()
    whole = loss_layer(smoothing=0.1, class_weights=WEIGHTS)(x, labels.double())
    shares = []
    for rank, (here, there) in enumerate([(slice(0, 3), slice(3, 6)), (slice(3, 6), slice(0, 3))]):
        layer = loss_layer(smoothing=0.1, class_weights=WEIGHTS)
        group = Halves(rank, WEIGHTS[labels[there]].sum())
        layer.part = Part(group, ((N, CLASSES), (N,)), (0, 0))
        shares.append(layer(x[here], labels[here].double()))
    assert sum(shares).item() == pytest.approx(whole.item(), rel=1e-9)


# -- which weights -----------------------------------------------------------------------------------------------------


@pytest.fixture
def records(tmp_path):
    """A net over 40 records whose labels are known, and its feeds."""
    labels = np.random.default_rng(3).integers(0, CLASSES, 40)
    labels[labels == 3] = 0  # a class without records
    with h5py.File(tmp_path / "train.h5", "w") as file:
        file["x"] = np.zeros((40, 3), np.float32)
        file["label"] = labels.astype(np.float32)
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'train.h5'}\n")

    def load(text=NETWORK):
        (tmp_path / "net.prototxt").write_text(text)
        net = nets.load(tmp_path / "net.prototxt", "TRAIN")
        feeds = {
            layer.spec.name: open_feed(layer.spec, "TRAIN", folder=tmp_path, seed=0)
            for layer in net.layers
            if layer.source
        }
        opened.extend(feeds.values())
        return net, feeds

    opened = []
    yield load, labels
    for feed in opened:
        feed.close()


def test_balanced_weights_are_scikit_learns(records):
    load, labels = records
    found = targets.weigh(*swap(load(), "balanced"))["loss"]
    kept = labels[labels != 4]  # the ignored one
    expected = dict(
        zip(np.unique(kept), compute_class_weight("balanced", classes=np.unique(kept), y=kept), strict=True)
    )
    assert found == pytest.approx([expected.get(label, 0.0) for label in range(CLASSES)])
    assert np.mean([found[label] for label in kept]) == pytest.approx(1)


def swap(loaded, wanted):
    net, feeds = loaded
    return net, wanted, feeds


def test_weights_from_a_file_reach_the_layer(records, tmp_path):
    (tmp_path / "weights.txt").write_text("1\n0.5   # dogs\n\n# the rest\n2e1\n0\n3\n")
    net, feeds = records[0]()
    assert targets.weigh(net, str(tmp_path / "weights.txt"), feeds) == {"loss": [1.0, 0.5, 20.0, 0.0, 3.0]}
    assert net.layers[-1].class_weights.tolist() == [1.0, 0.5, 20.0, 0.0, 3.0]
    targets.smooth(net, 0.25)
    assert net.layers[-1].smoothing == 0.25


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1\nx\n", "weights.txt:2: found 'x', expected the weight of a class"),
        ("1\n-2\n", "weights.txt:2: a weight of -2; expected a number from 0 on"),
        ("nan\n", "weights.txt:1: a weight of nan"),
        ("0\n0\n", "weights.txt: holds no weight above 0"),
        ("1\n2\n", "weights.txt: has 2 weights, layer 'loss' has 5 classes"),
    ],
)
def test_a_file_that_holds_no_weights_is_told(records, tmp_path, text, told):
    (tmp_path / "weights.txt").write_text(text)
    net, feeds = records[0]()
    with pytest.raises(ValueError, match=re.escape(told)):
        targets.weigh(net, str(tmp_path / "weights.txt"), feeds)


def test_labels_that_no_data_layer_has_cannot_be_counted(records):
    cut = 'layer { name: "twice" type: "Power" bottom: "label" top: "twice" }'
    text = NETWORK.replace('layer { name: "ip"', cut + ' layer { name: "ip"').replace(
        'bottom: "label" top: "loss"', 'bottom: "twice" top: "loss"'
    )
    with pytest.raises(
        ValueError, match=r"layer 'loss': its labels 'twice' are not those of a data layer.*give a file"
    ):
        targets.weigh(*swap(records[0](text), "balanced"))


def test_a_label_beyond_the_classes_cannot_be_counted(records):
    text = NETWORK.replace(f"num_output: {CLASSES}", "num_output: 2").replace("ignore_label: 4", "")
    with pytest.raises(ValueError, match=r"class weights: label \d is none of the 2 classes"):
        targets.weigh(*swap(records[0](text), "balanced"))


def test_a_net_without_such_a_loss_is_told():
    text = NETWORK.replace("SoftmaxWithLoss", "HingeLoss").replace("HDF5Data", "DummyData")
    shapes = "dummy_data_param { shape { dim: 2 dim: 3 } shape { dim: 2 } }"
    text = re.sub(r"hdf5_data_param \{.*?\}", shapes, text)
    net = nets.load(text_format.Parse(text, NetParameter()), "TRAIN")
    with pytest.raises(ValueError, match="label smoothing is for SoftmaxWithLoss, and there is no such layer"):
        targets.smooth(net, 0.1)
    with pytest.raises(ValueError, match=r"label smoothing 1: expected a share from 0 to below 1"):
        targets.smooth(net, 1.0)
