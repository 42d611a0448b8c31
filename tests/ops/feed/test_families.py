"""Every kind of data layer through `open_feed`: shapes, order, and what is said when something is wrong."""

from __future__ import annotations

from itertools import pairwise

import h5py
import numpy as np
import pytest

from ops.feed.feed import FeedOptions, open_feed
from ops.records import hdf5
from tests.ops.feed.helpers import batches, data_layer, database, layer, pictures, stream

ROWS = np.random.default_rng(0).normal(size=(10, 3, 4)).astype(np.float32)


# -- Data --------------------------------------------------------------------------------------------------------------


def test_data_follows_the_keys_and_wraps_inside_a_batch(tmp_path):
    database(tmp_path / "db", pictures(7))
    spec = data_layer(tmp_path / "db", 3, more="backend: LEVELDB")
    with open_feed(spec, "TRAIN", seed=1) as feed:
        assert feed.shapes == {"data": (3, 3, 12, 10), "label": (3,)}
        assert (feed.records, feed.batch) == (7, 3)
        assert [next(feed).blobs["label"].tolist() for _ in range(4)] == [[0, 1, 2], [3, 4, 5], [6, 0, 1], [2, 3, 4]]


def test_data_may_have_one_top(tmp_path):
    database(tmp_path / "db", pictures(2))
    with open_feed(data_layer(tmp_path / "db", 2, tops=1), "TRAIN", seed=1) as feed:
        assert list(feed.shapes) == list(next(feed).blobs) == ["data"]


def test_rand_skip_begins_later_once(tmp_path):
    database(tmp_path / "db", pictures(9, 2, 2))
    spec = data_layer(tmp_path / "db", 9, more="rand_skip: 9")
    firsts = [stream(spec, 2, seed=seed) for seed in range(40)]
    assert {found[0] for found in firsts} == set(range(9))
    for found in firsts:
        assert found[:9] == found[9:] == [(found[0] + i) % 9 for i in range(9)]


def test_hdf5_shards_are_data_with_any_labels(tmp_path):
    (tmp_path / "db").mkdir()
    for shard in range(2):
        with hdf5.Writer(tmp_path / "db" / f"part-{shard:05d}.h5") as writer:
            for i in range(4):
                writer.put(b"%d" % i, np.full((1, 5, 5), 4 * shard + i, np.float32), np.array([i, shard], np.float32))
    (tmp_path / "db" / "manifest.json").write_text('{"cortado": 1, "shards": []}')
    spec = data_layer(tmp_path / "db", 8, "crop_size: 3 scale: 2")
    (found,) = batches(spec, 1)
    assert found["data"].shape == (8, 1, 3, 3)
    assert found["data"][:, 0, 0, 0].tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert found["label"][6].tolist() == [2, 1]


def test_records_of_different_shapes_are_no_batch(tmp_path):
    planes = [*pictures(3), *pictures(1, 5, 5), *pictures(3)]
    database(tmp_path / "db", planes)
    told = "record 00000003: is 3x5x5 where the batch is 3x12x10: crop or resize to one size, or take batch_size 1"
    with pytest.raises(ValueError, match=told):
        batches(data_layer(tmp_path / "db", 7), 1)
    assert [b["data"].shape[2:] for b in batches(data_layer(tmp_path / "db", 1), 5)] == [(12, 10)] * 3 + [
        (5, 5),
        (12, 10),
    ]
    assert batches(data_layer(tmp_path / "db", 7, "crop_size: 5"), 1)[0]["data"].shape == (7, 3, 5, 5)


def test_a_batch_may_have_a_shape_of_its_own(tmp_path):
    planes = [*pictures(4), *pictures(4, 5, 5)]
    database(tmp_path / "db", planes)
    found = batches(data_layer(tmp_path / "db", 4), 4)
    assert [batch["data"].shape for batch in found] == [(4, 3, 12, 10), (4, 3, 5, 5)] * 2
    assert np.array_equal(found[3]["data"], np.stack(planes[4:]).astype(np.float32))
    with pytest.raises(ValueError, match="is 3x5x5 where the batch is 3x12x10"):
        batches(data_layer(tmp_path / "db", 4), 4, part=(0, 2))


