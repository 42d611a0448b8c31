"""`cortado mean`: the mean image of a data set."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from pipelines.job import Job, Progress


@dataclass(frozen=True, kw_only=True)
class Mean(Job):
    """Compute the mean image of any data set, made here or by Caffe, as compute_image_mean.

    The sums are exact; the file is a BlobProto that Caffe reads.

    Example: cortado mean data/train --out data/mean.binaryproto
    """

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """LMDB folder, folder made by convert, HDF5 file or HDF5Data list"""
    out: Path = Path("mean.binaryproto")
    """file to write"""

    def run(self) -> dict[str, Any]:
        from cluster import config
        from pipelines.stages.dataset import open_dataset
        from pipelines.stages.summing import mean_of

        began = time.monotonic()
        count = open_dataset(self.data).count
        with Progress("mean", total=count, unit="records") as progress:
            total = mean_of(self.data, self.out, config.load(self.config, self.set), progress.update)
        values = total.mean()
        channels = [round(float(mean), 6) for mean in values.mean(axis=(1, 2), dtype="float64")]
        return {
            "out": str(self.out),
            "records": total.count,
            "shape": list(values.shape),
            "channel_means": channels,
            "seconds": round(time.monotonic() - began, 3),
        }
