"""What a served net looks like: its layers as a table, the filters of a layer, the maps that it makes of a picture."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from ops import image, net_table, pictures
from ops.layers.registry import Layer
from ops.names import hint, quoted
from ops.net import Net
from pipelines.stages.featuring import Setup
from pipelines.stages.netpictures import FILTERED
from pipelines.stages.netshow import layer_facts
from pipelines.stages.serving_samples import Floats


class Seen(NamedTuple):
    """A PNG file, and what is on it in words."""

    png: bytes
    told: str


def table(setup: Setup, net: Net) -> dict[str, Any]:
    """The layers at a batch of one, as `cortado show NET --json` has them, their sums, and which of them have filters.

    `net` is the part of it that answers: only its weights are there.
    """
    whole = dataclasses.replace(setup, blobs=None).net(1)  # type: ignore[arg-type]
    rows = net_table.rows(whole)
    sums = net_table.totals(whole, rows)
    return {
        "layers": [layer_facts(row) for row in rows],
        "filters": list(filtered(net)),
        "parameters": sums.parameters,
        "statistics": sums.statistics,
        "multiply_adds": sums.multiply_adds,
        "uncounted": list(sums.uncounted),
        "blob_bytes": sums.blob_bytes,
        "parameter_bytes": sums.parameter_bytes,
    }


def filtered(net: Net) -> dict[str, Layer]:
    """Layers that have filters, in the order of the net."""
    return {layer.spec.name: layer for layer in net.layers if layer.spec.type in FILTERED and layer.blobs}


def filters(net: Net, name: str, most: int) -> Seen:
    """The filters of a layer, by default of the first that has some; ValueError where there is none of that name."""
    layers = filtered(net)
    name = name or next(iter(layers), "")
    if name not in layers:
        told = f"the net has no convolution {quoted(name)}{hint(name, layers)}" if layers else "the net has none"
        raise ValueError(told)
    values = layers[name].blobs[0].detach().float().cpu().numpy()
    drawn = pictures.filters(values, most=most, title=None)
    outputs, channels = values.shape[:2]
    told = f"{name}: {pictures.of(drawn.shown[0], outputs, 'filter')} of {pictures.sides(values)}"
    if channels == pictures.COLOURS:
        told += ", in colour"
    elif channels > 1:
        told += f" (rows), {pictures.of(drawn.shown[1], channels, 'channel')} (columns)"
    return Seen(image.encode(drawn.picture, "png"), told)


def maps(values: Floats, name: str, most: int) -> Seen:
    """The maps (channels, ..) of one blob of one picture."""
    drawn = pictures.responses(values, most=most, title=None)
    if values.ndim < 2:
        return Seen(image.encode(drawn.picture, "png"), f"{name}: {pictures.of(drawn.shown[0], values.size, 'number')}")
    sides = pictures.sides(values.reshape(1, len(values), *values.shape[1:]))
    told = f"{name}: {pictures.of(drawn.shown[0], len(values), 'map')} of {sides}"
    silent = pictures.silent(values)
    told += f"; {silent:,} of the {len(values):,} are flat" if silent else ""
    return Seen(image.encode(drawn.picture, "png"), told)
