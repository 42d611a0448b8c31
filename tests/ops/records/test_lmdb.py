"""LMDB folders: what lmdb's own reader finds, in any order of commits, and clear words for the rest."""

import hashlib

import lmdb
import pytest

from ops.records import lmdb as records


def write(folder, pairs):
    with records.Writer(folder) as out:
        for key, value in pairs:
            out.put(key, value)


def plain(folder):
    with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as txn:
        return list(txn.cursor())


def test_records_come_back_through_lmdbs_own_reader(tmp_path):
    pairs = [(b"%08d" % i, bytes([i % 256]) * (i * 37 % 5000)) for i in range(700)]
    write(tmp_path / "db", pairs)
    assert plain(tmp_path / "db") == pairs
    assert [one.name for one in (tmp_path / "db").iterdir()] == ["data.mdb"]
    with records.Reader(tmp_path / "db") as reader:
        assert [(key, bytes(value)) for key, value in reader.records(10, 20)] == pairs[10:20]
        assert (len(reader), reader.ends(), reader.get(b"%08d" % 5)) == (700, (b"00000000", b"00000699"), pairs[5][1])


def test_the_map_grows_as_far_as_it_must_and_no_further(tmp_path):
    value = bytes(1 << 20)
    write(tmp_path / "db", [(b"%08d" % i, value) for i in range(70)])
    assert len(plain(tmp_path / "db")) == 70
    with (tmp_path / "db" / "data.mdb").open("rb") as file:
        claimed = [int.from_bytes(file.read(4096)[32:40], "little") for _ in range(2)]
    assert max(claimed) == 128 << 20  # the two meta pages say how much a reader has to map


def test_a_single_value_larger_than_the_first_map(tmp_path):
    write(tmp_path / "db", [(b"a", bytes(50 << 20))])
    assert len(plain(tmp_path / "db")[0][1]) == 50 << 20


def test_the_same_records_make_the_same_file(tmp_path):
    pairs = [(b"%08d" % i, bytes([i % 251]) * 9000) for i in range(600)]
    digests = set()
    for name in "ab":
        write(tmp_path / name, pairs)
        digests.add(hashlib.sha256((tmp_path / name / "data.mdb").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_keys_must_ascend(tmp_path):
    with pytest.raises(ValueError, match="does not follow"):
        write(tmp_path / "db", [(b"b", b""), (b"a", b"")])


def test_a_folder_that_exists_is_not_written_into(tmp_path):
    with pytest.raises(FileExistsError):
        records.Writer(tmp_path)


def test_folders_that_are_no_lmdb_are_named(tmp_path):
    (tmp_path / "data.mdb").write_bytes(b"not one" * 9)
    with pytest.raises(ValueError, match="not an LMDB folder"):
        records.Reader(tmp_path)


def test_caffes_own_folder_is_read_without_touching_it(golden):
    folder = golden / "files" / "raw_lmdb"
    before = sorted(one.name for one in folder.iterdir())
    with records.Reader(folder) as reader:
        assert len(list(reader.records())) == 30
    assert sorted(one.name for one in folder.iterdir()) == before
