"""Folders of pictures: which files are listed, in which order, with which labels."""

import os
from pathlib import Path

import numpy as np
import pytest

from ops.inputs import dirents, folder
from ops.inputs.listing import open_listing, recognize
from tests.ops.inputs.pictures import lines, png, write_tree


@pytest.fixture(params=["arrays", "scandir"])
def reader(request, monkeypatch):
    """Both ways of reading folders."""
    if request.param == "scandir":
        monkeypatch.setattr(dirents, "read", dirents.read_slowly)
    return request.param


def walked(root: Path) -> list[bytes]:
    """What os.walk finds, in the order of the folders' and the files' names."""
    found = []
    for here, folders, files in os.walk(os.fsencode(root)):
        folders[:] = [name for name in folders if not name.startswith(b".")]
        below = os.path.relpath(here, os.fsencode(root))
        parts = [] if below == b"." else below.split(b"/")
        found += [(parts, name) for name in files if name.lower().endswith((b".jpg", b".jpeg", b".png", b".sr"))]
    return [b"/".join([*parts, name]) for parts, name in sorted(found) if not name.startswith(b".")]


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path, reader):
    write_tree(tmp_path, ["dog/2.jpg", "dog/1.jpg", "cat/b.png", "Zebra/z.JPEG", "cat/a.jpg"])
    listed = open_listing(tmp_path)
    assert recognize(tmp_path) == "classes"
    assert listed.classes == ["Zebra", "cat", "dog"]
    assert lines(listed) == [
        ("Zebra/z.JPEG", 0),
        ("cat/a.jpg", 1),
        ("cat/b.png", 1),
        ("dog/1.jpg", 2),
        ("dog/2.jpg", 2),
    ]
    assert listed.root == f"{tmp_path}/"
    assert listed.labels.dtype == np.int32
    assert not listed.warnings


def test_folders_below_a_class_belong_to_it(tmp_path, reader):
    write_tree(tmp_path, ["a/x/1.jpg", "a/x/y/2.jpg", "a/0.jpg", "a-b/3.jpg", "b/4.jpg", "a/z/5.jpg"])
    listed = open_listing(tmp_path)
    assert listed.classes == ["a", "a-b", "b"]
    assert lines(listed) == [
        ("a/0.jpg", 0), ("a/x/1.jpg", 0), ("a/x/y/2.jpg", 0), ("a/z/5.jpg", 0), ("a-b/3.jpg", 1), ("b/4.jpg", 2),
    ]  # fmt: skip


def test_a_flat_folder_has_label_0_and_says_so(tmp_path, reader):
    write_tree(tmp_path, ["b.jpg", "a.jpg"])
    listed = open_listing(tmp_path)
    assert recognize(tmp_path) == "folder"
    assert lines(listed) == [("a.jpg", 0), ("b.jpg", 0)]
    assert not listed.classes
    assert "every label is 0" in listed.warnings[0]


def test_images_beside_folders_of_images_make_no_classes(tmp_path, reader):
    write_tree(tmp_path, ["sheet.png", "cat/1.jpg", "dog/1.jpg"])
    listed = open_listing(tmp_path)
    assert lines(listed) == [("sheet.png", 0), ("cat/1.jpg", 0), ("dog/1.jpg", 0)]
    assert not listed.classes
    assert "1 images beside 2 folders" in listed.warnings[0]


def test_hidden_files_are_ignored_and_other_files_counted(tmp_path, reader):
    write_tree(tmp_path, ["c/1.jpg", "c/.hidden.jpg", ".git/2.jpg", "c/notes.txt", "readme.md", "c/jpg", "c/x.jpgx"])
    listed = open_listing(tmp_path)
    assert lines(listed) == [("c/1.jpg", 0)]
    assert listed.warnings == [f"{tmp_path}/: 4 files that are no images, by their extension, were left out"]


def test_a_folder_without_images_is_no_class(tmp_path, reader):
    write_tree(tmp_path, ["a/1.jpg", "empty/", "notes/a.txt", "b/1.jpg"])
    assert open_listing(tmp_path).classes == ["a", "b"]


def test_parts_of_a_data_set_that_became_classes_are_pointed_out(tmp_path):
    write_tree(tmp_path, ["train/cat/1.jpg", "test/cat/2.jpg"])
    assert "became classes" in open_listing(tmp_path).warnings[0]


