"""Bodies of requests: multipart, JSON and raw bring the same pictures, and odd ones are refused in words."""

from __future__ import annotations

import base64
import json
import struct

import cv2
import numpy as np
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.stages.serving_body import Limits, RefusedError, looked_at, multipart, pictures_of

LIMITS = Limits(images=4, pixels=10_000)


def encoded(kind, height=20, width=30):
    return cv2.imencode(f".{kind}", np.full((height, width, 3), 90, np.uint8))[1].tobytes()


def form(files):
    """(body, content type) as requests writes it."""
    made = requests.Request("POST", "http://localhost/", files=files).prepare()
    return made.body, made.headers["content-type"]


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4))
def test_multipart_gives_the_bytes_that_went_in(contents):
    body, kind = form([("image", (f"{place}.jpg", content)) for place, content in enumerate(contents)])
    assert multipart(body, kind, LIMITS) == [(f"{place}.jpg", content) for place, content in enumerate(contents)]


def test_a_form_may_have_other_fields():
    body, kind = form([("note", (None, "hello")), ("image", (None, b"abc")), ("x", ("dir/ü.png", b"def"))])
    assert multipart(body, kind, LIMITS) == [("", b"abc"), ("ü.png", b"def")]


def test_raw_multipart_and_json_are_the_same_picture():
    picture = encoded("png")
    body, kind = form([("image", ("a.png", picture))])
    text = base64.b64encode(picture).decode()
    bodies = [
        (picture, "image/png"),
        (picture, ""),
        (body, kind),
        (json.dumps({"image": text}).encode(), "application/json"),
        (
            json.dumps({"images": [{"name": "a.png", "data": f"data:image/png;base64,{text}"}]}).encode(),
            "application/json",
        ),
    ]
    for body, kind in bodies:
        (found,) = pictures_of(body, kind, LIMITS)
        assert found.encoded == picture
        assert found.refused is None


@pytest.mark.parametrize(
    ("body", "kind", "status", "told"),
    [
        (b"", "image/png", 400, "the body is empty"),
        (b"abc", "video/mp4", 415, "Content-Type video/mp4: expected image/*"),
        (b"abc", "text/plain; x=y", 415, "Content-Type text/plain: expected"),
        (b"abc", "multipart/form-data", 400, "without a boundary"),
        (b"abc", "multipart/form-data; boundary=x", 400, "the boundary does not occur"),
        (b"--x\r\nabc", "multipart/form-data; boundary=x", 400, "ends inside a part"),
        (b"--x\r\nabc\r\n--x--", "multipart/form-data; boundary=x", 400, "a part without a head"),
        (b"--x--", "multipart/form-data; boundary=x", 400, "no file in it"),
        (b"{", "application/json", 400, "the body is no JSON"),
        (b"[" * 100_000, "application/json", 400, "the body is no JSON"),
        (b"[]", "application/json", 400, 'expected {"images"'),
        (b'{"images": []}', "application/json", 400, 'expected {"images"'),
        (b'{"images": [1]}', "application/json", 400, "images[0]: expected a text of base64"),
        (b'{"images": ["YQ==", "?"]}', "application/json", 400, "images[1]: no base64"),
        (b'{"images": ["", "", "", "", ""]}', "application/json", 413, "more than 4 pictures"),
        (form([("image", (f"{n}", b"")) for n in range(5)])[0], "multipart/form-data; boundary=%s", 413, "more than 4"),
    ],
)
def test_what_is_no_picture_is_refused_in_words(body, kind, status, told):
    if kind.endswith("%s"):
        kind %= body[2:34].decode()
    with pytest.raises(RefusedError) as refused:
        pictures_of(body, kind, LIMITS)
    assert refused.value.status == status
    assert told in str(refused.value)


def test_pixels_are_counted_before_anything_is_decoded():
    bomb = bytearray(encoded("png"))
    bomb[16:24] = struct.pack(">II", 60_000, 50_000)
    found = looked_at("bomb.png", bytes(bomb), LIMITS)
    assert found.status == 413
    assert found.refused == "announces 60,000 x 50,000 pixels, at most 10,000 are decoded"


@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "webp", "tiff", "jp2"])
def test_every_kind_that_classify_reads_is_let_in(kind):
    assert looked_at("a", encoded(kind, 64, 64), LIMITS).refused is None


@pytest.mark.parametrize(
    ("content", "status", "told"),
    [
        (b"", 415, "an empty file"),
        (b"<html><body>", 415, "an HTML page, not an image"),
        (b"hello there", 415, "not an image"),
        (b"%PDF-1.4 and so on", 415, ""),
        (b"\x89PNG\r\n\x1a\n1234", 400, "damaged or cut short"),
        (b"\xff\xd8\xff\xe0", 400, "damaged or cut short"),
    ],
)
def test_other_files_are_told_from_pictures(content, status, told):
    found = looked_at("a", content, LIMITS)
    assert found.status == status
    assert told in found.refused
