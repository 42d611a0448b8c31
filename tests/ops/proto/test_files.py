"""Files of messages as bytes: told apart, read up to a limit, written whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from ops.proto.files import read_bytes, sniff, write_bytes

GOLDEN = Path(__file__).parents[2] / "golden"


def test_golden_files_are_told_apart():
    assert {sniff(file) for file in (GOLDEN / "messages").iterdir()} == {"binary"}
    assert {sniff(file) for file in (GOLDEN / "prototxt").iterdir()} == {"text"}


def test_hdf5_is_known_by_its_signature(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["data"] = [1, 2, 3]
    assert sniff(tmp_path / "weights.h5") == "hdf5"


def test_an_empty_file_counts_as_text(tmp_path):
    (tmp_path / "empty").touch()
    assert sniff(tmp_path / "empty") == "text"


def test_write_replaces_a_file_and_leaves_nothing_beside_it(tmp_path):
    target = tmp_path / "file"
    for data in (b"old", b"new", b""):
        write_bytes(target, data)
        assert target.read_bytes() == data
    assert list(tmp_path.iterdir()) == [target]


def test_a_new_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    write_bytes(tmp_path / "ours", b"x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_long_name_can_be_written(tmp_path):
    write_bytes(tmp_path / ("n" * 255), b"x")


def test_a_pipe_is_read_and_written(tmp_path):
    reading, writing = os.pipe()
    write_bytes(f"/dev/fd/{writing}", b"through")
    os.close(writing)
    assert read_bytes(f"/dev/fd/{reading}", 100) == b"through"
    os.close(reading)


def test_an_endless_device_is_read_no_further_than_the_limit():
    with pytest.raises(ValueError, match="/dev/zero"):
        read_bytes("/dev/zero", 1000)


def test_a_full_disk_names_the_file_and_the_bytes():
    with pytest.raises(OSError, match=r"5 bytes were to be written: '/dev/full'"):
        write_bytes("/dev/full", b"12345")


def test_a_folder_that_is_not_there_and_one_in_the_way_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no/file"):
        write_bytes(tmp_path / "no" / "file", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):
        write_bytes(tmp_path / "folder", b"x")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
