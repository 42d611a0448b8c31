"""Runs -> tables and curves, compared with pandas and with numbers by hand."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops import curves

HEAD = "iteration,loss,loss_last,lr,seconds,images,data_wait,batch_digest\n"


def metrics(losses, first=0, rate=0.1, seconds=0.5):
    rows = (
        f"{first + i},{loss},{loss},{rate},{seconds * (i + 1)},64,0.001,{i:016x}\n" for i, loss in enumerate(losses)
    )
    return HEAD + "".join(rows)


@pytest.fixture
def make(tmp_path):
    """`make("a", losses, tests=[(iteration, net, output, value)])`: a run's folder."""

    def folder(name, losses=(), tests=(), net=None, epoch=None):
        run = tmp_path / name
        run.mkdir(parents=True)
        (run / "metrics.csv").write_text(metrics(losses))
        (run / "test.csv").write_text(
            "iteration,net,output,value\n" + "".join(f"{','.join(map(str, t))}\n" for t in tests)
        )
        (run / "run.json").write_text(json.dumps({"epoch": epoch}))
        if net:
            (run / "test.prototxt").write_text(net)
        return run

    return folder


def panel(drawn, name):
    return next(one for one in drawn if one.name == name)


# -- smoothing ---------------------------------------------------------------------------------------------------------

VALUES = st.lists(st.one_of(st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf])), max_size=60)


@given(VALUES, st.integers(1, 70))
def test_the_running_mean_is_pandas(values, window):
    array = np.array(values, float)
    finite = pd.Series(np.where(np.isfinite(array), array, np.nan))
    expected = finite.rolling(min(window, max(1, len(array))), min_periods=1).mean().to_numpy()
    expected = np.where(np.isfinite(array), expected, np.nan)
    expected[: (min(window, len(array)) - 1) // 4 if len(array) else 0] = np.nan
    assert np.allclose(curves.running_mean(array, window), expected, rtol=1e-9, atol=1e-6, equal_nan=True)


def test_one_huge_loss_does_not_spoil_those_after_it():
    values = np.r_[np.full(50, 0.1), 1e30, np.full(50, 0.1)]
    assert curves.running_mean(values, 10)[60:] == pytest.approx(np.full(41, 0.1))


@pytest.mark.parametrize(("step", "smooth", "rows"), [(1, 200, 200), (100, 200, 2), (100, 30, 1), (20, 50, 2)])
def test_smoothing_counts_iterations_and_not_rows(step, smooth, rows):
    train = pd.DataFrame({"iteration": np.arange(50.0) * step, "seconds": 0.0, "loss": 1.0})
    assert curves.rows_of(curves.Run("a", train, pd.DataFrame()), smooth) == rows


# -- reading -----------------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_tables(make):
    run = curves.read(make("a", [2.0, 1.0, 0.5], [(0, 0, "accuracy", 0.1), (2, 0, "accuracy", 0.6)], epoch=7.5))
    assert run.train["loss"].tolist() == [2.0, 1.0, 0.5]
    assert "batch_digest" not in run.train
    assert run.tests["value"].tolist() == [0.1, 0.6]
    assert run.tests["seconds"].tolist() == [0, 1.0]  # when two iterations were done
    assert (run.iterations, run.seconds, run.epoch) == (3, 1.5, 7.5)
    assert {"loss", "lr", "images_per_s", "accuracy"} <= set(run.columns)


@pytest.mark.parametrize("name", ["metrics.csv", "test.csv"])
def test_a_table_stands_for_its_folder(make, name):
    folder = make("a", [1.0])
    assert curves.read(folder / name).path == folder


def test_a_row_that_is_being_written_is_left_out(make):
    folder = make("a", [2.0, 1.0])
    with (folder / "metrics.csv").open("a") as file:
        file.write("2,0.12")
    assert curves.read(folder).train["loss"].tolist() == [2.0, 1.0]


def test_a_folder_with_only_a_log_is_read_from_it(tmp_path):
    (tmp_path / "train.log").write_text("Iteration 0, loss = 2.5\n")
    assert curves.read(tmp_path).train["loss"].tolist() == [2.5]


def test_elements_of_vectors_get_their_place(make):
    run = curves.read(make("a", [1.0], [(5, 0, "nan", 1), (5, 0, "per", 1), (5, 0, "per", 2), (5, 1, "per", 3)]))
    assert run.tests["output"].tolist() == ["nan", "per[0]", "per[1]", "per[0]"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("metrics.csv", "a,b\n1,2\n", "metrics.csv: not a table of a run: no column iteration"),
        (
            "metrics.csv",
            HEAD + "1,x,1,1,1,1,1,0\n",
            "metrics.csv: not a table of a run: could not convert string to float: 'x'",
        ),
        ("metrics.csv", HEAD + "1,2,3,4,5,6,7,8,9\n1,2,3,4,5,6,7,8,9,10,11,12\n", "metrics.csv: not a table of a run"),
        ("metrics.csv", "", "metrics.csv: not a table of a run"),
        ("test.csv", "iteration,net\n", "test.csv: not a table of a run: no column output"),
    ],
)
def test_a_damaged_table_is_named(make, name, content, told):
    folder = make("a", [1.0])
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=r"a/" + told):
        curves.read(folder)


