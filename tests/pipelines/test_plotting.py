"""`cortado plot`: a training's folder and logs -> a picture, figures, a table; and what it says of bad input."""

import json

import cv2
import numpy as np
import pytest

from pipelines.__main__ import main
from tests.ops.test_curves import metrics
from tests.ops.training.test_log_reader import OLD
from tests.ops.training.test_tensorboard import files, read
from tests.pipelines.trainings import CONV, LOSS, RELU, Case, data_files, hdf5_layer, ip, net, run, solver

ACCURACY = (
    'layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }'
)
TRAINED = Case(
    net(hdf5_layer(), CONV, RELU, ip("conv"), LOSS, ACCURACY), solver("test_iter: 2 test_interval: 4 display: 3")
)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A run that was stopped at iteration 7 and resumed, to 13."""
    monkeypatch.chdir(tmp_path)
    data_files(tmp_path)
    path = TRAINED.write(tmp_path)
    run(path, tmp_path / "runs/a", stop=7)
    run(path, tmp_path / "runs/a", resume=True)
    return tmp_path / "runs/a"


def plot(*arguments, capsys):
    assert main(["plot", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_training_leaves_curves_events_and_a_log_that_agree(trained, capsys):
    result = plot(
        trained, trained / "train.log", "--smooth", "1", "--y", "loss,accuracy,lr,images_per_s", capsys=capsys
    )
    assert result["y"] == ["loss", "accuracy", "lr", "images_per_s"]
    folder, log = result["runs"]
    assert (folder["iterations"], log["iterations"]) == (13, 12)
    for name in ("test loss", "test accuracy"):
        assert log["values"][name] == pytest.approx(folder["values"][name], rel=1e-5)  # the log has six digits
    rows = (trained / "metrics.csv").read_text().splitlines()[1:]
    losses = [float(row.split(",")[1]) for row in rows]
    assert log["values"]["loss"]["final"] == pytest.approx(losses[12], rel=1e-5)
    assert folder["values"]["loss"]["best"] == min(losses)

    first, second = (read(file) for file in files(trained))
    assert second[1].started
    told = {one.step: one.values for one in (*first, *second) if "train/loss" in one.values}
    assert [told[i]["train/loss"] for i in range(13)] == pytest.approx(losses)
    tests = {one.step: one.values for one in (*first, *second) if "test/accuracy" in one.values}
    assert sorted(tests) == [0, 4, 8, 12]
    assert tests[12]["test/accuracy"] == pytest.approx(folder["values"]["test accuracy"]["final"])


def test_epochs_are_known_of_a_run(trained, capsys):
    assert json.loads((trained / "run.json").read_text())["epoch"] == 6  # 48 records in batches of 8
    assert plot(trained, "--x", "epochs", capsys=capsys)["x"] == "epochs"


def test_gradient_norms_are_drawn_where_debug_info_tells_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data_files(tmp_path)
    run(TRAINED.write(tmp_path, debug_info=True), tmp_path / "runs/a")
    result = plot("runs/a", "--y", "grad_norm,grad_norm/conv", "--smooth", "1", capsys=capsys)
    lines = (tmp_path / "runs/a/train.log").read_text().splitlines()
    total = [line.rpartition(", ")[2].rstrip(")") for line in lines if "All net params" in line]
    conv = [line.rpartition(": ")[2] for line in lines if "Layer conv, gradient norm" in line]
    values = result["runs"][0]["values"]
    assert values["grad_norm"]["final"] == pytest.approx(float(total[-1]))
    assert values["grad_norm/conv"]["final"] == pytest.approx(float(conv[-1]))
    assert float(conv[-1]) < float(total[-1])
    assert (tmp_path / "runs/a/plot.png").stat().st_size > 1000


@pytest.fixture
def made(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/metrics.csv").write_text(metrics(np.linspace(2, 1, 300)))
    (tmp_path / "a/test.csv").write_text("iteration,net,output,value\n0,0,accuracy,0.1\n300,0,accuracy,0.75\n")
    (tmp_path / "caffe.log").write_text(OLD)
    return tmp_path


def test_the_picture_goes_into_the_first_runs_folder_and_this_is_told(made, capsys):
    assert main(["plot", str(made / "a"), str(made / "caffe.log")]) == 0
    assert f"picture: {made / 'a/plot.png'}" in capsys.readouterr().out
    assert cv2.imread(str(made / "a/plot.png")).shape[1] == 1350
    assert plot(made / "caffe.log", capsys=capsys)["picture"] == str(made / "plot.png")


def test_the_picture_goes_where_it_is_asked_for(made, capsys):
    out = made / "new/p.svg"
    assert plot(made / "a", "--out", out, capsys=capsys)["picture"] == str(out)
    assert out.read_text().startswith("<?xml")


def test_json_has_the_last_and_the_best_of_each_run(made, capsys):
    result = plot(made / "a", made / "caffe.log", capsys=capsys)
    assert (result["x"], result["smooth"]) == ("iterations", 6)
    assert result["y"] == ["loss", "accuracy"]  # top-1 is an output of the log's train net alone
    a, log = result["runs"]
    assert (a["name"], a["iterations"], a["seconds"]) == ("a", 300, 150)
    assert a["values"]["test accuracy"] == {"final": 0.75, "best": 0.75, "best_iteration": 300}
    assert a["values"]["loss"]["final"] == pytest.approx(np.linspace(2, 1, 300)[-6:].mean())
    assert (log["name"], log["iterations"], log["seconds"]) == ("caffe.log", 100, pytest.approx(10))
    assert log["values"]["test loss"]["final"] == 2.49735


def test_the_table_compares_runs(made, capsys):
    assert main(["plot", str(made / "a"), str(made / "caffe.log"), "--y", "loss,accuracy,lr"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a", "300", "2", "min", "30", "s"] in lines
    assert ["caffe.log", "100", "10.0", "s"] in lines
    assert ["test", "accuracy", "a", "0.75", "0.75", "300"] in lines
    assert ["caffe.log", "0.1296", "0.1296", "0"] in lines
    assert ["lr", "a", "0.1"] in lines


def test_a_loss_that_was_lost_is_told(made, capsys):
    (made / "caffe.log").write_text(OLD.replace("loss = 1.5e-05", "loss = nan"))
    assert main(["plot", str(made / "caffe.log"), "--logy"]) == 0
    assert "2.423, nan from 100" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], 2, "RUNS missing: a run's folder or several, or logs"),
        (["aa"], 1, "aa: no such run; did you mean a?"),
        (["."], 1, ".: not a run: no metrics.csv and no train.log in it; runs in it: a"),
        (["other.txt"], 1, "other.txt: not a log of a training: no line in it as 'Iteration 100, loss = 0.5'"),
        (["empty"], 1, "empty: nothing to draw yet"),
        (["a", "--y", "acuracy"], 1, "unknown column 'acuracy'; did you mean 'accuracy'?"),
        (["a", "--y", ","], 2, "--y: expected names with commas, as loss,accuracy"),
        (["a", "--x", "epochs"], 1, "a: does not say how many iterations an epoch has; give --epoch N"),
        (["a", "--x", "epoch"], 2, "--x epoch: expected one of iterations, epochs, seconds"),
        (["a", "--smooth", "0"], 2, "--smooth 0: expected 1 or more"),
        (["a", "--epoch", "0"], 2, "--epoch 0: expected more than 0"),
        (["a", "--out", "a.gif"], 2, "--out a.gif: expected a name that ends in .png, .svg"),
        (["a", "--out", "caffe.log/a.png"], 1, "caffe.log"),
    ],
)
def test_bad_input_is_told_on_one_line(made, monkeypatch, capsys, arguments, code, told):
    monkeypatch.chdir(made)
    (made / "empty").mkdir()
    (made / "empty/metrics.csv").write_text(metrics([]))
    (made / "other.txt").write_text("hello\n")
    assert main(["plot", *arguments]) == code
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (made / "a/plot.png").exists()
