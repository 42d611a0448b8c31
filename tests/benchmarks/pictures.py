"""Pictures to measure with: seeded crops of scikit-image's photographs as JPEGs, or a folder of one's own."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png")
PHOTOGRAPHS += ("motorcycle_right.png", "retina.jpg", "rocket.jpg")


def photographs() -> list[np.ndarray]:
    """The photographs that ship inside scikit-image, BGR."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    found = [cv2.imread(str(folder / name)) for name in PHOTOGRAPHS]
    return [image for image in found if image is not None]


def crops(
    folder: Path, *, count: int, height: int = 530, width: int = 400, quality: int = 90, seed: int = 0
) -> list[Path]:
    """`count` JPEGs of about height x width, each side within a tenth; made once, the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    sources = photographs()
    files = []
    for number in range(count):
        source = sources[int(rng.integers(len(sources)))]
        tall, wide = (int(side * rng.uniform(0.9, 1.1)) for side in (height, width))
        zoom = max(tall / source.shape[0], wide / source.shape[1], rng.uniform(0.6, 1.2))
        top, left = rng.uniform(size=2)
        file = folder / f"{number:06d}.jpg"
        files.append(file)
        if file.exists():
            continue
        scaled = cv2.resize(
            source, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
        )
        top, left = int(top * (scaled.shape[0] - tall)), int(left * (scaled.shape[1] - wide))
        crop = scaled[max(0, top) :, max(0, left) :][:tall, :wide]
        cv2.imwrite(str(file), crop, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return files


def pictures(folder: Path, *, count: int) -> tuple[list[Path], str]:
    """The JPEGs to measure with, and what they are."""
    own = os.environ.get("BENCH_IMAGES")
    if own:
        files = sorted(path for path in Path(own).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        return files, f"{len(files):,} JPEGs of BENCH_IMAGES={own}"
    files = crops(folder, count=count)
    size = sum(file.stat().st_size for file in files) / len(files) / 1000
    return files, f"{len(files):,} seeded crops of scikit-image's photographs, about 400x530, q 90, {size:.0f} kB each"
