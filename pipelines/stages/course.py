"""The course of a training as its driver sees it: how it started, which workers were lost, where the time went.

It lives on the loop's reports:
    begin    rank 0 is up (again, where a worker was lost)      ready    nets and feeds are, at an iteration
    started  the first step is done                             else     how far it is, and its clock
and on the driver's own: ray (it is up), fit (the TorchTrainer begins).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.job import duration
from pipelines.stages.clock import KINDS

SPLIT = {  # parts of a start
    "imports": "imports",
    "ray_init": "ray.init",
    "fit": "fit (workers up)",
    "set_up": "net and data",
    "first_batch": "first batch",
    "first_step": "first step",
}


class Course:
    """`take` reports in their order; it returns lines for the person who waits. `started`: seconds of the start's
    parts. `lost`: for each time that workers were lost the iteration, the one it went on from, seconds lost."""

    def __init__(self, began: float | None = None, *, now: Callable[[], float] = time.monotonic):
        self.now = now
        self.began = self.since = now() if began is None else began
        self.started: dict[str, float] = {}
        self.lost: list[dict[str, Any]] = []
        self.open: dict[str, Any] | None = None  # lost, and not yet made good
        self.attempts = 0
        self.iteration = 0  # reached
        self.seen = self.began  # when something was last heard
        self.down = 0.0  # seconds without a training
        self.spent = dict.fromkeys(KINDS, 0.0)  # of this attempt
        self.before = dict.fromkeys(KINDS, 0.0)  # of those before it

    def take(self, told: Mapping[str, Any]) -> list[str]:
        kind = told.get("event", "progress")
        lines: list[str] = getattr(self, f"on_{kind}")(told)
        if kind != "begin":
            self.seen = self.now()
        return lines

    # -- the start -------------------------------------------------------------------------------------------------

    def on_ray(self, told: Mapping[str, Any]) -> list[str]:
        self.started = {"imports": max(0.0, self.now() - self.began - told["seconds"]), "ray_init": told["seconds"]}
        self.since = self.now()
        return []

    def on_fit(self, told: Mapping[str, Any]) -> list[str]:
        self.started["imports"] += self.now() - self.since
        self.since = self.now()
        return []

    def on_begin(self, told: Mapping[str, Any]) -> list[str]:
        self.attempts += 1
        if self.attempts > 1:
            return self.gone(told["world"])
        self.started["fit" if "ray_init" in self.started else "imports"] = self.now() - self.since
        self.before["start"] = self.now() - self.began
        return []

    def on_started(self, told: Mapping[str, Any]) -> list[str]:
        if self.attempts > 1:
            return []
        self.started |= told["split"]
        parts = ", ".join(f"{SPLIT[part]} {seconds:.1f} s" for part, seconds in self.started.items())
        return [f"started in {duration(sum(self.started.values()))}: {parts}"]

    # -- workers that are lost ---------------------------------------------------------------------------------------

    def gone(self, world: int) -> list[str]:
        """All begin again."""
        since = self.seen if self.open is None else self.open["since"]
        at = self.iteration if self.open is None else self.open["iteration"]
        self.open = {"iteration": at, "from": None, "since": since}
        return [f"a worker was lost at iteration {at:,}: beginning again with {world}"]

    def on_ready(self, told: Mapping[str, Any]) -> list[str]:
        if self.open is not None:
            self.open["from"] = told["iteration"]
            self.open["iteration"] = max(self.open["iteration"], told["iteration"])  # reports lag behind snapshots
            self.down += self.now() - self.seen
            self.before = {kind: self.before[kind] + self.spent[kind] for kind in KINDS}
            self.spent = dict.fromkeys(KINDS, 0.0)
        return list(told.get("lines", ()))

    def on_sign(self, told: Mapping[str, Any]) -> list[str]:
        return list(told["lines"])

    def on_progress(self, told: Mapping[str, Any]) -> list[str]:
        self.spent = told.get("spent", self.spent)
        if self.attempts > 1 and self.spent["start"]:  # known as time without a training
            self.spent = {**self.spent, "start": 0.0}
        ready = self.open is not None and self.open["from"] is not None  # else those that are gone told this
        if ready and told["iteration"] >= self.open["iteration"]:
            return self.made_good()
        self.iteration = max(self.iteration, told["iteration"])
        return []

    def made_good(self) -> list[str]:
        """What was lost has been done again."""
        lost, self.open = self.open, None
        if lost is None:
            return []
        seconds = round(self.now() - lost["since"], 1)
        self.lost.append({"iteration": lost["iteration"], "from": lost["from"], "seconds": seconds})
        went = f"went on from {lost['from']:,}" if lost["from"] is not None else "nothing came after it"
        return [f"a worker was lost at iteration {lost['iteration']:,}; {went}; {seconds:,.1f} seconds lost"]

    # -- the end -----------------------------------------------------------------------------------------------------

    def result(self, spent: Mapping[str, float]) -> dict[str, Any]:
        """What the job's result says of it."""
        started = {part: round(seconds, 3) for part, seconds in self.started.items()}
        return {"time": self.time(spent), "started": started, "lost": self.lost}

    def time(self, spent: Mapping[str, float]) -> dict[str, float]:
        """Seconds of each kind from the beginning to now; `spent`: what the loop's own clock says at its end."""
        last = {**spent, "start": 0.0} if self.attempts > 1 else spent
        parts = {kind: self.before[kind] + last.get(kind, 0.0) for kind in KINDS}
        parts["lost"] += self.down
        parts["rest"] += max(0.0, self.now() - self.began - sum(parts.values()))
        return {kind: round(seconds, 3) for kind, seconds in parts.items()}
