"""`cortado check --gradients`: numerical differences of every layer of a net against its backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ops import net_table
from ops.gradient_check import Checked, check_gradients
from ops.layers.registry import Phase
from pipelines.stages.netrun import ask, open_net
from pipelines.stages.netshow import Asked

BATCH = 2  # of a check, where nothing else is said: every element of the batch costs the same again


def check(
    what: str,
    phase: Phase,
    *,
    shapes: Sequence[str],
    batch: int | None,
    weights: str | None,
    layer: str | None,
    tolerance: float,
    progress: Callable[[int, int], object],
) -> dict[str, Any]:
    """The facts of a check, `problems` among them. On a machine with a GPU, CPU and GPU are compared too."""
    asked = ask(what, phase)
    asked.give(shapes, batch)
    if batch is None:
        make_small(asked)
    net = open_net(asked, torch.device("cpu"), weights)
    device = "cuda" if torch.cuda.is_available() else None
    rows = check_gradients(
        net,
        only=layer,
        tolerance=tolerance,
        device=device,
        progress=lambda done: progress(done, len(net.steps)),
    )
    return {
        "net": str(asked.file),
        "phase": phase,
        "batch": net_table.batch_of(net),
        "tolerance": tolerance,
        "compared_with": device,
        "blobs": [facts(row) for row in rows],
        "without_gradient": without(net.layers, rows, layer),
        "problems": [row.told for row in rows if not row.ok],
    }


def make_small(asked: Asked) -> None:
    """Few items a batch where the net can be built so."""
    net = asked.load(device="meta")
    old = net_table.batch_of(net)
    if old is None or old <= BATCH:
        return
    before = asked.inputs
    asked.inputs = net_table.at_batch(net, BATCH)
    try:
        asked.load(device="meta")
    except ValueError:
        asked.inputs = before


def without(layers: Sequence[Any], rows: Sequence[Checked], only: str | None) -> list[str]:
    """The layers that have no gradient to check."""
    checked = {row.layer for row in rows}
    names = [layer.spec.name for layer in layers if not layer.source and layer.spec.name not in checked]
    return [name for name in names if only is None or name == only]


def facts(row: Checked) -> dict[str, Any]:
    """A row as JSON can say it."""
    return {
        "layer": row.layer,
        "type": row.type,
        "blob": row.blob,
        "shape": list(row.shape),
        "error": row.error if math.isfinite(row.error) else None,
        "tolerance": row.tolerance,
        "ok": row.ok,
        "elements": row.checked,
        "kinks": row.kinks,
        "at": None if row.at is None else list(row.at),
        "backward": finite(row.backward),
        "differences": finite(row.differences),
        "note": row.note,
    }


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def page(result: dict[str, Any]) -> Any:
    """A line a blob."""
    from rich.markup import escape
    from rich.table import Table

    grid = Table(box=None, pad_edge=False)
    for name in ("layer", "type", "blob", "shape", "elements", "kinks", "relative error", ""):
        right = name in ("elements", "kinks", "relative error")
        grid.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in result["blobs"]:
        shape = "x".join(map(str, row["shape"])) or "1"
        tried = f"{row['elements']:,}" + (
            f" of {math.prod(row['shape']):,}" if row["elements"] < math.prod(row["shape"]) else ""
        )
        error = "inf" if row["error"] is None else f"{row['error']:.1e}"
        cells = [row["layer"], row["type"], row["blob"], shape, tried, f"{row['kinks'] or ''}", error]
        grid.add_row(*map(escape, cells), "ok" if row["ok"] else "WRONG", style=None if row["ok"] else "bold red")
    return grid
