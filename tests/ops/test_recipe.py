"""A line becomes its records: each stage alone, against numpy and cv2 done by hand."""

import errno

import cv2
import numpy as np
import pytest

from ops import recipe as recipes
from ops.recipe import Line, Recipe
from ops.records import datum

PHOTO = b"dress_0.jpg"


@pytest.fixture
def photos(golden):
    return str(golden / "files" / "photos") + "/"


def read(photos, name=PHOTO, flag=cv2.IMREAD_COLOR):
    return cv2.imread(photos + name.decode(), flag)


def pixels(record):
    """(H, W, C) of a raw or float Datum."""
    return datum.parse(record.value).pixels().transpose(1, 2, 0)


def made(recipe, line=None):
    records, warning = recipe.records(line or Line(7, PHOTO, 3))
    assert warning is None
    return records


def test_without_options_a_record_is_the_picture(photos):
    [record] = made(Recipe(root=photos))
    assert record.key == b"00000007_dress_0.jpg"
    assert datum.parse(record.value).label == 3
    assert np.array_equal(pixels(record), read(photos))
    assert record.shape == (3, *read(photos).shape[:2])


def test_gray_is_imreads_gray(photos):
    [record] = made(Recipe(root=photos, gray=True))
    assert np.array_equal(pixels(record)[:, :, 0], read(photos, flag=cv2.IMREAD_GRAYSCALE))


def test_exact_resize_is_opencvs_bilinear(photos):
    [record] = made(Recipe(root=photos, resize=("exact", 40, 60)))
    assert np.array_equal(pixels(record), cv2.resize(read(photos), (60, 40)))


@pytest.mark.parametrize(("mode", "pick"), [("short-side", min), ("long-side", max)])
def test_side_resize_keeps_the_aspect(photos, mode, pick):
    [record] = made(Recipe(root=photos, resize=(mode, 64, 64)))
    height, width = read(photos).shape[:2]
    assert pick(record.shape[1:]) == 64
    assert record.shape[1] / record.shape[2] == pytest.approx(height / width, rel=0.02)


def test_a_centre_crop_starts_at_half_the_rest_rounded_down(photos):
    [record] = made(Recipe(root=photos, resize=("exact", 41, 60), crop=32))
    whole = cv2.resize(read(photos), (60, 41))
    assert np.array_equal(pixels(record), whole[4:36, 14:46])


def test_corners_and_both_mirrors_are_caffes_ten_crops(photos):
    options = {"resize": ("exact", 40, 50), "crop": 32, "crop_at": "corners", "crops": 5, "mirror": "both"}
    records = made(Recipe(root=photos, **options))
    whole = cv2.resize(read(photos), (50, 40))
    corners = [(0, 0), (0, 18), (8, 0), (8, 18), (4, 9)]
    five = [whole[top : top + 32, left : left + 32] for top, left in corners]
    expected = five + [crop[:, ::-1] for crop in five]
    assert len(records) == 10
    assert all(np.array_equal(pixels(record), want) for record, want in zip(records, expected, strict=True))
    assert [record.key for record in records[:2]] == [b"00000007_dress_0.jpg", b"00000007_dress_0.jpg#001"]
    assert records[9].key.endswith(b"#009")


def test_a_mean_image_counts_from_the_corner_and_is_not_mirrored_with_the_picture(photos):
    mean = np.random.default_rng(0).uniform(0, 255, (3, 40, 50)).astype(np.float32)
    options = {"resize": ("exact", 40, 50), "crop": 32, "mirror": "both", "mean": mean, "scale": 0.5}
    plain, mirrored = made(Recipe(root=photos, **options))
    window = cv2.resize(read(photos), (50, 40))[4:36, 9:41].transpose(2, 0, 1).astype(np.float32)
    expected = (window - mean[:, 4:36, 9:41]) * np.float32(0.5)
    assert np.array_equal(datum.parse(plain.value).pixels(), expected)
    assert np.array_equal(datum.parse(mirrored.value).pixels(), expected[:, :, ::-1])


def test_channel_means_are_blue_green_red(photos):
    [record] = made(Recipe(root=photos, mean=np.array([104, 117, 123], np.float32)))
    assert np.array_equal(pixels(record), read(photos).astype(np.float32) - np.float32([104, 117, 123]))


@pytest.mark.parametrize(
    ("mean", "told"),
    [(np.zeros((3, 2, 2), np.float32), "a mean image of 3x2x2"), (np.zeros(2, np.float32), "2 mean values")],
)
def test_a_mean_of_another_size_is_refused(photos, mean, told):
    with pytest.raises(ValueError, match=told):
        Recipe(root=photos, mean=mean).records(Line(0, PHOTO, 0))


def test_hdf5_records_are_floats_with_their_label(photos):
    [record] = made(Recipe(root=photos, backend="hdf5"), Line(0, PHOTO, np.float32([1, 2])))
    assert record.value.dtype == np.float32
    assert np.array_equal(record.value, read(photos).transpose(2, 0, 1))


