"""Curves -> a picture: a panel a quantity, one below the other over the same x axis; PNG or SVG.

Of several runs each has its colour, and the style says what a line is; of one run the colour says it.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ops.curves import RATE, SPEED, Array, Axis, Curve, Panel, lost_at
from ops.training.norms import NORM

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Colours that people tell apart whatever their eyes (Okabe and Ito), in the order of contrast on white; no yellow.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
INK, GRID, KEY = "#202428", "#e3e6e9", "#6b7480"
FAINT = 0.28  # opacity of raw lines, of one run
WIDTH, HEIGHT, SMALL = 9.0, 2.9, 1.7  # inches: of the picture, a panel, the learning rate's
DPI = 150
BUCKETS = 1000  # of points in a line: more than the picture has pixels
MARKERS = 30  # on a line of tests
LETTERS = 105  # of the legend's text that stand beside each other
LONGEST = 44  # letters of a run's name
HIDDEN = 1.0  # percent of raw values at either end that may fall out of the picture
UNITS = ((7200.0, 3600.0, "hours"), (600.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
STYLE: Any = {  # of matplotlib
    "font.size": 10,
    "axes.edgecolor": KEY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.015,
    "grid.color": GRID,
    "xtick.color": KEY,
    "ytick.color": KEY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "cortado",  # the same curves, the same file
}


def draw(
    panels: Sequence[Panel],
    names: Sequence[str],
    *,
    form: Literal["png", "svg"] = "png",
    axis: Axis = "iterations",
    smooth: int = 1,
    logy: bool = False,
) -> bytes:
    """The file's bytes. `names`: of the runs; `smooth`: iterations, for the legend; `logy`: of losses and rates."""
    import matplotlib

    page = io.BytesIO()
    facts: dict[str, Any] = {"Date": None} if form == "svg" else {"Software": None}
    with matplotlib.rc_context(STYLE):
        figure = compose(panels, names, axis=axis, smooth=smooth, logy=logy)
        figure.savefig(page, format=form, dpi=DPI, metadata=facts)
    return page.getvalue()


def compose(panels: Sequence[Panel], names: Sequence[str], *, axis: Axis, smooth: int, logy: bool) -> Figure:
    """The figure, of a size that fits what is in it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [SMALL if panel.name == RATE else HEIGHT for panel in panels]
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    unit, label = units(panels) if axis == "seconds" else (1.0, axis)
    for panel, ax in zip(panels, axes, strict=True):
        fill(ax, panel, several=len(names) > 1, unit=unit, logy=logy)
    axes[-1].set_xlabel(label)
    axes[-1].xaxis.set_major_formatter("{x:,.0f}" if span(panels) / unit >= 10 else "{x:,.3g}")
    rows = legends(figure, panels, names, smooth)
    figure.set_size_inches(WIDTH, sum(heights) + 0.5 + 0.22 * rows)
    return figure


def span(panels: Sequence[Panel]) -> float:
    """The largest x."""
    return float(max((np.nanmax(curve.x) for panel in panels for curve in panel.curves if len(curve.x)), default=1.0))


def units(panels: Sequence[Panel]) -> tuple[float, str]:
    """Seconds in the unit in which a training of that length is told, and its name."""
    return next((size, name) for least, size, name in UNITS if span(panels) >= least)


# -- a panel -----------------------------------------------------------------------------------------------------------


def fill(ax: Axes, panel: Panel, *, several: bool, unit: float, logy: bool) -> None:
    """The panel's lines: raw ones first, so that no smoothed one lies under another run's raw one."""
    ax.set_title(panel.name)
    low = any(curve.better == "less" for curve in panel.curves) or panel.name == RATE or panel.name.startswith(NORM)
    if logy and low and any((curve.y[np.isfinite(curve.y)] > 0).any() for curve in panel.curves):
        ax.set_yscale("log", nonpositive="mask")
    behind = [(curve, curve.raw) for curve in panel.curves if curve.raw is not None]
    for curve, raw in behind:
        x, y = thinned(curve.x / unit, raw)
        ax.plot(x, y, color=colour(curve, several), alpha=2 * FAINT / (1 + len(behind)), linewidth=0.8, zorder=2)
    for curve in panel.curves:
        x, y = thinned(curve.x / unit, curve.y)
        ax.plot(x, y, color=colour(curve, several), zorder=3 if curve.kind == "train" else 4, **style(curve))
        if lost_at(curve) is not None and np.isfinite(y).any():
            last = np.flatnonzero(np.isfinite(y))[-1]
            ax.plot(x[last], y[last], "x", color=colour(curve, several), markersize=9, markeredgewidth=2, zorder=5)
    limits(ax, panel)
    if panel.name == SPEED:
        ax.set_ylim(bottom=0)
    if ax.get_yscale() == "log":
        plain_ticks(ax)


def colour(curve: Curve, several: bool) -> Any:
    """A run's; of a single run one for training and one for each test net."""
    number = curve.run if several else (0 if curve.kind == "train" else 1 + curve.net)
    if number < len(COLOURS):
        return COLOURS[number]
    from matplotlib import colormaps

    return colormaps["viridis"](number * 0.618 % 0.95)


