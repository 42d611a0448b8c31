"""Rows that are made elsewhere and handed over are what this process would have made of them, bit for bit."""

from __future__ import annotations

import pickle
import threading
import time
from dataclasses import replace

import cv2
import h5py
import numpy as np
import pytest
import torch

from ops.feed.feed import FeedOptions, open_feed
from ops.feed.handed import Asking, Maker, Piece
from ops.feed.tops import StoppedError
from ops.records import binaryproto
from tests.ops.feed.helpers import data_layer, database, datum, layer, pictures, write_lmdb

TRANSFORMS = {
    "as it is": "",
    "values": "crop_size: 8 mirror: true mean_value: 100 scale: 0.1",
    "mean file": 'crop_size: 7 mirror: true mean_file: "MEAN" scale: 0.017',
}
OPTIONS = {
    "in order": FeedOptions(),
    "shuffled": FeedOptions(shuffle=True),
    "blocks": FeedOptions(shuffle="blocks", block=5),
    "balanced": FeedOptions(balance=True),
    "augmented": FeedOptions(augment="rotate=10,noise=2", shuffle=True),
    "device": FeedOptions(shuffle=True, arithmetic="device"),
}


class Post:
    """Makes pieces on the spot, and hands over nothing but bytes."""

    def __init__(self, asked, tops, rows, size=3):
        self.maker, self.rows, self.size, self.begun = Maker(pickle.loads(pickle.dumps(asked))), rows, size, []
        self.seconds, self.making = 0.0, threading.Event()

    def begins(self, position):
        self.begun.append(position)

    def ask(self, start):
        cuts = range(self.rows[0], self.rows[1], self.size)
        pieces = [Piece(start, first, min(first + self.size, self.rows[1])) for first in cuts]
        return [Asking(piece, lambda stopped, piece=piece: self.made(piece, stopped)) for piece in pieces]

    def made(self, piece, stopped):
        self.making.set()
        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until:
            if stopped():
                raise StoppedError
            time.sleep(0.01)
        return pickle.loads(pickle.dumps(self.maker.make(piece)))

    def close(self):
        self.maker.close()


