"""LMDB folders of records, as Caffe's tools write and read them: data.mdb, the unnamed database, keys in byte order."""

from __future__ import annotations

import contextlib
import errno
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import lmdb

from ops.records.lmdb_pages import Pages

COMMIT_EVERY = 256  # records; Caffe's tools: 1000. Fewer keep the pages of a transaction in reach of the cache
COMMIT_BYTES = 64 << 20  # or as soon as a transaction holds this much: its pages stand in memory
FIRST_MAP = 16 << 20  # bytes; doubled whenever the next transaction might not fit, so that no file claims a terabyte
SLACK = 1 << 20  # bytes a transaction needs besides its values: tree pages and their copies
LONGEST_KEY = 511  # bytes


class Writer:
    """Writes records with ascending keys into a new folder; the same records give the same file.

    A value may be any buffer; it is copied before `put` returns. Raises OSError (ENOSPC) on a full disk.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True)
        self.map_size, self.held = FIRST_MAP, 0
        with self._no_space():
            # meminit stays on: without it old heap memory gets into the file, and the bytes differ from run to run.
            self.env = lmdb.open(str(folder), map_size=self.map_size, sync=False, metasync=False, max_dbs=0)
        self.page = self.env.stat()["psize"]
        self.count = 0
        self._begin()

    def _begin(self) -> None:
        self.txn = self.env.begin(write=True)
        self.cursor = self.txn.cursor()
        self.pending = self.held = 0
        self.room = self.map_size - (self.env.info()["last_pgno"] + 1) * self.page - SLACK

    def put(self, key: bytes, value: bytes | bytearray | memoryview) -> None:
        """Append one record; keys ascend in byte order, which is the order of reading."""
        needed = len(key) + len(value) + 2 * self.page
        if needed > self.room or self.pending >= COMMIT_EVERY or self.held >= COMMIT_BYTES:
            self._commit()
            while needed > self.room:
                self.txn.abort()
                self.map_size *= 2
                self.env.set_mapsize(self.map_size)
                self._begin()
        with self._no_space():
            if not self.cursor.put(key, value, append=True, overwrite=False):
                raise ValueError(f"key {key!r} does not follow the keys before it in byte order")
        self.room -= needed
        self.pending += 1
        self.held += needed
        self.count += 1

    def _commit(self) -> None:
        with self._no_space():
            self.txn.commit()
        self._begin()

    def close(self) -> None:
        """Commit, sync to the disk, and take the lock file away."""
        with self._no_space():
            self.txn.commit()
            self.env.sync(True)
        self.env.close()
        (self.folder / "lock.mdb").unlink(missing_ok=True)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(lmdb.Error):
                self.txn.abort()
            self.env.close()

    @contextlib.contextmanager
    def _no_space(self) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as error:
            told = str(error)
            cut_short = "Input/output" in told and shutil.disk_usage(self.folder).free < self.held + SLACK
            if "No space left" in told or cut_short:  # LMDB calls a write that only partly fitted an I/O error
                raise OSError(errno.ENOSPC, "No space left on device", str(self.folder)) from error
            if "Input/output" in told or "quota" in told:
                raise OSError(errno.EIO, " ".join(told.split()), str(self.folder)) from error
            raise


def is_lmdb(folder: Path) -> bool:
    """Whether the folder holds an LMDB: a data.mdb with LMDB's magic number in its first page."""
    try:
        with (folder / "data.mdb").open("rb") as file:
            return file.read(20)[16:20] == b"\xde\xc0\xef\xbe"
    except OSError:
        return False


class Reader:
    """Read-only records of one LMDB folder; a damaged file is a ValueError and never a crash (see lmdb_pages.py)."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        if not is_lmdb(self.folder):
            raise ValueError(f"{folder}: not an LMDB folder (no data.mdb with LMDB's magic number)")
        self.pages = Pages(self.folder)

    def __len__(self) -> int:
        return len(self.pages)

    def ends(self) -> tuple[bytes, bytes]:
        """The first and the last key; two empty ones when there is no record."""
        return self.pages.ends()

    def get(self, key: bytes) -> memoryview:
        """The value of a key; KeyError where there is none."""
        return self.pages.get(key)

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[bytes, memoryview]]:
        """(key, value) in key order, places start..stop-1; values are views of the file."""
        return itertools.islice(self.pages.items(), start, stop)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        """The file is let go of with the last view of it."""
