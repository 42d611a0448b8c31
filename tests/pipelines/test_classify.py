"""Classify: the classes that a net finds, against the net's own numbers, and answers that hedge."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from ops import net as nets
from ops.image import oversample
from pipelines.__main__ import main
from pipelines.classify import Classify

NAMES = ["n1 apple", "n2 pear", "n3 car", "n4 bus", "n5 dog", "n6 cat"]
TREE = "n1 fruit\nn2 fruit\nn3 vehicle\nn4 vehicle\nn5 animal\nn6 animal\n"
TREE += "fruit thing\nvehicle thing Something that drives\nanimal thing\n"
SOFTMAX = 'layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }'
INPUT = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 32 dim: 32 } } }'


@pytest.fixture
def photos(golden):
    return golden / "files" / "photos"


@pytest.fixture
def names(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("\n".join(NAMES))
    return file


@pytest.fixture
def model(golden, tmp_path):
    """Caffe's golden net with an Input in place of its data and a softmax on top."""
    text = (golden / "files" / "feat.prototxt").read_text().splitlines()
    file = tmp_path / "deploy.prototxt"
    file.write_text("\n".join([INPUT, *text[2:], SOFTMAX]))
    return {"model": file, "weights": str(golden / "files" / "feat.caffemodel")}


FLAGS = {"mean_file": "104,117,123", "images_dim": "40,48", "input_scale": 0.01}


def pixels(file):
    """(H, W, 3) float32 of 0..255, BGR, resized as pycaffe does."""
    return cv2.resize(cv2.imread(str(file)).astype(np.float32) / 255, (48, 40)) * 255


def probabilities(model, crops):
    """(n, 32, 32, 3) BGR crops -> (n, 6) by the net itself."""
    planes = (crops.transpose(0, 3, 1, 2) - np.float32([104, 117, 123]).reshape(3, 1, 1)) * 0.01
    net = nets.load(model["model"], weights=model["weights"], inputs={"data": planes.shape})
    return net(data=np.ascontiguousarray(planes, np.float32))["prob"].detach().numpy()


def test_classes_come_with_the_nets_own_probabilities(photos, model, names):
    files = [str(photos / "dress_0.jpg"), str(photos / "hat_1.jpg")]
    result = Classify(images=tuple(files), labels=names, top=3, **model, **FLAGS).run()
    expected = probabilities(model, np.stack([pixels(file)[4:36, 8:40] for file in files]))
    for answer, file, scores in zip(result["answers"], files, expected, strict=True):
        order = np.argsort(-scores)[:3]
        assert answer["image"] == file
        assert [one["label"] for one in answer["top"]] == order.tolist()
        assert [one["name"] for one in answer["top"]] == [NAMES[label] for label in order]
        np.testing.assert_allclose([one["score"] for one in answer["top"]], scores[order], atol=1e-5)


def test_ten_crops_are_pycaffes_oversample(photos, model):
    result = Classify(images=(str(photos / "hat_1.jpg"),), oversample=True, top=6, **model, **FLAGS).run()
    expected = probabilities(model, oversample(pixels(photos / "hat_1.jpg"), 32)).mean(0)
    found = {one["label"]: one["score"] for one in result["answers"][0]["top"]}
    np.testing.assert_allclose([found[label] for label in range(6)], expected, atol=1e-5)


def test_a_folder_and_a_list_are_answered_picture_by_picture(photos, model, golden):
    folder = Classify(images=(str(photos),), **model, **FLAGS).run()
    assert folder["images"] == 30
    listed = Classify(images=(str(golden / "files" / "list.txt"),), root=f"{photos}/", batch_size=7, **model, **FLAGS)
    by_name = {one["image"]: one["top"][0] for one in folder["answers"]}
    for one in listed.run()["answers"]:
        assert one["top"][0]["label"] == by_name[one["image"]]["label"]
        assert one["top"][0]["score"] == pytest.approx(by_name[one["image"]]["score"], abs=1e-5)


