"""From a definition to layers: which layer takes which blob of which other, shapes, sharing, loss weights.

Everything is found on torch's meta device: nothing here has numbers, or the memory for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ops import custom
from ops.layers.inputs import DummyData
from ops.layers.registry import LAYERS, Layer, Phase, Shape, check_count, check_size, find, text
from ops.names import hint, quoted
from ops.proto.caffe_pb2 import LayerParameter, NetParameter, ParamSpec
from ops.proto.caffe_pb2 import Phase as PhaseEnum


@dataclass(frozen=True)
class Learnable:
    """A blob that a solver updates (lr_mult 0: never moves): where it is and how it learns."""

    layer: int
    index: int
    name: str  # under which others share it; "" where nobody can
    lr_mult: float
    decay_mult: float


@dataclass
class Node:
    """One layer of the definition with its place among the others; blobs are named (layer, top)."""

    spec: LayerParameter
    sources: list[tuple[int, int] | None]  # who makes each bottom; None: the caller
    takers: list[set[int]] = field(default_factory=list)  # who takes each top, before a later layer renames it

    @property
    def title(self) -> str:
        return f"layer {quoted(self.spec.name)} ({self.spec.type or 'no type'})"


@dataclass
class Built:
    """What `build` found out: the parts of a Net."""

    nodes: list[Node]
    layers: list[Layer]
    taken: list[list[Shape]] = field(default_factory=list)  # the shapes of each layer's bottoms
    given: list[list[Shape]] = field(default_factory=list)  # and of its tops
    inputs: dict[str, Shape] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    loss_weights: dict[str, float] = field(default_factory=dict)
    learnable: list[Learnable] = field(default_factory=list)
    shared: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)  # blob -> the blob that it stands for
    made: list[tuple[DummyData, list[str]]] = field(default_factory=list)  # sources that make their own values
    kept: frozenset[str] | None = None


def build(
    spec: NetParameter,
    name: str,
    phase: Phase,
    *,
    given: Mapping[str, Shape],
    wanted: list[str] | None,
    folder: Path | None,
) -> Built:
    """The layers of a filtered definition; ValueError "NAME: layer 'x' (Type): ..." where it is no net."""
    nodes = connect(spec, name, given)
    nodes, extra = prune(nodes, wanted, name), extra_inputs(nodes, given, name)
    built = Built(nodes, [], kept=None if wanted is None else frozenset(wanted))
    for blob in extra:
        check_given(name, blob, given[blob])
        built.inputs[blob] = built.shapes[blob] = given[blob]
    current = {blob: built.shapes[blob] for blob in extra}
    for node in nodes:
        try:
            layer, shapes = make(node, [current[blob] for blob in node.spec.bottom], phase, given, folder)
            weigh(node, built)
        except ValueError as error:
            raise ValueError(f"{name}: {node.title}: {error}") from error
        except OSError as error:  # a source that is not there
            told = f"{name}: {node.title}: {error.filename or ''} {error.strerror or error}"
            raise OSError(error.errno or 0, " ".join(told.split())) from error
        built.layers.append(layer)
        built.taken.append([current[blob] for blob in node.spec.bottom])
        built.given.append(shapes)
        current.update(zip(node.spec.top, shapes, strict=True))
        if layer.source:
            built.inputs.update(zip(node.spec.top, shapes, strict=True))
            if isinstance(layer, DummyData):
                built.made.append((layer, list(node.spec.top)))
    built.shapes |= current
    share(built, name)
    if not spec.force_backward:
        freeze(built)
    taken = {(node.sources[i]) for node in nodes for i in range(len(node.sources))}
    loose = {top for i, node in enumerate(nodes) for k, top in enumerate(node.spec.top) if (i, k) not in taken}
    built.outputs = sorted((loose | set(wanted or ())) if wanted is None else set(wanted), key=str.encode)
    return built


# -- who takes what --------------------------------------------------------------------------------------------------


def connect(spec: NetParameter, name: str, given: Mapping[str, Shape]) -> list[Node]:
    """Every layer with the makers of its bottoms; unknown bottoms, blobs made twice and cycles are told."""
    makers: dict[str, tuple[int, int]] = {}
    nodes: list[Node] = []
    for i, layer in enumerate(spec.layer):
        copy = LayerParameter()
        copy.CopyFrom(layer)
        node = Node(copy, [])
        for blob in copy.bottom:
            if blob not in makers and blob not in given:
                raise ValueError(f"{name}: {node.title}: {no_such_bottom(spec, i, blob, makers)}")
            node.sources.append(makers.get(blob))
        if copy.type.endswith("Loss") and not copy.top:
            copy.top.append(f"{copy.name}(loss)")
        for k, blob in enumerate(copy.top):
            inplace = k < len(copy.bottom) and copy.bottom[k] == blob
            if (blob in makers or blob in copy.top[:k]) and not inplace:
                first = nodes[makers[blob][0]].title if blob in makers else "itself"
                raise ValueError(
                    f"{name}: {node.title}: makes blob {quoted(blob)}, which {first} makes already; give its top "
                    "another name"
                )
        for blob, source in zip(copy.bottom, node.sources, strict=True):
            if source is not None:
                nodes[source[0]].takers[source[1]].add(i)
            elif blob not in given:
                raise AssertionError(blob)
        node.takers = [set() for _ in copy.top]
        makers.update((blob, (i, k)) for k, blob in enumerate(copy.top))
        nodes.append(node)
    return nodes


def no_such_bottom(spec: NetParameter, at: int, blob: str, makers: Mapping[str, object]) -> str:
    """Why a bottom is not there: made later (a cycle), or by nobody."""
    later = next((layer for layer in spec.layer[at:] if blob in layer.top), None)
    if later is spec.layer[at] or (later is not None and later.name == spec.layer[at].name):
        return f"takes blob {quoted(blob)}, which it makes itself: a cycle; no earlier layer makes it"
    if later is not None:
        return (
            f"takes blob {quoted(blob)}, which layer {quoted(later.name)} makes only later; put that layer first "
            "(a cycle cannot be computed)"
        )
    return f"takes blob {quoted(blob)}, which no earlier layer makes{hint(blob, makers)}"


def prune(nodes: list[Node], wanted: list[str] | None, name: str) -> list[Node]:
    """Only the layers that the `wanted` blobs need (all, for None), and the numbers of the others closed up."""
    if wanted is None:
        return nodes
    makers = {blob: i for i, node in enumerate(nodes) for blob in node.spec.top}
    for blob in wanted:
        if blob not in makers:
            raise ValueError(f"{name}: has no blob {quoted(blob)}{hint(blob, makers)}")
    needed, todo = set[int](), [makers[blob] for blob in wanted]
    while todo:
        i = todo.pop()
        if i not in needed:
            needed.add(i)
            todo += [source[0] for source in nodes[i].sources if source]
    number = {old: new for new, old in enumerate(sorted(needed))}
    kept = [nodes[i] for i in sorted(needed)]
    for node in kept:
        node.sources = [source and (number[source[0]], source[1]) for source in node.sources]
        node.takers = [{number[i] for i in takers if i in number} for takers in node.takers]
    return kept


def extra_inputs(nodes: Sequence[Node], given: Mapping[str, Shape], name: str) -> list[str]:
    """Given blobs that no layer makes but some layer takes; those that are nobody's are told."""
    makers = {blob: node for node in reversed(nodes) for blob in node.spec.top}
    takes = {blob for node in nodes for blob, source in zip(node.spec.bottom, node.sources, strict=True) if not source}
    for blob in given:
        if blob in makers and kind_of(makers[blob].spec).source is False and blob not in takes:
            raise ValueError(f"{name}: inputs: blob {quoted(blob)} is made by {makers[blob].title}; it is no input")
        if blob not in makers and blob not in takes:
            raise ValueError(f"{name}: inputs: has no input {quoted(blob)}{hint(blob, [*makers, *takes])}")
    return [blob for blob in given if blob in takes]


