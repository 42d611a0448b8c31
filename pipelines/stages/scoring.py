"""What `cortado test` tests and counts: predictions against labels, class by class; ten crops an image where asked for.

One process does all of it, or several each their part of every batch: `run` is the same.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ops import net as nets
from ops import zoo
from ops.feed.feed import Feed, open_feed
from ops.names import quoted
from ops.net import Net, paths_of
from ops.parallel import Group
from ops.phases import state_of
from ops.proto.caffe_pb2 import LayerParameter
from ops.spread import spread
from ops.training import testing
from ops.training.step import set_precision
from pipelines.stages.model_facts import PICTURES, weights_of
from pipelines.stages.run_folder import read_json

MOST_CLASSES = 2000  # of a confusion matrix
NAMED = 40  # classes that the picture names
COUNTED = ("Accuracy", "SoftmaxWithLoss")  # layers with scores beside labels; the last of the first kind that there is
MIDDLE = 4  # of the ten crops

# -- what is tested ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """A net, its weights and how it is fed, as every worker takes them; `beside`: where sources are, too."""

    model: str
    weights: tuple[str, ...]
    level: int | None
    stages: tuple[str, ...]
    beside: str
    iterations: int
    oversample: bool


@dataclass(frozen=True)
class Found:
    """Of all batches: each output's means and the loss; what this process counted; the whole batch and the records."""

    means: dict[str, NDArray[np.float64]]
    loss: float
    matrix: NDArray[np.int64] | None
    batch: int
    records: int | None


def trial(job: Any) -> tuple[Trial, list[str]]:
    """What the options, or a run's folder, say is tested; the names of the classes. ValueError, OSError: what lacks."""
    model, weights, facts, beside = job.model, paths_of(job.weights), dict[str, Any](), None
    if job.run_folder is not None:
        found = read_json(job.run_folder / "model.json")
        if found is None:
            raise ValueError(f"{job.run_folder}: holds no model.json; is it the folder of a run?")
        facts = found
        weights = weights or [weights_of(job.run_folder)]
        if model is None and not facts.get("test_net"):
            raise ValueError(f"{job.run_folder}: was trained without a test net; give one with --model")
        if model is None:
            model, beside = job.run_folder / facts["test_net"], facts.get("beside")
    if model is None:
        raise ValueError("give a net to test, --model, or the folder of a run, --run")
    if not weights:
        raise ValueError("--weights: give a .caffemodel or .h5 file; untrained weights are not worth a test")
    file = zoo.resolve(model, "train_val.prototxt")
    for path in weights:
        if not path.exists():
            raise FileNotFoundError(2, "no such weights", str(path))
    names = job.classes.read_text(encoding="utf-8").splitlines() if job.classes is not None else facts.get("classes")
    tested = Trial(
        model=str(file),
        weights=tuple(map(str, weights)),
        level=job.level,
        stages=tuple(stage.strip() for stage in (job.stage or "").split(",") if stage.strip()),
        beside=beside if beside is not None and os.path.isdir(beside) else str(file.parent),
        iterations=job.iterations,
        oversample=job.oversample,
    )
    return tested, names or []


def assemble(tested: Trial) -> Net:
    """The net, still without memory; ValueError where nothing feeds it."""
    name, spec = nets.read(tested.model)
    level = tested.level if tested.level is not None else spec.state.level
    state = state_of(spec, "TEST", level=level, stages=tested.stages)
    net = nets.assemble(name, spec, state, folder=Path(tested.beside))
    check_data(net, Path(tested.model))
    return net


def run(
    tested: Trial,
    net: Net,
    group: Group,
    device: torch.device,
    each: Callable[[int, dict[str, Tensor]], None],
    *,
    threads: int | None = None,
) -> Found:
    """The test: all of each batch, or of several processes each its part. `each` gets a batch's number and outputs."""
    set_precision("fp32")
    with contextlib.ExitStack() as closing:
        net.materialize(device, weights=list(map(Path, tested.weights)))
        spread(net, group)
        feeds = feeds_for(net, closing, group, whole=tested.oversample, threads=threads)
        scores = Scores(net)
        batches = stream(feeds)
        if tested.oversample:
            batches = oversampled(net, batches, scores)

        def count(number: int, outputs: dict[str, Tensor], blobs: dict[str, Tensor]) -> None:
            if not tested.oversample:
                scores.add(blobs)
            each(number, outputs)

        found = testing.evaluate(net, batches, tested.iterations, group, each=count)
    assert found is not None
    means, loss = found
    return Found(means, loss, scores.matrix, feeds[0].batch, feeds[0].records)


