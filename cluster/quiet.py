"""Ray without its chatter: what it would print goes to the run's log, so that stdout is the result and stderr ours."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

log = logging.getLogger("cortado.ray")

# Ray's C++ side prints these on the driver's stderr, with no level that would hide them and keep what matters.
# The first comes with every pool of actors that Ray Data makes, and is harmless (ray-project/ray issue 53727).
CHATTER = ("has constructor arguments in the object store and max_restarts > 0",)
FILTER = """
import sys
for line in sys.stdin.buffer:
    if not any(word.encode() in line for word in sys.argv[1:]):
        sys.stderr.buffer.write(line)
        sys.stderr.flush()
"""
COLOUR = re.compile(r"\x1b\[[\d;]*m")


def quiet_ray() -> ModuleType:
    """Import Ray with defaults that suit a command line. What the user has set in the environment stays."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    import ray
    import ray.data

    # Messages about lost workers and nodes: Ray prints them on stdout, even with log_to_driver off.
    ray._private.worker.print_to_stdstream = _to_log
    ray.data.DataContext.get_current().enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        # Its log file, in Ray's session folder, stays, and so does whatever another library hung there.
        if isinstance(handler, logging.StreamHandler) and type(handler).__module__.startswith(("ray.", "logging")):
            handler.setLevel(logging.CRITICAL)
    return ray


def _to_log(data: dict[str, Any], ignore_prefix: bool = False) -> None:
    for line in data["lines"]:
        log.info("%s: %s", data.get("pid", "ray"), COLOUR.sub("", str(line)).rstrip())


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Keep known noise of Ray's C++ side off stderr. Everything else passes, the last words of a dying process too.

    File descriptor 2 goes through a small filter process; Python's own sys.stderr goes on to the terminal as before.
    Nothing is done where sys.stderr is not the process' stderr (a test's capture, a notebook).
    """
    if not _is_real(sys.stderr):
        yield
        return
    sys.stderr.flush()
    direct = os.dup(2)
    command = [sys.executable, "-SEc", FILTER, *CHATTER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as reader:
        assert reader.stdin
        os.dup2(reader.stdin.fileno(), 2)
        reader.stdin.close()
        before = sys.stderr
        options: dict[str, Any] = {"encoding": before.encoding, "errors": before.errors}
        sys.stderr = open(direct, "w", buffering=1, closefd=False, **options)  # noqa: SIM115
        try:
            yield
        finally:
            sys.stderr.flush()
            sys.stderr = before
            os.dup2(direct, 2)
            os.close(direct)
            with contextlib.suppress(subprocess.TimeoutExpired):
                reader.wait(timeout=1)  # a process that Ray left behind may still hold the pipe
            reader.kill()


def _is_real(stream: Any) -> bool:
    try:
        return bool(stream.fileno() == 2)
    except (AttributeError, OSError, ValueError):
        return False
