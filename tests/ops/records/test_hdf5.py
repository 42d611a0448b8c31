"""HDF5 files as HDF5Data reads them, seen through h5py itself."""

import subprocess
import sys

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


FILL = """
import resource, sys
from pathlib import Path
import h5py, numpy as np
from ops.records import features, hdf5
from ops.records.parquet import Columns, Rows

kind, file, limit = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
done = 0
try:
    if kind == "records":
        with hdf5.Writer(file) as out:
            for done in range(5000):
                out.put(b"%08d" % done, np.full((3, 16, 16), done, np.float32), np.float32(done))
    else:
        columns = Columns("path", (), True, {"fc": (300,)})
        with features.HDF5Writer(file, columns) as out:
            for done in range(0, 5000, 500):
                names = [f"{i}.jpg" for i in range(done, done + 500)]
                out.put(Rows(np.arange(500), names, np.arange(500), {"fc": np.ones((500, 300), np.float32)}))
except OSError as error:
    print(error.errno, error.strerror, error.filename == str(file), done > 0)
file.unlink()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
with hdf5.Writer(file) as out:  # the library is still fit for use
    out.put(b"a", np.zeros((1, 2, 2), np.float32), np.float32(0))
print(len(hdf5.Reader(file)))
"""


def fill(kind: str, file, limit: int = 0) -> list[str]:
    """What a process of its own says; it must end well: HDF5 is known to crash it."""
    command = [sys.executable, "-c", FILL, kind, str(file), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("kind", ["records", "features"])
@pytest.mark.parametrize("size", ["200k", "2m"])
def test_a_full_disk_is_an_error_and_no_crash(tmp_path, kind, size):
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(tmp_path)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a file system needs root")
    try:
        told, count = fill(kind, tmp_path / "a.h5")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
    assert told == f"28 No space left on device True {size == '2m' or kind == 'records'}"
    assert count == "1"


@pytest.mark.parametrize("kind", ["records", "features"])
@pytest.mark.parametrize("limit", [5_000, 1_500_000])
def test_a_write_that_fails_for_another_reason_is_one_too(tmp_path, kind, limit):
    """A file that the system lets grow so far only."""
    told, count = fill(kind, tmp_path / "a.h5", limit)
    assert told.startswith("27 File too large True")
    assert count == "1"
