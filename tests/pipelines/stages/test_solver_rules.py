"""`cortado check SOLVER`: epochs and tests beside the arithmetic by hand, and what is unusual."""

from __future__ import annotations

import numpy as np
import pytest

from ops.proto import text
from ops.proto.caffe_pb2 import SolverParameter
from pipelines.__main__ import main
from pipelines.check import Check
from pipelines.stages.solver_rules import check_solver
from tests.pipelines.recipes import NET, photographs, write_lmdb, write_pictures

TRAINED = 'net: "net.prototxt" test_iter: 5 test_interval: 8 base_lr: 0.01 momentum: 0.9 lr_policy: "step" gamma: 0.1 '
SOLVER = TRAINED + "stepsize: 144 max_iter: 432"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """192 and 48 records of 20 classes, batches of 24 and 10."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "data")
    write_net(tmp_path)
    return tmp_path


def write_net(folder, old="1000", new="20"):
    parts = NET.replace('"nowhere"', '"data/train"', 1).replace('"nowhere"', '"data/test"', 1)
    (folder / "net.prototxt").write_text(parts.replace("num_output: 1000", "num_output: 20").replace(old, new))


def check(folder, solver=SOLVER, **changes):
    (folder / "solver.prototxt").write_text(solver)
    spec = text.read(folder / "solver.prototxt", SolverParameter)
    for name, value in changes.items():
        if isinstance(value, list):
            spec.ClearField(name)
            getattr(spec, name).extend(value)
        else:
            setattr(spec, name, value)
    text.write(folder / "solver.prototxt", spec)
    return check_solver(folder / "solver.prototxt")


def test_the_numbers_of_a_solver_in_epochs(folder):
    found = check(folder)
    assert (found["problems"], found["warnings"]) == ([], [])
    assert (found["iterations_per_epoch"], found["epochs_per_step"], found["epochs"]) == (8, 18, 54)
    assert (found["images_per_test"], found["test_records"]) == (50, 48)
    assert (found["batch"], found["records"], found["classes"]) == (24, 192, 20)


def test_iter_size_counts_as_a_larger_batch(folder):
    found = check(folder, iter_size=2)
    assert (found["batch"], found["iterations_per_epoch"], found["epochs"]) == (48, 4, 108)


def test_a_multistep_policy_is_measured_by_its_first_step(folder):
    found = check(folder, lr_policy="multistep", stepvalue=[80, 160])
    assert found["epochs_per_step"] == 10


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_iter": 4000, "stepsize": 144}, "max_iter 4,000: training ends after 500 epochs; about 54 are usual"),
        ({"stepsize": 8}, "stepsize 8: the rate falls after 1 epochs; about 18 are usual, stepsize: 144"),
        ({"stepsize": 500}, "stepsize 500 comes after max_iter 432: the rate never falls"),
        ({"base_lr": 0.5}, "base_lr 0.5 is much for SGD; usual is 0.01"),
        ({"type": "Adam", "base_lr": 0.01}, "base_lr 0.01 is much for Adam; usual is 0.001"),
        ({"test_iter": [2]}, "test_iter 2 x 10: a test sees 20 of 48 records, not the same each time; test_iter: 5"),
        ({"test_iter": [9]}, "test_iter 9 x 10: a test sees 90 images of 48 records, some more often"),
        ({"test_iter": [], "test_interval": 0}, "there is no test"),
    ],
)
def test_what_is_unusual_is_told_with_what_is_usual(folder, changes, told):
    found = check(folder, **changes)
    assert any(told in line for line in found["warnings"]), found["warnings"]
    assert not found["problems"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("num_output: 20", "num_output: 15", "labels go from 0 to 19, and 'last' has 15 outputs"),
        ("data/train", "data/trian", "there is no 'data/trian'"),
        ('"xavier"', '"xavir"', "did you mean 'xavier'?"),
        ("source", "sorce", "no field named 'sorce'"),
    ],
)
def test_what_cannot_be_trained_is_a_problem(folder, capsys, old, new, told):
    write_net(folder, old, new)
    assert any(told in line for line in check(folder)["problems"])
    assert main(["check", "solver.prototxt"]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"net": "nix.prototxt"}, "nix.prototxt"),
        ({"gamma": 0}, "gamma is not given"),
        ({"test_iter": [0]}, "test_iter 0: expected 1 or more"),
        ({"weights": ["w.caffemodel"]}, "w.caffemodel"),
    ],
)
def test_a_solver_that_cannot_run_is_a_problem(folder, changes, told):
    assert any(told in line for line in check(folder, **changes)["problems"])


def test_more_outputs_than_classes_are_told(folder):
    write_net(folder, "num_output: 20", "num_output: 1000")
    assert any("'last' has 1000 outputs for 20 classes: num_output: 20" in line for line in check(folder)["warnings"])


def test_records_sorted_by_class_are_told(folder):
    write_lmdb(folder / "sorted", photographs(40, 60), np.repeat(np.arange(20), 3))
    write_net(folder, "data/train", "sorted")
    assert any("sorted by class" in line and "--shuffle" in line for line in check(folder)["warnings"])


def test_the_command_says_it_to_people(folder, capsys):
    check(folder, max_iter=4000)
    assert Check(path=folder / "solver.prototxt").run()["ok"]
    assert main(["check", "solver.prototxt"]) == 0
    told = capsys.readouterr()
    assert "iterations per epoch  8" in told.out
    assert "warning: max_iter 4,000" in told.err
