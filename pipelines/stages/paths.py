"""What surrounds a list: what stands before its paths, what lies beside it, what is odd about it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.job import counted, say

if TYPE_CHECKING:
    from ops.records.image_list import ImageList


def root_of(root: str, listed: ImageList, source: str) -> str:
    """The prefix of every path, absolute, because workers run in other folders.

    Root and path are put together as strings, as Caffe does; only a folder's missing slash is added. Without a root it
    is the folder or container that was listed, else the current folder, or the list's own when the files are there.
    """
    if root:
        prefix = os.path.abspath(root) + ("/" if root.endswith("/") else "")
        if not os.path.isdir(os.path.dirname(prefix)):
            raise FileNotFoundError(2, "no such folder; --root is what stands before every path of the list", root)
        return prefix + "/" if os.path.isdir(prefix) and not prefix.endswith("/") else prefix
    if listed.root:
        return listed.root
    first = listed.path(0)
    if os.path.isabs(first):
        return ""
    here = os.getcwd().rstrip("/") + "/"
    beside = os.path.dirname(os.path.abspath(source)) + "/"
    found_here = os.path.exists(os.fsencode(here) + first)
    return beside if not found_here and os.path.exists(os.fsencode(beside) + first) else here


def note(listed: ImageList, *, whole: bool) -> list[tuple[int, str, str]]:
    """Say what is odd about the list, and give it back line by line, for errors.csv, where the whole list is used."""
    for warning in listed.warnings:
        say(f"warning: {warning}")
    again = listed.duplicates().tolist()
    if again:
        told = f"{counted(len(again), 'line')} with the path of an earlier line; the first is line {again[0] + 1}"
        say(f"warning: {told}, {os.fsdecode(listed.path(again[0]))}")
    odd = [*listed.odd, *((line, "the path of an earlier line") for line in again)] if whole else []
    return [(line + 1, os.fsdecode(listed.path(line)), why) for line, why in odd if line not in listed.bad]


def names_beside(source: str) -> list[str]:
    """Class names from a classes.txt beside a list, as `cortado list` writes it."""
    file = Path(source).with_name("classes.txt")
    if not Path(source).is_file() or not file.is_file():
        return []
    return file.read_text(encoding="utf-8", errors="replace").splitlines()
