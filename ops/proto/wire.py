"""Protobuf's wire format, walked in a file without reading what is not asked for.

A message is a row of fields: a number, how it is written (wire type), and a value or bytes that may be a message again.
Every length is checked against the file, and the number of fields is bounded.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ops.proto import binary
from ops.proto.binary import BYTES, FIXED32, FIXED64, VARINT

MOST_FIELDS = 500_000  # a net of 1,000 layers has 20,000
WINDOW = 16 * 1024  # bytes read at a time
REPEATS = 1 << 20  # records looked through at a time


class DamageError(ValueError):
    """What is wrong with the bytes, without the file's name."""


class Field(NamedTuple):
    """A field and where its content lies; `value`: of a number; `repeats`: equal fixed-size fields in a row."""

    number: int
    wire: int
    start: int
    stop: int
    value: int
    repeats: int


class Bytes:
    """A regular file read at places."""

    def __init__(self, path: str | Path):
        self.path = str(path)
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError(f"{path}: not a file")
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115
        self.size = os.fstat(self.file.fileno()).st_size
        self.window, self.at = b"", 0
        self.fields = 0  # walked so far

    def close(self) -> None:
        self.file.close()

    def into(self, at: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `at` on."""
        done = 0
        while done < len(buffer):
            got = os.preadv(self.file.fileno(), [buffer[done:]], at + done)
            if not got:
                raise ValueError(f"{self.path}: became shorter while it was read")
            done += got

    def read(self, at: int, count: int) -> bytes:
        buffer = bytearray(count)
        self.into(at, memoryview(buffer))
        return bytes(buffer)

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """A number of seven bits a byte, and where it ends."""
        if not self.at <= at <= self.at + len(self.window) - 10:
            self.window, self.at = self.read(at, min(WINDOW, self.size - at)), at
        window, offset, value = self.window, at - self.at, 0
        for index in range(min(10, end - at)):
            byte = window[offset + index]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value & (2**64 - 1), at + index + 1
        raise DamageError(f"cut short at byte {end:,}" if end - at < 10 else f"byte {at:,} starts no number")

    def repeats(self, at: int, end: int, stride: int) -> int:
        """How many records of `stride` bytes from `at` on start with the same byte."""
        found, window = 1, 16
        first = self.read(at, 1)[0]
        while (window := min(window, (end - at) // stride - found)) > 0:
            records = np.frombuffer(self.read(at + found * stride, window * stride), np.uint8)[::stride]
            same = int(np.argmin(records == first)) if (records != first).any() else window
            found += same
            if same < window:
                break
            window = min(4 * window, REPEATS)
        return found


def fields(file: Bytes, start: int, end: int) -> Iterator[Field]:
    """The fields of a message that lies between two places; DamageError where they are none."""
    at = start
    while at < end:
        tag, body = file.varint(at, end)
        number, wire, value, count = tag >> 3, tag & 7, 0, 1
        if wire == VARINT:
            value, stop = file.varint(body, end)
        elif wire == BYTES:
            value, body = file.varint(body, end)
            stop = body + value
        elif wire in (FIXED32, FIXED64):
            width = 4 if wire == FIXED32 else 8
            stop = body + width
            if body == at + 1 and stop <= end:
                count = file.repeats(at, end, 1 + width)
                stop = at + count * (1 + width)
        else:
            stop = 0
        if not stop or not 0 < number < 2**29:
            raise DamageError(f"damaged, or no protobuf message: no field starts at byte {at:,}")
        if stop > end:
            where = (
                f"cut short: {file.size:,} bytes" if end == file.size else f"damaged: a message ends at byte {end:,}"
            )
            raise DamageError(f"{where}, but its field at byte {at:,} ends at byte {stop:,}")
        file.fields += 1
        if file.fields > MOST_FIELDS:
            raise DamageError(f"more than {MOST_FIELDS:,} fields in its first {at:,} bytes")
        yield Field(number, wire, body, stop, value, count)
        at = stop


def fits(known: Any, wire: int) -> bool:
    """Whether a field of the schema may be written so; repeated numbers may be packed."""
    return wire == binary.SIZED.get(known.cpp_type, VARINT) or (known.is_repeated and wire == BYTES)
