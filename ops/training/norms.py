"""Norms of gradients out of a log, where debug_info was on: Caffe's line for all blobs, ours for each layer.

They belong to the iteration whose loss is shown next.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from ops.training.log_reader import NUMBER, SHOWN, number

ALL = re.compile(
    rf"\[Backward\] All net params \(data, diff\): L1 norm = .*; L2 norm = \(.*, {NUMBER}\)", re.IGNORECASE
)
LAYER = re.compile(rf"\[Debug\] Layer (.+), gradient norm: {NUMBER}", re.IGNORECASE)
NORM = "grad_norm"
WORDS = ("All net params", ", gradient norm: ", "loss = ")


def read(path: Path) -> pd.DataFrame:
    """iteration, grad_norm (L2, of all blobs together), grad_norm/LAYER: a row an iteration that has them; of what was
    done again after a resume the last. Empty where debug_info was off, or there is no such file.
    """
    rows: dict[int, dict[str, float]] = {}
    found: dict[str, float] = {}
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines() if WORDS[0] in text else ():
        if not any(word in line for word in WORDS):
            continue
        if match := ALL.search(line):
            found[NORM] = number(match[1])
        elif match := LAYER.search(line):
            found[f"{NORM}/{match[1]}"] = number(match[2])
        elif (match := SHOWN.search(line)) and NORM in found:
            iteration = int(match[1])
            rows = {at: row for at, row in rows.items() if at < iteration}
            rows[iteration] = {"iteration": float(iteration), **found}
            found = {}
    return pd.DataFrame(list(rows.values())) if rows else pd.DataFrame({"iteration": pd.Series(dtype=float)})


def beside(train: pd.DataFrame, path: Path) -> pd.DataFrame:
    """A run's table with the norms that its log tells."""
    told = read(path)
    new = told.columns.difference(train.columns, sort=False)
    return train.merge(told[["iteration", *new]], on="iteration", how="left") if len(told) and len(new) else train
