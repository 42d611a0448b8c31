"""WindowData against a reference written from data.md section 8, box by box in plain Python."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.feed import window_file
from ops.feed.feed import open_feed
from ops.feed.window_tops import cut_of
from ops.records import binaryproto
from tests.ops.feed.helpers import batches, layer

SIZES = [(60, 80), (50, 40)]


@pytest.fixture
def windows(tmp_path):
    """Two images; foreground of classes 1 to 3, background, and windows that are dropped."""
    rng = np.random.default_rng(0)
    lines = []
    for number, (height, width) in enumerate(SIZES):
        picture = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (7, 7), 0)
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture)
        lines += [f"# {number}", f"{tmp_path}/{number}.png", "3", str(height), str(width), "9"]
        for i in range(9):
            x1, y1 = int(rng.integers(width - 12)), int(rng.integers(height - 12))
            x2, y2 = int(rng.integers(x1 + 4, width)), int(rng.integers(y1 + 4, height))
            overlap = [0.9, 0.5, 0.6, 0.1, 0.3, 0.0, 0.45, 0.2, 0.7][i]
            lines.append(f"{1 + i % 3} {overlap} {x1} {y1} {x2} {y2}")
    (tmp_path / "windows.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "windows.txt"


def window_layer(source, transform="crop_size: 20", more=""):
    return layer(
        f'name: "w" type: "WindowData" top: "data" top: "label" transform_param {{ {transform} }} window_data_param '
        f'{{ source: "{source}" batch_size: 16 fg_threshold: 0.5 bg_threshold: 0.4 fg_fraction: 0.27 {more} }}'
    )


def rounded(x: float) -> int:
    return math.floor(abs(x) + 0.5) * (1 if x >= 0 else -1)


def reference(picture, box, crop, pad, square, flip, mean, scale):
    """What data.md says becomes of a box, in double precision where Caffe has single."""
    x1, y1, x2, y2 = box
    out = np.zeros((3, crop, crop), np.float32)
    height, width = picture.shape[:2]
    tall = wide = crop
    down = over = 0
    if pad or square:
        factor = crop / (crop - 2 * pad)
        half_y, half_x = (y2 - y1 + 1) / 2, (x2 - x1 + 1) / 2
        middle_y, middle_x = y1 + half_y, x1 + half_x
        if square:
            half_y = half_x = max(half_y, half_x)
        x1, x2 = rounded(middle_x - half_x * factor), rounded(middle_x + half_x * factor)
        y1, y2 = rounded(middle_y - half_y * factor), rounded(middle_y + half_y * factor)
        zoom_y, zoom_x = crop / (y2 - y1 + 1), crop / (x2 - x1 + 1)
        left, right, above, below = max(0, -x1), max(0, x2 - width + 1), max(0, -y1), max(0, y2 - height + 1)
        x1, x2, y1, y2 = x1 + left, x2 - right, y1 + above, y2 - below
        down, over = rounded(above * zoom_y), rounded((right if flip else left) * zoom_x)
        tall = min(rounded((y2 - y1 + 1) * zoom_y), crop - down)
        wide = min(rounded((x2 - x1 + 1) * zoom_x), crop - over)
    window = cv2.resize(picture[y1 : y2 + 1, x1 : x2 + 1], (wide, tall))
    for y in range(tall):
        for x in range(wide):
            pixel = window[y, wide - 1 - x if flip else x].astype(np.float32)
            out[:, down + y, over + x] = (pixel - mean[:, down + y, over + x]) * np.float32(scale)
    return out


CASES = {
    "warp": ("crop_size: 20", ""),
    "warp with context": ("crop_size: 20", "context_pad: 4"),
    "square": ("crop_size: 20", 'crop_mode: "square"'),
    "square with context, mirrored": ("crop_size: 20 mirror: true", 'crop_mode: "square" context_pad: 3 scale: 0.5'),
    "mean values": ("crop_size: 20 mirror: true mean_value: 100 mean_value: 110 mean_value: 120", "context_pad: 4"),
    "mean file": ('crop_size: 20 mirror: true mean_file: "MEAN"', "context_pad: 4 cache_images: true"),
}


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("case", CASES)
def test_every_window_is_one_of_the_file_as_the_reference_makes_it(windows, case, phase):
    mean_file = np.random.default_rng(1).normal(100, 20, (3, 27, 27)).astype(np.float32)
    binaryproto.write(windows.parent / "MEAN", mean_file)
    transform, more = CASES[case]
    spec = window_layer(windows, transform.replace("MEAN", str(windows.parent / "MEAN")), more)
    p, t = spec.window_data_param, spec.transform_param
    mean = np.zeros((3, 20, 20), np.float32)
    if t.mean_value:
        mean += np.float32(t.mean_value).reshape(3, 1, 1)
    if t.mean_file:
        mean = mean_file[:, 3:23, 3:23]
    read = window_file.read(windows, fg_threshold=0.5, bg_threshold=0.4)
    pictures = [cv2.imread(path.decode()) for path, *_ in read.images]
    made: dict[tuple, list] = {}
    for number, label, *box in [*read.foreground.tolist(), *read.background.tolist()]:
        for flip in (False, True)[: 1 + t.mirror]:
            square = p.crop_mode == "square"
            out = reference(pictures[number], box, 20, p.context_pad, square, flip, mean, p.scale or 1)
            made.setdefault((label, out.tobytes()), []).append(flip)
    flips = []
    for batch in batches(spec, 4, phase):
        labels = batch["label"].tolist()
        assert labels[:12] == [0] * 12, "background comes first"
        assert all(labels[12:]), "then int(16 * 0.27) of the foreground"
        for label, out in zip(labels, batch["data"], strict=True):
            assert (label, out.tobytes()) in made
            flips += made[label, out.tobytes()]
    assert len(set(flips)) == 1 + t.mirror


@settings(max_examples=300)
@given(st.data())
def test_a_box_stays_inside_the_image_and_the_crop(data):
    height, width, crop = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 300)), data.draw(st.integers(8, 230))
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x2, y2 = data.draw(st.integers(x1, width - 1)), data.draw(st.integers(y1, height - 1))
    pad = data.draw(st.integers(0, crop // 2 - 1))
    cut = cut_of((x1, y1, x2, y2), (height, width), crop, pad, data.draw(st.booleans()), data.draw(st.booleans()))
    assert 0 <= cut.top < cut.bottom <= height
    assert 0 <= cut.left < cut.right <= width
    assert cut.down >= 0
    assert cut.over >= 0
    assert cut.down + cut.height <= crop
    assert cut.over + cut.width <= crop


def test_windows_are_drawn_uniformly_and_with_replacement(windows):
    read = window_file.read(windows, fg_threshold=0.5, bg_threshold=0.4)
    with open_feed(window_layer(windows), "TRAIN", seed=3) as feed:
        assert feed.records is None
        assert feed.shapes == {"data": (16, 3, 20, 20), "label": (16,)}
        plan = feed.tops.plan(0, 0, 16)
        rows = np.concatenate([feed.tops.plan(16 * i, 0, 16).more["windows"] for i in range(500)])
    assert len(plan.more["windows"]) == 16
    front, back = rows[rows[:, 1] > 0], rows[rows[:, 1] == 0]
    assert (len(back), len(front)) == (500 * 12, 500 * 4)
    for drawn, of in ((front, read.foreground), (back, read.background)):
        kinds, counts = np.unique(drawn, axis=0, return_counts=True)
        assert len(kinds) == len(np.unique(of, axis=0))
        expected = len(drawn) / len(of)
        assert ((counts - expected) ** 2 / expected).sum() < 30


def test_parts_of_windows_are_the_whole(windows):
    spec = window_layer(windows, "crop_size: 20 mirror: true")
    whole = batches(spec, 3)
    parts = [batches(spec, 3, part=(rank, 3)) for rank in range(3)]
    for number, batch in enumerate(whole):
        for top in ("data", "label"):
            assert np.array_equal(np.concatenate([part[number][top] for part in parts]), batch[top])


def test_a_window_is_named(windows):
    with open_feed(window_layer(windows), "TRAIN", seed=1) as feed:
        batch = next(feed)
        number, label, *box = feed.tops.plan(0, 0, 16).more["windows"][13].tolist()
        assert batch.names(13) == f"{windows}: image {number}, {windows.parent}/{number}.png, window {box}"
        assert batch.blobs["label"][13] == label
        assert feed.describe(13) == batch.names(13)


def test_an_image_that_cannot_be_read_is_named(windows):
    (windows.parent / "1.png").unlink()
    with pytest.raises(ValueError, match=r"layer 'w': .*windows\.txt: image 1, .*1\.png, window .*: No such file"):
        batches(window_layer(windows), 2)


# -- the file ----------------------------------------------------------------------------------------------------------

GOOD = "# 0 a.png 3 10 10 2  1 0.9 0 0 5 5  2 0.1 1 1 4 4"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "an empty window file"),
        (GOOD.replace("# 0", "# 1"), "image 0: found '# 1', expected '# 0'"),
        (GOOD + " # 3", "image 1: found '# 3', expected '# 1'"),
        (GOOD[:12], "image 0: found '# 0', expected '# 0', path, channels, height, width, windows"),
        (GOOD[:-2], "image 0: 11 numbers for its 2 windows; expected 6 each"),
        (GOOD.replace("0.9", "x"), "image 0: words where its windows' numbers should be"),
        (GOOD.replace("3 10 10", "0 10 10"), "an image of 0 x 10 x 10"),
        (GOOD.replace("1 0.9", "0 0.9"), "image 0: a foreground window of class 0 or below"),
        (GOOD.replace("0.1", "0.9"), "no background window at fg_threshold 0.5 and bg_threshold 0.5; both"),
        (GOOD.replace("0.9", "0.1"), "no foreground window"),
    ],
)
def test_a_window_file_that_is_wrong_is_told(tmp_path, text, told):
    (tmp_path / "w.txt").write_text(text)
    with pytest.raises(ValueError, match=told) as caught:
        window_file.read(tmp_path / "w.txt", fg_threshold=0.5, bg_threshold=0.5)
    assert str(tmp_path / "w.txt") in str(caught.value)


@pytest.mark.parametrize(
    ("transform", "more", "told"),
    [
        ("", "", "it is 0"),
        ("crop_size: 20", 'crop_mode: "sqare"', "unknown crop_mode 'sqare'; did you mean 'square'"),
        ("crop_size: 20", "context_pad: 10", "context_pad 10 leaves nothing of crop_size 20"),
        ("crop_size: 20 mean_value: 1 mean_value: 2", "", "2 mean_values for 3 channels"),
        ('crop_size: 20 mean_value: 1 mean_file: "x"', "", "mean_file and mean_value"),
        ('crop_size: 20 mean_file: "MEAN"', "", "a mean image of 3x9x9; expected a square with 3 channels, 20 or more"),
    ],
)
def test_a_window_layer_that_is_wrong_is_told(windows, transform, more, told):
    binaryproto.write(windows.parent / "MEAN", np.zeros((3, 9, 9), np.float32))
    spec = window_layer(windows, transform.replace("MEAN", str(windows.parent / "MEAN")), more)
    with pytest.raises(ValueError, match=told):
        open_feed(spec, "TRAIN", seed=1)