def check_given(name: str, blob: str, shape: Shape) -> None:
    try:
        check_size(shape)
    except ValueError as error:
        raise ValueError(f"{name}: inputs: blob {quoted(blob)}: {error}") from None


# -- one layer -------------------------------------------------------------------------------------------------------


def kind_of(spec: LayerParameter) -> type[Layer]:
    """The class of a layer's type: one of ours, or of an installed package (entry point `cortado.layers`)."""
    if spec.type not in LAYERS:
        custom.load_installed()
    return find(spec.type)


def make(
    node: Node, bottoms: list[Shape], phase: Phase, given: Mapping[str, Shape], folder: Path | None
) -> tuple[Layer, list[Shape]]:
    """The module, its blobs on meta, and the shapes of its tops."""
    spec = node.spec
    kind = kind_of(spec)
    check_count("top", len(spec.top), kind.tops)
    if spec.propagate_down and len(spec.propagate_down) != len(bottoms):
        raise ValueError(f"gives propagate_down {len(spec.propagate_down)} times for {len(bottoms)} bottoms")
    own: Phase = ("TEST" if spec.phase == PhaseEnum.Value("TEST") else "TRAIN") if spec.HasField("phase") else phase
    try:
        with torch.device("meta"):
            layer = kind(spec, bottoms, own)
        layer.folder = folder
        shapes = layer.top_shapes(given) if layer.source else layer.shapes(bottoms)
    except (RuntimeError, IndexError, TypeError, OverflowError) as error:
        met = ", ".join(map(text, bottoms)) or "none"
        raise ValueError(f"{' '.join(str(error).split())} (bottoms: {met})") from error
    for blob, shape in zip(spec.top, shapes, strict=True):
        try:
            check_size(shape)
        except ValueError as error:
            raise ValueError(f"top {quoted(blob)}: {error}") from None
    if len(spec.param) > len(layer.fillers):
        raise ValueError(f"has {len(spec.param)} param entries for {len(layer.fillers)} blobs; leave the others out")
    return layer, shapes


