"""From a net that is trained to one that is used: data becomes an Input, losses go, their softmax or sigmoid stays."""

from __future__ import annotations

from collections.abc import Mapping

from ops.layers.registry import Shape, find
from ops.proto.caffe_pb2 import LayerParameter, NetParameter

INSIDE = {"SoftmaxWithLoss": "Softmax", "InfogainLoss": "Softmax", "SigmoidCrossEntropyLoss": "Sigmoid"}
ENDS = ("Accuracy", "Silence", "HDF5Output")
DERIVED = "to use: pictures in, as the data layer of"  # in the heading of such a net that a recipe wrote
OF_TRAINING = ("include", "exclude", "loss_weight", "phase", "blobs")


def deploy(spec: NetParameter, inputs: Mapping[str, Shape]) -> NetParameter:
    """The net of a filtered definition for new data, one item a batch; only what does not need labels stays.

    `inputs` are the shapes of the data layers' tops; the first top of each stays, the others are taken for labels.
    Where a loss compares two blobs, neither of them a label, the second is its target, and goes if nobody else takes
    it.
    """
    made = NetParameter(name=spec.name)
    labels, targets, losses = set[str](), set[str](), list[LayerParameter]()
    for layer in spec.layer:
        if find(layer.type).source:
            labels.update(layer.top[1:])
            made.layer.append(input_for(layer, inputs[layer.top[0]]))
        elif layer.type.endswith("Loss"):
            losses.append(layer)
            if not labels.intersection(layer.bottom):
                targets.update(layer.bottom[1:])
        elif labels.intersection(layer.bottom):
            labels.update(layer.top)
        elif layer.type not in ENDS:
            kept = made.layer.add()
            kept.CopyFrom(layer)
            for field in OF_TRAINING:
                kept.ClearField(field)
    for loss in losses:
        if loss.type in INSIDE and loss.bottom[0] not in labels:
            add_end(made, loss)
    drop_unused(made, targets)
    return made


def ends(spec: NetParameter) -> list[str]:
    """The blobs that no layer takes, in byte order."""
    found: set[str] = set()
    for layer in spec.layer:
        found = (found - set(layer.bottom)) | set(layer.top)
    return sorted(found, key=str.encode)


def input_for(layer: LayerParameter, shape: Shape) -> LayerParameter:
    """What takes the place of a data layer: an Input of one item."""
    top = layer.top[0]
    made = LayerParameter(name=layer.name if layer.type == "Input" else top, type="Input")
    made.top.append(top)
    made.input_param.shape.add().dim.extend((1, *shape[1:]))
    return made


def add_end(net: NetParameter, loss: LayerParameter) -> None:
    """The Softmax or Sigmoid in a loss, unless the net has it: its blob is the loss's second top, `prob`, or
    `prob_` and the loss's name."""
    kind = INSIDE[loss.type]
    if any(layer.type == kind and layer.bottom[0] == loss.bottom[0] for layer in net.layer):
        return
    taken = {name for layer in net.layer for name in (layer.name, *layer.top)}
    name = loss.top[1] if len(loss.top) > 1 else "prob" if loss.name == "loss" else f"prob_{loss.name}"
    while name in taken:
        name += "_"
    layer = net.layer.add(name=name, type=kind)
    layer.bottom.append(loss.bottom[0])
    layer.top.append(name)
    if loss.type == "InfogainLoss":
        layer.softmax_param.axis = loss.infogain_loss_param.axis
    elif loss.HasField("softmax_param"):
        layer.softmax_param.CopyFrom(loss.softmax_param)


def drop_unused(net: NetParameter, targets: set[str]) -> None:
    """Take away what only losses needed: layers that end in targets, then inputs that nobody takes."""
    while True:
        taken = {name for layer in net.layer for name in layer.bottom}
        idle = [
            layer
            for layer in net.layer
            if not taken.intersection(layer.top) and (targets.issuperset(layer.top) or layer.type == "Input")
        ]
        if not idle or len(idle) == len(net.layer):
            return
        for layer in idle:
            targets.update(layer.bottom)
            net.layer.remove(layer)
