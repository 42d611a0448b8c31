"""Files of messages as bytes: read up to a limit, written whole or not at all, told apart by their content."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Literal

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
HEAD = 64 * 1024  # bytes that `kind` looks at
CONTROL = bytes(set(range(32)) - set(b"\t\n\v\f\r")) + b"\x7f"  # bytes that no text holds
Kind = Literal["text", "binary", "hdf5"]


def kind(head: bytes) -> Kind:
    """What a file that starts with `head` is; an empty one is text (and an empty message)."""
    if head.startswith(HDF5_SIGNATURE):
        return "hdf5"
    return "binary" if len(head[:HEAD].translate(None, CONTROL)) < len(head[:HEAD]) else "text"


def sniff(path: str | Path) -> Kind:
    """`kind` of a file: prototxt, binary protobuf (or anything else that is not text), or HDF5."""
    with Path(path).open("rb") as file:
        return kind(file.read(HEAD))


def read_bytes(path: str | Path, limit: int) -> bytes:
    """The whole file; ValueError, before it is read, where it is longer than `limit` bytes."""
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(limit + 1) if size <= limit else b""  # a pipe or a device has size 0
    if max(size, len(data)) > limit:
        raise ValueError(f"{path}: {max(size, len(data)):,} bytes, more than the {limit:,} that such a file may have")
    return data


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file under a temporary name beside it, sync, rename: nobody ever sees a part of it.

    A link is followed; a pipe or a device is written to directly. OSError names the file and the bytes needed.
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            target.write_bytes(data)
        else:
            _replace(target.resolve(), data)
    except OSError as error:
        reason = f"{error.strerror or error}; {len(data):,} bytes were to be written"
        raise OSError(error.errno or 0, reason, str(path)) from error


def _replace(target: Path, data: bytes) -> None:
    temporary = target.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
