"""`cortado check`: is this list, data set, table of features, prototxt, mean or ray_config.yaml right? Gradients?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pipelines.job import Job, Progress, counted, say, table

if TYPE_CHECKING:
    from ops.records.image_list import ImageList

SHOWN = 10  # problems that are told one by one
OF_GRADIENTS = ("layer", "phase", "input", "batch", "weights", "tolerance", "code")  # options of --gradients


@dataclass(frozen=True, kw_only=True)
class Check(Job):
    """Check a list, a data set, features, a prototxt, a mean file or ray_config.yaml without running anything with it;
    with --gradients, the backward of every layer of a net.

    Of a solver it says what its numbers mean for its data: iterations an epoch, epochs until the rate falls and in all,
    images a test; and what is unusual, as a list sorted by class.

    --gradients compares what the backward gives with centred numerical differences, in double precision, blob by blob;
    on a machine with a GPU also what CPU and GPU compute. It is meant for layers of your own: docs/add-a-layer.md.

    Example: cortado check net.prototxt --gradients --code my_layers.py
    """

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """what to check; its kind is recognized from its content"""
    root: str = ""
    """for a list: put before every path; the files are looked for"""
    labels: str = "caffe"
    """for a list: caffe, int, float or vector:N"""
    sample: int | None = None
    """check only N records of each shard, or N files of a list, evenly spread"""
    gradients: bool = False
    """for a net (a prototxt, a .caffemodel, a name of the zoo): check the gradients of its layers"""
    layer: str | None = None
    """--gradients: of this layer only"""
    phase: Literal["TRAIN", "TEST"] = "TRAIN"
    """--gradients: of the net of this phase"""
    input: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="CxHxW")] = ()
    """--gradients: shape of the first input, as 3x227x227, or NAME=2x3x227x227 of any input; may be given several
    times"""
    batch: int | None = None
    """--gradients: size of the batch; default: the file's, at most 2"""
    weights: str | None = None
    """--gradients: .caffemodel or .h5, several with commas; default: the fillers' values"""
    tolerance: float = 1e-4
    """--gradients: largest relative error of a gradient"""
    code: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE|DIR")] = ()
    """--gradients: Python file or folder with layers of your own; may be given several times"""

    def __post_init__(self) -> None:
        if self.sample is not None and self.sample < 1:
            raise ValueError(f"--sample {self.sample}: expected 1 or more")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"--batch {self.batch}: expected 1 or more")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"--tolerance {self.tolerance:g}: expected more than 0, less than 1")
        given = [name for name in OF_GRADIENTS if getattr(self, name) != getattr(type(self), name)]
        if given and not self.gradients:
            raise ValueError(f"--{given[0]} goes with --gradients")

    def run(self) -> dict[str, Any]:
        if not self.gradients and not self.path.exists():
            raise FileNotFoundError(2, "No such file or folder", str(self.path))
        kind = "gradients" if self.gradients else kind_of(self.path)
        found: dict[str, Any] = getattr(self, f"check_{kind}")()
        problems, warnings = found.pop("problems", []), found.pop("warnings", [])
        for word, told in (("problem", problems), ("warning", warnings)):
            for text in told[:SHOWN]:
                say(f"{word}: {text}")
            if len(told) > SHOWN:
                say(f"{word}: {len(told) - SHOWN:,} more")
        verdict = {"path": str(self.path), "kind": kind, "ok": not problems}
        return {**verdict, **found, "problems": problems, "warnings": warnings}

    def render(self, result: dict[str, Any]) -> Any:
        shown = {key: value for key, value in result.items() if key not in ("ok", "problems", "warnings", "blobs")}
        count = len(result["problems"])
        shown["verdict"] = f"{count:,} problem{'s' * (count != 1)}" if count else "right"
        if result["kind"] != "gradients":
            return table(shown)
        from rich.console import Group

        from pipelines.stages.gradients import page

        return Group(page(result), "", table({key: value for key, value in shown.items() if value not in (None, [])}))

    # -- one kind each ---------------------------------------------------------------------------------------------

    def check_gradients(self) -> dict[str, Any]:
        """The backward of every layer against numerical differences."""
        from ops import custom, user_frames
        from pipelines.stages import gradients

        with user_frames.told("", say), Progress("check", total=0, unit="layers") as progress:
            custom.load_code(self.code)

            def update(done: int, total: int) -> None:
                progress.total = total
                progress.update(done)

            return gradients.check(
                str(self.path),
                self.phase,
                shapes=self.input,
                batch=self.batch,
                weights=self.weights,
                layer=self.layer,
                tolerance=self.tolerance,
                progress=update,
            )

    def check_dataset(self) -> dict[str, Any]:
        """Every shard: checksum, count, order of keys, every record parses and decodes."""
        from cluster import config
        from pipelines.stages.checking import check_shards
        from pipelines.stages.dataset import open_dataset

        data = open_dataset(self.path)
        with Progress("check", total=data.count, unit="records") as progress:
            cluster = config.load(self.config, self.set)
            reports = check_shards(data, cluster, progress.update, sample=self.sample)
        problems = [problem for report in reports for problem in report["problems"]]
        shapes = sorted({tuple(shape) for report in reports for shape in report["shapes"]})
        return {
            "format": data.format,
            "shards": len(data.shards),
            "records": data.count,
            "checked": sum(report["checked"] for report in reports),
            "checksums": compared(problems) if data.manifest and not self.sample else "not compared",
            "shapes": ["x".join(map(str, shape)) for shape in shapes[:5]] + ["..."] * (len(shapes) > 5),
            "problems": problems + (tally(data.manifest) if data.manifest else []),
        }

    def check_features(self) -> dict[str, Any]:
        """Every part that `extract` made: checksum, count, names, finite numbers."""
        from cluster import config
        from pipelines.stages.feature_checking import check_parts, listed, strays
        from pipelines.stages.feature_table import find, shape_text

        found = find(self.path)
        assert found is not None
        with Progress("check", total=sum(one["count"] for one in found.expected if one), unit="rows") as progress:
            cluster = config.load(self.config, self.set)
            reports = check_parts(found, cluster, progress.update, sample=self.sample)
        problems = [problem for report in reports for problem in report["problems"]]
        groups = sum(report["groups"] for report in reports), max(report["largest"] for report in reports)
        return {
            "format": found.format,
            "parts": len(found.names),
            "rows": sum(report["rows"] for report in reports),
            "checked": sum(report["checked"] for report in reports),
            "checksums": compared(problems) if found.manifest and not self.sample else "not compared",
            "holds": shape_text(found.blobs),
            **({"row_groups": f"{groups[0]:,}, of up to {groups[1]:,} rows"} if found.format == "parquet" else {}),
            "problems": problems + (tally(found.manifest) if found.manifest else []) + listed(found) + strays(found),
        }

    def check_list(self) -> dict[str, Any]:
        """Odd lines, duplicates, files that are not there, classes in one lump each."""
        import numpy as np

        from ops.records.image_list import ImageList
        from pipelines.stages.paths import root_of

        listed = ImageList.read(self.path, self.labels)
        root = root_of(self.root, listed, str(self.path))
        count = min(len(listed), self.sample or len(listed))
        chosen = np.unique(np.linspace(0, len(listed) - 1, count).astype(np.int64))
        missing = [text for text in map(os.fsdecode, listed.paths(chosen)) if not os.path.isfile(whole(root, text))]
        problems = [f"{self.path}: no file {whole(root, text)}" for text in missing]
        problems += [f"{self.path}:{line + 1}: {why}" for line, why in listed.bad.items()]
        again = listed.duplicates()
        if len(again):
            told = f"{counted(len(again), 'line')} repeat a path, the first is line {int(again[0]) + 1}"
            listed.warnings.append(told)
        facts = {"lines": len(listed), "files_looked_for": len(chosen), "root": root, **label_facts(listed)}
        return {**facts, "problems": problems, "warnings": listed.warnings}

    def check_prototxt(self) -> dict[str, Any]:
        """Text of a net or a solver."""
        from ops.proto import caffe_pb2, text

        name, message = parse_as(self.path, {"net": caffe_pb2.NetParameter, "solver": caffe_pb2.SolverParameter}, text)
        if name == "net":
            return {"holds": "net", "name": message.name, "layers": len(message.layer) or len(message.layers)}
        from pipelines.stages.solver_rules import check_solver

        net = message.net or message.train_net or "inside"
        return {"holds": "solver", "net": net, **check_solver(self.path)}

    def check_mean(self) -> dict[str, Any]:
        """A BlobProto that can be a mean."""
        from ops.records import binaryproto

        values = binaryproto.read(self.path)
        return {"shape": list(values.shape), "least": float(values.min()), "greatest": float(values.max())}

    def check_weights(self) -> dict[str, Any]:
        """Weights: what they hold, numbers that are not finite, and whether they are published ones."""
        import numpy as np

        from ops import weights, zoo

        known = zoo.identify(self.path)
        problems, blobs, numbers = [], 0, 0
        with weights.read(self.path) as saved:
            layers = [layer for layer in saved.layers if layer.blobs]
            for layer in layers:
                for number, blob in layer.blobs.items():
                    if blob.problem:
                        problems.append(f"{self.path}: layer '{layer.name}' blob {number}: {blob.problem}")
                        continue
                    values = np.asarray(blob.values())
                    blobs, numbers = blobs + 1, numbers + values.size
                    if not np.isfinite(values).all():
                        problems.append(f"{self.path}: layer '{layer.name}' blob {number} holds NaN or infinite values")
        return {
            "published": known.what if known else "not known by its SHA-1",
            "net": known.net if known else None,
            "layers": len(layers),
            "blobs": blobs,
            "numbers": numbers,
            "problems": problems,
        }

    def check_config(self) -> dict[str, Any]:
        """ray_config.yaml: unknown keys, wrong values."""
        from cluster import config

        loaded = config.load(str(self.path), self.set)
        return {"address": loaded.address or "local"}


