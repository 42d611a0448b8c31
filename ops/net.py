"""Nets: prototxt in, a torch module out. `load` reads, `Net` computes.

net = load("deploy.prototxt", weights="caffenet.caffemodel")
blobs = net(data=images)                 # {blob name: tensor}, every blob
blobs["prob"], net.params["conv1"][0]    # outputs; weights in file order
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ops import weights as saved
from ops.layers.convolution import Convolving
from ops.layers.inputs import DummyData
from ops.layers.registry import Layer, Phase, Shape, text
from ops.memory import available, keep_freed
from ops.names import hint, quoted
from ops.phases import select, state_of
from ops.proto import binary, files
from ops.proto import text as prototxt
from ops.proto.caffe_pb2 import TEST, NetParameter, NetState
from ops.proto.upgrade import WARNING, upgrade_net
from ops.steps import Step, plan
from ops.wiring import Built, build

log = logging.getLogger("cortado")
TEXT_LIMIT = 32 * 1024 * 1024  # bytes of a prototxt; the largest published nets have a thirtieth


def load(
    path_or_spec: str | Path | NetParameter,
    phase: Phase = "TEST",
    *,
    weights: str | Path | Sequence[str | Path] | None = None,
    stages: Iterable[str] = (),
    level: int = 0,
    inputs: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    blobs: Iterable[str] | None = None,
) -> Net:
    """The net in a file (text, or binary as a .caffemodel), as it is for `phase`, `level` and `stages`.

    `inputs` gives the shapes of inputs or replaces those in the file; no data source is opened for them. `weights` are
    copied by layer name, the rest is filled from `seed`. `blobs`: build only what these need. Old files (V0, V1,
    `input:` fields) are upgraded. Everything that is wrong is a ValueError of one line with file, layer, what to do.
    """
    name, spec = read(path_or_spec)
    folder = None if isinstance(path_or_spec, NetParameter) else Path(path_or_spec).parent
    state = state_of(spec, phase, level=level, stages=stages)
    net = assemble(name, spec, state, inputs=inputs, seed=seed, blobs=blobs, folder=folder)
    net.materialize(torch.device(device), weights=paths_of(weights))
    return net


def assemble(
    name: str,
    spec: NetParameter,
    state: NetState,
    *,
    inputs: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    blobs: Iterable[str] | None = None,
    folder: Path | None = None,
) -> Net:
    """The net of a current-format definition in a state, still without memory: `materialize` comes next."""
    chosen = select(spec, state, name)
    if folder is not None:
        place_matrices(chosen, folder)
    phase: Phase = "TEST" if state.phase == TEST else "TRAIN"
    given = {key: tuple(map(int, shape)) for key, shape in (inputs or {}).items()}
    built = build(chosen, name, phase, given=given, wanted=None if blobs is None else list(blobs), folder=folder)
    return Net(chosen, built, name=name, phase=phase, seed=seed)


def place_matrices(spec: NetParameter, folder: Path) -> None:
    """Let InfogainLoss find its matrix beside the prototxt where the working folder has none."""
    for layer in spec.layer:
        source = layer.infogain_loss_param.source
        if source and not Path(source).exists() and (folder / source).exists():
            layer.infogain_loss_param.source = str(folder / source)


def read(path_or_spec: str | Path | NetParameter) -> tuple[str, NetParameter]:
    """What errors call a net, and its current-format definition."""
    if isinstance(path_or_spec, NetParameter):
        spec = NetParameter()
        spec.CopyFrom(path_or_spec)
        name = spec.name or "<net>"
    else:
        name = str(path_or_spec)
        kind = files.sniff(path_or_spec)
        if kind == "text":
            spec = prototxt.read(path_or_spec, NetParameter, limit=TEXT_LIMIT)
        else:
            spec = binary.read(path_or_spec, NetParameter)
    for note in upgrade_net(spec, name):
        if note.startswith(WARNING):
            log.warning("%s: %s", name, note.removeprefix(WARNING))
    return name, spec


def paths_of(weights: str | Path | Sequence[str | Path] | None) -> list[Path]:
    """Weight files as Caffe's command line takes them: one, several, or a list with commas."""
    if weights is None:
        return []
    listed = str(weights).split(",") if isinstance(weights, str | Path) else list(weights)
    return [Path(str(path).strip()) for path in listed]


