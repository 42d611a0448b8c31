"""A net made to fit a data set: data layers, number of outputs, loss, and for fine-tuning the names and rates of the
last layers. Every change has its reason, which stands behind it in the text.
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass, field

from ops.layers.registry import LAYERS
from ops.names import quoted
from ops.phases import select, state_of
from ops.proto.caffe_pb2 import TEST, TRAIN, DataParameter, LayerParameter, NetParameter, TransformationParameter
from pipelines.stages.recipe_data import Pictures, listed

OUTPUTS = {  # layers that give a score a class: type -> its parameters
    "InnerProduct": "inner_product_param",
    "Convolution": "convolution_param",
    "Deconvolution": "convolution_param",
}
PASSING = ("ReLU", "PReLU", "ELU", "Dropout", "Softmax", "Sigmoid", "TanH", "Reshape", "Flatten", "Pooling", "Scale")
PASSING += ("BatchNorm", "Power", "Bias")  # between such a layer and the loss
OF_NUMBERS = ("EuclideanLoss", "SigmoidCrossEntropyLoss", "SmoothL1Loss")  # losses that compare with a number each
FINE_BATCH = 50  # records, as Caffe's example of fine-tuning
SMALL_BATCH = 16
HEAD_RATES = (10, 20)  # lr_mult of weights and bias of a layer that starts afresh


@dataclass
class Fitted:
    """A net in the making; notes: (layer, field) -> why the field is as it is; said: what a person should know."""

    name: str
    spec: NetParameter
    layers: list[LayerParameter] = field(default_factory=list)
    notes: dict[tuple[int, str], str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    crop: int = 0
    batch: int = 0
    test_batch: int = 0

    def note(self, layer: LayerParameter, place: str, why: str) -> None:
        self.notes[id(layer), place] = why

    def whole(self) -> tuple[NetParameter, dict[tuple[int, str], str]]:
        """The net, and its notes by the number of the layer."""
        made = NetParameter()
        made.CopyFrom(self.spec)
        del made.layer[:]
        made.ClearField("state")
        made.layer.extend(self.layers)
        number = {id(layer): at for at, layer in enumerate(self.layers)}
        return made, {(number[key], place): why for (key, place), why in self.notes.items()}


@dataclass(frozen=True)
class Wanted:
    """How a net is to be fitted: sizes of batches and crop (None: the net's own), and, where it is to be fine-tuned,
    what the names of fresh layers end in and which names are taken."""

    batch: int | None = None
    test_batch: int | None = None
    crop: int | None = None
    fresh: str | None = None
    taken: frozenset[str] = frozenset()

    @property
    def finetuning(self) -> bool:
        return self.fresh is not None


def fit(name: str, spec: NetParameter, data: Pictures, wanted: Wanted) -> Fitted:
    """ValueError, one line that begins with the net's name, where the net cannot be fitted to the data."""
    fitted = Fitted(name, spec)
    sources = {phase: source_of(name, spec, phase) for phase in ("TRAIN", "TEST")}
    train = sources["TRAIN"]
    if train is None:
        raise ValueError(f"{name}: has no data layer for TRAIN: expected a net to train, as a train_val.prototxt")
    if any(layer.type == "ContrastiveLoss" for layer in spec.layer):
        raise ValueError(f"{name}: trains with pairs of pictures, and {data.train} holds single ones")
    placed = False
    for layer in spec.layer:
        if is_source(layer):
            if not placed:
                data_layers(fitted, train, sources["TEST"] or train, data, wanted)
            placed = True
            continue
        kept = LayerParameter()
        kept.CopyFrom(layer)
        fitted.layers.append(kept)
    label = train.top[1] if len(train.top) > 1 else None
    losses(fitted, label, data)
    for head in heads_of(fitted, label):
        outputs(fitted, head, label, data)
        if label is not None and wanted.fresh is not None:
            rename(fitted, head, wanted.fresh, wanted.taken)
        fitted.heads.append(head.name)
    return fitted


def is_source(layer: LayerParameter) -> bool:
    return layer.type in LAYERS and LAYERS[layer.type].source


def source_of(name: str, spec: NetParameter, phase: str) -> LayerParameter | None:
    """The data layer of a phase; None where it has none."""
    kept = select(spec, state_of(spec, phase), name)
    found = [layer for layer in kept.layer if is_source(layer)]
    if not found:  # rules may ask for a stage, as of several test sets
        number = TEST if phase == "TEST" else TRAIN
        found = [one for one in spec.layer if is_source(one) and any(rule.phase == number for rule in one.include)][:1]
    if len(found) > 1:
        told = ", ".join(quoted(layer.name) for layer in found)
        raise ValueError(f"{name}: has {len(found)} data layers for {phase}, {told}; init knows nets with one")
    if found and found[0].type == "Input":
        raise ValueError(f"{name}: is a net to classify with; give the one that trains, its train_val.prototxt")
    return found[0] if found else None


# -- data --------------------------------------------------------------------------------------------------------------


def data_layers(fitted: Fitted, train: LayerParameter, test: LayerParameter, data: Pictures, wanted: Wanted) -> None:
    """A data layer for each phase, in the place of the net's own."""
    own = batch_of(train) or batch_of(test) or 1
    usual = min(own, FINE_BATCH) if wanted.finetuning else own
    fitted.batch = wanted.batch or (usual if usual <= data.records else few(data.records))
    fitted.test_batch = wanted.test_batch or min(batch_of(test) or own, max(1, data.tested))
    fitted.crop = crop_of(fitted.name, train, data, wanted)
    for phase, model, part in ((TRAIN, train, data.train), (TEST, test, data.test)):
        if part is None:
            continue
        layer = LayerParameter(name=train.name, type="HDF5Data" if data.kind == "hdf5" else "Data")
        layer.top.extend(train.top)
        layer.include.add().phase = phase
        batch = fitted.batch if phase == TRAIN else fitted.test_batch
        source = str(listed(part) if data.kind == "hdf5" else part)
        records = data.records if phase == TRAIN else data.tested
        if data.kind == "hdf5":
            layer.hdf5_data_param.source = source
            layer.hdf5_data_param.batch_size = batch
        else:
            transform(fitted, layer, model.transform_param, data, wanted, reads=len(train.top) > 1)
            layer.data_param.source = source
            layer.data_param.batch_size = batch
            layer.data_param.backend = DataParameter.LMDB
        param = "hdf5_data_param" if data.kind == "hdf5" else "data_param"
        fitted.note(layer, f"{param}.source", f"{records:,} records of {data.shape[0]}x{data.size}")
        if phase == TRAIN:
            fitted.note(layer, f"{param}.batch_size", why_batch(batch, records, own, wanted))
        else:
            fitted.note(layer, f"{param}.batch_size", "times test_iter of the solver: every record")
        fitted.layers.append(layer)
    if data.kind == "hdf5" and (data.centre or train.transform_param.scale != 1):
        centred(fitted, train, data)


def few(records: int) -> int:
    """A batch of a data set that is smaller than one: ten iterations go through it, or batches of 16."""
    return min(records, max(SMALL_BATCH, records // 10))


def why_batch(batch: int, records: int, own: int, wanted: Wanted) -> str:
    if batch == wanted.batch:
        return "as asked for"
    if own > records:
        return f"the net's is {own}, for many more pictures"
    if batch < own:
        return f"as Caffe's fine-tuning example; the net's is {own}, for many more pictures"
    return "the net's own"


def batch_of(layer: LayerParameter) -> int:
    """The batch_size of a data layer, 0 where it has none."""
    params = ("data_param", "image_data_param", "hdf5_data_param", "window_data_param", "memory_data_param")
    return next((int(getattr(layer, one).batch_size) for one in params if layer.HasField(one)), 0)  # type: ignore[arg-type]


def crop_of(name: str, train: LayerParameter, data: Pictures, wanted: Wanted) -> int:
    """The crop that fits the pictures: the net's own, or that share of smaller ones; 0: none."""
    own, side = int(train.transform_param.crop_size or train.window_data_param.crop_size), min(data.shape[1:])
    if data.kind == "hdf5":
        if wanted.crop:
            raise ValueError(f"--crop {wanted.crop}: an HDF5Data layer does not crop: prepare pictures of that size")
        return 0
    if wanted.crop is not None:
        if wanted.crop > side:
            raise ValueError(f"--crop {wanted.crop}: {data.train} holds pictures of {data.size}")
        return wanted.crop
    if own <= side:
        return own
    if wanted.finetuning:
        raise ValueError(
            f"{data.train}: pictures of {data.size}, and {name} with trained weights sees {own}x{own}: prepare them "
            f"anew with --size 256"
        )
    return max(1, round(side * own / 256))


def transform(
    fitted: Fitted,
    layer: LayerParameter,
    model: TransformationParameter,
    data: Pictures,
    wanted: Wanted,
    *,
    reads: bool,
) -> None:
    """transform_param: the net's own, with the crop and the mean of this data; `reads`: the net looks at labels."""
    made, own = layer.transform_param, int(model.crop_size)
    made.CopyFrom(model)
    if fitted.crop:
        made.crop_size = fitted.crop
        why = f"of {data.size}" if fitted.crop == own else f"the net's is {own}, for larger pictures than {data.size}"
        fitted.note(layer, "transform_param.crop_size", f"{why}; at random in training, the centre in testing")
    else:
        made.ClearField("crop_size")
    if made.mirror:
        fitted.note(layer, "transform_param.mirror", "half of the pictures, by chance: leave it out where sides matter")
    keeps_values = wanted.finetuning and bool(model.mean_value)
    uses_mean = reads and data.mean is not None and not keeps_values
    if wanted.finetuning and not model.mean_file and not model.mean_value:
        uses_mean = False
    made.ClearField("mean_file")
    if uses_mean:
        del made.mean_value[:]
        made.mean_file = str(data.mean)
        fitted.note(layer, "transform_param.mean_file", "the mean image of the training part, taken off")
    elif len(made.mean_value) not in (0, 1, data.shape[0]):
        del made.mean_value[:]
    if keeps_values:
        fitted.note(layer, "transform_param.mean_value", "the weights were trained with this mean colour")
    if made == TransformationParameter():
        layer.ClearField("transform_param")


def centred(fitted: Fitted, train: LayerParameter, data: Pictures) -> None:
    """HDF5Data takes numbers as they are: a layer of the net takes the mean off."""
    layer = LayerParameter(name="centre", type="Power")
    layer.bottom.append(train.top[0])
    layer.top.append(train.top[0])
    scale = float(train.transform_param.scale)
    layer.power_param.scale = scale
    layer.power_param.shift = float(f"{-data.centre * scale:.6g}")
    fitted.note(layer, "type", "HDF5Data knows no mean: the mean of all values is taken off here")
    fitted.layers.append(layer)


# -- losses and the layers before them -----------------------------------------------------------------------------


def losses(fitted: Fitted, label: str | None, data: Pictures) -> None:
    """Losses that go with the labels, and no accuracy that could not be counted."""
    kept = []
    for layer in fitted.layers:
        if layer.type == "Accuracy" and label in layer.bottom:
            top = int(layer.accuracy_param.top_k)
            if data.numbers or top >= max(2, data.classes):
                why = "there are no classes" if data.numbers else f"there are {data.classes} classes"
                fitted.said.append(f"left out: {layer.name}, an accuracy of the first {top}: {why}")
                continue
        if layer.type.endswith("Loss") and label is not None and label in layer.bottom:
            loss(fitted, layer, data)
        kept.append(layer)
    fitted.layers = kept


def loss(fitted: Fitted, layer: LayerParameter, data: Pictures) -> None:
    """EuclideanLoss where labels are numbers."""
    if not data.numbers:
        if layer.type in OF_NUMBERS:
            raise ValueError(
                f"{fitted.name}: its {layer.type} {quoted(layer.name)} wants numbers, {data.train} has classes: "
                "convert with --labels vector:N, or take a net with SoftmaxWithLoss"
            )
        return
    if layer.type in OF_NUMBERS:
        return
    was = layer.type
    layer.type = "EuclideanLoss"
    del layer.top[1:]
    for one in ("loss_param", "softmax_param", "hinge_loss_param", "infogain_loss_param"):
        layer.ClearField(one)  # type: ignore[arg-type]
    del layer.bottom[2:]
    fitted.note(layer, "type", f"labels are numbers: half the mean squared distance, in place of {was}")


def heads_of(fitted: Fitted, label: str | None) -> list[LayerParameter]:
    """The layers whose outputs the losses look at, each once."""
    found: list[LayerParameter] = []
    for at, layer in enumerate(fitted.layers):
        if layer.type.endswith("Loss") and (label is None or label in layer.bottom):
            head = head_before(fitted, at, layer.bottom[0])
            if all(head is not other for other in found):
                found.append(head)
    if not found:
        raise ValueError(f"{fitted.name}: no loss layer takes the labels {quoted(label or '')}: nothing to train")
    return found


def head_before(fitted: Fitted, at: int, blob: str) -> LayerParameter:
    """The layer with a num_output that makes a blob, through layers that keep the number of channels."""
    wanted = blob
    for layer in reversed(fitted.layers[:at]):
        if wanted not in layer.top:
            continue
        if layer.type in OUTPUTS:
            return layer
        if layer.type not in PASSING:
            break
        wanted = layer.bottom[0]
    raise ValueError(
        f"{fitted.name}: cannot tell which layer makes {quoted(blob)}, what the loss looks at: expected an "
        f"{', '.join(OUTPUTS)}"
    )


def outputs(fitted: Fitted, head: LayerParameter, label: str | None, data: Pictures) -> None:
    """num_output of the last layer."""
    param = OUTPUTS[head.type]
    if label is None:
        side = (fitted.crop, fitted.crop) if fitted.crop else data.shape[1:]
        count, why = data.shape[0] * side[0] * side[1], "the values of a picture, which it makes again"
    elif data.numbers:
        count, why = data.numbers, "numbers in a label"
    else:
        count, why = data.classes, "classes" + (f", {data.names[0]} to {data.names[-1]}" if data.names else "")
    getattr(head, param).num_output = count
    fitted.note(head, f"{param}.num_output", why)


def rename(fitted: Fitted, head: LayerParameter, ending: str, taken: frozenset[str]) -> None:
    """Another name, so that no weights are copied into it, and ten and twenty times the rate."""
    old = head.name
    names = {layer.name for layer in fitted.layers} | taken
    new = next(one for one in endings(f"{old}_{ending}") if one not in names)
    head.name = new
    fitted.note(head, "name", f"was {old}: a new name, so that it starts afresh")
    if list(head.top) == [old]:
        for layer in fitted.layers:
            replaced(layer.bottom, old, new)
            replaced(layer.top, old, new)
    while len(head.param) < (2 if getattr(head, OUTPUTS[head.type]).bias_term else 1):
        head.param.add()
    for at, (param, rate) in enumerate(zip(head.param, HEAD_RATES, strict=False)):
        param.lr_mult = rate
        why = "the other layers are trained already: this one learns ten times as fast"
        fitted.note(head, f"param[{at}].lr_mult", why if at == 0 else "and its bias twenty times")


def endings(name: str) -> Sequence[str]:
    return [name, *(f"{name}_{number}" for number in range(2, 100))]


def replaced(names: MutableSequence[str], old: str, new: str) -> None:
    for at, name in enumerate(names):
        if name == old:
            names[at] = new
