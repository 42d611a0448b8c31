"""LMDB and LevelDB folders of Datums as lists, and their images one by one."""

import os
import shutil
import sys
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest

from ops.inputs.database import LMDB
from ops.inputs.fetch import Fetcher
from ops.inputs.listing import open_listing, recognize
from ops.proto import caffe_pb2
from tests.ops.inputs.pictures import GOLDEN, lines, pixels, png


def expected_list() -> list[tuple[str, int]]:
    """Keys and labels, from the list that Caffe's tool was given."""
    words = [line.rsplit(" ", 1) for line in (GOLDEN / "list.txt").read_text().splitlines()]
    return [(f"{place:08d}_{name}", int(label)) for place, (name, label) in enumerate(words)]


def datum(**fields) -> bytes:
    return caffe_pb2.Datum(**fields).SerializeToString()


def put(folder: Path, records: dict[bytes, bytes]) -> Path:
    with lmdb.open(str(folder), map_size=1 << 24) as env, env.begin(write=True) as txn:
        for key, value in records.items():
            txn.put(key, value)
    return folder


@pytest.mark.parametrize("name", ["raw_lmdb", "gray_lmdb", "encoded_lmdb", "passthrough_lmdb"])
def test_caffes_lmdb_lists_its_keys_and_labels(name):
    assert recognize(GOLDEN / name) == "lmdb"
    listed = open_listing(GOLDEN / name)
    assert lines(listed) == [(f"{name}#{key}", label) for key, label in expected_list()]
    assert listed.root == f"{GOLDEN}/"


@pytest.mark.parametrize("name", ["raw_lmdb", "gray_lmdb"])
def test_raw_records_are_pixels_as_the_datum_has_them(name):
    listed, fetcher = open_listing(GOLDEN / name), Fetcher()
    with lmdb.open(str(GOLDEN / name), readonly=True, lock=False) as env, env.begin() as txn:
        for place, (_, value) in enumerate(txn.cursor()):
            record = caffe_pb2.Datum.FromString(value)
            planes = np.frombuffer(record.data, np.uint8).reshape(record.channels, record.height, record.width)
            image = fetcher.fetch(os.fsencode(listed.root) + listed.path(place))
            assert image.dtype == np.uint8
            assert np.array_equal(image, planes.transpose(1, 2, 0))


def test_encoded_records_are_the_files_bytes():
    fetcher = Fetcher()
    for key, _ in expected_list():
        got = fetcher.fetch(os.fsencode(GOLDEN / f"passthrough_lmdb#{key}"))
        assert got == (GOLDEN / "photos" / key[9:]).read_bytes()


