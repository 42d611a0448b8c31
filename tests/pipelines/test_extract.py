"""Extract, on real Ray: Caffe's features, tables that others read, every image once, and clear words for bad input."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import cv2
import duckdb
import h5py
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ops import net as nets
from ops import weights, zoo
from ops.records import datum
from ops.records.lmdb import Reader
from ops.records.lmdb import Writer as LMDBWriter
from pipelines.__main__ import main
from pipelines.extract import Extract
from pipelines.stages import feature_build
from pipelines.stages.build import take
from pipelines.stages.extracting import write_part
from pipelines.stages.feature_output import FeatureOutput
from pipelines.stages.feature_setup import Prepared
from pipelines.stages.featuring import Extractor
from pipelines.stages.output import NoSpaceError
from tests.pipelines.extractions import extract_here, golden_net, table

CONV = """
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param {
  num_output: 4 kernel_size: 5 stride: 2 } }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { pool: AVE global_pooling: true } }
layer { name: "fc" type: "InnerProduct" bottom: "conv1" top: "fc" inner_product_param { num_output: 6 } }
"""
DEPLOY = (
    'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 32 dim: 32 } } }' + CONV
)


@pytest.fixture
def files(golden):
    return golden / "files"


@pytest.fixture
def expected(files):
    with np.load(files / "feat_expected.npz") as found:
        return dict(found)


def extract(files, out, **options):
    """On Ray."""
    return Extract(out=out, **golden_net(files, **options)).run()


def column(out: Path, name: str) -> np.ndarray:
    return np.array(table(out)[name].to_pylist(), np.float32)


def deploy(folder: Path, text: str = DEPLOY) -> Path:
    file = folder / "deploy.prototxt"
    file.write_text(text)
    return file


def errors(out: Path) -> list[dict[str, str]]:
    with (out / "errors.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def fails(capsys, *arguments) -> str:
    """The one line that a command ends with."""
    assert main(["extract", *map(str, arguments)]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cortado: error:")]
    assert len(lines) == 1
    return lines[0]


def golden_options(files, out):
    return ["--model", files / "feat.prototxt", "--weights", files / "feat.caffemodel", "--out", out]


# -- Caffe's numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_blobs_are_caffes_and_rows_are_the_records_in_order(ray_session, files, tmp_path, expected):
    out = tmp_path / "out"
    result = extract(files, out, blobs="data,conv1,pool1,fc", shards="3", batch_size=4)
    found = table(out)
    assert found.column_names == ["key", "label", "data", "conv1", "pool1", "fc"]
    assert found["label"].to_pylist() == expected["label"].tolist()
    with Reader(files / "raw_lmdb") as reader:
        assert found["key"].to_pylist() == [key.decode() for key, _ in reader.records()]
    for name in ("data", "conv1", "pool1", "fc"):
        values = column(out, name)
        np.testing.assert_allclose(values, expected[name].reshape(values.shape), rtol=0, atol=1e-5)
    assert (result["records"], result["bad"], result["shards"]) == (30, 0, 3)
    assert result["blobs"] == {"data": [3, 32, 32], "conv1": [4, 14, 14], "pool1": [4], "fc": [6]}


@pytest.mark.ray
def test_lmdbs_are_those_of_extract_features(ray_session, files, tmp_path):
    """Keys and the layout of the Datums to the bit, numbers to 1e-5; a folder a blob, as Caffe's."""
    extract(files, tmp_path / "out", blobs="fc,pool1", format="lmdb")
    for blob in ("fc", "pool1"):
        with Reader(tmp_path / "out" / blob) as ours, Reader(files / f"{blob}_lmdb") as caffes:
            pairs = list(zip(ours.records(), caffes.records(), strict=True))
            assert len(pairs) == 30
            for (key, value), (caffes_key, caffes_value) in pairs:
                assert key == caffes_key
                one, other = (np.frombuffer(datum_bytes, np.uint8).copy() for datum_bytes in (value, caffes_value))
                for record in (one, other):  # all but the numbers' own four bytes
                    body = record[6:].reshape(-1, 5)
                    body[:, 1:] = 0
                np.testing.assert_array_equal(one, other)
                mine, theirs = (datum.parse(record).pixels() for record in (value, caffes_value))
                np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


