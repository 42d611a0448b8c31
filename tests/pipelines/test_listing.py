"""`cortado list`: lists that hold every record once, with labels and classes, whatever the input is."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ops.records.image_list import ImageList
from pipelines.__main__ import main
from pipelines.listing import List
from tests.ops.inputs.pictures import GOLDEN, idx, pixels, write_tree

CLASSES = {"ant": 50, "bee": 25, "cat": 4, "dog": 1}


@pytest.fixture
def photos(tmp_path) -> Path:
    """80 pictures in four classes of very different sizes."""
    return write_tree(
        tmp_path / "photos", [f"{name}/{n:03d} x.jpg" for name, count in CLASSES.items() for n in range(count)]
    )


def read(file: Path) -> list[tuple[str, int]]:
    """(path, label) of each line, cut at the last space."""
    lines = file.read_text(errors="surrogateescape").splitlines()
    return [(path, int(label)) for path, _, label in (line.rpartition(" ") for line in lines)]


def run(source, out, **options) -> dict:
    return List(source=str(source), out=out, **options).run()


def test_a_folder_becomes_one_list_and_its_classes(photos, tmp_path):
    result = run(photos, tmp_path / "lists")
    lines = read(tmp_path / "lists" / "all.txt")
    expected = [(f"{c}/{n:03d} x.jpg", label) for label, (c, count) in enumerate(CLASSES.items()) for n in range(count)]
    assert lines == expected
    assert (tmp_path / "lists" / "classes.txt").read_text() == "ant\nbee\ncat\ndog\n"
    assert result["lists"] == {"all": 80}
    assert (result["classes"], result["root"], result["files"]) == (list(CLASSES), f"{photos}/", 80)
    assert result["per_class"]["cat"] == {"all": 4}
    assert all((photos / path).is_file() for path, _ in lines)
    assert not list((tmp_path / "lists").glob(".*"))


def test_a_split_shares_out_every_class_and_keeps_the_order(photos, tmp_path):
    result = run(photos, tmp_path / "lists", split="train=0.8,test=0.2", seed=3)
    train, test = (read(tmp_path / "lists" / f"{name}.txt") for name in ("train", "test"))
    assert result["lists"] == {"train": len(train), "test": len(test)} == {"train": 64, "test": 16}
    run(photos, tmp_path / "whole")
    assert sorted(train + test) == sorted(read(tmp_path / "whole" / "all.txt"))
    for lines in (train, test):
        assert lines == sorted(lines)
    assert Counter(label for _, label in test)[0] == 10
    assert Counter(label for _, label in test)[1] == 5
    assert Counter(label for _, label in test)[2] == 1
    assert result["per_class"]["ant"] == {"train": 40, "test": 10}


def test_the_seed_decides_and_the_same_seed_writes_the_same_bytes(photos, tmp_path):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(photos, tmp_path / out, split="train=0.5,val=0.3,test=0.2", seed=seed)
    same, again, other = ((tmp_path / out / "val.txt").read_bytes() for out in "abc")
    assert same == again != other


def test_classes_that_are_too_small_for_every_split_are_named(photos, tmp_path, capsys):
    result = run(photos, tmp_path / "lists", split="train=0.8,test=0.2")
    assert any("1 label with too few images to be in every split: dog" in warning for warning in result["warnings"])
    assert "warning: 1 label with too few" in capsys.readouterr().err


def test_a_split_that_would_be_empty_is_an_error(tmp_path):
    write_tree(tmp_path / "p", ["a/1.jpg", "b/1.jpg"])
    with pytest.raises(ValueError, match="2 images, too few: c gets none"):
        run(tmp_path / "p", tmp_path / "lists", split="a=0.4,b=0.4,c=0.2")
    assert not (tmp_path / "lists" / "a.txt").exists()


def test_other_lists_are_kept_and_the_same_ones_are_no_error(photos, tmp_path):
    out = tmp_path / "lists"
    run(photos, out, split="train=0.8,test=0.2")
    before = (out / "train.txt").read_bytes()
    run(photos, out, split="train=0.8,test=0.2")
    with pytest.raises(ValueError, match=r"t.*.txt: stands there with other lines; .*--overwrite"):
        run(photos, out, split="train=0.8,test=0.2", seed=1)
    assert (out / "train.txt").read_bytes() == before
    assert not list(out.glob(".*"))
    run(photos, out, split="train=0.8,test=0.2", seed=1, overwrite=True)
    assert (out / "train.txt").read_bytes() != before


def test_class_names_of_another_input_do_not_stay(photos, tmp_path):
    run(photos, tmp_path / "lists")
    flat = write_tree(tmp_path / "flat", ["1.jpg"])
    with pytest.raises(ValueError, match=r"all.txt: stands there|classes.txt: stands there"):
        run(flat, tmp_path / "lists")
    run(flat, tmp_path / "lists", overwrite=True)
    assert not (tmp_path / "lists" / "classes.txt").exists()


def test_whole_paths_need_no_root(photos, tmp_path):
    result = run(photos, tmp_path / "lists", absolute=True)
    assert result["root"] == ""
    assert all(Path(path).is_file() and path.startswith("/") for path, _ in read(tmp_path / "lists" / "all.txt"))


def test_the_limit_takes_the_first(photos, tmp_path):
    assert run(photos, tmp_path / "lists", limit=52)["per_class"] == {"ant": {"all": 50}, "bee": {"all": 2}}


def test_an_image_list_is_split_without_changing_its_lines(tmp_path):
    text = "".join(f"some dir/{number}.jpg {number % 3}\n" for number in range(30))
    (tmp_path / "list.txt").write_text(text)
    run(tmp_path / "list.txt", tmp_path / "lists", split="a=0.5,b=0.5")
    a, b = ((tmp_path / "lists" / f"{name}.txt").read_text().splitlines() for name in "ab")
    assert sorted(a + b) == sorted(text.splitlines())
    assert len(a) == len(b) == 15


@pytest.mark.parametrize(("name", "text"), [("list.txt", "a.jpg 0\n"), ("table.csv", "path,label\na.jpg,0\nb.jpg,1\n")])
def test_a_list_whose_files_are_elsewhere_says_so(tmp_path, monkeypatch, capsys, name, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    assert main(["list", name, "--out", "lists"]) == 0
    told = capsys.readouterr()
    assert "a.jpg is not there: the --root of convert says where the files are" in told.err
    assert "root   not known" in told.out
    assert "--root FOLDER/ --resize-height 256 --resize-width 256" in told.out


def test_whole_paths_that_are_not_there_can_be_mended(tmp_path):
    (tmp_path / "list.txt").write_text("/nowhere/a.jpg 0\n")
    result = run(tmp_path / "list.txt", tmp_path / "lists")
    assert result["warnings"] == ["/nowhere/a.jpg is not there: --rebase OLD=NEW mends whole paths"]
    assert "--root" not in result["next"]


def test_repeated_paths_are_kept_and_counted(tmp_path):
    (tmp_path / "t.csv").write_text("path,label\na.jpg,1\nb.jpg,2\na.jpg,1\na.jpg,3\n")
    result = run(tmp_path / "t.csv", tmp_path / "lists")
    assert result["lists"] == {"all": 4}
    assert any(
        warning.startswith("2 lines name a file that an earlier line has already") for warning in result["warnings"]
    )


def test_lines_without_a_usable_label_are_left_out_and_counted(tmp_path):
    (tmp_path / "t.csv").write_text("path,label\na.jpg,1\nb.jpg,x\nc.jpg,2\n")
    result = run(tmp_path / "t.csv", tmp_path / "lists", labels="int")
    assert (result["lists"], result["bad"], result["files"]) == ({"all": 2}, 1, 3)
    assert read(tmp_path / "lists" / "all.txt") == [("a.jpg", 1), ("c.jpg", 2)]
    assert any("line 2: label 'x' is not a number" in warning for warning in result["warnings"])


@pytest.mark.parametrize(("width", "mode"), [(1, "float"), (5, "vector:5")])
def test_float_and_vector_labels_print_so_that_they_read_back(tmp_path, width, mode):
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(200, width)) * 10.0 ** rng.integers(-30, 30, (200, width))).astype(np.float32)
    rows = [",".join([f"img {number}.jpg", *map(repr, row)]) for number, row in enumerate(values.tolist())]
    columns = ",".join(["path", *(f"v{place}" for place in range(width))])
    (tmp_path / "t.csv").write_text("\n".join([columns, *rows]) + "\n")
    result = run(tmp_path / "t.csv", tmp_path / "lists", labels=mode)
    back = ImageList.read(tmp_path / "lists" / "all.txt", mode)
    assert np.array_equal(back.labels, values)
    assert back.path(7) == b"img 7.jpg"
    assert f"--labels {mode} --backend hdf5" in result["next"]


def test_names_that_are_no_utf8_survive(tmp_path):
    (tmp_path / "p" / "c").mkdir(parents=True)
    with open(os.fsencode(tmp_path) + b"/p/c/caf\xe9 \xff.jpg", "wb"):
        pass
    run(tmp_path / "p", tmp_path / "lists")
    assert (tmp_path / "lists" / "all.txt").read_bytes() == b"c/caf\xe9 \xff.jpg 0\n"


def test_containers_are_listed_as_addresses(tmp_path):
    result = run(GOLDEN / "raw_lmdb", tmp_path / "lists", split="a=0.5,b=0.5")
    assert read(tmp_path / "lists" / "a.txt")[0][0].startswith("raw_lmdb#000000")
    assert (result["root"], result["kind"]) == (f"{GOLDEN}/", "lmdb")


def test_the_next_command_can_be_typed_in_the_same_folder(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").rename(tmp_path / "my photos")
    words = shlex.split(run("my photos", Path("lists"), split="train=0.8,test=0.2")["next"])
    assert words[:2] == ["cortado", "convert"]
    options = dict(zip(words[2::2], words[3::2], strict=True))
    sides = {"--resize-height": "256", "--resize-width": "256"}
    assert options == {"--list": "lists/train.txt", "--root": "my photos/", "--out": "train", **sides}
    first = read(Path(options["--list"]))[0][0]
    assert Path(options["--root"] + first).is_file()


def test_idx_files_list_like_anything_else(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(pixels(20, 28, 28, 1)[..., 0]))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(20, dtype=np.uint8) % 10))
    result = run(tmp_path / "train-images-idx3-ubyte", tmp_path / "lists", split="train=0.5,test=0.5")
    assert all(count == {"train": 1, "test": 1} for count in result["per_class"].values())
    assert "--resize" not in result["next"]


# -- as it is typed ----------------------------------------------------------------------------------------------------


def test_json_is_one_object_on_stdout(photos, tmp_path, capsys):
    assert main(["list", str(photos), "--out", str(tmp_path / "lists"), "--split", "a=0.5,b=0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lists"] == {"a": 40, "b": 40}


def test_people_see_the_lists_the_root_and_what_to_type_next(photos, tmp_path, capsys):
    assert main(["list", str(photos), "--out", str(tmp_path / "lists_1")]) == 0
    shown = capsys.readouterr().out
    assert "all.txt 80 lines" in shown
    assert f"{photos}/" in shown
    assert "cortado convert --list" in shown


@pytest.mark.parametrize(("arguments", "message"), [
    (["--split", "train=0.5"], "the shares sum to 0.5"), (["--labels", "words"], "--labels words"),
    (["--limit", "0"], "--limit 0: expected 1 or more"), (["--rebase", "x"], "--rebase x: expected OLD=NEW"),
    (["--seed", "-1"], "--seed -1"),
])  # fmt: skip
def test_options_that_make_no_sense_are_usage_errors(photos, tmp_path, capsys, arguments, message):
    assert main(["list", str(photos), "--out", str(tmp_path / "lists"), *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_an_input_that_is_not_there_is_one_line_and_exit_code_1(tmp_path, capsys):
    assert main(["list", str(tmp_path / "gone"), "--out", str(tmp_path / "lists")]) == 1
    assert capsys.readouterr().err == f"cortado: error: {tmp_path / 'gone'}: No such file or folder\n"


def test_rules_for_paths_stand_anywhere_on_the_command_line(tmp_path, monkeypatch):
    write_tree(tmp_path, ["here/a.jpg", "there/b.jpg"])
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("/x/a.jpg 0\n/y/b.jpg 1\n")
    rules = ["--rebase", f"/x={tmp_path}/here", "--rebase", f"/y={tmp_path}/there"]
    assert main(["list", *rules, "list.txt", "--out", "lists"]) == 0
    assert all(Path(path).is_file() for path, _ in read(tmp_path / "lists" / "all.txt"))
