"""Layers from outside the project in training: in this process, under torchrun, and in the workers of Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ops import custom
from ops.layers.registry import LAYERS
from pipelines.train import Train
from tests.pipelines.ray_trainings import blobs, digests, distance, golden_files, solver, train

pytestmark = pytest.mark.timeout(600)
PROJECT = Path(__file__).resolve().parents[2]
DOUBLE = """
from factors import FACTOR
from ops.layers.registry import Layer, layer

@layer("Double")
class Double(Layer):
    def forward(self, x):
        return x * FACTOR
"""
BREAKS = """
from ops.layers.registry import Layer, layer

@layer("Breaks")
class Breaks(Layer):
    seen = 0

    def forward(self, x):
        if x.device.type != "meta":
            self.seen += 1
        return x * share(3 - self.seen)

def share(left):
    return left / left
"""
THEIRS = 'layer { name: "own" type: "Power" bottom: "pool1" top: "own" power_param { scale: 2 } }'
OURS = 'layer { name: "own" type: "Double" bottom: "pool1" top: "own" }'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the golden data, and layers in a folder of their own; the catalogue is put back."""
    golden_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("layers").mkdir()
    Path("layers/double.py").write_text(DOUBLE)
    Path("layers/factors.py").write_text("FACTOR = 2.0\n")
    layers, path, threads = dict(LAYERS), list(sys.path), torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)
    LAYERS.clear()
    LAYERS.update(layers)
    custom.LOADED.clear()
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def write(folder, layer=OURS, *, last=12):
    """The golden net with one more layer between pooling and weights, and a solver for it."""
    text = (folder / "net_cls.prototxt").read_text()
    changed = text.replace('bottom: "pool1"', 'bottom: "own"').replace(
        'layer { name: "ip1"', f'{layer}\nlayer {{ name: "ip1"'
    )
    (folder / "net_own.prototxt").write_text(changed)
    file = solver(folder, "sgd", "snapshot: 6", **{"max_iter: 24": f"max_iter: {last}", "net_cls": "net_own"})
    return file


def here(file, run, **options):
    return Train(solver=file, run_folder=Path(run), local=True, gpu="none", **options).run()


@pytest.fixture
def expected(folder):
    """Weights that the same net gets with a layer of Caffe's in the place of ours."""
    here(write(folder, THEIRS), "theirs")
    made = Path("mine_sgd_iter_12.caffemodel")
    found = blobs(made), digests("theirs")
    for old in Path().glob("mine_sgd_iter_*"):
        old.unlink()
    return found


CODE = {"code": (Path("layers"),)}


def test_a_layer_of_ones_own_is_trained_with(folder, expected):
    weights, batches = expected
    here(write(folder), "run", **CODE)
    assert digests("run") == batches
    found = blobs("mine_sgd_iter_12.caffemodel")
    assert all((found[name] == value).all() for name, value in weights.items())


@pytest.mark.ray
@pytest.mark.slow
def test_every_worker_of_ray_has_it_and_so_has_a_resumed_run(ray_session, folder, expected, capsys):
    weights, batches = expected
    train(write(folder, last=6), "run", 2, **CODE)
    assert "batch 8 = 2 workers x 4" in capsys.readouterr().err
    result = train(write(folder), "run", 2, resume=True, **CODE)
    assert result["from"] == 6
    assert digests("run") == batches
    assert distance(blobs("mine_sgd_iter_12.caffemodel"), weights) < 1e-5


@pytest.mark.slow
def test_processes_under_torchrun_have_it(folder, expected):
    weights, batches = expected
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "pipelines.worker", "--solver", write(folder).name, "--folder", "run", "--code", "layers"]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250, env=settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert digests("run") == batches
    assert distance(blobs("mine_sgd_iter_12.caffemodel"), weights) < 1e-5


# -- what goes wrong ---------------------------------------------------------------------------------------------------

TOLD = r"layer 'own' \(Breaks\): forward: ZeroDivisionError: .* \(breaks\.py:14\)"
TRACE = ["Traceback, your lines only:", "breaks.py", "in forward", "in share", "ZeroDivisionError"]


def breaking(folder):
    (folder / "breaks.py").write_text(BREAKS)
    return write(folder, OURS.replace("Double", "Breaks"))


def test_an_error_in_it_is_one_line_with_the_traceback_of_its_own_lines(folder, capsys):
    with pytest.raises(ValueError, match=TOLD) as error:
        here(breaking(folder), "run", code=(Path("breaks.py"),))
    assert "\n" not in str(error.value)
    told = capsys.readouterr().err
    assert all(part in told for part in TRACE)
    assert "worker.py" not in told


@pytest.mark.ray
@pytest.mark.slow
def test_an_error_in_a_worker_of_ray_too(ray_session, folder, capsys):
    with pytest.raises(ValueError, match=TOLD) as error:
        train(breaking(folder), "run", 2, code=(Path("breaks.py"),))
    assert "\n" not in str(error.value)
    told = capsys.readouterr().err
    assert all(part in told for part in TRACE)
    assert "worker.py" not in told
    assert "beginning again" not in told


def test_code_that_does_not_load_is_told_before_ray_is_started(folder):
    import ray

    Path("odd.py").write_text("import nowhere_to_be_found\n")
    there = ray.is_initialized()
    with pytest.raises(ValueError, match=r"odd\.py: ModuleNotFoundError: No module named 'nowhere_to_be_found'"):
        train(write(folder), "run", code=(Path("odd.py"),))
    assert ray.is_initialized() == there
    assert not Path("run").exists()


def test_without_it_the_type_is_unknown(folder):
    with pytest.raises(ValueError, match="unknown layer type 'Double'"):
        here(write(folder), "run")
