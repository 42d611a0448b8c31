"""What a net consists of, layer by layer: shapes, parameters, multiply-adds, memory. Nothing is computed for it.

A multiply-add is one multiplication and the addition that takes its product (two floating-point operations). Counted
are those of a forward by weights: convolutions, inner products and recurrent layers, as in published figures. Taps that
meet padding count; biases, and everything done element by element or window by window (pooling, normalization,
activation, losses), do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from ops.layers.arithmetic import Eltwise
from ops.layers.convolution import Convolving, Deconvolution
from ops.layers.dense import InnerProduct
from ops.layers.pooling import Pooling
from ops.layers.recurrent import RNN, Recurrent
from ops.layers.registry import Layer, Shape
from ops.net import Net

NUMBER = 4  # bytes of a number in a blob
VIEWS = {"Flatten", "Reshape", "Slice", "Split"}  # their tops are their bottom's memory
OURS = "ops.layers."  # where the layers are whose multiply-adds are known
# fields of a layer's message that its shapes tell, or that say nothing of what it computes
TOLD = {"num_output", "engine", "weight_filler", "bias_filler", "force_nd_im2col"}
FED = {"transform_param", "data_param", "image_data_param", "window_data_param", "hdf5_data_param", "memory_data_param"}
FED |= {"dummy_data_param", "input_param", "loss_param"}


@dataclass(frozen=True)
class Row:
    """One layer. `parameters` are numbers that a solver may learn, `statistics` those that only a forward changes."""

    name: str
    type: str
    family: str  # the file of ops/layers that has it; "" for a layer from elsewhere
    settings: dict[str, str]
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    shapes: tuple[Shape, ...]  # of the tops
    inplace: bool  # its tops are its bottoms: written over, or replacing them
    parameters: int  # of its own
    statistics: int
    frozen: int  # of the parameters, those with lr_mult 0
    shared: tuple[str, ...]  # layers whose blobs it uses
    multiply_adds: int | None  # of the whole batch; None: a layer from elsewhere, nobody knows
    bytes: int  # of the tops that need memory of their own


@dataclass(frozen=True)
class Totals:
    """Sums over a net at the shapes that it was built for."""

    batch: int | None  # None: its inputs have no common one
    parameters: int
    statistics: int
    frozen: int
    multiply_adds: int
    uncounted: tuple[str, ...]  # layers from elsewhere, which the sum lacks
    blob_bytes: int  # of all blobs of a forward, inputs among them
    parameter_bytes: int  # parameters and statistics

    @property
    def per_item(self) -> int | None:
        """Multiply-adds an image (or other item of the batch)."""
        return self.multiply_adds // self.batch if self.batch and not self.multiply_adds % self.batch else None


def rows(net: Net) -> list[Row]:
    """A row a layer, in the order of the net."""
    stuck = {(one.layer, one.index) for one in net.learnable if one.lr_mult == 0}
    return [row(net, number, stuck) for number in range(len(net.layers))]


def row(net: Net, number: int, stuck: set[tuple[int, int]]) -> Row:
    layer = net.layers[number]
    spec = layer.spec
    own = [index for index in range(len(layer.fillers)) if (number, index) not in net.shared]
    sizes = {index: layer.blobs[index].numel() for index in own}
    learned = [index for index in own if not layer.is_statistic(index)]
    owners = {net.shared[number, index][0]: None for index in range(len(layer.fillers)) if index not in own}
    new = () if spec.type in VIEWS else tuple(top for top in spec.top if top not in spec.bottom)
    return Row(
        name=spec.name,
        type=spec.type,
        family=family(layer),
        settings=settings(layer),
        bottoms=tuple(spec.bottom),
        tops=tuple(spec.top),
        shapes=tuple(net.shapes[top] for top in spec.top),
        inplace=bool(spec.top) and set(spec.top) <= set(spec.bottom),
        parameters=sum(sizes[index] for index in learned),
        statistics=sum(sizes[index] for index in own if index not in learned),
        frozen=sum(sizes[index] for index in learned if (number, index) in stuck),
        shared=tuple(net.layers[owner].spec.name for owner in owners),
        multiply_adds=multiply_adds(layer, [net.shapes[blob] for blob in spec.bottom]),
        bytes=NUMBER * sum(math.prod(net.shapes[top]) for top in new),
    )


def totals(net: Net, listed: Sequence[Row]) -> Totals:
    """The sums of `rows(net)`."""
    fed = [name for name in net.inputs if not any(name in one.tops for one in listed)]
    parameters, statistics = sum(one.parameters for one in listed), sum(one.statistics for one in listed)
    return Totals(
        batch=batch_of(net),
        parameters=parameters,
        statistics=statistics,
        frozen=sum(one.frozen for one in listed),
        multiply_adds=sum(one.multiply_adds or 0 for one in listed),
        uncounted=tuple(one.name for one in listed if one.multiply_adds is None),
        blob_bytes=sum(one.bytes for one in listed) + NUMBER * sum(math.prod(net.inputs[name]) for name in fed),
        parameter_bytes=NUMBER * (parameters + statistics),
    )


def family(layer: Layer) -> str:
    """The file of ops/layers that a layer is in: convolution, pooling, ...; "" for one from elsewhere."""
    module = type(layer).__module__
    return module.removeprefix(OURS) if module.startswith(OURS) else ""


# -- the batch -------------------------------------------------------------------------------------------------------


def batch_of(net: Net) -> int | None:
    """How many items a forward takes: the first axis of the first input; N where sequences are (T, N, ...)."""
    streams = steps_and_streams(net)
    if streams:
        return streams[1]
    return next((shape[0] if shape else None for shape in net.inputs.values()), None)


def at_batch(net: Net, batch: int) -> dict[str, Shape]:
    """The inputs' shapes for another batch; inputs that do not have the net's batch stay."""
    return {name: with_batch(net, shape, batch) for name, shape in net.inputs.items()}


def with_batch(net: Net, shape: Shape, batch: int) -> Shape:
    """A shape with its axis of the batch, where it has one, at another size."""
    streams, old = steps_and_streams(net), batch_of(net)
    if streams and shape[:2] == streams:
        return (shape[0], batch, *shape[2:])
    return (batch, *shape[1:]) if shape and shape[0] == old else shape


def steps_and_streams(net: Net) -> tuple[int, int] | None:
    """(T, N) of a net with recurrent layers."""
    for layer in net.layers:
        if isinstance(layer, Recurrent):
            steps, streams = net.shapes[layer.spec.bottom[0]][:2]
            return steps, streams
    return None


# -- multiply-adds ---------------------------------------------------------------------------------------------------


def multiply_adds(layer: Layer, bottoms: Sequence[Shape]) -> int | None:
    """Of one forward over bottoms of these shapes; None for a layer that is not ours."""
    if not family(layer) or layer.spec.type == "Python":
        return None
    return next((count(layer, bottoms) for kind, count in COUNTS if isinstance(layer, kind)), 0)


def of_convolution(layer: Layer, bottoms: Sequence[Shape]) -> int:
    """Every window meets every filter: places * outputs * (channels / group) * taps; a deconvolution the other way."""
    assert isinstance(layer, Convolving)
    weights = math.prod(layer.blobs[0].shape)
    total = 0
    for shape in bottoms:
        batch, spatial = shape[: layer.axis], shape[layer.axis + 1 :]
        places = spatial if isinstance(layer, Deconvolution) else layer.sizes(spatial)
        total += math.prod(batch) * math.prod(places) * weights
    return total


def of_inner_product(layer: Layer, bottoms: Sequence[Shape]) -> int:
    """rows * K * num_output"""
    assert isinstance(layer, InnerProduct)
    return math.prod(bottoms[0][: layer.axis]) * math.prod(layer.blobs[0].shape)


def of_recurrent(layer: Layer, bottoms: Sequence[Shape]) -> int:
    """Each step of each stream: the matrices of x and h (of an RNN, of its output too); that of a static input once."""
    assert isinstance(layer, Recurrent)
    steps, streams = bottoms[0][:2]
    each = [0, layer.hidden, *([layer.hidden + 1] if isinstance(layer, RNN) else [])]
    total = steps * streams * sum(layer.blobs[index].numel() for index in each)
    return total + (streams * layer.blobs[2].numel() if layer.static else 0)


COUNTS: tuple[tuple[type[Layer], Callable[[Layer, Sequence[Shape]], int]], ...] = (
    (Convolving, of_convolution),
    (InnerProduct, of_inner_product),
    (Recurrent, of_recurrent),
)


# -- settings --------------------------------------------------------------------------------------------------------


def settings(layer: Layer) -> dict[str, str]:
    """What a layer's text says of how it computes, without what its shapes and blobs tell: kernel, stride, ratio."""
    if isinstance(layer, Convolving):
        w = layer.windows
        sides = {"kernel": w.kernel, "stride": w.stride, "pad": w.pad, "dilation": w.dilation}
        written = {name: by(shape) for name, shape in sides.items() if name == "kernel" or plain(name, shape)}
        group = {"group": str(layer.group)} if layer.group > 1 else {}
        return written | group | ({} if len(layer.fillers) > 1 else {"bias": "no"})
    if isinstance(layer, Pooling):
        sides = {"stride": layer.how.stride, "pad": layer.how.pad}
        kernel = "all" if layer.everything else by(layer.how.kernel)
        return {
            "pool": layer.how.method,
            "kernel": kernel,
            **{name: by(shape) for name, shape in sides.items() if plain(name, shape)},
        }
    if isinstance(layer, Eltwise):
        p = layer.spec.eltwise_param
        operation = {"operation": p.EltwiseOp.Name(p.operation)}
        return operation | written_settings(layer.spec) | weights_of_loss(layer)
    return written_settings(layer.spec) | weights_of_loss(layer)


