"""Means: numpy's, and Caffe's to the bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.mean import PixelSum
from ops.proto import caffe_pb2
from ops.records import binaryproto, datum
from ops.records.lmdb import Reader


@given(st.lists(st.integers(0, 700), min_size=1, max_size=5), st.integers(0, 9))
def test_sums_of_parts_merge_to_the_sum_of_all(sizes, seed):
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (size, 1, 2, 3), np.uint8) for size in sizes]
    total = PixelSum()
    for part in images:
        one = PixelSum()
        for image in part:
            one.add(image)
        total.merge(one)
    if not sum(sizes):
        return
    everything = np.concatenate(images)
    assert total.count == len(everything)
    assert np.array_equal(total.sums(), everything.sum(axis=0, dtype=np.int64))
    assert np.array_equal(total.mean(), everything.mean(axis=0, dtype=np.float64).astype(np.float32))


def test_white_images_do_not_overflow_the_short_sum():
    total = PixelSum()
    for _ in range(1000):
        total.add(np.full((1, 1, 1), 255, np.uint8))
    assert total.sums().item() == 255_000


def test_float_images_and_byte_images_add_up():
    total = PixelSum()
    total.add(np.full((1, 1, 1), 200, np.uint8))
    total.add(np.full((1, 1, 1), 0.5, np.float32))
    assert total.mean().item() == 100.25


def test_two_sizes_have_no_mean():
    total = PixelSum()
    total.add(np.zeros((1, 2, 2), np.uint8))
    with pytest.raises(ValueError, match="1x3x3 among images of 1x2x2"):
        total.add(np.zeros((1, 3, 3), np.uint8))


def test_a_saved_sum_goes_on(tmp_path):
    total = PixelSum()
    total.add(np.full((1, 1, 2), 7, np.uint8))
    total.save(tmp_path / "sum.npz")
    again = PixelSum.load(tmp_path / "sum.npz")
    again.add(np.full((1, 1, 2), 9, np.uint8))
    assert again.mean().ravel().tolist() == [8, 8]


def test_the_mean_of_caffes_records_is_caffes_file_byte_for_byte(golden, tmp_path):
    total = PixelSum()
    with Reader(golden / "files" / "raw_lmdb") as reader:
        for _, value in reader.records():
            total.add(datum.parse(value).pixels())
    binaryproto.write(tmp_path / "mean.binaryproto", total.mean())
    assert (tmp_path / "mean.binaryproto").read_bytes() == (golden / "files" / "mean.binaryproto").read_bytes()


def test_a_mean_with_the_new_shape_field_is_read_and_others_are_named(tmp_path):
    blob = caffe_pb2.BlobProto(data=range(6))
    blob.shape.dim.extend([1, 2, 3])
    (tmp_path / "a").write_bytes(blob.SerializeToString())
    assert binaryproto.read(tmp_path / "a").shape == (1, 2, 3)
    blob.data.append(1)
    (tmp_path / "b").write_bytes(blob.SerializeToString())
    with pytest.raises(ValueError, match="not a mean image: 7 values in the shape 1x2x3"):
        binaryproto.read(tmp_path / "b")
