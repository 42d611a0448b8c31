"""README's path from a folder of photographs to a fine-tuned CaffeNet, in its own words and in full size."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pandas
import pytest
import skimage
import torch

from ops import net as nets
from ops import weights, zoo
from pipelines.__main__ import main
from tests.pipelines.trainings import arrays, rows

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
CLASSES = {"astronaut": "astronaut.png", "cat": "chelsea.png", "coffee": "coffee.png"}  # ship with scikit-image
PICTURES_A_CLASS, ITERATIONS = 10, 12
WEIGHTS = "bvlc_reference_caffenet.caffemodel"
SMALLER = {"conv1": 64, "conv5": 8, "fc7": 4}  # pixels, and features by chance, are large
LEARNT = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """`pictures`, with a folder of photographs for each class, and weights of CaffeNet, by chance."""
    monkeypatch.chdir(tmp_path)
    for name, file in CLASSES.items():
        photo = cv2.imread(str(Path(skimage.__file__).parent / "data" / file))
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(PICTURES_A_CLASS):
            cut = photo[10 * number :, 8 * number :]
            cv2.imwrite(str(tmp_path / "pictures" / name / f"{name}{number:02d}.jpg"), cut)
    model, chance = nets.load(zoo.find("caffenet")), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer, (kernel, bias) in model.params.items():
            kernel.copy_(torch.randn(kernel.shape, generator=chance) * (2 / kernel[0].numel()) ** 0.5)
            kernel /= SMALLER.get(layer, 1)
            bias.zero_()
    weights.write(model, WEIGHTS)
    return tmp_path


def cortado(line: str) -> None:
    assert main(line.split()) == 0, line


def test_the_readme_names_these_weights():
    assert f"--finetune {WEIGHTS}" in README


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_from_photographs_to_a_caffenet_that_was_trained_by_somebody_else(ray_session, folder, capsys):
    cortado("prepare pictures --out data")
    capsys.readouterr()
    few = "--batch 6 --test-batch 6 --rate 0.0001"
    cortado(f"init --data data --net caffenet --finetune {WEIGHTS} --out runs/a {few}")
    lists = dict(re.findall(r"^(copied|fresh|unused) +(.*)$", capsys.readouterr().out, re.MULTILINE))
    assert lists == {"copied": ", ".join(LEARNT), "fresh": "fc8_data", "unused": "fc8"}

    solver = folder / "runs/a/solver.prototxt"
    short, count = re.subn(r"(?m)^(max_iter|test_interval): \d+", rf"\1: {ITERATIONS}", solver.read_text())
    assert count == 2
    solver.write_text(short)
    cortado("train --run runs/a")
    told = capsys.readouterr()
    assert f"copied from {WEIGHTS}: {', '.join(LEARNT)} (7 layers)\n" in told.err
    assert "left fresh, in no file: fc8_data (1 layer)\n" in told.err
    assert "skipped, not in this net: fc8" in told.err
    given, learnt = arrays(WEIGHTS), arrays(f"runs/a/solver_iter_{ITERATIONS}.caffemodel")
    assert learnt["fc8_data/0"].shape == (len(CLASSES), 4096)
    moved = {name: np.abs(learnt[f"{name}/0"] - given[f"{name}/0"]).max() for name in LEARNT}
    assert all(0 < one < 0.05 for one in moved.values()), moved  # from there, and not far

    tests = [float(row[-1]) for row in rows(Path("runs/a"), "test.csv") if row[2] == "loss"]
    assert tests[-1] < tests[0]

    cortado("plot runs/a")
    assert cv2.imread("runs/a/plot.png").shape[0] > 300
    pictures = [f"pictures/{name}/{name}00.jpg" for name in CLASSES]
    capsys.readouterr()
    cortado(f"classify --run runs/a {' '.join(pictures)} --json")
    answers = json.loads(capsys.readouterr().out)["answers"]
    scores = [{one["name"]: one["score"] for one in answer["top"]} for answer in answers]
    for name, own in zip(CLASSES, scores, strict=True):
        assert sum(own.values()) == pytest.approx(1, abs=1e-5)
        assert own[name] == max(one[name] for one in scores)
    cortado("extract --run runs/a --blobs fc7 --input pictures --out features")
    table = pandas.concat(map(pandas.read_parquet, sorted(Path("features").glob("*.parquet"))))
    features = np.stack(table["fc7"])
    assert features.shape == (PICTURES_A_CLASS * len(CLASSES), 4096)
    assert features.min() == 0 < features.max()  # fc7 is seen behind its ReLU