def test_float_records_are_float_pixels_and_bare_images_are_taken(tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    floats = datum(channels=2, height=3, width=4, float_data=values.ravel().tolist(), label=7)
    put(tmp_path / "db", {b"0": floats, b"1": png(), b"2": datum(data=png(), encoded=True, label=-3)})
    listed, fetcher = open_listing(tmp_path / "db"), Fetcher()
    assert lines(listed) == [("db#0", 7), ("db#1", 0), ("db#2", -3)]
    assert np.array_equal(fetcher.fetch(os.fsencode(tmp_path / "db#0")), values.transpose(1, 2, 0))
    assert fetcher.fetch(os.fsencode(tmp_path / "db#1")) == fetcher.fetch(os.fsencode(tmp_path / "db#2")) == png()


def test_several_parts_are_one_list_in_their_order(tmp_path):
    for part in range(3):
        put(tmp_path / f"part-{part:05d}.lmdb", {b"%08d" % part: datum(label=part, data=png(), encoded=True)})
    assert recognize(tmp_path) == "lmdb"
    assert lines(open_listing(tmp_path)) == [(f"part-{part:05d}.lmdb#{part:08d}", part) for part in range(3)]
    pattern = f"{tmp_path}/part-0000{{1..2}}.lmdb"
    assert [label for _, label in lines(open_listing(pattern))] == [1, 2]


def test_a_manifest_makes_a_data_set(tmp_path):
    shutil.copytree(GOLDEN / "raw_lmdb", tmp_path / "set")
    (tmp_path / "set" / "manifest.json").write_text("{}")
    assert recognize(tmp_path / "set") == "dataset"
    listed = open_listing(tmp_path / "set")
    assert len(listed) == 30
    assert Fetcher().fetch(os.fsencode(listed.root) + listed.path(3)).shape == (48, 64, 3)


def test_keys_of_any_bytes_are_addresses(tmp_path):
    keys = [b"a#b#001", b"caf\xe9", b"x y", b"line\nbreak"]
    put(tmp_path / "db", {key: datum(data=png(), encoded=True) for key in keys})
    listed = open_listing(tmp_path / "db")
    assert listed.paths(slice(None)) == [b"db#a#b#001", b"db#caf\xe9", b"db#x y"]
    assert "1 names with a newline" in listed.warnings[0]
    assert Fetcher().fetch(os.fsencode(tmp_path) + b"/db#caf\xe9") == png()


def test_records_that_are_no_datums_are_named(tmp_path):
    put(tmp_path / "db", {b"key1": b"\xff\xff\xff nonsense"})
    with pytest.raises(ValueError, match="db: record key1: not a Datum"):
        open_listing(tmp_path / "db")
    put(tmp_path / "short", {b"key1": datum(channels=3, height=4, width=4, data=b"123")})
    with pytest.raises(ValueError, match="3x4x4 holds 3 values"):
        Fetcher().fetch(os.fsencode(tmp_path / "short#key1"))


def test_an_empty_lmdb_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="an empty LMDB"):
        open_listing(put(tmp_path / "db", {}))


def test_a_key_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no record with key 7"):
        LMDB(GOLDEN / "raw_lmdb").read(b"7")


def test_caffes_leveldb_reads_and_stays_as_it_is():
    pytest.importorskip("plyvel")
    folder = GOLDEN / "raw_leveldb"
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}
    assert recognize(folder) == "leveldb"
    listed, one, other = open_listing(folder), Fetcher(), Fetcher()  # two at once: LevelDB itself would refuse
    assert [(path.partition("#")[2], label) for path, label in lines(listed)] == expected_list()
    for place, (key, _) in enumerate(expected_list()):
        path = os.fsencode(listed.root) + listed.path(place)
        image = one.fetch(path)
        assert np.array_equal(image, other.fetch(path))
        photograph = cv2.imread(str(GOLDEN / "photos" / key[9:]))
        assert np.array_equal(image, cv2.resize(photograph, (16, 16)))
    assert {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()} == before


def test_a_leveldb_of_tables_by_plyvel(tmp_path):
    plyvel = pytest.importorskip("plyvel")
    images = pixels(300)
    with plyvel.DB(str(tmp_path / "db"), create_if_missing=True) as db:
        for place, image in enumerate(images):
            planes = image.transpose(2, 0, 1)
            db.put(b"%08d" % place, datum(channels=3, height=6, width=5, data=planes.tobytes(), label=place))
        db.compact_range()
    assert list((tmp_path / "db").glob("*.ldb"))
    listed = open_listing(tmp_path / "db")
    assert [label for _, label in lines(listed)] == list(range(300))
    assert np.array_equal(Fetcher().fetch(os.fsencode(tmp_path / "db#00000123")), images[123])


def test_without_the_wheel_a_leveldb_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "plyvel", None)
    with pytest.raises(ValueError, match=r"pip install 'cortado\[leveldb\]'"):
        open_listing(GOLDEN / "raw_leveldb")


def test_a_damaged_leveldb_is_one_line(tmp_path):
    pytest.importorskip("plyvel")
    shutil.copytree(GOLDEN / "raw_leveldb", tmp_path / "db")
    (tmp_path / "db" / "MANIFEST-000002").write_bytes(b"nonsense" * 20)
    with pytest.raises(ValueError, match="damaged LevelDB"):
        open_listing(tmp_path / "db")
