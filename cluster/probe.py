"""Do two machines see the same folder? A file that one writes is looked for by the other, both ways."""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

PREFIX = ".cortado-probe-"
NAMES = 1000  # entries of a folder to compare, where nothing may be written


@dataclass(frozen=True)
class Probe:
    """What this process left at a path, and what it sees there; travels to the nodes."""

    path: str
    folder: str  # the path, or the folder of a file
    name: str  # of the file left in `folder`
    token: str  # what that file holds; empty where it could not be written
    reason: str  # why not
    traits: list[Any]

    def look(self, node: str) -> dict[str, Any]:
        """On a node: whether it sees the same, and whether it can write there."""
        found = _traits(Path(self.path))
        if not found:
            return {"sees": False, "writes": False, "reason": "not there"}
        sees = not self.traits or (self._finds_token() if self.token else found == self.traits)
        if not sees:
            return {"sees": False, "writes": False, "reason": "there, but not the one that this process sees"}
        try:
            self._mark(node).write_text(node)
        except OSError as error:
            return {"sees": True, "writes": False, "reason": f"cannot write: {error.strerror}"}
        return {"sees": True, "writes": True, "reason": ""}

    def confirm(self, node: str, look: dict[str, Any]) -> dict[str, Any]:
        """Here, afterwards: what a node wrote counts when it has arrived."""
        if not look["writes"] or not self.traits or _text(self._mark(node)) == node:
            return look
        return {**look, "writes": False, "reason": "what it writes does not arrive here"}

    def here(self) -> dict[str, Any]:
        return {"sees": bool(self.traits), "writes": bool(self.token), "reason": self.reason}

    def clear(self) -> None:
        """Remove what this process and the nodes left."""
        with contextlib.suppress(OSError):
            for left in list(Path(self.folder).glob(f"{self.name}*")):
                with contextlib.suppress(OSError):
                    left.unlink()

    def _finds_token(self) -> bool:
        return _text(Path(self.folder) / self.name) == self.token

    def _mark(self, node: str) -> Path:
        return Path(self.folder) / f"{self.name}-{node}"


def leave(path: str) -> Probe:
    """Write a probe file into the folder `path`, or beside the file `path`."""
    here = Path(os.path.abspath(path))
    folder = here if here.is_dir() else here.parent
    name, token, reason, traits = f"{PREFIX}{uuid.uuid4().hex[:12]}", uuid.uuid4().hex, "", _traits(here)
    if not traits:
        return Probe(str(here), str(folder), name, "", "not there", [])
    try:
        (folder / name).write_text(token)
    except OSError as error:
        token, reason = "", f"cannot write: {error.strerror}"
    return Probe(str(here), str(folder), name, token, reason, traits)


def _traits(path: Path) -> list[Any]:
    """What tells two files or folders apart where nothing may be written: kind, and size or the first names."""
    try:
        if not path.is_dir():
            return ["file", path.stat().st_size]
        with os.scandir(path) as entries:
            return ["folder", *sorted(entry.name for entry in islice(entries, NAMES))]
    except PermissionError:
        return ["closed"]
    except OSError:
        return []


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
