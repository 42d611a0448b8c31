"""Memory of the machine: how much there is, and keeping what was freed.

A forward allocates its blobs anew, and glibc gives large blocks back to the system as soon as they are freed; the
system then clears each page again. At batch 32 that takes as long as ResNet-50's convolutions (on two cores 1.3 s a
forward instead of 0.7).
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

# mallopt's parameters, from malloc.h
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
NEVER = -1
# The same for a process that is still to be started, and one place for all its threads: glibc gives each thread a place
# of its own, which holds no block of more than 64 MB. A net that computes in a thread, as all actors of Ray do, would
# have its largest blobs cleared by the system each time (ResNet-50 at batch 32: a fifth of the forward).
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": str(64 * 1024 * 1024),
}


@cache
def keep_freed() -> bool:
    """Let this process keep freed memory for its next blobs; False where it cannot be had, or somebody chose already.

    It is glibc's setting and for the whole process: its memory stays at the most that it ever took. Variables as
    MALLOC_TRIM_THRESHOLD_ in the environment say that the user decides.
    """
    if user_decides():
        return False
    try:
        library = ctypes.CDLL(None)
        if not hasattr(library, "gnu_get_libc_version"):
            return False
        settings = ((MMAP_MAX, 0), (TRIM_THRESHOLD, NEVER), (TOP_PAD, 64 * 1024 * 1024))
        return all(library.mallopt(parameter, value) for parameter, value in settings)
    except (OSError, AttributeError):
        return False


def keep_memory() -> dict[str, str]:
    """KEEP_MEMORY without what the environment says already; nothing where the user decides, as in `keep_freed`."""
    if user_decides():
        return {}
    return {name: value for name, value in KEEP_MEMORY.items() if name not in os.environ}


def user_decides() -> bool:
    return any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ)


def available() -> int | None:
    """Bytes of memory that can be had without swapping, where the system says so."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None
