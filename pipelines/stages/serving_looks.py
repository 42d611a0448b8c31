"""Routes that show the net: its table, its card, the filters of a layer, the maps of a picture, samples to try."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi import Path as InPath
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from ops import image_header
from ops.names import hint
from pipelines.stages.serving_body import RefusedError, pictures_of, read_body

if TYPE_CHECKING:
    from pipelines.stages.serving_api import Service

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
TRIES, PAUSE = 4, 0.5  # seconds
KEPT = 32  # answers
PNG: dict[str, Any] = {
    "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
    "description": "A PNG picture",
    "headers": {"x-shown": {"description": "What is on it, in words", "schema": {"type": "string"}}},
}
PICTURE: dict[str, Any] = {
    "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    "description": "The picture's file",
}
Layer = Annotated[str, Query(max_length=300, description="a convolution; by default the first")]
Blob = Annotated[str, Query(max_length=300, description="name of a blob")]
Most = Annotated[int, Query(ge=1, le=400, description="tiles")]
Name = Annotated[str, InPath(max_length=200)]


class Row(BaseModel):
    """One layer, at a batch of one."""

    name: str
    type: str
    settings: dict[str, str]
    bottoms: list[str]
    tops: list[str]
    shapes: list[list[int]]
    in_place: bool
    parameters: int
    frozen: int
    statistics: int
    shares_with: list[str]
    multiply_adds: int | None = Field(description="null: a layer of somebody's own")
    bytes: int


class Table(BaseModel):
    layers: list[Row]
    filters: list[str] = Field(description="layers that /v1/filters can show")
    parameters: int
    statistics: int
    multiply_adds: int
    uncounted: list[str]
    blob_bytes: int
    parameter_bytes: int


class Data(BaseModel):
    phase: str
    name: str
    records: int | None
    batch: int


class Trained(BaseModel):
    run: str
    solver: str | None
    iteration: int | None
    max_iter: int | None
    data: list[Data]
    tests: dict[str, float] = Field(description="outputs of the test net at this iteration")


class Card(BaseModel):
    name: str
    net: str
    weights_digest: str
    trained: Trained | None = Field(description="null where the server was not given the folder of a run")


class Offered(BaseModel):
    """A picture to try."""

    name: str
    label: int | None = Field(None, description="the class that it has, where that is known")
    own: bool = Field(False, description="ours, and not of the net's data")


class Told:
    """What the model tells of itself, asked once and kept until there is another model."""

    def __init__(self, service: Service):
        self.service, self.kept = service, dict[tuple[str, ...], Any]()
        self.model: Any = None

    async def ask(self, *words: str) -> Any:
        """The replica's answer to these words; RefusedError with 503 where there is none."""
        model = self.service.model
        if not model:
            raise RefusedError(503, "the model is being loaded", {"retry-after": "2"})
        if model is not self.model:
            self.model, self.kept = model, {}
        if words in self.kept:
            return self.kept[words]
        answer = await self.asked(words)
        if self.service.model is model and len(self.kept) < KEPT:
            self.kept[words] = answer
        return answer

    async def asked(self, words: tuple[str, ...]) -> Any:
        batches = self.service.batches
        for left in reversed(range(TRIES)):
            try:
                async with asyncio.timeout(self.service.limits.answer_seconds):
                    answers = await batches.call(("looks", *words), [b""], 1)
                return answers[0]["told"]
            except (*batches.lost, TimeoutError):
                if not left:
                    told = "the model does not answer"
                    raise RefusedError(503, told, {"retry-after": "2"}) from None
                await asyncio.sleep(PAUSE)


