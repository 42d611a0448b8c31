"""What every job shares: its options, progress, the run log and the one-line error."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from rich.console import RenderableType

PLAIN_EVERY = 5.0  # seconds between progress lines where there is no terminal
log = logging.getLogger("cortado")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command: its fields are the options, `run` the work, `render` what a person sees of the result."""

    config: str | None = None
    """ray_config.yaml to use; default: ./ray_config.yaml, then $CORTADO_CONFIG, then the shipped one"""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """override one key of ray_config.yaml, as data.workers=4; may be given several times"""
    json: bool = False
    """print the result as one JSON object on stdout"""

    def run(self) -> dict[str, Any]:
        """Do the work; the result holds only what JSON can say."""
        raise NotImplementedError

    def render(self, result: dict[str, Any]) -> RenderableType:
        """The result for a person: by default one row a key."""
        return table(result)


def options(job: Job) -> dict[str, Any]:
    """The options of this run that say what is computed, without where it runs and how it is printed."""
    shared = {field.name for field in dataclasses.fields(Job)}
    named = {field.name: getattr(job, field.name) for field in dataclasses.fields(job) if field.name not in shared}
    return {name: str(value) if isinstance(value, Path) else value for name, value in named.items()}


def table(result: dict[str, Any], title: str | None = None) -> RenderableType:
    """Two columns, key and value, without the frame."""
    from rich.table import Table

    grid = Table(title=title, box=None, show_header=False, title_justify="left", pad_edge=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in result.items():
        grid.add_row(key.replace("_", " "), human(value))
    return grid


def human(value: object) -> str:
    """A value as people write it: 12,345 and 3.14, lists with commas."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {human(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(human(item) for item in value) or "-"
    return str(value)


def size(count: float) -> str:
    """Bytes as people write them: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as people write them: 2 h 03 min, 4 min 05 s, 6.1 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def counted(number: int, thing: str) -> str:
    """1 shard, 2 shards."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def say(text: str) -> None:
    """One line for the person at the terminal, on stderr, and in the run's log."""
    log.info(text)
    print(text, file=sys.stderr, flush=True)


class Progress:
    """How far a job is: a bar on a terminal, a line every five seconds elsewhere, always on stderr.

    `update(done)` takes the whole count so far; what a run found finished already goes in as `start`.
    """

    def __init__(self, name: str, *, total: int, unit: str = "images", start: int = 0):
        self.name, self.total, self.unit = name, total, unit
        self.start = self.done = start
        self.began = self.last_line = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.fields[line]}"))
            self.bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task(self.name, total=self.total, completed=self.start, line="")
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar:
            self.bar.stop()
        elif self.last_line > self.began:  # whoever read the lines before wants to see the end too
            say(f"{self.name}: {self.line()}")

    @property
    def rate(self) -> float:
        return (self.done - self.start) / max(time.monotonic() - self.began, 1e-9)

    def line(self) -> str:
        left = (self.total - self.done) / self.rate if self.rate else float("nan")
        eta = f", {duration(left)} left" if self.rate and self.done < self.total else ""
        share = 100 * self.done / self.total if self.total else 100
        rate = f", {self.rate:,.0f} {self.unit}/s" if self.rate >= 0.5 else ""
        return f"{self.done:,}/{self.total:,} {self.unit} ({share:.0f} %){rate}{eta}"

    def update(self, done: int) -> None:
        self.done = done
        if self.bar:
            self.bar.update(self.task, completed=done, line=self.line())
        elif time.monotonic() - self.last_line >= PLAIN_EVERY:
            self.last_line = time.monotonic()
            say(f"{self.name}: {self.line()}")


@contextlib.contextmanager
def run_log(folder: Path) -> Iterator[Path]:
    """While open, everything that is logged goes to FOLDER/log.txt too, tracebacks included."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "log.txt"
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk: the error itself is told
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    log.info("command: %s", " ".join(sys.argv))
    try:
        yield file
    except BaseException as error:
        with contextlib.suppress(OSError, ValueError):  # a full disk must not hide the error itself
            log.info("stopped by %s", type(error).__name__, exc_info=True)
        raise
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]
        with contextlib.suppress(OSError):
            handler.close()


def one_line(error: BaseException) -> str:
    """What a user reads of an error: its message on one line, or its type where it has none."""
    if isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if error.filename else ""
        return f"{named}{error.strerror}"
    text = " ".join(str(error).split())
    return text or type(error).__name__


def finish(job: Job, result: dict[str, Any]) -> None:
    """Print the result on stdout: JSON where it was asked for, else for people."""
    if job.json:
        print(json.dumps(result, default=str))
        return
    from rich.console import Console

    if sys.stdout.isatty():
        Console(highlight=False).print(job.render(result))
        return
    page = Console(file=io.StringIO(), width=int(os.environ.get("COLUMNS", "160")), highlight=False)
    page.print(job.render(result))
    print("\n".join(line.rstrip() for line in page.file.getvalue().splitlines()))  # type: ignore[attr-defined]


def share(text: str, option: str) -> float:
    """ "1%" or "0.01" -> 0.01; ValueError outside 0..1."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"{option} {text}: expected a share, as 1% or 0.01")
    return value
