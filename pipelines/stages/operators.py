"""The stages of a conversion as separate Ray Data operators (`data.fuse: false`): shuffle, decode, transform, write.

Here pixels do travel through the object store, in pieces of 256 lines. Every write task puts its piece into a fragment
file of its own; a last, small step joins a shard's fragments in order, through the same writer as the fused operator.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ops.recipe import Line, Recipe, Record
from pipelines.stages import shards
from pipelines.stages.plan import Plan
from pipelines.stages.shards import Outcome

if TYPE_CHECKING:
    from cluster.scaling import Pool

PIECE = 256  # lines that travel together
LINE = ("shard", "position", "number", "path", "label", "copies", "warning", "bad")


def names(stages: list[str]) -> list[str]:
    """The stages grouped as the operators run them."""
    first = [name for name in stages if name in ("read", "decode", "resize")]
    second = [name for name in stages if name not in ("shuffle", "write", *first)]
    return ["shuffle", "+".join(first), "+".join(second), "write", "join"]


def apart(rows: Any, pool: Pool, shared: dict[str, Any], *, check_size: bool) -> Any:
    """The dataset of finished shards, made of five operators on the dataset of pieces."""
    import ray

    run, plan, recipe = shared["run"], shared["plan"], shared["recipe"]
    _, first, second, _, _ = names([*recipe.stages(), "write"])
    operators = [
        called("shuffle", lambda piece: shuffle(piece, plan)),
        called(first, lambda lines: decode(lines, recipe)),
        called(second, lambda pictures: transform(pictures, recipe)),
        called("write", lambda made: write(made, Path(run))),
    ]
    for number, operator in enumerate(operators):
        # CPU shares differ by a hair, because Ray fuses neighbours that ask for the same.
        share = pool.cpus_per_worker - number / 1000
        compute = ray.data.TaskPoolStrategy(size=pool.workers)
        rows = rows.map_batches(operator, batch_size=None, batch_format="pyarrow", compute=compute, num_cpus=share)
    joined = called("join", lambda fragments: join(fragments, plan, recipe, Path(run), check_size=check_size))
    parts = max(1, min(pool.workers, plan.shards))
    return rows.groupby("shard", num_partitions=parts).map_groups(joined, batch_format="pyarrow")


def called(name: str, work: Callable[[pa.Table], pa.Table]) -> Callable[[pa.Table], pa.Table]:
    """The function under the name that Ray's plan and dashboard show."""
    work.__name__ = work.__qualname__ = name
    return work


def shuffle(piece: pa.Table, plan: Plan) -> pa.Table:
    """{shard, start, stop} -> the lines at those places of the order."""
    rows = [
        _row(shard, line)
        for shard, start, stop in zip(*(piece[name].to_pylist() for name in ("shard", "start", "stop")), strict=True)
        for line in plan.lines(start, stop)
    ]
    return _table(rows)


def decode(lines: pa.Table, recipe: Recipe) -> pa.Table:
    """Lines -> lines with pixels: read, decode, resize."""
    rows = []
    for row, source in _sources(lines, recipe):
        made = shards.picture(source, recipe)
        row |= {"warning": made.warning, "bad": made.bad}
        if not made.bad:
            image = np.ascontiguousarray(made.content)
            row |= {"image": image.tobytes(), "shape": list(image.shape), "kind": image.dtype.str}
            if recipe.encode_type is not None and isinstance(source.content, bytes):
                row["source"] = source.content
        rows.append(row)
    return _table(rows, image=pa.large_binary(), shape=pa.list_(pa.int64()), kind=pa.string(), source=pa.large_binary())


def _sources(lines: pa.Table, recipe: Recipe) -> Iterator[tuple[dict[str, Any], Outcome]]:
    rows = lines.to_pylist()
    return zip(rows, shards.read_all(map(_line, rows), recipe), strict=True)


