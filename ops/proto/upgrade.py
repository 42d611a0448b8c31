"""Old nets and solvers brought to the current format in place, by the steps and in the order of Caffe's own reader.

V0 (a `layer` inside each of `layers`, its type a word), V1 (`layers`, its type an enum), `input:` with its dimensions,
and BatchNorm statistics that would be trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from ops.names import pick, quoted
from ops.proto.caffe_pb2 import LayerParameter, NetParameter, SolverParameter, V1LayerParameter

WARNING = "warning: "  # begins the lines that tell of what was lost, or does not do what it seems to

V1_TYPES = {
    "NONE": "",
    "ABSVAL": "AbsVal",
    "ACCURACY": "Accuracy",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "CONCAT": "Concat",
    "CONTRASTIVE_LOSS": "ContrastiveLoss",
    "CONVOLUTION": "Convolution",
    "DATA": "Data",
    "DECONVOLUTION": "Deconvolution",
    "DROPOUT": "Dropout",
    "DUMMY_DATA": "DummyData",
    "ELTWISE": "Eltwise",
    "EUCLIDEAN_LOSS": "EuclideanLoss",
    "EXP": "Exp",
    "FLATTEN": "Flatten",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "HINGE_LOSS": "HingeLoss",
    "IM2COL": "Im2col",
    "IMAGE_DATA": "ImageData",
    "INFOGAIN_LOSS": "InfogainLoss",
    "INNER_PRODUCT": "InnerProduct",
    "LRN": "LRN",
    "MEMORY_DATA": "MemoryData",
    "MULTINOMIAL_LOGISTIC_LOSS": "MultinomialLogisticLoss",
    "MVN": "MVN",
    "POOLING": "Pooling",
    "POWER": "Power",
    "RELU": "ReLU",
    "SIGMOID": "Sigmoid",
    "SIGMOID_CROSS_ENTROPY_LOSS": "SigmoidCrossEntropyLoss",
    "SILENCE": "Silence",
    "SLICE": "Slice",
    "SOFTMAX": "Softmax",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "SPLIT": "Split",
    "TANH": "TanH",
    "THRESHOLD": "Threshold",
    "WINDOW_DATA": "WindowData",
}
V0_TYPES = {
    "accuracy": "ACCURACY",
    "bnll": "BNLL",
    "concat": "CONCAT",
    "conv": "CONVOLUTION",
    "data": "DATA",
    "dropout": "DROPOUT",
    "euclidean_loss": "EUCLIDEAN_LOSS",
    "flatten": "FLATTEN",
    "hdf5_data": "HDF5_DATA",
    "hdf5_output": "HDF5_OUTPUT",
    "im2col": "IM2COL",
    "images": "IMAGE_DATA",
    "infogain_loss": "INFOGAIN_LOSS",
    "innerproduct": "INNER_PRODUCT",
    "lrn": "LRN",
    "multinomial_logistic_loss": "MULTINOMIAL_LOGISTIC_LOSS",
    "pool": "POOLING",
    "relu": "RELU",
    "sigmoid": "SIGMOID",
    "softmax": "SOFTMAX",
    "softmax_loss": "SOFTMAX_LOSS",
    "split": "SPLIT",
    "tanh": "TANH",
    "window_data": "WINDOW_DATA",
}
PADDING = "padding"  # the V0 type that is no layer any more

# V0 field -> its name now, and the V0 types that take it; any other type loses it
V0_FIELDS = {
    "num_output": ("num_output", ("conv", "innerproduct")),
    "biasterm": ("bias_term", ("conv", "innerproduct")),
    "weight_filler": ("weight_filler", ("conv", "innerproduct")),
    "bias_filler": ("bias_filler", ("conv", "innerproduct")),
    "pad": ("pad", ("conv", "pool")),
    "kernelsize": ("kernel_size", ("conv", "pool")),
    "stride": ("stride", ("conv", "pool")),
    "group": ("group", ("conv",)),
    "pool": ("pool", ("pool",)),
    "dropout_ratio": ("dropout_ratio", ("dropout",)),
    "local_size": ("local_size", ("lrn",)),
    "alpha": ("alpha", ("lrn",)),
    "beta": ("beta", ("lrn",)),
    "k": ("k", ("lrn",)),
    "concat_dim": ("concat_dim", ("concat",)),
    "source": ("source", ("data", "hdf5_data", "images", "window_data", "infogain_loss")),
    "batchsize": ("batch_size", ("data", "hdf5_data", "images", "window_data")),
    "rand_skip": ("rand_skip", ("data", "images")),
    "shuffle_images": ("shuffle", ("images",)),
    "new_height": ("new_height", ("images",)),
    "new_width": ("new_width", ("images",)),
    "det_fg_threshold": ("fg_threshold", ("window_data",)),
    "det_bg_threshold": ("bg_threshold", ("window_data",)),
    "det_fg_fraction": ("fg_fraction", ("window_data",)),
    "det_context_pad": ("context_pad", ("window_data",)),
    "det_crop_mode": ("crop_mode", ("window_data",)),
}
V0_TRANSFORM = {"scale": "scale", "meanfile": "mean_file", "cropsize": "crop_size", "mirror": "mirror"}  # of any type
V0_COMMON = ("name", "blobs_lr", "weight_decay")  # of any type, and of V1 under the same name

# V1 type -> the message out of which these fields move to transform_param
V1_DATA = {"DATA": "data_param", "IMAGE_DATA": "image_data_param", "WINDOW_DATA": "window_data_param"}
TRANSFORM = ("scale", "mean_file", "crop_size", "mirror")

# V1 field, one value a weight blob -> its name in ParamSpec
V1_SPECS = {"param": "name", "blob_share_mode": "share_mode", "blobs_lr": "lr_mult", "weight_decay": "decay_mult"}
V1_APART = {"layer", "type", "blobs", *V1_SPECS}  # every other field keeps its name

SOLVER_TYPES = {word.upper(): word for word in ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")}
INPUT_AXES = 4  # numbers of `input_dim` an input
TOLD = 8  # names in one line
TYPE = V1LayerParameter.TYPE_FIELD_NUMBER


def needs_upgrade(spec: NetParameter | SolverParameter) -> bool:
    """Whether an upgrade would change anything."""
    if isinstance(spec, SolverParameter):
        return spec.HasField("solver_type") or any(needs_upgrade(net) for _, net in _inline(spec))
    return bool(spec.layers or spec.input) or any(map(_trains_statistics, spec.layer))


def upgrade_net(spec: NetParameter, name: str = "<net>") -> list[str]:
    """Bring a net to the current format, in place; one line for each thing done, none for a current net.

    Lines that begin with "warning: " tell of what was lost. Weights travel along. ValueError (the net is then half
    done) where `layer` and `layers` are mixed, at an unknown V0 type, padding that nothing can take in, missing shapes.
    """
    if spec.layer and spec.layers:
        found = f"{len(spec.layer):,} `layer` and {len(spec.layers):,} `layers`"
        raise ValueError(f"{name}: mixes two formats, {found}; write all of them in the current one, `layer`")
    _check_words(spec, name)
    try:
        return [line for step in STEPS for line in step(spec, name)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: holds text that is not UTF-8: {quoted(repr(error.object))}") from None


def upgrade_solver(spec: SolverParameter, name: str = "<solver>") -> list[str]:
    """Bring a solver to the current format, in place: its type, and the nets that it holds, if any; lines as of a net.

    Caffe leaves the nets inside as they are, and finds nothing in old ones.
    """
    lines = []
    if spec.HasField("solver_type"):
        old = SolverParameter.SolverType.Name(spec.solver_type)
        if spec.HasField("type"):
            raise ValueError(f"{name}: holds both solver_type: {old} and type: {quoted(spec.type)}; keep `type` alone")
        spec.type = SOLVER_TYPES[old]
        spec.ClearField("solver_type")
        lines.append(f"solver_type: {old} is now type: '{spec.type}'")
    for field, net in _inline(spec):
        for line in upgrade_net(net, f"{name}: {field}"):
            mark = WARNING if line.startswith(WARNING) else ""
            lines.append(f"{mark}{field}: {line.removeprefix(WARNING)}")
    return lines


def _inline(spec: SolverParameter) -> Iterator[tuple[str, NetParameter]]:
    """The nets inside a solver, with their field."""
    for field in ("train_net_param", "net_param"):
        if spec.HasField(field):
            yield field, getattr(spec, field)
    for place, net in enumerate(spec.test_net_param):
        yield f"test_net_param {place}", net


# -- the steps, in order; each changes the net and tells what it did ---------------------------------------------------


def _dissolve_padding(spec: NetParameter, name: str) -> Iterator[str]:
    """V0 padding layers become the pad of the conv and pool layers that read them."""
    makers: dict[str, V1LayerParameter] = {}  # blob -> the padding layer that made it last
    for item in spec.layers:
        for place, bottom in enumerate(item.bottom):
            if bottom in makers:
                yield _take_in(item, place, makers[bottom], name)
        for top in item.top:
            makers.pop(top, None)
            if item.layer.type == PADDING:
                makers[top] = item
    for place in reversed(range(len(spec.layers))):
        if spec.layers[place].layer.type == PADDING:
            del spec.layers[place]


def _take_in(item: V1LayerParameter, place: int, padding: V1LayerParameter, name: str) -> str:
    """Give a layer the pad and the bottom of the padding layer that it reads."""
    told, source = f"layer {quoted(item.layer.name or item.name)}", f"the padding layer {quoted(padding.layer.name)}"
    if item.layer.type not in ("conv", "pool"):
        kind = item.layer.type or "V1"
        raise ValueError(f"{name}: {told} ({kind}): reads {source}, which only conv and pool layers can take in")
    if len(item.bottom) != 1:
        raise ValueError(f"{name}: {told}: reads {source} and has {len(item.bottom)} bottoms; only 1 can be padded")
    if len(padding.bottom) != 1 or len(padding.top) != 1:
        counts = f"{len(padding.bottom)} bottoms and {len(padding.top)} tops"
        raise ValueError(f"{name}: {source} has {counts}; expected 1 and 1")
    own = item.layer.pad if item.layer.HasField("pad") else padding.layer.pad
    replaced = f", in place of its own {own}" if own != padding.layer.pad else ""
    item.layer.pad = padding.layer.pad
    item.bottom[place] = padding.bottom[0]
    return f"{source} is now pad: {item.layer.pad} of {told}{replaced}"


def _v0_to_v1(spec: NetParameter, name: str) -> Iterator[str]:
    """The one message of all V0 parameters, spread over the messages of their types."""
    old = [item for item in spec.layers if item.HasField("layer")]
    for item in old:
        try:
            yield from _spread(item)
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            raise ValueError(f"{name}: layer {quoted(item.layer.name)}: {error}") from None
    if old:
        yield f"V0 to V1: {_layers(len(old))}"


def _spread(item: V1LayerParameter) -> Iterator[str]:
    """One V0 layer as V1; its blobs stay where they are until the next format, being large."""
    old = item.layer
    kind = pick(V0_TYPES, old.type, "V0 layer type") if old.HasField("type") else "NONE"
    if old.blobs and item.blobs:
        raise ValueError(f"holds weights twice, {len(item.blobs)} blobs and {len(old.blobs)} inside `layer`")
    if old.HasField("type"):
        item.type = getattr(V1LayerParameter, kind)
    for field, value in old.ListFields():
        if field.name in V0_COMMON:
            _put(item, field.name, value)
        elif field.name in V0_TRANSFORM:
            _put(item.transform_param, V0_TRANSFORM[field.name], value)
        elif field.name == "hdf5_output_param" and old.type == "hdf5_output":
            item.hdf5_output_param.CopyFrom(value)
        elif old.type in V0_FIELDS.get(field.name, ("", ()))[1]:
            _put(getattr(item, f"{kind.lower()}_param"), V0_FIELDS[field.name][0], value)
        elif field.name not in ("type", "blobs"):
            yield f"{WARNING}layer {quoted(old.name)}: a V0 {old.type} layer takes no {field.name}; left out"


def _move_transforms(spec: NetParameter, name: str) -> Iterator[str]:
    """scale, mean_file, crop_size and mirror of V1 data layers go to transform_param; in current ones they are dead."""
    for item in spec.layers:
        kind = V1LayerParameter.LayerType.Name(item.type)
        if kind not in V1_DATA:
            continue
        source = getattr(item, V1_DATA[kind])
        moved = [field for field in TRANSFORM if source.HasField(field)]
        for field in moved:
            setattr(item.transform_param, field, getattr(source, field))
            source.ClearField(field)
        if moved:
            yield f"layer {quoted(item.name)}: {', '.join(moved)} moved to transform_param"
        if kind == "WINDOW_DATA" and item.transform_param.scale != 1:
            yield f"{WARNING}layer {quoted(item.name)}: WindowData reads no scale in transform_param; nor does Caffe's"


def _v1_to_current(spec: NetParameter, name: str) -> Iterator[str]:
    """`layers` become `layer`."""
    for item in spec.layers:
        yield from _renew(item, spec.layer.add())
    if spec.layers:
        yield f"V1 to the current format: {_layers(len(spec.layers))}"
        del spec.layers[:]


def _renew(item: V1LayerParameter, layer: LayerParameter) -> Iterator[str]:
    """One V1 layer in the current format."""
    if item.HasField("type"):
        layer.type = V1_TYPES[V1LayerParameter.LayerType.Name(item.type)]
    for field, value in item.ListFields():
        if field.name not in V1_APART:
            _put(layer, field.name, value)
    _put(layer, "blobs", item.layer.blobs or item.blobs)
    for old, new in V1_SPECS.items():
        values = getattr(item, old)
        while len(layer.param) < len(values):
            layer.param.add()
        for param, value in zip(layer.param, values, strict=False):
            setattr(param, new, value)
    numbers = _unknown(item) + _unknown(item.layer)
    if numbers:
        told = ", ".join(f"{number} (its type)" if number == TYPE else str(number) for number in numbers)
        yield f"{WARNING}layer {quoted(layer.name)}: field {told}, as a fork of Caffe may write it, left out"


def _inputs_to_layer(spec: NetParameter, name: str) -> Iterator[str]:
    """`input:` with its shapes becomes an Input layer, the net's first; without shapes it goes, as in Caffe."""
    if not spec.input:
        return
    told = ", ".join(map(quoted, spec.input[:TOLD])) + (", ..." if len(spec.input) > TOLD else "")
    if spec.input_shape or spec.input_dim:
        yield from _check_inputs(spec, name)
        spec.layer.insert(0, _input_layer(spec))
        yield f"input {told} is now an Input layer, 'input'"
    else:
        yield f"{WARNING}input {told} without input_shape or input_dim left out, as Caffe does"
    for field in ("input", "input_shape", "input_dim"):
        spec.ClearField(field)


