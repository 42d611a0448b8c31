"""A training that goes on by itself, in a process of its own: started, looked at, stopped, killed."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from pipelines.__main__ import main
from pipelines.job import Job
from pipelines.stages import detached
from pipelines.train import Train
from tests.pipelines.trainings import Case, data_files, environment, rows, solver

FOREVER = 10_000_000  # iterations


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    data_files(tmp_path)
    yield tmp_path
    for file in tmp_path.glob("runs/*/.detached/job.json"):
        found = json.loads(file.read_text())
        if detached.alive(found):
            os.kill(found["pid"], signal.SIGKILL)


def start(folder, iterations):
    path = Case(solver=solver()).write(folder, max_iter=iterations)
    job = Train(solver=path.relative_to(folder), run_folder=Path("runs/a"), local=True, gpu="none")
    return detached.launch(Path("runs/a"), "train", job)


def attach(*arguments, capsys):
    code = main(["attach", *arguments, "--json"])
    told = capsys.readouterr()
    return code, json.loads(told.out) if told.out else None, told.err


def until_it_trains(seconds=30.0):
    deadline = time.monotonic() + seconds
    while not (Path("runs/a/metrics.csv").exists() and rows(Path("runs/a"))):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_it_trains_to_its_end_and_attaching_waits_for_it(folder, capsys):
    started = start(folder, 13)
    assert started["attach"] == "cortado attach runs/a"
    code, found, said = attach("runs/a", capsys=capsys)
    assert (code, found["running"], found["code"]) == (0, False, 0)
    assert "iterations  13" in said
    assert len(rows(folder / "runs/a")) == 13


def test_it_can_be_looked_at_and_stopped_with_a_snapshot(folder, capsys):
    started = start(folder, FOREVER)
    assert os.getsid(started["process"]) == started["process"] != os.getsid(0)  # no terminal's end reaches it
    with pytest.raises(ValueError, match=r"runs/a: process \d+ is at work here; cortado attach runs/a shows it"):
        start(folder, FOREVER)
    until_it_trains()
    code, found, _ = attach("runs/a", "--status", capsys=capsys)
    assert (code, found["running"]) == (0, True)
    code, found, said = attach("runs/a", "--stop", capsys=capsys)
    assert (code, found["code"]) == (0, 0)
    assert "stopping after this iteration, with a snapshot" in said
    assert list((folder / "runs/a").glob("*.solverstate"))


def test_a_killed_one_is_told_from_one_that_ended(folder, capsys):
    started = start(folder, FOREVER)
    until_it_trains()
    os.kill(started["process"], signal.SIGKILL)
    code, found, _ = attach("runs/a", capsys=capsys)
    assert (code, found["running"]) == (1, False)
    assert "was killed: cortado train --resume" in found["how"]
    code, _, said = attach("runs/a", "--stop", capsys=capsys)
    assert code == 1
    assert "there is nobody to ask: the training was killed" in said


def test_one_that_fails_says_why(folder, capsys):
    (folder / "solver.prototxt").write_text('net: "nowhere.prototxt"')
    job = Train(solver=Path("solver.prototxt"), run_folder=Path("runs/a"), local=True)
    detached.launch(Path("runs/a"), "train", job)
    code, found, said = attach("runs/a", capsys=capsys)
    assert (code, found["code"]) == (1, 1)
    assert "nowhere.prototxt" in said


@pytest.mark.parametrize(
    ("run", "told"),
    [("runs/b", "there is no such run"), ("runs", "nothing was started here with --detach")],
)
def test_where_nothing_was_started_is_told(folder, capsys, run, told):
    (folder / "runs").mkdir()
    assert main(["attach", run]) == 1
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


@dataclass(frozen=True, kw_only=True)
class Odd(Job):
    """Options of every kind."""

    place: Annotated[Path, tyro.conf.Positional]
    """where"""
    run_folder: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """folder"""
    rate: float = 1.0
    """rate"""
    detach: bool = False
    """go on by itself"""
    quick: bool = False
    """quick"""
    slow: bool = True
    """slow"""


def test_options_become_the_words_that_give_them():
    job = Odd(
        place=Path("a b"), run_folder=Path("r"), rate=0.5, detach=True, quick=True, slow=False, set=("a=1", "b=2")
    )
    words = detached.arguments(job)
    assert "--detach" not in words
    assert tyro.cli(Odd, args=words) == Odd(
        place=Path("a b"), run_folder=Path("r"), rate=0.5, quick=True, slow=False, set=("a=1", "b=2")
    )


def test_a_number_that_another_process_has_now_is_not_taken_for_it():
    mine = {"pid": os.getpid(), "birth": detached.birth(os.getpid()), "host": os.uname().nodename}
    assert detached.alive(mine)
    assert not detached.alive({**mine, "birth": mine["birth"] - 1})
    assert not detached.alive({**mine, "host": "elsewhere"})
    assert not detached.alive({**mine, "code": 0})
