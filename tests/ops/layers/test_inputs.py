from __future__ import annotations

import os
from pathlib import Path

import h5py
import lmdb
import numpy as np
import pytest
import torch
from google.protobuf import text_format

from ops import net as nets
from ops.layers.inputs import Source, unadvised
from ops.layers.registry import LAYERS, find
from ops.proto.caffe_pb2 import Datum, LayerParameter
from ops.records.hdf5 import Writer

FILES = Path(__file__).resolve().parents[2] / "golden/files"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def source(text, *tops, folder=None):
    names = "".join(f' top: "{top}"' for top in tops or ("data", "label"))
    spec = text_format.Parse(f'name: "l" {names} {text}', LayerParameter())
    with torch.device("meta"):
        layer = find(spec.type)(spec, [], "TRAIN")
    layer.folder = folder
    return layer


def shapes(text, *tops, folder=None, **given):
    return source(text, *tops, folder=folder).top_shapes(given)


def refused(match):
    return pytest.raises(ValueError, match=match)


def test_every_source_is_known_as_one():
    found = {name for name, kind in LAYERS.items() if issubclass(kind, Source)}
    assert found == {"Input", "DummyData", "Data", "ImageData", "HDF5Data", "MemoryData", "WindowData"}
    assert all(LAYERS[name].source and LAYERS[name].bottoms == (0, 0) for name in found)


# -- Input ------------------------------------------------------------------------------------------------------------

ONE, TWO = "shape { dim: 2 dim: 3 }", "shape { dim: 2 dim: 3 } shape { dim: 5 }"


@pytest.mark.parametrize(
    ("param", "given", "expected"),
    [
        (ONE, {}, [(2, 3), (2, 3)]),
        (TWO, {}, [(2, 3), (5,)]),
        (TWO, {"data": (7, 8)}, [(7, 8), (5,)]),
        ("", {"data": (7, 8), "label": (1,)}, [(7, 8), (1,)]),
        ("shape { }", {}, [(), ()]),
    ],
)
def test_an_input_has_no_shape_or_one_or_one_for_each_top(param, given, expected):
    assert shapes(f'type: "Input" input_param {{ {param} }}', **given) == expected


@pytest.mark.parametrize(
    ("param", "given", "message"),
    [
        ("", {}, r"has no shape: write input_param .* or inputs=\{'data': \(N, C, H, W\)\} gives"),
        ("", {"data": (1, 2)}, "has no shape"),
        (TWO + ONE, {}, "has 3 shapes for 2 tops, expected none, one or 2"),
        ("shape { dim: 0 }", {}, "a blob of shape 0 is empty"),
        ("shape { dim: -4 dim: 3 }", {}, "a blob of shape -4 x 3 is empty"),
        ("shape {" + "dim: 1 " * 33 + "}", {}, "a blob of 33 axes; at most 32 go"),
        ("shape { dim: 65536 dim: 65536 }", {}, "4,294,967,296 elements"),
        (ONE, {"data": (0, 3)}, "a blob of shape 0 x 3 is empty"),
    ],
)
def test_an_input_without_a_usable_shape_is_told(param, given, message):
    with refused(message):
        shapes(f'type: "Input" input_param {{ {param} }}', **given)


# -- DummyData and MemoryData -----------------------------------------------------------------------------------------

RANDOM = 'data_filler { type: "gaussian" }'
DUMMY = 'type: "DummyData" dummy_data_param'


@pytest.mark.parametrize(
    ("param", "given", "expected"),
    [
        (ONE, {}, [(2, 3), (2, 3)]),
        (TWO, {}, [(2, 3), (5,)]),
        ("num: 2 num: 4 channels: 3 height: 5 width: 6 width: 7", {}, [(2, 3, 5, 6), (4, 3, 5, 7)]),
        ("shape { dim: 2 dim: 3 } shape { dim: 2 }", {"data": (9, 3)}, [(9, 3), (9,)]),
        (TWO, {"data": (9, 3)}, [(9, 3), (5,)]),
    ],
)
def test_dummy_data_has_one_shape_or_one_for_each_top(param, given, expected):
    assert shapes(f"{DUMMY} {{ {param} }}", **given) == expected


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ("", "has 0 shapes? for 2 tops, expected 1 or 2"),
        (ONE + " num: 2", "has shape and num, channels, height or width; write one kind"),
        ("num: 2 channels: 3 height: 4", "has 0 width for 2 tops, expected 1 or 2"),
        ("num: 2 num: 2 num: 2 channels: 3 height: 4 width: 2", "has 3 num for 2 tops"),
        (ONE + RANDOM * 3, "has 3 data_fillers for 2 tops, expected none, one or 2"),
        (ONE + 'data_filler { type: "gausian" }', "unknown filler type 'gausian'; did you mean 'gaussian'"),
    ],
)
def test_dummy_data_that_does_not_fit_its_tops_is_told(param, message):
    with refused(message):
        shapes(f"{DUMMY} {{ {param} }}")


