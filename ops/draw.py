"""A net as a picture: a box a layer, an arrow a blob. The text is Graphviz's; its program `dot` makes SVG or PNG of it.

A layer that works in place stands as a line in the box of the layer that it follows. Colours are families of layers, as
the files of ops/layers; shapes on arrows leave the batch out.
"""

from __future__ import annotations

import html
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ops.net import Net
from ops.net_table import Row, Totals, batch_of, rows, steps_and_streams, totals

FORMATS = ("svg", "png", "dot")
HOW_TO_GET_DOT = "Debian and Ubuntu: apt install graphviz; macOS: brew install graphviz; conda install graphviz"
INK, LINE, PALE = "#202428", "#5b646e", "#6b7480"
FONT = "Helvetica"
SECONDS = 120  # that `dot` may take; the largest published nets take two
# family -> (what the legend calls it, fill, border)
COLOURS = {
    "inputs": ("input", "#ffffff", "#5b646e"),
    "convolution": ("convolution", "#cfe3f7", "#2f6fab"),
    "pooling": ("pooling", "#d5efd6", "#3c8a45"),
    "normalization": ("normalization", "#fdf0c0", "#a8851a"),
    "activation": ("activation", "#fbdcc4", "#bf6a26"),
    "dense": ("inner product, scale", "#e3d9f3", "#7552ab"),
    "recurrent": ("recurrent", "#c9eeee", "#1f8585"),
    "shape": ("concat, slice, shape", "#e6e9ec", "#6b7480"),
    "arithmetic": ("element by element", "#f3e2d2", "#8f6a45"),
    "output": ("output", "#f7d0d8", "#b03a55"),
    "loss": ("loss", "#f4b8b8", "#a82a2a"),
    "detection": ("detection", "#eef3c3", "#7d8a1c"),
}
CHOICES = ("pool", "operation")  # settings that go with the type without their name
SWITCHES = ("yes", "no")
IN_LEGEND = 4  # families a line
OTHER = ("layer from elsewhere", "#ffffff", "#a82a2a")


@dataclass
class Box:
    """A layer with those that work in place on its tops; of an input without a layer, no row."""

    name: str
    listed: list[Row] = field(default_factory=list)

    @property
    def colours(self) -> tuple[str, str, str]:
        first = self.listed[0].family if self.listed else "inputs"
        return COLOURS.get(first, OTHER)


@dataclass
class Arrow:
    """A blob on its way from one box to another, by their numbers."""

    start: int
    stop: int
    blob: str


def boxes(net: Net, listed: Sequence[Row]) -> tuple[list[Box], list[Arrow]]:
    """What is drawn. A layer in place is folded unless somebody took its blob before it."""
    drawn = [Box(name) for name in net.inputs if not any(name in row.tops for row in listed)]
    maker = {box.name: number for number, box in enumerate(drawn)}
    taken, arrows = set[str](), list[Arrow]()
    for row in listed:
        home = {maker[blob] for blob in row.bottoms}
        if row.inplace and row.tops == row.bottoms and len(home) == 1 and not taken & set(row.bottoms):
            drawn[home.pop()].listed.append(row)
            continue
        number = len(drawn)
        drawn.append(Box(row.name, [row]))
        arrows += [Arrow(maker[blob], number, blob) for blob in dict.fromkeys(row.bottoms)]
        taken |= set(row.bottoms)
        for blob in row.tops:
            maker[blob] = number
            taken.discard(blob)
    return drawn, arrows


def graph(net: Net) -> Any:
    """The drawing as a pydot.Dot."""
    import pydot

    listed = rows(net)
    drawn, arrows = boxes(net, listed)
    picture = pydot.Dot(
        "net",
        graph_type="digraph",
        label=heading(net, totals(net, listed), drawn),
        labelloc="t",
        fontname=FONT,
        fontsize="18",
        fontcolor=INK,
        rankdir="TB",
        nodesep="0.25",
        ranksep="0.35",
        bgcolor="white",
        pad="0.3",
    )
    picture.set_node_defaults(
        shape="box", style='"rounded,filled"', fontname=FONT, fontsize="12", fontcolor=INK, margin='"0.12,0.05"'
    )
    picture.set_edge_defaults(color=LINE, fontname=FONT, fontsize="10", fontcolor=PALE, arrowsize="0.7")
    for number, box in enumerate(drawn):
        _, fill, border = box.colours
        picture.add_node(
            pydot.Node(
                f"n{number}", label=label(box), fillcolor=quoted(fill), color=quoted(border), tooltip=tooltip(box)
            )
        )
    for arrow in arrows:
        words = quoted(f" {sizes(net, arrow.blob)} ")
        edge = pydot.Edge(f"n{arrow.start}", f"n{arrow.stop}", label=words, tooltip=quoted(arrow.blob))
        picture.add_edge(edge)
    return picture


# -- texts -----------------------------------------------------------------------------------------------------------


