"""The HTTP face of a served model: a FastAPI application that knows no Ray; who answers comes in as a Service."""

from __future__ import annotations

import asyncio
import json
import math
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

import pipelines
from pipelines.stages.serving_batches import Batches, BusyError, LostError
from pipelines.stages.serving_body import Limits, Picture, RefusedError, pictures_of, read_body
from pipelines.stages.serving_door import Door
from pipelines.stages.serving_looks import add_looks
from pipelines.stages.serving_metrics import Metrics
from pipelines.stages.serving_rows import (
    KINDS,
    PIECE,
    Form,
    as_arrow,
    as_json,
    as_npy,
    blobs_named,
    check_size,
    form_of,
)
from pipelines.stages.serving_words import BODY, PICTURE, Answers, Failed, Features, Health, Model

PAGE = Path(pipelines.__path__[0]) / "page"
FILES = {"page.css": "text/css", **dict.fromkeys(("page.js", "looks.js", "docs.js"), "text/javascript")}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Failed, "description": "No picture that can be decoded, or a malformed request"},
    401: {"model": Failed, "description": "The server wants a token"},
    404: {"model": Failed, "description": "No such path"},
    405: {"model": Failed, "description": "Another method is expected"},
    408: {"model": Failed, "description": "The body came too slowly"},
    413: {"model": Failed, "description": "A body, a picture or a number of pictures over the limit"},
    415: {"model": Failed, "description": "Not a picture, or not a kind of picture that is decoded"},
    421: {"model": Failed, "description": "Asked under a name that this server does not answer to"},
    422: {"model": Failed, "description": "A parameter that cannot be used"},
    503: {"model": Failed, "description": "Busy, or the model is not there; see Retry-After"},
}
COMMON = {code: ERRORS[code] for code in (401, 421)}
Top = Annotated[int, Query(ge=1, le=1000, description="classes to name")]
Blobs = Annotated[str, Query(max_length=1000, description="names, with commas: fc7,prob")]
Format = Annotated[Form | None, Query(description="npy: one blob, an array of all pictures; arrow: a table")]
ROWS = {KINDS[form]: {"schema": PICTURE} for form in ("npy", "arrow")}
Name = Annotated[str, InPath(max_length=200)]


@dataclass
class Service:
    """Who answers, and under what conditions."""

    name: str
    batches: Batches
    limits: Limits
    metrics: Metrics
    model: dict[str, Any] = field(default_factory=dict)  # Served.facts(); empty until the model has told them
    ready: bool = False
    token: str | None = None
    loopback: bool = True
    samples: Path | None = None
    instance: str = ""

    async def ask(self, key: tuple[str, ...], pictures: list[Picture], top: int = 1) -> list[dict[str, Any]]:
        """An answer for each picture, refused ones among them. RefusedError with 503 where there is none in time."""
        if not self.model:
            raise RefusedError(503, "the model is being loaded", {"retry-after": "2"})
        good = [one.encoded for one in pictures if one.refused is None]
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                answers = await self.batches.ask(key, good, top)
        except BusyError as error:
            raise RefusedError(503, str(error), {"retry-after": str(error.seconds)}) from None
        except (LostError, TimeoutError) as error:
            told = str(error) or f"no answer within {self.limits.answer_seconds:g} s"
            raise RefusedError(503, told, {"retry-after": "2"}) from None
        except ValueError:  # the names were right when they were checked
            raise RefusedError(503, "the model was replaced meanwhile; ask again", {"retry-after": "1"}) from None
        except MemoryError:
            raise RefusedError(503, "the model ran out of memory", {"retry-after": "5"}) from None
        found = iter(answers)
        return [{"error": one.refused} if one.refused is not None else next(found) for one in pictures]

    def count(self) -> None:
        """Put down how things stand."""
        self.metrics.now(waiting=len(self.batches.waiting), retried=self.batches.retried, ready=self.ready)


def make_app(service: Service) -> FastAPI:
    """The application: API, page, health, metrics."""
    app = FastAPI(
        title=f"Cortado: {service.name}",
        version="1",
        description="Classes and features of pictures, by a net in Caffe's format.",
        docs_url=None,
        redoc_url=None,
    )
    add_errors(app)
    add_answers(app, service)
    add_facts(app, service)
    add_looks(app, service, ERRORS, BODY)
    add_page(app)
    app.add_middleware(Door, metrics=service.metrics, token=service.token, loopback=service.loopback)
    return app


