"""The mean of records that exist already: parts of shards are summed side by side, the sums merged exactly."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.mean import PixelSum
from ops.records import binaryproto
from pipelines.stages.dataset import Dataset, open_dataset, read_shard
from pipelines.stages.stream import side_by_side

if TYPE_CHECKING:
    from cluster.config import Config


def mean_of(source: Path, out: Path, config: Config, tell: Callable[[int], None] = lambda done: None) -> PixelSum:
    """Write the mean of every record of a data set as a binaryproto; its sums."""
    data = open_dataset(source)
    if not data.count:
        raise ValueError(f"{source}: holds no records; there is no mean of nothing")
    total = PixelSum()
    for part in sums(data, config):
        total.merge(part)
        tell(total.count)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    binaryproto.write(out, total.mean())
    return total


def sums(data: Dataset, config: Config) -> Any:
    """The sum of each part, as they are done; a data set of one part is not worth starting Ray for."""
    parts = data.parts()
    if len(parts) == 1:
        yield sum_part(data, *parts[0])
        return
    rows = [{"shard": shard, "start": start, "stop": stop} for shard, start, stop in parts]

    def work(shard: int, start: int, stop: int) -> bytes:
        return _packed(sum_part(data, shard, start, stop))

    yield from map(_unpacked, side_by_side(work, rows, config, name="read+decode+sum"))


def sum_part(data: Dataset, shard: int, start: int, stop: int) -> PixelSum:
    """The sum of records start..stop-1 of one shard."""
    total = PixelSum()
    for key, pixels, _ in read_shard(data.shards[shard], data.format, start, stop):
        try:
            total.add(pixels)
        except ValueError as error:
            raise ValueError(f"{data.shards[shard]}: record {key.decode(errors='replace')}: {error}") from None
    return total


def _packed(total: PixelSum) -> bytes:
    file = io.BytesIO()
    total.save(file)
    return file.getvalue()


def _unpacked(packed: bytes) -> PixelSum:
    return PixelSum.load(io.BytesIO(packed))
