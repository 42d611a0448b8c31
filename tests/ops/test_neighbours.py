"""Nearest rows and duplicates, against numpy on the whole matrix."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ops import neighbours
from ops.neighbours import FeatureTable, duplicates, nearest
from ops.records.parquet import Columns, Rows, Writer

WIDTH = 12


def write(folder, values, *, parts=3, groups=2, shape=(WIDTH,), dtype="float32"):
    """A table of these rows in several parts of several row groups; row i is called photo_i.jpg."""
    columns = Columns("path", (), True, {"fc": shape}, dtype)
    for part, places in enumerate(np.array_split(np.arange(len(values)), parts)):
        with Writer(folder / f"part-{part:05d}.parquet", columns, {"root": "photos/"}) as writer:
            for some in np.array_split(places, groups):
                rows = values[some].reshape(-1, *shape).astype(dtype)
                writer.put(Rows(some, [f"photo_{i}.jpg" for i in some], some.astype(np.int32), {"fc": rows}))
    return folder


def cosines(values):
    lengths = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    unit = values / np.where(lengths > 0, lengths, 1)
    return unit @ unit.T


@pytest.fixture
def values():
    return np.random.default_rng(0).standard_normal((50, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("block", [1, 4 * WIDTH * 7, 1 << 20])
def test_nearest_rows_are_those_of_the_whole_matrix(tmp_path, monkeypatch, values, block):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    table = FeatureTable.open(write(tmp_path, values))
    assert (len(table), table.width, table.blob) == (50, WIDTH, "fc")
    places, scores = nearest(table, values[[3, 40]], 5)
    expected = cosines(values)[[3, 40]]
    order = np.argsort(-expected, axis=1, kind="stable")[:, :5]
    assert places.tolist() == order.tolist()
    np.testing.assert_allclose(scores, np.take_along_axis(expected, order, 1), atol=1e-6)


def test_the_row_itself_may_be_left_out_and_there_may_be_fewer_than_asked_for(tmp_path, values):
    table = FeatureTable.open(write(tmp_path, values[:6], parts=2))
    places, _ = nearest(table, values[2], 10, without=2)
    assert sorted(places[0].tolist()) == [0, 1, 3, 4, 5]


def test_a_row_of_zeros_is_like_nothing(tmp_path, values):
    values[4] = 0
    table = FeatureTable.open(write(tmp_path, values))
    _, scores = nearest(table, values[4], 3)
    assert scores.tolist() == [[0, 0, 0]]


def test_spatial_and_half_precision_blobs_are_compared_too(tmp_path, values):
    table = FeatureTable.open(write(tmp_path, values, shape=(3, 2, 2), dtype="float16"))
    places, scores = nearest(table, values[7].astype(np.float16), 2)
    assert places[0, 0] == 7
    assert scores[0, 0] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("block", [4 * WIDTH * 9, 1 << 20])
def test_duplicates_are_the_connected_rows(tmp_path, monkeypatch, values, block):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    rng = np.random.default_rng(1)
    for copy, original in ((10, 2), (33, 10), (49, 2), (20, 8)):
        values[copy] = 3 * values[original] + 0.01 * rng.standard_normal(WIDTH)
    assert duplicates(FeatureTable.open(write(tmp_path, values)), 0.99) == [[2, 10, 33, 49], [8, 20]]


def test_rows_are_found_by_name_or_by_how_it_ends(tmp_path, values):
    table = FeatureTable.open(write(tmp_path, values))
    assert table.find("photo_17.jpg") == 17
    assert table.find("_17.jpg") == 17
    assert table.find("nowhere.jpg") is None
    assert table.find("photo_7.jpg") == 7
    with pytest.raises(ValueError, match=r"5 rows end so; give the whole path"):
        table.find("7.jpg")
    name, row = table.row(31)
    assert name == "photo_31.jpg"
    np.testing.assert_array_equal(row, values[31])
    assert table.names(np.array([40, 2])) == ["photo_40.jpg", "photo_2.jpg"]


def test_what_is_no_table_of_features_is_told(tmp_path, values):
    with pytest.raises(FileNotFoundError, match="No such file or folder; expected features"):
        FeatureTable.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no part-\*.parquet in it"):
        FeatureTable.open(tmp_path)
    plain = tmp_path / "part-00000.parquet"
    pq.write_table(pa.table({"path": ["a"], "size": [1]}), plain)
    with pytest.raises(ValueError, match="no column of features; it has path, size"):
        FeatureTable.open(tmp_path)
    with pytest.raises(ValueError, match="has no blob 'fc7'"):
        FeatureTable.open(write(tmp_path, values), "fc7")
