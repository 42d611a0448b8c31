"""From a job's options to all that a worker needs: the input, the net's shapes, the columns of the output."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from ops import custom
from ops.feed.record_tops import planes_of
from ops.feed.source import Example
from ops.inputs import listing, recognize
from ops.layers.registry import text
from ops.names import quoted
from ops.net import Net
from ops.proto.caffe_pb2 import NetParameter
from ops.recipe import Recipe
from ops.records.features import MOST_AXES
from ops.records.image_list import ImageList
from ops.records.parquet import Columns
from ops.training.nets import locate
from pipelines.stages.feature_model import WANTED, Look, Model, digest_of, look_of, model_of
from pipelines.stages.feature_sources import Input, ListedInput, MemoryInput, RecordInput, Tolerant
from pipelines.stages.featuring import Setup, item_shape
from pipelines.stages.output import read_manifest, write_json
from pipelines.stages.paths import root_of
from pipelines.stages.plan import Plan, row_type, shard_count
from pipelines.stages.run_folder import net_digest

RECORDS = ("dataset", "lmdb", "leveldb", "hdf5")
BATCH = {"cpu": 32, "cuda": 256}  # images of one forward
SMALL_PART, MANY_PARTS = 1024, 64  # images, parts
LEAST_BATCH = 2  # at which shapes are looked at: a blob whose first axis is not the batch shows


@dataclass
class Source:
    """An input as it was found: a list, or the records of a database."""

    word: str
    listed: ImageList | None
    found: recognize.Found
    count: int
    digest: str
    root: str = ""


def source_of(job: Any, model: Model) -> Source:
    """What --input names, or the net's own data layer."""
    word, root, rebase = job.input, job.root, job.rebase
    if word is None:
        word, root = own_source(model)
    found = recognize.find(word)
    if found.kind in RECORDS:
        found.files = [file.absolute() for file in found.files]  # workers run in other folders
        return Source(word, None, found, 0, files_digest(found))
    listed = listing.open_listing(word, labels=job.label_kind, rebase=rebase)
    return Source(word, listed, found, len(listed), listed.digest(), root_of(root, listed, word))


def own_source(model: Model) -> tuple[str, str]:
    """(source, root) of the net's Data, ImageData or HDF5Data layer; ValueError where it has none."""
    layer = model.layer
    names = {"Data": layer.data_param.source, "ImageData": layer.image_data_param.source}
    names["HDF5Data"] = layer.hdf5_data_param.source
    if not names.get(layer.type):
        raise ValueError(f"--input: give the images; {model.name} has no data of its own ({layer.type})")
    place = locate(names[layer.type], model.file.parent)
    return str(place), layer.image_data_param.root_folder if layer.type == "ImageData" else ""


def files_digest(found: recognize.Found) -> str:
    """What tells one database from another without reading it: checksums of shards that convert made, else sizes and
    times."""
    total = xxhash.xxh3_128()
    for file in found.files:
        manifest = read_manifest(file if file.is_dir() else file.parent) or read_manifest(file.parent)
        if manifest:
            total.update("".join(str(one["checksum"]) for one in manifest["shards"]).encode())
            continue
        for one in sorted(file.iterdir()) if file.is_dir() else [file]:
            if one.name not in ("lock.mdb", "LOCK", "LOG", "LOG.old"):
                told = one.stat()
                total.update(f"{one.name} {told.st_size} {told.st_mtime_ns}".encode())
    return total.hexdigest()


