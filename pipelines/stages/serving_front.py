"""What answers HTTP: uvicorn and our application in an actor that gathers batches and calls the model's deployment."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import uvicorn
from ray import exceptions as raised
from ray.serve import exceptions as unserved
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cluster import deploy
from pipelines.stages.serving_api import Service, make_app
from pipelines.stages.serving_batches import Batches
from pipelines.stages.serving_body import Limits
from pipelines.stages.serving_ray_metrics import RayMetrics

LOST = (
    raised.RayActorError,
    raised.WorkerCrashedError,
    raised.NodeDiedError,
    unserved.DeploymentUnavailableError,
    unserved.ReplicaUnavailableError,
)
AT_ONCE = 2  # calls a replica has: one computes while the next decodes
LITTLE, LITTLE_TOLD = 1_000_000, 1000  # bytes of a call's pictures; classes of its answers
LOOK_EVERY, LOOK_PATIENCE, FIRST_PATIENCE = 2.0, 10.0, 50.0  # seconds
CONNECTIONS = 2048
HEAD_BYTES = 65_536  # of a request
REQUEST_SECONDS = 120.0  # that a request may take to arrive
log = logging.getLogger("cortado.serve")


@dataclass(frozen=True)
class FrontOptions:
    """What a front must know; it travels."""

    name: str
    host: str
    port: int
    instance: str  # tells this server from another at the same address
    limits: Limits = field(default_factory=Limits)
    token: str | None = None
    samples: Path | None = None


class Asker:
    """The application and whom it asks: batches for a handle of the model's deployment."""

    def __init__(self, options: FrontOptions):
        self.options, self.handle, self.direct = options, None, None
        self.facts: dict[str, Any] = {}
        limits = options.limits
        settings: dict[str, Any] = {"most_waiting": limits.waiting, "most_bytes": limits.held}
        metrics = RayMetrics(options.name)
        self.service = Service(
            name=options.name,
            batches=Batches(self.call, **settings, lost=LOST, seen=metrics.called),
            limits=limits,
            metrics=metrics,
            token=options.token,
            loopback=is_loopback(options.host),
            samples=options.samples,
            instance=options.instance,
        )

    async def call(self, key: tuple[str, ...], pictures: list[bytes], top: int) -> list[dict[str, Any]]:
        """The model's answers, each with the facts of the model that gave it."""
        handle, direct, facts = self.handle, self.direct, self.facts
        assert handle is not None
        if key[0] == "classify":
            little = sum(map(len, pictures)) <= LITTLE and len(pictures) * top <= LITTLE_TOLD
            answers = await (direct if little else handle.classify).remote(pictures, top)
        else:
            answers = await getattr(handle, key[0]).remote(pictures, list(key[1:]))
        return [{**answer, "model": facts} for answer in answers]

    async def use(self, handle: Any, replicas: int) -> None:
        """From now on ask this deployment, once it has said what it is."""
        facts = await asyncio.wait_for(handle.describe.remote(), FIRST_PATIENCE)
        # straight to the replica, without Ray's object store: half the time where little travels (4 MB at most)
        self.direct = handle.options(method_name="classify", _by_reference=False)
        if self.handle is None:
            gc.collect()
            gc.freeze()  # what is there now stays: looking through it again takes 0.1 s each time
        self.handle, self.facts = handle, facts
        self.service.model = facts
        batches, told = self.service.batches, facts["batching"]
        batches.at_once, batches.size, batches.wait = AT_ONCE * replicas, told["size"], told["wait_seconds"]
        self.service.ready = True

    async def find(self) -> None:
        """Look for the model, or for another version of it."""
        raise NotImplementedError

    def count(self) -> int:
        """How many replicas of the model run."""
        raise NotImplementedError

    async def look(self) -> None:
        """Find the model, and go on looking whether it answers."""
        while True:
            handle = self.handle
            try:
                if not self.service.ready:
                    await self.find()
                handle = self.handle
                if handle is not None:
                    await asyncio.wait_for(handle.describe.remote(), LOOK_PATIENCE)
                    if handle is self.handle:  # else it was replaced meanwhile
                        self.service.ready = True
                        replicas = await asyncio.to_thread(self.count)
                    if handle is self.handle:
                        self.service.batches.at_once = AT_ONCE * replicas
            except (*LOST, TimeoutError, raised.RayError, unserved.RayServeException) as error:
                if handle is self.handle:
                    self.service.ready = False
                    log.warning("the model does not answer: %s", type(error).__name__)
            self.service.count()
            await asyncio.sleep(LOOK_EVERY if self.handle is not None else LOOK_EVERY / 10)


