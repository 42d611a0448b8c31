"""CIFAR-10's binary batches."""

import os

import numpy as np
import pytest

from ops.inputs.fetch import Fetcher
from ops.inputs.listing import open_listing, recognize
from tests.ops.inputs.pictures import lines

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def batch(count: int, seed: int = 0) -> np.ndarray:
    records = np.random.default_rng(seed).integers(0, 256, (count, 3073), np.uint8)
    records[:, 0] %= 10
    return records


def test_a_batch_is_labels_and_rgb_planes(tmp_path):
    records = batch(12)
    (tmp_path / "data_batch_1.bin").write_bytes(records.tobytes())
    file = tmp_path / "data_batch_1.bin"
    assert recognize(file) == "cifar10"
    listed = open_listing(file)
    assert lines(listed) == [(f"data_batch_1.bin#{place}", int(records[place, 0])) for place in range(12)]
    image = Fetcher().fetch(os.fsencode(listed.root) + listed.path(5))
    assert image.shape == (32, 32, 3)
    for plane in range(3):  # red first, as in the file
        assert np.array_equal(image[..., plane].ravel(), records[5, 1 + 1024 * plane :][:1024])


def test_the_folder_is_all_batches_with_class_names(tmp_path):
    for place, name in enumerate(["data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"]):
        (tmp_path / name).write_bytes(batch(4, place).tobytes())
    (tmp_path / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    (tmp_path / "readme.html").write_text("<html>")
    assert recognize(tmp_path) == "cifar10"
    listed = open_listing(tmp_path)
    assert len(listed) == 12
    assert listed.classes == NAMES
    assert listed.path(11) == b"test_batch.bin#3"
    assert "test_batch.bin are listed together" in listed.warnings[-1]


def test_a_batch_that_was_cut_short_is_recognized_as_one(tmp_path):
    (tmp_path / "b.bin").write_bytes(batch(3).tobytes()[:-5])
    with pytest.raises(ValueError, match="whole records of 3,073 bytes: cut short"):
        open_listing(tmp_path / "b.bin")


def test_a_label_above_9_is_an_error(tmp_path):
    records = batch(1200)
    records[1100, 0] = 17
    (tmp_path / "b.bin").write_bytes(records.tobytes())
    with pytest.raises(ValueError, match="record 1100: label 17"):
        open_listing(tmp_path / "b.bin")
