"""`cortado test` against the same computation in numpy and torch."""

from __future__ import annotations

import json
import re

import cv2
import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from sklearn.metrics import confusion_matrix

from ops import net as nets
from ops import weights
from ops.records import binaryproto, datum, lmdb
from pipelines import evaluate
from pipelines.__main__ import main

N, CLASSES, CROP = 30, 4, 8
NET = """
name: "small"
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
        transform_param { crop_size: 8 mean_file: "mean.binaryproto" scale: 0.02 }
        data_param { source: "records" batch_size: 6 backend: LMDB } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 5 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
        inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" loss_weight: 0.5 }
"""
SOLVER = """
net: "net.prototxt" test_iter: 5 test_interval: 2 max_iter: 2 base_lr: 0.01 lr_policy: "fixed" solver_mode: CPU
"""


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Case:
    """Records, their mean, a net and its weights in a folder, and what is true of them."""

    def __init__(self, folder):
        numbers = np.random.default_rng(2)
        self.folder = folder
        self.pixels = numbers.integers(0, 256, (N, 3, 12, 10), dtype=np.uint8)
        self.labels = numbers.integers(0, CLASSES, N)
        self.mean = self.pixels.mean(0, dtype=np.float32)
        with lmdb.Writer(folder / "records") as writer:
            for i, (image, label) in enumerate(zip(self.pixels, self.labels, strict=True)):
                picture = np.ascontiguousarray(image.transpose(1, 2, 0))
                writer.put(f"{i:08d}".encode(), datum.raw(picture, int(label)).tobytes())
        binaryproto.write(folder / "mean.binaryproto", self.mean)
        (folder / "net.prototxt").write_text(NET)
        self.net = nets.load(folder / "net.prototxt", "TEST", seed=1)
        weights.write(self.net, folder / "w.caffemodel")

    def centre(self, x):
        return x[..., 2 : 2 + CROP, 1 : 1 + CROP]

    def ready(self, x):
        """Pictures as the net sees them, still whole: (N, 3, 12, 10)"""
        return torch.from_numpy((x.astype(np.float32) - self.mean) * np.float32(0.02))

    def scores(self, x):
        blobs = {name: [blob.detach() for blob in each] for name, each in self.net.params.items()}
        return F.linear(F.conv2d(x, *blobs["conv"]).relu().flatten(1), *blobs["ip"])


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case(tmp_path_factory.mktemp("test"))


@pytest.fixture
def here(case, monkeypatch):
    monkeypatch.chdir(case.folder)
    return case


def test(capsys, *arguments):
    """The result as JSON, and stderr."""
    code = main(["test", "--json", "--gpu", "none", *map(str, arguments)])
    told = capsys.readouterr()
    assert code == 0, told.err
    return json.loads(told.out), told.err


def fails(capsys, *arguments):
    assert main(["test", *map(str, arguments)]) == 1
    return capsys.readouterr().err.splitlines()[-1]


test.__test__ = False
GIVEN = ("--model", "net.prototxt", "--weights", "w.caffemodel")


def test_outputs_are_the_means_over_the_batches(here, capsys):
    found, _ = test(capsys, *GIVEN, "--iterations", 5)
    scores, labels = here.scores(here.centre(here.ready(here.pixels))), torch.from_numpy(here.labels)
    assert found["outputs"]["loss"] == [pytest.approx(F.cross_entropy(scores, labels).item(), rel=1e-5)]
    assert found["loss"] == pytest.approx(0.5 * F.cross_entropy(scores, labels).item(), rel=1e-5)
    right = (scores.argmax(1) == labels).float().mean().item()
    assert found["outputs"]["accuracy"] == [pytest.approx(right)]
    assert (found["accuracy"], found["counted"]) == (pytest.approx(right), N)


