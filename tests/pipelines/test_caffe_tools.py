"""Caffe's tools and verbs, run as their users type them on small things in Caffe's places, leave what ours leave."""

from __future__ import annotations

import json
import re
import shlex
import shutil

import cv2
import numpy as np
import pytest

from ops import net as nets
from ops import weights
from ops.records import datum, lmdb
from pipelines.__main__ import main

NET = """
name: "LeNet"
layer { name: "mnist" type: "Data" top: "data" top: "label" include { phase: TRAIN } transform_param { scale: 0.004 }
        data_param { source: "examples/mnist/mnist_train_lmdb" batch_size: 4 backend: LMDB } }
layer { name: "mnist" type: "Data" top: "data" top: "label" include { phase: TEST } transform_param { scale: 0.004 }
        data_param { source: "examples/mnist/mnist_test_lmdb" batch_size: 3 backend: LMDB } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 3 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "ip2" type: "InnerProduct" bottom: "conv1" top: "ip2"
        inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip2" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }
"""
SOLVER = """
net: "examples/mnist/lenet_train_test.prototxt" test_iter: 2 test_interval: 2 base_lr: 0.01 momentum: 0.9
lr_policy: "inv" gamma: 0.0001 power: 0.75 display: 1 max_iter: 4 snapshot: 2 snapshot_prefix: "examples/mnist/lenet"
solver_mode: CPU random_seed: 1
"""
OLD_SOLVER = "solver_type: ADAM net: 'n.prototxt' base_lr: 0.1 lr_policy: 'fixed'\n"


def records(folder, count, numbers):
    with lmdb.Writer(folder) as writer:
        for i in range(count):
            picture = numbers.integers(0, 256, (6, 6, 1), dtype=np.uint8)
            writer.put(f"{i:08d}".encode(), datum.raw(picture, i % 3).tobytes())