def weigh(node: Node, built: Built) -> None:
    """Note the loss weights of a layer's tops: as written, else 1 for the first top of a loss."""
    spec = node.spec
    if spec.loss_weight and len(spec.loss_weight) != len(spec.top):
        raise ValueError(f"gives loss_weight {len(spec.loss_weight)} times for {len(spec.top)} tops; give one a top")
    weights = list(spec.loss_weight) or ([1.0] if spec.type.endswith("Loss") else [])
    built.loss_weights.update((top, weight) for top, weight in zip(spec.top, weights, strict=False) if weight)


# -- blobs that learn ------------------------------------------------------------------------------------------------


def share(built: Built, name: str) -> None:
    """Who owns each blob, and how it learns; blobs of one param name are one blob."""
    owners: dict[str, tuple[int, int]] = {}
    mults: dict[tuple[int, int], ParamSpec] = {}
    for l, (node, layer) in enumerate(zip(built.nodes, built.layers, strict=True)):  # noqa: E741
        for i in range(len(layer.fillers)):
            param = node.spec.param[i] if i < len(node.spec.param) else ParamSpec()
            if layer.is_statistic(i):
                if param.HasField("lr_mult") and param.lr_mult:
                    told = "a statistic is not learned; give lr_mult: 0, or no param"
                    raise ValueError(f"{name}: {node.title}: blob {i} has lr_mult {param.lr_mult:g}: {told}")
                param = ParamSpec(name=param.name, share_mode=param.share_mode, lr_mult=0, decay_mult=0)
            if not param.name or param.name not in owners:
                if param.name:
                    owners[param.name] = (l, i)
                mults[l, i] = param
                continue
            try:
                join(built, owners[param.name], (l, i), param, mults)
            except ValueError as error:
                raise ValueError(f"{name}: {node.title}: {error}") from None
    built.learnable = [Learnable(*at, param.name, param.lr_mult, param.decay_mult) for at, param in mults.items()]


def join(
    built: Built, owner: tuple[int, int], at: tuple[int, int], param: ParamSpec, mults: dict[tuple[int, int], ParamSpec]
) -> None:
    """Make the blob `at` stand for its owner's; their shapes and multipliers must go together."""
    theirs, ours = built.layers[owner[0]].blobs[owner[1]], built.layers[at[0]].blobs[at[1]]
    who = f"param {quoted(param.name)} of layer {quoted(built.nodes[owner[0]].spec.name)}"
    strict = param.share_mode == ParamSpec.STRICT
    if ours.numel() != theirs.numel() or (strict and ours.shape != theirs.shape):
        more = "" if ours.numel() != theirs.numel() else "; share_mode: PERMISSIVE allows another shape of that count"
        raise ValueError(
            f"blob {at[1]} of {text(tuple(ours.shape))} cannot be the {text(tuple(theirs.shape))} {who}{more}"
        )
    for field_name in ("lr_mult", "decay_mult"):
        if not param.HasField(field_name):
            continue
        value, first = getattr(param, field_name), mults[owner]
        if first.HasField(field_name) and getattr(first, field_name) != value:
            raise ValueError(
                f"blob {at[1]} has {field_name} {value:g}, the {who} has {getattr(first, field_name):g}; write one of "
                "them, or the same"
            )
        merged = ParamSpec()
        merged.CopyFrom(first)
        setattr(merged, field_name, value)
        mults[owner] = merged
    built.shared[at] = owner
    if ours.shape != theirs.shape:
        built.layers[at[0]].views[at[1]] = tuple(ours.shape)


def towards_loss(built: Built) -> set[int]:
    """The layers whose blobs have a part in the loss; the others get no gradient."""
    ends = {i for i, node in enumerate(built.nodes) if any(top in built.loss_weights for top in node.spec.top)}
    found, todo = set(ends), list(ends)
    while todo:
        node = built.nodes[todo.pop()]
        stopped = [not down for down in node.spec.propagate_down] or [False] * len(node.sources)
        for source, stop in zip(node.sources, stopped, strict=True):
            if source and not stop and source[0] not in found:
                found.add(source[0])
                todo.append(source[0])
    return found


def freeze(built: Built) -> None:
    """No gradient is computed for blobs with lr_mult 0 (force_backward: for all)."""
    for one in built.learnable:
        if one.lr_mult == 0:
            built.layers[one.layer].blobs[one.index].requires_grad_(False)