def test_classes_are_counted_as_scikit_learn_counts_them(here, capsys):
    (here.folder / "names.txt").write_text("ant\nbee\ncat\n\n")
    found, _ = test(capsys, *GIVEN, "--iterations", 5, "--classes", "names.txt")
    predicted = here.scores(here.centre(here.ready(here.pixels))).argmax(1).numpy()
    expected = confusion_matrix(here.labels, predicted, labels=range(CLASSES))
    assert found["matrix"] == expected.tolist()
    assert [row["class"] for row in found["per_class"]] == ["ant", "bee", "cat", "3"]
    for label, row in enumerate(found["per_class"]):
        assert (row["right"], row["of"]) == (expected[label, label], expected[label].sum())
        assert row["accuracy"] == pytest.approx(expected[label, label] / expected[label].sum())
        others = expected[label] - np.diag(expected)[label] * (np.arange(CLASSES) == label)
        assert row["taken_for"].startswith(["ant", "bee", "cat", "3"][int(others.argmax())])


def test_ten_crops_are_those_of_a_naive_loop(here, capsys):
    found, _ = test(capsys, *GIVEN, "--iterations", 5, "--oversample")
    predicted = []
    for image in here.ready(here.pixels).numpy():
        total = np.zeros(CLASSES)
        for top, left in [(0, 0), (0, 2), (4, 0), (4, 2), (2, 1)]:
            for flipped in (False, True):
                crop = image[:, top : top + CROP, left : left + CROP]
                crop = crop[:, :, ::-1] if flipped else crop
                scores = here.scores(torch.from_numpy(crop.copy())[None])[0].numpy()
                total += np.exp(scores) / np.exp(scores).sum()
        predicted.append(total.argmax())
    assert found["matrix"] == confusion_matrix(here.labels, predicted, labels=range(CLASSES)).tolist()
    assert found["crops"] == 10
    plain, _ = test(capsys, *GIVEN, "--iterations", 5)
    assert found["outputs"]["loss"] == [pytest.approx(plain["outputs"]["loss"][0], rel=1e-6)]


def test_probabilities_of_a_softmax_are_not_taken_for_scores(here, capsys):
    prob = 'layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }\n'
    text = NET.replace(
        'layer { name: "accuracy" type: "Accuracy" bottom: "ip"',
        prob + 'layer { name: "accuracy" type: "Accuracy" bottom: "prob"',
    )
    (here.folder / "prob.prototxt").write_text(text)
    with_softmax, _ = test(
        capsys, "--model", "prob.prototxt", "--weights", "w.caffemodel", "--iterations", 5, "--oversample"
    )
    plain, _ = test(capsys, *GIVEN, "--iterations", 5, "--oversample")
    assert with_softmax["matrix"] == plain["matrix"]


def test_caffes_lines(here, capsys):
    found, said = test(capsys, *GIVEN, "--iterations", 2, "--caffe")
    lines = [
        re.fullmatch(r"I\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ caffe\.cpp:\d+\] (.*)", line) for line in said.splitlines()
    ]
    told = [line[1] for line in lines if line]
    batches = [re.fullmatch(r"Batch (\d), (\w+) = ([-+.e\d]+)", line) for line in told[:4]]
    assert [(one[1], one[2]) for one in batches] == [("0", "accuracy"), ("0", "loss"), ("1", "accuracy"), ("1", "loss")]
    loss, accuracy = found["outputs"]["loss"][0], found["outputs"]["accuracy"][0]
    assert told[4:] == [
        f"Loss: {found['loss']:g}",
        f"accuracy = {accuracy:g}",
        f"loss = {loss:g} (* 0.5 = {0.5 * loss:g} loss)",
    ]
    assert np.mean([float(one[3]) for one in batches if one[2] == "loss"]) == pytest.approx(loss, rel=1e-5)


def test_a_person_reads_outputs_and_classes(here, capsys):
    assert main(["test", "--gpu", "none", *GIVEN, "--iterations", "5"]) == 0
    page = capsys.readouterr().out
    assert re.search(r"batches +5 \(30 items, 1 times the data set\)", page)
    assert re.search(r"loss +[\d.]+ \(\* 0\.5 = [\d.]+ loss\)", page)
    assert re.search(r"label +class +right +of +accuracy +most taken for", page)
    assert len(re.findall(r"^ +\d+ +\d +\d+ +\d+ +[\d.]+ %", page, re.MULTILINE)) == CLASSES