def test_other_channels_or_values_are_told(tmp_path):
    database(tmp_path / "db", [*pictures(2), *pictures(1, channels=1)])
    with pytest.raises(ValueError, match="record 00000002: has 1 channels where the first record has 3"):
        batches(data_layer(tmp_path / "db", 3), 1)
    database(tmp_path / "mixed", [*pictures(2), *pictures(1).astype(np.float32)])
    with pytest.raises(ValueError, match="record 00000002: holds float32 values where the first record has uint8"):
        batches(data_layer(tmp_path / "mixed", 3), 1)


def test_a_crop_that_does_not_fit_names_its_record(tmp_path):
    database(tmp_path / "db", [*pictures(5), *pictures(1, 7, 7)])
    with pytest.raises(ValueError, match="db: record 00000005: is 7x7, smaller than crop_size 8"):
        batches(data_layer(tmp_path / "db", 2, "crop_size: 8"), 3)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: None, "layer 'data': there is no '.*db': looked for .*db"),
        (lambda folder: folder.mkdir(), "an empty folder"),
        (lambda folder: database(folder, []), "db: holds no records"),
        (lambda folder: folder.write_text("a.jpg 1\n"), "of kind list; expected an LMDB, a LevelDB or a folder"),
    ],
)
def test_a_source_that_is_missing_or_empty_is_told(tmp_path, make, told):
    make(tmp_path / "db")
    with pytest.raises(ValueError, match=told):
        open_feed(data_layer(tmp_path / "db", 2), "TRAIN", seed=1)


def test_a_source_is_looked_for_in_two_places_and_both_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"there is no 'none': looked for {tmp_path}/none and {tmp_path}/nets/none"):
        open_feed(data_layer("none", 2), "TRAIN", seed=1, folder=tmp_path / "nets")


def test_a_damaged_record_is_named(tmp_path):
    from tests.ops.feed.helpers import datum, write_lmdb

    records = {b"%d" % i: datum(planes, i) for i, planes in enumerate(pictures(3))}
    write_lmdb(tmp_path / "db", records | {b"2": b"\x08\x03\x10"})
    with pytest.raises(ValueError, match=r"layer 'data': .*db: record 2: not a Datum: cut short"):
        batches(data_layer(tmp_path / "db", 3), 1)


def test_an_unknown_type_and_sizes_of_nothing_are_told(tmp_path):
    with pytest.raises(ValueError, match="unknown type of data layer 'Dta'; did you mean 'Data'"):
        open_feed(layer('name: "d" type: "Dta" top: "data"'), "TRAIN", seed=1)
    database(tmp_path / "db", pictures(2))
    with pytest.raises(ValueError, match="data_param has batch_size 0"):
        open_feed(data_layer(tmp_path / "db", 0), "TRAIN", seed=1)


def test_the_batch_may_be_given(tmp_path):
    database(tmp_path / "db", pictures(5))
    with open_feed(data_layer(tmp_path / "db", 0), "TRAIN", seed=1, options=FeedOptions(batch=4)) as feed:
        assert feed.batch == 4
        assert feed.shapes["data"][0] == 4


def test_classes_come_up_as_often(tmp_path):
    labels = [0] * 50 + [1] * 3 + [7] * 10
    database(tmp_path / "db", pictures(63, 2, 2), labels)
    found = stream(data_layer(tmp_path / "db", 9), 10, options=FeedOptions(balance=True))
    assert [found.count(label) for label in (0, 1, 7)] == [30, 30, 30]


# -- HDF5Data ----------------------------------------------------------------------------------------------------------


def hdf5_files(folder, cuts=(0, 4, 5, 10)):
    names = []
    for number, (start, stop) in enumerate(pairwise(cuts)):
        names.append(f"{number}.h5")
        with h5py.File(folder / names[-1], "w") as file:
            file["data"], file["label"] = ROWS[start:stop], np.arange(start, stop)
            file["vec"] = ROWS[start:stop, 0, :2].astype(np.float64)
    (folder / "list.txt").write_text("\n".join(names) + "\n")
    return folder / "list.txt"


