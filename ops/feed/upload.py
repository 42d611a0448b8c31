"""Batches on their way to a CUDA device: copied and made into numbers on a stream of their own."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ops.feed.loader import Loader, Ready

AHEAD = 2  # batches on the device, or on their way, before they are asked for


class Uploader:
    """Takes a loader's batches from pinned memory to the device, in order; has `next`, `seek` and `close` as a loader.

    What it hands out is the caller's own: memory of PyTorch's allocator, known to the caller's stream.
    """

    def __init__(self, loader: Loader, device: torch.device):
        self.loader, self.device = loader, device
        self.stream: Any = None
        self._begin()

    def _begin(self) -> None:
        self.pool: ThreadPoolExecutor | None = None
        self.work: deque[Future[tuple[Ready, Any]]] = deque()

    def next(self) -> Ready:
        """The next batch, as tops on the device, finished as far as the caller's current stream sees."""
        if self.pool is None:
            self.pool = ThreadPoolExecutor(1, "cortado-upload")
        while len(self.work) < AHEAD:
            self.work.append(self.pool.submit(self._upload))
        began = time.perf_counter()
        ready, done = self.work[0].result()
        self.work.popleft()
        self.work.append(self.pool.submit(self._upload))
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(done)
        for tensor in ready.tensors.values():
            tensor.record_stream(stream)
        return replace(ready, waited=time.perf_counter() - began)

    def _upload(self) -> tuple[Ready, Any]:
        """Start the next batch's way to the device; an event says when it is there. Runs in the pool's one thread."""
        ready = self.loader.next()
        if self.stream is None:
            self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            moved: dict[str, Tensor] = {
                name: tensor.to(self.device, non_blocking=True) for name, tensor in ready.tensors.items()
            }
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self.stream)
            ready.slot.free = copied.synchronize  # the loader's threads wait for it before they write there again
            tops = self.loader.tops.finish(moved)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self.stream)
        return replace(ready, tensors=tops), done

    def seek(self, position: int) -> None:
        """Go on from another position."""
        self.close()
        self.loader.seek(position)

    def close(self) -> None:
        """Stop at once."""
        self.loader.halt.asked = True  # a batch that is being waited for will not come
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
        self.loader.close()
        self._begin()
