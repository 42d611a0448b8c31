"""Scalars for TensorBoard, in its own file format: writing it takes no import of TensorFlow or its kin.

A file is records: length (uint64), its checksum, the bytes of an Event message, their checksum; all little-endian, a
checksum being CRC-32C turned by 15 bits plus a constant. An Event here holds a time, a step and (tag, float) pairs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ops.training.log import writing

PATTERN = "events.out.tfevents.*"
HELD = 4096  # events that wait at most for a flush
ELEMENTS = 16  # of a test output; more are not for curves
SPEED_SECONDS = 1.0  # between points of images_per_s: over fewer it is noise
VERSION = b"\x1a\x0dbrain.Event:2"  # Event.file_version
STARTED = b"\x3a\x02\x08\x01"  # Event.session_log {status: START}


def crc_table() -> NDArray[np.uint32]:
    """What each byte does to a CRC-32C, bits reversed."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table


TABLE = crc_table()


def checksums(blocks: Sequence[bytes]) -> NDArray[np.uint32]:
    """The masked CRC-32C of each block; blocks of one length are done together, byte by byte."""
    sums = np.zeros(len(blocks), np.uint32)
    lengths = np.array([len(block) for block in blocks])
    for length in np.unique(lengths).tolist():
        which = np.flatnonzero(lengths == length)
        data = np.frombuffer(b"".join(blocks[i] for i in which.tolist()), np.uint8).reshape(len(which), length)
        crc = np.full(len(which), 0xFFFFFFFF, np.uint32)
        for column in data.T:
            crc = TABLE[(crc ^ column) & 0xFF] ^ (crc >> 8)
        sums[which] = ~crc
    return (((sums >> 15) | (sums << 17)) + np.uint32(0xA282EAD8)).astype(np.uint32)


def records(messages: Sequence[bytes]) -> bytes:
    """The messages as they stand in a file."""
    heads = [struct.pack("<Q", len(message)) for message in messages]
    sums = checksums([*heads, *messages]).astype("<u4")
    parts = zip(heads, sums[: len(heads)], messages, sums[len(heads) :], strict=True)
    return b"".join(part for head, first, body, last in parts for part in (head, first.tobytes(), body, last.tobytes()))


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def event(at: float, step: int, content: bytes) -> bytes:
    """An Event message: wall_time (s), step, and what it says."""
    return b"\x09" + struct.pack("<d", at) + b"\x10" + varint(step) + content


class Events:
    """The events of a run, in a new file of its folder; nowhere without a folder. What is told waits until `flush`."""

    def __init__(
        self,
        folder: Path | None,
        *,
        step: int = 0,
        also: Callable[[float, int, Mapping[str, float]], None] | None = None,
    ):
        """`step`: where the run begins or goes on: what earlier files tell of this and later steps becomes void.

        `also` is told the same: time, step, numbers by tag.
        """
        self.also = also
        self.heads: dict[str, bytes] = {}
        self.waiting: list[tuple[float, int, Mapping[str, float]]] = []
        self.counted = (0.0, 0.0)
        self.file: IO[bytes] | None = None
        if folder is None:
            return
        earlier = [int(number) for file in folder.glob(PATTERN) if (number := file.name.split(".")[3]).isdigit()]
        stamp = max(int(time.time()), *(number + 1 for number in earlier), 0)  # files are read in the order of names
        self.path = folder / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.0"
        self.file = self.path.open("xb")
        now = time.time()
        self.write([event(now, 0, VERSION), *([event(now, step, STARTED)] if earlier else [])])

    def __enter__(self) -> Events:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
            self.close()

    # -- what a training tells -------------------------------------------------------------------------------------

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by tag at a step; cheap: nothing is encoded yet."""
        if self.file is not None:
            now = time.time()
            if self.also is not None:
                self.also(now, step, values)
            self.waiting.append((now, step, values))
            if len(self.waiting) >= HELD:
                self.flush()

    def trained(self, step: int, loss: float, rate: float, *, images: float, seconds: float) -> None:
        """An iteration. `images` and `seconds` since the start become images per second of at least SPEED_SECONDS."""
        values = {"train/loss": loss, "train/lr": rate}
        before, since = self.counted
        if seconds - since >= SPEED_SECONDS:
            self.counted = images, seconds
            values["train/images_per_s"] = (images - before) / (seconds - since)
        self.scalars(step, values)

    def tested(self, step: int, net: int, outputs: Mapping[str, Sequence[float]]) -> None:
        """The outputs of a test net: test/NAME, with several elements test/NAME/0 and on; test1/NAME of net 1."""
        group = f"test{net or ''}"
        values: dict[str, float] = {}
        for name, elements in outputs.items():
            if len(elements) == 1:
                values[f"{group}/{name}"] = elements[0]
            else:
                values |= {f"{group}/{name}/{k}": value for k, value in enumerate(elements[:ELEMENTS])}
        self.scalars(step, values)

    # -- the file --------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Everything told so far into the file, in one go."""
        told, self.waiting = self.waiting, []
        if told:
            self.write([event(at, step, self.summary(values)) for at, step, values in told])

    def close(self) -> None:
        if self.file is not None:
            with self.file:
                self.flush()
            self.file = None

    def write(self, messages: Sequence[bytes]) -> None:
        assert self.file is not None
        with writing(self.path):
            self.file.write(records(messages))
            self.file.flush()

    def summary(self, values: Mapping[str, float]) -> bytes:
        """Event.summary with a value for each tag."""
        floats = (self.head(tag) + struct.pack("<f", ctypes.c_float(value).value) for tag, value in values.items())
        body = b"".join(floats)
        return b"\x2a" + varint(len(body)) + body

    def head(self, tag: str) -> bytes:
        """A Summary.Value {tag, simple_value} up to its last four bytes."""
        if tag not in self.heads:
            name = tag.encode()
            inner = b"\x0a" + varint(len(name)) + name + b"\x15"
            self.heads[tag] = b"\x0a" + varint(len(inner) + 4) + inner
        return self.heads[tag]