def test_dummy_data_makes_constants_once_and_others_anew():
    layer = source(f"{DUMMY} {{ {ONE} data_filler {{ value: 4 }} {RANDOM} }}")
    layer.top_shapes({"label": (2, 5)})
    generator = torch.Generator().manual_seed(1)
    constant, random = layer.produce(generator)
    again, other = layer.produce(generator)
    assert constant is again
    assert constant.tolist() == [[4] * 3] * 2
    assert random.shape == other.shape == (2, 5)
    assert not torch.equal(random, other)
    assert torch.equal(random, torch.randn(2, 5, generator=torch.Generator().manual_seed(1)))


def test_dummy_data_without_a_filler_is_zeros():
    assert [top.any().item() for top in source(f"{DUMMY} {{ {ONE} }}").produce(torch.Generator())] == [False, False]


MEMORY = 'type: "MemoryData" memory_data_param'


def test_memory_data_is_what_its_fields_say_whatever_the_crop():
    text = f"{MEMORY} {{ batch_size: 4 channels: 3 height: 8 width: 9 }} transform_param {{ crop_size: 5 }}"
    assert shapes(text) == [(4, 3, 8, 9), (4,)]
    assert shapes(text, data=(2, 3, 8, 9)) == [(2, 3, 8, 9), (2,)]
    with refused("needs batch_size, channels, height and width, each 1 or more; found 4 x 3 x 0 x 9"):
        shapes(f"{MEMORY} {{ batch_size: 4 channels: 3 width: 9 }}")


# -- Data -------------------------------------------------------------------------------------------------------------


def data(name, *tops, more="", batch=4, **options):
    return shapes(f"type: 'Data' data_param {{ source: '{name}' batch_size: {batch} }} {more}", *tops, **options)


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("raw_lmdb", (3, 48, 64)),
        ("raw_leveldb", (3, 16, 16)),
        ("gray_lmdb", (1, 32, 32)),
        ("encoded_lmdb", (3, 48, 48)),
    ],
)
def test_data_has_the_shape_of_the_first_record_that_caffe_wrote(name, record):
    if name == "raw_leveldb":
        pytest.importorskip("plyvel")
    assert data(FILES / name) == [(4, *record), (4,)]
    assert data(FILES / name, "data") == [(4, *record)]


def test_a_crop_is_a_square_inside_the_record():
    assert data(FILES / "raw_lmdb", more="transform_param { crop_size: 40 }") == [(4, 3, 40, 40), (4,)]
    with refused("crop_size 49 does not fit the records of 3 x 48 x 64"):
        data(FILES / "raw_lmdb", more="transform_param { crop_size: 49 }")


def test_encoded_records_are_decoded_as_force_color_and_force_gray_say():
    assert data(FILES / "encoded_lmdb", more="transform_param { force_gray: true }")[0] == (4, 1, 48, 48)
    assert data(FILES / "raw_lmdb", more="transform_param { force_gray: true }")[0] == (4, 3, 48, 64)
    with refused("force_color and force_gray; write one of them"):
        data(FILES / "encoded_lmdb", more="transform_param { force_gray: true force_color: true }")


def database(folder, *records):
    with lmdb.open(str(folder), map_size=1 << 20) as opened, opened.begin(write=True) as writing:
        for place, record in enumerate(records):
            writing.put(b"%08d" % place, record)


def test_float_records_and_several_parts_have_shapes(tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    database(parts / "part-00000.lmdb")
    record = Datum(channels=5, height=1, width=1, float_data=[1, 2, 3, 4, 5])
    database(parts / "part-00001.lmdb", record.SerializeToString())
    assert data("parts") == [(4, 5, 1, 1), (4,)]


def test_hdf5_shards_have_labels_of_any_shape(tmp_path):
    (tmp_path / "set").mkdir()
    with Writer(tmp_path / "set" / "part-00000.h5") as writer:
        writer.put(b"0", np.zeros((1, 5, 6), np.float32), np.zeros(3, np.float32))
    (tmp_path / "set" / "manifest.json").write_text('{"cortado": 1, "shards": []}')
    assert data("set") == [(4, 1, 5, 6), (4, 3)]
    assert data("set", data=(9, 1, 5, 6)) == [(9, 1, 5, 6), (9, 3)]
    assert data("set", data=(9, 1, 5, 6), label=(9,)) == [(9, 1, 5, 6), (9,)]


def test_an_error_can_do_without_the_advice_to_give_a_shape():
    for given in ("", "x"):
        with pytest.raises(ValueError, match="inputs=") as caught:
            data(given)
        assert unadvised(str(caught.value)) == str(caught.value).partition("; inputs=")[0]
    with pytest.raises(ValueError, match="inputs=") as caught:
        shapes('type: "Input"')
    assert unadvised(str(caught.value)) == "has no shape: write input_param { shape { dim: ... } }"


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "holds no records"),
        ([b"\xff\xff"], "set: record 00000000: not a Datum"),
        ([Datum(channels=3, height=2, width=2, data=b"123").SerializeToString()], "record of 3x2x2 holds 3 values"),
    ],
)
def test_a_database_without_a_usable_record_is_told(tmp_path, records, message):
    database(tmp_path / "set", *records)
    with refused(message):
        data("set")


