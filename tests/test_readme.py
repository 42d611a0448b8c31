"""The shell commands of README.md, as they stand there, on real pictures in an empty folder."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import skimage

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
CLASSES = {"astronaut": "astronaut.png", "cat": "chelsea.png", "coffee": "coffee.png"}  # ship with scikit-image
PICTURES_A_CLASS = 20

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]


def commands(block: str) -> list[str]:
    """The commands of a block, without comments, continued lines joined."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What README.md takes for granted: `pictures`, with a folder of photographs for each class."""
    folder = tmp_path_factory.mktemp("readme")
    for name, file in CLASSES.items():
        photo = cv2.imread(str(Path(skimage.__file__).parent / "data" / file))
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(PICTURES_A_CLASS):
            cut = photo[4 * number :, 5 * number :]
            cv2.imwrite(str(folder / "pictures" / name / f"{name}{number:02d}.jpg"), cut)
    return folder


def test_the_readme_shows_commands():
    assert sum(len(commands(block)) for block in BLOCKS) >= 6


def test_every_command_of_the_readme_works_in_its_order(folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    assert shutil.which("cortado", path=path)
    for command in (command for block in BLOCKS for command in commands(block)):
        shell = ["bash", "-euo", "pipefail", "-c", command]
        done = subprocess.run(shell, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert "Traceback" not in done.stderr, f"{command}\n{done.stderr}"


def test_the_readme_s_python_runs():
    import torch

    (code,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    names = {"images": torch.zeros(2, 3, 227, 227)}
    exec(code, names)
    assert names["scores"].shape == (2, 1000)


def test_the_readmes_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert targets
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert not missing


def test_make_targets_that_the_readme_names_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b", README)) <= targets
