"""One run at a time in a folder: a lock file that the system lets go of however a process ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def held(lock: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Keep other runs out of the lock's folder while this one works.

    ValueError tells who is there, after `patience` seconds. Where a file system has no locks, nobody is kept out.
    """
    made = not lock.parent.exists()
    lock.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    while (file := locked(lock)) is None:
        if time.monotonic() >= deadline:
            who = lock.read_text(errors="replace").strip() if lock.exists() else ""
            raise ValueError(f"{lock.parent}: another run is writing here ({who or 'a process that just began'})")
        time.sleep(0.05)
    with file:
        try:
            with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
            yield
        finally:
            lock.unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):  # something is in it: it stays
                    lock.parent.rmdir()


def locked(lock: Path) -> IO[str] | None:
    """The open lock file, ours now; None where somebody has it."""
    try:
        file = opened(lock)
    except FileNotFoundError:  # the folder went away a second time
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # no locks here
        return file
    with contextlib.suppress(FileNotFoundError):
        if os.stat(lock).st_ino == os.fstat(file.fileno()).st_ino:
            file.truncate(0)
            return file
    file.close()  # whoever had it took the file away in between
    return None


def opened(lock: Path) -> IO[str]:
    try:
        return lock.open("a+")
    except FileNotFoundError:  # whoever had it took the folder away with it
        lock.parent.mkdir(parents=True, exist_ok=True)
        return lock.open("a+")