def hdf5_layer(source, batch, tops=("data", "label"), more=""):
    named = " ".join(f'top: "{top}"' for top in tops)
    return layer(
        f'name: "d" type: "HDF5Data" {named} hdf5_data_param {{ source: "{source}" batch_size: {batch} {more} }}'
    )


def test_hdf5_rows_wrap_across_files_with_any_tops(tmp_path):
    spec = hdf5_layer(hdf5_files(tmp_path), 4, ("vec", "data", "label"))
    with open_feed(spec, "TRAIN", seed=1) as feed:
        assert feed.shapes == {"vec": (4, 2), "data": (4, 3, 4), "label": (4,)}
    found = batches(spec, 5)
    assert np.concatenate([batch["label"] for batch in found]).tolist() == list(range(10)) * 2
    assert np.array_equal(np.concatenate([batch["data"] for batch in found]), np.concatenate([ROWS, ROWS]))
    assert np.array_equal(found[1]["vec"], ROWS[4:8, 0, :2])


def test_hdf5_shuffle_mixes_all_files_and_keeps_rows_together(tmp_path):
    found = batches(hdf5_layer(hdf5_files(tmp_path), 5, more="shuffle: true"), 4)
    order = np.concatenate([batch["label"] for batch in found]).astype(int)
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10].tolist() != order[10:].tolist() != list(range(10))
    assert np.array_equal(np.concatenate([batch["data"] for batch in found]), ROWS[order])


def test_the_golden_solvers_data_are_read_in_caffes_order(golden, monkeypatch):
    monkeypatch.chdir("/")
    found = batches(hdf5_layer("train_list.txt", 8), 7, folder=golden / "solvers")
    with h5py.File(golden / "solvers" / "train.h5") as file:
        data, label = file["data"][:], file["label"][:]
    assert np.array_equal(np.concatenate([batch["data"] for batch in found]), np.concatenate([data, data[:8]]))
    assert np.array_equal(np.concatenate([batch["label"] for batch in found]), np.concatenate([label, label[:8]]))


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "an empty list"), ("none.h5", "there is no 'none.h5'"), ("list.txt", "its entry 'list.txt' is no HDF5 file")],
)
def test_a_list_of_hdf5_files_that_is_wrong_is_told(tmp_path, text, told):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=told):
        open_feed(hdf5_layer(tmp_path / "list.txt", 2), "TRAIN", seed=1)


def test_a_top_that_no_dataset_is_named_after_is_told(tmp_path):
    with pytest.raises(ValueError, match="no dataset 'lable'; did you mean 'label'"):
        open_feed(hdf5_layer(hdf5_files(tmp_path), 2, ("data", "lable")), "TRAIN", seed=1)


def test_rows_are_balanced_by_their_label(tmp_path):
    found = stream(hdf5_layer(hdf5_files(tmp_path), 10), 2, options=FeedOptions(balance=True))
    assert sorted(found[:10]) == sorted(found[10:]) == list(range(10))


# -- in memory ---------------------------------------------------------------------------------------------------------

MEMORY = 'name: "m" type: "MemoryData" top: "data" top: "label" memory_data_param {{ {} }} transform_param {{ {} }}'


def test_pictures_in_memory_are_transformed():
    planes = pictures(6)
    spec = layer(MEMORY.format("batch_size: 4 channels: 3 height: 5 width: 5", "crop_size: 5 scale: 0.5 mean_value: 3"))
    options = FeedOptions(arrays={"data": planes, "label": np.arange(6)})
    found = batches(spec, 3, "TEST", options=options)
    expected = (planes[:, :, 3:8, 2:7].astype(np.float32) - 3) * np.float32(0.5)
    assert np.array_equal(np.concatenate([b["data"] for b in found]), np.concatenate([expected, expected]))
    assert np.concatenate([b["label"] for b in found]).tolist() == [*range(6), *range(6)]


