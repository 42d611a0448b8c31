"""What a person wants to see of a data set before using it: labels, sizes, order, and a few pictures of every class.

Labels and sizes come from the listing and from headers; only the pictures that are shown are decoded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from ops import chance, image, image_header
from ops.inputs.fetch import Fetcher
from ops.inputs.listing import open_listing, recognize
from ops.records import datum, hdf5, lmdb
from ops.records.image_list import ImageList
from pipelines.job import counted
from pipelines.stages.dataset import Dataset, open_dataset, pixels
from pipelines.stages.paths import root_of

RECORDS = {"dataset", "lmdb", "hdf5"}  # kinds that `open_dataset` opens
MEASURED = 1000  # files of a list whose size is looked at
HEAD = 1 << 16  # bytes of an encoded record in which its header is looked for
STEP = 2000  # records between two notes of progress


class View(NamedTuple):
    """One picture to show; `reason` where it cannot be decoded."""

    place: int
    name: str
    image: NDArray[Any] | None
    reason: str = ""


@dataclass(frozen=True)
class Survey:
    """What was found; sizes are rows of (height, width, channels), 0 channels where only decoding would tell."""

    kind: str
    labels: NDArray[Any]  # (N,) integers, or (N, K) numbers
    sizes: NDArray[np.int64]  # (M, 3): of all records, or of a sample
    bytes: int
    views: Callable[[Sequence[int]], Iterator[View]]
    shards: int = 1
    estimated: bool = False  # bytes and sizes are of a sample
    classes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.labels)


def survey(
    source: str, *, root: str, labels: str, rebase: Sequence[str], seed: int, update: Callable[[int, int], None]
) -> Survey:
    """Look through a data set, a database, or anything that lists itself; `update` is told (done, of how many)."""
    kind, path = recognize(source), Path(source)
    # a pattern of several, and a list of HDF5 files, list themselves
    if kind in RECORDS and (path.is_dir() or hdf5.is_hdf5(path)):
        return of_records(open_dataset(path), update)
    listed = open_listing(source, labels=labels, rebase=rebase)
    return of_listing(kind, listed, root_of(root, listed, source), seed, update)


# -- data sets of records ----------------------------------------------------------------------------------------------


def of_records(data: Dataset, update: Callable[[int, int], None]) -> Survey:
    """One pass over the shards; of a raw record, only the pages of its first and last bytes are read."""
    look = labels_of_hdf5 if data.format == "hdf5" else labels_of_lmdb
    found, done = [], 0
    for shard, count in zip(data.shards, data.counts, strict=True):
        found.append(look(shard, count, lambda here, before=done: update(before + here, data.count)))
        done += count
    labels, sizes = (np.concatenate([part[i] for part in found]) for i in range(2))
    files = [shard / "data.mdb" if data.format == "lmdb" else shard for shard in data.shards]
    classes = list((data.manifest or {}).get("classes", []))
    size = sum(file.stat().st_size for file in files)
    return Survey(
        data.format.upper(), labels, sizes, size, lambda places: record_views(data, places), len(files), classes=classes
    )


def labels_of_lmdb(shard: Path, count: int, update: Callable[[int], None]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(N,) labels and (N, 3) sizes of the Datums in one LMDB; an encoded one's size is in its file header."""
    labels, sizes = np.zeros(count, np.int32), np.zeros((count, 3), np.int64)
    with lmdb.Reader(shard) as reader:
        for place, (key, value) in enumerate(reader.records()):
            try:
                record = datum.parse(value)
            except ValueError as error:
                raise ValueError(f"{shard}: record {key.decode(errors='replace')}: {error}") from None
            labels[place] = record.label
            if record.encoded:
                sizes[place, :2] = image_header.size(bytes(record.data[:HEAD])) or (0, 0)
            else:
                sizes[place] = record.height, record.width, record.channels
            if place % STEP == 0:
                update(place)
    return labels, sizes