def heading(net: Net, sums: Totals, drawn: Sequence[Box]) -> str:
    """What stands above: name, phase, batch, parameters, multiply-adds, and what the colours mean."""
    batch = f", batch {sums.batch:,}" if sums.batch else ""
    counted = sums.per_item if sums.per_item is not None else sums.multiply_adds
    each = " an item" if sums.per_item is not None and sums.batch != 1 else ""
    facts = f"{net.phase}{batch} · {sums.parameters:,} parameters · {counted:,} multiply-adds{each}"
    families = list(dict.fromkeys(box.colours for box in drawn))
    lines = [families[start : start + IN_LEGEND] for start in range(0, len(families), IN_LEGEND)]
    legend = [
        table(f"<TR>{''.join(patch(*one) for one in line)}</TR>", 'CELLSPACING="4" CELLPADDING="3"') for line in lines
    ]
    name = escaped(net.spec.name or Path(net.name).name)
    parts = [f"<B>{name}</B>", f'<FONT POINT-SIZE="12" COLOR="{PALE}">{facts}</FONT>', *legend, " "]
    return f"<{table(rows_of(parts))}>"


def patch(name: str, fill: str, border: str) -> str:
    """A family's name on its colour."""
    return f'<TD BGCOLOR="{fill}" COLOR="{border}" BORDER="1"><FONT POINT-SIZE="10">{name}</FONT></TD>'


def label(box: Box) -> str:
    """Name, type with its settings, and a line a layer in place."""
    lines = [f"<B>{escaped(box.name) or '(no name)'}</B>"]
    lines += [f"{'+ ' if number else ''}{escaped(described(row))}" for number, row in enumerate(box.listed)]
    small = [f'<FONT POINT-SIZE="11">{line}</FONT>' for line in lines[1:] or ["input"]]
    return f"<{table(rows_of([lines[0], *small]))}>"


def table(inner: str, spacing: str = 'CELLSPACING="0" CELLPADDING="1"') -> str:
    """A table of Graphviz's HTML without lines."""
    return f'<TABLE BORDER="0" {spacing}>{inner}</TABLE>'


def rows_of(parts: Sequence[str]) -> str:
    """A row a part."""
    return "".join(f"<TR><TD>{part}</TD></TR>" for part in parts)


def described(row: Row) -> str:
    """As "Convolution, kernel 3, stride 2" and "Pooling MAX, kernel 2": at most five settings, no switches."""
    choice = next((value for name, value in row.settings.items() if name in CHOICES), "")
    short = {name.removeprefix(f"{row.type.lower()}_").replace("_", " "): value for name, value in row.settings.items()}
    words = [f"{name} {value}" for name, value in short.items() if name not in CHOICES and value not in SWITCHES]
    return ", ".join([f"{row.type} {choice}".strip(), *words[:5]])


def tooltip(box: Box) -> str:
    """What a browser shows under the pointer: every layer of the box with its counts."""
    told = []
    for row in box.listed:
        facts = [f"{row.name} ({row.type})"]
        facts += [f"{row.parameters:,} parameters"] if row.parameters else []
        facts += [f"{row.multiply_adds:,} multiply-adds"] if row.multiply_adds else []
        told.append(", ".join(facts))
    return quoted("; ".join(told) or box.name)


def sizes(net: Net, blob: str) -> str:
    """A blob's shape without the batch; its name where there is no more to it, as of labels."""
    shape = net.shapes[blob]
    if steps_and_streams(net) is None and shape and shape[0] == batch_of(net):
        shape = shape[1:]
    return " × ".join(map(str, shape)) or blob


def escaped(words: str) -> str:
    """As Graphviz's HTML has it, without line breaks and control characters."""
    return html.escape(printable(words))


def quoted(words: str) -> str:
    """A string of the dot language."""
    return '"' + printable(words).replace("\\", "\\\\").replace('"', '\\"') + '"'


def printable(words: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in words)


# -- files -----------------------------------------------------------------------------------------------------------


def check_format(path: Path) -> str:
    """svg, png or dot, by the file's ending; ValueError for others."""
    name = path.suffix.lower().removeprefix(".")
    if name not in FORMATS:
        raise ValueError(f"{path}: expected a name that ends in .{', .'.join(FORMATS)}")
    return name


def write(net: Net, path: Path) -> Path:
    """Draw the net into `path`; where `dot` is not installed, only its text into the same name with .dot.

    What was written is returned.
    """
    kind = check_format(path)
    text = graph(net).to_string()
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    program = shutil.which("dot")
    if kind == "dot" or program is None:
        target = path.with_suffix(".dot")
        target.write_text(text, encoding="utf-8")
        return target
    path.write_bytes(rendered(program, kind, text))
    return path


def rendered(program: str, kind: str, text: str) -> bytes:
    """What `dot` makes of a text."""
    command = [program, f"-T{kind}", *(["-Gdpi=110"] if kind == "png" else [])]
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, check=False, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{program} did not draw the net in {SECONDS} s; write a .dot and cut it into parts") from None
    if done.returncode or not done.stdout:
        told = " ".join(os.fsdecode(done.stderr).split()) or f"exit code {done.returncode}"
        raise ValueError(f"{program} cannot draw the net: {told}")
    return done.stdout