def test_something_else_than_a_database_is_told():
    with refused("of kind list; expected an LMDB, a LevelDB or a folder made by convert"):
        data(FILES / "list.txt")


def test_a_batch_of_nothing_is_told():
    with refused("data_param has batch_size 0, expected 1 or more"):
        data(FILES / "raw_lmdb", batch=0)


# -- where sources are ------------------------------------------------------------------------------------------------


def test_a_source_is_looked_for_in_the_working_folder_and_then_beside_the_prototxt(tmp_path):
    assert data("raw_lmdb", folder=FILES)[0] == (4, 3, 48, 64)
    os.symlink(FILES / "gray_lmdb", tmp_path / "raw_lmdb")
    assert data("raw_lmdb", folder=FILES)[0] == (4, 1, 32, 32)


def test_a_missing_source_says_where_it_was_looked_for_and_what_to_do_without(tmp_path):
    beside = tmp_path / "nets"
    with refused("there is no 'x/y'") as caught:
        data("x/y", folder=beside)
    told = str(caught.value)
    assert f"looked for {tmp_path}/x/y and {beside}/x/y" in told
    assert told.endswith("inputs={'data': (N, C, H, W)} gives the shape without opening anything")
    assert "\n" not in told
    with refused("names no source"):
        data("")


@pytest.mark.parametrize("kind", ["Data", "ImageData", "WindowData", "HDF5Data", "MemoryData"])
def test_a_given_shape_opens_nothing_and_its_batch_is_the_labels(kind):
    assert shapes(f'type: "{kind}"', data=(7, 3, 8, 8)) == [(7, 3, 8, 8), (7,)]
    assert shapes(f'type: "{kind}"', data=(7, 3), label=(7, 2)) == [(7, 3), (7, 2)]


def test_a_given_label_alone_leaves_the_data_to_the_source():
    assert data(FILES / "gray_lmdb", label=(9,)) == [(9, 1, 32, 32), (9,)]


def test_a_net_is_built_with_given_shapes_and_without_its_data(tmp_path):
    net = tmp_path / "net.prototxt"
    net.write_text(
        "layer { name: 'd' type: 'Data' top: 'data' top: 'label' data_param { source: 'away' batch_size: 4 } }"
        "layer { name: 'l' type: 'EuclideanLoss' bottom: 'data' bottom: 'label' top: 'loss' }"
    )
    assert nets.load(net, "TRAIN", inputs={"data": (5,)}).inputs == {"data": (5,), "label": (5,)}
    with refused("net.prototxt: layer 'd' .Data.: there is no 'away'"):
        nets.load(net, "TRAIN")


# -- ImageData --------------------------------------------------------------------------------------------------------


def images(param, more=""):
    return shapes(f'type: "ImageData" image_data_param {{ {param} }} {more}')


@pytest.mark.parametrize(
    ("param", "more", "expected"),
    [
        ("batch_size: 3", "", (3, 3, 20, 30)),
        ("is_color: false", "", (1, 1, 20, 30)),
        ("new_height: 12 new_width: 16", "", (1, 3, 12, 16)),
        ("new_height: 12 new_width: 16", "transform_param { crop_size: 10 }", (1, 3, 10, 10)),
        ("batch_size: 2", "transform_param { crop_size: 20 }", (2, 3, 20, 20)),
    ],
)
def test_image_data_has_the_size_of_the_lists_first_image(tmp_path, param, more, expected):
    import cv2

    (tmp_path / "pictures").mkdir()
    cv2.imwrite(str(tmp_path / "pictures/a b.png"), np.zeros((20, 30, 3), np.uint8))
    (tmp_path / "list.txt").write_text("a b.png 7\nnot.there 1\n")
    assert images(f"{param} source: 'list.txt' root_folder: 'pictures/'", more) == [expected, expected[:1]]


def test_the_photographs_of_the_golden_list_have_a_size():
    found = images(f"source: '{FILES}/list.txt' root_folder: '{FILES}/photos/'")[0]
    assert found[:2] == (1, 3)
    assert min(found[2:]) > 1


