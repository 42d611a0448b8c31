"""Where the time of a training goes, and what limits its speed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

from pipelines.job import duration

KINDS = {
    "start": "start-up",
    "data": "waiting for data",
    "step": "forward, backward, update",
    "test": "tests",
    "snapshot": "snapshots",
    "lost": "lost workers",
    "rest": "the rest",
}
# Shares of the time after the start-up from which on a kind is what limits.
MUCH = {"data": 0.1, "snapshot": 0.1, "test": 0.3, "rest": 0.3, "lost": 0.3}
ADVICE = {
    "data": "the feed limits: {share} of the time the net waits for data; more --threads or CPUs help, or smaller "
    "records (cortado convert --resize-height ...)",
    "snapshot": "the snapshots limit: {share} of the time; a larger snapshot: interval or a faster disk helps",
    "test": "the tests limit: {share} of the time; a larger test_interval or a smaller test_iter helps",
    "rest": "the steps are small: {share} of the time goes by between them; a larger batch_size helps",
    "lost": "lost workers limit: {share} of the time; a smaller train.recovery_seconds costs less of it",
    "start": "the start-up limits: it took {share} of the time; a longer training is not slowed by it",
    "step": "the net limits: {share} of the time goes into forward, backward and update; {way} helps",
}


class Clock:
    """Seconds by kind. Each moment counts as one: what began last."""

    def __init__(self, kind: str = "rest"):
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.kind, self.since = kind, time.perf_counter()

    def turn(self, kind: str) -> str:
        """From now on it is `kind`; what it was until now."""
        now = time.perf_counter()
        self.seconds[self.kind] += now - self.since
        before, self.kind, self.since = self.kind, kind, now
        return before

    @contextlib.contextmanager
    def on(self, kind: str) -> Iterator[None]:
        before = self.turn(kind)
        try:
            yield
        finally:
            self.turn(before)

    def spent(self) -> dict[str, float]:
        """Seconds of each kind until now."""
        self.turn(self.kind)
        return dict(self.seconds)


def limit(seconds: Mapping[str, float], *, cuda: bool = False) -> str:
    """What limits the speed of a training that spent its time so, and what helps: one sentence."""
    total = sum(seconds.values())
    working = total - seconds["start"]
    if working < seconds["start"]:
        return ADVICE["start"].format(share=percent(seconds["start"], total))
    excess = {kind: seconds[kind] / working / much for kind, much in MUCH.items()}
    worst = max(excess, key=lambda kind: excess[kind])
    kind = worst if excess[worst] >= 1 else "step"
    way = "--precision bf16 or another GPU" if cuda else "a GPU, or workers on more CPUs,"
    return ADVICE[kind].format(share=percent(seconds[kind], working), way=way)


def listed(seconds: Mapping[str, float]) -> str:
    """As "20.1 s: forward, backward, update 15.3 s (76 %), start-up 2.1 s (10 %)"; what took no time is left out."""
    total = sum(seconds.values())
    shown = sorted((kind for kind in seconds if seconds[kind] >= 0.05), key=lambda kind: -seconds[kind])
    parts = [f"{KINDS[kind]} {duration(seconds[kind])} ({percent(seconds[kind], total)})" for kind in shown]
    return f"{duration(total)}: {', '.join(parts)}" if parts else duration(total)


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "0 %"