def test_random_choices_depend_on_seed_and_place_alone(photos):
    options = {"resize": ("exact", 64, 64), "crop": 32, "crop_at": "random", "crops": 3, "mirror": "random"}
    recipe = Recipe(root=photos, seed=5, **options)

    def values(recipe, position):
        return [record.value.tobytes() for record in made(recipe, Line(position, PHOTO, 0))]

    assert values(recipe, 3) == values(Recipe(root=photos, seed=5, **options), 3)
    assert len(set(values(recipe, 3))) > 1
    assert values(recipe, 3) != values(recipe, 4)
    assert values(recipe, 3) != values(Recipe(root=photos, seed=6, **options), 3)


def test_the_first_of_several_versions_is_the_picture_itself(photos):
    recipe = Recipe(root=photos, augment="rotate=10,noise=5")
    first, *others = made(recipe, Line(0, PHOTO, 0, copies=4))
    assert np.array_equal(pixels(first), read(photos))
    assert len({record.value.tobytes() for record in (first, *others)}) == 4
    [alone] = made(recipe)
    assert not np.array_equal(pixels(alone), read(photos))


def test_untouched_files_pass_through_and_changed_ones_are_encoded_anew(photos):
    data = open(photos + PHOTO.decode(), "rb").read()  # noqa: SIM115
    for options in ({"encode_type": ""}, {"encode_type": "jpeg"}, {"encode_type": "", "gray": True}):
        [through] = made(Recipe(root=photos, **options))  # gray too: Caffe looks at the channels imread was asked for
        assert bytes(datum.parse(through.value).data) == data
    [anew] = made(Recipe(root=photos, encode_type="png"))
    assert np.array_equal(cv2.imdecode(np.frombuffer(datum.parse(anew.value).data, np.uint8), 1), read(photos))
    [png] = made(Recipe(root=photos, encode_type="png", resize=("exact", 9, 9)))
    held = np.frombuffer(datum.parse(png.value).data, np.uint8)
    assert np.array_equal(cv2.imdecode(held, cv2.IMREAD_UNCHANGED), cv2.resize(read(photos), (9, 9)))


@pytest.mark.parametrize(
    ("path", "kind", "same"),
    [(b"a.jpg", "jpeg", True), (b"a.JPG", "jpg", True), (b"a.png", "jpg", False), (b"a.jpeg", "jpg", True)],
)
def test_jpg_and_jpeg_are_one_type(path, kind, same):
    assert recipes.same_type(path, kind) is same


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (Line(0, b"", 0), "no path in this line"),
        (Line(0, b"missing.jpg", 0), "No such file"),
        (Line(0, b"", 0), "no path"),
        (Line(0, b".", 0), "directory"),
        (Line(0, b"x" * 503, 0), "shorten it"),
        (Line(0, PHOTO, 0, bad="expected a number"), "expected a number"),
    ],
)
def test_why_a_line_is_bad(photos, line, told):
    with pytest.raises((OSError, ValueError)) as caught:
        Recipe(root=photos).records(line)
    assert told in recipes.reason(caught.value)


def test_a_truncated_jpeg_is_kept_with_a_warning_or_refused(tmp_path, photos):
    data = open(photos + PHOTO.decode(), "rb").read()  # noqa: SIM115
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    line = Line(0, b"cut.jpg", 0)
    [record], warning = Recipe(root=f"{tmp_path}/").records(line)
    assert "truncated" in warning
    assert np.array_equal(pixels(record), cv2.imread(str(tmp_path / "cut.jpg")))
    with pytest.raises(ValueError, match="truncated"):
        Recipe(root=f"{tmp_path}/", strict=True).records(line)


def test_fast_decode_has_the_size_and_nearly_the_pixels(photos, tmp_path):
    large = cv2.resize(read(photos), (1600, 1200), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "large.jpg"), large)
    line = Line(0, b"large.jpg", 0)
    options = {"root": f"{tmp_path}/", "resize": ("exact", 128, 128)}
    [exact], _ = Recipe(**options).records(line)
    [fast], _ = Recipe(**options, fast_decode=True).records(line)
    assert exact.shape == fast.shape
    assert np.abs(pixels(exact).astype(int) - pixels(fast)).mean() < 4


class Flaky:
    """Storage that fails a few times for a reason that passes."""

    def __init__(self, times, code):
        self.left, self.code = times, code

    def fetch(self, path):
        self.left -= 1
        if self.left >= 0:
            raise OSError(self.code, "fault")
        return b"data"


def test_passing_faults_of_the_storage_are_tried_again(monkeypatch):
    monkeypatch.setattr(recipes, "PAUSES", (0, 0, 0))
    assert recipes.fetch(Flaky(3, errno.EIO), b"x") == b"data"
    with pytest.raises(OSError, match="fault"):
        recipes.fetch(Flaky(4, errno.ESTALE), b"x")
    with pytest.raises(OSError, match="fault"):
        recipes.fetch(Flaky(1, errno.ENOENT), b"x")


def test_the_names_of_the_stages_follow_the_options():
    assert Recipe().stages() == ["read", "decode", "encode"]
    everything = Recipe(resize=("exact", 9, 9), augment="rotate=1", crop=8, mirror="both", scale=2.0)
    assert everything.stages() == ["read", "decode", "resize", "augment", "crop", "mirror", "mean", "encode"]
