"""Parts of features in every format: what is written is read back, and its sum knows every name, label and number."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash

from ops.records.feature_parts import BROKEN, Tally, as_stored, open_part
from ops.records.features import WRITERS
from ops.records.parquet import Columns, Rows

NAMES = {"parquet": "part.parquet", "lmdb": "part.lmdb", "hdf5": "part.h5"}


def rows(columns: Columns, first: int, count: int) -> Rows:
    rng = np.random.default_rng(first)
    blobs = {name: rng.standard_normal((count, *shape)).astype(columns.dtype) for name, shape in columns.blobs.items()}
    labels = None
    if columns.label is not None:
        labels = rng.integers(0, 100, (count, *columns.label))
    return Rows(np.arange(first, first + count), [f"é {i}.jpg" for i in range(first, first + count)], labels, blobs)


def write(folder, format: str, columns: Columns, parts: list[Rows]) -> Tally:
    tally = Tally()
    with WRITERS[format](folder, columns, {"net": "n"}) as writer:
        for part in parts:
            writer.put(part)
            tally.add(as_stored(part, columns, format))
    return tally


@pytest.mark.parametrize("label", [None, (), (3,)])
@pytest.mark.parametrize(
    ("format", "dtype"), [("parquet", "float32"), ("parquet", "float16"), ("lmdb", "float32"), ("hdf5", "float16")]
)
def test_what_is_written_is_read_back_with_the_same_sum(tmp_path, format, dtype, label):
    columns = Columns("path", label, label == (), {"fc7": (5,), "conv1": (2, 3, 4)}, dtype)
    parts = [rows(columns, 0, 4), rows(columns, 4, 3)]
    written = write(tmp_path, format, columns, parts)
    again = Tally()
    name = {**NAMES, "lmdb": "fc7/part.lmdb"}[format]  # the manifest has the name of the first blob's
    with open_part(format, tmp_path, name, columns.blobs) as part:
        assert sum(part.groups) == 7
        assert part.dtype == dtype
        for group in range(len(part.groups)):
            found = part.read(group)
            again.add(found)
    assert (again.count, again.first, again.last) == (7, written.first, written.last)
    assert again.checksum() == written.checksum()
    names = ["0000000000", "0000000006"] if format == "lmdb" else ["é 0.jpg", "é 6.jpg"]
    assert [again.first, again.last] == names


def test_the_sum_is_xxh3_over_names_labels_and_numbers_however_they_are_grouped():
    columns = Columns("key", (), True, {"a": (3,), "b": (2, 2)})
    whole = rows(columns, 0, 9)
    total = xxhash.xxh3_64()
    total.update(xxhash.xxh3_64("".join(f"é {i}.jpg\0" for i in range(9)).encode()).digest())
    total.update(xxhash.xxh3_64(whole.labels.astype(np.float64).tobytes()).digest())
    for blob in "ab":
        total.update(xxhash.xxh3_64(whole.blobs[blob].tobytes()).digest())
    for size in (1, 4, 9):
        tally = Tally()
        for first in range(0, 9, size):
            some = slice(first, first + size)
            blobs = {blob: values[some] for blob, values in whole.blobs.items()}
            tally.add(Rows(whole.places[some], whole.names[some], whole.labels[some], blobs))
        assert tally.checksum() == total.hexdigest()


@pytest.mark.parametrize("format", ["parquet", "lmdb", "hdf5"])
def test_other_blobs_and_files_that_are_no_parts_are_told(tmp_path, format):
    columns = Columns("key", (), True, {"fc7": (5,)})
    write(tmp_path, format, columns, [rows(columns, 0, 4)])
    name = NAMES[format]
    with pytest.raises(ValueError, match=r"5|expected"), open_part(format, tmp_path, name, {"fc7": (6,)}) as part:
        part.read(0)
    if format != "lmdb":
        with pytest.raises(ValueError, match=r"no blob 'fc6'; it has .*fc7"):
            open_part(format, tmp_path, name, {"fc6": (5,)})
        (tmp_path / name).write_text("text")
    with pytest.raises(BROKEN):
        open_part(format, tmp_path, name if format != "lmdb" else "gone.lmdb", {"fc7": (5,)})


def test_lmdbs_whose_keys_differ_are_told(tmp_path):
    columns = Columns("key", None, True, {"a": (2,), "b": (2,)})
    write(tmp_path, "lmdb", columns, [rows(columns, 0, 3)])
    other = Columns("key", None, True, {"b": (2,)})
    (tmp_path / "b").rename(tmp_path / "old")
    (tmp_path / "b").mkdir()
    write(tmp_path / "b", "lmdb", other, [rows(other, 1, 3)])
    told = pytest.raises(ValueError, match="record 0000000000: expected the same ten digits for every blob")
    with open_part("lmdb", tmp_path, "a/part.lmdb", columns.blobs) as part, told:
        part.read(0)
