"""Pictures: what is in them, that they can be told apart, and that long runs make no large files."""

import xml.etree.ElementTree as ElementTree
from itertools import combinations

import cv2
import numpy as np
import pytest

from ops import chart
from ops.curves import Curve, Panel

NOTHING = {"axis": "iterations", "smooth": 1, "logy": False}


def curve(run=0, kind="train", label="loss", n=50, **more):
    x = np.arange(float(n))
    more = {"y": 2 * 0.95**x + 0.1 * (run + 1), "better": "less", **more}
    return Curve(run, kind, label, x, x, **more)


def loss(runs, **more):
    return Panel("loss", [one for run in range(runs) for one in (curve(run, **more), curve(run, "test", "test loss"))])


def labels(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def pixels(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def rgb(colour):
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def test_panels_stand_below_each_other_over_one_axis():
    rates = Panel("lr", [curve(label="lr", better=None)])
    figure = chart.compose([loss(1), rates], ["a"], **NOTHING)
    above, below = figure.axes
    assert (above.get_title(loc="left") or above.get_title(), below.get_title(loc="left") or below.get_title()) == (
        "loss",
        "lr",
    )
    assert above.get_shared_x_axes().joined(above, below)
    assert (above.get_xlabel(), below.get_xlabel()) == ("", "iterations")


def test_one_run_says_what_its_colours_are():
    figure = chart.compose([loss(1, raw=np.ones(50))], ["lenet"], axis="iterations", smooth=200, logy=False)
    assert figure.legends[0].get_title().get_text() == "lenet"
    assert labels(figure) == ["training, mean of 200 iterations", "not smoothed", "test"]
    faint, solid, dashed = figure.axes[0].get_lines()
    assert faint.get_alpha() < 0.5
    assert faint.get_zorder() < solid.get_zorder()
    assert solid.get_color() != dashed.get_color()
    assert dashed.get_marker() == "o"


def test_of_several_runs_each_has_a_colour_and_tests_have_marks():
    figure = chart.compose([loss(6)], [f"run-{k}" for k in range(6)], **NOTHING)
    assert labels(figure) == [*(f"run-{k}" for k in range(6)), "training", "test"]
    lines = figure.axes[0].get_lines()
    assert len({line.get_color() for line in lines}) == 6
    for k in range(6):
        assert [line.get_marker() for line in lines if line.get_color() == chart.COLOURS[k]] == ["None", "o"]


@pytest.mark.parametrize("runs", [1, 2, 6, 7])
def test_every_colour_is_in_the_picture(runs):
    picture = pixels(chart.draw([loss(runs)], [f"r{k}" for k in range(runs)]))
    for k in range(max(runs, 2)):
        near = np.abs(picture.astype(int) - rgb(chart.COLOURS[k])).max(axis=2) < 8
        assert near.sum() > 200, chart.COLOURS[k]


def test_twenty_runs_still_have_twenty_colours():
    figure = chart.compose([loss(20)], [f"r{k}" for k in range(20)], **NOTHING)
    assert len({line.get_color() for line in figure.axes[0].get_lines()}) == 20


# What eyes without one kind of cone make of linear RGB (Machado, Oliveira, Fernandes 2009, severity 1).
EYES = {
    "all cones": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def lab(linear):
    """CIE L*a*b* of linear sRGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.maximum(to_xyz @ np.clip(linear, 0, 1) / [0.9505, 1, 1.089], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eyes", EYES)
def test_colours_of_six_runs_differ_for_everybodys_eyes(eyes):
    seen = [lab(np.array(EYES[eyes]) @ (rgb(colour) / 255) ** 2.2) for colour in chart.COLOURS[:6]]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 12


def test_the_same_curves_make_the_same_file():
    for form in ("png", "svg"):
        assert chart.draw([loss(2)], ["a", "b"], form=form) == chart.draw([loss(2)], ["a", "b"], form=form)


def test_svg_is_xml_and_png_has_a_size_for_pages():
    root = ElementTree.fromstring(chart.draw([loss(2)], ["a", "b"], form="svg"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    height, width, _ = pixels(chart.draw([loss(2)], ["a", "b"])).shape
    assert width == 1350
    assert 400 < height < 800


@pytest.mark.parametrize("form", ["png", "svg"])
def test_long_runs_make_small_files(form):
    noise = np.exp(np.random.default_rng(0).normal(size=300_000))
    assert len(chart.draw([loss(1, n=300_000, y=noise, raw=noise)], ["a"], form=form)) < 400_000


def test_thinning_keeps_extremes_ends_and_gaps():
    y = np.random.default_rng(0).normal(size=100_000)
    y[50_000:50_500] = np.nan
    x, kept = chart.thinned(np.arange(100_000.0), y)
    assert len(x) <= 3 * chart.BUCKETS + 2
    assert (np.nanmin(kept), np.nanmax(kept)) == (np.nanmin(y), np.nanmax(y))
    assert (x[0], x[-1]) == (0, 99_999)
    assert np.isnan(kept).any()
    assert (np.diff(x) > 0).all()


def test_a_spike_of_a_raw_line_does_not_flatten_the_rest():
    raw = np.full(1000, 0.5)
    raw[500] = 1e6
    low, high = chart.compose([loss(1, n=1000, raw=raw)], ["a"], **NOTHING).axes[0].get_ylim()
    assert high < 5
    assert low < 0.2


def test_logarithms_are_for_losses_and_rates_only():
    panels = [loss(1), Panel("lr", [curve(label="lr", better=None)]), Panel("acc", [curve(better="more")])]
    figure = chart.compose(panels, ["a"], axis="iterations", smooth=1, logy=True)
    assert [ax.get_yscale() for ax in figure.axes] == ["log", "log", "linear"]
    negative = Panel("loss", [curve(y=np.full(50, -1.0))])
    assert chart.compose([negative], ["a"], axis="iterations", smooth=1, logy=True).axes[0].get_yscale() == "linear"


def test_logarithmic_axes_say_plain_numbers():
    figure = chart.compose([loss(1)], ["a"], axis="iterations", smooth=1, logy=True)
    figure.canvas.draw()
    ax = figure.axes[0]
    shown = [text.get_text() for text in (*ax.get_yticklabels(), *ax.get_yticklabels(minor=True)) if text.get_text()]
    assert {"1", "0.2", "0.3"} <= set(shown)


def test_a_loss_that_became_nan_is_marked_where_it_ends():
    lost = Panel("loss", [curve(y=np.where(np.arange(50) < 20, 1.0, np.nan))])
    figure = chart.compose([lost], ["a"], **NOTHING)
    (cross,) = [line for line in figure.axes[0].get_lines() if line.get_marker() == "x"]
    assert cross.get_xdata()[0] == 19
    assert "nan from here on" in labels(figure)
    assert chart.draw([lost], ["a"])


@pytest.mark.parametrize("logy", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 0.5, -1.0])
def test_a_loss_that_never_moves_or_never_was_a_number_is_drawn(value, logy):
    flat = np.full(50, value)
    smoothed = np.where(np.isfinite(flat), flat, np.nan)
    panels = [Panel("loss", [curve(y=smoothed, raw=flat)]), Panel("acc", [curve(better="more")])]
    assert chart.draw(panels, ["a"], logy=logy)


@pytest.mark.parametrize(
    ("seconds", "label", "largest"), [(50, "seconds", 50), (1200, "minutes", 20), (36000, "hours", 10)]
)
def test_seconds_are_told_in_a_fitting_unit(seconds, label, largest):
    x = np.linspace(0, seconds, 50)
    panel = Panel("loss", [Curve(0, "train", "loss", x, x, x + 1)])
    ax = chart.compose([panel], ["a"], axis="seconds", smooth=1, logy=False).axes[0]
    assert ax.get_xlabel() == label
    assert ax.get_lines()[0].get_xdata()[-1] == pytest.approx(largest)


def test_a_run_of_one_iteration_is_seen():
    picture = pixels(chart.draw([Panel("loss", [curve(n=1)])], ["a"]))
    assert (np.abs(picture.astype(int) - rgb(chart.COLOURS[0])).max(axis=2) < 8).sum() > 50


@pytest.mark.parametrize(
    ("name", "shown"), [("lenet", "lenet"), ("a" * 44, "a" * 44), ("b" * 30 + "c" * 30, "b" * 20 + "..." + "c" * 21)]
)
def test_long_names_lose_their_middle(name, shown):
    assert chart.shortened(name) == shown