def compared(problems: list[str]) -> str:
    """How the checksums came out."""
    return "do not all match the manifest" if problems else "match the manifest"


def kind_of(path: Path) -> str:
    """What the content at a path is: dataset, features, list, prototxt, mean, weights or config."""
    from ops.records import hdf5, lmdb
    from pipelines.stages.feature_table import find

    if path.name.endswith((".caffemodel", ".caffemodel.h5")) and path.is_file():
        return "weights"
    if find(path) is not None:
        return "features"
    if path.is_dir() or hdf5.is_hdf5(path) or lmdb.is_lmdb(path):
        return "dataset"
    if path.suffix in (".yaml", ".yml"):
        return "config"
    if path.suffix in (".prototxt", ".pbtxt", ".pt"):
        return "prototxt"
    if path.suffix == ".binaryproto":
        return "mean"
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if head and b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "mean"
    words = head.split()
    if words and all(word.endswith((b".h5", b".hdf5")) for word in words[:100]):
        return "dataset"
    return "prototxt" if b"{" in head and b":" in head else "list"


def parse_as(path: Path, kinds: dict[str, Any], text: Any) -> tuple[str, Any]:
    """The first kind that the file parses as; else the error of the kind that got furthest into the file."""
    errors = []
    for name, kind in kinds.items():
        try:
            return name, text.read(path, kind)
        except ValueError as error:
            errors.append((place_of(str(error)), error))
    raise max(errors, key=lambda one: one[0])[1]