class Prepared:
    """An extraction that is ready to run: the net on the CPU with its weights, the input, the plan."""

    def __init__(
        self, job: Any, blobs: Sequence[str], folder: Path, *, source: Source | None = None, kind: str = "cpu"
    ):
        """`folder`: the plan's; `source`: in place of the job's --input; `kind`: of the device, cpu or cuda.

        ValueError or OSError for what is wrong.
        """
        self.job, self.blobs = job, list(blobs)
        self.model = model_of(job)
        self.look: Look = look_of(job, self.model)
        self.source = source or source_of(job, self.model)
        self.weights = digest_of(self.model.weights)
        self.batch = job.batch_size or max(1, BATCH[kind] // (10 if job.oversample else 1))
        self.input, self.plan = self.planned(folder)
        self.like = self.first_record()
        self.setup = self.set_up()
        self.net = self.loaded()

    # -- the input -------------------------------------------------------------------------------------------------

    def planned(self, folder: Path) -> tuple[Input, Plan]:
        """The input as this process reads it, and which of its records make which part."""
        source, look, job = self.source, self.look, self.job
        found: Input
        if source.listed is None:
            blob = self.model.layer.top[0]
            options: dict[str, Any] = {"gray": look.gray, "resize": look.resize, "max_pixels": job.max_pixels}
            found = RecordInput(source.found, blob=blob, **options)
            reader = found.open()
            source.count = len(reader)
            reader.close()
            if job.repeat:
                found = replace(found, repeated=job.limit)
            labels: Any = np.zeros(0, np.int32)
        else:
            resize = ("exact", *look.resize) if look.resize is not None else None
            recipe = Recipe(
                root=source.root, gray=look.gray, resize=resize, all_formats=True, max_pixels=job.max_pixels
            )
            found = MemoryInput(source.listed, self.wanted(), recipe)
            labels = source.listed.labels
        if not source.count:
            raise ValueError(f"{source.word}: no images in it")
        count = self.wanted()
        shards = part_count(job.shards, count, job.format)
        return found, Plan(folder, count, shards, source.digest, self.content(), row_type(labels))

    def wanted(self) -> int:
        """How many images, those that come again with --repeat too."""
        there, limit = self.source.count, self.job.limit
        return there if limit is None else limit if self.job.repeat else min(there, limit)

    def content(self) -> dict[str, Any]:
        """What decides the numbers, for a resume to compare."""
        job, words = self.job, self.look.words
        return {
            "model": net_digest(self.model.spec),
            "weights": self.weights,
            "blobs": ",".join(self.blobs),
            **{name: getattr(job, name) for name in ("pool", "dtype", "format")},
            "labels": job.label_kind,
            "code": ",".join(map(str, job.code)),
            **{name: value for name, value in words.items() if value is not None},
            "root": self.source.root,
        }

    def write_plan(self) -> None:
        """What the workers read of it, and what a resume must match."""
        if self.source.listed is not None:
            there = self.source.count
            self.plan.write(self.source.listed, lambda places: places % there, 1)
            return
        self.plan.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.plan.folder / "plan.json", self.plan.facts())

    def for_workers(self) -> Setup:
        """The setup with an input that every worker can open."""
        if isinstance(self.input, MemoryInput):
            return replace(self.setup, source=ListedInput(self.plan, self.input.recipe))
        return self.setup

    def first_record(self) -> Example:
        """The first good record, before the transform; ValueError where there is none, or nothing says what to do."""
        reader = self.input.open()
        self.row_shape: tuple[int, ...] | None = getattr(reader, "row_shape", None)
        try:
            tolerant = Tolerant(reader, self.plan.count, self.look.transform, self.look.prepare)
        except ValueError as error:
            raise ValueError(f"{self.source.word}: {error}") from error
        like, name = tolerant.like, tolerant.name(0)
        tolerant.close()
        assert like is not None
        if self.look.plain and like.pixels.dtype == np.uint8:
            raise ValueError(
                f"{self.source.word}: holds raw images, and nothing says how they become numbers: give --run DIR, a "
                f"net whose data layer has a transform_param, or {WANTED}"
            )
        try:
            self.look.transform.check(planes_of(like))
        except ValueError as error:
            raise ValueError(f"{name}: {error}; --images-dim H,W resizes") from None
        return like

    def shape(self) -> tuple[int, ...]:
        """(C, h, w) of what goes through the net."""
        planes = planes_of(self.like)
        if self.row_shape is not None and self.look.plain:
            return self.row_shape
        if self.look.prepare is not None:
            return (planes[0] // self.look.prepare.crops, *planes[1:])
        shape = self.look.transform.shape(planes)
        return (shape[0], *self.look.crop) if self.look.crop is not None else tuple(shape)

    # -- the net ---------------------------------------------------------------------------------------------------

    def set_up(self) -> Setup:
        """The Setup; shapes of blobs are looked at on a net without memory."""
        model, layer, shape, label = self.model, self.model.layer, self.shape(), tuple(np.shape(self.like.label))
        wanted = model.input_shape or tuple(model.facts.get("shape") or ()) or None
        if wanted is not None and wanted != shape:
            raise ValueError(
                f"{self.source.word}: images become {text(shape)}, the input of {model.name} is {text(wanted)}: "
                f"{hint(shape, wanted)}"
            )
        spec = NetParameter()
        spec.CopyFrom(model.spec)
        for one in spec.layer:
            del one.blobs[:]
        columns = Columns(self.input.column, label, isinstance(self.like.label, int | np.integer), {}, self.job.dtype)
        made = Setup(
            name=model.name,
            spec=spec.SerializeToString(),
            folder=model.file.parent.absolute(),
            shape=shape,
            image=layer.top[0],
            labels={} if layer.type == "Input" else dict.fromkeys(layer.top[1:], label),
            source=self.input,
            cuts=self.plan.cuts,
            transform=self.look.transform,
            prepare=self.look.prepare,
            crop=self.look.crop,
            blobs=tuple(self.blobs),
            pool=self.job.pool,
            columns=columns,
            batch=self.batch,
            code=custom.pack(self.job.code),
        )
        shapes = self.shapes(made)
        return replace(made, columns=replace(columns, blobs=shapes), facts=self.facts(shapes))

    def shapes(self, setup: Setup) -> dict[str, tuple[int, ...]]:
        """What is kept of each blob an image; ValueError for a blob that is not one value or array an image."""
        net = setup.net(LEAST_BATCH)
        fed = {setup.image, *setup.labels, *(top for _, tops in net.made for top in tops)}
        unfed = [name for name in net.inputs if name in net.needed and name not in fed]
        if unfed:
            raise ValueError(
                f"{self.model.name}: takes {', '.join(map(quoted, unfed))} beside images, which nobody gives"
            )
        again = setup.net(LEAST_BATCH + 1)
        out = {}
        for name in self.blobs:
            shape = net.shapes[name]
            if not shape or (shape[0], again.shapes[name][0]) != (LEAST_BATCH, LEAST_BATCH + 1):
                told = f"of shape {text(shape)} for {LEAST_BATCH} images" if shape else "one value for the whole batch"
                raise ValueError(f"{self.model.name}: blob {quoted(name)} is {told}: it has no row for each image")
            out[name] = item_shape(shape, self.job.pool)
            if self.job.format == "lmdb" and len(out[name]) > MOST_AXES:
                raise ValueError(
                    f"blob {quoted(name)} has {len(out[name])} axes an image, a Datum {MOST_AXES}: use --format parquet"
                )
        return out

    def facts(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        """What the files' metadata and the manifest say of where the numbers come from."""
        versions = {"cortado": metadata.version("cortado"), "torch": torch.__version__}
        return {
            "net": self.model.name,
            "weights": [str(path) for path in self.model.weights],
            "weights_digest": self.weights,
            "blobs": {name: list(shape) for name, shape in shapes.items()},
            "pool": self.job.pool,
            "dtype": self.job.dtype,
            "transform": self.look.words,
            "options": self.options(),
            "input": os.path.abspath(self.source.word),
            "root": self.source.root,
            "versions": versions,
        }

    def options(self) -> dict[str, Any]:
        """The options that another picture needs to get its features from this net (stages/lookalikes.py)."""
        job = self.job
        names = (
            "oversample",
            "images_dim",
            "raw_scale",
            "input_scale",
            "channel_swap",
            "gray",
            "stage",
            "level",
            "pool",
        )
        mean = job.mean_file
        return {
            **{name: getattr(job, name) for name in names},
            "model": str(self.model.file.absolute()),
            "weights": ",".join(str(path.absolute()) for path in self.model.weights),
            "code": [str(path.absolute()) for path in job.code],
            "run_folder": str(job.run_folder.absolute()) if job.run_folder is not None else None,
            "mean_file": os.path.abspath(mean) if mean is not None and os.path.exists(mean) else mean,
        }

    def loaded(self) -> Net:
        """The net on this machine's CPU with its weights: they are read once, and whether they fit is told at once."""
        net = self.setup.net(1)
        net.materialize(torch.device("cpu"), weights=self.model.weights)
        kept = net.report.kept if net.report is not None else ()
        if kept:
            named = ", ".join(map(quoted, kept[:3])) + (f" and {len(kept) - 3} more" if len(kept) > 3 else "")
            files = ", ".join(map(str, self.model.weights))
            told = f"no weights for layer {named} of {self.model.name}: their numbers would be chance"
            raise ValueError(f"{files}: {told}")
        return net


def part_count(shards: str, count: int, format: str) -> int:
    """--shards N or auto, from the input alone: parts of 1,024 images until there are 64, so that workers end together;
    of larger inputs 4,096 each. LMDBs as those of `convert`: a small one is one folder, which Caffe reads."""
    few = shard_count(shards, count)
    return few if shards != "auto" or format == "lmdb" else max(few, min(MANY_PARTS, -(-count // SMALL_PART)))


def hint(shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """What to do about a shape that does not fit."""
    if len(shape) == len(wanted) == 3 and shape[0] != wanted[0]:
        return "--gray reads grey pictures" if wanted[0] == 1 else f"it takes {wanted[0]} channels"
    return f"--images-dim {','.join(map(str, wanted[1:]))} resizes"