def test_numbers_in_memory_stay_as_they_are():
    values = ROWS.reshape(10, 3, 2, 2)
    spec = layer(MEMORY.format("batch_size: 4 channels: 3 height: 2 width: 2", "scale: 0.5"))
    options = FeedOptions(arrays={"data": values, "label": np.arange(10).reshape(10, 1, 1, 1)})
    found = batches(spec, 2, options=options)
    assert np.array_equal(np.concatenate([b["data"] for b in found]), values[:8])
    assert found[1]["label"].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_pictures_of_another_size_than_the_layers_are_told(kind):
    spec = layer(MEMORY.format("batch_size: 4 channels: 3 height: 2 width: 2", ""))
    with pytest.raises(ValueError, match="memory_data_param says 3 x 2 x 2"):
        open_feed(
            spec, "TRAIN", seed=1, options=FeedOptions(arrays={"data": pictures(4).astype(kind), "label": [0] * 4})
        )


def test_inputs_take_arrays_of_any_shape():
    spec = layer(
        'name: "i" type: "Input" top: "a" top: "b" input_param { shape { dim: 4 dim: 3 dim: 4 } shape { dim: 4 } }'
    )
    found = batches(spec, 3, options=FeedOptions(arrays={"a": ROWS, "b": np.arange(10)}))
    assert np.concatenate([b["b"] for b in found]).tolist() == [*range(10), 0, 1]
    assert np.array_equal(found[1]["a"], ROWS[4:8])


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({}, "nothing given for 'a'"),
        ({"a": ROWS}, "nothing given for 'b'; did you mean 'a'|nothing given for 'b'"),
        ({"a": ROWS, "b": np.zeros(3)}, "arrays of a 10, b 3 records"),
        ({"a": ROWS[:0], "b": np.zeros(0)}, "expected as many in each, and at least one"),
        ({"a": ROWS[:, :2], "b": np.zeros(10)}, "'a' is 4 x 3 x 4, rows of the array given are 2 x 4"),
    ],
)
def test_arrays_that_do_not_fit_are_told(arrays, told):
    spec = layer(
        'name: "i" type: "Input" top: "a" top: "b" input_param { shape { dim: 4 dim: 3 dim: 4 } shape { dim: 4 } }'
    )
    with pytest.raises(ValueError, match=told):
        open_feed(spec, "TRAIN", seed=1, options=FeedOptions(arrays=arrays))


# -- fillers -----------------------------------------------------------------------------------------------------------

DUMMY = """name: "d" type: "DummyData" top: "x" top: "y" dummy_data_param {
  shape { dim: 6 dim: 3 } shape { dim: 6 }
  data_filler { type: "gaussian" std: 2 } data_filler { type: "constant" value: 5 } }"""


def test_fillers_make_new_numbers_from_each_position():
    found = batches(layer(DUMMY), 300)
    drawn = np.stack([batch["x"] for batch in found])
    assert len(np.unique(drawn)) > 0.99 * drawn.size
    assert abs(drawn.std() - 2) < 0.1
    assert all((batch["y"] == 5).all() for batch in found)
    again = batches(layer(DUMMY), 1, position=6 * 7)
    assert np.array_equal(again[0]["x"], drawn[7])
    with open_feed(layer(DUMMY), "TRAIN", seed=1) as feed:
        assert feed.records is None


@pytest.mark.parametrize("world", [2, 4])
def test_parts_of_what_fillers_make_are_the_whole(world):
    text = DUMMY.replace("gaussian", "xavier").replace("std: 2", "")
    whole = batches(layer(text), 3)
    parts = [batches(layer(text), 3, part=(rank, world)) for rank in range(world)]
    for number, batch in enumerate(whole):
        for top in ("x", "y"):
            assert np.array_equal(np.concatenate([part[number][top] for part in parts]), batch[top])


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"shuffle": "block"}, "shuffle: found 'block'"),
        ({"block": 0}, "block: found 0"),
        ({"max_bad": 1.0}, "max_bad: found 1.0"),
        ({"batch": 0}, "batch: found 0"),
        ({"arithmetic": "gpu"}, "unknown arithmetic 'gpu'"),
        ({"balance": True, "shuffle": "blocks"}, "balance takes records from everywhere"),
        ({"augment": "rotat=3"}, "unknown augmentation 'rotat'"),
    ],
)
def test_options_that_make_no_sense_are_told(given, told):
    with pytest.raises(ValueError, match=told):
        FeedOptions(**given)
