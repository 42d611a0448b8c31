"""CSV, TSV and Parquet: which column is the path or the image, what labels are, and images out of tables."""

import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ops.inputs.fetch import Fetcher
from ops.inputs.listing import open_listing, recognize
from tests.ops.inputs.pictures import lines, png

NAMES = ["a b/1.jpg", "2,0.png", 'q"uote.jpg', "caf\u00e9.jpg", "5.jpeg"]


def csv(path, frame: pd.DataFrame, **options):
    frame.to_csv(path, index=False, **options)
    return path


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_a_table_by_pandas_with_whole_labels(tmp_path, separator):
    file = csv(
        tmp_path / "t", pd.DataFrame({"label": [3, 1, 4, 1, -5], "path": NAMES, "split": list("ababa")}), sep=separator
    )
    assert recognize(file) == "csv"
    listed = open_listing(file)
    assert lines(listed) == list(zip(NAMES, [3, 1, 4, 1, -5], strict=True))
    assert listed.root == f"{tmp_path}/"
    assert listed.labels.dtype == np.int32
    assert not listed.warnings


@pytest.mark.parametrize("text", [
    "path,label\r\na.jpg,1\r\nb.jpg,2\r\n", "\ufefffile_name,target\na.jpg,1\nb.jpg,2\n", "a.jpg,1\nb.jpg,2",
    "1;a.jpg\n2;b.jpg\n", "a.jpg\t1\nb.jpg\t2\n", '"a.jpg","1"\n"b.jpg","2"\n',
    "Image, Label\na.jpg, 1\nb.jpg, 2\n", "Unnamed,img\n1,a.jpg\n2,b.jpg\n",
])  # fmt: skip
def test_shapes_of_text_tables(tmp_path, text):
    (tmp_path / "t").write_text(text, newline="")
    assert recognize(tmp_path / "t") == "csv"
    assert lines(open_listing(tmp_path / "t")) == [("a.jpg", 1), ("b.jpg", 2)]


def test_names_are_classes_in_their_order(tmp_path):
    listed = open_listing(
        csv(tmp_path / "t.csv", pd.DataFrame({"path": NAMES, "label": ["dog", "cat", "dog", "Ant", "cat"]}))
    )
    assert listed.classes == ["Ant", "cat", "dog"]
    assert listed.labels.tolist() == [2, 1, 2, 0, 1]


def test_float_labels_keep_every_digit(tmp_path):
    values = np.random.default_rng(0).normal(size=5).astype(np.float32)
    file = csv(tmp_path / "t.csv", pd.DataFrame({"path": NAMES, "y": values}))
    for mode in ("caffe", "float"):
        listed = open_listing(file, labels=mode)
        assert listed.labels.dtype == np.float32
        assert np.array_equal(listed.labels, values[:, None])
    with pytest.raises(ValueError, match=r"no row has a usable label; row 1: label .* is not a whole number"):
        open_listing(file, labels="int")


def test_vectors_from_columns_and_from_one_cell(tmp_path):
    boxes = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    frame = pd.DataFrame(boxes, columns=list("wxyz"))
    frame.insert(0, "path", NAMES)
    assert np.array_equal(open_listing(csv(tmp_path / "a.csv", frame), labels="vector:4").labels, boxes)
    cells = pd.DataFrame({"path": NAMES, "label": [" ".join(map(str, box.tolist())) for box in boxes], "more": 1})
    assert np.array_equal(open_listing(csv(tmp_path / "b.csv", cells), labels="vector:4").labels, boxes)


def test_labels_that_are_no_numbers_make_bad_rows_where_numbers_were_asked_for(tmp_path):
    (tmp_path / "t.csv").write_text("path,label\na.jpg,1\nb.jpg,x\nc.jpg,\nd.jpg,2.5\ne.jpg,4\n")
    listed = open_listing(tmp_path / "t.csv", labels="int")
    assert listed.bad == {
        1: "label 'x' is not a number", 2: "no label", 3: "label 2.5 is not a whole number of 32 bits",
    }  # fmt: skip
    assert listed.labels.tolist() == [1, 0, 0, 0, 4]
    (tmp_path / "names.csv").write_text("path,label\na.jpg,dog\nb.jpg,cat\n")
    with pytest.raises(ValueError, match="no row has a usable label; row 1: label 'dog' is not a number"):
        open_listing(tmp_path / "names.csv", labels="float")


def test_a_table_without_paths_names_its_columns(tmp_path):
    (tmp_path / "t.csv").write_text("height,width,label\n1,2,3\n4,5,6\n")
    with pytest.raises(ValueError, match="no column of paths or images; it has height, width, label"):
        open_listing(tmp_path / "t.csv")


def test_a_table_without_labels_has_label_0_and_says_so(tmp_path):
    listed = open_listing(csv(tmp_path / "t.csv", pd.DataFrame({"path": NAMES, "height": 1, "width": 2})))
    assert set(listed.labels.tolist()) == {0}
    assert "no label column among height, width" in listed.warnings[0]


def test_paths_of_any_bytes_survive_and_newlines_are_counted(tmp_path):
    (tmp_path / "t.csv").write_bytes(b'path,label\ncaf\xe9.jpg,1\n"a\nb.jpg",2\n"c,d.jpg",3\n')
    listed = open_listing(tmp_path / "t.csv")
    assert listed.paths(slice(None)) == [b"caf\xe9.jpg", b"c,d.jpg"]
    assert listed.labels.tolist() == [1, 3]
    assert "1 paths with a newline" in listed.warnings[-1]


