"""What a text file is: an image list, a table, or a list of HDF5 files, from its first lines."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ops.inputs.magic import EXTENSIONS, is_hdf5

LINES = 200  # lines that are looked at
PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "img_path",
         "image_file", "image_name", "image_id", "name", "uri")  # fmt: skip
LABELS = ("label", "labels", "class", "class_name", "classname", "class_id", "cls", "category", "category_id",
          "category_name", "target", "targets", "y", "fine_label", "label_name", "label_id")  # fmt: skip
_IMAGE = re.compile(rb"\.(" + "|".join(sorted(EXTENSIONS)).encode() + rb")[\"']?$", re.IGNORECASE)
_NUMBERED = re.compile(rb".*[^ ,;\t|] +[+-]?[0-9.]+(e[+-]?[0-9]+)?\r?$", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Table:
    """How the lines of a table are cut; header: whether the first one names the columns."""

    delimiter: str
    header: bool


def cells(line: bytes, delimiter: bytes) -> list[bytes]:
    """The cells of a line, quotes taken off; commas inside quotes do not cut."""
    quoted = re.findall(rb'(?:^|(?<=%b))("(?:[^"]|"")*"|[^%b]*)' % ((re.escape(delimiter),) * 2), line)
    return [cell.strip().strip(b'"') for cell in quoted]


def is_image_name(text: bytes) -> bool:
    return bool(_IMAGE.search(text.strip()))


def is_list(lines: list[bytes]) -> bool:
    """Do at least a quarter of the lines end in a number behind a space, or name an image?"""
    plausible = 0
    for line in lines:
        path, _, label = line.rstrip(b"\r").rpartition(b" ")
        words = [line.rstrip(b"\r"), path or label, *line.split()]
        plausible += bool(_NUMBERED.fullmatch(line)) or any(map(is_image_name, words))
    return 4 * plausible >= len(lines) > 0


def table(lines: list[bytes]) -> Table | None:
    """The table that the lines are, or None: the same number of cells in nearly all, with a path among them."""
    if not lines:
        return None
    for delimiter in (b",", b"\t", b";", b"|"):
        rows = [cells(line.rstrip(b"\r"), delimiter) for line in lines]
        width = len(rows[0])
        header = not any(map(is_image_name, rows[0]))
        names = {cell.lower().decode("latin-1") for cell in rows[0]}
        if width > 1 and len(rows) > 1 and names & set(PATHS):  # whatever follows: cells may hold newlines
            return Table(delimiter.decode(), header=True)
        if width < 2 or sum(len(row) == width for row in rows) < 0.9 * len(rows):
            continue
        numbered = sum(bool(_NUMBERED.fullmatch(line)) for line in lines) > 0.9 * len(lines)
        if (header and names & {*PATHS, *LABELS} and len(rows) > 1) or not numbered:
            return Table(delimiter.decode(), header)
    if len(lines) > 1 and lines[0].strip().strip(b'"').lower().decode("latin-1") in PATHS:
        return Table(",", header=True)
    return None


def hdf5_sources(lines: bytes, beside: Path) -> list[Path]:
    """The HDF5 files that a source list names, from the current folder (as Caffe) or the list's; [] if it is none."""
    words = [Path(os.fsdecode(word)) for word in lines.split()]
    if not words:
        return []
    first = next((base for base in (Path(), beside) if is_hdf5(base / words[0])), None)
    return [first / word for word in words] if first is not None else []
