"""What the benchmarks share: where they work, commands in fresh processes, and rates between 10 % and 90 % of a run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def workplace(name: str) -> Iterator[Path]:
    """A folder on a memory file system where there is one; gone afterwards."""
    base = Path(os.environ.get("BENCH_DIR") or ("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp"))
    folder = base / f"cortado-bench-{name}-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Timed:
    """One run: seconds in all, (second, done) marks, and what it printed."""

    seconds: float
    marks: list[tuple[float, int]]
    out: str

    @property
    def result(self) -> dict:
        return json.loads(self.out)

    def steady(self, total: int) -> float:
        """Completions a second between 10 % and 90 % of the run."""
        first, last = (self._when(share * total) for share in (0.1, 0.9))
        return 0.8 * total / (last - first)

    def _when(self, done: float) -> float:
        before = (0.0, 0)
        for mark in self.marks:
            if mark[1] >= done:
                part = (done - before[1]) / max(1, mark[1] - before[1])
                return before[0] + part * (mark[0] - before[0])
            before = mark
        return self.marks[-1][0]


def timed(command: list[str], look: Callable[[], int] | None = None, env: dict[str, str] | None = None) -> Timed:
    """Run a command in a fresh process; `look` is asked four times a second how much is done."""
    began = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), **(env or {})}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    marks: list[tuple[float, int]] = []
    while look and process.poll() is None:
        done = look()
        if not marks or done > marks[-1][1]:
            marks.append((time.perf_counter() - began, done))
        time.sleep(0.25)
    out, err = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{err}")
    return Timed(time.perf_counter() - began, marks, out)


def cortado(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "pipelines", *map(str, arguments)]


def progress_of(out: Path) -> Callable[[], int]:
    """How many lines a conversion has done, from its folder; `manifest.json` or a log alone means the end."""
    from pipelines.stages.shards import Shard

    counted: dict[str, int] = {}

    def look() -> int:
        for file in (out / ".run" / "done").glob("part-*.json"):
            if file.name not in counted:
                with contextlib.suppress(OSError, ValueError):
                    counted[file.name] = Shard(**json.loads(file.read_text())).lines
        latest: dict[str, int] = {}
        for file in (out / ".run" / "attempts").glob("*/progress"):
            shard = f"part-{file.parent.name.partition('-')[0]}.json"
            if shard not in counted:
                with contextlib.suppress(OSError, ValueError):
                    latest[shard] = int(file.read_bytes() or b"0")
        return sum(counted.values()) + sum(latest.values())

    return look


def row(what: str, ours: float, theirs: float, unit: str, target: str = "") -> None:
    """One line of the report: our figure, the peer's, and the ratio."""
    print(f"{what:<44} {ours:>10,.1f} {theirs:>10,.1f} {unit:<9} ratio {ours / theirs:5.2f} {target}", flush=True)
