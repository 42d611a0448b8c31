"""MNIST's IDX files."""

import gzip
import os

import numpy as np
import pytest

from ops.inputs.fetch import Fetcher
from ops.inputs.listing import open_listing, recognize
from tests.ops.inputs.pictures import idx, lines, pixels

IMAGES = pixels(7, 28, 28, 1)[..., 0]
LABELS = np.arange(7, dtype=np.uint8) + 2


@pytest.mark.parametrize("names", [
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte"),
    ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz"),
    ("emnist-images.gz", "emnist-labels"),
])  # fmt: skip
def test_images_with_the_labels_beside_them(tmp_path, names):
    for name, array in zip(names, (IMAGES, LABELS), strict=True):
        (tmp_path / name).write_bytes(gzip.compress(idx(array)) if name.endswith(".gz") else idx(array))
    file = tmp_path / names[0]
    assert recognize(file) == "idx"
    listed = open_listing(file)
    assert lines(listed) == [(f"{names[0]}#{place}", place + 2) for place in range(7)]
    for place in range(7):
        image = Fetcher().fetch(os.fsencode(listed.root) + listed.path(place))
        assert image.shape == (28, 28, 1)
        assert np.array_equal(image[..., 0], IMAGES[place])


def test_images_without_labels_have_label_0_and_say_so(tmp_path):
    (tmp_path / "pictures.bin").write_bytes(idx(IMAGES))
    listed = open_listing(tmp_path / "pictures.bin")
    assert set(listed.labels.tolist()) == {0}
    assert "no labels file beside it" in listed.warnings[0]
    with pytest.raises(ValueError, match="--labels int needs them"):
        open_listing(tmp_path / "pictures.bin", labels="int")


def test_the_folder_of_mnist_lists_both_parts_and_says_so(tmp_path):
    for part, count in (("train", 7), ("t10k", 3)):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(IMAGES[:count]))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(LABELS[:count]))
    listed = open_listing(tmp_path)
    assert recognize(tmp_path) == "idx"
    assert len(listed) == 10
    assert "listed together" in listed.warnings[-1]


def test_labels_given_as_images_are_pointed_out(tmp_path):
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS))
    with pytest.raises(ValueError, match="give the images file"):
        open_listing(tmp_path / "train-labels-idx1-ubyte")


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_was_cut_short_is_an_error(tmp_path, packed):
    whole = gzip.compress(idx(IMAGES)) if packed else idx(IMAGES)
    (tmp_path / "images").write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"cut short|damaged gzip"):
        open_listing(tmp_path / "images")


def test_a_head_that_announces_terabytes_is_an_error_at_once(tmp_path):
    (tmp_path / "images").write_bytes(b"\0\0\x08\x03" + b"\x7f\xff\xff\xff" * 3 + bytes(100))
    with pytest.raises(ValueError, match="cut short"):
        open_listing(tmp_path / "images")


def test_as_many_labels_as_images(tmp_path):
    (tmp_path / "a-images").write_bytes(idx(IMAGES))
    (tmp_path / "a-labels").write_bytes(idx(LABELS[:4]))
    with pytest.raises(ValueError, match="4 labels for the 7 images"):
        open_listing(tmp_path / "a-images")


def test_floats_are_refused(tmp_path):
    (tmp_path / "images").write_bytes(b"\0\0\x0d\x03" + bytes(40))
    with pytest.raises(ValueError, match="type 0x0d; expected unsigned bytes"):
        open_listing(tmp_path / "images")


def test_an_image_that_is_not_there_is_named(tmp_path):
    (tmp_path / "images").write_bytes(idx(IMAGES))
    for member in (b"7", b"x", b"-1", b""):
        with pytest.raises(ValueError, match=r"no image .* 0 to 6"):
            Fetcher().fetch(os.fsencode(tmp_path) + b"/images#" + member)