class Front(Asker):
    """Async: all methods, uvicorn and the gathering share one event loop. Ray starts it anew where it dies."""

    def __init__(self, options: FrontOptions):
        super().__init__(options)
        self.version, self.taking = "", asyncio.Lock()
        listening = bound(options.host, options.port)
        config = uvicorn.Config(
            make_app(self.service),
            http=Bounded,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=60,
            limit_concurrency=CONNECTIONS,
        )
        self.server = uvicorn.Server(config)
        loop = asyncio.get_event_loop()
        self.serving = loop.create_task(self.server.serve(sockets=[listening]))
        self.looking = loop.create_task(self.look())

    async def take(self, app: str) -> None:
        """From now on ask this version of the model."""
        async with self.taking:
            await self._take(app)

    async def _take(self, app: str) -> None:
        handle, replicas = await asyncio.to_thread(deploy.handle_of, app)
        await self.use(handle, replicas)
        self.version = app

    async def find(self) -> None:
        async with self.taking:  # what it was told to take meanwhile is newer
            newest = await asyncio.to_thread(deploy.newest, self.options.name)
            if newest and newest != self.version:
                await self._take(newest)

    def count(self) -> int:
        return deploy.running_of(self.version)

    # -- for the driver --------------------------------------------------------------------------------------------

    async def state(self) -> dict[str, Any]:
        """Where it answers and whether; raises OSError where uvicorn has ended."""
        if self.serving.done():
            self.serving.result()
            raise OSError("the HTTP server has ended")
        return {
            "pid": os.getpid(),
            "started": self.server.started,
            "ready": self.service.ready,
            "version": self.version,
        }

    async def stop(self) -> None:
        """Take no more requests, and finish those that are there."""
        self.server.should_exit = True
        self.looking.cancel()
        await asyncio.wait([self.serving], timeout=10)


class Bounded(HttpToolsProtocol):
    """HTTP whose requests have a head of so many bytes at most, and so many seconds to arrive."""

    timer: asyncio.TimerHandle | None = None
    in_head, head = True, 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self.arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.in_head:
            self.head += len(data)
        super().data_received(data)
        if self.in_head and self.head > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("the head of the request is too long")

    def on_message_begin(self) -> None:
        self.in_head, self.head = True, 0
        if self.timer is None:
            self.expect()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self.in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.arrived()
        self.in_head, self.head = True, 0
        super().on_message_complete()

    def expect(self) -> None:
        self.timer = self.loop.call_later(REQUEST_SECONDS, self.give_up)

    def arrived(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def give_up(self) -> None:
        self.timer = None
        if self.transport is not None:
            self.transport.close()


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; OSError in words where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise OSError(f"{host}:{port}: {error.strerror}; --port N takes another") from None
    listening.set_inheritable(True)
    return listening


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def start(options: FrontOptions) -> Any:
    """A front, on its way: it answers, and says that there is no model yet."""
    return deploy.find_front(options.name) or deploy.start_front(Front, options, name=options.name)


def take(front: Any, app: str, *, patience: float = 2 * FIRST_PATIENCE + 10) -> None:
    """Let a front take version `app` of the model: it may first have to give up an older one that hangs."""
    try:
        ray.get(front.take.remote(app), timeout=patience)
        ray.get(front.state.remote(), timeout=patience)
    except TimeoutError as error:
        told = f"{app}: the server has not taken this model in time"
        raise RuntimeError(f"{told}; the machine may be busy: run the same command again") from error
