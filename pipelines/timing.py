"""`cortado time`: what a pass through a net takes, layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pipelines.job import Job, Progress, say, table

if TYPE_CHECKING:
    from ops.stopwatch import Times

BAR = 24  # characters of the longest bar
APART = 0.05  # of a pass: how far the layers' sum may be from it


@dataclass(frozen=True, kw_only=True)
class Time(Job):
    """Time forward and backward of every layer of a net, on random data; no data source is opened where --input says
    the shape.

    The backward starts from the loss, or from ones at the outputs of a net that has none. Layers that run as one
    (BatchNorm and the Scale behind it) have one line. Every figure is a mean over the faster half of the passes. Half
    of the passes run without the stopwatch: they are the whole pass that the layers' sum is compared with.

    Example: cortado time caffenet/train_val --input 3x227x227 --batch 32 --chart caffenet.png
    """

    net: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NET")]
    """a prototxt, a .caffemodel, or a net of the zoo by its name: caffenet, caffenet/train_val"""
    weights: str | None = None
    """.caffemodel or .h5, several with commas; default: random weights, which take the same time"""
    phase: Literal["TRAIN", "TEST"] = "TRAIN"
    """TRAIN or TEST"""
    iterations: int = 50
    """passes that are timed layer by layer, and as many without the stopwatch"""
    batch: int | None = None
    """size of the batch; default: the file's"""
    input: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="CxHxW")] = ()
    """shape of the first input, as 3x227x227 (the batch is the file's), or NAME=10x3x227x227 of any input; may be given
    several times"""
    stage: str = ""
    """the net's stages, with commas"""
    level: int = 0
    """the net's level"""
    device: str = "cpu"
    """cpu, cuda or cuda:N"""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """fp32 strictly; tf32: a GPU rounds products to 10 bits; bf16: under autocast"""
    chart: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png")] = None
    """draw a bar a layer into this file"""
    caffe: bool = False
    """print the lines that `caffe time` prints, for programs that read them"""
    code: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE|DIR")] = ()
    """Python file or folder with layers of your own; may be given several times"""

    def __post_init__(self) -> None:
        for name in ("iterations", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value}: expected 1 or more")
        if self.chart is not None and self.chart.suffix.lower() != ".png":
            raise ValueError(f"--chart {self.chart}: expected a name that ends in .png")

    def run(self) -> dict[str, Any]:
        from ops import custom, time_chart, user_frames
        from ops.net_table import batch_of
        from ops.random_inputs import random_inputs
        from ops.stopwatch import time_layers
        from pipelines.stages.netrun import ask, device_name, device_of, open_net

        device = device_of(self.device)
        with user_frames.told("", say):
            custom.load_code(self.code)
            asked = ask(self.net, self.phase, stage=self.stage, level=self.level)
            asked.give(self.input, self.batch)
            net = open_net(asked, device, self.weights)
            inputs = random_inputs(net)
            with Progress("time", total=self.iterations, unit="passes") as progress:
                times = time_layers(
                    net, inputs, iterations=self.iterations, precision=self.precision, progress=progress.update
                )
        total = times.layers_forward + times.layers_backward
        if abs(total - times.whole) > APART * times.whole:
            say(
                f"warning: the layers take {100 * total / times.whole:.0f} % of a pass without the stopwatch: the "
                "machine does other things meanwhile, or --iterations is small"
            )
        title = asked.title or asked.file.stem
        facts = {
            "net": str(asked.file),
            "name": title,
            "phase": self.phase,
            "device": device_name(device),
            "precision": self.precision,
            "batch": batch_of(net),
            "inputs": {name: list(shape) for name, shape in net.inputs.items()},
        }
        if self.chart is not None:
            time_chart.write(self.chart, times.layers, heading(facts))
        return {**facts, **figures(times, facts["batch"]), "chart": str(self.chart) if self.chart else None}

    def render(self, result: dict[str, Any]) -> Any:
        return caffe_lines(result) if self.caffe else page(result)


def heading(facts: dict[str, Any]) -> str:
    batch = f", batch {facts['batch']}" if facts["batch"] else ""
    return f"{facts['name']}, {facts['phase']}{batch}, {facts['precision']}, {facts['device']}"


