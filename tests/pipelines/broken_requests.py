"""Requests that somebody broke, the same ones for the same seed."""

from __future__ import annotations

import base64
import json
import random
import socket
import struct
from dataclasses import dataclass, field

import cv2
import numpy as np

from tests.pipelines.serving import png

KINDS = ("image/jpeg", "", "application/json", "multipart/form-data; boundary=x", "text/html", "x" * 5000, "\xff")
TAILS = (b"\r\n--x--", b"\r\n--x", b"", b"\r\n--x\r\n\r\n\r\n--x--\r\n")
JSONS = (
    "[" * 50_000,
    "{}",
    "null",
    '{"images": {}}',
    '{"image": {"data": 5}}',
    '{"images": ["' + "A" * 5001 + '"]}',
    '{"image": "data:;base64,"}',
    '{"images": [{"name": "\\ud800", "data": "' + base64.b64encode(png()).decode() + '"}]}',
)
STATUSES = {200, 400, 404, 405, 413, 415, 422}


@dataclass
class Broken:
    """One request."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"


def broken(rng: random.Random, pictures: list[bytes]) -> Broken:
    """Bytes changed or cut off in a picture, its form, its type, the path, or the method."""
    body = bytearray(rng.choice(pictures))
    for _ in range(rng.choice([0, 1, 10, 100])):
        body[rng.randrange(len(body))] = rng.randrange(256)
    if rng.random() < 0.4:
        del body[rng.randrange(len(body)) :]
    if rng.random() < 0.2:
        body = bytearray(rng.choice([rng.randbytes(rng.randrange(3000)), bomb(rng), rng.choice(JSONS).encode()]))
    kind = rng.choice(KINDS)
    if kind.startswith("multipart") and rng.random() < 0.7:
        body = bytearray(b'--x\r\nContent-Disposition: form-data; name="image"; filename="\xff"\r\n\r\n') + body
        body += rng.choice(TAILS)
    elif kind == "application/json" and rng.random() < 0.5:
        body = bytearray(
            json.dumps({"images": [base64.b64encode(bytes(body)).decode()] * rng.choice([1, 70])}), "ascii"
        )
    headers = {"content-type": kind}
    if rng.random() < 0.1:
        headers |= rng.choice([{"accept": "\xff;q=x,,"}, {"content-encoding": "gzip"}, {"x": "y" * 20_000}])
    if rng.random() < 0.05:
        paths = ["/v1/classify/..", "/v1/%00", "/page/..%2f", "/v1/features", "/healthz?x=" + "y" * 9000, "/v1/model"]
        return Broken(rng.choice(paths), bytes(body), headers, rng.choice(["POST", "PUT", "DELETE", "GET", "OPTIONS"]))
    return Broken(query(rng), bytes(body), headers)


def query(rng: random.Random) -> str:
    if rng.random() < 0.6:
        return rng.choice(["/v1/classify?top=3", "/v1/features?blobs=fc,prob"])
    top = rng.choice(["5", "-1", "99999999999999999999", "%00", "1e9", "", "a" * 3000])
    blobs = rng.choice(["fc", "data,fc,fc", ",", "%ff", "../fc", "x" * 2000])
    form = rng.choice(["", "&format=npy", "&format=arrow", "&format=xml"])
    return rng.choice([f"/v1/classify?top={top}", f"/v1/features?blobs={blobs}{form}"])


def bomb(rng: random.Random) -> bytes:
    """A small file that announces a large picture."""
    found = bytearray(cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes())
    found[16:24] = struct.pack(">II", rng.choice([7000, 60_000, 2**31 - 1]), rng.choice([7000, 50_000]))
    return bytes(found)


def shout(address: tuple[str, int], rng: random.Random) -> bytes:
    """What is no HTTP, or only half of it, into a connection; the answer, where there is one."""
    head = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\n"
    said = rng.choice(
        [
            rng.randbytes(rng.randrange(1, 2000)),
            head + b"Content-Length: -5\r\n\r\n",
            head + b"Content-Length: 10\r\nContent-Length: 20\r\n\r\nabc",
            head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc",
            head + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
            head + b"A: " + b"b" * 200_000 + b"\r\n\r\n",
            head.replace(b"1.1", b"9.9") + b"\r\n",
            b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
        ]
    )
    with socket.create_connection(address, timeout=60) as connection:
        try:
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            return connection.makefile("rb").read()
        except OSError:  # closed while we were sending
            return b""