def place_of(told: str) -> tuple[int, int]:
    """(line, column) out of `file:line:column: what`."""
    import re

    match = re.search(r":(\d+):(\d+): ", told)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def whole(root: str, path: str) -> str:
    return path if not root or os.path.isabs(path) else root + path


def label_facts(listed: ImageList) -> dict[str, Any]:
    """How labels are spread, and whether classes stand in one lump each, which trains badly without a shuffle."""
    import numpy as np

    if listed.labels.dtype.kind != "i":
        width = listed.labels.shape[1] if listed.labels.ndim > 1 else 1
        return {"labels": f"{width} number{'s' * (width > 1)} each"}
    values, counts = np.unique(listed.labels, return_counts=True)
    lumps = int(np.count_nonzero(np.diff(listed.labels))) + 1
    if len(values) > 1 and lumps == len(values):
        listed.warnings.append("the list is sorted by class: convert it with --shuffle")
    spread = f"{int(counts.min()):,} to {int(counts.max()):,} lines each"
    return {"classes": f"{len(values):,} labels, {int(values.min())}..{int(values.max())}, {spread}"}


def tally(manifest: dict[str, Any]) -> list[str]:
    """listed = used + bad, records = the sum over shards."""
    told = []
    if manifest["listed"] != manifest["used"] + manifest["bad"]:
        told.append(f"manifest.json: {manifest['listed']} listed but {manifest['used']} used and {manifest['bad']} bad")
    total = sum(shard["count"] for shard in manifest["shards"])
    if manifest["records"] != total:
        told.append(f"manifest.json: {manifest['records']} records but its shards count {total}")
    return told
