"""Image files of a list by number: Caffe's ImageData, with any labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops import image
from ops.feed.source import Example, text
from ops.inputs.fetch import Fetcher
from ops.recipe import fetch
from ops.records.image_list import ImageList


class Files:
    """The pictures of a list: decoded as imread does, resized to exactly `size` (height, width) where there is one.

    The file of a line is root + path. An entry may be an image inside a container too (CONTAINER#MEMBER).
    """

    def __init__(
        self,
        file: Path,
        root: str,
        *,
        color: bool = True,
        size: tuple[int, int] | None = None,
        labels: str = "caffe",
        all_formats: bool = False,
        max_pixels: int = image.MAX_PIXELS,
    ):
        self.file, self.root, self.color, self.size = file, os.fsencode(root), color, size
        self.listed = ImageList.read(file, labels)
        if self.listed.labels.shape[1:] == (1,):
            self.listed.labels = self.listed.labels[:, 0]
        self.fetcher = Fetcher()
        self.options: dict[str, Any] = {"all_formats": all_formats, "max_pixels": max_pixels}

    def look_beside(self, folder: Path | None) -> None:
        """Where the first file is not found from the working folder, as Caffe looks, try from `folder`."""
        first = os.fsdecode(self.root + self.listed.path(0))
        if os.path.isabs(first) or folder is None or os.path.exists(first):
            return
        if os.path.exists(folder / first.partition("#")[0]):
            self.root = os.fsencode(os.path.join(folder, "")) + self.root

    def __len__(self) -> int:
        return len(self.listed)

    def locate(self, indices: NDArray[np.int64]) -> Sequence[int]:
        return indices.tolist()

    def read(self, where: int) -> Example:
        listed = self.listed
        if where in listed.bad:
            raise ValueError(listed.bad[where])
        label = listed.labels[where]
        source = fetch(self.fetcher, self.root + listed.path(where))
        if isinstance(source, bytes):
            pixels = image.decode(source, color=self.color, **self.options)
        else:
            pixels = source  # out of a container of pixels
        if self.size is not None and pixels.shape[:2] != self.size:
            pixels = image.resize(pixels, *self.size)
        return Example(pixels, False, label if label.ndim else float(label), source)

    def name(self, index: int) -> str:
        return f"{self.file}:{index + 1}: {text(self.listed.path(index))}"

    def labels(self) -> NDArray[Any]:
        return self.listed.labels

    def close(self) -> None:
        """Let go of the containers and of the list, which is mapped."""
        del self.fetcher, self.listed