def _check_inputs(spec: NetParameter, name: str) -> Iterator[str]:
    """Every input has its shape; what is over is told."""
    field, each = ("input_shape", 1) if spec.input_shape else ("input_dim", INPUT_AXES)
    found, wanted = len(getattr(spec, field)), each * len(spec.input)
    if found < wanted:
        told = f"{len(spec.input)} input and {found} {field}"
        raise ValueError(f"{name}: {told}; expected {wanted} {field}, {each} for each input")
    if found > wanted:
        yield f"{WARNING}{found - wanted} {field} more than the {wanted} of the inputs left out"
    if spec.input_shape and spec.input_dim:
        yield f"{WARNING}input_dim left out: input_shape is given too"


def _input_layer(spec: NetParameter) -> LayerParameter:
    layer = LayerParameter(name="input", type="Input", top=spec.input)
    for place in range(len(spec.input)):
        shape = layer.input_param.shape.add()
        if spec.input_shape:
            shape.CopyFrom(spec.input_shape[place])
        else:
            shape.dim.extend(spec.input_dim[place * INPUT_AXES : (place + 1) * INPUT_AXES])
    return layer


def _freeze_statistics(spec: NetParameter, name: str) -> Iterator[str]:
    """The statistics of a BatchNorm with three `param` neither learn nor decay."""
    for layer in filter(_trains_statistics, spec.layer):
        for param in layer.param:
            param.lr_mult = param.decay_mult = 0
        yield f"layer {quoted(layer.name)}: lr_mult and decay_mult of the statistics set to 0"


