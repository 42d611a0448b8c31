"""Cortado as a wheel: built, installed beside its dependencies, and used in an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import cv2
import lmdb
import pytest
import skimage

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("pyproject.toml", "README.md", "LICENSE", "ops", "cluster", "pipelines")
PACKAGE_DATA = ("cluster/ray_config.yaml", "ops/proto/caffe.proto", "ops/py.typed", "cluster/py.typed")
PACKAGE_DATA += ("ops/zoo/lenet/deploy.prototxt", "ops/zoo/googlenet/README.md")
PACKAGE_DATA += ("pipelines/page/index.html", "pipelines/page/looks.js", "pipelines/page/samples/cat.jpg")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy so that the checkout gets no build folder; without network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SHIPPED:
        if (ROOT / name).is_dir():  # others may be compiling it at this moment
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    return next(out.glob("cortado-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The `bin` of a new environment that holds this wheel, and the dependencies of the one that runs the tests.

    A .pth file lends it our site-packages; the editable install there is not followed, so only the wheel is found.
    """
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, capture_output=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(venv), "platbase": str(venv)}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(venv / "bin/python"), "install", "--quiet"]
    options = ["--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    subprocess.run([*install, *options], check=True, capture_output=True)
    return venv / "bin"


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    """An empty working folder, and no setting of this checkout in the environment."""
    for name in ("PYTHONPATH", "CORTADO_CONFIG", "RAY_ADDRESS", "VIRTUAL_ENV"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def cortado(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(installed / "cortado"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ})


@pytest.mark.parametrize("name", PACKAGE_DATA)
def test_package_data_is_in_the_wheel(wheel, name):
    assert name in zipfile.ZipFile(wheel).namelist()


def test_the_wheel_holds_nothing_but_the_three_packages(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ops", "cluster", "pipelines"}


def test_help_works_in_an_empty_folder(installed, empty):
    done = cortado(installed, empty, "--help")
    assert done.returncode == 0, done.stderr
    assert "convert" in done.stdout


def test_the_wheels_own_files_run(installed, empty):
    code = "import ops, cluster, pipelines; print(*(m.__file__ for m in (ops, cluster, pipelines)), sep='\\n')"
    python = [str(installed / "python"), "-c", code]
    files = subprocess.run(python, cwd=empty, capture_output=True, text=True, check=True).stdout.split()
    assert all(Path(file).is_relative_to(installed.parent) for file in files), files


@pytest.mark.ray
def test_pictures_become_a_data_set_in_an_empty_folder(installed, empty):
    pictures = empty / "pictures"
    photo = cv2.imread(str(Path(skimage.__file__).parent / "data/coffee.png"))  # 400 x 600, ships with scikit-image
    for number in range(20):
        folder = pictures / ("odd" if number % 2 else "even")
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number:02d}.jpg"), photo[10 * number :, 10 * number :])

    listed = cortado(installed, empty, "list", "pictures", "--out", "lists")
    assert listed.returncode == 0, listed.stderr
    arguments = ["--list", "lists/all.txt", "--root", "pictures/", "--out", "records", "--json"]
    made = cortado(installed, empty, "convert", *arguments, "--resize-height", "32", "--resize-width", "32")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)
    with lmdb.open(str(empty / "records"), readonly=True, lock=False) as records:
        assert records.stat()["entries"] == 20
