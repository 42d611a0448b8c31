"""A shard's work without Ray: order with threads and read-ahead, what is bad, what a full account says."""

import threading
import time

import numpy as np
import pytest
import xxhash

from ops.recipe import Line, Recipe
from ops.records.lmdb import Reader
from pipelines.stages import shards
from pipelines.stages.shards import ahead, make, write


@pytest.fixture
def photos(golden):
    return str(golden / "files" / "photos") + "/"


@pytest.fixture
def lines(golden):
    rows = [row.split() for row in (golden / "files" / "list.txt").read_text().splitlines()]
    return [Line(i, path.encode(), int(label), number=i + 1) for i, (path, label) in enumerate(rows)]


class SlowStorage:
    """Files that take a while to open, as on a far file system; counts how many are open at once."""

    def __init__(self, delay):
        self.delay, self.open, self.most = delay, 0, 0
        self.lock = threading.Lock()

    def fetch(self, path):
        with self.lock:
            self.open += 1
            self.most = max(self.most, self.open)
        time.sleep(self.delay)
        with self.lock:
            self.open -= 1
        with open(path, "rb") as file:
            return file.read()


def values(outcomes):
    return [(record.key, bytes(record.value)) for outcome in outcomes for record in outcome.content]


def plain(lines, recipe):
    return [(record.key, bytes(record.value)) for line in lines for record in recipe.records(line)[0]]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_records_or_order(photos, lines, threads):
    recipe = Recipe(root=photos, resize=("exact", 20, 20), mirror="random", augment="noise=3")
    made = [(r.key, bytes(r.value)) for outcome in make(lines, recipe, threads=threads) for r in outcome.content]
    assert made == plain(lines, recipe)


def test_slow_storage_is_read_ahead_and_fast_storage_is_not(photos, lines, monkeypatch):
    monkeypatch.setattr(shards, "SLOW_READ", 0.03)  # a machine with other work is not that slow
    for delay, least, most in ((0.1, 8, shards.READERS), (0, 1, 1)):
        storage = SlowStorage(delay)
        recipe = Recipe(root=photos, resize=("exact", 8, 8), fetcher=storage)
        found = [(o.line.position, o.bad) for o in make(lines * 4, recipe)]
        assert found == [(line.position, None) for line in lines * 4]
        assert least <= storage.most <= most


def test_ahead_keeps_order_and_its_window():
    from concurrent.futures import ThreadPoolExecutor

    running, most = 0, 0
    lock = threading.Lock()

    def work(item):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.001 * (item % 5))
        with lock:
            running -= 1
        return item * item

    with ThreadPoolExecutor(16) as pool:
        assert list(ahead(pool, work, range(100), lambda: 6)) == [i * i for i in range(100)]
    assert most <= 6


def test_the_account_of_an_attempt(photos, lines, tmp_path):
    recipe = Recipe(root=photos, resize=("exact", 20, 30))
    bad = Line(1, b"missing.jpg", 0, number=2)
    done = write(make([lines[0], bad, *lines[2:]], recipe), 3, tmp_path, recipe, check_size=True)
    assert (done.shard, done.lines, done.count, done.failure) == (3, 30, 29, "")
    assert done.bad == [(2, "missing.jpg", "No such file or directory")]
    assert done.shape == [3, 20, 30]
    attempt = tmp_path / "attempts" / done.attempt
    with Reader(attempt / "shard") as reader:
        pairs = [(key, bytes(value)) for key, value in reader.records()]
    assert (done.first_key, done.last_key) == (pairs[0][0].decode(), pairs[-1][0].decode())
    assert done.checksum == xxhash.xxh3_64(b"".join(key + value for key, value in pairs)).hexdigest()
    assert done.bytes == sum(len(key) + len(value) for key, value in pairs)


def test_a_shard_of_bad_lines_only_is_an_empty_shard(tmp_path):
    recipe = Recipe(root=f"{tmp_path}/")
    done = write(make([Line(0, b"none.jpg", 0)], recipe), 0, tmp_path, recipe, check_size=False)
    assert (done.count, len(done.bad), done.first_key) == (0, 1, "")


def test_scratch_memory_is_not_shared_between_records_of_a_line(photos, lines):
    recipe = Recipe(root=photos, resize=("exact", 16, 16), crop=8, crop_at="corners", crops=5)
    assert values(make(lines[:3], recipe)) == plain(lines[:3], recipe)


def test_float_and_byte_records_are_summed_as_they_are(photos, lines, tmp_path):
    from ops.mean import PixelSum

    for more in ({}, {"scale": 0.5}, {"encode_type": "png"}, {"backend": "hdf5"}):
        recipe = Recipe(root=photos, resize=("exact", 9, 9), want_pixels=True, **more)
        done = write(make(lines, recipe), 0, tmp_path, recipe, check_size=False)
        total = PixelSum.load(tmp_path / "attempts" / done.attempt / "sum.npz")
        pixels = [shards.pixels(record.value) for line in lines for record in recipe.records(line)[0]]
        assert total.count == 30
        assert np.allclose(total.mean(), np.mean(pixels, axis=0), rtol=1e-6)
