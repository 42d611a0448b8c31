"""Tar shards as WebDataset has them: members that share a name up to its first dot are a sample (a.jpg, a.cls).

Only the 512-byte heads are read to index a tar; an image is then one read at its place.
"""

from __future__ import annotations

import json
import os
import re
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ops.inputs import containers
from ops.inputs.labels import none, of_objects
from ops.inputs.magic import EXTENSIONS, is_tar_head
from ops.inputs.magic import TAR_BLOCK as BLOCK
from ops.records.image_list import ImageList

LONGEST_NAME = 1 << 20  # bytes of an extended header that are believed
LARGEST_SIDECAR = 1 << 20  # bytes of a label
FILE = (b"0", b"\0", b"7")  # type flags of plain files
LABEL_KEYS = ("label", "cls", "class", "class_id", "class_name", "target", "category")  # in a sample's .json
_SAMPLE = re.compile(rb"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)


@dataclass
class Sample:
    """The members of one key; image: the one that is listed."""

    image: bytes | None = None
    others: int = 0
    label: Any = None
    parts: dict[bytes, tuple[int, int]] = field(default_factory=dict)  # extension -> place and size


def _number(text: bytes, file: Path, place: int) -> int:
    """A size in octal digits, or in base 256 where the first bit is set."""
    if text[0] & 0x80:
        return int.from_bytes(text[1:], "big")
    digits = text.strip(b" \0")
    if digits.strip(b"01234567"):
        raise ValueError(f"{file}: damaged tar: no size in the member head at byte {place}")
    return int(digits or b"0", 8)


def members(file: Path, notes: list[str] | None = None) -> Iterator[tuple[bytes, int, int]]:
    """(name, place, size) of the plain files in a tar; ValueError where it is damaged or cut short.

    notes: gets a line where the two blocks of zeros at the end are missing, which a cut between members leaves.
    """
    with file.open("rb") as opened:
        handle, end = opened.fileno(), opened.seek(0, os.SEEK_END)
        place, name = 0, None
        size_said: int | None = None
        while place + BLOCK <= end:
            head = os.pread(handle, BLOCK, place)
            if not any(head):
                return
            if not is_tar_head(head):
                raise ValueError(f"{file}: damaged tar: no member head at byte {place:,}")
            size, kind, start = _number(head[124:136], file, place), head[156:157], place + BLOCK
            if size_said is not None and kind not in b"xgLK":
                size = size_said
            if start + size > end:
                raise ValueError(f"{file}: cut short: a member reaches to byte {start + size:,}, the file to {end:,}")
            if kind in b"xL" and size > LONGEST_NAME:
                raise ValueError(f"{file}: damaged tar: a name of {size:,} bytes")
            if kind == b"L":
                name = os.pread(handle, size, start).rstrip(b"\0")
            elif kind == b"x":
                name, size_said = _extended(os.pread(handle, size, start), name, file)
            elif kind not in b"gK":
                if kind in FILE:
                    yield name or _name(head), start, size
                name, size_said = None, None
            place = start + -(-size // BLOCK) * BLOCK
        if place != end:
            raise ValueError(f"{file}: cut short at byte {end:,}, inside a block of {BLOCK} bytes")
        if notes is not None:
            notes.append(f"{file}: no mark at its end: cut short?")


def _name(head: bytes) -> bytes:
    """The name in a head, with POSIX's prefix."""
    name = head[:100].split(b"\0", 1)[0]
    prefix = head[345:500].split(b"\0", 1)[0] if head[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _extended(data: bytes, name: bytes | None, file: Path) -> tuple[bytes | None, int | None]:
    """path and size of a pax header: records of "LENGTH KEY=VALUE newline"."""
    size, place = None, 0
    while place < len(data):
        digits = data[place : place + 20].split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() else 0
        if not 0 < length <= len(data) - place:
            raise ValueError(f"{file}: damaged tar: an extended header of no sense")
        key, _, value = data[place + len(digits) + 1 : place + length - 1].partition(b"=")
        if key == b"path":
            name = value
        elif key == b"size" and value.isdigit():
            size = int(value[:20])
        place += length
    return name, size


def listing(files: Sequence[Path], mode: str) -> ImageList:
    """The samples of one or more tars, in their order, with the labels of their .cls or .json members."""
    root = containers.root_of(files)
    addresses: list[bytes] = []
    labels: list[Any] = []
    more = without = 0
    notes: list[str] = []
    for file in files:
        samples = _samples(file, notes)
        listed = [sample for sample in samples if sample.image is not None]
        without += len(samples) - len(listed)
        more += sum(sample.others for sample in listed)
        addresses += containers.named(file, root, [sample.image or b"" for sample in listed])
        labels += [sample.label for sample in listed]
    where = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1:,} more"
    if not addresses:
        raise ValueError(f"{where}: no images in it; expected members like cat.0001.jpg with cat.0001.cls beside them")
    if all(label is None for label in labels):
        found = none(len(labels), where, mode, "no .cls or .json members with labels")
    else:
        found = of_objects(labels, mode, where)
    found.warnings += notes
    if without:
        found.warnings.append(f"{where}: {without:,} samples without an image were left out")
    if more:
        found.warnings.append(f"{where}: {more:,} further images of the same samples were left out")
    return containers.listed(addresses, found, root)


def _samples(file: Path, notes: list[str]) -> list[Sample]:
    samples: dict[bytes, Sample] = {}
    for name, place, size in members(file, notes):
        match = _SAMPLE.fullmatch(name)
        if not match:
            continue
        sample, extension = samples.setdefault(match[1], Sample()), match[2].lower()
        if extension.rpartition(b".")[2].decode("latin-1") in EXTENSIONS:
            plain = b"." not in extension
            sample.others += sample.image is not None
            if sample.image is None or (plain and b"." in _SAMPLE.fullmatch(sample.image)[2]):  # type: ignore[index]
                sample.image = name
        else:
            sample.parts[extension] = (place, size)
    with file.open("rb") as opened:
        for sample in samples.values():
            sample.label = _label(opened.fileno(), sample, file)
    return list(samples.values())


def _label(handle: int, sample: Sample, file: Path) -> Any:
    """What the .cls or .json member says; None where there is none."""
    for extension in (b"cls", b"json"):
        place, size = sample.parts.get(extension, (0, 0))
        if not 0 < size <= LARGEST_SIDECAR:
            continue
        text = os.pread(handle, size, place).decode(errors="replace").strip()
        if extension == b"cls":
            return text
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError(f"{file}: the .json of {os.fsdecode(sample.image or b'?')} is no JSON") from None
        if isinstance(said, dict):
            said = next((said[key] for key in LABEL_KEYS if key in said), None)
        if said is not None:
            return said
    return None


class Tar:
    """Images of one tar by name."""

    def __init__(self, file: Path):
        self.file, self.handle = file, os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.handle)
        self.places = {name: (place, size) for name, place, size in members(file)}

    def read(self, member: bytes) -> bytes:
        if member not in self.places:
            raise ValueError(f"{self.file}: no member {os.fsdecode(member)}")
        place, size = self.places[member]
        return os.pread(self.handle, size, place)