def plain(name: str, shape: Shape) -> bool:
    """Whether a side says something: a stride or dilation other than 1, a pad other than 0."""
    return any(size != (name != "pad") for size in shape)


def by(shape: Shape) -> str:
    """3 for a square of 3, 3x5 for others."""
    return str(shape[0]) if shape and len(set(shape)) == 1 else "x".join(map(str, shape)) or "-"


def weights_of_loss(layer: Layer) -> dict[str, str]:
    listed = [f"{weight:g}" for weight in layer.spec.loss_weight]
    return {"loss_weight": " ".join(listed)} if listed and listed != ["1"] else {}


def written_settings(spec: Message) -> dict[str, str]:
    """The numbers, names and choices that stand in a layer's own message, without switches as they are anyway."""
    found: dict[str, str] = {}
    for field, message in spec.ListFields():
        if field.name.endswith("_param") and field.name not in FED and isinstance(message, Message):
            for inner, value in message.ListFields():
                if inner.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE or inner.name in TOLD:
                    continue
                if inner.is_repeated:
                    found[inner.name] = " ".join(spelled(inner, one) for one in value)
                elif not isinstance(value, bool) or value != inner.default_value:
                    found[inner.name] = spelled(inner, value)
    return found


def spelled(field: FieldDescriptor, value: object) -> str:
    """A value of a field as prototxt has it, floats shortened."""
    if field.enum_type is not None and isinstance(value, int):
        return str(field.enum_type.values_by_number[value].name)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
