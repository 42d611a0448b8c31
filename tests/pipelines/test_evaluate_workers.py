"""`cortado test` on several workers: the figures of one, and one line where it cannot be."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import time

import cv2
import h5py
import numpy as np
import psutil
import pytest

from cluster.config import load
from cluster.connect import Connection, Machine
from cluster.scaling import train_pool
from ops import net as nets
from ops import weights
from pipelines.__main__ import main
from pipelines.stages import ray_testing
from tests.pipelines.test_evaluate import GIVEN, NET, Case

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]
LAYER = """
from ops.layers.registry import Layer, layer


@layer("Halved")
class Halved(Layer):
    def forward(self, x):
        return x / 2
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case(tmp_path_factory.mktemp("workers"))


@pytest.fixture
def here(case, monkeypatch):
    monkeypatch.chdir(case.folder)
    return case


def on(workers, *arguments, cpus=1):
    settings = ["--set", f"train.workers={workers}", "--set", f"train.cpus_per_worker={cpus}"]
    return ["test", "--json", "--gpu", "none", *map(str, arguments), *settings]


def found(capsys, line):
    """The result as JSON, and stderr."""
    code = main(line)
    told = capsys.readouterr()
    assert code == 0, told.err
    return json.loads(told.out), told.err


def fails(capsys, line, trace=None):
    """The last line of stderr; `trace`: what the traceback of one's own code, which comes before, must hold."""
    assert main(line) == 1
    told = capsys.readouterr().err
    assert told.count("Traceback") == ("Traceback, your lines only" in told) == (trace is not None)
    assert trace is None or trace in told
    assert "Unhandled" not in told
    return told.splitlines()[-1]


def assert_same(one, other):
    """Counts exactly, means to 1e-6."""
    assert one["matrix"] == other["matrix"]
    assert one["counted"] == sum(map(sum, one["matrix"]))
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
    assert one["outputs"].keys() == other["outputs"].keys()
    for name, values in other["outputs"].items():
        assert one["outputs"][name] == pytest.approx(values, rel=1e-6)
    for name in ("items", "records", "accuracy", "per_class", "crops"):
        assert one[name] == other[name]


def test_several_workers_give_the_figures_and_lines_of_one(ray_session, here, capsys):
    (here.folder / "five.prototxt").write_text(NET.replace("batch_size: 6", "batch_size: 5"))
    given = ("--model", "five.prototxt", "--weights", "w.caffemodel", "--iterations", 7, "--caffe")
    one, said = found(capsys, on(1, *given))
    several, told = found(capsys, on(2, *given))
    assert "batch 5 = 2 workers x 2 or 3\n" in told
    assert "workers" not in said
    assert (one["workers"], several["workers"]) == (1, 2)
    assert_same(several, one)
    lines = [re.findall(r"caffe\.cpp:\d+\] (.*)", text) for text in (said, told)]
    assert [re.split("[=:]", line)[0] for line in lines[0]] == [re.split("[=:]", line)[0] for line in lines[1]]
    values = [[float(number) for line in each for number in re.findall(r"[=:] (\S+)", line)[:1]] for each in lines]
    assert values[1] == pytest.approx(values[0], rel=2e-6)
    assert sum(line.startswith("Batch ") for line in lines[1]) == 14


def test_ten_crops_on_several_workers_are_those_of_one(ray_session, here, capsys):
    one, _ = found(capsys, on(1, *GIVEN, "--iterations", 5, "--oversample"))
    several, _ = found(capsys, on(2, *GIVEN, "--iterations", 5, "--oversample"))
    assert several["crops"] == 10
    assert_same(several, one)


