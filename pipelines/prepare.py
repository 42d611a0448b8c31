"""`cortado prepare`: the short way from a folder of pictures to a ready data set."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pipelines.job import Job, counted, duration, say, size, table

if TYPE_CHECKING:
    from pipelines.convert import Convert


@dataclass(frozen=True, kw_only=True)
class Prepare(Job):
    """Make a ready data set of one's own pictures: lists with a split, shards, mean, check and contact sheet.

    Example: cortado prepare ~/photos --out data
    """

    pictures: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURES")]
    """folder with a folder for each class; or a table, tar, list, ... with labels"""
    out: Path
    """folder to make: lists/, one data set for each split, mean.binaryproto, contact-sheet.png"""
    split: str = "train=0.8,test=0.2"
    """names and shares of the splits; the mean is the first one's"""
    seed: int = 0
    """of the split and the shuffle"""
    size: int = 256
    """pictures become SIZE x SIZE"""
    resize_mode: Literal["exact", "crop"] = "exact"
    """exact: squeezed, as ImageNet is prepared for Caffe; crop: short side to SIZE, then the centre"""
    gray: bool = False
    """one grey channel"""
    encoded: bool = False
    """store JPEGs instead of pixels: a tenth of the size, decoded again in each epoch"""
    labels: str = "caffe"
    """how labels are read: caffe, int, float, vector:N (the last two make HDF5)"""
    rebase: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="OLD=NEW")] = ()
    """replace the beginning of paths that somebody else wrote; may be given several times"""
    max_bad: str = "1%"
    """share of bad images above which the job fails"""
    overwrite: bool = False
    """replace what an earlier run with other options made"""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"--size {self.size}: expected pixels, 1 or more")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: expected 0 or more")
        source = Path(self.pictures).resolve()
        if source.is_dir() and self.out.resolve().is_relative_to(source):
            raise ValueError(f"--out {self.out} lies inside {self.pictures}: the next run would read it as pictures")

    def run(self) -> dict[str, Any]:
        import cluster
        import ops
        import pipelines
        from cluster import config
        from cluster.connect import connected
        from pipelines.listing import List

        began = time.monotonic()
        listed = self.shared(List, source=self.pictures, out=self.out / "lists", split=self.split).run()
        names = list(listed["lists"])
        say(f"listed: {', '.join(f'{name} {count:,}' for name, count in listed['lists'].items())}")
        mean = self.out / "mean.binaryproto"
        with connected(config.load(self.config, self.set), packages=(ops, pipelines, cluster)):
            sets = {}
            for name in names:
                sets[name] = self.convert(name, listed["root"], mean if name == names[0] else None).run()
                say(f"converted {name}: {sets[name]['records']:,} records")
            checks = {name: self.check(name) for name in names}
        sheet = self.sheet(names[0])
        wrong = [f"{name}: {problem}" for name, found in checks.items() for problem in found["problems"]]
        fast = [made for made in sets.values() if made.get("images_per_s")]
        return {
            "out": str(self.out),
            "files": listed["files"],
            "classes": listed["classes"],
            "sets": {name: made["records"] for name, made in sets.items()},
            "written": sum(made["records"] for made in sets.values()),
            "skipped": sum(made["bad"] for made in sets.values()),
            "bytes": sum(made["bytes"] for made in sets.values()),
            "mean": str(mean),
            "contact_sheet": sheet,
            "images_per_s": max((made["images_per_s"] for made in fast), default=None),
            "limited_by": fast[0]["limited_by"] if fast else "nothing was left to do",
            "ok": not wrong,
            "problems": wrong,
            "seconds": round(time.monotonic() - began, 3),
        }

    def shared(self, kind: Any, **more: Any) -> Any:
        """A step's job, with the options that it shares with this one."""
        names = ("config", "set", "seed", "labels", "rebase", "overwrite")
        return kind(**{name: getattr(self, name) for name in names}, **more)

    def convert(self, name: str, root: str, mean: Path | None) -> Convert:
        from pipelines.convert import Convert

        exact = self.resize_mode == "exact"
        vectors = self.labels not in ("caffe", "int")
        return self.shared(
            Convert,
            image_list=str(self.out / "lists" / f"{name}.txt"),
            root=root,
            out=self.out / name,
            shuffle=True,
            gray=self.gray,
            encoded=self.encoded,
            encode_type="jpg" if self.encoded else "",
            resize_mode="exact" if exact else "short-side",
            resize_height=self.size if exact else 0,
            resize_width=self.size,
            crop=0 if exact else self.size,
            backend="hdf5" if vectors else "lmdb",
            mean_out=mean,
            max_bad=self.max_bad,
        )

    def check(self, name: str) -> dict[str, Any]:
        from pipelines.check import Check

        return Check(config=self.config, set=self.set, path=self.out / name).run()

    def sheet(self, name: str) -> str:
        from pipelines.show import Show

        sheet = self.out / "contact-sheet.png"
        Show(data=str(self.out / name), sheet=sheet, seed=self.seed).run()
        return str(sheet)

    def render(self, result: dict[str, Any]) -> Any:
        found = result["problems"]
        shown = {
            "data set": result["out"],
            "files": f"{result['files']:,}" + (f" in {len(result['classes'])} classes" if result["classes"] else ""),
            "records": ", ".join(f"{name} {count:,}" for name, count in result["sets"].items()),
            "bytes": size(result["bytes"]),
            "skipped": counted(result["skipped"], "bad image"),
            "mean": result["mean"],
            "look at": result["contact_sheet"],
            "checked": "right" if result["ok"] else f"{counted(len(found), 'problem')}: {found[0]}",
        }
        rate = f"{result['images_per_s']:,.0f} images/s, " if result["images_per_s"] else ""
        shown["speed"] = f"{rate}{result['limited_by']}; {duration(result['seconds'])} in all"
        return table(shown)