def test_a_random_tree_is_listed_as_os_walk_finds_it(tmp_path, reader):
    rng = np.random.default_rng(1)
    places = ["", "a", "a/b", "a/b/c", "d" * 40, "d" * 40 + "/e", "f/g", "f.g", "hundred"]
    extensions = [".jpg", ".JPG", ".png", ".txt", "", ".jpeg", ".sr"]
    for number in range(1500):
        place = tmp_path / places[rng.integers(len(places) - 1) if number % 3 else -1]
        place.mkdir(parents=True, exist_ok=True)
        name = f"{rng.integers(10**6) ** rng.integers(1, 9):x}{extensions[rng.integers(len(extensions))]}"
        (place / name).touch()
    for workers in (1, 3):
        listed = open_listing(tmp_path, workers=workers)
        assert listed.paths(slice(None)) == walked(tmp_path)


def test_the_list_of_a_tree_is_the_same_bytes_each_time(tmp_path):
    write_tree(tmp_path, [f"{c}/{n}.jpg" for c in range(40) for n in range(20)])
    assert open_listing(tmp_path).digest() == open_listing(tmp_path, workers=5).digest()


def test_names_that_are_no_utf8_survive(tmp_path, reader):
    (tmp_path / "c").mkdir()
    name = os.fsencode(tmp_path) + b"/c/caf\xe9 \xff.jpg"
    with open(name, "wb") as file:
        file.write(png())
    listed = open_listing(tmp_path)
    assert listed.path(0) == b"c/caf\xe9 \xff.jpg"
    assert os.path.exists(os.fsencode(listed.root) + listed.path(0))


def test_names_with_a_newline_are_counted_not_listed(tmp_path, reader):
    write_tree(tmp_path, ["c/1.jpg", "c/a\nb.jpg", "d\ne/2.jpg", "d\ne/3.jpg", "f/4.jpg"])
    listed = open_listing(tmp_path)
    assert lines(listed) == [("c/1.jpg", 0), ("f/4.jpg", 1)]
    assert listed.warnings == [f"{tmp_path}/: 3 names with a newline were left out: a list holds one path a line"]


def test_links_are_followed_once(tmp_path, reader):
    write_tree(tmp_path, ["tree/a/1.jpg", "tree/b/2.jpg", "elsewhere/3.jpg", "one.jpg"])
    tree = tmp_path / "tree"
    (tree / "c").symlink_to(tmp_path / "elsewhere")
    (tree / "a" / "up").symlink_to(tree)
    (tree / "a" / "self").symlink_to(tree / "a")
    (tree / "b" / "other").symlink_to(tree / "a")
    (tree / "b" / "file.jpg").symlink_to(tmp_path / "one.jpg")
    (tree / "b" / "broken.jpg").symlink_to(tmp_path / "gone")
    listed = open_listing(tree)
    assert lines(listed) == [
        ("a/1.jpg", 0), ("b/2.jpg", 1), ("b/file.jpg", 1), ("b/other/1.jpg", 1), ("c/3.jpg", 2),
    ]  # fmt: skip
    assert any("1 links that lead nowhere" in warning for warning in listed.warnings)
    assert any("not followed" in warning for warning in listed.warnings)


def test_links_in_a_circle_come_to_an_end(tmp_path, reader):
    write_tree(tmp_path, ["a/1.jpg", "b/2.jpg"])
    (tmp_path / "a" / "x").symlink_to("../b")
    (tmp_path / "b" / "y").symlink_to("../a")
    assert lines(open_listing(tmp_path)) == [("a/1.jpg", 0), ("a/x/2.jpg", 0), ("b/2.jpg", 1), ("b/y/1.jpg", 1)]


def test_images_without_an_extension_are_known_by_their_bytes(tmp_path, reader):
    write_tree(tmp_path, ["c/notes", "d/x"])
    (tmp_path / "c" / "1f3a").write_bytes(png())
    (tmp_path / "d" / "77aa").write_bytes(png())
    assert recognize(tmp_path) == "classes"
    assert lines(open_listing(tmp_path)) == [("c/1f3a", 0), ("d/77aa", 1)]


@pytest.mark.parametrize("names", [[], ["deep/down/"], ["notes.txt", "more/readme.md"]])
def test_a_folder_without_images_is_an_error_that_says_what_is_there(tmp_path, names):
    write_tree(tmp_path, names)
    with pytest.raises(ValueError, match=r"empty folder|without images") as caught:
        open_listing(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_an_error(tmp_path):
    write_tree(tmp_path, ["a/1.jpg", "b/2.jpg"])
    (tmp_path / "b").chmod(0)
    try:
        with pytest.raises(PermissionError):
            open_listing(tmp_path)
    finally:
        (tmp_path / "b").chmod(0o755)


def test_float_labels_of_a_folder_are_an_error(tmp_path):
    write_tree(tmp_path, ["a/1.jpg"])
    with pytest.raises(ValueError, match="--labels float"):
        open_listing(tmp_path, labels="float")


def test_every_extension_has_a_size_that_is_looked_for():
    sizes = {len(name) + 1 for name in folder.EXTENSIONS}
    assert sizes == set(folder._BY_SIZE)
