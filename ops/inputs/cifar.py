"""CIFAR-10's binary batches: records of a label byte and 3,072 bytes, red, green and blue planes of 32x32.

The planes keep their order, as Caffe's convert_cifar_data keeps it: nets trained on such records see RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.inputs import containers
from ops.inputs.labels import of_numbers
from ops.inputs.magic import CIFAR_RECORD as RECORD
from ops.inputs.magic import is_cifar
from ops.records.image_list import ImageList

NAMES = "batches.meta.txt"


def listing(files: Sequence[Path], mode: str) -> ImageList:
    """The images of batches; class names from batches.meta.txt beside them."""
    root = containers.root_of(files)
    addresses: list[bytes] = []
    parts = []
    for file in files:
        labels = np.memmap(file, np.uint8, "r")[::RECORD]
        wrong = np.flatnonzero(labels > 9)
        if wrong.size:
            raise ValueError(f"{file}: record {wrong[0]}: label {labels[wrong[0]]}; CIFAR-10 has 0 to 9")
        addresses += containers.numbered(file, root, len(labels))
        parts.append(labels)
    found = containers.listed(addresses, of_numbers(np.concatenate(parts).astype(np.int64), mode, root), root)
    names = files[0].parent / NAMES
    if names.is_file():
        found.classes = names.read_text(errors="replace").split()
    if len(files) > 1:
        found.warnings.append(f"{root}: {', '.join(file.name for file in files)} are listed together")
    return found


class Batch:
    """Images of one batch by number."""

    def __init__(self, file: Path):
        size = file.stat().st_size
        if not is_cifar(file, size):
            raise ValueError(f"{file}: {size:,} bytes are no CIFAR-10 batch, whole records of {RECORD:,} bytes")
        self.file, self.records = file, np.memmap(file, np.uint8, "r").reshape(-1, RECORD)

    def read(self, member: bytes) -> NDArray[Any]:
        record = self.records[containers.place_of(member, len(self.records), str(self.file))]
        return containers.pixels(record[1:].reshape(3, 32, 32))
