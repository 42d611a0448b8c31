"""`cortado attach`: what a training that goes on by itself prints."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from pipelines.job import Job, duration, say, table


@dataclass(frozen=True, kw_only=True)
class Attach(Job):
    """Look at a training that was started with --detach, until it has ended; Ctrl-C leaves, and it goes on.

    With --stop or --snapshot the training is asked to stop with a snapshot, or to take one and go on.

    Example: cortado attach runs/a
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_FOLDER")]
    """folder of the run"""
    stop: bool = False
    """ask it to stop, with a snapshot; --resume goes on from there"""
    snapshot: bool = False
    """ask it for a snapshot"""
    status: bool = False
    """say how it stands, and do not wait for its end"""

    def run(self) -> dict[str, Any]:
        import signal

        from pipelines.stages import detached

        told = partial(print, file=sys.stderr, flush=True)
        run = self.run_folder
        found = detached.facts(run)
        if not found:
            what = "nothing was started here with --detach" if run.is_dir() else "there is no such run"
            raise ValueError(f"{run}: {what}; cortado train ... --detach starts a training that goes on by itself")
        running = detached.alive(found)
        if (self.stop or self.snapshot) and not running:
            raise ValueError(f"{run}: there is nobody to ask: the training {ended(found)}")
        if self.snapshot:
            detached.stop(found, signal.SIGHUP)
        if self.stop:
            detached.stop(found)
        if running and not self.status:
            say(f"process {found['pid']} trains in {run}; Ctrl-C leaves it, and it goes on")
        try:
            last = found if self.status else detached.follow(run, told)
        except KeyboardInterrupt:
            say(f"\nleft; it goes on: cortado attach {run}")
            last = detached.facts(run)
        running = detached.alive(last)
        return {"run": str(run), "process": last["pid"], "running": running, **state(last, running)}

    def render(self, result: dict[str, Any]) -> Any:
        how = f"process {result['process']} is at work" if result["running"] else result["how"]
        return table({"run": result["run"], "state": how, "since it began": duration(result["seconds"])})


def state(found: dict[str, Any], running: bool) -> dict[str, Any]:
    """How it stands, in words and as a code; seconds from its beginning to its end, or to now."""
    import time

    seconds = found.get("ended", time.time()) - found["began"]
    facts = {"command": found["command"], "code": found.get("code"), "seconds": round(seconds, 3)}
    return {**facts, "how": "at work" if running else ended(found), "ok": running or found.get("code") == 0}


def ended(found: dict[str, Any]) -> str:
    """How a command that is not at work ended."""
    import socket

    if "code" in found:
        return "ended" if found["code"] == 0 else f"failed with exit code {found['code']}"
    if found["host"] != socket.gethostname():
        return f"was started on {found['host']}; look at it there"
    return "was killed: cortado train --resume goes on from its newest snapshot"
