"""Small data sets as `prepare` and `convert` lay them out, written without Ray, and a net that fits small pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from sklearn.datasets import load_digits

from ops.records import binaryproto, datum, hdf5, lmdb

PHOTOS = Path(__file__).resolve().parents[1] / "golden/files/photos"
CLASSES = 20


def photographs(side: int, count: int) -> list[np.ndarray]:
    """(side, side, 3) uint8: windows of real photographs, `count` of them."""
    read = [cv2.resize(cv2.imread(str(path)), (side + 16, side + 16)) for path in sorted(PHOTOS.iterdir())]
    places = np.random.default_rng(0).integers(0, 16, (count, 2))
    cut = (read[i % len(read)][y : y + side, x : x + side] for i, (y, x) in enumerate(places))
    return [np.ascontiguousarray(one) for one in cut]


def write_lmdb(folder: Path, pictures: Sequence[np.ndarray], labels: Sequence[int], *, names: int = 0) -> Path:
    """A data set of one shard, with a manifest that names `names` classes (0: no manifest)."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.Writer(folder) as writer:
        for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            writer.put(f"{number:08d}".encode(), datum.raw(picture, int(label)).tobytes())
    if names:
        height, width, channels = pictures[0].shape
        shards = [{"name": "data.mdb", "count": len(pictures)}]
        manifest = {"cortado": 1, "format": "lmdb", "listed": len(pictures), "list": "", "options": {"mean": None}}
        manifest |= {"shape": [channels, height, width], "classes": [f"c{i:02d}" for i in range(names)]}
        (folder / "manifest.json").write_text(json.dumps({**manifest, "shards": shards}))
    return folder


def write_pictures(folder: Path, *, train: int = 192, test: int = 48, side: int = 40, classes: int = CLASSES) -> Path:
    """What prepare makes of photographs in `classes` folders: train/, test/, mean.binaryproto."""
    pictures = photographs(side, train + test)
    labels = np.arange(train + test) % len(list(PHOTOS.iterdir())) % classes  # which photograph it is
    write_lmdb(folder / "train", pictures[:train], labels[:train], names=classes)
    write_lmdb(folder / "test", pictures[train:], labels[train:], names=classes)
    mean = np.mean(np.stack(pictures[:train]), 0).transpose(2, 0, 1)
    binaryproto.write(folder / "mean.binaryproto", mean.astype(np.float32))
    return folder


def write_digits(folder: Path, *, side: int = 28, colour: bool = False, train: int = 1400) -> Path:
    """scikit-learn's handwritten digits, enlarged: train/ and test/, and the mean."""
    held = load_digits()
    order = np.random.default_rng(0).permutation(len(held.target))
    grey = [cv2.resize((held.images[i] * 15.9).astype(np.uint8), (side, side)) for i in order]
    pictures = [np.stack([one, 255 - one, one // 2 + 60], 2) if colour else one[..., None] for one in grey]
    for name, part in (("train", slice(0, train)), ("test", slice(train, None))):
        write_lmdb(folder / name, pictures[part], held.target[order][part])
    mean = np.mean(np.stack(pictures[:train]), 0).transpose(2, 0, 1)
    binaryproto.write(folder / "mean.binaryproto", mean.astype(np.float32))
    return folder


def write_numbers(folder: Path, *, count: int = 60, test: int = 20, width: int = 3, side: int = 16) -> Path:
    """What prepare --labels vector:N makes: HDF5 parts of grey pictures; labels are means of their thirds."""
    pictures = np.random.default_rng(2).integers(0, 256, (count + test, 1, side, side)).astype(np.float32)
    pictures *= np.linspace(0.2, 1, count + test)[:, None, None, None]
    labels = np.stack([part.mean((1, 2, 3)) / 255 for part in np.array_split(pictures, width, 3)], 1)
    for name, part in (("train", slice(0, count)), ("test", slice(count, None))):
        (folder / name).mkdir(parents=True)
        file = folder / name / "part-00000.h5"
        with hdf5.Writer(file) as writer:
            for number, (picture, label) in enumerate(zip(pictures[part], labels[part], strict=True)):
                row: Any = label.astype(np.float32) if width > 1 else np.float32(label[0])
                writer.put(f"{number:08d}".encode(), picture, row)
        (folder / name / "list.txt").write_text(f"{file.resolve()}\n")
    return folder


NET = """
name: "small"
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  transform_param { mirror: true crop_size: 32 mean_value: 100 scale: 0.00390625 }
  data_param { source: "nowhere" batch_size: 24 backend: LMDB } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
  transform_param { crop_size: 32 mean_value: 100 scale: 0.00390625 }
  data_param { source: "nowhere" batch_size: 10 backend: LMDB } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 8 kernel_size: 5 stride: 2 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "last" type: "InnerProduct" bottom: "pool" top: "last"
  param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 1000 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "last" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "top5" type: "Accuracy" bottom: "last" bottom: "label" top: "top5" include { phase: TEST }
  accuracy_param { top_k: 5 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "last" bottom: "label" top: "loss" }
"""