def test_items_that_count_twice_are_pointed_out(here, capsys):
    _, said = test(capsys, *GIVEN, "--iterations", 7)
    assert "note: 42 items of 30 records: some count more often than others; --iterations 5 tests each once" in said
    _, said = test(capsys, *GIVEN, "--iterations", 10)
    assert "note:" not in said


def test_of_many_classes_the_lowest_are_shown():
    rows = [
        {"label": i, "class": str(i), "right": i, "of": 100, "accuracy": i / 100, "taken_for": ""} for i in range(50)
    ][::-1]
    rows.append({"label": 50, "class": "50", "right": 0, "of": 0, "accuracy": None, "taken_for": ""})
    grid, note = evaluate.per_class(rows)
    assert list(grid.columns[0].cells) == [str(i) for i in range(evaluate.ROWS)]
    assert note == "(the 30 lowest of 51 classes)"


# -- pictures --------------------------------------------------------------------------------------------------------


def test_the_confusion_matrix_is_a_picture(here, capsys):
    found, _ = test(capsys, *GIVEN, "--iterations", 5, "--confusion", "pictures/confusion.png")
    assert found["confusion"] == "pictures/confusion.png"
    image = cv2.imread(str(here.folder / "pictures/confusion.png"))
    assert min(image.shape[:2]) > 300
    blue = (image[..., 0].astype(int) - image[..., 2]) > 60  # the colour of large shares
    assert 0.005 < blue.mean() < 0.5


def test_a_picture_that_cannot_be_drawn_is_told_before_the_test(here, capsys):
    assert "--confusion matrix.txt: expected a picture's name, one of ." in fails(
        capsys, *GIVEN, "--confusion", "matrix.txt"
    )
    (here.folder / "scoreless.prototxt").write_text(re.sub(r'layer \{ name: "(accuracy|loss)".*\n', "", NET))
    told = fails(capsys, "--model", "scoreless.prototxt", "--weights", "w.caffemodel", "--confusion", "a.png")
    assert "scoreless.prototxt has no Accuracy or SoftmaxWithLoss layer to count classes by" in told


# -- other labels ----------------------------------------------------------------------------------------------------


def test_ignored_labels_and_places_in_a_picture_are_counted_as_the_layers_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    numbers = np.random.default_rng(1)
    scores = numbers.normal(size=(8, 3, 2, 2)).astype(np.float32)
    labels = numbers.integers(0, 3, (8, 2, 2))
    with h5py.File("t.h5", "w") as file:
        file["scores"], file["label"] = scores, labels.astype(np.float32)
    (tmp_path / "list.txt").write_text("t.h5\n")
    (tmp_path / "net.prototxt").write_text("""
        layer { name: "d" type: "HDF5Data" top: "scores" top: "label"
                hdf5_data_param { source: "list.txt" batch_size: 4 } }
        layer { name: "s" type: "Scale" bottom: "scores" top: "y" scale_param { filler { value: 1 } } }
        layer { name: "a" type: "Accuracy" bottom: "y" bottom: "label" top: "a" accuracy_param { ignore_label: 1 } }""")
    weights.write(nets.load(tmp_path / "net.prototxt", "TEST"), tmp_path / "w.caffemodel")
    found, _ = test(capsys, *GIVEN, "--iterations", 2)
    kept = labels.ravel() != 1
    predicted = scores.argmax(1).ravel()[kept]
    assert found["matrix"] == confusion_matrix(labels.ravel()[kept], predicted, labels=range(3)).tolist()
    assert found["per_class"][1]["accuracy"] is None
    right = [(scores[i : i + 4].argmax(1) == labels[i : i + 4])[labels[i : i + 4] != 1].mean() for i in (0, 4)]
    assert found["outputs"]["a"][0] == pytest.approx(np.mean(right))
    assert "one label an image" in fails(capsys, *GIVEN, "--oversample")


