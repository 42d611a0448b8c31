"""transform_param against a reference number by number; host and device give the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops import augment
from ops.feed import record_tops
from ops.feed.feed import FeedOptions, open_feed
from ops.feed.transform import Choices, Transform
from ops.proto.caffe_pb2 import TransformationParameter
from ops.records import binaryproto
from tests.ops.feed.helpers import batches, data_layer, database, datum, pictures, transformed, write_lmdb

MEAN = np.random.default_rng(5).normal(120, 30, (3, 12, 10)).astype(np.float32)
CASES = {
    "as it is": "",
    "crop": "crop_size: 7",
    "scale": "scale: 0.0123",
    "one value": "mean_value: 104.5 crop_size: 7",
    "a value a channel": "mean_value: 104 mean_value: 117.3 mean_value: 123 scale: 0.017 mirror: true",
    "mean file": 'mean_file: "MEAN"',
    "mean file and crop": 'mean_file: "MEAN" crop_size: 6',
    "everything": 'mean_file: "MEAN" crop_size: 6 mirror: true scale: 0.00390625',
    "everything, odd scale": 'mean_file: "MEAN" crop_size: 7 mirror: true scale: 0.0173',
}


def where_from(out: np.ndarray, planes: np.ndarray, crop: int, **how) -> tuple[int, int, bool]:
    """The (top, left, flip) for which the reference gives these bits."""
    height, width = (crop, crop) if crop else planes.shape[1:]
    numbers = transformed(planes, **how)
    for top in range(planes.shape[1] - height + 1):
        for left in range(planes.shape[2] - width + 1):
            window = numbers[:, top : top + height, left : left + width]
            for flip in (False, True):
                if np.array_equal(window[:, :, ::-1] if flip else window, out):
                    return top, left, flip
    raise AssertionError("no crop of the record is this")


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("kind", ["bytes", "floats", "encoded"])
@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("case", CASES)
def test_every_record_is_a_crop_as_the_reference_makes_it(tmp_path, monkeypatch, case, phase, kind, small):
    monkeypatch.setattr(record_tops, "SMALL", 1 << 14 if small else 0)
    binaryproto.write(tmp_path / "MEAN", MEAN)
    planes = pictures(8)
    records = [planes.astype(np.float32) / 3] if kind == "floats" else [planes]
    if kind == "encoded":
        from ops.image import encode
        from ops.records.datum import encoded

        made = {b"%08d" % i: encoded(encode(p.transpose(1, 2, 0), "png"), i) for i, p in enumerate(planes)}
    else:
        made = {b"%08d" % i: datum(p, i) for i, p in enumerate(records[0])}
    write_lmdb(tmp_path / "db", made)
    spec = data_layer(tmp_path / "db", 8, CASES[case].replace("MEAN", str(tmp_path / "MEAN")))
    found = batches(spec, 2, phase)
    param = spec.transform_param
    how = {
        "crop": param.crop_size,
        "mean": MEAN if param.mean_file else None,
        "values": list(param.mean_value),
        "scale": param.scale,
    }
    places = [where_from(out, one, **how) for b in found for out, one in zip(b["data"], records[0], strict=True)]
    assert [b["label"].tolist() for b in found] == [list(range(8))] * 2
    if phase == "TEST" and param.crop_size:
        assert {place[:2] for place in places} == {((12 - param.crop_size) // 2, (10 - param.crop_size) // 2)}
    if phase == "TRAIN" and param.crop_size:
        assert len({place[:2] for place in places}) > 4
    assert len({place[2] for place in places}) == 1 + param.mirror, "mirror is a coin in TEST too, and off otherwise"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_the_device_computes_the_hosts_bits(tmp_path, case, kind):
    binaryproto.write(tmp_path / "MEAN", MEAN)
    database(tmp_path / "db", pictures(9).astype(kind))
    spec = data_layer(tmp_path / "db", 5, CASES[case].replace("MEAN", str(tmp_path / "MEAN")))
    host = batches(spec, 3)
    device = batches(spec, 3, options=FeedOptions(arithmetic="device"))
    for here, there in zip(host, device, strict=True):
        assert np.array_equal(here["data"], there["data"])
        assert there["data"].dtype == np.float32
        assert np.array_equal(here["label"], there["label"])


def test_the_device_is_given_bytes(tmp_path):
    database(tmp_path / "db", pictures(9))
    with open_feed(data_layer(tmp_path / "db", 4), "TRAIN", seed=1, options=FeedOptions(arithmetic="device")) as feed:
        assert feed.loader.next().tensors["data"].dtype == torch.uint8


def test_real_caffe_made_the_same_of_thirty_photographs(golden):
    """mean file, centre crop, scale over a raw LMDB, all by Caffe."""
    expected = np.load(golden / "files" / "feat_expected.npz")
    spec = data_layer("raw_lmdb", 10, 'mean_file: "mean.binaryproto" crop_size: 32 mirror: false scale: 0.00390625')
    found = batches(spec, 3, "TEST", folder=golden / "files")
    assert np.array_equal(np.concatenate([batch["data"] for batch in found]), expected["data"])
    assert np.array_equal(np.concatenate([batch["label"] for batch in found]), expected["label"])


# -- chance ------------------------------------------------------------------------------------------------------------


def transform(text: str = "", train: bool = True, **more) -> Transform:
    from google.protobuf import text_format

    return Transform(text_format.Parse(text, TransformationParameter()), train=train, **more)


def test_crops_and_coins_are_uniform_and_independent():
    made = transform("crop_size: 4 mirror: true")
    choices = made.choose(1, "data", np.arange(35_000))
    corners = made.corners((3, 8, 10), choices, 35_000)
    table = np.zeros((5, 7, 2))
    np.add.at(table, (corners[:, 0], corners[:, 1], choices.flips.astype(int)), 1)
    assert ((table - 500) ** 2 / 500).sum() < 110  # 69 degrees of freedom: one in a thousand


@given(st.integers(1, 40), st.integers(0, 30), st.integers(0, 30), st.integers(0, 2**62))
def test_a_corner_alone_is_that_of_all_at_once(crop, down, right, start):
    made = transform(f"crop_size: {crop}")
    choices = made.choose(3, "data", np.arange(start, start + 5))
    shape = (1, crop + down, crop + right)
    corners = made.corners(shape, choices, 5)
    assert [made.corner(shape, choices, i) for i in range(5)] == [tuple(corner) for corner in corners.tolist()]
    assert (corners >= 0).all()
    assert (corners <= [down, right]).all()


def test_other_layers_and_seeds_draw_otherwise():
    made = transform("crop_size: 4 mirror: true")
    drawn = [made.choose(seed, name, np.arange(64)).flips.tolist() for seed in (1, 2) for name in ("data", "other")]
    assert len({tuple(flips) for flips in drawn}) == 4


def test_what_mirror_does_is_not_changed_by_a_crop():
    positions = np.arange(50)
    alone = transform("mirror: true").choose(1, "data", positions).flips
    assert transform("mirror: true crop_size: 3").choose(1, "data", positions).flips.tolist() == alone.tolist()


def test_augmentation_is_drawn_by_position_and_done_before_the_crop(tmp_path):
    planes = pictures(6, 20, 20)
    database(tmp_path / "db", planes)
    spec = data_layer(tmp_path / "db", 6, "crop_size: 16")
    text = "rotate=20,translate=0.1,brightness=0.1,noise=3"
    found = np.concatenate([b["data"] for b in batches(spec, 2, "TEST", options=FeedOptions(augment=text))])
    made = transform("crop_size: 16", train=False, augment=augment.parse(text))
    choices = made.choose(1, "data", np.arange(12))
    for i, out in enumerate(found):
        from ops.chance import Drawn

        chosen = augment.parse(text).choose(Drawn(choices.augments[i]))
        whole = augment.apply(np.ascontiguousarray(planes[i % 6].transpose(1, 2, 0)), chosen)
        assert np.array_equal(out, whole[2:18, 2:18].transpose(2, 0, 1).astype(np.float32))
    assert not np.array_equal(found[:6], found[6:])


# -- what cannot be done -----------------------------------------------------------------------------------------------


def test_mean_file_and_mean_value_are_refused():
    with pytest.raises(ValueError, match="mean_file and mean_value; write one"):
        transform("mean_value: 3", mean=MEAN)


def test_nothing_is_drawn_where_nothing_is_random():
    assert transform("crop_size: 3", train=False).choose(1, "a", np.arange(3)) == Choices(None, None, None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("crop_size: 13", "db: record 00000000: is 12x10, smaller than crop_size 13"),
        (
            "mean_value: 1 mean_value: 2",
            "db: record 00000000: has 3 channels, transform_param 2 mean_values; expected 1 or 3",
        ),
        (
            'mean_file: "MEAN"',
            "db: record 00000000: is 3x12x10, the mean file 3x9x9: a mean image has the records' own shape",
        ),
        ('mean_file: "NONE"', "there is no .*NONE"),
        ("force_color: true force_gray: true", "force_color and force_gray; write one"),
    ],
)
def test_a_transform_that_does_not_fit_names_the_record(tmp_path, text, told):
    binaryproto.write(tmp_path / "MEAN", np.zeros((3, 9, 9), np.float32))
    database(tmp_path / "db", pictures(3))
    text = text.replace("MEAN", str(tmp_path / "MEAN"))
    with pytest.raises(ValueError, match=told) as caught:
        open_feed(data_layer(tmp_path / "db", 2, text), "TRAIN", seed=1)
    assert str(caught.value).startswith("layer 'data': ")


def test_float_records_cannot_be_augmented(tmp_path):
    database(tmp_path / "db", pictures(3).astype(np.float32))
    with pytest.raises(ValueError, match="augmentation takes pictures of bytes"):
        batches(data_layer(tmp_path / "db", 2), 1, options=FeedOptions(augment="rotate=3"))
