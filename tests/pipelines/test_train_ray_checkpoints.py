"""Caffe's snapshots of a training on Ray are Ray's checkpoints too: read by Ray's own tools, and no copies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray.train

from ops.solver import snapshot
from ops.solver.snapshot import Names
from pipelines.stages.ray_checkpoints import link
from pipelines.train import Train
from tests.pipelines.ray_trainings import blobs, digests, distance, golden_files, solver, train

pytestmark = pytest.mark.ray


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The golden solvers' nets and data, as the working folder."""
    golden_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checkpoints(run: str) -> dict[int, Path]:
    """Iteration -> folder, as Ray tells it of a run that has ended."""
    found = ray.train.Result.from_path(str(Path(run, ".ray", "last").resolve()))
    told = {metrics["iteration"]: Path(one.path) for one, metrics in found.best_checkpoints}
    assert Path(found.checkpoint.path) == told[max(told)]
    assert found.metrics["iteration"] == max(told)
    return told


@pytest.mark.slow
def test_a_checkpoint_of_ray_holds_a_snapshot_and_resumes_a_training(ray_session, folder):
    """Two workers; the last snapshot is told in any case, those before it unless one was just being told."""
    train(solver(folder, "adam", "snapshot: 3"), "whole", 2, weights="init_cls.caffemodel")
    told = checkpoints("whole")
    assert max(told) == 24
    assert set(told) <= set(range(3, 25, 3))
    for iteration, made in told.items():
        names = {f"mine_adam_iter_{iteration}.{kind}" for kind in ("caffemodel", "solverstate", "json")}
        assert set(os.listdir(made)) == names
        assert all((made / name).samefile(name) for name in names)
    first = min(told)
    assert first == 3, "nothing was being told then"
    state = told[first] / f"mine_adam_iter_{first}.solverstate"
    kept = state.parent.rename("checkpoint")  # by itself, as somebody would have it from elsewhere
    for old in Path().glob(f"mine_adam_iter_{first}.*"):
        old.unlink()
    train(solver(folder, "adam", "snapshot: 100"), "again", 2, snapshot=str(kept / state.name))
    assert digests("again") == digests("whole")[first:]
    assert distance(blobs("mine_adam_iter_24.caffemodel"), blobs(told[24] / "mine_adam_iter_24.caffemodel")) == 0


@pytest.mark.slow
def test_snapshots_faster_than_ray_looks_hold_nobody_up(ray_session, folder):
    train(solver(folder, "sgd", "snapshot: 1"), "run", 1, weights="init_cls.caffemodel", keep=2)
    told = checkpoints("run")
    assert max(told) == 24
    assert len(told) < 24
    assert len(list(Path().glob("mine_sgd_iter_*.solverstate"))) == 2
    assert snapshot.latest(told[24] / "mine_sgd") == told[24] / "mine_sgd_iter_24.solverstate"
    result = Train(solver=Path("mine_sgd.prototxt"), run_folder=Path("run"), resume=True, local=True, gpu="none").run()
    assert result["iterations"] == 24


def test_links_are_made_anew_and_where_there_can_be_none_point(tmp_path, monkeypatch):
    for kind in ("caffemodel", "solverstate", "json"):
        (tmp_path / f"net_iter_7.{kind}").write_text(kind)
    names = Names.of(tmp_path / "net", 7, "BINARYPROTO")
    first, second = (link(names, tmp_path / "iter_7") for _ in range(2))
    assert first != second
    assert first.name == "iter_7"

    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    third = link(names, tmp_path / "elsewhere")
    for made in (first, second, third):
        assert {file.name: file.read_text() for file in made.iterdir()} == {
            f"net_iter_7.{kind}": kind for kind in ("caffemodel", "solverstate", "json")
        }
    assert (third / "net_iter_7.json").is_symlink()


def test_of_a_snapshot_that_is_gone_nothing_is_left(tmp_path):
    for kind in ("caffemodel", "solverstate"):
        (tmp_path / f"net_iter_7.{kind}").write_text(kind)
    with pytest.raises(FileNotFoundError):
        link(Names.of(tmp_path / "net", 7, "BINARYPROTO"), tmp_path / "iter_7")
    assert not (tmp_path / "iter_7").exists()
