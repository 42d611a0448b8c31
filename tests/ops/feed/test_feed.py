"""The feed as the training loop sees it: positions, parts, threads, buffers, digests, errors, and its end."""

from __future__ import annotations

import gc
import multiprocessing
import sys
import threading
import time
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ops.feed import record_tops
from ops.feed.feed import FeedOptions, open_feed, share
from ops.feed.source import Example
from ops.feed.tops import StoppedError
from tests.ops.feed.helpers import batches, copied, data_layer, database, layer, open_files, pictures, stream

CHANCY = "crop_size: 8 mirror: true mean_value: 100 scale: 0.1"
OPTIONS = {
    "in order": FeedOptions(),
    "shuffled": FeedOptions(shuffle=True),
    "blocks": FeedOptions(shuffle="blocks", block=5),
    "balanced": FeedOptions(balance=True),
    "augmented": FeedOptions(augment="rotate=10,noise=2", shuffle=True),
    "device": FeedOptions(shuffle=True, arithmetic="device"),
}


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    """Twenty-three pictures of five classes."""
    return database(tmp_path_factory.mktemp("feed") / "db", pictures(23), np.arange(23) % 5)


def same(first, second):
    return len(first) == len(second) and all(
        np.array_equal(here[top], there[top]) for here, there in zip(first, second, strict=True) for top in here
    )


# -- one stream --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_parts_of_any_number_of_workers_are_the_whole_bit_for_bit(db, kind):
    spec, options = data_layer(db, 7, CHANCY), OPTIONS[kind]
    whole = batches(spec, 8, options=options)
    for world in (2, 3, 4, 7):
        parts = [batches(spec, 8, options=options, part=(rank, world)) for rank in range(world)]
        joined = [
            {top: np.concatenate([part[number][top] for part in parts]) for top in ("data", "label")}
            for number in range(8)
        ]
        assert same(joined, whole)


@pytest.mark.parametrize("kind", OPTIONS)
def test_threads_and_batches_ahead_change_nothing(db, kind):
    spec, options = data_layer(db, 20, CHANCY), OPTIONS[kind]
    first = batches(spec, 6, options=options, threads=1, ahead=1)
    for threads, ahead in ((2, 1), (4, 3)):
        assert same(batches(spec, 6, options=options, threads=threads, ahead=ahead), first)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.integers(1, 12), st.lists(st.integers(0, 90), min_size=1, max_size=4), st.sampled_from(sorted(OPTIONS)))
def test_a_seek_is_arithmetic(db, batch, places, kind):
    spec, options = data_layer(db, batch, CHANCY), OPTIONS[kind]
    with open_feed(spec, "TRAIN", seed=1, options=options) as feed:
        for place in places:
            feed.seek(place)
            assert feed.position == place
            found = next(feed)
            assert (found.start, found.position, feed.position) == (place, place + batch, place + batch)
            with open_feed(spec, "TRAIN", seed=1, options=options, position=place) as other:
                assert np.array_equal(next(other).blobs["data"], found.blobs["data"])