def add_looks(app: FastAPI, service: Service, errors: dict[int | str, dict[str, Any]], body: dict[str, Any]) -> None:
    """The routes. `errors`: what each status means; `body`: how a request brings its picture."""
    told = Told(service)
    without = {code: errors[code] for code in (401, 421, 422, 503)}
    add_told(app, service, told, {code: errors[code] for code in (401, 421, 503)})
    add_samples(app, service, told, {code: errors[code] for code in (401, 404, 421, 422, 503)})

    @app.get("/v1/filters", responses={**without, 200: PNG}, response_class=Response)
    async def filters(layer: Layer = "", most: Most = 96) -> Response:
        """The filters of a convolution as a picture, each stretched from its least to its greatest weight."""
        there = (await told.ask("table"))["filters"]
        if layer not in ("", *there):
            raise RefusedError(422, f"layer: the net has no convolution '{layer[:100]}'{hint(layer, there)}")
        if not there:
            raise RefusedError(422, "layer: the net has no convolution, and so no filters")
        return shown(*await told.ask("filters", layer or there[0], str(most)))

    @app.post("/v1/maps", responses={**errors, 200: PNG}, response_class=Response, openapi_extra=body)
    async def maps(request: Request, blob: Blob, most: Most = 64) -> Response:
        """A blob of one picture as a picture: each map stretched from its least to its greatest value.

        The body is one picture, in any form that /v1/classify takes.
        """
        if service.model and blob not in service.model["blobs"]:
            raise RefusedError(422, f"blob: the net has no blob '{blob[:100]}'{hint(blob, service.model['blobs'])}")
        whole = await read_body(request, service.limits)
        pictures = pictures_of(whole, request.headers.get("content-type", ""), service.limits)
        one = pictures[0]
        if len(pictures) > 1:
            raise RefusedError(413, f"{len(pictures)} pictures in one request: /v1/maps shows one")
        if one.refused is not None:
            raise RefusedError(one.status, f"{one.name}: {one.refused}")
        (answer,) = await service.ask(("maps", blob, str(most)), pictures)
        if "error" in answer:
            raise RefusedError(400, f"{one.name}: {answer['error']}")
        return shown(answer["png"], answer["told"])


def shown(png: bytes, words: str) -> Response:
    plain = words.encode("ascii", "replace").decode()
    return Response(png, media_type="image/png", headers={"x-shown": plain, "cache-control": "no-cache"})


def add_told(app: FastAPI, service: Service, told: Told, errors: dict[int | str, dict[str, Any]]) -> None:
    @app.get("/v1/net", responses=errors)
    async def net() -> Table:
        """The layers: settings, shapes, parameters, multiply-adds."""
        return Response(json.dumps(await told.ask("table")), media_type="application/json")  # type: ignore[return-value]

    @app.get("/v1/card", responses=errors)
    async def card() -> Card:
        """What is known of how the net was trained, and how well it did."""
        trained = await told.ask("card")
        model = service.model
        return Card(name=service.name, net=model["net"], weights_digest=model["weights_digest"], trained=trained)


def add_samples(app: FastAPI, service: Service, told: Told, errors: dict[int | str, dict[str, Any]]) -> None:
    plain = {code: errors[code] for code in (401, 421, 503)}

    @app.get("/v1/samples", responses=plain)
    async def samples() -> list[Offered]:
        """Pictures to try: of the server's folder of samples, else a few that the net was tested with, else ours."""
        if service.samples is not None:
            return [Offered(name=name) for name in listed_samples(service.samples)]
        return [Offered(name=one.name, label=one.label, own=one.own) for one in await told.ask("samples")]

    @app.get("/v1/samples/{name}", responses={**errors, 200: PICTURE}, response_class=Response)
    async def sample(name: Name) -> Response:
        """One of them, as the file that it is."""
        if service.samples is not None:
            file = listed_samples(service.samples).get(name)
            found = await asyncio.to_thread(file.read_bytes) if file else None
        else:
            found = next((one.encoded for one in await told.ask("samples") if one.name == name), None)
        if found is None:
            raise HTTPException(404)
        kind = image_header.kind(found)
        named = f"image/{kind}" if kind else "application/octet-stream"
        return Response(found, media_type=named, headers={"cache-control": "no-cache"})


def listed_samples(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by name."""
    if not folder.is_dir():
        return {}
    return {file.name: file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES and file.is_file()}