@pytest.mark.parametrize(
    ("written", "param", "message"),
    [
        ("", "", "list.txt: an empty list; expected one 'path label' a line"),
        ("a.png 1\n", "", "list.txt: its first image: there is no 'a.png': looked for .*a.png"),
        ("list.txt 1\n", "", "list.txt: its first image: not an image"),
        ("a.png 1\n", "new_height: 3", "new_height 3 and new_width 0; write both or none"),
        ("a.png 1\n", "batch_size: 0", "image_data_param has batch_size 0"),
        (
            "a.png 1\n",
            "new_height: 3 new_width: 9 } transform_param { crop_size: 4",
            "crop_size 4 does not fit the records of 3 x 3 x 9",
        ),
    ],
)
def test_image_data_that_cannot_be_is_told(tmp_path, written, param, message):
    (tmp_path / "list.txt").write_text(written)
    with refused(message):
        images(f"source: 'list.txt' {param}")


def test_a_folder_for_a_list_is_told(tmp_path):
    (tmp_path / "list.txt").mkdir()
    with refused("list.txt: Is a directory; inputs="):
        images("source: 'list.txt'")


# -- HDF5Data ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path):
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["data"] = np.zeros((6, 3, 4, 5), np.float32)
        file["label"] = np.zeros((6, 2), np.int32)
        file["few"] = np.zeros(5, np.float32)
        file["name"] = [b"a"] * 6
        file["one"] = 3.0
    (tmp_path / "rows.txt").write_text("rows.h5\nother.h5\n")


def hdf5(name, *tops, more="", batch=4, **options):
    return shapes(
        f"type: 'HDF5Data' hdf5_data_param {{ source: '{name}' batch_size: {batch} }} {more}", *tops, **options
    )


@pytest.mark.usefixtures("rows")
def test_hdf5_data_has_the_datasets_of_its_tops_names():
    assert hdf5("rows.txt") == [(4, 3, 4, 5), (4, 2)]
    assert hdf5("rows.txt", "few") == [(4,)]
    assert hdf5("rows.h5") == [(4, 3, 4, 5), (4, 2)]
    assert hdf5("rows.txt", data=(9, 3, 4, 5)) == [(9, 3, 4, 5), (9, 2)]


@pytest.mark.usefixtures("rows")
def test_files_of_a_list_are_also_found_beside_it(tmp_path, monkeypatch):
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    assert hdf5("../rows.txt")[0] == (4, 3, 4, 5)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize(
    ("name", "tops", "more", "message"),
    [
        ("rows.txt", ["dta"], "", "rows.h5: no dataset 'dta'; did you mean 'data'"),
        ("rows.txt", ["one"], "", "'one' is no dataset of numbers with an axis"),
        ("rows.txt", ["name"], "", "'name' is no dataset of numbers"),
        ("rows.txt", ["data", "few"], "", "datasets of different numbers of rows: data 6, few 5"),
        ("rows.txt", ["data"], "transform_param { scale: 2 }", "has transform_param, which HDF5Data cannot do"),
        ("list.txt", ["data"], "", "list.txt: an empty list; expected paths of HDF5 files"),
        ("bad.txt", ["data"], "", "bad.txt: its first entry .* is no HDF5 file"),
        ("lost.txt", ["data"], "", "there is no 'lost.h5'"),
    ],
)
def test_hdf5_data_that_cannot_be_is_told(tmp_path, name, tops, more, message):
    for file, text in {"list.txt": " \n", "bad.txt": "rows.txt\n", "lost.txt": "lost.h5"}.items():
        (tmp_path / file).write_text(text)
    with refused(message):
        hdf5(name, *tops, more=more)


def test_a_damaged_hdf5_file_is_told(tmp_path):
    (tmp_path / "rows.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with refused("rows.h5: damaged HDF5 file"):
        hdf5("rows.h5")


# -- WindowData -------------------------------------------------------------------------------------------------------


def test_window_data_is_a_batch_of_windows(tmp_path):
    (tmp_path / "windows.txt").write_text("# 0\na.jpg\n3\n480\n640\n1\n1 0.9 0 0 10 10\n")
    text = 'type: "WindowData" window_data_param { source: "windows.txt" batch_size: 8 }'
    assert shapes(f"{text} transform_param {{ crop_size: 227 }}") == [(8, 3, 227, 227), (8,)]
    with refused("needs transform_param { crop_size"):
        shapes(text)
    with refused("window_data_param has batch_size 0"):
        shapes('type: "WindowData" transform_param { crop_size: 227 }')
    (tmp_path / "windows.txt").write_text("a.jpg 3\n")
    with refused("windows.txt: no window file; it starts b'a.jpg 3"):
        shapes(f"{text} transform_param {{ crop_size: 227 }}")