def test_ignored_labels_and_places_in_a_picture_are_divided_too(ray_session, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    numbers = np.random.default_rng(1)
    with h5py.File("t.h5", "w") as file:
        file["scores"] = numbers.normal(size=(15, 3, 2, 2)).astype(np.float32)
        file["label"] = numbers.integers(0, 3, (15, 2, 2)).astype(np.float32)
    (tmp_path / "list.txt").write_text("t.h5\n")
    (tmp_path / "net.prototxt").write_text("""
        layer { name: "d" type: "HDF5Data" top: "scores" top: "label"
                hdf5_data_param { source: "list.txt" batch_size: 5 } }
        layer { name: "s" type: "Scale" bottom: "scores" top: "y" scale_param { filler { value: 1 } } }
        layer { name: "a" type: "Accuracy" bottom: "y" bottom: "label" top: "a" accuracy_param { ignore_label: 1 } }
        layer { name: "l" type: "SoftmaxWithLoss" bottom: "y" bottom: "label" top: "l" loss_param { ignore_label: 1 } }
        layer { name: "p" type: "Softmax" bottom: "y" top: "p" }""")
    weights.write(nets.load(tmp_path / "net.prototxt", "TEST"), tmp_path / "w.caffemodel")
    one, _ = found(capsys, on(1, *GIVEN, "--iterations", 4))
    several, _ = found(capsys, on(2, *GIVEN, "--iterations", 4))
    assert len(several["outputs"]["p"]) == 5 * 3 * 2 * 2
    assert_same(several, one)


def test_layers_of_ones_own_reach_the_workers(ray_session, here, tmp_path, capsys):
    (tmp_path / "halved.py").write_text(LAYER)
    halved = 'layer { name: "half" type: "Halved" bottom: "ip" top: "half" }\nlayer { name: "accuracy"'
    text = NET.replace('layer { name: "accuracy"', halved).replace('Loss" bottom: "ip"', 'Loss" bottom: "half"')
    (here.folder / "own.prototxt").write_text(text)
    given = ("--model", "own.prototxt", "--weights", "w.caffemodel", "--iterations", 5, "--code")
    one, _ = found(capsys, on(1, *given, tmp_path / "halved.py"))
    plain, _ = found(capsys, on(1, *GIVEN, "--iterations", 5))
    assert one["outputs"]["loss"] != plain["outputs"]["loss"]
    several, _ = found(capsys, on(2, *given, tmp_path / "halved.py"))
    assert_same(several, one)
    (tmp_path / "halved.py").write_text(LAYER.replace("x / 2", "x / y"))
    for workers in (1, 2):
        told = fails(capsys, on(workers, *given, tmp_path / "halved.py"), trace="    return x / y\n")
        assert "layer 'half' (Halved): forward: NameError: name 'y' is not defined (halved.py:8)" in told


def test_without_a_number_as_many_test_as_there_is_room_for(ray_session, here, capsys):
    several, _ = found(capsys, on("{min: 1, max: 9}", *GIVEN, "--iterations", 5, cpus=2))
    assert several["workers"] == 2


UP_TO_9 = "{min: 1, max: 9}"
ROOM = [(UP_TO_9, 0, 50, 6), (UP_TO_9, 0, 3, 3), (UP_TO_9, 4, 50, 4), ("5", 0, 5, 5)]
ROOM += [("auto", 0, 50, 1), ("auto", 4, 50, 4), ("auto", 4, 2, 2)]


@pytest.mark.parametrize(("workers", "gpus", "batch", "expected"), ROOM)
def test_no_worker_is_without_a_place_in_the_batch(workers, gpus, batch, expected):
    config = load(None, [f"train.workers={workers}", "train.cpus_per_worker=1"])
    connection = Connection("", True, 0.0, (Machine(4, gpus, 10**9), Machine(2, 0, 10**9)))
    pool = train_pool(config, connection)
    assert ray_testing.workers_for(pool, connection, config, batch, "net") == expected


@pytest.mark.parametrize(
    ("settings", "gpu", "address", "expected"),
    [
        ([], "none", "", True),
        ([], "0", "", True),
        ([], "0,1", "", False),
        (["train.gpu=false"], None, "", True),
        (["train.workers=1"], None, "", True),
        (["train.workers=2"], "none", "", False),
        (["train.workers={min: 1, max: 2}"], "none", "", False),
        (["address=auto"], "none", "", False),
        ([], "none", "10.0.0.1:6379", False),
        (["address=local"], "none", "10.0.0.1:6379", True),
    ],
)
def test_ray_is_wanted_for_a_second_worker_or_a_cluster(monkeypatch, settings, gpu, address, expected):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert ray_testing.one_here(load(None, settings), gpu) is expected


@pytest.mark.parametrize("line", [on(1, *GIVEN), [*on(2, *GIVEN), "--local"]])
def test_one_process_needs_no_ray(here, line):
    code = f"import sys; from pipelines.__main__ import main; sys.exit(main({line!r}) or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=here.folder, check=False).returncode == 0


@pytest.mark.slow
def test_the_workers_of_a_cluster_stand_on_several_nodes(cluster_of, run_cli, here):
    alone = run_cli(*on(1, *GIVEN, "--iterations", 5), cwd=here.folder)
    with cluster_of(2, cpus=1) as outside:
        several = run_cli(*on(2, *GIVEN, "--iterations", 5), "--set", f"address={outside.address}", cwd=here.folder)
        assert several.code == 0, several.stderr
        one = run_cli(*on(1, *GIVEN, "--iterations", 5), "--set", f"address={outside.address}", cwd=here.folder)
    assert "batch 6 = 1 worker x 6" in one.stderr  # a cluster that is named is used
    assert_same(json.loads(several.stdout), json.loads(alone.stdout))


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_more_workers_than_there_is_room_for_are_refused(ray_session, here, capsys):
    told = fails(capsys, on(5, *GIVEN))
    assert "5 workers of 1 CPU cannot run at once: the cluster (1 node, 4 CPUs" in told
    assert "lower train.workers" in told


def test_a_batch_smaller_than_the_workers_is_refused(ray_session, here, capsys):
    (here.folder / "few.prototxt").write_text(NET.replace("batch_size: 6", "batch_size: 2"))
    told = fails(capsys, on(3, "--model", "few.prototxt", "--weights", "w.caffemodel"))
    assert "few.prototxt: a batch of 2 for 3 workers; lower train.workers, or raise batch_size" in told


def test_a_gpu_that_is_not_there_is_refused_before_ray_starts(here, capsys):
    assert "--gpu 7: " in fails(capsys, ["test", *GIVEN, "--gpu", "7", "--set", "train.workers=2"])


def test_what_is_missing_is_told_before_ray_starts(here, capsys):
    told = fails(
        capsys, ["test", "--model", "net.prototxt", "--weights", "gone.caffemodel", "--set", "train.workers=2"]
    )
    assert told == "cortado: error: gone.caffemodel: no such weights"


def test_a_picture_that_one_worker_cannot_read_is_told(ray_session, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        cv2.imwrite(f"{number}.png", np.full((4, 4, 3), number * 40, np.uint8))
    (tmp_path / "5.png").write_bytes(b"no picture")
    (tmp_path / "list.txt").write_text("".join(f"{number}.png {number % 2}\n" for number in range(6)))
    (tmp_path / "net.prototxt").write_text("""
        layer { name: "pictures" type: "ImageData" top: "data" top: "label"
                image_data_param { source: "list.txt" batch_size: 6 } }
        layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }""")
    weights.write(nets.load(tmp_path / "net.prototxt", "TEST"), tmp_path / "w.caffemodel")
    told = fails(capsys, on(2, *GIVEN, "--iterations", 2))
    assert "layer 'pictures'" in told
    assert "5.png" in told


def test_a_net_that_cannot_be_divided_is_told(ray_session, here, capsys):
    text = NET.replace('bottom: "ip" bottom: "label" top: "loss"', 'bottom: "flat" bottom: "label" top: "loss"')
    reshape = 'layer { name: "r" type: "Reshape" bottom: "ip" top: "r" reshape_param { shape { dim: 4 dim: -1 } } }\n'
    back = 'layer { name: "f" type: "Reshape" bottom: "r" top: "flat" reshape_param { shape { dim: -1 dim: 4 } } }\n'
    (here.folder / "mixed.prototxt").write_text(
        text.replace('layer { name: "loss"', reshape + back + 'layer { name: "loss"')
    )
    told = fails(capsys, on(2, "--model", "mixed.prototxt", "--weights", "w.caffemodel"))
    assert "layer 'r' (Reshape)" in told
    assert "cannot be divided among 2 workers" in told


def test_a_killed_worker_ends_the_test_with_one_line(ray_session, here, capsys):
    killed = threading.Event()

    def kill():
        while not killed.is_set():
            for one in psutil.Process().children(recursive=True):  # others on the machine are not ours to end
                with contextlib.suppress(psutil.Error):
                    if "Worker.run" in " ".join(one.cmdline()):
                        time.sleep(1)
                        one.kill()
                        killed.set()
                        return
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        told = fails(capsys, on(2, *GIVEN, "--iterations", 1_000_000))
    finally:
        killed.set()
        killer.join()
    assert "a worker process died" in told