def test_what_is_no_run_is_told_with_the_nearest(make, tmp_path):
    make("runs/lenet", [1.0])
    make("runs/alex", [1.0])
    with pytest.raises(ValueError, match=r"runs/lennet: no such run; did you mean .*runs/lenet\?"):
        curves.read(tmp_path / "runs/lennet")
    with pytest.raises(ValueError, match=r"elsewhere/a: no such run$"):
        curves.read(tmp_path / "elsewhere/a")
    with pytest.raises(
        ValueError, match=r"runs: not a run: no metrics.csv and no train.log in it; runs in it: alex, l"
    ):
        curves.read(tmp_path / "runs")


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["x/a", "y/a"], ["x/a", "y/a"]),
        (["x/1/a", "y/1/a", "b"], ["x/1/a", "y/1/a", "b"]),
        (["a", "a"], ["a", "a"]),
        (["a/train.log", "b"], ["a", "b"]),
        (["a/train.log", "a"], ["train.log", "a"]),
        (["solver.log"], ["solver.log"]),
    ],
)
def test_runs_have_the_shortest_names_that_tell_them_apart(tmp_path, paths, names):
    runs = [curves.Run(tmp_path / path, pd.DataFrame(), pd.DataFrame()) for path in paths]
    curves.give_names(runs)
    assert [run.name for run in runs] == names or paths == ["a", "a"]
    assert len({run.name for run in runs}) == len(set(paths))


# -- what is drawn -----------------------------------------------------------------------------------------------------

NET = """
layer { name: "a" type: "Accuracy" bottom: "x" top: "top-1 of loss" }
layer { name: "b" type: "SoftmaxWithLoss" bottom: "x" top: "cost" }
layer { name: "c" type: "Reduction" bottom: "x" top: "weighed" loss_weight: 0.5 }
layer { name: "d" type: "EuclideanLoss" bottom: "x" top: "only shown" loss_weight: 0 }
"""


def test_the_net_says_which_outputs_are_losses(make):
    outputs = ["top-1 of loss", "cost", "weighed", "only shown"]
    run = curves.read(make("a", [1.0], [(0, 0, name, 1) for name in outputs], net=NET))
    assert [name for name in outputs if run.is_loss(name)] == ["cost", "weighed"]
    assert curves.default_names([run]) == ["loss", "top-1 of loss", "only shown"]


def test_without_a_net_the_name_says_it(make):
    run = curves.read(make("a", [1.0], [(0, 0, "Softmax_Loss", 1), (0, 0, "acc", 1)]))
    assert curves.default_names([run]) == ["loss", "acc"]


@pytest.mark.parametrize(
    ("outputs", "drawn"),
    [(["loss", "acc"], "test loss"), (["softmax_loss", "acc"], "test softmax_loss"), (["loss1", "loss2"], None)],
)
def test_the_test_loss_stands_beside_the_training_loss(make, outputs, drawn):
    run = curves.read(make("a", [2.0, 1.0], [(0, 0, name, 0.5) for name in outputs]))
    labels = [curve.label for curve in panel(curves.panels([run], [], "iterations", 1), "loss").curves]
    assert labels == ["loss", *([drawn] if drawn else [])]


def test_only_a_few_outputs_are_drawn_unasked_and_no_vectors(make):
    tests = [(0, 0, f"top-{k}", 1) for k in range(6)] + [(0, 0, "per", 1)] * 2
    run = curves.read(make("a", [1.0], tests))
    assert curves.default_names([run]) == ["loss", "top-3", "top-4", "top-5"]


def test_a_vector_is_drawn_by_element_or_as_its_mean(make):
    run = curves.read(make("a", [1.0], [(5, 0, "per", 1), (5, 0, "per", 2)]))
    drawn = curves.panels([run], ["per", "per[1]"], "iterations", 1)
    assert [one.curves[0].y.tolist() for one in drawn] == [[1.5], [2]]


