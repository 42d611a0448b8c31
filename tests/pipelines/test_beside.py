"""What a prototxt names is looked for from the working folder, as Caffe does, then beside the prototxt."""

from __future__ import annotations

import json
import shutil

import cv2
import h5py
import numpy as np
import pytest

from ops import net as nets
from ops import weights
from ops.records import binaryproto, datum, lmdb
from pipelines.__main__ import main

TOPS = 'top: "x" top: "l"'
MEAN = 'transform_param { mean_file: "mean.binaryproto" crop_size: 4 }'
SOURCES = {  # layer, the files or folders that it names
    "Data": (f'{TOPS} {MEAN} data_param {{ source: "records" batch_size: 2 backend: LMDB }}', ["records"]),
    "HDF5Data": (f'{TOPS} hdf5_data_param {{ source: "h5.txt" batch_size: 2 }}', ["h5.txt", "a.h5"]),
    "ImageData": (f'{TOPS} {MEAN} image_data_param {{ source: "list.txt" batch_size: 2 }}', ["list.txt", "pics"]),
    "WindowData": (
        f'{TOPS} {MEAN} window_data_param {{ source: "windows.txt" batch_size: 2 }}',
        ["windows.txt", "pics"],
    ),
}
NET = """
layer { name: "d" type: "TYPE" LAYER }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip"
        inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "l" top: "loss" }
"""
SOLVER = 'test_iter: 1 test_interval: 1 max_iter: 1 base_lr: 0.001 lr_policy: "fixed" solver_mode: CPU'


def fill(folder, seed):
    """Every kind of source, and a mean; other values for another seed."""
    numbers = np.random.default_rng(seed)
    (folder / "pics").mkdir(parents=True)
    with lmdb.Writer(folder / "records") as writer:
        for i in range(4):
            picture = numbers.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            writer.put(f"{i:08d}".encode(), datum.raw(picture, i % 3).tobytes())
            cv2.imwrite(str(folder / f"pics/{i}.png"), picture)
    binaryproto.write(folder / "mean.binaryproto", np.full((3, 6, 6), 100 + seed, np.float32))
    with h5py.File(folder / "a.h5", "w") as file:
        file["x"], file["l"] = numbers.normal(size=(4, 5)).astype("f"), np.arange(4).astype("f") % 3
    (folder / "h5.txt").write_text("a.h5\n")
    (folder / "list.txt").write_text("".join(f"pics/{i}.png {i % 3}\n" for i in range(4)))
    windows = "3\n6\n6\n2\n1 0.9 0 0 3 3\n0 0.1 1 1 4 4\n"
    (folder / "windows.txt").write_text("".join(f"# {i}\npics/{i}.png\n{windows}" for i in range(4)))


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """nets/ with nets and sources, another folder with the same sources aside, and an empty one to work in."""
    fill(tmp_path / "nets", 0)
    fill(tmp_path / "others", 1)
    for kind, (layer, _) in SOURCES.items():
        text = NET.replace("TYPE", kind).replace("LAYER", layer)
        (tmp_path / f"nets/{kind}.prototxt").write_text(text)
        (tmp_path / f"nets/{kind}.solver").write_text(f'net: "{kind}.prototxt" {SOLVER}')
        weights.write(nets.load(tmp_path / f"nets/{kind}.prototxt", "TEST"), tmp_path / f"nets/{kind}.caffemodel")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def loss_of(capsys, kind):
    line = f"test --model ../nets/{kind}.prototxt --weights ../nets/{kind}.caffemodel --iterations 2 --gpu none --json"
    assert main(line.split()) == 0
    return json.loads(capsys.readouterr().out)["loss"]


@pytest.mark.parametrize("kind", SOURCES)
def test_beside_the_prototxt_where_the_working_folder_has_none(beside, capsys, kind):
    for line in (
        f"train --solver ../nets/{kind}.solver --run {kind} --local --gpu none --json",
        f"test --run {kind} --iterations 1 --gpu none --json",
        f"time ../nets/{kind}.prototxt --iterations 1 --json",
        f"show ../nets/{kind}.prototxt --json",
        f"check ../nets/{kind}.prototxt --json",
    ):
        assert main(line.split()) == 0, capsys.readouterr().err


@pytest.mark.parametrize("kind", SOURCES)
def test_the_working_folder_comes_first(beside, capsys, kind):
    before = loss_of(capsys, kind)
    shutil.copytree(beside / "others", beside / "here", dirs_exist_ok=True)
    assert loss_of(capsys, kind) != before
    (beside / "nets/mean.binaryproto").write_bytes(b"no mean")
    shutil.rmtree(beside / "nets/records")
    loss_of(capsys, kind)


@pytest.mark.parametrize("kind", SOURCES)
def test_a_miss_names_both_places(beside, capsys, kind):
    source = SOURCES[kind][1][0]
    gone = beside / "nets" / source
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    lines = [
        f"test --model ../nets/{kind}.prototxt --weights ../nets/{kind}.caffemodel --gpu none",
        f"train --solver ../nets/{kind}.solver --run {kind} --local --gpu none",
    ]
    for line in lines:
        assert main(line.split()) == 1
        told = capsys.readouterr().err.splitlines()[-1]
        assert f"{beside}/here/{source}" in told
        assert f"nets/{source}" in told.replace(f"{beside}/here/{source}", "")


def test_a_solver_whose_net_is_in_neither_place_names_both(beside, capsys):
    (beside / "nets/Data.prototxt").unlink()
    assert main(["train", "--solver", "../nets/Data.solver", "--run", "r", "--local", "--gpu", "none"]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"neither {beside}/here/Data.prototxt nor {beside}/here/../nets/Data.prototxt" in told