# -- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(case):
    """The folder of a run of two iterations over the same records, with the best weights kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(case.folder)
        (case.folder / "solver.prototxt").write_text(SOLVER)
        (case.folder / "net.prototxt").write_text(NET.replace("include { phase: TEST }", ""))
        (case.folder / "classes.txt").write_text("ant\nbee\ncat\ndog\n")
        arguments = ["--solver", "solver.prototxt", "--run", "run", "--local", "--gpu", "none", "--json"]
        assert main(["train", *arguments, "--best", "loss"]) == 0
        (case.folder / "net.prototxt").write_text(NET)
    return case.folder / "run"


def test_a_run_needs_no_more_than_its_folder(trained, case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # data is found where the net's file is
    found, _ = test(capsys, "--run", trained, "--iterations", 5)
    assert found["weights"] == [str(trained / "best.caffemodel")]
    assert [row["class"] for row in found["per_class"]] == ["ant", "bee", "cat", "dog"]
    monkeypatch.chdir(case.folder)
    given, _ = test(capsys, "--model", "net.prototxt", "--weights", trained / "best.caffemodel", "--iterations", 5)
    assert found["outputs"] == given["outputs"]
    best = json.loads((trained / "model.json").read_text())["best"]
    assert best["value"] == pytest.approx(found["outputs"]["loss"][0], rel=1e-6)
    also, _ = test(capsys, "--run-folder", "run", "--iterations", 5)
    assert also["outputs"] == found["outputs"]


def test_the_newest_weights_of_a_run_are_taken_where_no_best_were_kept(trained, case, monkeypatch, capsys):
    monkeypatch.chdir(case.folder)
    (trained / "best.caffemodel").rename(trained / "kept")
    try:
        found, _ = test(capsys, "--run", "run", "--iterations", 1)
        assert found["weights"] == ["run/solver_iter_2.caffemodel"]
        (trained / "solver_iter_2.solverstate").rename(trained / "gone")
        assert "run: has no weights yet: neither best.caffemodel nor a snapshot" in fails(capsys, "--run", "run")
        (trained / "gone").rename(trained / "solver_iter_2.solverstate")
    finally:
        (trained / "kept").rename(trained / "best.caffemodel")


def test_a_folder_that_is_no_run_is_told(here, capsys):
    assert fails(capsys, "--run", "records").endswith("records: holds no model.json; is it the folder of a run?")


def test_a_run_without_a_test_net_wants_one(here, tmp_path, capsys):
    (tmp_path / "model.json").write_text('{"test_net": null}')
    told = fails(capsys, "--run", tmp_path, "--weights", "w.caffemodel")
    assert told.endswith("was trained without a test net; give one with --model")


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "give a net to test, --model, or the folder of a run, --run"),
        (("--model", "net.prototxt"), "--weights: give a .caffemodel or .h5 file"),
        (("--model", "nt.prototxt", "--weights", "w.caffemodel"), "nt.prototxt"),
        (("--model", "lenet/deploy", "--weights", "w.caffemodel"), "layer 'data' (Input) has no data"),
        ((*GIVEN, "--gpu", "0"), "--gpu 0: torch finds no GPU here; --gpu none tests on the CPU"),
    ],
)
def test_what_is_missing_is_told_in_a_line(here, capsys, arguments, told):
    if "--gpu" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert told in fails(capsys, *arguments)


def test_a_net_without_data_for_a_test_is_told(here, capsys):
    text = (
        'layer { name: "d" type: "DummyData" top: "x" include { phase: TRAIN } dummy_data_param { shape { dim: 1 } } }'
    )
    (here.folder / "train.prototxt").write_text(text)
    told = fails(capsys, "--model", "train.prototxt", "--weights", "w.caffemodel")
    assert "train.prototxt: has no data layer for TEST; a layer's include rule may name other stages (--stage)" in told


def test_a_net_that_takes_whole_pictures_has_nothing_to_crop(here, capsys):
    (here.folder / "whole.prototxt").write_text(NET.replace("crop_size: 8", ""))
    weights.write(nets.load(here.folder / "whole.prototxt", "TEST"), here.folder / "whole.caffemodel")
    told = fails(capsys, "--model", "whole.prototxt", "--weights", "whole.caffemodel", "--oversample")
    assert told.endswith("--oversample: the net takes whole pictures, no layer for TEST has a crop_size")


def test_iterations_begin_at_one(capsys):
    assert main(["test", "--iterations", "0"]) == 2
    assert "--iterations 0: expected 1 or more" in capsys.readouterr().err
