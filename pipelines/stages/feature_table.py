"""A folder of features, or one Parquet file of it, as it stands: whose they are, parts, rows, and how to read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ops.records.feature_parts import BROKEN, open_part, part_files, told
from ops.records.parquet import METADATA, read_facts
from pipelines.job import counted, size, table
from pipelines.stages.output import read_manifest
from pipelines.stages.plan import read_facts as read_plan

CHARACTERS = 12  # of a weights digest that people see
MAGIC = b"PAR1"
SKIP = ["manifest", "errors", "."]  # what pyarrow must not take for parts: names that begin so


@dataclass(frozen=True)
class Features:
    """What the manifest says, or for a file by itself its own metadata."""

    path: Path
    folder: Path
    format: str  # parquet, lmdb or hdf5
    facts: dict[str, Any]  # net, weights, weights_digest, blobs, pool, dtype, transform, input, ...
    names: list[str]  # of the parts
    expected: list[dict[str, Any] | None]  # what the manifest says of each part
    manifest: dict[str, Any] | None

    @property
    def blobs(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(shape) for name, shape in self.facts["blobs"].items()}

    @property
    def count(self) -> int:
        """Rows, as the manifest or the file says."""
        if self.manifest is not None:
            return sum(one["count"] for one in self.expected if one)
        return int(pq.read_metadata(self.path).num_rows)

    def files(self) -> list[Path]:
        return [file for name in self.names for file in part_files(self.format, self.folder, name, self.blobs)]


def find(path: Path) -> Features | None:
    """The features at a path; None where there is something else. ValueError for an extraction that is not finished."""
    if path.is_file():
        return _file(path)
    manifest = read_manifest(path)
    if manifest is not None and "features" in manifest:
        names = [one["name"] for one in manifest["shards"]]
        return Features(path, path, manifest["format"], manifest["features"], names, manifest["shards"], manifest)
    if manifest is None and "blobs" in (read_plan(path / ".run" / "plan") or {}).get("options", {}):
        raise ValueError(f"{path}: an extraction that is not finished; run its command again")
    return None


def _file(path: Path) -> Features | None:
    """A Parquet file whose metadata says that an extraction wrote it; None for every other file."""
    with path.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            return None
    try:
        if METADATA not in (pq.read_schema(path).metadata or {}):
            return None
    except (pa.ArrowException, OSError):
        return None
    return Features(path, path.parent, "parquet", read_facts(path), [path.name], [None], None)


# -- for people --------------------------------------------------------------------------------------------------------


def describe(found: Features) -> dict[str, Any]:
    """What `show` tells of features. ValueError or OSError where a part is gone, or is none."""
    groups, labels, rows = [], [], 0
    for name in found.names:
        try:
            with open_part(found.format, found.folder, name, found.blobs) as part:
                groups += part.groups
                rows += sum(part.groups)
                some = part.labels()
        except BROKEN as error:
            where = told(error, found.folder / name)
            raise ValueError(f"{where}; `cortado check {found.path}` looks through all parts") from error
        labels += [some] if some is not None else []
    facts, manifest = found.facts, found.manifest or {}
    return {
        "features": str(found.path),
        "format": found.format,
        "parts": len(found.names),
        "rows": rows,
        **{name: manifest.get(name) for name in ("listed", "bad", "warned")},
        **{name: facts.get(name) for name in ("blobs", "dtype", "pool")},
        "bytes": sum(file.stat().st_size for file in found.files()),
        "row_groups": [len(groups), max(groups, default=0)] if found.format == "parquet" else None,
        "labels": spread(np.concatenate(labels)) if labels else None,
        **{name: facts.get(name) for name in ("net", "weights", "weights_digest", "transform", "input", "versions")},
        "read_by": readers(found.path) if found.format == "parquet" else {},
    }


def spread(labels: NDArray[Any]) -> str:
    """How labels are spread over rows: (n, 1) whole numbers are classes."""
    if labels.ndim != 2 or not len(labels):
        return "none"
    if labels.shape[1] > 1 or not np.isfinite(labels).all() or (labels != np.rint(labels)).any():
        return f"{counted(labels.shape[1], 'number')} each"
    values, counts = np.unique(labels, return_counts=True)
    even = f"{counts.min():,} to {counts.max():,}" if counts.min() < counts.max() else f"{counts.max():,}"
    return f"{len(values):,} {'class' if len(values) == 1 else 'classes'}, {even} rows each"


def readers(path: Path) -> dict[str, str]:
    """How four libraries read all rows in order, of a folder with manifest.json and errors.csv beside the parts or of
    one file."""
    if path.is_file():
        return {"pyarrow": f'pq.read_table("{path}")', "pandas": f'pd.read_parquet("{path}")', **by_pattern(path)}
    skip = "[" + ", ".join(f'"{one}"' for one in SKIP) + "]"
    return {
        "pyarrow": f'pq.read_table("{path}", ignore_prefixes={skip})',
        "pandas": f'pd.read_parquet("{path}", ignore_prefixes={skip})',
        **by_pattern(path / "*.parquet"),
    }


def by_pattern(pattern: Path) -> dict[str, str]:
    return {"DuckDB": f"""duckdb.sql("select * from '{pattern}'")""", "polars": f'pl.read_parquet("{pattern}")'}


def shape_text(blobs: dict[str, Any]) -> str:
    """fc7 4096, conv5 256x13x13"""
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in blobs.items())


def page(result: dict[str, Any]) -> Any:
    """What `describe` found, as a table."""
    of = "" if result["listed"] is None else f" of {result['listed']:,} images"
    bad = "" if not result["bad"] and not result["warned"] else f"{result['bad']:,} left out, {result['warned']:,} odd"
    groups = result["row_groups"]
    digest = str(result["weights_digest"] or "")
    transform = {name: value for name, value in (result["transform"] or {}).items() if value not in (None, False)}
    shown = {
        "features": f"{result['features']}  ({result['format']}, {counted(result['parts'], 'part')})",
        "rows": f"{result['rows']:,}{of}",
        "bad": f"{bad}  (errors.csv)" if bad else None,
        "blobs": f"{shape_text(result['blobs'])}  ({result['dtype']})",
        "pool": result["pool"] if result["pool"] != "none" else None,
        "labels": result["labels"],
        "bytes": size(result["bytes"]),
        "row groups": f"{groups[0]:,}, of up to {counted(groups[1], 'row')}" if groups else None,
        "net": result["net"],
        "weights": f"{', '.join(result['weights'] or ())}  ({digest[:CHARACTERS]})",
        "transform": ", ".join(f"{name} {value}" for name, value in transform.items()) or "none",
        "input": result["input"],
        "made by": ", ".join(f"{name} {version}" for name, version in (result["versions"] or {}).items()),
        **result["read_by"],
    }
    return table({name: value for name, value in shown.items() if value is not None})
