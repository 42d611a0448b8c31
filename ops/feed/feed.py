"""Batches of a data layer, in order, from a position on. All that a feed remembers is that position.

feed = open_feed(layer, "TRAIN", folder=Path("nets"), seed=1)
batch = next(feed)              # batch.blobs["data"], batch.blobs["label"]; batch.position is where the next begins
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from ops.feed.families import FAMILIES
from ops.feed.handed import HERE, Elsewhere, HandedTops
from ops.feed.loader import AHEAD, AHEAD_RECORDS, Loader, Ready
from ops.feed.options import FeedOptions
from ops.feed.tops import Asked, Tops
from ops.feed.upload import Uploader
from ops.names import pick, quoted
from ops.parallel import share
from ops.proto.caffe_pb2 import LayerParameter

__all__ = ["Batch", "Feed", "FeedOptions", "open_feed", "share"]
FEW = 2  # threads that read raw records: one of them keeps most nets busy


@dataclass(frozen=True)
class Batch:
    """One worker's part of a batch.

    On the CPU the tensors are buffers of the feed: valid until the next batch is asked for. On CUDA they are the
    caller's.
    """

    blobs: dict[str, Tensor]
    start: int  # position of the whole batch's first record
    position: int  # where the next batch begins
    first: int  # place in the whole batch of this part's first record
    digest: int  # sum of the records' digests mod 2 ** 64; over all workers' parts that of the whole batch; 0 when off
    waited: float  # seconds that the caller waited
    describe: Callable[[int, int], str]

    def names(self, i: int) -> str:
        """What record i of this part is called: its database and key, its list, line and path."""
        place = self.first + i
        return self.describe(self.start + place, place)


def open_feed(
    layer_spec: LayerParameter,
    phase: str,
    *,
    folder: Path | None = None,
    seed: int,
    part: tuple[int, int] = (0, 1),
    position: int = 0,
    threads: int | None = None,
    ahead: int | None = None,
    device: str | torch.device = "cpu",
    digest: bool = False,
    options: FeedOptions | None = None,
    elsewhere: Elsewhere | None = None,
) -> Feed:
    """The feed of one data layer; `folder` is the prototxt's.

    part: (rank, world): this worker's records are places share(batch, rank, world) of each whole batch. `ahead`:
    batches that are read before they are asked for. `elsewhere`: who has the records read and cut; without, threads of
    this process. ValueError or OSError, one line with the layer's name, for what is wrong with the layer or its source.
    """
    options, device = options or FeedOptions(), torch.device(device)
    on_device = options.arithmetic == "device" or (options.arithmetic == "auto" and device.type == "cuda")
    asked = Asked(layer_spec, phase, folder, int(seed), options, on_device, digest)
    where = f"layer {quoted(layer_spec.name)}"
    try:
        tops = made = pick(FAMILIES, layer_spec.type, "type of data layer")(asked)
        if elsewhere is not None and layer_spec.type not in HERE:
            made = HandedTops(tops, elsewhere(asked, tops, rows_of(tops.batch, part)))
        return Feed(tops, where, part=part, position=position, threads=threads, ahead=ahead, device=device, made=made)
    except (OSError, ValueError) as error:
        raise with_place(error, where) from error


def with_place(error: OSError | ValueError, where: str) -> Exception:
    """The same error with the layer's name in front."""
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, f"{where}: {error.strerror}", error.filename)
    return (OSError if isinstance(error, OSError) else ValueError)(f"{where}: {error}")


class Feed:
    """An endless iterator of batches.

    shapes: {top: shape of the whole batch} · records: in an epoch, None where there is none · batch: size of the whole
    one · position: records consumed so far in the sample stream · bad: {record: reason} that others stood in for.
    """

    def __init__(
        self,
        tops: Tops,
        where: str,
        *,
        part: tuple[int, int],
        position: int,
        threads: int | None,
        ahead: int | None,
        device: torch.device,
        made: Tops | None = None,
    ):
        """`made`: who fills the buffers, where that is not `tops` itself."""
        first, last = rows_of(tops.batch, part)
        self.tops, self.where, self.device = tops, where, device
        self.shapes, self.records, self.batch, self.bad = tops.shapes, tops.records, tops.batch, tops.bad
        self.first, self.position = first, check_position(position)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.made = made or tops
        threads = threads or (cores if self.made.heavy else min(FEW, cores))
        ahead = ahead or max(AHEAD, -(-AHEAD_RECORDS // (last - first)))
        cuda = device.type == "cuda"
        loader = Loader(self.made, first, last, threads=threads, ahead=ahead, position=position, pin=cuda)
        self.loader: Loader | Uploader = Uploader(loader, device) if cuda else loader
        self.closed = False

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Batch:
        """The next batch; on the CPU the one before must no longer be used. What a record was bad for is raised at its
        own batch, again at each call until `seek`."""
        if self.closed:
            raise ValueError(f"{self.where}: the feed is closed")
        try:
            ready = self.loader.next()
            blobs = ready.tensors if isinstance(self.loader, Uploader) else self._finished(ready)
        except (OSError, ValueError) as error:
            raise with_place(error, self.where) from error
        self.position = ready.start + self.batch
        return Batch(blobs, ready.start, self.position, self.first, ready.digest, ready.waited, self.tops.describe)

    def _finished(self, ready: Ready) -> dict[str, Tensor]:
        if self.device.type == "cpu":  # asking for it would give the interpreter to the threads for a moment, and wait
            return self.made.finish(ready.tensors)
        return self.made.finish({name: tensor.to(self.device) for name, tensor in ready.tensors.items()})

    def seek(self, position: int) -> None:
        """Go on from another position."""
        self.loader.seek(check_position(position))
        self.position = position

    def describe(self, position: int) -> str:
        """What the record at a position is called. Where batches have places of their own kind (windows), those that
        begin at multiples of the batch are meant."""
        return self.tops.describe(position, position % self.batch)

    def close(self) -> None:
        """Stop the threads and let go of the files; the feed cannot be used again."""
        if not self.closed:
            self.closed = True
            self.loader.close()
            self.made.close()

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


def rows_of(batch: int, part: tuple[int, int]) -> tuple[int, int]:
    """The rows first..last-1 of each batch that a worker takes; ValueError where there is no such worker or row."""
    rank, world = part
    if not 0 <= rank < world:
        raise ValueError(f"part {rank} of {world}: expected 0 <= rank < world")
    first, last = share(batch, rank, world)
    if first == last:
        raise ValueError(f"a batch of {batch} for {world} workers leaves some without a record")
    return first, last


def check_position(position: int) -> int:
    if position < 0:
        raise ValueError(f"position {position}: expected 0 or more")
    return position
