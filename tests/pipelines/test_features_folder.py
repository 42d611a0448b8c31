"""`show` and `check` of features: what the folder holds, how four libraries read it, and every kind of damage."""

from __future__ import annotations

import json
import random
import shutil

import duckdb
import h5py
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from ops.records.parquet import Columns, Rows
from ops.records.parquet import Writer as ParquetWriter
from pipelines.__main__ import main
from pipelines.check import Check
from pipelines.show import Show
from pipelines.stages.feature_checking import check_part
from pipelines.stages.feature_table import readers
from tests.pipelines.extractions import extract_here
from tests.pipelines.stages.test_checking import damaged

FORMATS = ("parquet", "lmdb", "hdf5")
ENDINGS = {"parquet": "", "lmdb": "/data.mdb", "hdf5": ""}


@pytest.fixture(scope="module")
def whole(golden, tmp_path_factory):
    """The same features, two blobs in two parts, in each format."""
    folder = tmp_path_factory.mktemp("features")
    for format in FORMATS:
        extract_here(golden / "files", folder / format, blobs="fc,conv1", shards="2", format=format)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    """`copy("parquet")`: features of one's own to damage."""
    return lambda format: shutil.copytree(whole / format, tmp_path / format)


def problems(path) -> list[str]:
    return Check(path=path).run()["problems"]


# -- what is whole -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_show_tells_rows_blobs_and_whose_they_are(whole, golden, format, capsys):
    result = Show(data=str(whole / format)).run()
    assert (result["features"], result["format"]) == (str(whole / format), format)
    assert (result["rows"], result["listed"], result["parts"], result["bad"]) == (30, 30, 2, 0)
    assert result["blobs"] == {"fc": [6], "conv1": [4, 14, 14]}
    assert result["net"] == str(golden / "files" / "feat.prototxt")
    there = (file for file in (whole / format).rglob("*") if file.suffix in (".parquet", ".h5", ".mdb"))
    assert result["bytes"] == sum(file.stat().st_size for file in there)
    assert result["labels"] == (None if format == "lmdb" else "10 classes, 3 rows each")
    assert main(["show", str(whole / format)]) == 0
    page = capsys.readouterr().out
    assert f"({result['weights_digest'][:12]})" in page
    assert "fc 6, conv1 4x14x14  (float32)" in page


@pytest.mark.parametrize("format", FORMATS)
def test_whole_features_are_right(whole, format):
    result = Check(path=whole / format).run()
    assert (result["kind"], result["ok"], result["checksums"]) == ("features", True, "match the manifest")
    assert (result["rows"], result["checked"], result["parts"]) == (30, 30, 2)
    some = Check(path=whole / format, sample=4).run()
    assert (some["ok"], some["checked"], some["checksums"]) == (True, 8, "not compared")


@pytest.mark.ray
def test_large_features_are_checked_on_ray(ray_session, whole, monkeypatch):
    monkeypatch.setattr("pipelines.stages.feature_checking.FEW_BYTES", 0)
    assert Check(path=whole / "parquet").run()["checksums"] == "match the manifest"


def test_one_file_of_a_table_is_features_too(whole):
    file = whole / "parquet" / "part-00001.parquet"
    assert Show(data=str(file)).run()["rows"] == 15
    result = Check(path=file).run()
    assert (result["kind"], result["ok"], result["rows"]) == ("features", True, 15)


def test_the_ways_to_read_that_show_tells_work(whole):
    """Each as it stands there: manifest.json and errors.csv lie beside the parts."""
    names = {"pq": pq, "pd": pd, "duckdb": duckdb, "pl": pl}
    with h5py.File(whole / "hdf5" / "part-00000.h5") as one, h5py.File(whole / "hdf5" / "part-00001.h5") as two:
        expected = np.concatenate([one["fc"][:], two["fc"][:]])
    for path in (whole / "parquet", whole / "parquet" / "part-00000.parquet"):
        ways = readers(path)
        assert list(ways) == ["pyarrow", "pandas", "DuckDB", "polars"]
        for library, way in ways.items():
            table = eval(way, names)
            frame = {"pyarrow": lambda t: t.to_pandas(), "DuckDB": lambda t: t.df(), "polars": lambda t: t}
            found = frame.get(library, lambda t: t)(table)["fc"].to_list()
            np.testing.assert_array_equal(np.stack(found), expected[: len(found)])
            assert len(found) == (30 if path.is_dir() else 15)


def test_options_of_other_kinds_and_unfinished_extractions_are_told(whole, copy, tmp_path, capsys):
    assert main(["show", str(whole / "parquet"), "--filters", "conv1"]) == 1
    assert "is features: --filters says nothing of it" in capsys.readouterr().err
    folder = copy("parquet")
    (folder / "manifest.json").unlink()
    (folder / ".run" / "plan").mkdir()
    (folder / ".run" / "plan" / "plan.json").write_text(json.dumps({"options": {"blobs": "fc"}}))
    for command in ("show", "check"):
        assert main([command, str(folder)]) == 1
        assert "an extraction that is not finished; run its command again" in capsys.readouterr().err


# -- what is damaged ---------------------------------------------------------------------------------------------------


