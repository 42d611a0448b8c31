"""The demo's pictures: what other packages ship, written as a user would have it; a sheet of what became of it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

PHOTOGRAPHS = {  # package -> files in it
    "skimage": ("data/astronaut.png", "data/chelsea.png", "data/coffee.png", "data/motorcycle_left.png"),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
}
EXTRA = "pip install scikit-image scikit-learn"
EDGE = 1  # black pixels around a digit: strokes reach the border of the 8x8, and are to be moved a little in training


def check_packages() -> None:
    """ValueError where a package that ships the pictures is missing."""
    missing = [package for package in PHOTOGRAPHS if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f"the demo's pictures come with {missing[0]}, which is not installed: {EXTRA}")


def filled(folder: Path, write: Callable[[Path], None]) -> bool:
    """Fill `folder` through `write` unless an earlier run did; whether there was anything to do.

    It is filled under another name and then renamed: a folder that has its name is whole.
    """
    if folder.exists():
        return False
    scratch = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    write(scratch)
    scratch.rename(folder)
    return True


def count(*folders: Path) -> int:
    """Picture files below the folders."""
    return sum(not file.endswith(".txt") for folder in folders for _, _, files in os.walk(folder) for file in files)


def write_digits(folder: Path) -> None:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey values 0..16, as PNG files of 10x10 values 0..255 in folders
    0 to 9."""
    import cv2
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    for name in digits.target_names:
        (folder / str(name)).mkdir()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    pixels = np.pad(pixels, ((0, 0), (EDGE, EDGE), (EDGE, EDGE)))
    for number, (image, digit) in enumerate(zip(pixels, digits.target, strict=True)):
        cv2.imwrite(str(folder / str(digit) / f"{number:04d}.png"), image)


def write_photographs(folder: Path) -> None:
    """Photographs of several shapes as they are, and a list of them."""
    lines = []
    for package, files in PHOTOGRAPHS.items():
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        for file in map(Path(spec.origin).parent.joinpath, files):
            shutil.copy(file, folder / file.name)
            lines.append(f"{file.name} {len(lines)}\n")
    (folder / "list.txt").write_text("".join(lines))


def write_sheet(file: Path, pictures: Path, made: dict[str, Path]) -> None:
    """One column a photograph, one row an operation (two where it makes several records of a picture)."""
    import cv2

    from ops.contact_sheet import contact_sheet
    from pipelines.stages.dataset import open_dataset

    names = [line.rpartition(" ")[0] for line in (pictures / "list.txt").read_text().splitlines()]
    cells = [(cv2.imread(str(pictures / name)), name) for name in names]
    cells = [(image, f"{name}\n{image.shape[0]} x {image.shape[1]}") for image, name in cells]
    for operation, folder in made.items():
        rows: dict[str, list[tuple[Any, str]]] = {}  # copy -> its cells
        for key, pixels, _ in open_dataset(folder).records():
            image, copy = pixels.transpose(1, 2, 0).copy(), key.decode().partition("#")[2]
            caption = f"{operation} #{int(copy)}" if copy else operation
            rows.setdefault(copy, []).append((image, f"{caption}\n{image.shape[0]} x {image.shape[1]}"))
        if operation == "augmented":
            del rows[""]  # the first version is the picture as it is: the centre crop, shown already
        cells += [cell for copy in sorted(rows) for cell in rows[copy]]
    images, captions = zip(*cells, strict=True)
    cv2.imwrite(str(file), contact_sheet(images, captions, len(names), title="What convert can do to a picture"))
