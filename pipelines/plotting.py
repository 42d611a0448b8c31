"""`cortado plot`: runs -> loss, accuracy and rates in one picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pipelines.job import Job, duration

FORMATS = (".png", ".svg")


@dataclass(frozen=True, kw_only=True)
class Plot(Job):
    """Draw loss and test outputs of one run or several, in panels below each other.

    A run is the folder that train wrote, also while it writes, or a log that Caffe wrote. Solid lines are training,
    dashed ones tests.

    Example: cortado plot runs/a runs/b --x seconds --y loss,accuracy,lr
    """

    runs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUNS...", help_behavior_hint="(one or more)")
    ]
    """runs' folders, or logs of Caffe"""
    x: Literal["iterations", "epochs", "seconds"] = "iterations"
    """what runs along: iterations, epochs, or seconds of training"""
    y: str | None = None
    """what is drawn, with commas: loss, lr, images_per_s, a column of metrics.csv, an output of a test, grad_norm and
    grad_norm/LAYER where debug_info was on; default: loss and the test outputs that are no losses"""
    smooth: int | None = None
    """training's lines are means of the last N iterations; 1: as they are; default: a fiftieth of the longest run"""
    logy: bool = False
    """logarithmic y axis for losses and rates"""
    epoch: float | None = None
    """iterations an epoch has, for --x epochs; default: what the run says"""
    out: Path | None = None
    """picture file, .png or .svg; default: plot.png in the first run's folder"""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("RUNS missing: a run's folder or several, or logs")
        if self.smooth is not None and self.smooth < 1:
            raise ValueError(f"--smooth {self.smooth}: expected 1 or more")
        if self.epoch is not None and not self.epoch > 0:
            raise ValueError(f"--epoch {self.epoch:g}: expected more than 0")
        if self.out is not None and self.out.suffix.lower() not in FORMATS:
            raise ValueError(f"--out {self.out}: expected a name that ends in {', '.join(FORMATS)}")
        if self.y is not None and not self.names():
            raise ValueError("--y: expected names with commas, as loss,accuracy")

    def names(self) -> list[str]:
        return list(dict.fromkeys(name.strip() for name in (self.y or "").split(",") if name.strip()))

    def run(self) -> dict[str, Any]:
        from ops import chart, curves

        runs = [curves.read(path) for path in self.runs]
        curves.give_names(runs)
        for run in runs:
            run.epoch = self.epoch or run.epoch
        smooth = self.smooth or curves.automatic(runs)
        panels = curves.panels(runs, self.names(), self.x, smooth)
        out = self.out or folder_of(self.runs[0]) / "plot.png"
        form: Literal["png", "svg"] = "svg" if out.suffix.lower() == ".svg" else "png"
        picture = chart.draw(panels, [run.name for run in runs], form=form, axis=self.x, smooth=smooth, logy=self.logy)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(picture)
        return {
            "picture": str(out),
            "x": self.x,
            "y": [panel.name for panel in panels],
            "smooth": smooth,
            "runs": [
                {
                    "run": str(path),
                    "name": run.name,
                    "iterations": run.iterations,
                    "seconds": round(run.seconds, 3) if run.seconds == run.seconds else None,
                    "values": curves.figures(number, panels),
                }
                for number, (path, run) in enumerate(zip(self.runs, runs, strict=True))
            ],
        }

    def render(self, result: dict[str, Any]) -> Any:
        from rich.console import Group
        from rich.table import Table

        from ops.chart import shortened

        runs = Table(box=None, pad_edge=False)
        for head in ("run", "iterations", "time"):
            runs.add_column(head, justify="left" if head == "run" else "right")
        found = Table(box=None, pad_edge=False)
        for head in ("", "run", "last", "best", "at iteration"):
            found.add_column(head, justify="left" if head in ("", "run") else "right")
        for run in result["runs"]:
            time = "-" if run["seconds"] is None else duration(run["seconds"])
            runs.add_row(shortened(run["name"]), f"{run['iterations']:,}", time)
        for label in dict.fromkeys(label for run in result["runs"] for label in run["values"]):
            having = [run for run in result["runs"] if label in run["values"]]
            for run in having:
                head = label if run is having[0] else ""
                found.add_row(head, shortened(run["name"]), *cells(run["values"][label]))
        return Group(runs, "", found, "", f"picture: {result['picture']}")


def cells(row: dict[str, Any]) -> list[str]:
    """Last value, best, and its iteration."""
    last = f"{row['final']:.4g}" if "final" in row else "nan"
    if "final" in row and "not_finite_from" in row:
        last += f", nan from {row['not_finite_from']:,}"
    return [last, f"{row['best']:.4g}", f"{row['best_iteration']:,}"] if "best" in row else [last, "", ""]


def folder_of(run: Path) -> Path:
    """Where a run's picture goes."""
    return run if run.is_dir() else run.parent
