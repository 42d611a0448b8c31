"""Plain files and addresses; damaged containers of every kind."""

import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ops.inputs import fetch
from ops.inputs.fetch import Fetcher
from ops.inputs.listing import open_listing
from tests.ops.inputs.pictures import GOLDEN, idx, pixels, png


def test_a_plain_file_goes_first_whatever_its_name(tmp_path):
    (tmp_path / "a#1.jpg").write_bytes(b"plain")
    assert Fetcher().fetch(os.fsencode(tmp_path / "a#1.jpg")) == b"plain"
    (tmp_path / "empty.jpg").touch()
    assert Fetcher().fetch(os.fsencode(tmp_path / "empty.jpg")) == b""


def test_a_container_may_have_a_hash_in_its_name(tmp_path):
    (tmp_path / "set#1").mkdir()
    shutil.copytree(GOLDEN / "raw_lmdb", tmp_path / "set#1" / "db#x")
    assert Fetcher().fetch(os.fsencode(tmp_path / "set#1/db#x#00000000_dress_0.jpg")).shape == (48, 64, 3)


@pytest.mark.parametrize(("name", "error"), [
    ("gone.jpg", FileNotFoundError), ("gone#1", FileNotFoundError), ("folder", OSError), ("file.jpg/x", OSError),
    ("pipe", OSError), ("file.jpg#3", ValueError), ("folder#3", ValueError),
])  # fmt: skip
def test_what_cannot_be_fetched_is_an_error_of_one_line(tmp_path, name, error):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.jpg").write_bytes(png())
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(error) as caught:
        Fetcher().fetch(os.fsencode(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_file_longer_than_one_read_is_read_whole(tmp_path, monkeypatch):
    data = np.random.default_rng(0).bytes(100_000)
    (tmp_path / "a").write_bytes(data)
    read = os.read
    monkeypatch.setattr(fetch.os, "read", lambda handle, size: read(handle, min(size, 30_000)))
    assert Fetcher().fetch(os.fsencode(tmp_path / "a")) == data


def test_it_pickles_as_a_new_one():
    fetcher = Fetcher()
    fetcher.fetch(os.fsencode(GOLDEN / "raw_lmdb#00000000_dress_0.jpg"))
    assert not pickle.loads(pickle.dumps(fetcher))._open


def containers(folder) -> dict[str, str]:
    """A container of each kind, of 20 images: name -> the member of image number {}."""
    images = pixels(20, 28, 28, 3)
    (folder / "idx").write_bytes(idx(images[..., 0]))
    batch = np.random.default_rng(0).integers(0, 9, (20, 3073), np.uint8)
    (folder / "cifar").write_bytes(batch.tobytes())
    with h5py.File(folder / "h5", "w") as file:
        file.create_dataset("data", data=images.transpose(0, 3, 1, 2), chunks=(4, 3, 28, 28), compression="gzip")
        file["label"] = np.arange(20)
    pq.write_table(
        pa.table({"image": [png(n) for n in range(20)], "label": range(20)}), folder / "parquet", row_group_size=5
    )
    with tarfile.open(folder / "tar", "w") as out:
        for number in range(20):
            for name, data in ((f"{number}.png", png(number)), (f"{number}.cls", b"%d" % number)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))
    shutil.copytree(GOLDEN / "raw_lmdb", folder / "lmdb")
    shutil.copytree(GOLDEN / "encoded_lmdb", folder / "lmdb2")
    return {"idx": "{}", "cifar": "{}", "h5": "{}", "parquet": "{}", "tar": "{}.png", "lmdb": "", "lmdb2": ""}


def test_threads_share_a_fetcher(tmp_path):
    kinds = containers(tmp_path)
    fetcher = Fetcher()
    paths = [
        os.fsencode(listed.root) + path
        for listed in (open_listing(tmp_path / kind) for kind in kinds)
        for path in listed.paths(slice(None))
    ]
    expected = [np.array(Fetcher().fetch(path)) for path in paths[::7]]
    order = np.random.default_rng(0).permutation(len(paths))
    barrier = threading.Barrier(4)

    def work(part: int) -> None:
        barrier.wait()
        for place in np.roll(order, 31 * part):
            fetcher.fetch(paths[place])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    for path, image in zip(paths[::7], expected, strict=True):
        assert np.array_equal(np.array(fetcher.fetch(path)), image)


def test_few_containers_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "OPEN", 2)
    fetcher = Fetcher()
    for number in range(5):
        (tmp_path / f"{number}").write_bytes(idx(pixels(2, 4, 4, 1)[..., 0]))
    for number in [0, 1, 2, 3, 4, 0, 4]:
        assert fetcher.fetch(os.fsencode(tmp_path / f"{number}#1")).shape == (4, 4, 1)
        assert len(fetcher._open) <= 2


FUZZ = """
import faulthandler, os, shutil, sys, time
from pathlib import Path
import numpy as np
from ops.inputs.fetch import Fetcher
from ops.inputs.listing import open_listing
faulthandler.enable()
folder, kind, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
source = folder / kind
whole = (source / "data.mdb" if source.is_dir() else source).read_bytes()
listed = open_listing(source)
names = listed.paths(slice(None))
target = folder / f"{kind}-mutated"
inner = target / "data.mdb" if source.is_dir() else target
inner.parent.mkdir(exist_ok=True)
outcomes = {}
for number in range(rounds):
    rng = np.random.default_rng([number, len(kind)])
    data = bytearray(whole)
    where = rng.choice([len(data), min(len(data), 600), min(len(data), 20000)])
    pages = rng.integers(0, -(-len(data) // 4096)) * 4096
    for _ in range(rng.choice([1, 2, 8, 60])):
        place = rng.integers(0, where) if rng.random() < 0.6 else min(pages + rng.integers(0, 200), len(data) - 1)
        data[place] = rng.choice([0, 255, 1, 127, 128, int(rng.integers(256))])
    if rng.random() < 0.2:
        data = data[: rng.integers(0, len(data))]
    if rng.random() < 0.1:
        place = rng.integers(0, len(data) + 1)
        data[place:place] = rng.bytes(int(rng.integers(1, 700)))
    inner.write_bytes(data)
    began = time.process_time()
    try:
        found = open_listing(target).paths(slice(0, 40))
        outcome = "listed"
    except (OSError, ValueError) as error:
        assert "\\n" not in str(error), repr(error)
        found = [name.replace(kind.encode() + b"#", kind.encode() + b"-mutated#") for name in names[:40]]
        outcome = "refused"
    fetcher = Fetcher()
    for name in found[::4]:
        try:
            fetcher.fetch(os.fsencode(folder) + b"/" + name)
        except (OSError, ValueError) as error:
            assert "\\n" not in str(error), repr(error)
    outcomes[outcome] = outcomes.get(outcome, 0) + 1
    took = time.process_time() - began
    assert took < 5, f"round {number} took {took:.1f} s"
print(outcomes)
"""


@pytest.mark.parametrize("kind", ["idx", "cifar", "h5", "parquet", "tar", "lmdb", "lmdb2"])
@pytest.mark.parametrize("rounds", [60, pytest.param(2000, marks=pytest.mark.soak)])
def test_damaged_containers_are_errors_never_a_crash(tmp_path, kind, rounds):
    """In a process of its own: a crash would be the test's end, not its failure."""
    containers(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(tmp_path), kind, str(rounds)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stderr[-3000:]}"
    print(kind, done.stdout)
