"""What comes out of a dataset, as soon as it is there; a worker's error comes out as the exception that it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from cluster.config import Config


def results(dataset: Any, column: str) -> Iterator[Any]:
    """One column of every row, in the order of completion. Nothing is prefetched: that would hold the last one back."""
    from cluster.errors import unwrap

    try:
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from block[column].to_pylist()
    except Exception as error:
        cause = unwrap(error)
        if cause is error:
            raise
        raise cause from error


def side_by_side(work: Callable[..., Any], rows: list[dict[str, Any]], config: Config, *, name: str) -> Iterator[Any]:
    """work(**row) of every row, one Ray Data task each, in the order of completion; small results only."""
    import ray

    import cluster
    import ops
    import pipelines
    from cluster.connect import connected
    from cluster.scaling import data_pool

    def operator(batch: pa.Table) -> pa.Table:
        return pa.table({"result": [work(**row) for row in batch.to_pylist()]})

    operator.__name__ = operator.__qualname__ = name  # what Ray's plan and dashboard show
    with connected(config, packages=(ops, pipelines, cluster)) as connection:
        pool = data_pool(config, connection, tasks=len(rows))
        blocks = [pa.Table.from_pylist([row]) for row in rows]
        dataset = ray.data.from_arrow(blocks).map_batches(
            operator, batch_size=None, batch_format="pyarrow", compute=ray.data.TaskPoolStrategy(size=pool.workers)
        )
        yield from results(dataset, "result")
