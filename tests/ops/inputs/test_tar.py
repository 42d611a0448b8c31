"""Tar shards as WebDataset has them, written by tarfile in all its formats."""

import io
import json
import os
import tarfile

import numpy as np
import pytest

from ops.inputs import tar
from ops.inputs.fetch import Fetcher
from ops.inputs.listing import open_listing, recognize
from tests.ops.inputs.pictures import lines, png

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def write(path, members, form=tarfile.PAX_FORMAT, mode="w"):
    with tarfile.open(path, mode, format=form) as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def shard(count=5, first=0):
    return [
        (f"train/{place:04d}{extension}", data)
        for place in range(first, first + count)
        for extension, data in ((".jpg", png(place)), (".cls", b"%d" % (place % 3)))
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_images_with_cls_labels(tmp_path, form):
    file = write(tmp_path / "a.tar", shard(), FORMATS[form])
    assert recognize(file) == "tar"
    listed = open_listing(file)
    assert lines(listed) == [(f"a.tar#train/{place:04d}.jpg", place % 3) for place in range(5)]
    for place in range(5):
        assert Fetcher().fetch(os.fsencode(listed.root) + listed.path(place)) == png(place)


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_long_and_odd_names(tmp_path, form):
    names = ["d" * 90 + "/" + "n" * 120 + ".jpg", "x" * 250 + ".png", "caf\u00e9 \u4e2d.jpg", "a b#c.jpg", "./dot.jpg"]
    file = write(tmp_path / "a.tar", [(name, png(place)) for place, name in enumerate(names)], FORMATS[form])
    listed = open_listing(file)
    assert [path for path, _ in lines(listed)] == [f"a.tar#{name}" for name in names]
    for place in range(len(names)):
        assert Fetcher().fetch(os.fsencode(listed.root) + listed.path(place)) == png(place)


def test_a_ustar_prefix(tmp_path):
    name = "p" * 120 + "/" + "n" * 80 + ".jpg"
    assert [member[0].decode() for member in tar.members(write(tmp_path / "a", [(name, b"x")], FORMATS["ustar"]))] == [
        name
    ]


@pytest.mark.parametrize(("said", "labels", "classes"), [
    ([2, 0, 1], [2, 0, 1], []), ([{"label": 2}, {"label": 0}, {"label": 1}], [2, 0, 1], []),
    ([{"cls": "dog"}, {"cls": "ant"}, {"cls": "cat"}], [2, 0, 1], ["ant", "cat", "dog"]),
    ([{"label": 0.5}, {"label": 0}, {"label": 1}], [[0.5], [0.0], [1.0]], []),
    ([{"label": [1, 2]}, {"label": [3, 4]}, {"label": [5, 6]}], [[1, 2], [3, 4], [5, 6]], []),
])  # fmt: skip
def test_json_labels(tmp_path, said, labels, classes):
    members = []
    for place, value in enumerate(said):
        members += [(f"{place}.png", png()), (f"{place}.json", json.dumps(value).encode())]
    listed = open_listing(write(tmp_path / "a.tar", members))
    assert (listed.labels.tolist(), listed.classes) == (labels, classes)


def test_several_tars_by_pattern_or_folder(tmp_path):
    for part in range(3):
        write(tmp_path / f"shard-{part:02d}.tar", shard(2, 2 * part))
    expected = [(f"shard-{place // 2:02d}.tar#train/{place:04d}.jpg", place % 3) for place in range(6)]
    for source in (tmp_path, f"{tmp_path}/shard-{{00..02}}.tar", f"{tmp_path}/shard-*.tar"):
        assert lines(open_listing(source)) == expected
    assert lines(open_listing(f"{tmp_path}/shard-{{00,02}}.tar")) == expected[:2] + expected[4:]
    with pytest.raises(FileNotFoundError) as caught:
        open_listing(f"{tmp_path}/shard-{{00..05}}.tar")
    assert caught.value.filename.endswith("shard-03.tar")


def test_tars_without_labels_say_so_and_samples_without_images_are_counted(tmp_path):
    members = [
        ("a.jpg", png()),
        ("a.txt", b"a caption"),
        ("b.txt", b"no image"),
        ("c.seg.png", png(1)),
        ("c.jpg", png(2)),
    ]
    listed = open_listing(write(tmp_path / "a.tar", members))
    assert lines(listed) == [("a.tar#a.jpg", 0), ("a.tar#c.jpg", 0)]
    told = " ".join(listed.warnings)
    assert "1 samples without an image" in told
    assert "1 further images" in told
    assert "every label is 0" in told


def test_one_missing_label_is_a_bad_line(tmp_path):
    listed = open_listing(write(tmp_path / "a.tar", [*shard(2), ("x.jpg", png())]))
    assert listed.bad == {2: "no label"}


def test_links_and_folders_in_a_tar_are_no_images(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as out:
        for name, kind in (("d.jpg", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "x.jpg"
            out.addfile(info)
    with pytest.raises(ValueError, match="no images in it"):
        open_listing(tmp_path / "a.tar")


@pytest.mark.parametrize("cut", [700, 512, 1200])
def test_a_tar_that_was_cut_short_is_an_error(tmp_path, cut):
    whole = write(tmp_path / "a.tar", [("a.jpg", b"x" * 600), ("b.jpg", b"y" * 600)]).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:cut])
    with pytest.raises(ValueError, match=r"a.tar: cut short|a.tar: damaged tar"):
        open_listing(tmp_path / "a.tar")


def test_a_tar_that_was_cut_between_members_is_warned_about(tmp_path):
    whole = write(tmp_path / "a.tar", [("a.jpg", b"x" * 512), ("b.jpg", b"y" * 512)]).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:1024])
    listed = open_listing(tmp_path / "a.tar")
    assert len(listed) == 1
    assert any("no mark at its end" in warning for warning in listed.warnings)


def test_a_compressed_tar_says_what_to_do(tmp_path):
    write(tmp_path / "a.tar.gz", shard(), mode="w:gz")
    with pytest.raises(ValueError, match="unpack it first"):
        open_listing(tmp_path / "a.tar.gz")


def test_the_index_is_tarfiles(tmp_path):
    rng = np.random.default_rng(0)
    members = [
        (f"{'d/' * int(rng.integers(4))}{place}.jpg", rng.bytes(int(rng.integers(3000)))) for place in range(200)
    ]
    file = write(tmp_path / "a.tar", members)
    with tarfile.open(file) as opened:
        expected = [(info.name.encode(), info.offset_data, info.size) for info in opened]
    assert list(tar.members(file)) == expected
