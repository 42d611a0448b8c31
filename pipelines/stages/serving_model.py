"""The model that `cortado serve` hosts: all that a replica must know, and the net that answers. Knows no Ray.

A picture becomes the net's input as for `cortado classify`, so the numbers are the same.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ops import hierarchy, image
from ops.feed.record_tops import SMALL
from ops.feed.transform import Choices, cut
from ops.forward import Pieces
from ops.hierarchy import Hierarchy
from ops.layers.registry import text
from ops.names import hint, quoted
from ops.net import Net
from ops.recipe import Recipe
from ops.records.parquet import flat
from pipelines.stages import answering, serving_card
from pipelines.stages.answering import Answer
from pipelines.stages.feature_model import WANTED, Look, Model, digest_of, look_of, model_of
from pipelines.stages.feature_setup import LEAST_BATCH, Prepared
from pipelines.stages.featuring import Setup
from pipelines.stages.scoring import ten_crops
from pipelines.stages.serving_samples import Sample, samples_of

Floats = NDArray[np.float32]
NO_CHOICES = Choices(None, None, None)
ANY_SIDE = 64  # of the blank picture that shapes are looked at with, where pictures are resized anyway
KEPT_NETS = 4  # for different choices of blobs; they share one memory for the weights


@dataclass(frozen=True)
class Served:
    """What a replica must know; it travels."""

    setup: Setup
    softmax: bool  # whether one is still to be taken of the scores
    weights: tuple[Path, ...]
    digest: str  # of the weight files
    recipe: Recipe  # how a file becomes pixels
    names: tuple[str, ...]
    classes: int
    tree: Hierarchy | None
    blobs: dict[str, tuple[int, ...]]  # what can be asked for, and its shape an image
    transform: dict[str, Any]  # the same as words
    trained: dict[str, Any] | None = None  # of its run
    samples: tuple[Sample, ...] = ()
    size: int = 32  # pictures of one call
    wait: float = 0.0  # seconds that a call may wait for more of them while another one runs

    def facts(self) -> dict[str, Any]:
        """What anybody may know of the model: no paths."""
        return {
            "net": Path(self.setup.name).name if "/" in self.setup.name else self.setup.name,
            "weights": [path.name for path in self.weights],
            "weights_digest": self.digest,
            "input": {"blob": self.setup.image, "shape": list(self.setup.shape)},
            "classes": self.classes,
            "names": list(self.names),
            "hierarchy": self.tree is not None,
            "blobs": {name: list(shape) for name, shape in self.blobs.items()},
            "transform": self.transform,
            "batching": {"size": self.size, "wait_seconds": self.wait},
            "versions": self.setup.facts.get("versions", {}),
        }


# -- from a job's options ----------------------------------------------------------------------------------------------


def served(job: Any) -> Served:
    """The model of --run, or of --model and --weights; ValueError or OSError where something is wrong with it."""
    model = model_of(job)
    look = look_of(job, model)
    if look.plain:
        told = "nothing says how pictures become its numbers"
        raise ValueError(f"{model.name}: {told}: give --run DIR, a net whose layer has a transform_param, or {WANTED}")
    scores, softmax = answering.score_blob(model, job.blob)
    with tempfile.TemporaryDirectory(prefix="cortado-") as folder:
        blank = Path(folder) / "blank.png"
        blank.write_bytes(image.encode(np.zeros((*blank_size(look, model), 3), np.uint8), "png"))
        source = dataclasses.replace(answering.images_of([str(blank)]), word="pictures")
        prepared = Prepared(job, [scores], Path.cwd(), source=source)
    setup = dataclasses.replace(prepared.setup, source=None)  # type: ignore[arg-type]
    untold = [name for name in setup.labels if name in prepared.net.needed]
    if untold:
        raise ValueError(f"{model.name}: blob {quoted(scores)} needs {quoted(untold[0])}, which no picture brings")
    names, classes = names_of(job, model), setup.columns.row_bytes // 4
    answering.check_names(names, classes, str(job.labels or job.run_folder))
    return Served(
        setup=setup,
        softmax=softmax,
        weights=tuple(path.absolute() for path in model.weights),
        digest=prepared.weights,
        recipe=prepared.input.recipe,  # type: ignore[union-attr]
        names=tuple(names),
        classes=classes,
        tree=hierarchy.read(job.hierarchy, names) if job.hierarchy is not None else None,
        blobs=blobs_of(setup),
        transform={name: value for name, value in look.words.items() if value is not None},
        trained=serving_card.trained(model),
        samples=samples_of(model),
    )


def names_of(job: Any, model: Model) -> list[str]:
    if job.labels is None:
        return model.classes
    return job.labels.read_text(encoding="utf-8", errors="replace").splitlines()


def blank_size(look: Look, model: Model) -> tuple[int, int]:
    """(height, width) of pictures that fit; ValueError where nothing says how large they have to be."""
    if look.resize is not None or look.prepare is not None:
        return ANY_SIDE, ANY_SIDE
    if look.transform.mean is not None:
        return look.transform.mean.shape[1:]
    shape = model.input_shape or tuple(model.facts.get("shape") or ())
    side = look.transform.crop or (look.crop[0] if look.crop else 0)
    if side:
        return side, side
    if len(shape) != 3:
        raise ValueError(f"{model.name}: nothing says how large its pictures are: give --images-dim H,W")
    return shape[1], shape[2]


def blobs_of(setup: Setup) -> dict[str, tuple[int, ...]]:
    """Blobs that have a row for each picture and need no label -> shape an image."""
    every = dataclasses.replace(setup, blobs=None)  # type: ignore[arg-type]
    net, again = every.net(LEAST_BATCH), every.net(LEAST_BATCH + 1)
    unknown = set(setup.labels)
    for layer in net.spec.layer:
        if unknown.intersection(layer.bottom):
            unknown |= set(layer.top)
    rows = (LEAST_BATCH, LEAST_BATCH + 1)
    found = {}
    for name, shape in net.shapes.items():
        if name not in unknown and shape and (shape[0], again.shapes[name][0]) == rows:
            found[name] = tuple(flat(tuple(shape[1:])))
    return found


# -- answering ---------------------------------------------------------------------------------------------------------


class Classifier:
    """The net with its weights in this process. `look` may run in several threads, `forward` in one at a time."""

    def __init__(self, served: Served, *, device: torch.device):
        found = digest_of(list(served.weights))
        if found != served.digest:
            named = ", ".join(path.name for path in served.weights)
            raise ValueError(f"{named}: changed since the server was started; `cortado serve` again takes the new ones")
        self.served, self.setup, self.device = served, served.setup, device
        self.setup.code.load()
        self.net = self.setup.net(1)
        self.net.materialize(device, weights=list(served.weights))
        self.nets: OrderedDict[tuple[str, ...], Pieces] = OrderedDict()

    def look(self, encoded: bytes) -> Floats:
        """The input that a picture's file becomes, (crops, C, h, w); ValueError says what is wrong with it."""
        pixels = self.served.recipe.picture(encoded)
        setup = self.setup
        if setup.prepare is not None:
            planes = setup.prepare(pixels).reshape(setup.crops, -1, *setup.prepare.crop)
        else:
            planes = self.transformed(pixels)[np.newaxis]
            if setup.crop is not None:
                planes = torch.cat(ten_crops(torch.from_numpy(planes), *setup.crop)).numpy()
        if planes.shape[1:] != setup.shape:
            raise ValueError(f"becomes {text(planes.shape[1:])}, the net takes {text(setup.shape)}")
        return planes

    def transformed(self, pixels: NDArray[Any]) -> Floats:
        """(H, W, C) pixels by transform_param."""
        transform = self.setup.transform
        shape = (pixels.shape[2], *pixels.shape[:2])
        transform.check(shape)
        corner = transform.corner(shape, NO_CHOICES, 0)
        out = np.empty(transform.shape(shape), np.float32)
        planes = np.empty(out.shape, pixels.dtype)
        cut(pixels, False, corner, planes)
        if out.size > SMALL:
            transform.into(planes, (0, 0), corner, False, out, planes)
        else:
            transform.all_into(planes[np.newaxis], np.array([corner]), np.zeros(1, np.bool_), out[np.newaxis])
        return out

    def forward(self, looks: Sequence[Floats], blobs: Sequence[str]) -> dict[str, Floats]:
        """Blobs of several pictures, (n, ...) each, the mean over the crops where there are ten."""
        data = torch.from_numpy(looks[0] if len(looks) == 1 else np.concatenate(looks)).to(self.device)
        crops = self.setup.crops
        with torch.inference_mode():
            found = self.pieces(tuple(blobs))({self.setup.image: data})
            out = {}
            for name in blobs:
                values = found[name].reshape(len(looks), crops, *self.served.blobs[name])
                values = values.mean(1) if crops > 1 else values[:, 0]
                out[name] = values.to("cpu", torch.float32).contiguous().numpy()
        return out

    def pieces(self, blobs: tuple[str, ...]) -> Pieces:
        """A net that computes just these blobs, over the one memory of the weights."""
        if blobs in self.nets:
            self.nets.move_to_end(blobs)
            return self.nets[blobs]
        for name in blobs:
            if name not in self.served.blobs:
                raise ValueError(f"the net has no blob {quoted(name)}{hint(name, self.served.blobs)}")
        net: Net = self.net
        if blobs != self.setup.blobs:
            net = dataclasses.replace(self.setup, blobs=blobs).net(1)
            net.adopt(self.net)
            net.materialize(self.device, weights=[])
        self.nets[blobs] = Pieces(net)
        while len(self.nets) > KEPT_NETS:
            self.nets.popitem(last=False)
        return self.nets[blobs]

    def answers(self, looks: Sequence[Floats], top: int) -> list[Answer]:
        """The `top` best classes of every picture."""
        scores = self.forward(looks, self.setup.blobs)[self.setup.blobs[0]].reshape(len(looks), -1)
        return answering.best(scores, self.served.softmax, top, self.served.tree, [""] * len(looks))
