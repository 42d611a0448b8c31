"""Are the packages that Python finds ours? `ops`, `cluster` and `pipelines` are names that others use too."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGES = ("ops", "cluster", "pipelines")
SENT = "py_modules_files"  # Ray's folder for packages that were sent to a cluster
HOME = Path(__file__).resolve().parent.parent


def check_packages() -> None:
    """Raises ImportError, one line, when a package or folder of somebody else stands before ours on Python's path.

    A folder without __init__.py is enough in a checkout that was installed with `pip install -e`.
    """
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        found = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
        if len(found) != 1 or not ours(found[0].resolve(), name):
            other = found[0] if found else Path(spec.origin) if spec and spec.origin else None
            where = f"{other} stands before Cortado's own" if other else f"Cortado's own is missing from {HOME}"
            raise ImportError(f"package '{name}': {where}; {advice(other)}")


def ours(place: Path, name: str) -> bool:
    """Whether a package stands beside this one, or came along with it in a job: Ray gives each a folder of its own."""
    return place == HOME / name or (HOME.parent.name == SENT and place.parts[-3::2] == (SENT, name))


def advice(other: Path | None) -> str:
    """What to do about it."""
    if other is None:
        return "install Cortado again"
    if other.parent.resolve() == Path.cwd():
        return "run `cortado` instead of `python -m pipelines`, or from another folder"
    return f"take {other.parent} out of PYTHONPATH or uninstall what is there"
