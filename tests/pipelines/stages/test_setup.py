"""A training set up: the nets take their shapes from the records that the feeds give them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipelines.stages.setup import Place, Training
from pipelines.worker import train
from tests.pipelines.trainings import Case, hdf5_layer, net, rows

LIST = """layer { name: "data" type: "ImageData" top: "data" top: "label"
  image_data_param { source: "list.txt" batch_size: 3 } }"""
REGRESSION = net(
    LIST,
    'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }',
    'layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "label" top: "loss" }',
)
SOLVER = 'base_lr: 1e-9 lr_policy: "fixed" max_iter: 2 random_seed: 3'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six black pictures with two numbers each."""
    monkeypatch.chdir(tmp_path)
    for i in range(6):
        cv2.imwrite(f"{i}.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "list.txt").write_text("".join(f"{i}.png {i} {i / 2}\n" for i in range(6)))
    return tmp_path


def test_labels_of_a_list_may_be_vectors_in_training_and_test(folder):
    path = Case(REGRESSION, f"{SOLVER} test_iter: 2 test_interval: 2").write(folder)
    result = train(Training(solver=str(path), run="run", feed={"labels": "vector:2"}), Place(signals=False))
    expected = [sum(i * i + i * i / 4 for i in part) / 6 for part in ((0, 1, 2), (3, 4, 5))]  # of zeros, by hand
    assert [float(row[1]) for row in rows(folder / "run")] == pytest.approx(expected)
    assert result["tests"][0]["loss"] == pytest.approx([sum(expected) / 2])


@pytest.mark.parametrize("layer", [hdf5_layer(source="away.txt"), LIST.replace("list.txt", "away.txt")])
def test_a_missing_source_is_told_without_advice_for_other_callers(folder, layer):
    path = Case(REGRESSION.replace(LIST, layer), SOLVER).write(folder)
    with pytest.raises(ValueError, match=r"there is no 'away\.txt': looked for ") as caught:
        train(Training(solver=str(path), run="run"), Place(signals=False))
    assert "inputs=" not in str(caught.value)
    assert str(caught.value).endswith("away.txt")
