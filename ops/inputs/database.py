"""Databases of Datums: LMDB folders by Caffe or by us, one or several parts, and LevelDB folders."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.inputs import containers
from ops.inputs.containers import pixels
from ops.inputs.damage import told
from ops.inputs.labels import of_numbers
from ops.inputs.magic import starts_as_image
from ops.records import datum
from ops.records.image_list import ImageList
from ops.records.lmdb_pages import Pages

OWN_FILES = ("LOCK", "LOG", "LOG.old")  # of a LevelDB, for whoever has it open
EXTRA = "pip install 'cortado[leveldb]'"


def label_of(record: bytes | memoryview) -> int:
    """The label of a Datum; 0 for an image file that stands without one. ValueError where it is neither."""
    return 0 if starts_as_image(bytes(record[:16])) else datum.parse(record).label


def image_of(record: bytes | memoryview) -> bytes | NDArray[Any]:
    """The encoded bytes or the (H, W, C) pixels of a record."""
    if starts_as_image(bytes(record[:16])):
        return bytes(record)
    parsed = datum.parse(record)
    return bytes(parsed.data) if parsed.encoded else pixels(parsed.pixels())


def lmdb_listing(folders: Sequence[Path], mode: str) -> ImageList:
    """The records of LMDB folders, in the order of the folders and of their keys."""
    return _listing([(folder, Pages(folder).items()) for folder in folders], mode, "LMDB")


def leveldb_listing(folders: Sequence[Path], mode: str) -> ImageList:
    """The records of a LevelDB folder, in the order of the keys."""
    return _listing([(folder, LevelDB(folder).items()) for folder in folders], mode, "LevelDB")


def _listing(parts: Sequence[tuple[Path, Iterator[tuple[bytes, Any]]]], mode: str, what: str) -> ImageList:
    root = containers.root_of([folder for folder, _ in parts])
    addresses: list[bytes] = []
    labels: list[int] = []
    for folder, records in parts:
        keys = []
        for key, record in records:
            keys.append(key)
            try:
                labels.append(label_of(record))
            except ValueError as error:
                raise ValueError(f"{folder}: record {os.fsdecode(key)}: {error}") from None
        addresses += containers.named(folder, root, keys)
    if not addresses:
        raise ValueError(f"{parts[0][0]}: an empty {what}; expected Datum records")
    where = str(parts[0][0])
    return containers.listed(addresses, of_numbers(np.array(labels, np.int64), mode, where), root)


class LMDB:
    """Images of one LMDB folder by key."""

    def __init__(self, folder: Path):
        self.folder, self.pages = folder, Pages(folder)

    def read(self, member: bytes) -> bytes | NDArray[Any]:
        try:
            record = self.pages.get(member)
        except KeyError:
            raise ValueError(f"{self.folder}: no record with key {os.fsdecode(member)}") from None
        return image_of(record)


class LevelDB:
    """Images of one LevelDB folder by key.

    LevelDB locks a folder and writes into it even to read. So its files, which never change, are linked into a folder
    of our own, and any number of processes can read a database that nobody may write.
    """

    def __init__(self, folder: Path):
        try:
            import plyvel
        except ImportError:
            raise ValueError(f"{folder}: a LevelDB; reading it needs the extra: {EXTRA}") from None
        self.folder = folder
        own = tempfile.mkdtemp(prefix="cortado-leveldb-")
        self._remove = weakref.finalize(self, shutil.rmtree, own, ignore_errors=True)
        for file in folder.iterdir():
            if file.name not in OWN_FILES and file.is_file():
                os.symlink(file.absolute(), os.path.join(own, file.name))
        self.lock = threading.Lock()
        self.errors = (plyvel.Error,)
        with told(folder, "LevelDB", *self.errors):
            self.db = plyvel.DB(own, create_if_missing=False, paranoid_checks=True)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        with told(self.folder, "LevelDB", *self.errors):
            yield from self.db.iterator(verify_checksums=True)

    def read(self, member: bytes) -> bytes | NDArray[Any]:
        with told(self.folder, "LevelDB", *self.errors):
            record = self.db.get(member, verify_checksums=True)
        if record is None:
            raise ValueError(f"{self.folder}: no record with key {os.fsdecode(member)}")
        return image_of(record)
