"""Errors in code that users wrote: which lines are theirs, and one line that says what went wrong where."""

from __future__ import annotations

import contextlib
import functools
import os
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ops.layers.registry import Layer, text

LONGEST = 300  # characters of the user's error that are shown
PLACES: set[str] = set()  # files and folders of users
OURS = os.path.dirname(__file__) + os.sep
METHODS = ("__init__", "shapes", "forward", "state", "load_state")


def add(place: str) -> None:
    """A file or folder whose lines are a user's."""
    if place:
        PLACES.add(place)


def is_user(file: str) -> bool:
    return file in PLACES or any(file.startswith(place + os.sep) for place in PLACES)


def frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The user's lines in an error's traceback, the outermost first."""
    return [frame for frame in traceback.extract_tb(error.__traceback__) if is_user(frame.filename)]


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def of_user(error: BaseException) -> BaseException | None:
    """The error among the causes that happened in a user's lines; None where they have no part in it."""
    return next((one for one in causes(error) if frames(one) or syntax_of_user(one)), None)


def syntax_of_user(error: BaseException) -> bool:
    return isinstance(error, SyntaxError) and error.filename is not None and is_user(error.filename)


def place(error: BaseException) -> str:
    """FILE:LINE of the innermost of the user's lines; "" where there is none."""
    if isinstance(error, SyntaxError) and syntax_of_user(error):
        return f"{os.path.basename(error.filename or '')}:{error.lineno}"
    theirs = frames(error)
    return f"{os.path.basename(theirs[-1].filename)}:{theirs[-1].lineno}" if theirs else ""


def one_line(error: BaseException) -> str:
    """As "TypeError: unsupported operand (my_layer.py:12)"."""
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    message = " ".join(str(said).split())[:LONGEST]
    where = place(error)
    return f"{type(error).__name__}{': ' * bool(message)}{message}{f' ({where})' * bool(where)}{beside(error)}"


def beside(error: BaseException) -> str:
    """What to do where a module is missing that stands in the same folder."""
    theirs = frames(error)
    if not (isinstance(error, ModuleNotFoundError) and error.name and theirs):
        return ""
    file = os.path.join(os.path.dirname(theirs[-1].filename), f"{error.name}.py")
    return f"; {error.name}.py is beside it: give the folder in the place of the file" if os.path.exists(file) else ""


def cut(error: BaseException) -> str | None:
    """The traceback of an error as Python prints it, with the user's lines only; None where it has none of them."""
    found = of_user(error)
    if found is None:
        return None
    lines = traceback.format_list(frames(found)) + traceback.format_exception_only(found)
    return "".join(["Traceback, your lines only:\n", *lines]).rstrip()


@contextlib.contextmanager
def told(what: str, tell: Callable[[str], object] | None = None) -> Iterator[None]:
    """Run the user's code: what goes wrong in it is a ValueError "WHAT: TypeError: ... (FILE:LINE)".

    Without `what`, a ValueError and an OSError stay as they are. `tell` gets the traceback, cut to the user's lines.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        found = of_user(error)
        if found is None:
            raise
        if tell is not None:
            tell(cut(error) or "")
        if not what and isinstance(error, ValueError | OSError):
            raise
        raise ValueError(f"{what}: {one_line(found)}" if what else one_line(found)) from error


# -- methods of layers -----------------------------------------------------------------------------------------------


def guard(kind: type[Layer]) -> None:
    """Let errors in a user's layer name its line, as ValueErrors: the net adds which layer it is."""
    for name in METHODS:
        method = getattr(kind, name)
        ours = getattr(method, "__module__", "").startswith("ops.")
        if not ours and not hasattr(method, "guarded"):
            setattr(kind, name, guarded(method, name))


def guarded(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The method, its errors told; a forward must also give as many tensors as the layer has tops."""

    @functools.wraps(method)
    def run(self: Layer, *arguments: Any, **options: Any) -> Any:
        try:
            result = method(self, *arguments, **options)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ValueError(blamed(error, name, arguments)) from error
        if name == "forward" and type(self).forward is run:  # not where a subclass takes it up
            check_tops(self, result)
        return result

    run.guarded = True  # type: ignore[attr-defined]
    return run


def blamed(error: Exception, name: str, arguments: tuple[Any, ...]) -> str:
    """What went wrong in a method; a ValueError of ours, as of super().__init__, is told as it is."""
    trace = traceback.extract_tb(error.__traceback__)
    if isinstance(error, ValueError):
        where = place(error)
        return str(error) if trace[-1].filename.startswith(OURS) or not where else f"{error} ({where})"
    met = [text(tuple(one.shape)) for one in arguments if isinstance(one, Tensor)]
    return f"{name}: {one_line(error)}" + (f" (bottoms: {', '.join(met)})" if met else "")


def check_tops(layer: Layer, tops: Any) -> None:
    """ValueError unless these are the tops of a layer."""
    found = tops if isinstance(tops, tuple) else (tops,)
    odd = next((type(top).__name__ for top in found if not isinstance(top, Tensor)), None)
    if odd:
        raise ValueError(f"forward gave {odd}, expected a tensor, or a tuple of one for each top")
    if len(found) != len(layer.spec.top):
        raise ValueError(f"forward gave {len(found)} tops, the layer has {len(layer.spec.top)}")
