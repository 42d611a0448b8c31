"""Errors of the libraries that read a container, as one line that names the container."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

LONGEST = 160  # characters of a library's message that are shown


@contextlib.contextmanager
def told(path: Path | str, what: str, *errors: type[BaseException]) -> Iterator[None]:
    """Raise `errors` of the block as ValueError: "PATH: damaged WHAT: message"."""
    try:
        yield
    except errors as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: damaged {what}: {text[:LONGEST]}") from error
