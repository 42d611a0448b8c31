"""The body of a request -> the pictures in it: one picture as it is, multipart/form-data, or JSON with base64."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any

from ops import image_header
from ops.image import ALL_KINDS, why_not

# the last is what curl says of --data-binary
PLAIN = ("application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded")
HEAD = 4096  # bytes that the head of a part may have
NAME_LENGTH = 200
DISPOSITION = re.compile(rb'(?:^|;)\s*(filename|name)="((?:[^"\\]|\\.)*)"', re.IGNORECASE)


class RefusedError(ValueError):
    """A request that is not answered: HTTP status, and one line that says why."""

    def __init__(self, status: int, told: str, headers: dict[str, str] | None = None):
        super().__init__(told)
        self.status, self.headers = status, headers or {}


@dataclass(frozen=True)
class Limits:
    """What a request may have."""

    body: int = 32_000_000  # bytes
    images: int = 64
    pixels: int = 50_000_000  # of one picture
    body_seconds: float = 30.0  # until the whole body is here
    answer_seconds: float = 60.0
    waiting: int = 512  # pictures in the queue
    held: int = 256_000_000  # bytes of pictures that wait or are worked on
    numbers: int = 50_000_000  # of blobs in one answer
    json_numbers: int = 1_000_000  # the same as text

    def words(self) -> dict[str, float]:
        found = {"body_bytes": self.body, "images": self.images, "pixels": self.pixels}
        return {**found, "numbers": self.numbers, "json_numbers": self.json_numbers}


@dataclass(frozen=True)
class Picture:
    """A picture of a request; `refused` where it will not be decoded."""

    name: str
    encoded: bytes
    refused: str | None = None
    status: int = 400


async def read_body(request: Any, limits: Limits) -> bytes:
    """The whole body; RefusedError where it is too long or too slow. It is never held beyond the limit."""
    told = request.headers.get("content-length", "")
    if told and not told.isdecimal():
        raise RefusedError(400, "Content-Length is no number")
    if told and int(told) > limits.body:
        raise RefusedError(413, f"the body has {int(told):,} bytes, at most {limits.body:,} are taken")
    pieces, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for piece in request.stream():
                size += len(piece)
                if size > limits.body:
                    raise RefusedError(413, f"the body has more than {limits.body:,} bytes")
                pieces.append(piece)
    except TimeoutError:
        seconds = f"{limits.body_seconds:g}"
        raise RefusedError(408, f"the body was not complete after {seconds} s", {"connection": "close"}) from None
    return b"".join(pieces)


def pictures_of(body: bytes, content_type: str, limits: Limits) -> list[Picture]:
    """The pictures in a body, each looked at but not decoded; RefusedError where there are none or too many."""
    kind = content_type.partition(";")[0].strip().lower()
    if not body:
        raise RefusedError(400, "the body is empty: send a picture, multipart/form-data, or JSON with base64")
    if kind == "multipart/form-data":
        found = multipart(body, content_type, limits)
    elif kind == "application/json" or kind.endswith("+json"):
        found = from_json(body, limits)
    elif not kind or kind.startswith("image/") or kind in PLAIN:
        found = [("", body)]
    else:
        shown = re.sub(r"[^\w/.+-]", "?", kind)[:60]
        taken = "image/*, application/octet-stream, multipart/form-data or application/json"
        raise RefusedError(415, f"Content-Type {shown}: expected {taken}")
    return [looked_at(name or f"#{place}", encoded, limits) for place, (name, encoded) in enumerate(found)]


def looked_at(name: str, encoded: bytes, limits: Limits) -> Picture:
    """A picture after a look at its header: what kind it is, how many pixels it announces."""
    found = image_header.kind(encoded)
    size = image_header.size(encoded)
    if found not in ALL_KINDS:
        return Picture(name, encoded, why_not(encoded, True), 415)
    if size is None:
        return Picture(name, encoded, why_not(encoded, True), 400)
    if size[0] * size[1] > limits.pixels:
        told = f"announces {size[1]:,} x {size[0]:,} pixels, at most {limits.pixels:,} are decoded"
        return Picture(name, encoded, told, 413)
    return Picture(name, encoded)


def too_many(limits: Limits) -> RefusedError:
    return RefusedError(413, f"more than {limits.images} pictures in one request")


def from_json(body: bytes, limits: Limits) -> list[tuple[str, bytes]]:
    """{"images": ["base64", {"name": ..., "data": ...}]} or {"image": ...}; data: URLs are understood."""
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the body is no JSON: {str(error).splitlines()[0]}") from None
    listed = tree.get("images", [tree["image"]] if "image" in tree else None) if isinstance(tree, dict) else None
    if not isinstance(listed, list) or not listed:
        raise RefusedError(400, 'expected {"images": ["base64 of a picture", ...]} or {"image": "..."}')
    if len(listed) > limits.images:
        raise too_many(limits)
    return [one_of_json(one, place) for place, one in enumerate(listed)]


def one_of_json(one: Any, place: int) -> tuple[str, bytes]:
    named = one.get("name") if isinstance(one, dict) else None
    text = one.get("data") if isinstance(one, dict) else one
    if not isinstance(text, str):
        raise RefusedError(400, f'images[{place}]: expected a text of base64, or {{"name": ..., "data": ...}}')
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return shown(named) if isinstance(named, str) else "", base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(400, f"images[{place}]: no base64") from None


def shown(name: str) -> str:
    """A file's name without folders, of printable characters."""
    plain = re.split(r"[/\\]", name)[-1]
    return "".join(letter if letter.isprintable() else "?" for letter in plain)[:NAME_LENGTH]


# -- multipart/form-data (RFC 7578) ------------------------------------------------------------------------------------


def multipart(body: bytes, content_type: str, limits: Limits) -> list[tuple[str, bytes]]:
    """(file name, bytes) of every part that is a file, or that has the name image or images."""
    told = re.search(r'boundary=(?:"([^"]{1,70})"|([^\s;,"]{1,70}))', content_type)
    if told is None:
        raise RefusedError(400, "multipart/form-data without a boundary")
    mark = b"--" + (told[1] or told[2]).encode("latin-1", "replace")
    at = 0 if body.startswith(mark) else body.find(b"\r\n" + mark) + 2
    if at == 1:
        raise RefusedError(400, "multipart/form-data: the boundary does not occur in the body")
    found: list[tuple[str, bytes]] = []
    while not body.startswith(b"--", at + len(mark)):
        start = at + len(mark)
        end = body.find(b"\r\n" + mark, start)
        if end < 0:
            raise RefusedError(400, "multipart/form-data: the body ends inside a part")
        head_end = body.find(b"\r\n\r\n", start, min(end, start + HEAD) + 2)
        if head_end < 0:
            raise RefusedError(400, "multipart/form-data: a part without a head")
        part = part_of(body[start:head_end], body[head_end + 4 : end] if head_end + 4 <= end else b"")
        if part is not None:
            found.append(part)
        if len(found) > limits.images:
            raise too_many(limits)
        at = end + 2
    if not found:
        raise RefusedError(400, "multipart/form-data: no file in it; send pictures as files, -F image=@cat.jpg")
    return found


def part_of(head: bytes, content: bytes) -> tuple[str, bytes] | None:
    """A file or a field called image; None for what else a form may have."""
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-disposition:"):
            named = {key.lower(): value for key, value in DISPOSITION.findall(line.partition(b":")[2])}
            if b"filename" in named:
                return shown(named[b"filename"].decode("utf-8", "replace")), content
            if named.get(b"name", b"").rstrip(b"[]") in (b"image", b"images"):
                return "", content
    return None
