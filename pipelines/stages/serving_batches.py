"""Pictures of many requests -> calls to the model of many pictures each: the busier it is, the larger the batches.

An idle model gets a picture at once, and what comes while all places are taken goes as one batch when one is free. With
`wait`, a batch that is not full waits so long for more while the model has another. A call that is lost with its
replica is made again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Answer = dict[str, Any]
Key = tuple[str, ...]  # what is asked of the model; pictures of one key go together
Call = Callable[[Key, list[bytes], int], Awaitable[list[Answer]]]
ALONE_AFTER = 2  # losses after which a picture goes alone: it may be what kills the replicas
MOST_LOSSES = 6
PAUSE = 0.2  # seconds after the first loss, twice as long after each further one: Ray may learn late of a dead replica


class BusyError(RuntimeError):
    """The queue is full; `seconds` until there may be room."""

    def __init__(self, seconds: int):
        super().__init__(f"too many pictures are waiting; try again in {seconds} s")
        self.seconds = seconds


class LostError(RuntimeError):
    """No replica gave an answer."""


@dataclass
class Item:
    """A picture that waits for its answer."""

    key: Key
    picture: bytes
    top: int
    done: asyncio.Future[Answer]
    since: float = field(default_factory=time.perf_counter)
    losses: int = 0


class Batches:
    """`call` is the model; `lost`: the errors that mean that its replica is gone; `seen` gets all answers."""

    def __init__(
        self,
        call: Call,
        *,
        most_waiting: int,
        most_bytes: int,
        lost: tuple[type[BaseException], ...],
        size: int = 32,
        wait: float = 0.0,
        seen: Callable[[list[Answer]], None] | None = None,
    ):
        self.call, self.size, self.lost, self.wait = call, size, lost, wait
        self.timer: asyncio.TimerHandle | None = None
        self.seen = seen
        self.most_waiting, self.most_bytes = most_waiting, most_bytes
        self.at_once = 2  # calls: one computes, one decodes
        self.waiting: deque[Item] = deque()
        self.bytes = self.running = self.retried = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.rate = 0.0  # pictures a second, lately
        self.sizes: deque[int] = deque(maxlen=100)

    async def ask(self, key: Key, pictures: Sequence[bytes], top: int) -> list[Answer]:
        """An answer for each picture, with `waiting`, seconds in the queue. BusyError, LostError, or what the model
        raised."""
        size = sum(map(len, pictures))
        if len(self.waiting) + len(pictures) > self.most_waiting or self.bytes + size > self.most_bytes:
            raise BusyError(self.patience())
        loop = asyncio.get_running_loop()
        items = [Item(key, one, top, loop.create_future()) for one in pictures]
        self.bytes += size
        self.waiting.extend(items)
        self.start()
        try:
            return list(await asyncio.gather(*(item.done for item in items)))
        finally:
            self.bytes -= size
            for item in items:
                item.done.cancel()  # of a request that was given up

    def patience(self) -> int:
        """Seconds that the queue is long, from 1 to 30."""
        return min(30, max(1, round(len(self.waiting) / self.rate))) if self.rate else 1

    def start(self) -> None:
        """Send what waits while there is a free place."""
        while self.running < self.at_once and not self.later():
            batch = self.take()
            if not batch:
                return
            self.running += 1
            task = asyncio.ensure_future(self.send(batch))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    def later(self) -> bool:
        """Whether what waits goes on waiting to be more: never where the model has nothing to do."""
        if not (self.wait and self.running and 0 < len(self.waiting) < self.size):
            return False
        left = self.waiting[0].since + self.wait - time.perf_counter()
        if left > 0 and self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(left, self.wake)
        return left > 0

    def wake(self) -> None:
        self.timer = None
        self.start()

    def take(self) -> list[Item]:
        """The next pictures of one key, those that nobody waits for any more left out."""
        batch: list[Item] = []
        while self.waiting and len(batch) < self.size:
            item = self.waiting[0]
            if item.done.done():
                self.waiting.popleft()
                continue
            if batch and (item.key != batch[0].key or item.losses >= ALONE_AFTER):
                break
            batch.append(self.waiting.popleft())
            if item.losses >= ALONE_AFTER:
                break
        return batch

    async def send(self, batch: list[Item]) -> None:
        began = time.perf_counter()
        try:
            top = max(item.top for item in batch)
            answers = await self.call(batch[0].key, [item.picture for item in batch], top)
        except self.lost:
            await self.again(batch)
        except BaseException as error:
            for item in batch:
                if not item.done.done():
                    item.done.set_exception(error)
            raise
        else:
            took = time.perf_counter() - began
            self.rate = 0.8 * self.rate + 0.2 * len(batch) * self.at_once / max(took, 1e-6)
            self.sizes.append(len(batch))
            answers = [{**one, "waiting": began - item.since} for one, item in zip(answers, batch, strict=True)]
            for item, answer in zip(batch, answers, strict=True):
                if not item.done.done():
                    item.done.set_result(answer)
            if self.seen is not None:
                self.seen(answers)
        finally:
            self.running -= 1
            self.start()

    async def again(self, batch: list[Item]) -> None:
        """Give up what was lost too often, and put the other pictures of a lost call back in front after a pause."""
        self.retried += len(batch)
        losses = min(item.losses for item in batch)
        left: list[Item] = []
        for item in batch:
            item.losses += 1
            if item.done.done():
                continue
            if item.losses >= MOST_LOSSES:
                item.done.set_exception(LostError("the model stopped again and again while it had this picture"))
            else:
                left.append(item)
        if not left:
            return
        pause = PAUSE * 2**losses
        if losses < ALONE_AFTER:  # the place stays taken: what waits would be lost with the same replica
            await asyncio.sleep(pause)
            self.back(left)
        else:
            asyncio.get_running_loop().call_later(pause, self.back, left)

    def back(self, items: list[Item]) -> None:
        self.waiting.extendleft(reversed(items))
        self.start()

    async def close(self) -> None:
        for task in list(self.tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