def test_more_batches_than_there_are_records_begin_anew_as_extract_features_does(files, tmp_path, expected):
    """Three batches of 16 over 30 records; a batch may straddle the end (data.md, section 7)."""
    again = np.arange(48) % 30
    extract_here(files, tmp_path / "lmdb", format="lmdb", limit=48, repeat=True, batch_size=16)
    with Reader(tmp_path / "lmdb") as reader:
        records = list(reader.records())
    assert [key for key, _ in records] == [b"%010d" % place for place in range(48)]
    values = np.stack([datum.parse(value).pixels().ravel() for _, value in records])
    np.testing.assert_allclose(values, expected["fc"][again], rtol=0, atol=1e-5)
    listed = {"input": str(files / "list.txt"), "root": f"{files}/photos/", "images_dim": "48,64"}
    for name, options in (("records", {}), ("list", listed)):
        extract_here(files, tmp_path / name, limit=48, repeat=True, shards="5", batch_size=7, **options)
        np.testing.assert_allclose(column(tmp_path / name, "fc"), expected["fc"][again], rtol=0, atol=1e-5)
    assert table(tmp_path / "records")["key"].to_pylist()[30:] == table(tmp_path / "records")["key"].to_pylist()[:18]
    extract_here(files, tmp_path / "few", limit=7, repeat=True)
    assert len(table(tmp_path / "few")) == 7
    extract_here(files, tmp_path / "all", limit=48)
    assert len(table(tmp_path / "all")) == 30


def test_the_lmdb_of_one_blob_is_the_folder_itself_and_caffe_reads_its_parts(files, tmp_path):
    extract_here(files, tmp_path / "one", format="lmdb", batch_size=10)  # a library may sum other batches otherwise
    extract_here(files, tmp_path / "three", format="lmdb", batch_size=10, shards="3")
    with Reader(tmp_path / "one") as reader:
        whole = [(key, bytes(value)) for key, value in reader.records()]
    parts = []
    for folder in sorted((tmp_path / "three").glob("part-*.lmdb")):
        with Reader(folder) as reader:
            parts += [(key, bytes(value)) for key, value in reader.records()]
    assert parts == whole
    assert [key for key, _ in whole] == [b"%010d" % i for i in range(30)]


def test_hdf5_has_a_dataset_a_blob(files, tmp_path, expected):
    extract_here(files, tmp_path / "out", blobs="fc,conv1", format="hdf5", shards="2")
    listed = (tmp_path / "out" / "list.txt").read_text().split()
    assert [Path(name).name for name in listed] == ["part-00000.h5", "part-00001.h5"]
    rows = []
    for name in listed:
        with h5py.File(name) as file:
            assert sorted(file) == ["conv1", "fc", "key", "label"]
            rows.append({key: file[key][:] for key in ("conv1", "fc", "label")})
    for key in ("conv1", "fc", "label"):
        values = np.concatenate([row[key] for row in rows])
        np.testing.assert_allclose(values, expected[key], rtol=0, atol=1e-5)


def test_features_go_into_another_net_by_hdf5(files, tmp_path, expected):
    """A net over features: rows of numbers go in as they are, and keep their names."""
    extract_here(files, tmp_path / "one", format="hdf5", shards="2")
    source = tmp_path / "one" / "list.txt"
    layers = [
        f'layer {{ name: "d" type: "HDF5Data" top: "fc" top: "label" hdf5_data_param {{ source: "{source}" }} }}',
        'layer { name: "double" type: "Power" bottom: "fc" top: "twice" power_param { scale: 2 } }',
    ]
    net = tmp_path / "next.prototxt"
    net.write_text("\n".join(layers))
    extract_here(files, model=net, weights=str(files / "feat.caffemodel"), blobs="twice", out=tmp_path / "two")
    np.testing.assert_allclose(column(tmp_path / "two", "twice"), 2 * expected["fc"], rtol=0, atol=2e-5)
    assert table(tmp_path / "two")["key"][0].as_py() == "00000000_dress_0.jpg"
    assert table(tmp_path / "two")["label"].to_pylist() == expected["label"].tolist()


