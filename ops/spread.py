"""A net whose batch is shared: which axis of each blob is the batch, and which nets cannot be divided.

The batch axis is found by building the net's shapes for a batch twice as large and looking at what grew.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ops.layers.registry import Layer, Shape, text
from ops.names import quoted
from ops.net import Net
from ops.parallel import Group, Part

MIXERS = {  # layer types that use rows of other places of the batch, or ask which place a row has
    "BatchReindex": "takes rows by their place in the batch",
    "Filter": "chooses among the rows of the batch",
    "HDF5Output": "writes the rows of a batch into one file",
    "Python": "may look at the whole batch",
}
TIME = ("LSTM", "RNN", "GRU")  # axis 0 is time, axis 1 the batch
ALONG = ("Concat", "Slice", "Tile", "Softmax", "ArgMax", "SoftmaxWithLoss", "InfogainLoss", "Accuracy")  # their `axis`
SHAPERS = ("Reshape", "Flatten", "Im2col")


def spread(net: Net, group: Group, *, synchronize: bool = True) -> None:
    """Tell every layer that it sees this process's part of the batch along axis 0 of each input.

    ValueError names the layer where a net cannot be divided so. `synchronize`: BatchNorm takes the whole batch's
    statistics (False: each part's own, as Caffe's).
    """
    if group.alone:
        return
    for name, shape in net.inputs.items():
        if not shape or shape[0] < group.world:
            raise ValueError(
                f"{net.name}: a batch of {shape[0] if shape else 1} in {quoted(name)} for {group.world} workers"
            )
    net.batch_axes = dict.fromkeys(net.inputs, 0)
    grown = net.rebuild({name: (2 * shape[0], *shape[1:]) for name, shape in net.inputs.items()})
    for number, (layer, node) in enumerate(zip(net.layers, net.built.nodes, strict=True)):
        if layer.source:
            continue
        small, large = net.built.taken[number], grown.taken[number]
        try:
            axes = tuple(batch_axis(a, b) for a, b in zip(small, large, strict=True))
            tops = [batch_axis(net.built.given[number][k], grown.given[number][k]) for k in range(len(node.spec.top))]
            check(layer, axes, tops, small)
            if [blob.shape for blob in layer.blobs] != [blob.shape for blob in grown.layers[number].blobs]:
                raise ValueError("has weights for each place of the batch")
            if any(axis is not None for axis in axes) and tops and tops[0] is None:
                check_end(net, number, node.spec.top[0])
        except ValueError as error:
            raise ValueError(
                f"{net.name}: {node.title} {error}: this net cannot be divided among {group.world} workers; use one"
            ) from None
        for top, axis in zip(node.spec.top, tops, strict=True):
            net.batch_axes[top] = axis
            if axis is None and any(axis is not None for axis in axes):
                net.batch_sums.add(top)
        if any(axis is not None for axis in axes):
            layer.part = Part(group, tuple(small), axes, synchronize)


def batch_axis(small: Shape, large: Shape) -> int | None:
    """The axis that grew with the batch."""
    grown = [axis for axis, (a, b) in enumerate(zip(small, large, strict=True)) if a != b]
    if len(small) != len(large) or len(grown) > 1 or any(large[axis] != 2 * small[axis] for axis in grown):
        raise ValueError(f"makes {text(small)} into {text(large)} when the batch doubles")
    return grown[0] if grown else None


def check(layer: Layer, axes: tuple[int | None, ...], tops: list[int | None], shapes: list[Shape]) -> None:
    """ValueError where a layer computes something else from a part than a part of what it computes from the whole."""
    kind, batch = layer.spec.type, next((axis for axis in axes if axis is not None), None)
    if batch is None:
        return
    if kind in MIXERS:
        raise ValueError(MIXERS[kind])
    if kind in TIME and any(axis not in (1, None) for axis in axes[:2]):
        raise ValueError(f"takes time on axis 0 of {text(shapes[0])}, which would be divided")
    if kind in SHAPERS and tops != [batch]:
        raise ValueError(f"moves the batch from axis {batch} of {text(shapes[0])}")
    if kind in ALONG and batch == getattr(layer, "axis", None):
        raise ValueError(f"works along axis {batch} of {text(shapes[0])}, the batch")
    if kind in ("BatchNorm", "LRN") and batch == 1:
        raise ValueError(f"takes axis 1 of {text(shapes[0])}, the batch, for channels")


def check_end(net: Net, number: int, top: str) -> None:
    """A number that stands for the whole batch is a sum of shares: only an end of the net may be one."""
    takers = {taker for taken in net.built.nodes[number].takers for taker in taken}
    others = [net.built.nodes[taker] for taker in sorted(takers) if net.built.nodes[taker].spec.type != "Silence"]
    if others:
        raise ValueError(
            f"makes one number of the batch, {quoted(top)}, of which {others[0].title} makes something else"
        )


def gathered(net: Net, group: Group, blobs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Blobs of the whole batch from everybody's parts: rows side by side, numbers of the batch added up."""
    whole = {}
    for name, blob in blobs.items():
        axis = net.batch_axes.get(name)
        if axis is not None:
            whole[name] = group.rows(blob, net.shapes[name][axis], axis)
        else:
            whole[name] = group.sum(blob) if name in net.batch_sums else blob
    return whole
