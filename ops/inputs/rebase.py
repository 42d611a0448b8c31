"""Lists with somebody else's paths: the beginning OLD of a path becomes NEW."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ops.records.image_list import ImageList

CHUNK = 1 << 16  # paths at a time


def parse(rule: str) -> tuple[bytes, bytes]:
    """ "OLD=NEW" as bytes; NEW may be empty."""
    old, equals, new = rule.partition("=")
    if not old or not equals:
        raise ValueError(f"--rebase {rule}: expected OLD=NEW, the beginnings of paths")
    return os.fsencode(old), os.fsencode(new)


def rebased(listed: ImageList, rules: Sequence[str]) -> ImageList:
    """The list with the first rule that fits applied to each path; a rule that fits none is warned about.

    Where a NEW is absolute, the paths that no rule fits get the list's root in front, and the root becomes empty.
    """
    pairs = [parse(rule) for rule in rules]
    if not pairs:
        return listed
    whole = bool(listed.root) and any(new.startswith(b"/") for _, new in pairs)
    front = os.fsencode(listed.root) if whole else b""
    hits = [0] * len(pairs)
    paths: list[bytes] = []
    for start in range(0, len(listed), CHUNK):
        for path in listed.paths(slice(start, start + CHUNK)):
            for number, (old, new) in enumerate(pairs):
                if path.startswith(old):
                    hits[number] += 1
                    paths.append(new + path[len(old) :])
                    break
            else:
                paths.append(front + path)
    found = ImageList.of(paths, listed.labels, root="" if whole else listed.root, classes=listed.classes)
    found.warnings, found.bad = list(listed.warnings), dict(listed.bad)
    for rule, count in zip(rules, hits, strict=True):
        if not count:
            shown = os.fsdecode(listed.path(0)) if len(listed) else ""
            found.warnings.append(f"--rebase {rule}: no path begins so; the first is {shown}")
    return found
