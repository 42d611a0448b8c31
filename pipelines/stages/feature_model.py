"""Which net, with which weights, and how pictures become its input: from a job's options, before anything is read.

A net says it itself (transform_param of its data layer), or the folder of a run does, or Caffe's own options do. Where
none of them does, raw images are refused: a wrong mean changes the numbers and nobody sees it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ops import custom, preprocess, zoo
from ops import net as nets
from ops.feed.transform import Transform
from ops.image import sides
from ops.layers.registry import find
from ops.names import quoted
from ops.phases import select, state_of
from ops.preprocess import Preprocessing
from ops.proto.caffe_pb2 import LayerParameter, NetParameter, TransformationParameter
from ops.records import binaryproto
from ops.training.nets import locate
from pipelines.stages.model_facts import PICTURES, weights_of
from pipelines.stages.run_folder import read_json

FLAGS = ("mean_file", "raw_scale", "input_scale", "channel_swap")  # options that say how pixels become numbers
WANTED = "--mean-file, --raw-scale, --input-scale or --channel-swap as for Caffe's classify.py"
# defaults of classify.py
RAW_SCALE, INPUT_SCALE, BGR, DIMS = 255.0, 1.0, (2, 1, 0), (256, 256)


@dataclass
class Model:
    """The net that is meant, filtered for TEST, its files, and what is known of it."""

    file: Path
    spec: NetParameter
    weights: list[Path]
    layer: LayerParameter  # its data layer, or its first Input
    classes: list[str]
    run: Path | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # of a run: model.json

    @property
    def name(self) -> str:
        return str(self.file)

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """(C, h, w) where the definition says it: an Input does, a data layer does not."""
        if self.layer.type != "Input" or not self.layer.input_param.shape:
            return None
        return tuple(self.layer.input_param.shape[0].dim)[1:]


def model_of(job: Any) -> Model:
    """The net of --model and --weights, or of --run. ValueError or OSError where there is none."""
    custom.load_code(job.code)
    facts: dict[str, Any] = {}
    weights, wanted = nets.paths_of(job.weights), job.model
    if job.run_folder is not None:
        found = read_json(job.run_folder / "model.json")
        if found is None:
            raise ValueError(f"{job.run_folder}: holds no model.json; is it the folder of a run?")
        facts = found
        weights = weights or [weights_of(job.run_folder)]
        wanted = wanted or job.run_folder / facts.get("net", "deploy.prototxt")
    if wanted is None:
        raise ValueError("give a net, --model, or the folder of a run, --run")
    file = zoo.resolve(wanted, "deploy.prototxt")
    _, whole = nets.read(file)
    stages = [stage.strip() for stage in (job.stage or "").split(",") if stage.strip()]
    spec = select(whole, state_of(whole, "TEST", level=job.level, stages=stages), str(file))
    if not weights and any(layer.blobs for layer in spec.layer):
        weights = [file]  # a .caffemodel is both
    if not weights:
        raise ValueError(f"--weights: give a .caffemodel or .h5 file; {file} holds none")
    for one in weights:
        if not one.exists():
            raise FileNotFoundError(2, "No such weights file", str(one))
    layer = next((layer for layer in spec.layer if find(layer.type).source), None)
    if layer is None:
        raise ValueError(f"{file}: has no data layer for TEST and no Input: nothing can be fed to it")
    return Model(file, spec, weights, layer, list(facts.get("classes") or []), job.run_folder, facts)


def digest_of(paths: list[Path]) -> str:
    """A checksum of the files' bytes."""
    total = xxhash.xxh3_128()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 24):
                total.update(piece)
    return total.hexdigest()


# -- how a picture becomes the input -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What is done to a picture: resized to (height, width), then by `transform`, or in its place by `prepare`."""

    transform: Transform
    resize: tuple[int, int] | None = None
    prepare: Preprocessing | None = None
    crop: tuple[int, int] | None = None  # of ten crops that are cut of each whole picture
    gray: bool = False
    words: dict[str, Any] = field(default_factory=dict)  # the same, for the manifest

    @property
    def plain(self) -> bool:
        """Whether numbers go in as they are."""
        return not self.words


def look_of(job: Any, model: Model) -> Look:
    """As the options say, or the run, or the net itself; a plain one where none of them says anything."""
    given = [name for name in FLAGS if getattr(job, name) is not None]
    size = dims(job.images_dim)
    if given:
        return by_flags(job, model, size)
    if model.facts:
        return of_run(job, model, size)
    if model.layer.type in PICTURES or model.layer.HasField("transform_param"):
        return of_layer(job, model, size)
    if size is not None or job.oversample:
        option = "--images-dim" if size is not None else "--oversample"
        raise ValueError(f"{option} does not say how pixels become numbers, nor does {model.name}: give {WANTED}")
    return Look(Transform(TransformationParameter(), train=False))


def dims(word: str | None) -> tuple[int, int] | None:
    """256,256 -> (256, 256)"""
    if word is None:
        return None
    parts = word.replace("x", ",").split(",")
    if len(parts) > 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--images-dim {word}: expected height,width as 256,256")
    return sides([int(part) for part in parts * (3 - len(parts))][:2])


