"""One of several processes that train together: `torchrun -m tests.pipelines.train_worker JOBS.json` (see test_worker).

A job is a solver, a run's folder, options of Training, and where to stop: at an iteration, asked of one rank alone.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from ops.parallel import Group
from pipelines import worker
from pipelines.stages.setup import Place, Training
from pipelines.worker import STOP, train


def main(file: str) -> None:
    torch.set_num_threads(1)
    worker.SETTLE_SECONDS = 0.0  # what is asked at an iteration is done at that iteration
    dist.init_process_group("gloo")
    group = Group(dist.get_rank(), dist.get_world_size())
    for job in json.loads(Path(file).read_text()):
        os.chdir(job["cwd"])
        seen = {"iteration": 0}
        place = Place(group, signals=False)
        place.report = lambda told, seen=seen: seen.update(told) if "loss" in told else None
        if job["stop"] is not None and group.rank == group.world - 1:
            place.requests = lambda seen=seen, stop=job["stop"]: STOP if seen["iteration"] >= stop - 1 else 0
        train(Training(solver=job["solver"], run=job["run"], **job["options"]), place)
        dist.barrier()
    worker.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