def check_data(net: Net, file: Path) -> None:
    """ValueError where nothing feeds a net."""
    empty = [layer.spec for layer in net.layers if layer.spec.type in ("Input", "MemoryData")]
    if empty:
        raise ValueError(
            f"{file}: layer {quoted(empty[0].name)} ({empty[0].type}) has no data: test a net with a data layer for "
            "TEST, as a train_val.prototxt has"
        )
    if not any(layer.source for layer in net.layers):
        raise ValueError(f"{file}: has no data layer for TEST; a layer's include rule may name other stages (--stage)")


def device_of(gpu: str | None) -> torch.device:
    """The GPU that --gpu names, else the first there is, else the CPU."""
    if gpu == "none" or (gpu is None and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"--gpu {gpu}: torch finds no GPU here; --gpu none tests on the CPU")
    first = (gpu or "0").split(",")[0].strip()
    index = 0 if first == "all" else int(first) if first.isdecimal() else -1
    if not 0 <= index < torch.cuda.device_count():
        raise ValueError(f"--gpu {gpu}: expected all, none, or 0 to {torch.cuda.device_count() - 1}")
    return torch.device("cuda", index)


def feeds_for(
    net: Net, closing: contextlib.ExitStack, group: Group, *, whole: bool = False, threads: int | None = None
) -> list[Feed]:
    """A feed for each data layer, of this process's part; `whole`: pictures as they are, without crop and mirror."""
    feeds = []
    for layer in net.layers:
        if layer.source:
            spec = LayerParameter()
            spec.CopyFrom(layer.spec)
            if whole and spec.type in PICTURES:
                spec.transform_param.ClearField("crop_size")
                spec.transform_param.ClearField("mirror")
            part = (group.rank, group.world)
            feed = open_feed(spec, "TEST", folder=layer.folder, seed=0, part=part, device=net.device, threads=threads)
            closing.callback(feed.close)
            feeds.append(feed)
    return feeds


def stream(feeds: list[Feed]) -> Iterator[dict[str, Tensor]]:
    """The blobs of batch after batch."""
    while True:
        blobs: dict[str, Tensor] = {}
        for feed in feeds:
            blobs.update(next(feed).blobs)
        yield blobs


# -- ten crops ---------------------------------------------------------------------------------------------------------


def ten_crops(images: Tensor, height: int, width: int) -> list[Tensor]:
    """Top-left, top-right, bottom-left, bottom-right, centre, then the same five mirrored, as Caffe's oversample."""
    down, right = images.shape[2] - height, images.shape[3] - width
    if min(down, right) < 0:
        found = f"{images.shape[2]} x {images.shape[3]}"
        raise ValueError(f"--oversample: pictures of {found} have no crops of {height} x {width}")
    corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    crops = [images[:, :, top : top + height, left : left + width] for top, left in corners]
    return [*crops, *(crop.flip(3) for crop in crops)]


def cropped(net: Net, scores: Scores) -> str:
    """The input that takes crops of pictures; ValueError where ten crops mean nothing to a net."""
    if scores.matrix is None or not scores.one_each:
        raise ValueError("--oversample: the net has no Accuracy or SoftmaxWithLoss layer with one label an image")
    source = next((layer for layer in net.layers if layer.spec.type in PICTURES), None)
    if source is None or not source.spec.transform_param.crop_size:
        raise ValueError("--oversample: the net takes whole pictures, no layer for TEST has a crop_size")
    return source.spec.top[0]


def oversampled(net: Net, batches: Iterator[dict[str, Tensor]], scores: Scores) -> Iterator[dict[str, Tensor]]:
    """Centre crops, for the net's own outputs; on the way, the mean probabilities of all ten crops are counted."""
    name = cropped(net, scores)
    for blobs in batches:
        crops = ten_crops(blobs[name], *net.inputs[name][2:])
        total: Any = 0
        with torch.no_grad():
            for crop in crops:
                total = total + scores.probabilities(net({**blobs, name: crop.contiguous()}))
        scores.count(total / len(crops), blobs[scores.label])
        yield {**blobs, name: crops[MIDDLE].contiguous()}


# -- counts ------------------------------------------------------------------------------------------------------------