def add_errors(app: FastAPI) -> None:
    """Every error is {"error": one line, "status": number}."""

    def failed(status: int, told: str, headers: Any = None) -> JSONResponse:
        return JSONResponse({"error": told, "status": status}, status, headers)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        return failed(error.status, str(error), error.headers)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        told = {404: "no such path; /docs lists what there is", 405: "this path wants another method; see /docs"}
        return failed(error.status_code, told.get(error.status_code, str(error.detail)), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return failed(422, f"{first['loc'][-1]}: {first['msg'][:1].lower()}{first['msg'][1:]}")

    @app.exception_handler(500)
    async def ours(request: Request, error: Exception) -> JSONResponse:
        return failed(500, "an error of the server; its log says more")


def add_answers(app: FastAPI, service: Service) -> None:
    limits = service.limits

    @app.post("/v1/classify", responses=ERRORS, openapi_extra=BODY)
    async def classify(request: Request, top: Top = 5) -> Answers:
        """The most probable classes of one picture or many.

        The body is a picture as it is, multipart/form-data with files, or JSON with base64. A picture that cannot be
        decoded has an `error` in its place; where none can, the status says why.
        """
        began = time.perf_counter()
        pictures = await pictures_in(request, limits)
        answers = await service.ask(("classify",), pictures, top)
        described = [described_as(answer, one.name, top) for one, answer in zip(pictures, answers, strict=True)]
        whole = {**whole_of(pictures, answers, began), "images": described}
        return Response(json.dumps(whole), media_type="application/json")  # type: ignore[return-value]

    @app.post("/v1/features", responses={**ERRORS, 200: {"content": ROWS}}, openapi_extra=BODY)
    async def features(request: Request, blobs: Blobs, format: Format = None) -> Features:
        """Any blobs of the net for each picture: as JSON, as a stream of Apache Arrow, or one as a .npy file.

        Arrow has the columns image and error, and a list of float32 of fixed length for each blob; .npy is float32, a
        row a picture. Without `format` an Accept header chooses.
        """
        began = time.perf_counter()
        form = form_of(format, request.headers.get("accept", ""))
        names = blobs_named(blobs, service.model, form)
        pictures = await pictures_in(request, limits)
        numbers = check_size(names, service.model, form, len(pictures), limits)
        answers = await service.ask(("features", *names), pictures)
        whole = whole_of(pictures, answers, began)
        make = partial(as_npy, pictures, answers)
        if form != "npy":
            make = partial(as_json if form == "json" else as_arrow, whole, pictures, answers)
        made = await asyncio.to_thread(make) if numbers > PIECE else make()
        return Response(made, media_type=KINDS[form])  # type: ignore[return-value]


async def pictures_in(request: Request, limits: Limits) -> list[Picture]:
    """The pictures of a request; RefusedError where none of them can be decoded by the look of it."""
    body = await read_body(request, limits)
    pictures = pictures_of(body, request.headers.get("content-type", ""), limits)
    if all(one.refused is not None for one in pictures):
        first = pictures[0]
        raise RefusedError(first.status, f"{first.name}: {first.refused}")
    return pictures


def described_as(answer: dict[str, Any], name: str, top: int) -> dict[str, Any]:
    """An answer as `cortado classify --json` has it."""
    if "error" in answer:
        return {"image": name, "error": answer["error"]}
    names = answer["model"]["names"]
    found: dict[str, Any] = {"image": name}
    pairs = zip(answer["labels"][:top], answer["scores"][:top], strict=True)
    found["top"] = [
        {
            "label": label,
            "name": (names[label] if label < len(names) else "") or str(label),
            "score": score if math.isfinite(score) else None,
        }
        for label, score in pairs
    ]
    if answer["hedged"]:
        found["accurate"] = [{"name": node, "value": value} for node, value in answer["hedged"][:top]]
    if "warning" in answer:
        found["warning"] = answer["warning"]
    return found


def whole_of(pictures: list[Picture], answers: list[dict[str, Any]], began: float) -> dict[str, Any]:
    """What is said of all pictures together, the times those of the slowest; 400 where none could be decoded."""
    if all("error" in one for one in answers):
        raise RefusedError(400, f"{pictures[0].name}: {answers[0]['error']}")
    timed = [one for one in answers if "batch" in one]
    ms = {name: round(1000 * max(one[name] for one in timed), 3) for name in ("waiting", "decoding", "forward")}
    ms["all"] = round(1000 * (time.perf_counter() - began), 3)
    model = timed[0]["model"]
    batch = max(one["batch"] for one in timed)
    return {"model": model["net"], "weights_digest": model["weights_digest"], "batch": batch, "ms": ms}


def add_facts(app: FastAPI, service: Service) -> None:
    @app.get("/v1/model", responses={**COMMON, 503: ERRORS[503]})
    async def model() -> Model:
        """The net, its weights' digest, its input, classes, blobs, and how pictures become numbers."""
        if not service.model:
            raise RefusedError(503, "the model is being loaded", {"retry-after": "2"})
        whole = {"name": service.name, **service.model, "limits": service.limits.words()}
        return Response(json.dumps(whole), media_type="application/json")  # type: ignore[return-value]

    @app.get("/healthz", responses={421: ERRORS[421]})
    async def healthz() -> Health:
        """Whether the server runs; the model may still be on its way."""
        return Health(server="cortado", name=service.name, instance=service.instance, ready=service.ready)

    @app.get("/readyz", responses={421: ERRORS[421], 503: ERRORS[503]})
    async def readyz() -> Health:
        """Whether the model answers."""
        if not service.ready:
            told = "the model does not answer" if service.model else "the model is being loaded"
            raise RefusedError(503, told, {"retry-after": "2"})
        return Health(server="cortado", name=service.name, instance=service.instance, ready=True)

    @app.get("/metrics", responses={**COMMON, 200: {"content": {"text/plain": {}}}}, response_class=Response)
    async def metrics() -> Response:
        """Counters, as Prometheus reads them."""
        service.count()
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def add_page(app: FastAPI) -> None:
    """The page for people, and its parts; not part of the API."""
    fresh = {"cache-control": "no-cache"}

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", media_type="text/html", headers=fresh)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(PAGE / "docs.html", media_type="text/html", headers=fresh)

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: Name) -> FileResponse:
        if name not in FILES:
            raise HTTPException(404)
        return FileResponse(PAGE / name, media_type=FILES[name], headers=fresh)
