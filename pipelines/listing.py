"""`cortado list`: any input becomes image lists, split by class."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from pipelines.job import Job, counted, say, table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ops.records.image_list import ImageList

SHOWN = 5  # names in a warning
MOST_CLASSES = 10_000  # whose counts are in the result
DISTINCT = {"folder", "classes", "idx", "cifar10", "lmdb", "leveldb", "hdf5", "dataset"}  # hold no image twice
WHOLE = "all"  # the list without a split
PICTURES = {"list", "folder", "classes", "csv", "parquet", "tar"}  # hold files of any size
UNKNOWN = "FOLDER/"  # stands in the next command for what only the user knows


@dataclass(frozen=True, kw_only=True)
class List(Job):
    """Write image lists ('path label' a line) of anything that holds images, split by class.

    Folders of images are classes, numbered in the order of their names (classes.txt). Paths are relative to the folder
    that is printed as root; images inside a tar, table or database are listed as CONTAINER#MEMBER.

    Example: cortado list photos --out lists --split train=0.8,test=0.2 --seed 1
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """folder, image list, CSV, Parquet, tar, IDX, CIFAR-10, LMDB, LevelDB, HDF5; or a pattern as 'tars/{00..31}.tar'"""
    out: Path
    """folder for the lists: one a split, or all.txt, and classes.txt where classes have names"""
    split: str = ""
    """names and shares, as train=0.8,test=0.2; each class is shared out in the same way"""
    seed: int = 0
    """of the split"""
    labels: str = "caffe"
    """how labels are read: caffe (lists: as atoi does; tables: as they are), int, float, vector:N"""
    rebase: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="OLD=NEW")] = ()
    """replace the beginning of paths that somebody else wrote; may be given several times"""
    limit: int | None = None
    """use only the first N images"""
    absolute: bool = False
    """write whole paths, which need no root"""
    overwrite: bool = False
    """replace other lists that stand there already"""

    def __post_init__(self) -> None:
        from ops.inputs import rebase, split
        from ops.records.image_list import label_width

        if self.split:
            split.parse(self.split)
        for rule in self.rebase:
            rebase.parse(rule)
        label_width(self.labels)
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit {self.limit}: expected 1 or more")
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"--seed {self.seed}: expected 0 or more, below 2 to the 64")

    def run(self) -> dict[str, Any]:
        import numpy as np

        from ops.inputs.listing import open_listing, recognize
        from pipelines.stages.paths import root_of

        began = time.monotonic()
        kind = recognize(self.source)
        listed = open_listing(self.source, labels=self.labels, rebase=self.rebase)
        root = root_of("", listed, self.source)
        warnings = [*listed.warnings, *repeated(listed, kind), *unusable(listed), *elsewhere(listed, root)]
        there = not elsewhere(listed, root)
        usable = np.delete(np.arange(len(listed)), list(listed.bad))
        if listed.bad and not len(usable):
            raise ValueError(f"{self.source}: no line has a usable label; {warnings[-1]}")
        chosen = usable[: self.limit]
        strata, names = strata_of(listed, chosen)
        splits, more = self.splits(strata, names)
        for warning in (warnings := [*warnings, *more]):
            say(f"warning: {warning}")
        if self.absolute:
            listed, root = with_root(listed, root), ""
        lists = {name: chosen[places] for name, places in splits.items()}
        self.write(listed, lists)
        return {
            "out": str(self.out),
            "kind": kind,
            "lists": {name: len(lines) for name, lines in lists.items()},
            "files": len(listed),
            "bad": len(listed.bad),
            "classes": listed.classes,
            "root": root,
            "root_found": there,
            "per_class": per_class(strata, names, splits),
            "warnings": warnings,
            "next": self.next_command(next(iter(lists)), root if there or not root else UNKNOWN, listed, kind),
            "seconds": round(time.monotonic() - began, 3),
        }

    def splits(self, strata: NDArray[np.int64], names: list[str]) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
        """Split -> places in the order of the listing; and what is to be said about it."""
        import numpy as np

        from ops.inputs import split

        if not self.split:
            return {WHOLE: np.arange(len(strata))}, []
        shares = split.parse(self.split)
        assigned = split.assign(strata, list(shares.values()), self.seed)
        places = {name: np.flatnonzero(assigned == number) for number, name in enumerate(shares)}
        empty = [name for name, lines in places.items() if not len(lines)]
        if empty:
            raise ValueError(f"--split {self.split}: {counted(len(strata), 'image')}, too few: {empty[0]} gets none")
        counts = np.stack([np.bincount(strata[lines], minlength=len(names)) for lines in places.values()])
        small = np.flatnonzero((counts == 0).any(axis=0))
        if not small.size or not any(names):
            return places, []
        shown = ", ".join(names[place] for place in small[:SHOWN]) + (", ..." if small.size > SHOWN else "")
        return places, [f"{counted(small.size, 'label')} with too few images to be in every split: {shown}"]

    def write(self, listed: ImageList, lists: dict[str, NDArray[np.int64]]) -> None:
        """Write all files elsewhere, then put them in place; other lists that stand there are kept, and an error."""
        with scratch(self.out) as folder:
            for name, lines in lists.items():
                listed.write(folder / f"{name}.txt", lines)
            if listed.classes:
                text = "".join(f"{name}\n" for name in listed.classes)
                (folder / "classes.txt").write_bytes(os.fsencode(text))
            elif (self.out / "classes.txt").exists():
                self.refuse(self.out / "classes.txt")
                (self.out / "classes.txt").unlink()
            new = sorted(folder.iterdir())
            for file in new:
                if (self.out / file.name).exists() and not same(file, self.out / file.name):
                    self.refuse(self.out / file.name)
            for file in new:
                file.replace(self.out / file.name)

    def refuse(self, file: Path) -> None:
        if not self.overwrite:
            raise ValueError(f"{file}: stands there with other lines; choose another --out, or give --overwrite")

    def next_command(self, name: str, root: str, listed: ImageList, kind: str) -> str:
        """What to type to convert the first list; pictures of many sizes become one size, which a mean needs."""
        words = ["cortado", "convert", "--list", str(self.out / f"{name}.txt")]
        if root:
            kept = root == UNKNOWN or os.path.isabs(self.source)
            words += ["--root", root if kept else os.path.join(os.path.relpath(root), "")]
        if kind in PICTURES:
            words += ["--resize-height", "256", "--resize-width", "256"]
        if listed.labels.dtype.kind == "f":
            width = listed.labels.shape[1]
            words += ["--labels", f"vector:{width}" if width > 1 else "float", "--backend", "hdf5"]
        return shlex.join([*words, "--out", name])

    def render(self, result: dict[str, Any]) -> Any:
        lists = ", ".join(f"{name}.txt {counted(count, 'line')}" for name, count in result["lists"].items())
        rows = {"lists": f"{lists}, in {self.out}"}
        if result["classes"]:
            rows["classes"] = f"{len(result['classes']):,}, their names in {self.out / 'classes.txt'}"
        if result["bad"]:
            rows["left out"] = f"{counted(result['bad'], 'line')} without a usable label"
        root = result["root"] or "none: the paths are whole"
        if result["root"] and not result["root_found"]:
            root = f"not known: the files are not in {root}"
        return table({**rows, "root": root, "next": result["next"]})


