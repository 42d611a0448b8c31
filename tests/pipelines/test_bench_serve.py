"""`cortado bench-serve`: its figures for a server whose delays and errors are known."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from ops import latency_chart
from pipelines.bench_serve import BenchServe
from tests.ports import free_port

DELAY = 0.05  # seconds
PICTURE = bytes(range(256))


class Known:
    """Answers each picture after DELAY; every tenth with 503, every eleventh not at all."""

    def __init__(self, port: int):
        self.port, self.count, self.bodies = port, 0, set()
        self.faults = True

    async def run(self, started: threading.Event, over: threading.Event) -> None:
        async with await asyncio.start_server(self.answer, "127.0.0.1", self.port):
            started.set()
            await asyncio.to_thread(over.wait)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"Content-Length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                status, told = 200, {"server": "cortado"}
                if body:
                    self.bodies.add(body)
                    self.count += 1
                    number = self.count
                    await asyncio.sleep(DELAY)
                    status, told = 200, {"images": [], "batch": 3}
                    if self.faults and number % 11 == 0:
                        break
                    if self.faults and number % 10 == 0:
                        status = 503
                elif b"/v1/samples" in head:
                    told = []
                text = json.dumps(told).encode()
                if self.count % 2:
                    writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(text), text))
                else:
                    head = b"HTTP/1.1 %d X\r\nTransfer-Encoding: chunked\r\n\r\n" % status
                    writer.write(head + b"1\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (text[:1], len(text) - 1, text[1:]))
        writer.close()


@pytest.fixture
def known() -> Iterator[Known]:
    found, started, over = Known(free_port()), threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(found.run(started, over)))
    thread.start()
    started.wait()
    yield found
    over.set()
    thread.join()


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "a.jpg"
    file.write_bytes(PICTURE)
    return file


def test_clients_wait_for_their_answers(known, picture, tmp_path):
    known.faults = False
    plot = tmp_path / "made" / "plot.png"
    job = BenchServe(
        url=f"http://127.0.0.1:{known.port}/", image=(picture,), clients="1,8", seconds=1, warm_up=0.2, plot=plot
    )
    result = job.run()
    one, eight = result["loads"]
    assert known.bodies == {PICTURE}
    assert (one["load"], eight["load"]) == ("1 client", "8 clients")
    for load, clients in ((one, 1), (eight, 8)):
        assert load["failed"] == {}
        assert 1000 * DELAY <= load["ms"]["p50"] <= load["ms"]["p90"] <= load["ms"]["p99"] <= load["ms"]["max"]
        assert load["answers"] <= clients * (1 / DELAY + 1)
        assert load["images_per_s"] == pytest.approx(load["answers"], abs=0.1)  # in a second
        assert load["images_per_s"] >= 0.5 * clients * 1000 / load["ms"]["max"]  # each asks again when it is answered
        assert load["batch"] == 3
    assert cv2.imread(str(plot)).shape[1] == 1350


def test_a_rate_does_not_wait_and_delays_count_from_when_a_request_was_due(known, picture):
    known.faults = False
    url = f"http://127.0.0.1:{known.port}"
    (load,) = BenchServe(url=url, image=(picture,), rate=100, seconds=2, warm_up=0, seed=3).run()["loads"]
    assert load["load"] == "100 requests/s"
    assert 130 <= load["answers"] <= 270  # 200 of chance; one client alone would have had 40
    assert load["ms"]["p50"] >= 1000 * DELAY


def test_what_fails_is_counted_by_how(known, picture):
    (load,) = BenchServe(
        url=f"http://127.0.0.1:{known.port}", image=(picture,), clients="4", seconds=1.5, warm_up=0
    ).run()["loads"]
    whole = load["answers"] + sum(load["failed"].values())
    assert set(load["failed"]) == {"503", "no connection"}
    assert load["failed"]["503"] == pytest.approx(whole / 11, abs=3)  # a tenth of those that get an answer
    assert load["failed"]["no connection"] == pytest.approx(whole / 11, abs=3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"url": "localhost:8000"}, "localhost:8000: expected the address of a server, as http://127.0.0.1:8000"),
        ({"url": "http://127.0.0.1:x"}, "expected the address of a server"),
        ({"url": "http://127.0.0.1:8000/v1"}, "expected the address of a server"),
        ({"clients": "1,many"}, "--clients 1,many: expected numbers from 1 to 10000"),
        ({"clients": "0"}, "--clients 0: expected numbers"),
        ({"clients": ","}, "--clients ,: expected numbers"),
        ({"rate": 0.0}, "--rate 0: expected more than 0"),
        ({"seconds": -1.0}, "--seconds -1: expected more than 0"),
        ({"warm_up": -1.0}, "--warm-up -1: expected 0 or more"),
        ({"plot": "a.pdf"}, "--plot a.pdf: expected a name that ends in .png"),
    ],
)
def test_what_cannot_be_asked_is_told(options, told, tmp_path):
    from pathlib import Path

    if "plot" in options:
        options = {"plot": Path(options["plot"])}
    with pytest.raises(ValueError, match=re.escape(told)):
        BenchServe(**{"url": "http://127.0.0.1:1", **options}).run()


def test_a_server_that_is_not_there_or_none_of_ours_is_told_in_one_line(known, picture, run_cli):
    port = free_port()
    done = run_cli("bench-serve", f"http://127.0.0.1:{port}", "--image", picture)
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr == f"cortado: error: http://127.0.0.1:{port}: nobody answers there (Connection refused)\n"
    with pytest.raises(ValueError, match="--image FILE missing: the server offers no samples"):
        BenchServe(url=f"http://127.0.0.1:{known.port}").run()
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            connection, _ = other.accept()
            connection.recv(1000)
            connection.sendall(b"SSH-2.0-x\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConnectionError, match=r"^http://127\.0\.0\.1:\d+: what answers is no HTTP"):
            BenchServe(url=f"http://127.0.0.1:{other.getsockname()[1]}", image=(picture,)).run()
        thread.join()


def test_the_picture_spreads_the_slow_answers_out():
    assert latency_chart.spread(np.array([0.0, 90.0, 99.0, 99.9])) == pytest.approx([0, 1, 2, 3])
    loads = {"1 client": np.linspace(2, 9, 500), "64 clients": np.geomspace(10, 200, 3000), "none": np.zeros(0)}
    drawn = cv2.imdecode(np.frombuffer(latency_chart.draw(loads, "net"), np.uint8), cv2.IMREAD_COLOR)
    for colour in ((178, 114, 0), (0, 94, 213)):  # B, G, R of the first two lines
        assert (np.abs(drawn.astype(int) - colour).max(axis=2) < 40).sum() > 300
