"""`mean` over whatever holds records, and what it says where there is no mean."""

import json

import h5py
import numpy as np
import pytest

from ops.records import binaryproto
from ops.records.lmdb import Writer
from pipelines.__main__ import main
from pipelines.mean import Mean
from pipelines.stages import dataset


def mean(data, out):
    return Mean(data=data, out=out).run()


def test_caffes_records_have_caffes_mean(golden, tmp_path):
    result = mean(golden / "files" / "raw_lmdb", tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == (golden / "files" / "mean.binaryproto").read_bytes()
    assert (result["records"], result["shape"]) == (30, [3, 48, 64])


def test_encoded_records_are_decoded_first(golden, tmp_path):
    mean(golden / "files" / "encoded_lmdb", tmp_path / "m")
    pixels = [values for _, values, _ in dataset.open_dataset(golden / "files" / "encoded_lmdb").records()]
    assert np.array_equal(
        binaryproto.read(tmp_path / "m"), np.mean(pixels, axis=0, dtype=np.float64).astype(np.float32)
    )


@pytest.mark.ray
def test_parts_on_ray_make_the_same_mean(ray_session, golden, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset.Dataset.parts, "__defaults__", (7,))
    mean(golden / "files" / "raw_lmdb", tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == (golden / "files" / "mean.binaryproto").read_bytes()


def test_hdf5_files_and_lists_of_them(tmp_path):
    values = np.random.default_rng(0).normal(size=(11, 2, 3, 4)).astype(np.float32)
    for name, part in (("a.h5", values[:6]), ("b.h5", values[6:])):
        with h5py.File(tmp_path / name, "w") as file:
            file["data"], file["label"] = part, np.zeros(len(part), np.float32)
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'a.h5'}\n{tmp_path / 'b.h5'}\n")
    mean(tmp_path / "a.h5", tmp_path / "one")
    assert np.allclose(binaryproto.read(tmp_path / "one"), values[:6].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: Writer(folder / "db").close(), "holds no records"),
        (lambda folder: (folder / "db").mkdir(), "no records here"),
        (lambda folder: (folder / "db").write_text("text"), "not a data set"),
        (lambda folder: None, "No such file or folder"),
    ],
)
def test_where_there_is_no_mean(tmp_path, capsys, make, told):
    make(tmp_path)
    assert main(["mean", str(tmp_path / "db"), "--out", str(tmp_path / "m")]) == 1
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "m").exists()


def test_records_of_several_sizes_are_named(golden, tmp_path, capsys):
    assert main(["mean", str(golden / "files" / "passthrough_lmdb"), "--out", str(tmp_path / "m")]) == 1
    assert "a mean needs one size" in capsys.readouterr().err


def test_json_is_one_object_on_stdout(golden, tmp_path, capsys):
    assert main(["mean", str(golden / "files" / "raw_lmdb"), "--out", str(tmp_path / "m"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["records"] == 30
