"""The learning-rate range test and learning by heart, on nets and digits of which is known what goes."""

from __future__ import annotations

import csv
import math
from functools import partial
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch

from ops.proto import text
from ops.proto.caffe_pb2 import SolverParameter
from pipelines.stages import lr_range, overfit
from pipelines.stages.recipe import cook, write
from pipelines.stages.recipe_data import look
from pipelines.stages.setup import Place, Training
from tests.pipelines.recipes import write_digits
from tests.pipelines.trainings import Case, data_files, rows, run, solver

QUIET = Place(signals=False)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    torch.set_num_threads(threads)


def recipe(net: str, data: Path, out: str) -> str:
    """The recipe that init writes."""
    none = {"finetune": None, "batch": None, "test_batch": None, "crop": None, "rate": None}
    write(Path(out), cook(net, look(data), Path(out), **none).texts, overwrite=False)
    return f"{out}/solver.prototxt"


def trained(path: str, rate: float, iterations: int) -> float:
    """The loss at the end of a training at one rate; infinite where it was lost."""
    spec = text.read(path, SolverParameter)
    for name in ("test_iter", "test_interval", "snapshot", "display"):
        spec.ClearField(name)
    spec.base_lr, spec.lr_policy, spec.max_iter, spec.snapshot_after_train = rate, "fixed", iterations, False
    text.write(f"{rate}.prototxt", spec)
    try:
        run(Path(f"{rate}.prototxt"), f"run-{rate}", feed={"shuffle": True})
    except ValueError as error:
        if "the loss is" not in str(error):
            raise
        return math.inf
    return float(np.mean([float(row[1]) for row in rows(Path(f"run-{rate}"))[-20:]]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "digits", "grid", "iterations"),
    [
        ("lenet", {"side": 28}, (0.001, 0.003, 0.01, 0.03, 0.1), 150),
        ("cifar10_quick", {"side": 32, "colour": True}, (0.0003, 0.001, 0.003, 0.01), 100),
    ],
)
def test_the_rate_is_within_a_factor_of_three_of_the_best_of_a_grid(folder, net, digits, grid, iterations):
    path = recipe(net, write_digits(folder / "data", **digits), "a")
    job = Training(solver=path, run="a", feed={"shuffle": True})
    found = lr_range.lr_range(job, QUIET, iterations=200)
    losses = {rate: trained(path, rate, iterations) for rate in grid}
    best = min(losses, key=lambda rate: losses[rate])
    assert best / 3 <= found["recommended"] <= best * 3, losses


def test_the_test_leaves_a_table_a_picture_and_no_run(folder):
    path = recipe("lenet", write_digits(folder / "data"), "a")
    before = (folder / path).read_bytes()
    found = lr_range.lr_range(Training(solver=path, run="runs/a"), QUIET, iterations=40)
    assert sorted(one.name for one in (folder / "runs/a").iterdir()) == ["lr_range.csv", "lr_range.png"]
    assert cv2.imread("runs/a/lr_range.png").shape[1] == 1350
    with open("runs/a/lr_range.csv") as file:
        table = list(csv.DictReader(file))
    assert len(table) == found["iterations"] <= 40
    ratios = np.diff(np.log([float(row["rate"]) for row in table]))
    assert ratios == pytest.approx(np.log(1e7) / 39, rel=1e-4)
    assert found["from"] < found["steepest"] <= found["least"] < found["to"] == found["lost"]
    assert f"base_lr: {found['recommended']:g} (the solver has 0.01)" in found["advice"]
    assert (folder / path).read_bytes() == before


