"""What a person reads of a net: the table of its layers and their sums, or the facts of a picture."""

from __future__ import annotations

from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipelines.job import size, table

SHORT = {"kernel": "k", "stride": "s", "pad": "p", "dilation": "d", "group": "g"}  # as in papers: k3 s2 p1
PLAIN = ("pool", "operation")  # settings that need no name
# column -> side
COLUMNS = {
    "layer": "left",
    "type": "left",
    "settings": "left",
    "bottoms → tops": "left",
    "shape": "left",
    "parameters": "right",
    "multiply-adds": "right",
    "memory": "right",
}
FOLDED = {"layer": 40, "type": 20, "settings": 20, "bottoms → tops": 32}  # may be wrapped to that many characters
DISPENSABLE = ("bottoms → tops", "settings", "memory", "type")  # left out in this order where there is no room


# -- the table -------------------------------------------------------------------------------------------------------


class Layers:
    """The layers as a table; on a narrow terminal, columns are left out rather than every name broken into pieces."""

    def __init__(self, layers: list[dict[str, Any]]):
        self.rows = [dict(zip(COLUMNS, cells(layer), strict=True)) for layer in layers]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns, gone = list(COLUMNS), list[str]()
        while self.width(columns) > options.max_width and len(gone) < len(DISPENSABLE):
            gone.append(DISPENSABLE[len(gone)])
            columns.remove(gone[-1])
        yield self.table(columns)
        if gone:
            yield Text(f"(no room for: {', '.join(gone)}; a wider terminal or --json has them)", style="dim")

    def width(self, columns: list[str]) -> int:
        """Characters that a table of these columns needs to be legible."""
        widths = {name: max([len(name), *(longest(row[name]) for row in self.rows)]) for name in columns}
        return sum(min(widths[name], FOLDED.get(name, 999)) for name in columns) + 2 * (len(columns) - 1)

    def table(self, columns: list[str]) -> Table:
        grid = Table(box=None, pad_edge=False)
        for name in columns:
            grid.add_column(name, justify=COLUMNS[name], no_wrap=name not in FOLDED, overflow="fold")  # type: ignore[arg-type]
        for row in self.rows:
            grid.add_row(*(escape(row[name]) for name in columns))
        return grid


def longest(words: str) -> int:
    return max(map(len, words.split("\n")))


def net_page(result: dict[str, Any]) -> Any:
    """The layers, then the sums."""
    return Group(Layers(result["layers"]), "", table({name: escape(words) for name, words in sums(result).items()}))


def cells(layer: dict[str, Any]) -> list[str]:
    """A layer's row, a word a column."""
    blobs = ", ".join(layer["tops"])
    if layer["in_place"]:
        blobs += " (in place)"
    elif layer["bottoms"]:
        blobs = f"{', '.join(layer['bottoms'])} → {blobs}".rstrip()
    return [
        layer["name"],
        layer["type"],
        settings_text(layer["settings"]),
        blobs,
        "" if layer["in_place"] else "\n".join(map(shape_text, layer["shapes"])),
        numbers_text(layer),
        "?" if layer["multiply_adds"] is None else short(layer["multiply_adds"]) if layer["multiply_adds"] else "",
        size(layer["bytes"]) if layer["bytes"] else "",
    ]


def settings_text(settings: dict[str, str]) -> str:
    """As "k11 s4", "MAX k3 s2", "alpha 0.0001 beta 0.75"."""
    return " ".join(
        f"{SHORT[name]}{value}" if name in SHORT else value if name in PLAIN else f"{name} {value}"
        for name, value in settings.items()
    )


def numbers_text(layer: dict[str, Any]) -> str:
    """A layer's own parameters, its statistics in brackets, and whose blobs it uses."""
    words = [f"{layer['parameters']:,}"] if layer["parameters"] else []
    words += [f"({layer['statistics']:,})"] if layer["statistics"] else []
    words += [f"as {name}" for name in layer["shares_with"]]
    return " ".join(words)


def shape_text(shape: list[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def short(count: int) -> str:
    """As 105 M, 1.58 G: three digits."""
    for power, unit in ((12, " T"), (9, " G"), (6, " M"), (3, " k")):
        if count >= 0.9995 * 10**power:
            digits = 2 if count < 9.995 * 10**power else 1 if count < 99.95 * 10**power else 0
            return f"{count / 10**power:.{digits}f}{unit}"
    return str(count)


# -- the sums --------------------------------------------------------------------------------------------------------


def sums(result: dict[str, Any]) -> dict[str, str]:
    """The lines below the table."""
    name = f" ({result['name']})" if result["name"] else ""
    batch = f", batch {result['batch']:,}" if result["batch"] else ""
    lines = {
        "net": f"{result['net']}{name}: {len(result['layers']):,} layers, {result['phase']}{batch}",
        "inputs": blobs_text(result["inputs"]),
        "outputs": blobs_text(result["outputs"]),
        "parameters": parameters_text(result),
        "multiply-adds": multiply_adds_text(result),
        "memory": f"{size(result['blob_bytes'])} of blobs, {size(result['parameter_bytes'])} of parameters; training "
        "takes as much again for gradients, and a solver's history",
    }
    if result["drawing"]:
        lines["drawing"] = result["drawing"] + (f" ({result['problem']})" if "problem" in result else "")
    return lines


def blobs_text(blobs: dict[str, list[int]]) -> str:
    return ", ".join(f"{name} {shape_text(shape)}" for name, shape in blobs.items()) or "none"


def parameters_text(result: dict[str, Any]) -> str:
    words = f"{result['parameters']:,}"
    words += f", {result['frozen']:,} of them frozen (lr_mult 0)" if result["frozen"] else ""
    return words + (f"; besides ({result['statistics']:,}) statistics" if result["statistics"] else "")


def multiply_adds_text(result: dict[str, Any]) -> str:
    each = result["multiply_adds_an_item"]
    words = f"{result['multiply_adds']:,}"
    if each is not None and result["batch"] != 1:
        words = f"{each:,} an item, {words} a batch"
    words += " (convolutions, inner products, recurrent layers; without biases)"
    return words + (f"; not counted: {', '.join(result['uncounted'])}" if result["uncounted"] else "")


# -- pictures --------------------------------------------------------------------------------------------------------


def picture_page(result: dict[str, Any]) -> Any:
    """Where a picture of filters or responses is, and what is on it."""
    shape = result["shape"]
    lines = {"net": result["net"]}
    if "layer" in result:
        lines["layer"] = f"{result['layer']} ({result['type']}), weights {shape_text(shape)}"
        on_it = of(result["filters_shown"], shape[0], "filters")
        if result["channels_shown"] < shape[1]:
            on_it += f", {of(result['channels_shown'], shape[1], 'channels')}"
    else:
        lines["blob"] = f"{result['blob']}, {shape_text(shape)}"
        lines["image"] = f"{result['image']} as {blobs_text(result['input'])}"
        on_it = of(result["maps_shown"], shape[0], "maps" if len(shape) > 1 else "numbers")
        on_it += (
            f"; {result['silent']:,} of all {'are flat' if len(shape) > 1 else 'are 0'}" if result["silent"] else ""
        )
    lines["weights"] = result["weights"]
    lines["values"] = f"{value_text(result['least'])} .. {value_text(result['greatest'])}"
    lines["picture"] = f"{result['picture']}: {on_it}"
    return table({name: escape(words) for name, words in lines.items()})


def of(shown: int, whole: int, things: str) -> str:
    return f"{shown:,} of {whole:,} {things}" if shown < whole else f"{whole:,} {things}"


def value_text(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
