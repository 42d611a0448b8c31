"""Small pictures and folders of them, for the tests of the inputs."""

import struct
from pathlib import Path

import cv2
import numpy as np

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "files"


def pixels(count: int, height: int = 6, width: int = 5, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(count, height, width, channels) random bytes."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), np.uint8)


def png(seed: int = 0) -> bytes:
    """The bytes of a small PNG file."""
    return cv2.imencode(".png", pixels(1, seed=seed)[0])[1].tobytes()


def write_tree(root: Path, names: list[str]) -> Path:
    """Files of one byte under `root`; a name that ends in a slash is an empty folder."""
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
    return root


def lines(listed) -> list[tuple[str, object]]:
    """(path, label) of each line."""
    labels = listed.labels.tolist()
    return [(listed.path(i).decode(errors="surrogateescape"), labels[i]) for i in range(len(listed))]


def idx(array: np.ndarray) -> bytes:
    """An array of bytes as an IDX file."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
