"""Addresses of images inside containers, CONTAINER#MEMBER, and lists of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ops.inputs.labels import Labels
from ops.records.image_list import ImageList


def root_of(files: Sequence[Path]) -> str:
    """The folder that holds all the containers, absolute, with a slash at its end."""
    folders = [os.path.dirname(os.path.abspath(file)) for file in files]
    return os.path.join(os.path.commonpath(folders), "")


def below(file: Path, root: str) -> bytes:
    """A container's path below the root."""
    return os.fsencode(os.path.abspath(file))[len(os.fsencode(root)) :]


def numbered(file: Path, root: str, count: int, first: int = 0) -> list[bytes]:
    """The addresses of images that have no names: CONTAINER#0, CONTAINER#1, ..."""
    name = below(file, root)
    return [b"%b#%d" % (name, place) for place in range(first, first + count)]


def named(file: Path, root: str, members: Iterable[bytes]) -> list[bytes]:
    """The addresses of images that have names."""
    start = below(file, root) + b"#"
    return [start + member for member in members]


def listed(addresses: list[bytes], labels: Labels, root: str, warnings: Sequence[str] = ()) -> ImageList:
    """A list of addresses; those with a newline are left out, counted and warned about."""
    whole = [place for place, address in enumerate(addresses) if b"\n" not in address]
    notes = [*warnings, *labels.warnings]
    values, bad = labels.values, labels.bad
    if len(whole) < len(addresses):
        notes.append(
            f"{root}: {len(addresses) - len(whole):,} names with a newline were left out: a list holds one a line"
        )
        places = {old: new for new, old in enumerate(whole)}
        bad = {places[old]: reason for old, reason in bad.items() if old in places}
        addresses, values = [addresses[place] for place in whole], values[whole]
    found = ImageList.of(addresses, values, root=root, classes=labels.classes)
    found.warnings += notes
    found.bad.update(bad)
    return found


def place_of(member: bytes, count: int, container: str) -> int:
    """The number in CONTAINER#NUMBER, checked."""
    if not member.isdigit() or int(member[:20]) >= count:
        raise ValueError(f"{container}: no image {os.fsdecode(member)!r}; it holds 0 to {count - 1}")
    return int(member)


def pixels(planes: NDArray[np.generic]) -> NDArray[np.generic]:
    """(C, H, W) planes as (H, W, C) pixels."""
    return np.ascontiguousarray(planes.transpose(1, 2, 0))
