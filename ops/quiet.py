"""OpenCV as a library wants it: one thread, and silent; importing this module makes it so for the process.

Whoever decodes many pictures runs many processes or threads, so OpenCV's own threads would only be in the way; and what
is wrong with a picture is said once, in one line, by us. Set OPENCV_LOG_LEVEL to hear OpenCV itself.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import cv2
import numpy as np

SILENT = 0  # OpenCV's lowest log level


def be_quiet() -> tuple[Any, int, int] | None:
    """(C's stderr variable, its value, a stream that goes nowhere), or None where that variable cannot be had.

    libjpeg prints its warnings to C's stderr at any log level, so `imdecode` points that variable elsewhere while it
    decodes; this costs a fraction of a microsecond. Python's own stderr and file descriptor 2 are not touched.
    """
    cv2.setNumThreads(1)
    if "OPENCV_LOG_LEVEL" in os.environ:
        return None
    where: Any = getattr(cv2.utils, "logging", cv2)  # before OpenCV 4.13 it stands at the top
    where.setLogLevel(SILENT)
    try:
        library = ctypes.CDLL(None)
        stderr = ctypes.c_void_p.in_dll(library, "stderr")
        library.fopen.restype = ctypes.c_void_p
        nowhere = library.fopen(os.devnull.encode(), b"w")
    except (OSError, TypeError, ValueError, AttributeError):  # another C library than Linux's
        return None
    return (stderr, stderr.value, nowhere) if nowhere and stderr.value else None


HUSH = be_quiet()


def imdecode(encoded: bytes, flag: int) -> Any:
    """cv2.imdecode of bytes, without the codecs' chatter: an array, or None."""
    if HUSH is None:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)
    stderr, spoken, nowhere = HUSH
    stderr.value = nowhere
    try:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)
    finally:
        stderr.value = spoken