def test_absolute_paths_stand_for_themselves(tmp_path):
    file = csv(tmp_path / "t.csv", pd.DataFrame({"path": ["/x/a.jpg", "/y/b.jpg"], "label": [1, 2]}))
    assert (open_listing(file).root, open_listing(file).path(1)) == ("", b"/y/b.jpg")
    file = csv(tmp_path / "mixed.csv", pd.DataFrame({"path": ["/x/a.jpg", "b.jpg"], "label": [1, 2]}))
    assert lines(open_listing(file)) == [("/x/a.jpg", 1), (f"{tmp_path}/b.jpg", 2)]


def test_rows_of_other_lengths_are_an_error(tmp_path):
    (tmp_path / "t.csv").write_text("path,label\n" + "a.jpg,1\n" * 30 + "b.jpg,1,2,3\n")
    with pytest.raises(ValueError, match=r"t.csv: damaged table: .*Expected 2 columns, got 4"):
        open_listing(tmp_path / "t.csv")


def test_many_rows_read_fast_and_right(tmp_path):
    names = [f"dir {number % 7}/{number}.jpg" for number in range(200_000)]
    listed = open_listing(csv(tmp_path / "t.csv", pd.DataFrame({"path": names, "label": np.arange(200_000) % 1000})))
    assert listed.paths(slice(None)) == [name.encode() for name in names]
    assert np.array_equal(listed.labels, np.arange(200_000) % 1000)


# -- Parquet -----------------------------------------------------------------------------------------------------------


def test_parquet_with_paths(tmp_path):
    pd.DataFrame({"file": NAMES, "category": pd.Categorical(["x", "y", "x", "z", "y"])}).to_parquet(
        tmp_path / "t.parquet"
    )
    listed = open_listing(tmp_path / "t.parquet")
    assert recognize(tmp_path / "t.parquet") == "parquet"
    assert lines(listed) == list(zip(NAMES, [0, 1, 0, 2, 1], strict=True))
    assert listed.classes == ["x", "y", "z"]


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_images_inside_parquet_in_any_order(tmp_path, kind):
    images = [png(seed) for seed in range(50)]
    column = [{"bytes": image, "path": f"{n}.png"} for n, image in enumerate(images)] if kind == "struct" else images
    table = pa.table({"image": column, "label": pa.array(range(50), pa.int64())})
    pq.write_table(table, tmp_path / "t", row_group_size=8)
    listed, fetcher = open_listing(tmp_path / "t"), Fetcher()
    assert lines(listed) == [(f"t#{row}", row) for row in range(50)]
    for row in np.random.default_rng(0).permutation(50):
        assert fetcher.fetch(os.fsencode(listed.root) + listed.path(row)) == images[row]


def test_hugging_faces_metadata_names_the_classes(tmp_path):
    features = '{"info": {"features": {"image": {}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}'
    table = pa.table({"image": [{"bytes": png(), "path": None}] * 3, "label": pa.array([1, 0, 1], pa.int64())})
    pq.write_table(table.replace_schema_metadata({"huggingface": features}), tmp_path / "t.parquet")
    listed = open_listing(tmp_path / "t.parquet")
    assert (listed.classes, listed.labels.tolist()) == (["cat", "dog"], [1, 0, 1])


def test_an_image_column_with_paths_alone_is_a_list_of_files(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": None, "path": f"{n}.png"} for n in range(3)], kind)
    pq.write_table(pa.table({"image": column, "label": [5, 6, 7]}), tmp_path / "t.parquet")
    assert lines(open_listing(tmp_path / "t.parquet")) == [("0.png", 5), ("1.png", 6), ("2.png", 7)]


def test_several_parquet_files_are_one_input(tmp_path):
    for part in range(3):
        pq.write_table(
            pa.table({"image": [png(part)], "label": [part]}), tmp_path / f"train-{part:05d}-of-00003.parquet"
        )
    (tmp_path / "README.md").write_text("about this data\n")
    expected = [(f"train-{part:05d}-of-00003.parquet#0", part) for part in range(3)]
    assert lines(open_listing(tmp_path)) == expected
    assert lines(open_listing(f"{tmp_path}/train-*.parquet")) == expected
    assert lines(open_listing(f"{tmp_path}/train-{{00001..00002}}-of-00003.parquet")) == expected[1:]


def test_label_lists_are_vectors(tmp_path):
    pq.write_table(pa.table({"image": [png()] * 2, "label": [[0.5, 1.0], [2.0, 3.0]]}), tmp_path / "t.parquet")
    assert open_listing(tmp_path / "t.parquet", labels="vector:2").labels.tolist() == [[0.5, 1.0], [2.0, 3.0]]
    with pytest.raises(ValueError, match="labels of 2 numbers; --labels vector:3 asks for 3"):
        open_listing(tmp_path / "t.parquet", labels="vector:3")


def test_a_row_without_an_image_is_named(tmp_path):
    pq.write_table(pa.table({"image": [png(), None], "label": [1, 2]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="row 1 holds no image"):
        Fetcher().fetch(os.fsencode(tmp_path / "t.parquet#1"))


def test_a_file_that_was_cut_short_is_an_error(tmp_path):
    pq.write_table(pa.table({"image": [png()] * 9, "label": [1] * 9}), tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"t.parquet: damaged Parquet file: "):
        open_listing(tmp_path / "t.parquet")