def test_a_picture_that_cannot_be_read_is_told_in_its_place(photos, model, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    words = (str(photos / "hat_0.jpg"), str(tmp_path / "broken.jpg"), str(photos / "hat_1.jpg"))
    job = Classify(images=words, out=tmp_path / "out.csv", sheet=tmp_path / "sheet.png", **model, **FLAGS)
    result = job.run()
    assert [one["image"] for one in result["answers"]] == list(words)
    assert "not an image" in result["answers"][1]["error"]
    assert (result["images"], result["bad"], result["on_sheet"]) == (3, 1, 2)
    rows = pd.read_csv(tmp_path / "out.csv")
    assert rows[rows["error"].notna()]["image"].tolist() == [words[1]]
    assert len(rows) == 2 * 5 + 1
    assert cv2.imread(str(tmp_path / "sheet.png")).shape[2] == 3
    assert job.render(result) is not None


def test_a_hierarchy_names_what_is_sure(photos, model, names, tmp_path):
    """value(node) = probability below it times log2(classes / classes below it), by hand."""
    (tmp_path / "tree.txt").write_text(TREE)
    result = Classify(
        images=(str(photos / "hat_1.jpg"),), labels=names, hierarchy=tmp_path / "tree.txt", top=20, **model, **FLAGS
    ).run()
    p = probabilities(model, pixels(photos / "hat_1.jpg")[None, 4:36, 8:40])[0]
    expected = {name: p[i] * np.log2(6) for i, name in enumerate(NAMES)}
    groups = ("fruit", "Something that drives", "animal")
    expected |= {name: (p[2 * i] + p[2 * i + 1]) * np.log2(3) for i, name in enumerate(groups)}
    expected["thing"] = 0.0
    found = {one["name"]: one["value"] for one in result["answers"][0]["accurate"]}
    assert found == pytest.approx(expected, abs=1e-5)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_a_run_brings_its_net_weights_names_and_preprocessing(photos, model, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "deploy.prototxt").write_text(model["model"].read_text())
    (run / "best.caffemodel").write_bytes(Path(model["weights"]).read_bytes())
    facts = {"net": "deploy.prototxt", "shape": [3, 32, 32], "resize": [40, 48], "crop": 32, "mean": [104, 117, 123]}
    facts |= {"scale": 0.01, "channels": "BGR", "classes": NAMES, "best": {"weights": "best.caffemodel"}}
    (run / "model.json").write_text(json.dumps(facts))
    answer = Classify(images=(str(photos / "hat_1.jpg"),), run_folder=run, top=6).run()["answers"][0]
    resized = cv2.resize(cv2.imread(str(photos / "hat_1.jpg")), (48, 40)).astype(np.float32)
    expected = probabilities(model, resized[None, 4:36, 8:40])[0]
    found = {one["name"]: one["score"] for one in answer["top"]}
    np.testing.assert_allclose([found[name] for name in NAMES], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "holds raw images, and nothing says how they become numbers: give --run DIR"),
        (["--images-dim", "40,48"], "--images-dim does not say how pixels become numbers"),
        (["--mean-file", "1,2"], "--mean-file 1,2: a mean of 2 channels for an input of 3 x 32 x 32"),
        (["--raw-scale", "255", "--images-dim", "20,20"], "--images-dim 20,20: smaller than the net's input of 32,32"),
        (["--raw-scale", "255", "--blob", "pro"], "has no blob 'pro'; did you mean 'prob'?"),
        (["--raw-scale", "255", "--channel-swap", "0,1,1"], "--channel-swap 0,1,1: expected an order of the channels"),
        (["--raw-scale", "255", "--labels", "short.txt"], "short.txt: 2 names for 6 classes"),
        (["--raw-scale", "255", "--labels", "six.txt", "--hierarchy", "pickle.txt"], "a pickle, which is never loaded"),
        (["--raw-scale", "255", "--labels", "six.txt", "--hierarchy", "circle.txt"], "stands above itself: a circle"),
        (["--raw-scale", "255", "--labels", "six.txt", "--hierarchy", "few.txt"], "class 1, 'n2 pear', is not in it"),
        (["--raw-scale", "255", "--weights", "none.caffemodel"], "none.caffemodel: No such weights file"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(photos, model, tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("a\nb\n")
    (tmp_path / "six.txt").write_text("\n".join(NAMES))
    (tmp_path / "pickle.txt").write_bytes(b"\x80\x04abc")
    (tmp_path / "circle.txt").write_text(TREE + "thing fruit\n")
    (tmp_path / "few.txt").write_text("n1 fruit\n")
    options = [f"--{name}={value}" for name, value in model.items()]
    assert main(["classify", str(photos / "hat_1.jpg"), *options, *arguments]) == 1
    error = capsys.readouterr().err.splitlines()
    assert [line for line in error if line.startswith("cortado: error:")] == error[-1:]
    assert told in error[-1]
