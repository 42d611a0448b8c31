"""Which small records are made together with others, and that none of it shows in what a batch holds."""

from __future__ import annotations

import numpy as np
import pytest

from ops.feed import record_tops
from ops.feed.feed import open_feed
from tests.ops.feed.helpers import batches, data_layer, database, datum, layer, pictures, write_lmdb


def made(source, batch, transform="", **options):
    spec = data_layer(source, batch, transform)
    with open_feed(spec, "TRAIN", seed=3, digest=True, **options) as feed:
        some = (next(feed) for _ in range(12))
        return feed.loader.batches, [(one.digest, [blob.tolist() for blob in one.blobs.values()]) for one in some]


def test_small_crops_of_large_records_are_made_one_by_one(tmp_path):
    """Whole records would be copied for a few numbers of each."""
    small = database(tmp_path / "small", pictures(20, 60, 60))
    large = database(tmp_path / "large", pictures(20, 90, 90))
    assert made(small, 4, "crop_size: 8 mirror: true")[0] > 1
    assert made(large, 4, "crop_size: 8 mirror: true")[0] == 1


@pytest.mark.parametrize("labels", [[0, 1, 2], [5, 200, 70_000]])
def test_one_long_record_among_small_ones_costs_no_memory(tmp_path, monkeypatch, labels):
    """It is told by its own batch, and those before it are made as ever."""
    planes = pictures(25, 6, 6)
    records = {b"%08d" % i: datum(one, labels[i % 3]) for i, one in enumerate(planes)}
    write_lmdb(tmp_path / "db", records | {b"%08d" % 99: datum(pictures(1, 900, 900)[0], 1)})
    with open_feed(data_layer(tmp_path / "db", 4), "TRAIN", seed=1, threads=1) as feed:
        found = [next(feed).blobs["data"].numpy().copy() for _ in range(6)]
        assert np.array_equal(np.concatenate(found), planes[:24])
        with pytest.raises(ValueError, match="record 00000099: is 3x900x900 where the batch is 3x6x6"):
            next(feed)
    together = made(tmp_path / "db", 4, "crop_size: 5")[1]
    monkeypatch.setattr(record_tops, "TOGETHER", 0)
    assert made(tmp_path / "db", 4, "crop_size: 5")[1] == together


def test_bytes_become_numbers_as_caffe_s_arithmetic_says(tmp_path):
    """(x - mean) * scale in float32, whether a record's bytes go through tables or not."""
    planes = pictures(8, 90, 80)
    source = database(tmp_path / "db", planes)
    for values in ((), (104,), (104.25, 117.5, 123)):
        text = "".join(f"mean_value: {value} " for value in values) + "scale: 0.017"
        found = batches(data_layer(source, 4, text), 2)
        mean = np.array(values or (0,), np.float32).reshape(-1, 1, 1)
        wanted = (planes.astype(np.float32) - mean) * np.float32(0.017)
        assert np.array_equal(np.concatenate([one["data"] for one in found]), wanted)


def test_tops_of_other_lengths_than_the_batch(tmp_path):
    spec = layer(
        'name: "d" type: "DummyData" top: "a" top: "b" dummy_data_param { shape { dim: 4 dim: 3 } shape { dim: 10 } '
        'data_filler { type: "gaussian" } data_filler { type: "constant" value: 2 } }'
    )
    (found,) = batches(spec, 1)
    assert (found["a"].shape, found["b"].tolist()) == ((4, 3), [2.0] * 10)
