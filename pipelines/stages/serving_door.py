"""What every request passes before it reaches a route: host, token, and an answer in words whatever goes wrong."""

from __future__ import annotations

import hmac
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from pipelines.stages.serving_metrics import Metrics

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]
LOOPBACK = re.compile(r"(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d+)?", re.IGNORECASE)
GUARDED = ("/v1/", "/metrics")  # what wants the token, where there is one
ROUTES = ("/v1/classify", "/v1/features", "/v1/maps", "/v1/filters", "/v1/net", "/v1/card", "/v1/samples", "/v1/model")
ROUTES += ("/healthz", "/readyz", "/metrics", "/docs", "/")
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
]


class Door:
    """ASGI in front of the application."""

    def __init__(self, app: Any, *, metrics: Metrics, token: str | None, loopback: bool):
        self.app, self.metrics, self.token, self.loopback = app, metrics, token, loopback

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def sending(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        route = scope["path"] if scope["path"] in ROUTES else "other"
        refused = self.refused(scope)
        try:
            if refused is not None:
                await answer(sending, *refused)
            else:
                await self.app(scope, receive, sending)
        finally:
            self.metrics.answered(route, status, time.perf_counter() - began)

    def refused(self, scope: dict[str, Any]) -> tuple[int, str, list[tuple[bytes, bytes]]] | None:
        """Status, words and headers for who may not come in."""
        if self.loopback and not LOOPBACK.fullmatch(header(scope["headers"], b"host")):
            return 421, "this server answers this machine only, as localhost or 127.0.0.1", []
        if self.token is not None and scope["path"].startswith(GUARDED):
            given = header(scope["headers"], b"authorization")
            kind, _, word = given.partition(" ")
            fits = hmac.compare_digest(word.strip().encode("latin-1"), self.token.encode())
            if kind.lower() != "bearer" or not fits:
                return 401, "this server wants a token: Authorization: Bearer TOKEN", [(b"www-authenticate", b"Bearer")]
        return None


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in headers if key == name), "")


async def answer(send: Send, status: int, told: str, more: list[tuple[bytes, bytes]]) -> None:
    body = json.dumps({"error": told, "status": status}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
