"""Classes that users wrote: found by module and name, run so that their errors say where, `import caffe` or not."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import traceback
import types
from collections.abc import Iterator
from typing import Any

import torch

from ops.names import hint, quoted

LONGEST = 200  # characters of the user's error that are shown
OURS = os.path.dirname(__file__)
STANDARD = os.path.dirname(os.__file__)  # where Python's own modules are


def find(module: str, name: str) -> type:
    """The class `name` of `module`; ValueErrors say what is missing."""
    if not module or not name:
        raise ValueError("python_param needs module (a file on PYTHONPATH, without .py) and layer (a class in it)")
    if not all(map(str.isidentifier, module.split("."))):
        raise ValueError(f"python_param.module {quoted(module)} is no module name; give the file's name without .py")
    importlib.invalidate_caches()
    try:
        with told(f"importing {module}"):
            found = importlib.import_module(module)
    except ValueError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{module}.".startswith(f"{cause.name}."):
            raise ValueError(
                f"no Python module {quoted(cause.name)}; the folder that holds it must be on PYTHONPATH"
            ) from None
        raise
    kind = getattr(found, name, None)
    if not isinstance(kind, type):
        classes = [key for key, value in vars(found).items() if isinstance(value, type)]
        raise ValueError(f"module {module} has no class {quoted(name)}{hint(name, classes)}")
    return kind


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Run the user's code, where `import caffe` works; its errors become ValueErrors that name its file and line.

    The cause keeps the user's traceback, without the frames of this file and of the import machinery.
    """
    try:
        with caffe():
            yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        error.__traceback__ = of_user(error.__traceback__) or error.__traceback__
        last = next((one for one in reversed(traceback.extract_tb(error.__traceback__)) if is_user(one.filename)), None)
        where = f" ({os.path.basename(last.filename)}:{last.lineno})" if last else ""
        message = " ".join(str(error).split())[:LONGEST]
        raise ValueError(f"{what}: {type(error).__name__}{': ' * bool(message)}{message}{where}") from error


def of_user(trace: types.TracebackType | None) -> types.TracebackType | None:
    """A traceback from its first frame of the user's on."""
    while trace is not None and not is_user(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace


def is_user(file: str) -> bool:
    return os.path.dirname(file) != OURS and "site-packages" not in file and not file.startswith((STANDARD, "<frozen"))


# -- a stand-in for pycaffe --------------------------------------------------------------------------------------------


class StandIn:
    """The base class of a Python layer, as `caffe.Layer`; its attributes are set before `setup`."""

    param_str: str
    phase: int
    blobs: list[Any]  # pycaffe.Blobs

    def __init__(self, *_: object):
        pass


STAND_IN = types.ModuleType("caffe", "What a module of Python layers takes from pycaffe, where there is none.")
vars(STAND_IN).update(Layer=StandIn, TRAIN=0, TEST=1)


@contextlib.contextmanager
def caffe() -> Iterator[None]:
    """`import caffe` gives the stand-in inside the block, unless a real one is installed."""
    if "caffe" in sys.modules or installed(tuple(sys.path)):
        yield
        return
    sys.modules["caffe"] = STAND_IN
    try:
        yield
    finally:
        if sys.modules.get("caffe") is STAND_IN:
            del sys.modules["caffe"]


@functools.lru_cache
def installed(_: tuple[str, ...]) -> bool:
    """Whether this sys.path has a real pycaffe; a folder that is only called caffe is none."""
    found = importlib.util.find_spec("caffe")
    return found is not None and found.origin is not None
