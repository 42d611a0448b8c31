"""The one door for inputs: whatever holds images becomes a list of paths and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ops.inputs import recognize as recognizing
from ops.inputs.rebase import parse, rebased
from ops.inputs.recognize import Found
from ops.records.image_list import ImageList, label_width


def recognize(source: str | Path) -> str:
    """list, folder, classes, csv, parquet, tar, idx, cifar10, lmdb, leveldb, hdf5, or dataset (made by convert)."""
    return recognizing.find(source).kind


def open_listing(
    source: str | Path, *, labels: str = "caffe", rebase: Sequence[str] = (), workers: int | None = None
) -> ImageList:
    """The images of any input, recognized from its content; a pattern of tars, Parquet files, ... is one input.

    labels: "caffe", "int", "float" or "vector:N"; rebase: OLD=NEW beginnings of paths; workers: threads that read
    folders. The root of what is found in a folder or container is absolute. ValueError or OSError, in one line.
    """
    label_width(labels)
    for rule in rebase:
        parse(rule)
    found = recognizing.find(source)
    listed = LISTINGS[found.kind](found, labels, workers)
    if not len(listed):
        raise ValueError(f"{source}: no images in it")
    return rebased(listed, rebase)


def _list(found: Found, labels: str, workers: int | None) -> ImageList:
    return ImageList.read(found.files[0], labels)


def _folder(found: Found, labels: str, workers: int | None) -> ImageList:
    from ops.inputs.folder import listing

    if labels not in ("caffe", "int"):
        raise ValueError(
            f"{found.files[0]}: a folder's labels are the numbers of its classes; --labels {labels} has none"
        )
    return listing(found.files[0], workers)


def _csv(found: Found, labels: str, workers: int | None) -> ImageList:
    from ops.inputs.table import csv_listing

    return csv_listing(found.files, found.tables, labels)


def _parquet(found: Found, labels: str, workers: int | None) -> ImageList:
    from ops.inputs.table import parquet_listing

    return parquet_listing(found.files, labels)


def _tar(found: Found, labels: str, workers: int | None) -> ImageList:
    from ops.inputs.tar import listing

    return listing(found.files, labels)


def _idx(found: Found, labels: str, workers: int | None) -> ImageList:
    from ops.inputs.idx import listing

    return listing(found.files, labels)


def _cifar(found: Found, labels: str, workers: int | None) -> ImageList:
    from ops.inputs.cifar import listing

    return listing(found.files, labels)


def _hdf5(found: Found, labels: str, workers: int | None) -> ImageList:
    from ops.inputs.hdf5 import listing

    return listing(found.files, labels)


def _lmdb(found: Found, labels: str, workers: int | None) -> ImageList:
    from ops.inputs.database import lmdb_listing

    return lmdb_listing(found.files, labels)


def _leveldb(found: Found, labels: str, workers: int | None) -> ImageList:
    from ops.inputs.database import leveldb_listing

    return leveldb_listing(found.files, labels)


def _dataset(found: Found, labels: str, workers: int | None) -> ImageList:
    return (_lmdb if found.files[0].is_dir() else _hdf5)(found, labels, workers)


LISTINGS: dict[str, Callable[[Found, str, int | None], ImageList]] = {
    "list": _list, "folder": _folder, "classes": _folder, "csv": _csv, "parquet": _parquet, "tar": _tar, "idx": _idx,
    "cifar10": _cifar, "lmdb": _lmdb, "leveldb": _leveldb, "hdf5": _hdf5, "dataset": _dataset,
}  # fmt: skip