def style(curve: Curve) -> dict[str, Any]:
    """Of a line: training is solid, a test is dashed with round marks, of further test nets with others."""
    if curve.kind == "train":
        return {"linewidth": 1.7, **({"marker": "."} if len(curve.x) == 1 else {})}
    return {
        "linewidth": 1.3,
        "linestyle": (0, (4, 1.5)),
        "marker": "os^Dv"[curve.net % 5],
        "markersize": 4,
        "markerfacecolor": "white",
        "markeredgewidth": 1.2,
        "markevery": max(1, len(curve.x) // MARKERS),
    }


def thinned(x: Array, y: Array) -> tuple[Array, Array]:
    """Few enough points for a line that looks the same: of each bucket the lowest and the highest."""
    if len(x) <= 2 * BUCKETS:
        return x, y
    edges = np.linspace(0, len(x), BUCKETS + 1).astype(int)
    kept = {0, len(x) - 1}
    for begin, end in itertools.pairwise(edges.tolist()):
        part = y[begin:end]
        if np.isfinite(part).any():
            kept |= {begin + int(np.nanargmin(part)), begin + int(np.nanargmax(part))}
        if not np.isfinite(part).all():  # a gap stays one
            kept.add(begin + int(np.argmin(np.isfinite(part))))
    chosen = np.array(sorted(kept))
    return x[chosen], y[chosen]


def limits(ax: Axes, panel: Panel) -> None:
    """All of the smoothed lines and of the tests; of the raw ones all but a few spikes."""
    if all(curve.raw is None for curve in panel.curves):
        return
    seen: list[float] = []
    for curve in panel.curves:
        for values, cut in ((curve.y, 0.0), (curve.raw, HIDDEN)):
            finite = values[np.isfinite(values)] if values is not None else np.zeros(0)
            finite = finite[finite > 0] if ax.get_yscale() == "log" else finite
            seen += [*np.percentile(finite, [cut, 100 - cut])] if len(finite) else []
    low, high = min(seen, default=0.0), max(seen, default=0.0)
    if high <= low:
        return
    if ax.get_yscale() == "log":
        room = (high / low) ** 0.05
        ax.set_ylim(low / room, high * room)
    else:
        ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def plain_ticks(ax: Axes) -> None:
    """0.3 and not 3 x 10^-1 on a logarithmic axis, between the powers of ten as many as there is room for."""
    low, high = ax.get_ylim()
    decades = float(np.log10(high / low))
    between = (2, 3, 4, 6) if decades < 1.3 else (2, 5) if decades < 2.5 else ()

    def shown(value: float, place: float) -> str:
        return f"{value:g}" if round(value / 10 ** np.floor(np.log10(value) + 1e-9)) in between else ""

    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(shown)


# -- legends -----------------------------------------------------------------------------------------------------------


def legends(figure: Figure, panels: Sequence[Panel], names: Sequence[str], smooth: int) -> int:
    """Of several runs their colours above, and below what the styles mean; of one run all above. The number of rows."""
    several = len(names) > 1
    keys = style_lines([curve for panel in panels for curve in panel.curves], several, smooth)
    if not several:
        return 1 + legend(figure, keys, "upper", title=shortened(names[0]))
    runs = [run_line(number, name) for number, name in enumerate(names)]
    return legend(figure, runs, "upper") + (legend(figure, keys, "lower") if len(keys) > 1 else 0)


def legend(figure: Figure, lines: Sequence[Line2D], side: str, title: str | None = None) -> int:
    """Beside each other as many as fit; the number of rows."""
    lengths = [len(str(line.get_label())) + 6 for line in lines]
    columns = len(lines) if sum(lengths) <= LETTERS else max(1, LETTERS // max(lengths))
    look: Any = {"loc": f"outside {side} left", "ncols": columns, "alignment": "left", "columnspacing": 1.4}
    figure.legend(handles=lines, title=title, title_fontsize=13, **look)
    return -(-len(lines) // columns)


def run_line(number: int, name: str) -> Line2D:
    from matplotlib.lines import Line2D

    nothing = np.zeros(0)
    curve = Curve(number, "train", "", nothing, nothing, nothing)
    return Line2D([], [], color=colour(curve, True), linewidth=3, label=shortened(name))


def style_lines(curves: Sequence[Curve], several: bool, smooth: int) -> list[Line2D]:
    """A line for each style that is drawn."""
    from matplotlib.lines import Line2D

    found: dict[str, Line2D] = {}
    smoothed = any(curve.raw is not None for curve in curves)
    for curve in curves:
        tint = KEY if several else colour(curve, several)
        if curve.kind == "train":
            text = f"training, mean of {smooth:,} iterations" if smoothed else "training"
        else:
            text = f"test net {curve.net}" if any(other.net for other in curves) else "test"
        found.setdefault(text, Line2D([], [], color=tint, label=text, **style(curve)))
        if curve.raw is not None:
            text = "not smoothed"
            found.setdefault(text, Line2D([], [], color=tint, alpha=2 * FAINT, linewidth=0.8, label=text))
        if lost_at(curve) is not None:
            text, mark = "nan from here on", "x"
            found.setdefault(
                text, Line2D([], [], color=tint, linestyle="", marker=mark, markersize=7, markeredgewidth=2, label=text)
            )
    return list(found.values())


def shortened(name: str) -> str:
    """A long name without its middle."""
    half = LONGEST // 2
    return name if len(name) <= LONGEST else f"{name[: half - 2]}...{name[-half + 1 :]}"
