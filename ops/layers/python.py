"""Python: a layer that the user wrote, a class of Caffe's kind or a torch module, found by module and class name."""

from __future__ import annotations

import ast
import copy
import inspect
import math
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ops.layers.pycaffe import Blob, Blobs, array_of, numpy_type
from ops.layers.registry import Layer, Phase, Shape, layer
from ops.layers.user_code import caffe, find, told
from ops.names import quoted
from ops.proto.caffe_pb2 import LayerParameter

LARGEST_BOTTOMS = 2**28  # elements of the zero-filled bottoms that shapes are asked with


@layer("Python")
class Python(Layer):
    """What the class `python_param.layer` of the module `python_param.module` computes, for any bottoms and tops.

    Either a class with Caffe's setup, reshape, forward and backward (see `Classic`), or a torch.nn.Module: made with
    `param_str`, called with the bottoms, its parameters are the blobs in order, its buffers the layer's state.
    """

    bottoms, tops = (0, None), (0, None)
    anchor: Tensor

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.python_param
        self.title = f"{p.module}.{p.layer}"
        kind = find(p.module, p.layer)
        # real memory even while the net is built on "meta"; the anchor tells a layer without blobs where it is
        with torch.device("cpu"):
            self.register_buffer("anchor", torch.zeros(()), persistent=False)
            made = Wrapped if issubclass(kind, nn.Module) else Classic
            self.held = [made(self, kind, bottoms)]  # in a list: what the user made is not part of the module tree

    @property
    def user(self) -> Wrapped | Classic:
        return self.held[0]

    def fill(self, index: int, generator: torch.Generator) -> None:
        """The user's class has given its blobs their first values."""

    def set_blob(self, index: int, tensor: Tensor) -> None:
        old = self.blobs[index]
        super().set_blob(index, tensor)
        self.user.replace(old, tensor)

    def shapes(self, bottoms: list[Shape]) -> list[Shape]:
        check_bottoms(bottoms)
        with torch.device("cpu"), torch.no_grad():
            found = self.user.shapes(bottoms)
        if len(found) != len(self.spec.top):
            raise ValueError(f"{self.title} gave {len(found)} tops, the layer has {len(self.spec.top)}")
        return found

    def forward(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        tops = self.user.run(bottoms)
        return tops[0] if len(tops) == 1 else tops

    def state(self) -> dict[str, Tensor]:
        return self.user.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.user.load_state(state)

    def train(self, mode: bool = True) -> Python:
        """The user's torch module follows the phase of the net, as every layer."""
        super().train(mode)
        for user in self.held:
            user.train(self.phase == "TRAIN")
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Python:
        """Moves and casts reach the buffers of the user's torch module."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for user in self.held:
            user.apply(fn)
        return self


# -- Caffe's kind ------------------------------------------------------------------------------------------------------


class Classic:
    """An object with setup(bottom, top), reshape, forward and backward(top, propagate_down, bottom), as pycaffe's.

    `reshape` runs before every forward. Tops are new memory, zeros, at each forward; bottoms are read-only, but a top
    of a bottom's name is that bottom's copy, as in-place layers have it. Diffs of parameters start at zero in each
    backward and are added to the gradients, whether the user adds or assigns.
    """

    def __init__(self, owner: Python, kind: type, bottoms: list[Shape]):
        self.owner, self.runs = owner, 0
        names = list(owner.spec.bottom)
        self.aliases = [names.index(top) if top in names else None for top in owner.spec.top]
        blobs, phase = Blobs(owner), {"TRAIN": 0, "TEST": 1}[owner.phase]
        attributes = {"param_str": owner.spec.python_param.param_str, "phase": phase, "blobs": blobs}
        # a real caffe.Layer has properties of these names that only Caffe's own net can fill: these stand before them
        made: Any = type(kind.__name__, (kind,), dict.fromkeys(attributes) | {"__module__": kind.__module__})
        self.layer: Any = made.__new__(made)
        vars(self.layer).update(attributes)
        self.parameters = blobs
        check_bottoms(bottoms)
        with told(f"setup of {owner.title}"):
            if isinstance(made.__init__, types.FunctionType):
                self.layer.__init__(*[owner.spec] * bool(inspect.signature(self.layer.__init__).parameters))
            self.layer.setup(*self._zeros(bottoms))

    def _zeros(self, shapes: list[Shape]) -> tuple[list[Blob], list[Blob]]:
        return self._pair([Blob(shape, numpy_type(self.owner.anchor.dtype)) for shape in shapes])

    def _pair(self, bottoms: list[Blob]) -> tuple[list[Blob], list[Blob]]:
        """Bottoms and tops; a bottom under a top's name is the same blob."""
        dtype = bottoms[0].dtype if bottoms else numpy_type(self.owner.anchor.dtype)
        return bottoms, [Blob((), dtype) if alias is None else bottoms[alias] for alias in self.aliases]

    def shapes(self, bottoms: list[Shape]) -> list[Shape]:
        bottom, top = self._zeros(bottoms)
        with told(f"reshape of {self.owner.title}"):
            self.layer.reshape(bottom, top)
        return [blob.shape for blob in top]

    def run(self, bottoms: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        parameters = [self.owner.blob(index) for index in range(len(self.parameters))]
        if torch.is_grad_enabled() and self.aliases and any(one.requires_grad for one in (*bottoms, *parameters)):
            return Bridge.apply(self, len(bottoms), *bottoms, *parameters)  # type: ignore[no-untyped-call]
        return self.tensors(self.compute(bottoms)[1], bottoms)

    def compute(self, bottoms: Sequence[Tensor]) -> tuple[list[Blob], list[Blob]]:
        """One reshape and forward; the blobs after it."""
        self.runs += 1
        bottom, top = self._pair([self._view(one, index) for index, one in enumerate(bottoms)])
        with told(f"reshape of {self.owner.title}"):
            self.layer.reshape(bottom, top)
        with told(f"forward of {self.owner.title}"):
            self.layer.forward(bottom, top)
        for parameter in self.parameters:
            parameter.store()
        return bottom, top

    def _view(self, tensor: Tensor, index: int) -> Blob:
        values = array_of(tensor)
        if index in self.aliases:
            return Blob.of(values.copy())
        values.flags.writeable = False
        return Blob.of(values)

    def tensors(self, tops: list[Blob], bottoms: Sequence[Tensor]) -> tuple[Tensor, ...]:
        like = bottoms[0] if bottoms and bottoms[0].is_floating_point() else self.owner.anchor
        return tuple(torch.from_numpy(top.data).to(like.device, like.dtype) for top in tops)

    def backward(self, wanted: list[bool], bottom: list[Blob], top: list[Blob]) -> None:
        for parameter in self.parameters:
            parameter.renew()
        with told(f"backward of {self.owner.title}"):
            self.layer.backward(top, wanted, bottom)

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Caffe's kind has no state that is known here."""

    def replace(self, old: Tensor, new: Tensor) -> None:
        """Its blobs are looked up in the layer."""

    def train(self, mode: bool) -> None:
        """Caffe's kind knows its phase since setup."""

    def apply(self, fn: Any) -> None:
        """Its blobs are the layer's."""


class Bridge(torch.autograd.Function):
    """The user's forward and backward as one step of torch's autograd."""

    @staticmethod
    def forward(ctx: Any, user: Classic, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.user, ctx.count = user, count
        ctx.bottom, ctx.top = user.compute(tensors[:count])
        ctx.run = user.runs
        ctx.save_for_backward(*tensors)
        return user.tensors(ctx.top, tensors[:count])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        user, count, tensors = ctx.user, ctx.count, ctx.saved_tensors
        bottom, top = ctx.bottom, ctx.top
        if user.runs != ctx.run:  # what the user's object keeps is of another forward
            bottom, top = user.compute(tensors[:count])
            ctx.run = user.runs
        for blob in bottom:
            blob.diff[...] = 0
        for blob, grad in zip(top, grads, strict=True):
            blob.diff[...] = array_of(grad)
        wanted = list(ctx.needs_input_grad[2:])
        user.backward(wanted[:count], bottom, top)
        diffs = [blob.diff for blob in (*bottom, *user.parameters)]
        return (
            None,
            None,
            *[
                torch.from_numpy(diff).to(tensor.device, tensor.dtype, copy=True) if asked else None
                for diff, tensor, asked in zip(diffs, tensors, wanted, strict=True)
            ],
        )


# -- torch's kind ------------------------------------------------------------------------------------------------------


class Wrapped:
    """A torch.nn.Module of the user's: forward(*bottoms) -> a tensor or a tuple; optionally shapes(bottoms)."""

    def __init__(self, owner: Python, kind: type[nn.Module], bottoms: list[Shape]):
        self.owner = owner
        self.module = construct(kind, owner.spec.python_param.param_str, owner.title)
        self.module.train(owner.phase == "TRAIN")
        self.names = [name for name, _ in self.module.named_parameters()]
        for index, (name, parameter) in enumerate(self.module.named_parameters()):
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise ValueError(f"{owner.title}: parameter {name} of a lazy module has no shape yet; give its sizes")
            owner.add_blob(tuple(parameter.shape))
            owner.register_parameter(f"blob{index}", parameter)

    def shapes(self, bottoms: list[Shape]) -> list[Shape]:
        """The module's own answer, else that of a forward of a copy: without numbers, or with zeros."""
        if callable(getattr(self.module, "shapes", None)):
            with told(f"shapes of {self.owner.title}"):
                return [tuple(map(int, shape)) for shape in self.module.shapes(bottoms)]  # type: ignore[operator]
        try:
            with caffe():
                twin = copy.deepcopy(self.module).to("meta")
                tops = twin(*(torch.empty(shape, device="meta") for shape in bottoms))
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):  # it looks at values: then zeros
            with told(f"forward of {self.owner.title}"):
                twin = copy.deepcopy(self.module)
                tops = twin(*(torch.zeros(shape, dtype=self.owner.anchor.dtype) for shape in bottoms))
        return [tuple(top.shape) for top in self._tuple(tops)]

    def run(self, bottoms: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        blobs = {name: self.owner.blob(index) for index, name in enumerate(self.names)}
        device = next((one.device for one in (*bottoms, *blobs.values())), self.owner.anchor.device)
        if any(buffer.device != device for buffer in self.module.buffers()):
            self.module.to(device)
        own = all(mine is blob for mine, blob in zip(self.module.parameters(), blobs.values(), strict=True))
        with told(f"forward of {self.owner.title}"):
            tops = self.module(*bottoms) if own else torch.func.functional_call(self.module, blobs, bottoms)
        return self._tuple(tops)

    def _tuple(self, tops: Any) -> tuple[Tensor, ...]:
        found = tuple(tops) if isinstance(tops, tuple | list) else (tops,)
        odd = [type(top).__name__ for top in found if not isinstance(top, Tensor)]
        if odd:
            raise ValueError(f"{self.owner.title} gave {odd[0]}, expected a tensor or a tuple of tensors")
        return found

    def state(self) -> dict[str, Tensor]:
        return {name: buffer.detach().clone() for name, buffer in self.module.named_buffers()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        buffers = dict(self.module.named_buffers())
        if sorted(buffers) != sorted(state):
            raise ValueError(f"a state of {', '.join(sorted(state))}; expected {', '.join(sorted(buffers))}")
        for name, value in state.items():
            buffers[name].copy_(value)

    def replace(self, old: Tensor, new: Tensor) -> None:
        """The layer's blob into its places in the module; one of another shape stands in at each forward instead."""
        for module in self.module.modules():
            for name, parameter in module._parameters.items():
                if parameter is old and isinstance(new, nn.Parameter) and new.shape == old.shape:
                    module._parameters[name] = new

    def train(self, mode: bool) -> None:
        self.module.train(mode)

    def apply(self, fn: Any) -> None:
        self.module._apply(fn)  # type: ignore[no-untyped-call]


def construct(kind: type[nn.Module], param_str: str, title: str) -> nn.Module:
    """An object of the user's class: with `param_str` where __init__ names it, else with the keywords that it holds."""
    names = inspect.signature(kind).parameters
    with told(f"making {title}"):
        if "param_str" in names:
            return kind(param_str=param_str)
        if not param_str.strip():
            return kind()
        keywords = keywords_of(param_str)
        if keywords is not None:
            return kind(**keywords)
    raise ValueError(
        f"param_str {quoted(param_str)} is no dict such as \"{{'size': 3}}\", and {title} takes no param_str"
    )


def keywords_of(param_str: str) -> dict[str, Any] | None:
    """The dict literal that a param_str is, None where it is none."""
    try:
        found = ast.literal_eval(param_str.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, dict) and all(isinstance(key, str) for key in found) else None


def check_bottoms(shapes: list[Shape]) -> None:
    size = sum(map(math.prod, shapes))
    if size > LARGEST_BOTTOMS:
        raise ValueError(f"bottoms of {size:,} elements; the shapes of a Python layer are found up to 2 ** 28")