def test_spatial_blobs_are_pooled_and_numbers_halved(files, tmp_path, expected):
    extract_here(files, tmp_path / "mean", blobs="conv1,fc", pool="mean")
    extract_here(files, tmp_path / "max", blobs="conv1", pool="max", dtype="float16")
    np.testing.assert_allclose(column(tmp_path / "mean", "conv1"), expected["conv1"].mean((2, 3)), rtol=0, atol=1e-5)
    np.testing.assert_allclose(column(tmp_path / "mean", "fc"), expected["fc"], rtol=0, atol=1e-5)
    found = table(tmp_path / "max")["conv1"]
    assert found.type == pa.list_(pa.float16(), 4)
    np.testing.assert_allclose(column(tmp_path / "max", "conv1"), expected["conv1"].max((2, 3)), rtol=0.001, atol=1e-4)


@pytest.mark.ray
def test_any_batch_and_any_number_of_actors_give_the_same_numbers(ray_session, files, tmp_path):
    options = {"blobs": "fc,conv1", "shards": "4"}
    extract(files, tmp_path / "one", batch_size=32, set=("data.workers=1",), **options)
    extract(files, tmp_path / "two", batch_size=3, set=("data.workers=2", "data.cpus_per_worker=1"), **options)
    extract(files, tmp_path / "four", batch_size=1, set=("data.workers=4",), **options)
    for name in ("fc", "conv1"):
        for other in ("two", "four"):
            np.testing.assert_allclose(
                column(tmp_path / other, name), column(tmp_path / "one", name), rtol=1e-5, atol=1e-5
            )
    tables = [table(tmp_path / name).select(["key", "label"]) for name in ("one", "two", "four")]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_only_the_layers_that_blobs_need_are_there(files, tmp_path, expected):
    """`fc` of this net cannot be built; `pool1` does not need it."""
    text = (files / "feat.prototxt").read_text().replace("num_output: 6", "num_output: 7")
    net = deploy(tmp_path, text.replace("mean.binaryproto", f"{files}/mean.binaryproto"))
    options = {"model": net, "weights": str(files / "feat.caffemodel"), "input": str(files / "raw_lmdb")}
    extract_here(files, blobs="pool1", out=tmp_path / "out", **options)
    np.testing.assert_allclose(column(tmp_path / "out", "pool1"), expected["pool1"].reshape(30, 4), rtol=0, atol=1e-5)


# -- who reads the table -----------------------------------------------------------------------------------------------


def test_the_table_is_plain_arrow_and_says_where_it_comes_from(files, tmp_path):
    extract_here(files, tmp_path / "out", blobs="fc,conv1")
    file = tmp_path / "out" / "part-00000.parquet"
    schema = pq.read_schema(file)
    assert schema.field("fc").type == pa.list_(pa.float32(), 6)
    assert schema.field("conv1").type == pa.list_(pa.list_(pa.list_(pa.float32(), 14), 14), 4)
    facts = json.loads(schema.metadata[b"cortado"])
    assert facts["net"] == str(files / "feat.prototxt")
    assert facts["blobs"] == {"fc": [6], "conv1": [4, 14, 14]}
    assert facts["transform"]["scale"] == 1 / 256
    assert set(facts["versions"]) == {"cortado", "torch"}
    column = pq.read_metadata(file).row_group(0).column(2)
    assert (column.path_in_schema.split(".")[0], column.compression) == ("fc", "UNCOMPRESSED")
    assert "RLE_DICTIONARY" not in column.encodings


def test_pandas_reads_rows_of_arrays(files, tmp_path, expected):
    extract_here(files, tmp_path / "out", blobs="fc", shards="2")
    frame = pd.concat([pd.read_parquet(file) for file in sorted((tmp_path / "out").glob("*.parquet"))])
    np.testing.assert_allclose(np.stack(frame["fc"]), expected["fc"], rtol=0, atol=1e-5)


def test_duckdb_and_polars_read_lists(files, tmp_path, expected):
    extract_here(files, tmp_path / "out", blobs="fc,conv1", shards="2")
    rows = duckdb.sql(f"select key, fc, conv1[1][2][3] from '{tmp_path}/out/*.parquet' order by key").fetchall()
    np.testing.assert_allclose([row[1] for row in rows], expected["fc"], rtol=0, atol=1e-5)
    np.testing.assert_allclose([row[2] for row in rows], expected["conv1"][:, 0, 1, 2], rtol=0, atol=1e-5)
    frame = polars.read_parquet(f"{tmp_path}/out/*.parquet")
    np.testing.assert_allclose(frame["conv1"].to_numpy(), expected["conv1"], rtol=0, atol=1e-5)