class Net(nn.Module):
    """A built net.

    `inputs` {blob: shape} · `outputs` blobs that no layer takes, in byte order · `shapes` {blob: shape} for the built
    inputs · `params` {layer: its blobs in file order} · `spec` the NetParameter after upgrading and filtering ·
    `layers` the modules in net order · `learnable` one entry a blob that a solver updates.
    """

    def __init__(self, spec: NetParameter, built: Built, *, name: str, phase: Phase, seed: int):
        super().__init__()
        self.spec, self.name, self.phase, self.seed, self.built = spec, name, phase, seed, built
        self.layers: Sequence[Layer] = nn.ModuleList(built.layers)  # type: ignore[assignment]
        self.inputs, self.outputs, self.shapes = built.inputs, built.outputs, built.shapes
        self.loss_weights, self.learnable, self.shared = built.loss_weights, built.learnable, built.shared
        self.made: list[tuple[DummyData, list[str]]] = built.made  # inputs that need no caller
        self.report: saved.Report | None = None
        self.forwards = 0  # forwards so far; random layers draw by this number
        self.kept: frozenset[str] | None = built.kept
        self.steps: list[Step] = plan(built)
        self.needed = {name for step in self.steps for name in step.bottoms} | set(self.kept or ())
        self.memory_format = torch.contiguous_format
        self.batch_axes: dict[str, int | None] = {}  # of a batch that several processes share: see ops.spread
        self.adopted: set[int] = set()  # layers whose blobs are another net's
        self.batch_sums: set[str] = set()  # blobs that stand for the whole batch: each process has its share of the sum

    # -- computing -------------------------------------------------------------------------------------------------

    def forward(self, blobs: Mapping[str, Any] | None = None, /, **named: Any) -> dict[str, Tensor]:
        """Every blob by name, inputs among them; `net(data=x)` or `net({"data": x})`.

        Where the net was built for certain `blobs`, only these. Inputs are never written into; a new batch or image
        size is just another call.
        """
        values = self.take(named if blobs is None else {**blobs, **named})
        self.forwards += 1
        for step in self.steps:
            try:
                step.run(values, self.seed, self.forwards)
            except (RuntimeError, IndexError) as error:
                raise self.blame(step, values, error) from error
            except ValueError as error:
                raise ValueError(f"{self.name}: {step.title}: {error}") from error
        return values if self.kept is None else {name: values[name] for name in values if name in self.kept}

    def take(self, given: Mapping[str, Any]) -> dict[str, Tensor]:
        """The inputs as tensors of the net's type and device; missing and unknown ones are told."""
        kind, device = self.dtype, self.device
        values: dict[str, Tensor] = {}
        for name, value in given.items():
            if name not in self.inputs:
                raise ValueError(f"{self.name}: has no input {quoted(name)}{hint(name, self.inputs)}")
            tensor = torch.as_tensor(value)
            wanted = kind or (tensor.dtype if tensor.is_floating_point() else torch.float32)
            here = tensor.dtype is wanted and tensor.device == device  # `to` lets other threads go first in any case
            values[name] = tensor if here else tensor.to(device, wanted)
        missing = [name for name in self.inputs if name not in values]
        if missing:
            values.update(self.make(missing))
            unfed = [name for name in missing if name not in values and name in self.needed]
            missing = [f"{name} ({text(self.inputs[name])})" for name in unfed]
            if missing:
                raise ValueError(f"{self.name}: no tensor given for {', '.join(missing)}: call net(NAME=tensor, ...)")
        return values

    def make(self, missing: list[str]) -> dict[str, Tensor]:
        """What the net's own sources (DummyData) make of inputs that nobody gave."""
        made: dict[str, Tensor] = {}
        for source, tops in self.made:
            if any(top in missing for top in tops):
                generator = torch.Generator().manual_seed((self.seed << 20) + self.forwards)
                made.update(zip(tops, source.produce(generator), strict=True))
        kind = self.dtype or torch.float32
        return {name: made[name].to(self.device, kind) for name in missing if name in made}

    def loss(self, blobs: Mapping[str, Tensor]) -> Tensor:
        """What a solver minimizes: each top's loss weight times the sum of its elements, over all tops; a scalar."""
        terms = [
            blobs[name] if weight == 1 and not blobs[name].dim() else weight * blobs[name].sum()
            for name, weight in self.loss_weights.items()
        ]
        return sum(terms[1:], terms[0]) if terms else torch.zeros((), device=self.device)

    def blame(self, step: Step, values: Mapping[str, Tensor], error: Exception) -> Exception:
        """The error with the layer and the shapes that it met; out of memory stays what it is."""
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            return MemoryError(f"{self.name}: {step.title}: out of memory")
        met = ", ".join(f"{name} {text(tuple(values[name].shape))}" for name in step.bottoms if name in values)
        return ValueError(f"{self.name}: {step.title}: {' '.join(str(error).split())} (bottoms: {met or 'none'})")

    # -- blobs -----------------------------------------------------------------------------------------------------

    @property
    def params(self) -> dict[str, list[Tensor]]:
        """Layer name -> its blobs in file order, weights and statistics alike; of layers of one name, the last."""
        return {layer.spec.name: layer.blobs for layer in self.layers if layer.fillers}

    @property
    def dtype(self) -> torch.dtype | None:
        """The type of the blobs; None where there are none: then inputs stay as they are."""
        return next((blob.dtype for layer in self.layers for blob in layer.blobs), None)

    @property
    def device(self) -> torch.device:
        return next((blob.device for layer in self.layers for blob in layer.blobs), self.home)

    home = torch.device("cpu")  # where a net without blobs computes

    # -- building --------------------------------------------------------------------------------------------------

    def materialize(self, device: torch.device, *, weights: list[Path]) -> None:
        """Give the blobs memory and first values: those of the definition or of the weight files, else a filler's.

        A blob's first values depend on `seed` and its place in the net, not on what else is filled.
        """
        self.home = device
        if device.type == "cpu":
            keep_freed()
        self.memory_format = layout(self.layers, device)
        check_memory(self)
        for number, layer in enumerate(self.layers):
            for index, blob in enumerate(layer.blobs):
                if (number, index) not in self.shared and number not in self.adopted:
                    layer.set_blob(index, with_memory(blob, device, self.memory_format))
        self.join()
        if weights:
            self.report = saved.load(self, weights)
            for warning in self.report.warnings:
                log.warning("%s", warning)
        found = {layer.spec.name: number for number, layer in reversed(list(enumerate(self.layers)))}
        copied = {found[name] for name in self.report.copied} if self.report else set[int]()
        for number, layer in enumerate(self.layers):
            if number not in copied and number not in self.adopted and not self.define(layer):
                self.fill(number)
        for one in [*self.spec.layer, *(layer.spec for layer in self.layers)]:
            del one.blobs[:]

    def rebuild(self, inputs: Mapping[str, Shape]) -> Built:
        """What the net would be for other input shapes, without memory."""
        wanted = None if self.kept is None else sorted(self.kept)
        return build(self.spec, self.name, self.phase, given=inputs, wanted=wanted, folder=None)

    def adopt(self, other: Net) -> None:
        """Take over the blobs of the layers of the same names, as one memory (before `materialize`): a test net's.

        As Caffe: of layers of one name the last; counts and shapes must be equal.
        """
        theirs = {layer.spec.name: layer for layer in other.layers if layer.fillers}
        for number, layer in enumerate(self.layers):
            if layer.spec.name not in theirs or not layer.fillers:
                continue
            own = [tuple(blob.shape) for blob in layer.blobs]
            found = theirs[layer.spec.name].blobs
            if own != [tuple(blob.shape) for blob in found]:
                told = ", ".join(text(tuple(blob.shape)) for blob in found)
                raise ValueError(
                    f"{self.name}: layer {quoted(layer.spec.name)} has blobs {', '.join(map(text, own))}, in "
                    f"{other.name} it has {told}: one of them must have another name"
                )
            for index, blob in enumerate(found):
                layer.set_blob(index, blob)
            self.adopted.add(number)

    def join(self) -> None:
        """Put owners' blobs in the places of those that share them."""
        for (number, index), (owner, at) in self.shared.items():
            self.layers[number].set_blob(index, self.layers[owner].blobs[at])

    def define(self, layer: Layer) -> bool:
        """Copy the blobs that stand in a layer's own definition, as in a .caffemodel read as a net; False: none do."""
        if not layer.spec.blobs:
            return False
        wanted = [tuple(blob.shape) for blob in layer.blobs]
        found = [len(message.data or message.double_data) for message in layer.spec.blobs]
        if [math.prod(shape) for shape in wanted] != found:
            told = f"its definition holds blobs of {found} numbers; expected {', '.join(map(text, wanted)) or 'none'}"
            raise ValueError(f"{self.name}: layer {quoted(layer.spec.name)} ({layer.spec.type}): {told}")
        with torch.no_grad():
            for blob, message in zip(layer.blobs, layer.spec.blobs, strict=True):
                blob.copy_(torch.tensor(message.data or message.double_data).reshape(blob.shape))
        return True

    def fill(self, number: int) -> None:
        """First values of one layer's own blobs, by its fillers."""
        for index in range(len(self.layers[number].fillers)):
            if (number, index) not in self.shared:
                mixed = (self.seed * 1_000_003 + number) * 1_000_003 + index
                self.layers[number].fill(index, torch.Generator().manual_seed(mixed & (2**63 - 1)))

    def _apply(self, *arguments: Any, **options: Any) -> Net:
        """`to`, `double`, `cuda`: shared statistics stay one."""
        super()._apply(*arguments, **options)  # type: ignore[no-untyped-call]
        self.join()
        return self

    def state(self) -> dict[str, Tensor]:
        """What layers carry from one forward to the next beside their blobs, as `layer index/name`."""
        return {f"{i}/{key}": value for i, one in enumerate(self.layers) for key, value in one.state().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for index, layer in enumerate(self.layers):
            own = {key.partition("/")[2]: v for key, v in state.items() if key.partition("/")[0] == str(index)}
            if own:
                layer.load_state(own)


def layout(layers: Sequence[Layer], device: torch.device) -> torch.memory_format:
    """How images lie in memory: channels last where a CPU convolves them (1.5 to 2 times as fast), else as in Caffe."""
    images = any(isinstance(layer, Convolving) and layer.axes == 2 for layer in layers)
    return torch.channels_last if images and device.type == "cpu" else torch.contiguous_format


def with_memory(blob: Tensor, device: torch.device, memory_format: torch.memory_format) -> Tensor:
    """A blob of the meta device with memory of its own, not yet filled; others on `device`."""
    if not blob.is_meta:
        return nn.Parameter(blob.detach().to(device), blob.requires_grad) if blob.requires_grad else blob.to(device)
    form = memory_format if blob.dim() == 4 else torch.contiguous_format
    try:
        empty = torch.empty(blob.shape, dtype=blob.dtype, device=device, memory_format=form)
    except RuntimeError as error:
        raise MemoryError(f"no memory for a blob of {text(tuple(blob.shape))} on {device}") from error
    return nn.Parameter(empty, blob.requires_grad) if isinstance(blob, nn.Parameter) else empty


def check_memory(net: Net) -> None:
    """Refuse a net whose blobs would not fit, before the machine is brought to its knees."""
    need = sum(blob.numel() * blob.element_size() for layer in net.layers for blob in layer.blobs if blob.is_meta)
    free = available()
    if net.home.type == "cpu" and free is not None and need > free:
        largest = max(net.layers, key=lambda layer: sum(blob.numel() for blob in layer.blobs))
        raise ValueError(
            f"{net.name}: its blobs take {need:,} bytes and {free:,} are free; layer {quoted(largest.spec.name)} "
            f"has the most ({', '.join(text(tuple(blob.shape)) for blob in largest.blobs)})"
        )
