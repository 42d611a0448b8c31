"""Records by number, against the databases' own libraries."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ops import image
from ops.feed import database, families
from ops.feed.source import Joined
from ops.proto.caffe_pb2 import Datum
from ops.records import datum as writing
from tests.ops.feed.helpers import database as make
from tests.ops.feed.helpers import datum, open_files, pictures, write_lmdb

FRESH = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=25)


def by_library(folder: Path) -> list[tuple[bytes, bytes]]:
    with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as txn:
        return list(txn.cursor())


def all_of(source: database.LMDB) -> list[bytes]:
    return [bytes(source.view[start:stop]) for start, stop in source.locate(np.arange(len(source)))]


@FRESH
@given(
    st.integers(1, 1500),
    st.sampled_from([0, 10, 700, 1990, 2100, 5000]),
    st.sampled_from([4, 60, 400]),
    st.integers(0, 2**32 - 1),
)
def test_an_lmdb_of_any_depth_is_read_as_the_library_reads_it(tmp_path_factory, count, size, key_size, seed):
    rng = np.random.default_rng(seed)
    keys = sorted({b"%04d" % rng.integers(10_000) + b"k" * int(rng.integers(key_size)) for _ in range(count)})
    folder = tmp_path_factory.mktemp("db") / "x"
    write_lmdb(folder, {key: rng.bytes(int(rng.integers(size + 1))) for key in rng.permutation(keys).tolist()})
    source, expected = database.LMDB(folder, database.Parser()), by_library(folder)
    assert len(source) == len(expected)
    assert all_of(source) == [value for _, value in expected]
    some = rng.integers(0, len(expected), 20)
    found = [bytes(source.view[start:stop]) for start, stop in source.locate(some)]
    assert found == [expected[i][1] for i in some]
    assert source.name(int(some[0])) == f"{folder}: record {expected[some[0]][0].decode()}"
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["raw_lmdb", "gray_lmdb", "encoded_lmdb", "passthrough_lmdb"])
def test_databases_by_caffe_are_read_as_protobuf_and_opencv_read_them(golden, name):
    import cv2

    source = families.open_records(golden / "files" / name, database.Parser())
    expected = by_library(golden / "files" / name)
    for where, (_, value) in zip(source.locate(np.arange(len(source))), expected, strict=True):
        record, found = Datum.FromString(value), source.read(where)
        if record.encoded:
            pixels = cv2.imdecode(np.frombuffer(record.data, np.uint8), cv2.IMREAD_UNCHANGED)
            assert not found.planar
            assert np.array_equal(found.pixels, np.atleast_3d(pixels))
        else:
            shape = (record.channels, record.height, record.width)
            assert np.array_equal(found.pixels, np.frombuffer(record.data, np.uint8).reshape(shape))
        assert found.label == record.label
        assert bytes(found.stored) == value
    assert source.labels().tolist() == [Datum.FromString(value).label for _, value in expected]


@FRESH
@given(st.lists(st.sampled_from([0, 1, 7, 200, 70_000]), min_size=1, max_size=40), st.integers(0, 2**32 - 1))
def test_a_block_of_raw_records_is_what_protobuf_reads(tmp_path_factory, labels, seed):
    folder = tmp_path_factory.mktemp("block") / "db"
    make(folder, pictures(len(labels), seed=seed), labels)
    source, records = database.LMDB(folder, database.Parser()), [value for _, value in by_library(folder)]
    drawn = np.random.default_rng(seed).integers(0, len(labels), 12)
    where = source.locate(drawn)
    assert source.block(where) is None  # nothing is known of how they begin
    for one in where:
        source.read(one)
    block = source.block(where)
    assert block is not None
    for index, pixels, label, stored in zip(drawn, block.pixels, block.labels, block.stored, strict=True):
        assert bytes(stored) == records[index]
        record = Datum.FromString(records[index])
        assert (label, pixels.tobytes()) == (record.label, record.data)
        assert pixels.shape == (record.channels, record.height, record.width)


def test_a_block_wants_records_that_look_alike(tmp_path):
    planes = pictures(4)
    other = datum(pictures(1, height=5)[0], 1)
    jpeg = Datum(data=image.encode(planes[0].transpose(1, 2, 0), "jpg"), label=1, encoded=True).SerializeToString()
    short = datum(planes[2], 1)[:-20]
    records = [datum(planes[0], 1), datum(planes[1], 2), datum(planes[2], 3), other, jpeg, short]
    write_lmdb(tmp_path / "db", {b"%04d" % i: record for i, record in enumerate(records)})
    source = database.LMDB(tmp_path / "db", database.Parser())
    where = source.locate(np.arange(6))
    for one in where[:2]:
        source.read(one)
    assert source.block(where[:2]) is not None
    assert source.block(where[1:3]) is None  # a label that was not seen before
    for odd in where[3:]:
        assert source.block([where[0], odd]) is None
    joined = Joined([source, database.LMDB(tmp_path / "db", source.parser)])
    assert joined.block(joined.locate(np.array([0, 1]))) is not None
    assert joined.block(joined.locate(np.array([0, 3]))) is None


@FRESH
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_a_block_of_several_databases_is_what_each_of_them_reads(tmp_path_factory, sizes, seed):
    folder, parser = tmp_path_factory.mktemp("joined"), database.Parser()
    for number, size in enumerate(sizes):
        make(folder / str(number), pictures(size, seed=seed + number), [300 * number + i for i in range(size)])
    joined = Joined([database.LMDB(folder / str(number), parser) for number in range(len(sizes))])
    for one in joined.locate(np.arange(len(joined))):
        joined.read(one)
    where = joined.locate(np.random.default_rng(seed).integers(0, len(joined), 20))
    block = joined.block(where)
    assert block is not None
    for one, pixels, label, stored in zip(where, block.pixels, block.labels, block.stored, strict=True):
        example = joined.read(one)
        assert np.array_equal(example.pixels, pixels)
        assert (example.label, bytes(example.stored)) == (label, bytes(stored))


def test_a_leveldb_is_read_as_its_library_reads_it(golden, tmp_path):
    plyvel = pytest.importorskip("plyvel")
    shutil.copytree(golden / "files" / "raw_leveldb", tmp_path / "copy")
    db = plyvel.DB(str(tmp_path / "copy"))
    expected = list(db.iterator())
    db.close()
    source = families.open_records(golden / "files" / "raw_leveldb", database.Parser())
    assert len(source) == len(expected) == 30
    for where, (_, value) in zip(source.locate(np.arange(30)), expected, strict=True):
        record, found = Datum.FromString(value), source.read(where)
        assert found.pixels.tobytes() == record.data
        assert found.label == record.label
    assert source.name(3).endswith("raw_leveldb: record 00000003_hat_0.jpg")
    assert source.labels().tolist() == [Datum.FromString(value).label for _, value in expected]
    source.close()


# -- records -----------------------------------------------------------------------------------------------------------


def read(records: list[bytes], **options) -> list[tuple]:
    """(pixels, label) of records that a parser meets one after the other."""
    parser = database.Parser(**options)
    found = [parser.example(memoryview(record), 0, len(record)) for record in records]
    return [(one.pixels, one.label) for one in found]


def test_records_that_begin_alike_have_their_own_pixels_and_labels():
    planes = pictures(40)
    labels = [0, 1, 127, 128, 300, 2**31 - 1, -1, -(2**31), *range(2, 34)]
    records = [datum(one, label) for one, label in zip(planes, labels, strict=True)]
    for (pixels, label), one, expected in zip(read(records + records), [*planes, *planes], labels * 2, strict=True):
        assert np.array_equal(pixels, one)
        assert label == expected


def test_records_of_changing_shapes_and_writers_are_read_right():
    rng = np.random.default_rng(0)
    records, expected = [], []
    for i in range(200):
        planes = pictures(1, *rng.integers(1, 5, 2).tolist(), channels=int(rng.integers(1, 4)), seed=i)[0]
        kind = int(rng.integers(4))
        if kind == 0:
            records.append(datum(planes, i))
        elif kind == 1:
            records.append(writing.raw(planes.transpose(1, 2, 0), i).tobytes())
        elif kind == 2:
            planes = planes.astype(np.float32) / 7
            records.append(datum(planes, i))
        else:  # fields in another order: what comes last wins
            records.append(datum(planes[:, :1], 9999) + datum(planes, i))
        expected.append((planes, i))
    for (pixels, label), (planes, number) in zip(read(records), expected, strict=True):
        assert np.array_equal(pixels, planes)
        assert label == number


def test_a_label_before_the_pixels_is_not_taken_for_the_next_records():
    planes = pictures(2, 1, 1)
    first = Datum(label=7).SerializeToString() + datum(planes[0], 0)[:-2]  # no label behind the pixels
    second = Datum(label=9).SerializeToString() + datum(planes[1], 0)[:-2]
    assert [label for _, label in read([first, second, first])] == [7, 9, 7]


@pytest.mark.parametrize("color", [True, False])
def test_forced_colours_are_imreads(golden, color):
    record = by_library(golden / "files" / "encoded_lmdb")[0][1]
    encoded = Datum.FromString(record).data
    ((pixels, _),) = read([record], color=color, gray=not color)
    assert np.array_equal(pixels, image.decode(encoded, color=color))


def test_a_picture_without_a_datum_around_it_is_a_record_too():
    encoded = image.encode(pictures(1)[0].transpose(1, 2, 0), "png")
    ((pixels, label),) = read([encoded])
    assert np.array_equal(pixels, image.decode(encoded))
    assert label == 0


def test_both_colours_forced_are_refused():
    with pytest.raises(ValueError, match="force_color and force_gray"):
        database.Parser(color=True, gray=True)


# -- several parts, damage ---------------------------------------------------------------------------------------------


def test_parts_are_read_as_one(tmp_path):
    planes = pictures(10)
    for number, (start, stop) in enumerate([(0, 3), (3, 4), (4, 10)]):
        make(tmp_path / f"part-{number:05d}.lmdb", planes[start:stop], range(start, stop))
    source = families.open_records(tmp_path, database.Parser())
    assert isinstance(source, Joined)
    order = np.array([9, 0, 3, 2, 4])
    found = [source.read(where) for where in source.locate(order)]
    assert [one.label for one in found] == order.tolist()
    assert all(np.array_equal(one.pixels, planes[i]) for one, i in zip(found, order, strict=True))
    assert source.name(4) == f"{tmp_path}/part-00002.lmdb: record 00000000"
    assert source.labels().tolist() == list(range(10))


def test_an_altered_lmdb_is_an_error_and_never_a_crash(tmp_path):
    make(tmp_path / "whole", pictures(300, 40, 40))
    whole = (tmp_path / "whole" / "data.mdb").read_bytes()
    rng = np.random.default_rng(1)
    broken = tmp_path / "broken"
    broken.mkdir()
    refused = 0
    for _ in range(60):
        altered = bytearray(whole[: int(rng.integers(len(whole) // 2, len(whole)))] if rng.random() < 0.3 else whole)
        for place in rng.integers(0, len(altered) // 4096, 40) * 4096 + rng.integers(0, 60, 40):
            if place < len(altered):
                altered[place] = int(rng.integers(256))
        (broken / "data.mdb").write_bytes(altered)
        try:
            source = database.LMDB(broken, database.Parser())
            for where in source.locate(np.arange(len(source))):
                source.read(where)
        except ValueError:
            refused += 1
    assert refused > 20


def test_no_file_stays_open(golden):
    gc.collect()
    before = open_files()
    for _ in range(5):
        source = families.open_records(golden / "files" / "raw_lmdb", database.Parser())
        source.read(source.locate(np.array([3]))[0])
        source.close()
        del source
    assert open_files() == before
