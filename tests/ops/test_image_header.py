"""Kinds and sizes from the first bytes, against Pillow and OpenCV, and for files that lie."""

from __future__ import annotations

import io
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ops import image_header
from tests import odd_images

WHOLE = odd_images.CAFFE_READS | odd_images.NEWER
SIZES = {"one_pixel.jpg": (1, 1), "thin.jpg": (1, 300), "text.ppm": (1, 2)}
KINDS = {
    "tif": "tiff",
    "jpg": "jpeg",
    "dib": "bmp",
    "sr": "ras",
    "pic": "hdr",
    "ppm": "pnm",
    "pgm": "pnm",
    "pbm": "pnm",
}
CANVAS = {"huge.webp": (16_383, 16_383)}


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_the_size_is_the_stored_one(name):
    assert image_header.size(WHOLE[name]) == SIZES.get(name, (odd_images.HEIGHT, odd_images.WIDTH))


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_the_kind_is_what_the_file_was_written_as(name):
    extension = name.rpartition(".")[2]
    assert image_header.kind(WHOLE[name]) == KINDS.get(extension, extension)


@pytest.mark.parametrize("name", sorted(odd_images.HUGE))
def test_huge_sizes_are_seen(name):
    assert len(odd_images.HUGE[name]) < 5_000
    assert image_header.size(odd_images.HUGE[name]) == CANVAS.get(name, (60_000, 60_000))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "JPEG2000", "PPM", "AVIF"])
@given(height=st.integers(1, 400), width=st.integers(1, 400))
def test_any_size_is_pillows(kind, height, width):
    data = odd_images.pillow(kind, Image.new("RGB", (width, height)))
    assert image_header.size(data) == Image.open(io.BytesIO(data)).size[::-1] == (height, width)


def test_the_frame_is_found_behind_a_thumbnail_stray_bytes_and_fill_bytes():
    plain = odd_images.CAFFE_READS["plain.jpg"]
    assert image_header.size(plain[:2] + b"\xff" * 9 + plain[3:]) == (45, 70)
    assert image_header.size(plain[:20] + b"stray\0" + plain[20:]) == (45, 70)
    assert image_header.size(odd_images.CAFFE_READS["thumbnail.jpg"]) == (45, 70)


def test_an_old_bitmap_has_sixteen_bits_a_side():
    data = b"BM" + struct.pack("<IHHI", 26, 0, 0, 26) + struct.pack("<IHHHH", 12, 70, 45, 1, 24)
    assert image_header.size(data) == (45, 70)


def test_a_big_tiff_has_wide_offsets():
    data = odd_images.pillow("TIFF", big_tiff=True)
    assert data[2:4] == b"+\0"
    assert image_header.size(data) == (45, 70)


def test_numbers_with_leading_zeros_hide_nothing():
    assert image_header.size(b"P6 " + b"0" * 17 + b"60000 60000\n255\n")[1] >= 60_000
    assert image_header.size(b"P5\n# 1 1\n\t7 # width\n 9\n255\n") == (9, 7)


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_a_file_that_ends_in_its_header_has_a_size_or_none(name):
    for end in range(min(300, len(WHOLE[name]))):
        found = image_header.size(WHOLE[name][:end])
        assert found is None or len(found) == 2


@given(
    st.binary(max_size=200),
    st.sampled_from([signature for signature, _ in image_header.SIGNATURES] + [b"P6 ", b"P7\n"]),
)
def test_any_bytes_behind_a_signature_are_survived(data, signature):
    image_header.size(signature + data)
    image_header.kind(data)
    image_header.ends(signature + data)


@pytest.mark.parametrize("piece", [b"\xff\x00", b"\xff\xff", b"\xff\xe0\x00\x02", b"\xff\xd0", b"\xff\xdb\x00\x00"])
def test_a_long_file_made_of_nothing_but_markers_is_given_up_on(piece):
    data, began = b"\xff\xd8\xff" + piece * 5_000_000, time.monotonic()
    assert image_header.size(data) is None
    assert not image_header.ends(data)
    assert time.monotonic() - began < 5


def test_an_animated_png_is_cut_down_to_its_first_picture():
    moving, still = odd_images.CAFFE_READS["animated.png"], odd_images.CAFFE_READS["plain.png"]
    assert image_header.still_png(still) == still
    assert b"fdAT" not in image_header.still_png(moving)
    assert Image.open(io.BytesIO(image_header.still_png(moving))).tobytes() == Image.open(io.BytesIO(still)).tobytes()
    assert image_header.still_png(moving[:-1]) is None


def test_what_is_no_image_has_no_kind():
    for data in (b"", b"P", b"P9 1 1", b"RIFF....WAVE", b"hello", b"\0" * 50, b"BA"):
        assert image_header.kind(data) is None
        assert image_header.size(data) is None
