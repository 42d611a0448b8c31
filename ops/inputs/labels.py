"""Label columns of tables, tars and data sets, as the numbers of a list.

Under "caffe" (the default) a column is taken as what it holds: whole numbers are labels, other numbers float labels,
names classes, numbered in their order. "int", "float" and "vector:N" ask for numbers; a row without them is bad.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ops.records.image_list import label_width

MANY_CLASSES = 0.5  # of the rows: as many different names are hardly classes
INT32 = 1 << 31


@dataclass
class Labels:
    """values: (N,) int32 or (N, K) float32; bad: row -> reason."""

    values: NDArray[Any]
    classes: list[str] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def none(count: int, where: str, mode: str, why: str = "no labels") -> Labels:
    """Labels of an input that has none: 0, with a warning; where numbers were asked for, an error."""
    if mode != "caffe":
        raise ValueError(f"{where}: {why}; --labels {mode} needs them")
    return Labels(np.zeros(count, np.int32), warnings=[f"{where}: {why}: every label is 0"])


def of_numbers(values: NDArray[Any], mode: str, where: str) -> Labels:
    """Labels from numbers, (N,) or (N, K); nan stands for a missing one."""
    rows = values.reshape(len(values), -1)
    width = label_width(mode)
    if mode.startswith("vector") and rows.shape[1] != width:
        raise ValueError(f"{where}: labels of {rows.shape[1]} numbers; --labels {mode} asks for {width}")
    if mode in ("int", "float") and rows.shape[1] != 1:
        raise ValueError(f"{where}: labels of {rows.shape[1]} numbers; --labels vector:{rows.shape[1]} reads them")
    finite = np.isfinite(rows).all(axis=1) if rows.dtype.kind == "f" else np.ones(len(rows), np.bool_)
    missing = np.flatnonzero(~finite)
    bad = {int(row): "no label" if np.isnan(rows[row]).any() else "a label that is not finite" for row in missing}
    whole = _whole(rows, finite)
    if mode == "int" or (mode == "caffe" and rows.shape[1] == 1 and whole.all()):
        for row in np.flatnonzero(~whole & finite).tolist():
            bad[row] = f"label {rows[row, 0]:g} is not a whole number of 32 bits"
        return _checked(Labels(np.where(whole & finite, rows[:, 0], 0).astype(np.int32), bad=bad), where)
    return _checked(Labels(np.where(finite[:, None], rows, 0).astype(np.float32), bad=bad), where)


def _whole(rows: NDArray[Any], finite: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which rows hold one number that a 32-bit integer can be; a missing one may."""
    first = rows[:, 0]
    if rows.dtype.kind in "iub":
        return (first >= -INT32) & (first < INT32)
    known = np.where(finite, first, 0)
    return (known == np.floor(known)) & (known >= -INT32) & (known < INT32)


def of_texts(texts: pa.Array | pa.ChunkedArray, mode: str, where: str) -> Labels:
    """Labels from words: numbers if they all are, else the names of classes; an empty one is missing."""
    texts = pc.ascii_trim_whitespace(texts.cast(pa.string()))
    texts = pc.if_else(pc.equal(pc.fill_null(texts, ""), ""), pa.scalar(None, pa.string()), texts)
    if texts.null_count == len(texts):
        return none(len(texts), where, mode, "an empty label column")
    numbers = _numbers(texts)
    if mode.startswith("vector"):
        return of_numbers(_vectors(texts.to_pylist(), label_width(mode)), mode, where)
    if numbers is not None:
        return of_numbers(numbers, mode, where)
    if mode != "caffe":
        return _numbers_one_by_one(texts.to_pylist(), mode, where)
    return _named(texts, where)


def of_objects(objects: Sequence[Any], mode: str, where: str) -> Labels:
    """Labels from Python values: numbers, lists of numbers, words, None."""
    kinds = {type(value) for value in objects if value is not None}
    if not kinds:
        return none(len(objects), where, mode)
    if kinds <= {int, float, bool}:
        return of_numbers(np.array([np.nan if value is None else value for value in objects], np.float64), mode, where)
    if kinds <= {list, tuple}:
        width = len(next(value for value in objects if value is not None))
        rows = [_row(value, width) for value in objects]
        return of_numbers(np.array(rows, np.float64).reshape(len(rows), width), mode, where)
    return of_texts(pa.array([None if value is None else str(value) for value in objects], pa.string()), mode, where)


def _row(value: Any, width: int) -> list[float]:
    try:
        row = [float(number) for number in value or ()]
    except (TypeError, ValueError):
        row = []
    return row if len(row) == width else [np.nan] * width


def _numbers(texts: Any) -> NDArray[Any] | None:
    """The words as float64, or int64 where they are whole; None when some are no numbers."""
    for kind in (pa.int64(), pa.float64()):
        try:
            numbers = texts.cast(kind)
        except pa.ArrowInvalid:
            continue
        return (
            numbers.to_numpy() if not numbers.null_count else numbers.cast(pa.float64()).to_numpy(zero_copy_only=False)
        )
    return None


def _numbers_one_by_one(texts: list[str | None], mode: str, where: str) -> Labels:
    values, bad = np.full(len(texts), np.nan), {}
    for row, text in enumerate(texts):
        try:
            values[row] = float(text or "nan")
        except ValueError:
            bad[row] = f"label {text!r} is not a number"
    found = (
        of_numbers(values, mode, where) if len(bad) < len(texts) else Labels(np.zeros(len(texts), np.int32), bad=bad)
    )
    found.bad.update(bad)
    return _checked(found, where)


def _vectors(texts: list[str | None], width: int) -> NDArray[np.float64]:
    """Words like "1 0.5" or "[1, 0.5]" as rows of numbers; nan where they are not."""
    rows = np.full((len(texts), width), np.nan)
    for row, text in enumerate(texts):
        words = (text or "").strip("[]()").replace(",", " ").replace(";", " ").split()
        rows[row] = _row(words, width)
    return rows


def _named(texts: Any, where: str) -> Labels:
    """Classes, numbered in the order of their names."""
    encoded = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    encoded = pc.dictionary_encode(encoded)
    names = encoded.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    numbers = np.empty(len(names), np.int32)
    numbers[order] = np.arange(len(names), dtype=np.int32)
    missing = np.flatnonzero(encoded.indices.is_null().to_numpy(zero_copy_only=False))
    places = pc.fill_null(encoded.indices, 0).to_numpy(zero_copy_only=False)
    found = Labels(numbers[places], [names[place] for place in order], {int(row): "no label" for row in missing})
    if len(names) > max(2, MANY_CLASSES * len(texts)):
        found.warnings.append(f"{where}: {len(names):,} different labels in {len(texts):,} rows became classes")
    found.values[missing] = 0
    return found


def _checked(found: Labels, where: str) -> Labels:
    """An input without a single usable label is an error, not a list of bad lines."""
    if found.bad and len(found.bad) == len(found.values):
        row, reason = next(iter(found.bad.items()))
        raise ValueError(f"{where}: no row has a usable label; row {row + 1}: {reason}")
    return found