class Scores:
    """Counts of true and found classes, by the net's last Accuracy layer, else its last SoftmaxWithLoss.

    `matrix` (true class, found class) is None where the net has neither, or too many classes. Of equal scores the first
    is found; Caffe's accuracy takes such a place for wrong.
    """

    def __init__(self, net: Net):
        self.matrix: NDArray[np.int64] | None = None
        kinds = [[layer for layer in net.layers if layer.spec.type == kind] for kind in COUNTED]
        layer: Any = next((found[-1] for found in kinds if found), None)
        if layer is None:
            return
        self.blob, self.label = layer.spec.bottom[:2]
        self.axis, self.ignore = layer.axis, layer.ignore
        shape = net.shapes[self.blob]
        classes = shape[self.axis]
        self.one_each = self.axis == 1 and math.prod(shape[2:]) == 1
        makers = [one.spec.type for one in net.layers if self.blob in one.spec.top]
        self.is_softmax = bool(makers) and makers[-1] == "Softmax"
        if classes <= MOST_CLASSES:
            self.matrix = np.zeros((classes, classes), np.int64)

    def probabilities(self, blobs: dict[str, Tensor]) -> Tensor:
        return blobs[self.blob] if self.is_softmax else blobs[self.blob].float().softmax(self.axis)

    def add(self, blobs: dict[str, Tensor]) -> None:
        if self.matrix is not None:
            self.count(blobs[self.blob], blobs[self.label])

    def count(self, scores: Tensor, labels: Tensor) -> None:
        """One more batch; labels in any shape of one for each place, in order. Ignored ones do not count."""
        assert self.matrix is not None
        classes = len(self.matrix)
        found = scores.argmax(self.axis).reshape(-1)
        true = labels.reshape(-1).to(found.device).long()
        counted = (true >= 0) & (true < classes)
        if self.ignore is not None:
            counted &= true != self.ignore
        places = (true * classes + found)[counted].cpu().numpy()
        self.matrix += np.bincount(places, minlength=classes**2).reshape(classes, classes)

    def summary(self, names: list[str]) -> dict[str, Any]:
        """Accuracy over all, and of each class with what it was most often taken for."""
        if self.matrix is None:
            return {}
        rows = []
        for label, row in enumerate(self.matrix):
            others = row.copy()
            others[label] = 0
            worst = int(others.argmax())
            taken = f"{named(worst, names)} ({others[worst]:,})" if others[worst] else ""
            rows.append(
                {
                    "label": label,
                    "class": named(label, names),
                    "right": int(row[label]),
                    "of": int(row.sum()),
                    "accuracy": float(row[label] / row.sum()) if row.sum() else None,
                    "taken_for": taken,
                }
            )
        total = int(self.matrix.sum())
        return {
            "counted": total,
            "accuracy": float(np.trace(self.matrix) / total) if total else None,
            "per_class": rows,
            "matrix": self.matrix.tolist(),
        }


def named(label: int, names: list[str]) -> str:
    return names[label] if label < len(names) and names[label] else str(label)


def draw(matrix: NDArray[np.int64], path: Path, names: list[str]) -> None:
    """The confusion matrix as a picture: a row for each true class, colours are shares of the row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import PowerNorm

    classes, total = len(matrix), matrix.sum()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(16.0, 3 + 0.35 * classes)
    figure, axes = pyplot.subplots(figsize=(side, side))
    roots = PowerNorm(0.5, 0, 1)  # a share of a hundredth is seen too
    shown = axes.imshow(shares, cmap="Blues", norm=roots)
    ticks = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1]
    figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.03, label="share of the true class", ticks=ticks)
    axes.set_xlabel("taken for")
    axes.set_ylabel("true class")
    accuracy = f", {100 * np.trace(matrix) / total:.2f} % right" if total else ""
    axes.set_title(f"{total:,} counted{accuracy}")
    if classes <= NAMED:
        labels = [named(label, names) for label in range(classes)]
        turned = 90 if max(map(len, labels)) > 3 else 0
        axes.set_xticks(range(classes), labels, rotation=turned)
        axes.set_yticks(range(classes), labels)
        for i, j in np.argwhere(matrix):
            colour = "white" if shares[i, j] > 0.4 else "black"
            axes.text(j, i, f"{matrix[i, j]:,}", ha="center", va="center", fontsize=7, color=colour)
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, bbox_inches="tight", dpi=120)
    finally:
        pyplot.close(figure)


def check_picture(path: Path) -> None:
    """ValueError where no picture of that name can be drawn: better before the test than after."""
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise ValueError(f"--confusion {path}: expected a picture's name, one of .{', .'.join(sorted(kinds))}")
    folder = path.absolute().parent
    if folder.exists() and not os.access(folder, os.W_OK):
        raise ValueError(f"--confusion {path}: nothing can be written there")
