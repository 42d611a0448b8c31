"""HDF5 files as HDF5Data reads them, seen through h5py itself."""

import h5py
import numpy as np
import pytest

from ops.records import hdf5


def write(file, count, shape=(3, 4, 5), labels=()):
    rng = np.random.default_rng(0)
    data = rng.normal(size=(count, *shape)).astype(np.float32)
    label = rng.normal(size=(count, *labels)).astype(np.float32)
    with hdf5.Writer(file) as out:
        for i in range(count):
            out.put(b"%08d_\xff a" % i, data[i], label[i])
    return data, label


@pytest.mark.parametrize(("count", "labels"), [(1, ()), (700, ()), (5, (4,))])
def test_data_and_label_are_plain_float32_datasets(tmp_path, count, labels):
    data, label = write(tmp_path / "a.h5", count, labels=labels)
    with h5py.File(tmp_path / "a.h5") as file:
        assert np.array_equal(file["data"][:], data)
        assert np.array_equal(file["label"][:], label)
        assert file["data"].dtype == file["label"].dtype == np.float32
        assert file["data"].chunks[1:] == (3, 4, 5)
    with hdf5.Reader(tmp_path / "a.h5") as reader:
        found = list(reader.records(0, count))
    assert found[0][0] == b"00000000_\xff a"
    assert np.array_equal([one[1] for one in found], data)


def test_an_empty_file_has_its_datasets(tmp_path):
    write(tmp_path / "a.h5", 0)
    with hdf5.Reader(tmp_path / "a.h5") as reader:
        assert len(reader) == 0


def test_the_same_records_make_the_same_file(tmp_path):
    for name in "ab":
        write(tmp_path / name, 300)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_records_of_two_sizes_are_refused(tmp_path):
    with hdf5.Writer(tmp_path / "a.h5") as out:
        out.put(b"a", np.zeros((1, 2, 2), np.float32), np.float32(0))
        with pytest.raises(ValueError, match="1x3x3 values where the first record has 1x2x2"):
            out.put(b"b", np.zeros((1, 3, 3), np.float32), np.float32(0))


def test_files_that_are_not_ours_to_read_are_named(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as HDF5"):
        hdf5.Reader(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(ValueError, match="no dataset named 'label'"):
        hdf5.Reader(tmp_path / "b.h5")
