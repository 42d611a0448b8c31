"""The times of a net's layers as a picture: a bar a layer, forward and backward end to end."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ops.chart import COLOURS, DPI, STYLE, WIDTH
from ops.stopwatch import LayerTime

ROW, MARGINS = 0.19, 1.3  # inches: a bar with its gap; title, axis and legend together
LONGEST = 40  # letters of a name
FAINT = 0.004  # of the longest bar: shorter ones go without a number


def draw(layers: Sequence[LayerTime], title: str) -> bytes:
    """A PNG; the net's first layer is the uppermost bar."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [short("+".join(layer.names)) for layer in layers]
    forward, backward = [layer.forward for layer in layers], [layer.backward or 0.0 for layer in layers]
    sums = [a + b for a, b in zip(forward, backward, strict=True)]
    page = io.BytesIO()
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(WIDTH, ROW * len(layers) + MARGINS), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        rows = range(len(layers))
        axes.barh(rows, forward, color=COLOURS[0], height=0.72, label=f"forward {sum(forward):,.4g} ms")
        axes.barh(
            rows, backward, left=forward, color=COLOURS[1], height=0.72, label=f"backward {sum(backward):,.4g} ms"
        )
        for row, value in zip(rows, sums, strict=True):
            if value >= FAINT * max(sums):
                axes.text(value, row, f" {value:,.3g}", va="center", fontsize=7)
        axes.set_yticks(rows, names, fontsize=8)
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.set_xlim(0, 1.08 * max([*sums, 1e-9]))
        axes.set_xlabel("milliseconds")
        axes.grid(True, axis="x")
        axes.set_title(title)
        axes.legend(loc="best", frameon=True, framealpha=0.9)
        figure.savefig(page, format="png", dpi=DPI, metadata={"Software": None})
    return page.getvalue()


def short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def write(path: Path, layers: Sequence[LayerTime], title: str) -> None:
    """The picture into a file, folders above it too."""
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(draw(layers, title))
