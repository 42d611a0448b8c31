"""A served net and people who send it anything: no error of ours, nobody else waits, and memory stays as it is."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

import cv2
import numpy as np
import psutil
import pytest
import requests

from pipelines.stages.serving_load import Load, Target, press
from tests.pipelines.broken_requests import STATUSES, broken, shout
from tests.pipelines.serving import PATIENCE, RAW, front_pid, png, replica_pid, serving

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
MEGABYTE = 2**20
TOGETHER = 100  # pictures in the queue, which has room for 512


@pytest.fixture(scope="module")
def server(ray_session, golden, tmp_path_factory):
    with serving(golden, tmp_path_factory.mktemp("abused"), "abused") as found:
        yield found


@pytest.fixture(scope="module")
def hat(golden):
    return (golden / "files" / "photos" / "hat_1.jpg").read_bytes()


@contextlib.contextmanager
def answered_meanwhile(server, picture: bytes) -> Iterator[list[int]]:
    """While open, somebody asks what can be answered: the statuses, all 200."""
    over, statuses = threading.Event(), []

    def ask():
        session = requests.Session()
        while not over.is_set() or len(statuses) < 3:
            told = session.post(f"{server.url}/v1/classify", picture, headers=RAW, timeout=PATIENCE)
            statuses.append(told.status_code)
            over.wait(0.02)

    client = threading.Thread(target=ask)
    client.start()
    try:
        yield statuses
    finally:
        over.set()
        client.join()
    assert set(statuses) == {200}, Counter(statuses)


def send_broken(server, count: int, seed: int, pictures: list[bytes]) -> Counter[int]:
    """Statuses of so many broken requests, each looked at."""
    rng, session, statuses = random.Random(seed), requests.Session(), Counter()
    parts = urlsplit(server.url)
    for _ in range(count):
        one = broken(rng, pictures)
        answer = session.request(
            one.method, server.url + one.path, data=one.body, headers=one.headers, timeout=PATIENCE
        )
        statuses[answer.status_code] += 1
        assert answer.status_code in STATUSES, (one.path, one.headers, one.body[:200], answer.text)
        if answer.status_code != 200:
            assert re.match(r"\S.{5,}", answer.json()["error"])
        if rng.random() < 0.05:
            told = shout((parts.hostname, parts.port), rng)
            assert not told or re.match(rb"HTTP/1\.1 4\d\d ", told), told[:200]
    return statuses


def pictures_of(hat: bytes) -> list[bytes]:
    return [hat, png(), png(1, 1), cv2.imencode(".webp", np.zeros((9, 9, 3), np.uint8))[1].tobytes()]


def test_no_broken_request_is_an_error_of_ours_and_good_ones_are_answered_meanwhile(server, hat):
    with answered_meanwhile(server, hat):
        statuses = send_broken(server, 500, 9, pictures_of(hat))
    assert min(statuses[one] for one in (200, 400, 404, 413, 415, 422)) > 2  # every way was taken


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_ten_thousand_broken_requests(server, hat):
    before = rss_of(server)
    with answered_meanwhile(server, hat):
        statuses = send_broken(server, 10_000, 10, pictures_of(hat))
    assert statuses.total() == 10_000
    assert all(after - was < 150 * MEGABYTE for was, after in zip(before, rss_of(server), strict=True))


def crowd(server, count: int, picture: bytes) -> list[bytes]:
    """First lines of the answers to so many senders at once that stop in the middle of their picture for a while."""
    parts = urlsplit(server.url)
    head = f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        senders = [
            stack.enter_context(socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE))
            for _ in range(count)
        ]
        for sender in senders:
            sender.sendall(head + picture[: len(picture) // 2])
        with answered_meanwhile(server, picture):
            pass
        found = []
        for first in range(0, count, TOGETHER):
            for sender in senders[first : first + TOGETHER]:
                sender.sendall(picture[len(picture) // 2 :])
            found += [sender.makefile("rb").readline() for sender in senders[first : first + TOGETHER]]
        return found


def test_two_hundred_slow_senders_keep_nobody_waiting(server):
    assert set(crowd(server, 200, png())) == {b"HTTP/1.1 200 OK\r\n"}


@pytest.mark.soak
def test_a_thousand_slow_senders_keep_nobody_waiting(server):
    assert set(crowd(server, 1000, png())) == {b"HTTP/1.1 200 OK\r\n"}


def rss_of(server) -> list[int]:
    """Bytes that the front and the replica have."""
    return [psutil.Process(pid).memory_info().rss for pid in (front_pid(server.name), replica_pid(server.name))]


def ask_often(server, picture: bytes, count: int) -> None:
    """So many requests by 32 clients."""
    target, done = Target(server.url), 0
    while done < count:
        taken = asyncio.run(press(target, Load(clients=32), [picture], seconds=10, warm_up=0, seed=1))
        assert not taken.failed
        done += len(taken.seconds)


@pytest.mark.soak
@pytest.mark.timeout(2400)
def test_memory_stays_as_it_is_over_a_hundred_thousand_requests(server):
    ask_often(server, png(), 20_000)
    before = rss_of(server)
    ask_often(server, png(), 100_000)
    after = rss_of(server)
    grown = [now - was for was, now in zip(before, after, strict=True)]
    assert max(grown) < 16 * MEGABYTE, grown
