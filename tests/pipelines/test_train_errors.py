"""What a user reads when a training cannot begin or go on: one line with what, where, and what to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import h5py
import lmdb
import numpy as np
import pytest

from ops.proto.caffe_pb2 import Datum
from pipelines.job import one_line
from pipelines.stages.held import held
from pipelines.train import Train
from tests.pipelines.trainings import (
    CONV,
    GOLDEN,
    LAST,
    LOSS,
    RELU,
    Case,
    assert_same,
    data_files,
    hdf5_layer,
    ip,
    net,
    numbers_of,
    rows,
    run,
    solver,
)

REST = (CONV, RELU, ip("conv"), LOSS)
TESTED = 'test_net: "test.prototxt" test_iter: 2 test_interval: 5'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    data_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(case: Case, name: str = "run", **options) -> str:
    """The line with which a training ends."""
    with pytest.raises((ValueError, OSError)) as error:
        run(case.write(Path.cwd()), name, **options)
    line = one_line(error.value)
    assert "\n" not in str(error.value)
    return line


def records_layer(source: object, transform: str = "", batch: int = 4) -> str:
    return (
        f'layer {{ name: "data" type: "Data" top: "data" top: "label" transform_param {{ {transform} }} '
        f'data_param {{ source: "{source}" batch_size: {batch} backend: LMDB }} }}'
    )


def list_layer(source: object, transform: str = "", more: str = "new_height: 12 new_width: 12") -> str:
    return (
        f'layer {{ name: "data" type: "ImageData" top: "data" top: "label" transform_param {{ {transform} }} '
        f'image_data_param {{ source: "{source}" root_folder: "{GOLDEN}/files/photos/" batch_size: 4 {more} }} }}'
    )


def write_records(folder: Path, labels: list[int], shape: tuple[int, int, int] = (2, 8, 8)) -> None:
    """An LMDB of random pictures."""
    numbers = np.random.default_rng(1)
    with lmdb.open(str(folder), map_size=1 << 24) as env, env.begin(write=True) as records:
        for number, label in enumerate(labels):
            pixels = numbers.integers(0, 256, shape, np.uint8)
            datum = Datum(channels=shape[0], height=shape[1], width=shape[2], data=pixels.tobytes(), label=label)
            records.put(f"{number:08d}_p{number}.png".encode(), datum.SerializeToString())


# -- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer", [hdf5_layer(source="no.txt"), records_layer("no.txt"), list_layer("no.txt")], ids=["hdf5", "data", "list"]
)
def test_a_source_that_is_not_there_is_named_with_the_places(layer, folder):
    (folder / "nets").mkdir()
    (folder / "nets" / "net.prototxt").write_text(net(layer, *REST))
    (folder / "nets" / "solver.prototxt").write_text(f'net: "net.prototxt" {solver()}')
    with pytest.raises((ValueError, OSError), match=r"no\.txt") as error:
        run(folder / "nets" / "solver.prototxt", "run")
    line = one_line(error.value)
    assert "'data'" in line
    assert f"{folder}/no.txt" in line
    assert f"{folder}/nets/no.txt" in line
    assert not (folder / "run").exists()  # nothing was begun


def test_an_empty_source_is_named(folder):
    (folder / "empty.txt").write_text("")
    with lmdb.open(str(folder / "empty"), map_size=1 << 20):
        pass
    for layer in (hdf5_layer(source="empty.txt"), list_layer("empty.txt")):
        assert re.search(r"empty\.txt.* (empty|no |names no)", told(Case(net(layer, *REST))))
    assert re.search(r"empty.* (empty|no )records", told(Case(net(records_layer("empty"), *REST))))


def test_an_image_that_cannot_be_read_is_named_with_its_line(folder):
    (folder / "list.txt").write_text("dress_0.jpg 0\nmissing.jpg 1\n")
    line = told(Case(net(list_layer("list.txt"), *REST)))
    assert "list.txt" in line
    assert "missing.jpg" in line


def test_a_label_out_of_range_is_told_with_its_record(folder):
    write_records(folder / "db", [0, 1, 2, 3, 4, 7, 1, 2])
    line = told(Case(net(records_layer("db"), *REST)))
    expected = "net.prototxt: layer 'loss' (SoftmaxWithLoss): label 7 is none of the 5 classes (0 to 4)"
    assert line.startswith(expected)
    assert line.endswith("it is the label of db: record 00000005_p5.png")


def test_a_label_out_of_range_in_a_list_or_table_is_told_with_its_line_or_row(folder):
    (folder / "list.txt").write_text("dress_0.jpg 0\nhat_0.jpg 1\nshirt_0.jpg -3\nhat_1.jpg 2\n")
    line = told(Case(net(list_layer("list.txt"), *REST)))
    assert "label -3 is none of the 5 classes" in line
    assert re.search(r"it is the label of .*list\.txt.*3.*shirt_0\.jpg", line)
    with h5py.File(folder / "odd.h5", "w") as file:
        file["data"], file["label"] = np.zeros((20, 2, 8, 8), np.float32), np.arange(20, dtype=np.float32) % 6
    (folder / "odd.txt").write_text(f"{folder}/odd.h5\n")
    line = told(Case(net(hdf5_layer(source="odd.txt"), *REST)))
    assert "label 5 is none of the 5 classes" in line
    assert re.search(r"it is the label of .*odd\.h5.* row 5", line)


def test_a_label_out_of_range_in_a_test_net_is_told_too(folder):
    write_records(folder / "db", [0, 1, 2, 3, 4, 1, 5, 2])
    accuracy = 'layer { name: "acc" type: "Accuracy" bottom: "ip" bottom: "label" top: "acc" }'
    (folder / "test.prototxt").write_text(net(records_layer("db"), CONV, RELU, ip("conv"), accuracy))
    line = told(Case(solver=solver(TESTED)))
    assert line.startswith("test.prototxt: layer 'acc' (Accuracy): label 5 is none of the 5 classes")
    assert line.endswith("it is the label of db: record 00000006_p6.png")


def test_labels_to_ignore_are_no_strays(folder):
    write_records(folder / "db", [0, 255, 2, 3, 4, 255, 1, 9])
    loss = LOSS.replace('top: "loss"', 'top: "loss" loss_param { ignore_label: 255 }')
    line = told(Case(net(records_layer("db"), CONV, RELU, ip("conv"), loss)))
    assert "label 9 is none" in line
    assert line.endswith("00000007_p7.png")


def test_an_image_smaller_than_the_crop_is_named(folder):
    write_records(folder / "db", [0, 1])
    line = told(Case(net(records_layer("db", "crop_size: 9"), *REST)))
    assert line == "net.prototxt: layer 'data' (Data): crop_size 9 does not fit the records of 2 x 8 x 8"
    write_records(folder / "odd", [0] * 12, (2, 9, 9))
    write_records(folder / "odd", [0] * 7)
    with lmdb.open(str(folder / "odd"), map_size=1 << 24) as env, env.begin(write=True) as records:
        records.put(b"00000000_first", records.get(b"00000011_p11.png"))
    line = told(Case(net(records_layer("odd", "crop_size: 9"), *REST)))
    assert "layer 'data': odd: record 00000000_p0.png: is 8x8, smaller than crop_size 9" in line


def test_a_mean_of_another_shape_is_told_with_both(folder):
    write_records(folder / "db", [0, 1])
    line = told(Case(net(records_layer("db", f'mean_file: "{GOLDEN}/files/mean.binaryproto"'), *REST)))
    assert "layer 'data': db: record 00000000_p0.png: is 2x8x8, the mean file 3x48x64" in line
    line = told(Case(net(records_layer("db", "mean_value: 1 mean_value: 2 mean_value: 3"), *REST)))
    assert re.search(r"layer 'data': .*3 mean_values?.* 2", line)


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_run_with_iteration_layer_and_advice(folder):
    line = told(Case(solver=solver(lr=1e25)))
    found = re.fullmatch(
        r"net\.prototxt: iteration (\d+): the loss is (nan|inf): (the weights of )?layer '(\w+)' \(\w+\) (.*)", line
    )
    assert found, line
    assert "lower base_lr" in found[5]
    assert len(rows(folder / "run")) == int(found[1])
    assert not list((folder / "run").glob("*.caffemodel"))  # weights that are nothing worth are not written


def test_data_that_are_not_finite_are_told_with_the_record(folder):
    data = np.zeros((20, 2, 8, 8), np.float32)
    data[11, 1, 3, 3] = np.nan
    with h5py.File(folder / "odd.h5", "w") as file:
        file["data"], file["label"] = data, np.zeros(20, np.float32)
    (folder / "odd.txt").write_text(f"{folder}/odd.h5\n")
    line = told(Case(net(hdf5_layer(source="odd.txt"), *REST)))
    assert "iteration 1: the loss is nan: input 'data' holds values that are not finite, first in" in line
    assert re.search(r"odd\.h5.* row 11; check the data", line)


def test_a_layer_whose_values_are_not_finite_is_the_one_that_is_named(folder):
    log = 'layer { name: "log" type: "Log" bottom: "conv" top: "log" }'
    line = told(Case(net(hdf5_layer(), CONV, log, ip("log"), LOSS)))
    assert "iteration 0: the loss is nan: layer 'log' (Log) is the first whose top is not finite" in line


# -- nets and solvers ------------------------------------------------------------------------------------------------


def test_a_solver_without_a_net_says_where_it_could_be(folder):
    (folder / "solver.prototxt").write_text(solver())
    with pytest.raises(ValueError, match=r"solver\.prototxt: gives none of them; a solver names its net in one of net"):
        run(folder / "solver.prototxt", "run")
    (folder / "solver.prototxt").write_text(f'net: "nothing.prototxt" {solver()}')
    with pytest.raises(FileNotFoundError, match=r"solver\.prototxt: net 'nothing\.prototxt': there is neither"):
        run(folder / "solver.prototxt", "run")
    with pytest.raises(FileNotFoundError):
        run(folder / "no_solver.prototxt", "run")
    assert not (folder / "run").exists()


def test_a_net_without_a_loss_cannot_be_trained(folder):
    line = told(Case(net(hdf5_layer(), CONV, RELU, ip("conv"))))
    assert line == "net.prototxt: has no loss to train with: add a loss layer, or a loss_weight"


def test_a_test_net_without_a_loss_can_be_tested(folder):
    """As in Caffe: its outputs are what is asked for."""
    accuracy = 'layer { name: "acc" type: "Accuracy" bottom: "ip" bottom: "label" top: "acc" }'
    (folder / "test.prototxt").write_text(net(hdf5_layer(), CONV, RELU, ip("conv"), accuracy))
    done = run(Case(solver=solver(f"{TESTED} test_compute_loss: true")).write(folder), "run")
    assert [one["net"] for one in done["tests"]] == [0]
    assert {row[2] for row in rows(folder / "run", "test.csv")} == {"acc"}
    assert "Test loss: 0" in (folder / "run" / "train.log").read_text()


def test_weights_that_are_not_there_are_named_with_the_places(folder):
    line = told(Case(), weights=("no.caffemodel",))
    assert "no.caffemodel" in line
    assert not (folder / "run").exists()


# -- snapshots and folders -------------------------------------------------------------------------------------------


def test_a_snapshot_that_is_none_says_so(folder):
    run(Case().write(folder, max_iter=2), "first")
    assert "nowhere.solverstate" in told(Case(), snapshot="nowhere.solverstate")
    line = told(Case(), snapshot="first/solver_iter_2.caffemodel")
    assert "weights (a .caffemodel), not a solver state; give the .solverstate that was written with it" in line
    (folder / "first" / "solver_iter_2.caffemodel").unlink()
    line = told(Case(), snapshot="first/solver_iter_2.solverstate")
    assert "solver_iter_2.caffemodel" in line


def test_a_damaged_snapshot_is_refused_where_it_is_asked_for_by_name(folder):
    run(Case().write(folder, max_iter=2), "first")
    file = folder / "first" / "solver_iter_2.caffemodel"
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    line = told(Case(), snapshot="first/solver_iter_2.solverstate")
    assert "solver_iter_2.caffemodel: not the bytes that its snapshot was written with; resume from another" in line


def test_a_new_run_does_not_write_over_another(folder):
    run(Case().write(folder), "run")
    before = (folder / "run" / "metrics.csv").read_bytes()
    line = told(Case())
    assert line == "run: holds a run already: --resume goes on with it, another --run NAME begins anew"
    assert (folder / "run" / "metrics.csv").read_bytes() == before


def test_a_folder_in_use_is_refused_with_who_uses_it(folder):
    run(Case().write(folder), "run", stop=5)
    before = (folder / "run" / "metrics.csv").read_bytes()
    with held(folder / "run" / ".lock"):
        line = told(Case(), resume=True)
    assert line == f"run: another run is writing here (process {os.getpid()} on {os.uname().nodename})"
    assert (folder / "run" / "metrics.csv").read_bytes() == before
    assert run(folder / "solver.prototxt", "run", resume=True)["from"] == 5


def test_snapshots_of_two_runs_at_once_do_not_go_under_one_prefix(folder):
    (folder / "shared").mkdir()
    with held(folder / "shared" / ".snap.lock"):
        line = told(Case(solver=solver(f'snapshot_prefix: "{folder}/shared/snap"')))
        assert f"{folder}/shared: another run is writing here" in line
        done = run(Case().write(folder, snapshot_prefix=f"{folder}/shared/other"), "run")  # another prefix is free
    assert done["iterations"] == LAST


def test_a_lock_that_a_killed_run_left_keeps_nobody_out(folder):
    (folder / "run").mkdir()
    (folder / "run" / ".lock").write_text("process 1 on a machine")
    assert run(Case().write(folder), "run")["iterations"] == LAST
    assert not (folder / "run" / ".lock").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a file system needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_told_and_the_snapshot_before_stays(folder, small_disk):
    """A snapshot is 71 kB here."""
    wide = (
        'layer { name: "wide" type: "InnerProduct" bottom: "conv" top: "wide" inner_product_param { num_output: 60 } }'
    )
    case = Case(
        net(hdf5_layer(), CONV, RELU, wide.replace("60 }", '60 weight_filler { type: "xavier" } }'), ip("wide"), LOSS)
    )
    run(case.write(folder), "undisturbed")
    with pytest.raises(OSError, match=r"No space left on device; [\d,]+ bytes were to be written") as error:
        run(case.write(folder, snapshot=1), small_disk / "run")
    assert re.search(
        rf"{small_disk}/run/solver_iter_\d+\.(caffemodel|solverstate|json): No space", one_line(error.value)
    )
    assert not [name for name in os.listdir(small_disk / "run") if name.startswith(".tmp-")]
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    done = run(case.write(folder, snapshot=1), small_disk / "run", resume=True)
    assert done["from"] >= 1
    assert_same(numbers_of(small_disk / "run", LAST), numbers_of(folder / "undisturbed", LAST))
    assert rows(small_disk / "run") == rows(folder / "undisturbed")


def test_a_table_that_does_not_fit_on_the_disk_is_named(folder, small_disk):
    (small_disk / "fill").write_bytes(bytes(330_000))
    with pytest.raises(OSError, match="No space left on device") as error:
        run(
            Case().write(folder, max_iter=2000, snapshot=2000, snapshot_prefix=str(folder / "snap")), small_disk / "run"
        )
    assert re.fullmatch(rf"{small_disk}/run/[\w.]+: No space left on device", one_line(error.value))


# -- the command -----------------------------------------------------------------------------------------------------


def test_a_gpu_that_is_not_there_is_refused_only_where_it_was_asked_for(folder, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path = Case(solver=solver("solver_mode: GPU")).write(folder, max_iter=2)
    with pytest.raises(ValueError, match="--gpu 0: torch finds no GPU here; --gpu none trains on the CPU"):
        Train(solver=path, run_folder=folder / "run", local=True, gpu="0").run()
    done = Train(solver=path, run_folder=folder / "run", local=True).run()
    assert done["iterations"] == 2
    assert "warning: solver_mode: GPU, and there is none: training on the CPU" in capsys.readouterr().err


def test_the_command_ends_with_one_line_and_code_1(folder, run_cli):
    shutil.copy(GOLDEN / "files" / "mean.binaryproto", folder)
    path = Case(net(records_layer("nowhere"), *REST)).write(folder)
    done = run_cli("train", "--solver", path, "--run", "run", "--local")
    assert done.code == 1
    assert done.stdout == ""
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("cortado: error: net.prototxt: layer 'data' (Data): there is no 'nowhere': looked for")
    assert "Traceback" not in done.stderr