# -- from pictures -----------------------------------------------------------------------------------------------------


def by_hand(net: Path, files: Path, planes: np.ndarray, blob: str = "fc") -> np.ndarray:
    loaded = nets.load(net, weights=files / "feat.caffemodel", inputs={"data": planes.shape})
    return loaded(data=np.ascontiguousarray(planes, np.float32))[blob].detach().numpy()


def photographs(files: Path) -> list[Path]:
    return [files / "photos" / line.split()[0] for line in (files / "list.txt").read_text().splitlines()]


@pytest.mark.ray
def test_a_list_of_jpegs_gives_what_its_records_give(ray_session, files, tmp_path, expected):
    """The net's own transform, after the resize that the records had: the numbers that Caffe took of the records."""
    out = tmp_path / "out"
    extract(files, out, input=str(files / "list.txt"), root=f"{files}/photos/", images_dim="48,64", shards="2")
    np.testing.assert_allclose(column(out, "fc"), expected["fc"], rtol=0, atol=1e-5)
    assert table(out)["path"].to_pylist() == [file.name for file in photographs(files)]
    assert table(out)["label"].to_pylist() == expected["label"].tolist()


def test_a_folder_and_a_parquet_of_images_are_inputs(files, tmp_path, expected):
    names = photographs(files)
    pq.write_table(
        pa.table({"image": [file.read_bytes() for file in names], "label": pa.array(expected["label"], pa.int64())}),
        tmp_path / "images.parquet",
        row_group_size=7,
    )
    extract_here(files, tmp_path / "a", input=str(tmp_path / "images.parquet"), images_dim="48,64")
    np.testing.assert_allclose(column(tmp_path / "a", "fc"), expected["fc"], rtol=0, atol=1e-5)
    extract_here(files, tmp_path / "b", input=str(files / "photos"), images_dim="48,64")
    order = [names.index(files / "photos" / path) for path in table(tmp_path / "b")["path"].to_pylist()]
    np.testing.assert_allclose(column(tmp_path / "b", "fc"), expected["fc"][order], rtol=0, atol=1e-5)


