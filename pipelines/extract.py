"""`cortado extract`: any blob of a net, for every image, as a table."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pipelines.job import Progress, counted, duration, log, run_log, say, share, size, table
from pipelines.stages.net_options import NetOptions

if TYPE_CHECKING:
    from pipelines.stages.feature_output import FeatureOutput
    from pipelines.stages.feature_setup import Prepared


@dataclass(frozen=True, kw_only=True)
class Extract(NetOptions):
    """Run a net over images and keep some of its blobs, a row an image, as Caffe's extract_features: on all CPUs or
    GPUs, each image once whatever dies meanwhile.

    How pixels become numbers is the net's own transform_param, a run's, or what --mean-file ... say as for Caffe's
    classify.py.

    Example: cortado extract --model caffenet --weights bvlc_reference_caffenet.caffemodel --blobs fc7,prob --input
    photos/ --mean-file 104,117,123 --out features
    """

    blobs: str
    """which blobs, with commas: fc7,prob"""
    input: str | None = None
    """shards, LMDB, LevelDB, HDF5, image list, folder, Parquet with images, tar, ...; default: the net's own data"""
    out: Path
    """folder to make; the same command again goes on where it stopped"""
    format: Literal["parquet", "lmdb", "hdf5"] = "parquet"
    """parquet: a table; lmdb: float Datums as extract_features writes them; hdf5: a dataset a blob"""
    pool: Literal["none", "mean", "max"] = "none"
    """what becomes of the places of a spatial blob: all stay, their mean, their maximum"""
    dtype: Literal["float32", "float16"] = "float32"
    """how numbers are stored"""
    root: str = ""
    """put before every path of a list"""
    labels: str = "caffe"
    """how a list's labels are read: caffe (as atoi does), int, float, vector:N"""
    rebase: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="OLD=NEW")] = ()
    """replace the beginning of paths that somebody else wrote; may be given several times"""
    limit: int | None = None
    """only the first N images"""
    repeat: bool = False
    """where --limit asks for more images than there are: begin anew behind the last one, as extract_features does"""
    shards: str = "auto"
    """parts to write; auto: one for each 1,024 images, of large inputs and of LMDBs for each 4,096"""
    max_bad: str = "1%"
    """share of bad images above which the job fails, as 1% or 0.01"""
    overwrite: bool = False
    """replace what an earlier run with other options made"""

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self.max_bad, "--max-bad")
        if self.shards != "auto" and not (self.shards.isdigit() and int(self.shards) > 0):
            raise ValueError(f"--shards {self.shards}: expected a whole number from 1, or auto")
        if self.repeat and self.limit is None:
            raise ValueError("--repeat goes with --limit N: how many images in all?")
        if not self.names:
            raise ValueError("--blobs: expected names of blobs, with commas")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"--blobs {self.blobs}: names a blob twice")
        taken = {"key", "path", "label"}.intersection(self.names)
        if taken and self.format != "lmdb":
            raise ValueError(f"--blobs {min(taken)}: the table has a column of that name already")
        if self.format == "lmdb" and self.dtype != "float32":
            raise ValueError("--dtype float16: a Datum holds float32 only; use --format parquet or hdf5")

    @property
    def label_kind(self) -> str:
        return self.labels

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.blobs.split(",") if name.strip()]

    # -- the work --------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        from pipelines.stages.feature_output import FeatureOutput
        from pipelines.stages.feature_setup import Prepared
        from pipelines.stages.output import FULL, NoSpaceError

        began = time.monotonic()
        prepared = Prepared(self, self.names, self.out.absolute() / ".run" / "plan")
        output = FeatureOutput(self.out.absolute(), prepared.plan, self.format, self.names)
        output.refuse_foreign()
        with run_log(output.run), output.held():
            log.info(
                "input %s: %d images, in %d parts", prepared.source.word, prepared.plan.count, prepared.plan.shards
            )
            log.info("options: %s", json.dumps(prepared.plan.options))
            state = output.take_up(overwrite=self.overwrite)
            if state == "complete":
                return self.complete(output)
            try:
                if state == "new":
                    prepared.write_plan()
                facts = self.build(output, prepared)
                self.judge(output)
                manifest = output.commit({"features": prepared.setup.facts})
            except OSError as error:
                if error.errno not in FULL or isinstance(error, NoSpaceError):
                    raise
                raise output.no_space() from error
        return self.result(manifest, output, {**facts, "seconds": round(time.monotonic() - began, 3)})

    def build(self, output: FeatureOutput, prepared: Prepared) -> dict[str, Any]:
        """Make the parts that are not there yet, on Ray Data; what the run was like."""
        from cluster import config
        from pipelines.stages.feature_build import build

        skipped = len(output.finished)
        if skipped:
            say(f"{self.out}: {skipped} of {counted(output.plan.shards, 'part')} finished already and skipped")
        allowed = share(self.max_bad, "--max-bad") * output.plan.count
        with Progress("extract", total=output.plan.count, start=output.progress()) as progress:
            cluster = config.load(self.config, self.set)
            facts = build(output, prepared, cluster, progress.update, allowed_bad=allowed)
        return {"skipped_shards": skipped, **facts}

    def judge(self, output: FeatureOutput) -> None:
        """Fail, before anything is committed, when too many images are bad."""
        from pipelines.stages.output import summary

        found = summary(output.shards())
        if found["bad"] <= share(self.max_bad, "--max-bad") * output.plan.count and found["used"]:
            return
        output.list_errors()
        told = f"more than --max-bad {self.max_bad} allows" if found["used"] else "none is left to use"
        first = next((f"{path}: {why}" for made in output.shards() for _, path, why in made.bad), "")
        output.forget_bad()
        counts = f"{found['bad']:,} of {found['listed']:,} images are bad, {told}"
        raise ValueError(f"{counts} (first: {first}); nothing was committed, all are listed in {self.out}/errors.csv")

    def complete(self, output: FeatureOutput) -> dict[str, Any]:
        """The features stand already: say so."""
        from pipelines.stages.output import read_manifest

        manifest = read_manifest(output.folder)
        assert manifest
        say(f"{self.out}: complete already, {counted(len(manifest['shards']), 'part')} skipped")
        return self.result(manifest, output, {"skipped_shards": len(manifest["shards"]), "seconds": 0.0})

    # -- what people see -------------------------------------------------------------------------------------------

    def result(self, manifest: dict[str, Any], output: FeatureOutput, facts: dict[str, Any]) -> dict[str, Any]:
        from pipelines.stages.feature_table import readers

        counts = {name: manifest[name] for name in ("listed", "used", "bad", "warned", "records", "bytes")}
        return {
            "out": str(self.out),
            "format": manifest["format"],
            "blobs": manifest["features"]["blobs"],
            **counts,
            "shards": len(manifest["shards"]),
            "errors": str(self.out / "errors.csv"),
            "read_by": readers(self.out) if manifest["format"] == "parquet" else {},
            "log": str(output.run / "log.txt"),
            **facts,
        }

    def render(self, result: dict[str, Any]) -> Any:
        blobs = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in result["blobs"].items())
        shown = {
            "features": f"{result['out']}  ({result['format']}, {counted(result['shards'], 'part')})",
            "rows": f"{result['records']:,} of {result['listed']:,} images",
            "blobs": blobs,
            "bytes": size(result["bytes"]),
            "bad": f"{result['bad']:,} skipped, {result['warned']:,} kept with a warning"
            + (f"  (listed in {result['errors']})" if result["bad"] or result["warned"] else ""),
            **result["read_by"],
        }
        if result.get("skipped_shards"):
            shown["skipped"] = f"{counted(result['skipped_shards'], 'part')} finished already"
        if result.get("images_per_s"):
            on = "GPU" if result["gpu"] else "CPU"
            threads = counted(result["cpus_per_worker"], "thread")
            workers = f"{counted(result['workers'], 'worker')} ({on}, {threads} each)"
            shown["speed"] = (
                f"{result['images_per_s']:,.1f} images/s, {result['images_per_day']:,} a day on {workers}; "
                f"{duration(result['seconds'])} in all, {duration(result['start_up_s'])} of it start-up"
            )
            shown["time"] = (
                f"{result['decode_percent']:.0f} % waiting for images, {result['forward_percent']:.0f} % forward, "
                f"{result['write_percent']:.1f} % writing; {result['limited_by']}"
            )
        return table(shown)
