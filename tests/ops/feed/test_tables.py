"""HDF5 rows by number, against h5py."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from ops.feed import tables
from ops.records import hdf5

DATA = np.random.default_rng(0).normal(size=(23, 2, 3, 4)).astype(np.float32)
KINDS = {
    "contiguous": ({}, np.asarray),
    "chunked": ({"chunks": (4, 2, 3, 4)}, tables._Chunks),
    "chunks that cut rows": ({"chunks": (4, 1, 3, 2)}, np.asarray),
    "compressed": ({"compression": "gzip"}, np.asarray),
    "shuffled bytes": ({"shuffle": True, "chunks": True}, np.asarray),
}


def file_of(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, (values, options) in datasets.items():
            file.create_dataset(name, data=values, **options)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "u1", "<i8", ">i2", "?"])
def test_rows_of_every_layout_and_type_are_those_of_h5py(tmp_path, kind, dtype):
    values = (DATA * 40).astype(dtype)
    file = file_of(tmp_path / "a.h5", data=(values, KINDS[kind][0]))
    table = tables.Tables([file], ["data"])
    order = np.array([22, 0, 5, 5, 17, 3])
    out = np.empty((6, 2, 3, 4), np.float32)
    table.fill(order, [out])
    with h5py.File(file) as opened:
        assert np.array_equal(out, opened["data"][:].astype(np.float32)[order])
    if kind == "chunked" and dtype != "?":
        assert isinstance(table.tables[0][0].rows, tables._Chunks), "read in place"
    table.close()


def test_rows_too_many_for_the_memory_are_read_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LEAST", 0)
    monkeypatch.setattr(tables, "available", lambda: 0)
    table = tables.Tables([file_of(tmp_path / "a.h5", data=(DATA, {"compression": "gzip"}))], ["data"])
    assert isinstance(table.tables[0][0].rows, tables._ByH5py)
    out = np.empty((3, 2, 3, 4), np.float32)
    table.fill(np.array([4, 1, 22]), [out])
    assert np.array_equal(out, DATA[[4, 1, 22]])


def test_a_chunk_that_nobody_wrote_is_the_fill_value(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset("data", (20, 3), "<f4", chunks=(5, 3), fillvalue=7)
        made[:5] = 1
    table = tables.Tables([tmp_path / "a.h5"], ["data"])
    out = np.empty((2, 3), np.float32)
    table.fill(np.array([0, 12]), [out])
    assert out.tolist() == [[1, 1, 1], [7, 7, 7]]


def test_files_follow_one_another(tmp_path):
    files = [
        file_of(tmp_path / f"{i}.h5", data=(DATA[a:b], {}), vec=(DATA[a:b, 0, 0, :2], {"chunks": (1, 2)}))
        for i, (a, b) in enumerate([(0, 5), (5, 6), (6, 23)])
    ]
    table = tables.Tables(files, ["data", "vec"])
    assert len(table) == 23
    order = np.random.default_rng(1).permutation(23)
    outs = [np.empty((23, *shape), np.float32) for shape in table.shapes]
    table.fill(order, outs)
    assert np.array_equal(outs[0], DATA[order])
    assert np.array_equal(outs[1], DATA[order][:, 0, 0, :2])
    assert table.name(5) == f"{files[1]}: row 0"
    assert np.array_equal(table.column("vec"), DATA[:, 0, 0, :2])


def test_shards_of_convert_are_pictures(tmp_path):
    with hdf5.Writer(tmp_path / "part-00000.h5") as writer:
        for i in range(9):
            writer.put(b"%d" % i, DATA[i], np.float32(i / 2))
    source = tables.Pictures([tmp_path / "part-00000.h5"])
    example = source.read(source.locate(np.array([7]))[0])
    assert np.array_equal(example.pixels, DATA[7])
    assert example.label == 3.5
    assert source.labels().tolist() == [i / 2 for i in range(9)]


@pytest.mark.parametrize(
    ("datasets", "told"),
    [
        ({"label": (np.zeros(3), {})}, "no dataset 'data'"),
        ({"data": (np.zeros((3, 2)), {}), "label": (np.zeros(4), {})}, "datasets of different numbers of rows: data 3"),
        ({"data": (np.float32(1), {}), "label": (np.zeros(4), {})}, "no dataset of numbers with an axis for the rows"),
        ({"data": (np.zeros((0, 2)), {}), "label": (np.zeros(0), {})}, "holds no rows"),
    ],
)
def test_files_that_do_not_do_are_told(tmp_path, datasets, told):
    with pytest.raises(ValueError, match=told) as caught:
        tables.Tables([file_of(tmp_path / "a.h5", **datasets)], ["data", "label"])
    assert str(tmp_path / "a.h5") in str(caught.value)


def test_files_of_different_rows_are_told(tmp_path):
    files = [file_of(tmp_path / f"{n}.h5", data=(np.zeros((2, n)), {})) for n in (3, 4)]
    with pytest.raises(ValueError, match=r"4\.h5: rows of 'data' are 4, those of .*3\.h5 3"):
        tables.Tables(files, ["data"])


def test_a_damaged_file_is_told(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"x" * 100)
    with pytest.raises(ValueError, match="damaged HDF5 file"):
        tables.Tables([tmp_path / "a.h5"], ["data"])