def flip(file, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("format", FORMATS)
def test_a_flipped_bit_of_a_number_is_found(copy, format):
    folder = copy(format)
    name = json.loads((folder / "manifest.json").read_text())["shards"][1]["name"]
    file = folder / (name + ENDINGS[format])
    if format == "hdf5":
        with h5py.File(file, "r+") as opened:
            opened["fc"][3, 2] += 1
    else:
        with h5py.File(folder.parent / "values.h5", "w") if format == "none" else file.open("rb") as opened:
            data = opened.read()
        value = np.float32(fc_of(folder, format)[20, 2]).tobytes()
        flip(file, data.index(value))
    (told,) = problems(folder)
    assert told.startswith(f"{folder / name}: checksum is ")
    assert main(["check", str(folder)]) == 1


def fc_of(folder, format: str) -> np.ndarray:
    if format == "parquet":
        files = sorted(folder.glob("*.parquet"))
        return np.concatenate([np.array(pq.read_table(file)["fc"].to_pylist(), np.float32) for file in files])
    from ops.records import datum
    from ops.records.lmdb import Reader

    out = []
    for part in sorted((folder / "fc").glob("*.lmdb")):
        with Reader(part) as reader:
            out += [datum.parse(value).pixels().ravel() for _, value in reader.records()]
    return np.stack(out)


@pytest.mark.parametrize("format", FORMATS)
def test_a_part_that_is_cut_short_or_gone_is_named(copy, format, capsys):
    folder = copy(format)
    name = json.loads((folder / "manifest.json").read_text())["shards"][0]["name"]
    file = folder / (name + ENDINGS[format])
    file.write_bytes(file.read_bytes()[:-900])
    (told,) = problems(folder)
    assert told.startswith(str(folder / name))
    assert main(["show", str(folder)]) == 1
    assert f"`cortado check {folder}` looks through all parts" in capsys.readouterr().err
    shutil.rmtree(file) if file.is_dir() else file.unlink()
    assert problems(folder)[0].startswith(str(folder / name))


def test_numbers_that_are_not_finite_are_named_by_row(tmp_path, whole):
    """A part with its own metadata, as another run of the network would have written it."""
    manifest = json.loads((whole / "parquet" / "manifest.json").read_text())
    columns = Columns("key", (), True, {"fc": (6,), "conv1": (4, 14, 14)})
    blobs = {name: np.zeros((3, *shape), np.float32) for name, shape in columns.blobs.items()}
    blobs["fc"][1, 4] = np.nan
    blobs["conv1"][2, 0, 0, 0] = np.inf
    with ParquetWriter(tmp_path / "a.parquet", columns, manifest["features"]) as writer:
        writer.put(Rows(np.arange(3), ["a", "b", "c"], np.arange(3), blobs))
    assert problems(tmp_path / "a.parquet") == [
        f"{tmp_path}/a.parquet: blob 'fc' holds NaN or infinite values in 1 rows, the first is b",
        f"{tmp_path}/a.parquet: blob 'conv1' holds NaN or infinite values in 1 rows, the first is c",
    ]


def test_a_part_of_another_net_a_stray_one_and_wrong_counts_are_told(copy):
    folder = copy("parquet")
    first, second = (folder / f"part-0000{i}.parquet" for i in range(2))
    shutil.copy(first, folder / "part-00002.parquet")
    assert problems(folder) == [f"{folder}/part-00002.parquet: is no part of these features"]
    (folder / "part-00002.parquet").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["features"]["weights_digest"] = "another"
    manifest["bad"] = 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    told = problems(folder)
    assert "weights_digest is" in told[0]
    assert told[0].endswith("the manifest says another: a part of other features")
    assert told[2:] == [
        "manifest.json: 30 listed but 30 used and 1 bad",
        f"{folder}/errors.csv: lists 0 bad images, the manifest says 1",
    ]
    shutil.copy(second, first)
    assert any("first key is 00000015" in one for one in problems(folder))


def test_rows_in_another_order_are_found(copy):
    """Written anew by pyarrow with two rows exchanged, all else as it was."""
    folder = copy("parquet")
    file = folder / "part-00000.parquet"
    table = pq.read_table(file)
    order = [0, 2, 1, *range(3, 15)]
    pq.write_table(table.take(order), file, row_group_size=4)
    (told,) = problems(folder)
    assert "checksum is" in told
    pq.write_table(table, file, row_group_size=4)  # other row groups are the same table
    assert problems(folder) == []


@pytest.mark.parametrize(("format", "times"), [("parquet", 400), ("lmdb", 200), ("hdf5", 60)])
def test_damage_of_any_kind_is_reported_and_never_a_crash(copy, format, times):
    folder, rng, found = copy(format), random.Random(11), 0
    manifest = json.loads((folder / "manifest.json").read_text())
    part = manifest["shards"][0]
    file = folder / (part["name"] + ENDINGS[format])
    data = file.read_bytes()
    for _ in range(times):
        file.write_bytes(damaged(data, rng))
        report = check_part(format, str(folder), part["name"], manifest["features"], part, None)
        assert all("\n" not in one for one in report["problems"])
        found += bool(report["problems"])
    assert found > times * 0.7
