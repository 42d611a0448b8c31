"""A command that goes on by itself: in a session of its own, so that a lost terminal does not stop it.

RUN/.detached/job.json      process, host, command, when it began; how it ended, once it has
RUN/.detached/console.txt   what it prints

python -m pipelines.stages.detached RUN COMMAND...      is what runs there
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from pipelines.stages.run_folder import read_json, write_json

FOLDER, JOB, CONSOLE = ".detached", "job.json", "console.txt"
LOOK_EVERY = 0.2  # seconds between looks at what is printed
START_SECONDS = 30.0  # until the new process has said that it is there
SHOWN = 20  # lines of earlier output that attaching shows
DROPPED = ("detach",)  # options that the command which goes on by itself has not


def launch(run: Path, command: str, job: Any) -> dict[str, Any]:
    """Start `cortado COMMAND` with the options of `job` in a session of its own; it writes into the run's folder.

    ValueError where one is at work there already.
    """
    if alive(before := facts(run)):
        raise ValueError(f"{run}: process {before['pid']} is at work here; cortado attach {run} shows it")
    place = run / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    (place / JOB).unlink(missing_ok=True)
    words = [command, *arguments(job)]
    with (place / CONSOLE).open("wb") as console:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pipelines.stages.detached", str(run.resolve()), *words],
            env={**os.environ, "PYTHONPATH": python_path(), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while not facts(run) and time.monotonic() < deadline:
        if (code := process.poll()) is not None:
            raise RuntimeError(f"{place / CONSOLE}: the process ended with {code} before it began")
        time.sleep(LOOK_EVERY / 4)
    return {"run": str(run), "process": process.pid, "console": str(place / CONSOLE), "attach": f"cortado attach {run}"}


def python_path() -> str:
    """So that the new process finds the packages that this one has."""
    import pipelines

    home = str(Path(pipelines.__file__).parent.parent)
    return os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))


def arguments(job: Any) -> list[str]:
    """The options of a job that are not at their defaults, as they are typed."""
    words: list[str] = []
    hints = typing.get_type_hints(type(job), include_extras=True)
    for field in dataclasses.fields(job):
        value = getattr(job, field.name)
        if value == field.default or field.name in DROPPED:
            continue
        marks = getattr(hints[field.name], "__metadata__", ())
        named = [mark.name for mark in marks if getattr(mark, "name", None)]
        option = "--" + (named[0] if named else field.name).replace("_", "-")
        option = "" if tyro.conf.Positional in marks else option
        if value is False:
            option = f"--no-{option.removeprefix('--')}"
        for one in value if isinstance(value, tuple) else (value,):
            words += [word for word in (option, "" if isinstance(one, bool) else str(one)) if word]
    return words


# -- the process ----------------------------------------------------------------------------------------------------


def main(words: Sequence[str]) -> int:
    """Run a command in this process, and write down that it is there and how it ended."""
    file = Path(words[0]) / FOLDER / JOB
    began = {"pid": os.getpid(), "birth": birth(os.getpid()), "host": socket.gethostname(), "began": time.time()}
    write_json(file, {**began, "command": ["cortado", *words[1:]], "folder": os.getcwd()})
    sys.argv = ["cortado", *words[1:]]
    code: Any = 1
    try:
        runpy.run_module("pipelines", run_name="__main__", alter_sys=False)
    except SystemExit as end:
        code = end.code
    finally:
        write_json(file, {**(read_json(file) or began), "code": int(code or 0), "ended": time.time()})
    return int(code or 0)


def facts(run: Path) -> dict[str, Any]:
    """What is known of the command that runs, or ran, by itself for a run; nothing where there is none."""
    return read_json(run / FOLDER / JOB) or {}


def alive(found: dict[str, Any]) -> bool:
    """Whether it is at work, as far as this machine can tell."""
    if not found or "code" in found or found["host"] != socket.gethostname():
        return False
    return birth(found["pid"]) == found["birth"] is not None


def birth(pid: int) -> int | None:
    """When a process began, in the system's own count: another that got the same number later has another."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else int(rest[18])
    return None


# -- looking at it ----------------------------------------------------------------------------------------------------


def follow(run: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Tell every line that is printed, the last ones of before first, until the command has ended; how it did."""
    for line in lines(run):
        tell(line)
    return facts(run)


def lines(run: Path) -> Iterator[str]:
    file = run / FOLDER / CONSOLE
    with file.open("rb") as console:
        whole, left = cut(console.read())
        yield from whole[-SHOWN:]
        while True:
            running = alive(facts(run))  # asked first: what it printed until then is read below
            whole, left = cut(left + console.read())
            yield from whole
            if not running:
                break
            time.sleep(LOOK_EVERY)
    if left.strip():
        yield left.decode(errors="replace")


def cut(data: bytes) -> tuple[list[str], bytes]:
    """Whole lines, and the rest."""
    *whole, left = data.split(b"\n")
    return [line.decode(errors="replace").rstrip("\r") for line in whole], left


def stop(found: dict[str, Any], number: int = signal.SIGINT) -> None:
    """As Ctrl-C: the command stops with a snapshot."""
    os.kill(found["pid"], number)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
