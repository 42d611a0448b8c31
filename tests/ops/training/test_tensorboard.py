"""Event files, read back with a reader of our own that checks every length and checksum, and with tensorboardX."""

import errno
import math
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from ops.training.tensorboard import HELD, Events, checksums


def crc32c(data: bytes) -> int:
    """Bit by bit, as the polynomial says."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@dataclass
class Told:
    at: float = 0.0
    step: int = 0
    version: str = ""
    started: bool = False
    values: dict[str, float] = field(default_factory=dict)


def number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def fields(data: bytes) -> list[tuple[int, object]]:
    """(number, value) of a protobuf message: bytes, floats, doubles or integers by their wire type."""
    found, at = [], 0
    while at < len(data):
        tag, at = number(data, at)
        value: object
        if tag & 7 == 0:
            value, at = number(data, at)
        elif tag & 7 == 1:
            value, at = struct.unpack_from("<d", data, at)[0], at + 8
        elif tag & 7 == 5:
            value, at = struct.unpack_from("<f", data, at)[0], at + 4
        else:
            assert tag & 7 == 2
            length, at = number(data, at)
            value, at = data[at : at + length], at + length
        found.append((tag >> 3, value))
    assert at == len(data)
    return found


def bodies(file: Path) -> list[bytes]:
    data, at, found = file.read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        (head,) = struct.unpack_from("<I", data, at + 8)
        body = data[at + 12 : at + 12 + length]
        (last,) = struct.unpack_from("<I", data, at + 12 + length)
        assert head == masked(crc32c(data[at : at + 8]))
        assert last == masked(crc32c(body))
        found.append(body)
        at += 16 + length
    assert at == len(data)
    return found


def read(file: Path) -> list[Told]:
    listed = []
    for body in bodies(file):
        told = Told()
        for place, value in fields(body):
            if place == 1:
                told.at = value
            elif place == 2:
                told.step = value
            elif place == 3:
                told.version = value.decode()
            elif place == 7:
                told.started = fields(value) == [(1, 1)]
            else:
                assert place == 5
                for inner, one in fields(value):
                    assert inner == 1
                    pair = dict(fields(one))
                    told.values[pair[1].decode()] = pair[2]
        listed.append(told)
    return listed


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("data", "crc"),
    [(b"", 0), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)],
)
def test_checksums_are_those_of_the_standard(data, crc):
    assert crc32c(data) == crc  # RFC 3720, B.4
    assert checksums([data]).tolist() == [masked(crc)]


def test_checksums_of_blocks_of_many_lengths_come_in_their_order():
    numbers = np.random.default_rng(0)
    blocks = [numbers.bytes(int(length)) for length in numbers.integers(0, 40, 60)]
    assert checksums(blocks).tolist() == [masked(crc32c(block)) for block in blocks]


def test_what_is_told_is_in_the_file(tmp_path):
    begin = time.time()
    with Events(tmp_path) as events:
        events.scalars(0, {"train/loss": 2.5, "train/lr": 0.01})
        events.scalars(300, {"train/loss": 1.25})
        events.tested(300, 0, {"accuracy": [0.5], "per class": [0.25, 0.75]})
        events.tested(300, 1, {"Genauigkeit ä": [1.0]})
    (file,) = files(tmp_path)
    first, *rest = read(file)
    assert (first.version, first.step, first.values) == ("brain.Event:2", 0, {})
    assert [(one.step, one.values) for one in rest] == [
        (0, {"train/loss": 2.5, "train/lr": pytest.approx(0.01)}),
        (300, {"train/loss": 1.25}),
        (300, {"test/accuracy": 0.5, "test/per class/0": 0.25, "test/per class/1": 0.75}),
        (300, {"test1/Genauigkeit ä": 1.0}),
    ]
    assert all(begin <= one.at <= time.time() for one in rest)


def test_numbers_beyond_float32_are_told_too(tmp_path):
    with Events(tmp_path) as events:
        events.scalars(2**40, {"a": 1e39, "b": -math.inf, "c": math.nan})
    told = read(files(tmp_path)[0])[-1]
    assert told.step == 2**40
    assert (told.values["a"], told.values["b"]) == (math.inf, -math.inf)
    assert math.isnan(told.values["c"])


def test_nothing_is_written_before_a_flush_and_everything_after(tmp_path):
    events = Events(tmp_path)
    events.scalars(1, {"a": 1.0})
    assert len(read(files(tmp_path)[0])) == 1
    events.flush()
    assert len(read(files(tmp_path)[0])) == 2
    events.flush()
    events.close()
    events.close()
    assert len(read(files(tmp_path)[0])) == 2


def test_memory_stays_bounded_where_nobody_flushes(tmp_path):
    events = Events(tmp_path)
    for step in range(HELD + 1):
        events.scalars(step, {"a": 0.0})
    assert len(events.waiting) == 1
    events.close()


def test_speed_is_told_once_a_second(tmp_path):
    with Events(tmp_path) as events:
        for step in range(30):
            events.trained(step, 1.0, 0.1, images=64 * (step + 1), seconds=0.1 * (step + 1))
    told = [one for one in read(files(tmp_path)[0]) if "train/images_per_s" in one.values]
    assert [one.values["train/images_per_s"] for one in told] == [pytest.approx(640)] * len(told)
    assert 2 <= len(told) <= 3


def test_a_resumed_run_begins_a_new_file_that_voids_the_rest_of_the_old_one(tmp_path):
    for step in (0, 50, 30):
        with Events(tmp_path, step=step) as events:
            events.scalars(step, {"a": 1.0})
    told = [read(file) for file in files(tmp_path)]  # in the order of names, as TensorBoard reads them
    assert [[(one.step, one.started) for one in part] for part in told] == [
        [(0, False), (0, False)],
        [(0, False), (50, True), (50, False)],
        [(0, False), (30, True), (30, False)],
    ]


def test_without_a_folder_nothing_happens():
    with Events(None) as events:
        events.trained(0, 1.0, 0.1, images=1, seconds=5)
        events.tested(0, 0, {"a": [1.0]})
        events.flush()
        assert not events.waiting


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_names_the_file(tmp_path):
    events = Events(tmp_path)
    events.file = open("/dev/full", "wb")  # noqa: SIM115
    events.scalars(0, {"a": 1.0})
    with pytest.raises(OSError, match="tfevents") as full:
        events.flush()
    assert full.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match=r".*"):
        events.close()


def test_tensorboardx_reads_the_same(tmp_path):
    proto = pytest.importorskip("tensorboardX.proto.event_pb2")
    with Events(tmp_path) as events:
        events.scalars(0, {"a": 1.0})
    with Events(tmp_path, step=7) as events:
        events.scalars(7, {"a/b": -2.5, "c": 3.0})
    version, started, told = (proto.Event.FromString(body) for body in bodies(files(tmp_path)[1]))
    assert version.file_version == "brain.Event:2"
    assert (started.step, started.session_log.status) == (7, proto.SessionLog.START)
    assert {one.tag: one.simple_value for one in told.summary.value} == {"a/b": -2.5, "c": 3.0}
    assert told.step == 7