def figures(times: Times, batch: int | None) -> dict[str, Any]:
    """The times as JSON can say them, milliseconds."""
    total = times.layers_forward + times.layers_backward
    rows = [
        {
            "layers": list(one.names),
            "types": list(one.types),
            "forward_ms": rounded(one.forward),
            "backward_ms": None if one.backward is None else rounded(one.backward),
            "share": round((one.forward + (one.backward or 0.0)) / total, 5) if total else 0.0,
        }
        for one in times.layers
    ]
    return {
        "iterations": times.iterations,
        "loss": times.loss if math.isfinite(times.loss) else None,
        "backward_from": "outputs" if times.seeded else "loss",
        "layers": rows,
        "layers_forward_ms": rounded(times.layers_forward),
        "layers_backward_ms": rounded(times.layers_backward),
        "forward_ms": rounded(times.forward),
        "backward_ms": rounded(times.backward),
        "pass_ms": rounded(times.whole),
        "images_per_second": round(1000 * batch / times.whole, 2) if batch and times.whole else None,
        "sum_over_pass": round(total / times.whole, 4) if times.whole else None,
        "passes_ms": [rounded(one) for one in times.passes],
    }


def rounded(milliseconds: float) -> float:
    """To the microsecond, or four digits of less."""
    return float(f"{milliseconds:.4g}") if milliseconds < 1 else round(milliseconds, 3)


# -- for people ------------------------------------------------------------------------------------------------------


def page(result: dict[str, Any]) -> Any:
    """A line a layer, then the whole."""
    from rich.console import Group
    from rich.table import Table

    grid = Table(box=None, pad_edge=False)
    for name, side in (("layer", "left"), ("type", "left"), ("forward ms", "right"), ("backward ms", "right")):
        grid.add_column(name, justify=side, overflow="fold")  # type: ignore[arg-type]
    grid.add_column("share", justify="right")
    grid.add_column("", style="cyan", no_wrap=True)
    most = max((row["share"] for row in result["layers"]), default=0.0) or 1.0
    for row in result["layers"]:
        back = row["backward_ms"]
        cells = ["+".join(row["layers"]), "+".join(row["types"]), number(row["forward_ms"])]
        cells += ["-" if back is None else number(back), f"{100 * row['share']:.1f} %"]
        grid.add_row(*map(plain, cells), "█" * round(row["share"] / most * BAR))
    return Group(grid, "", table({name: plain(words) for name, words in sums(result).items()}))


def sums(result: dict[str, Any]) -> dict[str, str]:
    """What a pass takes, by the layers and without the stopwatch."""
    per_second = result["images_per_second"]
    whole = f"{number(result['forward_ms'])} + {number(result['backward_ms'])} = {number(result['pass_ms'])} ms"
    layers = f"{number(result['layers_forward_ms'])} + {number(result['layers_backward_ms'])} ms"
    share = f", {100 * result['sum_over_pass']:.1f} % of the pass" if result["sum_over_pass"] else ""
    told = {
        "net": heading(result),
        "forward + backward": f"{whole}, without the stopwatch",
        "sum of the layers": layers + share,
        "items a second": "-" if per_second is None else f"{per_second:,.4g}",
    }
    if result["backward_from"] == "outputs":
        told["backward"] = "from ones at the outputs: the net has no loss in this phase"
    if result["chart"]:
        told["chart"] = result["chart"]
    return told


def number(milliseconds: float) -> str:
    """Three digits behind the point of a short time, fewer of a long one."""
    digits = 3 if milliseconds < 10 else 2 if milliseconds < 100 else 1
    return f"{milliseconds:,.{digits}f}"


def plain(words: str) -> str:
    from rich.markup import escape

    return escape(words)


def caffe_lines(result: dict[str, Any]) -> Any:
    """As `caffe time`: averages, a line a layer; of layers that run as one the first has the time of both."""
    lines = [f"Initial loss: {result['loss'] or 0:g}", "*** Benchmark begins ***"]
    lines.append(f"Testing for {result['iterations']} iterations.")
    lines += [f"Iteration: {i} forward-backward time: {ms:g} ms." for i, ms in enumerate(result["passes_ms"], 1)]
    lines.append("Average time per layer: ")
    for row in result["layers"]:
        for place, name in enumerate(row["layers"]):
            spent = {"forward": row["forward_ms"], "backward": row["backward_ms"] or 0.0}
            lines += [f"{name:>10}\t{way}: {0 if place else ms:g} ms." for way, ms in spent.items()]
    lines.append(f"Average Forward pass: {result['forward_ms']:g} ms.")
    lines.append(f"Average Backward pass: {result['backward_ms']:g} ms.")
    lines.append(f"Average Forward-Backward: {result['pass_ms']:g} ms.")
    lines.append(f"Total Time: {sum(result['passes_ms']):g} ms.")
    lines.append("*** Benchmark ends ***")
    return Plain(lines)


class Plain:
    """Lines as they are, with their tabs, which rich would turn into spaces."""

    def __init__(self, lines: list[str]):
        self.lines = lines

    def __rich_console__(self, *_: Any) -> Any:
        from rich.segment import Segment

        yield Segment("\n".join(self.lines) + "\n")
