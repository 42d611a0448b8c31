"""The plan of a conversion: which lines make which shard, in a file that every task reads and a resume must match."""

from __future__ import annotations

import errno
import json
import mmap
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.order import shuffled
from ops.recipe import Line
from ops.records.image_list import ImageList

AUTO_SHARD = 4096  # lines a shard has at the most under `--shards auto`
MOST_LINES = 100_000_000  # keys number the lines with eight digits
BLOCK = 1 << 18  # lines planned at a time


Order = Callable[[NDArray[np.int64]], NDArray[np.int64]]  # places -> lines of the list


@dataclass(frozen=True)
class Plan:
    """`count` lines in order, of which shard i takes places cuts[i]..cuts[i+1]-1, and the options that made it so."""

    folder: Path
    count: int
    shards: int
    digest: str
    options: dict[str, Any]
    row: np.dtype[Any]

    @property
    def cuts(self) -> list[int]:
        """Where shards begin and end: as even as can be, sizes differ by one line at the most."""
        return [shard * self.count // self.shards for shard in range(self.shards + 1)]

    def facts(self) -> dict[str, Any]:
        """What a resume must match."""
        return {"list": self.digest, "count": self.count, "shards": self.shards, "options": self.options}

    def differences(self, earlier: dict[str, Any]) -> list[str]:
        """What an earlier run's facts say differently, for people."""
        out = [] if self.digest == earlier["list"] else ["the image list's content differs"]
        for name in sorted({*self.options, *earlier["options"]}):
            was, now = earlier["options"].get(name), self.options.get(name)
            if was != now:
                told = [value if value != "" else "not given" for value in (was, now)]
                out.append(f"--{name.replace('_', '-')} was {told[0]}, is {told[1]}")
        if not out and (self.shards, self.count) != (earlier["shards"], earlier["count"]):
            out.append(f"{earlier['count']} lines in {earlier['shards']} shards were {self.count} in {self.shards}")
        return out

    def lines(self, start: int, stop: int) -> list[Line]:
        """The lines at places start..stop-1, from the written plan."""
        try:
            rows = np.fromfile(self.folder / "rows", self.row, stop - start, offset=start * self.row.itemsize)
        except FileNotFoundError:
            told = "a node does not see the plan; the output must lie on storage that every node sees"
            raise FileNotFoundError(errno.ENOENT, told, str(self.folder)) from None
        reasons = json.loads((self.folder / "bad.json").read_text()) if rows["bad"].any() else {}
        columns = [rows[name].tolist() for name in ("start", "end", "number", "copies", "bad")]
        labels = rows["label"].tolist() if rows["label"].ndim == 1 else list(rows["label"])
        with _mapped(self.folder / "lines") as text:
            return [
                Line(place, text[begin:end], label, copies, number, reasons[str(number)] if bad else None)
                for place, label, begin, end, number, copies, bad in zip(
                    range(start, stop), labels, *columns, strict=True
                )
            ]

    def write(self, listed: ImageList, order: Order, copies: NDArray[np.uint16] | int) -> None:
        """Put the lines' text and, in their order, their places in it where every task can read them."""
        scratch = self.folder.with_name(self.folder.name + ".new")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        with (scratch / "lines").open("wb") as out:
            for start in range(0, len(listed.raw), 1 << 26):
                out.write(listed.raw[start : start + (1 << 26)])
        bad = np.zeros(len(listed), bool)
        bad[list(listed.bad)] = True
        with (scratch / "rows").open("wb") as out:
            for begin in range(0, self.count, BLOCK):
                places = np.arange(begin, min(begin + BLOCK, self.count))
                lines = order(places)
                rows = np.zeros(len(lines), self.row)
                rows["start"], rows["end"], rows["number"] = listed.starts[lines], listed.ends[lines], lines + 1
                rows["label"], rows["bad"] = listed.labels[lines], bad[lines]
                rows["copies"] = copies if isinstance(copies, int) else copies[places]
                rows.tofile(out)
        (scratch / "bad.json").write_text(json.dumps({line + 1: why for line, why in listed.bad.items()}))
        (scratch / "plan.json").write_text(json.dumps(self.facts()))
        shutil.rmtree(self.folder, ignore_errors=True)
        scratch.rename(self.folder)


def row_type(labels: NDArray[Any]) -> np.dtype[Any]:
    """One line of a written plan; labels as the list has them, int32 or one or more float32."""
    label = ("label", labels.dtype.newbyteorder("<").str, labels.shape[1:])
    places = [("start", "<i8"), ("end", "<i8"), ("number", "<i8")]
    return np.dtype([*places, label, ("copies", "<u2"), ("bad", "?")])


def read_facts(folder: Path) -> dict[str, Any] | None:
    """What an earlier run planned here; None where there is no plan."""
    try:
        return dict(json.loads((folder / "plan.json").read_text()))
    except FileNotFoundError:
        return None


def _mapped(file: Path) -> mmap.mmap:
    with file.open("rb") as opened:
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


def shard_count(shards: str, count: int) -> int:
    """--shards N or auto: as many as keep a shard at 4,096 lines or fewer, from the list alone."""
    return -(-count // AUTO_SHARD) if shards == "auto" else min(int(shards), count)


def order_of(count: int, *, shuffle: bool, seed: int) -> Order:
    """From places to list lines: the list's own order, or the shuffle that `seed` names."""
    if not shuffle:
        return lambda places: places
    return lambda places: shuffled(places, count, seed=seed)


def balanced(listed: ImageList, count: int, order: Order, *, copies: int) -> NDArray[np.uint16]:
    """Versions of each line by place, so that every class has as many records as the largest one.

    A class of n lines that wants m versions gives its first m mod n lines (in this order) one more than the others.
    """
    labels = listed.labels[order(np.arange(count))]
    out = np.zeros(count, np.uint16)
    sizes = {int(label): int(size) for label, size in zip(*np.unique(labels, return_counts=True), strict=True)}
    wanted = copies * max(sizes.values())
    for label, size in sizes.items():
        places = np.flatnonzero(labels == label)
        each = np.full(size, wanted // size)
        each[: wanted % size] += 1
        if int(each.max()) > np.iinfo(np.uint16).max:
            raise ValueError(
                f"--balance: label {label} has {size} lines and would need {int(each.max())} copies of each"
            )
        out[places] = each
    return out
