"""`cortado show` on everything that holds pictures: the table, and what stands on the sheet."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import cv2
import h5py
import lmdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ops.contact_sheet import GAP, MARGIN, TITLE
from ops.proto import caffe_pb2
from ops.records.image_list import ImageList
from pipelines.__main__ import main
from pipelines.show import Show, labels_text, sheet_text
from pipelines.stages.survey import choose, of_listing, order_of, whole
from tests.odd_images import picture

GOLDEN = Path(__file__).parents[1] / "golden" / "files"
PHOTOS = [line.split()[0] for line in (GOLDEN / "list.txt").read_text().splitlines()]
TOP = MARGIN + TITLE + 20  # where the first cells of a sheet start


def show(source: Path, tmp_path: Path, **options) -> dict:
    return Show(data=str(source), sheet=tmp_path / "sheet.png", **options).run()


def write_lmdb(folder: Path, data: list[caffe_pb2.Datum]) -> Path:
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 24) as env, env.begin(write=True) as writing:
        for number, datum in enumerate(data):
            writing.put(b"%08d" % number, datum.SerializeToString())
    return folder


def photo_folders(folder: Path) -> Path:
    """The photographs in a folder for each class."""
    for name in PHOTOS:
        (folder / name.rpartition("_")[0]).mkdir(parents=True, exist_ok=True)
        shutil.copy(GOLDEN / "photos" / name, folder / name.rpartition("_")[0] / name)
    return folder


def labels(result: dict) -> dict[str, int]:
    return {row["class"]: row["records"] for row in result["labels"]}


def test_caffes_own_lmdb_has_its_table_and_its_pixels_on_the_sheet(tmp_path):
    result = show(GOLDEN / "raw_lmdb", tmp_path)
    assert (result["kind"], result["records"], result["shards"]) == ("LMDB", 30, 1)
    assert result["bytes"] == (GOLDEN / "raw_lmdb" / "data.mdb").stat().st_size
    assert result["sizes"] == {"of": 30, "spans": [[48, 64, 3], [48, 64, 3]]}
    assert labels(result) == {f"label {label}": 3 for label in range(10)}
    assert result["order"].startswith("sorted by class")
    sheet = cv2.imread(result["sheet"])
    first = cv2.resize(cv2.imread(str(GOLDEN / "photos" / PHOTOS[0])), (64, 48)).repeat(3, axis=0).repeat(3, axis=1)
    np.testing.assert_array_equal(sheet[TOP + 24 : TOP + 168, MARGIN : MARGIN + 192], first)


def test_the_size_of_an_encoded_record_is_in_its_header(tmp_path):
    result = show(GOLDEN / "passthrough_lmdb", tmp_path)
    shapes = np.array([Image.open(GOLDEN / "photos" / name).size[::-1] for name in PHOTOS])
    assert result["sizes"]["spans"] == [[*shapes.min(axis=0), 0], [*shapes.max(axis=0), 0]]


@pytest.mark.parametrize("encoded", [False, True])
def test_labels_are_counted_without_decoding_and_a_bad_picture_is_an_empty_cell(tmp_path, encoded):
    data = [
        caffe_pb2.Datum(data=b"not a picture", label=n, encoded=encoded, channels=3, height=5, width=5)
        for n in (7, 7, -2)
    ]
    result = show(write_lmdb(tmp_path / "db", data), tmp_path)
    assert labels(result) == {"label -2": 1, "label 7": 2}
    assert Path(result["sheet"]).exists()


def test_a_record_that_is_no_datum_is_named(tmp_path):
    folder = write_lmdb(tmp_path / "db", [caffe_pb2.Datum(label=1)])
    with lmdb.open(str(folder)) as env, env.begin(write=True) as writing:
        writing.put(b"bad", b"\xff\xff\xff")
    with pytest.raises(ValueError, match="db: record bad: not a Datum"):
        show(folder, tmp_path)


def test_hdf5_of_floats_is_stretched_for_the_eye(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.stack([picture(20, 20).transpose(2, 0, 1).astype(np.float32) / 255 - 0.5] * 6)
        file["label"] = np.float32([0, 1, 2, 0, 1, 2])
    result = show(tmp_path / "a.h5", tmp_path)
    assert (result["kind"], result["records"]) == ("HDF5", 6)
    assert result["sizes"]["spans"][0] == [20, 20, 3]
    assert labels(result) == {"label 0": 2, "label 1": 2, "label 2": 2}
    cell = cv2.imread(result["sheet"])[TOP : TOP + 160, MARGIN : MARGIN + 160]
    assert (cell.min(), cell.max()) == (0, 255)


def test_hdf5_with_measured_labels_has_ranges_instead_of_classes(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.zeros((4, 1, 8, 8), np.float32)
        file["label"] = np.float32([[0.5, 10], [1, 20], [1.5, 30], [2, 40]])
    (tmp_path / "source.txt").write_text(f"{tmp_path / 'a.h5'}\n")
    for source in ("a.h5", "source.txt"):
        result = show(tmp_path / source, tmp_path)
        assert result["records"] == 4
        assert (result["labels"], result["order"]) == ([], None)
        assert [list(span.values()) for span in result["values"]] == [[0.5, 1.25, 2], [10, 25, 40]]


def test_shards_are_shown_as_one_data_set(tmp_path):
    for shard, shades in enumerate(([10, 20, 30], [40, 50])):
        data = [
            caffe_pb2.Datum(data=bytes([shade]) * 64, label=shade, channels=1, height=8, width=8) for shade in shades
        ]
        write_lmdb(tmp_path / "set" / f"part-{shard:05d}.lmdb", data)
    result = show(tmp_path / "set", tmp_path, columns=5)
    assert (result["records"], result["shards"], result["shown"]) == (5, 2, [0, 1, 2, 3, 4])
    middle = cv2.imread(result["sheet"])[TOP + 84, MARGIN + 84 :: 168 + GAP, 0]
    assert middle.tolist() == [10, 20, 30, 40, 50]


def test_a_list_names_its_classes_from_the_file_beside_it(tmp_path):
    shutil.copytree(GOLDEN / "photos", tmp_path / "photos")
    (tmp_path / "list.txt").write_text("".join(f"photos/{name} {number % 3}\n" for number, name in enumerate(PHOTOS)))
    (tmp_path / "classes.txt").write_text("Größe\n日本語\nthird\nnever used\n")
    result = show(tmp_path / "list.txt", tmp_path, images=6)
    assert labels(result) == {"Größe": 10, "日本語": 10, "third": 10, "never used": 0}
    assert result["order"] == "shuffled"
    assert [place % 3 for place in result["shown"]] == [0, 0, 1, 1, 2, 2]
    assert result["bytes"] == sum((GOLDEN / "photos" / name).stat().st_size for name in PHOTOS)
    assert not result["estimated"]


def test_class_names_can_be_given(tmp_path):
    (tmp_path / "names").write_text("".join(f"class {letter}\n" for letter in "abcdefghij"))
    assert "class j" in labels(show(GOLDEN / "raw_lmdb", tmp_path, classes=tmp_path / "names"))


@pytest.mark.parametrize(("records", "told"), [
    ([1], "1 class, 1 record"), ([2], "1 class, 2 records"), ([3, 3], "2 classes, 3 records each"),
    ([1, 1], "2 classes, 1 record each"), ([1, 4], "2 classes, 1 to 4 records each"), ([], "none"),
])  # fmt: skip
def test_classes_are_counted_in_plain_words(records, told):
    assert labels_text({"values": [], "labels": [{"records": count} for count in records]}) == told


def test_a_folder_in_place_of_a_picture_says_so_without_a_number(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    listed = ImageList.of([b"a.jpg"], np.int32([0]))
    found = of_listing("list", listed, f"{tmp_path}/", 1, lambda done, total: None)
    assert [view.reason for view in found.views([0])] == ["Is a directory"]


def test_missing_files_of_a_list_are_told_and_shown_as_empty_cells(tmp_path, capsys):
    (tmp_path / "list.txt").write_text("gone.jpg 0\nlost.jpg 1\n")
    result = show(tmp_path / "list.txt", tmp_path)
    assert "2 of 2 files looked at cannot be read, the first: gone.jpg: No such file" in capsys.readouterr().err
    assert (result["sizes"]["of"], result["unreadable"]) == (0, 2)
    assert sheet_text(result) == f"{result['sheet']}: 0 pictures, 2 unreadable"
    assert Path(result["sheet"]).exists()


def test_a_folder_of_class_folders_lists_itself(tmp_path):
    result = show(photo_folders(tmp_path / "photos"), tmp_path)
    assert result["records"] == 30
    assert labels(result)["t-shirt"] == 3


def test_a_tar_lists_itself(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, name in enumerate(PHOTOS[:4]):
            for member, data in (
                (name, (GOLDEN / "photos" / name).read_bytes()),
                (f"{name[:-4]}.cls", b"%d" % (number % 2)),
            ):
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    result = show(tmp_path / "a.tar", tmp_path)
    assert (result["records"], len(result["shown"])) == (4, 4)


def test_caffes_leveldb_shows_what_its_lmdb_shows(tmp_path):
    pytest.importorskip("plyvel")
    shutil.copytree(GOLDEN / "raw_leveldb", tmp_path / "db")
    level, memory = show(tmp_path / "db", tmp_path), show(GOLDEN / "raw_lmdb", tmp_path)
    assert (level["kind"], level["labels"]) == ("leveldb", memory["labels"])
    assert level["sizes"] == {"of": 30, "spans": [[16, 16, 3], [16, 16, 3]]}


def test_the_same_seed_shows_the_same_pictures_and_another_others(tmp_path):
    source = write_lmdb(tmp_path / "db", [caffe_pb2.Datum(label=n % 7) for n in range(500)])
    shown = [show(source, tmp_path, images=20, seed=seed)["shown"] for seed in (1, 1, 2)]
    assert shown[0] == shown[1] != shown[2]


def test_no_sheet_is_written_where_none_is_asked_for(tmp_path):
    result = show(GOLDEN / "raw_lmdb", tmp_path, images=0)
    assert result["sheet"] is None
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"images": -1}, "--images -1: expected 0 or more"),
        ({"columns": 0}, "--columns 0: expected 1 or more"),
        ({"sheet": Path("a.txt")}, "--sheet a.txt: expected a name that ends in .png"),
    ],
)
def test_options_that_cannot_be_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        Show(data="x", **options)


def test_a_source_that_is_not_there_is_one_line(tmp_path, capsys):
    assert main(["show", str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err == f"cortado: error: {tmp_path / 'nothing'}: No such file or folder\n"


def test_the_command_prints_a_table_for_people_and_one_object_for_machines(tmp_path, capsys):
    command = ["show", str(GOLDEN / "raw_lmdb"), "--sheet", str(tmp_path / "new" / "sheet.png"), "--images", "5"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    for text in ("48 x 64 x 3 (height x width x channels)", "10 classes, 3 records each", "5 pictures", "█"):
        assert text in printed
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["records"] == 30


@given(st.lists(st.integers(-3, 6), min_size=1, max_size=80), st.integers(1, 50), st.integers(0, 5))
def test_each_class_gives_its_turn_until_there_are_enough(values, images, seed):
    labels = np.array(values)
    places = choose(labels, len(labels), images, seed)
    assert len(places) == len(set(places)) == min(images, len(labels))
    shown = labels[places]
    assert (np.diff(shown) >= 0).all()
    counts = {label: int((shown == label).sum()) for label in set(values)}
    most = max(counts.values())
    for label, count in counts.items():
        assert count >= most - 1 or count == values.count(label)


def test_measured_labels_are_sampled_without_classes():
    assert choose(None, 10, 4, 0) == sorted(choose(None, 10, 4, 0))
    assert choose(None, 3, 40, 0) == [0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ([0, 0, 1, 1, 2, 2], "sorted by class: shuffle before training"),
        ([5, 5, 5], "one class"),
        (np.random.default_rng(0).integers(0, 10, 1000), "shuffled"),
        (np.repeat(np.random.default_rng(0).integers(0, 10, 250), 4), "partly sorted by class"),
    ],
)
def test_the_order_says_whether_classes_are_mixed(labels, order):
    assert order_of(np.array(labels)).startswith(order)


def test_whole_floats_are_classes_and_others_are_not():
    np.testing.assert_array_equal(whole(np.float32([[1], [2]])), [1, 2])
    assert whole(np.float32([[1.5], [2]])) is None
    assert whole(np.float32([[1, 2]])) is None
    assert whole(np.float32([[np.nan]])) is None


def test_cells_stand_in_the_columns_asked_for(tmp_path):
    show(GOLDEN / "raw_lmdb", tmp_path, columns=3)
    assert cv2.imread(str(tmp_path / "sheet.png")).shape[1] == 2 * MARGIN + 3 * 192 + 2 * GAP