def by_flags(job: Any, model: Model, size: tuple[int, int] | None) -> Look:
    """Caffe's classify.py: its options, and its defaults for those that are not given."""
    crop_size = int(model.layer.transform_param.crop_size)
    shape = model.input_shape or tuple(model.facts.get("shape") or ())
    crop = shape[1:3] if len(shape) == 3 else (crop_size,) * 2 if crop_size else size
    if crop is None or len(crop) != 2:
        raise ValueError(f"{model.name}: does not say how large its input is: give --images-dim, or crop_size in it")
    resize = size or DIMS
    if resize[0] < crop[0] or resize[1] < crop[1]:
        told, wanted = (f"{one[0]},{one[1]}" for one in (resize, crop))
        where = "--images-dim" if size else "--images-dim, by default"
        raise ValueError(f"{where} {told}: smaller than the net's input of {wanted}; give --images-dim {wanted}")
    swap = BGR if job.channel_swap is None else swap_of(job.channel_swap)
    channels = shape[0] if len(shape) == 3 else 1 if job.gray else 3
    mean = None
    if job.mean_file is not None:
        try:
            mean = preprocess.fitting_mean(preprocess.read_mean(job.mean_file), (channels, *crop))
        except ValueError as error:
            raise ValueError(f"--mean-file {job.mean_file}: {error}") from None
    raw = RAW_SCALE if job.raw_scale is None else job.raw_scale
    scale = INPUT_SCALE if job.input_scale is None else job.input_scale
    prepare = Preprocessing(crop, resize, swap, raw, mean, scale, job.oversample)
    words = {
        "images_dim": list(resize),
        "crop": list(crop),
        "channel_swap": list(swap),
        "raw_scale": raw,
        "mean": None if mean is None else mean.ravel().tolist() if mean.size <= 4 else digest_array(mean),
        "input_scale": scale,
        "oversample": job.oversample,
    }
    return Look(plain_transform(), prepare=prepare, gray=job.gray or channels == 1, words=words)


def swap_of(word: str) -> tuple[int, ...]:
    parts = [part.strip() for part in word.split(",")]
    if not all(part.isdecimal() for part in parts) or sorted(map(int, parts)) != list(range(len(parts))):
        raise ValueError(f"--channel-swap {word}: expected an order of the channels, as 2,1,0")
    return tuple(map(int, parts))


def plain_transform() -> Transform:
    return Transform(TransformationParameter(), train=False)


def of_run(job: Any, model: Model, size: tuple[int, int] | None) -> Look:
    """As the run's model.json says that the model was trained."""
    facts = model.facts
    if "channels" not in facts:
        raise ValueError(f"{model.run}: its model was not trained on pictures; give its numbers, as HDF5")
    param = TransformationParameter(scale=facts.get("scale") or 1.0, crop_size=facts.get("crop") or 0)
    mean = None
    if isinstance(facts.get("mean"), str):
        assert model.run is not None
        mean = binaryproto.read(model.run / facts["mean"])
    elif facts.get("mean"):
        param.mean_value.extend(facts["mean"])
    resize = size or (tuple(facts["resize"]) if facts.get("resize") else None)
    return transformed(job, param, mean, resize, gray=job.gray or facts["channels"] == "grey")


def of_layer(job: Any, model: Model, size: tuple[int, int] | None) -> Look:
    """As the net's own data layer says."""
    layer = model.layer
    mean = None
    if layer.transform_param.mean_file:
        try:
            mean = binaryproto.read(locate(layer.transform_param.mean_file, model.file.parent))
        except FileNotFoundError as error:
            told = f"{model.name}: layer {quoted(layer.name)}: mean_file: {error.strerror}"
            raise FileNotFoundError(2, told) from None
    images = layer.image_data_param
    if size is None and images.new_height and images.new_width:
        size = (images.new_height, images.new_width)
    gray = job.gray or (layer.type == "ImageData" and not images.is_color) or layer.transform_param.force_gray
    gray = gray or (model.input_shape or (0,))[0] == 1
    return transformed(job, layer.transform_param, mean, size, gray=gray)


def transformed(
    job: Any, param: TransformationParameter, mean: Any, resize: tuple[int, int] | None, *, gray: bool
) -> Look:
    """A Look by transform_param; with --oversample the picture stays whole until it is a tensor."""
    used = TransformationParameter()
    used.CopyFrom(param)
    crop = None
    if job.oversample:
        if not param.crop_size:
            raise ValueError("--oversample: ten crops need a crop_size, and the net takes whole pictures")
        crop = (int(param.crop_size),) * 2
        used.ClearField("crop_size")
        used.ClearField("mirror")
    words = {
        "resize": list(resize) if resize else None,
        "crop": int(param.crop_size) or None,
        "mean": digest_array(mean) if mean is not None else list(param.mean_value) or None,
        "scale": param.scale,
        "mirror": param.mirror,
        "gray": gray,
        "oversample": job.oversample,
    }
    return Look(Transform(used, train=False, mean=mean), resize, crop=crop, gray=gray, words=words)


def digest_array(values: Any) -> str:
    """A checksum in place of a mean image."""
    return f"{'x'.join(map(str, values.shape))} {xxhash.xxh3_64(np.ascontiguousarray(values).tobytes()).hexdigest()}"
