"""Label smoothing and class weights of the SoftmaxWithLoss layers of a net that is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ops.feed.feed import Feed
from ops.feed.record_tops import RecordTops
from ops.feed.row_tops import RowTops
from ops.layers.loss import SoftmaxWithLoss
from ops.names import quoted
from ops.net import Net

BALANCED = "balanced"


def smooth(net: Net, share: float) -> None:
    """Spread `share` of every label over all classes."""
    if not 0 <= share < 1:
        raise ValueError(f"label smoothing {share:g}: expected a share from 0 to below 1")
    if share:
        for layer in losses(net, "label smoothing"):
            layer.smoothing = share


def weigh(net: Net, wanted: str, feeds: Mapping[str, Feed]) -> dict[str, list[float]]:
    """Give each class a weight: those in a file, or `balanced`: N / (classes * count), from the feeds' labels.

    The weights, by layer.
    """
    found = losses(net, "class weights")
    given = None if wanted == BALANCED else read(Path(wanted))
    for layer in found:
        name, classes = layer.spec.name, net.shapes[layer.spec.bottom[0]][layer.axis]
        weights = given if given is not None else balanced(labels_of(layer, feeds), classes, layer.ignore)
        if len(weights) != classes:
            raise ValueError(f"{wanted}: has {len(weights)} weights, layer {quoted(name)} has {classes} classes")
        layer.class_weights = torch.tensor(weights, dtype=torch.float32, device=net.device)
    return {layer.spec.name: layer.class_weights.tolist() for layer in found if layer.class_weights is not None}


def losses(net: Net, what: str) -> list[SoftmaxWithLoss]:
    found = [layer for layer in net.layers if isinstance(layer, SoftmaxWithLoss)]
    if not found:
        raise ValueError(f"{net.name}: {what} is for SoftmaxWithLoss, and there is no such layer")
    return found


def read(file: Path) -> list[float]:
    """A weight a line, class 0 first; empty lines and what follows a # do not count."""
    weights = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            weights.append(float(text))
        except ValueError:
            raise ValueError(f"{file}:{number}: found {quoted(text)}, expected the weight of a class") from None
        if not (math.isfinite(weights[-1]) and weights[-1] >= 0):
            raise ValueError(f"{file}:{number}: a weight of {text}; expected a number from 0 on")
    if not any(weights):
        raise ValueError(f"{file}: holds no weight above 0")
    return weights


def balanced(labels: NDArray[np.int64], classes: int, ignore: int | None = None) -> list[float]:
    """N / (classes * count) for each class, which makes the mean weight of a record 1.

    Only classes that have records count; the others never come up, and weigh 0.
    """
    kept = labels if ignore is None else labels[labels != ignore]
    strays = kept[(kept < 0) | (kept >= classes)]
    if len(strays):
        raise ValueError(f"class weights: label {strays[0]} is none of the {classes} classes (0 to {classes - 1})")
    if not len(kept):
        raise ValueError("class weights: no record has a label that counts")
    counts = np.bincount(kept, minlength=classes)
    present = np.count_nonzero(counts)
    return [float(len(kept) / (present * count)) if count else 0.0 for count in counts]


def labels_of(layer: SoftmaxWithLoss, feeds: Mapping[str, Feed]) -> NDArray[np.int64]:
    """Every label of the records that a loss gets its labels from, each record once."""
    blob = layer.spec.bottom[1]
    tops = next((feed.tops for feed in feeds.values() if blob in feed.shapes), None)
    if isinstance(tops, RecordTops) and blob == tops.tops[1]:
        found = tops.source.labels()
    elif isinstance(tops, RowTops):
        found = tops.table.column(blob)
    else:
        raise ValueError(
            f"layer {quoted(layer.spec.name)}: its labels {quoted(blob)} are not those of a data layer: balanced class "
            "weights cannot count them; give a file"
        )
    return np.asarray(found).ravel().astype(np.int64)