STEPS = (_dissolve_padding, _v0_to_v1, _move_transforms, _v1_to_current, _inputs_to_layer, _freeze_statistics)

# -- helpers -----------------------------------------------------------------------------------------------------------


def _trains_statistics(layer: LayerParameter) -> bool:
    specs = layer.param if layer.type == "BatchNorm" and len(layer.param) == 3 else []
    return any(param.lr_mult != 0 or param.decay_mult != 0 for param in specs)


def _put(message: Message, name: str, value: Any) -> None:
    """Set a field, or add to a repeated one; messages are copied whole, without a look at what they hold."""
    field, target = message.DESCRIPTOR.fields_by_name[name], getattr(message, name)
    if field.is_repeated and field.message_type is not None:
        for one in value:
            target.add().CopyFrom(one)
    elif field.is_repeated:
        target.extend(value if isinstance(value, Iterable) else [value])
    elif field.message_type is not None:
        target.CopyFrom(value)
    else:
        setattr(message, name, value)


def _check_words(spec: NetParameter, name: str) -> None:
    """The names in an old net are text; out of a binary file they may come as bytes that are none."""
    words: list[Any] = [*spec.input]
    for item in spec.layers:
        words += [item.name, *item.bottom, *item.top, item.layer.name, item.layer.type]
    for word in words:
        if isinstance(word, bytes):
            raise ValueError(f"{name}: holds a name that is not UTF-8 text: {quoted(repr(word))}")


def _unknown(message: Message) -> list[int]:
    """The numbers of the fields, and of the enums' values, that this schema does not know."""
    unknown = UnknownFieldSet(message)
    return sorted({unknown[place].field_number for place in range(len(unknown))})


def _layers(count: int) -> str:
    return f"{count:,} layer{'s' * (count != 1)}"
