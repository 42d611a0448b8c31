"""What the tests of the feed share: layers as text, databases of made pictures, and transform_param in plain numpy."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from google.protobuf import text_format

from ops.feed.feed import Feed, open_feed
from ops.proto.caffe_pb2 import Datum, LayerParameter


def layer(text: str) -> LayerParameter:
    return text_format.Parse(text, LayerParameter())


def data_layer(source: Path | str, batch: int, transform: str = "", more: str = "", tops: int = 2) -> LayerParameter:
    names = " ".join(f'top: "{top}"' for top in ("data", "label")[:tops])
    return layer(
        f'name: "data" type: "Data" {names} transform_param {{ {transform} }} '
        f'data_param {{ source: "{source}" batch_size: {batch} {more} }}'
    )


def pictures(count: int, height: int = 12, width: int = 10, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(N, C, H, W) uint8"""
    return np.random.default_rng(seed).integers(0, 256, (count, channels, height, width), dtype=np.uint8)


def datum(planes: np.ndarray, label: int, **more: Any) -> bytes:
    """A Datum as protobuf itself writes it."""
    channels, height, width = planes.shape
    record = Datum(channels=channels, height=height, width=width, label=label, **more)
    if planes.dtype == np.uint8:
        record.data = planes.tobytes()
    else:
        record.float_data.extend(planes.ravel().tolist())
    return record.SerializeToString()


def write_lmdb(folder: Path, records: dict[bytes, bytes]) -> Path:
    """A database by the LMDB library itself."""
    with lmdb.open(str(folder), map_size=1 << 28) as env, env.begin(write=True) as txn:
        for key, value in records.items():
            txn.put(key, value)
    return folder


def database(folder: Path, planes: Any, labels: Any = None) -> Path:
    labels = range(len(planes)) if labels is None else labels
    return write_lmdb(
        folder, {b"%08d" % i: datum(one, int(label)) for i, (one, label) in enumerate(zip(planes, labels, strict=True))}
    )


def transformed(planes: np.ndarray, *, mean: Any = None, values: Any = (), scale: float = 1) -> np.ndarray:
    """A whole record by data.md section 6, before the crop and the mirror: (x - mean) * scale in float32."""
    numbers = planes.astype(np.float32)
    if mean is not None:
        numbers = numbers - np.float32(mean)
    elif len(values):
        numbers = numbers - np.float32(values).reshape(-1, 1, 1)
    return numbers * np.float32(scale)


def batches(spec: LayerParameter, count: int, phase: str = "TRAIN", **options: Any) -> list[dict[str, np.ndarray]]:
    """Copies of the first batches of a feed."""
    options.setdefault("seed", 1)
    with open_feed(spec, phase, **options) as feed:
        return [copied(feed) for _ in range(count)]


def copied(feed: Feed) -> dict[str, np.ndarray]:
    return {name: blob.cpu().numpy().copy() for name, blob in next(feed).blobs.items()}


def stream(spec: LayerParameter, count: int, top: str = "label", **options: Any) -> list[Any]:
    """One top of the first batches, joined: labels tell which records came."""
    return np.concatenate([batch[top] for batch in batches(spec, count, **options)]).tolist()


def open_files() -> Counter[str]:
    """What this process holds open, but neither sockets nor events: those of a Ray beside come and go."""
    held: Counter[str] = Counter()
    for entry in os.scandir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own, and what is closed meanwhile
            held[os.readlink(entry.path)] += 1
    return Counter({name: times for name, times in held.items() if name[0] == "/" and not name.startswith("/proc/")})
