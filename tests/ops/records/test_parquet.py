"""Tables of features: what is written is what pyarrow reads back."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ops.records.parquet import Columns, Rows, Writer, count_rows, flat, lists_of, read_facts


def rows(count, columns, first=0):
    rng = np.random.default_rng(first)
    blobs = {name: rng.standard_normal((count, *shape)).astype(columns.dtype) for name, shape in columns.blobs.items()}
    label = None
    if columns.label is not None:
        label = rng.integers(0, 1 << 30, (count, *columns.label))
        label = label if columns.whole_labels else label.astype(np.float32)
    return Rows(np.arange(first, first + count), [f"é {i}.jpg" for i in range(first, first + count)], label, blobs)


@pytest.mark.parametrize("label", [None, (), (3,)])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_come_back_in_order_bit_for_bit(tmp_path, label, whole, dtype):
    columns = Columns("path", label, whole, {"fc7": (5,), "conv1": (2, 3, 4)}, dtype)
    parts = [rows(4, columns), rows(3, columns, 4)]
    with Writer(tmp_path / "t.parquet", columns, {"net": "n"}) as writer:
        for part in parts:
            writer.put(part)
    found = pq.read_table(tmp_path / "t.parquet")
    assert found["path"].to_pylist() == [name for part in parts for name in part.names]
    for name in columns.blobs:
        expected = np.concatenate([part.blobs[name] for part in parts])
        np.testing.assert_array_equal(np.array(found[name].to_pylist(), dtype), expected)
    if label is None:
        assert "label" not in found.column_names
    else:
        np.testing.assert_array_equal(np.array(found["label"].to_pylist()), np.concatenate([p.labels for p in parts]))
    assert pq.read_metadata(tmp_path / "t.parquet").num_row_groups == 2
    assert read_facts(tmp_path / "t.parquet") == {"net": "n"}
    assert count_rows(tmp_path / "t.parquet") == 7


def test_numbers_go_into_arrow_without_a_copy():
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    made = lists_of(values)
    assert made.type == pa.list_(pa.list_(pa.float32(), 4), 3)
    assert made.values.values.buffers()[1].address == values.__array_interface__["data"][0]


def test_a_row_group_is_about_32_mb_and_never_empty():
    assert Columns("key", (), True, {"fc7": (4096,)}).group == 2048
    assert Columns("key", (), True, {"conv": (96, 550, 550)}).group == 1
    assert Columns("key", (), True, {"one": (1,)}).group == 1 << 16


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((96,), (96,)), ((96, 1, 1), (96,)), ((), (1,)), ((4, 5, 6), (4, 5, 6)), ((1, 28, 28), (1, 28, 28))],
)
def test_axes_that_say_nothing_are_left_out(shape, expected):
    assert flat(shape) == expected


def test_foreign_files_have_no_facts(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="did not write"):
        read_facts(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("text")
    with pytest.raises(ValueError, match="no Parquet file"):
        read_facts(tmp_path / "b.parquet")
