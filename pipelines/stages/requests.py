"""Ctrl-C and SIGHUP of a training whose loop runs elsewhere: they become requests, taken one after the other."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

STOP, SNAPSHOT = 1, 2  # as pipelines.worker has them
EFFECTS = {"stop": STOP, "snapshot": SNAPSHOT, "none": 0}


class Requests:
    """While open, SIGINT and SIGHUP are noted instead of ending the process; a second Ctrl-C ends it."""

    def __init__(self, sigint: str, sighup: str):
        self.effects = {signal.SIGINT: EFFECTS[sigint], signal.SIGHUP: EFFECTS[sighup]}
        self.bits = 0
        self.stops = 0
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Requests:
        self.before = {number: signal.signal(number, self._hear) for number in self.effects}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        effect = self.effects[signal.Signals(number)]
        self.stops += effect == STOP
        if self.stops > 1:
            raise KeyboardInterrupt
        self.bits |= effect

    def take(self) -> int:
        """What was asked since the last time."""
        bits, self.bits = self.bits, 0
        return bits