def test_the_known_best_of_a_curve_is_found():
    """A loss that falls as a logistic over the logarithm of the rate, about 0.01, and explodes from 1 on."""
    rates = np.logspace(-6, 1, 300)
    losses = 2.3 / (1 + (rates / 0.01) ** 1.5) + np.maximum(0, rates - 0.3) ** 2
    found = lr_range.read(rates, losses)
    assert found.steepest == pytest.approx(0.01, rel=0.1)
    assert found.least == pytest.approx(rates[np.argmin(losses)])
    assert found.recommended == pytest.approx(math.sqrt(found.steepest * found.least) / 2, rel=0.05)
    assert (found.falls, found.lost) == (True, pytest.approx(10))


def test_a_loss_that_never_falls_is_told():
    found = lr_range.read(np.logspace(-6, 1, 50), np.full(50, 2.3))
    assert (found.falls, found.lost) == (False, None)
    told = lr_range.advice({**found.__dict__, "to": 10.0, "base_lr": 0.1})
    assert "did not fall at any rate up to 10" in told


def test_smoothing_is_the_mean_of_what_was_seen_weighted_towards_the_last():
    assert lr_range.smooth([4.0], 10) == pytest.approx([4])
    assert lr_range.smooth([1.0, 3.0], 2) == pytest.approx([1, (0.25 * 1 + 0.5 * 3) / 0.75])
    assert np.isnan(lr_range.smooth([1.0, math.nan], 2)[1])


@pytest.fixture
def tiny(folder):
    data_files(folder)
    return str(Case(solver=solver(lr=0.05)).write(folder))


def test_a_net_learns_a_few_records_by_heart(tiny, folder):
    found = overfit.overfit(Training(solver=tiny, run="runs/a"), QUIET, records=8)
    assert found["learnt"]
    assert found["loss"] <= 0.05 * found["first_loss"]
    assert found["iterations"] < overfit.ITERATIONS
    assert "can learn 8 records by heart" in found["advice"]
    with open("runs/a/overfit.csv") as file:
        assert len(list(csv.DictReader(file))) == found["iterations"]


def test_a_net_that_cannot_learn_is_told_so(folder):
    data_files(folder)
    path = Case(solver=solver(lr=1e-6)).write(folder)
    found = overfit.overfit(Training(solver=str(path), run="a"), QUIET, records=8, iterations=20)
    assert (found["learnt"], found["iterations"]) == (False, 20)
    assert "has not learnt 8 records by heart" in found["advice"]


def test_a_loss_that_is_lost_is_told(folder):
    data_files(folder)
    path = Case(solver=solver(lr=1e30)).write(folder)
    found = overfit.overfit(Training(solver=str(path), run="a"), QUIET, records=8)
    assert (found["learnt"], found["loss"]) == (False, None)
    assert "lower base_lr" in found["advice"]


@pytest.mark.parametrize("look", [lr_range.lr_range, partial(overfit.overfit, records=4)])
def test_a_loss_that_is_no_number_from_the_start_is_told(tiny, folder, look):
    with h5py.File(folder / "bad.h5", "w") as file:
        file["data"], file["label"] = np.full((8, 2, 8, 8), np.nan, np.float32), np.zeros(8, np.float32)
    (folder / "train_list.txt").write_text(f"{folder / 'bad.h5'}\n")
    with pytest.raises(ValueError, match="the loss is nan before the first update"):
        look(Training(solver=tiny, run="a"), QUIET)


@pytest.mark.parametrize(("records", "told"), [(0, "expected 1 record or more"), (49, "there are 48 records")])
def test_as_many_records_as_there_are(tiny, records, told):
    with pytest.raises(ValueError, match=told):
        overfit.overfit(Training(solver=tiny, run="a"), QUIET, records=records)


def test_a_range_test_wants_some_iterations(tiny):
    with pytest.raises(ValueError, match="--range-iterations 5: expected 20 or more"):
        lr_range.lr_range(Training(solver=tiny, run="a"), QUIET, iterations=5)


def test_rates_must_rise(tiny):
    with pytest.raises(ValueError, match="expected 0 < low < high"):
        lr_range.lr_range(Training(solver=tiny, run="a"), QUIET, low=1.0, high=0.1)
