"""What requests and answers look like, for /docs and /openapi.json."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

PICTURE = {"type": "string", "format": "binary"}
ONE = {
    "oneOf": [
        {"type": "string", "description": "base64 of a picture's file, or a data: URL"},
        {
            "type": "object",
            "required": ["data"],
            "properties": {"name": {"type": "string"}, "data": {"type": "string"}},
        },
    ]
}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": PICTURE},
            "application/octet-stream": {"schema": PICTURE},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "array", "items": PICTURE, "minItems": 1}},
                }
            },
            "application/json": {
                "schema": {
                    "anyOf": [
                        {
                            "type": "object",
                            "required": ["images"],
                            "properties": {"images": {"type": "array", "items": ONE, "minItems": 1}},
                        },
                        {"type": "object", "required": ["image"], "properties": {"image": ONE}},
                    ]
                }
            },
        },
    }
}


class Failed(BaseModel):
    """Why there is no answer."""

    error: str = Field(description="one line")
    status: int


class Named(BaseModel):
    label: int
    name: str
    score: float | None = Field(description="null where the net's number is none")


class Sure(BaseModel):
    name: str
    value: float = Field(description="expected bits")


class Answer(BaseModel):
    """Of one picture: its classes, or an error."""

    image: str
    top: list[Named] | None = None
    accurate: list[Sure] | None = Field(None, description="as specific as it is safe; with a hierarchy")
    warning: str | None = None
    error: str | None = None


class Milliseconds(BaseModel):
    """Of the slowest picture of the request."""

    waiting: float
    decoding: float
    forward: float
    all: float


class Whole(BaseModel):
    model: str
    weights_digest: str
    batch: int = Field(description="pictures of the forward, those of other requests among them")
    ms: Milliseconds


class Answers(Whole):
    images: list[Answer]


class Row(BaseModel):
    image: str
    blobs: dict[str, Any] | None = Field(None, description="nested lists of numbers")
    error: str | None = None


class Features(Whole):
    images: list[Row]


class Input(BaseModel):
    blob: str
    shape: list[int]


class Model(BaseModel):
    name: str
    net: str
    weights: list[str]
    weights_digest: str
    input: Input
    classes: int
    names: list[str]
    hierarchy: bool
    blobs: dict[str, list[int]]
    transform: dict[str, Any]
    versions: dict[str, str]
    limits: dict[str, float]


class Health(BaseModel):
    server: str
    name: str
    instance: str
    ready: bool
