"""Somebody else's `ops`, `cluster` or `pipelines` in front on the path is named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys
import pipelines.whereabouts as whereabouts
try:
    whereabouts.check_packages()
except ImportError as error:
    print(error)
"""


def check(folder: Path, **env: str) -> str:
    """What is said in `folder`, with it in front on the path as `python -m` has it."""
    settings = {**os.environ, **env}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=folder, env=settings, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_ours_are_fine_in_the_checkout_and_elsewhere(tmp_path):
    assert check(ROOT) == ""
    assert check(tmp_path) == ""


@pytest.mark.parametrize("name", ["ops", "cluster"])
@pytest.mark.parametrize("kind", ["package", "folder", "module"])
def test_another_one_is_named(tmp_path, name, kind):
    other = tmp_path / (f"{name}.py" if kind == "module" else name)
    if kind == "module":
        other.touch()
    else:
        other.mkdir()
    if kind == "package":
        (other / "__init__.py").touch()
    advice = "run `cortado` instead of `python -m pipelines`, or from another folder"
    assert check(tmp_path) == f"package '{name}': {other} stands before Cortado's own; {advice}"


def test_one_on_pythonpath_is_named(tmp_path):
    (tmp_path / "there" / "ops").mkdir(parents=True)
    (tmp_path / "there" / "ops" / "__init__.py").touch()
    (tmp_path / "here").mkdir()
    told = check(tmp_path / "here", PYTHONPATH=str(tmp_path / "there"))
    assert told.startswith(f"package 'ops': {tmp_path / 'there' / 'ops'} stands before Cortado's own; take ")
    assert "PYTHONPATH" in told
