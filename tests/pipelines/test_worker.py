"""Several processes under torchrun train as one: the same batches, and the same curve."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

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
    environment,
    hdf5_layer,
    ip,
    net,
    numbers_of,
    rows,
    run,
    solver,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

BATCH_NORM = (
    'layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }\n'
    'layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }'
)
DROPOUT = 'layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" }'
IMAGES = f"""layer {{ name: "data" type: "ImageData" top: "data" top: "label"
  transform_param {{ crop_size: 20 mirror: true mean_value: 120 scale: 0.01 }}
  image_data_param {{ source: "{GOLDEN}/files/list.txt" root_folder: "{GOLDEN}/files/photos/" batch_size: 7
    new_height: 24 new_width: 24 shuffle: true }} }}"""
# Streams are rows of the data; two layers further time is on axis 0. The weights of the two LSTMs are one.
LSTM = """layer { name: "NAME" type: "LSTM" bottom: "BOTTOM" bottom: "cont_t" top: "NAME"
  param { name: "x" } param { name: "b" } param { name: "h" }
  recurrent_param { num_output: 4 weight_filler { type: "uniform" min: -0.3 max: 0.3 } } }"""
TURN = 'layer { name: "TOP" type: "Permute" bottom: "BOTTOM" top: "TOP" permute_param { order: 1 order: 0 } }'
STREAMS = net(
    hdf5_layer(7, source="streams.txt", tops="data cont label"),
    *(TURN.replace("TOP", f"{name}_t").replace("BOTTOM", name) for name in ("data", "cont", "label")),
    LSTM.replace("NAME", "one").replace("BOTTOM", "data_t"),
    LSTM.replace("NAME", "two").replace("BOTTOM", "one"),
    ip("two").replace("num_output", "axis: 2 num_output"),
    LOSS.replace('"label"', '"label_t"').replace('top: "loss"', 'top: "loss" softmax_param { axis: 2 }'),
)
SHARED = 'param { name: "w" } param { name: "c" }'
TWINS = net(
    hdf5_layer(7),
    CONV,
    RELU,
    *(
        ip("data", 6).replace('"ip"', f'"{name}"').replace("inner_product_param", f"{SHARED} inner_product_param", 1)
        for name in ("left", "right")
    ),
    'layer { name: "sum" type: "Eltwise" bottom: "left" bottom: "right" top: "sum" }',
    ip("sum"),
    LOSS,
    'layer { name: "quiet" type: "Silence" bottom: "conv" }',
)
END = ip("conv").replace('top: "ip"', 'top: "ip" propagate_down: false')
TESTED = 'test_net: "test.prototxt" test_iter: 3 test_interval: 5 test_compute_loss: true display: 4'

CASES = {
    "plain": Case(),
    "a batch that does not divide": Case(net(hdf5_layer(7), CONV, RELU, ip("conv"), LOSS)),
    "iter_size": Case(net(hdf5_layer(5), CONV, RELU, ip("conv"), LOSS), solver("iter_size: 3 average_loss: 4")),
    "BatchNorm": Case(
        net(
            hdf5_layer(7), CONV.replace("num_output", "bias_term: false num_output"), BATCH_NORM, RELU, ip("conv"), LOSS
        )
    ),
    "Dropout": Case(net(hdf5_layer(7), CONV, DROPOUT, ip("conv"), LOSS)),
    "clipped": Case(net(hdf5_layer(7), CONV, RELU, ip("conv"), LOSS), solver("clip_gradients: 0.3")),
    "clipped, iter_size": Case(solver=solver("clip_gradients: 0.5 iter_size: 2")),
    "shared weights": Case(TWINS),
    "weights that stay": Case(
        net(
            hdf5_layer(7),
            CONV.replace("convolution_param", "param { lr_mult: 0 } convolution_param"),
            RELU,
            ip("conv"),
            LOSS,
        )
    ),
    "a gradient that stops": Case(net(hdf5_layer(7), CONV, RELU, END, LOSS)),
    "recurrent": Case(STREAMS),
    "Adam": Case(solver=solver('type: "Adam"', lr=0.01)),
    "plateau": Case(solver=solver("gamma: 0.5 plateau_winsize: 2 plateau_winsize: 3", policy="plateau")),
    "shuffled": Case(options={"feed": {"shuffle": True}}),
    "images": Case(
        net(IMAGES, CONV, RELU, ip("conv", 10), LOSS),
        solver(lr=0.001),
        {"feed": {"augment": "rotate=10,translate=0.1,noise=4,brightness=0.1"}},
    ),
    "tests": Case(solver=solver(TESTED)),
    "ignored labels": Case(
        net(
            hdf5_layer(7),
            CONV,
            RELU,
            ip("conv"),
            LOSS.replace('top: "loss"', 'top: "loss" loss_param { ignore_label: 2 }'),
        )
    ),
}
STOPS = ("BatchNorm", "Dropout", "recurrent", "iter_size", "tests", "shared weights")  # these are stopped, too
AT = 6  # iterations before the stop


def files(folder: Path) -> None:
    data_files(folder)
    numbers = np.random.default_rng(6)
    with h5py.File(folder / "streams.h5", "w") as file:  # a row is a stream of 5 steps
        file["data"] = numbers.normal(size=(30, 5, 4)).astype(np.float32)
        file["cont"] = (numbers.random((30, 5)) > 0.15).astype(np.float32)
        file["label"] = numbers.integers(0, 5, (30, 5)).astype(np.float32)
    (folder / "streams.txt").write_text(f"{folder / 'streams.h5'}\n")
    accuracy = 'layer { name: "acc" type: "Accuracy" bottom: "ip" bottom: "label" top: "acc" top: "each" }'
    (folder / "test.prototxt").write_text(net(hdf5_layer(7), CONV, RELU, ip("conv"), accuracy, LOSS))


def torchrun(world: int, *arguments: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", "-m"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "text": True}
    root = Path(__file__).resolve().parents[2]
    settings = {**environment(), "PYTHONPATH": str(root)}
    return subprocess.Popen([*command, *map(str, arguments)], cwd=cwd or root, env=settings, **pipes)


def jobs_of(folder: Path, world: int) -> list[dict[str, object]]:
    """Every case undisturbed; some of them stopped on this many workers and gone on with, others' stopped ones too."""
    listed = []
    for name, case in CASES.items():
        home = folder / name
        job = {"cwd": str(home), "solver": "solver.prototxt", "options": case.options, "stop": None}
        listed.append({**job, "run": f"{world}-workers"})
        if name in STOPS:
            on = {**case.options, "resume": True}
            listed.append({**job, "run": f"stopped-{world}", "stop": AT})
            listed.append({**job, "run": f"stopped-{world}", "options": on})
            if world == 3:
                listed.append({**job, "run": "from-1-to-3", "options": on})
    return listed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every case trained on one, two and three workers."""
    made = tmp_path_factory.mktemp("workers")
    before = Path.cwd()
    for name, case in CASES.items():
        (made / name).mkdir()
        files(made / name)
        os.chdir(made / name)
        case.write(made / name)
        run(Path("solver.prototxt"), "1-workers", **case.options)
        if name in STOPS:
            run(Path("solver.prototxt"), "from-1-to-3", stop=AT, **case.options)
    os.chdir(before)
    for world in (2, 3):
        file = made / f"jobs-{world}.json"
        file.write_text(json.dumps(jobs_of(made, world)))
        out, err = (process := torchrun(world, "tests.pipelines.train_worker", file)).communicate(timeout=550)
        assert process.returncode == 0, out + err
    return made


def near(found: list[tuple[str, ...]], expected: list[tuple[str, ...]], *, tolerance: float = 1e-5) -> None:
    """Iterations, rates, images, digests are equal, the losses close."""
    assert [(one[0], *one[3:]) for one in found] == [(one[0], *one[3:]) for one in expected]
    for column in (1, 2):
        losses = [[float(one[column]) for one in table] for table in (found, expected)]
        assert losses[0] == pytest.approx(losses[1], rel=tolerance)


def close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 1e-4) -> None:
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert np.linalg.norm(found[name] - value) <= tolerance * max(np.linalg.norm(value), 1e-6 * value.size**0.5), (
            name
        )


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_workers_train_on_the_same_batches_along_the_same_curve(folder, name, world):
    one, many = folder / name / "1-workers", folder / name / f"{world}-workers"
    near(rows(many), rows(one))
    close(arrays(many / f"solver_iter_{LAST}.caffemodel"), arrays(one / f"solver_iter_{LAST}.caffemodel"))
    tests = [rows(run, "test.csv") for run in (many, one)]
    assert [row[:3] for row in tests[0]] == [row[:3] for row in tests[1]]
    values = [[float(row[3]) for row in table] for table in tests]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert ("tests" in name) == bool(tests[0])


@pytest.mark.parametrize("name", STOPS)
def test_stopped_and_gone_on_with_as_many_workers_is_bit_for_bit_the_undisturbed_run(folder, name):
    """The last rank alone was asked to stop."""
    for world in (2, 3):
        stopped, whole = folder / name / f"stopped-{world}", folder / name / f"{world}-workers"
        assert (stopped / f"solver_iter_{AT}.caffemodel").exists() or name == "tests"
        assert rows(stopped) == rows(whole)
        assert_same(numbers_of(stopped, LAST), numbers_of(whole, LAST))
        assert rows(stopped, "test.csv") == rows(whole, "test.csv")


@pytest.mark.parametrize("name", STOPS)
def test_another_number_of_workers_may_go_on(folder, name):
    one, many = folder / name / "1-workers", folder / name / "from-1-to-3"
    near(rows(many), rows(one))
    close(arrays(many / f"solver_iter_{LAST}.caffemodel"), arrays(one / f"solver_iter_{LAST}.caffemodel"))


def test_the_log_of_several_workers_shows_the_outputs_of_the_whole_batch(folder):
    logs = []
    for world in (1, 2, 3):
        lines = (folder / "tests" / f"{world}-workers" / "train.log").read_text().splitlines()
        logs.append([line.partition("] ")[2] for line in lines if "net output" in line])
    assert len(logs[0]) > 20
    for found in logs[1:]:
        for line, expected in zip(found, logs[0], strict=True):
            assert line.partition(" = ")[0] == expected.partition(" = ")[0]
            value, wanted = (float(one.partition(" = ")[2].split()[0]) for one in (line, expected))
            assert value == pytest.approx(wanted, rel=1e-4)


# -- the command -----------------------------------------------------------------------------------------------------


def test_torchrun_meets_caffe_s_trajectory(tmp_path):
    losses, after = runs.trajectory("sgd_iter3")
    os.symlink(SOLVERS / "train.h5", tmp_path / "train.h5")
    options = ["--solver", SOLVERS / "solver_sgd_iter3.prototxt", "--folder", "run"]
    process = torchrun(2, "pipelines.worker", *options, "--weights", SOLVERS / "init_cls.caffemodel", cwd=tmp_path)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.startswith("trained to iteration 24, loss ")
    assert [float(row[2]) for row in rows(tmp_path / "run")] == pytest.approx(losses, rel=1e-5)
    close(arrays(tmp_path / "snap_sgd_iter3_iter_24.caffemodel"), after[24], 1e-5)


def test_torchrun_stops_with_a_snapshot_at_a_signal_and_goes_on(tmp_path):
    files(tmp_path)
    case = CASES["Dropout"]
    case.write(tmp_path, max_iter=100_000, snapshot=50)
    options = ["pipelines.worker", "--solver", "solver.prototxt", "--folder", "run", "--resume"]
    process = torchrun(2, *options, cwd=tmp_path)
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("run/solver_iter_50.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no snapshot was written"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert 'Traceback (most recent call last):\n  File "' + str(Path(__file__).parents[2] / "pipelines") not in err
    stopped = max(int(file.stem.rpartition("_")[2]) for file in tmp_path.glob("run/solver_iter_*.json"))
    assert len(rows(tmp_path / "run")) == stopped
    assert "Optimization stopped early." in (tmp_path / "run" / "train.log").read_text()
    case.write(tmp_path, max_iter=stopped + 7)
    process = torchrun(2, *options, cwd=tmp_path)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert f"trained to iteration {stopped + 7}" in out
    assert len(rows(tmp_path / "run")) == stopped + 7


def test_an_error_of_one_worker_is_told_and_ends_all(tmp_path):
    """The record with the odd label is in the second worker's part."""
    files(tmp_path)
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file["data"] = np.zeros((20, 2, 8, 8), np.float32)
        file["label"] = np.where(np.arange(20) == 14, 9, 0).astype(np.float32)
    (tmp_path / "odd.txt").write_text(f"{tmp_path}/odd.h5\n")
    Case(net(hdf5_layer(source="odd.txt"), CONV, RELU, ip("conv"), LOSS)).write(tmp_path)
    process = torchrun(2, "pipelines.worker", "--solver", "solver.prototxt", "--folder", "run", cwd=tmp_path)
    _, err = process.communicate(timeout=240)  # not the half hour that one would wait for the other
    assert process.returncode != 0
    assert "cortado: error: net.prototxt: layer 'loss' (SoftmaxWithLoss): label 9 is none of the 5 classes" in err
    assert "odd.h5" in err
    assert "row 14" in err


def test_a_net_that_cannot_be_divided_is_refused_by_name(tmp_path):
    files(tmp_path)
    turned = STREAMS.replace("order: 1 order: 0", "order: 0 order: 1").replace("batch_size: 7", "batch_size: 5")
    Case(turned).write(tmp_path)
    process = torchrun(2, "pipelines.worker", "--solver", "solver.prototxt", "--folder", "run", cwd=tmp_path)
    _, err = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "layer 'one' (LSTM) takes time on axis 0" in err
    assert "cannot be divided among 2 workers; use one" in err