def repeated(listed: ImageList, kind: str) -> list[str]:
    """A warning where lines name the same file: all are kept."""
    again = [] if kind in DISTINCT else listed.duplicates()
    if not len(again):
        return []
    path, verb = os.fsdecode(listed.path(int(again[0]))), "names" if len(again) == 1 else "name"
    return [
        f"{counted(len(again), 'line')} {verb} a file that an earlier line has already, all are kept; first: {path}"
    ]


def unusable(listed: ImageList) -> list[str]:
    """A warning where lines have no usable label: they are left out."""
    if not listed.bad:
        return []
    line, reason = min(listed.bad.items())
    return [f"{counted(len(listed.bad), 'line')} left out, without a usable label; line {line + 1}: {reason}"]


def elsewhere(listed: ImageList, root: str) -> list[str]:
    """A warning where the first file, or the container that it is in, is not where the root says."""
    file = os.fsencode(root) + listed.path(0)
    hashes = [place for place, letter in enumerate(file) if letter == ord("#")]
    if os.path.exists(file) or any(os.path.exists(file[:place]) for place in hashes):
        return []
    advice = "the --root of convert says where the files are" if root else "--rebase OLD=NEW mends whole paths"
    return [f"{os.fsdecode(file)} is not there: {advice}"]


def strata_of(listed: ImageList, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[str]]:
    """The class of each chosen line, 0 to K-1, and the names; labels that are no whole numbers are one class, ""."""
    import numpy as np

    if listed.labels.dtype.kind not in "iu":
        return np.zeros(len(chosen), np.int64), [""]
    values, strata = np.unique(listed.labels[chosen], return_inverse=True)
    known = listed.classes
    return strata, [known[value] if 0 <= value < len(known) else str(value) for value in values.tolist()]


def per_class(
    strata: NDArray[np.int64], names: list[str], splits: dict[str, NDArray[np.int64]]
) -> dict[str, dict[str, int]]:
    """Class -> split -> lines; nothing where there are no classes, or too many to be read."""
    import numpy as np

    if not any(names) or len(names) > MOST_CLASSES:
        return {}
    counts = {split: np.bincount(strata[lines], minlength=len(names)).tolist() for split, lines in splits.items()}
    return {name: {split: counts[split][place] for split in splits} for place, name in enumerate(names)}


def with_root(listed: ImageList, root: str) -> ImageList:
    """The list with whole paths."""
    from ops.records.image_list import ImageList

    front = os.fsencode(root)
    paths = [front + path for path in listed.paths(slice(None))]
    return ImageList.of(paths, listed.labels, classes=listed.classes)


@contextmanager
def scratch(out: Path) -> Iterator[Path]:
    """A folder inside `out` that is gone afterwards."""
    out.mkdir(parents=True, exist_ok=True)
    folder = out / f".list-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def same(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes."""
    import filecmp

    return filecmp.cmp(one, other, shallow=False)
