"""Directory records read as arrays say what os.scandir says."""

import os
import sys

import numpy as np
import pytest

from ops.inputs import dirents

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="getdents64 is Linux's")


def told(entries: dirents.Entries) -> set[tuple[int, bytes]]:
    rows = entries.words.view(np.uint8)
    names = [row[dirents.SKIPPED :][:length].tobytes() for row, length in zip(rows, entries.lengths, strict=True)]
    assert not rows[:, : dirents.SKIPPED].any()
    for row, name in zip(rows, names, strict=True):
        assert row[dirents.SKIPPED :].tobytes().rstrip(b"\0") == name
    for name, tail in zip(names, entries.tails, strict=True):
        assert int(tail).to_bytes(8, "little")[-min(8, len(name)) :] == name[-8:]
    return set(zip(entries.owners.tolist(), names, strict=True))


def random_names(rng: np.random.Generator, count: int, longest: int) -> set[bytes]:
    letters = bytes(byte for byte in range(1, 256) if byte != ord("/"))
    lengths = rng.integers(1, longest + 1, count)
    return {bytes(rng.choice(list(letters), length).astype(np.uint8)) for length in lengths} - {b".", b".."}


@linux
@pytest.mark.parametrize(("count", "longest"), [(0, 1), (1, 1), (5, 3), (300, 8), (300, 40), (400, 255)])
@pytest.mark.parametrize("room", [1 << 16, 1 << 20])
def test_any_names_are_read_as_scandir_reads_them(tmp_path, monkeypatch, count, longest, room):
    monkeypatch.setattr(dirents, "ROOM", room)
    monkeypatch.setattr(dirents, "_buffer", dirents._Buffer())
    rng = np.random.default_rng(count + longest)
    folders = []
    for number in range(3):
        folder = os.fsencode(tmp_path) + b"/%d" % number
        os.mkdir(folder)
        for name in random_names(rng, count, longest):
            with open(folder + b"/" + name, "wb"):
                pass
        os.mkdir(folder + b"/sub")
        os.symlink(b"sub", folder + b"/to-sub")
        os.mkfifo(folder + b"/pipe")
        folders.append(folder)
    fast, slow = dirents.read(folders), dirents.read_slowly(folders)
    assert told(fast) == told(slow)
    assert sorted(fast.folders) == sorted(slow.folders) == [(number, b"sub") for number in range(3)]
    assert sorted(fast.links) == sorted(slow.links) == [(number, b"to-sub") for number in range(3)]
    assert fast.others == slow.others == 3


@linux
def test_a_folder_larger_than_the_buffer_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(dirents, "ROOM", 1 << 15)
    monkeypatch.setattr(dirents, "ENOUGH", 1 << 14)
    monkeypatch.setattr(dirents, "_buffer", dirents._Buffer())
    for number in range(3000):
        (tmp_path / f"{number}{'x' * (number % 50)}.jpg").touch()
    assert told(dirents.read([os.fsencode(tmp_path)])) == {(0, os.fsencode(name)) for name in os.listdir(tmp_path)}


@linux
def test_records_that_make_no_chain_at_first_sight_are_walked(tmp_path):
    """Offsets and inode numbers may look like a record's length; then the records are followed one by one."""
    for number in range(50):
        (tmp_path / f"{number:03d}.jpg").touch()
    entries = dirents.read([os.fsencode(tmp_path)])
    words = np.zeros(12, np.uint64)
    for start, name in ((0, b"a.jpg"), (4, b"b.jpg"), (8, b"c.jpg")):  # records of 32 bytes
        head = int.from_bytes((32).to_bytes(2, "little") + bytes([dirents.FILE]) + name, "little")
        words[start + 2] = head
    words[1] = words[2]  # what stands before looks like a record too
    words[0] = (32) | dirents.FILE << 16 | ord("x") << 24
    found = dirents._starts(words)
    assert found.tolist() == [0, 4, 8]
    assert len(entries.words) == 50


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        dirents.read([os.fsencode(tmp_path / "gone")])
    assert "gone" in os.fsdecode(caught.value.filename)
