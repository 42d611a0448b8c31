"""model.json: what `test`, `classify`, `extract` and `serve` must know to feed a model as it was trained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ops.layers.registry import Layer
from ops.net import Net
from ops.solver import snapshot
from ops.training.deploy import deploy, ends
from ops.training.nets import locate
from pipelines.stages.run_folder import read_json

FORMAT = 1
PICTURES = ("Data", "ImageData", "WindowData", "MemoryData")


def model_facts(net: Net, run: Path) -> dict[str, Any]:
    """The input's blob, shape, size before the crop, mean, scale, channel order, and the classes' names."""
    source = next((layer for layer in net.layers if layer.source), None)
    if source is None:
        return {"format": FORMAT, "input": None, "classes": []}
    blob = source.spec.top[0]
    facts: dict[str, Any] = {"format": FORMAT, "net": "deploy.prototxt", "input": blob, "shape": net.inputs[blob][1:]}
    if source.spec.type in PICTURES and len(net.inputs[blob]) == 4:
        facts |= preprocessing(source, net.inputs[blob], run)
    facts["outputs"] = ends(deploy(net.spec, net.inputs))
    facts["classes"] = classes(source)
    return facts


def preprocessing(source: Layer, shape: tuple[int, ...], run: Path) -> dict[str, Any]:
    """How a picture becomes the input: resize (height, width), crop, mean, scale."""
    p, images = source.spec.transform_param, source.spec.image_data_param
    mean: Any = None
    if p.mean_file:
        file = locate(p.mean_file, source.folder)
        if file.resolve() != (run / "mean.binaryproto").resolve():
            shutil.copyfile(file, run / "mean.binaryproto")
        mean = "mean.binaryproto"
    elif p.mean_value:
        mean = list(p.mean_value)
    resize = [images.new_height, images.new_width] if images.new_height else stored_size(source)
    return {
        "resize": resize,
        "crop": p.crop_size or None,
        "mean": mean,
        "scale": p.scale,
        "channels": {1: "grey", 3: "BGR"}.get(shape[1], f"{shape[1]} planes"),
        "raw_scale": 255,  # pixels go in as 0..255
    }


def stored_size(source: Layer) -> list[int] | None:
    """Height and width of the stored pictures, from the manifest that `convert` wrote; None where there is none."""
    folder = source_folder(source)
    manifest = read_json(folder / "manifest.json") if folder is not None else None
    shape = (manifest or {}).get("shape") or []
    return list(shape[1:]) if len(shape) == 3 else None


def classes(source: Layer) -> list[str]:
    """classes.txt of the data set, in its folder, beside it, or beside its lists."""
    folder = source_folder(source)
    if folder is None:
        return []
    for place in (folder, folder.parent, folder.parent / "lists"):
        file = place / "classes.txt"
        if file.is_file():
            return file.read_text(encoding="utf-8", errors="replace").splitlines()
    return []


def source_folder(source: Layer) -> Path | None:
    """Where a data layer's records are."""
    spec = source.spec
    name = {"Data": spec.data_param.source, "ImageData": spec.image_data_param.source}.get(spec.type, "")
    if not name:
        return None
    try:
        return locate(name, source.folder)
    except FileNotFoundError:
        return None


def weights_of(run: Path) -> Path:
    """The weights to use of a run: the best where they were kept, else those of its newest snapshot."""
    best = (read_json(run / "model.json") or {}).get("best")
    if best and (run / best["weights"]).exists():
        return run / best["weights"]
    facts = read_json(run / "run.json") or {}
    prefix = Path(facts.get("prefix") or run / "snapshot")
    found = [one for each in (run / prefix.name, prefix) for one in snapshot.find_snapshots(each)]
    ours = [one for one in found if (one.record or {}).get("run") in (None, facts.get("id"))]
    if not ours:
        raise ValueError(
            f"{run}: has no weights yet: neither best.caffemodel nor a snapshot ({prefix}_iter_N.caffemodel)"
        )
    return max(ours, key=lambda one: one.iteration).model