def test_records_of_encoded_and_float_images_are_inputs(files, tmp_path):
    text = (files / "feat.prototxt").read_text().replace('mean_file: "mean.binaryproto"', "mean_value: 100")
    net = deploy(tmp_path, text)
    options = {"model": net, "weights": str(files / "feat.caffemodel"), "blobs": "data"}
    extract_here(files, input=str(files / "encoded_lmdb"), out=tmp_path / "a", **options)
    with Reader(files / "encoded_lmdb") as reader:
        values = [bytes(datum.parse(value).data) for _, value in reader.records()]
    pixels = np.stack([cv2.imdecode(np.frombuffer(one, np.uint8), 1) for one in values]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(column(tmp_path / "a", "data"), (pixels[:, :, 8:40, 8:40] - 100.0) / 256, atol=1e-6)
    with h5py.File(tmp_path / "floats.h5", "w") as file:
        file["data"], file["label"] = pixels.astype(np.float32), np.arange(30, dtype=np.float32)
    extract_here(files, input=str(tmp_path / "floats.h5"), out=tmp_path / "b", **options)
    np.testing.assert_array_equal(column(tmp_path / "a", "data"), column(tmp_path / "b", "data"))
    assert table(tmp_path / "b")["key"][3].as_py() == "00000003"


def test_caffes_flags_do_what_classify_py_does(files, tmp_path):
    """io.Transformer by hand: RGB of 0..1, resize, centre crop, swap, raw_scale, mean, input_scale."""
    net = deploy(tmp_path)
    mean = np.random.default_rng(0).uniform(90, 130, (3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "mean.npy", mean)
    extract_here(files,
        model=net, weights=str(files / "feat.caffemodel"), blobs="fc,data", input=str(files / "list.txt"),
        root=f"{files}/photos/", out=tmp_path / "out", images_dim="40,48", mean_file=str(tmp_path / "mean.npy"),
        raw_scale=200.0, input_scale=0.5, channel_swap="1,0,2",
    )  # fmt: skip
    planes = []
    for file in photographs(files):
        rgb = cv2.imread(str(file))[:, :, ::-1].astype(np.float32) / 255
        crop = cv2.resize(np.ascontiguousarray(rgb), (48, 40))[4:36, 8:40]
        planes.append((crop.transpose(2, 0, 1)[[1, 0, 2]] * 200 - mean) * 0.5)
    np.testing.assert_allclose(column(tmp_path / "out", "data"), np.stack(planes), rtol=0, atol=1e-3)
    np.testing.assert_allclose(column(tmp_path / "out", "fc"), by_hand(net, files, np.stack(planes)), rtol=1e-4)


def test_ten_crops_are_averaged(files, tmp_path):
    """From records through transform_param: its mean image lies under the whole picture."""
    extract_here(files, tmp_path / "out", blobs="fc,pool1", oversample=True, batch_size=2)
    from ops.records import binaryproto

    mean = binaryproto.read(files / "mean.binaryproto")
    with Reader(files / "raw_lmdb") as reader:
        whole = np.stack([(datum.parse(value).pixels() - mean) / 256 for _, value in reader.records()])
    corners = [(0, 0), (0, 32), (16, 0), (16, 32), (8, 16)]
    crops = [whole[:, :, top : top + 32, left : left + 32] for top, left in corners]
    crops += [crop[..., ::-1] for crop in crops]
    for blob in ("fc", "pool1"):
        found = np.mean([by_hand(deploy(tmp_path), files, crop, blob) for crop in crops], axis=0)
        values = column(tmp_path / "out", blob)
        np.testing.assert_allclose(values, found.reshape(values.shape), rtol=0, atol=1e-5)


def test_a_run_brings_net_weights_and_preprocessing(files, tmp_path, expected):
    run = tmp_path / "run"
    run.mkdir()
    deploy(run)
    (run / "best.caffemodel").write_bytes((files / "feat.caffemodel").read_bytes())
    (run / "mean.binaryproto").write_bytes((files / "mean.binaryproto").read_bytes())
    facts = {"net": "deploy.prototxt", "shape": [3, 32, 32], "resize": [48, 64], "crop": 32, "scale": 1 / 256}
    facts |= {"mean": "mean.binaryproto", "channels": "BGR", "best": {"weights": "best.caffemodel"}}
    (run / "model.json").write_text(json.dumps(facts))
    options = {"run_folder": run, "model": None, "weights": None}
    extract_here(files, input=str(files / "list.txt"), root=f"{files}/photos/", out=tmp_path / "a", **options)
    extract_here(files, input=str(files / "raw_lmdb"), out=tmp_path / "b", **options)
    for name in ("a", "b"):
        np.testing.assert_allclose(column(tmp_path / name, "fc"), expected["fc"], rtol=0, atol=1e-5)


@pytest.mark.ray
def test_relative_paths_mean_the_users_folder_not_the_workers(ray_session, files, tmp_path, expected, monkeypatch):
    monkeypatch.chdir(files)
    extract(files, tmp_path / "a", input="raw_lmdb", model=Path("feat.prototxt"), weights="feat.caffemodel")
    np.testing.assert_allclose(column(tmp_path / "a", "fc"), expected["fc"], rtol=0, atol=1e-5)


def test_a_leveldb_is_an_input(files, tmp_path):
    plyvel = pytest.importorskip("plyvel")
    shutil.copytree(files / "raw_leveldb", tmp_path / "db")
    with contextlib.closing(plyvel.DB(str(tmp_path / "db"))) as opened:
        records = list(opened)
    text = 'layer { name: "d" type: "Data" top: "data" top: "label" transform_param { scale: 0.5 } }'
    net = deploy(tmp_path, text + 'layer { name: "r" type: "ReLU" bottom: "data" top: "conv1" }')
    extract_here(files, tmp_path / "out", model=net, blobs="conv1", input=str(files / "raw_leveldb"))
    pixels = np.stack([datum.parse(value).pixels() for _, value in records])
    np.testing.assert_array_equal(column(tmp_path / "out", "conv1"), pixels * np.float32(0.5))
    assert table(tmp_path / "out")["key"].to_pylist() == [key.decode() for key, _ in records]


def test_a_mirror_in_test_is_the_records_own_whatever_the_batch(files, tmp_path):
    """As Caffe, which mirrors in TEST too where transform_param says so."""
    text = (files / "feat.prototxt").read_text().replace("mirror: false", "mirror: true")
    net = deploy(tmp_path, text.replace("mean.binaryproto", f"{files}/mean.binaryproto"))
    for name, options in (("a", {"batch_size": 7}), ("b", {"batch_size": 4, "shards": "3"})):
        extract_here(files, tmp_path / name, model=net, blobs="data", input=str(files / "raw_lmdb"), **options)
    extract_here(files, tmp_path / "plain", blobs="data")
    a, b, plain = (column(tmp_path / name, "data") for name in ("a", "b", "plain"))
    np.testing.assert_array_equal(a, b)
    mirrored = [not np.array_equal(one, other) for one, other in zip(a, plain, strict=True)]
    assert 5 < sum(mirrored) < 25


def test_a_database_without_records_is_told(files, tmp_path, capsys):
    with LMDBWriter(tmp_path / "empty"):
        pass
    told = fails(capsys, *golden_options(files, tmp_path / "o"), "--blobs", "fc", "--input", tmp_path / "empty")
    assert "empty: no images in it" in told


def test_a_net_that_needs_labels_gets_them(files, tmp_path):
    """A blob that is made of labels: one value an image."""
    text = (files / "feat.prototxt").read_text().replace("mean.binaryproto", f"{files}/mean.binaryproto")
    text += 'layer { name: "t" type: "Power" bottom: "label" top: "twice" power_param { scale: 2 } }'
    extract_here(files, tmp_path / "out", model=deploy(tmp_path, text), blobs="twice", input=str(files / "raw_lmdb"))
    found = table(tmp_path / "out")
    assert found["twice"].type == pa.list_(pa.float32(), 1)
    assert [row[0] for row in found["twice"].to_pylist()] == [2 * label for label in found["label"].to_pylist()]


def test_memory_that_runs_out_halves_the_batch_and_changes_nothing(files, tmp_path, expected):
    job = Extract(out=tmp_path, **golden_net(files, batch_size=16))
    prepared = Prepared(job, job.names, tmp_path / "plan")
    with Extractor(prepared.setup, prepared.net, threads=1, device=torch.device("cpu")) as extractor:
        net = extractor.net.forward

        def small(**blobs):
            if len(blobs["data"]) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return net(**blobs)

        extractor.net.forward = small
        made = write_part(extractor, 0, tmp_path / "run", "parquet")
        assert (made.count, made.pieces) == (30, 4)
        found = pq.read_table(tmp_path / "run" / "attempts" / made.attempt / "made" / "part.parquet")
        np.testing.assert_allclose(np.array(found["fc"].to_pylist()), expected["fc"], rtol=0, atol=1e-5)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("format", ["parquet", "lmdb", "hdf5"])
def test_a_full_disk_is_told_with_the_bytes_needed(files, small_disk, format):
    job = Extract(out=small_disk / "out", **golden_net(files, blobs="data,conv1", shards="2", format=format))
    prepared = Prepared(job, job.names, small_disk / "out" / ".run" / "plan")
    output = FeatureOutput(small_disk / "out", prepared.plan, format, job.names)
    with output.held(), Extractor(prepared.setup, prepared.net, threads=1, device=torch.device("cpu")) as extractor:
        made = [write_part(extractor, part, output.run, format) for part in range(2)]
        assert made[1].full
        with pytest.raises(NoSpaceError, match=r"no space left on the device; .*: make room and run the same command"):
            take(made[1], output, check_size=False)
    assert not [file for file in (small_disk / "out").iterdir() if not file.name.startswith(".")]


@pytest.mark.ray
def test_layers_of_ones_own_travel_to_the_workers_and_halve_batches_where_memory_runs_out(
    ray_session, files, tmp_path, expected, capsys
):
    """The layer takes more than the device has, as torch tells it, from five images on."""
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom ops.layers.registry import Layer, layer\n\n\n@layer('Tripled')\nclass Tripled(Layer):\n"
        "    keeps_shape = True\n\n    def forward(self, x):\n        if len(x) > 4 and not x.is_meta:\n"
        "            raise torch.OutOfMemoryError('CUDA out of memory')\n        return 3 * x\n"
    )
    text = (files / "feat.prototxt").read_text().replace("mean.binaryproto", f"{files}/mean.binaryproto")
    text += 'layer { name: "t" type: "Tripled" bottom: "fc" top: "t" }'
    options = {"model": deploy(tmp_path, text), "blobs": "t", "input": str(files / "raw_lmdb")}
    extract(files, tmp_path / "out", code=(tmp_path / "mine.py",), batch_size=16, **options)
    np.testing.assert_allclose(column(tmp_path / "out", "t"), 3 * expected["fc"], rtol=0, atol=3e-5)
    told = "note: memory ran out, batches were halved until 4 images at a time fitted (--batch-size 4)"
    assert told in capsys.readouterr().err


# -- going on ----------------------------------------------------------------------------------------------------------


def written(file: Path) -> tuple[int, int]:
    """Which file, and when: whoever reads it changes neither."""
    return file.stat().st_ino, file.stat().st_mtime_ns


@pytest.mark.ray
def test_finished_features_are_left_alone_and_others_refused(ray_session, files, tmp_path, capsys):
    out = tmp_path / "out"
    extract(files, out)
    before = written(out / "part-00000.parquet")
    assert extract(files, out)["skipped_shards"] == 1
    assert written(out / "part-00000.parquet") == before
    for options, told in (
        ([*golden_options(files, out), "--blobs", "pool1"], "--blobs was fc, is pool1"),
        ([*golden_options(files, out), "--blobs", "fc", "--dtype", "float16"], "--dtype was float32, is float16"),
    ):
        assert told in fails(capsys, *options)
    other = tmp_path / "other.caffemodel"
    net = nets.load(files / "feat.prototxt", inputs={"data": (1, 3, 32, 32), "label": (1,)}, seed=7)
    weights.write(net, other)
    options = ["--model", files / "feat.prototxt", "--weights", other, "--blobs", "fc", "--out", out]
    assert "--weights was" in fails(capsys, *options)
    assert main(["extract", *map(str, options), "--overwrite"]) == 0
    closing = capsys.readouterr().out
    assert f'pd.read_parquet("{out}", ignore_prefixes=["manifest", "errors", "."])' in closing
    assert f'pl.read_parquet("{out}/*.parquet")' in closing
    assert written(out / "part-00000.parquet") != before


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(files, tmp_path):
    """A list of ten photographs, of which one is no picture, one is not there, and one is cut short."""
    names = photographs(files)[:10]
    folder = tmp_path / "mixed"
    folder.mkdir()
    for file in names:
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / names[0].name).write_text("no picture")
    (folder / names[4].name).unlink()
    whole = (folder / names[6].name).read_bytes()
    (folder / names[6].name).write_bytes(whole[: len(whole) * 3 // 4])
    (folder / "list.txt").write_text("".join(f"{file.name} {i}\n" for i, file in enumerate(names)))
    return folder


@pytest.mark.ray
def test_bad_images_have_no_row_and_are_listed(ray_session, files, tmp_path, mixed):
    out = tmp_path / "out"
    options = {"input": str(mixed / "list.txt"), "images_dim": "48,64", "batch_size": 3, "shards": "2"}
    result = extract(files, out, max_bad="50%", **options)
    assert (result["listed"], result["records"], result["bad"], result["warned"]) == (10, 8, 2, 1)
    assert table(out)["label"].to_pylist() == [1, 2, 3, 5, 6, 7, 8, 9]
    rows = errors(out)
    assert [row["line"] for row in rows] == ["1", "5", "7"]
    assert "not an image" in rows[0]["reason"]
    assert rows[1]["reason"] == "No such file or directory"
    assert rows[2]["reason"].startswith("warning: truncated JPEG")
    assert json.loads((out / "manifest.json").read_text())["bad"] == 2


@pytest.mark.ray
def test_too_many_bad_images_fail_before_anything_is_committed(ray_session, files, tmp_path, mixed, capsys):
    out = tmp_path / "out"
    arguments = [*golden_options(files, out), "--blobs", "fc", "--input", mixed / "list.txt", "--images-dim", "48,64"]
    assert "2 of 10 images are bad, more than --max-bad 1% allows" in fails(capsys, *arguments)
    assert not (out / "manifest.json").exists()
    assert [row["line"] for row in errors(out)][:2] == ["1", "5"]


@pytest.mark.ray
def test_images_of_several_sizes_need_a_transform(ray_session, files, tmp_path, capsys):
    text = """layer { name: "data" type: "Data" top: "data" top: "label" transform_param { scale: 0.5 } }
      layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" pooling_param { pool: AVE global_pooling: true } }
      layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param {
        num_output: 4 kernel_size: 5 stride: 2 } }"""
    net = deploy(tmp_path, text)
    arguments = ["--model", net, "--weights", files / "feat.caffemodel", "--blobs", "pool", "--out", tmp_path / "out"]
    told = fails(capsys, *arguments, "--input", files / "list.txt", "--root", f"{files}/photos/")
    assert "images of several sizes need one: give --images-dim H,W" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--blobs", "fc1"], "has no blob 'fc1'; did you mean 'fc'?"),
        (["--blobs", "fc", "--limit", "0"], "--limit 0: expected 1 or more"),
        (["--blobs", "fc,fc"], "--blobs fc,fc: names a blob twice"),
        (["--blobs", "fc", "--format", "lmdb", "--dtype", "float16"], "a Datum holds float32 only"),
        (["--blobs", "fc", "--oversample", "--center-only"], "--oversample and --center-only: give one of them"),
        (["--blobs", "fc", "--input", "nowhere"], "nowhere: No such file or folder"),
        (["--blobs", "fc", "--input", "empty"], "empty: an empty folder"),
        (["--blobs", "fc", "--input", "empty.txt"], "empty.txt: an empty"),
        (["--blobs", "fc", "--gpu", "0"], "--gpu 0: the cluster"),
        (["--blobs", "label", "--out", "o"], "the table has a column of that name already"),
    ],
)
@pytest.mark.ray
def test_what_is_wrong_is_told_in_one_line(ray_session, files, tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("empty.txt").write_text("")
    options = golden_options(files, tmp_path / "out") + arguments
    code = main(["extract", *map(str, options)])
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cortado: error:")]
    assert code in (1, 2)
    assert len(error) == 1
    assert told in error[0]
    assert not list(tmp_path.glob("out/[!.]*"))


def test_a_net_that_does_not_fit_is_told_before_anything_runs(files, tmp_path, capsys):
    input_options = ["--input", files / "raw_lmdb", "--out", tmp_path / "out", "--blobs", "fc"]
    weights = ["--weights", files / "feat.caffemodel"]
    text = (files / "feat.prototxt").read_text().replace("mean.binaryproto", f"{files}/mean.binaryproto")
    wide = deploy(tmp_path, text.replace("num_output: 6", "num_output: 7"))
    assert "(6, 784) weights" in (told := fails(capsys, "--model", wide, *weights, *input_options)) or "6" in told
    other = deploy(tmp_path, text.replace('name: "fc"', 'name: "ip"'))
    assert "no weights for layer 'ip'" in fails(capsys, "--model", other, *weights, *input_options)
    raw = deploy(tmp_path)
    assert "holds raw images, and nothing says how" in fails(capsys, "--model", raw, *weights, *input_options)
    none = ["--model", files / "feat.prototxt", *input_options]
    assert "--weights: give a .caffemodel or .h5 file" in fails(capsys, *none)
    accuracy = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }'
    lost = deploy(tmp_path, text + accuracy)
    told = fails(capsys, "--model", lost, *weights, *input_options[:4], "--blobs", "loss")
    assert "blob 'loss' is one value for the whole batch: it has no row for each image" in told


def test_a_folder_with_other_content_is_left_alone(files, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    told = fails(capsys, *golden_options(files, out), "--blobs", "fc")
    assert "holds 'thesis.tex', which no extraction made; choose an empty folder" in told
    assert [one.name for one in out.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(("name", "side", "large"), [("lenet", 28, False), ("resnet50", 224, True)])
def test_only_actors_of_nets_with_large_blobs_are_started_with_settings_of_memory(name, side, large):
    def net(batch):
        shape = (batch, 1 if name == "lenet" else 3, side, side)
        return nets.load(zoo.find(name, "deploy.prototxt"), inputs={"data": shape}, device="meta")

    assert bool(feature_build.environment(SimpleNamespace(batch=32, net=net))) == large
