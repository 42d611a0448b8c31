"""Datum, Caffe's record: written and read field by field, because a general protobuf writer copies the pixels thrice.

Fields in number order, as protobuf writes them: channels 1, height 2, width 3, data 4, label 5, float_data 6 (a tag for
each value: the field is not packed), encoded 7. What convert_imageset leaves unset stays unset (data.md section 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

MOST_OVERHEAD = 64  # bytes of a raw Datum besides its pixels, at the most
_FLOAT_TAG = 0x35  # field 6, four bytes


@dataclass(frozen=True)
class Datum:
    """A parsed record; data is a view into the bytes it was parsed from, float_data is (n,) float32."""

    channels: int = 0
    height: int = 0
    width: int = 0
    data: memoryview | bytes = b""
    label: int = 0
    float_data: NDArray[np.float32] | None = None
    encoded: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    def pixels(self) -> NDArray[Any]:
        """(C, H, W): uint8 from data, float32 from float_data. ValueError for an encoded or inconsistent record."""
        if self.encoded:
            raise ValueError("an encoded record has no pixels before it is decoded")
        flat = np.frombuffer(self.data, np.uint8) if len(self.data) else self.float_data
        count = 0 if flat is None else flat.size
        if flat is None or min(self.shape) < 0 or count != self.channels * self.height * self.width:
            raise ValueError(f"a record of {'x'.join(map(str, self.shape))} holds {count} values")
        return flat.reshape(self.shape)


def _varint(value: int) -> bytes:
    """Base-128, low groups first; negative numbers as 64-bit two's complement, as protobuf's int32."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def raw(image: NDArray[np.uint8], label: int, *, into: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """The Datum of an (H, W, C) uint8 image, as a flat array: planes, rows inside, `encoded` present and false.

    `into`: a buffer to write it into where it is large enough; a record that is used up before the next one is made
    stays in the processor's cache so.
    """
    height, width, channels = image.shape
    plane = height * width
    head = b"\x08%b\x10%b\x18%b\x22%b" % tuple(map(_varint, (channels, height, width, channels * plane)))
    tail = b"\x28%b\x38\x00" % _varint(label)
    size = len(head) + channels * plane + len(tail)
    # numpy's memory and not a bytearray's, which is zeroed page by page
    out = np.empty(size, np.uint8) if into is None or into.size < size else into[:size]
    out[: len(head)] = np.frombuffer(head, np.uint8)
    out[out.size - len(tail) :] = np.frombuffer(tail, np.uint8)
    pixels = out[len(head) : out.size - len(tail)].reshape(channels, height, width)
    if channels == 3 and plane:
        cv2.split(image, list(pixels))  # straight into the record: several times as fast as a transposed copy
    else:
        pixels[:] = image.transpose(2, 0, 1)
    return out


def floats(values: NDArray[np.float32], label: int) -> bytes:
    """The Datum of (C, H, W) float32 values in float_data; `encoded` present and false."""
    channels, height, width = values.shape
    body = np.empty(values.size, np.dtype([("tag", "u1"), ("value", "<f4")]))
    body["tag"] = _FLOAT_TAG
    body["value"] = values.ravel()
    head = b"\x08%b\x10%b\x18%b\x28%b" % tuple(map(_varint, (channels, height, width, label)))
    return head + body.tobytes() + b"\x38\x00"


def encoded(data: bytes, label: int) -> bytes:
    """The Datum of an encoded image: its file bytes, no shape."""
    return b"\x22%b%b\x28%b\x38\x01" % (_varint(len(data)), data, _varint(label))


def parse(record: bytes | memoryview) -> Datum:
    """A Datum from its bytes, fields in any order, unknown fields skipped; ValueError when it is not one."""
    view = memoryview(record).cast("B")
    fields: dict[str, Any] = {}
    singles: list[NDArray[np.float32]] = []
    place = 0
    try:
        while place < len(view):
            tag, place = _read_varint(view, place)
            place = _read_field(view, tag, place, fields, singles)
    except IndexError:
        raise ValueError(f"not a Datum: cut short at byte {place} of {len(view)}") from None
    if singles:
        fields["float_data"] = np.concatenate(singles)
    return Datum(**fields)


_NUMBERS = {1: "channels", 2: "height", 3: "width", 5: "label", 7: "encoded"}


def _read_field(view: memoryview, tag: int, place: int, fields: dict[str, Any], singles: list[Any]) -> int:
    number, wire = tag >> 3, tag & 7
    if number == 0:
        raise ValueError(f"not a Datum: field number 0 before byte {place}")
    if wire == 0:
        value, place = _read_varint(view, place)
        if number in _NUMBERS:
            fields[_NUMBERS[number]] = bool(value) if number == 7 else (value + (1 << 31)) % (1 << 32) - (1 << 31)
        return place
    if wire == 5 and number == 6:
        count = _run(view, place)
        spaced = np.frombuffer(view, np.uint8, 5 * count - 1, place)
        singles.append(np.append(spaced, np.uint8(0)).reshape(count, 5)[:, :4].copy().view("<f4").ravel())
        return place + 5 * count - 1
    size = {1: 8, 5: 4}.get(wire)
    if wire == 2:
        size, place = _read_varint(view, place)
    if size is None:
        raise ValueError(f"not a Datum: wire type {wire} at byte {place}")
    if place + size > len(view):
        raise IndexError
    if wire == 2 and number == 4:
        fields["data"] = view[place : place + size]
    elif wire == 2 and number == 6:  # packed, as some writers have it
        if size % 4:
            raise ValueError(f"not a Datum: packed floats of {size} bytes")
        singles.append(np.frombuffer(view, "<f4", size // 4, place))
    return place + size


def _run(view: memoryview, place: int) -> int:
    """How many four-byte values with a tag between them start at `place`."""
    if place + 4 > len(view):
        raise IndexError
    tags = np.frombuffer(view, np.uint8)[place + 4 :: 5]
    tags = tags[: (len(view) - place - 4) // 5]  # a tag counts only with its value whole behind it
    other = np.flatnonzero(tags != _FLOAT_TAG)
    return 1 + int(other[0] if other.size else tags.size)


def _read_varint(view: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError(f"not a Datum: a number of more than ten bytes at byte {place}")