@pytest.mark.parametrize("shuffle", [False, True, "blocks"])
@pytest.mark.parametrize("batch", [1, 4, 23, 50])
def test_an_epoch_visits_every_record_once(tmp_path, shuffle, batch):
    database(tmp_path / "db", pictures(23, 2, 2))
    found = stream(data_layer(tmp_path / "db", batch), 3 * 23, options=FeedOptions(shuffle=shuffle, block=6))
    epochs = [found[23 * i : 23 * i + 23] for i in range(3)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert (epochs[0] == epochs[1]) == (not shuffle)


def test_two_layers_shuffle_alike_and_draw_apart(db):
    spec = data_layer(db, 23, CHANCY)
    other = data_layer(db, 23, CHANCY)
    other.name = "other"
    first, second = (batches(one, 1, options=FeedOptions(shuffle=True))[0] for one in (spec, other))
    assert np.array_equal(first["label"], second["label"])
    assert not np.array_equal(first["data"], second["data"])


def test_another_seed_is_another_stream(db):
    spec = data_layer(db, 23, CHANCY)
    first, second = (batches(spec, 1, seed=seed, options=FeedOptions(shuffle=True))[0] for seed in (1, 2))
    assert not np.array_equal(first["label"], second["label"])


def test_shares_are_contiguous_and_differ_by_one_at_most():
    for batch in range(1, 40):
        for world in range(1, batch + 1):
            cuts = [share(batch, rank, world) for rank in range(world)]
            assert [first for first, _ in cuts] == [0, *(last for _, last in cuts[:-1])]
            assert cuts[-1][1] == batch
            sizes = {last - first for first, last in cuts}
            assert max(sizes) - min(sizes) <= 1


# -- batches -----------------------------------------------------------------------------------------------------------


def test_records_are_named(db):
    with open_feed(data_layer(db, 9), "TRAIN", seed=1, part=(1, 2), options=FeedOptions(shuffle=True)) as feed:
        for _ in range(4):
            batch = next(feed)
            for i, label in enumerate(batch.blobs["label"].tolist()):
                assert int(batch.names(i).rpartition(" ")[2]) % 5 == label
                assert feed.describe(batch.start + 4 + i) == batch.names(i)
        assert batch.names(0).startswith(f"{db}: record 000000")


def test_a_batch_stays_until_the_next_is_asked_for(db):
    spec = data_layer(db, 4, CHANCY)
    expected = batches(spec, 30)
    with open_feed(spec, "TRAIN", seed=1, threads=3, ahead=2) as feed:
        for number in range(30):
            batch = next(feed)
            time.sleep(0.003)  # the threads go on as far as they may
            assert np.array_equal(batch.blobs["data"], expected[number]["data"])


@pytest.mark.parametrize(("batch", "buffers"), [(1100, 3), (4, 2 * 16)])  # small batches are made sixteen at a time
def test_buffers_are_used_again(db, batch, buffers):
    with open_feed(data_layer(db, batch), "TRAIN", seed=1, ahead=2) as feed:
        places = {next(feed).blobs["data"].data_ptr() for _ in range(40)}
    assert len(places) == buffers


@pytest.mark.parametrize("more", ["", "crop_size: 7", "crop_size: 7 mirror: true scale: 0.5 mean_value: 100"])
@pytest.mark.parametrize("options", [FeedOptions(), FeedOptions(shuffle=True), FeedOptions(arithmetic="device")])
def test_batches_made_together_are_those_made_one_by_one(db, monkeypatch, more, options):
    def made() -> list[tuple[int, list[Any]]]:
        with open_feed(data_layer(db, 5, more), "TRAIN", seed=3, part=(1, 2), digest=True, options=options) as feed:
            next(feed)
            feed.seek(15)
            some = (next(feed) for _ in range(30))
            return [(one.digest, [blob.tolist() for blob in one.blobs.values()]) for one in some]

    together = made()
    monkeypatch.setattr(record_tops, "TOGETHER", 0)
    assert made() == together


def test_blobs_are_float32_tensors(db):
    with open_feed(data_layer(db, 4), "TRAIN", seed=1) as feed:
        assert {blob.dtype for blob in next(feed).blobs.values()} == {torch.float32}


def test_digests_of_the_parts_add_up_and_see_every_change(db, tmp_path):
    def digests(spec, count=3, **options):
        options.setdefault("seed", 1)
        with open_feed(spec, "TRAIN", digest=True, **options) as feed:
            return [next(feed).digest for _ in range(count)]

    spec = data_layer(db, 7, CHANCY)
    whole = digests(spec)
    for world in (2, 3):
        parts = [digests(spec, part=(rank, world)) for rank in range(world)]
        assert [sum(trio) % 2**64 for trio in zip(*parts, strict=True)] == whole
    assert whole == digests(spec, threads=4)
    assert whole == digests(spec, options=FeedOptions(arithmetic="device"))
    changed = database(tmp_path / "db", [*pictures(22), *pictures(1, seed=9)], np.arange(23) % 5)
    others = [
        digests(spec, seed=2),
        digests(spec, position=7)[:1] + whole[1:],
        digests(spec, options=FeedOptions(shuffle=True)),
        digests(spec, options=FeedOptions(augment="rotate=1")),
    ]
    assert all(here != there for other in others for here, there in zip(other[:1], whole[:1], strict=True))
    assert [a == b for a, b in zip(digests(data_layer(changed, 7, CHANCY), 4), digests(spec, 4), strict=True)] == [
        True,
        True,
        True,
        False,
    ]
    with open_feed(spec, "TRAIN", seed=1) as feed:
        assert next(feed).digest == 0


def test_waiting_is_measured(db, monkeypatch):
    monkeypatch.setattr(record_tops, "TOGETHER", 0)  # each batch is filled by itself
    with open_feed(data_layer(db, 2), "TRAIN", seed=1, ahead=1, threads=1) as feed:
        read = feed.tops.source.read

        def slow(where) -> Example:
            time.sleep(0.2)
            return read(where)

        monkeypatch.setattr(feed.tops.source, "read", slow)
        assert next(feed).waited >= 0.2
        time.sleep(1.2)
        assert next(feed).waited < 0.2


# -- errors and the end ------------------------------------------------------------------------------------------------


def test_an_error_comes_at_its_own_batch_and_stays(tmp_path):
    from tests.ops.feed.helpers import datum, write_lmdb

    records = {b"%04d" % i: datum(one, i) for i, one in enumerate(pictures(20))}
    write_lmdb(tmp_path / "db", records | {b"0011": b"\xff\xff"})
    with open_feed(data_layer(tmp_path / "db", 4), "TRAIN", seed=1, threads=3, ahead=4) as feed:
        assert [next(feed).position for _ in range(2)] == [4, 8]
        for _ in range(2):
            with pytest.raises(ValueError, match=r"layer 'data': .*db: record 0011: not a Datum"):
                next(feed)
        assert feed.position == 8
        feed.seek(12)
        assert next(feed).blobs["label"].tolist() == [12, 13, 14, 15]


def threads_of_feeds() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cortado-")]


def test_close_stops_the_threads_at_once(db, monkeypatch):
    feed = open_feed(data_layer(db, 20), "TRAIN", seed=1, threads=2)
    read = feed.tops.source.read
    monkeypatch.setattr(feed.tops.source, "read", lambda where: time.sleep(0.5) or read(where))
    ended: list[str] = []

    def wait_for_a_batch() -> None:
        try:
            next(feed)
        except (StoppedError, CancelledError) as error:
            ended.append(type(error).__name__)

    waiting = threading.Thread(target=wait_for_a_batch)
    waiting.start()
    deadline = time.perf_counter() + 30
    while not threads_of_feeds() and time.perf_counter() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert threads_of_feeds()
    began = time.perf_counter()
    feed.close()
    assert time.perf_counter() - began < 2, "not the seconds that a part of a batch takes"
    assert not threads_of_feeds()
    waiting.join()
    assert ended
    with pytest.raises(ValueError, match="layer 'data': the feed is closed"):
        next(feed)
    feed.close()


def test_no_thread_and_no_file_is_left(db):
    gc.collect()
    before = open_files()
    for _ in range(5):
        with open_feed(data_layer(db, 4), "TRAIN", seed=1) as feed:
            next(feed)
    feed = open_feed(data_layer(db, 4), "TRAIN", seed=1)
    next(feed)
    del feed  # not even closed
    gc.collect()
    deadline = time.perf_counter() + 30
    while threads_of_feeds() and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert not threads_of_feeds()
    assert open_files() == before


def test_opening_starts_no_thread(db):
    with open_feed(data_layer(db, 4), "TRAIN", seed=1):
        assert not threads_of_feeds()


@pytest.mark.parametrize("kind", ["lmdb", "leveldb", "hdf5", "list"])
def test_a_closed_feed_holds_no_file(golden, tmp_path, kind):
    files = golden / "files"
    specs = {
        "lmdb": data_layer(files / "raw_lmdb", 4),
        "leveldb": data_layer(files / "raw_leveldb", 4),
        "hdf5": layer(
            f'name: "d" type: "HDF5Data" top: "data" hdf5_data_param {{ source: "{golden}/solvers/train.h5" '
            "batch_size: 4 }"
        ),
        "list": layer(
            f'name: "d" type: "ImageData" top: "data" top: "label" image_data_param {{ source: "{files}/list.txt" '
            f'root_folder: "{files}/photos/" batch_size: 4 new_height: 9 new_width: 9 }}'
        ),
    }
    gc.collect()
    before = open_files()
    feed = open_feed(specs[kind], "TRAIN", seed=1)
    next(feed)
    feed.close()
    assert open_files() <= before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"part": (2, 2)}, "part 2 of 2: expected 0 <= rank < world"),
        ({"part": (0, 5)}, "a batch of 4 for 5 workers leaves some without a record"),
        ({"position": -1}, "position -1: expected 0 or more"),
    ],
)
def test_what_makes_no_sense_is_told(db, options, told):
    with pytest.raises(ValueError, match=told):
        open_feed(data_layer(db, 4), "TRAIN", seed=1, **options)


