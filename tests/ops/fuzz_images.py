"""Feeds damaged image files to everything that reads them; run as a process of its own, so that a crash is one line.

python -m tests.ops.fuzz_images COUNT FILE: before each picture FILE names the one that is tried.
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
from pathlib import Path

from ops import image, image_header
from tests import odd_images

SLOWEST = 5.0  # seconds for one file, on a busy machine
SMALL = 1_000_000  # pixels: a damaged header may announce more, which is then refused


def damaged(original: bytes, chance: random.Random) -> bytes:
    """The file with bits flipped, bytes replaced, a piece cut out, doubled, or its end gone."""
    data = bytearray(original)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at = chance.randrange(max(len(data), 1)) if chance.random() < 0.5 else chance.randrange(min(len(data), 64) or 1)
        match chance.randrange(6):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                data[at : at + 1] = bytes([(data[at] if at < len(data) else 0) ^ 1 << chance.randrange(8)])
            case 2:
                data[at : at + 4] = chance.choice(
                    (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xd9\xff\xda")
                )
            case 3:
                del data[at : at + chance.randrange(1, 40)]
            case 4:
                data[at:at] = data[at : at + chance.randrange(1, 40)]
            case 5:
                del data[at:]
    return bytes(data)


def feed(data: bytes) -> bool:
    """Try everything on one file: True where it has pixels. Nothing but BadImage may come out."""
    image_header.size(data), image_header.kind(data), image.defect(data), image.reduce_factor(data, 20, 20)
    good = False
    for options in ({"all_formats": True}, {"color": False}, {"reduce": 4}):
        try:
            pixels = image.decode(data, max_pixels=SMALL, **options)
        except image.BadImage as error:
            if "\n" in str(error):
                raise AssertionError(f"more than one line: {error}") from error
        else:
            good = True
            assert pixels.ndim == 3, pixels.shape
    with contextlib.suppress(image.BadImage):
        image.decode_natural(data, max_pixels=SMALL)
    return good


def main(count: int, trace: Path) -> None:
    originals = list((odd_images.CAFFE_READS | odd_images.NEWER | odd_images.HUGE).items())
    readable = 0
    for seed in range(count):
        chance = random.Random(seed)
        name, original = originals[seed % len(originals)]
        trace.write_text(f"{name}, seed {seed}")
        data, began = damaged(original, chance), time.monotonic()
        readable += feed(data)
        took = time.monotonic() - began
        assert took < SLOWEST, f"{name}, seed {seed}: {took:.1f} s"
    print(f"{readable} of {count} still have pixels")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