def transform(pictures: pa.Table, recipe: Recipe) -> pa.Table:
    """Lines with pixels -> records: augment, crop, mirror, mean, encode. A bad line keeps one row, of no record."""
    rows = []
    for row in pictures.to_pylist():
        image, shape, kind, source = (row.pop(name) for name in ("image", "shape", "kind", "source"))
        pixels = None if row["bad"] else np.frombuffer(image, kind).reshape(shape)
        made = shards.records(Outcome(_line(row), pixels, row["warning"], row["bad"]), source, recipe)
        row |= {"bad": made.bad}
        for record in [] if made.bad else made.content:
            value = memoryview(record.value).cast("B")
            rows.append({**row, "key": record.key, "value": bytes(value), "shape": list(record.shape)})
        if made.bad:
            rows.append(row)
    return _table(rows, key=pa.binary(), value=pa.large_binary(), shape=pa.list_(pa.int64()))


def write(made: pa.Table, run: Path) -> pa.Table:
    """Records -> a fragment file for each shard they belong to, and where it is."""
    (run / "fragments").mkdir(parents=True, exist_ok=True)
    told = []
    for shard in made["shard"].unique().to_pylist():
        part = made.filter(pa.compute.equal(made["shard"], shard))
        file = run / "fragments" / f"{shard:05d}-{uuid.uuid4().hex[:12]}.arrow"
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, part.schema) as out:
            out.write_table(part)
        told.append({"shard": shard, "start": part["position"][0].as_py(), "file": str(file)})
    return pa.Table.from_pylist(told)


def join(fragments: pa.Table, plan: Plan, recipe: Recipe, run: Path, *, check_size: bool) -> pa.Table:
    """All fragments of a shard -> the shard, through the writer that the fused operator uses too."""
    shards.keep_freed_memory()
    rows = sorted(fragments.to_pylist(), key=lambda row: row["start"])
    shard = int(rows[0]["shard"])
    lines = plan.cuts[shard + 1] - plan.cuts[shard]
    outcomes = (outcome for row in rows for outcome in _read_fragment(Path(row["file"]), recipe))
    made = shards.write(outcomes, shard, run, recipe, check_size=check_size)
    if not made.failure and made.lines != lines:
        raise OSError(5, f"shard {shard} has {made.lines} of its {lines} lines in {len(rows)} fragments", str(run))
    return pa.table({"shard": [json.dumps(vars(made))]})


def _read_fragment(file: Path, recipe: Recipe) -> Iterator[Outcome]:
    with pa.memory_map(str(file)) as mapped:
        batches = pa.ipc.open_file(mapped).read_all().to_batches(max_chunksize=64)
        rows = (row for batch in batches for row in batch.to_pylist())  # a line's records may lie in two batches
        for _, records in groupby(rows, key=lambda row: row["position"]):
            yield _outcome(list(records), recipe)


def _outcome(rows: list[dict[str, Any]], recipe: Recipe) -> Outcome:
    line = _line(rows[0])
    records = [
        Record(row["key"], _value(row, recipe), line.label, tuple(row["shape"]))
        for row in rows
        if row["key"] is not None
    ]
    return Outcome(line, records, rows[0]["warning"], rows[0]["bad"])


def _value(row: dict[str, Any], recipe: Recipe) -> Any:
    if recipe.backend == "hdf5":
        return np.frombuffer(row["value"], np.float32).reshape(row["shape"])
    return row["value"]


def _row(shard: int, line: Line) -> dict[str, Any]:
    label = line.label.tolist() if isinstance(line.label, np.ndarray) else [line.label]
    whole = isinstance(line.label, int)
    return {**line._asdict(), "label": json.dumps([whole, label]), "shard": shard, "warning": None}


def _line(row: dict[str, Any]) -> Line:
    whole, label = json.loads(row["label"])
    value = label[0] if whole else np.array(label, np.float32)
    return Line(row["position"], row["path"], value, row["copies"], row["number"], row["bad"])


def _table(rows: list[dict[str, Any]], **more: pa.DataType) -> pa.Table:
    numbers = {name: pa.int64() for name in ("shard", "position", "number", "copies")}
    texts = {name: pa.string() for name in ("label", "warning", "bad")}
    columns = {**numbers, "path": pa.binary(), **texts, **more}
    return pa.table({name: pa.array([row.get(name) for row in rows], kind) for name, kind in columns.items()})
