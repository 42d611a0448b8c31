"""Float Datums and HDF5 of features, against protobuf and h5py."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from ops.proto import caffe_pb2
from ops.records.features import WRITERS, blob_folders, datums
from ops.records.lmdb import Reader
from ops.records.parquet import Columns, Rows


@pytest.mark.parametrize("shape", [(6,), (4, 1, 1), (2, 3, 5), (2, 3), (300, 7, 1)])
def test_datums_are_protobufs_bytes(shape):
    values = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    channels, height, width = (*shape, 1, 1)[:3]
    for made, one in zip(datums(values), values, strict=True):
        expected = caffe_pb2.Datum(channels=channels, height=height, width=width)
        expected.float_data.extend(one.ravel())
        assert bytes(made) == expected.SerializeToString()


def test_a_blob_of_four_axes_an_image_is_no_datum():
    with pytest.raises(ValueError, match="4 axes an image; a Datum has 3"):
        datums(np.zeros((1, 2, 2, 2, 2), np.float32))


def test_keys_are_places_and_gaps_stay(tmp_path):
    columns = Columns("path", (), True, {"a": (2,), "b": (3,)})
    blobs = {"a": np.ones((2, 2), np.float32), "b": np.zeros((2, 3), np.float32)}
    with WRITERS["lmdb"](tmp_path, columns, {}) as writer:
        writer.put(Rows(np.array([3, 7]), ["x", "y"], np.array([0, 1]), blobs))
    for blob in "ab":
        with Reader(tmp_path / blob / "part.lmdb") as reader:
            assert [key for key, _ in reader.records()] == [b"0000000003", b"0000000007"]


def test_hdf5_holds_blobs_labels_and_names(tmp_path):
    columns = Columns("path", (2,), False, {"fc": (4,), "conv": (2, 3, 3)}, "float16")
    rng = np.random.default_rng(0)
    parts = []
    with WRITERS["hdf5"](tmp_path, columns, {}) as writer:
        for first in (0, 5):
            blobs = {name: rng.standard_normal((5, *shape)).astype(np.float16) for name, shape in columns.blobs.items()}
            labels = rng.standard_normal((5, 2)).astype(np.float32)
            parts.append((blobs, labels))
            writer.put(Rows(np.arange(first, first + 5), [f"{i}.jpg" for i in range(first, first + 5)], labels, blobs))
    with h5py.File(tmp_path / "part.h5") as file:
        for name in columns.blobs:
            np.testing.assert_array_equal(file[name][:], np.concatenate([blobs[name] for blobs, _ in parts]))
        np.testing.assert_array_equal(file["label"][:], np.concatenate([labels for _, labels in parts]))
        assert file["path"][:].tolist() == [b"%d.jpg" % i for i in range(10)]
        assert file["fc"].dtype == np.float16


def test_blobs_have_folders_of_their_own_whatever_they_are_called():
    assert blob_folders({"fc7": 1}, "data.mdb") == {"fc7": "data.mdb"}
    found = blob_folders(dict.fromkeys(["res/a", "res_a", "..", "fc7"]), "x")
    assert found == {"res/a": "res_a/x", "res_a": "res_a_/x", "..": "_/x", "fc7": "fc7/x"}
