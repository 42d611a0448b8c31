"""What a recipe must know of a data set: its parts, how many records, their shape, their labels, the mean.

DATA is the folder that `prepare` makes (train/, test/, mean.binaryproto), or one that `convert` makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ops.names import hint, quoted
from ops.records import binaryproto, hdf5, lmdb
from pipelines.stages.dataset import Dataset, open_dataset

TRAINING = ("train", "training")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # endings of names
TESTING = ("test", "val", "valid", "validation")
MEAN = "mean.binaryproto"
LOOKED_AT = 64  # records whose shape is compared where no manifest tells it
SCANNED = 200_000  # records whose labels are read although the manifest names the classes


@dataclass(frozen=True)
class Pictures:
    """A data set to train with; paths are as the user gave them.

    kind: lmdb or hdf5 · shape: (C, H, W) · classes: how many, 0 where labels are `numbers` of each record · names: of
    classes, as far as known · mean: file, None where there is none · centre: mean of all values, 0 where it was taken
    off already.
    """

    kind: str
    train: Path
    test: Path | None
    records: int
    tested: int
    shape: tuple[int, int, int]
    classes: int
    numbers: int
    names: tuple[str, ...]
    mean: Path | None
    centre: float
    sorted: bool

    @property
    def size(self) -> str:
        """As 256x256."""
        return f"{self.shape[1]}x{self.shape[2]}"


def look(data: Path, *, test: Path | None = None, mean: Path | None = None) -> Pictures:
    """ValueError or OSError of one line where it is no data set that a net could be trained with."""
    train, found = parts(data)
    test = test or found
    opened = open_dataset(train)
    if not opened.count:
        raise ValueError(f"{train}: holds no records")
    other = open_dataset(test) if test is not None else None
    if other is not None and (other.format != opened.format or not other.count):
        told = "holds no records" if not other.count else f"is {other.format}, {train} is {opened.format}"
        raise ValueError(f"{test}: {told}")
    shape, values = shape_of(opened)
    if other is not None and (shape_there := shape_of(other)[0]) != shape:
        raise ValueError(f"{test}: records of {by(shape_there)}, those of {train} are {by(shape)}")
    numbers = numbers_of(opened)
    names = classes_of(opened)
    labels = None if numbers or (names and opened.count > SCANNED) else labels_of(opened)
    file = mean_file(data, train, mean, shape)
    centred = opened.manifest is not None and opened.manifest["options"].get("mean") is not None
    middle = float(binaryproto.read(file).mean()) if file is not None else values
    return Pictures(
        kind=opened.format,
        train=train,
        test=test,
        records=opened.count,
        tested=other.count if other is not None else 0,
        shape=shape,
        classes=0 if numbers else count_classes(names, labels, train, other),
        numbers=numbers,
        names=tuple(names),
        mean=None if centred else file,
        centre=0.0 if centred else middle,
        sorted=labels is not None and in_lumps(labels),
    )


def parts(data: Path) -> tuple[Path, Path | None]:
    """The part to train with and the part to test with, None where there is none."""
    if not data.exists():
        siblings = [one.name for one in data.parent.iterdir()] if data.parent.is_dir() else []
        raise FileNotFoundError(2, f"there is no such data set{hint(data.name, siblings)}", str(data))
    held = sorted(one.name for one in data.iterdir() if is_set(one)) if data.is_dir() else []
    if not held and has_pictures(data):
        raise ValueError(f"{data}: pictures, not records of them: cortado prepare {data} --out data makes a data set")
    if not held or is_set(data):
        return data, None
    train = next((name for name in TRAINING if name in held), None)
    if train is None:
        first = data / held[0]
        told = f"holds the data sets {', '.join(held)}, and none is called train"
        raise ValueError(f"{data}: {told}; give them by name, as --data {first} --test {data / held[-1]}")
    test = next((name for name in TESTING if name in held), None)
    return data / train, data / test if test else None


def has_pictures(folder: Path) -> bool:
    """Whether pictures lie in a folder, or in folders of it."""
    return any(file.suffix.lower() in PICTURES for deep in ("*", "*/*") for file in folder.glob(deep))


def is_set(folder: Path) -> bool:
    """Whether a folder holds records itself."""
    if not folder.is_dir():
        return False
    held = folder / "manifest.json"
    return held.is_file() or lmdb.is_lmdb(folder) or any(folder.glob("part-*.lmdb")) or any(folder.glob("part-*.h5"))


def shape_of(data: Dataset) -> tuple[tuple[int, int, int], float]:
    """(C, H, W) of every record, and the mean of the values of those that were looked at."""
    seen: set[tuple[int, ...]] = set()
    means: list[float] = []
    known = tuple((data.manifest or {}).get("shape") or ())
    for place in np.unique(np.linspace(0, data.count - 1, min(LOOKED_AT, data.count)).astype(int)).tolist():
        _, values, _ = next(data.records(place, place + 1))
        seen.add(values.shape)
        means.append(float(values.mean()))
    if len(seen) > 1 or (known and seen != {known}):
        told = " and ".join(by(shape) for shape in sorted(seen)[:2])
        raise ValueError(
            f"{data.path}: records differ in size, {told}: make it with --resize-height and --resize-width"
        )
    shape = seen.pop()
    if len(shape) != 3:
        raise ValueError(f"{data.path}: records of {by(shape)}; expected pictures, channels x height x width")
    channels, height, width = shape
    return (channels, height, width), float(np.mean(means))


def numbers_of(data: Dataset) -> int:
    """How many numbers the label of a record is; 0 where it is a class."""
    if data.format != "hdf5":
        return 0
    first = label_column(data.shards[:1])
    if first.ndim > 1 and first.shape[1] > 1:
        return int(first.shape[1])
    said = str((data.manifest or {}).get("options", {}).get("labels", ""))
    if said.startswith(("float", "vector")):
        return 1
    whole = label_column(data.shards)
    return int(bool((whole < 0).any() or (whole != np.round(whole)).any()))


def label_column(files: Sequence[Path]) -> NDArray[Any]:
    """The labels in HDF5 files, (N,) or (N, K)."""
    found = []
    for path in files:
        with h5py.File(path, "r") as file:
            if "label" not in file:
                raise ValueError(f"{path}: no dataset 'label'{hint('label', file)}")
            found.append(np.asarray(file["label"]))
    return np.concatenate(found)


def labels_of(data: Dataset) -> NDArray[np.int64]:
    """The class of every record, in order."""
    if data.format == "hdf5":
        return label_column(data.shards).reshape(data.count).astype(np.int64)
    from ops.feed import database

    found = []
    for shard in data.shards:
        source = database.LMDB(shard, database.Parser())
        found.append(source.labels())
        source.close()
    return np.concatenate(found)


def classes_of(data: Dataset) -> list[str]:
    """Names by label, from the manifest, or from a classes.txt in the folder or beside it."""
    held = (data.manifest or {}).get("classes")
    if held:
        return list(held.values()) if isinstance(held, dict) else list(held)
    folder = data.path if data.path.is_dir() else data.path.parent
    for file in (folder / "classes.txt", folder.parent / "classes.txt"):
        if file.is_file():
            return file.read_text(encoding="utf-8", errors="replace").splitlines()
    return []


def count_classes(names: Sequence[str], labels: NDArray[np.int64] | None, train: Path, test: Dataset | None) -> int:
    """One more than the largest label, or as many as have names."""
    if labels is None:
        return len(names)
    largest, where = int(labels.max()), train
    if labels.min() < 0:
        raise ValueError(f"{train}: a record has the label {int(labels.min())}; classes count from 0")
    if test is not None and test.count <= SCANNED:
        there = labels_of(test)
        if int(there.max()) > largest:
            largest, where = int(there.max()), test.path
    if names and largest >= len(names):
        raise ValueError(f"{where}: a record has the label {largest}, and there are {len(names)} class names")
    return max(len(names), largest + 1)


def in_lumps(labels: NDArray[np.int64]) -> bool:
    """Whether every class stands in one piece: a batch would see one class, or two."""
    kinds = len(np.unique(labels))
    return 1 < kinds == int(np.count_nonzero(np.diff(labels))) + 1 and len(labels) > kinds


def mean_file(data: Path, train: Path, given: Path | None, shape: tuple[int, ...]) -> Path | None:
    """The mean image that was asked for, or that lies with the data; it must be one of such records."""
    places = [given] if given is not None else [data / MEAN, train / MEAN, train.parent / MEAN]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        if given is not None:
            raise FileNotFoundError(2, "there is no such mean file", str(given))
        return None
    found = binaryproto.read(file).shape
    if tuple(found) != shape:
        if given is None and file.parent != data:
            return None
        raise ValueError(f"{file}: a mean of {by(found)}, the records are {by(shape)}: cortado mean {train} makes one")
    return file


def by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def is_hdf5_list(path: Path) -> bool:
    """Whether a file is the list that an HDF5Data layer names."""
    return path.suffix == ".txt" and path.is_file() and not hdf5.is_hdf5(path)


def listed(part: Path) -> Path:
    """What an HDF5Data layer names: the list of a data set."""
    file = part / "list.txt" if part.is_dir() else part
    if not is_hdf5_list(file):
        raise ValueError(f"{quoted(str(file))}: expected a list of HDF5 files, as convert writes it")
    return file