def labels_of_hdf5(shard: Path, count: int, update: Callable[[int], None]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(N,) whole or (N, K) labels and (N, 3) sizes; the rows of an HDF5 file are all of one shape."""
    with h5py.File(shard, "r") as file:
        labels = np.asarray(file["label"][:])
        *channels, height, width = (1, 1, *file["data"].shape[1:])
    update(count)
    return labels, np.tile(np.int64([height, width, np.prod(channels, dtype=np.int64)]), (count, 1))


def record_views(data: Dataset, places: Sequence[int]) -> Iterator[View]:
    """The records at ascending places of all shards joined."""
    first = 0
    for shard, count in zip(data.shards, data.counts, strict=True):
        here = [place - first for place in places if first <= place < first + count]
        read = hdf5_views if data.format == "hdf5" else lmdb_views
        for view in read(shard, here) if here else ():
            yield view._replace(place=view.place + first)
        first += count


def lmdb_views(shard: Path, places: Sequence[int]) -> Iterator[View]:
    wanted = set(places)
    with lmdb.Reader(shard) as reader:
        for place, (key, value) in enumerate(reader.records(0, max(places) + 1)):
            if place in wanted:
                yield view_of(place, key, lambda value=value: pixels(datum.parse(value)).transpose(1, 2, 0).copy())


def hdf5_views(shard: Path, places: Sequence[int]) -> Iterator[View]:
    with hdf5.Reader(shard) as reader:
        for place in places:
            for key, values, _ in reader.records(place, place + 1):
                planes = values.reshape(-1, *(1, 1, *values.shape)[-2:])
                yield View(place, key.decode(errors="replace"), planes.transpose(1, 2, 0))


def view_of(place: int, name: bytes, load: Callable[[], NDArray[Any]]) -> View:
    """The picture, or why there is none."""
    text = name.decode(errors="replace")
    try:
        return View(place, text, load())
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return View(place, text, None, reason.partition("\n")[0])


# -- everything that lists itself --------------------------------------------------------------------------------------


def of_listing(kind: str, listed: ImageList, root: str, seed: int, update: Callable[[int, int], None]) -> Survey:
    """Labels of every line; sizes and bytes of a seeded sample of the files."""
    fetch, prefix = Fetcher().fetch, os.fsencode(root)
    chosen = np.sort(chance.rng(seed, 1, 0).permutation(len(listed))[:MEASURED])
    sizes, weight, failed = [], 0, []
    for done, path in enumerate(listed.paths(chosen)):
        try:
            found = fetch(prefix + path)
        except (OSError, ValueError) as error:
            failed.append(f"{os.fsdecode(path)}: {error.strerror if isinstance(error, OSError) else error}")
            continue
        weight += found.nbytes if isinstance(found, np.ndarray) else len(found)
        size = found.shape if isinstance(found, np.ndarray) else image_header.size(found)
        sizes += [(*size, 0)[:3]] if size else []
        update(done + 1, len(chosen))
    warnings = list(listed.warnings)
    if failed:
        warnings.append(
            f"{len(failed):,} of {counted(len(chosen), 'file')} looked at cannot be read, the first: {failed[0]}"
        )
    swapped = kind == "cifar10"  # its planes are red, green, blue; pictures here are blue, green, red

    def views(places: Sequence[int]) -> Iterator[View]:
        for place, path in zip(places, listed.paths(np.asarray(places, np.int64)), strict=True):
            yield view_of(place, path, lambda path=path: picture(fetch(prefix + path), swapped))

    good = len(chosen) - len(failed)
    return Survey(
        kind,
        listed.labels,
        np.array(sizes, np.int64).reshape(-1, 3),
        round(weight / good * len(listed)) if good else 0,
        views,
        estimated=len(chosen) < len(listed),
        classes=list(listed.classes),
        warnings=warnings,
    )


def picture(found: Any, swapped: bool) -> NDArray[Any]:
    """Pixels of what was fetched, in blue, green, red."""
    if isinstance(found, np.ndarray):
        return np.ascontiguousarray(found[:, :, ::-1]) if swapped else found
    return image.decode(found, all_formats=True)


# -- what the numbers say ----------------------------------------------------------------------------------------------


def whole(labels: NDArray[Any]) -> NDArray[np.int64] | None:
    """(N,) labels as integers, where they are classes; None for measurements and vectors."""
    labels = labels.reshape(len(labels), -1)
    if labels.shape[1] != 1 or not np.isfinite(labels).all() or (labels != np.rint(labels)).any():
        return None
    return labels[:, 0].astype(np.int64)


def order_of(labels: NDArray[np.int64]) -> str:
    """How classes follow each other: a training set that is sorted by class has to be shuffled."""
    _, counts = np.unique(labels, return_counts=True)
    if len(counts) < 2:
        return "one class"
    runs = int(np.count_nonzero(np.diff(labels))) + 1
    mixed = 1 + len(labels) - float((counts.astype(float) ** 2).sum()) / len(labels)  # runs of a shuffled list
    if runs == len(counts):
        return "sorted by class: shuffle before training"
    return "shuffled" if runs > 0.7 * mixed else f"partly sorted by class: {runs:,} runs of {len(counts):,} classes"


def choose(labels: NDArray[np.int64] | None, count: int, images: int, seed: int) -> list[int]:
    """Places of the pictures to show, ascending by class: each class in turn gives one until there are enough.

    Which classes, where there are more of them than pictures, and which of their records: drawn by `seed`.
    """
    rng = chance.rng(seed, 0, 0)
    mixed = rng.permutation(count)
    if labels is None:
        return sorted(mixed[:images].tolist())
    mixed_labels = labels[mixed]
    by_class = np.argsort(mixed_labels, kind="stable")
    _, firsts = np.unique(mixed_labels[by_class], return_index=True)
    turns = np.arange(count) - np.repeat(firsts, np.diff([*firsts, count]))  # the how-manieth of its class
    lots = np.repeat(rng.permutation(len(firsts)), np.diff([*firsts, count]))  # which class goes first in a turn
    chosen = mixed[by_class[np.lexsort((lots, turns))[:images]]]
    return chosen[np.lexsort((chosen, labels[chosen]))].tolist()