def stream(spec, count, elsewhere=None, **how):
    """Everything of the first batches: blobs, digests, positions, the records' names."""
    how.setdefault("seed", 1)
    found = []
    with open_feed(spec, "TRAIN", digest=True, elsewhere=elsewhere, **how) as feed:
        for _ in range(count):
            batch = next(feed)
            blobs = {name: blob.numpy().copy() for name, blob in batch.blobs.items()}
            names = [batch.names(i) for i in range(len(blobs[spec.top[0]]))]
            found.append((blobs, batch.digest, batch.start, batch.position, names))
    return found


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one[1:] == other[1:]
        for name, blob in other[0].items():
            assert np.array_equal(one[0][name], blob)
            assert one[0][name].dtype == blob.dtype == np.float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty-three pictures of five classes as a database and as files, rows of numbers, windows, a mean."""
    folder, planes = tmp_path_factory.mktemp("handed"), pictures(23)
    database(folder / "db", planes, np.arange(23) % 5)
    database(folder / "floats", planes.astype(np.float32) / 3, np.arange(23) % 5)
    binaryproto.write(folder / "MEAN", np.random.default_rng(5).normal(120, 30, (3, 12, 10)).astype(np.float32))
    lines = []
    for number, one in enumerate(planes):
        cv2.imwrite(str(folder / f"{number}.png"), one.transpose(1, 2, 0))
        lines.append(f"{folder}/{number}.png {number % 5}\n")
    (folder / "list.txt").write_text("".join(lines))
    with h5py.File(folder / "rows.h5", "w") as file:
        file["data"], file["label"] = planes / np.float32(7), np.arange(46, dtype=np.float32).reshape(23, 2)
    (folder / "windows.txt").write_text(
        f"# 0\n{folder}/0.png\n3\n12\n10\n4\n1 0.9 1 1 8 8\n2 0.8 0 2 9 9\n1 0.1 3 3 7 7\n1 0.0 2 0 9 5\n"
    )
    return folder


def layers(folder, transform=""):
    transform = transform.replace("MEAN", f"{folder}/MEAN")
    head = f'top: "data" top: "label" transform_param {{ {transform} }}'
    return {
        "bytes": data_layer(folder / "db", 7, transform),
        "floats": data_layer(folder / "floats", 7, transform),
        "files": layer(
            f'name: "data" type: "ImageData" {head} image_data_param {{ source: "{folder}/list.txt" batch_size: 7 }}'
        ),
    }


@pytest.mark.parametrize("kind", ["bytes", "floats", "files"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_pictures_are_the_same_whatever_is_done_to_them(folder, kind, transform):
    spec = layers(folder, TRANSFORMS[transform])[kind]
    assert_same(stream(spec, 8, Post), stream(spec, 8))


@pytest.mark.parametrize("options", OPTIONS)
def test_parts_positions_and_options_are_the_same(folder, options):
    spec = layers(folder, TRANSFORMS["values"])["bytes"]
    for part in ((0, 1), (0, 3), (2, 3)):
        for position in (0, 16):
            how = {"options": OPTIONS[options], "part": part, "position": position}
            assert_same(stream(spec, 5, Post, **how), stream(spec, 5, **how))


def test_pictures_that_are_not_small_are_the_same(folder, monkeypatch):
    monkeypatch.setattr("ops.feed.record_tops.SMALL", 0)
    spec = layers(folder, TRANSFORMS["mean file"])["files"]
    assert_same(stream(spec, 8, Post), stream(spec, 8))


def test_rows_and_windows_are_the_same(folder):
    rows = layer(
        f'name: "d" type: "HDF5Data" top: "data" top: "label" hdf5_data_param {{ source: "{folder}/rows.h5" '
        "batch_size: 7 shuffle: true }"
    )
    windows = layer(
        'name: "w" type: "WindowData" top: "data" top: "label" transform_param { crop_size: 8 mirror: true } '
        f'window_data_param {{ source: "{folder}/windows.txt" batch_size: 7 }}'
    )
    for spec in (rows, windows):
        assert_same(stream(spec, 8, Post, part=(1, 2)), stream(spec, 8, part=(1, 2)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_batches_on_cuda_are_the_same(folder, transform):
    spec = layers(folder, TRANSFORMS[transform])["bytes"]
    with open_feed(spec, "TRAIN", seed=1, elsewhere=Post, device="cuda", digest=True) as feed:
        for blobs, digest, *_ in stream(spec, 8):
            found = next(feed)
            assert found.digest == digest
            assert all(np.array_equal(found.blobs[name].cpu(), blob) for name, blob in blobs.items())


def test_a_layer_that_reads_nothing_stays_here():
    spec = layer(
        'name: "d" type: "DummyData" top: "data" dummy_data_param { shape { dim: 4 dim: 2 } data_filler '
        '{ type: "gaussian" } }'
    )
    assert_same(stream(spec, 3, lambda *_: pytest.fail("asked for")), stream(spec, 3))


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_batches_that_have_a_shape_of_their_own_keep_it(tmp_path, batch):
    planes = [*pictures(4), *pictures(4, 5, 9)]
    spec = data_layer(database(tmp_path / "db", planes), batch)
    assert_same(stream(spec, 8 // batch, Post), stream(spec, 8 // batch))


def test_records_of_different_shapes_are_no_batch(tmp_path):
    spec = data_layer(database(tmp_path / "db", [*pictures(5), *pictures(3, 5, 9)]), 4)
    with open_feed(spec, "TRAIN", seed=1, elsewhere=Post) as feed:
        next(feed)
        with pytest.raises(ValueError, match=r"layer 'data': .*crop or resize to one size, or take batch_size 1"):
            next(feed)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_an_error_comes_at_its_own_batch_in_the_same_words(tmp_path):
    records = {b"%04d" % i: datum(one, i) for i, one in enumerate(pictures(20))}
    write_lmdb(tmp_path / "db", records | {b"0011": b"\xff\xff"})
    told = []
    for elsewhere in (None, Post):
        with open_feed(data_layer(tmp_path / "db", 4), "TRAIN", seed=1, ahead=4, elsewhere=elsewhere) as feed:
            assert [next(feed).position for _ in range(2)] == [4, 8]
            for _ in range(2):
                with pytest.raises(ValueError, match=r"layer 'data': .*db: record 0011: not a Datum") as caught:
                    next(feed)
            told.append(str(caught.value))
            feed.seek(12)
            assert next(feed).blobs["label"].tolist() == [12, 13, 14, 15]
    assert told[0] == told[1]


@pytest.fixture
def with_bad(tmp_path):
    """Forty files, of which three are no pictures."""
    lines = []
    for i in range(40):
        name = tmp_path / f"{i}.png"
        cv2.imwrite(str(name), np.full((4, 4, 3), i, np.uint8))
        if i in (3, 4, 39):
            name.write_bytes(b"not a picture")
        lines.append(f"{name} {i}\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    return layer(
        f'name: "data" type: "ImageData" top: "data" top: "label" image_data_param {{ source: "{tmp_path}/list.txt" '
        "batch_size: 8 }"
    )


@pytest.mark.parametrize("shuffle", [None, True])
def test_the_same_records_stand_in_for_bad_ones_and_are_counted_here(with_bad, shuffle):
    options = FeedOptions(max_bad=0.1, shuffle=shuffle)
    assert_same(stream(with_bad, 10, Post, options=options), stream(with_bad, 10, options=options))
    bad = []
    for elsewhere in (None, Post):
        with open_feed(with_bad, "TRAIN", seed=1, options=options, elsewhere=elsewhere) as feed:
            for _ in range(10):
                next(feed)
            bad.append(dict(feed.bad))
    assert bad[0] == bad[1]
    assert len(bad[0]) == 3


def test_more_bad_records_than_allowed_end_it_in_the_same_words(with_bad):
    told = []
    for elsewhere in (None, Post):
        with pytest.raises(ValueError, match=r"3 of 40 records are bad, more than max_bad 0\.06") as caught:
            stream(with_bad, 5, elsewhere, options=FeedOptions(max_bad=0.06), threads=1)
        told.append(str(caught.value))
    assert told[0] == told[1]


def test_a_missing_file_is_named_with_its_line(with_bad, tmp_path):
    (tmp_path / "2.png").unlink()
    for elsewhere in (None, Post):
        with pytest.raises(ValueError, match=r"list\.txt:3: .*2\.png: No such file or directory"):
            stream(with_bad, 1, elsewhere)


def test_who_brings_the_pieces_is_told_where_to_begin(folder):
    posts = []

    def elsewhere(*opened):
        posts.append(Post(*opened))
        return posts[0]

    with open_feed(layers(folder)["bytes"], "TRAIN", seed=1, elsewhere=elsewhere, position=14) as feed:
        feed.seek(21)
        next(feed)
        next(feed)
        feed.seek(7)
        assert next(feed).start == 7
    assert posts[0].begun == [21, 7]


def test_closing_does_not_wait_for_pieces(folder):
    posts = []

    def slow(*opened):
        posts.append(Post(*opened))
        posts[0].seconds = 60
        return posts[0]

    feed = open_feed(layers(folder)["bytes"], "TRAIN", seed=1, elsewhere=slow)
    ended = []

    def wait():
        try:
            next(feed)
        except StoppedError:
            ended.append(True)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert posts[0].making.wait(30)
    time.sleep(0.2)
    began = time.perf_counter()
    feed.close()
    waiting.join()
    assert ended
    assert time.perf_counter() - began < 10


def test_what_is_handed_over_is_bytes(folder):
    with open_feed(layers(folder, TRANSFORMS["values"])["bytes"], "TRAIN", seed=1) as feed:
        maker = Maker(replace(feed.tops.asked, on_device=True))
        handed = maker.make(Piece(0, 0, 7))
        maker.close()
    assert handed.arrays["data"].dtype == np.uint8
    assert handed.arrays["data"].shape == (7, 3, 8, 8)
    assert handed.nbytes < 2 * 7 * 3 * 8 * 8
