"""Checking shards side by side: checksums, counts, the order of keys, and that every record is one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from ops.records import datum, hdf5, lmdb
from pipelines.stages.dataset import Dataset, pixels
from pipelines.stages.stream import side_by_side

if TYPE_CHECKING:
    from cluster.config import Config

FEW = 8192  # records that are checked here, without starting Ray
SHOWN = 20  # problems of one shard that are told one by one


def check_shards(
    data: Dataset, config: Config, tell: Callable[[int], None], *, sample: int | None
) -> list[dict[str, Any]]:
    """A report on every shard: {checked, shapes, problems}."""
    expected = data.manifest["shards"] if data.manifest else [None] * len(data.shards)
    wanted = list(zip(data.shards, expected, strict=True))
    reports = []
    for report in (
        (check_shard(shard, data.format, manifest, sample) for shard, manifest in wanted)
        if data.count <= FEW or len(wanted) == 1
        else _on_ray(wanted, data.format, config, sample)
    ):
        reports.append(report)
        tell(sum(one["checked"] for one in reports))
    return reports


def _on_ray(wanted: list[tuple[Path, Any]], kind: str, config: Config, sample: int | None) -> Any:
    rows = [{"path": str(path), "expected": json.dumps(expected)} for path, expected in wanted]

    def work(path: str, expected: str) -> str:
        return json.dumps(check_shard(Path(path), kind, json.loads(expected), sample))

    return map(json.loads, side_by_side(work, rows, config, name="read+checksum+parse"))


def check_shard(path: Path, kind: str, expected: dict[str, Any] | None, sample: int | None) -> dict[str, Any]:
    """One shard against what the manifest says of it, and every record against what a record is."""
    report = Report(path)
    try:
        if kind == "hdf5":
            _check_hdf5(path, report, sample)
        else:
            _check_lmdb(path, report, sample)
        if expected:
            report.compare(expected, whole=sample is None)
    except (OSError, ValueError) as error:
        report.problem(f"{path}: {error}" if str(path) not in str(error) else str(error))
    if report.hidden:
        report.problems.append(f"{path}: {report.hidden:,} more problems")
    return {"checked": report.checked, "shapes": [list(shape) for shape in report.shapes], "problems": report.problems}


class Report:
    """What is found in one shard."""

    def __init__(self, path: Path):
        self.path, self.checked, self.hidden, self.count = path, 0, 0, 0
        self.shapes: set[tuple[int, ...]] = set()
        self.problems: list[str] = []
        self.hash = xxhash.xxh3_64()
        self.ends = [b"", b""]

    def problem(self, told: str) -> None:
        if len(self.problems) < SHOWN:
            self.problems.append(told)
        else:
            self.hidden += 1

    def key(self, key: bytes) -> None:
        """Note a key; it must follow the one before it."""
        if self.count and key <= self.ends[1]:
            told = f"key {key.decode(errors='replace')} does not follow {self.ends[1].decode(errors='replace')}"
            self.problem(f"{self.path}: {told}")
        self.ends = [self.ends[0] if self.count else key, key]
        self.count += 1

    def compare(self, expected: dict[str, Any], *, whole: bool) -> None:
        found = {"count": self.count, "first_key": os.fsdecode(self.ends[0]), "last_key": os.fsdecode(self.ends[1])}
        if whole:
            found["checksum"] = self.hash.hexdigest()
        for name, value in found.items():
            if value != expected[name]:
                self.problem(f"{self.path}: {name.replace('_', ' ')} is {value}, the manifest says {expected[name]}")


def _chosen(count: int, sample: int | None) -> set[int] | None:
    """The places that are looked at closely; None for all."""
    if sample is None or sample >= count:
        return None
    return set(np.linspace(0, count - 1, sample).astype(int).tolist())


def _check_lmdb(path: Path, report: Report, sample: int | None) -> None:
    with lmdb.Reader(path) as reader:
        chosen = _chosen(len(reader), sample)
        for place, (key, value) in enumerate(reader.records()):
            report.key(key)
            if chosen is not None and place not in chosen:
                continue
            report.hash.update(key)
            report.hash.update(value)
            try:
                report.shapes.add(pixels(datum.parse(value)).shape)
            except ValueError as error:
                report.problem(f"{path}: record {key.decode(errors='replace')}: {error}")
            report.checked += 1


def _check_hdf5(path: Path, report: Report, sample: int | None) -> None:
    with hdf5.Reader(path) as reader:
        chosen = _chosen(len(reader), sample)
        for place, (key, values, label) in enumerate(reader.records()):
            report.key(key)
            if chosen is not None and place not in chosen:
                continue
            report.hash.update(key)
            report.hash.update(np.ascontiguousarray(values))
            report.hash.update(np.ascontiguousarray(label))
            report.shapes.add(values.shape)
            if not np.isfinite(values).all():
                report.problem(f"{path}: record {key.decode(errors='replace')}: values that are not finite")
            report.checked += 1
