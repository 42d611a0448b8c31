"""HDF5 files and the lists of them that an HDF5Data layer reads."""

import os

import h5py
import numpy as np
import pytest

from ops.inputs.fetch import Fetcher
from ops.inputs.listing import open_listing, recognize
from tests.ops.inputs.pictures import lines

DATA = np.random.default_rng(0).normal(size=(9, 3, 6, 5)).astype(np.float32)


def write(file, **arrays):
    with h5py.File(file, "w") as opened:
        for name, array in arrays.items():
            opened[name] = array
    return file


def test_rows_with_whole_labels(tmp_path):
    file = write(tmp_path / "train.h5", data=DATA, label=np.arange(9, dtype=np.float32))
    assert recognize(file) == "hdf5"
    listed = open_listing(file)
    assert lines(listed) == [(f"train.h5#{row}", row) for row in range(9)]
    assert listed.labels.dtype == np.int32
    image = Fetcher().fetch(os.fsencode(listed.root) + listed.path(4))
    assert image.dtype == np.float32
    assert np.array_equal(image, DATA[4].transpose(1, 2, 0))


@pytest.mark.parametrize(("shape", "mode", "expected"), [
    ((9, 1), "caffe", (9, 1)), ((9, 1, 1, 1), "float", (9, 1)), ((9, 4), "caffe", (9, 4)), ((9, 4), "vector:4", (9, 4)),
])  # fmt: skip
def test_float_and_vector_labels(tmp_path, shape, mode, expected):
    labels = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    listed = open_listing(write(tmp_path / "a.h5", data=DATA, label=labels), labels=mode)
    assert listed.labels.dtype == np.float32
    assert np.array_equal(listed.labels, labels.reshape(expected))


def test_bytes_stay_bytes(tmp_path):
    data = (np.abs(DATA) * 100).astype(np.uint8)
    write(tmp_path / "a.h5", data=data, label=np.zeros(9))
    image = Fetcher().fetch(os.fsencode(tmp_path / "a.h5#8"))
    assert image.dtype == np.uint8
    assert np.array_equal(image, data[8].transpose(1, 2, 0))


@pytest.mark.parametrize("place", ["beside", "current folder"])
def test_a_source_list_is_the_files_joined(tmp_path, monkeypatch, place):
    for number in range(2):
        write(tmp_path / f"{number}.h5", data=DATA, label=np.full(9, number))
    (tmp_path / "list.txt").write_text("0.h5\n1.h5\n")
    if place == "current folder":
        monkeypatch.chdir(tmp_path)
    assert recognize(tmp_path / "list.txt") == "hdf5"
    listed = open_listing(tmp_path / "list.txt")
    assert [listed.path(9), listed.labels[9], len(listed)] == [b"1.h5#0", 1, 18]


def test_a_folder_of_files_is_one_input(tmp_path):
    for number in range(2):
        write(tmp_path / f"part-{number:05d}.h5", data=DATA, label=np.full(9, number))
    assert len(open_listing(tmp_path)) == 18


@pytest.mark.parametrize(("arrays", "message"), [
    ({"images": DATA, "label": np.zeros(9)}, "no dataset named 'data'; it holds images, label"),
    ({"data": DATA, "label": np.zeros(8)}, "9 rows of data but 8 labels"),
    ({"data": DATA[0], "label": np.zeros(3)}, r"expected numbers \(N, C, H, W\)"),
    ({"data": DATA, "label": np.array(b"x")}, "label is no dataset of numbers"),
])  # fmt: skip
def test_other_contents_are_told(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        open_listing(write(tmp_path / "a.h5", **arrays))


def test_a_file_without_labels_has_label_0_and_says_so(tmp_path):
    listed = open_listing(write(tmp_path / "a.h5", data=DATA))
    assert set(listed.labels.tolist()) == {0}
    assert "no dataset named 'label'" in listed.warnings[0]


def test_a_file_that_was_cut_short_is_an_error(tmp_path):
    file = write(tmp_path / "a.h5", data=DATA, label=np.zeros(9))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"a.h5: damaged HDF5 file"):
        open_listing(file)
