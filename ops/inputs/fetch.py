"""The bytes or pixels behind a path: a plain file, or an image inside a container, CONTAINER#MEMBER."""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

OPEN = 16  # containers that stay open
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)  # a pipe is refused, not waited for


class Container(Protocol):
    """An open container; reading is safe for threads."""

    def read(self, member: bytes) -> bytes | NDArray[Any]: ...


class Fetcher:
    """Fetches images by path or address; safe for threads, keeps a few containers open, pickles as a new one."""

    def __init__(self) -> None:
        self._open: OrderedDict[bytes, Container] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:
        return (Fetcher, ())

    def fetch(self, path: bytes) -> bytes | NDArray[Any]:
        """Encoded bytes, or (H, W, C) uint8 or float32 pixels where the container holds pixels.

        A plain file goes first: names may hold '#'. OSError or ValueError, with a reason in one line.
        """
        try:
            return read_file(path)
        except OSError as error:
            parts = self._split(path)
            if parts is None:
                raise error
        return self._container(parts[0]).read(parts[1])

    def _split(self, path: bytes) -> tuple[bytes, bytes] | None:
        """Container and member: cut at the first '#' before which there is a file or folder."""
        place = path.find(b"#")
        while place >= 0:
            if place and os.path.exists(path[:place]):
                return path[:place], path[place + 1 :]
            place = path.find(b"#", place + 1)
        return None

    def _container(self, path: bytes) -> Container:
        with self._lock:
            if path in self._open:
                self._open.move_to_end(path)
                return self._open[path]
            container = opened(Path(os.fsdecode(path)))
            self._open[path] = container
            if len(self._open) > OPEN:
                self._open.popitem(last=False)  # closed when nobody reads from it any more
            return container


def read_file(path: bytes) -> bytes:
    """A whole plain file."""
    handle = os.open(path, _FLAGS)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(
                21, "Is a directory" if stat.S_ISDIR(found.st_mode) else "Not a plain file", os.fsdecode(path)
            )
        data = os.read(handle, found.st_size + 1)
        if len(data) == found.st_size:
            return data
        parts = [data]  # more than one read gives (2 GiB), or a file that is being written
        while parts[-1]:
            parts.append(os.read(handle, 1 << 24))
        return b"".join(parts)
    finally:
        os.close(handle)


def opened(path: Path) -> Container:
    """The container at a path, recognized from its content."""
    from ops.inputs import recognize

    found = recognize.find(path)
    kind = found.kind
    if kind in ("lmdb", "leveldb", "dataset") and found.files == [path]:
        from ops.inputs import database

        return database.LevelDB(path) if kind == "leveldb" else database.LMDB(path)
    if found.files == [path]:
        if kind == "tar":
            from ops.inputs.tar import Tar

            return Tar(path)
        if kind == "parquet":
            from ops.inputs.table import Parquet

            return Parquet(path)
        if kind == "idx":
            from ops.inputs.idx import IDX

            return IDX(path)
        if kind == "cifar10":
            from ops.inputs.cifar import Batch

            return Batch(path)
        if kind == "hdf5":
            from ops.inputs.hdf5 import HDF5

            return HDF5(path)
    raise ValueError(
        f"{path}: {kind}: no container of images; expected tar, Parquet, IDX, CIFAR-10, LMDB, LevelDB or HDF5"
    )
