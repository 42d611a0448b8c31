"""Checking shards: what is whole is right, what is damaged is a named problem and never a crash."""

import random
import shutil

import numpy as np
import pytest

from ops.records import datum, hdf5
from ops.records.lmdb import Writer
from pipelines.stages.checking import check_shard

MUTATIONS = 600


@pytest.mark.parametrize("name", ["raw_lmdb", "gray_lmdb", "encoded_lmdb", "passthrough_lmdb"])
def test_caffes_own_folders_are_right(golden, name):
    report = check_shard(golden / "files" / name, "lmdb", None, None)
    assert report["problems"] == []
    assert report["checked"] == 30


def test_a_sample_looks_at_some_and_counts_all(golden):
    report = check_shard(golden / "files" / "raw_lmdb", "lmdb", {"count": 31, "first_key": "x", "last_key": "y"}, 5)
    assert report["checked"] == 5
    assert [problem.split(": ")[1].split(" is")[0] for problem in report["problems"]] == [
        "count",
        "first key",
        "last key",
    ]


def test_records_that_are_none_are_named(tmp_path):
    picture = np.zeros((2, 2, 3), np.uint8)
    with Writer(tmp_path / "db") as out:
        out.put(b"a", datum.raw(picture, 1))
        out.put(b"b", b"\xff\xff")
        out.put(b"c", datum.raw(picture, 1)[:-20])
        out.put(b"d", datum.encoded(b"no picture", 1))
    problems = check_shard(tmp_path / "db", "lmdb", None, None)["problems"]
    assert [problem.split("record ")[1][0] for problem in problems] == ["b", "c", "d"]
    assert all("\n" not in problem for problem in problems)


def test_a_flipped_pixel_is_found_by_the_checksum(golden, tmp_path):
    folder = shutil.copytree(golden / "files" / "raw_lmdb", tmp_path / "db")
    whole = check_shard(folder, "lmdb", None, None)
    assert whole["problems"] == []
    with (folder / "data.mdb").open("r+b") as file:
        data = bytearray(file.read())
        place = data.index(b"\x22\x80\x48") + 100  # inside some record's pixels: 9,216 bytes follow this tag
        file.seek(place)
        file.write(bytes([data[place] ^ 1]))
    expected = {"count": 30, "first_key": "00000000_dress_0.jpg", "last_key": "00000029_t-shirt_2.jpg", "checksum": "0"}
    assert "checksum is" in check_shard(folder, "lmdb", expected, None)["problems"][0]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, a stretch overwritten, or the end cut off."""
    out = bytearray(data)
    kind = rng.randrange(3)
    if kind == 0:
        for _ in range(rng.randint(1, 40)):
            out[rng.randrange(len(out))] = rng.randrange(256)
    elif kind == 1:
        start = rng.randrange(len(out))
        out[start : start + rng.randint(1, 5000)] = rng.randbytes(rng.randint(1, 5000))
    else:
        del out[rng.randrange(len(out)) :]
    return bytes(out)


def test_damaged_lmdb_folders_are_reported_and_never_crash(golden, tmp_path):
    data = (golden / "files" / "gray_lmdb" / "data.mdb").read_bytes()
    rng = random.Random(7)
    found = 0
    for _ in range(MUTATIONS):
        (tmp_path / "data.mdb").write_bytes(damaged(data, rng))
        report = check_shard(tmp_path, "lmdb", None, None)
        assert all("\n" not in problem for problem in report["problems"])
        found += bool(report["problems"])
    assert found > MUTATIONS / 4


def test_an_hdf5_file_cut_short_is_reported(tmp_path):
    with hdf5.Writer(tmp_path / "a.h5") as out:
        for i in range(40):
            out.put(b"%08d" % i, np.full((1, 8, 8), i, np.float32), np.float32(i))
    data = (tmp_path / "a.h5").read_bytes()
    assert check_shard(tmp_path / "a.h5", "hdf5", None, None)["problems"] == []
    for part in range(1, 10):
        (tmp_path / "cut.h5").write_bytes(data[: len(data) * part // 10])
        assert check_shard(tmp_path / "cut.h5", "hdf5", None, None)["problems"]
