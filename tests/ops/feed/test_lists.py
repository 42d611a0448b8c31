"""ImageData against OpenCV's own reading, with any labels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from ops.feed.feed import FeedOptions, open_feed
from tests.ops.feed.helpers import batches, layer, stream


def listed(source, batch, more="", transform=""):
    return layer(
        f'name: "data" type: "ImageData" top: "data" top: "label" transform_param {{ {transform} }} '
        f'image_data_param {{ source: "{source}" batch_size: {batch} {more} }}'
    )


@pytest.fixture
def photos(golden, monkeypatch):
    """From the folder of the photographs, thirty lines in a list."""
    monkeypatch.chdir(golden / "files" / "photos")
    return golden / "files" / "list.txt"


@pytest.mark.parametrize("color", ["true", "false"])
def test_pictures_are_imreads_resized_by_opencv(photos, color):
    spec = listed(photos, 7, f"new_height: 40 new_width: 50 is_color: {color}")
    found = batches(spec, 5, "TEST")
    lines = [line.rsplit(" ", 1) for line in photos.read_text().splitlines()]
    flag = cv2.IMREAD_COLOR if color == "true" else cv2.IMREAD_GRAYSCALE
    for place in range(35):
        name, label = lines[place % 30]
        picture = np.atleast_3d(cv2.resize(cv2.imread(name, flag), (50, 40)))
        assert np.array_equal(found[place // 7]["data"][place % 7], picture.transpose(2, 0, 1).astype(np.float32))
        assert found[place // 7]["label"][place % 7] == int(label)


def test_pictures_of_many_sizes_are_cropped_to_one(photos):
    spec = listed(photos, 30, transform="crop_size: 50")
    (found,) = batches(spec, 1, "TEST")
    for line, out in zip(photos.read_text().splitlines(), found["data"], strict=True):
        picture = cv2.imread(line.rsplit(" ", 1)[0])
        top, left = (picture.shape[0] - 50) // 2, (picture.shape[1] - 50) // 2
        assert np.array_equal(out, picture[top : top + 50, left : left + 50].transpose(2, 0, 1).astype(np.float32))


def test_one_picture_a_batch_may_have_any_size(photos):
    names = [line.rsplit(" ", 1)[0] for line in photos.read_text().splitlines()]
    found = batches(listed(photos, 1), 30, "TEST")
    shapes = {batch["data"].shape for batch in found}
    assert len(shapes) > 1
    for name, batch in zip(names, found, strict=True):
        assert np.array_equal(batch["data"][0], cv2.imread(name).transpose(2, 0, 1).astype(np.float32))


def test_several_pictures_of_different_sizes_are_no_batch(photos):
    with pytest.raises(ValueError, match=r"list\.txt:\d+: .*\.jpg: is 3x\d+x\d+ where the batch is .*crop or resize"):
        batches(listed(photos, 30), 1)


def test_the_layers_shuffle_is_one(photos):
    size = "new_height: 8 new_width: 8"
    plain = stream(listed(photos, 10, size), 3, top="data")
    shuffled = stream(listed(photos, 10, size + " shuffle: true"), 6, top="data")
    assert shuffled[:30] != plain
    assert sorted(shuffled[:30]) == sorted(shuffled[30:]) == sorted(plain)
    assert shuffled[:30] != shuffled[30:]
    again = stream(listed(photos, 10, size + " shuffle: true"), 3, "data", options=FeedOptions(shuffle=False))
    assert again == plain


@pytest.mark.parametrize(
    ("labels", "text", "expected"),
    [
        ("caffe", "a.png 7x\nb.png", [7, 0]),
        ("float", "a.png 0.25\nb.png -3e2", [0.25, -300]),
        ("vector:2", "a.png 1 2.5\nb.png 3 4", [[1, 2.5], [3, 4]]),
    ],
)
def test_labels_may_be_any_numbers(tmp_path, labels, text, expected):
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "list.txt").write_text(text)
    spec = listed(tmp_path / "list.txt", 2, f'root_folder: "{tmp_path}/"')
    with open_feed(spec, "TRAIN", seed=1, options=FeedOptions(labels=labels)) as feed:
        assert feed.shapes["label"] == np.shape(expected)
        assert next(feed).blobs["label"].tolist() == expected


def test_a_list_with_a_line_without_its_numbers_is_told(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "list.txt").write_text("a.png 1\na.png\n")
    spec = listed(tmp_path / "list.txt", 2, f'root_folder: "{tmp_path}/"')
    with pytest.raises(ValueError, match=r"list\.txt:2: .*expected a path and a number"):
        batches(spec, 1, options=FeedOptions(labels="float"))


def test_files_are_found_beside_the_prototxt_too(tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 4, 3), 9, np.uint8))
    (tmp_path / "list.txt").write_text("a.png 1\n")
    monkeypatch.chdir("/")
    (found,) = batches(listed("list.txt", 1), 1, folder=tmp_path)
    assert found["data"].max() == 9


def test_an_image_inside_a_container_is_an_entry_too(golden, tmp_path):
    address = f"{golden}/files/raw_lmdb#00000003_hat_0.jpg"
    (tmp_path / "list.txt").write_text(f"{address} 4\n")
    (found,) = batches(listed(tmp_path / "list.txt", 1), 1)
    raw = batches(
        layer(f'name: "d" type: "Data" top: "data" data_param {{ source: "{golden}/files/raw_lmdb" batch_size: 4 }}'), 1
    )
    assert np.array_equal(found["data"][0], raw[0]["data"][3])


# -- bad pictures ------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_bad(tmp_path):
    """Forty pictures of the value of their line; lines 3, 4 and 39 (from 0) are no pictures."""
    lines = []
    for i in range(40):
        name = tmp_path / f"{i}.png"
        cv2.imwrite(str(name), np.full((4, 4, 3), i, np.uint8))
        if i in (3, 39):
            name.write_bytes(b"not a picture")
        if i == 4:
            name.unlink()
        lines.append(f"{name} {i}")
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "list.txt"


def test_a_picture_that_cannot_be_read_ends_it_as_in_caffe(with_bad):
    spec = listed(with_bad, 5)
    with pytest.raises(ValueError, match=r"layer 'data': .*list\.txt:4: .*3\.png: not an image"):
        batches(spec, 1)
    with pytest.raises(ValueError, match=r"list\.txt:5: .*4\.png: No such file or directory"):
        batches(spec, 1, position=4)


@pytest.mark.parametrize("shuffle", [None, True])
def test_the_next_good_record_stands_in_for_a_bad_one(with_bad, shuffle):
    spec, options = listed(with_bad, 8), FeedOptions(max_bad=0.1, shuffle=shuffle)
    wanted = stream(spec, 10, options=FeedOptions(max_bad=0.1, shuffle=shuffle), threads=1)
    assert len(wanted) == 80
    assert not {3.0, 4.0, 39.0} & set(wanted)
    if not shuffle:
        assert wanted[:8] == [0, 1, 2, 5, 5, 5, 6, 7]
        assert wanted[38:42] == [38, 0, 0, 1]
    parts = [[b["label"] for b in batches(spec, 10, options=options, part=(rank, 3))] for rank in range(3)]
    assert [x for trio in zip(*parts, strict=True) for x in np.concatenate(trio).tolist()] == wanted
    with open_feed(spec, "TRAIN", seed=1, options=options) as feed:
        for _ in range(6):
            batch = next(feed)
            for i, label in enumerate(batch.blobs["label"].tolist()):
                assert batch.names(i).endswith(f"{int(label)}.png")
        assert [name.rpartition("/")[2] for name in sorted(feed.bad)] == ["39.png", "3.png", "4.png"]
        assert "No such file" in next(reason for name, reason in feed.bad.items() if name.endswith("/4.png"))


def test_more_bad_pictures_than_allowed_end_it(with_bad):
    with pytest.raises(ValueError, match=r"3 of 40 records are bad, more than max_bad 0\.06"):
        batches(listed(with_bad, 10), 5, options=FeedOptions(max_bad=0.06), threads=1)
