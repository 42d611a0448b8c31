"""The shell commands of docs/training.md, as they stand there, on real pictures in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import skimage

from pipelines.stages.recipe import schedule

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/training.md").read_text()
COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]
CLASSES = {"astronaut": "astronaut.png", "cat": "chelsea.png", "coffee": "coffee.png"}  # ship with scikit-image
PICTURES_A_CLASS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the page takes for granted: `pictures`, and scores.txt with two numbers a picture."""
    folder = tmp_path_factory.mktemp("training")
    lines = []
    for name, file in CLASSES.items():
        photo = cv2.imread(str(Path(skimage.__file__).parent / "data" / file))
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(PICTURES_A_CLASS):
            path, cut = f"pictures/{name}/{name}{number:02d}.jpg", photo[4 * number :, 5 * number :]
            cv2.imwrite(str(folder / path), cut)
            lines.append(f"{path} {number / PICTURES_A_CLASS:.2f} {cut.mean() / 255:.3f}\n")
    (folder / "scores.txt").write_text("".join(lines))
    return folder


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_every_command_of_the_page_works_in_its_order(folder):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in COMMANDS:
        shell = ["bash", "-euo", "pipefail", "-c", command]
        done = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, f"{command}\n{done.stderr}"
    for made in ("runs/a/plot.png", "runs/a/lr_range.png", "runs/a/overfit.csv", "norms.svg", "both.png"):
        assert (folder / made).stat().st_size > 100


def test_the_table_of_imagenet_is_the_schedules():
    times = schedule(1_281_167, 256, 50_000, 50)
    shown = [times.epoch, times.stepsize, times.max_iter, times.test_iter, times.test_interval]
    rows = [row for row in re.findall(r"^\| .*?\| .*? \| (.*?) \|$", PAGE, re.MULTILINE) if row[0].isdecimal()]
    assert [float(re.match(r"[\d,.]+", row)[0].replace(",", "")) for row in rows] == pytest.approx(shown, abs=0.05)


def test_the_pages_links_lead_somewhere():
    assert all((ROOT / "docs" / target).exists() for target in re.findall(r"\]\((?!https?:)([^)#]+)", PAGE))
