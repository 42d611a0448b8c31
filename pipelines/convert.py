"""`cortado convert`: an image list becomes record shards."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pipelines.job import Job, Progress, counted, duration, log, options, run_log, say, share, size, table

if TYPE_CHECKING:
    from ops.recipe import Recipe
    from ops.records.image_list import ImageList
    from pipelines.stages.output import Output
    from pipelines.stages.plan import Order, Plan

NOT_CONTENT = {"image_list", "out", "root", "rebase", "limit", "shards", "mean_out", "max_bad", "overwrite", "explain"}


@dataclass(frozen=True, kw_only=True)
class Convert(Job):
    """Turn an image list into LMDB or HDF5 record shards, as Caffe's convert_imageset, on all CPUs.

    Example: cortado convert --list train.txt --root photos/ --out data/train --shuffle --resize-height 256
    --resize-width 256 --mean-out data/mean.binaryproto
    """

    image_list: Annotated[str, tyro.conf.arg(name="list")]
    """image list ('path label' a line), or a folder, table, tar, LMDB, ... that lists itself"""
    out: Path
    """folder to make; the same command again goes on where it stopped"""
    root: str = ""
    """put before every path of the list; default: the current folder, or for a folder or container that itself"""
    rebase: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="OLD=NEW")] = ()
    """replace the beginning of paths that somebody else wrote; may be given several times"""
    labels: str = "caffe"
    """how labels are read: caffe (as atoi does), int, float, vector:N"""
    shuffle: bool = False
    """shuffle the list before numbering it"""
    seed: int = 0
    """of the shuffle and of every other random choice"""
    gray: bool = False
    """read as one grey channel"""
    resize_height: int = 0
    """height in pixels; 0: as it is"""
    resize_width: int = 0
    """width in pixels; 0: as it is"""
    resize_mode: Literal["exact", "short-side", "long-side"] = "exact"
    """exact height x width, or scale so that the short or long side is the one size given"""
    crop: int = 0
    """cut a square of this many pixels out of the resized picture; 0: none"""
    crop_at: Literal["centre", "random", "corners"] = "centre"
    """where: centre, random, or corners (top-left, top-right, bottom-left, bottom-right, centre)"""
    crops: int = 1
    """crops of each picture; corners: up to 5"""
    mirror: Literal["none", "random", "both"] = "none"
    """mirror at random, or keep both"""
    mean: str | None = None
    """subtract a mean: a .binaryproto file, or B,G,R values; records become floats"""
    scale: float = 1.0
    """multiply by this after the mean; records become floats"""
    augment: str = ""
    """small random changes: rotate=DEGREES,translate=SHARE,scale=SHARE,brightness=SHARE,contrast=SHARE,noise=LEVELS"""
    copies: int = 1
    """versions of each picture; the first stays as it is, the others are augmented"""
    balance: bool = False
    """more augmented versions for small classes, until each class has as many records as the largest"""
    encoded: bool = False
    """store files as they are, or encoded anew where the picture was changed"""
    encode_type: str = ""
    """encoding of stored pictures: jpg, png, ...; implies --encoded; default: by each file's extension"""
    backend: Literal["lmdb", "hdf5"] = "lmdb"
    """lmdb (Datums), or hdf5 (float32 data and label, with list.txt for an HDF5Data layer)"""
    check_size: bool = False
    """stop when records differ in size"""
    shards: str = "auto"
    """files to write; auto: one for each 4,096 lines. One LMDB shard is Caffe's plain folder"""
    mean_out: Path | None = None
    """also write the mean of the records, as mean.binaryproto"""
    max_bad: str = "1%"
    """share of bad images above which the job fails, as 1% or 0.01"""
    max_pixels: int = 100_000_000
    """pictures that announce more pixels are bad"""
    limit: int | None = None
    """use only the first N lines of the (shuffled) list"""
    fast_decode: bool = False
    """decode JPEGs at reduced size where the target is much smaller: several times as fast, slightly other pixels"""
    formats: Literal["caffe", "all"] = "caffe"
    """caffe: what OpenCV 4.6 read; all: GIF, AVIF, animated WebP and the like too"""
    strict: bool = False
    """a truncated JPEG is bad; default: kept with a warning, as imread keeps it"""
    overwrite: bool = False
    """replace what an earlier run with other options made"""
    explain: bool = False
    """print the plan and stop"""

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_records()
        share(self.max_bad, "--max-bad")
        if self.shards != "auto" and not (self.shards.isdigit() and int(self.shards) > 0):
            raise ValueError(f"--shards {self.shards}: expected a whole number from 1, or auto")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: expected 0 or more")
        for pair in self.rebase:
            if not pair.partition("=")[0] or "=" not in pair:
                raise ValueError(f"--rebase {pair}: expected OLD=NEW, the beginning of a path and what replaces it")
        for name in ("limit", "max_pixels", "copies", "crops"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}: expected 1 or more")

    def _check_sizes(self) -> None:
        height, width = self.resize_height, self.resize_width
        if min(height, width, self.crop) < 0:
            raise ValueError("--resize-height, --resize-width and --crop are pixels: expected 0 or more")
        if self.resize_mode == "exact" and bool(height) != bool(width):
            raise ValueError(
                "--resize-height and --resize-width go together (alone, Caffe would not resize); give both"
            )
        if self.resize_mode != "exact" and (not (height or width) or (height and width and height != width)):
            raise ValueError(f"--resize-mode {self.resize_mode} takes one side: give --resize-width")
        if not self.crop and (self.crops > 1 or self.crop_at != "centre"):
            raise ValueError("--crops and --crop-at say where to crop: give --crop SIZE too")
        if self.crops > 1 and self.crop_at == "centre":
            raise ValueError(f"--crops {self.crops} at the centre would all be one: choose --crop-at random or corners")
        if self.crop_at == "corners" and self.crops > 5:
            raise ValueError(f"--crops {self.crops}: there are four corners and the centre, five at the most")
        side = min(height or self.crop, width or self.crop) if self.resize_mode == "exact" else height or width
        if self.crop and side and self.crop > side:
            raise ValueError(f"--crop {self.crop} is larger than the resized picture ({side} on one side)")
        if self.crop and self.resize_mode == "long-side" and self.crop == side:
            raise ValueError(
                f"--crop {self.crop} of a long side of {side} fits only squares: use --resize-mode short-side"
            )

    def _check_records(self) -> None:
        from ops.records.image_list import label_width

        if not math.isfinite(self.scale) or self.scale == 0:
            raise ValueError(f"--scale {self.scale}: expected a number other than 0")
        if self.mean and is_numbers(self.mean) and len(numbers(self.mean)) not in ({1} if self.gray else {1, 3}):
            wanted = "one value" if self.gray else "one value, or B,G,R"
            raise ValueError(f"--mean {self.mean}: expected {wanted}, or a .binaryproto file")
        if self.encode_type:
            from ops.image import ENCODERS
            from ops.names import unknown

            if (kind := self.encode_type.lower().lstrip(".")) not in ENCODERS:
                raise ValueError(f"--encode-type: {unknown('encoding', kind, ENCODERS)}")
        floats = self.mean is not None or self.scale != 1.0
        encoded = self.encoded or bool(self.encode_type)
        if encoded and (floats or self.backend == "hdf5"):
            raise ValueError("--encoded stores files; it cannot go with --mean, --scale or --backend hdf5")
        label_width(self.labels)
        if self.backend == "lmdb" and self.labels not in ("caffe", "int"):
            raise ValueError(f"--labels {self.labels}: a Datum holds one whole number; use --backend hdf5")
        if (self.copies > 1 or self.balance) and not self.augment:
            raise ValueError("--copies and --balance make augmented versions: say how with --augment rotate=5,...")
        if self.balance and self.labels not in ("caffe", "int"):
            raise ValueError("--balance evens classes: it needs whole-number labels")
        records = self.copies * self.crops * (2 if self.mirror == "both" else 1)
        if records > 1000:
            raise ValueError(f"{records} records of one line: 1,000 at the most, their keys have three digits")
        if self.augment:
            from ops import augment

            augment.parse(self.augment)

    # -- the work --------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        from ops.inputs.listing import open_listing
        from pipelines.stages.output import FULL, NoSpaceError, Output
        from pipelines.stages.paths import names_beside, note

        began = time.monotonic()
        listed = open_listing(self.image_list, labels=self.labels, rebase=self.rebase)
        listed.classes = listed.classes or names_beside(self.image_list)
        recipe = self.recipe(listed)
        plan, order = self.plan(listed, recipe)
        output = Output(self.out.absolute(), plan, self.backend, wants_sum=self.mean_out is not None)
        if self.explain:
            versions = self.versions(listed, plan, order)
            total = versions * plan.count if isinstance(versions, int) else int(versions.sum())
            return self.explanation(plan, recipe, total)
        output.refuse_foreign()
        with run_log(output.run), output.held():
            log.info("list %s: %d lines, %d used, in %d shards", self.image_list, len(listed), plan.count, plan.shards)
            log.info("options: %s", json.dumps(plan.options))
            state = output.take_up(overwrite=self.overwrite)
            output.odd_lines = note(listed, whole=self.limit is None)
            if state == "complete":
                return self.complete(output)
            try:
                if state == "new":
                    plan.write(listed, order, self.versions(listed, plan, order))
                facts = self.build(output, recipe)
                self.judge(output)
                manifest = self.commit(output, listed)
            except OSError as error:
                if error.errno not in FULL or isinstance(error, NoSpaceError):
                    raise
                raise output.no_space() from error
        return self.result(manifest, output, {**facts, "seconds": round(time.monotonic() - began, 3)})

    def recipe(self, listed: ImageList) -> Recipe:
        """What is done to every line."""
        import numpy as np

        from ops.recipe import Recipe
        from ops.records import binaryproto
        from pipelines.stages.paths import root_of

        mean: Any = None
        if self.mean is not None:
            mean = np.array(numbers(self.mean), np.float32) if is_numbers(self.mean) else binaryproto.read(self.mean)
        resize = (self.resize_mode, self.resize_height, self.resize_width or self.resize_height)
        size = (1 if self.gray else 3, self.resize_height, self.resize_width)
        if (
            mean is not None
            and mean.ndim == 3
            and self.resize_width
            and self.resize_mode == "exact"
            and mean.shape != size
        ):
            here, there = ("x".join(map(str, shape)) for shape in (size, mean.shape))
            raise ValueError(f"--mean {self.mean}: a mean image of {there} for pictures of {here}; resize to its size")
        return Recipe(
            root=root_of(self.root, listed, self.image_list),
            backend=self.backend,
            gray=self.gray,
            resize=resize if self.resize_height or self.resize_width else None,
            crop=self.crop,
            crop_at=self.crop_at,
            crops=self.crops,
            mirror=self.mirror,
            mean=mean,
            scale=self.scale,
            augment=self.augment,
            encode_type=self.encode_type.lower().lstrip(".") if self.encoded or self.encode_type else None,
            seed=self.seed,
            all_formats=self.formats == "all",
            strict=self.strict,
            fast_decode=self.fast_decode,
            max_pixels=self.max_pixels,
            want_pixels=self.mean_out is not None,
        )

    def plan(self, listed: ImageList, recipe: Recipe) -> tuple[Plan, Order]:
        """Which line goes where."""
        from pipelines.stages import plan

        if len(listed) > plan.MOST_LINES:
            raise ValueError(
                f"{self.image_list}: {len(listed):,} lines; keys number up to {plan.MOST_LINES:,}: split it"
            )
        count = min(len(listed), self.limit or len(listed))
        content = {name: value for name, value in options(self).items() if name not in NOT_CONTENT}
        content["root"] = recipe.root
        if self.mean is not None and recipe.mean is not None:
            content["mean"] = recipe.mean.tolist() if recipe.mean.ndim == 1 else checksum(recipe.mean)
        shards = plan.shard_count(self.shards, count)
        folder = self.out.absolute() / ".run" / "plan"
        made = plan.Plan(folder, count, shards, listed.digest(), content, plan.row_type(listed.labels))
        return made, plan.order_of(len(listed), shuffle=self.shuffle, seed=self.seed)

    def versions(self, listed: ImageList, plan: Plan, order: Order) -> Any:
        """Augmented versions of each line."""
        from pipelines.stages.plan import balanced

        return balanced(listed, plan.count, order, copies=self.copies) if self.balance else self.copies

    def build(self, output: Output, recipe: Recipe) -> dict[str, Any]:
        """Make the shards that are not there yet, on Ray Data; what the run was like."""
        from cluster import config
        from pipelines.stages.build import build

        skipped = len(output.finished)
        if skipped:
            say(f"{self.out}: {skipped} of {counted(output.plan.shards, 'shard')} finished already and skipped")
        cluster = config.load(self.config, self.set)
        allowed = share(self.max_bad, "--max-bad") * output.plan.count
        with Progress("convert", total=output.plan.count, start=output.progress()) as progress:
            facts = build(output, recipe, cluster, progress.update, check_size=self.check_size, allowed_bad=allowed)
        return {"skipped_shards": skipped, **facts}

    def judge(self, output: Output) -> None:
        """Fail, before anything is committed, when too many images are bad."""
        from pipelines.stages.output import summary

        found = summary(output.shards())
        if found["bad"] <= share(self.max_bad, "--max-bad") * output.plan.count and found["used"]:
            return
        output.list_errors()
        share_told = f"more than --max-bad {self.max_bad} allows" if found["used"] else "none is left to use"
        first = next((f"{path}: {why}" for made in output.shards() for _, path, why in made.bad), "")
        output.forget_bad()
        told = f"{found['bad']:,} of {found['listed']:,} images are bad, {share_told}"
        raise ValueError(f"{told} (first: {first}); nothing was committed, all are listed in {self.out / 'errors.csv'}")

    def commit(self, output: Output, listed: ImageList) -> dict[str, Any]:
        """The mean first, then the data set."""
        from ops.records import binaryproto
        from pipelines.stages.output import write_text

        if self.mean_out:
            self.mean_out.absolute().parent.mkdir(parents=True, exist_ok=True)
            binaryproto.write(self.mean_out, output.sums().mean())
        if listed.classes:
            write_text(output.folder / "classes.txt", "".join(f"{name}\n" for name in listed.classes))
        return output.commit({"classes": listed.classes} if listed.classes else {})

    def complete(self, output: Output) -> dict[str, Any]:
        """The data set stands already: say so, and add the mean if that is all that is missing."""
        from pipelines.stages.output import read_manifest

        manifest = read_manifest(output.folder)
        assert manifest
        say(f"{self.out}: complete already, {counted(len(manifest['shards']), 'shard')} skipped")
        if self.mean_out and not self.mean_out.exists():
            from cluster import config
            from pipelines.stages.summing import mean_of

            mean_of(output.folder, self.mean_out, config.load(self.config, self.set))
        return self.result(manifest, output, {"skipped_shards": len(manifest["shards"]), "seconds": 0.0})

    # -- what people see -------------------------------------------------------------------------------------------

    def result(self, manifest: dict[str, Any], output: Output, facts: dict[str, Any]) -> dict[str, Any]:
        counts = {name: manifest[name] for name in ("listed", "used", "bad", "warned", "records", "bytes", "shape")}
        made = {"out": str(self.out), "format": manifest["format"], **counts, "shards": len(manifest["shards"])}
        mean = {"mean": str(self.mean_out)} if self.mean_out else {}
        return {**made, **mean, "errors": str(self.out / "errors.csv"), "log": str(output.run / "log.txt"), **facts}

    def explanation(self, plan: Plan, recipe: Recipe, versions: int) -> dict[str, Any]:
        from cluster import config
        from pipelines.stages.build import explain

        cluster = config.load(self.config, self.set)
        return explain(plan, recipe, cluster, self.out, shuffle=self.shuffle, versions=versions)

    def render(self, result: dict[str, Any]) -> Any:
        if self.explain:
            return table(result)
        shown = {
            "data set": f"{result['out']}  ({result['format']}, {counted(result['shards'], 'shard')})",
            "records": f"{result['records']:,} of {result['used']:,} images"
            + (f", each {'x'.join(map(str, result['shape']))}" if result["shape"] else ", of several sizes"),
            "bytes": size(result["bytes"]),
            "bad": f"{result['bad']:,} skipped, {result['warned']:,} kept with a warning"
            + (f"  (listed in {result['errors']})" if result["bad"] or result["warned"] else ""),
        }
        if result.get("mean"):
            shown["mean"] = result["mean"]
        if result.get("skipped_shards"):
            shown["skipped"] = f"{result['skipped_shards']} shards that were finished already"
        if result.get("images_per_s"):
            rate = f"{result['images_per_s']:,.0f} images/s on {result['workers']} workers, {result['limited_by']}"
            shown["speed"] = (
                f"{rate}; {duration(result['seconds'])} in all, {duration(result['start_up_s'])} of it start-up"
            )
        return table(shown)


def is_numbers(text: str) -> bool:
    """Whether --mean gives values, not a file."""
    try:
        return bool(numbers(text))
    except ValueError:
        return False


def numbers(text: str) -> list[float]:
    """104,117,123 -> [104.0, 117.0, 123.0]."""
    return [float(word) for word in text.split(",")]


def checksum(values: Any) -> str:
    import xxhash

    return xxhash.xxh3_64(values.tobytes()).hexdigest()
