"""The "unknown name, did you mean" error that every table of names uses."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")
LISTED = 12  # names; a longer table is not printed in an error
LONGEST = 80  # characters of a quoted name; also the longest that is compared with a table


def quoted(name: str) -> str:
    """`name` in quotes, on one line, cut where it is long."""
    return repr(name if len(name) <= LONGEST else name[: LONGEST - 3] + "...")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` may be a slip of, whatever its case; None where none is near."""
    if len(name) > LONGEST:
        return None
    lowered = {other.lower(): other for other in sorted(known, reverse=True)}
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    return lowered[near[0]] if near else None


def hint(name: str, known: Iterable[str]) -> str:
    """What to add to "there is no such name": "; did you mean 'x'?", else "; known: a, b", else nothing."""
    known = list(known)
    near = nearest(name, known)
    if near is not None:
        return f"; did you mean {near!r}?"
    return f"; known: {', '.join(sorted(known))}" if 0 < len(known) <= LISTED else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One line, as "unknown layer type 'Poling'; did you mean 'Pooling'?"."""
    return f"unknown {kind} {quoted(name)}{hint(name, known)}"


def pick(table: Mapping[str, T], name: str, kind: str) -> T:
    """table[name]; ValueError with the nearest name where there is none."""
    if name in table:
        return table[name]
    raise ValueError(unknown(kind, name, table))