def test_each_test_net_has_its_line(make):
    run = curves.read(make("a", [1.0], [(0, 0, "acc", 0.1), (0, 1, "acc", 0.2), (4, 1, "acc", 0.3)]))
    found = panel(curves.panels([run], [], "iterations", 1), "acc").curves
    assert [(one.label, one.iteration.tolist(), one.y.tolist()) for one in found] == [
        ("test acc", [0], [0.1]),
        ("test1 acc", [0, 4], [0.2, 0.3]),
    ]


@pytest.mark.parametrize(
    ("axis", "train", "test"),
    [("iterations", [0, 1, 2, 3], [0, 4]), ("seconds", [0.5, 1, 1.5, 2], [0, 2]), ("epochs", [0, 0.5, 1, 1.5], [0, 2])],
)
def test_the_three_axes(make, axis, train, test):
    run = curves.read(make("a", [4.0, 3.0, 2.0, 1.0], [(0, 0, "loss", 4), (4, 0, "loss", 1)], epoch=2))
    found = panel(curves.panels([run], [], axis, 1), "loss").curves
    assert [one.x.tolist() for one in found] == [train, test]


def test_an_axis_that_a_run_does_not_know_is_told(make, tmp_path):
    with pytest.raises(ValueError, match=r"a: does not say how many iterations an epoch has; give --epoch N"):
        curves.panels([curves.read(make("a", [1.0]))], [], "epochs", 1)
    (tmp_path / "x.log").write_text("Iteration 0, loss = 2.5\n")
    with pytest.raises(ValueError, match=r"x.log: no times in it; --x iterations does without"):
        curves.panels([curves.read(tmp_path / "x.log")], [], "seconds", 1)


def test_speed_is_images_over_seconds(make):
    run = curves.read(make("a", [1.0] * 100))
    y = panel(curves.panels([run], ["images_per_s"], "iterations", 1), "images_per_s").curves[0].y
    assert y[np.isfinite(y)] == pytest.approx(np.full(96, 128.0))  # 64 images in half a second; the first few left out


def test_rates_are_not_smoothed_and_losses_are(make):
    run = curves.read(make("a", np.linspace(2, 1, 40)))
    drawn = curves.panels([run], ["loss", "lr"], "iterations", 10)
    loss, rate = (one.curves[0] for one in drawn)
    assert rate.raw is None
    assert loss.y[-1] == pytest.approx(loss.raw[-10:].mean())


def test_a_column_that_no_run_has_is_told_with_the_nearest(make):
    runs = [curves.read(make("a", [1.0], [(0, 0, "accuracy", 1)])), curves.read(make("b", [1.0]))]
    assert len(panel(curves.panels(runs, ["accuracy"], "iterations", 1), "accuracy").curves) == 1
    with pytest.raises(ValueError, match="unknown column 'acuracy'; did you mean 'accuracy'"):
        curves.panels(runs, ["acuracy"], "iterations", 1)
    with pytest.raises(ValueError, match="unknown column 'seconds'"):
        curves.panels(runs, ["seconds"], "iterations", 1)


def test_a_run_that_has_just_begun_has_nothing_to_draw(make):
    with pytest.raises(ValueError, match="a: nothing to draw yet"):
        curves.panels([curves.read(make("a"))], [], "iterations", 1)


# -- figures -----------------------------------------------------------------------------------------------------------


def test_figures_are_the_last_and_the_best(make):
    tests = [(0, 0, "acc", 0.1), (2, 0, "acc", 0.9), (4, 0, "acc", 0.8)]
    tests += [(0, 0, "loss", 3), (2, 0, "loss", 1), (4, 0, "loss", 2), (4, 0, "error", 0.2), (0, 0, "error", 0.1)]
    run = curves.read(make("a", [4.0, 1.0, 3.0, 2.0], tests))
    found = curves.figures(0, curves.panels([run], ["loss", "acc", "error", "lr"], "iterations", 1))
    assert found == {
        "loss": {"final": 2.0, "best": 1.0, "best_iteration": 1},
        "test loss": {"final": 2.0, "best": 1.0, "best_iteration": 2},
        "test acc": {"final": 0.8, "best": 0.9, "best_iteration": 2},
        "test error": {"final": 0.2, "best": 0.1, "best_iteration": 0},
        "lr": {"final": 0.1},
    }


def test_a_loss_that_was_lost_says_where(make):
    run = curves.read(make("a", [4.0, "nan", 1.0, "nan", "inf"]))
    found = curves.figures(0, curves.panels([run], [], "iterations", 1))
    assert found == {"loss": {"final": 1.0, "best": 1.0, "best_iteration": 2, "not_finite_from": 3}}
