"""Small extractions in this process, as tests use them: Caffe's own little net over its thirty records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipelines.extract import Extract
from pipelines.stages.extracting import write_part
from pipelines.stages.feature_output import FeatureOutput
from pipelines.stages.feature_setup import Prepared
from pipelines.stages.featuring import Extractor


def golden_net(files: Path, **options: Any) -> dict[str, Any]:
    return {"model": files / "feat.prototxt", "weights": str(files / "feat.caffemodel"), "blobs": "fc", **options}


def extract_here(files: Path, out: Path, **options: Any) -> dict[str, Any]:
    """What a driver and its actors do, in this process; the manifest."""
    job = Extract(out=out, **golden_net(files, **options))
    prepared = Prepared(job, job.names, out / ".run" / "plan")
    output = FeatureOutput(out, prepared.plan, job.format, job.names)
    with output.held():
        output.take_up(overwrite=False)
        prepared.write_plan()
        with Extractor(prepared.for_workers(), prepared.net, threads=1, device=torch.device("cpu")) as extractor:
            for part in range(prepared.plan.shards):
                output.accept(write_part(extractor, part, output.run, job.format))
        return output.commit({"features": prepared.setup.facts})


def table(out: Path) -> pa.Table:
    """All parts in order."""
    return pa.concat_tables([pq.read_table(file) for file in sorted(out.glob("part-*.parquet"))])
