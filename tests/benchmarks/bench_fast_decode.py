"""`--fast-decode` on 12-megapixel photographs against the exact path: decode and resize to 256x256, one core."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import cv2

from tests.benchmarks.common import row, workplace
from tests.benchmarks.pictures import photographs

SIDES = (4000, 3000)


def large(folder: Path) -> list[Path]:
    """Photographs of 12 megapixels: scikit-image's enlarged, or those of BENCH_IMAGES that have as many."""
    if os.environ.get("BENCH_IMAGES"):
        files = sorted(Path(os.environ["BENCH_IMAGES"]).rglob("*.jp*g"))
        return [file for file in files if cv2.imread(str(file)).size >= 3 * 12_000_000][:20]
    folder.mkdir()
    files = []
    for number, image in enumerate(photographs()):
        files.append(folder / f"{number}.jpg")
        enlarged = cv2.resize(image, SIDES, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(files[-1]), enlarged, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return files


def main() -> None:
    from ops.recipe import Line, Recipe

    with workplace("fast") as folder:
        ratios, rates = [], {True: [], False: []}
        for file in large(folder / "images"):
            seconds = {}
            for fast in (False, True, False, True):
                recipe = Recipe(resize=("exact", 256, 256), fast_decode=fast)
                began = time.perf_counter()
                recipe.records(Line(0, bytes(file), 0))
                seconds[fast] = min(seconds.get(fast, 9), time.perf_counter() - began)
            ratios.append(seconds[False] / seconds[True])
            for fast in (False, True):
                rates[fast].append(1 / seconds[fast])
        fast, exact = statistics.median(rates[True]), statistics.median(rates[False])
        row("--fast-decode against exact, median photograph", fast, exact, "images/s", "(at least 3)")
        print(f"ratio per photograph: {min(ratios):.1f} to {max(ratios):.1f}, median {statistics.median(ratios):.1f}")


if __name__ == "__main__":
    main()
