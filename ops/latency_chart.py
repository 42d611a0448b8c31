"""How long answers take under several loads, as a picture: the milliseconds that so many percent of them stay below."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.chart import COLOURS, DPI, STYLE, WIDTH

HEIGHT = 4.2  # inches
TICKS = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)  # percent


def draw(loads: Mapping[str, NDArray[np.floating[Any]]], title: str) -> bytes:
    """A PNG. `loads`: the name of each -> its milliseconds in any order; one without any is left out.

    The percent are spread out towards 100, where the slow answers are.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    page = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        longest = 1.0
        for place, (name, ms) in enumerate(loads.items()):
            if len(ms):
                x = spread(100 * np.arange(len(ms)) / len(ms))
                longest = max(longest, float(x[-1]))
                axes.plot(x, np.sort(ms), color=COLOURS[place % len(COLOURS)], linewidth=1.7, label=name)
        ticks = [tick for tick in TICKS if spread(tick) <= longest]
        axes.set_xticks([float(spread(tick)) for tick in ticks], [f"{tick:g} %" for tick in ticks])
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("of the answers take at most")
        axes.set_ylabel("milliseconds")
        axes.set_title(title)
        if axes.lines:
            axes.legend(loc="upper left", frameon=True, framealpha=0.9)
        figure.savefig(page, format="png", dpi=DPI, metadata={"Software": None})
    return page.getvalue()


def spread(percent: Any) -> Any:
    """Where a share stands on the axis: each further nine is one unit."""
    return -np.log10(1 - np.asarray(percent) / 100)


def write(path: Path, loads: Mapping[str, NDArray[np.floating[Any]]], title: str) -> None:
    """The picture into a file, folders above it too."""
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(draw(loads, title))
