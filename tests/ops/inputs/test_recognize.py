"""What is no input is told in one line: where, what was found, what would be accepted."""

import json
import os

import numpy as np
import pytest

from ops.inputs import text
from ops.inputs.listing import open_listing, recognize
from tests.ops.inputs.pictures import GOLDEN, idx, lines, pixels, png


@pytest.mark.parametrize("content", [
    b"a.jpg 0\nb.jpg 1\n", b"a b.jpg 0\r\nc.jpg 1\r\n", b"dir,with,commas/a.jpg 0\ndir,with,commas/b.jpg 1\n",
    b"a.jpg 0.5 1 2\nb.jpg 1 2 3\n", b"a.jpg\nb.jpg\n", b"noextension 3\nother 4\n", b"\xef\xbb\xbfa.jpg 0\n",
    b"caf\xe9.jpg 1\n", b"a;b.jpg 1\n", b"x.jpg x\ny.png -2.9\n\nz.jpg \n", b"cat|dog.jpg 1",
    b"http://x/y,z.jpg 5\n" * 30000,
])  # fmt: skip
def test_image_lists_are_recognized(tmp_path, content):
    (tmp_path / "anything.csv").write_bytes(content)
    assert recognize(tmp_path / "anything.csv") == "list"


def test_golden_inputs_are_recognized():
    assert recognize(GOLDEN / "list.txt") == "list"
    assert recognize(GOLDEN / "photos") == "folder"
    assert len(open_listing(GOLDEN / "photos")) == 30


@pytest.mark.parametrize(("content", "message"), [
    (b"", "an empty file; expected an image list"),
    (b"\n \n\n", "an empty list; expected one 'path label' a line"),
    ("a.jpg 0\n".encode("utf-16"), r"UTF-16 text; save it as UTF-8 \(iconv"),
    (b"This is a story.\nIt has no images.\n" * 20, "text, but no image list or table: it starts 'This is a story.'"),
    (b"\x7fELF" + bytes(500), "504 bytes starting 7f 45 4c 46 .*; expected an image list, a folder, CSV"),
    (b"PK\x03\x04" + bytes(500), "504 bytes starting 50 4b 03 04"),
    (b"\x1f\x8b" + bytes(500), "damaged gzip|unpack it first"),
    (b"\0" * 400, "400 bytes starting 00 00"),
])  # fmt: skip
def test_what_is_no_input_is_told(tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_listing(tmp_path / "x")
    assert str(tmp_path / "x") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_image_is_told_to_be_one(tmp_path):
    (tmp_path / "x").write_bytes(png())
    with pytest.raises(ValueError, match=r"one image; .* give its folder"):
        open_listing(tmp_path / "x")


def test_what_is_not_there_is_told(tmp_path):
    for source in (tmp_path / "gone", f"{tmp_path}/*.tar", f"{tmp_path}/{{0..3}}.tar"):
        with pytest.raises(FileNotFoundError, match="No such file or folder"):
            open_listing(source)


def test_a_pipe_is_refused_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        open_listing(tmp_path / "pipe")


def test_a_folder_of_several_kinds_names_them(tmp_path):
    (tmp_path / "a-images").write_bytes(idx(pixels(1, 28, 28, 1)[..., 0]))
    (tmp_path / "b.csv").write_text("path,label\na.jpg,1\n")
    with pytest.raises(ValueError, match="1 of kind csv, 1 of kind idx: give one kind alone"):
        open_listing(tmp_path)


def test_a_conversion_that_is_not_finished_is_told(tmp_path):
    (tmp_path / ".run" / "plan").mkdir(parents=True)
    with pytest.raises(ValueError, match="not finished"):
        open_listing(tmp_path)


def test_odd_modes_and_rules_are_refused_first(tmp_path):
    with pytest.raises(ValueError, match="--labels words"):
        open_listing(tmp_path / "gone", labels="words")
    with pytest.raises(ValueError, match="--rebase x: expected OLD=NEW"):
        open_listing(tmp_path / "gone", rebase=["x"])


def test_cells_are_cut_as_csv_cuts_them():
    assert text.cells(b'a,"b, c",d', b",") == [b"a", b"b, c", b"d"]
    assert text.cells(b"a||", b"|") == [b"a", b"", b""]


# -- rebase ------------------------------------------------------------------------------------------------------------


def test_rebase_replaces_beginnings_and_the_first_rule_wins(tmp_path):
    (tmp_path / "list.txt").write_text("/old/a/1.jpg 0\n/old/b/2.jpg 1\n/else/3.jpg 2\n/oldest/4.jpg 3\n")
    listed = open_listing(tmp_path / "list.txt", rebase=["/old/a=/new", "/old=/x"])
    assert lines(listed) == [("/new/1.jpg", 0), ("/x/b/2.jpg", 1), ("/else/3.jpg", 2), ("/xest/4.jpg", 3)]
    assert listed.labels.tolist() == [0, 1, 2, 3]


def test_a_rule_that_fits_nothing_is_warned_about(tmp_path):
    (tmp_path / "list.txt").write_text("/old/1.jpg 0\n")
    listed = open_listing(tmp_path / "list.txt", rebase=["/odl=/new"])
    assert lines(listed) == [("/old/1.jpg", 0)]
    assert listed.warnings == ["--rebase /odl=/new: no path begins so; the first is /old/1.jpg"]


def test_absolute_beginnings_leave_no_root(tmp_path):
    (tmp_path / "t.csv").write_text("path,label\nx/1.jpg,1\ny/2.jpg,2\n")
    listed = open_listing(tmp_path / "t.csv", rebase=["x/=/data/"])
    assert (listed.root, lines(listed)) == ("", [("/data/1.jpg", 1), (f"{tmp_path}/y/2.jpg", 2)])
    listed = open_listing(tmp_path / "t.csv", rebase=["x/=z/"])
    assert (listed.root, lines(listed)[0]) == (f"{tmp_path}/", ("z/1.jpg", 1))


def test_rebase_keeps_bad_lines_and_warnings(tmp_path):
    (tmp_path / "list.txt").write_text("/old/1.jpg 0\n/old/2.jpg x\n")
    listed = open_listing(tmp_path / "list.txt", labels="int", rebase=["/old=new"])
    assert list(listed.bad) == [1]
    assert np.array_equal(listed.labels, [0, 0])


def data_set(folder):
    folder.mkdir(parents=True)
    manifest = {"cortado": 1, "format": "lmdb", "shards": [{"name": "data.mdb", "count": 1}]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_data_set_whose_shards_are_gone_or_damaged_is_told(tmp_path):
    folder = data_set(tmp_path / "set")
    (folder / "errors.csv").write_text("line,path,reason\n")
    with pytest.raises(ValueError, match=r"set: a data set with manifest.json, but data.mdb is missing; convert again"):
        recognize(folder)
    (folder / "data.mdb").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"but data.mdb is damaged"):
        recognize(folder)


def test_a_folder_of_data_sets_says_which_there_are(tmp_path):
    data_set(tmp_path / "train")
    data_set(tmp_path / "test")
    (tmp_path / "contact-sheet.png").write_bytes(png())
    with pytest.raises(ValueError, match=r"holds the data sets test, train; name one of them, as .*test$"):
        recognize(tmp_path)
    (tmp_path / "other.png").write_bytes(png())
    assert recognize(tmp_path) == "folder"