# -- processes ---------------------------------------------------------------------------------------------------------


def in_child(feed_or_db, queue):
    if isinstance(feed_or_db, str):
        queue.put([batch["label"].tolist() for batch in batches(data_layer(feed_or_db, 4), 3)])
        return
    queue.put([copied(feed_or_db)["label"].tolist() for _ in range(3)])


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
def test_a_forked_process_goes_on_by_itself(db):
    with open_feed(data_layer(db, 4), "TRAIN", seed=1) as feed:
        next(feed)
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=in_child, args=(feed, queue))
        child.start()
        theirs = queue.get(timeout=200)
        child.join(200)
        assert child.exitcode == 0
        assert [copied(feed)["label"].tolist() for _ in range(3)] == theirs


@pytest.mark.slow
def test_a_spawned_process_sees_the_same(db):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=in_child, args=(str(db), queue))
    child.start()
    theirs = queue.get(timeout=200)
    child.join(200)
    assert theirs == [batch["label"].tolist() for batch in batches(data_layer(db, 4), 3)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", OPTIONS)
def test_batches_on_cuda_are_those_of_the_cpu(db, kind):
    spec, options = data_layer(db, 7, CHANCY), OPTIONS[kind]
    assert same(batches(spec, 20, options=options, device="cuda"), batches(spec, 20, options=options))
    with open_feed(spec, "TRAIN", seed=1, options=options, device="cuda") as feed:
        held = [next(feed).blobs["data"] for _ in range(10)]
        assert all(
            np.array_equal(a.cpu(), b["data"]) for a, b in zip(held, batches(spec, 10, options=options), strict=True)
        )
