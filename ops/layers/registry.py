"""The catalogue of layers: type name -> class, and what every layer has.

A layer is a torch module that is built from its text and the shapes of its bottoms:

    @layer("Power")
    class Power(Layer):
        def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
            super().__init__(spec, bottoms, phase)
            self.power = spec.power_param.power

        def forward(self, x: Tensor) -> Tensor: ...

`forward` takes the bottoms and returns the top, or a tuple of tops; it never writes into a bottom unless `self.inplace`
is set, and works for any batch and any height and width, whatever the net was built for. A net is built on torch's
"meta" device: unless a layer says `keeps_shape` or overrides `shapes`, the shapes of its tops are those of a forward
without numbers. A layer whose forward computes from values overrides `shapes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from ops.fillers import check, fill
from ops.names import unknown
from ops.parallel import Part
from ops.proto.caffe_pb2 import FillerParameter, LayerParameter

Shape = tuple[int, ...]
Phase = Literal["TRAIN", "TEST"]
Counts = tuple[int, int | None]  # least and most; None: any number
LARGEST = 2**31 - 1  # elements of a blob, as Caffe's
ADD_A_LAYER = "docs/add-a-layer.md says how to add one"


class Layer(nn.Module):
    """Bottoms in, tops out, and blobs (weights, statistics) in the order that a saved model has them.

    Errors in the text or in the shapes are ValueErrors without a place; the net adds file, layer and type.
    """

    bottoms: ClassVar[Counts] = (1, 1)
    tops: ClassVar[Counts] = (1, 1)
    unlearnable: ClassVar[tuple[int, ...]] = ()  # bottoms that no gradient ever reaches: labels, selectors
    fresh: bool = False  # the first top is new memory that no backward reads: the next layer may write into it
    source: ClassVar[bool] = False  # its tops are the net's inputs
    keeps_shape: ClassVar[bool] = False  # every top has the shape of the first bottom
    draws: bool = False  # TRAIN takes random numbers, from `generator`: set by the net, before each forward
    can_be_inplace: ClassVar[bool] = False  # this layer computes the same when it writes into its bottom

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__()
        self.spec = spec
        self.phase = phase
        self.generator: torch.Generator | None = None
        self.part: Part | None = None  # of a batch that several processes share; set by ops.spread
        self.inplace = False  # set by the net where it is safe
        self.folder: Path | None = None  # of the prototxt, set by the net
        self.fillers: list[FillerParameter | None] = []
        self.views: dict[int, Shape] = {}  # blobs that are shared under another shape
        check_count("bottom", len(bottoms), type(self).bottoms)

    # -- blobs -----------------------------------------------------------------------------------------------------

    def add_blob(self, shape: Shape, filler: FillerParameter | None = None, *, statistic: bool = False) -> None:
        """One more blob, a Parameter or (a statistic) a buffer; filled by `filler`, zeros where there is none."""
        check_size(shape)
        check(filler, shape)
        name = f"blob{len(self.fillers)}"
        if statistic:
            self.register_buffer(name, torch.zeros(shape))
        else:
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.fillers.append(filler)

    def blob(self, index: int) -> Tensor:
        """A blob as the formula reads it: in this layer's shape also where it is shared with one of another shape."""
        tensor: Tensor = getattr(self, f"blob{index}")
        return tensor.reshape(self.views[index]) if index in self.views else tensor

    @property
    def blobs(self) -> list[Tensor]:
        """The blobs as they are kept and learned, in file order."""
        return [getattr(self, f"blob{index}") for index in range(len(self.fillers))]

    def set_blob(self, index: int, tensor: Tensor) -> None:
        """Put another tensor in a blob's place: one with memory, or the one of the layer that shares it."""
        name = f"blob{index}"
        (self._parameters if name in self._parameters else self._buffers).pop(name)
        if isinstance(tensor, nn.Parameter):
            self.register_parameter(name, tensor)
        else:
            self.register_buffer(name, tensor)

    def is_statistic(self, index: int) -> bool:
        return f"blob{index}" in self._buffers

    def fill(self, index: int, generator: torch.Generator) -> None:
        """Give a blob its first values."""
        fill(self.blobs[index], self.fillers[index], generator)

    # -- a batch that several processes share ----------------------------------------------------------------------

    def whole(self, shape: Shape, bottom: int = 0) -> Shape:
        """The shape that a bottom has in the whole batch; `shape` is that of what is here."""
        return tuple(shape) if self.part is None else self.part.shapes[bottom]

    def in_all(self, count: Tensor) -> Tensor:
        """A count or sum over the whole batch, without a gradient."""
        return count if self.part is None else self.part.group.sum(count)

    # -- shapes ----------------------------------------------------------------------------------------------------

    def top_shapes(self, given: Mapping[str, Shape]) -> list[Shape]:
        """Of a source: the shapes of its tops, those in `given` as they are there."""
        raise AssertionError("only a source says what the caller feeds")

    def shapes(self, bottoms: list[Shape]) -> list[Shape]:
        """The shapes of the tops: by default those of a forward on the meta device.

        That forward loads a second's worth of torch, so the layers that most nets are made of say theirs directly
        (a test compares).
        """
        if self.keeps_shape:
            return [bottoms[0]] * max(1, len(self.spec.top))
        with torch.no_grad():
            tops = self(*(torch.empty(shape, device="meta") for shape in bottoms))
        return [tuple(top.shape) for top in (tops if isinstance(tops, tuple) else (tops,))]

    # -- state -----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """What a layer carries from one forward to the next beside its blobs (a recurrent layer's last hidden)."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""


def check_count(what: str, found: int, allowed: Counts) -> None:
    least, most = allowed
    if found < least or (most is not None and found > most):
        number = str(least) if least == most else f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"has {found} {what}{'s' * (found != 1)}, expected {number}")


def check_size(shape: Shape) -> None:
    """A blob has at least one and fewer than 2 ** 31 elements (Caffe aborts beyond)."""
    if any(size < 1 for size in shape):
        raise ValueError(f"a blob of shape {text(shape)} is empty; every size must be 1 or more")
    if math.prod(shape) > LARGEST:
        raise ValueError(f"a blob of shape {text(shape)} has {math.prod(shape):,} elements, at most {LARGEST:,} go")


def text(shape: Shape) -> str:
    """A shape as people write it: 10 x 3 x 227 x 227."""
    return " x ".join(map(str, shape)) or "() (one number)"


def axis_of(axis: int, rank: int, name: str = "axis") -> int:
    """A position among `rank` axes; negatives count from the end."""
    if not -rank <= axis < rank:
        raise ValueError(f"{name} {axis} is outside a bottom of {rank} axes")
    return axis % rank


# -- the catalogue ---------------------------------------------------------------------------------------------------

LAYERS: dict[str, type[Layer]] = {}
L = TypeVar("L", bound=type[Layer])


def layer(*names: str) -> Callable[[L], L]:
    """Put a class into the catalogue under its type names."""

    def enter(kind: L) -> L:
        for name in names:
            LAYERS[name] = kind
        return kind

    return enter


def known() -> Iterator[str]:
    """Every type name."""
    return iter(sorted(LAYERS))


def find(name: str) -> type[Layer]:
    """The class of a type; ValueError with the nearest known types where there is none."""
    if name in LAYERS:
        return LAYERS[name]
    if not name:
        raise ValueError("has no type")
    raise ValueError(f"{unknown('layer type', name, LAYERS)}; {ADD_A_LAYER}")
