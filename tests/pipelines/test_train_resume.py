"""Stopped and resumed at any iteration, a training is bit for bit the one that nothing happened to."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from pipelines.worker import STOP
from tests.ops.solver import golden as runs
from tests.pipelines.trainings import (
    CONV,
    GOLDEN,
    LAST,
    LOSS,
    RELU,
    SOLVERS,
    Case,
    arrays,
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

DROPOUT = 'layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" }'
BATCH_NORM = (
    'layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }\n'
    'layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }'
)
NOISE = """layer { name: "noise" type: "DummyData" top: "noise" dummy_data_param {
  shape { dim: 8 dim: 4 dim: 6 dim: 6 } data_filler { type: "gaussian" } } }
layer { name: "sum" type: "Eltwise" bottom: "conv" bottom: "noise" top: "noisy" }"""
TIME = """layer { name: "lstm" type: "LSTM" bottom: "data" bottom: "cont" top: "lstm"
  recurrent_param { num_output: 6 weight_filler { type: "uniform" min: -0.3 max: 0.3 } } }
layer { name: "ip" type: "InnerProduct" bottom: "lstm" top: "ip"
  inner_product_param { num_output: 5 axis: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" softmax_param { axis: 2 } }"""
SEQUENCES = hdf5_layer(6, source="time_list.txt", tops="data cont label")
IMAGES = f"""layer {{ name: "data" type: "ImageData" top: "data" top: "label"
  transform_param {{ crop_size: 20 mirror: true mean_value: 120 scale: 0.01 }}
  image_data_param {{ source: "{GOLDEN}/files/list.txt" root_folder: "{GOLDEN}/files/photos/" batch_size: 7
    new_height: 24 new_width: 24 shuffle: true }} }}"""
RECORDS = f"""layer {{ name: "data" type: "Data" top: "data" top: "label"
  transform_param {{ crop_size: 16 mean_file: "{GOLDEN}/files/mean.binaryproto" scale: 0.01 }}
  data_param {{ source: "{GOLDEN}/files/raw_lmdb" batch_size: 4 backend: LMDB }} }}"""
TESTED = 'test_iter: 3 test_iter: 2 test_interval: 4 test_net: "test.prototxt"'

CASES = {
    "plain": Case(),
    "iter_size": Case(solver=solver("iter_size: 3 average_loss: 4")),
    "batches over the end of an epoch": Case(net(hdf5_layer(7), CONV, RELU, ip("conv"), LOSS)),
    "shuffled": Case(options={"feed": {"shuffle": True}}),
    "shuffled by the layer": Case(net(hdf5_layer(7, "shuffle: true"), CONV, RELU, ip("conv"), LOSS)),
    "balanced": Case(options={"feed": {"balance": True}}),
    "Dropout": Case(net(hdf5_layer(), CONV, DROPOUT, ip("conv"), LOSS)),
    "BatchNorm": Case(net(hdf5_layer(), CONV, BATCH_NORM, RELU, ip("conv"), LOSS)),
    "DummyData": Case(net(hdf5_layer(), CONV, NOISE, ip("noisy"), LOSS)),
    "multistep": Case(solver=solver("gamma: 0.3 stepvalue: 2 stepvalue: 2 stepvalue: 9", policy="multistep")),
    "plateau": Case(
        solver=solver("gamma: 0.5 plateau_winsize: 2 plateau_winsize: 3 average_loss: 3", policy="plateau")
    ),
    "Adam, warm-up": Case(solver=solver('type: "Adam" warmup_iter: 5 warmup_start_lr: 0.001', lr=0.01)),
    "AdaDelta": Case(solver=solver('type: "AdaDelta" delta: 1e-6', lr=1)),
    "clipped": Case(solver=solver("clip_gradients: 0.5")),
    "recurrent": Case(net(SEQUENCES, TIME)),
    "images, shuffled and augmented": Case(
        net(IMAGES, CONV, RELU, ip("conv", 10), LOSS),
        solver(lr=0.001),
        {"feed": {"augment": "rotate=10,translate=0.1,noise=4,brightness=0.1"}},
    ),
    "records": Case(net(RECORDS, CONV, DROPOUT, ip("conv", 10), LOSS), solver(lr=0.001)),
    "tests": Case(solver=solver(f"{TESTED} display: 3")),
    "tests with a state": Case(net(SEQUENCES, TIME), solver(TESTED.replace("test.prototxt", "sequences.prototxt"))),
    "HDF5": Case(solver=solver("snapshot_format: HDF5 snapshot: 5")),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a case is written and run."""
    data_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    layer = hdf5_layer(5, more="shuffle: true")
    (tmp_path / "test.prototxt").write_text(net(layer, CONV, RELU, ip("conv"), LOSS))
    (tmp_path / "sequences.prototxt").write_text(net(SEQUENCES.replace("batch_size: 6", "batch_size: 4"), TIME))
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_a_training_that_stops_and_goes_on_again_and_again_is_the_undisturbed_one(name, folder):
    case = CASES[name]
    ending = ".h5" if name == "HDF5" else ""
    run(case.write(folder), "undisturbed", **case.options)
    stops = [1, 4, 6, 11]
    for stop in stops:
        told = run(folder / "solver.prototxt", "stopped", resume=True, stop=stop, **case.options)
        assert told["stopped"]
        assert told["iterations"] == stop if "tests" not in name else told["iterations"] <= stop  # it stops in a test
    told = run(folder / "solver.prototxt", "stopped", resume=True, **case.options)
    assert told["from"] > 0
    assert (told["iterations"], told["stopped"]) == (LAST, False)
    assert_same(
        numbers_of(folder / "stopped", LAST, ending=ending), numbers_of(folder / "undisturbed", LAST, ending=ending)
    )
    found = rows(folder / "stopped")
    assert [int(row[0]) for row in found] == list(range(LAST))
    assert found == rows(folder / "undisturbed")
    assert rows(folder / "stopped", "test.csv") == rows(folder / "undisturbed", "test.csv")
    assert ("tests" in name) == bool(rows(folder / "stopped", "test.csv"))


# -- from a snapshot -------------------------------------------------------------------------------------------------


def test_taking_snapshots_changes_nothing(folder):
    case = CASES["BatchNorm"]
    run(case.write(folder), "without")
    run(case.write(folder, snapshot=2), "with", keep=3)
    assert_same(numbers_of(folder / "with", LAST), numbers_of(folder / "without", LAST))
    kept = sorted(int(file.stem.rpartition("_")[2]) for file in (folder / "with").glob("solver_iter_*.caffemodel"))
    assert kept == [10, 12, 13]


@pytest.mark.parametrize("at", [2, 5, 12])
def test_a_new_run_goes_on_from_a_snapshot_of_another(at, folder):
    case = CASES["iter_size"]
    run(case.write(folder, snapshot=1), "first")
    told = run(folder / "solver.prototxt", "second", snapshot=f"first/solver_iter_{at}.solverstate")
    assert told["from"] == at
    assert_same(numbers_of(folder / "second", LAST), numbers_of(folder / "first", LAST))
    assert rows(folder / "second") == rows(folder / "first")[at:]


def test_a_snapshot_that_was_moved_with_its_run_is_found(folder):
    run(Case().write(folder), "undisturbed")
    run(folder / "solver.prototxt", "here", stop=5)
    (folder / "there").mkdir()
    shutil.move(folder / "here", folder / "there" / "run")
    told = run(folder / "solver.prototxt", "there/run", resume=True)
    assert told["from"] == 5
    assert_same(numbers_of(folder / "there" / "run", LAST), numbers_of(folder / "undisturbed", LAST))


def test_a_longer_run_goes_on_where_the_shorter_ended(folder):
    """Its last forward and test, after the snapshot, leave no trace."""
    case = Case(CASES["BatchNorm"].net, solver(TESTED + " display: 4"))
    run(case.write(folder), "undisturbed")
    run(case.write(folder, max_iter=8), "longer")
    told = run(case.write(folder, max_iter=LAST), "longer", resume=True)
    assert told["from"] == 8
    assert_same(numbers_of(folder / "longer", LAST), numbers_of(folder / "undisturbed", LAST))
    assert rows(folder / "longer") == rows(folder / "undisturbed")
    assert rows(folder / "longer", "test.csv") == rows(folder / "undisturbed", "test.csv")


def test_a_run_that_is_done_does_nothing_when_resumed(folder):
    run(Case().write(folder), "run")
    before = numbers_of(folder / "run", LAST)
    told = run(folder / "solver.prototxt", "run", resume=True)
    assert (told["from"], told["iterations"]) == (LAST, LAST)
    assert_same(numbers_of(folder / "run", LAST), before)
    assert len(rows(folder / "run")) == LAST


def test_resume_begins_where_there_is_nothing(folder):
    run(Case().write(folder), "new")
    told = run(folder / "solver.prototxt", "resumed", resume=True)
    assert told["from"] == 0
    assert_same(numbers_of(folder / "resumed", LAST), numbers_of(folder / "new", LAST))


def test_a_damaged_snapshot_is_passed_over_for_the_one_before(folder, capsys):
    run(Case().write(folder, snapshot=3), "run")
    expected, table = numbers_of(folder / "run", LAST), rows(folder / "run")
    for iteration in (LAST, 12):
        file = folder / "run" / f"solver_iter_{iteration}.caffemodel"
        file.write_bytes(file.read_bytes()[:-7])
    told = run(folder / "solver.prototxt", "run", resume=True)
    assert told["from"] == 9
    assert capsys.readouterr().err.count("an older one is taken") == 2
    assert_same(numbers_of(folder / "run", LAST), expected)
    assert rows(folder / "run") == table


def test_a_run_that_began_with_a_snapshot_begins_there_again(folder):
    """Where it had none of its own before it was lost."""
    run(Case().write(folder, snapshot=4), "first")
    path = folder / "first" / "solver_iter_8.solverstate"
    run(folder / "solver.prototxt", "second", snapshot=str(path), stop=3)
    for file in (folder / "second").glob("solver_iter_*"):
        file.unlink()
    told = run(folder / "solver.prototxt", "second", resume=True)
    assert told["from"] == 8
    assert_same(numbers_of(folder / "second", LAST), numbers_of(folder / "first", LAST))
    assert rows(folder / "second") == rows(folder / "first")[8:]


def test_a_run_goes_on_from_its_own_snapshots_among_those_of_others_with_the_same_prefix(folder):
    prefix = str(folder / "shared" / "snap")
    run(Case().write(folder), "undisturbed")
    run(
        Case().write(folder, snapshot_prefix=prefix, snapshot=1),
        "one",
        weights=("undisturbed/solver_iter_13.caffemodel",),
    )
    for iteration in (3, 4, 5):  # the other run's
        for file in (folder / "shared").glob(f"snap_iter_{iteration}.*"):
            file.unlink()
    run(Case().write(folder, snapshot_prefix=prefix), "two", stop=4)
    told = run(folder / "solver.prototxt", "two", resume=True)
    assert told["from"] == 4
    assert_same(numbers_of(folder / "shared", LAST, "snap"), numbers_of(folder / "undisturbed", LAST))
    assert (folder / "two" / f"snap_iter_{LAST}.caffemodel").resolve().parent == folder / "shared"


# -- Caffe's own -----------------------------------------------------------------------------------------------------


@pytest.fixture
def golden_folder(tmp_path, monkeypatch):
    shutil.copytree(SOLVERS, tmp_path / "solvers")
    monkeypatch.chdir(tmp_path / "solvers")
    return tmp_path


@pytest.mark.parametrize("name", runs.SNAPSHOTS)
def test_caffe_s_own_snapshot_goes_on_as_caffe_did(name, golden_folder):
    """Iterations 10 to 23, on the batches that come then: 10 iterations of 8 records are behind."""
    losses, after = runs.trajectory(name)
    path = golden_folder / "solvers" / f"solver_{name}.prototxt"
    told = run(path, "../run", snapshot=f"snap_{name}_iter_10.solverstate")
    assert (told["from"], told["iterations"]) == (10, 24)
    found = rows(golden_folder / "run")
    assert [int(row[0]) for row in found] == list(range(10, 24))
    assert np.array([float(row[2]) for row in found]) == pytest.approx(losses[10:], rel=1e-5)
    for blob, value in arrays(golden_folder / "solvers" / f"snap_{name}_iter_24.caffemodel").items():
        assert runs.error(value, after[24][blob]) < 1e-5, blob


def test_resume_goes_on_from_caffe_s_snapshot_where_the_run_has_no_other(golden_folder):
    told = run(golden_folder / "solvers" / "solver_adam.prototxt", "../run", resume=True)
    assert told["from"] == 10
    losses, _ = runs.trajectory("adam")
    assert [float(row[2]) for row in rows(golden_folder / "run")] == pytest.approx(losses[10:], rel=1e-5)


@pytest.mark.parametrize(("size", "batch"), [(3, 8), (2, 7)])
def test_the_data_of_caffe_s_snapshot_go_on_after_iter_size_batches_an_iteration(size, batch, folder):
    """As if the JSON of ours were not there: iteration x iter_size x batch records are behind."""
    case = Case(net(hdf5_layer(batch), CONV, RELU, ip("conv"), LOSS), solver(f"iter_size: {size}"))
    run(case.write(folder, snapshot=5), "ours")
    (folder / "ours" / "solver_iter_5.json").unlink()
    run(folder / "solver.prototxt", "theirs", snapshot="ours/solver_iter_5.solverstate")
    assert_same(numbers_of(folder / "theirs", LAST), numbers_of(folder / "ours", LAST))
    assert rows(folder / "theirs") == rows(folder / "ours")[5:]


# -- what may change, and what may not -------------------------------------------------------------------------------

FREE = {
    "max_iter": 9,
    "display": 2,
    "average_loss": 5,
    "test_iter": [2],
    "test_interval": 3,
    "test_initialization": False,
    "test_compute_loss": True,
    "snapshot": 2,
    "snapshot_after_train": False,
    "debug_info": True,
    "snapshot_diff": True,
    "momentum2": 0.999,  # the default, written out
    "weights": ["nowhere.caffemodel"],
}


@pytest.mark.parametrize("name", FREE)
def test_what_decides_no_number_may_change_between_a_run_and_its_continuation(name, folder):
    run(Case().write(folder, snapshot=4), "undisturbed")
    run(Case().write(folder), "run", stop=4)
    changes = {"test_interval": 3, "test_iter": [2]} if name.startswith("test_") else {}
    last = 9 if name == "max_iter" else LAST
    run(Case().write(folder, **{"snapshot": 4, **changes, name: FREE[name]}), "run", resume=True)
    assert rows(folder / "run") == rows(folder / "undisturbed")[:last]


def test_data_mean_and_nets_may_lie_elsewhere(folder):
    case = CASES["records"]
    run(case.write(folder), "undisturbed", **case.options)
    run(folder / "solver.prototxt", "run", stop=4)
    shutil.copytree(GOLDEN / "files" / "raw_lmdb", folder / "moved")
    shutil.copy(GOLDEN / "files" / "mean.binaryproto", folder / "mean.binaryproto")
    text = case.net.replace(f"{GOLDEN}/files/raw_lmdb", "moved").replace(f"{GOLDEN}/files/mean", "mean")
    assert str(GOLDEN) not in text
    (folder / "other").mkdir()
    path = dataclasses.replace(case, net=text).write(folder / "other")
    run(path, "run", resume=True)
    assert_same(numbers_of(folder / "run", LAST), numbers_of(folder / "undisturbed", LAST))
    assert rows(folder / "run") == rows(folder / "undisturbed")


DECIDING = {
    "base_lr": (0.1, "base_lr: 0.05 then, base_lr: 0.1 now"),
    "random_seed": (4, "random_seed: 3 then, random_seed: 4 now"),
    "iter_size": (2, "nothing then, iter_size: 2 now"),
    "clip_gradients": (1.0, "nothing then, clip_gradients: 1 now"),
}


@pytest.mark.parametrize("name", DECIDING)
def test_resume_refuses_another_solver_and_says_what_differs(name, folder):
    value, told = DECIDING[name]
    run(Case().write(folder), "run", stop=4)
    with pytest.raises(ValueError, match="was made with another solver") as error:
        run(Case().write(folder, **{name: value}), "run", resume=True)
    assert f"run/solver_iter_4.solverstate: was made with another solver ({told}); give what run was" in str(
        error.value
    )
    assert len(rows(folder / "run")) == 4


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (net(hdf5_layer(), CONV, DROPOUT, ip("conv"), LOSS), "a layer 'relu' then only"),
        (net(hdf5_layer(6), CONV, RELU, ip("conv"), LOSS), "layer 'data': batch_size: 8 then, batch_size: 6 now"),
        (net(hdf5_layer(), CONV, RELU, ip("conv", 7), LOSS), "layer 'ip': num_output: 5 then, num_output: 7 now"),
    ],
)
def test_resume_refuses_another_net_and_says_what_differs(changed, told, folder):
    run(Case().write(folder), "run", stop=4)
    with pytest.raises(ValueError, match="was made with another net") as error:
        run(Case(changed).write(folder), "run", resume=True)
    assert f"another net ({told})" in str(error.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"feed": {"shuffle": True}}, 'another feed ({} then, {"shuffle": true} now)'),
        ({"precision": "bf16"}, 'another precision ("fp32" then, "bf16" now)'),
        ({"label_smoothing": 0.1}, "another label_smoothing (0.0 then, 0.1 now)"),
    ],
)
def test_resume_refuses_other_options(options, told, folder):
    run(Case().write(folder), "run", stop=4)
    with pytest.raises(ValueError, match="was made with") as error:
        run(folder / "solver.prototxt", "run", resume=True, **options)
    assert told in str(error.value)


def test_a_snapshot_may_go_on_with_another_solver_as_caffe_s_own_examples_do(folder, capsys):
    """A lower rate for the last iterations, in a solver of its own."""
    run(Case().write(folder), "first", stop=8)
    path = Case().write(folder, base_lr=0.005)
    told = run(path, "second", snapshot="first/solver_iter_8.solverstate")
    assert (told["from"], told["iterations"]) == (8, LAST)
    assert "warning: first/solver_iter_8.solverstate was made with another solver" in capsys.readouterr().err
    assert [row[3] for row in rows(folder / "second")] == ["0.00499999989"] * (LAST - 8)
    shutil.rmtree(folder / "second")
    run(path, "second", snapshot="first/solver_iter_8.solverstate", stop=2)
    for file in (folder / "second").glob("solver_iter_*"):
        file.unlink()
    assert run(path, "second", resume=True)["from"] == 8


def test_a_snapshot_of_a_net_of_other_shapes_is_refused(folder):
    run(Case().write(folder), "first", stop=4)
    path = Case(net(hdf5_layer(), CONV, RELU, ip("conv", 7), LOSS)).write(folder)
    with pytest.raises(ValueError, match=r"history 2 \(layer 'ip' blob 0\) is 5 x 144, the net wants 7 x 144"):
        run(path, "second", snapshot="first/solver_iter_4.solverstate")
    assert not (folder / "second").exists()


def test_an_iteration_without_update_may_stop(folder):
    """STOP while nothing is done yet: a snapshot at 0, from which all goes on."""
    case = CASES["tests"]
    told = run(case.write(folder), "run", stop=0)
    assert (told["iterations"], told["stopped"], told["loss"]) == (0, True, None)
    assert STOP == 1
