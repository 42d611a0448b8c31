"""Caffe's snapshots as Ray's checkpoints: a folder of links to a snapshot's three files, told to Ray Train.

RUN/.ray/NAME/iter_100/     while a run is under way; weights, solver state and JSON under their own names
RUN/.ray/last/iter_100/     when it has ended: what ray.train.Result.from_path reads

`ray.train.report` waits for every worker and for the driver to look, twice a second. So a thread tells, and a snapshot
that comes while one is being told is not told itself, unless it is the last.
"""

from __future__ import annotations

import math
import os
import queue
import shutil
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ops.solver.snapshot import Names, Snapshotter

if TYPE_CHECKING:
    from ops.parallel import Group

LAST = "last"


@dataclass(frozen=True)
class Taken:
    """A snapshot on its way to the disk; only rank 0 knows of files."""

    metrics: dict[str, Any]
    names: Names | None = None
    written: Future[None] | None = None


class Checkpoints:
    """What a worker of a TorchTrainer tells of snapshots; every worker must call `take` and `close` equally often.

    `warn` gets a line where links could not be made; what goes wrong in writing a snapshot the training itself tells.
    """

    def __init__(self, group: Group, device: torch.device, warn: Callable[[str], None]):
        self.group, self.device, self.warn = group, device, warn
        self.waiting: queue.SimpleQueue[Taken | None] = queue.SimpleQueue()
        self.told = self.given = 0
        self.left: Taken | None = None  # the newest that was not told
        self.thread = threading.Thread(target=self._tell_all, name="checkpoints", daemon=True)
        self.thread.start()

    def take(self, iteration: int, loss: float, snapshots: Snapshotter | None) -> None:
        """A snapshot has been taken; its files need not be there yet."""
        metrics = {"iteration": iteration, **({"loss": loss} if math.isfinite(loss) else {})}
        taken = Taken(metrics)
        if snapshots is not None:
            taken = Taken(metrics, Names.of(snapshots.prefix, iteration, snapshots.format), snapshots.pending)
        if self._busy():
            self.left = taken
        else:
            self._give(taken)

    def _busy(self) -> bool:
        """Whether rank 0 is telling one: all workers must think the same."""
        mine = float(self.group.rank == 0 and self.given > self.told)
        return bool(self.group.sum(torch.tensor([mine], device=self.device)).item())

    def _give(self, taken: Taken) -> None:
        self.left, self.given = None, self.given + 1
        self.waiting.put(taken)

    def close(self) -> None:
        """Tell the last one, and wait until Ray knows of all."""
        if self.left is not None:
            self._give(self.left)
        self.waiting.put(None)
        self.thread.join()

    # -- the thread ------------------------------------------------------------------------------------------------

    def _tell_all(self) -> None:
        import ray.exceptions

        while (taken := self.waiting.get()) is not None:
            try:
                self._tell(taken)
            except ray.exceptions.RayError:  # a worker was lost: all of them begin again
                return
            self.told += 1

    def _tell(self, taken: Taken) -> None:
        from ray import train

        checkpoint = None
        if taken.names is not None and written(taken.written):
            storage = Path(train.get_context().get_storage().experiment_fs_path)
            try:
                folder = link(taken.names, storage / f"iter_{taken.metrics['iteration']}")
                checkpoint = train.Checkpoint.from_directory(str(folder))
            except FileNotFoundError:  # newer ones took its place already (snapshot_keep)
                pass
            except OSError as error:
                self.warn(f"warning: {storage}: {error.strerror}: Ray is not told of this snapshot")
        mode = train.CheckpointUploadMode.NO_UPLOAD
        train.report(taken.metrics, checkpoint=checkpoint, checkpoint_upload_mode=mode)


def written(pending: Future[None] | None) -> bool:
    """Whether the files of a snapshot are there, once they should be."""
    return pending is None or pending.exception() is None


def link(names: Names, folder: Path) -> Path:
    """A new folder with the files of a snapshot: links, which cost no room; OSError where there can be none."""
    if folder.exists():  # an iteration that was reached before a worker was lost
        folder = folder.with_name(f"{folder.name}-{uuid.uuid4().hex[:6]}")
    folder.mkdir(parents=True)
    for name in (names.model, names.state, names.json):
        file = Path(name).resolve()
        try:
            os.link(file, folder / file.name)
        except FileNotFoundError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        except OSError:  # another file system, or one without such links
            (folder / file.name).symlink_to(file)
    return folder


def keep(storage: Path, name: str) -> None:
    """What is left of a run in its storage: its checkpoints as LAST, where it has any; else nothing."""
    made = storage / name
    if any(made.glob("iter_*")):
        shutil.rmtree(storage / LAST, ignore_errors=True)
        made.replace(storage / LAST)
        return
    shutil.rmtree(storage, ignore_errors=True)
