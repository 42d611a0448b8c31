"""Load for a served model over HTTP, and how long the answers take: from clients that ask one picture after the other,
or as many a second whatever becomes of them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

MOST_CONNECTIONS = 1000
SHARES = (50, 90, 99)
BATCH = re.compile(rb'"batch": ?(\d+)')


@dataclass(frozen=True)
class Target:
    """The server that is asked."""

    url: str
    token: str | None = None
    timeout: float = 60.0  # seconds until an answer is given up

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
        except ValueError:  # a port that is no number
            known = False
        if not known or parts.path.strip("/") or parts.query:
            raise ValueError(f"{self.url}: expected the address of a server, as http://127.0.0.1:8000")

    @property
    def address(self) -> tuple[str, int, ssl.SSLContext | None]:
        parts = urlsplit(self.url)
        secure = parts.scheme == "https"
        return (
            parts.hostname or "",
            parts.port or (443 if secure else 80),
            ssl.create_default_context() if secure else None,
        )

    def head(self, method: str, path: str, length: int | None = None) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {urlsplit(self.url).netloc}", "Accept: application/json"]
        lines += [f"Authorization: Bearer {self.token}"] if self.token else []
        lines += [f"Content-Length: {length}"] if length is not None else []
        return "\r\n".join([*lines, "\r\n"]).encode("latin-1")


class Connection:
    """One that is kept, and opened anew where it was closed."""

    def __init__(self, target: Target):
        self.target = target
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """(status, body); OSError where nobody answers, TimeoutError where it takes too long."""
        whole = self.target.head(method, path, None if body is None else len(body)) + (body or b"")
        try:
            async with asyncio.timeout(self.target.timeout):
                if self.writer is None:
                    host, port, secure = self.target.address
                    self.reader, self.writer = await asyncio.open_connection(host, port, ssl=secure)
                self.writer.write(whole)
                return await self.answer()
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            self.close()
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"{self.target.url}: no answer within {self.target.timeout:g} s") from None
            told = f"what answers is no HTTP ({type(error).__name__})"
            if isinstance(error, OSError):
                told = f"nobody answers there ({os.strerror(error.errno) if error.errno else type(error).__name__})"
            raise ConnectionError(f"{self.target.url}: {told}") from None

    async def answer(self) -> tuple[int, bytes]:
        """The next one on this connection."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.lower().split(b"\r\n")
        if not first.startswith(b"http/1."):
            raise ValueError(first)
        headers = {name: value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        if headers.get(b"transfer-encoding") == b"chunked":
            body = b"".join([piece async for piece in self.pieces()])
        else:
            body = await self.reader.readexactly(int(headers.get(b"content-length", b"0")))
        if headers.get(b"connection") == b"close":
            self.close()
        return int(first.split()[1]), body

    async def pieces(self) -> AsyncIterator[bytes]:
        """Of a body that comes in chunks, as Ray Serve's proxy sends it."""
        while size := int((await self.reader.readline()).partition(b";")[0], 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        while await self.reader.readline() not in (b"\r\n", b""):
            pass

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


@dataclass
class Taken:
    """What came of a load. A request counts by when it was begun: in the warm-up or after it."""

    from_second: float  # of time.perf_counter
    seconds: list[float] = field(default_factory=list)  # of answers
    batches: list[int] = field(default_factory=list)  # pictures of the forwards they were in
    failed: Counter[str] = field(default_factory=Counter)  # status, or what happened instead

    async def request(self, connection: Connection, body: bytes, due: float) -> None:
        """One picture; the time counts from when it was due."""
        try:
            status, told = await connection.ask("POST", "/v1/classify", body)
        except TimeoutError:
            failed = "no answer in time"
        except OSError:
            failed = "no connection"
            await asyncio.sleep(0.01)
        else:
            took = time.perf_counter() - due
            failed = "" if status == 200 else str(status)
        if due < self.from_second:
            return
        if failed:
            self.failed[failed] += 1
        else:
            self.seconds.append(took)
            found = BATCH.search(told)
            self.batches.append(int(found[1]) if found else 0)


@dataclass(frozen=True)
class Load:
    """How it is asked: by `clients` who wait for their answer, or `rate` times a second."""

    clients: int | None = None
    rate: float | None = None

    @property
    def name(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g} requests/s"
        return f"{self.clients} client{'s' * (self.clients != 1)}"


async def press(
    target: Target, load: Load, bodies: Sequence[bytes], *, seconds: float, warm_up: float, seed: int
) -> Taken:
    """Ask for `warm_up` + `seconds`, and wait for the last answers."""
    began = time.perf_counter()
    taken = Taken(began + warm_up)
    until = began + warm_up + seconds
    if load.clients is not None:
        await asyncio.gather(*(client(target, bodies, 7 * one, until, taken) for one in range(load.clients)))
    else:
        await at_rate(target, load.rate or 0.0, bodies, until, taken, np.random.default_rng(seed))
    return taken


async def client(target: Target, bodies: Sequence[bytes], first: int, until: float, taken: Taken) -> None:
    """Asks one picture after the other."""
    connection, place = Connection(target), first
    while (due := time.perf_counter()) < until:
        await taken.request(connection, bodies[place % len(bodies)], due)
        place += 1
    connection.close()


async def at_rate(
    target: Target, rate: float, bodies: Sequence[bytes], until: float, taken: Taken, rng: np.random.Generator
) -> None:
    """Requests at times of chance, `rate` a second on average, none of which waits for another one's answer."""
    idle: list[Connection] = []
    running: set[asyncio.Task[None]] = set()

    async def one(connection: Connection, body: bytes, due: float) -> None:
        await taken.request(connection, body, due)
        idle.append(connection)

    place, due = 0, time.perf_counter()
    while due < until:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if len(running) >= MOST_CONNECTIONS:
            taken.failed["not sent, too many open"] += due >= taken.from_second
        else:
            connection = idle.pop() if idle else Connection(target)
            task = asyncio.create_task(one(connection, bodies[place % len(bodies)], due))
            running.add(task)
            task.add_done_callback(running.discard)
        place += 1
        due += rng.exponential(1 / rate)
    await asyncio.gather(*running)
    for connection in idle:
        connection.close()


def figures(load: Load, taken: Taken, seconds: float) -> dict[str, Any]:
    """What is told of a load; milliseconds."""
    ms = 1000 * np.array(taken.seconds)
    found: dict[str, Any] = {"load": load.name, "answers": len(ms), "images_per_s": round(len(ms) / seconds, 1)}
    if len(ms):
        found["ms"] = {f"p{share}": round(float(np.percentile(ms, share)), 2) for share in SHARES}
        found["ms"] |= {"max": round(float(ms.max()), 2)}
        found["batch"] = round(float(np.mean(taken.batches)), 1)
    found["failed"] = dict(sorted(taken.failed.items()))
    return found


async def pictures_of(target: Target) -> list[bytes]:
    """The samples that a server offers; ConnectionError where it is none of ours."""
    connection = Connection(target)
    status, told = await connection.ask("GET", "/healthz")
    if status != 200 or json.loads(told).get("server") != "cortado":
        raise ConnectionError(f"{target.url}: what answers is no `cortado serve` (status {status})")
    status, told = await connection.ask("GET", "/v1/samples")
    names = [one["name"] for one in json.loads(told)] if status == 200 else []
    found = [await connection.ask("GET", f"/v1/samples/{quote(name)}") for name in names]
    connection.close()
    return [body for status, body in found if status == 200]
