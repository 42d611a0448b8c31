"""Decoding against cv2.imread and Caffe's own records; sizes, crops and encodings against numpy and OpenCV."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops import image
from ops.proto import caffe_pb2
from tests import odd_images

GOLDEN = Path(__file__).parents[1] / "golden" / "files"
PHOTOS = [line.split()[0] for line in (GOLDEN / "list.txt").read_text().splitlines()]
IMREAD_LACKS = {"orientation_6.tif"}  # OpenCV >= 4.11 refuses this file, and reads its bytes as 4.6 read the file


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> dict[str, Path]:
    return odd_images.write_odd_images(tmp_path_factory.mktemp("odd"))


def imread(path: Path, flag: int = cv2.IMREAD_COLOR) -> np.ndarray | None:
    pixels = cv2.imread(str(path), flag)
    return pixels if pixels is None else np.atleast_3d(pixels)


def records(name: str) -> list[caffe_pb2.Datum]:
    with lmdb.open(str(GOLDEN / name), readonly=True, lock=False) as env, env.begin() as reading:
        return [caffe_pb2.Datum.FromString(bytes(value)) for _, value in reading.cursor()]


def pixels(datum: caffe_pb2.Datum) -> np.ndarray:
    planes = np.frombuffer(datum.data, np.uint8).reshape(datum.channels, datum.height, datum.width)
    return planes.transpose(1, 2, 0)


@pytest.mark.parametrize(
    ("name", "color", "height", "width"), [("raw_lmdb", True, 48, 64), ("gray_lmdb", False, 32, 32)]
)
def test_decoded_and_resized_photographs_are_caffes_bytes(name, color, height, width):
    for photo, datum in zip(PHOTOS, records(name), strict=True):
        decoded = image.decode((GOLDEN / "photos" / photo).read_bytes(), color=color)
        np.testing.assert_array_equal(image.resize(decoded, height, width), pixels(datum), err_msg=photo)


def test_reencoded_photographs_are_caffes_bytes_where_the_codec_is_the_same_and_within_one_level_elsewhere():
    for photo, datum in zip(PHOTOS, records("encoded_lmdb"), strict=True):
        resized = image.resize(image.decode((GOLDEN / "photos" / photo).read_bytes()), 48, 48)
        mine, caffes = (image.decode(data).astype(int) for data in (image.encode(resized, "jpg"), datum.data))
        assert np.abs(mine - caffes).max() <= 1, photo


def test_every_odd_file_that_caffe_reads_gives_the_pixels_of_imread(odd):
    for name in odd_images.CAFFE_READS.keys() - IMREAD_LACKS:
        expected = imread(odd[name])
        assert expected is not None, name
        np.testing.assert_array_equal(image.decode(odd[name].read_bytes()), expected, err_msg=name)


def test_every_odd_file_that_caffe_reads_gives_the_grey_pixels_of_imread(odd):
    for name in odd_images.CAFFE_READS.keys() - IMREAD_LACKS - {"plain.pfm"}:  # imread gives nothing for grey PFM
        expected = imread(odd[name], cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(image.decode(odd[name].read_bytes(), color=False), expected, err_msg=name)


@pytest.mark.parametrize("name", sorted(odd_images.NEWER))
def test_formats_newer_than_caffes_opencv_are_bad_unless_all_are_asked_for(odd, name):
    with pytest.raises(image.BadImage, match="--formats all"):
        image.decode(odd[name].read_bytes())
    np.testing.assert_array_equal(image.decode(odd[name].read_bytes(), all_formats=True), imread(odd[name]))


@pytest.mark.parametrize("name", sorted(odd_images.BAD))
def test_files_that_imread_cannot_read_are_bad_and_say_why_in_one_line(odd, name):
    assert imread(odd[name]) is None
    for all_formats in (False, True):
        with pytest.raises(image.BadImage) as caught:
            image.decode(odd[name].read_bytes(), all_formats=all_formats)
        assert 5 < len(str(caught.value)) < 150
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(odd_images.HUGE))
def test_a_header_that_announces_too_much_never_reaches_a_decoder(odd, name, monkeypatch):
    monkeypatch.setattr(image, "imdecode", lambda *_: pytest.fail("reached the decoder"))
    with pytest.raises(image.BadImage, match=r"announces [\d,]+ x [\d,]+ pixels, more than --max-pixels 100,000,000"):
        image.decode(odd[name].read_bytes(), all_formats=True)


def test_max_pixels_is_inclusive():
    data = odd_images.CAFFE_READS["plain.jpg"]
    area = odd_images.HEIGHT * odd_images.WIDTH
    assert image.decode(data, max_pixels=area).shape == (odd_images.HEIGHT, odd_images.WIDTH, 3)
    with pytest.raises(image.BadImage, match="70 x 45"):
        image.decode(data, max_pixels=area - 1)


def test_exif_orientations_turn_the_picture_as_the_standard_says():
    upright = image.decode(odd_images.CAFFE_READS["orientation_1.jpg"])
    turned = {
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, -1),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright),
    }
    for orientation, expected in turned.items():
        np.testing.assert_array_equal(image.decode(odd_images.CAFFE_READS[f"orientation_{orientation}.jpg"]), expected)


@pytest.mark.parametrize("name", ["plain.jpg", "progressive.jpg", "restarts.jpg", "cmyk.jpg", "thumbnail.jpg"])
def test_a_jpeg_cut_anywhere_is_read_as_imread_reads_the_file(tmp_path, name):
    whole, file = odd_images.CAFFE_READS[name], tmp_path / "cut.jpg"
    for end in range(2, len(whole), 7):
        file.write_bytes(whole[:end])
        expected = imread(file)
        if expected is None:
            with pytest.raises(image.BadImage):
                image.decode(whole[:end])
        else:
            np.testing.assert_array_equal(image.decode(whole[:end]), expected, err_msg=f"{end} bytes")


@pytest.mark.parametrize(
    "kind", ["plain.png", "animated.png", "plain.bmp", "lzw.tif", "plain.webp", "plain.jp2", "plain.ppm"]
)
def test_other_files_cut_anywhere_are_bad_where_imread_gives_nothing(tmp_path, kind):
    whole, file = odd_images.CAFFE_READS[kind], tmp_path / kind
    for end in [*range(1, len(whole), len(whole) // 40), len(whole) - 1]:
        file.write_bytes(whole[:end])
        assert imread(file) is None
        with pytest.raises(image.BadImage):
            image.decode(whole[:end])


@pytest.mark.parametrize("name", sorted(odd_images.CAFFE_READS))
def test_a_defect_is_found_in_truncated_jpegs_only(name):
    found = image.defect(odd_images.CAFFE_READS[name])
    assert found == ("truncated JPEG: no end-of-image marker" if name in odd_images.TRUNCATED else None)


def test_a_defect_is_found_wherever_the_cut_is():
    for name in ("plain.jpg", "progressive.jpg", "restarts.jpg", "thumbnail.jpg"):
        whole = odd_images.CAFFE_READS[name]
        thumbnail_end = whole.index(b"\xff\xd9") + 2 if name == "thumbnail.jpg" else 0
        for end in range(4, len(whole) - 1):
            assert image.defect(whole[:end]) or end == thumbnail_end, f"{name}, {end} bytes"


def test_a_bad_file_makes_no_noise_on_stderr_and_leaves_stderr_usable():
    program = (
        "import os, sys; from ops import image; from tests import odd_images\n"
        "jpeg = odd_images.CAFFE_READS['plain.jpg']; png = odd_images.CAFFE_READS['plain.png']\n"
        "image.decode(jpeg[:1500]); image.decode(jpeg[:1000] + bytes(50) + jpeg[1050:])\n"
        "try: image.decode(png[:1000] + bytes(50) + png[1050:])\n"
        "except image.BadImage: pass\n"
        "print('heard', file=sys.stderr, flush=True); os.write(2, b'too')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "heard\ntoo"


@pytest.mark.parametrize(
    "name", ["plain.jpg", "alpha.png", "grey.png", "grey_alpha.png", "palette.png", "orientation_6.jpg"]
)
def test_natural_decoding_keeps_the_files_channels(odd, name):
    expected = imread(odd[name], cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(image.decode_natural(odd[name].read_bytes()), expected)


def test_natural_decoding_refuses_sixteen_bits():
    with pytest.raises(image.BadImage, match="16 bits a channel"):
        image.decode_natural(odd_images.CAFFE_READS["sixteen_bit.png"])


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_reduced_decoding_is_imreads_reduced_flag(odd, factor):
    for name in ("plain.jpg", "orientation_6.jpg", "cmyk.jpg"):
        expected = imread(odd[name], getattr(cv2, f"IMREAD_REDUCED_COLOR_{factor}"))
        np.testing.assert_array_equal(image.decode(odd[name].read_bytes(), reduce=factor), expected)


@given(
    st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 400), st.integers(1, 400), st.sampled_from((None, 1, 6))
)
@settings(max_examples=200)
def test_the_reduced_picture_is_at_least_as_large_as_the_target_unless_the_whole_one_is_smaller(
    height, width, target_height, target_width, orientation
):
    small = bytearray(odd_images.CAFFE_READS["plain.jpg"])
    at = small.index(b"\xff\xc0")
    small[at + 5 : at + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    data = bytes(small) if orientation is None else odd_images.with_app1(bytes(small), odd_images.exif(orientation))
    factor = image.reduce_factor(data, target_height, target_width)
    assert factor in (1, 2, 4, 8)
    if orientation == 6:
        height, width = width, height
    if factor > 1:
        assert -(-height // factor) >= target_height
        assert -(-width // factor) >= target_width
    elif orientation is None:
        assert -(-height // 2) < target_height or -(-width // 2) < target_width


def test_only_jpegs_are_reduced():
    assert image.reduce_factor(odd_images.CAFFE_READS["plain.png"], 5, 5) == 1
    assert image.reduce_factor(odd_images.CAFFE_READS["plain.jpg"], 5, 5) == 8


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_resize_keeps_the_channel_axis(channels):
    picture = np.atleast_3d(odd_images.picture(channels=channels))
    expected = cv2.resize(picture, (31, 20), interpolation=cv2.INTER_LINEAR).reshape(20, 31, channels)
    np.testing.assert_array_equal(image.resize(picture, 20, 31), expected)


@pytest.mark.parametrize(
    ("shape", "short", "long"),
    [((300, 400), (256, 341), (192, 256)), ((401, 300), (342, 256), (256, 191)), ((9, 9), (256, 256), (256, 256))],
)
def test_the_other_side_follows_in_proportion_rounded_down(shape, short, long):
    picture = np.zeros((*shape, 3), np.uint8)
    assert image.resize_short(picture, 256).shape == (*short, 3)
    assert image.resize_long(picture, 256).shape == (*long, 3)


def test_a_side_never_becomes_nothing():
    assert image.resize_long(np.zeros((1, 5000, 3), np.uint8), 100).shape == (1, 100, 3)


@pytest.mark.parametrize("extension", image.ENCODERS)
def test_encoding_is_imencodes(extension):
    picture = odd_images.picture() if extension != "pgm" else odd_images.picture(channels=1)[:, :, np.newaxis]
    assert image.encode(picture, extension) == cv2.imencode(f".{extension}", picture)[1].tobytes()
    assert image.encode(picture, f".{extension.upper()}") == image.encode(picture, extension)


def test_a_mirrored_picture_can_be_encoded():
    picture = odd_images.picture()
    np.testing.assert_array_equal(image.decode(image.encode(image.mirror(picture), "png")), picture[:, ::-1])


def test_an_unknown_extension_is_named_with_its_neighbour():
    with pytest.raises(ValueError, match="unknown image type 'jpgg'; did you mean 'jpg'"):
        image.encode(odd_images.picture(), "jpgg")


def test_a_crop_is_a_window():
    picture = odd_images.picture()
    np.testing.assert_array_equal(image.crop(picture, (3, 5), (10, 20)), picture[3:13, 5:25])
    np.testing.assert_array_equal(image.crop(picture, (3, 5), 10), picture[3:13, 5:15])


@pytest.mark.parametrize(("corner", "size"), [((0, 0), 46), ((-1, 0), 10), ((40, 0), 10), ((0, 65), (5, 10))])
def test_a_crop_outside_the_image_is_refused(corner, size):
    with pytest.raises(ValueError, match="45 x 70"):
        image.crop(odd_images.picture(), corner, size)


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="a crop of 227 x 227 does not fit an image of 200 x 300"):
        image.crop_corner((200, 300), 227)


@pytest.mark.parametrize(
    ("size", "crop", "corner"), [((256, 256), 227, (14, 14)), ((7, 10), 4, (1, 3)), ((5, 5), 5, (0, 0))]
)
def test_the_centre_is_rounded_down(size, crop, corner):
    assert image.crop_corner(size, crop) == corner


def test_random_corners_reach_every_place_and_none_beyond():
    rng = np.random.default_rng(0)
    corners = {image.crop_corner((7, 6), 4, "random", rng=rng) for _ in range(500)}
    assert corners == {(top, left) for top in range(4) for left in range(3)}


def test_corners_are_those_of_oversample_in_its_order():
    corners = [image.crop_corner((9, 12), 4, "corners", place=place) for place in range(5)]
    assert corners == [(0, 0), (0, 8), (5, 0), (5, 8), (2, 4)]


def test_an_unknown_place_is_refused():
    with pytest.raises(ValueError, match="unknown place of a crop 'center'; did you mean 'centre'"):
        image.crop_corner((9, 9), 4, "center")  # type: ignore[arg-type]


def test_oversample_is_pycaffes():
    picture, size = odd_images.picture(), 20
    (height, width), half = picture.shape[:2], size / 2.0  # as pycaffe counts: floats, cut to int
    tops = (0, 0, height - size, height - size, int(height / 2.0 - half))
    lefts = (0, width - size, 0, width - size, int(width / 2.0 - half))
    crops = [picture[top : top + size, left : left + size] for top, left in zip(tops, lefts, strict=True)]
    expected = np.stack(crops + [crop[:, ::-1] for crop in crops])
    np.testing.assert_array_equal(image.oversample(picture, size), expected)


def fuzz(count: int, trace: Path) -> None:
    command = [sys.executable, "-m", "tests.ops.fuzz_images", str(count), str(trace)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, f"{trace.read_text()}: exit {done.returncode}\n{done.stderr[-2000:]}"
    assert done.stderr == ""


def test_two_thousand_damaged_files_neither_crash_nor_hang(tmp_path):
    fuzz(2_000, tmp_path / "last")


@pytest.mark.soak
def test_a_hundred_thousand_damaged_files_neither_crash_nor_hang(tmp_path):
    fuzz(100_000, tmp_path / "last")