@pytest.fixture(scope="session")
def caffe_root(tmp_path_factory, golden):
    """Small things in the places where Caffe's lines look for them."""
    root = tmp_path_factory.mktemp("caffe")
    numbers = np.random.default_rng(3)
    for name in ("examples/mnist", "data/mnist", "data/cifar10", "data/ilsvrc12/images", "examples/cifar10", "old"):
        (root / name).mkdir(parents=True)
    for i in range(9):
        picture = cv2.resize(numbers.integers(0, 256, (4, 5, 3), dtype=np.uint8), (20, 16))
        cv2.imwrite(str(root / f"data/ilsvrc12/images/{i}.jpg"), picture)
    (root / "data/ilsvrc12/train.txt").write_text("".join(f"{i}.jpg {i % 3}\n" for i in range(9)))
    records(root / "examples/mnist/mnist_train_lmdb", 10, numbers)
    records(root / "examples/mnist/mnist_test_lmdb", 6, numbers)
    (root / "examples/mnist/lenet_train_test.prototxt").write_text(NET)
    (root / "features.prototxt").write_text(NET.replace('"examples/', f'"{root}/examples/'))
    (root / "examples/mnist/lenet_solver.prototxt").write_text(SOLVER)
    images, labels = numbers.integers(0, 256, (5, 28, 28), np.uint8), bytes([3, 1, 4, 1, 5])
    (root / "data/mnist/train-images-idx3-ubyte").write_bytes(
        bytes([0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 28, 0, 0, 0, 28]) + images.tobytes()
    )
    (root / "data/mnist/train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 5]) + labels)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = numbers.integers(0, 10, (2, 3073), np.uint8)
        (root / f"data/cifar10/{name}.bin").write_bytes(batch.tobytes())
    for form in ("v0", "v1"):
        shutil.copy(golden / f"legacy/{form}.prototxt", root / "old")
        shutil.copy(golden / f"legacy/{form}.caffemodel", root / "old")
    (root / "old/solver.prototxt").write_text(OLD_SOLVER)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        net = nets.load("examples/mnist/lenet_train_test.prototxt", "TEST", seed=5)
        weights.write(net, root / "examples/mnist/begin.caffemodel")
        line = "train --solver examples/mnist/lenet_solver.prototxt --run begun --local --gpu none --json"
        assert main(line.split()) == 0
    return root


@pytest.fixture
def twice(caffe_root, tmp_path, monkeypatch, capsys):
    """Types a line of Caffe's and one of ours, each in a folder of its own; (folder, result, stderr) of both."""

    def run(typed, ours):
        found = []
        for name, line in (("typed", typed), ("ours", ours)):
            folder = tmp_path / name
            shutil.copytree(caffe_root, folder, dirs_exist_ok=True)
            monkeypatch.chdir(folder)
            capsys.readouterr()
            code = main(shlex.split(line))
            told = capsys.readouterr()
            assert code == 0, told.err
            found.append((folder, [json.loads(one) for one in told.out.splitlines()], told.err))
        return found

    return run


# -- lines ------------------------------------------------------------------------------------------------------------

TRAINED = "--model examples/mnist/lenet_train_test.prototxt --weights examples/mnist/lenet_iter_4.caffemodel"
IMAGES = "--root data/ilsvrc12/images/ --list data/ilsvrc12/train.txt --shards 1 --json"
# as typed -> (ours, what it leaves behind)
TYPED = {
    "convert_imageset --resize_height=8 --resize_width=8 --shuffle -json data/ilsvrc12/images/ data/ilsvrc12/train.txt "
    "examples/train_lmdb": (
        f"convert {IMAGES} --out examples/train_lmdb --shuffle --resize-height 8 --resize-width 8",
        ["examples/train_lmdb/data.mdb"],
    ),
    "convert_imageset.bin -gray -check_size -backend lmdb -json data/ilsvrc12/images/ data/ilsvrc12/train.txt DB": (
        f"convert {IMAGES} --out DB --gray --check-size",
        ["DB/data.mdb"],
    ),
    "convert_imageset -encoded=true -encode_type png -json data/ilsvrc12/images/ data/ilsvrc12/train.txt DB": (
        f"convert {IMAGES} --out DB --encoded --encode-type png",
        ["DB/data.mdb"],
    ),
    "compute_image_mean -backend=lmdb -json examples/mnist/mnist_train_lmdb examples/mnist/mean.binaryproto": (
        "mean examples/mnist/mnist_train_lmdb --out examples/mnist/mean.binaryproto --json",
        ["examples/mnist/mean.binaryproto"],
    ),
    "compute_image_mean -json examples/mnist/mnist_train_lmdb": (
        "mean examples/mnist/mnist_train_lmdb --json",
        ["mean.binaryproto"],
    ),
    "convert_mnist_data.bin -json data/mnist/train-images-idx3-ubyte data/mnist/train-labels-idx1-ubyte DB "
    "--backend=lmdb": (
        "convert --list data/mnist/train-images-idx3-ubyte --out DB --shards 1 --json",
        ["DB/data.mdb"],
    ),
    "upgrade_net_proto_text -json old/v0.prototxt new.prototxt": (
        "upgrade old/v0.prototxt new.prototxt --json",
        ["new.prototxt"],
    ),
    "upgrade_net_proto_text.bin -json old/v1.prototxt old/v1.prototxt": (
        "upgrade old/v1.prototxt old/v1.prototxt --overwrite --json",
        ["old/v1.prototxt"],
    ),
    "upgrade_net_proto_binary -json old/v1.caffemodel new": (
        "upgrade old/v1.caffemodel new --binary --json",
        ["new"],
    ),
    "upgrade_solver_proto_text -json old/solver.prototxt new.prototxt": (
        "upgrade old/solver.prototxt new.prototxt --json",
        ["new.prototxt"],
    ),
    "extract_features.bin -json examples/mnist/lenet_iter_4.caffemodel features.prototxt ip2 features 1 lmdb CPU": (
        "extract --model features.prototxt --weights examples/mnist/lenet_iter_4.caffemodel --blobs ip2 "
        "--out features --format lmdb --shards 1 --limit 3 --repeat --gpu none --json",
        ["features/data.mdb"],
    ),
    "draw_net.py --rankdir TB -json examples/mnist/lenet_train_test.prototxt lenet.dot": (
        "show examples/mnist/lenet_train_test.prototxt --draw lenet.dot --json",
        ["lenet.dot"],
    ),
    "summarize.py -json examples/mnist/lenet_train_test.prototxt": (
        "show examples/mnist/lenet_train_test.prototxt --json",
        [],
    ),
    "plot_training_log.py.example 6 loss.png begun/train.log -json": (
        "plot begun/train.log --y loss --out loss.png --json",
        [],
    ),
    "plot_training_log 1 accuracy.png begun/train.log -json": (
        "plot begun/train.log --y accuracy --x seconds --out accuracy.png --json",
        [],
    ),
    "test -model=examples/mnist/lenet_train_test.prototxt -weights examples/mnist/lenet_iter_4.caffemodel "
    "-iterations 2 -json": (f"test {TRAINED} --iterations 2 --json", []),
    "device_query -json": ("status --gpu all --json", []),
}
TIMES = re.compile(r"^log$|seconds|per_day|percent|_s$|per_s|ms$|limited_by|workers|sum_over_pass|share")


def timeless(found):
    """A result without what depends on the clock and the folder."""
    if isinstance(found, dict):
        return {name: timeless(value) for name, value in found.items() if not TIMES.search(name)}
    return [timeless(one) for one in found] if isinstance(found, list) else found


@pytest.mark.ray
@pytest.mark.parametrize("typed", TYPED)
def test_each_tool_does_what_our_command_does(ray_session, twice, typed):
    ours, files = TYPED[typed]
    (one, found, _), (other, expected, _) = twice(typed, ours)
    assert timeless(found) == timeless(expected)
    assert len(found) == 1
    for name in files:
        assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.ray
def test_cifars_batches_become_two_databases(ray_session, twice):
    (one, found, _), (other, expected, _) = twice(
        "convert_cifar_data.bin -json data/cifar10 examples/cifar10 lmdb",
        "convert --list data/cifar10/test_batch.bin --out examples/cifar10/cifar10_test_lmdb --shards 1 --json",
    )
    assert [result["records"] for result in found] == [10, 2]
    assert timeless(found[1]) == timeless(expected[0])
    test = "examples/cifar10/cifar10_test_lmdb/data.mdb"
    assert (one / test).read_bytes() == (other / test).read_bytes()


def test_time_takes_the_net_from_its_flag(twice):
    model = "examples/mnist/lenet_train_test.prototxt"
    (_, found, _), (_, expected, _) = twice(
        f"time -model {model} -iterations 2 -phase TEST -gpu none -json",
        f"time {model} --iterations 2 --phase TEST --device cpu --json",
    )
    assert [row["layers"] for row in found[0]["layers"]] == [row["layers"] for row in expected[0]["layers"]]
    for name in ("net", "phase", "batch", "inputs", "iterations", "device"):
        assert found[0][name] == expected[0][name]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "--snapshot=examples/mnist/lenet_iter_2.solverstate",
        "-weights examples/mnist/begin.caffemodel -sighup_effect stop -sigint_effect=snapshot",
    ],
)
def test_a_training_as_typed_ends_where_ours_ends(ray_session, twice, flags):
    solver = "examples/mnist/lenet_solver.prototxt"
    (one, found, _), (other, expected, _) = twice(
        f"train --solver={solver} {flags} -json", f"train --solver {solver} {flags} --local --json"
    )
    assert found[0]["iterations"] == expected[0]["iterations"] == 4
    assert found[0]["from"] == expected[0]["from"]
    paths = [folder / "examples/mnist/lenet_iter_4.caffemodel" for folder in (one, other)]
    with weights.read(paths[0]) as mine, weights.read(paths[1]) as theirs:
        for layer, same in zip(mine.layers, theirs.layers, strict=True):
            for index, blob in layer.blobs.items():
                np.testing.assert_allclose(blob.values(), same.blobs[index].values(), rtol=1e-5, atol=1e-7)
