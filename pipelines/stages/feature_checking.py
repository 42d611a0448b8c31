"""Is a folder of features right? Checksums, counts, names and their order, finite numbers, row groups."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ops.records.feature_parts import BROKEN, Part, Tally, open_part, told
from ops.records.parquet import Columns, Rows
from pipelines.stages.feature_table import Features
from pipelines.stages.output import ERRORS
from pipelines.stages.stream import side_by_side

if TYPE_CHECKING:
    from cluster.config import Config

FEW_BYTES = 256 << 20  # that are read here, without starting Ray
GIVEN = ("format", "folder", "name", "facts", "expected", "sample")


def check_parts(
    found: Features, config: Config, tell: Callable[[int], None], *, sample: int | None
) -> list[dict[str, Any]]:
    """A report on every part: {checked, rows, groups, largest, problems}."""
    asked = [
        dict(zip(GIVEN, (found.format, str(found.folder), name, found.facts, expected, sample), strict=True))
        for name, expected in zip(found.names, found.expected, strict=True)
    ]
    large = sum(file.stat().st_size for file in found.files() if file.exists()) > FEW_BYTES
    reports = []
    for report in _on_ray(asked, config) if large and len(asked) > 1 else (check_part(**one) for one in asked):
        reports.append(report)
        tell(sum(one["rows"] for one in reports))
    return reports


def _on_ray(asked: list[dict[str, Any]], config: Config) -> Iterator[dict[str, Any]]:
    def work(asked: str) -> str:
        return json.dumps(check_part(**json.loads(asked)))

    rows = [{"asked": json.dumps(one)} for one in asked]
    return map(json.loads, side_by_side(work, rows, config, name="read+checksum"))


def check_part(
    format: str,
    folder: str,
    name: str,
    facts: dict[str, Any],
    expected: dict[str, Any] | None,
    sample: int | None,
) -> dict[str, Any]:
    """One part against what the manifest says of it; a damaged one is a problem, never an error."""
    blobs = {blob: tuple(shape) for blob, shape in facts["blobs"].items()}
    report: dict[str, Any] = {"checked": 0, "rows": 0, "groups": 0, "largest": 0, "problems": []}
    problems: list[str] = []
    where = Path(folder, name)
    try:
        with open_part(format, Path(folder), name, blobs) as part:
            report |= {"rows": sum(part.groups), "groups": len(part.groups), "largest": max(part.groups, default=0)}
            problems += foreign(part, facts)
            tally, bad = Tally(), NotFinite()
            last = ""
            for places, rows in chosen(part, sample):
                tally.add(rows)
                bad.look(rows, places)
                report["checked"] += len(places)
                if part.name is None:  # keys are places, which ascend
                    problems += unordered([last, *rows.names])
                    last = rows.names[-1]
            problems += bad.problems()
            problems += differences(tally, report["rows"], expected, whole=report["checked"] == report["rows"])
    except BROKEN as error:
        problems.append(told(error, where))
    report["problems"] = [one if str(where) in one else f"{where}: {one}" for one in problems]
    return report


def foreign(part: Part, facts: dict[str, Any]) -> list[str]:
    """What a part's own metadata says differently: a part of another table."""
    out = [f"holds {part.dtype} values, the manifest says {facts['dtype']}"] if part.dtype != facts["dtype"] else []
    for name in ("net", "weights_digest", "pool"):
        if part.facts is not None and part.facts.get(name) != facts.get(name):
            out.append(
                f"{name} is {part.facts.get(name)}, the manifest says {facts.get(name)}: a part of other features"
            )
    most = Columns("", None, False, part.blobs, part.dtype).group
    if part.facts is not None and max(part.groups, default=0) > most:
        out.append(
            f"a row group of {max(part.groups):,} rows, expected at most {most:,}: another program wrote it anew"
        )
    return out


def chosen(part: Part, sample: int | None) -> Iterator[tuple[np.ndarray, Rows]]:
    """Groups of rows and which of each are looked at closely: all, or `sample` of the part, evenly spread."""
    total = sum(part.groups)
    wanted = (
        None if sample is None or sample >= total else np.unique(np.linspace(0, total - 1, sample).astype(np.int64))
    )
    first = 0
    for group, count in enumerate(part.groups):
        here = np.arange(count) if wanted is None else wanted[(wanted >= first) & (wanted < first + count)] - first
        first += count
        if len(here):
            yield here, part.read(group)


class NotFinite:
    """Rows with NaN or infinite numbers, blob by blob."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def look(self, rows: Rows, places: np.ndarray) -> None:
        for blob, values in rows.blobs.items():
            flat = values.reshape(len(rows), -1)
            flat = flat if len(places) == len(rows) else flat[places]
            bad = np.flatnonzero(~np.isfinite(flat).all(axis=1))
            self.found.setdefault(blob, []).extend(rows.names[place] for place in places[bad])

    def problems(self) -> list[str]:
        return [
            f"blob {blob!r} holds NaN or infinite values in {len(names):,} rows, the first is {names[0]}"
            for blob, names in self.found.items()
            if names
        ]


def unordered(names: list[str]) -> list[str]:
    """The first name that does not follow the one before it."""
    wrong = next(((one, other) for one, other in itertools.pairwise(names) if other <= one), None)
    return [f"key {wrong[1]} does not follow {wrong[0]}"] if wrong is not None else []


def differences(tally: Tally, rows: int, expected: dict[str, Any] | None, *, whole: bool) -> list[str]:
    """What is not as the manifest says; names and checksum where every row was read."""
    found: dict[str, Any] = {"count": rows}
    if whole:
        found |= {"first_key": tally.first, "last_key": tally.last, "checksum": tally.checksum()}
    return [
        f"{name.replace('_', ' ')} is {value}, the manifest says {expected[name]}"
        for name, value in found.items()
        if expected is not None and value != expected[name]
    ]


def strays(found: Features) -> list[str]:
    """Files that look like parts and are none: who reads OUT/*.parquet gets their rows too."""
    if found.manifest is None:
        return []
    ending = {"parquet": ".parquet", "hdf5": ".h5"}.get(found.format)
    there = {file.name for file in found.folder.glob(f"*{ending}")} if ending else set()
    return [f"{found.folder / name}: is no part of these features" for name in sorted(there - set(found.names))]


def listed(found: Features) -> list[str]:
    """errors.csv against the counts of the manifest."""
    if found.manifest is None:
        return []
    try:
        with (found.folder / ERRORS).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            reasons = [row["reason"] for row in csv.DictReader(file)]
    except (OSError, KeyError, csv.Error) as error:
        return [told(error, found.folder / ERRORS)]
    warned = sum(reason.startswith("warning: ") for reason in reasons)
    return [
        f"{found.folder / ERRORS}: lists {there} {kind} images, the manifest says {found.manifest[kind]}"
        for kind, there in (("bad", len(reasons) - warned), ("warned", warned))
        if there != found.manifest[kind]
    ]
