"""Which record stands where, what is left out, and how many parts there are."""

from __future__ import annotations

import numpy as np
import pytest

from ops.feed.transform import Transform
from ops.proto.caffe_pb2 import TransformationParameter
from ops.recipe import Recipe
from ops.records.image_list import ImageList
from pipelines.stages.feature_setup import part_count
from pipelines.stages.feature_sources import InParts, MemoryInput, Tolerant


@pytest.mark.parametrize("spare", [0, 2])
def test_a_batch_never_holds_records_of_two_parts(spare):
    cuts, batch = [0, 5, 9, 14], 4
    order = InParts(cuts, batch, spare)
    assert order.padded == 8 + spare * batch
    records = order.records(np.arange(4 * order.padded)).reshape(4, order.padded)
    assert records[0].tolist() == [0, 1, 2, 3, 4] + [-1] * (order.padded - 5)
    assert records[1].tolist() == [5, 6, 7, 8] + [-1] * (order.padded - 4)
    assert records[2].tolist() == [9, 10, 11, 12, 13] + [-1] * (order.padded - 5)
    assert set(records[3].tolist()) == {-1}
    for first in range(0, 3 * order.padded, batch):
        here = order.records(np.arange(first, first + batch))
        assert len({np.searchsorted(cuts, one, "right") for one in here if one >= 0}) <= 1


@pytest.mark.parametrize(
    ("count", "format", "parts"),
    [
        (30, "parquet", 1),
        (1024, "parquet", 1),
        (1025, "hdf5", 2),
        (65_536, "parquet", 64),
        (262_144, "parquet", 64),
        (1_000_000, "parquet", 245),
        (4096, "lmdb", 1),
        (4097, "lmdb", 2),
    ],
)
def test_parts_follow_from_the_input_alone(count, format, parts):
    assert part_count("auto", count, format) == parts
    assert part_count("7", count, format) == min(7, count)


@pytest.fixture
def pictures(golden, tmp_path):
    """Photographs, of which the first is not there, and one is no picture."""
    folder = golden / "files" / "photos"
    (tmp_path / "text.jpg").write_text("text")
    names = [
        str(tmp_path / "none.jpg"),
        str(folder / "hat_0.jpg"),
        str(tmp_path / "text.jpg"),
        str(folder / "hat_1.jpg"),
    ]
    return ImageList.of(names, np.arange(4, dtype=np.int32))


def opened(pictures, *, count=4, crop=0):
    transform = Transform(TransformationParameter(crop_size=crop), train=False)
    resize = ("exact", 48, 64)
    return Tolerant(MemoryInput(pictures, count, Recipe(resize=resize)).open(), count, transform, None)


def test_bad_records_are_blank_and_noted(pictures):
    source = opened(pictures)
    where = source.locate(np.array([0, 1, 2, 3, -1]))
    examples = [source.read(one) for one in where]
    assert [example.pixels.shape for example in examples] == [(48, 64, 3)] * 5
    notes = source.take_notes(0, 4)
    assert [note.label for note in notes if note.bad is None] == [1, 3]
    assert notes[0].bad == "No such file or directory"
    assert "not an image" in notes[2].bad
    assert source.notes == {}


def test_pictures_smaller_than_the_crop_are_bad(pictures):
    with pytest.raises(ValueError, match=r"none of the 4 images can be read \(first: .*none.jpg: No such file"):
        opened(pictures, crop=50)


def test_nothing_is_read_behind_the_limit(pictures):
    with pytest.raises(ValueError, match="none of the 1 images can be read"):
        opened(pictures, count=1)
